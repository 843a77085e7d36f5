"""Sums over few: what a coordinator that chooses whom to sum learns of one member.

Each attack has an arm without the rule that stops it, in which it must succeed: otherwise the test
would show nothing.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, MessageError, RoundAborted
from quietchoir.federation.aggregation import secagg
from quietchoir.federation.aggregation.base import Contributors, ServerContext, Sum
from quietchoir.federation.aggregation.buckets import buckets
from quietchoir.federation.aggregation.secagg import BucketGroup, MaskedServer, encode_contributors
from quietchoir.federation.aggregation.server_optimizer import adapter_digest
from quietchoir.federation.aggregation.update import Codec, SumContext
from quietchoir.federation.rounds import scheduler
from quietchoir.federation.rounds.client import Client, training_seed
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec import flags
from quietchoir.federation.spec.policy import AggregationTable, Policy, PrivacyTable
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import RoundId, Task
from quietchoir.tests.fakes.buffered import buffered, run_of
from quietchoir.tests.fakes.federation import House, SilentLink, clients, coordinator, house
from quietchoir.tests.fakes.households import (
    ACCOMPLICES,
    RUN,
    SIZE,
    VICTIM,
    Household,
    correlation,
    households,
)

# --- thresholds over what the coordinator names
# ------------------------------------------------------------------------------------------


class Chooser:
    """A coordinator's side of one attempt, with a sum for each list of members that it likes to
    name.
    """

    def __init__(self, home: House, members: dict[str, Client], round_id: RoundId) -> None:
        self.home, self.members, self.round_id = home, members, round_id
        self.order = messages.Work(flat=np.zeros(SIZE, np.float32), cohort=tuple(sorted(members)))

    def ask(self, name: str, stage: str, payload: bytes) -> bytes:
        """One message and its answer's payload."""
        task = Task(round_id=self.round_id, stage=stage, recipient=name, payload=payload)
        message = messages.encode_task(task, self.home.policy, self.home.coordinator)
        return messages.decode_reply(
            self.members[name].handle(message), self.home.policy, message
        ).payload

    def work(self) -> None:
        """All of them train."""
        for name in self.order.cohort:
            assert (
                messages.decode_ready(
                    self.ask(name, messages.TRAIN, messages.encode_work(self.order))
                )
                is not None
            )

    def sum(self, ready: tuple[str, ...], cohort: tuple[str, ...] = ()) -> Sum:
        """Tell these that they alone are ready; the sum over them, or over a bucket of them."""
        told = messages.work_digest(messages.TRAIN, self.order.header(), self.order.flat)
        half = MaskedServer(
            ServerContext(
                policy=self.home.policy,
                round_id=self.round_id,
                length=Codec(SIZE, self.home.policy).length,
                counted=True,
                contributors=Contributors(ready),
                asked=len(self.order.cohort),
                sum_context=SumContext(broadcast_digest=told),
            ),
            cohort or ready,
        )
        step: tuple[str, Mapping[str, bytes]] | None = half.begin()
        while step is not None:
            for name, payload in step[1].items():
                half.receive(name, self.ask(name, step[0], payload))
            step = half.advance()
        return half.sums()[0]


def as_it_was(policy: Any, asked: int = 0) -> int:
    """Two thirds of whomever the coordinator names: of three, three."""
    del asked
    return int(policy.protection.min_cohort)


def ten() -> tuple[House, dict[str, Client], Chooser]:
    """Ten members that have trained."""
    home = house(10, mode="masked", bits=12, recipe={"download": "adapter"})
    members = households(home)
    chooser = Chooser(home, members, RoundId(RUN, 1, 1))
    chooser.work()
    return home, members, chooser


LISTS = (("ann", "ben", "eve"), ("cat", "dan", "fay"), ("gus", "hal", "ida", "jon"))


def test_three_sums_over_three_three_and_four_of_ten_give_one_member_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Policy, "needed", as_it_was)
    home, members, chooser = ten()
    sums = [chooser.sum(ready) for ready in LISTS]
    codec = Codec(SIZE, home.policy)
    mean, _ = codec.decode(sums[0].total, 3)
    updates = [
        members[name].learner.train(np.zeros(SIZE, np.float32), seed).flat
        for name, seed in seeds_of(ACCOMPLICES)
    ]
    # but for its own shake, all of it
    assert correlation(3 * mean - sum(updates), members[VICTIM]) > 0.95


def seeds_of(names: Collection[str]) -> Iterator[tuple[str, int]]:
    """What the accomplices trained with: they know."""
    adapter = adapter_digest(np.zeros(SIZE, np.float32))
    for name in names:
        yield name, training_seed(RoundId(RUN, 1, 1), adapter, name)


def test_a_member_takes_the_threshold_from_whom_was_asked_not_from_who_is_said_to_be_ready() -> (
    None
):
    home, members, chooser = ten()
    before = {name: client.ledger.sums.snapshot() for name, client in members.items()}
    for ready in (*LISTS, ("ann", "ben", "cat", "dan", "eve", "fay")):
        for name in ready:
            with pytest.raises(
                MessageError, match=f"{len(ready)} of 10 members that were asked are ready, need 7"
            ):
                chooser.ask(name, "advertise", encode_contributors(Contributors(ready)))
    assert {name: client.ledger.sums.snapshot() for name, client in members.items()} == before
    assert len(chooser.sum(("ann", "ben", "cat", "dan", "eve", "fay", "gus")).parties) == 7
    assert home.policy.recipe.cohort == 0


@pytest.mark.parametrize("roster", [3, 4, 7, 10, 15])
def test_two_sums_of_one_attempt_need_more_than_a_third_as_accomplices(roster: int) -> None:
    policy = house(roster, mode="masked").policy
    for asked in range(3, roster + 1):
        need = policy.needed(asked)
        everybody = max(asked, roster)
        # two sums of `need` members out of all: so many must be in both
        shared = 2 * need - everybody
        assert shared > (everybody - 1) // 3 - 1 and shared >= 1
        assert need > 2 * everybody / 3


def test_a_lower_cohort_in_the_signed_file_is_the_way_for_members_that_are_rarely_there() -> None:
    policy = house(10, mode="masked").policy
    with pytest.raises(
        RoundAborted,
        match=r"5 members are there, need 7.*a lower recipe\.cohort "
        r"asks fewer",
    ):
        scheduler.draw(policy, RoundId(RUN, 1, 1), ("ann", "ben", "cat", "dan", "eve"))
    fewer = house(10, mode="masked", recipe={"cohort": 5}).policy
    found = scheduler.draw(fewer, RoundId(RUN, 1, 1), ("ann", "ben", "cat", "dan", "eve"))
    assert found.cohort == ("ann", "ben", "cat", "dan", "eve") and fewer.needed(5) == 4
    assert fewer.needed(10) == 7  # where all are asked, as for a score, two thirds of all


@pytest.mark.parametrize(
    "members, wanted, colluders", [(10, 3, 1), (12, 3, 1), (15, 5, 1), (15, 3, 2)]
)
def test_every_bucket_and_every_union_of_buckets_has_enough_besides_those_that_collude(
    members: int, wanted: int, colluders: int
) -> None:
    privacy = PrivacyTable(colluders=colluders)
    tables = {"aggregation": AggregationTable(rule="median", buckets=wanted), "privacy": privacy}
    policy = house(members, mode="masked", tables=tables).policy
    everybody, floor = (
        tuple(sorted(one.name for one in policy.members)),
        policy.protection.min_cohort,
    )
    for seed in range(20):
        for count in range(policy.needed(), members + 1):
            ready = everybody[:count]
            split = buckets(policy, bytes([seed]) * 32, ready)
            for bucket in split:
                need = BucketGroup.of(bucket, members, Contributors(ready)).threshold(policy)
                assert floor + colluders <= need <= len(bucket) or len(split) == 1
                # Two sets of survivors of one bucket have an honest member in both, who signs one
                # of them only.
                assert 2 * need - len(bucket) > colluders
            for several in range(1, len(split) + 1):
                for union in itertools.combinations(split, several):
                    assert (
                        len(set().union(*map(set, union))) >= floor + colluders or len(split) == 1
                    )


def test_the_colluders_that_a_file_assumes_can_be_said_without_noise() -> None:
    policy = house(10, mode="masked", tables={"privacy": PrivacyTable(colluders=2)}).policy
    tables = {name: getattr(policy, name) for name in flags.TABLES}
    flags.check_used({"privacy": {"colluders": 2}}, tables)
    assert policy.colluders == 2
    with pytest.raises(ConfigError, match="does nothing"):
        flags.check_used({"privacy": {"clip": 2.0}}, tables)


def test_ten_members_with_two_accomplices_in_one_bucket_leave_two_that_are_not_told_apart() -> None:
    """The instance in its own setting: three buckets were 3, 3 and 4, now there are two of five."""
    tables = {"aggregation": AggregationTable(rule="median", buckets=3)}
    policy = house(10, mode="masked", tables=tables).policy
    everybody = tuple(sorted(one.name for one in policy.members))
    for seed in range(50):
        for bucket in buckets(policy, bytes([seed]) * 32, everybody):
            need = BucketGroup.of(bucket, 10, Contributors(everybody)).threshold(policy)
            # whoever drops out, four are summed: two besides the accomplices
            assert (len(bucket), need) == (5, 4)


# --- counters
# ------------------------------------------------------------------------------------------


def seen(run: RoundServer) -> list[dict[str, Any]]:
    """Everything that a run has written of its rounds, but for how long they took."""
    return [
        {
            key: value
            for key, value in entry.items()
            if key not in ("seconds", "work_seconds", "update_norm")
        }
        for entry in run.state.history
    ]


def test_nothing_that_a_coordinator_sees_follows_from_the_amounts_of_anybodys_data() -> None:
    """Not the difference of two rounds that differ by one member, not anything else."""
    found = []
    for amounts in (1, 400):
        home = house(
            5, mode="masked", bits=12, recipe={"rounds": 2, "cohort": 4, "download": "adapter"}
        )
        run = coordinator(home, households(home, amounts=amounts), SIZE)
        run.logbook.keep(run="0a" * 16)  # whom it draws follows from that
        run.learn(2)
        run.score_round()
        found.append(
            [
                {**entry, "asked": len(entry["asked"]), "parties": len(entry["parties"])}
                for entry in seen(run)
            ]
        )
    for few, many in zip(*found, strict=True):
        few["bytes_up"], many["bytes_up"] = (
            sorted(few["bytes_up"].values()),
            sorted(many["bytes_up"].values()),
        )
        few["bytes_down"], many["bytes_down"] = (
            sum(few["bytes_down"].values()),
            sum(many["bytes_down"].values()),
        )
        for entry in (few, many):
            # follow from who is drawn, which the run's number decides
            for key in ("accuracy", "loss"):
                entry.pop(key)
        assert few == many
        assert not {"examples", "tokens", "correct", "total"} & few.keys()


def test_the_total_of_tokens_tells_what_the_claims_in_clear_tell_and_no_more() -> None:
    home = house(4, mode="masked", bits=12, min_tokens=1200, recipe={"download": "adapter"})
    unit = secagg.agree(
        home.policy,
        RoundId(RUN, 1, 1),
        BucketGroup.of(tuple(home.members), 4, Contributors(tuple(home.members))),
        9,
        counted=True,
        context=b"",
    ).token_unit
    totals = []
    for amounts in (25, 26, 29):  # 500, 520 and 580 tokens each: five units of 100 each
        chooser = Chooser(home, households(home, amounts=amounts), RoundId(RUN, 1, 1))
        chooser.work()
        told: list[int] = []
        original = secagg.MaskedServer.sums

        def keep(
            half: MaskedServer, told: list[int] = told, original: Any = original
        ) -> tuple[Sum, ...]:
            assert half.server.result is not None
            told.append(half.server.result.tokens)
            found: tuple[Sum, ...] = original(half)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(secagg.MaskedServer, "sums", keep)
            chooser.sum(tuple(sorted(home.members)))
        totals += told
    assert unit == 100 and totals == [2000, 2000, 2000]


class Lone(Household):
    """Only ann has held-out examples."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(number, held_out=name == "ann")


def lone(home: House) -> dict[str, Client]:
    """Members of whom ann alone can score."""
    numbers = {name: number for number, name in enumerate(home.members)}
    return clients(home, SIZE, lambda name: Lone(name, numbers[name]))


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("stage", [messages.TRAIN, messages.SCORE])
def test_the_score_of_the_only_member_with_held_out_examples(
    protected: bool, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not protected:
        monkeypatch.setattr(BucketGroup, "scores", lambda group, policy: True)
    home = house(4, mode="masked", bits=12)
    run = coordinator(home, lone(home), SIZE)
    if stage == messages.TRAIN:
        run.train_round()
    else:
        run.score_round()
    (entry,) = run.state.history
    # ann's own
    assert (entry["scored"], entry["accuracy"]) == ((0, None) if protected else (1, 0.2))


def test_enough_scores_are_told_and_if_one_of_them_drops_out_none_is() -> None:
    home = house(5, mode="masked", bits=12, recipe={"rounds": 1, "attempts": 2})
    members = households(home)
    for name in ("dan", "eve"):
        members[name].learner.held_out = False  # type: ignore[attr-defined]
    run = coordinator(home, members, SIZE)
    run.train_round()
    assert run.state.history[0]["scored"] == 3 and len(run.state.history[0]["parties"]) == 5
    lost = SilentLink(
        {name: one.handle for name, one in households(home).items()}, lambda name, message: False
    )
    for name in ("dan", "eve"):
        lost.parties[name] = members_without(home, name).handle
    lost.lose = lambda name, message: name == "ann" and b'"stage":"mask"' in message
    again = coordinator(home, {}, SIZE, link=lost)
    with pytest.raises(RoundAborted, match="2 of the 3 members that fill one part"):
        again.insist(again.train_round)


def members_without(home: House, name: str) -> Client:
    """One member without held-out examples."""
    return Client(
        home.policy,
        home.members[name],
        Household(7, held_out=False),
        size=SIZE,
        consent=party_consent(),
    )


def party_consent() -> Any:
    """Any mode."""
    from quietchoir.tests.fakes.federation import ANY_MODE

    return ANY_MODE


@pytest.mark.parametrize("protected", [False, True])
def test_one_fresh_and_two_stale_members_of_a_buffered_group(
    protected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not protected:
        monkeypatch.setattr(BucketGroup, "scores", lambda group, policy: True)
    home = buffered(mode="masked", bits=12)
    members = households(home)
    run = run_of(home, members)
    run.learn(4)
    alone = [entry for entry in run.state.history if entry["staleness"].count(0) in (1, 2)]
    assert alone
    assert all((entry["scored"] > 0) is not protected for entry in alone)
