"""Sums that can be subtracted: what a coordinator learns of one member from two sums of nearly the
same members.

Each attack has an arm without the rule that stops it, in which it must succeed: otherwise the test
would show nothing.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import ProtocolError, RoundAborted
from quietchoir.crypto import shamir
from quietchoir.crypto.secagg import RevealLedger
from quietchoir.federation.aggregation import survivor_sets
from quietchoir.federation.events import AbortedEvent, AskedEvent
from quietchoir.federation.rounds import client
from quietchoir.federation.rounds.attempt import Answers, RoundAttempt
from quietchoir.federation.rounds.client import Client, training_seed
from quietchoir.federation.rounds.scheduler import Waiting, draw
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.policy import AggregationTable, GuardTable
from quietchoir.federation.store.checkpoint import Store
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import RoundId
from quietchoir.simulations.inprocess import InProcessLink
from quietchoir.tests.fakes.buffered import NapLink, buffered, buffered_schedule, run_of
from quietchoir.tests.fakes.federation import (
    FixedLearner,
    House,
    SilentLink,
    TickingClock,
    clients,
    coordinator,
    house,
)
from quietchoir.tests.fakes.households import (
    ACCOMPLICES,
    RUN,
    SIZE,
    VICTIM,
    correlation,
    households,
)
from quietchoir.tests.fakes.secagg import Cohort, Round, frozen

# --- the protocol alone
# -----------------------------------------------------------------------------------------------


def test_an_upload_counts_as_used_when_it_leaves_not_when_it_is_opened() -> None:
    cohort = Cohort(5)
    ledgers = {name: RevealLedger() for name in cohort.names}
    # uploads are out; the coordinator says that nothing came of it
    Round(cohort, ledgers=ledgers).play(stages=3)
    before = {name: ledger.snapshot() for name, ledger in ledgers.items()}
    with pytest.raises(ProtocolError, match="has sent its masked update in attempt 0"):
        Round(cohort, attempt=1, ledgers=ledgers)
    assert {name: ledger.snapshot() for name, ledger in ledgers.items()} == before
    # another number: trained anew
    assert Round(cohort, 2, ledgers=ledgers).play().result.survivors == tuple(cohort.names)


SUBJECT = b"a" * 32  # the same adapter


def two_sums(cohort: Cohort, first: set[str], second: set[str], **rule: Any) -> np.ndarray:
    """What a coordinator learns that drops members from two rounds about the same: the
    difference of the sums.
    """
    ledgers = {name: RevealLedger() for name in cohort.names}
    one = Round(cohort, 1, ledgers=ledgers, **rule).play({2: first})
    other = Round(cohort, 2, ledgers=ledgers, **rule).play({2: second})
    return one.result.total - other.result.total


def test_two_sums_of_one_adapter_that_differ_by_one_member_are_its_update_and_are_refused() -> None:
    cohort = Cohort(10)
    victim = cohort.names[4]
    assert np.array_equal(two_sums(cohort, set(), {victim}), cohort.values[victim])  # unprotected
    rule = {"subjects": (SUBJECT,)}
    for dropped in ({victim}, {victim, *cohort.names[:2]}):
        with pytest.raises(
            ProtocolError, match=f"differ by {len(dropped)} members .* need the very same"
        ):
            two_sums(cohort, set(), dropped, **rule)
    with pytest.raises(ProtocolError, match="differ by 2 members"):  # one for another is two
        two_sums(cohort, {cohort.names[0]}, {victim}, **rule)
    assert not two_sums(cohort, {victim}, {victim}, **rule).any()  # the same set tells nothing new


def test_a_refused_set_of_survivors_changes_nothing_and_other_subjects_are_free() -> None:
    cohort = Cohort(5)
    ledgers = {name: RevealLedger() for name in cohort.names}
    rule: dict[str, Any] = {"subjects": (SUBJECT,)}
    Round(cohort, 1, ledgers=ledgers, **rule).play()
    # a restart forgets nothing
    ledgers = {name: RevealLedger.restore(ledger.snapshot()) for name, ledger in ledgers.items()}
    game = Round(cohort, 2, ledgers=ledgers, **rule).play({2: cohort.names[:1]}, stages=3)
    before = frozen(game.clients[cohort.names[1]])
    with pytest.raises(ProtocolError, match="nothing is signed"):
        game.ask(cohort.names[1])
    assert frozen(game.clients[cohort.names[1]]) == before
    assert ledgers[cohort.names[1]].before(SUBJECT) == (tuple(cohort.names),)
    other: dict[str, Any] = {"subjects": (b"b" * 32,)}
    assert (
        len(Round(cohort, 3, ledgers=ledgers, **other).play({2: cohort.names[:1]}).result.survivors)
        == 4
    )


def test_a_set_is_remembered_by_who_signed_it_also_if_the_sum_was_never_opened_there() -> None:
    cohort = Cohort(5)
    ledgers = {name: RevealLedger() for name in cohort.names}
    Round(cohort, 1, ledgers=ledgers, subjects=(SUBJECT,)).play(stages=4)  # signatures are out
    assert all(ledger.before(SUBJECT) == (tuple(cohort.names),) for ledger in ledgers.values())


# --- two sums of nearly the same
# --------------------------------------------------------------------------------------


def again(home: House, members: Mapping[str, Client], absent: Collection[str]) -> RoundServer:
    """A new run, without these members."""
    for member in members.values():
        member.ledger.release()
    link = InProcessLink(
        {name: member.handle for name, member in members.items() if name not in absent}
    )
    return coordinator(home, members, SIZE, link=link)


def difference(home: House, members: Mapping[str, Client], absent: Collection[str]) -> np.ndarray:
    """What two runs from zeros tell together, the second one without `absent`: their part, if
    the others train alike.
    """
    sums = []
    for gone in ((), absent):
        run = again(home, members, gone)
        run.train_round()
        entry = run.state.history[0]
        sums.append(run.state.server.velocity.astype(np.float64) * len(entry["parties"]))
    found: np.ndarray = sums[0] - sums[1]
    return found


def old_seed(round_id: RoundId, adapter: bytes, name: str) -> int:
    """The seed as it was: of the number of the round and the name."""
    del adapter
    return training_seed(RoundId("", round_id.round, 0), b"", name)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members do not remember whom they were summed with."""
    monkeypatch.setattr(RevealLedger, "sign", lambda *given: None)


def test_a_second_run_without_one_member_gives_its_update(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    monkeypatch.setattr(client, "training_seed", old_seed)
    home = house(10, mode="masked", bits=16)
    members = households(home, shaken=1.0)
    trained = (
        members[VICTIM]
        .learner.train(np.zeros(SIZE, np.float32), old_seed(RoundId(RUN, 1, 1), b"", VICTIM))
        .flat
    )
    found = difference(home, members, {VICTIM})
    assert np.corrcoef(found, trained)[0, 1] > 0.9999


def test_with_other_seeds_the_difference_holds_the_others_shake_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What seeds alone do, and what they do not: that is why members refuse the second sum."""
    forget(monkeypatch)
    home = house(10, mode="masked", bits=16)
    assert (
        correlation(
            difference(home, households(home, shaken=1.0), {VICTIM}), households(home)[VICTIM]
        )
        < 0.5
    )
    assert (
        correlation(
            difference(home, households(home, shaken=0.05), {VICTIM}), households(home)[VICTIM]
        )
        > 0.9
    )


@pytest.mark.parametrize("absent", [{VICTIM}, {VICTIM, *ACCOMPLICES}])
def test_the_coordinator_waits_for_whom_a_second_sum_needs_and_says_so(absent: set[str]) -> None:
    home = house(10, mode="masked", bits=12, recipe={"attempts": 2})
    members = households(home)
    with pytest.raises(RoundAborted, match=r"need 7, .*eve.* among them"):
        run = again(home, members, ())
        run.train_round()
        short = again(home, members, absent)
        short.insist(short.train_round)
    assert (
        short.state.history == ()
        and (f"waiting for {', '.join(sorted(absent))}") in short.aborted[0]
    )
    assert "A new version of the federation file" in short.aborted[0]
    whole = again(home, members, ())  # the same members come back
    whole.train_round()
    assert len(whole.state.history[0]["parties"]) == 10


@pytest.mark.parametrize("absent", [{VICTIM}, {VICTIM, *ACCOMPLICES}])
def test_members_do_not_sign_for_it_whatever_the_coordinator_does(
    absent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        RoundAttempt, "choose", lambda self, answers, terms, need: answers.only(answers.ready)
    )
    home = house(10, mode="masked", bits=12, recipe={"attempts": 1})
    members = households(home)
    with pytest.raises(RoundAborted, match="signed the survivors"):
        difference(home, members, absent)
    # And not within one run either, by members that fall silent once their masked updates have
    # left.
    run = again(home, members, ())
    run.messenger.link = SilentLink(
        {name: member.handle for name, member in members.items()},
        lambda name, message: name in absent and b'"stage":"mask"' in message,
    )
    with pytest.raises(RoundAborted, match="signed the survivors"):
        run.train_round()


def test_scores_of_one_adapter_are_held_to_the_same_members_too() -> None:
    home = house(10, mode="masked", bits=12)
    members = households(home)
    run = again(home, members, ())
    run.score_round()
    other = again(home, members, {VICTIM})
    with pytest.raises(RoundAborted, match="waiting for eve"):
        other.score_round()
    other.attempt.missing = frozenset()
    # nor beside a training from the same adapter
    with pytest.raises(RoundAborted, match="waiting for eve"):
        other.train_round()


class Killed(BaseException):
    """The coordinator's process is gone."""


def lose_the_sum(
    home: House, members: Mapping[str, Client], store: Store, silent: Collection[str]
) -> None:
    """One attempt that is opened, and then the coordinator is killed; these fall silent before
    they send.
    """
    link = SilentLink(
        {name: member.handle for name, member in members.items()},
        lambda name, message: name in silent and b'"stage":"mask"' in message,
    )
    run = coordinator(home, members, SIZE, link=link, store=store)

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    run.apply = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run.train_round()
    store.close()


@pytest.mark.parametrize("silent", [(), ("dan",)])
@pytest.mark.parametrize("mode", ["masked", "plain"])
def test_a_sum_that_was_opened_and_lost_is_summed_again_over_the_same_members(
    mode: str, silent: tuple[str, ...], tmp_path: Any
) -> None:
    home = house(5, mode=mode, bits=12)
    members = households(home)
    if mode == "plain":
        silent = ()
    lose_the_sum(home, members, Store(tmp_path), silent)
    store = Store(tmp_path)
    run = coordinator(home, members, SIZE, store=store)
    run.train_round()
    assert run.aborted == [] and set(run.state.history[0]["parties"]) == set(members) - set(silent)
    run.train_round()  # from the next adapter, everybody is in it again
    assert set(run.state.history[1]["parties"]) == set(members)
    store.close()


def test_the_same_with_buckets(tmp_path: Any) -> None:
    home = house(
        10,
        mode="masked",
        bits=12,
        tables={"aggregation": AggregationTable(rule="median", buckets=3)},
    )
    members = households(home)
    lose_the_sum(home, members, Store(tmp_path), ("dan",))
    store = Store(tmp_path)
    run = coordinator(home, members, SIZE, store=store)
    run.train_round()
    store.close()
    assert run.state.history[0]["buckets"] == 2 and set(run.state.history[0]["parties"]) == set(
        members
    ) - {"dan"}


def test_a_buffered_group_that_was_opened_and_lost_comes_again_and_no_other_like_it() -> None:
    home = buffered(5, mode="masked", bits=12, schedule={"buffer": 4, "patience_s": 30.0})
    members = households(home)
    run = run_of(home, members, clock=TickingClock())
    group = run.scheduler.next_group(evaluate=True)
    run.attempt.aggregate(group)  # opened, and then lost
    run.logbook.skip()
    buffered_schedule(run).asked.clear()
    run.learn(1)
    assert run.state.history[0]["parties"] == list(group.draw.cohort)
    assert run.state.history[0]["staleness"] == [0] * 4


def test_what_a_guard_has_scored_is_not_scored_again_at_the_end() -> None:
    home = house(
        mode="masked", bits=12, recipe={"rounds": 2}, tables={"guard": GuardTable(rule="vote")}
    )
    members = clients(home, SIZE, lambda name: FixedLearner(0.05, correct=6))
    link = SilentLink(
        {name: client.handle for name, client in members.items()}, lambda name, message: False
    )
    report = coordinator(home, members, SIZE, link=link).run()
    scored = [
        message for name, message in link.letters if name == "ann" and b'"stage":"score"' in message
    ]
    assert len(scored) == 2 and report.accuracy == {"before": 0.6, "after": 0.6}


def test_a_run_that_goes_on_after_its_end_does_not_score_the_same_adapter_twice() -> None:
    home = house(mode="masked", bits=12, recipe={"rounds": 1})
    run = coordinator(home, households(home), SIZE)
    run.run()
    run.run(rounds=2)
    assert [(entry["kind"], entry["scored"]) for entry in run.state.history] == [
        ("train", 4),
        ("train", 0),
        ("score", 4),
    ]


def test_a_training_seed_is_another_for_each_run_round_attempt_adapter_and_member() -> None:
    places = [RoundId(RUN, 1, 1), RoundId("0b" * 16, 1, 1), RoundId(RUN, 2, 1), RoundId(RUN, 1, 2)]
    seeds = [
        training_seed(round_id, adapter, name)
        for round_id in places
        for adapter in (b"a" * 32, b"b" * 32)
        for name in ("ann", "ben")
    ]
    assert len(set(seeds)) == len(seeds)


def test_whoever_is_chosen_signs_whatever_sets_a_member_makes_up() -> None:
    rng = np.random.default_rng(5)
    names = [f"m{number}" for number in range(9)]
    chosen_again = 0
    for _ in range(300):
        ledgers = {name: RevealLedger() for name in names}
        for _ in range(rng.integers(0, 3)):  # earlier sums, signed for by all that would
            past = sorted(rng.choice(names, rng.integers(6, 10), replace=False))
            try:
                for name in past:
                    ledgers[name].check((b"s" * 32,), past)
            except ProtocolError:
                continue
            for name in past:
                ledgers[name].sign((b"s" * 32,), past)
        ready = sorted(rng.choice(names, rng.integers(6, 10), replace=False))
        before = {
            name: frozenset(map(frozenset, ledgers[name].before(b"s" * 32))) for name in ready
        }
        choice = survivor_sets.choose([ready], before, need=6, least=6)
        assert bool(choice.members) != bool(choice.reason)
        for name in choice.members:
            ledgers[name].sign((b"s" * 32,), sorted(choice.members))
        chosen_again += bool(choice.members) and any(before.values())
    assert chosen_again > 50
    liar = {"m0": frozenset({frozenset({"m0", "m1"}), frozenset(names[:8])})}
    assert survivor_sets.choose([names], liar, need=6, least=6).members == frozenset(names[1:])
    liars = liar | {"m8": frozenset({frozenset({"m8", "m7"})})}  # two of them, each with its own
    assert survivor_sets.choose([names], liars, need=6, least=6).members == frozenset(names[1:8])


def test_a_member_that_deals_its_secret_wrongly_stops_a_run_until_its_owner_lets_it_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stated in `crypto/README.md`: those that signed with it sign for nobody else from that
    adapter.
    """
    home = house(5, mode="masked", bits=12, recipe={"attempts": 2})
    members = households(home)
    dealt = shamir.split
    honest = members["dan"].go_on

    def dealing(task: Any) -> bytes:
        if task.stage == "share":
            monkeypatch.setattr(
                shamir, "split", lambda secret, least, points: dealt(bytes(32), least, points)
            )
        try:
            return honest(task)
        finally:
            monkeypatch.setattr(shamir, "split", dealt)

    members["dan"].go_on = dealing  # type: ignore[method-assign]
    run = coordinator(home, members, SIZE)
    with pytest.raises(
        RoundAborted, match="the shares of dan do not give the secret it advertised"
    ):
        run.insist(run.train_round)
    others = {name: client.handle for name, client in members.items() if name != "dan"}
    run.messenger.link = InProcessLink(others)
    with pytest.raises(RoundAborted, match="dan among them"):
        run.insist(run.train_round)
    later = dataclasses.replace(
        home.policy,
        version=2,
        members=tuple(one for one in home.policy.members if one.name != "dan"),
    )
    for name in others:
        members[name].policy = later
    run.take(later)
    run.train_round()
    assert run.state.history[0]["parties"] == sorted(others)


def tell(member: Client, before: Callable[[], tuple[tuple[str, ...], ...]]) -> None:
    """From now on this member says that it signed for these; nothing if there are none."""
    honest = member.contribute

    def contribute(*given: Any, **more: Any) -> bytes:
        answer = honest(*given, **more)
        said = messages.decode_ready(answer)
        assert said is not None
        made_up = before()
        return messages.encode_ready(dataclasses.replace(said, before=made_up or said.before))

    member.contribute = contribute  # type: ignore[method-assign]


@pytest.mark.parametrize("victims", [slice(None, 3), slice(-3, None)])
def test_two_liars_of_a_cohort_do_not_name_the_next_one(victims: slice) -> None:
    home = house(12, mode="masked", bits=12, recipe={"rounds": 1, "cohort": 6})
    members, cohorts = clients(home, SIZE), list[tuple[str, ...]]()

    def wanted() -> tuple[str, ...]:
        liars = cohorts[0][:2]
        return tuple(sorted((*liars, *[name for name in members if name not in liars][victims])))

    def lies(name: str) -> tuple[tuple[str, ...], ...]:
        if len(cohorts) > 1 or name not in cohorts[0][:2]:
            return ()
        pairs = (tuple(sorted((name, other))) for other in members if other not in cohorts[0][:2])
        return tuple(sorted((wanted(), *pairs)))

    def note(event: Any) -> None:
        if isinstance(event, AskedEvent) and event.stage == messages.TRAIN:
            cohorts.append(event.cohort)

    for name, member in members.items():
        tell(member, lambda name=name: lies(name))  # type: ignore[misc]
    run = coordinator(home, members, SIZE, on_event=note)
    run.run()
    first, *later = cohorts
    assert run.state.round == 1 and all(set(one) != set(wanted()) for one in later)
    # it is the draw of the next number, of whoever did not lie
    others = frozenset(members) - set(first[:2])
    expected = draw(home.policy, RoundId(run.state.run, 2, 1), others).cohort
    assert later in ([], [expected])


def test_a_minority_of_a_set_cannot_make_it_up_and_half_of_an_honest_one_can_tell_it() -> None:
    honest, made_up = frozenset("abcdef"), frozenset("abxyz")
    told = {name: frozenset({honest}) for name in "cde"} | {"f": frozenset[frozenset[str]]()}
    assert survivor_sets.confirmed(told) == {honest}
    lies = {name: frozenset({made_up}) for name in "ab"}
    assert survivor_sets.confirmed(lies) == frozenset()
    assert survivor_sets.confirmed(told | lies) == frozenset()  # they would not sign for it again


@pytest.mark.parametrize(
    "made_up", [(), (("eve", "nobody"),), (("eve", "gus"),), (("cat", "eve", "gus"),)]
)
def test_a_made_up_set_does_not_make_a_run_wait_for_whom_it_names(
    made_up: tuple[tuple[str, ...], ...],
) -> None:
    home = house(7, mode="masked", bits=12, recipe={"rounds": 1})
    members = clients(home, SIZE)
    tell(members["eve"], lambda: made_up)
    link = NapLink(members)
    link.asleep = {"fay", "gus"}  # five of seven are needed, and five are there
    run = coordinator(
        home, members, SIZE, link=link, waiting=Waiting(clock=TickingClock(), patient=True),
        on_event=lambda event: leave(event, link, {"eve", "gus"}),
    )  # fmt: skip
    run.run()
    told = bool(made_up) and made_up[0][-1] == "gus"
    assert len(run.aborted) == told
    last = "fay" if told else "eve"
    assert run.state.history[0]["parties"] == ["ann", "ben", "cat", "dan", last]


def leave(event: Any, link: NapLink, names: set[str]) -> None:
    """Once an attempt has failed these are away, for good, and the others there."""
    if isinstance(event, AbortedEvent):
        link.asleep = names


def test_an_answer_speaks_for_its_sender_alone() -> None:
    home = house(mode="masked")
    members = households(home)
    answers = Answers()
    said = messages.encode_ready(
        messages.Ready(scores=True, before=(("ann", "ben"), ("ben", "cat")))
    )
    reply = messages.Reply(
        round_id=RoundId(RUN, 1, 1), stage=messages.TRAIN, sender="ann", task="", payload=said
    )
    assert answers.take(reply, home.policy) and answers.before == {
        "ann": frozenset({frozenset({"ann", "ben"})})
    }
    for bad in (
        b"",
        b"spent",
        b"{}",
        b'{"before":[],"scores":1}',
        b'{"ballot":[],"before":[[1]],"scores":true}',
        b"[" * 10_000,
    ):
        assert messages.decode_ready(bad) is None
    assert len(members) == 4
