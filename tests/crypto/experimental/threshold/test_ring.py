"""The ring of a joint key under secure aggregation: exact for t members, closed to fewer, and
what a member keeps of it.
"""

from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import AuthenticationError, ProtocolError
from quietchoir.crypto.experimental.threshold import (
    Contributor,
    Holder,
    JointRing,
    JointTally,
    KeyShare,
    PartialReader,
    ThresholdMemory,
    closing,
    opened_bytes,
    request,
)
from quietchoir.crypto.experimental.threshold.lattice import lattice
from quietchoir.crypto.experimental.threshold.plan import PLAIN_MODULUS
from quietchoir.crypto.he.parameters import JOINT
from quietchoir.crypto.ring import BitRing
from quietchoir.crypto.secagg import SecAggClient
from quietchoir.tests.fakes.secagg import Cohort, Round
from quietchoir.tests.fakes.threshold import Circle, integers

LENGTH, COUNTERS = 300, 3


@pytest.fixture(scope="module")
def circle() -> Circle:
    return Circle(5, 3, length=LENGTH, min_parties=3)


def ring_of(circle: Circle, number: int, name: str | None = None) -> JointRing:
    """A member's ring, or the coordinator's."""
    counters = BitRing(length=COUNTERS, bits=8, parties=5)
    close = None
    if name is not None:
        close = closing(
            circle.plan, name, Contributor(circle.holdings[name], circle.identities[name]), number
        )
    return JointRing(
        circle.plan, circle.any.key_id, number, counters, bound=b"adapter", close=close
    )


def play(circle: Circle, number: int, silent: Any = None, stages: int = 5) -> tuple[Cohort, Round]:
    """A round of secure aggregation whose last three values are counters."""
    cohort = Cohort(5, length=LENGTH + COUNTERS, threshold=3)
    game = Round(cohort, number, ring=ring_of(circle, number))
    game.clients = {
        name: SecAggClient(
            game.config, name, cohort.identities[name], ring=ring_of(circle, number, name)
        )
        for name in cohort.names
    }
    return cohort, game.play(silent or {}, stages=stages)


@pytest.mark.parametrize(
    ("number", "silent"), [(1, {}), (2, {2: ["node-001"]}), (3, {2: ["node-000"], 3: ["node-004"]})]
)
def test_t_members_open_the_exact_sum_of_the_survivors_and_the_coordinator_the_counters(
    number: int, silent: Any, circle: Circle
) -> None:
    cohort, game = play(circle, number, silent)
    expected = cohort.sum(game.result.survivors)
    assert np.array_equal(game.result.total, expected[LENGTH:])
    tally, seal = game.server.values, ring_of(circle, number).sealing
    assert isinstance(tally, JointTally) and tally.gathering.contributors == game.result.survivors
    responders = circle.names[number - 1 : number + 2]
    asked = request(circle.plan, number, responders, game.result.survivors)
    reader = PartialReader(circle.holdings["node-001"], asked, opened_bytes(seal, tally.sealed_sum))
    for name in responders:
        reader.receive(name, circle.holders[name].respond(asked))
    assert np.array_equal(seal.packing.unpack(reader.result()), expected[:LENGTH])


def test_an_upload_is_refused_unless_it_is_its_members_own_for_this_key_and_round(
    circle: Circle,
) -> None:
    ring = ring_of(circle, 10, "node-000")
    payload = ring.close(ring.lift(np.zeros(LENGTH + COUNTERS, np.uint32)))
    assert len(payload) == ring.wire_bytes
    tally = JointTally(ring_of(circle, 10))
    for bad, error in (
        (payload[:-1], ProtocolError),
        (b"\x01" + payload[1:], AuthenticationError),  # another member's name on it
        (b"\x09" + payload[1:], ProtocolError),
        (payload[:500] + bytes([payload[500] ^ 1]) + payload[501:], AuthenticationError),
    ):
        with pytest.raises(error):
            tally.add(bad)
    with pytest.raises(AuthenticationError):
        JointTally(ring_of(circle, 11)).add(payload)
    assert not tally.gathering.contributors and not tally._counters.total().any()
    tally.add(payload)
    with pytest.raises(ProtocolError, match="before"):
        tally.add(payload)
    assert tally.gathering.contributors == ("node-000",)


def test_a_ring_without_a_share_cannot_close_and_rings_differ_in_name_when_keys_or_adapters_do(
    circle: Circle,
) -> None:
    ring = ring_of(circle, 12)
    with pytest.raises(RuntimeError):
        ring.close(ring.lift(np.zeros(LENGTH + COUNTERS, np.uint32)))
    with pytest.raises(RuntimeError):
        ring.crypto_worker.call("encrypt")
    counters = BitRing(length=COUNTERS, bits=8, parties=5)
    others = [
        JointRing(circle.plan, bytes(32), 12, counters, bound=b"adapter"),
        JointRing(circle.plan, circle.any.key_id, 12, counters, bound=b"another"),
    ]
    assert len({ring.name, *(other.name for other in others)}) == 3


def test_a_plaintext_added_in_the_dark_is_rounded_as_the_noise_bound_says() -> None:
    rows = np.random.default_rng(3).integers(0, PLAIN_MODULUS, (1, JOINT.degree), dtype=np.uint64)
    zero = np.zeros((1, 3, JOINT.degree), np.uint64)
    once = lattice().shift(zero, rows)
    assert np.array_equal(lattice().decode(once), rows)
    back = lattice().shift(once, (np.uint64(PLAIN_MODULUS) - rows) % np.uint64(PLAIN_MODULUS))
    assert max(abs(number) for number in integers(back[0])) <= 1  # what `Plan.noise` counts for it


def test_a_holding_comes_back_from_bytes_with_what_it_remembers(circle: Circle) -> None:
    key_share = circle.holdings["node-002"]
    key_share.memory.encrypt(77)
    again = KeyShare.decode(key_share.encode(), ThresholdMemory.decode(key_share.memory.encode()))
    assert (
        again.encode() == key_share.encode() and again.memory.encode() == key_share.memory.encode()
    )
    assert (again.plan, again.name, again.key_id, again.readers) == (
        key_share.plan, key_share.name, key_share.key_id, key_share.readers,
    )  # fmt: skip
    with pytest.raises(ProtocolError, match="encrypted for before"):
        again.memory.encrypt(77)
    gathering = circle.gather(20)
    asked = gathering.request(circle.names[:3])
    reader = circle.reader(gathering, circle.names[:3])
    for name in circle.names[:3]:
        held = KeyShare.decode(circle.holdings[name].encode(), ThresholdMemory())
        reader.receive(name, Holder(held, circle.identities[name]).respond(asked))
    assert np.array_equal(circle.plan.packing.unpack(reader.result()), circle.sum())


def test_bytes_that_are_no_holding_are_refused_with_a_typed_error(circle: Circle) -> None:
    true, rng = circle.any.encode(), np.random.default_rng(5)
    for size in (0, 3, 4, 100, len(true) - 1):
        with pytest.raises(ProtocolError):
            KeyShare.decode(true[:size], ThresholdMemory())
    header = 4 + int.from_bytes(true[:4], "big")
    read = 0
    for at in rng.integers(0, header, 300):
        changed = true[:at] + bytes([true[at] ^ 1 << int(rng.integers(8))]) + true[at + 1 :]
        try:
            KeyShare.decode(changed, ThresholdMemory())
            read += 1  # a digit of a key or a name: that is the file's checksum to find
        except ProtocolError:
            pass
    assert read < 300
    for raw in (
        b"",
        b"{}",
        b'{"opened_rows": 1, "encrypted": 3, "opened": {}, "answered": []}',
        b"[]",
    ):
        with pytest.raises(ProtocolError, match="cannot be read"):
            ThresholdMemory.decode(raw)
