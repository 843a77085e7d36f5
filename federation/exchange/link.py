"""Carries letters to parties and their answers back.

Knows names, bytes and time limits. Knows nothing of what a letter says; signing and reading are the callers'.
Always: `ask` yields each party's answer at most once, in any order, and ends when all answered, when the rest is
known to be gone, or when the time is up. Who did not answer is missing from what it yields; nothing is raised.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from ...core import log
from ...core.errors import QuietchoirError

logger = log.get("federation.link")


class Link(Protocol):
    """The coordinator's way to its members."""

    def present(self) -> frozenset[str]:
        """Members that can be asked now."""
        ...

    def ask(self, letters: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Deliver each letter; yield (party, answer) as answers arrive."""
        ...


class InProcessLink:
    """Parties of a simulation: each is a function from letter to answer, called in turn."""

    def __init__(self, parties: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.parties = dict(parties)

    def present(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self.parties)

    def ask(self, letters: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Call the parties one after another; one that refuses is logged and missing. `timeout_s` has no use here."""
        del timeout_s
        for name, letter in letters.items():
            if name not in self.parties:
                continue
            try:
                answer = self.parties[name](letter)
            except QuietchoirError as error:
                logger.warning("%s did not answer: %s", name, error)
                continue
            yield name, answer
