"""A conversation into pieces of text, of which the model's own marks are told from what people wrote.

Knows the file's chat template and roles. Knows no tokens.
Always: what stands in a message comes out as `Written`, never as template text, whatever it looks like. So a user who
types a role marker types letters.
Covered: forged role markers in contents. Not covered: what the model makes of convincing prose.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ModelFileError, RequestError
from .bounded import LONGEST_SOURCE, Bounded, budgeted

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation."""

    text: str
    written: bool  # by a person, a tool or the model; False: by the template


class ChatTemplate:
    """One model's way of writing a conversation down."""

    def __init__(self, source: str, named: Mapping[str, str] | None = None) -> None:
        """Compile the template; `named` are texts that it may ask for by name, such as "bos_token".

        Raises:
            ModelFileError: the file's template is not valid.
        """
        if len(source) > LONGEST_SOURCE:
            raise ModelFileError(f"the model's chat template has {len(source)} letters, at most {LONGEST_SOURCE} are read")
        self.named = dict(named or {})
        try:
            self.template = Bounded().from_string(source) if source else None
        except Exception as error:  # beside TemplateError what Python's compiler says of deeply nested code
            raise ModelFileError(f"the model's chat template cannot be read ({error}); choose another model") from error

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> list[Piece]:
        """Write the conversation down, contents kept apart.

        Raises:
            RequestError: no message, an unknown role, no content, or a conversation that the template refuses.
            ModelFileError: the model has no chat template.

        Hazard: the template sees a stand-in for each content, so one that looks *into* contents (to trim or to cut them)
            does not find what it looks for; the contents then pass unchanged.
        """
        if self.template is None:
            raise ModelFileError(
                "this model has no chat template, so it cannot chat; use plain completion or an instruct model"
            )
        check(messages)
        # 128 random bits a stand-in: nobody who writes a content can know one.
        marks = {f"\u2063{secrets.token_hex(16)}\u2063": message["content"] for message in messages}
        stand_ins = [{"role": message["role"], "content": mark} for message, mark in zip(messages, marks, strict=True)]
        variables = {"messages": stand_ins, "add_generation_prompt": add_generation_prompt, "tools": None, **self.named}
        try:
            text = self.template.render(budgeted(variables, len(messages)))
        except Exception as error:  # a template is a program: it may divide by zero as well
            raise RequestError(f"the model's chat template refuses this conversation: {error!s:.300}") from error
        return split(text, marks)


def check(messages: Sequence[Mapping[str, str]]) -> None:
    """Refuse what no template can write down, and roles that would become template text."""
    if not messages:
        raise RequestError("a conversation needs at least one message")
    for place, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise RequestError(f"message {place} has role {role!r:.40}; expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise RequestError(f"message {place} has content of type {type(content).__name__}; expected text")


def split(text: str, marks: Mapping[str, str]) -> list[Piece]:
    """Cut a rendered template at its stand-ins and put the contents in."""
    pieces = []
    for part in re.split("(\u2063[0-9a-f]{32}\u2063)", text):
        if part:
            pieces.append(Piece(marks.get(part, part), part in marks))
    return pieces
