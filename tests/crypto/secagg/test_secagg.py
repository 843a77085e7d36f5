"""Exact sums, drop-outs, floors and order."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.errors import ConfigError, ProtocolError, ThresholdError
from quietchoir.crypto.identity.keys import Identity
from quietchoir.crypto.secagg import RevealLedger, SecAggClient, ServerStage, Stage
from quietchoir.crypto.secagg.messages import Kind, frame
from quietchoir.tests.fakes.secagg import STAGES, Cohort, PrimeRing, Round, frozen


@pytest.mark.parametrize("n", [3, 5, 20, 40])
def test_the_sum_is_exact(n: int) -> None:
    cohort = Cohort(n, length=33)
    result = Round(cohort).play().result
    assert np.array_equal(result.total, cohort.sum(cohort.names))
    assert result.tokens == sum(cohort.tokens.values()) and result.survivors == tuple(cohort.names)


@pytest.mark.parametrize(
    ("bits", "length"), [(1, 1), (4, 100), (8, 1000), (12, 7), (16, 65), (24, 9)]
)
def test_the_sum_is_exact_for_every_width_even_of_the_largest_values(
    bits: int, length: int
) -> None:
    cohort = Cohort(4, bits=bits, length=length)
    cohort.values = {name: np.full(length, 2**bits - 1, np.uint32) for name in cohort.names}
    assert np.array_equal(Round(cohort).play().result.total, np.full(length, 4 * (2**bits - 1)))


@pytest.mark.parametrize(
    ("n", "stage"),
    [(5, 0), (5, 1), (5, 2), (5, 3), (5, 4), (20, 0), (20, 1), (20, 2), (20, 4), (34, 1), (34, 2)],
)
def test_up_to_the_threshold_drop_outs_at_any_stage_leave_an_exact_sum(n: int, stage: int) -> None:
    cohort = Cohort(n)
    gone = cohort.names[1 : 1 + {5: 1, 20: 6, 34: 3}[n]]
    result = Round(cohort).play({stage: gone}).result
    alive = [name for name in cohort.names if name not in gone] if stage <= 2 else cohort.names
    assert result.survivors == tuple(alive)
    assert np.array_equal(result.total, cohort.sum(alive)) and result.tokens == sum(
        cohort.tokens[name] for name in alive
    )


def test_another_ring_sums_exactly_through_the_same_stages() -> None:
    cohort = Cohort(7, length=50)
    ring = PrimeRing((1 << 61) - 1, 50)
    result = Round(cohort, ring=ring).play({2: cohort.names[:2]}).result
    assert np.array_equal(result.total, cohort.sum(cohort.names[2:]))
    assert Round(cohort, ring=ring).session.id != Round(cohort).session.id


def test_signers_need_the_threshold_and_survivors_the_cohort() -> None:
    cohort = Cohort(6, threshold=4, min_cohort=6)
    assert np.array_equal(
        Round(cohort).play({3: cohort.names[:2]}).result.total, cohort.sum(cohort.names)
    )


def test_one_drop_out_in_each_stage_leaves_an_exact_sum() -> None:
    cohort = Cohort(16)
    result = Round(cohort).play({stage: [cohort.names[stage]] for stage in range(5)}).result
    assert result.survivors == tuple(cohort.names[3:])
    assert np.array_equal(result.total, cohort.sum(cohort.names[3:]))


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 9), st.data())
def test_any_pattern_of_drop_outs_gives_the_exact_sum_or_nothing(
    n: int, data: st.DataObject
) -> None:
    cohort = Cohort(n, length=5)
    silent = {
        stage: data.draw(st.sets(st.sampled_from(cohort.names), max_size=2)) for stage in range(5)
    }
    alive = [set(cohort.names)]
    for stage in range(5):
        alive.append(alive[-1] - silent[stage])
    game = Round(cohort)
    if all(len(left) >= game.config.needed for left in alive):
        result = game.play(silent).result
        assert result.survivors == tuple(sorted(alive[3])) and np.array_equal(
            result.total, cohort.sum(alive[3])
        )
    else:
        with pytest.raises(ThresholdError):
            game.play(silent)
        assert game.server.result is None and game.server.stage is ServerStage.ABORTED


@pytest.mark.parametrize("stage", range(5))
def test_below_the_threshold_the_attempt_ends_and_nothing_is_revealed(stage: int) -> None:
    cohort = Cohort(6, threshold=4)
    game = Round(cohort)
    with pytest.raises(ThresholdError):
        game.play({stage: cohort.names[:3]})
    assert game.server.result is None
    revealed = game.sent[4] if len(game.sent) > 4 else {}
    assert len(revealed) < 4  # fewer shares than open anything
    with pytest.raises(RuntimeError):
        game.server.advance()
    with pytest.raises(ProtocolError):
        game.server.receive(cohort.names[3], b"")


def test_min_cohort_is_a_floor_of_its_own() -> None:
    cohort = Cohort(6, threshold=4, min_cohort=6)
    with pytest.raises(ThresholdError, match="need 6"):
        Round(cohort).play({2: cohort.names[:1]})


def test_members_refuse_a_short_list_even_if_the_coordinator_does_not() -> None:
    cohort = Cohort(6, threshold=5)
    game = Round(cohort).play(stages=1)
    game.server._cards.popitem()
    game.server._cards.popitem()
    short = game.server.__class__._send_keys
    game.server._session.config.__dict__["threshold"] = 3  # the coordinator forgets its own floor
    message = short(game.server)[cohort.names[0]]
    # same object in this test: put it back
    game.clients[cohort.names[0]]._session.config.__dict__["threshold"] = 5
    with pytest.raises(ThresholdError, match="4 members sent keys, need 5"):
        game.clients[cohort.names[0]].share(message)


def test_too_few_tokens_are_refused_by_members_before_anything_is_revealed() -> None:
    cohort = Cohort(5, min_tokens=600)
    game = Round(cohort).play({2: cohort.names[:1]}, stages=3)
    before = {name: frozen(client) for name, client in game.clients.items()}
    with pytest.raises(ThresholdError, match="tokens"):
        game.step()
    assert {name: frozen(client) for name, client in game.clients.items()} == before


def test_enough_tokens_open_the_sum_and_the_coordinator_checks_the_exact_count() -> None:
    cohort = Cohort(5, min_tokens=300)
    assert Round(cohort).play().result.tokens == 510
    game = Round(cohort)
    game.play(stages=4)
    game.gather()
    game.server._session.config.__dict__["min_tokens"] = 511
    with pytest.raises(ThresholdError, match="510 tokens"):
        game.server.advance()
    assert game.server.result is None


def test_without_a_token_floor_nothing_is_said_about_tokens() -> None:
    game = Round(Cohort(3)).play()
    assert {receipt.claim for receipt in game.server._receipts.values()} == {0}
    with_floor = Round(Cohort(3, min_tokens=120)).play()
    assert {receipt.claim for receipt in with_floor.server._receipts.values()} == {10}


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=12), st.integers(1, 10**6))
def test_claims_never_promise_more_tokens_than_there_are(counts: list[int], floor: int) -> None:
    session = Round(Cohort(len(counts), length=1), min_tokens=floor).session
    claims = [session.claim(count) for count in counts]
    assert all(
        claim * session.claim_step <= count and claim <= 15
        for claim, count in zip(claims, counts, strict=True)
    )
    fair = -(-floor // session.config.min_cohort)
    # members with a little more than their share always suffice
    if all(count >= 1.25 * fair + 4 for count in counts):
        assert sum(claims) * session.claim_step >= floor


def test_calls_out_of_order_are_our_own_mistakes() -> None:
    cohort = Cohort(3)
    for right, wrong in itertools.permutations(range(5), 2):
        game = Round(cohort).play(stages=right)
        client = game.clients[cohort.names[0]]
        before = frozen(client)
        arguments = [(), (b"",), (b"", cohort.values[cohort.names[0]], 1), (b"",), (b"",)][wrong]
        with pytest.raises(RuntimeError, match="comes next"):
            getattr(client, STAGES[wrong])(*arguments)
        assert frozen(client) == before
    done = Round(cohort).play()
    client = done.clients[cohort.names[0]]
    assert client.stage is Stage.DONE
    with pytest.raises(RuntimeError):
        client.unmask(done.brought[4][cohort.names[0]])
    with pytest.raises(RuntimeError):
        done.server.advance()


def test_after_the_reveal_no_secret_is_kept_and_none_shows_in_reprs() -> None:
    game = Round(Cohort(3)).play(stages=4)
    client = game.clients["node-000"]
    seed = client._seed
    assert seed.hex()[:10] not in repr(client) and "SecAggClient(node-000" in repr(client)
    game.step()
    assert not hasattr(client, "_seed") and not hasattr(client, "_mask") and client._held == {}


def test_wrong_values_are_our_own_mistake_and_change_nothing() -> None:
    cohort = Cohort(3, length=4)
    game = Round(cohort).play(stages=2)
    client, boxes = game.clients["node-000"], game.brought[2]["node-000"]
    before = frozen(client)
    for values, tokens in (
        (np.full(4, 256, np.uint32), 1),
        (np.zeros(5, np.uint32), 1),
        (np.zeros(4, np.uint32), 2**32),
    ):
        with pytest.raises(ValueError):
            client.mask(boxes, values, tokens)
    assert frozen(client) == before


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 2},
        {"threshold": 6},
        {"min_cohort": 2},
        {"min_cohort": 6},
        {"federation": b"short"},
        {"round": -1},
        {"min_tokens": -1},
        {"corrupt_percent": 50},
        {"bits": 31},
        {"length": 0},
    ],
)
def test_floors_that_protect_nobody_are_refused(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "round_" if key == "round" else key: value for key, value in change.items()
    }
    with pytest.raises(ConfigError):
        Round(Cohort(5), **fields)


def test_a_sparse_graph_needs_a_threshold_that_bears_its_accomplices() -> None:
    with pytest.raises(ConfigError, match="colluders"):
        Cohort(40, threshold=21).config()


def test_an_identity_that_the_roster_does_not_list_cannot_take_part() -> None:
    cohort = Cohort(3)
    for name, identity in (
        ("node-000", Identity.generate()),
        ("stranger", cohort.identities["node-000"]),
    ):
        with pytest.raises(ConfigError):
            SecAggClient(cohort.config(), name, identity)


def test_everything_that_members_must_agree_on_is_in_the_session() -> None:
    cohort = Cohort(5)
    base: dict[str, Any] = {"min_tokens": 10, "corrupt_percent": 9, "drop_percent": 9}
    plain = Round(cohort, **base).session.id
    changes: list[dict[str, Any]] = [
        {"threshold": 5},
        {"min_cohort": 4},
        {"min_tokens": 11},
        {"length": 17},
        {"bits": 9},
        {"corrupt_percent": 8},
        {"drop_percent": 8},
        {"round_": 2},
        {"attempt": 1},
        {"federation": bytes(32)},
    ]
    ids = {Round(cohort, **{**base, **change}).session.id for change in changes}
    assert len(ids) == len(changes) and plain not in ids
    assert Round(Cohort(5), **base).session.id != plain  # other keys under the same names


def test_a_ledger_lets_an_attempt_begin_once_and_a_round_open_once() -> None:
    ledger = RevealLedger()
    ledger.begin(b"f", 1, 0)
    with pytest.raises(ProtocolError):
        ledger.begin(b"f", 1, 0)
    ledger.begin(b"f", 1, 3)
    with pytest.raises(ProtocolError):
        ledger.begin(b"f", 1, 2)
    ledger.open(b"f", 1, 3)
    again = RevealLedger.restore(ledger.snapshot())
    for memory in (ledger, again):
        for call in (memory.begin, memory.open):
            with pytest.raises(ProtocolError, match="opened in attempt 3"):
                call(b"f", 1, 4)
    again.begin(b"f", 2, 0)
    again.begin(b"other", 1, 0)
    for bad in (b"", b"[]", b'{"begun": [[1]], "opened": []}'):
        with pytest.raises(ConfigError):
            RevealLedger.restore(bad)


def test_the_coordinator_refuses_strangers_doubles_and_other_peoples_messages() -> None:
    cohort = Cohort(4)
    game = Round(cohort)
    first, second = cohort.names[:2]
    card = game.ask(first)
    game.server.receive(first, card)
    before = frozen(game.server)
    assert game.server.waiting == tuple(cohort.names[1:])
    for name, message in (("stranger", card), (first, card), (second, card)):
        with pytest.raises(ProtocolError):
            game.server.receive(name, message)
    assert frozen(game.server) == before


def lying(game: Round, *names: str) -> None:
    """These members hand back wrong shares, the first byte or another one of them changed."""
    for at, name in enumerate(names):
        liar = game.clients[name]
        liar._held = {
            peer: bytes([share[0] ^ 1]) + share[1:]
            if at
            else share[:1] + bytes([share[1] ^ 1]) + share[2:]
            for peer, share in liar._held.items()
        }


def test_a_member_that_hands_back_wrong_shares_is_not_believed_and_stops_what_needs_its_share() -> (
    None
):
    cohort = Cohort(4, threshold=4)
    game = Round(cohort).play(stages=4)
    lying(game, "node-002")
    game.gather()
    with pytest.raises(ProtocolError, match="do not give the secret"):
        game.server.advance()
    assert game.server.result is None


@pytest.mark.parametrize("liars", [("node-000",), ("node-001", "node-004")])
def test_wrong_shares_are_found_and_left_out_where_enough_right_ones_came(
    liars: tuple[str, ...],
) -> None:
    cohort = Cohort(8, threshold=5)
    game = Round(cohort).play({2: ("node-007",)}, stages=4)  # its key is rebuilt, the others' seeds
    lying(game, *liars)
    game.step()
    assert np.array_equal(game.result.total, cohort.sum(game.result.survivors))
    assert (len(game.result.survivors), game.server.wrong) == (7, liars)


def test_a_sparse_round_masks_with_fewer_than_everybody() -> None:
    game = Round(Cohort(40)).play(stages=2)
    assert game.server._plan.degree < 39
    assert all(
        len(parcel.boxes) == game.server._plan.degree
        for parcel in game.server._sealed_shares.values()
    )


def test_a_message_has_its_version_and_kind_checked() -> None:
    cohort = Cohort(3)
    game = Round(cohort)
    message = game.ask("node-000")
    for bad in (
        b"XX" + message[2:],
        message[:4] + b"\x01" + message[5:],
        frame(Kind.SHARES, game.session.id) + message[38:],
    ):
        with pytest.raises(ProtocolError):
            game.server.receive("node-000", bad)
