"""From the epsilon that an owner wants to the noise that a federation's file names, and what that
noise means.

Knows the tables, the accountant and how noise becomes whole numbers. Knows nothing of files or
rounds.
Always: the multiplier that is found keeps all rounds of the recipe within the budget, by the very
account that will be charged; noise that does not fit the file's bits is refused here and not when
rounds begin, if the adapter's size is known.

Not covered: attempts that end without a sum are charged too, so a run with many of them ends before
its last round; what rounds under earlier rules have cost stays spent.
"""

import dataclasses
import math
from argparse import ArgumentParser
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from . import compatibility
from .policy import MAX_BITS, PrivacyTable, ProtectionTable, Recipe

if TYPE_CHECKING:
    from ...crypto.privacy.noise import Noise

MARGIN = (
    # on the multiplier where the adapter's size is not known: a discrete Gaussian costs a little
    # more than a continuous
    1.01
)
FINER = 1.005  # from one try to the next
TRIES = 300  # up to four and a half times what a Gaussian would need
SET_ELSEWHERE = ("epsilon", "noise_multiplier", "delta")


def add(parser: ArgumentParser) -> None:
    """The two flags."""
    parser.add_argument(
        "--epsilon",
        type=float,
        metavar="E",
        help="find the noise with which all rounds stay within this epsilon, and name both",
    )
    parser.add_argument(
        "--delta", type=float, metavar="D", help="with --epsilon; default: privacy.delta"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgeted:
    """Noise for a budget."""

    privacy: PrivacyTable
    spent: str  # epsilon after all rounds, with everything without which it means nothing
    # deviation of the noise in one value of a mean over `members`, over the clip
    per_coordinate: float
    members: int  # the fewest in a sum
    values: int | None  # of an update; None: not known here
    rounds: int
    # "quantile": deviation of the noise in the share of members that are within the clip
    unsure: float | None = None

    @property
    def drowned(self) -> bool:
        """Is the noise of all rounds longer than the longest change that all rounds together can
        make?

        Updates add up to `rounds` clips at most; independent noise adds up to sqrt(rounds) times
        one round's, sqrt(values) times one coordinate's. Where the size is not known: more than a
        hundredth of the clip on a coordinate.
        """
        if self.values is None:
            return self.per_coordinate > 0.01
        return self.per_coordinate * math.sqrt(self.values) > math.sqrt(self.rounds)

    def lines(self) -> list[str]:
        """For people."""
        size = f"each of {self.values:,} coordinates" if self.values else "each coordinate"
        sentences = [
            f"noise multiplier {self.privacy.noise_multiplier:g} ({self.privacy.mechanism}): "
            f"{self.spent}",
            f"a mean over {self.members} members carries noise of {self.per_coordinate:.3g} times "
            f"the clip on {size}; "
            "the whole change of a member is at most one clip long",
            *self.clip_lines(),
            "every attempt is paid for: rounds that have to be tried again come off the others",
        ]
        if self.drowned:
            enough = "many more" if self.values is None else f"about {self.enough():,}"
            sentences.append(
                f"warning: so much noise over {self.members} members drowns what they learn; it "
                f"takes {enough} members in "
                "every sum (raise --min-cohort), fewer rounds, a smaller adapter, or a larger "
                "epsilon"
            )
        if self.values is None:
            sentences.append(
                "the model is not on this disk: 1 % was added, and whether the noise fits the bits "
                "shows when rounds begin"
            )
        return sentences

    def clip_lines(self) -> list[str]:
        """How the clip follows members' lengths, for people."""
        if not self.privacy.adaptive:
            return []
        follows = f"the clip begins at {self.privacy.clip:.3g} and follows members' median length"
        walk = (
            "one hostile member can take the clip to 16 times that, or a sixteenth: where members "
            "may be hostile, set --privacy-clipping fixed"
        )
        if self.unsure is None:
            return [f"{follows}, by a noised bit of each, within the same epsilon", walk]
        return [
            f"{follows}, by a bit of each within the same epsilon (noise {self.unsure:.2g} in the "
            "share of them that is shorter; above 0.5 it hardly moves)",
            walk,
        ]

    def enough(self) -> int:
        """Members in every sum with whom the noise would be as long as the longest change.

        A coordinate's noise goes with 1/sqrt(n (n - k)): a sum over n, of whom k add nothing that
        hides the others.
        """
        honest = self.privacy.honest(self.members)
        known = self.members - honest
        wanted = self.per_coordinate * math.sqrt(
            self.members * honest * (self.values or 1) / self.rounds
        )
        return math.ceil(known / 2 + math.sqrt(wanted**2 + known**2 / 4))


def budgeted(
    epsilon: float,
    delta: float | None,
    tables: Mapping[str, Any],
    given: Mapping[str, Any],
    values: int | None,
) -> Budgeted:
    """The `[privacy]` for a budget.

    Args:
        tables: "protection", "recipe", "privacy": as they will be otherwise.
        given: fields of [privacy] that were named besides.
        values: of an update; None: not known.

    Raises:
        ConfigError: a budget without sense, a field that is named twice, or noise that does not
        fit.
    """
    protection, recipe, privacy = tables["protection"], tables["recipe"], tables["privacy"]
    if doubled := [name for name in SET_ELSEWHERE if name in given]:
        flag = doubled[0].replace("_", "-")
        raise ConfigError(
            f"--epsilon sets privacy.{doubled[0]}, and --privacy-{flag} does too; "
            f"leave one of them out"
        )
    mechanism = privacy.mechanism if privacy.on else "discrete-gaussian"
    clipping = {} if privacy.on else clipping_of(tables, given, values)
    if given.get("mechanism") == "none":
        raise ConfigError(
            "--epsilon asks for noise, --privacy-mechanism none for none; leave one of them out"
        )
    if mechanism == "skellam" and values is None:
        raise ConfigError(
            "skellam's epsilon depends on the adapter's size; pull the model first, or leave "
            "--privacy-mechanism out"
        )
    try:
        wanted = dataclasses.replace(
            privacy,
            mechanism=mechanism,
            epsilon=epsilon,
            delta=privacy.delta if delta is None else delta,
            **clipping,
        )
        wanted.check(protection.min_cohort)
        compatibility.check(
            compatibility.Axes(min_tokens=protection.min_tokens, counts=wanted.counts)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return search(wanted, protection, recipe, values)


def clipping_of(
    tables: Mapping[str, Any], given: Mapping[str, Any], values: int | None
) -> dict[str, Any]:
    """How updates are clipped where the owner named nothing of it: by their median length, from
    that of one step of a member's optimizer on, which moves each value by the learning rate.
    """
    schedule, distillation = tables.get("schedule"), tables.get("distillation")
    if (
        "clipping" in given
        or (schedule and schedule.buffered)
        or (distillation and distillation.on)
    ):
        return {}
    start = tables["recipe"].lr * math.sqrt(values) if values else tables["privacy"].clip
    return {"clipping": "quantile", "clip": given.get("clip", float(f"{start:.3g}"))}


def search(
    wanted: PrivacyTable, protection: ProtectionTable, recipe: Recipe, values: int | None
) -> Budgeted:
    """Raise the multiplier from what Gaussian noise would need until the real noise does.

    Raises:
        ConfigError: noise that does not fit, or none that is enough.
    """
    from ...crypto.privacy.accountant import Budget, PrivacyStep, compose, multiplier_for

    budget = Budget(epsilon=wanted.epsilon, delta=wanted.delta)
    honest, multiplier = (
        wanted.honest(protection.min_cohort),
        multiplier_for(budget, steps=recipe.rounds),
    )
    if values is None:
        spent = compose([PrivacyStep(multiplier=multiplier)] * recipe.rounds, wanted.delta)
        multiplier = rounded_up(multiplier * MARGIN)
        return Budgeted(
            privacy=dataclasses.replace(wanted, noise_multiplier=multiplier),
            spent=str(spent),
            members=protection.min_cohort,
            per_coordinate=multiplier / math.sqrt(honest * protection.min_cohort),
            values=None,
            rounds=recipe.rounds,
        )
    carried = values + wanted.adaptive
    for _ in range(TRIES):
        multiplier = rounded_up(multiplier)
        noise = fitting(wanted, carried, multiplier, honest, protection.bits)
        spent = compose([PrivacyStep.of(noise)] * recipe.rounds, wanted.delta)
        if spent.epsilon <= wanted.epsilon:
            return Budgeted(
                privacy=dataclasses.replace(wanted, noise_multiplier=multiplier),
                spent=str(spent),
                values=values,
                per_coordinate=noise.mean_deviation(protection.min_cohort) / wanted.clip,
                unsure=wanted.unsure(noise.mean_deviation(protection.min_cohort))
                if wanted.adaptive
                else None,
                members=protection.min_cohort,
                rounds=recipe.rounds,
            )
        multiplier *= FINER
    raise ConfigError(
        f"no noise up to {multiplier:g} keeps {recipe.rounds} rounds within epsilon "
        f"{wanted.epsilon:g} at delta "
        f"{wanted.delta:g}; use a larger delta, fewer rounds, or the other mechanism"
    )


def fitting(
    wanted: PrivacyTable, values: int, multiplier: float, honest: int, bits: int
) -> "Noise":
    """The noise, in so many bits.

    Raises:
        ConfigError: it does not fit; says with how many bits it would.
    """
    from ...crypto.privacy.noise import Noise

    def noise(width: int) -> Noise:
        return Noise(
            length=values, clip=wanted.clip, multiplier=multiplier, honest=honest, bits=width,
            mechanism="skellam" if wanted.mechanism == "skellam" else "discrete-gaussian",
        )  # fmt: skip

    try:
        return noise(bits)
    except ConfigError as error:
        wide = ""
        for width in range(bits + 1, MAX_BITS + 1):
            with suppress(ConfigError):
                noise(width)
                wide = f"; --bits {width} would do"
                break
        raise ConfigError(
            f"epsilon {wanted.epsilon:g} needs noise {multiplier:g}: {error}{wide}"
        ) from error


def rounded_up(multiplier: float) -> float:
    """To four digits, never down."""
    unit = 10.0 ** (math.floor(math.log10(multiplier)) - 3)
    return float(f"{math.ceil(multiplier / unit - 1e-9) * unit:.6g}")
