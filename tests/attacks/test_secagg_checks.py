"""Each check of a member and of the coordinator, met by an adversary that passes all the others.

Accomplices sign whatever is asked of them, so signatures alone do not help here.
"""

import copy
import dataclasses

import pytest

from quietchoir.core.errors import AuthenticationError, ProtocolError, ThresholdError
from quietchoir.crypto.identity.keys import bind
from quietchoir.crypto.secagg import RevealLedger
from quietchoir.crypto.secagg.messages import (
    KEY_SHARE,
    Agreement,
    BoxList,
    KeyCard,
    KeyList,
    Receipt,
    Revelation,
    SealedShares,
    SignatureList,
    SurvivorList,
)
from quietchoir.tests.fakes.coordinator import masked_view
from quietchoir.tests.fakes.secagg import Cohort, Round, frozen

ME, FRIEND = "node-000", "node-004"


def refused(game: Round, message: bytes, error: type[Exception], match: str) -> None:
    """The member refuses, is as it was, and still takes the true message."""
    client = game.clients[ME]
    before = frozen(client)
    with pytest.raises(error, match=match):
        game.ask(ME, message)
    assert frozen(client) == before


def test_a_member_refuses_a_survivor_that_never_shared() -> None:
    cohort = Cohort(5, threshold=3)
    game = Round(cohort).play({1: [FRIEND]}, stages=3)
    at = game.session.numbers[FRIEND]
    forged = Receipt.signed(
        game.session, cohort.identities[FRIEND], masked_view(game), at, 0, b"nothing"
    )
    message = SurvivorList({**game.server._receipts, at: forged}).encode(game.session)
    refused(game, message, ProtocolError, "never shared")
    game.play()


def test_a_member_refuses_a_signature_of_one_that_did_not_survive() -> None:
    cohort = Cohort(5, threshold=3)
    game = Round(cohort).play({2: [FRIEND]}, stages=4)
    at = game.session.numbers[FRIEND]
    extra = Agreement.signed(game.session, cohort.identities[FRIEND], at, game.server._view)
    message = SignatureList({**game.server._agreements, at: extra.signature}).encode(game.session)
    refused(game, message, ProtocolError, "did not survive")
    game.play()


def test_a_member_refuses_too_few_survivors() -> None:
    game = Round(Cohort(5, threshold=4)).play(stages=3)
    few = dict(sorted(game.server._receipts.items())[:3])
    refused(
        game, SurvivorList(few).encode(game.session), ThresholdError, "3 members survived, need 4"
    )
    game.play()


def test_a_member_refuses_too_few_signatures() -> None:
    game = Round(Cohort(5, threshold=4)).play(stages=4)
    few = dict(sorted(game.server._agreements.items())[:3])
    refused(game, SignatureList(few).encode(game.session), ThresholdError, "3 members signed")
    game.play()


def test_a_member_refuses_boxes_withheld_left_over_or_of_strangers() -> None:
    game = Round(Cohort(6, threshold=4)).play({0: ["node-005"]}, stages=2)
    true = BoxList.decode(game.brought[2][ME], game.session)
    without = {at: box for at, box in true.boxes.items() if at != 1}
    for shared, boxes, match in (
        (
            true.shared,
            without,
            "3 members, 4 neighbours",
        ),  # an edge deleted: its mask would be known
        ((0, 2, 3, 4), true.boxes, "4 members, 3 neighbours"),
        ((1, 2, 3, 4), true.boxes, "us among them"),
        ((0, 1, 2, 3, 4, 5), {**true.boxes, 5: true.boxes[4]}, "sent keys"),
    ):
        refused(game, BoxList(shared, boxes).encode(game.session), ProtocolError, match)
    pair = BoxList((0, 1), {1: true.boxes[1]})
    refused(game, pair.encode(game.session), ThresholdError, "2 members shared, need 4")
    game.play()


def test_a_members_own_box_cannot_be_reflected_to_it() -> None:
    """Both directions of a pair have one key; only the associated data tells them apart."""
    game = Round(Cohort(4)).play(stages=2)
    true = BoxList.decode(game.brought[2][ME], game.session)
    mirrored = {**true.boxes, 2: game.server._sealed_shares[0].boxes[2]}
    refused(
        game, BoxList(true.shared, mirrored).encode(game.session), AuthenticationError, "node-002"
    )
    game.play()


def test_a_member_of_a_sparse_graph_refuses_when_too_few_hold_its_shares() -> None:
    cohort = Cohort(34, threshold=20)
    game = Round(cohort).play(stages=2)
    plan, near = game.server._plan, game.server._graph.neighbours(0)
    assert plan.degree < 33
    gone = set(near[: plan.degree + 2 - plan.threshold])
    true = BoxList.decode(game.brought[2][ME], game.session)
    shared = tuple(at for at in true.shared if at not in gone)
    assert len(shared) >= game.config.needed
    boxes = {at: box for at, box in true.boxes.items() if at not in gone}
    refused(game, BoxList(shared, boxes).encode(game.session), ThresholdError, "hold our shares")


def test_members_that_were_shown_different_keys_do_not_sign_together() -> None:
    cohort = Cohort(5, threshold=3)
    game = Round(cohort).play(stages=1)
    other = KeyList(dict(sorted(game.server._cards.items())[:4])).encode(game.session)
    sealed = game.ask(ME, other)
    with pytest.raises(AuthenticationError):
        game.server.receive(ME, sealed)


def test_of_two_attempts_at_once_only_one_sends_its_upload() -> None:
    cohort = Cohort(4)
    ledgers = {name: RevealLedger() for name in cohort.names}
    first = Round(cohort, ledgers=ledgers).play(stages=2)
    second = Round(cohort, attempt=1, ledgers=ledgers).play(stages=2)
    second.play()
    for name in cohort.names:
        before = frozen(first.clients[name])
        with pytest.raises(ProtocolError, match="sent its masked update before"):
            first.ask(name)
        assert frozen(first.clients[name]) == before


def test_of_two_copies_of_one_member_only_one_reveals_shares() -> None:
    cohort = Cohort(4)
    ledgers = {name: RevealLedger() for name in cohort.names}
    game = Round(cohort, ledgers=ledgers).play(stages=4)
    name = cohort.names[0]
    twin = copy.copy(game.clients[name])
    game.ask(name)
    with pytest.raises(ProtocolError, match="opened in attempt 0"):
        twin.unmask(game.brought[4][name])


def delivered(game: Round, message: bytes, error: type[Exception], match: str) -> None:
    """The coordinator refuses a message of FRIEND and is as it was."""
    before = frozen(game.server)
    with pytest.raises(error, match=match):
        game.server.receive(FRIEND, message)
    assert frozen(game.server) == before


def test_the_coordinator_refuses_a_key_of_small_order() -> None:
    cohort = Cohort(5)
    game = Round(cohort)
    good = game.clients[FRIEND]._mask.public
    for channel, mask in ((bytes(32), good), (good, bytes(32))):
        card = KeyCard.signed(game.session, cohort.identities[FRIEND], 4, channel, mask, bytes(32))
        delivered(game, card.encode(game.session), AuthenticationError, "no shared secret")


def test_the_coordinator_refuses_shares_for_others_than_the_neighbours() -> None:
    cohort = Cohort(5)
    game = Round(cohort).play(stages=1)
    true = SealedShares.decode(game.ask(FRIEND), game.session, game.server._view)
    for boxes in (
        {},
        {at: box for at, box in true.boxes.items() if at},
        {**true.boxes, 4: true.boxes[0]},
    ):
        message = SealedShares(4, boxes).encode(
            game.session, cohort.identities[FRIEND], game.server._view
        )
        delivered(game, message, ProtocolError, "neighbours")


def test_the_coordinator_refuses_a_vector_other_than_the_signed_one() -> None:
    cohort = Cohort(5, length=2)
    game = Round(cohort).play(stages=2)
    message = bytearray(game.ask(FRIEND))
    message[-60] ^= 1  # within the token vector, whose size is fixed
    delivered(game, bytes(message), ProtocolError, "not the one it signed")


def test_the_coordinator_refuses_a_signed_vector_of_another_size() -> None:
    cohort = Cohort(5, length=40)
    game = Round(cohort).play(stages=2)
    head = 38 + 2
    true = game.ask(FRIEND)
    size = game.session.ring.wire_bytes
    values, tokens = true[head + 97 + 4 : head + 97 + 4 + size][:-2], true[head + 97 + 4 + size :]
    receipt = Receipt.signed(
        game.session, cohort.identities[FRIEND], game.server._view, 4, 0, values + tokens
    )
    message = true[:head] + receipt.record() + len(values).to_bytes(4, "big") + values + tokens
    delivered(game, message, ProtocolError, f"{size} expected")


def test_the_coordinator_refuses_other_shares_than_it_asked_for() -> None:
    cohort = Cohort(5)
    game = Round(cohort).play(stages=4)
    true = Revelation.decode(game.ask(FRIEND), game.session, game.server._view).shares
    for shares in (
        {},
        {**true, 0: KEY_SHARE + true[0][1:]},
        {at: share for at, share in true.items() if at},
    ):
        message = Revelation(4, shares).encode(
            game.session, cohort.identities[FRIEND], game.server._view
        )
        delivered(game, message, ProtocolError, "one for each neighbour")


@pytest.mark.parametrize(("floor", "claim"), [(300, 16), (0, 1), (300, 255)])
def test_a_signed_claim_beyond_the_limit_is_refused(floor: int, claim: int) -> None:
    cohort = Cohort(5, min_tokens=floor)
    game = Round(cohort).play(stages=3)
    forged = Receipt(4, claim, bytes(32), b"")
    signature = cohort.identities[FRIEND].sign(
        game.session.signing("mask", masked_view(game)), bind(4, claim, bytes(32))
    )
    receipts = {**game.server._receipts, 4: dataclasses.replace(forged, signature=signature)}
    refused(game, SurvivorList(receipts).encode(game.session), ProtocolError, "units of tokens")
