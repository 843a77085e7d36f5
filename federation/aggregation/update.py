"""One party's contribution as unsigned whole numbers, and the sum of many as floats again.

Knows what happens to an update on its way into a sum and is undone on the sum in reverse
(`Transform`: weights, rank masks, fixed point, the federation's noise), and a few counters that
ride in the same vector, so that scores and losses are summed under the same protection as the
update. Knows nothing of masks.
Always: the counters in a decoded sum are exact, or all zero where a private federation sends none;
none of them holds an amount of anybody's examples, answers or tokens; without noise the update is
off by at most one rounding step per party.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...core.config import ConsentConfig
from ...core.errors import DataError
from ...crypto import ring
from ...crypto.privacy.noise import Noise
from ...crypto.ring import Range
from ..spec.policy import Policy, weight
from ..store.checkpoint import Vector
from ..wire.messages import RoundId
from .ranges import Spans, read_spans
from .rank_masks import RankMasks, rank_masks_of

Floats = npt.NDArray[np.float64]
COUNTER_BITS = 24  # of one counter in one party
COUNTER_MODULUS = 2**41 - 21  # of their sums, of 65,536 parties at most
SCORE_UNIT = 100  # scores travel as per cent: finer ones would tell of how many answers they are
LOSS_UNIT = 1000  # losses as thousandths
CLIP_UNIT = 100  # shares of clipped coordinates as per cent
SAMPLE = 16  # words shown in a report
LARGEST_LOSS = 1000.0  # of an answer token; whatever is above counts as this


@dataclass(frozen=True, slots=True)
class SumContext:
    """Of one place."""

    ranges: tuple[Range, ...] = ()  # of the update's tensors; empty: the federation's one range
    seed: bytes = b""  # of the rotation that spreads an update before noise; public
    # of the work or the group: the masks follow from it
    broadcast_digest: bytes = b""
    start: str = ""  # name of the state that the sum makes a step from, where members follow them
    shares: RankMasks | None = None  # who trains which coordinates; None: everybody all of them
    # `adapter_digest` the one that the sum is about; nothing where members do not share one
    adapter: bytes = b""
    # of the cohort, each trained at a rate of its own (`halves`); nothing: all at one
    groups: tuple[tuple[str, ...], ...] = ()


def seed_of(policy: Policy, round_id: RoundId) -> bytes:
    """The public seed of one round's rotation: the same for all its members, another for each
    round.

    It is bound to the federation and not to a version of its file, so that a member that comes
    under a later one can still follow the steps made before.
    """
    return hashlib.sha256(
        b"quietchoir rotation seed 2"
        + policy.federation
        + f"{round_id.run} {round_id.round}".encode()
    ).digest()


def terms_of(
    policy: Policy,
    size: int,
    round_id: RoundId,
    ranges: Spans,
    cohort: Sequence[str],
    *,
    broadcast_digest: bytes,
    start: str,
    adapter: bytes,
    rates: int = 1,
) -> SumContext:
    """What the contributions of this place have in common; the same at the server and at members.

    Args:
        ranges: of the update's tensors, as they are told; cohort: who trains, nobody where it is
        scored; rates: at so many, each of a group. The others as `SumContext`.

    Raises:
        MessageError: ranges that the federation does not allow.
    """
    given = read_spans(ranges, size, policy.recipe.update_range) if ranges else ()
    shares = rank_masks_of(policy, cohort, round_id.attempt) if cohort and policy.ranked else None
    groups = halves(policy, adapter, cohort) if rates > 1 else ()
    return SumContext(
        given, seed_of(policy, round_id), broadcast_digest, start, shares, adapter, groups
    )


def halves(policy: Policy, adapter: bytes, cohort: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Two groups of a cohort, by a public draw: the same from the same adapter, again. Where
    everybody is asked, the roster is dealt out, so that who is away moves nobody to the other
    group.
    """
    everybody = [one.name for one in policy.members]
    dealt = everybody if policy.cohort_size() == len(everybody) else cohort
    seed = hashlib.sha256(b"quietchoir trial groups 2" + policy.digest + adapter).digest()
    order = sorted(dealt, key=lambda name: hashlib.sha256(seed + name.encode()).digest())
    return tuple(tuple(sorted(set(order[start::2]).intersection(cohort))) for start in range(2))


@functools.lru_cache(maxsize=16)
def noise_of(policy: Policy, size: int) -> Noise | None:
    """The noise of an update of `size` values; None if the federation has none, or there is no
    update.

    Any sum that is opened holds at least `min_cohort` contributions. Its reader may be one of the
    members, which knows its own noise: the noise is dealt out among `PrivacyTable.honest` of them.

    Raises:
        ConfigError: the noise does not fit the federation's bits.
    """
    privacy, protection = policy.privacy, policy.protection
    if privacy.mechanism == "none" or not size:
        return None
    return Noise(
        length=size,
        clip=privacy.clip,
        multiplier=privacy.noise_multiplier,
        honest=privacy.honest(protection.min_cohort),
        bits=protection.bits,
        mechanism=privacy.mechanism,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counters of one party, or their sums over parties. Only sums ever leave a party in masked
    mode.

    Each party counts as one, whatever the number of its examples: amounts are in no counter, so
    that two sums that differ by one party do not tell that party's amounts.
    """

    scored: int = 0  # parties that scored held-out answers
    score: int = 0  # share of them that is right, per cent
    near: int = 0  # share of their tokens that is right, per cent
    trained: int = 0  # parties that trained
    loss_milli: int = 0  # mean loss of an answer token, in thousandths
    # share of the update's coordinates that were cut to the range, per cent; 0 with noise
    clipped: int = 0

    @staticmethod
    def scores(correct: int, total: int, near: float = 0.0) -> "Statistics":
        """Of one party that got `correct` of `total` held-out answers right, and a share `near` of
        their tokens; nothing where there are none.
        """
        if not total:
            return Statistics()
        return Statistics(
            scored=1, score=round(SCORE_UNIT * correct / total), near=round(SCORE_UNIT * near)
        )

    @property
    def accuracy(self) -> float | None:
        """Mean over parties of the share of held-out answers that are right; None if nobody
        scored.
        """
        return self.score / (SCORE_UNIT * self.scored) if self.scored else None

    @property
    def nearness(self) -> float:
        """Mean over parties of the share of held-out answers' tokens that are right."""
        return self.near / (SCORE_UNIT * self.scored) if self.scored else 0.0

    @property
    def loss(self) -> float | None:
        """Mean over parties of the loss of an answer token; None if nobody trained."""
        return self.loss_milli / (LOSS_UNIT * self.trained) if self.trained else None

    @property
    def clipped_share(self) -> float:
        """Mean over parties of the share of coordinates that were cut."""
        return self.clipped / (CLIP_UNIT * self.trained) if self.trained else 0.0

    @staticmethod
    def sum(several: "Sequence[Statistics]") -> "Statistics":
        """Counter by counter."""
        names = [field.name for field in dataclasses.fields(Statistics)]
        return Statistics(**{name: sum(getattr(one, name) for one in several) for name in names})


class Transform(Protocol):
    """One thing that happens to every update [n] on its way into a sum. A new one is one class and
    one line, of `transforms_of` (before rounding) or of `Codec`.
    """

    def apply(self, update: Vector) -> npt.NDArray[Any]:
        """The update after it."""
        ...

    def undo(self, sums: npt.NDArray[Any], parties: int, names: Sequence[str]) -> Floats:
        """What a sum [n] over `parties` says of the updates before it; `names` are theirs, where
        that matters.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scaled:
    """Times a factor: how much a contribution counts, so a sum of them is what is wanted.

    Source: steps: Wang et al. 2020, FedNova: nobody counts more for more of them. Staleness:
    `spec.policy.weight`.
    """

    factor: float

    def apply(self, update: Vector) -> Vector:
        """As `Transform`."""
        return (update * np.float32(self.factor)).astype(np.float32)

    def undo(self, sums: Floats, parties: int, names: Sequence[str]) -> Floats:
        """As they are."""
        del parties, names
        return sums


@dataclass(frozen=True, slots=True)
class Averaged:
    """A coordinate's sum is divided by those who train it, so nobody else may move it.

    Args:
        shares: who trains which; None: everybody all of them. name: whose update, at a member.
        alike: so many last values of a sum are everybody's.
    """

    shares: RankMasks | None
    name: str = ""
    alike: int = 0

    def apply(self, update: Vector) -> Vector:
        """As `Transform`."""
        if self.shares is None:
            return update
        return np.where(self.shares.trained(self.name, update.size), update, np.float32(0.0))

    def undo(self, sums: Floats, parties: int, names: Sequence[str]) -> Floats:
        """The mean."""
        if self.shares is None:
            return sums / parties
        if len(names) != parties:
            raise ValueError(
                f"{len(names)} names of {parties} contributions to columns that not all train"
            )  # our bug
        whole = sums / parties
        trained = sums.size - self.alike
        whole[:trained] = self.shares.mean(sums[:trained], names)
        return whole


@dataclass(frozen=True, slots=True)
class Rounded:
    """Cut to the ranges of its tensors, then whole numbers, rounded at random."""

    ranges: Sequence[Range]
    bits: int

    def apply(self, update: Vector) -> npt.NDArray[np.uint64]:
        """As `Transform`."""
        return ring.encode(update, self.ranges, self.bits).astype(np.uint64)

    def undo(self, sums: npt.NDArray[Any], parties: int, names: Sequence[str]) -> Floats:
        """Raises DataError: a sum that so many contributions cannot have."""
        del names
        return ring.decode_sum(sums, parties, self.ranges, self.bits)


@dataclass(frozen=True, slots=True)
class Noised:
    """Cut to the clip, rotated, whole numbers, each with its share of noise. Args: seed: public."""

    noise: Noise
    seed: bytes

    def apply(self, update: Vector) -> npt.NDArray[np.uint64]:
        """As `Transform`."""
        return self.noise.encode(update, self.seed).astype(np.uint64)

    def undo(self, sums: npt.NDArray[Any], parties: int, names: Sequence[str]) -> Floats:
        """Raises DataError: a sum that so many contributions cannot have."""
        del names
        return self.noise.decode_sum(sums, parties, self.seed)


def transforms_of(
    policy: Policy, sum_context: SumContext, name: str, *, steps: int = 0, staleness: int = 0
) -> list[Transform]:
    """What happens to an update of the member `name` before it is rounded, in order.

    Args:
        steps: that it was trained; staleness: of its adapter, where rounds are buffered.
    """
    found = list[Transform]()
    if policy.recipe.agreed_steps and steps:
        found.append(Scaled(policy.recipe.agreed_steps / steps))
    if staleness:
        found.append(Scaled(weight(staleness)))
    if sum_context.shares is not None:
        found.append(Averaged(sum_context.shares, name))
    return found


class Codec:
    """Float update [n] and counters ↔ unsigned integers [length], each below 2^bits.

    Args:
        size: n; 0 where only counters travel.
        sum_context: of the round; by default the federation's one range, and no seed.
    """

    def __init__(self, size: int, policy: Policy, sum_context: SumContext | None = None) -> None:
        sum_context = sum_context or SumContext()
        self.size, self.shares = size, sum_context.shares
        self.bits = policy.protection.bits
        self.counted = policy.privacy.counts
        self.noise = noise_of(policy, size)
        self.range, self.least = policy.recipe.update_range, policy.protection.min_cohort
        self.ranges = list(sum_context.ranges) or [ring.Range(0, size, policy.recipe.update_range)]
        rounded = Rounded(self.ranges, self.bits)
        self.rounding = rounded if self.noise is None else Noised(self.noise, sum_context.seed)
        averaged = Averaged(sum_context.shares, alike=int(policy.privacy.adaptive))
        self.transforms: tuple[Transform, ...] = (averaged, self.rounding)
        self.digits = ring.digits(self.bits)
        self.names = tuple(field.name for field in dataclasses.fields(Statistics))

    @property
    def length(self) -> int:
        """Integers in one contribution."""
        return self.size + len(self.names) * self.digits

    @property
    def largest(self) -> float:
        """No coordinate of a mean over enough members is larger."""
        return self.range if self.noise is None else self.noise.farthest(self.least)

    @property
    def scores(self) -> slice:
        """Where the scores' digits lie in a contribution: its first three counters."""
        return slice(self.size, self.size + 3 * self.digits)

    def clipped(self, update: Vector, clip: float = 0.0) -> int:
        """How many coordinates of `update` are cut: outside their range; with noise all of them,
        if the norm is above the clip (0: the file's).
        """
        if self.noise is not None:
            norm = float(np.linalg.norm(update.astype(np.float64)))
            return self.size if norm > (clip or self.noise.clip) else 0
        return sum(
            int(np.count_nonzero(np.abs(update[span.start : span.stop]) > span.scale))
            for span in self.ranges
        )

    def percent(self, clipped: int) -> int:
        """So many coordinates as a share of all of them, in per cent, rounded up. With noise 0: it
        would say, without noise, whether this member's change was longer than the clip.
        """
        if self.noise is not None:
            return 0
        return -(-CLIP_UNIT * clipped // max(1, self.size))

    def encode(self, update: Vector, statistics: Statistics) -> npt.NDArray[np.uint64]:
        """Spell one contribution; rounding and noise are random, from the operating system's
        generator.

        Raises:
            ValueError: an update of another length, or a counter that does not fit.
            DataError: values that are not finite.
        """
        if update.shape != (self.size,):
            raise ValueError(f"an update of shape {update.shape} must be of shape ({self.size},)")
        whole = self.rounding.apply(update) if self.size else np.zeros(0, np.uint64)
        return np.concatenate([whole, self.spell(statistics if self.counted else Statistics())])

    def decode(
        self, total: npt.NDArray[np.int64], parties: int, names: Sequence[str] = ()
    ) -> tuple[Vector, Statistics]:  # fmt: skip
        """The mean update [n] and the summed counters of `parties` contributions.

        Args:
            names: whose they are; needed where members train different columns.

        Raises:
            DataError: a sum that so many contributions cannot have.
        """
        return self.mean(total[: self.size], parties, names), self.counters(total[self.size :])

    def mean(
        self,
        total: npt.NDArray[np.int64] | npt.NDArray[np.uint32],
        parties: int,
        names: Sequence[str] = (),
    ) -> Vector:
        """The mean update [n] behind the sums [n] of its values; the same bits wherever it is
        computed.

        Raises:
            DataError: a sum that so many contributions cannot have.
        """
        if not self.size:
            return np.zeros(0, np.float32)
        found: npt.NDArray[Any] = total
        for one in reversed(self.transforms):
            found = one.undo(found, parties, names)
        return found.astype(np.float32)

    def counters(self, total: npt.NDArray[np.int64]) -> Statistics:
        """The summed counters behind the sums of their digits."""
        parts = np.split(total, len(self.names))
        return Statistics(
            **{
                name: ring.read(part, COUNTER_MODULUS, self.bits)
                for name, part in zip(self.names, parts, strict=True)
            }
        )

    def spell(self, statistics: Statistics) -> npt.NDArray[np.uint64]:
        """Counters as random digits: their sums are exact, and tell nothing besides the counters'
        own.
        """
        digits: list[int] = []
        for name in self.names:
            value = getattr(statistics, name)
            if not 0 <= value < 1 << COUNTER_BITS:
                raise ValueError(f"{name} = {value} must lie between 0 and 2^{COUNTER_BITS}")
            digits += ring.spell(value, COUNTER_MODULUS, self.bits)
        return np.array(digits, np.uint64)


def check_clipped(clipped: int, size: int, consent: ConsentConfig) -> None:
    """Require that an update is not cut in too large a share of its `size` coordinates before it is
    sent.

    Updates that are mostly cut are mostly known to whoever chose what they were trained from: a sum
    of them tells the others' apart (Pasquini et al. 2022).

    Raises:
        DataError: it is; nothing is sent.
    """
    if clipped > consent.max_clipped * size:
        raise DataError(
            f"{clipped} of {size} coordinates of this node's update would be cut, "
            f"consent.max_clipped allows "
            f"{consent.max_clipped:.0%}; nothing is sent. The federation's lr is too high for its "
            f"update_range, or its "
            "adapter is not one that it could have learned: ask its owner"
        )


def describe(
    words: npt.NDArray[np.integer], kind: str, values: int | None = None
) -> dict[str, object]:
    """A sample of what the coordinator held of one party, and how far from uniform it looks.

    Args:
        words: one party's words, each in [0, values).
        values: size of the range; by default 256 and the words' low bytes are taken.

    `chi_square_per_degree` is about 1 for uniform noise and far above it for an update. A number
    near 1 does not prove secrecy; a number far from 1 disproves it.
    """
    size = values or 256
    bins = min(size, 256)
    if size & (size - 1):
        binned = (words.astype(np.int64) % size) * bins // size
    else:  # the same without a division
        binned = (words & words.dtype.type(size - 1)) >> (size // bins).bit_length() - 1
    counts = np.bincount(binned, minlength=bins)
    expected = words.size / bins
    shares = counts[counts > 0] / words.size
    return {
        "kind": kind,
        "words": words[:SAMPLE].tolist(),
        "entropy_bits": round(float(-(shares * np.log2(shares)).sum()), 4),
        "entropy_bits_of_uniform": round(float(np.log2(bins)), 4),
        "chi_square_per_degree": round(
            float(((counts - expected) ** 2 / expected).sum() / (bins - 1)), 3
        ),
    }
