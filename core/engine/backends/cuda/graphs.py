"""A step of few rows, recorded once and replayed.

Knows CUDA graphs and the tensors that a recording reads. Knows nothing of layers.
Always: a replay reads and writes the very tensors of the recording, so whoever replays copies its
inputs in and its result out before the next replay of any recording: they share one pool of memory.
Without CUDA the same step runs unrecorded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ops import DeviceStep

SIZES = (1, 2, 4, 8, 16)  # rows of a recording; a step is filled up to the next


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What one step reads."""

    # float32 [M, D], what the first layer on the device gets; the step overwrites them
    rows: Tensor
    step: DeviceStep
    slots: Tensor | None  # int64 [M] of adapters

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        step = self.step
        whole = [self.rows, step.positions, step.places, step.tables, step.lengths]
        return whole if self.slots is None else [*whole, self.slots]

    def on(self, device: torch.device) -> "Inputs":
        """The same in tensors of its own, there."""
        rows, positions, places, tables, lengths, *slots = (
            tensor.to(device, copy=True) for tensor in self.tensors()
        )
        return Inputs(
            rows, DeviceStep(positions, places, tables, lengths), slots[0] if slots else None
        )


Compute = Callable[[Inputs], Tensor]  # to logits [M, V]


class Recorded:
    """One recording."""

    def __init__(self, compute: Compute, inputs: Inputs, pool: Any) -> None:
        """Record one step.

        Args:
            inputs: of a real step, on the device: it runs once unrecorded, and writes its keys and
            values where they belong. pool: memory that all recordings share.
        """
        self.inputs = inputs
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        # kernels are compiled and libraries set up before anything is recorded
        with torch.cuda.stream(stream):
            compute(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # "thread_local": what another thread of this process does on the device meanwhile does not
        # spoil the recording.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.out = compute(inputs)

    def replay(self, inputs: Inputs) -> Tensor:
        """Logits [M, V], good until the next replay of any recording."""
        for mine, given in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.out


class Graphs:
    """Recordings by number of rows; those that adapters' stacks have outgrown are made anew."""

    def __init__(
        self, compute: Compute, device: torch.device, record: type[Recorded] | None
    ) -> None:
        """`record`: how steps are recorded; None: they are computed each time."""
        self.compute, self.device, self.record = compute, device, record
        self._pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._recorded: dict[tuple[int, int], Recorded] = {}

    def run(self, inputs: Inputs, generation: int) -> Tensor:
        """Logits [M, V].

        Args:
            inputs: wherever they are; they are copied to the device.
            generation: of the adapters' stacks; -1 for a step without adapters.
        """
        if self.record is None:
            return self.compute(inputs.on(self.device))
        key = (len(inputs.rows), generation)
        if key not in self._recorded:
            if generation >= 0:  # older stacks are gone
                self._recorded = {
                    old: one for old, one in self._recorded.items() if old[1] in (-1, generation)
                }
            self._recorded[key] = self.record(self.compute, inputs.on(self.device), self._pool)
        return self._recorded[key].replay(inputs)


def size_for(rows: int) -> int | None:
    """The smallest recording that holds so many rows; None if none does."""
    return next((size for size in SIZES if rows <= size), None)
