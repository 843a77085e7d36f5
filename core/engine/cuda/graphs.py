"""A step of few rows, recorded once and replayed.

Knows CUDA graphs and the tensors that a recording reads. Knows nothing of layers.
Always: a replay reads and writes the very tensors of the recording, so whoever replays copies its inputs in and its result out.
Without CUDA the same step runs unrecorded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .operations import Step

SIZES = (1, 2, 4, 8, 16)  # rows of a recording; a step is filled up to the next


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What one step reads."""

    rows: Tensor  # float32 [M, D], embedded; the step overwrites them
    step: Step
    slots: Tensor | None  # int64 [M] of adapters

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        step = self.step
        whole = [self.rows, step.positions, step.places, step.tables, step.lengths]
        return whole if self.slots is None else [*whole, self.slots]

    def copy(self) -> "Inputs":
        """The same in tensors of its own."""
        rows, positions, places, tables, lengths = (tensor.clone() for tensor in self.tensors()[:5])
        return Inputs(rows, Step(positions, places, tables, lengths), None if self.slots is None else self.slots.clone())


Compute = Callable[[Inputs], Tensor]  # to logits [M, V]


class Recorded:
    """One recording."""

    def __init__(self, compute: Compute, inputs: Inputs) -> None:
        self.inputs = inputs
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and libraries set up before anything is recorded
            compute(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = compute(inputs)

    def replay(self, inputs: Inputs) -> Tensor:
        """Logits [M, V], good until the next replay."""
        for mine, given in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.out


class Graphs:
    """Recordings by number of rows; those that adapters' stacks have outgrown are made anew."""

    def __init__(self, compute: Compute, *, record: bool) -> None:
        self.compute, self.record = compute, record
        self._recorded: dict[tuple[int, int], Recorded] = {}

    def run(self, inputs: Inputs, generation: int) -> Tensor:
        """Logits [M, V].

        Args:
            generation: of the adapters' stacks; -1 for a step without adapters.
        """
        if not self.record:
            return self.compute(inputs)
        key = (len(inputs.rows), generation)
        if key not in self._recorded:
            if generation >= 0:  # older stacks are gone
                self._recorded = {old: one for old, one in self._recorded.items() if old[1] in (-1, generation)}
            self._recorded[key] = Recorded(self.compute, inputs.copy())
        return self._recorded[key].replay(inputs)


def size_for(rows: int) -> int | None:
    """The smallest recording that holds so many rows; None if none does."""
    return next((size for size in SIZES if rows <= size), None)
