"""One request's tokens, turned into pieces for its caller.

Knows stop tokens, stop texts and the length limit. Knows nothing of batches or blocks.
Always: text goes out in whole characters; nothing of a stop text or of what follows it ever does.
"""

from collections.abc import Container

from ..models.tokenizer.tokenizer import Tokenizer
from .request import Finished, Generation, GenerationRequest, Likely, Piece
from .stop_strings import StopTexts


class Answer:
    """Reads tokens, writes pieces."""

    def __init__(
        self, request: GenerationRequest, generation: Generation, tokenizer: Tokenizer
    ) -> None:
        self.generation = generation
        self._max_tokens = request.max_tokens
        self._stop_tokens: Container[int] = tokenizer.stop_tokens
        self._stream = tokenizer.stream()
        self._stops = StopTexts(request.stop)

    def accept(self, token: int, likely: Likely | None = None, *, complete: bool = False) -> bool:
        """Deliver the piece that `token` makes; True if it is the last one.

        Args:
            complete: the answer's grammar lets nothing follow.
        """
        if token in self._stop_tokens:
            self.generation.deliver(Piece(self._rest(), token, "stop"))
            return True
        text, met = self._stops.push(self._stream.push(token))
        finished: Finished | None = None
        if met:
            finished = "stop"
        elif complete or self.generation.completion_tokens + 1 >= self._max_tokens:
            finished = "stop" if complete else "length"
            text += self._rest()
        self.generation.deliver(Piece(text, token, finished, likely))
        return finished is not None

    def _rest(self) -> str:
        """What stream and stop texts still hold at the end."""
        text, met = self._stops.push(self._stream.finish())
        return text if met else text + self._stops.finish()
