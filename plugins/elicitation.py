"""What a plugin may ask its owner while a call of it is waited for: one small form of plain values.

Knows MCP's `elicitation/create` in its form mode. Knows no screen: whoever asked for the call hands
over `Elicit`; where nobody can be asked, every form is refused.
Always: a form is flat, bounded and shown with its plugin's name before any value is typed; what is
given back are values that its schema allows, or nothing; no answer in time is none. The call's own
time does not run meanwhile.

Not covered: what the plugin makes of an answer; a form that asks for a secret. Pages to visit (the
URL mode) and lists of choices are refused.
Source: modelcontextprotocol.io, specification 2025-11-25, client/elicitation.
"""

import asyncio
import sys
import time
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from ..core.assistant.elicitation import (
    ANSWER_S,
    KINDS,
    Elicit,
    ElicitResult,
    Field,
    Form,
    bounds_of,
)
from ..core.screen import one_line
from .audit import Elicited, Outcome
from .hidden import legible
from .sampling import INVALID, REFUSED, HostRefusal

METHOD, CAPABILITY = "elicitation/create", "elicitation"
MAX_FORMS = 4  # during one call of the owner's, whoever of the plugins in it asks
MAX_FIELDS, MAX_OPTIONS = 8, 20
MAX_MESSAGE, MAX_LABEL = 1000, 200  # characters
SEEN = "LNP"  # general categories: letters, digits, punctuation
MAX_UNSEEN = 8  # in a row, of all other characters: marks, symbols, what is newer than the tables


class FormRefused(HostRefusal):
    """A form that its owner is not shown."""


class OwnersForms:
    """The owner, as one plugin may ask.

    Args:
        asked_by: who can put a form to the owner of the call that is waited for; None: nobody.
        tell: hears of every form, without what was asked or answered.
    """

    def __init__(
        self,
        plugin: str,
        asked_by: Callable[[], Elicit | None],
        tell: Callable[[Elicited], None],
        answer_s: float = ANSWER_S,
    ) -> None:
        self.plugin, self._asked_by, self._tell, self._answer_s = plugin, asked_by, tell, answer_s
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
        if (elicit := self._asked_by()) is None:
            raise FormRefused(REFUSED, "nobody can be asked during this call")
        begun = time.monotonic()
        outcome: Outcome = "failed"
        async with self._turn:
            try:
                async with asyncio.timeout(self._answer_s):
                    result = await elicit(form)
                accepted = result.action == "accept"
                content = form.checked(result.content) if accepted else {}
                outcome = "ok" if accepted else "refused"
            except (TimeoutError, ValueError):
                return {"action": "cancel"}
            finally:
                took = round(time.monotonic() - begun, 4)
                count = len(form.fields)
                row = Elicited(plugin=self.plugin, fields=count, seconds=took, outcome=outcome)
                self._tell(row)
        return {"action": result.action, **({"content": content} if accepted else {})}


def counted(elicit: Elicit) -> Elicit:
    """`elicit` during one call of the owner's, and the calls that plugins make for it: together
    they show `MAX_FORMS`. Raises: FormRefused: one more.
    """
    count = 0

    async def bounded(form: Form) -> ElicitResult:
        nonlocal count
        count += 1
        if count > MAX_FORMS:
            raise FormRefused(REFUSED, f"more than {MAX_FORMS} forms in one call")
        return await elicit(form)

    return bounded


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
    least, most = (
        bound if type(bound := row.get(one)) in (int, float) else None for one in bounds_of(kind)
    )
    if not all(bound is None or abs(bound) <= sys.float_info.max for bound in (least, most)):
        raise FormRefused(INVALID, f"{name!r}: bounds must be finite numbers")
    label = plain("; ".join(one for one in labels if one))
    return Field(name, kind, label, required, tuple(options), least, most)


def plain(text: str) -> str:
    """A plugin's text on one line, without gaps that could push the rest to the next one: of what
    is not surely seen only so much stays in a row, whatever it is called.
    """
    kept, unseen = list[str](), 0
    for letter in " ".join(one_line(legible(text)).split()):
        seen = "!" <= letter <= "~" or unicodedata.category(letter)[0] in SEEN
        unseen = 0 if seen else unseen + 1
        if unseen <= MAX_UNSEEN:
            kept.append(letter)
    return "".join(kept).rstrip()
