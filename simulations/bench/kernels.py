"""The suite `kernels`: products of one matrix by every instruction set of this processor, beside
the memory's own speed.

Knows block types and instruction sets by name. Knows nothing of models.
Always: one thread, in processor seconds; matrices are larger than the caches, so that a product of
one row is bound by memory; memory is read in the same repeats as everything else; `exact` is true
only if every set gives what plain C++ gives.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.engine.backends.native import library
from ...core.engine.backends.native.probe import PackedMatrix, read_all
from ...core.errors import ConfigError
from ...core.models.quant.types import QUANT_TYPES
from .figures import Figure, Keep, nobody
from .stopwatch import Arm, Sample, interleaved

Numbers = npt.NDArray[np.float32]
SEED = 1
COLUMNS = 4096
MANY = 16  # rows of activations where arithmetic is the bound, not memory
NEAR = 1e-4  # of the largest number: two orders of summing floats


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelScale:
    """How much is measured."""

    matrix_bytes: int = 96 << 20
    memory_bytes: int = 256 << 20
    repeats: int = 5


QUICK = KernelScale(matrix_bytes=1 << 20, memory_bytes=1 << 20, repeats=1)


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep = nobody) -> dict[str, Any]:
    """Run everything; `keep` gets the report after each kind.

    Raises:
        ConfigError: the library was not compiled here; the message says what to do.
    """
    if (reason := library.available()) is not None:
        raise ConfigError(reason)
    size = QUICK if quick else KernelScale()
    report: dict[str, Any] = {
        "what": f"one thread, matrices of {size.matrix_bytes >> 20} MiB with {COLUMNS} columns",
        "seed": SEED,
        "repeats": {"products": size.repeats},
        "clock": "processor seconds",
        "spread": {},
        "exact": True,
        "sets": list(library.instruction_sets()),
        "products": {},
    }
    memory = np.ones(size.memory_bytes // 8, dtype=np.uint64)
    reads = []
    for kind in library.KINDS:
        tell(f"{kind}: one row and {MANY} rows by each of {', '.join(library.instruction_sets())}")
        matrix, close = (
            random_matrix(kind, size.matrix_bytes),
            report["products"].setdefault(kind, {}),
        )
        samples = _run(matrix, memory, size.repeats)
        reads.append(samples.pop("memory"))
        report["exact"] &= agree(matrix)
        for name, set_name, rows in _arms():
            _add(
                report,
                close.setdefault(set_name, {}),
                f"products.{kind}.{set_name}",
                matrix,
                rows,
                samples[name],
            )
        keep(report)
    whole = Sample(tuple(second for sample in reads for second in sample.seconds))
    report["memory_gb_s"] = memory.nbytes / whole.median / 1e9
    report["spread"]["memory_gb_s"] = sorted(
        memory.nbytes / second / 1e9 for second in whole.spread
    )
    for by_set in report["products"].values():
        for found in by_set.values():
            found["of_memory"] = found["gb_s"] / report["memory_gb_s"]
    return report


def figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    yield Figure("memory_gb_s", "GB/s", "memory, read by one thread")
    for kind, by_set in report["products"].items():
        for name in by_set:
            yield Figure(
                f"products.{kind}.{name}.gb_s", "GB/s", f"{kind}, {name}: weights read for one row"
            )
            yield Figure(
                f"products.{kind}.{name}.of_memory", "", f"{kind}, {name}: of what memory gives"
            )
            yield Figure(
                f"products.{kind}.{name}.gop_s",
                "Gop/s",
                f"{kind}, {name}: products and sums for {MANY} rows",
            )


def random_matrix(kind: str, size: int) -> PackedMatrix:
    """About `size` bytes of this kind. Every byte is below 48, hence every scale in it a small
    finite number.
    """
    form = QUANT_TYPES[kind]
    row_bytes = COLUMNS // form.columns * form.size
    rows = max(16, size // row_bytes // 16 * 16)
    strip = np.random.default_rng(SEED).integers(0, 48, (16, row_bytes), dtype=np.uint8)
    return PackedMatrix(kind, (rows, COLUMNS), np.tile(strip, (rows // 16, 1)))


def agree(matrix: PackedMatrix) -> bool:
    """Whether all sets give nearly what plain C++ gives."""
    x = activations(3)
    plain = matrix.multiply(x, "plain")
    near = NEAR * float(np.abs(plain).max())
    return all(
        float(np.abs(matrix.multiply(x, name) - plain).max()) <= near
        for name in library.instruction_sets()
    )


def activations(rows: int) -> Numbers:
    """Random rows."""
    return np.random.default_rng(SEED).standard_normal((rows, COLUMNS)).astype(np.float32)


def _arms() -> Iterator[tuple[str, str, int]]:
    for set_name in library.instruction_sets():
        for rows in (1, MANY):
            yield f"{set_name} {rows}", set_name, rows


def _run(matrix: PackedMatrix, memory: npt.NDArray[np.uint64], repeats: int) -> dict[str, Sample]:
    arms = {"memory": Arm(partial(read_all, memory))}
    for name, set_name, rows in _arms():
        arms[name] = Arm(partial(matrix.multiply, activations(rows), set_name))
    return interleaved(arms, repeats)


def _add(
    report: dict[str, Any],
    found: dict[str, float],
    key: str,
    matrix: PackedMatrix,
    rows: int,
    sample: Sample,
) -> None:
    """Bytes of weights a second for one row, operations a second for many."""
    rows_of, columns = matrix.shape
    name, amount = (
        ("gb_s", matrix.nbytes / 1e9)
        if rows == 1
        else ("gop_s", 2 * rows_of * columns * rows / 1e9)
    )
    found[name] = amount / sample.median
    report["spread"][f"{key}.{name}"] = sorted(amount / second for second in sample.spread)
