"""The house stays a house: floors, circles, names, package list, width of lines.

Reads source as text and syntax, by the rules of `tests/house.py`; imports nothing of the product.
"""

import ast
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from quietchoir.tests import house
from quietchoir.tests.house import FLOORS, ROOMS, ROOT, imports, product, sources

# Still to be mended: these lists only shrink, and what is not on them fails.
CIRCLES: list[list[str]] = []
ROOM_CIRCLES: list[list[str]] = []
# The one place that may import a library whose internals or weight would spread.
ONE_DOOR = {
    "llguidance": (
        "core/engine/sampling/grammar.py",
        "core/engine/sampling/grammar_compiler.py",
        "tests/",
    ),
    "flwr": ("federation/engines", "federation/transport", "tests/", "simulations/bench/"),
    "tenseal": (
        "crypto/he/ckks.py",
        "crypto/he/bfv.py",
        "crypto/he/parameters.py",
        "crypto/experimental/threshold/lattice.py",
        "tests/",
        "simulations/bench/",
    ),
}


def beyond(found: Iterable[Sequence[str]], known: Sequence[Sequence[str]]) -> list[list[str]]:
    """Circles that no known one holds whole."""
    return [
        list(group) for group in found if not any(set(group) <= set(allowed) for allowed in known)
    ]


def test_every_arrow_runs_down() -> None:
    """Between floors and between the levels inside core; lazy and type checkers' imports too."""
    assert not house.upward()


def test_no_module_is_part_of_a_circle() -> None:
    """Whatever the import: at load, inside a function, or for type checkers alone."""
    assert not beyond(house.circles(house.arrows()), CIRCLES)


def test_no_two_rooms_of_a_folder_need_each_other() -> None:
    assert not beyond(house.room_circles(), ROOM_CIRCLES)


def test_a_class_name_means_one_thing() -> None:
    assert not house.class_names()


def test_no_line_of_code_is_wider_than_100_columns() -> None:
    """Templates of models are kept as their makers wrote them; a linter's word does not count."""
    assert not house.wide(prose=False)


def test_no_line_of_prose_is_wider_than_100_columns() -> None:
    """In Markdown, outside of tables and of blocks of code."""
    assert not house.wide(prose=True)


def test_every_room_has_a_floor() -> None:
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert there == set(ROOMS) == set(FLOORS)


def test_the_package_list_names_every_folder_with_code() -> None:
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
            "packages"
        ]
    )
    there = {"quietchoir"}
    for room in ROOMS:
        there |= {
            "quietchoir." + ".".join(p.parent.relative_to(ROOT).parts)
            for p in (ROOT / room).rglob("__init__.py")
        }
    assert listed == there


def test_every_folder_with_code_is_a_package() -> None:
    """Plugins' own folders are data of the product, not code of it."""
    for path in sources(ROOT, *ROOMS):
        if "builtin" not in path.parts:
            assert (path.parent / "__init__.py").exists(), path.parent.relative_to(ROOT)


@pytest.mark.parametrize("library", ONE_DOOR)
def test_a_library_with_one_door_is_imported_there_alone(library: str) -> None:
    for path in sources():
        place = str(path.relative_to(ROOT))
        if not place.startswith(ONE_DOOR[library]):
            assert library not in {name.partition(".")[0] for name in imports(path)}, place


def test_the_fast_half_of_the_tests_is_there() -> None:
    """`make check` would end with the first name that means nothing."""
    listed = (ROOT / "tests" / "fast.txt").read_text("utf-8").splitlines()
    names = [line for line in listed if not line.startswith("#")]
    assert names == sorted(set(names))
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_the_product_imports_itself_by_relative_paths() -> None:
    for path in product():
        for node in ast.walk(house.syntax(path)):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").partition(".")[0] != "quietchoir", (
                    f"{path.relative_to(ROOT)}:{node.lineno}"
                )


def test_what_is_crooked_is_seen(tmp_path: Path) -> None:
    """A small house that breaks every rule, so that none of the tests above passes by blindness."""
    (tmp_path / "core").mkdir()
    (tmp_path / "core/one.py").write_text("""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from .two import Thing
class Thing: ...
""")
    (tmp_path / "core/two.py").write_text("""
def late():
    from . import one
    from ..federation import above
class Thing: ...
""")
    (tmp_path / "core/engine").mkdir()
    (tmp_path / "core/engine/low.py").write_text("from ..server import high")
    (tmp_path / "core/server").mkdir()
    (tmp_path / "core/server/high.py").write_text("from ..engine.low import nothing")
    (tmp_path / "federation").mkdir()
    (tmp_path / "federation/above.py").write_text("1" * 101 + "\n" + "1  # noqa" + " " * 101)
    row, long = "| " * 60, "word " * 21
    (tmp_path / "README.md").write_text(f"{row}\n{long}\n```sh\n{long}\n```\n{long}\n")
    assert house.circles(house.arrows(tmp_path)) == [
        ["core.engine.low", "core.server.high"],
        ["core.one", "core.two"],
    ]
    assert house.room_circles(tmp_path) == [
        ["core.engine", "core.server"],
        ["core.one", "core.two"],
    ]
    assert sorted(house.upward(tmp_path)) == [
        "core.engine.low → core.server.high",
        "core.two → federation.above",
    ]
    assert house.class_names(tmp_path) == {"Thing": ["core/one.py", "core/two.py"]}
    assert house.wide(tmp_path, prose=False) == {"federation/above.py:1": 101}
    assert house.wide(tmp_path, prose=True) == {"README.md:2": 105, "README.md:6": 105}


# The names that the engine may take from its backends: the protocol, the choice, torch's threads.
SEAM = {"backend", "select", "threads"}


def test_the_engine_knows_no_backend_by_name() -> None:
    backends = ROOT / "core" / "engine" / "backends"
    concrete = {path.name for path in backends.iterdir() if (path / "__init__.py").exists()}
    assert {"cuda", "native", "torch_cpu"} <= concrete
    for path in sources(ROOT, "core/engine"):
        if path.is_relative_to(backends):
            continue
        for name in imports(path):
            if name.startswith("core.engine.backends."):
                assert name.split(".")[3] in SEAM, f"{path.relative_to(ROOT)} imports {name}"
        assert not re.search(r"isinstance\([^)]*(?:Runner|backend)", path.read_text("utf-8")), path
