"""A form that a tool puts to the owner while a call of it is waited for: a few plain values.

Knows fields, what each may hold, and what became of a form, in MCP's words. Knows no protocol and
no screen.
Always: a form is flat; what is given back are values that its fields allow, or nothing.
Hazard: a form's words are those of whoever made the tool; show them as text, beside its name.
Source: modelcontextprotocol.io, specification 2025-11-25, client/elicitation.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["string", "number", "integer", "boolean"]
KINDS: tuple[Kind, ...] = ("string", "number", "integer", "boolean")
Action = Literal["accept", "decline", "cancel"]  # filled in; a no; put aside without a word
ACTIONS: tuple[Action, ...] = ("accept", "decline", "cancel")
ANSWER_S = 120.0  # its owner has so long at most
MAX_ANSWER = 2000  # characters of one value
YES, NO = ("y", "yes", "true"), ("n", "no", "false")
WORDS: Mapping[Kind, str] = {
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "yes or no",
}


def bounds_of(kind: Kind) -> tuple[str, str]:
    """What JSON Schema calls the least and the most of such a value."""
    return ("minLength", "maxLength") if kind == "string" else ("minimum", "maximum")


@dataclass(frozen=True, slots=True)
class Field:
    """One value that is asked for."""

    name: str
    kind: Kind
    label: str
    required: bool
    options: tuple[str, ...] = ()  # of a text; empty: any
    least: float | None = None  # of a number, or of a text's length
    most: float | None = None

    def described(self) -> str:
        """What it takes, in words."""
        what = f"one of {', '.join(self.options)}" if self.options else WORDS[self.kind]
        return f"{self.label}: {what}{'' if self.required else ', or nothing'}"

    @property
    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        limits = zip(bounds_of(self.kind), (self.least, self.most), strict=True)
        known = {name: bound for name, bound in limits if bound is not None}
        chosen = {"enum": list(self.options)} if self.options else {}
        return {"type": self.kind, "title": self.label, **chosen, **known}

    def read(self, text: str) -> Any:
        """A typed line as its value. Raises: ValueError: it is none, and what is expected."""
        text = text.strip()
        if self.kind == "boolean":
            if text.lower() not in (*YES, *NO):
                raise ValueError(WORDS[self.kind])
            return text.lower() in YES
        try:
            value = text if self.kind == "string" else float(text)
            if self.kind == "integer":
                value = int(text)
        except ValueError:
            raise ValueError(WORDS[self.kind]) from None
        return self.checked(value)

    def checked(self, value: Any) -> Any:
        """Raises: ValueError: a value that its schema does not allow."""
        fits = {
            "string": isinstance(value, str),
            "boolean": type(value) is bool,
            "integer": type(value) is int,
            "number": type(value) is int or (type(value) is float and math.isfinite(value)),
        }
        if not fits[self.kind] or (self.options and value not in self.options):
            raise ValueError(self.described())
        size = len(value) if isinstance(value, str) else value
        if isinstance(value, str) and len(value) > MAX_ANSWER:
            raise ValueError(f"at most {MAX_ANSWER} characters")
        if self.kind != "boolean" and not (
            (self.least is None or size >= self.least) and (self.most is None or size <= self.most)
        ):
            raise ValueError(f"from {self.least} to {self.most}")
        return value


@dataclass(frozen=True, slots=True)
class Form:
    """One question of a tool's."""

    plugin: str  # "publisher/name" of who asks
    message: str
    fields: tuple[Field, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """As JSON Schema, what MCP calls `requestedSchema`."""
        return {
            "type": "object",
            "properties": {one.name: one.schema for one in self.fields},
            "required": [one.name for one in self.fields if one.required],
        }

    @classmethod
    def of(cls, plugin: str, message: str, schema: Mapping[str, Any]) -> "Form":
        """The form whose `schema` this is."""
        fields = (
            Field(
                name,
                row["type"],
                row["title"],
                name in schema["required"],
                tuple(row.get("enum", ())),
                *(row.get(bound) for bound in bounds_of(row["type"])),
            )
            for name, row in schema["properties"].items()
        )
        return cls(plugin, message, tuple(fields))

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """An answer as it may be given back. Raises: ValueError: it does not fit."""
        known = {field.name: field for field in self.fields}
        if unknown := given.keys() - known.keys():
            raise ValueError(f"{min(unknown)} is not asked for")
        if missing := [one.name for one in self.fields if one.required and one.name not in given]:
            raise ValueError(f"{missing[0]} is missing")
        return {name: known[name].checked(value) for name, value in given.items()}


@dataclass(frozen=True, slots=True)
class ElicitResult:
    """What became of a form."""

    action: Action
    content: Mapping[str, Any] = field(default_factory=dict)  # of one that was filled in


# Puts a form to the owner. Raises: TimeoutError: no answer in time.
Elicit = Callable[[Form], Awaitable[ElicitResult]]
