"""Carries messages to parties and their answers back; and what a coordinator signs and checks.

Knows names, bytes, time limits and, in `Messenger`, signatures. Knows nothing of what a message
asks for.
Always: `ask` yields each party's answer at most once, in any order, and ends when all answered,
when the rest is known to be gone, or when the time is up. Who did not answer is missing from what
it yields; nothing is raised. The same holds for `leave` and `collect`, for as many messages at a
time as there are members that are left alone with one. A reply that `Messenger` yields was signed
by the member that was asked, for the very message it was asked with; the others are logged and
missing.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ...core import log
from ...core.errors import MessageError
from ...crypto.identity.keys import Identity
from ..spec.policy import Policy
from .messages import Reply, RoundId, Task, decode_reply, encode_task

logger = log.get("federation.link")


class Link(Protocol):
    """The coordinator's way to its members."""

    def present(self) -> frozenset[str]:
        """Members that can be asked now."""
        ...

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """Deliver each message; yield (party, answer) as answers arrive."""
        ...


@runtime_checkable
class LeavingLink(Link, Protocol):
    """A `Link` that also leaves messages, for members whose work others do not wait for."""

    def leave(self, messages: Mapping[str, bytes], timeout_s: float) -> None:
        """Deliver each message, and wait for nothing: the answers come out of `collect`, others are
        asked meanwhile.

        Who owes such an answer is not `present`, so that nobody is ever asked two things at once.
        """
        ...

    def collect(self, wait_s: float) -> Iterator[tuple[str, bytes]]:
        """Answers to messages that were left, as (party, answer): those that are here; if none
        is, the next, for `wait_s`.
        """
        ...

    def owing(self) -> frozenset[str]:
        """Members that were left a message, and are still waited for."""
        ...

    def cancel(self) -> None:
        """Take back every message that was left and is not answered."""
        ...


@dataclass(slots=True)
class Traffic:
    """Bytes of messages in one attempt, by party."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)

    def of(self, names: Collection[str]) -> "Traffic":
        """Of these parties alone."""
        up, down = (
            {one: each[one] for one in each if one in names} for each in (self.up, self.down)
        )
        return Traffic(up, down)

    def without(self, names: Collection[str]) -> "Traffic":
        """Of the others."""
        return self.of({*self.up, *self.down}.difference(names))


class Outbox(Mapping[str, bytes]):
    """Messages of one stage, each made when it is looked at and kept until it is answered.

    So a link that asks one member after the other holds one of them at a time: an adapter of
    500,000 values for 1,000 members would be two gigabytes.

    Args:
        make: a member's message, of its name and payload.
    """

    def __init__(self, payloads: Mapping[str, bytes], make: Callable[[str, bytes], bytes]) -> None:
        self.payloads, self.make, self.made = payloads, make, dict[str, bytes]()
        self.answered = set[str]()

    def __getitem__(self, name: str) -> bytes:
        if name not in self.made:
            self.made[name] = self.make(name, self.payloads[name])
        return self.made[name]

    def __contains__(self, name: object) -> bool:
        return name in self.payloads and name not in self.answered

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.payloads if name not in self.answered)

    def __len__(self) -> int:
        return len(self.payloads) - len(self.answered)

    def __delitem__(self, name: str) -> None:
        self.answered.add(name)
        self.made.pop(name, None)


class Messenger:
    """What leaves a coordinator, and what comes back."""

    def __init__(self, policy: Policy, identity: Identity, link: Link) -> None:
        self.policy, self.identity, self.link = policy, identity, link
        self.traffic = Traffic()  # of this attempt

    def ask(
        self, stage: str, payloads: Mapping[str, bytes], round_id: RoundId, timeout_s: float
    ) -> Iterator[Reply]:
        """Sign, send, and yield the replies that are what they claim to be."""
        messages = self.sign(stage, payloads, round_id)
        yield from self.check(self.link.ask(messages, timeout_s), messages)

    def sign(self, stage: str, payloads: Mapping[str, bytes], round_id: RoundId) -> Outbox:
        """A message for each, its bytes noted when it is made."""

        def make(name: str, payload: bytes) -> bytes:
            task = Task(round_id=round_id, stage=stage, recipient=name, payload=payload)
            message = encode_task(task, self.policy, self.identity)
            self.traffic.down[name] = self.traffic.down.get(name, 0) + len(message)
            return message

        return Outbox(payloads, make)

    def check(
        self, answers: Iterable[tuple[str, bytes]], pending: "Outbox | dict[str, bytes]"
    ) -> Iterator[Reply]:
        """The answers that are what they claim to be; each takes its message out of `pending`."""
        for name, answer in answers:
            try:
                if name not in pending:
                    raise MessageError(f"{name} was not asked or has answered already; refused")
                reply = decode_reply(answer, self.policy, pending[name])
            except MessageError as error:
                logger.warning("%s", error)
                continue
            del pending[name]
            self.traffic.up[name] = self.traffic.up.get(name, 0) + len(answer)
            yield reply


class PendingMessages:
    """Messages of a post that are left with members, and answered whenever they are done; one at
    a time with each.
    """

    def __init__(self, messenger: Messenger, link: LeavingLink) -> None:
        self.messenger, self.link, self.pending = messenger, link, dict[str, bytes]()

    def leave(
        self, stage: str, payloads: Mapping[str, bytes], round_id: RoundId, timeout_s: float
    ) -> None:
        """Sign and send; the replies come out of `collect`."""
        messages = dict(self.messenger.sign(stage, payloads, round_id))
        # of an older message to them nobody waits any more: they were there to be asked again
        self.pending |= messages
        self.link.leave(messages, timeout_s)

    def collect(self, wait_s: float) -> Iterator[Reply]:
        """Replies to what was left, as `LeavingLink.collect`."""
        yield from self.messenger.check(self.link.collect(wait_s), self.pending)
        waited = self.link.owing()
        # the others were given up
        self.pending = {name: message for name, message in self.pending.items() if name in waited}

    def cancel(self) -> None:
        """Take back what was left and is not answered."""
        self.pending.clear()
        self.link.cancel()
