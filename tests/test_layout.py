"""The house stays a house: floors, package list, width of lines, no circles.

Reads source as text and syntax; imports nothing of the product.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "crypto", "federation", "private_search", "plugins", "simulations")
WIDTH = 100  # columns of a line, code and prose

# What each floor may stand on besides itself.
FLOORS = {
    "core": set(),
    "crypto": {"core"},
    "plugins": {"core"},
    "federation": {"core", "crypto"},
    "private_search": {"core", "crypto"},
    "simulations": {"core", "crypto", "federation", "private_search", "plugins", "node"},
}
# Inside core, from the ground up; a module may import its own level and lower ones.
LEVELS = [
    {"errors"},
    {"screen"},
    {"paths", "log", "parts", "tables", "toolcall", "metrics", "worker"},
    {"config", "prompt"},
    {"models"},
    {"hardware"},
    {"engine"},
    {"training", "assistant"},
    {"server"},
    {"commands"},
]
# The one place that may import a library whose internals or weight would spread.
ONE_DOOR = {
    "llguidance": ("core/engine/sampling/grammar.py", "core/engine/sampling/compiler.py", "tests/"),
    "flwr": ("federation/transport", "tests/", "simulations/bench/"),
    "tenseal": (
        "crypto/he/ckks.py",
        "crypto/he/bfv.py",
        "crypto/he/parameters.py",
        "crypto/experimental/threshold/lattice.py",
        "tests/",
        "simulations/bench/",
    ),
}


def sources(*folders: str) -> Iterator[Path]:
    """Every Python file of the product in these folders, and the root's own."""
    for folder in folders or (*ROOMS, "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    if not folders:
        yield from sorted(ROOT.glob("*.py"))


def imports(path: Path, *, at_load: bool = False) -> Iterator[str]:
    """Modules that `path` imports, as dotted names; the product's own without their first part.

    Args:
        at_load: only what is imported when the module loads, not inside functions or for type
        checkers.
    """
    package = list(path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text("utf-8"))
    for node in top_level(tree) if at_load else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("quietchoir.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{whole}.{alias.name}".strip(".").removeprefix("quietchoir.")


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module loads, `if TYPE_CHECKING` left out."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += node.body + node.orelse
        elif isinstance(node, ast.Try):
            pending += (
                node.body
                + [line for handler in node.handlers for line in handler.body]
                + node.orelse
            )


def module_of(name: str, known: dict[str, Path]) -> str | None:
    """The module of ours that a dotted import name means, if any."""
    while name:
        if name in known:
            return name
        name = name.rpartition(".")[0]
    return None


def modules() -> dict[str, Path]:
    """Dotted name to file, for the whole product."""
    found = {}
    for path in (*sources(*ROOMS), *sorted(ROOT.glob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_stands_only_on_floors_below_it(floor: str) -> None:
    own = {*ROOMS, "node", "cli", "commands"}
    for path in sources(floor):
        used = {name.partition(".")[0] for name in imports(path)} & own
        assert used <= FLOORS[floor] | {floor}, (
            f"{path.relative_to(ROOT)} reaches up to {used - FLOORS[floor] - {floor}}"
        )


def test_inside_core_every_arrow_runs_down() -> None:
    level = {name: height for height, names in enumerate(LEVELS) for name in names}
    for path in sources("core"):
        own = path.relative_to(ROOT / "core").with_suffix("").parts[0]
        if own == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "core" and len(parts) > 1 and parts[1] in level and parts[1] != own:
                assert level[parts[1]] < level[own], (
                    f"{path.relative_to(ROOT)} ({own}) imports {name}"
                )


def test_no_module_is_part_of_a_circle() -> None:
    known = modules()
    graph = {
        name: {
            found
            for used in imports(path, at_load=True)
            if (found := module_of(used, known)) and found != name
        }
        for name, path in known.items()
    }
    while leaves := {name for name, used in graph.items() if not used}:
        graph = {name: used - leaves for name, used in graph.items() if name not in leaves}
    assert not graph, f"circle among {sorted(graph)}"


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
    for path in sources(*ROOMS):
        if "builtin" not in path.parts:
            assert (path.parent / "__init__.py").exists(), path.parent.relative_to(ROOT)


@pytest.mark.parametrize("library", ONE_DOOR)
def test_a_library_with_one_door_is_imported_there_alone(library: str) -> None:
    for path in sources():
        place = str(path.relative_to(ROOT))
        if not place.startswith(ONE_DOOR[library]):
            assert library not in {name.partition(".")[0] for name in imports(path)}, place


def test_no_line_of_code_is_wider_than_100_columns() -> None:
    """Templates of models are kept as their makers wrote them; a linter's word does not count."""
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        if path.name != "templates.py"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(re.split(r"  # (?:noqa|type: ignore|fmt:)", line)[0]) > WIDTH
    ]
    assert not wide


def test_the_product_imports_itself_by_relative_paths() -> None:
    for path in (*sources(*ROOMS), *sorted(ROOT.glob("*.py"))):
        if "builtin" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").partition(".")[0] != "quietchoir", (
                    f"{path.relative_to(ROOT)}:{node.lineno}"
                )
