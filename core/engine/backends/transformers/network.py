"""A model as transformers builds it, and one call of it.

Knows the library's loading and the arguments of its forward passes. Knows nothing of batches or of
who asks.
Always: every tensor of the network comes from the files that the digest covers and every tensor of
these is used, for transformers is handed tensors and never a folder to choose from; memory is taken
only after the sizes that the model describes were found to be those of its files.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from ....errors import ModelFileError
from ....hardware.discovery import float_bytes, memory_sizes
from ....models.files.hf_folder import named_tensors, tensor_files
from ....models.lora.adapter import MODULE
from ....models.quant.tensor import QuantTensor, plain
from ....models.transformers_model import TransformersModel
from ...adapters import LoadedAdapter

# Names of tensors that files hold beside a language model, and that change no text: tables that
# old files hold ready, eyes and ears, layers that only guess ahead.
BESIDE = ("inv_freq", "masked_bias", "vision", "visual", "image", "audio", "mtp.")
CACHES = ("past_key_values", "cache_params")  # what a forward pass calls its cache
# Bytes of tables, as of positions and of who sees whom, that a small model may take beside its
# numbers: GPT-Neo's of 8 layers and 2048 positions take 32 MiB.
TABLES = 128 << 20
DTYPES = {4: torch.float32, 2: torch.bfloat16}  # by the bytes of a number


class TransformersNetwork:
    """One network, ready to compute. `step` is the only way through it."""

    def __init__(self, model: TransformersModel) -> None:
        """
        Raises:
            ModelFileError: sizes or tensors that do not belong together, or something of the
            library's that does not load.
        """
        self.model, self.vocab_size = load(model), model.vocab_size
        self.config = self.model.config
        taken = inspect.signature(self.model.forward).parameters
        self.cache_name = next((name for name in CACHES if name in taken), "")
        self._adapter: LoadedAdapter | None = None  # of the step that is made
        self._watched = False  # whether products are looked at: once an adapter is used
        self.takes = {name for name in ("position_ids", "logits_to_keep") if name in taken}

    @property
    def bytes(self) -> int:
        """What its numbers and tables take, as they were loaded."""
        return sum(one.nbytes for one in (*self.model.parameters(), *self.model.buffers()))

    @torch.inference_mode()
    def step(
        self,
        tokens: Tensor,
        cache: Cache | None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        wanted: int = 1,
    ) -> Tensor:
        """Logits after the last tokens of each row, float32 [B, wanted, V].

        Args:
            tokens: [B, n].
            cache: of what stands before them; grows by n. None: nothing does, and nothing is kept.
            positions: of the tokens, [B, n].
            mask: [B, all tokens so far], 0 where a row has none; only attention looks that far
                back.
        """
        given: dict[str, Any] = {"input_ids": tokens, "use_cache": cache is not None}
        if cache is not None:
            given[self.cache_name] = cache
        if positions is not None and "position_ids" in self.takes:
            given["position_ids"] = positions
        if mask is not None and cache is not None and attends(cache):
            given["attention_mask"] = mask
        if "logits_to_keep" in self.takes:
            given["logits_to_keep"] = wanted
        found: Tensor = self.model(**given).logits
        return found[:, -wanted:, : self.vocab_size].float()

    def projections(self) -> dict[str, QuantTensor]:
        """Weights and biases of the matrices that adapters may change, views by name."""
        found = {}
        for name, module in self._linear():
            found[f"{name}.weight"] = plain(module.weight.detach())
            if module.bias is not None:
                found[f"{name}.bias"] = plain(module.bias.detach()[None])
        return found

    @contextmanager
    def adapted(self, adapter: LoadedAdapter | None) -> Iterator[None]:
        """Steps inside the block are of a model that this adapter changes."""
        if adapter is not None and not self._watched:
            for name, module in self._linear():
                module.register_forward_hook(partial(self._changed, name))
            self._watched = True
        self._adapter = adapter
        try:
            yield
        finally:
            self._adapter = None

    def _linear(self) -> Iterator[tuple[str, nn.Linear]]:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) and MODULE.fullmatch(name):
                yield name, module

    def _changed(
        self, name: str, module: nn.Linear, given: tuple[Tensor, ...], product: Tensor
    ) -> Tensor:
        """What the adapter makes of one matrix's product; see `LoadedAdapter`."""
        adapter = self._adapter
        if adapter is None or name not in adapter.factors:
            return product
        x, bias = given[0], 0 if module.bias is None else module.bias
        down, up = (one.to(x.dtype) for one in adapter.factors[name])
        if output := adapter.outputs.get(name):
            gain, shift = (one.to(x.dtype) for one in output)
            product = (product - bias) * gain + shift + bias
        return product + x @ down @ up

    def new_cache(self) -> Cache:
        """An empty one, of the kinds of layers that the configuration lists."""
        return DynamicCache(config=self.config)


def attends(cache: Cache) -> bool:
    """Whether some layer looks back at tokens one by one."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def load(model: TransformersModel) -> PreTrainedModel:
    """The network with its numbers, in float32 where there is room for that, else in bfloat16."""
    # What it tells of faster packages, no owner of a node can follow, and it tells at every step.
    transformers.logging.set_verbosity_error()
    whole: type[PreTrainedModel] = getattr(
        transformers, transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config)].__name__
    )
    try:
        with quietly():
            check_sizes(model, whole)
            built, told = whole.from_pretrained(
                **source_of(model),
                config=model.config,
                dtype=DTYPES[float_bytes(model.parameters)],
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except ModelFileError:
        raise
    # what the library raises on files that do not fit is open-ended
    except Exception as error:
        raise ModelFileError(
            f"{model.path}: transformers cannot load this {model.family} model ({error!s:.300}); "
            f"get it again or choose another"
        ) from error
    refuse_leftovers(model, told)
    return built.eval().requires_grad_(False)


def source_of(model: TransformersModel) -> dict[str, Any]:
    """Where `from_pretrained` takes the numbers from: tensors that we read, or one GGUF file."""
    if model.path.is_dir():
        return {"pretrained_model_name_or_path": None, "state_dict": tensors_of(model)}
    return {"pretrained_model_name_or_path": model.path.parent, "gguf_file": model.path.name}


def tensors_of(model: TransformersModel) -> dict[str, Tensor]:
    """Every tensor of the files that the digest covers, mapped.

    A folder's own loader in transformers looks for more: a file that config.json names, and files
    `shard-*`, before which it passes over model.safetensors.
    """
    found: dict[str, Tensor] = {}
    for path in tensor_files(model.path):
        for name, tensor in named_tensors(path):
            if name in found:
                raise ModelFileError(f"{path}: {name:.120} is in two files; get the model again")
            found[name] = tensor
    return found


def refuse_leftovers(model: TransformersModel, told: dict[str, Any]) -> None:
    """Raises: ModelFileError: numbers that no file gave, or that nothing uses."""
    lacking = sorted(told["missing_keys"]) + sorted(map(str, told.get("mismatched_keys") or ()))
    beyond = [
        name for name in sorted(told["unexpected_keys"]) if not any(one in name for one in BESIDE)
    ]
    for names, said in ((lacking, "lacks"), (beyond, "holds beside what transformers uses")):
        if names:
            raise ModelFileError(
                f"{model.path}: this {model.family} model {said} {', '.join(names)[:300]}; get it "
                f"again or choose another"
            )


def check_sizes(model: TransformersModel, whole: type[PreTrainedModel]) -> None:
    """Raises: ModelFileError: the model describes more than its file holds, so that memory for it
    would be taken for nothing, or tables out of proportion to it.
    """
    with torch.device("meta"):
        described = whole(model.config)
    wanted = sum(one.numel() for one in described.parameters())
    if wanted > model.parameters:
        raise ModelFileError(
            f"{model.path}: its settings describe {wanted:,} numbers, its tensors hold "
            f"{model.parameters:,}; get the model again"
        )
    tables = sum(one.nbytes for one in described.buffers())
    _, free = memory_sizes()
    most = max(TABLES, 4 * model.parameters)
    if tables > most or (free and tables > free // 2):
        raise ModelFileError(
            f"{model.path}: its settings describe tables of {tables:,} bytes beside its "
            f"{model.parameters:,} numbers, expected at most {most:,} and half of the memory that "
            f"is free ({free:,}); get the model again"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's bars and warnings."""
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        # one of its bars, of GGUF files, hears no switch
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            transformers.logging.enable_progress_bar()
