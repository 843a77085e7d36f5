"""A member's side of the ceremony that makes a joint key, once an epoch; letter by letter through
the coordinator.

    commit   who takes part; answer a card                     reveal   everybody's cards; answer a
                                                                        part and dealt shares
    finish   everybody's letters; chosen members answer a part of the rehearsal
    settle   those parts: zeros come out, or the key is not kept

Knows the order of the four and `crypto.experimental.threshold`. Knows nothing of the coordinator's
side or of rounds.
Always: who takes part is checked against the member's own signed file; the coordinator relays what
it cannot read or alter; a key is kept only after its rehearsal; a refused letter changes nothing; a
new ceremony forgets one that was not finished.
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

    place: RoundId
    plan: ThresholdPlan
    ceremony: Ceremony
    expects: str = REVEAL
    holding: KeyShare | None = None
    request: bytes = b""


class DkgClient:
    """One member, making joint keys."""

    def __init__(self, policy: Policy, name: str, identity: Identity, store: ClientStore) -> None:
        self.policy, self.name, self.identity, self.store = policy, name, identity, store
        self._ongoing: _Ongoing | None = None

    def answer(self, place: RoundId, stage: str, payload: bytes) -> bytes:
        """One stage. `settle` answers nothing; the caller greets.

        Raises:
            MessageError: out of order, or of another ceremony; nothing was changed.
            ProtocolError, AuthenticationError, ThresholdError: as `Ceremony`, `Holder` and
            `PartialReader`; nothing was revealed.
        """
        if stage == COMMIT:
            return self.commit(place, payload)
        ongoing = self._ongoing
        if ongoing is None or ongoing.place != place or ongoing.expects != stage:
            expected = (
                "no ceremony"
                if ongoing is None
                else (f"{ongoing.expects} of attempt {ongoing.place.attempt}")
            )
            raise MessageError(
                f"found stage {stage!r} of attempt {place.attempt}, expected {expected}; refused"
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
        holding = b"" if one.holding is None else one.holding.encode()
        header = json.dumps(
            {
                "circle": KeyGroup.of(one.plan).encode().decode("ascii"),
                "expects": one.expects,
                "ceremony": len(ceremony),
                "request": one.request.hex(),
                "memory": "" if one.holding is None else one.holding.memory.encode().hex(),
            }
        ).encode("ascii")
        return len(header).to_bytes(4, "big") + header + ceremony + holding

    def thaw(self, place: RoundId, kept: bytes) -> None:
        """Go on where `freeze` left it."""
        if not kept:
            return
        start = 4 + int.from_bytes(kept[:4], "big")
        fields = json.loads(kept[4:start])
        plan = KeyGroup.decode(fields["circle"].encode("ascii")).plan(self.policy, self.store.size)
        end = start + fields["ceremony"]
        ceremony = Ceremony.thaw(kept[start:end], plan, self.name, self.identity)
        holding = None
        if kept[end:]:
            memory = ThresholdMemory.decode(bytes.fromhex(fields["memory"]))
            holding = KeyShare.decode(kept[end:], memory)
        self._ongoing = _Ongoing(
            place, plan, ceremony, fields["expects"], holding, bytes.fromhex(fields["request"])
        )

    def commit(self, place: RoundId, payload: bytes) -> bytes:
        """Check who takes part, draw fresh secrets, answer a card.

        Raises:
            MessageError: not a ceremony of this attempt, or not one that this member's file allows.
        """
        asked = parts.split(payload)
        if set(asked) != {NUMBER, NAMES} or len(asked[NUMBER]) != 1:
            raise MessageError("a ceremony without its number and its members; refused")
        circle = KeyGroup.at(place, asked[NUMBER][0], KeyGroup.decode(asked[NAMES]).names)
        if circle.encode() != asked[NAMES]:
            raise MessageError("a ceremony of another attempt; refused")
        if self.name not in circle.names:
            raise MessageError("a ceremony without this member; refused")
        plan = circle.plan(self.policy, self.store.size)
        ceremony = Ceremony(plan, self.name, self.identity)
        card = ceremony.commit()
        self._ongoing = _Ongoing(place, plan, ceremony)
        return card

    def reveal(self, ongoing: _Ongoing, given: dict[str, bytes]) -> bytes:
        """Everybody's cards; answer this member's opening. Raises as `Ceremony.open`."""
        opening = ongoing.ceremony.open(named(given, CARD))
        ongoing.expects = FINISH
        return opening

    def finish(self, ongoing: _Ongoing, given: dict[str, bytes]) -> bytes:
        """Everybody's letters; answer a part of the rehearsal if this member is one of its
        responders.

        Raises:
            MessageError: a request for something else than the rehearsal; and as `parse` and
            `Ceremony.finish`.
        """
        request = given.get(REQUEST, b"")
        number, responders, _ = parse(ongoing.plan, request)
        if number != REHEARSAL:
            raise MessageError("a new key is rehearsed before anything else; refused")
        holding = ongoing.ceremony.finish(named(given, LETTER))
        ongoing.holding, ongoing.request, ongoing.expects = holding, request, SETTLE
        return (
            Holder(holding, self.identity).respond(request) if holding.number in responders else b""
        )

    def settle(self, ongoing: _Ongoing, given: dict[str, bytes]) -> bytes:
        """The rehearsal's parts; keep the key if it opens to zeros. Raises as `PartialReader`."""
        assert ongoing.holding is not None  # `finish` came before
        reader = PartialReader(ongoing.holding, ongoing.request)
        for sender, part in named(given, PART).items():
            reader.receive(sender, part)
        reader.result()
        self.store.shelf.keep(self.policy.digest, ongoing.holding)
        self._ongoing = None
        return b""


def named(given: dict[str, bytes], prefix: str) -> dict[str, bytes]:
    """The parts whose names begin with `prefix`, by the rest of the name."""
    return {
        name.removeprefix(prefix): part for name, part in given.items() if name.startswith(prefix)
    }
