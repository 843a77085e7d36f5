"""Tags on sums: they fit the true sum of the true members, and nothing else."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.errors import AuthenticationError, ConfigError, ProtocolError
from quietchoir.crypto.secagg import RevealLedger, SecAggConfig, tag
from quietchoir.crypto.secagg.client import SecAggClient, Stage, SumCheck
from quietchoir.crypto.secagg.messages import KeyCard
from quietchoir.crypto.secagg.snapshot import freeze, thaw
from quietchoir.tests.fakes.secagg import Cohort, Round

KEY = bytes(range(32))


def naive(key: bytes, values: list[int], prime: int) -> int:
    """The inner product in Python's own numbers."""
    from quietchoir.crypto.ring import expand

    words = np.frombuffer(expand(key, 4 * len(values)), "<u4").tolist()
    return sum(a * x for a, x in zip(words, values, strict=True)) % prime


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1025, (1 << 15) + 7])
def test_the_inner_product_is_that_of_pythons_numbers(length: int) -> None:
    values = np.random.default_rng(length).integers(0, 1 << tag.MOST_BITS, length)
    keys = (KEY, bytes(32), KEY[::-1])
    for one in (values, np.full(length, (1 << tag.MOST_BITS) - 1)):
        expected = [
            naive(key, one.tolist(), prime) for key, prime in zip(keys, tag.PRIMES, strict=True)
        ]
        assert tag.inner(keys, one) == tag.inner(keys, one.astype(np.uint32)) == expected


def test_the_primes_are_primes_and_the_largest_below_two_to_the_32() -> None:
    def prime(n: int) -> bool:
        return all(pow(a, n - 1, n) == 1 for a in (2, 3, 5, 7, 11)) and all(
            n % d for d in range(3, 1 << 16, 2)
        )

    found = [n for n in range(2**32 - 1, 2**32 - 70, -2) if prime(n)]
    assert tuple(found) == tag.PRIMES


@settings(max_examples=40, deadline=None)
@given(
    parties=st.integers(3, 32),
    bits=st.integers(2, 16),
    length=st.integers(1, 50),
    seed=st.integers(0, 1 << 30),
)
def test_tags_add_up_to_the_tag_of_the_sum(parties: int, bits: int, length: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (parties, length))
    names = [f"node-{number}" for number in range(parties)]
    spelled = [
        tag.spell(tag.make(KEY, row, name), bits) for row, name in zip(values, names, strict=True)
    ]
    digits = np.sum(spelled, axis=0).astype(np.int64)
    check, total = SumCheck(KEY, tuple(names)), values.sum(axis=0)
    assert len(digits) == tag.width(bits) and check.fits(total, tag.read(digits, bits))


@pytest.mark.parametrize("silent", [{}, {2: ["node-001"]}, {1: ["node-000"]}, {3: ["node-002"]}])
def test_every_survivor_finds_that_the_opened_sum_fits_and_no_other(
    silent: dict[int, list[str]],
) -> None:
    cohort = Cohort(6, threshold=4)
    game = Round(cohort, tagged=cohort.config().length - 2).play(silent)
    gone = {name for names in silent.values() for name in names}
    result, tagged = game.result, game.config.tagged
    assert (
        np.array_equal(result.total, cohort.sum(result.survivors))
        and len(result.total) == game.config.length
    )
    for name in set(cohort.names) - gone:
        check = game.clients[name].check
        assert check.survivors == result.survivors and check.fits(
            result.total[:tagged], result.tags
        )
        for at in (0, tagged - 1):
            other = result.total[:tagged].copy()
            other[at] ^= 1
            assert not check.fits(other, result.tags)
        assert not check.fits(result.total[:tagged], (result.tags[0] ^ 1, *result.tags[1:]))
        assert not dataclasses.replace(check, survivors=check.survivors[1:]).fits(
            result.total[:tagged], result.tags
        )


def test_what_the_coordinator_sees_of_tags_is_uniform_and_says_nothing_of_the_key() -> None:
    """The same values in two attempts have tags that share nothing; without pads they would
    differ by the key alone.
    """
    cohort = Cohort(4)
    tags = [Round(cohort, attempt=at, tagged=5).play().result.tags for at in range(2)]
    assert all(one != other for one, other in zip(*tags, strict=True))
    single = [tag.make(KEY, np.zeros(5, np.int64), f"node-{number}") for number in range(200)]
    spread = np.array(single, np.float64) / 2**32
    # zeros too: the pad hides them
    assert abs(spread.mean() - 0.5) < 0.06 and np.unique(spread).size == 600


@pytest.mark.parametrize("change", [{"tagged": 99}, {"tagged": -1}])
def test_tags_that_cannot_be_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="with a tag"):
        Cohort(4).config(**change)
    with pytest.raises(ConfigError, match="at most 32 members"):
        Cohort(40, threshold=30).config(tagged=1)
    with pytest.raises(ValueError, match="cannot be tagged"):
        tag.inner(3 * [KEY], np.array([1 << 21]))
    assert SecAggConfig.__dataclass_fields__["tagged"].default == 0


def test_a_tag_is_spelled_otherwise_each_time_and_read_alike() -> None:
    """Else the carries between opened digits would tell members, who know the key, of single
    tags.
    """
    made = tag.make(KEY, np.arange(9), "node-000")
    for bits in (2, 8, 12, 16):
        spelled = [tag.spell(made, bits) for _ in range(50)]
        assert len({one.tobytes() for one in spelled}) == 50
        assert max(int(one.max()) for one in spelled) < 1 << bits
        assert all(tag.read(one.astype(np.int64), bits) == made for one in spelled)
        # every digit takes part: none of them stays what it is
        assert np.ptp(np.array(spelled), axis=0).min() > 0


def dealing_apart(
    self: SecAggClient, peer: int, card: KeyCard, pieces: bytes, view: bytes
) -> bytes:
    """`SecAggClient._seal` of a member that deals one other a seed of its own."""
    if (self._me, peer) == (3, 0):
        pieces = pieces[: -tag.SEED_BYTES] + bytes(tag.SEED_BYTES)
    return HONEST_SEAL(self, peer, card, pieces, view)


HONEST_SEAL = SecAggClient._seal


def test_a_member_that_is_dealt_another_seed_of_tags_says_by_whom_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort = Cohort(4)
    game = Round(cohort, tagged=5)
    monkeypatch.setattr(SecAggClient, "_seal", dealing_apart)
    game.play(stages=2)
    victim, before = game.clients["node-000"], freeze(game.clients["node-000"])
    ledger = victim._ledger.snapshot()
    with pytest.raises(ProtocolError, match="node-003 dealt another seed of tags"):
        game.ask("node-000")
    assert victim.stage is Stage.MASK and freeze(victim) == before
    assert victim._ledger.snapshot() == ledger
    # the others have one key, and go on without it
    game.play({2: ["node-000"]})
    assert game.result.survivors == ("node-001", "node-002", "node-003")
    assert len({game.clients[name].check.key for name in game.result.survivors}) == 1


@pytest.mark.parametrize("tagged", [0, 5])
def test_the_commitment_to_a_seed_is_signed_and_stands_in_the_card_where_there_are_tags(
    tagged: int,
) -> None:
    cohort = Cohort(4)
    game = Round(cohort, tagged=tagged)
    cards = {name: client.advertise() for name, client in game.clients.items()}
    card = KeyCard.decode(cards["node-001"], game.session)
    assert len(card.tag_commitment) == (32 if tagged else 0)
    assert len(card.record()) == game.session.card_bytes
    for changed in (bytes(32), card.tag_commitment[:-1] + b"x"):
        other = dataclasses.replace(card, tag_commitment=changed if tagged else b"")
        if tagged:
            with pytest.raises(AuthenticationError, match="node-001"):
                KeyCard.decode(other.encode(game.session), game.session)
    short = dataclasses.replace(card, tag_commitment=bytes(0 if tagged else 32))
    with pytest.raises(ProtocolError):
        KeyCard.decode(short.encode(game.session), game.session)


def test_a_member_that_was_put_aside_still_finds_that_it_was_dealt_another_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort = Cohort(4)
    game = Round(cohort, tagged=5)
    monkeypatch.setattr(SecAggClient, "_seal", dealing_apart)
    game.play(stages=2)
    name = "node-000"
    game.clients[name] = thaw(
        freeze(game.clients[name]),
        name,
        cohort.identities[name],
        ring_of=lambda config: game.session.ring,
        ledger=RevealLedger(),
    )
    with pytest.raises(ProtocolError, match="dealt another seed"):
        game.ask(name)
