"""The suite `kernels` on sizes that mean nothing: its keys are there, and what it multiplies is
right.
"""

from typing import Any, cast

from quietchoir.core.engine.backends.native import library
from quietchoir.simulations.bench import kernels, suites
from quietchoir.simulations.bench.figures import look_up


def test_every_kind_and_set_has_its_figures_and_all_sets_agreed() -> None:
    report, rows = suites.run("kernels", quick=True, tell=lambda _: None)
    assert report["exact"] is True
    assert set(report["products"]) == set(library.KINDS)
    for by_set in report["products"].values():
        assert set(by_set) == set(library.instruction_sets())
    assert all(look_up(report, row.key) > 0 for row in rows)
    assert len(rows) == 1 + 3 * len(library.KINDS) * len(library.instruction_sets())


class Wrong:
    """A matrix that every set but the plain one multiplies wrongly."""

    def __init__(self, right):
        self.right = right

    def multiply(self, x, instruction_set):
        return self.right.multiply(x, instruction_set) + (0 if instruction_set == "plain" else 1000)


def test_a_set_that_multiplied_wrongly_would_be_told(monkeypatch) -> None:
    right = kernels.random_matrix("Q4_0", 1 << 20)
    assert kernels.agree(right)
    # the best there is, and plain
    monkeypatch.setattr(library, "instruction_sets", lambda: ("", "plain"))
    assert not kernels.agree(cast(Any, Wrong(right)))
