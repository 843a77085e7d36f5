"""One request's tokens, turned into text for its caller.

Knows stop tokens, stop strings and the length limit. Knows nothing of batches or blocks.
Always: text goes out in whole characters; nothing of a stop string or of what follows it ever does,
and what goes out is the same however the answer was cut into tokens.
"""

from collections.abc import Container, Sequence

from ..models.tokenizer.tokenizer import Tokenizer
from .request import FinishReason, Generation, GenerationRequest, TextDelta
from .sampling.logprobs import TokenLogprobs


class OutputProcessor:
    """Reads tokens, writes text."""

    def __init__(
        self, request: GenerationRequest, generation: Generation, tokenizer: Tokenizer
    ) -> None:
        self.generation = generation
        self._max_tokens = request.sampling_params.max_tokens
        self._stop_tokens: Container[int] = tokenizer.stop_tokens
        self._stream = tokenizer.stream()
        self._stop_strings = StopStrings(request.sampling_params.stop)

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
        self.generation.deliver(TextDelta(text, token, finish_reason, logprobs))
        return finish_reason is not None

    def _rest(self) -> str:
        """What stream and stop strings still hold at the end."""
        text, met = self._stop_strings.push(self._stream.finish())
        return text if met else text + self._stop_strings.finish()


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
