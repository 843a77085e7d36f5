"""A model file's settings, each asked for by name and type.

Knows the two kinds: keys of a GGUF file below its family's name, and config.json. Knows nothing of
what a setting means.
Always: a setting of another type or size than asked for is a `ModelFileError` with its key.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from .gguf import GgufFile


@dataclass(frozen=True, slots=True)
class GgufSettings:
    """Metadata of one family, by the part of the key behind the family's name."""

    file: GgufFile
    family: str

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        found = self.file.value(f"{self.family}.{key}", int, default)
        if found <= 0:
            raise ModelFileError(
                f"{self.file.path}: {self.family}.{key} is {found}, expected a positive number; "
                f"get another file"
            )
        return found

    def real(self, key: str, default: float | None = None) -> float:
        """A number."""
        return self.file.value(f"{self.family}.{key}", float, default)

    def whole(self, key: str, default: int) -> int:
        """A whole number, also zero."""
        return self.file.value(f"{self.family}.{key}", int, default)

    def text(self, key: str, default: str) -> str:
        """A word."""
        return self.file.value(f"{self.family}.{key}", str, default)

    def flag(self, key: str, *, default: bool) -> bool:
        """Yes or no."""
        return self.file.value(f"{self.family}.{key}", bool, default)

    def all(self) -> dict[str, Any]:
        """Everything that the file says below the family's name."""
        prefix = f"{self.family}."
        return {
            key.removeprefix(prefix): value
            for key, value in sorted(self.file.metadata.items())
            if key.startswith(prefix)
        }


@dataclass(frozen=True, slots=True)
class HfSettings:
    """One config.json, or an object in it; `defaults` stand for what it leaves out."""

    path: Path
    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    model_type: str = ""

    def get(self, key: str) -> Any:
        """The value, what stands for it, or None."""
        found = self.values.get(key)
        return self.defaults.get(key) if found is None else found

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        found = self.get(key)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise ModelFileError(
                f"{self.path}: {key} is {found!r:.40}, expected a positive whole number; "
                f"get the model again"
            )
        return found

    def real(self, key: str) -> float:
        """A positive number."""
        found = self.get(key)
        if not isinstance(found, int | float) or isinstance(found, bool) or not 0 < found < 1e300:
            raise ModelFileError(
                f"{self.path}: {key} is {found!r:.40}, expected a positive number; "
                f"get the model again"
            )
        return float(found)

    def reals(self, key: str, count: int) -> list[float] | None:
        """`count` finite numbers, or infinities as JSON has them (`{"__float__": "Infinity"}`);
        None: it says none.

        Raises:
            ModelFileError: anything else.
        """
        found = self.get(key)
        if found is None:
            return None
        try:
            listed = found if isinstance(found, list) else []
            numbers = [float(one["__float__"] if isinstance(one, dict) else one) for one in listed]
        except (TypeError, ValueError, KeyError, OverflowError):
            numbers = []
        strange = any(isinstance(one, bool | str) for one in listed)
        if len(numbers) != count or strange or any(math.isnan(one) for one in numbers):
            raise ModelFileError(
                f"{self.path}: found {key} = {found!r:.60}, expected {count} numbers; "
                f"get the model again"
            )
        return numbers

    def rule(self, key: str) -> dict[str, Any]:
        """An object, empty where there is none."""
        found = self.get(key)
        if not isinstance(found, dict | None):
            raise ModelFileError(
                f"{self.path}: {key} is {found!r:.40}, expected an object; get the model again"
            )
        return found or {}

    def entries(self, key: str, layers: int) -> list[Any] | None:
        """A list with an entry for each layer, or None."""
        found = self.get(key)
        if found is None:
            return None
        if not isinstance(found, list) or len(found) < layers:
            raise ModelFileError(
                f"{self.path}: {key} is {found!r:.40}, expected a list of {layers}; "
                f"get the model again"
            )
        return found[:layers]
