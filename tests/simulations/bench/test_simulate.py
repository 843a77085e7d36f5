"""What `quietchoir bench simulate` writes, on sizes that take seconds. No figure is judged here."""

from typing import Any

import pytest

from quietchoir.core.errors import QuietchoirError
from quietchoir.simulations.bench import simulate, suites
from quietchoir.simulations.bench.figures import look_up
from quietchoir.simulations.bench.simulate import Cell


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    found, _ = suites.run("simulate", quick=True, tell=lambda words: None)
    return found


def test_a_quick_run_has_every_figure_of_ours_and_says_who_is_missing(
    report: dict[str, Any],
) -> None:
    rows = simulate.figures(report)
    keys = {row.key for row in rows}
    assert {"parties_per_s.ours.10x1000", "peak_mb.ours.10x1000", "learning.masked"} <= keys
    assert all(look_up(report, row.key) != "" for row in rows)
    assert "blazefl" in report["not_here"] and report["exact"] is True


def test_plain_and_masked_parties_learn_the_same_sums(report: dict[str, Any]) -> None:
    assert report["learning"]["masked_equals_plain"] is True


def test_a_whole_report_has_the_ratios_with_their_aims() -> None:
    seconds = {"1000x1000": 30.0, "real_1000": 30.0}
    report: dict[str, Any] = {
        "round_s": {"ours": {"1000x1000": 1.0, "real_1000": 12.0}, "flower": seconds, "pfl": {}},
        "not_here": {},
    }
    report["ratio"] = simulate.ratios(report)
    assert report["ratio"]["trivial_1000"] == 30.0 and report["ratio"]["real"] == 2.5
    aims = {row.key: row.missed(look_up(report, row.key)) for row in simulate.figures(report)[-9:]
            if row.key in ("ratio.trivial_1000", "ratio.real")}  # fmt: skip
    assert aims == {"ratio.trivial_1000": "", "ratio.real": "missed by 17 %"}


def test_every_program_gets_the_same_sizes_and_a_missing_one_none() -> None:
    all_of_them = simulate.cells(False, [])
    ours = {cell.key.partition(".")[2] for cell in all_of_them if cell.arm == "ours"}
    for peer in ("flower", "pfl"):
        theirs = {cell.key.partition(".")[2] for cell in all_of_them if cell.arm == peer}
        assert theirs == ours - {"1000x500000"}
    assert {cell.arm for cell in simulate.cells(False, ["pfl"])} == {"ours", "flower"}


def test_an_arm_that_fails_says_so_with_its_last_words() -> None:
    with pytest.raises(QuietchoirError, match=r"nobody\.10x10 failed: .*invalid choice"):
        Cell("nobody", 10, 10, 1).run()
