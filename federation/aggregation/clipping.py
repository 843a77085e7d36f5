"""A clip that follows the members' updates: the median of their lengths, found by one noised bit of
each.

    member   its change over the clip, shortened to length 1 | a bit: was it short enough?
    server   the mean change, times the clip                 | the next clip, by the mean bit

Knows the vector that rounds carry: an adapter's values and, last, the logarithm of the clip. Knows
nothing of messages, masks or noise's shares.
Always: what a member sends is one vector, bit included, no longer than `privacy.clip`
(`crypto.privacy.noise` cuts it to that, whatever clip was told), so that a round costs what it
costs with a fixed clip, and nobody's privacy rests on the clip; the clip is the same number on
every machine: additions, products, quotients and square roots alone.

Being a value of what is learned, the clip is told, followed, sealed, undone and written down with
the adapter. The step is in the adapter's own units, so it scales with the clip. The bit has
`BIT_SHARE` of the squared length, so the change keeps sqrt(1 - BIT_SHARE) of its weight beside the
same noise.

Too wide a clip lets noise in, too narrow a one only makes the step shorter. So the clip at most
doubles or halves in a round, goes on in its direction as fast as before, and slower after each
turn (Kesten); and the fewer members stand behind the mean bit, the less it moves.

Hazard: where masks hide who sent what, a member that breaks the protocol moves the mean bit at
will, and with it the clip, by a factor of two a round, to either end of its range. Epsilon holds,
but steps are 16 times as long, noise included, or as short. Where members may be hostile the clip
is to be fixed.

Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive
clipping", algorithm 1 (geometric updates) and theorem 1 (bits of +-1/2 and updates as one Gaussian
mechanism; here they are one vector of one mechanism). Kesten 1958, "Accelerated stochastic
approximation" (a step that shrinks where the sign turns).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..spec.policy import BIT_SHARE, Policy
from ..store.checkpoint import ServerState, Vector
from .server_optimizer import ServerOptimizer, optimizer_of
from .update import noise_of

QUANTILE = 0.5  # of members' lengths
FIRST = 2.0  # bits of the clip's logarithm for one of the mean bit: twice or half as wide, at most
LAST = 0.2 / 0.6931471805599453  # and no less: Andrew et al.'s 0.2 of the natural logarithm
SURE = 0.5  # deviation of the share of members within the clip at which it counts half
FARTHEST = 4.0  # the clip stays within a sixteenth and 16 times the file's, which all signed
FINE = 16  # it is a whole power of 2^(1/16) times the file's
ROOT = math.sqrt(math.sqrt(math.sqrt(math.sqrt(2.0))))


def bare(policy: Policy, flat: Vector) -> Vector:
    """The adapter [n] in a vector that rounds carry [`Policy.carried(n)`]."""
    return flat[:-1] if policy.privacy.adaptive and flat.size else flat


def carried_stops(policy: Policy, stops: Sequence[int]) -> tuple[int, ...]:
    """Where the tensors of a vector that rounds carry end; `stops` are the adapter's, or none."""
    return (*stops, *((policy.carried(stops[-1]),) if policy.privacy.adaptive and stops else ()))


def clip_at(policy: Policy, flat: Vector) -> float:
    """The clip in a vector that rounds carry; where it does not follow them, the file's."""
    if not policy.privacy.adaptive:
        return policy.privacy.clip
    return policy.privacy.clip * power(float(flat[-1]))


def power(exponent: float) -> float:
    """2 to the nearest sixteenth of `exponent`."""
    whole, part = divmod(round(FINE * min(FARTHEST, max(-FARTHEST, exponent))), FINE)
    found = 1.0
    for _ in range(part):
        found *= ROOT
    return math.ldexp(found, whole)


def joint(policy: Policy, update: Vector, clip: float) -> Vector:
    """What a member sends of a change [n] under this clip: [n + 1], no longer than the file's."""
    length = float(np.linalg.norm(update.astype(np.float64)))
    within, unit = length <= clip, policy.privacy.clip
    scale = unit * math.sqrt(1.0 - BIT_SHARE) / (clip if within else length)
    bit = unit * math.sqrt(BIT_SHARE) * (1.0 if within else -1.0)
    return np.append(update.astype(np.float64) * scale, bit).astype(np.float32)


def length_of(policy: Policy, mean: Vector, flat: Vector) -> float:
    """The length of a round's mean change in the adapter's units. Args: flat: where it began."""
    length = float(np.linalg.norm(bare(policy, mean)))
    if not policy.privacy.adaptive or not flat.size:
        return length
    return length * power(float(flat[-1])) / math.sqrt(1.0 - BIT_SHARE)


@dataclass(frozen=True, slots=True)
class QuantileClip:
    """As `ServerOptimizer`, of vectors that end with the clip's logarithm.

    Its velocity is no velocity: the sign of its last move, times one more than it has turned.

    Args:
        clip: the file's. trust: of the mean bit, 0 to 1.
    """

    inner: ServerOptimizer  # of the adapter's values
    clip: float
    trust: float

    def step(self, state: ServerState, mean: Vector) -> ServerState:
        """Apply the mean [n + 1] of what members sent.

        Raises:
            ValueError: as `check_mean`.
        """
        if not state.flat.size:  # sealed: at the server, which has no adapter
            return self.inner.step(state, mean)
        factor = power(float(state.flat[-1])) / math.sqrt(1.0 - BIT_SHARE)
        after = self.inner.step(state, mean * np.float32(factor))
        after.flat[-1], after.velocity[-1] = self.moved(state, float(mean[-1]))
        return after

    def moved(self, state: ServerState, mean: float) -> tuple[float, float]:
        """The clip's logarithm and its velocity after a round whose last mean value this is."""
        within = min(1.0, max(0.0, 0.5 + 0.5 * mean / (self.clip * math.sqrt(BIT_SHARE))))
        offset, before = QUANTILE - within, float(state.velocity[-1])
        sign = 1.0 if offset >= 0 else -1.0
        turned = max(1.0, abs(before)) + (sign * before < 0)
        gain = max(LAST, FIRST / turned) * self.trust
        exponent = float(state.flat[-1]) + gain * offset
        return min(FARTHEST, max(-FARTHEST, exponent)), sign * turned

    def reach(self, largest: float, rounds: int) -> tuple[float, float, float]:
        """As `ServerOptimizer`, of the adapter's values and the clip's alike: at a clip that is as
        wide as it can be.
        """
        farthest = self.inner.reach(largest * 2.0**FARTHEST / math.sqrt(1.0 - BIT_SHARE), rounds)
        return max(farthest[0], FARTHEST), max(farthest[1], rounds + 1.0), farthest[2]


def stepper_of(policy: Policy, size: int) -> ServerOptimizer:
    """What steps by the means of this federation, the same in the server and in every member.

    Args:
        size: values that rounds carry.
    """
    inner = optimizer_of(policy.recipe)
    noise = noise_of(policy, size) if policy.privacy.adaptive else None
    if noise is None:
        return inner
    least = noise.mean_deviation(policy.protection.min_cohort)
    unsure = policy.privacy.unsure(least) / SURE
    return QuantileClip(inner, noise.clip, 1.0 / (1.0 + unsure * unsure))
