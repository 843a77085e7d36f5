"""Adapters that are told as changes: the same bits for everybody, in fewer bytes, whatever
happened before.
"""

import dataclasses
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, MessageError, RoundAborted
from quietchoir.crypto import ring
from quietchoir.crypto.ring import BitRing
from quietchoir.federation import costs
from quietchoir.federation.aggregation import delta_chain
from quietchoir.federation.aggregation.base import Sum
from quietchoir.federation.aggregation.delta_chain import (
    KEPT,
    MAX_STEPS,
    DeltaChain,
    Step,
    Total,
    name_of,
    origin_of,
)
from quietchoir.federation.rounds.client import Client
from quietchoir.federation.rounds.global_model import LackingError, ServerHeld
from quietchoir.federation.rounds.model_broadcast import (
    LACKS,
    NAME,
    STATE,
    SUM,
    ClientModelCache,
    DeltaPath,
    FollowedModel,
    Memory,
)
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.policy import AggregationTable, GuardTable, PrivacyTable
from quietchoir.federation.store.checkpoint import ServerState, Store
from quietchoir.federation.store.database import Database
from quietchoir.federation.store.ledger import AnsweredRounds, StaleError
from quietchoir.federation.store.member import open_member
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.federation.training.synthetic_task import SyntheticLearner
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.messages import Reply, RoundId
from quietchoir.tests.fakes.federation import (
    ANY_MODE,
    House,
    SilentLink,
    clients,
    coordinator,
    delta,
    followed,
    house,
)
from quietchoir.tests.fakes.store import damage, names

SIZE = 4000
RUN = "0a" * 16

NUMBERS: Any = (7,)  # where names belong


class Noting(SyntheticLearner):
    """Trains as a rehearsal does; remembers the bits that it was told."""

    def __init__(self, name: str) -> None:
        super().__init__(SIZE, name)
        self.told: list[bytes] = []
        self.worse = False

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        self.told.append(flat.tobytes())
        return super().train(flat, seed)

    def evaluate(self, flat: np.ndarray) -> Counts:
        return Counts(0, 100) if self.worse else super().evaluate(flat)


def change_house(
    members: int = 4, *, mode: str = "masked", recipe: Mapping[str, Any] | None = None, **more: Any
) -> House:
    """A federation whose adapters are told as changes."""
    return house(
        members, mode=mode, recipe={"download": "change", **(recipe or {})}, **{"bits": 8, **more}
    )


def killed_there(*given: Any, **named: Any) -> Any:
    """In the middle of what stands there otherwise."""
    raise KeyboardInterrupt


def noting(home: House) -> dict[str, Client]:
    """Its members."""
    return clients(home, SIZE, Noting)


def told(members: Mapping[str, Client]) -> dict[str, list[bytes]]:
    """What each was told."""
    learners = {name: client.learner for name, client in members.items()}
    return {name: one.told for name, one in learners.items() if isinstance(one, Noting)}


def follow_rounds(run: RoundServer, members: Mapping[str, Client], rounds: int) -> None:
    """Rounds in which everybody who was asked trained from the coordinator's very bits."""
    for _ in range(rounds):
        before = run.state.server.flat.tobytes()
        counts = {name: len(heard) for name, heard in told(members).items()}
        run.insist(run.train_round)
        asked = run.state.history[-1]["parties"]
        assert asked and all(
            told(members)[name][-1] == before and len(told(members)[name]) > counts[name]
            for name in asked
        )


def down(run: RoundServer, round_: int = -1) -> dict[str, int]:
    """Bytes that each member was sent in a round."""
    return dict(run.state.history[round_]["bytes_down"])


CHOOSE = GuardTable(rule="choose")
PRIVATE = PrivacyTable(
    mechanism="discrete-gaussian", noise_multiplier=1.0, clip=10.0, epsilon=100.0, counters="exact"
)


@pytest.mark.parametrize(
    "members, mode, recipe, tables, protection",
    [
        (4, "masked", {}, {}, {}),
        (4, "plain", {"server_optimizer": "fedavg"}, {}, {"bits": 16}),
        (4, "masked", {"server_optimizer": "fedadam", "server_lr": 0.03}, {}, {}),
        (
            4,
            "masked",
            {"server_optimizer": "fedyogi", "server_lr": 0.03, "ranges": "tensor"},
            {},
            {"bits": 4},
        ),
        (4, "masked", {"update_range": 0.5}, {"privacy": PRIVATE}, {"bits": 12}),
        (
            12,
            "masked",
            {},
            {"aggregation": AggregationTable(rule="median", buckets=3, lengths="middle")},
            {},
        ),
        (
            9,
            "plain",
            {},
            {"aggregation": AggregationTable(rule="trimmed-mean", buckets=3), "guard": CHOOSE},
            {},
        ),
    ],
)
def test_every_member_trains_from_the_coordinators_very_bits(
    members: int,
    mode: str,
    recipe: dict[str, Any],
    tables: dict[str, Any],
    protection: dict[str, Any],
) -> None:
    home = change_house(members, mode=mode, recipe=recipe, tables=tables, **protection)
    everybody = clients(home, SIZE, Noting, stops=(1000, SIZE))
    run = coordinator(home, everybody, SIZE, stops=(1000, SIZE))
    rounds = 2 if home.policy.privacy.on else 3  # accounting takes a second a round
    follow_rounds(run, everybody, rounds)
    cost = costs.round_cost(home.policy, SIZE)
    assert all(max(down(run, at).values()) <= cost.down for at in range(rounds))
    factor = 3 if home.policy.guard.on else 1.4 if home.policy.aggregation.buckets > 1 else 1.0
    # less than the adapter, where there are no buckets
    assert max(down(run).values()) < 4 * SIZE * factor + 4000
    assert run.aborted == []


def test_a_change_is_less_than_the_adapter_and_the_result_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, key = ring.encode, bytes(32)  # the same dice for both
    monkeypatch.setattr(
        ring, "encode", lambda values, ranges, bits: original(values, ranges, bits, key=key)
    )
    runs = {}
    for download in ("adapter", "change"):
        home = house(3, mode="masked", bits=8, recipe={"download": download})
        runs[download] = coordinator(home, noting(home), SIZE)
        runs[download].run()
    assert runs["adapter"].state.server.encode() == runs["change"].state.server.encode()
    first, later = (max(down(runs["change"], at).values()) for at in (0, 2))
    letters = max(down(runs["adapter"], 0).values()) - 4 * SIZE
    shown = 1.3 * SIZE  # the round's own sum, to be signed
    assert first < letters + shown + 500  # everybody knows where a run begins
    # who signed a sum is not told it again
    assert (
        later - letters
        < shown + 1500
        < 2 * SIZE
        < 4 * SIZE
        <= max(down(runs["adapter"], 2).values()) - letters
    )


def on_disk(home: House, folder: Path) -> dict[str, Client]:
    """Its members as they start again: with what lies in their folders, and nothing else."""
    members = {}
    for name, key in home.members.items():
        database = open_member(folder / name)
        members[name] = Client(
            home.policy,
            key,
            Noting(name),
            size=SIZE,
            consent=ANY_MODE,
            ledger=AnsweredRounds(database),
            cache=ClientModelCache(database),
        )
    return members


@pytest.mark.parametrize(
    "harm",
    [
        "",
        "the sum is gone",
        "the sum is torn",
        "the sum is another",
        "a state is torn",
        "all is gone",
    ],
)
def test_a_member_that_starts_again_has_the_sum_that_it_signed_or_is_told_it(
    tmp_path: Path, harm: str
) -> None:
    """Killed after any answer: what is not on its disk whole is not used."""
    home = change_house()
    members = on_disk(home, tmp_path)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 3)
    usual = down(run)["ann"]
    folder = tmp_path / "ann"
    states = {name for name in names(folder) if name.startswith(STATE.format(""))}
    # each as often as it is held, and those before are gone
    assert states == {
        STATE.format(name) for name, _ in followed(members["ann"]).cache.memory(run.state.run).held
    }
    database = open_member(folder)
    if harm == "the sum is gone":
        database.drop(SUM)
    elif harm == "the sum is torn":
        damage(folder, SUM)
    elif harm == "the sum is another":
        database.put(SUM, {"word": "<u2"}, bytes(2 * SIZE))
    elif harm == "a state is torn":
        for name in states:
            damage(folder, name)
    elif harm == "all is gone":
        database.drop(NAME, SUM, *states)
    members = on_disk(home, tmp_path)
    link = SilentLink({name: client.handle for name, client in members.items()}, lambda *_: False)
    run.messenger.link = link
    follow_rounds(run, members, 1)
    assert len(run.state.history[-1]["parties"]) == 4 and run.aborted == []
    told_again = [
        name for name, letter in link.letters if b'"stage":"train"' in letter and name == "ann"
    ]
    sound = not harm
    assert len(told_again) == (1 if sound else 2)
    assert (down(run)["ann"] < usual + 500) == sound and down(run)["ben"] < usual + 500
    follow_rounds(run, members, 1)
    assert down(run)["ann"] < usual + 500  # and from then on as the others


def test_a_kill_between_a_state_and_the_memory_that_names_it_leaves_the_old_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = change_house()
    members = on_disk(home, tmp_path)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 3)
    before = followed(members["ann"]).cache.memory(run.state.run)
    honest, killed = Database.put, list[str]()

    def put(self: Database, name: str, fields: Any, body: bytes = b"") -> None:
        honest(self, name, fields, body)
        if self.path.parent.name == "ann" and name.startswith(STATE.format("")):
            killed.append(name)
            raise KeyboardInterrupt

    monkeypatch.setattr(Database, "put", put)
    with pytest.raises(KeyboardInterrupt):
        run.train_round()
    monkeypatch.undo()
    again = ClientModelCache(open_member(tmp_path / "ann")).memory(run.state.run)
    assert killed and again.trail == before.trail and killed[0] not in names(tmp_path / "ann")
    assert [name for name, _ in again.held] == [name for name, _ in before.held]
    assert all(name_of(state) == name for name, state in again.held)
    run.abandon(RoundAborted("as the run does"))
    follow_rounds(run, members, 2)
    assert len([one for one in names(tmp_path / "ann") if one.startswith(STATE.format(""))]) == 2


def test_a_sum_is_named_to_those_alone_that_signed_it_and_its_name_is_no_other_sum() -> None:
    home = change_house()
    members = noting(home)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 2)
    (last,) = [step for name, step in delta(run).steps.items()]
    assert all(one.packing != KEPT for one in last.kept_by("nobody").totals)
    named = delta_chain.read(*parted(last.kept_by("ann").encode()))
    assert [one.packing for one in named.totals] == [KEPT] and len(named.totals[0].body) == 32
    model_cache = followed(members["ann"]).cache
    assert model_cache is not None and model_cache._sum is not None
    made, start = DeltaChain(home.policy, SIZE, run.state.run), run.state.steps[-1].before
    wanted = name_of(run.state.server)
    assert model_cache.follow(made, wanted, delta_chain.join(start, [named.encode()])).followed
    other = dataclasses.replace(named.totals[0], body=bytes(32))
    false = dataclasses.replace(named, totals=(other,))
    with pytest.raises(LackingError) as lacking:
        model_cache.follow(made, wanted, delta_chain.join(start, [false.encode()]))
    assert lacking.value.reply == model_cache.names(run.state.run)
    # its integers are what the others signed, or it is not gone by
    model_cache.keep_sum(bytes(32), model_cache._sum[1] + np.uint16(1))
    with pytest.raises(LackingError):
        model_cache.follow(made, wanted, delta_chain.join(start, [false.encode()]))


def parted(step: bytes) -> tuple[bytes, bytes]:
    """Header and body of one step."""
    at = 8 + int.from_bytes(step[:4], "big")
    return step[8:at], step[at:]


def test_a_vote_tells_the_change_and_the_next_round_only_its_name() -> None:
    home = change_house(tables={"guard": GuardTable(rule="vote")})
    members = noting(home)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 1)
    follow_rounds(run, members, 1)
    assert len(delta(run).deltas) == 2
    # the name alone, as of where everybody begins
    assert max(down(run, 1).values()) < max(down(run, 0).values()) + 500
    assert max(down(run, 1).values()) <= costs.round_cost(home.policy, SIZE).down


def test_an_undone_round_is_told_as_an_optimizer_at_rest() -> None:
    home = change_house(tables={"guard": GuardTable(rule="vote")})
    members = noting(home)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 2)
    for client in members.values():
        client.learner.worse = True  # type: ignore[attr-defined]
    run.train_round()
    assert not run.state.history[-1]["guard"]["kept"] and not run.state.server.velocity.any()
    for client in members.values():
        client.learner.worse = False  # type: ignore[attr-defined]
    follow_rounds(run, members, 2)
    assert max(down(run, 3).values()) < max(down(run, 0).values()) + 500  # a word: it was undone


def test_members_that_missed_rounds_or_start_again_arrive_at_the_same_bits() -> None:
    home = change_house(8, recipe={"cohort": 4})
    members = noting(home)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 6)  # drawn now and then: several changes at once, or the whole
    assert len({name for heard in run.state.history for name in heard["asked"]}) > 4
    home = change_house(4)
    members = noting(home)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 8)
    members["ann"] = Client(
        home.policy,
        home.members["ann"],
        Noting("ann"),
        size=SIZE,
        consent=ANY_MODE,
        ledger=members["ann"].ledger,
    )
    run.messenger.link = type(run.messenger.link)(
        {name: client.handle for name, client in members.items()}
    )  # type: ignore[call-arg]
    follow_rounds(run, members, 1)
    assert down(run)["ann"] > 8 * SIZE > 4 * SIZE > down(run)["ben"]
    cost = costs.round_cost(home.policy, SIZE)
    assert down(run)["ann"] <= cost.down + cost.late_down + 2500  # told in vain first
    assert "down besides for who missed rounds" in costs.cost_sentence(cost)
    follow_rounds(run, members, 1)
    assert down(run)["ann"] < 3.5 * SIZE  # and from then on as the others
    assert run.aborted == []


@pytest.mark.parametrize("killed", ["while members worked", "between rounds"])
def test_a_coordinator_that_starts_again_asks_what_members_hold(
    tmp_path: Path, killed: str
) -> None:
    home = change_house()
    members = noting(home)
    store = Store(tmp_path)
    doomed = coordinator(home, members, SIZE, store=store)
    follow_rounds(doomed, members, 2)
    if killed == "while members worked":
        doomed.attempt.combine = killed_there  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            doomed.train_round()
    store.close()
    store = Store(tmp_path)
    try:
        again = coordinator(home, members, SIZE, store=store)
        follow_rounds(again, members, 2)
        letters = max(down(again, 0).values()) + 500
        # its steps are on disk, members hold what they start from
        step = 0 if killed == "while members worked" else 1.3 * SIZE
        assert all(size < letters + step for size in down(again, 2).values())
        assert max(down(again, 3).values()) < letters + 1.3 * SIZE
    finally:
        store.close()


def test_a_member_that_fell_silent_while_it_worked_is_asked_what_it_holds() -> None:
    home, silent = change_house(), [False]
    members = noting(home)
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, letter: silent[0] and name == "dan" and b'"stage":"train"' in letter,
    )
    run = coordinator(home, members, SIZE, link=link)
    follow_rounds(run, members, 1)
    silent[0] = True
    run.train_round()
    silent[0] = False
    follow_rounds(run, members, 1)
    asked = [name for name, letter in link.letters if b'"stage":"holds"' in letter]
    assert asked == ["dan"] and down(run)["dan"] < 5 * SIZE  # two changes, and the round's own sum


def test_members_that_are_told_different_adapters_never_meet() -> None:
    home = change_house(recipe={"attempts": 1})
    members = noting(home)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 1)
    change = np.full(SIZE, 0.01, np.float32)
    other = run.model.optimizer.step(ServerState.zeros(SIZE), change)

    def lie(
        stage: str,
        order: messages.Work,
        paths: Mapping[str, DeltaPath],
        round_id: RoundId,
        timeout_s: float,
    ) -> Iterator[Reply]:
        body = Step(kind="whole", state=other.encode()).encode()
        letters = {
            name: messages.encode_delta_work(order, path) for name, (_, path) in paths.items()
        }
        false = messages.Work(
            **{
                **{name: getattr(order, name) for name in messages.HEADERS[messages.Work]},
                "flat": other.flat,
                "state": name_of(other),
            }
        )
        letters["ann"] = messages.encode_delta_work(false, delta_chain.join("", [body]))
        yield from run.messenger.ask(stage, letters, round_id, timeout_s)

    delta(run).send = lie  # type: ignore[method-assign]
    before = run.state.server.encode()
    run.train_round()
    # ann trained, and is in no sum with them
    assert run.state.history[-1]["parties"] == ["ben", "cat", "dan"]
    assert told(members)["ann"][-1] == other.flat.tobytes() != told(members)["ben"][-1]
    assert before != run.state.server.encode()


def stepping(**recipe: Any) -> DeltaChain:
    """A federation's steps."""
    # where nobody signs sums
    return DeltaChain(change_house(mode="plain", recipe=recipe).policy, 100, RUN)


def of_sum(made: DeltaChain, total: Any, parties: int = 3, round_: int = 5) -> Step:
    """The step of one opened sum."""
    names = tuple(f"member-{number}" for number in range(parties))
    return made.of_sums([Sum(total, names)], RoundId(RUN, round_, 1), names)


def test_sums_are_packed_or_deflated_whichever_is_less_and_come_back_exactly() -> None:
    made, generator = stepping(), np.random.default_rng(3)
    wild = generator.integers(0, 3 * 254 + 1, 100)
    calm = 3 * 127 + generator.integers(-2, 3, 100)
    for total, packing in ((wild, "bits"), (calm, "deflate")):
        step = of_sum(made, np.concatenate([total, [7, 7]]))
        assert step.totals[0].packing == packing and len(step.totals[0].body) <= 140
        start, (read,) = delta_chain.split(delta_chain.join("ab" * 32, [step.encode()]))
        assert start == "ab" * 32 and read == step
        assert np.array_equal(made._integers(read.totals[0]), total)
    extremes = np.array([0, 3 * 254] * 50)
    for packing in ("bits", "deflate"):
        packed = of_sum(made, wild).totals[0].body
        body = (
            delta_chain.deflate(delta_chain.spread(extremes, 3 * 127, 2))
            if packing == "deflate"
            else packed
        )
        summed = Total(packing=packing, parties=3, body=body)
        assert np.array_equal(made._integers(summed), extremes if packing == "deflate" else wild)


# one more than three members can have
HIGH = BitRing(length=100, bits=8, parties=3).pack(np.full(100, 3 * 254 + 1, np.uint16))


def bomb(size: int) -> bytes:
    """Far more zeros than a step may hold."""
    return delta_chain.deflate(bytes(size))


def one(packing: str, *, parties: int = 3, body: bytes) -> Step:
    """A step of one sum."""
    return Step(kind="sum", totals=(Total(packing=packing, parties=parties, body=body),))


REFUSED: Sequence[tuple[str, Callable[[], bytes]]] = (
    ("path to an adapter of 3 bytes", lambda: b"abc"),
    ("longer than it says", lambda: bytes(32) + b"\xff\xff\xff\xff\x00\x00\x00\x00"),
    (
        "longer than it says",
        lambda: delta_chain.join("", [Step(kind="whole", state=b"1234").encode()[:-1]]),
    ),
    (
        "too many steps",
        lambda: delta_chain.join("", [Step(kind="rest").encode()] * (MAX_STEPS + 1)),
    ),
    (
        "header of a step is malformed",
        lambda: delta_chain.join("", [b"\x00\x00\x00\x02\x00\x00\x00\x00[]"]),
    ),
    (
        "header of a step is malformed",
        lambda: delta_chain.join("", [one("zip", body=b"").encode()]),
    ),
    (
        "header of a step is malformed",
        lambda: delta_chain.join("", [one("bits", parties=-1, body=b"").encode()]),
    ),
    ("header of a step is malformed", lambda: delta_chain.join("", [Step(kind="sum").encode()])),
    (
        "header of a step is malformed",
        lambda: delta_chain.join("", [Step(kind="rest", state=b"1").encode()]),
    ),
    (
        "header of a step is malformed",
        lambda: delta_chain.join("", [Step(kind="rest", asked=NUMBERS).encode()]),
    ),
    (
        "header of a step is malformed",
        lambda: delta_chain.join("", [Step(kind="rest", round=-1).encode()]),
    ),
    (
        "200 values|bytes, expected",
        lambda: delta_chain.join("", [Step(kind="whole", state=bytes(799)).encode()]),
    ),
    (
        "not finite",
        lambda: delta_chain.join("", [Step(kind="whole", state=b"\xff" * 800).encode()]),
    ),
    (
        "is not the one that is named",
        lambda: delta_chain.join(
            "", [Step(kind="whole", state=bytes(796) + b"\0\0\0\x3f").encode()]
        ),
    ),
)


@pytest.mark.parametrize("sentence, way", REFUSED)
def test_a_malformed_path_is_refused_and_nothing_is_remembered(
    sentence: str, way: Callable[[], bytes]
) -> None:
    model_cache = ClientModelCache()
    with pytest.raises(MessageError, match=sentence):
        model_cache.follow(stepping(), "ab" * 32, way())
    assert model_cache.memory(RUN) == Memory(RUN)


@pytest.mark.parametrize(
    "sentence, step",
    [
        ("inflates to other than 200", one("deflate", body=bomb(50_000_000))),
        ("inflates to other than 200", one("deflate", body=bomb(199))),
        ("inflates to other than 200", one("deflate", body=bomb(200) + b"x")),
        ("inflates to other than 200", one("deflate", body=bomb(200)[:-5])),
        ("does not inflate", one("deflate", body=b"nonsense")),
        ("sum over 0 members", one("bits", parties=0, body=b"")),
        ("sum over 2 members", one("bits", parties=2, body=b"")),  # fewer than any sum may be of
        ("sum over 65537 members", one("deflate", parties=65537, body=b"")),
        ("cannot be: a masked vector has 3 bytes", one("bits", body=b"abc")),
        ("cannot be: a sum of 3 updates", one("bits", body=HIGH)),
        (
            "a step of 2 sums",
            dataclasses.replace(one("bits", body=HIGH), totals=2 * one("bits", body=HIGH).totals),
        ),
        ("of which 1 counts", dataclasses.replace(one("bits", body=HIGH), bucket=1)),
        (
            "one bucket alone, in a federation without a guard",
            dataclasses.replace(one("bits", body=HIGH), bucket=0),
        ),
        ("undone, in a federation without a guard", Step(kind="rest")),
    ],
)
def test_a_step_that_cannot_be_is_refused_before_it_is_unpacked(sentence: str, step: Step) -> None:
    model_cache = ClientModelCache()
    with pytest.raises(MessageError, match=sentence):
        model_cache.follow(stepping(), "ab" * 32, delta_chain.join(origin_of(100), [step.encode()]))
    assert model_cache.memory(RUN) == Memory(RUN)


@pytest.mark.parametrize("shown", ["below", "above", "of more bits"])
def test_a_shown_sum_that_no_members_can_have_is_refused(shown: str) -> None:
    whole = np.full(100, 3 * 127)
    good = delta_chain.encode_shown(delta_chain.pack(whole, 3, 8), (1, 2, 3))
    found, tags = delta_chain.decode_shown(good, 100, 3, 8)
    assert np.array_equal(found, whole) and tags == (1, 2, 3)
    whole[7] = {"below": -1, "above": 3 * 254 + 1, "of more bits": 1023}[shown]
    packed = (
        ("deflate", delta_chain.deflate(delta_chain.spread(whole, 3 * 127, 2)))
        if shown == "below"
        else ("bits", BitRing(length=100, bits=8, parties=3).pack(whole.astype(np.uint16)))
    )
    with pytest.raises(MessageError, match="a sum that 3 members with values of 8 bits cannot"):
        delta_chain.decode_shown(delta_chain.encode_shown(packed, (1, 2, 3)), 100, 3, 8)


def test_a_bomb_is_never_unpacked_beyond_its_size() -> None:
    body = bomb(100_000_000)
    tracemalloc.start()
    with pytest.raises(MessageError):
        delta_chain.inflate(body, 200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(body) > 50_000 and peak < len(body) + 1_000_000


def test_what_is_not_here_is_said_and_what_leads_elsewhere_is_not_used() -> None:
    made, model_cache = stepping(), ClientModelCache()
    first = of_sum(made, np.full(100, 3 * 127 + 5), round_=1)
    state = made.go(ServerState.zeros(100), first, origin_of(100))
    led = model_cache.follow(
        made, name_of(state), delta_chain.join(origin_of(100), [first.encode()])
    )
    assert led.state.encode() == state.encode() and led.followed
    assert model_cache.memory(RUN) == Memory(RUN)
    model_cache.keep(led)
    held = {name for name, _ in model_cache.memory(RUN).held}
    assert held == {origin_of(100), name_of(state)}
    with pytest.raises(LackingError) as lacking:
        model_cache.follow(made, "ab" * 32, delta_chain.join("cd" * 32, []))
    names = [bytes.fromhex(name) for name, _ in model_cache.memory(RUN).held]
    assert lacking.value.reply == model_cache.names(RUN) == LACKS + b"".join(names)
    # a processor that calculates otherwise: whole, please
    with pytest.raises(LackingError) as lacking:
        model_cache.follow(made, "ab" * 32, delta_chain.join(origin_of(100), [first.encode()]))
    assert lacking.value.reply == LACKS
    other = DeltaChain(made.policy, 100, "0b" * 16)
    with pytest.raises(LackingError):
        # held, but of another run
        model_cache.follow(other, name_of(state), delta_chain.join(name_of(state), []))
    assert {name for name, _ in model_cache.memory(RUN).held} == held


def test_a_replayed_letter_is_stale_whatever_it_tells() -> None:
    home = change_house()
    members, letters = noting(home), dict[str, bytes]()
    link = SilentLink(
        {name: client.handle for name, client in members.items()},
        lambda name, letter: bool(letters.setdefault(name, letter) and False),
    )
    run = coordinator(home, members, SIZE, link=link)
    follow_rounds(run, members, 2)
    model_cache = followed(members["ann"]).cache
    assert model_cache is not None
    before = model_cache.memory(run.state.run)
    with pytest.raises(StaleError):
        members["ann"].handle(letters["ann"])
    assert model_cache.memory(run.state.run) is before


def test_a_letter_with_the_adapter_itself_is_refused_where_changes_are_told() -> None:
    home = change_house(recipe={"attempts": 1})
    members = noting(home)
    run = coordinator(home, members, SIZE)
    # as a coordinator would that wants to bind nobody to one adapter
    whole = ServerHeld(run.messenger, run.logbook, run.model.optimizer, SIZE, (SIZE,))
    run.model = run.attempt.model = whole
    with pytest.raises(RoundAborted, match="0 of 4 members are ready"):
        run.train_round()
    assert told(members) == {name: [] for name in members}


def test_under_a_later_version_of_the_file_everybody_follows_on() -> None:
    home = change_house()
    members = noting(home)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 1)
    home.policy = dataclasses.replace(home.policy, version=2, head="ab" * 32)
    ledgers = {name: client.ledger for name, client in members.items()}
    for name, key in home.members.items():
        members[name] = Client(
            home.policy, key, Noting(name), size=SIZE, consent=ANY_MODE, ledger=ledgers[name]
        )
    run.messenger.link = type(run.messenger.link)(
        {name: client.handle for name, client in members.items()}
    )  # type: ignore[call-arg]
    run.take(home.policy)
    follow_rounds(run, members, 2)
    assert max(down(run, 1).values()) < 4 * SIZE > max(down(run, 2).values())
    assert all(
        isinstance(client.model, FollowedModel)
        and len(followed(client).cache.memory(run.state.run).trail) == 2
        for client in members.values()
    )


def test_a_file_that_changes_between_a_step_and_the_vote_on_it_loses_neither() -> None:
    home = change_house(tables={"guard": GuardTable(rule="vote")})
    members = noting(home)
    run = coordinator(home, members, SIZE)
    follow_rounds(run, members, 1)
    taken: list[int] = []

    def between() -> None:
        """The owner's new file comes as soon as a sum is open, before anybody voted on what
        follows from it.
        """
        if not taken and any(
            name for name, _ in delta(run).fresh if name != delta(run).named(run.state.server)
        ):
            taken.append(1)
            home.policy = dataclasses.replace(home.policy, version=2, head="ab" * 32)
            for name, key in home.members.items():
                kept = members[name]
                members[name] = Client(
                    home.policy,
                    key,
                    kept.learner,
                    size=SIZE,
                    consent=ANY_MODE,
                    ledger=kept.ledger,
                    cache=followed(kept).cache,
                )
            run.messenger.link = type(run.messenger.link)(
                {name: client.handle for name, client in members.items()}
            )  # type: ignore[call-arg]
            run.take(home.policy)

    run.between = between
    run.train_round()
    assert taken and run.state.round == 2 and run.state.history[-1]["guard"]["kept"]
    follow_rounds(run, members, 1)


def test_a_sealed_federation_has_no_adapter_to_tell() -> None:
    with pytest.raises((ConfigError, ValueError), match='needs mode "plain" or "masked"'):
        house(mode="sealed", recipe={"download": "adapter"})
    assert not change_house(mode="sealed").policy.followed  # its members step by themselves
