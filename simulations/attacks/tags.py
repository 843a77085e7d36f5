"""Attacks on tags: another sum than the opened one is to be signed, or gone by, or to tell more.

Knows where a coordinator shows an opened sum, what a member that helps it knows (the key of the
attempt's tags), and how a step is made of signed sums. Knows nothing of the network.
Always: in the unprotected arm one check is taken away and all else is the product; a coordinator's
own refusals (of signatures over what it did not open) are its own to leave out.
"""

import dataclasses
import secrets
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import QuietchoirError
from ...crypto.identity.keys import bind, hkdf
from ...crypto.ring import expand
from ...crypto.secagg import tag
from ...crypto.secagg.client import SecAggClient, SumCheck
from ...crypto.secagg.session import Session
from ...federation.aggregation import delta_chain
from ...federation.aggregation.base import Sum
from ...federation.aggregation.delta_chain import DeltaChain, Step, name_of, origin_of
from ...federation.aggregation.secagg import ATTEST
from ...federation.aggregation.update import SumContext
from ...federation.engines.stateless_client import AttemptSnapshot, freeze_attempt, thaw_attempt
from ...federation.rounds.model_broadcast import ClientModelCache, FollowedModel
from ...federation.rounds.server import RoundServer
from ...federation.spec.policy import AggregationTable, Policy
from ...federation.store.checkpoint import ServerState
from ...federation.store.member import open_member
from ...federation.wire import messages
from ...federation.wire.messages import RoundId
from .catalogue import Attack, Result
from .coordinators import MIDDLE, Stopping, copied, delta
from .scene import (
    NAMES,
    RANGE,
    SIZE,
    VICTIM,
    AttackScene,
    Liar,
    Stub,
    changed,
    federation,
    refused,
    without,
)

BITS = 12  # of the scene's values
Shown = tuple[npt.NDArray[Any], tag.Tag]
# to whom, what was meant: what is shown instead; None: that
Forge = Callable[[str, Shown], Shown | bytes | None]
HELPER = "ben"
GUESSES, COINS = 200, 24
FREE = ServerState(
    np.where(np.arange(SIZE) % 2, 0.19, -0.19).astype(np.float32), np.zeros(SIZE, np.float32)
)


def signers(run: RoundServer, forge: Forge) -> dict[str, bytes]:
    """Who signs what, from now on, where members are shown what `forge` makes of an opened sum."""
    honest, found = run.messenger.ask, dict[str, bytes]()

    def asking(
        stage: str, payloads: Mapping[str, bytes], round_id: RoundId, timeout_s: float
    ) -> Iterator[Any]:
        if stage != ATTEST:
            yield from honest(stage, payloads, round_id, timeout_s)
            return
        parties = {name: [*payloads.values()].count(one) for name, one in payloads.items()}
        sent = {name: forged(run, forge, name, one, parties) for name, one in payloads.items()}
        for reply in honest(stage, sent, round_id, timeout_s):
            found[reply.sender] = reply.payload
            yield reply

    run.messenger.ask = asking  # type: ignore[method-assign]
    return found


def forged(
    run: RoundServer, forge: Forge, name: str, payload: bytes, parties: Mapping[str, int]
) -> bytes:
    """What `name` is shown."""
    found = forge(name, delta_chain.decode_shown(payload, run.size, parties[name], BITS))
    if found is None or isinstance(found, bytes):
        return found or payload
    return letter_of(*found, parties[name])


def letter_of(whole: npt.NDArray[Any], tags: tag.Tag, parties: int) -> bytes:
    """A sum with a tag, as a coordinator shows it."""
    return delta_chain.encode_shown(delta_chain.pack(whole, parties, BITS), tags)


def signed(found: Mapping[str, bytes], of: int, words: str = "") -> Result:
    """Did anybody sign what was not opened?"""
    seen = f"{len(found)} of {of} members signed it"
    return Result(bool(found), f"{seen}{'; ' if words else ''}{words[:160]}")


# Another sum to sign

ONE_KEY = (Session, "tag_key", lambda self, seeds, shared: bytes(32))
ANY_SUM = (SumCheck, "fits", lambda self, total, found: True)


def earlier_again(*stubs: Stub) -> Result:
    """The second round's members are shown the first one's sum, with the first one's tag."""
    scene, seen = federation(4), list[Shown]()

    def forge(name: str, shown: Shown) -> Shown | None:
        if name == VICTIM:
            seen.append(shown)
        return seen[0] if run.state.round else None

    found = signers(run := scene.run(), forge)
    with without(*stubs):
        run.train_round()
        found.clear()
        words = refused(run.train_round)
    return signed(found, len(scene.clients), words)


def by_linearity(*stubs: Stub) -> Result:
    """A combination of two opened sums, and the same one of their tags."""
    scene, seen = federation(4), list[Shown]()

    def forge(name: str, shown: Shown) -> Shown | None:
        del name
        if not run.state.round:
            seen.append(shown)
            return None
        (first, one), (second, two) = seen[0], shown
        both = zip(one, two, tag.PRIMES, strict=True)
        return 2 * second - first, tuple((2 * b - a) % prime for a, b, prime in both)

    run = scene.run()
    found = signers(run, forge)
    with without(*stubs):
        run.train_round()
        found.clear()
        words = refused(run.train_round)
    return signed(found, len(scene.clients), words)


def another_buckets(*stubs: Stub) -> Result:
    """A bucket is shown the sum of another one, and that one's tag."""
    tables = {"aggregation": AggregationTable(rule="median", buckets=3)}
    scene, first, lied = federation(12, tables=tables), list[Shown](), set[str]()

    def forge(name: str, shown: Shown) -> Shown | None:
        first.append(shown)
        if np.array_equal(first[0][0], shown[0]):
            return None
        lied.add(name)
        return first[0]

    found = signers(run := scene.run(), forge)
    with without(*stubs):
        words = refused(run.train_round)
    return signed({name: one for name, one in found.items() if name in lied}, len(lied), words)


def guessing(*stubs: Stub) -> Result:
    """One member is shown a false sum again and again, each time with another guess of its tag."""
    scene = federation(4)
    run, found = scene.run(), list[bytes]()
    honest = run.messenger.ask

    def asking(
        stage: str, payloads: Mapping[str, bytes], round_id: RoundId, timeout_s: float
    ) -> Iterator[Any]:
        for _ in range(GUESSES if stage == ATTEST else 0):
            whole, _ = delta_chain.decode_shown(payloads[VICTIM], SIZE, len(payloads), BITS)
            whole[0] += 1
            guess = tuple(secrets.randbelow(prime) for prime in tag.PRIMES)
            guessed = letter_of(whole, guess, len(payloads))
            message = run.messenger.sign(stage, {VICTIM: guessed}, round_id)[VICTIM]
            refused(lambda letter=message: found.append(scene.clients[VICTIM].handle(letter)))  # type: ignore[misc]
            if found:
                break
        yield from honest(stage, payloads, round_id, timeout_s)

    run.messenger.ask = asking  # type: ignore[method-assign]
    with without(*stubs):
        refused(run.train_round)
    return Result(bool(found), f"signed after at most {GUESSES} guesses: {bool(found)}")


def outside(*stubs: Stub) -> Result:
    """A sum with a value below zero, which no tag can be computed of: does a member come to
    harm?
    """
    scene = federation(4)
    run, parties = scene.run(), len(scene.clients)

    def forge(name: str, shown: Shown) -> bytes:
        del name
        whole = shown[0].astype(np.int64)
        whole[0] = -1
        wide = delta_chain.width(parties, BITS)
        body = delta_chain.deflate(delta_chain.spread(whole, parties * MIDDLE, wide))
        tags = b"".join(one.to_bytes(delta_chain.NUMBER_BYTES, "big") for one in shown[1])
        return bytes([delta_chain.PACKINGS.index("deflate")]) + tags + body

    signers(run, forge)
    with without(*stubs):
        try:
            run.train_round()
        except QuietchoirError as error:
            return Result(False, f"{type(error).__name__}: {error}")
        except Exception as error:
            return Result(True, f"the member ends: {type(error).__name__}: {error}")
    return Result(True, "the sum was taken")


def blown_up(*stubs: Stub) -> Result:
    """A small body that inflates to 16 MiB."""
    scene, peaks = federation(4), list[int]()
    run, bomb = scene.run(), zlib.compress(bytes(16 << 20), 9)

    def forge(name: str, shown: Shown) -> bytes:
        del name
        tags = bytes(delta_chain.NUMBER_BYTES * len(shown[1]))
        return bytes([delta_chain.PACKINGS.index("deflate")]) + tags + bomb

    signers(run, forge)
    with without(*stubs):
        tracemalloc.start()
        try:
            refused(run.train_round)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return Result(peaks[0] > 8 << 20, f"{peaks[0] >> 20} MiB for a body of {len(bomb) >> 10} KiB")


def unlimited(body: bytes, size: int) -> bytes:
    """`delta_chain.inflate` that measures afterwards."""
    found = zlib.decompress(body)
    return found[:size]


# Signatures, and what is made of them


def step_of(
    scene: AttackScene, sums: Sequence[Sum], round_id: RoundId, policy: Policy | None = None
) -> Step:
    """The step that a coordinator makes of sums and signatures."""
    return DeltaChain(policy or scene.policy, SIZE, round_id.run).of_sums(sums, round_id, NAMES)


def follows(policy: Policy, run: str, steps: Sequence[Step]) -> tuple[str, str]:
    """Where somebody who holds nothing but zeros follows this way to; or nowhere, and why."""
    stepping, state = DeltaChain(policy, SIZE, run), ServerState.zeros(SIZE)
    found = list[Any]()

    def follow() -> None:
        at = state
        for step in steps:  # as a coordinator steps, which believes itself
            at = stepping.go(at, step, "")
        whole = delta_chain.join(origin_of(SIZE), [step.encode() for step in steps])
        found.append(ClientModelCache().follow(stepping, name_of(at), whole))

    words = refused(follow)
    return (found[0].name if found and found[0].followed else ""), words


def first_step(scene: AttackScene, *, rounds: int = 1) -> tuple[RoundServer, Step]:
    """A run of its coordinator, and the step that its members signed first."""
    run = scene.run()
    for _ in range(rounds):
        run.train_round()
    return run, delta_chain.split(bytes(delta_chain.NAME_BYTES) + run.state.steps[0].body)[1][0]


def gone(name: str, words: str) -> Result:
    """Was a way followed that nobody signed?"""
    seen = "followed" if name else "not followed"
    return Result(bool(name), f"{seen}{'; ' if words else ''}{words[:160]}")


HONEST_STATEMENT = delta_chain.statement


def saying_less(**less: Any) -> tuple[Stub, ...]:
    """Signatures that do not say some of this: a start, a policy, a place."""

    def statement(policy: Policy, round_id: RoundId, digest: bytes, names: Any, terms: Any) -> Any:
        terms = dataclasses.replace(terms, start=less.get("start", terms.start))
        policy = dataclasses.replace(policy, nonce=less.get("nonce", policy.nonce))
        round_id = dataclasses.replace(round_id, **less.get("place", {}))
        return HONEST_STATEMENT(policy, round_id, digest, names, terms)

    return ((delta_chain, "statement", statement),)


def twice(*stubs: Stub) -> Result:
    """The step of a signed sum is gone a second time, from where it led to."""
    with without(*stubs):
        scene = federation(4)
        run, step = first_step(scene)
        return gone(*follows(scene.policy, run.state.run, [step, step]))


def of_another_run(*stubs: Stub) -> Result:
    with without(*stubs):
        scene = federation(4)
        _, step = first_step(scene)
        return gone(*follows(scene.policy, "0f" * 16, [step]))


def of_another_attempt(*stubs: Stub) -> Result:
    """A signed sum is said to be of a later round, whose rotation and ranks are others."""
    with without(*stubs):
        scene = federation(4)
        run, step = first_step(scene)
        later = dataclasses.replace(step, round=step.round + 7, attempt=2)
        return gone(*follows(scene.policy, run.state.run, [later]))


def of_another_federation(*stubs: Stub) -> Result:
    """The same owner and members have two federations."""
    with without(*stubs):
        scene = federation(4)
        run, step = first_step(scene)
        return gone(*follows(changed(scene.policy, nonce="02" * 16), run.state.run, [step]))


def under_other_bits(*stubs: Stub) -> Result:
    """The owner writes 16 bits for 12: the old integers, under the new file, say -0.94 of the range
    everywhere.
    """
    with without(*stubs):
        scene = federation(4)
        run, step = first_step(scene)
        wide = dataclasses.replace(scene.policy.protection, bits=16)
        later, old = changed(scene.policy, protection=wide, version=2), step.totals[0]
        whole = delta_chain.unpack(old.packing, old.body, SIZE, old.parties, BITS).astype(np.int64)
        made, round_id = Sum(whole, old.names, proof=old.proof), RoundId(run.state.run, 1, 1)
        return gone(*follows(later, run.state.run, [step_of(scene, [made], round_id, later)]))


def counted_twice(*stubs: Stub) -> Result:
    """Of three buckets' sums one stands in the step twice, and another one not at all."""
    tables = {"aggregation": AggregationTable(rule="trimmed-mean", buckets=3)}
    with without(*stubs):
        scene = federation(12, tables=tables)
        run, step = first_step(scene)
        one, other, *_ = step.totals
        return gone(
            *follows(
                scene.policy, run.state.run, [dataclasses.replace(step, totals=(one, other, one))]
            )
        )


def among_themselves(*stubs: Stub) -> Result:
    """Three of ten members sign a sum of their own three, which no round ever opened."""
    scene, round_id, few = federation(10), RoundId("0a" * 16, 1, 1), ("ben", "cat", "dan")
    whole = len(few) * MIDDLE + np.arange(SIZE)
    with without(*stubs):
        signed = delta_chain.statement(
            scene.policy,
            round_id,
            delta_chain.digest_of(whole),
            few,
            SumContext(start=origin_of(SIZE)),
        )
        made = Sum(whole, few, proof={name: scene.keys[name].sign(*signed) for name in few})
        return gone(*follows(scene.policy, round_id.run, [step_of(scene, [made], round_id)]))


def two_of_one_attempt(*stubs: Stub) -> Result:
    """A member gives the coordinator its attempt's key, and signs two sums; half of the others is
    shown each.
    """
    scene, kept = federation(6), dict[int, tuple[npt.NDArray[Any], dict[str, bytes]]]()
    run, round_id = scene.run(), list[RoundId]()
    half = {name: number % 2 for number, name in enumerate(sorted(scene.clients))}

    def forge(name: str, shown: Shown) -> Shown | None:
        attempt = scene.clients[HELPER].attempt
        assert attempt is not None
        round_id[:] = [attempt.round_id]
        check, whole = attempt.aggregation.check, shown[0].copy()  # type: ignore[attr-defined]
        whole[:] = whole + half[name]
        kept.setdefault(half[name], (whole, {}))
        context, policy = attempt.aggregation.context.sum_context, scene.policy  # type: ignore[attr-defined]
        digest = delta_chain.digest_of(whole)
        signed = delta_chain.statement(policy, attempt.round_id, digest, check.survivors, context)
        kept[half[name]][1][HELPER] = scene.keys[HELPER].sign(*signed)
        return whole, tag.combine(check.key, whole, check.survivors)

    found = signers(run, forge)
    with without(*stubs):
        refused(run.train_round)
        for name, signature in found.items():
            kept[half[name]][1].setdefault(name, signature)
        names = tuple(sorted(scene.clients))
        ends = [
            follows(
                scene.policy,
                run.state.run,
                [step_of(scene, [Sum(whole, names, proof=proof)], round_id[0])],
            )
            for whole, proof in kept.values()
        ]
    count = len({name for name, _ in ends} - {""})
    return Result(
        count > 1,
        f"{count} adapters from one state, signed by {[len(p) for _, p in kept.values()]}",
    )


def two_processes(*stubs: Stub) -> Result:
    """A member whose stages are processes is started twice to sign, for two sums that both fit: the
    key is a helper's.
    """
    scene, found = federation(4), set[bytes]()
    link = Stopping({name: one.handle for name, one in scene.clients.items()}, ATTEST)
    refused(scene.run(link=link).train_round)
    member, helper = scene.clients[VICTIM], scene.clients[HELPER].attempt
    assert helper is not None
    check, parties = helper.aggregation.check, len(scene.clients)  # type: ignore[attr-defined]
    payload = messages.split(link.messages[VICTIM])[1]
    whole, _ = delta_chain.decode_shown(payload, SIZE, parties, BITS)
    with tempfile.TemporaryDirectory() as folder, without(*stubs):
        recess, frozen = (
            AttemptSnapshot(open_member(Path(folder)), member.name),
            freeze_attempt(member),
        )
        assert frozen is not None
        key = recess.put(frozen)
        for away in range(2):
            made = tag.combine(check.key, whole + away, check.survivors)
            letter = letter_of(whole + away, made, parties)
            if (taken := recess.take(key)) is not None:
                again = thaw_attempt(taken, member)
                assert again is not None
                found.add(again.aggregation.answer(ATTEST, letter))
    return Result(len(found) > 1, f"{len(found)} sums of one attempt signed by one member")


def whole_on_the_way(*stubs: Stub) -> Result:
    """After one honest step members are told the way from zeros again, which then goes on with a
    whole state.
    """
    scene = federation(4)
    run, first = first_step(scene)
    end = Step(kind="whole", state=FREE.encode())
    chain = delta_chain.join(origin_of(SIZE), [first.encode(), end.encode()])

    def lie(stage: str, payload: bytes) -> bytes | None:
        if stage != messages.TRAIN:
            return None
        order, _ = messages.split_work(payload)
        return messages.encode_delta_work(dataclasses.replace(order, state=name_of(FREE)), chain)

    run.logbook.keep(server=FREE, steps=())
    delta(run).held = dict.fromkeys(scene.clients, (name_of(FREE),))
    Liar(run, lie)
    with without(*stubs):
        words = refused(run.train_round)
    vouched = sum(
        one.model.cache.follows(name_of(FREE), run.state.run, SIZE) for one in joined(scene)
    )
    summed = run.state.round == 2 and vouched == len(scene.clients)
    return Result(
        summed,
        f"{vouched} members vouch for an adapter of the coordinator's own, summed from it: "
        f"{'yes' if summed else 'no'}{'; ' if words else ''}{words[:160]}",
    )


def joined(scene: AttackScene) -> Iterator[Any]:
    """Members that follow the adapter."""
    yield from (one for one in scene.clients.values() if isinstance(one.model, FollowedModel))


def first_alone(taken: Sequence[Step]) -> bool:
    """`steps.starts_whole` that looks at the first step alone."""
    return bool(taken) and taken[0].kind == "whole"


# What an opened tag tells


def dealt_apart(*stubs: Stub) -> Result:
    """A member deals the victim another seed than the others: the opened tag then is three
    equations about the victim's own numbers, which it and the coordinator can write down.
    """
    scene, made, seen = federation(4), dict[str, tuple[bytes, Any]](), list[Shown]()
    honest_seal, honest_make = SecAggClient._seal, tag.make

    def seal(self: SecAggClient, peer: int, card: Any, pieces: bytes, view: bytes) -> bytes:
        names = self._session.names
        if (names[self._me], names[peer]) == (HELPER, VICTIM):
            pieces = pieces[: -tag.SEED_BYTES] + bytes(tag.SEED_BYTES)
        return honest_seal(self, peer, card, pieces, view)

    def make(key: bytes, values: Any, name: str) -> tag.Tag:
        made[name] = (key, np.array(values).astype(object))
        return honest_make(key, values, name)

    def forge(name: str, shown: Shown) -> None:
        del name
        seen.append(shown)

    run = scene.run()
    signers(run, forge)
    with without((SecAggClient, "_seal", seal), (tag, "make", make), *stubs):
        refused(run.train_round)
    if VICTIM not in made or not seen:
        return Result(False, "the victim takes no part with a seed of its own")
    whole, tags = seen[0][0].astype(object), seen[0][1]
    hold = 0
    for at, prime in enumerate(tag.PRIMES):
        pads = sum(pad_of(key, name, at) for name, (key, _) in made.items())
        own, others = (words_of(made[name][0], at) for name in (VICTIM, HELPER))
        known = (tags[at] - pads - int((others * whole).sum())) % prime
        hold += known == int(((own - others) * made[VICTIM][1]).sum()) % prime
    return Result(
        hold == len(tag.PRIMES), f"{hold} equations about the victim alone, of 32 bits each"
    )


def pad_of(key: bytes, name: str, at: int) -> int:
    """The pad of one member, as `tag.combine` has it."""
    pads = hkdf(key, bind("quietchoir sum pad 1", name), 8 * len(tag.PRIMES))
    return int.from_bytes(pads[8 * at : 8 * at + 8], "big")


def words_of(key: bytes, at: int) -> Any:
    """The factors of one tag, as `tag.inner` has them."""
    words = expand(hkdf(key, bind("quietchoir sum tag 1", at)), 4 * SIZE)
    return np.frombuffer(words, "<u4").astype(object)


def lowest(found: tag.Tag, bits: int) -> npt.NDArray[np.uint64]:
    """`tag.spell` of the number itself, not of another one that is the same modulo the prime."""
    each = tag.width(bits) // len(found)
    return np.array(
        [one >> bits * digit & ((1 << bits) - 1) for one in found for digit in range(each)],
        np.uint64,
    )


def carried(*stubs: Stub) -> Result:
    """Two members help, and two updates are known but not whose is which: their sum does not say
    it. Do the digits of the tags?
    """
    right = 0
    with without(*stubs):
        for _ in range(COINS):
            right += told_apart(secrets.randbelow(2))
    return Result(
        right > COINS - 3, f"{right} of {COINS} times the right one of two members, 12 by chance"
    )


def told_apart(coin: int) -> bool:
    """Is it found which of two known updates is the victim's?"""
    scene, updates = federation(4), [sparse(number) for number in range(2)]
    hidden, helping = (VICTIM, "ben"), ("cat", "dan")
    for number, name in enumerate(hidden):
        scene.voices[name].secret = updates[number ^ coin]
    keys, own, opened = list[bytes](), list[Any](), list[Any]()
    honest_tagged, honest_read = SecAggClient._tagged, tag.read

    def tagged(self: SecAggClient, held: Any, view: bytes, values: Any) -> Any:
        key, found = honest_tagged(self, held, view, values)
        if self._session.names[self._me] in helping:
            keys.append(key)
            own.append(found[-tag.width(BITS) :].astype(np.int64))
        return key, found

    def read(digits: Any, bits: int) -> tag.Tag:
        opened.append(digits.copy())
        return honest_read(digits, bits)

    with without((SecAggClient, "_tagged", tagged), (tag, "read", read)):
        refused(scene.run().train_round)
    left, guesses = opened[0] - sum(own), list[bool]()
    for guess in range(2):
        spelled = [
            lowest(tag.make(keys[0], whole_of(updates[number ^ guess]), name), BITS)
            for number, name in enumerate(hidden)
        ]
        guesses.append(bool(np.array_equal(left, np.sum(spelled, axis=0).astype(np.int64))))
    found = guesses.index(True) if guesses.count(True) == 1 else secrets.randbelow(2)
    return found == coin


def sparse(number: int) -> npt.NDArray[np.float32]:
    """An update that is spelled without chance: zeros, and a few exact steps."""
    found = np.zeros(SIZE, np.float32)
    found[20 * number : 20 * number + 10] = RANGE * 1024 / MIDDLE
    return found


def whole_of(update: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Its integers."""
    return np.round(MIDDLE + update / RANGE * MIDDLE).astype(np.int64)


ALONE, WITH_ONE = "coordinator alone", "coordinator + 1 member"
SHOWN = "members sign the sum that they opened, and no other"
SIGNED = "a signed sum makes one step, from the one state that its signers named"
ATTACKS = (
    Attack(
        name="a whole adapter in the middle of a way",
        who=ALONE,
        mode="masked, followed",
        promise="a state is followed from zeros by opened sums alone",
        unprotected=lambda: whole_on_the_way((delta_chain, "starts_whole", first_alone)),
        protected=whole_on_the_way,
    ),
    Attack(
        name="another seed of tags dealt to one member",
        who=WITH_ONE,
        mode="masked",
        promise="coordinator and members learn the sum of the others, not of one",
        unprotected=lambda: dealt_apart((SecAggClient, "_dealt_alike", lambda *given: None)),
        protected=dealt_apart,
    ),
    Attack(
        name="carries between the digits of tags",
        who="coordinator + t-1 members",
        mode="masked",
        promise="opened tags tell no more of the others than their sum",
        unprotected=lambda: carried((tag, "spell", lowest)),
        protected=carried,
    ),
    Attack(
        name="an earlier sum with its tag",
        who=ALONE,
        mode="masked",
        promise=SHOWN,
        unprotected=lambda: earlier_again(ONE_KEY),
        protected=earlier_again,
    ),
    Attack(
        name="a tag by linearity",
        who=ALONE,
        mode="masked",
        promise=SHOWN,
        unprotected=lambda: by_linearity(ONE_KEY),
        protected=by_linearity,
    ),
    Attack(
        name="another bucket's sum with its tag",
        who=ALONE,
        mode="masked, buckets",
        promise=SHOWN,
        unprotected=lambda: another_buckets(ANY_SUM),
        protected=another_buckets,
    ),
    Attack(
        name="a tag guessed again and again",
        who=ALONE,
        mode="masked",
        promise="a chance below 2^-90 a try",
        unprotected=lambda: guessing((tag, "PRIMES", (7,)), (delta_chain, "PRIMES", (7,))),
        protected=guessing,
    ),
    Attack(
        name="a sum that cannot be tagged",
        who=ALONE,
        mode="masked",
        promise="bad input is refused, and nobody ends by it",
        unprotected=lambda: outside((delta_chain, "check_sum", lambda *given: None)),
        protected=outside,
    ),
    Attack(
        name="a shown sum that inflates",
        who=ALONE,
        mode="masked",
        promise="never more is made of a body than the federation's numbers say",
        unprotected=lambda: blown_up((delta_chain, "inflate", unlimited)),
        protected=blown_up,
    ),
    Attack(
        name="a signed sum gone twice",
        who=ALONE,
        mode="masked, followed",
        promise=SIGNED,
        unprotected=lambda: twice(*saying_less(start="")),
        protected=twice,
    ),
    Attack(
        name="a signed sum in another run",
        who=ALONE,
        mode="masked, followed",
        promise=SIGNED,
        unprotected=lambda: of_another_run(*saying_less(place={"run": ""})),
        protected=of_another_run,
    ),
    Attack(
        name="a signed sum in another round",
        who=ALONE,
        mode="masked, followed",
        promise=SIGNED,
        unprotected=lambda: of_another_attempt(*saying_less(place={"round": 0, "attempt": 0})),
        protected=of_another_attempt,
    ),
    Attack(
        name="a signed sum in another federation",
        who=ALONE,
        mode="masked, followed",
        promise=SIGNED,
        unprotected=lambda: of_another_federation(*saying_less(nonce="00" * 16)),
        protected=of_another_federation,
    ),
    Attack(
        name="a signed sum under another file's bits",
        who=ALONE,
        mode="masked, followed",
        promise="a signed sum means what its signers' file says",
        unprotected=lambda: under_other_bits((delta_chain, "unit", lambda policy: "")),
        protected=under_other_bits,
    ),
    Attack(
        name="a bucket that counts twice",
        who=ALONE,
        mode="masked, buckets, followed",
        promise="each member is in a step once",
        unprotected=lambda: counted_twice((delta_chain, "check_once", lambda totals: None)),
        protected=counted_twice,
    ),
    Attack(
        name="a sum of accomplices alone",
        who="coordinator + 3 of 10 members",
        mode="masked, followed",
        promise="a step needs honest signatures, as long as at most a third collude",
        unprotected=lambda: among_themselves((delta_chain, "least_of", lambda policy: 0)),
        protected=among_themselves,
    ),
    Attack(
        name="two signed sums of one attempt",
        who=WITH_ONE,
        mode="masked, followed",
        promise="no two sums of one attempt are signed by more than two thirds",
        unprotected=lambda: two_of_one_attempt(
            (delta_chain, "witnesses", lambda parties: parties // 2)
        ),
        protected=two_of_one_attempt,
    ),
    Attack(
        name="two processes that sign",
        who=WITH_ONE,
        mode="masked, Flower's own engines",
        promise="a member signs one sum of an attempt",
        unprotected=lambda: two_processes((AttemptSnapshot, "take", copied)),
        protected=two_processes,
    ),
)
