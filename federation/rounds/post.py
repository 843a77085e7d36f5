"""The coordinator's letters: signed, sent, and their replies checked.

Knows signatures and how many bytes went where. Knows nothing of what a letter asks for.
Always: a reply that is yielded was signed by the member that was asked, for the very letter it was asked with; each at most
once; the others are logged and missing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ...core import log
from ...core.errors import MessageError
from ...crypto.keys import Identity
from ..exchange import messages
from ..exchange.link import Link
from ..exchange.messages import Place, Reply, Task
from ..membership.policy import Policy

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

    def ask(self, stage: str, payloads: Mapping[str, bytes], place: Place, timeout_s: float) -> Iterator[Reply]:
        """Sign, send, and yield the replies that are what they claim to be."""
        letters = {
            name: messages.encode_task(
                Task(place=place, stage=stage, recipient=name, payload=payload), self.policy, self.identity
            )
            for name, payload in payloads.items()
        }
        for name, letter in letters.items():
            self.traffic.down[name] = self.traffic.down.get(name, 0) + len(letter)
        answered: set[str] = set()
        for name, answer in self.link.ask(letters, timeout_s):
            try:
                if name in answered or name not in letters:
                    raise MessageError(f"{name} was not asked or has answered already; refused")
                reply = messages.decode_reply(answer, self.policy, letters[name])
            except MessageError as error:
                logger.warning("stage %s: %s", stage, error)
                continue
            answered.add(name)
            self.traffic.up[name] = self.traffic.up.get(name, 0) + len(answer)
            yield reply
