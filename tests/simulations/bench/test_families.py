"""The suite `families`: who computes each family, and that nobody computes one wrongly."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from quietchoir.simulations.bench import families, suites
from quietchoir.simulations.bench.families import FAMILIES, STATES, SmallFamily, outcome, table
from quietchoir.tests.house import ROOT

# Best first: what the table says may be less than what is so, until somebody writes it down.
RANK = {"native": 0, "transformers": 1, "refused": 2}


def written() -> dict[str, str]:
    """Family to state, as core/models/README.md has it."""
    text = (ROOT / "core" / "models" / "README.md").read_text("utf-8")
    rows = re.findall(rf"^\| ({'|'.join(STATES)}) \| \d+ \| (.*) \|$", text, re.MULTILINE)
    return {title: state for state, titles in rows for title in titles.split("; ") if title != "–"}


def test_the_table_names_every_family_once() -> None:
    assert sorted(written()) == sorted(one.title for one in FAMILIES)
    assert "wrong" not in written().values()


# `quietchoir bench families` runs them all
CHOSEN = FAMILIES if os.environ.get("QUIETCHOIR_FUZZ") == "full" else FAMILIES[::4]


@pytest.mark.fuzz
@pytest.mark.parametrize("family", CHOSEN, ids=[one.title for one in CHOSEN])
def test_a_family_is_computed_by_whom_the_table_says_and_as_transformers_does(
    family: SmallFamily, tmp_path: Path
) -> None:
    found = outcome(family, tmp_path)
    said = written().get(family.title)
    assert found.state != "wrong", found.said
    assert said is not None, "not in the table; `quietchoir bench families` prints it"
    assert RANK[found.state] <= RANK[said], found.said


def test_a_model_that_computes_something_else_is_called_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison sees a window that is one token wider."""
    family = next(one for one in FAMILIES if one.title == "StarCoder2")
    assert outcome(family, tmp_path / "right").state == "native"
    written_model = families.write_model

    def wider(family: SmallFamily, folder: Path) -> object:
        model = written_model(family, folder)
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"sliding_window": 9', '"sliding_window": 10'))
        return model

    monkeypatch.setattr(families, "write_model", wider)
    assert outcome(family, tmp_path / "wider").state == "wrong"


def test_the_suite_counts_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    few = tuple(one for one in FAMILIES if one.title in ("Llama 2, 3", "Apertus", "Baichuan"))
    monkeypatch.setattr(families, "FAMILIES", few)
    monkeypatch.setattr(families, "slower", lambda report, **_: None)
    told: list[str] = []
    report, rows = suites.run("families", quick=False, tell=told.append)
    assert report["families"] == {"native": 1, "transformers": 1, "refused": 1, "wrong": 0}
    assert report["exact"] is True and "never run" in report["said"]["Baichuan"]
    assert "| transformers | 1 | Apertus |" in "".join(told)
    assert [row.key for row in rows][:4] == [f"families.{state}" for state in STATES]
    assert table({"A": "native"}).count("\n") == 5


def test_both_ways_over_one_file_are_timed_in_turn(model_path: Path) -> None:
    report: dict[str, Any] = {"spread": {}, "each": {}, "families": {}}
    families.slower(report, tokens=2, repeats=1)
    rows = {row.key for row in families.figures(report)}
    for batch in ("b1", "b8"):
        assert report["slower"][batch] > 1
        assert {f"slower.{batch}", f"token_ms.native.{batch}"} <= rows
