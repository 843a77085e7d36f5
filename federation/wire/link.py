"""Carries letters to parties and their answers back.

Knows names, bytes and time limits. Knows nothing of what a letter says; signing and reading are the
callers'.
Always: `ask` yields each party's answer at most once, in any order, and ends when all answered,
when the rest is known to be gone, or when the time is up. Who did not answer is missing from what
it yields; nothing is raised. The same holds for `leave` and `collect`, for as many letters at a
time as there are members that are left alone with one.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class LeavingLink(Link, Protocol):
    """A `Link` that also leaves letters, for members whose work others do not wait for."""

    def leave(self, letters: Mapping[str, bytes], timeout_s: float) -> None:
        """Deliver each letter, and wait for nothing: the answers come out of `collect`, others are
        asked meanwhile.

        Who owes such an answer is not `present`, so that nobody is ever asked two things at once.
        """
        ...

    def collect(self, wait_s: float) -> Iterator[tuple[str, bytes]]:
        """Answers to letters that were left, as (party, answer): those that are here; if none
        is, the next, for `wait_s`.
        """
        ...

    def owing(self) -> frozenset[str]:
        """Members that were left a letter, and are still waited for."""
        ...

    def recall(self) -> None:
        """Take back every letter that was left and is not answered."""
        ...


class InProcessLink:
    """Parties of a simulation: each is a function from letter to answer, called in turn."""

    def __init__(self, parties: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.parties = dict(parties)
        self.left: dict[str, bytes] = {}  # letters that `collect` delivers

    def present(self) -> frozenset[str]:
        """All of them that owe nothing."""
        return frozenset(self.parties) - self.left.keys()

    def ask(self, letters: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Call the parties one after another; one that refuses is logged and missing.
        `timeout_s` has no use here.
        """
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

    def leave(self, letters: Mapping[str, bytes], timeout_s: float) -> None:
        """Keep them; a party works when its answer is collected."""
        del timeout_s
        self.left |= {name: letter for name, letter in letters.items() if name in self.parties}

    def collect(self, wait_s: float) -> Iterator[tuple[str, bytes]]:
        """The next answer, if any letter brings one; one at a time, so that whoever is grouped
        need not wait for all.
        """
        del wait_s
        while self.left:
            name = next(iter(self.left))
            answered = list(self.ask({name: self.left.pop(name)}, 0.0))
            if answered:
                yield answered[0]
                return

    def owing(self) -> frozenset[str]:
        """Whose letters are not delivered yet."""
        return frozenset(self.left)

    def recall(self) -> None:
        """Take back what was left."""
        self.left.clear()
