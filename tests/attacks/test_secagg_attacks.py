"""A malicious coordinator, alone and with accomplices, against secure aggregation.

Each attack has an arm without the protection, in which it must succeed: otherwise the test would
show nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import AuthenticationError, ProtocolError, ThresholdError
from quietchoir.crypto import shamir
from quietchoir.crypto.identity.keys import Ephemeral, Identity, open_box
from quietchoir.crypto.secagg import RevealLedger, SecAggClient, session
from quietchoir.crypto.secagg.messages import (
    KEY_SHARE,
    SELF_SHARE,
    KeyCard,
    KeyList,
    Revelation,
    SealedShares,
    SignatureList,
    SurvivorList,
)
from quietchoir.crypto.secagg.session import Session
from quietchoir.tests.fakes.coordinator import masked_view, peel, rebuild, uniform
from quietchoir.tests.fakes.secagg import Cohort, Peeled, Round, frozen

REFUSALS = (ProtocolError, AuthenticationError, ThresholdError)


def pooled(game: Round, names: Iterable[str], victim: str) -> tuple[bytes, bytes]:
    """Both secrets of the victim as far as these members' held shares give them."""
    at = game.session.numbers[victim]
    held = {game.session.numbers[name]: game.clients[name]._held[at] for name in names}
    half = shamir.SHARE_BYTES
    return (
        rebuild({holder: share[:half] for holder, share in held.items()}),
        rebuild({holder: share[half:] for holder, share in held.items()}),
    )


# --- overlapping survivor lists
# ------------------------------------------------------------------------------------------


def equivocate(
    game: Round, victim: str, seeing: Iterable[str], missing: Iterable[str]
) -> dict[bytes, dict[str, bytes]]:
    """Show some members a set with the victim and others one without it; return what each is
    asked to sign.
    """
    receipts = dict(game.server._receipts)
    full = SurvivorList(receipts).encode(game.session)
    reduced = SurvivorList(
        {at: r for at, r in receipts.items() if at != game.session.numbers[victim]}
    ).encode(game.session)
    return {
        full: {name: game.clients[name].consistency(full) for name in seeing},
        reduced: {name: game.clients[name].consistency(reduced) for name in missing},
    }


def signature_list(game: Round, signed: Mapping[str, bytes]) -> bytes:
    return SignatureList(
        {game.session.numbers[name]: message[-64:] for name, message in sorted(signed.items())}
    ).encode(game.session)


def test_a_coordinator_that_shows_two_survivor_sets_gets_no_share_at_all() -> None:
    cohort = Cohort(7, threshold=5)  # bears 2 accomplices
    game = Round(cohort).play(stages=3)
    victim, honest = cohort.names[0], cohort.names[:5]
    accomplices = cohort.names[5:]
    signed = equivocate(game, victim, honest[:3], honest[3:])
    for survivors, signatures in signed.items():
        at = SurvivorList.decode(survivors, game.session, masked_view(game)).view(
            game.session, masked_view(game)
        )
        context = game.session.signing("consistency", at)
        for name in accomplices:  # they sign whatever they are asked to
            number = game.session.numbers[name].to_bytes(2, "big")
            signatures[name] = number + cohort.identities[name].sign(context, number)
        if len(signatures) >= 5:
            continue  # this side is honest majority enough to open one set, and only one
        for name in set(signatures) - set(accomplices):
            before = frozen(game.clients[name])
            with pytest.raises(ThresholdError):
                game.clients[name].unmask(signature_list(game, signatures))
            assert frozen(game.clients[name]) == before
    assert sum(len(signatures) >= 5 for signatures in signed.values()) <= 1


def test_one_accomplice_more_than_the_threshold_bears_would_open_both_sets() -> None:
    """The stated bound, 2t - n - 1, is tight: with one more, two sets get enough signatures and
    a voice is heard.
    """
    cohort = Cohort(7, threshold=5, length=4)
    assert cohort.config().colluders == 2
    game = Round(cohort).play(stages=3)
    victim, accomplices = cohort.names[0], cohort.names[4:]  # three
    signed = equivocate(game, victim, cohort.names[:2], cohort.names[2:4])
    both: dict[bytes, dict[int, bytes]] = {SELF_SHARE: {}, KEY_SHARE: {}}
    for survivors, signatures in signed.items():
        at = SurvivorList.decode(survivors, game.session, masked_view(game)).view(
            game.session, masked_view(game)
        )
        for name in accomplices:
            number = game.session.numbers[name].to_bytes(2, "big")
            signatures[name] = number + cohort.identities[name].sign(
                game.session.signing("consistency", at), number
            )
        for name in [name for name in signatures if name not in accomplices]:
            revealed = Revelation.decode(
                game.clients[name].unmask(signature_list(game, signatures)), game.session, at
            )
            share = revealed.shares[game.session.numbers[victim]]
            both[share[:1]][revealed.sender] = share[1:]
    half = shamir.SHARE_BYTES
    for name in accomplices:
        held = game.clients[name]._held[game.session.numbers[victim]]
        both[SELF_SHARE][game.session.numbers[name]] = held[:half]
        both[KEY_SHARE][game.session.numbers[name]] = held[half:]
    found = peel(game, victim, seed=rebuild(both[SELF_SHARE]), mask_key=rebuild(both[KEY_SHARE]))
    assert np.array_equal(found, cohort.values[victim])


def test_each_peer_gets_one_kind_of_share_and_a_second_request_is_refused() -> None:
    cohort = Cohort(6, threshold=4)
    game = Round(cohort).play({2: cohort.names[:1]})
    for name, message in game.sent[4].items():
        shares = Revelation.decode(message, game.session, game.server._view).shares
        kinds = {game.session.names[at]: share[:1] for at, share in shares.items()}
        assert kinds == {
            peer: KEY_SHARE if peer == cohort.names[0] else SELF_SHARE for peer in cohort.names
        }
        with pytest.raises(RuntimeError):
            game.clients[name].unmask(game.brought[4][name])


# --- key substitution
# ------------------------------------------------------------------------------------------


def substituted(game: Round, victim: str, signer: Identity) -> tuple[bytes, Ephemeral]:
    """A key list in which the coordinator's own keys stand for the victim's, signed by `signer`."""
    at, own = game.session.numbers[victim], Ephemeral.generate()
    fake = KeyCard.signed(game.session, signer, at, own.public, own.public, bytes(32))
    return KeyList({**game.server._cards, at: fake}).encode(game.session), own


def test_substituted_keys_are_refused_by_every_member() -> None:
    cohort = Cohort(4)
    game = Round(cohort).play(stages=1)
    forged, _ = substituted(game, cohort.names[0], Identity.generate())
    for name in cohort.names:
        before = frozen(game.clients[name])
        with pytest.raises(AuthenticationError, match="node-000"):
            game.clients[name].share(forged)
        assert frozen(game.clients[name]) == before


def test_without_signatures_the_coordinator_would_read_the_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Session, "verify", lambda *_: None)
    cohort = Cohort(4)
    game = Round(cohort).play(stages=1)
    victim, reader = (game.session.numbers[name] for name in cohort.names[:2])
    forged, own = substituted(game, cohort.names[0], Identity.generate())
    view = KeyList.decode(forged, game.session).view(game.session)
    sealed = SealedShares.decode(game.clients[cohort.names[1]].share(forged), game.session, view)
    key = own.agree(
        game.server._cards[reader].channel, game.session.pair("channel", reader, victim)
    )
    pieces = open_box(key, sealed.boxes[victim], game.session.box(view, reader, victim))
    assert len(pieces) == 2 * shamir.SHARE_BYTES


def test_a_member_that_finds_its_own_keys_changed_or_missing_stops() -> None:
    cohort = Cohort(5, threshold=3)
    game = Round(cohort).play(stages=1)
    victim = cohort.names[0]
    # even signed with its own key: another attempt's, say
    old, _ = substituted(game, victim, cohort.identities[victim])
    missing = KeyList({at: card for at, card in game.server._cards.items() if at}).encode(
        game.session
    )
    for message in (old, missing):
        with pytest.raises(ProtocolError, match="keys this member sent"):
            game.clients[victim].share(message)


# --- replay
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"round_": 2}, {"attempt": 1}])
def test_no_message_of_another_round_or_attempt_is_taken(other: dict[str, Any]) -> None:
    cohort = Cohort(4)
    old = Round(cohort).play()
    for stage in range(5):
        game = Round(cohort, **other).play(stages=stage)
        before = frozen(game.server)
        for name in cohort.names:
            with pytest.raises(REFUSALS):
                game.server.receive(name, old.sent[stage][name])
        assert frozen(game.server) == before
        if stage:
            client = game.clients[cohort.names[0]]
            before = frozen(client)
            with pytest.raises(REFUSALS):
                game.ask(cohort.names[0], old.brought[stage][cohort.names[0]])
            assert frozen(client) == before


def test_without_the_attempt_in_the_session_old_keys_would_be_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Session, "_digest", lambda self: bytes(32))
    cohort = Cohort(4)
    old, new = Round(cohort).play(), Round(cohort, attempt=1)
    new.server.receive(cohort.names[0], old.sent[0][cohort.names[0]])
    assert cohort.names[0] not in new.server.waiting


def test_a_retry_of_an_opened_round_is_refused_and_its_difference_stays_unknown() -> None:
    cohort = Cohort(6, threshold=4)
    ledgers = {name: RevealLedger() for name in cohort.names}
    first = Round(cohort, ledgers=ledgers).play()
    assert first.server.result is not None
    with pytest.raises(ProtocolError, match="opened in attempt 0"):
        Round(cohort, attempt=1, ledgers=ledgers)
    # no shared ledger: two sums of the same updates ...
    without = Round(cohort, attempt=1).play({2: cohort.names[:1]})
    difference = first.result.total - without.result.total
    assert np.array_equal(difference, cohort.values[cohort.names[0]])  # ... and one voice is heard


def test_an_attempt_that_was_abandoned_before_an_upload_left_can_be_retried() -> None:
    cohort = Cohort(5)
    ledgers = {name: RevealLedger() for name in cohort.names}
    with pytest.raises(ThresholdError):
        Round(cohort, ledgers=ledgers).play({1: cohort.names[:2]})
    again = Round(cohort, attempt=1, ledgers=ledgers).play()
    assert np.array_equal(again.result.total, cohort.sum(cohort.names))


# --- late uploads
# ------------------------------------------------------------------------------------------


def late(cohort: Cohort) -> tuple[Round, str, bytes]:
    """A round that declared its first member dead although its upload came, only late; and that
    member's mask key.
    """
    game = Round(cohort).play(stages=2)
    victim = cohort.names[0]
    upload = game.ask(victim)
    game.step(silent=[victim])
    game.sent[2][victim] = upload
    game.play()
    at = game.session.numbers[victim]
    shares = {
        number: revelation.shares[at][1:]
        for number, revelation in list(game.server._revelations.items())[
            : game.server._plan.threshold
        ]
    }
    return game, victim, rebuild(shares)


def test_a_late_upload_stays_unreadable_although_its_mask_key_was_rebuilt() -> None:
    cohort = Cohort(6, threshold=4, length=4000)
    game, victim, mask_key = late(cohort)
    with pytest.raises(ProtocolError):
        game.server.receive(victim, game.sent[2][victim])
    at = game.session.numbers[victim]
    peers = {peer: game.server._cards[peer].mask for peer in game.server._graph.neighbours(at)}
    view = masked_view(game)
    left = (
        Peeled(game.session, game.sent[2][victim], view).without_pairs(at, mask_key, peers).values
    )
    guess = left - cohort.values[victim]
    assert uniform(guess % 2**game.bits, game.bits)
    assert abs(np.corrcoef(left, cohort.values[victim])[0, 1]) < 6 / 4000**0.5


def test_without_self_masks_a_late_upload_would_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("client", "server"):
        monkeypatch.setattr(f"quietchoir.crypto.secagg.{place}.mask_self", lambda *_, **__: None)
    cohort = Cohort(6, threshold=4)
    game, victim, mask_key = late(cohort)
    at = game.session.numbers[victim]
    peers = {peer: game.server._cards[peer].mask for peer in game.server._graph.neighbours(at)}
    read = (
        Peeled(game.session, game.sent[2][victim], masked_view(game))
        .without_pairs(at, mask_key, peers)
        .values
    )
    assert np.array_equal(read, cohort.values[victim])


def test_a_member_declared_dead_does_not_help_to_open_the_sum() -> None:
    cohort = Cohort(6, threshold=4)
    game = Round(cohort).play(stages=2)
    victim = cohort.names[0]
    game.ask(victim)
    game.step(silent=[victim])
    before = frozen(game.clients[victim])
    with pytest.raises(ProtocolError, match="not among the survivors"):
        game.clients[victim].consistency(game.brought[3][cohort.names[1]])
    assert frozen(game.clients[victim]) == before


# --- floors
# ------------------------------------------------------------------------------------------


def test_a_coordinator_with_a_lower_threshold_speaks_another_session() -> None:
    cohort = Cohort(7, threshold=6)
    low = Round(cohort, threshold=4).play(stages=1)
    for name in cohort.names:
        client = SecAggClient(cohort.config(), name, cohort.identities[name])
        client.advertise()
        before = frozen(client)
        with pytest.raises(ProtocolError, match="configuration"):
            client.share(low.brought[1][name])
        assert frozen(client) == before


def test_members_that_believed_the_lower_threshold_would_be_opened_by_four() -> None:
    cohort = Cohort(7, threshold=6)
    game = Round(cohort, threshold=4).play(stages=3)
    seed, mask_key = pooled(game, cohort.names[3:], cohort.names[0])
    assert np.array_equal(
        peel(game, cohort.names[0], seed=seed, mask_key=mask_key), cohort.values[cohort.names[0]]
    )


def test_the_coordinator_and_t_minus_1_members_learn_nothing_from_their_shares() -> None:
    cohort = Cohort(7, threshold=5, length=3000)
    game = Round(cohort).play(stages=3)
    victim, accomplices = cohort.names[0], cohort.names[3:]  # four
    at, half = game.session.numbers[victim], shamir.SHARE_BYTES
    held = {game.session.numbers[name]: game.clients[name]._held[at] for name in accomplices}
    points = sorted(holder + 1 for holder in held)
    for part in (slice(0, half), slice(half, None)):
        value = sum(
            int.from_bytes(held[point - 1][part], "big") * weight
            for point, weight in zip(points, shamir.weights(points), strict=True)
        )
        guess = (value % shamir.PRIME % 2**256).to_bytes(32, "big")
        assert guess not in (game.clients[victim]._seed, game.clients[victim]._mask.private_bytes())
    # They can take off the pair masks they take part in; what two honest members share, and the
    # self-mask, stay.
    peeled = Peeled(game.session, game.sent[2][victim], masked_view(game))
    for name in accomplices:
        peer = game.session.numbers[name]
        session.mask_pair(
            peeled, game.session, game.clients[name]._mask, peer, at, game.server._cards[at].mask
        )
    assert uniform((peeled.values - cohort.values[victim]) % 2**game.bits, game.bits)


def test_t_members_would_hear_a_single_voice() -> None:
    cohort = Cohort(7, threshold=5)
    game = Round(cohort).play(stages=3)
    seed, mask_key = pooled(game, cohort.names[2:], cohort.names[0])
    assert np.array_equal(
        peel(game, cohort.names[0], seed=seed, mask_key=mask_key), cohort.values[cohort.names[0]]
    )


def test_a_coordinator_that_drops_the_talkative_members_does_not_get_a_thin_sum() -> None:
    cohort = Cohort(6, threshold=4, min_tokens=1000)
    cohort.tokens = dict(zip(cohort.names, [900, 900, 60, 60, 60, 60], strict=True))
    assert Round(cohort).play().result.tokens == 2040
    game = Round(cohort).play({2: cohort.names[:2]}, stages=3)
    for name in cohort.names[2:]:
        with pytest.raises(ThresholdError, match="nothing is revealed"):
            game.ask(name)
    open_ = Cohort(6, threshold=4)  # no floor: the thin sum opens
    open_.tokens = cohort.tokens
    assert Round(open_).play({2: open_.names[:2]}).result.tokens == 240


def test_a_coordinator_cannot_invent_a_survivor_or_raise_its_claim() -> None:
    cohort = Cohort(5, threshold=3, min_tokens=300)
    game = Round(cohort).play({2: cohort.names[:1]}, stages=3)
    receipts = dict(game.server._receipts)
    stolen = next(iter(receipts.values()))
    for changed in (
        {**receipts, 0: type(stolen)(0, stolen.claim, stolen.payload_digest, stolen.signature)},
        {**receipts, 1: type(stolen)(1, 15, stolen.payload_digest, stolen.signature)},
        {**receipts, 1: type(stolen)(1, 16, stolen.payload_digest, stolen.signature)},
    ):
        with pytest.raises((AuthenticationError, ProtocolError)):
            game.clients[cohort.names[2]].consistency(SurvivorList(changed).encode(game.session))
