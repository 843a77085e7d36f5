"""The tensors of one file, taken from their map one by one until none is left.

Knows shapes and names. Knows no family.
Always: what is taken has the expected shape; what nobody took is an error, because a tensor that we
ignore is a network that we compute wrongly.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import ModelFileError
from ..quant.tensor import QuantTensor


class TensorMap:
    """What is left of a file's tensors."""

    def __init__(self, path: Path, tensors: Mapping[str, QuantTensor], family: str) -> None:
        self.path, self.left, self.family = path, dict(tensors), family

    def drop(self, name: str) -> None:
        """Take a tensor, if it is there, that is not part of the network or was read already."""
        self.left.pop(name, None)

    def is_vector(self, name: str) -> bool:
        """Whether a tensor is one row, or not there."""
        return name not in self.left or self.left[name].shape[0] == 1

    def drop_layers(self, prefix: str, first: int) -> None:
        """Leave out the layers from this number on, whose tensors begin with `prefix`."""
        for name in list(self.left):
            number = name.removeprefix(prefix).split(".")[0]
            if not (name.startswith(prefix) and number.isdecimal()):
                continue
            if len(number) < 5 and int(number) >= first:  # longer ones are refused by their names
                self.drop(name)

    def take(self, name: str, expected: tuple[int, int]) -> QuantTensor:
        """One tensor.

        Raises:
            ModelFileError: missing, or of another shape.
        """
        blocks = self.left.pop(name, None)
        if blocks is None or blocks.shape != expected:
            found = "is missing" if blocks is None else f"is {blocks.shape}"
            raise ModelFileError(
                f"{self.path}: {name} {found}, expected {expected}; pull or download it again"
            )
        return blocks

    def split(self, name: str, parts: Sequence[tuple[int, int]]) -> list[QuantTensor]:
        """One tensor that holds several of ours one above the other, views, no copies; or vectors
        one behind the other.

        Raises:
            ModelFileError: as `take`.
        """
        if all(rows == 1 for rows, _ in parts) and self.is_vector(name):
            numbers = self.take(name, (1, sum(columns for _, columns in parts))).vector()
            ends = np.cumsum([columns for _, columns in parts])
            return [
                QuantTensor("F32", (1, len(own)), own.view(np.uint8)[None])
                for own in np.split(numbers, ends[:-1])
            ]
        whole = self.take(name, (sum(rows for rows, _ in parts), parts[0][1]))
        stops = [sum(rows for rows, _ in parts[: place + 1]) for place in range(len(parts))]
        return [whole.part(stop - rows, stop) for (rows, _), stop in zip(parts, stops, strict=True)]

    def finish(self) -> None:
        """Raises: ModelFileError: something is left that this family does not use."""
        if self.left:
            raise ModelFileError(
                f"{self.path}: {min(self.left):.120} is not part of a {self.family} model; choose "
                f"another file"
            )
