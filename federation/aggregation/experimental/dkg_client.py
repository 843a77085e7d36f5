"""A member's side of the ceremony that makes a joint key, once an epoch; message by message through
the coordinator.

    commit   who takes part; answer a card                     reveal   everybody's cards; answer a
                                                                        part and dealt shares
    finish   everybody's messages; chosen members answer a part of the rehearsal
    settle   those parts: zeros come out, or the key is not kept

Knows the order of the four and `crypto.experimental.threshold`. Knows nothing of the coordinator's
side or of rounds.
Always: who takes part is checked against the member's own signed file; the coordinator relays what
it cannot read or alter; a key is kept only after its rehearsal; a refused message changes nothing;
a new ceremony forgets one that was not finished.
"""

import json
from dataclasses import dataclass

from ....core.errors import MessageError
from ....crypto.experimental.threshold import (
    REHEARSAL,
    Ceremony,
    Holder,
    KeyShare,
    PartialReader,
    ThresholdMemory,
    ThresholdPlan,
    parse,
)
from ....crypto.identity.keys import Identity
from ...spec.policy import Policy
from ...store.client_store import ClientStore
from ...wire.messages import RoundId
from .. import parts
from .key_group import KeyGroup

COMMIT, REVEAL, FINISH, SETTLE = "commit", "reveal", "finish", "settle"
STAGES = (COMMIT, REVEAL, FINISH, SETTLE)
# names of parts
NUMBER, REQUEST, CARD, LETTER, PART = "number", "request", "card/", "letter/", "part/"
NAMES = "names"


@dataclass(slots=True)
class _Ongoing:
    """The one ceremony that this member is in."""

    round_id: RoundId
    plan: ThresholdPlan
    ceremony: Ceremony
    expects: str = REVEAL
    key_share: KeyShare | None = None
    request: bytes = b""


class DkgClient:
    """One member, making joint keys."""

    def __init__(self, policy: Policy, name: str, identity: Identity, store: ClientStore) -> None:
        self.policy, self.name, self.identity, self.store = policy, name, identity, store
        self._ongoing: _Ongoing | None = None

    def answer(self, round_id: RoundId, stage: str, payload: bytes) -> bytes:
        """One stage. `settle` answers nothing; the caller greets.

        Raises:
            MessageError: out of order, or of another ceremony; nothing was changed.
            ProtocolError, AuthenticationError, ThresholdError: as `Ceremony`, `Holder` and
            `PartialReader`; nothing was revealed.
        """
        if stage == COMMIT:
            return self.commit(round_id, payload)
        ongoing = self._ongoing
        if ongoing is None or ongoing.round_id != round_id or ongoing.expects != stage:
            expected = (
                "no ceremony"
                if ongoing is None
                else (f"{ongoing.expects} of attempt {ongoing.round_id.attempt}")
            )
            raise MessageError(
                f"found stage {stage!r} of attempt {round_id.attempt}, expected {expected}; refused"
            )
        steps = {REVEAL: self.reveal, FINISH: self.finish, SETTLE: self.settle}
        return steps[stage](ongoing, parts.split(payload))

    def freeze(self) -> bytes:
        """The ceremony that this member is in, to go on with it elsewhere; nothing if it is in
        none. Hazard: as `Ceremony.freeze`.
        """
        if self._ongoing is None:
            return b""
        one = self._ongoing
        ceremony = one.ceremony.freeze()
        key_share = b"" if one.key_share is None else one.key_share.encode()
        header = json.dumps(
            {
                "circle": KeyGroup.of(one.plan).encode().decode("ascii"),
                "expects": one.expects,
                "ceremony": len(ceremony),
                "request": one.request.hex(),
                "memory": "" if one.key_share is None else one.key_share.memory.encode().hex(),
            }
        ).encode("ascii")
        return len(header).to_bytes(4, "big") + header + ceremony + key_share

    def thaw(self, round_id: RoundId, kept: bytes) -> None:
        """Go on where `freeze` left it."""
        if not kept:
            return
        start = 4 + int.from_bytes(kept[:4], "big")
        fields = json.loads(kept[4:start])
        plan = KeyGroup.decode(fields["circle"].encode("ascii")).plan(self.policy, self.store.size)
        end = start + fields["ceremony"]
        ceremony = Ceremony.thaw(kept[start:end], plan, self.name, self.identity)
        key_share = None
        if kept[end:]:
            memory = ThresholdMemory.decode(bytes.fromhex(fields["memory"]))
            key_share = KeyShare.decode(kept[end:], memory)
        self._ongoing = _Ongoing(
            round_id, plan, ceremony, fields["expects"], key_share, bytes.fromhex(fields["request"])
        )

    def commit(self, round_id: RoundId, payload: bytes) -> bytes:
        """Check who takes part, draw fresh secrets, answer a card.

        Raises:
            MessageError: not a ceremony of this attempt, or not one that this member's file allows.
        """
        asked = parts.split(payload)
        if set(asked) != {NUMBER, NAMES} or len(asked[NUMBER]) != 1:
            raise MessageError("a ceremony without its number and its members; refused")
        key_group = KeyGroup.at(round_id, asked[NUMBER][0], KeyGroup.decode(asked[NAMES]).names)
        if key_group.encode() != asked[NAMES]:
            raise MessageError("a ceremony of another attempt; refused")
        if self.name not in key_group.names:
            raise MessageError("a ceremony without this member; refused")
        plan = key_group.plan(self.policy, self.store.size)
        ceremony = Ceremony(plan, self.name, self.identity)
        card = ceremony.commit()
        self._ongoing = _Ongoing(round_id, plan, ceremony)
        return card

    def reveal(self, ongoing: _Ongoing, given: dict[str, bytes]) -> bytes:
        """Everybody's cards; answer this member's opening. Raises as `Ceremony.open`."""
        opening = ongoing.ceremony.open(named(given, CARD))
        ongoing.expects = FINISH
        return opening

    def finish(self, ongoing: _Ongoing, given: dict[str, bytes]) -> bytes:
        """Everybody's messages; answer a part of the rehearsal if this member is one of its
        responders.

        Raises:
            MessageError: a request for something else than the rehearsal; and as `parse` and
            `Ceremony.finish`.
        """
        request = given.get(REQUEST, b"")
        number, responders, _ = parse(ongoing.plan, request)
        if number != REHEARSAL:
            raise MessageError("a new key is rehearsed before anything else; refused")
        key_share = ongoing.ceremony.finish(named(given, LETTER))
        ongoing.key_share, ongoing.request, ongoing.expects = key_share, request, SETTLE
        return (
            Holder(key_share, self.identity).respond(request)
            if key_share.number in responders
            else b""
        )

    def settle(self, ongoing: _Ongoing, given: dict[str, bytes]) -> bytes:
        """The rehearsal's parts; keep the key if it opens to zeros. Raises as `PartialReader`."""
        assert ongoing.key_share is not None  # `finish` came before
        reader = PartialReader(ongoing.key_share, ongoing.request)
        for sender, part in named(given, PART).items():
            reader.receive(sender, part)
        reader.result()
        self.store.key_shares.keep(self.policy.digest, ongoing.key_share)
        self._ongoing = None
        return b""


def named(given: dict[str, bytes], prefix: str) -> dict[str, bytes]:
    """The parts whose names begin with `prefix`, by the rest of the name."""
    return {
        name.removeprefix(prefix): part for name, part in given.items() if name.startswith(prefix)
    }
