"""A coordinator that chooses the adapter: the same one for everybody, made so that a sum gives
somebody's words away.

Where members follow the adapter from zeros by the sums that were opened, nobody vouches for such a
one.
Source: Boenisch et al. 2023, "When the curious abandon honesty" (trap weights).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import MessageError, RoundAborted
from quietchoir.crypto.secagg import tag
from quietchoir.federation.aggregation import delta_chain
from quietchoir.federation.aggregation.base import ClientContext, Sum
from quietchoir.federation.aggregation.delta_chain import DeltaChain, Step, attested, name_of
from quietchoir.federation.aggregation.secagg import MaskedServer
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.global_model import LackingError
from quietchoir.federation.rounds.model_broadcast import (
    NAME,
    ClientModelCache,
    FollowedModel,
    Memory,
)
from quietchoir.federation.rounds.scheduler import Offer
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.policy import AggregationTable
from quietchoir.federation.store.checkpoint import ServerState
from quietchoir.federation.store.member import open_member
from quietchoir.federation.wire import messages
from quietchoir.tests.fakes.buffered import buffered, buffered_schedule, run_of
from quietchoir.tests.fakes.federation import (
    ANY_MODE,
    FixedLearner,
    House,
    TickingClock,
    coordinator,
    delta,
    followed,
    house,
    trainings,
)
from quietchoir.tests.fakes.store import damage

SIZE = 80
TRAP = ServerState(
    np.where(np.arange(SIZE) % 2, 0.3, -0.3).astype(np.float32), np.zeros(SIZE, np.float32)
)


def fixed(home: House, folder: Path | None = None) -> dict[str, Client]:
    """Members that remember what they trained from; on disk with `folder`."""
    return {
        name: Client(
            home.policy, key, FixedLearner(0.04 * (number + 1)), size=SIZE, consent=ANY_MODE,
            cache=ClientModelCache(None if folder is None else open_member(folder / name)),
        )
        for number, (name, key) in enumerate(home.members.items())
    }  # fmt: skip


def chosen(run: RoundServer) -> RoundServer:
    """The run goes on from the coordinator's own adapter, told whole to all alike: its state,
    digests and names all fit.
    """
    run.logbook.keep(server=TRAP, round=5, steps=())
    delta(run).deltas.clear()
    if run.policy.schedule.buffered:  # it leaves nobody out
        buffered_schedule(run).vouched = lambda names: names  # type: ignore[method-assign]
    return run


def trained_from(members: Mapping[str, Client]) -> set[bytes]:
    """Every adapter that somebody trained from."""
    return {flat.tobytes() for client in members.values() for flat in trainings(client)}


def opened(members: Mapping[str, Client]) -> bool:
    """Did anybody help to open a sum?"""
    return any(b'"opened": []' not in client.ledger.sums.snapshot() for client in members.values())


def without_vouching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members take whatever adapter they are told, as before."""
    honest = ClientContext.__init__

    def careless(self: ClientContext, **named: Any) -> None:
        told = ("vouch", "relies", "scores", "subjects")
        honest(self, **{name: one for name, one in named.items() if name not in told})

    monkeypatch.setattr(ClientContext, "__init__", careless)


@pytest.mark.parametrize("schedule", ["synchronous", "buffered"])
def test_an_adapter_of_the_coordinators_choice_was_trained_from_and_summed_before(
    schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_vouching(monkeypatch)
    home = (
        house(4, mode="masked", recipe={"attempts": 1})
        if schedule == "synchronous"
        else buffered(mode="masked")
    )
    members = fixed(home)
    run = chosen(
        coordinator(home, members, SIZE) if schedule == "synchronous" else run_of(home, members)
    )
    run.learn(6)
    assert opened(members) and TRAP.flat.tobytes() in trained_from(members) and run.state.round == 6


@pytest.mark.parametrize("schedule", ["synchronous", "buffered"])
@pytest.mark.parametrize("when", ["a new run", "a run under way", "everybody lost its disk"])
def test_nobody_vouches_for_an_adapter_of_the_coordinators_choice(schedule: str, when: str) -> None:
    if schedule == "synchronous":
        home = house(4, mode="masked", recipe={"attempts": 1})
    else:
        home = buffered(mode="masked", recipe={"attempts": 1}, schedule={"patience_s": 100.0})
    members = fixed(home)
    more: dict[str, Any] = {} if schedule == "synchronous" else {"clock": TickingClock()}
    run = (
        coordinator(home, members, SIZE)
        if schedule == "synchronous"
        else run_of(home, members, **more)
    )
    rounds = 0
    if when != "a new run":
        run.learn(rounds := 2)
    if when == "everybody lost its disk":
        for client in members.values():
            followed(client).cache = ClientModelCache()
    seen = [client.ledger.sums.snapshot() for client in members.values()]
    with pytest.raises(RoundAborted):
        chosen(run).learn(6)
    assert [client.ledger.sums.snapshot().split(b'"opened"')[1] for client in members.values()] == [
        one.split(b'"opened"')[1] for one in seen
    ]
    assert rounds == len(run.state.history)
    trail = [
        followed(client).cache.memory(run.state.run).trail
        for client in members.values()
        if isinstance(client.model, FollowedModel)
    ]
    assert all(name_of(TRAP) not in names for names in trail)


@pytest.mark.parametrize("accomplices, summed", [(2, False), (3, True)])
def test_a_third_of_the_cohort_cannot_vouch_for_it_and_one_more_can(
    accomplices: int, summed: bool
) -> None:
    """As many as the threshold bears, and one more: the stated bound is tight."""
    home = house(5, mode="masked", recipe={"attempts": 1})
    members = fixed(home)
    run = chosen(coordinator(home, members, SIZE))
    for name in sorted(members)[:accomplices]:
        model_cache = followed(members[name]).cache
        assert model_cache is not None
        # they say that they followed
        model_cache._memory = Memory(run.state.run, ((name_of(TRAP), TRAP),), (name_of(TRAP),))
    if summed:
        run.train_round()
    else:
        with pytest.raises(RoundAborted):
            run.train_round()
    assert opened(members) is summed


def test_a_member_that_comes_late_takes_the_whole_once_others_vouch_and_follows_from_then_on(
    tmp_path: Path,
) -> None:
    home = house(4, mode="masked", recipe={"attempts": 1})
    members = fixed(home, tmp_path)
    run = coordinator(home, members, SIZE)
    run.learn(3)
    # the way from zeros is too long to be told
    delta(run).deltas = dict(list(delta(run).deltas.items())[-1:])
    ann = followed(members["ann"]).cache
    assert ann is not None and ann.database is not None
    assert (ann.database.path.stat().st_mode & 0o777) == 0o600
    ann.database.drop(NAME)
    followed(members["ann"]).cache = ClientModelCache(open_member(tmp_path / "ann"))
    run.train_round()
    assert "ann" in run.state.history[-1]["parties"] and "ann" not in delta(run).relying
    trail = (
        ClientModelCache(open_member(tmp_path / "ann")).memory(run.state.run).trail
    )  # as it is on disk
    assert (
        len(trail) == 1 and trail[0] in followed(members["ben"]).cache.memory(run.state.run).trail
    )


def test_a_member_that_was_started_again_goes_on_from_its_disk(tmp_path: Path) -> None:
    home = house(4, mode="masked", recipe={"attempts": 1})
    members = fixed(home, tmp_path)
    run = coordinator(home, members, SIZE)
    run.learn(2)
    for name, client in members.items():
        # everybody, at once: nobody could vouch for the others
        followed(client).cache = ClientModelCache(open_member(tmp_path / name))
    delta(run).forget()
    run.train_round()
    assert len(run.state.history[-1]["parties"]) == 4
    assert len(ClientModelCache(open_member(tmp_path / "ann")).memory(run.state.run).trail) == 2


@pytest.mark.parametrize("harm", ["damaged", "of another program"])
def test_a_damaged_record_makes_a_newcomer_and_nothing_worse(tmp_path: Path, harm: str) -> None:
    home = house(4, mode="masked", recipe={"attempts": 1})
    members = fixed(home, tmp_path)
    run = coordinator(home, members, SIZE)
    run.learn(2)
    if harm == "damaged":
        damage(tmp_path / "ann", NAME)
    else:
        open_member(tmp_path / "ann").put(NAME, {"held": 7}, b"")
    followed(members["ann"]).cache = ClientModelCache(open_member(tmp_path / "ann"))
    delta(run).forget()
    run.train_round()
    assert len(run.state.history[-1]["parties"]) == 4


def test_a_whole_adapter_does_not_take_the_place_of_one_that_was_followed() -> None:
    """A coordinator cannot make everybody a newcomer by telling wholes."""
    home = house(4, mode="masked", recipe={"attempts": 1})
    members = fixed(home)
    run = coordinator(home, members, SIZE)
    run.learn(2)
    true = run.state
    with pytest.raises(RoundAborted):
        chosen(run).learn(6)
    run.logbook.keep(server=true.server, round=5, steps=true.steps)
    delta(run).deltas = {one.name: one for one in true.steps}
    delta(run).forget()
    run.train_round()
    assert len(run.state.history[-1]["parties"]) == 4 and not delta(run).relying


def false_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator says another sum than the one that was opened, and steps from it itself."""
    honest = MaskedServer.sums

    def sums(self: MaskedServer) -> tuple[Sum]:
        (true,) = honest(self)
        whole = true.total.copy()
        # within the file's ranges
        whole[: self.config.length - 50] += np.arange(self.config.length - 50) % 7
        return (dataclasses.replace(true, total=whole, packed=None),)

    monkeypatch.setattr(MaskedServer, "sums", sums)


@pytest.mark.parametrize("signed", [False, True])
def test_a_sum_that_was_not_opened_is_gone_by_only_where_nobody_signs(
    signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    false_sums(monkeypatch)
    if not signed:
        monkeypatch.setattr(DeltaChain, "_proven", lambda *given: None)
    home = house(4, mode="masked", recipe={"attempts": 1})
    members = fixed(home)
    run = coordinator(home, members, SIZE)
    run.train_round()
    chosen_flat = run.state.server.flat.tobytes()
    if not signed:
        run.train_round()
        assert chosen_flat in trained_from(members)
        return
    with pytest.raises(RoundAborted):
        run.train_round()
    name = name_of(run.state.server)
    assert all(
        name not in followed(client).cache.memory(run.state.run).trail
        for client in members.values()
        if isinstance(client.model, FollowedModel)
    )
    assert len(run.state.history) == 1


def test_a_sum_that_was_not_opened_is_signed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = MaskedServer.shown

    def shown(self: MaskedServer) -> bytes:
        whole = self.opened.total.copy()
        whole[0] += 1
        self.server.result = dataclasses.replace(self.opened, total=whole)
        return honest(self)

    monkeypatch.setattr(MaskedServer, "shown", shown)
    home = house(4, mode="masked", recipe={"attempts": 1})
    run = coordinator(home, fixed(home), SIZE)
    with pytest.raises(RoundAborted, match="0 members signed the opened sum, need 3"):
        run.train_round()
    assert not run.state.server.flat.any() and not run.state.history


def test_a_member_that_sends_a_wrong_tag_costs_the_attempt_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest, lies = tag.make, [True]

    def make(key: bytes, values: Any, name: str) -> tag.Tag:
        made = honest(key, values, name)
        return (made[0] ^ 1, *made[1:]) if name == "ann" and lies else made

    monkeypatch.setattr(tag, "make", make)
    home = house(4, mode="masked", recipe={"attempts": 2})
    run = coordinator(home, fixed(home), SIZE)
    with pytest.raises(RoundAborted, match="0 members signed"):
        run.train_round()
    run.abandon(RoundAborted("as the run does"))
    assert not run.state.server.flat.any()
    lies.clear()
    run.train_round()
    assert len(run.state.history[-1]["parties"]) == 4


@pytest.mark.parametrize(
    "forged", ["of another parent", "twice", "of too few", "of a stranger", "of other names"]
)
def test_signed_sums_make_one_step_from_one_state(forged: str) -> None:
    """A coordinator that has true signatures cannot use them for anything else."""
    home = house(4, mode="masked", recipe={"attempts": 1})
    members = fixed(home)
    run = coordinator(home, members, SIZE)
    run.learn(2)
    first, second = (delta_chain.split(bytes(32) + one.body)[1][0] for one in run.state.steps)
    made, model_cache = DeltaChain(home.policy, SIZE, run.state.run), ClientModelCache()
    origin, (one, two) = delta_chain.origin_of(SIZE), (entry.name for entry in run.state.steps)
    good = model_cache.follow(
        made, two, delta_chain.join(origin, [first.encode(), second.encode()])
    )
    assert good.followed and good.passed == (one, two)
    total = first.totals[0]
    names = dict.fromkeys(total.names[: total.parties * 2 // 3])
    way = {
        "of another parent": [second],
        "twice": [first, first],
        "of too few": [
            dataclasses.replace(
                first,
                totals=(dataclasses.replace(total, proof={n: total.proof[n] for n in names}),),
            )
        ],
        "of a stranger": [
            dataclasses.replace(
                first,
                totals=(
                    dataclasses.replace(total, proof={f"x{n}": p for n, p in total.proof.items()}),
                ),
            )
        ],
        "of other names": [
            dataclasses.replace(
                first, totals=(dataclasses.replace(total, names=total.names[:-1], parties=3),)
            )
        ],
    }[forged]
    with pytest.raises(LackingError):
        model_cache.follow(made, two, delta_chain.join(origin, [step.encode() for step in way]))
    assert model_cache.memory(run.state.run) == Memory(run.state.run)


@pytest.mark.parametrize("at", ["after a signed step", "after another whole"])
def test_a_way_that_passes_through_a_whole_state_is_refused(at: str) -> None:
    """What such a way leads to would count as followed, whatever it is."""
    home = house(4, mode="masked", recipe={"attempts": 1})
    run = coordinator(home, fixed(home), SIZE)
    run.learn(1)
    first = delta_chain.split(bytes(32) + run.state.steps[0].body)[1][0]
    whole = Step(kind="whole", state=TRAP.encode())
    way = [first, whole] if at == "after a signed step" else [whole, whole]
    model_cache = ClientModelCache()
    with pytest.raises(MessageError, match="passes through a whole one"):
        model_cache.follow(
            DeltaChain(home.policy, SIZE, run.state.run),
            name_of(TRAP),
            delta_chain.join(delta_chain.origin_of(SIZE), [step.encode() for step in way]),
        )
    assert model_cache.memory(run.state.run) == Memory(run.state.run)


def test_a_finished_adapter_is_the_coordinators_word_and_nobody_vouches_for_it() -> None:
    """As `crypto/README.md` says: who comes late gets it whole, so nobody insists on having
    followed.
    """
    home = house(4, mode="masked", recipe={"attempts": 1})
    members, kept = fixed(home), list[bytes]()

    def keep(flat: Any, card: str) -> str:
        kept.append(flat.tobytes())
        return card

    for client in members.values():
        client.adopt = keep
    run = coordinator(home, members, SIZE)
    run.learn(2)
    way = delta_chain.join("", [Step(kind="whole", state=TRAP.encode()).encode()])
    handed = messages.encode_delta_work(
        messages.Work(flat=TRAP.flat, state=name_of(TRAP), card="c"), way
    )
    letters = dict.fromkeys(members, handed)
    assert len(list(run.messenger.ask(messages.ADOPT, letters, run.attempt.begin(), 5.0))) == 4
    assert kept == [TRAP.flat.tobytes()] * 4
    assert not any(
        followed(client).cache.follows(name_of(TRAP), run.state.run, SIZE)
        for client in members.values()
        if isinstance(client.model, FollowedModel)
    )


@pytest.mark.parametrize("taken", [(0,), (1, 2), (0, 1, 2)])
def test_which_buckets_sums_are_in_a_step_is_the_coordinators_choice(
    taken: tuple[int, ...],
) -> None:
    """As the table of `crypto/README.md` says: one that is left out cannot be told from a lost
    one.
    """
    tables = {"aggregation": AggregationTable(rule="median", buckets=3)}
    home = house(12, mode="masked", recipe={"attempts": 1}, tables=tables)
    members = fixed(home)
    for client in members.values():
        client.learner = FixedLearner(0.05)
    run = coordinator(home, members, SIZE)
    run.learn(1)
    step = delta_chain.split(bytes(32) + run.state.steps[0].body)[1][0]
    some = dataclasses.replace(step, totals=tuple(step.totals[at] for at in taken))
    made, zeros = DeltaChain(home.policy, SIZE, run.state.run), ServerState.zeros(SIZE)
    led = ClientModelCache().follow(
        made,
        name_of(made.go(zeros, some, "")),
        delta_chain.join(delta_chain.origin_of(SIZE), [some.encode()]),
    )
    assert led.followed


@pytest.mark.parametrize("field", ["round", "attempt"])
def test_a_step_of_a_place_that_there_is_not_is_refused(field: str) -> None:
    home = house(4, mode="masked", recipe={"attempts": 1})
    run = coordinator(home, fixed(home), SIZE)
    run.learn(1)
    first = delta_chain.split(bytes(32) + run.state.steps[0].body)[1][0]
    for number in (1 << 63, 1 << 64, 1 << 200):
        far = dataclasses.replace(first, **{field: number})  # type: ignore[arg-type]
        with pytest.raises(MessageError, match="malformed"):
            delta_chain.split(delta_chain.join(delta_chain.origin_of(SIZE), [far.encode()]))


def test_one_member_stops_a_run_by_wrong_tags_as_long_as_it_likes_and_is_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `crypto/README.md` says: sums from one adapter are over the same members again."""
    honest = tag.make

    def make(key: bytes, values: Any, name: str) -> tag.Tag:
        made = honest(key, values, name)
        return (made[0] ^ 1, *made[1:]) if name == "ann" else made

    monkeypatch.setattr(tag, "make", make)
    home = house(4, mode="masked", recipe={"attempts": 1})
    run = coordinator(home, fixed(home), SIZE)
    for _ in range(3):
        with pytest.raises(RoundAborted, match="0 members signed") as stopped:
            run.train_round()
        assert "ann" not in str(stopped.value)
        run.abandon(RoundAborted("as the run does"))
    assert not run.state.server.flat.any() and not run.state.history


def test_sums_from_before_a_roster_grew_are_gone_by_after_it() -> None:
    """By newcomers from zeros, and by those who have yet to go the last one."""
    home = house(6, mode="masked", recipe={"attempts": 1})
    everybody = home.policy
    home.policy = dataclasses.replace(everybody, members=everybody.members[:4])
    late = {name: home.members.pop(name) for name in ("eve", "fay")}
    members = fixed(home)
    run = coordinator(home, members, SIZE)
    run.learn(2)
    home.policy = dataclasses.replace(everybody, version=2, head="ab" * 32)
    home.members |= late
    recalls = {name: followed(client).cache for name, client in members.items()}
    members = fixed(home)
    for name, model_cache in recalls.items():
        followed(members[name]).cache = model_cache
    for name in late:
        members[name].learner = FixedLearner(0.05)  # within the range
    run.link.parties |= {name: client.handle for name, client in members.items()}  # type: ignore[attr-defined]
    run.take(home.policy)
    run.train_round()
    assert len(run.state.history[-1]["parties"]) == 6 and not delta(run).relying


def test_above_32_members_sums_are_not_signed_and_the_file_says_so() -> None:
    small, large = house(4, mode="masked").policy, house(4, mode="masked").policy
    many = tuple(
        dataclasses.replace(large.members[0], name=f"n{at}", key=f"{at:064x}") for at in range(33)
    )
    large = dataclasses.replace(large, members=many)
    drawn = dataclasses.replace(large, recipe=dataclasses.replace(large.recipe, cohort=20))
    assert [attested(one) for one in (small, large, drawn)] == [True, False, True]
    assert not attested(house(4, mode="plain").policy) and not attested(
        house(4, mode="sealed").policy
    )


def test_a_group_of_late_members_alone_waits_for_those_that_followed() -> None:
    home = buffered(mode="masked")
    run = run_of(home, fixed(home))
    waiting, versions = buffered_schedule(run), {"ann": 2, "ben": 2, "cat": 1, "dan": 2}
    waiting.offers = {name: Offer(one, "00" * 32, f"{one:064x}") for name, one in versions.items()}
    delta(run).relying = {"ann", "ben"}
    assert waiting.alike(["ann", "ben", "cat"]) == ["cat"]
    assert waiting.alike(["ann", "cat", "dan"]) == ["cat", "dan"]
    waiting.offers["cat"] = waiting.offers["dan"]
    assert waiting.alike(["ann", "cat", "dan"]) == ["ann", "cat", "dan"]
    assert messages.DIGEST_BYTES == 32 and Step(kind="rest").encode()
