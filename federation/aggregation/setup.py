"""The coordinator's side of what comes before a sealed round: it brings the cohort to one key and
one adapter, unread.

Knows hellos and who must be asked for what. Knows no key and no adapter.
Always: who is set up says that it holds the same key and the same adapter as the others; members
check that for themselves, since both are part of what their masks are bound to.
"""

from collections import Counter
from collections.abc import Mapping

from ...core import log
from ...core.errors import MessageError, RoundAborted
from ..spec.policy import Policy
from ..wire.messages import RoundId
from . import parts
from .base import Common
from .experimental.dkg_server import Ask, DkgServer
from .experimental.key_group import KeyGroup, needed
from .hello import Hello
from .state_transfer import (
    DEAL,
    ENVELOPE,
    FOLLOW,
    FROM,
    GREET,
    HAND,
    OWN,
    SAYS,
    TAKE,
    TO,
    witnesses,
)

logger = log.get("federation.setup")


class KeyAndStateSetup:
    """One attempt's gathering. Args: ask: sends payloads, by member, and yields replies; size:
    values of the adapter.
    """

    def __init__(self, policy: Policy, round_id: RoundId, ask: Ask, size: int) -> None:
        self.policy, self.round_id, self._ask, self.size = policy, round_id, ask, size
        self.raw: dict[str, bytes] = {}  # hellos as they were signed
        self.hellos: dict[str, Hello] = {}

    def gather(self, cohort: tuple[str, ...]) -> Common:
        """Go through the stages that are needed: in most rounds the hello alone.

        Raises:
            RoundAborted: too few members share a key and an adapter.
        """
        self.hear(GREET, dict.fromkeys(cohort, b""))
        self.enough(len(self.hellos), "members greeted")
        key, key_group = (
            self.join_key()
            if self.policy.protection.key == "threshold"
            else (self.share_key(), b"")
        )
        steps, tag = self.share_state(key)
        members = tuple(
            sorted(
                name
                for name, one in self.hellos.items()
                if (one.key, one.state) == (key, (steps, tag))
            )
        )
        self.enough(len(members), "members hold the same key and adapter")
        return Common(members=members, key_id=key, steps=steps, tag=tag, key_group=key_group)

    def share_key(self) -> bytes:
        """Let a member that has the key seal it for the others; return its name. The dealer
        changes with the attempt.
        """
        held = Counter(one.key for one in self.hellos.values() if one.has_key)
        best = min(held, key=lambda key: (-held[key], key)) if held else b""
        dealers = sorted(name for name, one in self.hellos.items() if not held or one.key == best)
        lacking = {name for name, one in self.hellos.items() if not held or one.key != best}
        dealer = dealers[(self.round_id.attempt - 1) % len(dealers)]
        self.pass_on(DEAL, TAKE, dealer, lacking - {dealer}, {})
        return self.hellos[dealer].key

    def join_key(self) -> tuple[bytes, bytes]:
        """The joint key that enough members hold, and who made it; a new one if somebody here has
        no share of it.

        Raises:
            RoundAborted: no key is held by enough members, and none could be made.
        """
        key, key_group, holders = self.held()
        enough = bool(key) and len(holders) >= needed(
            self.policy, len(KeyGroup.decode(key_group).names)
        )
        if enough and len(holders) == len(self.hellos):
            return key, key_group
        try:
            hellos = DkgServer(self.policy, self.round_id, self._ask, self.size).form(
                tuple(sorted(self.hellos))
            )
        except RoundAborted as reason:
            if not enough:
                raise
            logger.warning("going on with the joint key of %d members: %s", len(holders), reason)
            return key, key_group
        for name, hello in hellos.items():
            try:
                self.note(name, hello)
            except MessageError as error:
                logger.warning("%s after the ceremony: %s", name, error)
        key, key_group, holders = self.held()
        if not key or len(holders) < needed(self.policy, len(KeyGroup.decode(key_group).names)):
            raise RoundAborted(
                f"{len(holders)} members hold a share of the same key; the "
                f"rehearsal failed or they fell silent"
            )
        return key, key_group

    def held(self) -> tuple[bytes, bytes, tuple[str, ...]]:
        """The joint key that most members hold, who made it, and its holders; nothing if nobody
        holds one.
        """
        pairs = Counter((one.key, one.key_group) for one in self.hellos.values() if one.has_key)
        for (key, key_group), _ in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0])):
            try:
                KeyGroup.decode(key_group).plan(self.policy, self.size)
            except MessageError as error:
                logger.warning("a joint key that cannot be: %s", error)
                continue
            return (
                key,
                key_group,
                tuple(
                    name
                    for name, one in self.hellos.items()
                    if (one.key, one.key_group) == (key, key_group)
                ),
            )
        return b"", b"", ()

    def share_state(self, key: bytes) -> tuple[int, bytes]:
        """Let a member with the adapter that counts seal it for those that have another; return its
        steps and tag.

        The one that counts: the furthest that enough members hold or can go back to.

        Raises:
            RoundAborted: no adapter is held by enough members.
        """
        holders = {name: one for name, one in self.hellos.items() if one.key == key}
        held = Counter(state for one in holders.values() for state in one.states)
        best = max((state for state in held if held[state] >= witnesses(self.policy)), default=None)
        if best is None:
            raise RoundAborted(
                f"no {witnesses(self.policy)} of {len(holders)} members hold the same adapter; "
                f"start the members that had it"
            )
        vouched = {
            SAYS + name: self.raw[name] for name, one in holders.items() if best in one.states
        }
        ahead = [name for name, one in holders.items() if one.state != best and best in one.states]
        self.hear(FOLLOW, dict.fromkeys(ahead, parts.join(vouched)))
        donors = sorted(name for name in holders if self.hellos[name].state == best)
        if not donors:
            raise RoundAborted(
                f"none of {len(ahead)} members went back to the adapter that they had in common"
            )
        behind = {name for name in holders if self.hellos[name].state != best}
        donor = donors[(self.round_id.attempt - 1) % len(donors)]
        self.pass_on(HAND, FOLLOW, donor, behind, vouched)
        return best

    def pass_on(
        self, ask_stage: str, give_stage: str, giver: str, takers: set[str], along: dict[str, bytes]
    ) -> None:
        """Have `giver` seal something for each of `takers`, and bring it to them. Raises
        RoundAborted if it does not.
        """
        if not takers and self.hellos[giver].has_key:
            return
        asked = parts.join({TO + name: self.raw[name] for name in sorted(takers)})
        given: dict[str, bytes] = {}
        for reply in self._ask(
            ask_stage, {giver: asked}, self.round_id, self.policy.recipe.stage_timeout_s
        ):
            try:
                given = parts.split(reply.payload)
                self.note(giver, given.pop(OWN, b""))
            except MessageError as error:
                raise RoundAborted(f"{giver} in stage {ask_stage}: {error}") from error
        if not given and not self.hellos[giver].has_key:
            raise RoundAborted(
                f"{giver} did not make a key for the others; the next attempt asks another member"
            )
        payloads = {
            name: parts.join({FROM: giver.encode("ascii"), ENVELOPE: given[TO + name], **along})
            for name in sorted(takers)
            if TO + name in given
        }
        self.hear(give_stage, payloads)

    def hear(self, stage: str, payloads: Mapping[str, bytes]) -> None:
        """Ask, and note the hellos that come back."""
        if not payloads:
            return
        for reply in self._ask(stage, payloads, self.round_id, self.policy.recipe.stage_timeout_s):
            try:
                self.note(reply.sender, reply.payload)
            except MessageError as error:
                logger.warning("%s in stage %s: %s", reply.sender, stage, error)

    def note(self, sender: str, hello: bytes) -> None:
        """Raises MessageError unless it is `sender`'s, signed for this attempt."""
        self.hellos[sender] = Hello.decode(hello, self.policy, self.round_id, sender)
        self.raw[sender] = hello

    def enough(self, found: int, what: str) -> None:
        """Raises RoundAborted below the federation's minimum."""
        need = self.policy.protection.min_cohort
        if found < need:
            raise RoundAborted(f"{found} {what}, need {need}; nothing was trained")
