"""One request's tokens, turned into text for its caller.

Knows stop tokens, stop strings, the length limit and what a loop looks like. Knows nothing of
batches or blocks.
Always: text goes out in whole characters; nothing of a stop string or of what follows it ever does,
and what goes out is the same however the answer was cut into tokens.
"""

import re
from collections.abc import Container, Sequence

from ..models.tokenizer.tokenizer import Tokenizer
from .request import FinishReason, Generation, GenerationRequest, TextDelta
from .sampling.logprobs import TokenLogprobs

LOOP_WINDOW = 4096  # characters of an answer's end in which a loop is looked for
LOOP_PROBE = 48  # the last so many must have stood there before
LOOP_CHARACTERS = 240  # that do nothing but repeat, at least
LOOP_REPEATS = 3  # of the same text, word by word
LOOP_NUMBERED_REPEATS = 4  # of the same text but for its numbers, as in a list
LOOP_LETTERS = 24  # of a text that is the same but for its numbers: tables and counting have fewer
DIGITS = re.compile(r"\d+")


class OutputProcessor:
    """Reads tokens, writes text."""

    def __init__(
        self, request: GenerationRequest, generation: Generation, tokenizer: Tokenizer
    ) -> None:
        self.generation = generation
        params = request.sampling_params
        self._max_tokens = params.limit
        # a form ends by itself, and its parts may be alike: rows of a table, numbers of a list
        form = params.constraint is not None and not params.constraint.trigger
        self._loop_guard = LoopGuard() if params.loop_guard and not form else None
        self._stop_tokens: Container[int] = tokenizer.stop_tokens
        self._stream = tokenizer.stream()
        self._stop_strings = StopStrings(params.stop)

    def accept(
        self, token: int, logprobs: TokenLogprobs | None = None, *, complete: bool = False
    ) -> bool:
        """Deliver what `token` adds; True if it is the last.

        Args:
            complete: the answer's grammar lets nothing follow.
        """
        if token in self._stop_tokens:
            self.generation.deliver(TextDelta(self._rest(), token, "stop"))
            return True
        text, met = self._stop_strings.push(self._stream.push(token))
        finish_reason: FinishReason | None = None
        if met:
            finish_reason = "stop"
        elif complete or self.generation.completion_tokens + 1 >= self._max_tokens:
            finish_reason = "stop" if complete else "length"
            text += self._rest()
        elif self._loop_guard is not None and self._loop_guard.push(text):
            finish_reason = "repetition"
            text += self._rest()
        self.generation.deliver(TextDelta(text, token, finish_reason, logprobs))
        return finish_reason is not None

    def _rest(self) -> str:
        """What stream and stop strings still hold at the end."""
        text, met = self._stop_strings.push(self._stream.finish())
        return text if met else text + self._stop_strings.finish()


class LoopGuard:
    """Sees when an answer does nothing any more but repeat itself.

    Not covered: loops that change a word each time, or come back after more than a third of
    `LOOP_WINDOW`.
    """

    def __init__(self) -> None:
        self._end = ""

    def push(self, text: str) -> bool:
        """The answer goes on with `text`; True if it has become a loop."""
        if not text:
            return False
        self._end = (self._end + text)[-LOOP_WINDOW:]
        if repeats(self._end, LOOP_REPEATS):
            return True
        numbered = DIGITS.sub("0", self._end)
        return numbered != self._end and repeats(numbered, LOOP_NUMBERED_REPEATS, LOOP_LETTERS)


def repeats(text: str, times: int, letters: int = 0) -> bool:
    """Is the end of `text` one text, of so many letters at least, `times` over or more?"""
    if len(text) < LOOP_CHARACTERS:
        return False
    before = text.rfind(text[-LOOP_PROBE:], 0, len(text) - 1)
    period = len(text) - LOOP_PROBE - before
    length = max(LOOP_CHARACTERS, times * period)
    if before < 0 or length > len(text):
        return False
    end = text[-length:]
    return end[period:] == end[:-period] and sum(map(str.isalpha, end[:period])) >= letters


class StopStrings:
    """Lets text through up to the first stop string, and holds back what may be the beginning of
    one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: not empty texts."""
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that can go out now, and whether a stop string was met (it and what follows are
        dropped).
        """
        pending = self._held + text
        # The one that is complete first: so it was met wherever the pieces were cut.
        met = min(
            ((at + len(stop), at) for stop in self._stops if (at := pending.find(stop)) >= 0),
            default=None,
        )
        if met is not None:
            self._held = ""
            return pending[: met[1]], True
        held = next(
            (
                n
                for n in range(min(self._longest - 1, len(pending)), 0, -1)
                if self._may_begin(pending[-n:])
            ),
            0,
        )
        self._held = pending[len(pending) - held :]
        return pending[: len(pending) - held], False

    def finish(self) -> str:
        """What was held back for nothing."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, ending: str) -> bool:
        return any(stop.startswith(ending) for stop in self._stops)
