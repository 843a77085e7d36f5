"""A later version of the federation file, taken by what runs already.

    operator   puts the newer file over the coordinator's copy
    coordinator, between rounds: reads it, shuts out who left, hands the file to every member that
    is there
    member     checks the owner's chain, takes part under the new version from the next message on

Knows files, the owner's chain and the message that carries it. Knows nothing of rounds or of
Flower.
Always: only a chain that goes on from the one that is held is taken, on disk first; who belongs
(members, owner, dates) changes between rounds, anything else ends the run with a sentence that
names it: start again, it goes on from the last whole round.

Hazard: the message is signed by no coordinator; the owner's signatures inside it are what counts. A
coordinator can keep a file from its members, it cannot make one up.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ...core import log
from ...core.errors import ConfigError, MessageError, QuietchoirError, RosterError
from ..events import OnEvent, RefusedEvent
from ..spec.policy import Policy
from . import roster

logger = log.get("federation.renewal")
MAGIC = b"QCF1"
MAX_BYTES = 8 << 20
# taken between rounds
ROSTER = frozenset({"version", "head", "owner", "founder", "expires", "members"})
AGAIN_S = 30.0  # a member that did not take the file is handed it again after this
HAND_S = 10.0  # a member has so long to take it

Ask = Callable[[Mapping[str, bytes], float], Iterator[tuple[str, bytes]]]


def needs_restart(old: Policy, new: Policy, taken: frozenset[str] = ROSTER) -> list[str]:
    """Names of the tables that differ and that a running program does not take."""
    before, after = old.table(), new.table()
    return sorted(name for name in after if name not in taken and before.get(name) != after[name])


class Watched:
    """The coordinator's copy of the file; `look` says when there is a later one.

    Args:
        kept: where the version that was accepted last is remembered.

    Raises:
        RosterError, ConfigError: as `roster.load`; or older than, or on another branch than, what
        is kept.
    """

    def __init__(self, path: Path, kept: Path, on_event: OnEvent) -> None:
        self.path, self.kept, self.on_event = path, kept, on_event
        self.seen = self.stamp()
        self.policy = roster.adopt(roster.read(path), kept, f"{path}: ")

    def look(self) -> Policy | None:
        """The later version, if one was put there since the last call; a file that cannot be taken
        is told and left.

        Raises:
            RosterError: the version in use is over.
        """
        if (stamp := self.stamp()) == self.seen:
            roster.check_time(self.policy, f"{self.path}: ")
            return None
        self.seen = stamp
        try:
            policy = roster.adopt(roster.read(self.path), self.kept, f"{self.path}: ")
        # half copied, or on another branch: the run goes on under what it has
        except (RosterError, ConfigError) as error:
            self.on_event(RefusedEvent(reason=str(error)))
            return None
        if policy == self.policy:
            return None
        self.policy = policy
        return policy

    def stamp(self) -> tuple[int, int, int]:
        """What changes when the file does."""
        try:
            status = self.path.stat()
        except OSError:
            return 0, 0, 0
        return status.st_mtime_ns, status.st_size, status.st_ino

    def message(self) -> bytes:
        """The version in use, for members."""
        return MAGIC + self.kept.read_bytes()


class UpdateSender:
    """Which members have the version in use; hands it to those that may not have it."""

    def __init__(self, watched: Watched, ask: Ask) -> None:
        self.watched, self.ask = watched, ask
        self.has: dict[str, int] = {}  # member → version it said that it holds
        self.tried: dict[str, float] = {}

    def send(self, present: frozenset[str]) -> None:
        """Give the file to whoever is present and does not have it; one that does not take it is
        asked again later.
        """
        version, now = self.watched.policy.version, time.monotonic()
        behind = [
            name
            for name in sorted(present)
            if self.has.get(name) != version and now - self.tried.get(name, -AGAIN_S) >= AGAIN_S
        ]
        if not behind:
            return
        self.tried |= dict.fromkeys(behind, now)
        message, digest = self.watched.message(), self.watched.policy.digest
        for name, answer in self.ask(dict.fromkeys(behind, message), HAND_S):
            if answer == digest:
                self.has[name] = version

    def renewed(self) -> None:
        """There is a later version: everybody is behind."""
        self.tried.clear()


class UpdateReceiver:
    """One member's party, under the newest version that it knows.

    Args:
        enter: makes the party of a version; raises if this node does not belong, or does not
        consent. taken: called with each version that was taken.
        end: called with the reason when the member must start again.
    """

    def __init__(
        self,
        policy: Policy,
        kept: Path,
        enter: "Callable[[Policy], Callable[[bytes], bytes]]",
        *,
        taken: Callable[[Policy], None],
        end: Callable[[QuietchoirError], None],
    ) -> None:
        self.policy, self.kept, self.enter, self.taken, self.end = policy, kept, enter, taken, end
        self.answer = enter(policy)

    def handle(self, message: bytes) -> bytes:
        """A message for the party, or a later federation file.

        Raises:
            QuietchoirError: refused; nothing was changed.
        """
        if message.startswith(MAGIC):
            return self.renew(message[len(MAGIC) :])
        roster.check_time(self.policy, "")
        return self.answer(message)

    def renew(self, text: bytes) -> bytes:
        """Take a later version; answer the digest of the version that is held then.

        Raises:
            RosterError: not on the owner's chain, older, or over. ConfigError: below this node's
            consent.
        """
        if len(text) > MAX_BYTES:
            raise MessageError(
                f"a federation file of {len(text)} bytes came, at most {MAX_BYTES} "
                f"expected; refused"
            )
        policy = roster.adopt(
            roster.read_text(text, "the coordinator's federation file: "),
            self.kept,
            "the coordinator's file: ",
        )
        if policy == self.policy:
            return policy.digest
        try:
            if changed := needs_restart(self.policy, policy, ROSTER | {"coordinator"}):
                raise RosterError(
                    f"version {policy.version} of {policy.name} changes {', '.join(changed)}; "
                    f"start this node again"
                )
            self.answer = self.enter(policy)
        # this node has no part in the new version, and the old one is over
        except QuietchoirError as error:
            self.end(error)
            raise
        self.policy = policy
        self.taken(policy)
        return policy.digest
