"""A sum that t of n members open together: what making the key costs, and what a round under it
costs.

Knows the state machines of `crypto.experimental.threshold` and a clock. Knows no network and no
rounds.
Always: every member really runs every step, and the opened sum is compared with the one in clear.
"""

import gc
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...crypto.experimental.threshold import (
    REHEARSAL,
    Ceremony,
    Contributor,
    Gathering,
    Holder,
    KeyShare,
    PartialReader,
    ThresholdPlan,
    letter,
    request,
    together,
)
from ...crypto.identity.keys import Identity
from .stopwatch import Sample, clock

ROUND = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdCost:
    """What one circle paid; a value a member in each sample, seconds and bytes of one member."""

    openers: int  # t
    ceremony: Sample  # all steps, the rehearsal included
    ceremony_up: int
    ceremony_down: int
    encrypt: Sample
    up: int  # bytes of one contribution
    part: Sample
    part_bytes: int
    combine: Sample
    down: int  # bytes of the sum and of the parts, which come as one
    exact: bool


class _Member:
    """One member with a meter."""

    def __init__(self, plan: ThresholdPlan, name: str, identity: Identity) -> None:
        self.plan, self.name, self.identity = plan, name, identity
        self.seconds, self.sent, self.got = 0.0, 0, 0
        self.key_share: KeyShare
        before = clock()
        self.ceremony = Ceremony(plan, name, identity)
        self.seconds += clock() - before

    def card(self) -> bytes:
        """First step."""
        before = clock()
        card = self.ceremony.commit()
        return self._count(before, b"", card)

    def opening(self, cards: Mapping[str, bytes]) -> bytes:
        """Second step."""
        before = clock()
        opening = self.ceremony.open(cards)
        return self._count(before, b"".join(cards.values()), opening)

    def finish(self, messages: Mapping[str, bytes], rehearsal: bytes, responds: bool) -> bytes:
        """Third step, with a part of the rehearsal."""
        before = clock()
        self.key_share = self.ceremony.finish(messages)
        part = Holder(self.key_share, self.identity).respond(rehearsal) if responds else b""
        return self._count(before, b"".join(messages.values()), part)

    def settle(self, rehearsal: bytes, heard: Mapping[str, bytes]) -> None:
        """Fourth step."""
        before = clock()
        reader = PartialReader(self.key_share, rehearsal)
        for name, part in heard.items():
            reader.receive(name, part)
        reader.result()
        self._count(before, b"".join(heard.values()), b"")

    def _count(self, before: float, got: bytes, sent: bytes) -> bytes:
        self.seconds += clock() - before
        self.got, self.sent = self.got + len(got), self.sent + len(sent)
        return sent


def measure(parties: int, length: int, *, bits: int, seed: int) -> ThresholdCost:
    """A whole ceremony of `parties` members and one round of `length` values, opened by more than
    two thirds of them.

    Raises:
        CryptoError: the key or the sum did not open.
    """
    gc.collect()
    names = [f"member-{number:02}" for number in range(parties)]
    identities = {name: Identity.generate() for name in names}
    plan = ThresholdPlan(
        federation=secrets.token_bytes(32),
        epoch=1,
        attempt=0,
        members={name: one.public for name, one in identities.items()},
        threshold=2 * parties // 3 + 1,
        min_parties=min(3, parties),
        length=length,
        bits=bits,
    )
    members = {name: _Member(plan, name, identities[name]) for name in names}
    responders = names[: plan.threshold]
    _make_key(plan, members, responders)
    return _one_round(plan, members, responders, bits, seed)


def _make_key(plan: ThresholdPlan, members: Mapping[str, _Member], responders: list[str]) -> None:
    cards = {name: member.card() for name, member in members.items()}
    openings = {name: member.opening(cards) for name, member in members.items()}
    rehearsal = request(plan, REHEARSAL, responders, list(members))
    parts = {}
    for name, member in members.items():
        messages = {sender: letter(plan, opening, name) for sender, opening in openings.items()}
        parts[name] = member.finish(messages, rehearsal, name in responders)
    heard = {name: parts[name] for name in responders}
    for member in members.values():
        member.settle(rehearsal, heard)


def _one_round(
    plan: ThresholdPlan, members: Mapping[str, _Member], responders: list[str], bits: int, seed: int
) -> ThresholdCost:
    rng, clear = np.random.default_rng(seed), np.zeros(plan.length, np.int64)
    first = next(iter(members.values()))
    gathering, encrypting, up = Gathering(plan, first.key_share.key_id, ROUND), [], 0
    for name, member in members.items():
        values = rng.integers(0, 1 << bits, plan.length, dtype=np.uint64)
        before = clock()
        sent = Contributor(member.key_share, member.identity).encrypt(
            ROUND, plan.packing.pack(values)
        )
        encrypting.append(clock() - before)
        gathering.receive(name, sent)
        clear, up = clear + values.astype(np.int64), len(sent)
    asked, parts, responding = gathering.request(responders), {}, []
    for name in responders:
        before = clock()
        parts[name] = Holder(members[name].key_share, members[name].identity).respond(asked)
        responding.append(clock() - before)
    summed = together(plan, asked, parts)
    opened, combining = _opened(members, asked, gathering.total, summed)
    return ThresholdCost(
        openers=plan.threshold,
        ceremony=Sample(tuple(member.seconds for member in members.values())),
        ceremony_up=max(member.sent for member in members.values()),
        ceremony_down=max(member.got for member in members.values()),
        encrypt=Sample(tuple(encrypting)),
        up=up,
        part=Sample(tuple(responding)),
        part_bytes=len(parts[responders[0]]),
        combine=combining,
        down=len(gathering.total) + len(summed),
        exact=bool(np.array_equal(opened, clear)),
    )


def _opened(
    members: Mapping[str, _Member], asked: bytes, total: bytes, summed: bytes
) -> tuple[NDArray[np.int64], Sample]:
    """The sum as the last reader has it, and what three readers took."""
    taken = []
    for member in list(members.values())[:3]:
        before = clock()
        reader = PartialReader(member.key_share, asked, total)
        reader.receive_sum(summed)
        opened = member.plan.packing.unpack(reader.result())
        taken.append(clock() - before)
    return opened, Sample(tuple(taken))
