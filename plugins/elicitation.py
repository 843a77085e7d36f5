"""What a plugin may ask its owner while a call of it is waited for: one small form of plain values.

Knows MCP's `elicitation/create` in its form mode. Knows no screen: whoever can reach the owner
hands over `AskOwner`; where nobody can, nothing is offered and every form is refused.
Always: a form is flat, bounded and shown with its plugin's name before any value is typed; what is
given back are values that its schema allows, or nothing; no answer in time is none. The call's own
time does not run meanwhile.

Not covered: what the plugin makes of an answer; a form that asks for a secret. Pages to visit (the
URL mode) and lists of choices are refused.
Source: modelcontextprotocol.io, specification 2025-11-25, client/elicitation.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..core.screen import one_line
from .audit import Elicited, Outcome
from .hidden import legible
from .sampling import INVALID, REFUSED, HostRefusal

METHOD, CAPABILITY = "elicitation/create", "elicitation"
MAX_FORMS = 4  # during one call
MAX_FIELDS, MAX_OPTIONS = 8, 20
MAX_MESSAGE, MAX_LABEL, MAX_ANSWER = 1000, 200, 2000  # characters
ANSWER_S = 120.0  # its owner has so long
Kind = Literal["string", "number", "integer", "boolean"]
KINDS: tuple[Kind, ...] = ("string", "number", "integer", "boolean")
YES, NO = ("y", "yes", "true"), ("n", "no", "false")
WORDS: Mapping[Kind, str] = {
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "yes or no",
}


class FormRefused(HostRefusal):
    """A form that its owner is not shown."""


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

    def told(self) -> str:
        """What it takes, in words."""
        what = f"one of {', '.join(self.options)}" if self.options else WORDS[self.kind]
        return f"{self.label}: {what}{'' if self.required else ', or nothing'}"

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
            "number": type(value) in (int, float),
        }
        if not fits[self.kind] or (self.options and value not in self.options):
            raise ValueError(self.told())
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
    """One question of a plugin's."""

    plugin: str
    message: str
    fields: tuple[Field, ...]

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """An answer as it may be given back. Raises: ValueError: it does not fit."""
        known = {field.name: field for field in self.fields}
        if unknown := given.keys() - known.keys():
            raise ValueError(f"{min(unknown)} is not asked for")
        if missing := [one.name for one in self.fields if one.required and one.name not in given]:
            raise ValueError(f"{missing[0]} is missing")
        return {name: known[name].checked(value) for name, value in given.items()}


# the owner's answer; None: a no
AskOwner = Callable[[Form], Awaitable[Mapping[str, Any] | None]]


class OwnersForms:
    """The owner, as one plugin may ask.

    Args:
        tell: hears of every form, without what was asked or answered.
    """

    def __init__(
        self,
        plugin: str,
        ask: AskOwner,
        tell: Callable[[Elicited], None],
        answer_s: float = ANSWER_S,
    ) -> None:
        self.plugin, self._ask, self._tell, self._answer_s = plugin, ask, tell, answer_s
        self._turn = asyncio.Lock()
        self._count = 0

    def begin(self) -> None:
        """A call of the plugin's begins."""
        self._count = 0

    async def create(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The result of `elicitation/create`. Raises: FormRefused: and why."""
        form = form_of(self.plugin, params)
        self._count += 1
        if self._count > MAX_FORMS:
            raise FormRefused(REFUSED, f"more than {MAX_FORMS} forms in one call")
        begun = time.monotonic()
        outcome: Outcome = "failed"
        async with self._turn:
            try:
                async with asyncio.timeout(self._answer_s):
                    given = await self._ask(form)
                content = None if given is None else form.checked(given)
                outcome = "refused" if content is None else "ok"
            except (TimeoutError, ValueError):
                return {"action": "cancel"}
            finally:
                took = round(time.monotonic() - begun, 4)
                count = len(form.fields)
                row = Elicited(plugin=self.plugin, fields=count, seconds=took, outcome=outcome)
                self._tell(row)
        accepted = {"action": "accept", "content": content}
        return {"action": "decline"} if content is None else accepted


def form_of(plugin: str, params: Mapping[str, Any]) -> Form:
    """A request as a form. Raises: FormRefused: it is none that an owner is shown."""
    message, schema = params.get("message"), params.get("requestedSchema")
    if params.get("mode", "form") != "form":
        raise FormRefused(INVALID, "this host shows forms, and opens no pages")
    if not isinstance(message, str) or not 0 < len(message) <= MAX_MESSAGE:
        raise FormRefused(INVALID, f"message must be a text of 1 to {MAX_MESSAGE} characters")
    rows = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(rows, dict) or len(rows) > MAX_FIELDS:
        raise FormRefused(INVALID, f"requestedSchema must have at most {MAX_FIELDS} properties")
    asked = schema.get("required", []) if isinstance(schema, dict) else []
    required = asked if isinstance(asked, list) else []
    fields = (field_of(name, row, name in required) for name, row in rows.items())
    return Form(plugin, plain(message), tuple(fields))


def field_of(name: Any, row: Any, required: bool) -> Field:
    """One property. Raises: FormRefused: it is no plain value."""
    kind = row.get("type") if isinstance(row, dict) else None
    if kind not in KINDS or not isinstance(name, str):
        raise FormRefused(INVALID, f"{name!r}: expected one of {', '.join(KINDS)}, nothing nested")
    options = row.get("enum", [])
    if isinstance(choices := row.get("oneOf"), list):
        options = [one.get("const") if isinstance(one, dict) else None for one in choices]
    if not isinstance(options, list) or not all(isinstance(one, str) for one in options):
        raise FormRefused(INVALID, f"{name!r}: choices must be texts")
    labels = [row.get("title") or name, row.get("description") or ""]
    texts = [name, *options, *labels]
    short = all(isinstance(one, str) and len(one) <= MAX_LABEL for one in texts)
    if not short or len(options) > MAX_OPTIONS or legible(name) != name:
        raise FormRefused(
            INVALID, f"a field has at most {MAX_OPTIONS} choices and {MAX_LABEL} characters of each"
        )
    if any(plain(one) != one for one in options):
        raise FormRefused(INVALID, f"{name!r}: choices that a reader does not see whole, in a line")
    bounds = ("minLength", "maxLength") if kind == "string" else ("minimum", "maximum")
    least, most = (bound if type(bound := row.get(one)) in (int, float) else None for one in bounds)
    label = plain("; ".join(one for one in labels if one))
    return Field(name, kind, label, required, tuple(options), least, most)


def plain(text: str) -> str:
    """A plugin's text on one line, without gaps that could push the rest to the next one."""
    return " ".join(one_line(legible(text)).split())
