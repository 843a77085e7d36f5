"""LoRA weights and their two files, the ones that PEFT reads and writes.

Knows PEFT's names. Knows nothing of training or of who made an adapter.
Always: a loaded adapter has only finite float32 matrices whose shapes fit each other; the same adapter is saved as
the same bytes.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import ModelFileError, ModelNotFoundError
from ..paths import write_atomically
from .architecture import PROJECTIONS, Architecture
from .lora import TARGETS, AdapterShape, Layout, a_name, b_name, frozen_a

__all__ = ["Adapter", "AdapterShape", "Layout", "assemble", "frozen_a"]

PREFIX = "base_model.model."  # PEFT's, before Hugging Face's names
CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
OWN_KEY = "quietchoir"  # in the header of TENSOR_FILE; one key only, the library's order of several is random
MODULE = re.compile(r"model\.layers\.(\d{1,4})\.(" + "|".join(map(re.escape, PROJECTIONS)) + ")")
MAX_CONFIG_BYTES = 1 << 20
# What PEFT can also do, and we would compute wrongly: key -> the values that mean "not used".
REFUSED: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "bias": (None, "none"),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
}


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A small change to a frozen model: W x + scale * B A x."""

    shape: AdapterShape
    base_digest: str  # sha256 of the base model's file; empty for a foreign adapter that does not say
    tensors: dict[str, Tensor] = field(
        repr=False
    )  # "model.layers.22.self_attn.q_proj.lora_A.weight" [r, columns], "….lora_B.weight" [rows, r]

    def check(self, architecture: Architecture) -> None:
        """See that every matrix fits a projection of this model.

        Raises:
            ModelFileError: names the first one that does not.
        """
        for name, tensor in self.tensors.items():
            match = MODULE.match(name)
            layer, projection = (int(match[1]), match[2]) if match else (architecture.layers, PROJECTIONS[0])
            rows, columns = architecture.projection(projection)
            expected = (self.shape.rank, columns) if name.endswith("lora_A.weight") else (rows, self.shape.rank)
            if layer >= architecture.layers or tuple(tensor.shape) != expected:
                raise ModelFileError(
                    f"{name} {tuple(tensor.shape)} does not fit the base model; use the base it was trained on"
                )

    def save(self, folder: Path, *, mode: int = 0o644) -> None:
        """Write a PEFT checkpoint; the configuration comes last, so a folder that has it is whole.

        Args:
            mode: of both files; 0o600 for what nobody else shall read.

        Raises:
            QuietchoirError: no space or no permission.
        """
        own = {"base_digest": self.base_digest, "seed": self.shape.seed, "targets": list(self.shape.targets)}
        named = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        header = {OWN_KEY: json.dumps(own, sort_keys=True)}
        write_atomically(folder / TENSOR_FILE, safetensors.torch.save(named, metadata=header), mode=mode)
        config = json.dumps(self.peft_config(), indent=2, sort_keys=True) + "\n"
        write_atomically(folder / CONFIG_FILE, config.encode(), mode=mode)

    def peft_config(self) -> dict[str, Any]:
        """The fields of PEFT's LoraConfig that say what this adapter is; PEFT's defaults fill the rest."""
        layers = sorted({int(match[1]) for name in self.tensors if (match := MODULE.match(name))})
        alpha = self.shape.alpha
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": self.shape.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": 0.0,
            "bias": "none",
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
            ModelFileError: not LoRA as we compute it, or matrices that are missing, misshapen or not finite.
        """
        config = read_config(folder / CONFIG_FILE)
        tensors, own = read_tensors(folder / TENSOR_FILE)
        modules = pair_up(folder, tensors)
        rank = next(iter(tensors.values())).shape[0 if next(iter(tensors)).endswith("lora_A.weight") else 1]
        if config.get("r") != rank:
            raise ModelFileError(
                f"{folder}: configuration says rank {config.get('r')!r}, matrices have {rank}; get the adapter again"
            )
        for module in modules:
            a, b = tensors[a_name(module)], tensors[b_name(module)]
            if a.shape[0] != rank or b.shape[1] != rank:
                raise ModelFileError(
                    f"{folder}: {module} has A {tuple(a.shape)} and B {tuple(b.shape)}, expected rank {rank} in both"
                )
        found = {module.rsplit(".", 1)[1] for module in modules}
        try:
            shape = AdapterShape(
                rank=rank,
                alpha=float(config.get("lora_alpha", 8)),  # PEFT's default
                upper_layers=len({module.split(".")[2] for module in modules}),
                targets=tuple(own.get("targets") or (name for name in TARGETS if name in found)),
                seed=own.get("seed", 0),
            )
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"{folder}: {error}; get the adapter again") from error
        if set(shape.targets) != found:
            raise ModelFileError(
                f"{folder}: says it changes {sorted(shape.targets)}, but changes {sorted(found)}; get it again"
            )
        return cls(shape, str(own.get("base_digest", "")), tensors)


def assemble(shape: AdapterShape, architecture: Architecture, base_digest: str, flat_b: Tensor) -> Adapter:
    """The adapter of a flat B [n] and the frozen A of its shape.

    Raises:
        ValueError: another length than the layout's n, or values that are not finite.
    """
    if not bool(torch.isfinite(flat_b).all()):
        raise ValueError("flat_b has values that are not finite; an adapter of them would answer nothing")
    b = Layout(shape, architecture).unflatten(flat_b.detach().to("cpu", torch.float32).clone())
    return Adapter(shape, base_digest, {**frozen_a(shape, architecture), **b})


def read_config(path: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json, if it describes what we can compute."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelFileError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, no adapter's configuration is; get it again")
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such file; give a folder that holds a PEFT checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not a readable JSON file ({error}); get the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelFileError(f"{path}: not the configuration of a LoRA adapter; only peft_type LORA is supported")
    for key, unused in REFUSED.items():
        if config.get(key) not in unused:
            raise ModelFileError(f"{path}: {key} = {config[key]!r:.60} is not supported; train the adapter without it")
    return config


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Matrices under our names, float32, and what our own header says (nothing in a foreign file)."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(OWN_KEY, "{}"))
            tensors = {name.removeprefix(PREFIX): file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such file; the checkpoint is incomplete, get it again") from None
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{path}: damaged ({error}); get the adapter again") from error
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or not bool(torch.isfinite(tensor).all()):
            raise ModelFileError(f"{path}: {name} is not a matrix of finite numbers; get the adapter again")
    return tensors, header if isinstance(header, dict) else {}


def pair_up(folder: Path, tensors: dict[str, Tensor]) -> list[str]:
    """The projections that an adapter changes; each must have an A and a B, and there must be nothing else."""
    modules = sorted({match[0] for name in tensors if (match := MODULE.match(name))})
    expected = {name(module) for module in modules for name in (a_name, b_name)}
    odd = expected.symmetric_difference(tensors)
    if odd or not modules:
        found = f"{min(odd)} is missing or unknown" if odd else "no matrix at all"
        raise ModelFileError(f"{folder}: {found}; expected lora_A and lora_B of llama-style projections")
    return modules
