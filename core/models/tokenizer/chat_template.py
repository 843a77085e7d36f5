"""A conversation into pieces of text, of which the template's own letters are told from what people
wrote.

Knows the file's chat template and roles. Knows no tokens.
Always: the pieces together are what `transformers` renders; a piece is the template's only where
every letter of it stands in the template's source (or is a role, or a token that the file names).
So a user who types a role marker types letters, whatever the template does to them on the way.
Covered: forged role markers in contents. Not covered: what the model makes of convincing prose;
models whose markers are ordinary letters (Llama 2's `[INST]`), for nothing tells those apart; a
template that itself turns a user's letters into its own marks.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Template

from ...errors import ChatTemplateError, RequestError
from .provenance import TemplateText, own
from .template_sandbox import LONGEST_SOURCE, Bounded, budgeted

ROLES = ("system", "user", "assistant", "tool")
# what a message's thoughts are called; templates read the first
REASONING = ("reasoning_content", "thinking", "reasoning")
MAX_DEPTH = 64  # of lists and objects in a message


@dataclass(frozen=True, slots=True)
class RenderedPiece:
    """A stretch of a rendered conversation."""

    text: str
    # by a person, a tool or the model, or made on the way (numbers, dates, JSON); False: by the
    # template
    written: bool


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What of a conversation a template can write down."""

    system: bool = True  # a system message
    # the tools on offer: in the variable `tools`, in the system message's key of that name, nowhere
    tools: Literal["variable", "message", ""] = ""
    calls: bool = False  # calls of the past, and messages of the role "tool"
    parallel: bool = False  # several calls in one message


# What a template is shown to find that out.
PROBE = "quietchoir_probe"
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": PROBE,
        "description": "-",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
ASKED = {"role": "user", "content": "-"}


def probe_turn(calls: int) -> list[dict[str, Any]]:
    """A question, an answer that calls, and what the calls brought."""
    made = [
        {
            "id": f"12345678{number}",
            "type": "function",
            "function": {"name": f"{PROBE}{number}", "arguments": {"x": "-"}},
        }
        for number in range(calls)
    ]
    results = [
        {"role": "tool", "content": f"result{number}", "name": PROBE, "tool_call_id": call["id"]}
        for number, call in enumerate(made)
    ]
    return [ASKED, {"role": "assistant", "content": "", "tool_calls": made}, *results]


class ChatTemplate:
    """One model's way of writing a conversation down."""

    def __init__(self, source: str, named: Mapping[str, str] | None = None) -> None:
        """Take a template; it is read when a chat is first asked for, and a model whose template
        cannot be still completes.

        Args:
            named: texts that it may ask for by name, such as "bos_token".
        """
        self.source = source
        self.named = {name: TemplateText(text) for name, text in (named or {}).items()}
        self._compiled: Template | None = None
        self._traits: TemplateTraits | None = None

    def compiled(self) -> Template:
        """The template, read.

        Raises:
            ChatTemplateError: there is none, or one that cannot be used.
        """
        if not self.source:
            raise ChatTemplateError(
                "this model has no chat template, so it cannot chat; use plain completion or an "
                "instruct model"
            )
        if len(self.source) > LONGEST_SOURCE:
            raise ChatTemplateError(
                f"the model's chat template has {len(self.source)} letters, at most "
                f"{LONGEST_SOURCE} are read; "
                "use plain completion or another model"
            )
        if self._compiled is None:
            try:
                self._compiled = Bounded().from_string(self.source)
            # beside TemplateError what Python's compiler says of deeply nested code
            except Exception as error:
                raise ChatTemplateError(
                    f"the model's chat template cannot be read ({error!s:.300}); use plain "
                    f"completion or another model"
                ) from error
        return self._compiled

    @property
    def traits(self) -> TemplateTraits:
        """What it can write down, found by having it do so.

        Raises:
            ChatTemplateError: there is no template, or one that cannot be used.
        """
        if self._traits is None:
            listed = [{"role": "system", "content": "-", "tools": json.dumps([PROBE_TOOL])}, ASKED]
            self._traits = TemplateTraits(
                system=self._shows([{"role": "system", "content": PROBE}, ASKED], [PROBE]),
                tools="variable"
                if self._shows([ASKED], [PROBE], [PROBE_TOOL])
                else "message"
                if self._shows(listed, [PROBE])
                else "",
                calls=self._shows(probe_turn(1), [f"{PROBE}0", "result0"]),
                parallel=self._shows(probe_turn(2), [f"{PROBE}0", f"{PROBE}1", "result1"]),
            )
        return self._traits

    def _shows(
        self,
        messages: Sequence[Mapping[str, Any]],
        words: Sequence[str],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> bool:
        try:
            pieces = self.render(messages, add_generation_prompt=True, tools=tools)
        except ChatTemplateError:
            raise
        except RequestError:
            return False
        text = "".join(piece.text for piece in pieces)
        return all(word in text for word in words)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RenderedPiece]:
        """Write the conversation down, contents kept apart.

        Args:
            messages: each with "role" and "content"; whatever else is in them, as JSON has it, the
            template may read. tools: descriptions, where the template shows them.

        Raises:
            RequestError: no message, an unknown role, no content, or a conversation that the
            template refuses. ChatTemplateError: no chat template, or one that cannot be used.
        """
        template = self.compiled()
        check(messages)
        shown, offered = (
            [as_shown(message) for message in messages],
            plain(list(tools)) if tools else None,
        )
        letters = sum(map(len, texts([shown, offered])))
        variables = {
            "messages": shown,
            "tools": offered,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self.named,
        }
        try:
            text = template.render(budgeted(variables, len(messages), letters))
        except Exception as error:  # a template is a program: it may divide by zero as well
            raise RequestError(
                f"the model's chat template refuses this conversation: {error!s:.300}"
            ) from error
        return split(text)


def check(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what no template can write down, and roles that would become template text."""
    if not messages:
        raise RequestError("a conversation needs at least one message")
    for place, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise RequestError(
                f"message {place} has role {role!r:.40}; expected one of {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise RequestError(
                f"message {place} has content of type {type(content).__name__}; expected text"
            )


def as_shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: the role is ours, one of four words; thoughts go by their
    usual name.

    Source: `transformers`, which leaves out what is None and names thoughts in this way.
    """
    shown = {
        key: TemplateText(value) if key == "role" else plain(value)
        for key, value in message.items()
        if value is not None
    }
    thoughts = next((shown[key] for key in REASONING if key in shown), None)
    return (
        shown
        if thoughts is None
        else {"thinking": thoughts, **shown, "reasoning_content": thoughts}
    )


def plain(value: Any, depth: int = 0) -> Any:
    """A copy of what JSON can say, in plain types, which have no methods of their own that a
    template could call.

    Raises:
        RequestError: something else, or nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise RequestError(f"a message holds lists and objects {MAX_DEPTH} deep; send it flatter")
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return "".join(value)
    raise RequestError(
        f"a message holds a {type(value).__name__}; expected texts, numbers, lists and objects"
    )


def texts(value: Any) -> Iterator[str]:
    """Every text inside a value, names of fields too; a number counts as its digits."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif value is not None:
        yield value if isinstance(value, str) else json.dumps(value)


def split(text: str) -> list[RenderedPiece]:
    """A rendered template, cut where what the template wrote and what it was given meet."""
    stretches = re.finditer(rb"\x00+|\x01+", own(text))
    return [
        RenderedPiece(str.__getitem__(text, slice(*found.span())), found[0][0] == 0)
        for found in stretches
    ]
