"""Which suites there are, and how one is run.

Knows each suite's module by name. Imports none of them until it is run.
A suite is a module with `measure(quick=, tell=)`, which returns its report, and `figures(report)`, the rows of its table; a
report has the keys `what`, `seed`, `repeats`, `clock`, `spread` and `exact` besides its figures.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from .. import machine
from .figures import Figure, misses, rounded

SUITES: Mapping[str, str] = {
    "crypto": "masks, ciphertexts and whole cohorts, beside AES alone, Flower's SecAgg+ and plain TenSEAL",
}


class Suite(Protocol):
    """What a suite's module offers."""

    def measure(self, *, quick: bool, tell: Callable[[str], None]) -> dict[str, Any]: ...

    def figures(self, report: dict[str, Any]) -> Sequence[Figure]: ...


def run(name: str, *, quick: bool, tell: Callable[[str], None]) -> tuple[dict[str, Any], list[Figure]]:
    """One suite's report, ready for a file, and the rows of its table.

    Args:
        name: a key of `SUITES`.
    """
    suite = cast(Suite, importlib.import_module(f".{name}", __package__))
    found = suite.measure(quick=quick, tell=tell)
    rows = list(suite.figures(found))
    head = {"suite": name, "quick": quick, "machine": machine.line()}
    return rounded({**head, **found, "aims_missed": {} if quick else misses(found, rows)}), rows
