"""Which numbers an adapter has, in which order, and the half of them that nobody trains.

Knows projections, ranks and names. Knows nothing of files, examples or rounds.
Always: the same `AdapterShape` and `Architecture` give the same layout and the same frozen A, bit
for bit, on every machine: federated sums are meaningless otherwise.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..architecture import LORA_A, LORA_B, PROJECTIONS, Architecture

TARGETS = tuple(name.split(".")[1] for name in PROJECTIONS)  # "q_proj" … "down_proj"
# what others' adapters change besides, in Qwen3-Next and Qwen3.5: taken, never trained here
DELTA_PROJECTIONS = (
    *("linear_attn.in_proj_qkvz", "linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
    "linear_attn.out_proj",
)
OTHERS_TARGETS = tuple(name.split(".")[1] for name in DELTA_PROJECTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterShape:
    """What a federation agrees on before the first round."""

    rank: int = 16  # r
    alpha: float = 32.0  # the change is scaled by alpha / rank
    upper_layers: int = 8  # how many of the last layers carry LoRA
    targets: tuple[str, ...] = TARGETS
    seed: int = 0  # public: everyone draws the frozen A from it

    def __post_init__(self) -> None:
        unknown = set(self.targets) - {*TARGETS, *OTHERS_TARGETS}
        if unknown or not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(
                f"targets {list(self.targets)}: expected some of {', '.join(TARGETS)}, each once"
            )
        if (
            self.rank < 1
            or self.upper_layers < 1
            or not (math.isfinite(self.alpha) and self.alpha > 0)
        ):
            raise ValueError(
                f"rank {self.rank}, upper_layers {self.upper_layers}, alpha "
                f"{self.alpha}: all must be positive"
            )
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed {self.seed}: expected a whole number from 0 to 2**64 - 1")

    @property
    def scale(self) -> float:
        """The factor on B A x."""
        return self.alpha / self.rank

    def modules(self, architecture: Architecture) -> dict[str, tuple[int, int]]:
        """Names ("model.layers.22.self_attn.q_proj") and (rows, columns) of the projections with
        LoRA, in layout order.

        Raises:
            ValueError: more upper layers than the model has, or none of the targets in them.
        """
        if self.upper_layers > architecture.num_layers:
            raise ValueError(
                f"upper_layers is {self.upper_layers}, "
                f"the model has {architecture.num_layers} layers"
            )
        found = {
            f"model.layers.{layer}.{name}": architecture.projection(name)
            for layer in range(architecture.num_layers - self.upper_layers, architecture.num_layers)
            for name in PROJECTIONS
            if name.split(".")[1] in self.targets and architecture.has_projection(layer, name)
        }
        if not found:
            raise ValueError(
                f"the upper {self.upper_layers} layers have none of {', '.join(self.targets)}; "
                f"name others, or more layers"
            )
        return found


def a_name(module: str) -> str:
    """Name of a projection's A."""
    return module + LORA_A


def b_name(module: str) -> str:
    """Name of a projection's B."""
    return module + LORA_B


def frozen_a(shape: AdapterShape, architecture: Architecture) -> dict[str, Tensor]:
    """Every A, [r, columns] float32, uniform in ±1/sqrt(columns) as PEFT starts it.

    Drawn from SHAKE-256 of seed and name, 24 bits a number: no library's generator can change it
    under us. The first rows do not depend on the rank, so a smaller rank shares them.
    """
    tensors = {}
    for module, (_, columns) in shape.modules(architecture).items():
        stream = hashlib.shake_256(f"quietchoir frozen A, seed {shape.seed}, {module}".encode())
        # [r * columns], 24 bits
        words = np.frombuffer(stream.digest(4 * shape.rank * columns), dtype="<u4") >> 8
        signed = words.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)  # exact: [-1, 1)
        values = signed * np.float32(1.0 / math.sqrt(columns))
        tensors[a_name(module)] = torch.from_numpy(values.reshape(shape.rank, columns))
    return tensors


class Layout:
    """Every B of an adapter in one flat vector, the thing that is trained, masked and summed."""

    def __init__(self, shape: AdapterShape, architecture: Architecture) -> None:
        """Raises: ValueError: the shape does not fit the architecture."""
        modules = shape.modules(architecture)
        self.shapes = {b_name(module): (rows, shape.rank) for module, (rows, _) in modules.items()}
        self._ranges: list[tuple[str, int, int]] = []
        self.size = 0  # n
        for name, (rows, rank) in self.shapes.items():
            self._ranges.append((name, self.size, self.size + rows * rank))
            self.size += rows * rank

    def ranges(self) -> list[tuple[str, int, int]]:
        """(name, start, stop) of each B, in order, without gaps."""
        return list(self._ranges)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named B matrices -> float32 [n]; other names are not looked at.

        Raises:
            ValueError: a B is missing or has another shape.
        """
        flat = torch.empty(self.size)
        for name, start, stop in self._ranges:
            found = tensors.get(name)
            if found is None or tuple(found.shape) != self.shapes[name]:
                state = "missing" if found is None else f"{tuple(found.shape)}"
                raise ValueError(f"{name} is {state}, expected {self.shapes[name]}")
            flat[start:stop] = found.detach().reshape(-1)
        return flat

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """[n] -> named B matrices, views on `flat`.

        Raises:
            ValueError: another length than n.
        """
        if tuple(flat.shape) != (self.size,):
            raise ValueError(f"flat vector is {tuple(flat.shape)}, expected ({self.size},)")
        return {
            name: flat[start:stop].view(self.shapes[name]) for name, start, stop in self._ranges
        }
