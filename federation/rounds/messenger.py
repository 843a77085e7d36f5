"""The coordinator's letters: signed, sent, and their replies checked.

Knows signatures and how many bytes went where. Knows nothing of what a letter asks for.
Always: a reply that is yielded was signed by the member that was asked, for the very letter it was
asked with; each at most once; the others are logged and missing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ...core import log
from ...core.errors import MessageError
from ...crypto.identity.keys import Identity
from ..spec.policy import Policy
from ..wire import message as messages
from ..wire.link import LeavingLink, Link
from ..wire.message import Place, Reply, Task

logger = log.get("federation.coordinator")


@dataclass(slots=True)
class Traffic:
    """Bytes of letters in one attempt, by party."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)


class Post:
    """What leaves a coordinator, and what comes back."""

    def __init__(self, policy: Policy, identity: Identity, link: Link) -> None:
        self.policy, self.identity, self.link = policy, identity, link
        self.traffic = Traffic()  # of this attempt

    def ask(
        self, stage: str, payloads: Mapping[str, bytes], place: Place, timeout_s: float
    ) -> Iterator[Reply]:
        """Sign, send, and yield the replies that are what they claim to be."""
        letters = self.sign(stage, payloads, place)
        yield from self.check(self.link.ask(letters, timeout_s), dict(letters))

    def sign(self, stage: str, payloads: Mapping[str, bytes], place: Place) -> dict[str, bytes]:
        """A letter for each, its bytes noted."""
        letters = {
            name: messages.encode_task(
                Task(place=place, stage=stage, recipient=name, payload=payload),
                self.policy,
                self.identity,
            )
            for name, payload in payloads.items()
        }
        for name, letter in letters.items():
            self.traffic.down[name] = self.traffic.down.get(name, 0) + len(letter)
        return letters

    def check(
        self, answers: Iterable[tuple[str, bytes]], owed: dict[str, bytes]
    ) -> Iterator[Reply]:
        """The answers that are what they claim to be; each takes its letter out of what is owed."""
        for name, answer in answers:
            try:
                if name not in owed:
                    raise MessageError(f"{name} was not asked or has answered already; refused")
                reply = messages.decode_reply(answer, self.policy, owed[name])
            except MessageError as error:
                logger.warning("%s", error)
                continue
            del owed[name]
            self.traffic.up[name] = self.traffic.up.get(name, 0) + len(answer)
            yield reply


class Outbox:
    """Letters of a post that are left with members, and answered whenever they are done; one at
    a time with each.
    """

    def __init__(self, post: Post, link: LeavingLink) -> None:
        self.post, self.link, self.owed = post, link, dict[str, bytes]()

    def leave(
        self, stage: str, payloads: Mapping[str, bytes], place: Place, timeout_s: float
    ) -> None:
        """Sign and send; the replies come out of `collect`."""
        letters = self.post.sign(stage, payloads, place)
        # of an older letter to them nobody waits any more: they were there to be asked again
        self.owed |= letters
        self.link.leave(letters, timeout_s)

    def collect(self, wait_s: float) -> Iterator[Reply]:
        """Replies to what was left, as `LeavingLink.collect`."""
        yield from self.post.check(self.link.collect(wait_s), self.owed)
        waited = self.link.owing()
        # the others were given up
        self.owed = {name: letter for name, letter in self.owed.items() if name in waited}

    def recall(self) -> None:
        """Take back what was left and is not answered."""
        self.owed.clear()
        self.link.recall()
