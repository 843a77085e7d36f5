"""LoRA weights and their two files, the ones that PEFT reads and writes.

Knows PEFT's names. Knows nothing of training or of who made an adapter.
Always: a loaded adapter has only finite float32 matrices whose shapes fit each other; the same
adapter is saved as the same bytes.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ModelFileError, ModelNotFoundError
from ...paths import write_atomically
from ..architecture import (
    ADAPTED_BESIDE,
    LORA_A,
    OUT_GATE,
    PROJECTIONS,
    ROPE_PROJECTIONS,
    Architecture,
)
from ..families import FAMILIES
from ..family import AdaptedPart
from ..files.lfs_pointer import refuse_pointer
from ..quant.tensor import QuantTensor
from .layout import (
    DELTA_PROJECTIONS,
    OTHERS_TARGETS,
    TARGETS,
    AdapterShape,
    Layout,
    a_name,
    b_name,
    frozen_a,
)

__all__ = ["Adapter", "AdapterShape", "Layout", "assemble", "frozen_a"]

PREFIX = "base_model.model."  # PEFT's, before Hugging Face's names
CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
# in the header of TENSOR_FILE; one key only, the library's order of several is random
OWN_KEY = "quietchoir"
NAMES = "|".join(map(re.escape, (*PROJECTIONS, *DELTA_PROJECTIONS, *ADAPTED_BESIDE)))
MODULE = re.compile(rf"model\.layers\.(\d{{1,4}})\.({NAMES})(?!\w)")
# what an adapter may have of a projection besides A and B, each [rows]
MAGNITUDE, ADDED, BIAS = VECTORS = (".lora_magnitude_vector", ".lora_B.bias", ".bias")
MAX_CONFIG_BYTES = 1 << 20
MAX_PADDED = 1 << 28  # numbers; adapters whose ranks differ are padded to the largest
# of matrices; integers would need scales
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# PEFT's fields by what they do to an adapter that is served as it is. A field that is in none of
# these is refused by its name unless it asks for nothing (null, false, empty), known to us or not.
COMPUTED = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("use_dora", "lora_bias"),
)
HARMLESS = (
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
        "revision",
        "task_type",
    ),  # names of things
    # the matrices say it themselves
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "runtime_config", "eva_config"),  # of training, and of where it ran
    # read only beside megatron_config and use_qalora, which are refused
    *("megatron_core", "qalora_group_size"),
)
ALLOWED: dict[str, tuple[Any, ...]] = {
    # those of projections are taken from the file, others are refused by their names
    "bias": ("none", "all", "lora_only"),
    # Starts that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change it, and
    # MiCA the layer.
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
PEFT_DEFAULT = 8  # of r and of lora_alpha
# of a pattern: its length, and how often it may repeat something, so that none takes long
MAX_PATTERN, MAX_REPEATS = 200, 4


Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A small change to a frozen model: W x + scale * B A x, with what PEFT calls DoRA and bias
    besides.
    """

    shape: AdapterShape
    # sha256 of the base model's file; empty for a foreign adapter that does not say
    base_digest: str
    tensors: dict[str, Tensor] = field(
        repr=False
    )  # "model.layers.22.self_attn.q_proj.lora_A.weight" [r, columns], "….lora_B.weight" [rows, r];
    # [rows] of some: "….lora_magnitude_vector", "….lora_B.bias", "….bias" in place of the base's

    def check(self, architecture: Architecture) -> None:
        """See that every matrix fits a projection of this model.

        Raises:
            ModelFileError: names the first one that does not.
        """
        for name, tensor in self.tensors.items():
            match = MODULE.match(name)
            layer, projection = (
                (int(match[1]), match[2]) if match else (architecture.num_layers, PROJECTIONS[0])
            )
            family = FAMILIES.get(architecture.family)
            paired = family is not None and family.hf_interleaved
            if paired and projection in ROPE_PROJECTIONS and not self.base_digest:
                raise ModelFileError(
                    f"{name} is of another's adapter, whose rows stand in the order of "
                    f"{architecture.family}'s folders and not in ours, so it would be computed "
                    f"wrongly; use one that changes neither q_proj nor k_proj"
                )
            if architecture.state_spaces and not self.base_digest:
                raise ModelFileError(
                    f"{name} is of another's adapter, and {architecture.family}'s folders hold "
                    f"their matrices multiplied or under other names than ours, so it would be "
                    f"computed wrongly; train one here (`quietchoir join`, `adapter personalize`)"
                )
            parts = None if family is None else family.adapted(projection, layer, architecture)
            rows, columns = (
                architecture.projection(projection)
                if parts is None or layer >= architecture.num_layers
                else shape_of(parts, layer, architecture)
            )
            expected: tuple[int, ...] = (rows, self.shape.rank)
            if name.endswith(LORA_A):
                expected = (self.shape.rank, columns)
            elif vector_of(name):
                expected = (rows,)
            there = layer < architecture.num_layers and (
                architecture.has_projection(layer, projection) if parts is None else bool(parts)
            )
            if not there or tuple(tensor.shape) != expected:
                raise ModelFileError(
                    f"{name} {tuple(tensor.shape)} does not fit the base model; use the base it "
                    f"was trained on"
                )

    def trained(self, architecture: Architecture) -> dict[str, Tensor]:
        """The tensors of what is trained here, in our own rows; `check` has passed."""
        ours = self.in_our_rows(architecture).tensors
        return {name: tensor for name, tensor in ours.items() if f".{OUT_GATE}." not in name}

    def in_our_rows(self, architecture: Architecture) -> "Adapter":
        """The same adapter of our own matrices, where a family's folders hold their rows or columns
        otherwise; `check` has passed.
        """
        family, made = FAMILIES[architecture.family], {}
        for name, tensor in self.tensors.items():
            match = MODULE.match(name)
            if match is None:
                raise RuntimeError(f"{name} was not checked")
            parts = family.adapted(match[2], int(match[1]), architecture)
            if parts is None:
                return self  # no family has some of this kind and some of that
            ending = name[match.end() :]
            for part in parts:
                taken = tensor
                if ending == LORA_A and part.columns is not None:
                    taken = tensor[:, torch.from_numpy(part.columns)]
                elif ending != LORA_A and part.rows is not None:
                    taken = tensor[torch.from_numpy(part.rows)]
                made[f"model.layers.{match[1]}.{part.name}{ending}"] = taken
        return replace(self, tensors=made)

    def check_projections(self, base: Mapping[str, QuantTensor]) -> None:
        """The same of a model that is known by its matrices alone, as `products` takes them.

        Raises:
            ModelFileError: names the first one that does not fit.
        """
        for module in modules_of(self.tensors):
            blocks = base.get(f"{module}.weight")
            a, b = self.tensors.get(a_name(module)), self.tensors.get(b_name(module))
            rows, columns = (None, None) if blocks is None else blocks.shape
            fits = blocks is not None and (a is None or a.shape[1] == columns)
            vectors = [self.tensors.get(module + vector) for vector in VECTORS]
            if not fits or any(one is not None and one.shape[0] != rows for one in (b, *vectors)):
                raise ModelFileError(
                    f"{module} is no projection of the base model, or one of another size; use the "
                    f"base that the adapter was trained on"
                )

    @property
    def only_adds(self) -> bool:
        """Is B A all that it is?"""
        return not any(map(vector_of, self.tensors))

    def products(self, base: Mapping[str, QuantTensor]) -> tuple[Pairs, Pairs]:
        """What becomes of each projection's W x, by module: gain * W x + shift + x A^T B^T, with
        the base's own bias behind.

        Args:
            base: the frozen model's tensors, that this adapter fits (`check`).

        Returns:
            A transposed [K, r] and scale * B transposed [r, rows] of every module, copied; gain and
            shift [rows] of those where they are not 1 and 0.

        Source: Liu et al. 2024 (DoRA), equation 5: rows of W + scale * B A are brought to the
        length that the magnitude says; PEFT scales no bias.
        """
        factors: Pairs = {}
        outputs: Pairs = {}
        for module in modules_of(self.tensors):
            rows, columns = base[f"{module}.weight"].shape
            a = self.tensors.get(a_name(module), torch.zeros(1, columns)).float()
            b = self.tensors.get(b_name(module), torch.zeros(rows, 1)).float() * self.shape.scale
            gain, shift = torch.ones(rows), torch.zeros(rows)
            if (magnitude := self.tensors.get(module + MAGNITUDE)) is not None:
                whole = base[f"{module}.weight"].dequantize().addmm_(b, a)
                gain = magnitude.float() / torch.linalg.vector_norm(whole, dim=1)
            if (added := self.tensors.get(module + ADDED)) is not None:
                shift = shift + added.float() * self.shape.scale
            if (trained := self.tensors.get(module + BIAS)) is not None:
                own = base.get(module + BIAS)
                shift = shift + trained.float() - (0 if own is None else own.dequantize()[0])
            factors[module] = a.T.contiguous().clone(), (gain[:, None] * b).T.contiguous()
            if any(module + vector in self.tensors for vector in VECTORS):
                outputs[module] = gain, shift
        return factors, outputs

    def save(self, folder: Path, *, mode: int = 0o644) -> None:
        """Write a PEFT checkpoint; the configuration comes last, so a folder that has it is whole.

        Args:
            mode: of both files; 0o600 for what nobody else shall read.

        Raises:
            QuietchoirError: no space or no permission.
        """
        own = {
            "base_digest": self.base_digest,
            "seed": self.shape.seed,
            "targets": list(self.shape.targets),
        }
        named = {
            PREFIX + self.name_in_peft(name): tensor.detach().cpu().contiguous()
            for name, tensor in self.tensors.items()
        }
        header = {OWN_KEY: json.dumps(own, sort_keys=True)}
        write_atomically(
            folder / TENSOR_FILE, safetensors.torch.save(named, metadata=header), mode=mode
        )
        config = json.dumps(self.peft_config(), indent=2, sort_keys=True) + "\n"
        write_atomically(folder / CONFIG_FILE, config.encode(), mode=mode)

    def name_in_peft(self, name: str) -> str:
        """PEFT wraps what it adapts: a bias there is its inner layer's."""
        module = name.removesuffix(BIAS)
        wrapped = vector_of(name) == BIAS and a_name(module) in self.tensors
        return f"{module}.base_layer{BIAS}" if wrapped else name

    def peft_config(self) -> dict[str, Any]:
        """The fields of PEFT's LoraConfig that say what this adapter is; PEFT's defaults fill
        the rest.
        """
        adapted = [name for name in self.tensors if name.endswith(LORA_A)]
        layers = sorted({int(match[1]) for name in adapted if (match := MODULE.match(name))})
        alpha = self.shape.alpha
        vectors = set(map(vector_of, self.tensors))
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": self.shape.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": 0.0,
            "bias": "all" if BIAS in vectors else "none",
            **({"use_dora": True} if MAGNITUDE in vectors else {}),
            **({"lora_bias": True} if ADDED in vectors else {}),
            "target_modules": sorted(self.shape.targets),
            "layers_to_transform": layers,
            "layers_pattern": "layers",
            "base_model_name_or_path": f"sha256:{self.base_digest}",
        }

    @classmethod
    def load(cls, folder: Path) -> "Adapter":
        """Read a PEFT checkpoint, ours or another's.

        Raises:
            ModelNotFoundError: no checkpoint there.
            ModelFileError: not LoRA as we compute it, or matrices that are missing, misshapen or
            not finite.
        """
        config = read_config(folder / CONFIG_FILE)
        tensors, own = read_tensors(folder / TENSOR_FILE, config)
        modules = pair_up(folder, config, tensors)
        try:
            rank, alpha, tensors = made_alike(config, modules, tensors)
        except (ArithmeticError, TypeError, ValueError, AttributeError, re.error) as error:
            raise ModelFileError(f"{folder}: {error}; get the adapter again") from error
        found = {module.rsplit(".", 1)[1] for module in modules}  # those with A and B
        try:
            shape = AdapterShape(
                rank=rank,
                alpha=alpha,
                upper_layers=len({module.split(".")[2] for module in modules}),
                targets=tuple(
                    own.get("targets")
                    or (name for name in (*TARGETS, *OTHERS_TARGETS) if name in found)
                ),
                seed=own.get("seed", 0),
            )
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ModelFileError(f"{folder}: {error}; get the adapter again") from error
        if set(shape.targets) != found:
            raise ModelFileError(
                f"{folder}: says it changes {sorted(shape.targets)}, but changes {sorted(found)}; "
                f"get it again"
            )
        return cls(shape, str(own.get("base_digest", "")), tensors)


def shape_of(
    parts: tuple[AdaptedPart, ...], layer: int, architecture: Architecture
) -> tuple[int, int]:
    """Rows and columns of the projection that these are parts of; (0, 0) of none."""
    own = architecture.layer_shapes(layer)
    shapes = [own[f"{part.name}.weight"] for part in parts]
    return sum(rows for rows, _ in shapes), max((columns for _, columns in shapes), default=0)


def assemble(
    shape: AdapterShape, architecture: Architecture, base_digest: str, flat_b: Tensor
) -> Adapter:
    """The adapter of a flat B [n] and the frozen A of its shape, its rows as a folder of the family
    has them: what stands in one matrix with ours and was not trained is not changed.

    Raises:
        ModelFileError: values that are not finite, or too large to be.
        ValueError: another length than the layout's n.
    """
    if not bool(torch.isfinite(flat_b.float() * shape.scale).all()):
        raise ModelFileError(
            "the adapter has values that are not finite, so it would answer "
            "nothing; take an earlier one"
        )
    b = Layout(shape, architecture).unflatten(flat_b.detach().to("cpu", torch.float32).clone())
    for module in shape.modules(architecture):
        b[b_name(module)] = in_folder_rows(module, b[b_name(module)], architecture)
    return Adapter(shape, base_digest, {**frozen_a(shape, architecture), **b})


def in_folder_rows(module: str, b: Tensor, architecture: Architecture) -> Tensor:
    """One B of ours among the rows of the folder's matrix that holds it, zeros elsewhere."""
    match, family = MODULE.match(module), FAMILIES.get(architecture.family)
    if match is None or family is None:
        return b
    parts = family.adapted(match[2], int(match[1]), architecture) or ()
    own = next((part.rows for part in parts if part.name == match[2]), None)
    if own is None:
        return b
    whole = b.new_zeros(shape_of(parts, int(match[1]), architecture)[0], b.shape[1])
    whole[torch.from_numpy(own)] = b
    return whole


def read_config(path: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json, if it describes what we can compute."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelFileError(
                f"{path}: larger than {MAX_CONFIG_BYTES} bytes, no adapter's "
                f"configuration is; get it again"
            )
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path}: no such file; give a folder that holds a PEFT checkpoint"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise ModelFileError(
            f"{path}: not a readable JSON file ({error}); get the adapter again"
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = (
            (f"peft_type is {config.get('peft_type')!r:.40}")
            if isinstance(config, dict)
            else "no object"
        )
        raise ModelFileError(
            f"{path}: not the configuration of a LoRA adapter ({found}); only "
            f"peft_type LORA is supported"
        )
    for key, value in config.items():
        if (
            key not in (*COMPUTED, *HARMLESS)
            and not asks_nothing(value)
            and not is_one_of(value, ALLOWED.get(key, ()))
        ):
            raise ModelFileError(
                f"{path}: {key} = {value!r:.60} is not supported; train the adapter without it"
            )
    return config


def asks_nothing(value: object) -> bool:
    """Whether a field stands there without being used."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def is_one_of(value: object, allowed: tuple[Any, ...]) -> bool:
    """Whether a field has one of these values, and their type: 1 is not True."""
    return any(type(value) is type(one) and value == one for one in allowed)


def made_alike(
    config: dict[str, Any], modules: list[str], tensors: dict[str, Tensor]
) -> tuple[int, float, dict[str, Tensor]]:
    """One rank and one alpha for all matrices: what is of a smaller rank is padded, another scale
    goes into B.

    Raises:
        ValueError: a rank that the configuration does not name, or a pattern or number that cannot
        be used.

    Source: PEFT's `LoraModel` and `get_pattern_key`; Kalajdzievski 2023 (rsLoRA) for alpha /
    sqrt(rank).
    """
    scales, ranks, root = {}, {}, bool(config.get("use_rslora"))
    for module in modules:
        a, b = tensors[a_name(module)], tensors[b_name(module)]
        rank = ranks[module] = a.shape[0]
        if b.shape[1] != rank:
            raise ValueError(
                f"{module} has A {tuple(a.shape)} and B {tuple(b.shape)}, expected one rank in both"
            )
        if rank != (said := by_pattern(config, "rank_pattern", module, "r")):
            raise ValueError(
                f"configuration says rank {said!r:.20}, matrices of {module} have {rank}"
            )
        alpha = float(by_pattern(config, "alpha_pattern", module, "lora_alpha"))
        scales[module] = alpha / math.sqrt(rank) if root else alpha / rank
    largest, scale = max(ranks.values()), max(scales.values())
    if len(set(scales.values())) == len(set(ranks.values())) == 1:
        return largest, alpha * math.sqrt(largest) if root else alpha, tensors
    if (
        scale <= 0
        or largest
        * sum(
            tensors[name(one)].numel() // ranks[one] for one in modules for name in (a_name, b_name)
        )
        > MAX_PADDED
    ):
        raise ValueError(f"its ranks differ too much (up to {largest}), or it scales by {scale}")
    alike = {name: tensor for name, tensor in tensors.items() if vector_of(name)}
    for module in modules:
        if (added := module + ADDED) in alike:
            alike[added] = alike[added] * (scales[module] / scale)
        a, b, missing = tensors[a_name(module)], tensors[b_name(module)], largest - ranks[module]
        alike[a_name(module)] = functional.pad(a, (0, 0, 0, missing))
        alike[b_name(module)] = functional.pad(b * (scales[module] / scale), (0, missing))
    return largest, scale * largest, alike


def by_pattern(config: dict[str, Any], patterns: str, module: str, otherwise: str) -> Any:
    """What a field says of a module: the value of the first pattern that its name ends with, else
    of the whole adapter.

    Raises:
        ValueError: a pattern that could take long to match; it comes from a file.
    """
    for key, value in (config.get(patterns) or {}).items():
        repeats = len(re.findall(r"[*+?{]", key))
        if len(key) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+?{]|\(\?|\\\d", key):
            raise ValueError(
                f"{patterns} has the key {key!r:.60}, expected a module's name or a plain pattern"
            )
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return config.get(otherwise, PEFT_DEFAULT)


def read_tensors(path: Path, config: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Matrices under our names, float32, and what our own header says (nothing in a foreign
    file).
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(OWN_KEY, "{}"))
            names = list(file.keys())
            held = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
    except FileNotFoundError:
        if (pickled := path.with_suffix(".bin")).exists():
            raise ModelFileError(
                f"{pickled}: pickled, as older PEFT wrote adapters; load it with peft and save it "
                f"again, as safetensors"
            ) from None
        raise ModelNotFoundError(
            f"{path}: no such file; the checkpoint is incomplete, get it again"
        ) from None
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        MemoryError,
        RecursionError,
        safetensors.SafetensorError,
    ) as error:
        refuse_pointer(path)
        raise ModelFileError(f"{path}: damaged ({error!s:.200}); get the adapter again") from error
    for name, tensor in held.items():
        if vector_of(name) == BIAS and not MODULE.match(name):
            raise ModelFileError(
                f"{path}: bias = {config.get('bias')!r:.20} has trained {name}, of no "
                f"projection of a layer, which is not supported; train without it"
            )
        if tensor.dtype not in DTYPES:
            raise ModelFileError(
                f"{path}: {name} is {tensor.dtype}, expected floating-point "
                f"numbers; save it as float16"
            )
    # PEFT's layer around a projection has the projection's own bias inside; older PEFT wrote a
    # magnitude as a layer of its own
    tensors = {
        name.replace(f".base_layer{BIAS}", BIAS).replace(
            f"{MAGNITUDE}.weight", MAGNITUDE
        ): tensor.to(torch.float32)
        for name, tensor in held.items()
    }
    for name, tensor in tensors.items():
        vector = bool(vector_of(name))
        if tensor.dim() != (1 if vector else 2) or not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(
                f"{path}: {name} is not a {'list' if vector else 'matrix'} of finite numbers; get "
                f"the adapter again"
            )
    return tensors, header if isinstance(header, dict) else {}


def vector_of(name: str) -> str:
    """The ending of one of `VECTORS` in a tensor's name; empty for A and B."""
    return next((vector for vector in VECTORS if name.endswith(vector)), "")


def modules_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """The projections that tensors belong to, sorted."""
    return sorted({match[0] for name in tensors if (match := MODULE.match(name))})


def pair_up(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    """The projections that an adapter adds to; each must have an A and a B, and there must be
    nothing else but what the configuration says.
    """
    modules = [one for one in modules_of(tensors) if {a_name(one), b_name(one)} & tensors.keys()]
    expected = {name(module) for module in modules for name in (a_name, b_name)}
    for key, vector in (("use_dora", MAGNITUDE), ("lora_bias", ADDED)):
        expected |= {module + vector for module in modules if config.get(key)}
    if config.get("bias") in ("all", "lora_only"):
        expected |= {name for name in tensors if vector_of(name) == BIAS and MODULE.match(name)}
    odd = expected.symmetric_difference(tensors)
    if odd or not modules:
        found = f"{min(odd)} is missing or unknown" if odd else "no matrix at all"
        raise ModelFileError(
            f"{folder}: {found}; expected lora_A and lora_B of llama-style projections, and what "
            f"use_dora, bias and lora_bias say"
        )
    return modules
