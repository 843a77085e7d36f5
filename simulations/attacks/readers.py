"""Attacks by whoever reads what training made, a sum or the finished adapter: was this example in
it, was this member, what was the secret?

    membership  loss under the adapter against the mean loss under reference models, which learned
                from other people's examples of the same kind
    canary      how far up a planted secret stands among all that it could be, in bits
    audit       of many members, each in by the flip of a coin, who was? From the guesses that are
                right follows a lower bound of epsilon, by one run

Knows a classifier that learns in milliseconds, and mechanisms of noise. Knows nothing of messages.
Always: who is in and what a secret is are drawn with fresh randomness by those that set the game,
and never seen by the attacker; an audit that finds more than the claimed epsilon is a promise
broken, and ends `quietchoir bench attacks` with 1.

Source of calibrated membership: Watson et al. 2022, "On the importance of difficulty calibration in
membership inference attacks"; of reporting true positives at few false ones: Carlini et al. 2022,
"Membership inference attacks from first principles"; of exposure: Carlini et al. 2019, "The secret
sharer", section 4; of the audit: Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1)
training run", arXiv 2305.08846.

Not covered: the adapter of a language model, which was not attacked in this way; an audit's lower
bound says that a mechanism is no better than that, never that it is as good. This one sees that
noise was left out; half or a quarter of the noise (epsilon 3.0 and 6.6 where 1.4 is claimed)
passes.
"""

import dataclasses
import functools
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.training.examples import Example
from ...crypto.privacy.accountant import PrivacyStep, compose
from ...crypto.privacy.noise import Dice, Noise
from ...federation.rounds.client import training_seed
from ...federation.spec.policy import PrivacyTable, ProtectionTable, Recipe
from ...federation.store.checkpoint import Vector
from ...federation.wire.messages import RoundId
from ..cast import Cast, start
from ..linear import LabelSet, LinearLearner, Texts, losses
from ..population import PartyData, populate
from ..run import simulate
from ..scenario import LINEAR, Population, Scenario
from .catalogue import Attack, Result
from .inversion import Masked
from .scene import Stub, without

Scores = npt.NDArray[np.float64]
MEMBERS, REFERENCES = 6, 4  # of the federation; models that the attacker makes by itself
CANARIES, CODES = 16, 16  # secrets that are planted, each one of so many codes: 4 bits
FEW_FALSE = 0.01  # false positives at which true ones are told
TELLS = 0.6  # area under the curve from which on members are told from others
WHOSE = 0.8  # the same for one member's examples, which are few
EXPOSED = 2.5  # bits of a canary's 4 from which on it counts as read; by chance 1.2
STAGE = Scenario(
    name="readers",
    model=LINEAR,
    population=Population(
        households=12, train=100, test=5, partition="iid", parties=MEMBERS * (2 + REFERENCES)
    ),
    protection=ProtectionTable(mode="masked", bits=16, min_cohort=MEMBERS),
    recipe=Recipe(
        rounds=4, lr=2e-2, epochs=6, server_optimizer="fedavg", update_range=2.0, evaluate_every=0
    ),
)
# the noise of four rounds: epsilon is printed with the row
NOISE = PrivacyTable(
    mechanism="discrete-gaussian", clip=2.0, noise_multiplier=4.0, epsilon=50.0, delta=1e-5
)


@dataclass(frozen=True, slots=True)
class Game:
    """Who learned, who did not, and the secrets among what was learned."""

    members: tuple[PartyData, ...]
    others: tuple[Example, ...]  # of the same kind; nobody learned from them
    references: tuple[tuple[Example, ...], ...]  # what the attacker's own models learn from
    canaries: tuple[Example, ...]  # dealt out among the members
    labels: LabelSet

    def learner(self, train: Sequence[Example]) -> LinearLearner:
        """Of so many examples; none held out."""
        return LinearLearner(
            Texts.of(train, self.labels), Texts.of((), self.labels), self.labels, STAGE.recipe
        )

    def losses(self, flat: Vector, examples: Sequence[Example]) -> Scores:
        """Of each example, under the classifier `flat` [n]."""
        return losses(flat, Texts.of(examples, self.labels), len(self.labels.places))


@functools.cache
def game() -> Game:
    """One game, for all that are played here: the draws of who is where, and of the secrets."""
    pool = populate(STAGE)
    order = np.random.default_rng(secrets.randbits(64)).permutation(len(pool))
    dealt = [pool[at] for at in order]
    codes = [f"code {number:02}" for number in range(CODES)]
    canaries = [canary(number, secrets.choice(codes)) for number in range(CANARIES)]
    members = [
        dataclasses.replace(person, train=(*person.train, *canaries[place::MEMBERS]))
        for place, person in enumerate(dealt[:MEMBERS])
    ]
    groups = [
        tuple(one for person in dealt[at : at + MEMBERS] for one in person.train)
        for at in range(MEMBERS, len(dealt), MEMBERS)
    ]
    # what stands on both sides, word for word, is no example of either
    common = {one.request for one in groups[0]} & {
        one.request for person in members for one in person.train
    }
    others = tuple(one for one in groups[0] if one.request not in common)
    return Game(
        tuple(members), others, tuple(groups[1:]), tuple(canaries), LabelSet.of(pool, codes)
    )


def canary(number: int, code: str) -> Example:
    """A request like no other, and its secret."""
    rare = " ".join(secrets.token_hex(3) for _ in range(4))
    return Example(
        (
            {"role": "user", "content": f"what is the code of {rare} {number}"},
            {"role": "assistant", "content": code},
        )
    )


@functools.cache
def finished(privacy: PrivacyTable | None) -> tuple[Vector, dict[str, Any]]:
    """The adapter [n] of a whole masked run, with this noise or without; what was spent."""
    scenario = STAGE if privacy is None else dataclasses.replace(STAGE, privacy=privacy)
    learners = {person.name: game().learner(person.train) for person in game().members}
    kept = dict[str, Vector]()
    report = simulate(
        scenario, None, cast=Cast(learners, game().labels.size), on_adopt=kept.__setitem__
    )
    return next(iter(kept.values())), report.privacy or {}


@functools.cache
def reference(number: int) -> Vector:
    """A model [n] that learned as long as the federation did, from other people's examples."""
    learner, flat = game().learner(game().references[number]), start(game().labels.size)
    for round_ in range(1, STAGE.recipe.rounds + 1):
        flat = learner.train(flat, training_seed(RoundId("00" * 16, round_, 1), b"", "x")).flat
    return flat


def calibrated(flat: Vector, examples: Sequence[Example]) -> Scores:
    """How much likelier an example is under the adapter than under models that never saw it."""
    usual = np.mean(
        [game().losses(reference(number), examples) for number in range(REFERENCES)], axis=0
    )
    found: Scores = usual - game().losses(flat, examples)
    return found


def area(inside: Scores, outside: Scores) -> float:
    """Chance that one that is inside scores above one that is not (area under the ROC curve)."""
    above = (inside[:, None] > outside[None, :]).mean()
    return float(above + 0.5 * (inside[:, None] == outside[None, :]).mean())


def few_false(inside: Scores, outside: Scores) -> float:
    """Share of those inside that are told, at no more than `FEW_FALSE` of the others."""
    threshold = np.sort(outside)[::-1][int(FEW_FALSE * len(outside))]
    return float((inside > threshold).mean())


# Was this example in it?


def membership(privacy: PrivacyTable | None) -> Result:
    """Of each example: did somebody learn from it? Read from the finished adapter."""
    flat, spent = finished(privacy)
    planted = {one.request for one in game().canaries}
    learned = [
        one for person in game().members for one in person.train if one.request not in planted
    ]
    inside, outside = calibrated(flat, learned), calibrated(flat, game().others)
    found = area(inside, outside)
    return Result(
        found > TELLS,
        f"area under the curve {found:.3f}, {100 * few_false(inside, outside):.1f} % told at 1 % "
        f"false ones; {claim(spent)}",
    )


def claim(spent: dict[str, Any]) -> str:
    """What a run says that it gave away."""
    if not spent:
        return "no noise"
    return f"epsilon {spent['epsilon']:.1f} of a member's whole updates"


def attribution(mode: str) -> Result:
    """Whose is an example that somebody learned from? By what the coordinator holds of one member
    after a round: its update; or its upload, and the sum; or ciphertexts.
    """
    zero, first = start(game().labels.size), game().members[0]
    updates = [
        game().learner(one.train).train(zero, number).flat
        for number, one in enumerate(game().members)
    ]
    held = [updates[0]]
    if mode != "plain":
        round_ = Masked([one.astype(np.float64) for one in updates])
        seen = (
            [round_.numbers(0), round_.total / len(updates)]
            if mode == "masked"
            else [round_.sealed(0)]
        )
        held = [one.astype(np.float32) for one in seen]
    theirs = [one for person in game().members[1:] for one in person.train]
    found = max(area(gained(flat, first.train), gained(flat, theirs)) for flat in held)
    return Result(found > WHOSE, f"area under the curve {found:.3f}, by what is held of one member")


def gained(flat: Vector, examples: Sequence[Example]) -> Scores:
    """How much likelier each example is under `flat` [n] than under nothing learned."""
    found: Scores = game().losses(start(flat.size), examples) - game().losses(flat, examples)
    return found


# What was the secret?


def exposure(privacy: PrivacyTable | None) -> Result:
    """The mean exposure of the planted codes: log2 of how many there are, less log2 of the place
    at which the right one stands, by the finished adapter.
    """
    flat, spent = finished(privacy)
    bits = []
    for one in game().canaries:
        asked = [answered(one, f"code {number:02}") for number in range(CODES)]
        found = game().losses(flat, asked)
        right = found[int(one.answer.split()[1])]
        bits.append(math.log2(CODES) - math.log2(int((found <= right).sum())))
    mean = float(np.mean(bits))
    return Result(
        mean > EXPOSED, f"{mean:.2f} of {math.log2(CODES):.0f} bits exposed; {claim(spent)}"
    )


def answered(example: Example, answer: str) -> Example:
    """The same request with another answer."""
    *before, last = example.messages
    return Example((*before, {**last, "content": answer}))


# Was this member in it? One run, many members


AUDITED, GUESSED = 400, 200  # members whose coin is flipped; those of whom a guess is made
WIDTH = 512  # values of an update
CONFIDENCE = 0.999  # of an audit's lower bound: one run in a thousand says too much
MECHANISM = Noise(
    length=WIDTH, clip=1.0, multiplier=3.0, honest=AUDITED, bits=16, mechanism="skellam"
)


def p_value(guesses: int, right: int, drawn: int, epsilon: float, delta: float) -> float:
    """At most the chance that so many guesses are right, if one run is (epsilon, delta)-private.

    With delta 0 a guess is right with e^ε / (1 + e^ε) at most, whatever the others were, so the
    right ones are no more than a binomial number f; delta adds 2mδ times the steepest mean rise of
    its tail.

    Args:
        guesses: r, made of `drawn`, m, coins; right: v.

    Source: Steinke et al. 2023, theorem 5.2.
    """
    from scipy.stats import binom

    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, chance))
    below = np.arange(1, right + 1)
    rises = binom.sf(right - 1 - below, guesses, chance) - tail
    steepest = float(np.max(rises / below, initial=0.0))
    return min(1.0, tail + 2 * drawn * delta * steepest)


def least_epsilon(guesses: int, right: int, drawn: int, delta: float) -> float:
    """The epsilon that so many right guesses leave no doubt of, to `CONFIDENCE`: a lower bound."""
    low, high = 0.0, 64.0
    if p_value(guesses, right, drawn, low, delta) >= 1 - CONFIDENCE:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        if p_value(guesses, right, drawn, middle, delta) < 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return low


def audit(*stubs: Stub) -> Result:
    """Each of many members sends an update of its own direction, as long as the clip, or nothing,
    by a coin; from the opened sum it is guessed which, of those where that is clearest.

    The unit is the product's own: a whole update, or zeros instead.
    """
    claimed = compose([PrivacyStep.of(MECHANISM)], NOISE.delta)
    coins = np.array([secrets.randbits(1) for _ in range(AUDITED)])
    seed, total = secrets.token_bytes(32), np.zeros(WIDTH, np.int64)
    with without(*stubs):
        for number, coin in enumerate(coins):
            update = np.zeros(WIDTH, np.float64)
            update[number] = MECHANISM.clip * coin
            total += MECHANISM.encode(update, seed).astype(np.int64)
    seen = MECHANISM.decode_sum(total, AUDITED, seed)[:AUDITED]
    clearest = np.argsort(seen)
    ins, outs = clearest[-GUESSED // 2 :], clearest[: GUESSED // 2]
    right = int(coins[ins].sum() + (1 - coins[outs]).sum())
    least = least_epsilon(GUESSED, right, AUDITED, claimed.delta)
    return Result(
        least > claimed.epsilon,
        f"epsilon at least {least:.2f}, claimed {claimed.epsilon:.2f}; {right} of {GUESSED} "
        f"guesses right",
    )


def nothing(self: Dice, deviation: float, count: int) -> npt.NDArray[np.int64]:
    """Noise that was forgotten."""
    del self, deviation
    return np.zeros(count, np.int64)


ANYONE = "anyone who reads the finished adapter"
ATTACKS = (
    Attack(
        name="membership of an example, from the finished adapter",
        who=ANYONE,
        mode="masked, noise",
        promise="masks hide updates, not what the adapter learned: noise does",
        unprotected=lambda: membership(None),
        protected=lambda: membership(NOISE),
    ),
    Attack(
        name="a canary's secret, from the finished adapter",
        who=ANYONE,
        mode="masked, noise",
        promise="masks hide updates, not what the adapter learned: noise does",
        unprotected=lambda: exposure(None),
        protected=lambda: exposure(NOISE),
    ),
    Attack(
        name="whose example it was, from what the coordinator holds",
        who="coordinator",
        mode="masked",
        promise="the coordinator reads the sum, nobody's update",
        unprotected=lambda: attribution("plain"),
        protected=lambda: attribution("masked"),
    ),
    Attack(
        name="whose example it was, from ciphertexts",
        who="coordinator",
        mode="sealed",
        promise="the coordinator reads neither an update nor their sum",
        unprotected=lambda: attribution("plain"),
        protected=lambda: attribution("sealed"),
    ),
    Attack(
        name="an audit of epsilon by one run",
        who="whoever reads the sum",
        mode="masked, noise",
        promise="a sum gives away no more of a member's update than the stated epsilon",
        unprotected=lambda: audit((Dice, "skellam", nothing)),
        protected=audit,
    ),
)
