"""Readers of JSON values: what a field may hold, at every depth.

Knows JSON types, ranges, objects and where a value stands. Knows nothing of OpenAI's API.
Always: a reader gives back a value that was checked all the way down, or names the place, what
stood there and what may; an object's key that no reader was given for is refused by name. A null is
as if the key were left out. What a reader takes is told as JSON Schema by the reader itself
(`schema_of`), so that a description of the API cannot say otherwise than its code.
"""

import dataclasses
import difflib
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .errors import BadRequest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
R = TypeVar("R")  # what a reader gives back
Reader = Callable[[Any, str], Any]  # the value and its place → the value, read
JsonSchema = dict[str, Any]


def nothing(_value: Any, _where: str) -> Iterator[str]:
    """Places of what a reader drops that drops nothing."""
    return iter(())


@dataclass(frozen=True, slots=True)
class Typed(Generic[R]):
    """A reader that can say what it takes."""

    read: Callable[[Any, str], R]
    schema: JsonSchema
    ignored: Callable[[Any, str], Iterator[str]] = nothing  # of a value that was read

    def __call__(self, value: Any, where: str) -> R:
        return self.read(value, where)


def typed(
    ignored: Callable[[Any, str], Iterator[str]] = nothing, **schema: Any
) -> Callable[[Callable[[Any, str], R]], Typed[R]]:
    """Of a reader, what it takes, and what of it changes nothing."""
    return lambda read: Typed(read, schema, ignored)


def schema_of(reader: Reader) -> JsonSchema:
    """JSON Schema of what a reader takes; of one that cannot say, anything."""
    return reader.schema if isinstance(reader, Typed | Record) else {}


def ignored_by(reader: Reader) -> Callable[[Any, str], Iterator[str]]:
    """What tells the places of what a reader drops."""
    return reader.ignored if isinstance(reader, Typed | Record) else nothing


# Fields of other servers and of older APIs, and what does the same here.
ADVICE: Mapping[str, str] = {
    "functions": "it became tools; use that",
    "function_call": "it became tool_choice and tool_calls; use those",
    "images": "this node reads text alone",
    "audio": "this node reads and writes text alone",
    "prefix": "set continue_final_message = true beside messages",
    "schema": 'use {"type": "json_schema", "json_schema": {"schema": …}}',
    "guided_json": 'use response_format = {"type": "json_schema", …}',
    "guided_regex": 'use response_format = {"type": "regex", "regex": …}',
    "guided_grammar": 'use response_format = {"type": "lark", "lark": …}',
    "grammar": 'use response_format = {"type": "lark", "lark": …}',
    "input": "this is a field of /v1/embeddings and /v1/responses; use messages or prompt",
    "max_new_tokens": "use max_tokens",
    "repeat_penalty": "use repetition_penalty",
}
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict, _brief.maxstring = 2, 3, 3, 60


def shown(value: object) -> str:
    """A foreign value in a message: short, however long or deep it is."""
    return _brief.repr(value)


@typed(type="string")
def text(value: Any, where: str) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise BadRequest(f"{where} is a {type(value).__name__}, expected a text", where)
    return value


@typed(type="string", minLength=1)
def named(value: Any, where: str) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{where} is {shown(value)}, expected a text that is not empty", where)
    return value


@typed(type="boolean")
def flag(value: Any, where: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise BadRequest(f"{where} is a {type(value).__name__}, expected a bool", where)
    return value


def anything(value: Any, _where: str) -> Any:
    """Whatever it is: it is handed on as data, or says nothing about the answer."""
    return value


@typed(type="object")
def mapping(value: Any, where: str) -> dict[str, Any]:
    """An object with keys of its sender's own."""
    if not isinstance(value, dict):
        raise BadRequest(f"{where} is a {type(value).__name__}, expected an object", where)
    return value


def number(kind: type, low: float, high: float) -> Typed[Any]:
    """A number within [low, high]; a whole number is a float too, true is neither."""

    @typed(type="integer" if kind is int else "number", minimum=low, maximum=high)
    def read(value: Any, where: str) -> Any:
        if type(value) not in ((int, float) if kind is float else (int,)):
            raise BadRequest(
                f"{where} is {shown(value)}, expected "
                f"{'a whole number' if kind is int else 'a number'}",
                where,
            )
        if not low <= value <= high:
            raise BadRequest(
                f"{where} is {shown(value)}, expected {low:.15g} to {high:.15g}", where
            )
        return kind(value)

    return read


def only(*allowed: object) -> Typed[Any]:
    """One of a few values: those that change nothing, or those that are known."""

    @typed(enum=list(allowed))
    def read(value: Any, where: str) -> Any:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise BadRequest(
                f"{where} = {shown(value)} is not supported, only {', '.join(map(repr, allowed))}",
                where,
            )
        return value

    return read


def absent(advice: str) -> Typed[Any]:
    """Null alone; anything else is refused with what to do instead."""

    @typed(type="null")
    def read(_value: Any, where: str) -> Any:
        raise BadRequest(f"{where} is not supported: {advice}", where)

    return read


def listed(item: Reader, least: int = 0, most: int | None = None) -> Typed[Any]:
    """A list, each of one kind."""
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})

    def ignored(value: Any, where: str) -> Iterator[str]:
        for one in value:
            yield from ignored_by(item)(one, f"{where}[]")

    @typed(ignored, type="array", items=schema_of(item), **bounds)
    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadRequest(f"{where} is a {type(value).__name__}, expected a list", where)
        if len(value) < least or (most is not None and len(value) > most):
            size = (
                f"at least {least}"
                if most is None
                else f"{least} to {most}"
                if least < most
                else f"{most}"
            )
            raise BadRequest(f"{where} holds {len(value)}, expected {size}", where)
        return tuple(item(one, f"{where}[{index}]") for index, one in enumerate(value))

    return read


@dataclass(frozen=True, slots=True)
class Record:
    """An object with known keys: `fields` are read and handed on, `harmless` ones are read and
    dropped.
    """

    fields: Mapping[str, Reader]
    needed: Sequence[str] = ()
    # they cannot change what this node answers
    harmless: Mapping[str, Reader] = field(default_factory=dict)

    def __call__(self, value: Any, where: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, inner in mapping(value, where).items():
            place = f"{where}.{key}" if where else key
            reader = self.fields.get(key) or self.harmless.get(key)
            if reader is None:
                raise BadRequest(
                    f"{shown(place).strip(chr(39))} is unknown here; {self.advice(key)}", place
                )
            if inner is not None:
                read = reader(inner, place)
                if key in self.fields:
                    found[key] = read
        for key in self.needed:
            if key not in found:
                place = f"{where}.{key}" if where else key
                raise BadRequest(f"{place} is missing; it must be there", place)
        return found

    def ignored(self, value: Mapping[str, Any], where: str = "") -> Iterator[str]:
        """Places of what is given and changes nothing here, of a value that was read; in lists
        without their numbers, so that a long one has no more of them than a short one.
        """
        found: dict[str, None] = {}
        for key, inner in value.items():
            place = f"{where}.{key}" if where else key
            if inner is None:
                continue
            if key in self.fields:
                found |= dict.fromkeys(ignored_by(self.fields[key])(inner, place))
            else:
                found[place] = None
        return iter(found)

    @property
    def schema(self) -> JsonSchema:
        """What it takes."""
        every = {**self.harmless, **self.fields}
        return {
            "type": "object",
            "properties": {
                key: schema_of(inner) if key in self.needed else nullable(schema_of(inner))
                for key, inner in every.items()
            },
            "required": list(self.needed),
            "additionalProperties": False,
        }

    def advice(self, key: str) -> str:
        """What to do about a key that is not known."""
        if key in ADVICE:
            return ADVICE[key]
        near = difflib.get_close_matches(key[:80], [*self.fields, *self.harmless], n=1)
        return f"did you mean {near[0]}?" if near else "leave it out"


class FieldGroup(Generic[T]):
    """Keys of a body that together make one value, a dataclass: each key is a field of it."""

    def __init__(self, kind: type[T], fields: dict[str, Reader], renamed: dict[str, str]) -> None:
        """`renamed`: keys whose fields have other names; of two keys of one field the latter wins.

        Raises:
            TypeError: a key is no field of `kind` (a bug).
        """
        self.fields = fields
        self._kind = kind
        self._field_of = {key: key for key in fields} | renamed
        known = {field.name for field in dataclasses.fields(kind)}
        if stray := set(self._field_of.values()) - known:
            raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(stray))}")

    def of(self, body: Mapping[str, object], **others: object) -> T:
        """What the keys of a body that was read make, beside fields that are no keys."""
        read = {field: body[key] for key, field in self._field_of.items() if key in body}
        return self._kind(**read, **others)


def tagged(key: str, kinds: Mapping[str, Record]) -> Typed[Any]:
    """An object whose `key` says which of several it is."""

    def one(tag: str, kind: Record) -> JsonSchema:
        shown, is_tag = kind.schema, {key: {"enum": [tag]}}
        return shown | {
            "properties": shown["properties"] | is_tag,
            "required": sorted({*shown["required"], key}),
        }

    def ignored(value: Any, where: str) -> Iterator[str]:
        return kinds[value[key]].ignored(value, where)

    @typed(ignored, oneOf=[one(tag, kind) for tag, kind in kinds.items()])
    def read(value: Any, where: str) -> dict[str, Any]:
        tag = mapping(value, where).get(key)
        if not isinstance(tag, str) or tag not in kinds:
            place = f"{where}.{key}"
            raise BadRequest(f"{place} is {shown(tag)}, supported are {', '.join(kinds)}", place)
        return kinds[tag](value, where)

    return read


def either(of_text: Reader, of_other: Reader) -> Typed[Any]:
    """A text is read by one, anything else by the other."""

    def ignored(value: Any, where: str) -> Iterator[str]:
        return ignored_by(of_text if isinstance(value, str) else of_other)(value, where)

    @typed(ignored, anyOf=[schema_of(of_text), schema_of(of_other)])
    def read(value: Any, where: str) -> Any:
        return of_text(value, where) if isinstance(value, str) else of_other(value, where)

    return read


def nullable(schema: JsonSchema) -> JsonSchema:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}
