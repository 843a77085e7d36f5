"""`docs/environment.md` lists every environment variable that anything here reads or sets."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from quietchoir.tests.house import ROOT, syntax, written

PAGE = ROOT / "docs" / "environment.md"
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.MULTILINE)
METHODS = ("get", "setdefault", "pop", "getenv")
# Reads of whatever the caller names: what stands there is listed where the name comes from.
ANY_NAME = ("tests/compat/reach.py",)


def constants(path: Path) -> dict[str, str]:
    """Strings that a module gives a name, and those that it imports by name."""
    found = {}
    for node in syntax(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                    found[target.id] = node.value.value
    return found


def keys(path: Path) -> list[ast.expr]:
    """What `os.environ` is asked for in a file, or told."""
    found = []
    for node in ast.walk(syntax(path)):
        match node:
            case ast.Call(func=ast.Attribute(value=whose, attr=name), args=[key, *_]):
                if name in METHODS and ast.unparse(whose) in ("os.environ", "environ", "os"):
                    found.append(key)
            case ast.Call(func=ast.Name(id="getenv"), args=[key, *_]):
                found.append(key)
            case ast.Subscript(value=whose, slice=key):
                if ast.unparse(whose) in ("os.environ", "environ"):
                    found.append(key)
            case ast.Compare(left=key, comparators=[whose]):
                if ast.unparse(whose) in ("os.environ", "environ"):
                    found.append(key)
    return found


def used() -> dict[str, set[str]]:
    """Variables, and the files that read or set them."""
    found = defaultdict[str, set[str]](set)
    shared = {f"paths.{name}": text for name, text in constants(ROOT / "core/paths.py").items()}
    for path in written():
        place = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py" and place not in ANY_NAME:
            known = shared | constants(path)
            for key in keys(path):
                name = key.value if isinstance(key, ast.Constant) else known.get(ast.unparse(key))
                assert isinstance(name, str), f"{place}:{key.lineno}: which variable is that?"
                found[name].add(place)
        elif path.suffix in (".cpp", ".h"):
            for name in re.findall(r"getenv\(\s*\"(\w+)\"", path.read_text("utf-8")):
                found[name].add(place)
        elif path.name == "Makefile" or path.parent.name == ".ci":
            text = path.read_text("utf-8")
            for name in re.findall(
                r"^(?:export )?(\w+) \?=|^ifdef (\w+)|^export (\w+)\s*:?=|\$\((ARGS|SOAK)\)",
                text,
                re.MULTILINE,
            ):
                found["".join(dict.fromkeys(name))].add(place)
    return found


def listed() -> dict[str, str]:
    return dict(ROW.findall(PAGE.read_text("utf-8")))


def test_every_variable_that_is_read_is_listed_with_its_place() -> None:
    rows = listed()
    for name, places in used().items():
        assert name in rows, f"{name} of {sorted(places)} is not in docs/environment.md"
        told = re.findall(r"`([^`]+)`", rows[name])
        for place in places:
            assert place == "Makefile" or any(place.startswith(one) for one in told), (name, place)


def test_no_variable_is_listed_that_nobody_reads() -> None:
    assert set(listed()) == set(used())


def test_every_place_that_is_named_exists() -> None:
    for place in re.findall(r"`([\w./]+/[\w./]*)`", PAGE.read_text("utf-8")):
        if place not in ("quietchoir/", "models/"):
            assert (ROOT / place).exists(), place
