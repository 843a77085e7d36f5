"""A link inside one process: what is asked of a party is a call of its function.

Knows names, bytes and functions. Knows nothing of what a message asks for.
Always: parties are called one after another, in the order in which they were asked; whoever refuses
is missing from the answers.
"""

from collections.abc import Callable, Iterator, Mapping

from ..core import log
from ..core.errors import FederationError, QuietchoirError

logger = log.get("simulations.link")


class SilentError(FederationError):
    """A party does not answer, as its scenario says: nothing to tell anybody."""


class InProcessLink:
    """As `LeavingLink`, over functions from message to answer, called in turn."""

    def __init__(self, parties: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.parties = dict(parties)
        self.left: dict[str, bytes] = {}  # messages that `collect` delivers

    def present(self) -> frozenset[str]:
        """All of them that owe nothing."""
        return frozenset(self.parties) - self.left.keys()

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Call the parties one after another; one that refuses is logged and missing.
        `timeout_s` has no use here.
        """
        del timeout_s
        for name, message in messages.items():
            if name not in self.parties:
                continue
            try:
                answer = self.parties[name](message)
            except SilentError:
                continue
            except QuietchoirError as error:
                logger.warning("%s did not answer: %s", name, error)
                continue
            yield name, answer

    def leave(self, messages: Mapping[str, bytes], timeout_s: float) -> None:
        """Keep them; a party works when its answer is collected."""
        del timeout_s
        self.left |= {name: message for name, message in messages.items() if name in self.parties}

    def collect(self, wait_s: float) -> Iterator[tuple[str, bytes]]:
        """The next answer, if any message brings one; one at a time, so that whoever is grouped
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
        """Whose messages are not delivered yet."""
        return frozenset(self.left)

    def cancel(self) -> None:
        """Take back what was left."""
        self.left.clear()
