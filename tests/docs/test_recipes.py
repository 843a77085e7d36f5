"""Pages lead somewhere: every file that docs/ names exists, every kind of change has its recipe."""

import dataclasses
import re
from pathlib import Path

import pytest

from quietchoir.simulations.scenario import Scenario
from quietchoir.tests.house import ROOT, sources, written

DOCS = sorted((ROOT / "docs").glob("*.md"))
RECIPES = ROOT / "docs" / "recipes.md"
KINDS = {
    "A model family",
    "An embedding model's family",
    "A block type",
    "A route",
    "A sampling parameter",
    "A protection mode",
    "A server optimizer",
    "A transform of updates",
    "A schedule of rounds",
    "A scenario",
    "An attack",
    "A plugin",
    "A benchmark",
}
# of the tree, from its root: with a folder in it, or one of the files at the top
PLACE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.md|Makefile)`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
NAMED = re.compile(r"`([\w./-]*\w\.py)`")
TOP = {path.name for path in ROOT.iterdir()}


def sections() -> dict[str, str]:
    text = RECIPES.read_text("utf-8")
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = {
        place
        for place in PLACE.findall(page.read_text("utf-8"))
        if "NAME" not in place and place.partition("/")[0] in TOP
    }
    assert [place for place in sorted(named) if not (ROOT / place).exists()] == []


def test_every_link_between_our_files_leads_to_one() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in written()
        if page.suffix == ".md"
        for link in LINK.findall(page.read_text("utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_every_python_file_that_a_readme_names_is_there() -> None:
    there = ["/" + path.relative_to(ROOT).as_posix() for path in sources()]
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in written()
        if page.name == "README.md"
        for name in NAMED.findall(page.read_text("utf-8"))
        if "NAME" not in name and not any(path.endswith("/" + name.lstrip("./")) for path in there)
    ]
    assert missing == []


def test_every_kind_of_change_has_its_files_and_the_test_that_turns_red() -> None:
    found = sections()
    assert set(found) == KINDS
    for kind, text in found.items():
        assert re.search(r"^Red: ", text, re.MULTILINE), kind
        assert re.search(r"`tests/[\w/.]+`", text), kind


def test_the_recipe_of_a_scenario_names_every_key() -> None:
    text = sections()["A scenario"]
    names = set(re.findall(r"`(\w+)`", text))
    for field in dataclasses.fields(Scenario):
        inner = field.default_factory() if callable(field.default_factory) else None
        if dataclasses.is_dataclass(inner):
            assert f"[{field.name}]" in text, field.name
            missing = {one.name for one in dataclasses.fields(inner)} - names
            assert not missing, f"[{field.name}] {sorted(missing)}"
        else:
            assert field.name in names or f"[[{field.name}]]" in text, field.name
