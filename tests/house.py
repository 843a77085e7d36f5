"""The house in figures: how many rooms a round walks through, how large they are, what is crooked.

`python -m quietchoir.tests.house [--json] [--root DIR]`; DIR may hold the tree of any commit, as
`git archive` or `git worktree` lays it down, so that two of them can be compared.

Knows source as text and syntax. Knows nothing of what it does; only `entered` runs any of it, in
an interpreter of its own. Imports nothing but the standard library: a file of another tree is
read by these rules, not by its own.
"""

import argparse
import ast
import functools
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "crypto", "federation", "private_search", "plugins", "simulations")
WIDTH = 100  # columns of a line, code and prose
CODE = (".py", ".h", ".cpp", ".js", ".css", ".html", ".toml", ".sh")
# Kept as their makers wrote them: other people's code, and chat templates of models.
AS_THEY_CAME = ("/vendor/", "tests/vectors/")
TEMPLATES = ("templates.py",)
# A linter's word at the end of a line is no part of what is read.
ASIDE = re.compile(r"  # (?:noqa|type: ignore|fmt:)|  // (?:clang-format|NOLINT)")

# What each floor may stand on besides itself.
FLOORS = {
    "core": set[str](),
    "crypto": {"core"},
    "plugins": {"core", "crypto"},
    "federation": {"core", "crypto"},
    "private_search": {"core", "crypto"},
    "simulations": {"core", "crypto", "federation", "private_search", "plugins", "node"},
}
# Inside core, from the ground up; a module may import its own level and lower ones.
LEVELS: tuple[set[str], ...] = (
    {"errors"},
    {"screen", "parts"},
    {"paths", "log", "tables", "toolcall", "metrics", "trace", "worker"},
    {"config", "prompt"},
    {"models"},
    {"hardware", "device"},
    {"engine"},
    {"retrieval"},
    {"training", "assistant"},
    {"history"},
    {"server"},
    {"commands"},
)


def sources(root: Path = ROOT, *folders: str) -> Iterator[Path]:
    """Every Python file of these folders, or of the product, its root and its tests."""
    for folder in folders or (*ROOMS, "tests"):
        yield from sorted((root / folder).rglob("*.py"))
    if not folders:
        yield from sorted(root.glob("*.py"))


def product(root: Path = ROOT) -> Iterator[Path]:
    """Every Python file of the product; plugins' own folders are data of it, not code."""
    for path in (*sources(root, *ROOMS), *sorted(root.glob("*.py"))):
        if "builtin" not in path.relative_to(root).parts[:-1]:
            yield path


@functools.cache
def syntax(path: Path) -> ast.Module:
    """A file's syntax; read once."""
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def imports(path: Path, root: Path = ROOT) -> list[str]:
    """What `path` imports, wherever in it: dotted names, our own without their first part."""
    package = list(path.relative_to(root).parent.parts)
    found = []
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            found += [alias.name.removeprefix("quietchoir.") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*above, *([node.module] if node.module else [])])
            names = (f"{whole}.{alias.name}".strip(".") for alias in node.names)
            found += [name.removeprefix("quietchoir.") for name in names]
    return found


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name to file, for the whole product."""
    found = {}
    for path in product(root):
        parts = path.relative_to(root).with_suffix("").parts
        if name := ".".join(parts[:-1] if parts[-1] == "__init__" else parts):
            found[name] = path
    return found


@functools.cache
def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Each module of the product, and those that it imports."""
    known = modules(root)

    def meant(name: str) -> str:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    return {
        name: {meant(used) for used in imports(path, root)} - {"", name}
        for name, path in known.items()
    }


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other, the largest first.

    Source: R. Tarjan, "Depth-first search and linear graph algorithms", 1972.
    """
    order, low, pending = dict[str, int](), dict[str, int](), list[str]()
    groups = list[list[str]]()

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        pending.append(node)
        for used in graph.get(node, ()):
            if used not in order:
                visit(used)
                low[node] = min(low[node], low[used])
            elif used in pending:
                low[node] = min(low[node], order[used])
        if low[node] == order[node]:
            place = pending.index(node)
            if len(group := pending[place:]) > 1:
                groups.append(sorted(group))
            del pending[place:]

    for node in graph:
        if node not in order:
            visit(node)
    return sorted(groups, key=lambda group: (-len(group), group))


def siblings(root: Path = ROOT) -> Iterator[tuple[str, dict[str, set[str]]]]:
    """Each folder of the product, with the arrows between what lies in it: its rooms and files.

    A folder is one node beside the files that lie next to it, so that `models/weights.py` may
    read `models/quant/` and be read by `models/files/`, but two rooms never need each other.
    """
    inside = defaultdict[str, dict[str, set[str]]](lambda: defaultdict(set))
    for name, used in arrows(root).items():
        for other in used:
            here, there = name.split("."), other.split(".")
            depth = next(
                (at for at, (one, two) in enumerate(zip(here, there, strict=False)) if one != two),
                min(len(here), len(there)),
            )
            if depth < min(len(here), len(there)):
                inside[".".join(here[:depth])][here[depth]].add(there[depth])
    yield from ((folder, dict(graph)) for folder, graph in sorted(inside.items()))


def room_circles(root: Path = ROOT) -> list[list[str]]:
    """Rooms and files of one folder that need each other, by their dotted names."""
    return [
        [f"{folder}.{name}".strip(".") for name in group]
        for folder, graph in siblings(root)
        for group in circles(graph)
    ]


def upward(root: Path = ROOT) -> list[str]:
    """Imports that reach to a higher floor, or to a higher level inside core."""
    level = {name: height for height, names in enumerate(LEVELS) for name in names}
    above = {*ROOMS, "node", "cli", "commands"}
    found = []
    for name, used in arrows(root).items():
        floor, _, rest = name.partition(".")
        own = rest.partition(".")[0]
        for other in sorted(used):
            there, _, rest = other.partition(".")
            room = rest.partition(".")[0]
            if floor in FLOORS and there in above - {floor} - FLOORS[floor]:
                found.append(f"{name} → {other}")
            inside = floor == there == "core" and own in level and room in level and own != room
            if inside and level[room] >= level[own]:
                found.append(f"{name} → {other}")
    return found


def class_names(root: Path = ROOT) -> dict[str, list[str]]:
    """Names that more than one class of the product bears, and the files of those classes."""
    found = defaultdict[str, list[str]](list)
    for path in product(root):
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(root)))
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def written(root: Path = ROOT) -> Iterator[Path]:
    """Every file that somebody of this project wrote: what git keeps, where git is."""
    git = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (root / ".git").exists():
        kept = subprocess.check_output(git, text=True).split("\0")
        paths = [root / name for name in kept if name]
    else:
        paths = sorted(path for path in root.rglob("*") if ".venv" not in path.parts)
    for path in paths:
        name = str(path.relative_to(root))
        if path.is_file() and not any(part in f"/{name}" for part in AS_THEY_CAME):
            yield path


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a file that count for its width; of Markdown, prose alone."""
    text = path.read_text("utf-8").splitlines()
    if path.suffix != ".md":
        yield from ((number, ASIDE.split(line)[0]) for number, line in enumerate(text, 1))
        return
    fence = ""
    for number, line in enumerate(text, 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and not fence:
            fence = mark[1]
        elif fence:
            fence = "" if line.strip() == fence else fence
        elif (
            not line.lstrip().startswith("|") and " " in line.strip()
        ):  # a bare address is one word
            yield number, line


def wide(root: Path = ROOT, *, prose: bool) -> dict[str, int]:
    """Lines wider than `WIDTH` columns: "file:line" to columns. Code, or else prose."""
    found = {}
    for path in written(root):
        shell = path.suffix == "" and path.parent.name == ".ci"
        wanted = path.suffix == ".md" if prose else path.suffix in CODE or shell
        if wanted and path.name not in TEMPLATES:
            for number, line in lines(path):
                if len(line) > WIDTH:
                    found[f"{path.relative_to(root)}:{number}"] = len(line)
    return found


def entered(mode: str, root: Path = ROOT) -> list[str]:
    """Files that a trained round of four synthetic members walks through, its first one set aside.

    Of a plain round those of `federation/`, of any other those of `crypto/` as well. In an
    interpreter of its own, so that `root` may be another commit's tree.

    Raises:
        RuntimeError: that tree's round cannot be run; says why.
    """
    rooms = ("federation",) if mode == "plain" else ("federation", "crypto")
    with tempfile.TemporaryDirectory() as there:
        (Path(there) / "quietchoir").symlink_to(root)
        done = subprocess.run(
            [sys.executable, "-c", ROUND.format(mode=mode, rooms=rooms)],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": there, "PATH": "/usr/bin:/bin", "HOME": there},
        )
    if done.returncode:
        raise RuntimeError(f"no {mode} round could be run: {done.stderr.strip()[-2000:]}")
    return done.stdout.split()


# What the test counts, if that tree has it; else the same, by the names that came before it.
ROUND = """
import os, sys
try:
    from quietchoir.tests.federation.rounds.test_files_entered import entered
    print(*entered({mode!r}, {rooms!r}), sep="\\n")
    sys.exit()
except ModuleNotFoundError:
    pass
import quietchoir
from quietchoir.tests import fakes_federation as fakes
root = os.path.realpath(os.path.dirname(quietchoir.__file__)) + "/"
home = fakes.house(4, mode={mode!r}, recipe={{"evaluate_every": 0}})
coordinator = fakes.coordinator(home, fakes.parties(home, 50), 50)
coordinator.insist(coordinator.train_round)
seen = set()
sys.setprofile(lambda frame, event, _: event == "call" and seen.add(frame.f_code.co_filename))
coordinator.insist(coordinator.train_round)
sys.setprofile(None)
places = sorted(os.path.realpath(place).removeprefix(root) for place in seen)
print(*(place for place in places if place.partition("/")[0] in {rooms!r}), sep="\\n")
"""


def cells(root: Path = ROOT) -> dict[str, int]:
    """Combinations of modes that work, that nature refuses, and that are refused otherwise.

    As that tree's own test counts them; {} where it has none.
    """
    with tempfile.TemporaryDirectory() as there:
        (Path(there) / "quietchoir").symlink_to(root)
        done = subprocess.run(
            [sys.executable, "-m", "quietchoir.tests.federation.rounds.test_modes_compose"],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": there, "PATH": "/usr/bin:/bin", "HOME": there},
        )
    rows = (line.split(None, 1) for line in done.stdout.splitlines() if not done.returncode)
    return {words: int(number) for number, words in rows}


def statements(path: Path) -> int:
    """How many statements a file has, however it is laid out; docstrings are none."""
    tree = syntax(path)
    text = (ast.Expr, ast.Constant)
    return sum(
        isinstance(node, ast.stmt)
        and not (isinstance(node, text[0]) and isinstance(node.value, text[1]))
        for node in ast.walk(tree)
    )


def figures(root: Path = ROOT) -> dict[str, Any]:
    """Every figure of the house; lists where something should be empty."""
    size = {path: len(path.read_text("utf-8").splitlines()) for path in product(root)}
    told: dict[str, Any] = {}
    for mode in ("plain", "masked"):
        try:
            told[f"files a {mode} round enters"] = entered(mode, root)
        except RuntimeError as error:
            told[f"files a {mode} round enters"] = str(error)
    masked = told["files a masked round enters"]
    if isinstance(masked, list):
        own = [name for name in masked if name.startswith("federation/")]
        told["of them in federation"] = own
    in_federation = [path for path in size if path.relative_to(root).parts[0] == "federation"]
    code, prose = wide(root, prose=False), wide(root, prose=True)
    return told | {
        **{f"cells of the modes, {words}": number for words, number in cells(root).items()},
        "files": len(size),
        "lines": sum(size.values()),
        "median lines of a file": int(statistics.median(size.values())),
        "files of federation": len(in_federation),
        "lines of federation": sum(size[path] for path in in_federation),
        "statements of federation": sum(statements(path) for path in in_federation),
        "circles of files": circles(arrows(root)),
        "circles of rooms": room_circles(root),
        "upward arrows": upward(root),
        "class names used twice": class_names(root),
        "longest line of code": max((WIDTH, *code.values())),
        "longest line of prose": max((WIDTH, *prose.values())),
        f"lines of code over {WIDTH} columns": len(code),
        f"lines of prose over {WIDTH} columns": len(prose),
    }


def main() -> int:
    """Print the figures: a table of numbers, or with --json all that was found."""
    parser = argparse.ArgumentParser(prog="python -m quietchoir.tests.house", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object, with every place found")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree that is read; this one")
    chosen = parser.parse_args()
    told = figures(chosen.root.resolve())
    if chosen.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        for name, value in told.items():
            print(f"{len(value) if isinstance(value, list | dict) else value:>8}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
