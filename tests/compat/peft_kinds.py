"""Adapters of every kind that PEFT makes: each computes what it computes there, or is refused by
the field's name.

Each kind of PEFT's registry, and each field of its `LoraConfig` in turn away from its default, is
made by PEFT itself on a tiny model, with random numbers, saved, and read by us. A field that PEFT
gets and this file does not know is a wrong case.
"""

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quietchoir.core.engine.adapters import AdapterRegistry
from quietchoir.core.engine.backends.torch_cpu.lora import AdapterRows, Rows, adapt
from quietchoir.core.errors import ModelFileError
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.checkpoint import from_hf
from quietchoir.core.models.lora.adapter import COMPUTED, DTYPES, Adapter
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.tokenizer.tokenizer import Tokenizer
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.models import make_model, their_logits

SIZES = {"num_hidden_layers": 3, "vocab_size": 300}
TARGETS = ["q_proj", "v_proj", "down_proj"]
TOKENS = torch.arange(5, 30)
# logits of about ±10: how far ours may be from theirs, and how far an adapter moves them at least
NEAR, FAR = 2e-3, 0.1
# Field -> values away from PEFT's default. What PEFT cannot make here (no data, no library) is
# written into a plain one's file.
FIELDS: dict[str, Sequence[Any]] = {
    "task_type": ("CAUSAL_LM", None),
    "peft_type": ("LORA",),
    "auto_mapping": ({"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},),
    "peft_version": ("0.1.0",),
    "base_model_name_or_path": ("somewhere",),
    "revision": ("main",),
    "inference_mode": (True,),
    "r": (3, 16),
    "target_modules": (
        ["q_proj"],
        "all-linear",
        r".*\.[012]\.mlp\.(up|gate)_proj",
        ["lm_head", "q_proj"],
        ["embed_tokens", "q_proj"],
    ),
    "exclude_modules": (["v_proj"],),
    "lora_alpha": (3, 2.5, 64),
    "lora_dropout": (0.3,),
    "fan_in_fan_out": (True,),
    "bias": ("all", "lora_only"),
    "use_rslora": (True,),
    "modules_to_save": (["lm_head"], ["norm"]),
    "init_lora_weights": (
        *(False, "gaussian", "orthogonal", "eva", "olora", "pissa", "pissa_niter_4"),
        *("corda", "loftq", "mica", "lora_ga", "of tomorrow"),
    ),
    "layers_to_transform": ([1], 2),
    "layers_pattern": ("layers",),
    "rank_pattern": (
        {"q_proj": 2},
        {
            "q_proj": 2,
            r"model\.layers\.[01]\.mlp\.down_proj": 11,
            "^model.layers.2.self_attn.v_proj": 1,
        },
    ),
    "alpha_pattern": (
        {"v_proj": 1},
        {r"layers\.1\..*": 32, "q_proj": 0.5},
        {"self_attn.(q|v)_proj": 3},
    ),
    "megatron_config": ({"hidden_size": 64},),
    "megatron_core": ("megatron.other",),
    "trainable_token_indices": ([1, 2],),
    "loftq_config": ({"loftq_bits": 4},),
    "eva_config": ({"rho": 2.0},),
    "corda_config": ({"corda_method": "ipm"},),
    "lora_ga_config": ({"direction": "ArBr"},),
    "use_dora": (True,),
    "velora_config": ({"num_groups": 4},),
    "alora_invocation_tokens": ([7, 8],),
    "use_qalora": (True,),
    "qalora_group_size": (8,),
    "monteclora_config": ({"num_samples": 2},),
    "layer_replication": ([[0, 2], [1, 3]],),
    "runtime_config": ({"ephemeral_gpu_offload": True},),
    "lora_bias": (True,),
    "target_parameters": (["mlp.up_proj.weight"],),
    "use_bdlora": ({"nblocks": 2, "target_modules_bd_a": ["q_proj"]},),
    "arrow_config": ({"top_k": 2},),
    "kasa_config": ({"beta": 0.1},),
    "ensure_weight_tying": (True,),
}
TOGETHER: dict[str, dict[str, Any]] = {
    "rsLoRA with patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, "down_proj": 13},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 40, "down_proj": 1.5},
    },
    "some layers, some modules, patterns": {
        "layers_to_transform": [0, 2],
        "layers_pattern": "layers",
        "rank_pattern": {"layers.2.*": 3},
    },
    "DoRA and rsLoRA": {"use_dora": True, "use_rslora": True},
    "DoRA and patterns": {
        "use_dora": True,
        "rank_pattern": {"q_proj": 2, "down_proj": 13},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 40, "down_proj": 1.5},
    },
    "PiSSA of a small rank": {"init_lora_weights": "pissa", "r": 2},
}

BIASED: tuple[dict[str, Any], ...] = (
    {"bias": "all"},
    {"bias": "lora_only"},
    {"bias": "all", "target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"bias": "all", "use_dora": True},
    {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}},
    {"lora_bias": True},
    {"lora_bias": True, "bias": "all", "alpha_pattern": {"v_proj": 1}},
)


SCRATCH = tempfile.TemporaryDirectory(prefix="quietchoir-peft-")  # until the process ends


@cache
def base(name: str = "llama2") -> tuple[Path, Tensor, Any]:
    """A tiny model's folder, its logits and itself."""
    folder = Path(SCRATCH.name) / name
    model = make_model(name, **SIZES)
    model.save_pretrained(folder)
    return folder, their_logits(model, TOKENS), model


def check() -> Iterator[tuple[str, str]]:
    """Every kind, then every field, then some together."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what these configurations do
        for kind in sorted(map(str, peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)):
            kind = kind.removeprefix("PeftType.")
            yield f"kind {kind}", attempt({}, kind=kind)
        for field in dataclasses.fields(peft.LoraConfig):
            beside = {"layers_to_transform": [0, 2]} if field.name == "layers_pattern" else {}
            for value in FIELDS.get(field.name, ()):
                yield f"{field.name} = {value!r}", attempt({field.name: value, **beside})
            if field.name not in FIELDS:
                yield f"{field.name}", "a field of PEFT's that this file does not know"
        for name, fields in TOGETHER.items():
            yield name, attempt(fields)
        for name in ("float16", "bfloat16", "float64", "int8", "float8_e4m3fn"):
            yield f"matrices of {name}", attempt({}, dtype=getattr(torch, name))
        for fields in BIASED:
            told = ", ".join(f"{name} = {value!r}" for name, value in fields.items())
            yield f"{told} of a model with biases", attempt(fields, model="llama-biased")


def attempt(
    fields: dict[str, Any],
    *,
    kind: str = "LORA",
    model: str = "llama2",
    dtype: torch.dtype = torch.float32,
) -> str:
    """One adapter: what was wrong with it, or nothing."""
    import peft

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        theirs = make(folder, fields, kind, model)
        if dtype is not torch.float32:
            theirs = convert(folder, dtype)
        try:
            adapter = Adapter.load(folder)
        except ModelFileError as error:
            if kind == "LORA" and dtype in DTYPES and fields.keys() <= set(COMPUTED):
                return f"refused, though it is one of what we compute: {error}"
            named = [
                *fields,
                *(["peft_type"] if kind != "LORA" else []),
                *([str(dtype)] if dtype is not torch.float32 else []),
            ]
            return (
                ""
                if any(name in str(error) for name in named) or only_modules(fields, str(error))
                else f"refused without its name: {error}"
            )
        if kind != "LORA":
            return "taken for a LoRA"
        if theirs is None:
            return (
                ""
                if set(fields) & {"peft_type", "megatron_core"}
                else ("PEFT cannot compute it, and we took it")
            )
        plain_logits = base(model)[1]
        if (moved := float((theirs - plain_logits).abs().max())) < FAR:
            return f"PEFT's logits move by {moved} only: the case says nothing"
        apart = float((logits(adapter, model) - theirs).abs().max())
        adapter.save(folder / "again")  # and what we write, PEFT reads as the same
        again = peft.PeftModel.from_pretrained(make_model(model, **SIZES), str(folder / "again"))
        written = float((their_logits(again.eval(), TOKENS) - theirs).abs().max())
        if written > NEAR:
            return f"written by us it is {written:.3f} from PEFT's own, which moves by {moved:.3f}"
        return (
            ""
            if apart < NEAR
            else (f"logits {apart:.3f} from PEFT's, where the adapter moves them by {moved:.3f}")
        )


def only_modules(fields: dict[str, Any], error: str) -> bool:
    """Whether a target that we do not adapt (embedding, head) is named."""
    return "target_modules" in fields and ("lm_head" in error or "embed_tokens" in error)


def make(folder: Path, fields: dict[str, Any], kind: str, model: str) -> Tensor | None:
    """PEFT's own adapter in a folder, and its logits; None where PEFT cannot make such a one,
    and only the file says it.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    torch.manual_seed(7)
    made = make_model(model, **SIZES)
    chosen = {"target_modules": TARGETS, **fields} if kind == "LORA" else fields
    try:
        config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
        known = {field.name for field in dataclasses.fields(config_class)}
        usual = {
            "task_type": "CAUSAL_LM",
            "target_modules": TARGETS,
            "num_virtual_tokens": 4,
            "inference_mode": False,
        }
        config = config_class(
            **{**{key: value for key, value in usual.items() if key in known}, **revived(chosen)}
        )
        adapted = peft.get_peft_model(made, config)
        with torch.no_grad():
            for name, tensor in adapted.named_parameters():
                if "lora_" in name and "magnitude" not in name:
                    tensor.normal_(0, 0.3)
                elif tensor.requires_grad:
                    tensor.add_(torch.randn_like(tensor) * 0.1)
        adapted.eval()
        theirs = their_logits(adapted, TOKENS)
        adapted.save_pretrained(str(folder))
        return theirs
    except Exception:  # no data, no library, not for this model: what the file says is all there is
        for file in folder.iterdir():
            file.unlink()
        if kind != "LORA" or fields.keys() == {"peft_type"}:
            make(folder, {}, "LORA", model)
        else:
            make(folder, {}, "LORA", "llama2")
        path = folder / "adapter_config.json"
        values = {
            **json.loads(path.read_text()),
            **fields,
            **({"peft_type": kind} if kind != "LORA" else {}),
        }
        path.write_text(json.dumps(values))
        return None


def revived(fields: dict[str, Any]) -> dict[str, Any]:
    """Tables as PEFT's own classes, where it wants those."""
    import peft.tuners.lora.config as lora

    classes = {
        "runtime_config": "LoraRuntimeConfig",
        "velora_config": "VeloraConfig",
        "eva_config": "EvaConfig",
        "corda_config": "CordaConfig",
        "lora_ga_config": "LoraGAConfig",
        "monteclora_config": "MontecloraConfig",
        "use_bdlora": "BdLoraConfig",
        "arrow_config": "ArrowConfig",
        "kasa_config": "KasaConfig",
    }
    return {
        key: getattr(lora, classes[key])(**value) if key in classes else value
        for key, value in fields.items()
    }


def convert(folder: Path, dtype: torch.dtype) -> Tensor | None:
    """The same file in another number format, and what PEFT makes of it; integers have their
    scale elsewhere.
    """
    import peft
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    whole = {
        name: (tensor * 100 if dtype is torch.int8 else tensor).to(dtype)
        for name, tensor in load_file(path).items()
    }
    save_file(whole, path)
    if not dtype.is_floating_point or dtype.itemsize == 1:
        return None
    return their_logits(
        peft.PeftModel.from_pretrained(make_model("llama2", **SIZES), str(folder)).eval(), TOKENS
    )


def logits(adapter: Adapter, model: str) -> Tensor:
    """Ours, [N, V], with the adapter on every row, as the engine's own path in torch has it."""
    folder, _, _ = base(model)
    architecture = from_hf.read_architecture(folder)
    weights = Weights(
        architecture, from_hf.name_tensors(folder, architecture), NO_TOKENIZER, adapter.base_digest
    )
    held = AdapterRegistry(weights)
    held.load("a", adapter)
    loaded, network, rows = held.find("a"), Transformer(weights, dense_linear), AdapterRows()
    assert loaded is not None
    adapt(network, rows)
    with torch.inference_mode(), rows.use((Rows(0, len(TOKENS), loaded),)):
        found = network.layers_forward(
            network.embed(TOKENS), torch.arange(len(TOKENS)), packed_attention([len(TOKENS)])
        )
        return network.logits(found)


NO_TOKENIZER: Tokenizer = None  # type: ignore[assignment]  # nothing here is text


def dense_linear(blocks: QuantTensor) -> nn.Module:
    """A plain linear layer."""
    linear = nn.Linear(blocks.shape[1], blocks.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(blocks.dequantize(torch.float32), requires_grad=False)
    return linear
