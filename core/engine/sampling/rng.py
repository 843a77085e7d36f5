"""One request's random numbers.

Knows a seed. Knows nothing of tokens.
Always: the n-th token of an answer is drawn with the n-th number, however many steps the answer
took; so guessed tokens change neither the distribution nor, for a seed, the text.
"""

from random import Random


class RandomStream:
    """Numbers in [0, 1) that can be looked at before it is known how many of them are used."""

    def __init__(self, seed: int | None) -> None:
        """A fresh seed where `seed` is None."""
        self._source = Random() if seed is None else Random(seed)
        self._seen: list[float] = []

    def peek(self, place: int) -> float:
        """The number `place` places after the last one taken."""
        while len(self._seen) <= place:
            self._seen.append(self._source.random())
        return self._seen[place]

    def take(self, count: int) -> None:
        """Use up `count` numbers."""
        if count:
            self.peek(count - 1)
            del self._seen[:count]
