"""Texts that somebody else wrote never end us by their depth: whoever reads JSON expects that
Python gives up.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import quietchoir

ROOT = Path(quietchoir.__path__[0])
ROOMS = ("core", "crypto", "federation", "plugins")
WHOLE = {"Exception", "BaseException", "RecursionError"}


def readers() -> Iterator[tuple[str, set[str]]]:
    """Where JSON is read and what is no JSON is caught, with everything that is caught there."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for block in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(block, ast.Try) and any(map(reads_json, block.body)):
                    caught = {name for handler in block.handlers for name in names(handler.type)}
                    if caught & {"ValueError", "JSONDecodeError"}:
                        yield f"{path.relative_to(ROOT)}:{block.lineno}", caught


def reads_json(statement: ast.stmt) -> bool:
    return any(
        isinstance(part, ast.Call) and ast.unparse(part.func) == "json.loads"
        for part in ast.walk(statement)
    )


def names(caught: ast.expr | None) -> set[str]:
    if caught is None:
        return {"BaseException"}
    return {
        ast.unparse(one) for one in (caught.elts if isinstance(caught, ast.Tuple) else [caught])
    }


def test_there_are_such_places() -> None:
    assert len(list(readers())) > 20


@pytest.mark.parametrize(
    ("where", "caught"), [*readers()], ids=lambda found: found if isinstance(found, str) else ""
)
def test_whoever_catches_what_is_no_json_catches_what_is_too_deep(
    where: str, caught: set[str]
) -> None:
    assert caught & WHOLE, where
