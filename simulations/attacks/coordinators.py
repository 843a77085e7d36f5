"""Attacks by whoever runs the rounds: alone, or with members that help.

Knows what a coordinator can say, and to whom. Knows nothing of the network: messages go to parties
in this process.
Always: what an arm finds is measured (a correlation with the victim's secret, bits of a key, what
was trained from); in the unprotected arm one protection is taken away, with those that stand beside
it, and everything else is the product.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.config import ConsentConfig
from ...core.errors import ProtocolError
from ...crypto import shamir
from ...crypto.identity.keys import Ephemeral, open_box
from ...crypto.secagg import RevealLedger
from ...crypto.secagg.messages import KEY_SHARE, SELF_SHARE, Revelation, SignatureList, SurvivorList
from ...crypto.secagg.session import Session, commit
from ...federation.aggregation import delta_chain, hello, parts, secagg, state_transfer
from ...federation.aggregation.base import Sum
from ...federation.aggregation.delta_chain import Step, name_of
from ...federation.aggregation.hello import Hello, SealedEnvelope
from ...federation.engines.stateless_client import (
    ASIDE,
    AttemptSnapshot,
    freeze_attempt,
    thaw_attempt,
)
from ...federation.membership import roster, update
from ...federation.membership.log import create_chain
from ...federation.rounds import client, scheduler
from ...federation.rounds.client import Client
from ...federation.rounds.member_held import OwnModel
from ...federation.rounds.model_broadcast import ServerHeldDelta
from ...federation.rounds.server import RoundServer
from ...federation.spec.policy import AggregationTable, Policy, ScheduleTable
from ...federation.store import client_store
from ...federation.store.checkpoint import ServerState, Vector
from ...federation.store.member import open_member
from ...federation.wire import messages
from ...federation.wire.messages import RoundId, Task
from ..inprocess import InProcessLink
from .catalogue import Attack, Result
from .scene import (
    CLOSE,
    NAMES,
    RANGE,
    SIZE,
    VICTIM,
    AttackScene,
    Liar,
    Lie,
    Stub,
    alike,
    federation,
    refused,
    without,
)

MIDDLE = 2**11 - 1  # of a value of 12 bits: zero; twice that is the largest
# an adapter from which nobody learns: everything is driven to one side
FALSE = np.full(SIZE, 3000.0, np.float32)
NO_BINDING = (
    (messages, "work_digest", lambda *given: bytes(32)),
    (messages, "group_digest", lambda *given: bytes(32)),
    (messages, "version_digest", lambda *given: "00" * 32),
)
NO_FLOORS = tuple((client, one, lambda *given: None) for one in ("check_reach", "check_clipped"))
NO_VOUCHING = ((Session, "vouchers", 0),)
# members take its word for a sum
NO_TAGS = ((delta_chain, "attested", lambda policy: False),)
# whatever adapter was told
ONE_SPLIT = tuple((one, "adapter_digest", lambda flat: bytes(32)) for one in (client, scheduler))


def delta(run: RoundServer) -> ServerHeldDelta:
    """Where the adapter lives, in a run whose members follow it by sums."""
    assert isinstance(run.model, ServerHeldDelta)
    return run.model


def stage_of(message: bytes) -> str:
    """What a message asks for."""
    return str(messages.split(message)[0]["stage"])


def sums_of(run: RoundServer) -> list[Sum]:
    """Every sum that `run` opens from now on: it knows one before it shows it to anybody,
    whatever comes of that.
    """
    found, honest, ask = list[Sum](), run.attempt.open, run.messenger.ask

    def note(one: Sum) -> None:
        whole = one.total[: run.size]
        if not any(
            one.parties == other.parties and np.array_equal(whole, other.total[: run.size])
            for other in found
        ):
            found.append(one)

    def asking(
        stage: str, payloads: Mapping[str, bytes], round_id: RoundId, timeout_s: float
    ) -> Iterator[Any]:
        if stage == secagg.ATTEST:
            for shown in set(payloads.values()):
                names = tuple(sorted(name for name, one in payloads.items() if one == shown))
                bits = run.policy.protection.bits
                opened, _ = delta_chain.decode_shown(shown, run.size, len(names), bits)
                note(Sum(opened.astype(np.int64), names))
        return ask(stage, payloads, round_id, timeout_s)

    def noting(sums: tuple[Sum, ...], codec: Any) -> Any:
        for one in sums:
            note(one)
        return honest(sums, codec)

    run.messenger.ask, run.attempt.open = asking, noting  # type: ignore[method-assign]
    return found


def result(found: Vector | None, scene: AttackScene, words: str = "") -> Result:
    """Was the victim's update read?"""
    close = 0.0 if found is None else alike(found, scene.victim)
    seen = (
        (f"correlation {close:.4f} with the victim's update")
        if found is not None
        else "no sum with the victim in it"
    )
    return Result(close >= CLOSE, f"{seen}{'; ' if words else ''}{words[:160]}")


# What the others are told otherwise


def round_of(scene: AttackScene, lie: Lie, read: Callable[[Sum], Vector], **options: Any) -> Result:
    """One round in which everybody but the victim is lied to; `read` makes the victim's update
    of the sum with it.
    """
    run = scene.run(**options)
    found = sums_of(run)
    Liar(run, lie, NAMES[1:])
    words = refused(run.train_round if not scene.policy.schedule.buffered else lambda: run.learn(1))
    with_victim = [one for one in found if VICTIM in one.parties]
    return result(read(with_victim[0]) if with_victim else None, scene, words)


def less_constants(one: Sum) -> Vector:
    """The victim's update, if everybody else's was cut to the upper end of its range."""
    whole = one.total[:SIZE] - 2 * MIDDLE * (len(one.parties) - 1)
    return ((whole - MIDDLE) / MIDDLE * RANGE).astype(np.float32)


def less_ends(one: Sum) -> Vector:
    """The same, if everybody else's was cut to either end: those differ by a known step, which
    is taken away modulo it.
    """
    return ((one.total[:SIZE] % (2 * MIDDLE) - MIDDLE) / MIDDLE * RANGE).astype(np.float32)


def told_ranges(stage: str, payload: bytes) -> bytes | None:
    """Ranges so narrow that every coordinate is cut to one end or the other."""
    if stage != messages.TRAIN:
        return None
    order, rest = messages.split_work(payload)
    return (
        messages.encode_work(
            dataclasses.replace(order, ranges=tuple((stop, 1e-9) for stop, _ in order.ranges))
        )
        + rest
    )


def narrow_ranges(*stubs: Stub) -> Result:
    scene = federation(
        4, recipe={"download": "adapter", "ranges": "tensor"}, stops=(SIZE // 2, SIZE)
    )
    with without(*stubs):
        return round_of(scene, told_ranges, less_ends, stops=(SIZE // 2, SIZE))


def told_false_state(stage: str, payload: bytes) -> bytes | None:
    """Another state, told whole, its name and its way fitting each other."""
    if stage not in (messages.TRAIN, messages.SCORE):
        return None
    order, _ = messages.split_work(payload)
    state = ServerState(FALSE, np.zeros(SIZE, np.float32))
    delta = delta_chain.join("", [Step(kind="whole", state=state.encode()).encode()])
    return messages.encode_delta_work(dataclasses.replace(order, state=name_of(state)), delta)


def another_state(*stubs: Stub) -> Result:
    with without(*stubs):
        return round_of(federation(4), told_false_state, less_constants)


def told_false_adapter(stage: str, payload: bytes) -> bytes | None:
    """Another adapter; the work around it as it was."""
    return (
        messages.encode_work(dataclasses.replace(messages.decode_work(payload, SIZE), flat=FALSE))
        if stage == messages.TRAIN
        else None
    )


def in_buckets(*stubs: Stub) -> Result:
    tables = {"aggregation": AggregationTable(rule="median", buckets=3)}
    scene = federation(12, recipe={"download": "adapter"}, tables=tables)
    with without(*stubs):
        return round_of(scene, told_false_adapter, less_constants)


def told_no_score(stage: str, payload: bytes) -> bytes | None:
    """Train without scoring first."""
    if stage != messages.TRAIN:
        return None
    version, order = messages.split_train(payload)
    work, rest = messages.split_work(order)
    return messages.encode_train(
        version, messages.encode_work(dataclasses.replace(work, evaluate=False)) + rest
    )


# Who can say where members are


def forged_hello(*stubs: Stub) -> Result:
    """The coordinator asks a member for the key in another member's name, for a box key of its
    own.
    """
    scene = federation(4, mode="sealed", bits=8, threshold=3)
    round_id, own, dealer = RoundId("0a" * 16, 1, 1), Ephemeral.generate(), scene.clients["ben"]
    policy, size = scene.policy, 0
    asked = Hello(sender=VICTIM, public=own.public).signed(policy, round_id, scene.coordinator)

    def letter(stage: str, payload: bytes) -> bytes:
        task = Task(round_id=round_id, stage=stage, recipient="ben", payload=payload)
        return messages.encode_task(task, policy, scene.coordinator)

    with without(*stubs):
        dealer.handle(letter(state_transfer.GREET, b""))
        asking = letter(state_transfer.DEAL, parts.join({state_transfer.TO + VICTIM: asked}))
        answers: list[bytes] = []
        words = refused(lambda: answers.append(dealer.handle(asking)))
        if answers:
            payload = parts.split(messages.decode_reply(answers[0], policy, asking).payload)
            envelope = SealedEnvelope(
                purpose="key", policy=policy, round_id=round_id, sender="ben", receiver=VICTIM
            )
            seed = envelope.opened(payload[state_transfer.TO + VICTIM], own)
            assert dealer.secrets is not None
            size = 8 * len(seed) if seed == dealer.secrets.store.seed(policy.digest) else 0
    return Result(size > 0, f"{size} bits of the members' key{'; ' if words else ''}{words[:160]}")


def undone_for_some(*stubs: Stub) -> Result:
    """After two rounds one half of the members is told to undo a step, then all are asked to
    train together.
    """
    scene = federation(4, mode="sealed", bits=8, threshold=3)
    run, received = scene.run(), dict[str, bytes]()
    run.train_round()
    run.train_round()
    for name, voice in scene.voices.items():
        voice.train = noting(voice.train, received, name)  # type: ignore[method-assign, assignment]
    with without(*stubs):
        round_id = run.attempt.begin()
        run.model.gather(tuple(sorted(scene.clients)), round_id)
        payload = messages.encode_work(run.attempt.order(run.state.server.flat))
        list(run.messenger.ask(messages.UNDO, dict.fromkeys(NAMES[:2], payload), round_id, 5.0))
        words = refused(run.train_round)
    entry = run.state.history[-1] if run.state.round > 2 else None
    from_ = {received[name] for name in entry["parties"] if name in received} if entry else set()
    return Result(
        len(from_) > 1, f"{len(from_)} adapters behind one sum{'; ' if words else ''}{words[:160]}"
    )


def noting(
    train: Callable[[Vector, int], Any], received: dict[str, bytes], name: str
) -> Callable[[Vector, int], Any]:
    """The same training; what it began from is noted."""

    def noted(flat: Vector, seed: int) -> Any:
        received[name] = flat.tobytes()
        return train(flat, seed)

    return noted


def another_rollback(self: OwnModel, round_id: RoundId) -> None:
    """`OwnModel.rollback` where an undone step is not counted as a step."""
    kept, before = self.store.progress(round_id.run), self.store.before(round_id.run)
    assert before is not None
    gone_back = client_store.Progress(kept.steps, before.server.at_rest())
    self.store.keep_progress(round_id.run, gone_back)


# Two answers to one stage


def two_sets(*stubs: Stub) -> Result:
    """On Flower's engines each stage is a process. Two of them are started at once, for two sets
    of survivors.
    """
    scene, stop = federation(4), "consistency"
    link = Stopping({name: one.handle for name, one in scene.clients.items()}, stop)
    refused(scene.run(link=link).train_round)
    helpers = {name: one for name, one in scene.clients.items() if name != VICTIM}
    halves = {
        name: one.attempt.aggregation for name, one in helpers.items() if one.attempt is not None
    }
    client = halves["ben"].client  # type: ignore[attr-defined]
    session, card, me = client._session, client._near[0], client._session.numbers
    everybody = SurvivorList.decode(messages.split(link.messages["ben"])[1], session, client._view)
    sets = (
        everybody,
        SurvivorList({at: one for at, one in everybody.receipts.items() if at != me[VICTIM]}),
    )
    shares: dict[bytes, dict[int, bytes]] = {SELF_SHARE: {}, KEY_SHARE: {}}
    with tempfile.TemporaryDirectory() as folder, without(*stubs):
        forks = {name: both(one, Path(folder) / name) for name, one in helpers.items()}
        for at, found in enumerate(sets):
            going = {name: fork[at] for name, fork in forks.items() if fork[at] is not None}
            answers = {name: agreed(fork, found.encode(session)) for name, fork in going.items()}
            listed = SignatureList(
                {me[name]: one for name, one in answers.items() if one is not None}
            ).encode(session)
            for name, fork in going.items():
                for kind, share in revealed(fork, listed, me[VICTIM]):
                    shares[kind][me[name]] = share
    whole = sum(rebuilt(session, card, kind, held, len(helpers)) for kind, held in shares.items())
    return Result(whole == 2, f"{whole} of the two secrets that cover the victim's upload")


class Stopping(InProcessLink):
    """Brings every message until a stage, and keeps that one's."""

    def __init__(self, members: Mapping[str, Callable[[bytes], bytes]], stop: str) -> None:
        super().__init__(members)
        self.stop, self.messages = stop, dict[str, bytes]()

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """As `Link`."""
        if any(stage_of(message) == self.stop for message in messages.values()):
            self.messages = dict(messages)
            return iter(())
        return super().ask(messages, timeout_s)


def both(member: Client, folder: Path) -> list[Any]:
    """What two processes that are started for one stage go on with; None for one that finds
    nothing.
    """
    recess, kept = AttemptSnapshot(open_member(folder), member.name), freeze_attempt(member)
    assert kept is not None
    key, found = recess.put(kept), list[Any]()
    for _ in range(2):
        taken = recess.take(key)
        # each reads it from the disk
        member.ledger.sums = type(member.ledger.sums).restore(member.ledger.sums.snapshot())
        again: Any = None if taken is None else thaw_attempt(taken, member)
        found.append(None if again is None else again.aggregation.client)
    return found


def agreed(client: Any, survivors: bytes) -> bytes | None:
    """A signature over these survivors."""
    answers: list[bytes] = []
    refused(lambda: answers.append(client.consistency(survivors)))
    return answers[0][-64:] if answers else None


def revealed(client: Any, signatures: bytes, victim: int) -> Iterator[tuple[bytes, bytes]]:
    """What kind of share this member reveals of the victim, and the share."""
    answers: list[bytes] = []
    refused(lambda: answers.append(client.unmask(signatures)))
    for answer in answers:
        share = Revelation.decode(answer, client._session, client._view).shares[victim]
        yield share[:1], share[1:]


def rebuilt(session: Session, card: Any, kind: bytes, held: Mapping[int, bytes], need: int) -> bool:
    """Do these shares give the secret that the victim advertised?"""
    if len(held) < need:
        return False
    points = tuple(sorted(at + 1 for at in held)[:need])
    secret = shamir.join([held[point - 1] for point in points], shamir.weights(points))
    if kind == SELF_SHARE:
        return bool(commit(session, card.sender, secret) == card.commitment)
    return bool(Ephemeral(secret).public == card.mask)


def copied(self: AttemptSnapshot, key: bytes) -> bytes | None:
    """`AttemptSnapshot.take` that leaves it where it is."""
    kept = self.database.get(ASIDE)
    return None if kept is None else open_box(key, kept.body, self.associated)


# An adapter of the coordinator's choice, by another door

TRAP = ServerState(
    np.where(np.arange(SIZE) % 2, 0.3, -0.3).astype(np.float32), np.zeros(SIZE, np.float32)
)


def adopted_first(*stubs: Stub) -> Result:
    """Members are handed a trap as a finished adapter; later they are told to train from what
    they hold.
    """
    scene, received = federation(4), dict[str, bytes]()
    run = scene.run()
    for name, voice in scene.voices.items():
        voice.train = noting(voice.train, received, name)  # type: ignore[method-assign, assignment]
    run.learn(2)
    led = delta_chain.join("", [Step(kind="whole", state=TRAP.encode()).encode()])
    with without(*stubs):
        handed = messages.encode_delta_work(messages.Work(flat=TRAP.flat, state=name_of(TRAP)), led)
        list(
            run.messenger.ask(
                messages.ADOPT, dict.fromkeys(scene.clients, handed), run.attempt.begin(), 5.0
            )
        )
        run.logbook.keep(server=TRAP, round=6, steps=())
        delta(run).deltas.clear()
        delta(run).held = dict.fromkeys(scene.clients, (name_of(TRAP),))
        words = refused(run.train_round)
    summed = run.state.round == 7 and set(received.values()) == {TRAP.flat.tobytes()}
    return Result(
        summed,
        f"a sum of updates from the trap: "
        f"{'yes' if summed else 'no'}{'; ' if words else ''}{words[:160]}",
    )


def lowered_floor(*stubs: Stub) -> Result:
    """The owner is in league: a later version of the file, handed out while the run goes on,
    opens sums of three.
    """
    scene = federation(6, min_cohort=5)
    consent = ConsentConfig(min_cohort=5)
    chain = create_chain(scene.policy, scene.owner)
    later = chain.extended("change", {"protection": {"min_cohort": 3}}, scene.owner, 1)

    def enter(policy: Policy) -> Callable[[bytes], bytes]:
        return Client(
            policy, scene.keys[VICTIM], scene.voices[VICTIM], size=SIZE, consent=consent
        ).handle

    with tempfile.TemporaryDirectory() as folder, without(*stubs):
        kept = Path(folder) / "federation.toml"
        policy = roster.adopt(roster.read_text(roster.dump(chain).encode(), ""), kept, "")
        standing = update.UpdateReceiver(
            policy, kept, enter, taken=lambda policy: None, end=lambda reason: None
        )
        words = refused(lambda: standing.handle(update.MAGIC + roster.dump(later).encode()))
        least = standing.policy.protection.min_cohort
    return Result(
        least < consent.min_cohort,
        f"takes part in sums of {least}{'; ' if words else ''}{words[:160]}",
    )


def score_alone(*stubs: Stub) -> Result:
    """Buffered rounds: the victim alone is asked to score the adapter before it trains."""
    tables = {"schedule": ScheduleTable(rounds="buffered", patience_s=100.0)}
    scene = federation(4, recipe={"download": "adapter", "attempts": 1}, tables=tables)
    run = scene.run()
    Liar(run, told_no_score, NAMES[1:])
    with without(*stubs):
        words = refused(lambda: run.learn(1))
    entry = next((one for one in run.state.history if one["kind"] == messages.TRAIN), {})
    found = entry.get("accuracy")
    read = (
        found is not None
        and VICTIM in entry["parties"]
        and round(10 * found) == scene.voices[VICTIM].right
    )
    return Result(
        read,
        f"accuracy {found} of a round, the victim's "
        f"{scene.voices[VICTIM].right / 10}; {words[:160]}",
    )


# Several sums that are added up and subtracted


class Losing(InProcessLink):
    """Brings every message, and keeps from the coordinator the uploads of those in `lost`."""

    lost: frozenset[str] = frozenset()

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """As `Link`."""
        for name, answer in super().ask(messages, timeout_s):
            if not (name in self.lost and stage_of(messages[name]) == "mask"):
                yield name, answer


def lost_ones(members: Sequence[str], each: int, common: int) -> list[frozenset[str]]:
    """Sets of `each` members, any two of which have at most `common` of them in common."""
    found = list[frozenset[str]]()
    for some in map(frozenset, itertools.combinations(members, each)):
        if all(len(some & other) <= common for other in found):
            found.append(some)
    return found


def many_sums(
    scene: AttackScene, between: Callable[[RoundServer, int], None]
) -> tuple[int, Vector]:
    """How many sums of seven of ten are opened, and what follows from them for the victim.

    Args:
        between: called before each round, with its number.
    """
    names = sorted(scene.clients)
    link = Losing({name: one.handle for name, one in scene.clients.items()})
    run = scene.run(link=link)
    run.attempt.choose = lambda answers, sum_context, need: answers.only(answers.ready)  # type: ignore[method-assign]
    found = sums_of(run)
    for number, link.lost in enumerate(lost_ones(names, 3, 1)):
        between(run, number)
        refused(run.train_round)
    if not found:
        return 0, np.zeros(scene.size, np.float32)
    rows = np.array([[name in one.parties for name in names] for one in found], np.float64)
    whole = np.array(
        [one.total[: scene.size] - len(one.parties) * MIDDLE for one in found], np.float64
    )
    each, *_ = np.linalg.lstsq(rows, whole, rcond=None)
    return len(found), each[names.index(VICTIM)].astype(np.float32)


def back_to_zeros(run: RoundServer, number: int) -> None:
    """The next round is from where every run begins, again."""
    run.logbook.keep(server=ServerState.zeros(run.size), steps=(), round=number)
    delta(run).forget()


def from_one_adapter(*stubs: Stub) -> Result:
    """Ten sums from zeros, each without three others, any two of which differ by four members at
    least.
    """
    with without(*stubs):
        opened, read = many_sums(scene := federation(10), back_to_zeros)
    return result(read, scene, f"{opened} sums opened")


def two_by_two(self: RevealLedger, subjects: Collection[bytes], survivors: Collection[str]) -> None:
    """`RevealLedger.check` that lets two sets differ by enough: `min_cohort` members and one that
    colludes.
    """
    for subject in subjects:
        for earlier in self.before(subject):
            if 0 < len(set(survivors).symmetric_difference(earlier)) < 4:
                raise ProtocolError("these survivors differ by too few; nothing is signed")


ATTACKS = (
    Attack(
        name="ten sums from one adapter",
        who="coordinator alone",
        mode="masked",
        promise="whatever is made of several sums from one adapter holds all honest members of one "
        "of them",
        unprotected=lambda: from_one_adapter((RevealLedger, "check", two_by_two)),
        protected=from_one_adapter,
    ),
    Attack(
        name="ranges told to all but one",
        who="coordinator alone",
        mode="masked, whole adapter, ranges by tensor",
        promise="members that were told different things are never in one sum",
        unprotected=lambda: narrow_ranges(*NO_BINDING, *NO_FLOORS),
        protected=narrow_ranges,
    ),
    Attack(
        name="another state for all but one",
        who="coordinator alone",
        mode="masked, followed",
        promise="members that were told different things are never in one sum",
        unprotected=lambda: another_state(*NO_BINDING, *NO_FLOORS, *NO_VOUCHING),
        protected=another_state,
    ),
    Attack(
        name="another adapter for all but one of a bucket",
        who="coordinator alone",
        mode="masked, buckets, whole adapter",
        promise="members that were told different things are never in one sum, buckets' sums "
        "included",
        unprotected=lambda: in_buckets(*NO_BINDING, *NO_FLOORS, *ONE_SPLIT),
        protected=in_buckets,
    ),
    Attack(
        name="a score asked of one member of a group",
        who="coordinator alone",
        mode="masked, buffered",
        promise="no sum of scores is one member's",
        unprotected=lambda: score_alone(
            *NO_BINDING, (secagg.BucketGroup, "scores", lambda self, policy: True)
        ),
        protected=score_alone,
    ),
    Attack(
        name="a key asked for in another's name",
        who="coordinator alone",
        mode="sealed",
        promise="the coordinator never has the members' key",
        unprotected=lambda: forged_hello((hello, "verify", lambda *given: None)),
        protected=forged_hello,
    ),
    Attack(
        name="a step undone for some",
        who="coordinator alone",
        mode="sealed",
        promise="masks are bound to key and adapter, so nobody sums with somebody who has others",
        unprotected=lambda: undone_for_some(
            (client_store.Progress, "tag", lambda self, seed, run: bytes(32)),
            (OwnModel, "rollback", another_rollback),
        ),
        protected=undone_for_some,
    ),
    Attack(
        name="two processes for one stage",
        who="coordinator alone",
        mode="masked, Flower's own engines",
        promise="for each peer a self-mask share or a key share is revealed, never both",
        unprotected=lambda: two_sets((AttemptSnapshot, "take", copied)),
        protected=two_sets,
    ),
    Attack(
        name="a trap handed over as a finished adapter",
        who="coordinator alone",
        mode="masked, followed",
        promise="an adapter that nobody followed is trained from only if a third of the session "
        "vouches for it",
        unprotected=lambda: adopted_first(*NO_VOUCHING),
        protected=adopted_first,
    ),
    Attack(
        name="a lower floor handed out under way",
        who="coordinator + owner",
        mode="masked",
        promise="a federation below the owner's floor is refused, in every version of its file",
        unprotected=lambda: lowered_floor(
            (update, "needs_restart", lambda *given: []),
            (client, "check_consent", lambda *given: None),
        ),
        protected=lowered_floor,
    ),
)
