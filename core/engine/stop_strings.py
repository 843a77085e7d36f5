"""Texts that end an answer.

Knows characters. Knows nothing of tokens: a stop text may begin in one token and end in a later
one.
Always: the text that comes out is the same however the text that goes in is cut into pieces.
"""

from collections.abc import Sequence


class StopTexts:
    """Lets text through up to the first stop text, and holds back what may be the beginning of
    one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: not empty texts."""
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that can go out now, and whether a stop text was met (it and what follows are
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
