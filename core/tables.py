"""TOML tables into frozen dataclasses, strictly.

Knows dataclass fields and their types. Knows no key by name.
Always: an unknown key, a missing key or a value of another type is a `ConfigError` that names file,
key, value and, for an unknown key, the nearest known one.
"""

import ast
import codecs
import dataclasses
import difflib
import inspect
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")
MARKS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
INTEGER_BITS = 63  # and a sign, as TOML has it
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


def at_least(least: float, **values: float) -> None:
    """Raise ValueError for the first of `values` that is smaller, or no number."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} = {value} must be at least {least}")


def above(limit: float, **values: float) -> None:
    """Raise ValueError for the first of `values` that is not larger."""
    for name, value in values.items():
        if not value > limit:
            raise ValueError(f"{name} = {value} must be above {limit}")


def read_toml(path: Path) -> dict[str, Any]:
    """Parse one TOML file.

    Raises:
        ConfigError: no such file, not UTF-8, one that begins with a byte-order mark, or not TOML
        (with the line).
    """
    try:
        return parse_toml(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parse TOML that anybody may have written.

    Raises:
        UnicodeDecodeError: not UTF-8.
        TOMLDecodeError: not TOML, nested deeper than is read, or a whole number beyond TOML's 64
        bits.
    """
    try:
        table = tomllib.loads(toml_text(content))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise tomllib.TOMLDecodeError("nested deeper than is read; make it flat") from None
    except ValueError as error:
        raise tomllib.TOMLDecodeError(str(error)) from None
    waiting: list[Any] = [table]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
            raise tomllib.TOMLDecodeError(
                f"a whole number of {value.bit_length()} bits, TOML has {INTEGER_BITS + 1}"
            )
        waiting += (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
    return table


def toml_text(content: bytes) -> str:
    """The text of a TOML file.

    Raises:
        UnicodeDecodeError: not UTF-8.
        TOMLDecodeError: a byte-order mark before it, which TOML does not know; its own message
        would point at nothing visible.
    """
    for mark, name in MARKS.items():
        if content.startswith(mark):
            raise tomllib.TOMLDecodeError(
                f"it begins with the byte-order mark of {name}; save it as UTF-8 without one"
            )
    return content.decode("utf-8")


def fill(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build dataclass `kind` from `table`; nested dataclasses, lists of them, tuples and paths
    included.

    Args:
        where: file and table, the beginning of every message.

    Raises:
        ConfigError: as the module says. A `ValueError` of the dataclass's own checks becomes one
        too.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            advice = (
                (f"did you mean {near[0]}?") if near else f"known keys: {', '.join(sorted(fields))}"
            )
            raise ConfigError(f"{where}{key} = {table[key]!r} is unknown; {advice}")
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in table and not optional:
            raise ConfigError(f"{where}{name} is missing; it must be {describe(hints[name])}")
    values = {key: convert(hints[key], value, f"{where}{key}") for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{where.rstrip(' .:')}: {error}") from error


def convert(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against `hint` and bring it into that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return fill(typing.cast(type, hint), value, f"{where}.")
    if origin in (types.UnionType, typing.Union):
        known = [argument for argument in arguments if argument is not type(None)]
        return convert(known[0], value, where)
    if origin is typing.Literal and value in arguments:
        return value
    if origin in (list, tuple) and isinstance(value, list):
        return origin(
            convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, Mapping):
        return {key: convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint is float and type(value) in (int, float):
        try:
            return bounded(float(value), where)
        except OverflowError:
            raise ConfigError(
                f"{where} must be {describe(hint)}; it is too large to be one"
            ) from None
    if hint in (bool, int, str) and type(value) is hint:
        return bounded(value, where)
    raise ConfigError(f"{where} = {value!r} must be {describe(hint)}")


def bounded(value: Any, where: str) -> Any:
    """`value`, if a table can hold it: no infinity, no nan, whole numbers of 64 bits.

    Raises:
        ConfigError: it cannot; the file would be one that nobody reads.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} = {value} must be a finite number")
    if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
        raise ConfigError(
            f"{where} is a whole number of {value.bit_length()} bits, TOML has {INTEGER_BITS + 1}"
        )
    return value


def describe(hint: Any) -> str:
    """The type in a reader's words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (types.UnionType, typing.Union):
        return describe(next(argument for argument in arguments if argument is not type(None)))
    if origin in (list, tuple):
        return f"a list, each {describe(arguments[0])}"
    return KINDS.get(hint, "a table")


def template(kind: type) -> str:
    """A dataclass of tables as TOML that says nothing yet: each key in a comment with its default,
    under the words that stand beside it in the source. A key without a default of its own stands
    without a value.
    """
    written = []
    for table in dataclasses.fields(kind):
        words = (inspect.getdoc(typing.cast(Any, table.default_factory)) or "").splitlines()
        hints = typing.get_type_hints(table.default_factory)
        written += [*(f"# {line}".rstrip() for line in words), f"[{table.name}]", ""]
        described = comments(typing.cast(type, table.default_factory))
        for field in dataclasses.fields(typing.cast(Any, table.default_factory)):
            default = "" if field.default is None else toml_value(field.default)
            lines = described[field.name] or [describe(hints[field.name])]
            written += [
                *(f"# {line}" for line in lines),
                f"# {field.name} = {default}".rstrip(),
                "",
            ]
    return "\n".join(written)


def comments(kind: type) -> dict[str, list[str]]:
    """What the source says of each field of a dataclass: the comment above it, then the one behind
    it. Empty lists where the source is not at hand.
    """
    try:
        source = inspect.getsource(kind)
    except OSError:
        return {field.name: [] for field in dataclasses.fields(typing.cast(Any, kind))}
    lines, found = source.splitlines(), dict[str, list[str]]()
    for node in typing.cast(ast.ClassDef, ast.parse(source).body[0]).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = list[str]()
            number = node.lineno - 2
            while lines[number].lstrip().startswith("# "):
                above.insert(0, lines[number].strip().removeprefix("# "))
                number -= 1
            # columns of the syntax are bytes
            behind = lines[(node.end_lineno or 1) - 1].encode()[node.end_col_offset :].decode()
            own = behind.strip().removeprefix("#").strip()
            found[node.target.id] = above + ([own] if own else [])
    return found


def toml_value(value: object) -> str:
    """A default as TOML writes it: truths, numbers, texts, paths and lists of these."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)  # TOML's basic strings, but for DEL
    return str(value).lower() if isinstance(value, bool) else repr(value)
