"""What a reasoning model thinks before it answers, told apart from the answer.

Knows the marks `<think>` and `</think>`, which Qwen 3, DeepSeek-R1 and most of their kin write, and
pieces of text. Knows nothing of models or prompts.
Always: nothing of the text is lost or changed, pieces put together are what the model wrote; what
is thought is never read as a call, and is not shown to the model again.

Not covered: thoughts in other marks (gpt-oss' channels), or after the answer has begun; they are
text.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from .context import Message
from .events import Text

OPENING, CLOSING = "<think>", "</think>"
# a thought that was cut has no end
PAST = re.compile(r"\A\s*<think>(?:.*?</think>\s*|.*\Z)", re.DOTALL)


class ThoughtReader:
    """Reads one answer as it comes.

    Args:
        begun: the prompt ends with the opening mark, as DeepSeek-R1's does.
    """

    def __init__(self, *, begun: bool = False) -> None:
        self.mark: str | None = CLOSING if begun else OPENING  # that is waited for; None: neither
        self.thinks = begun
        self.held = Text("")  # that may be the beginning of the mark
        self.opened = False  # just now: a line's end belongs to the mark

    def push(self, piece: Text) -> Iterator[Text]:
        """What of the answer is known to be thought or said."""
        if self.mark is None:
            yield piece
            return
        self.held = Text(self.held.text + piece.text, self.held.logprobs + piece.logprobs)
        if self.mark == OPENING:
            start = self.held.text.lstrip()
            if OPENING.startswith(start):
                return
            self.thinks = start.startswith(OPENING)
            self.mark = CLOSING if self.thinks else None
            if self.thinks:
                opening = self.held.text[: len(self.held.text) - len(start) + len(OPENING)]
                yield Text(opening, self.held.logprobs, thought=True, mark=True)
                self.held, self.opened = Text(start[len(OPENING) :]), True
        if self.mark == CLOSING:
            if self.opened and self.held.text:
                self.opened = False
                if self.held.text.startswith("\n"):
                    yield Text("\n", self.held.logprobs, thought=True, mark=True)
                    self.held = Text(self.held.text[1:])
            thought, closing, said = self.held.text.partition(CLOSING)
            if closing:
                known = thought.removesuffix("\n")
                if known or self.held.logprobs:
                    yield Text(known, self.held.logprobs, thought=True)
                yield Text(thought[len(known) :] + closing, thought=True, mark=True)
                self.mark, self.thinks = None, False
                self.held = Text(said)
            else:
                kept = next(
                    size
                    for size in range(len(CLOSING), -1, -1)
                    if thought.endswith((f"\n{CLOSING}"[:size], CLOSING[:size]))
                )
                known = thought[: len(thought) - kept]
                if known or self.held.logprobs:
                    yield Text(known, self.held.logprobs, thought=True)
                self.held = Text(thought[len(known) :])
                return
        yield from self.finish()

    def finish(self) -> Iterator[Text]:
        """The answer has ended: what was held back is what it was part of."""
        if self.held.text or self.held.logprobs:
            yield replace(self.held, thought=self.thinks)
        self.held = Text("")


def unmarked(piece: Text) -> str:
    """What a piece of a thought says: for where it is told apart, and its marks are not shown."""
    return "" if piece.mark else piece.text


def without_thoughts(message: Message) -> Message:
    """A past answer as templates of reasoning models want it: a mark that it does not begin with is
    what it speaks of.
    """
    if message.role != "assistant":
        return message
    return replace(message, content=PAST.sub("", message.content, count=1))
