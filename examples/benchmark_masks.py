"""A benchmark one can read: what masks cost a round, beside rounds without them, in one process.

python examples/benchmark_masks.py [MEMBERS [VALUES [REPEATS]]]

Learners are pretended ones, so that what is timed is protection and messages. Processor seconds,
not seconds on the wall; the two arms take turns; median and spread.
"""

import sys
from functools import partial
from typing import Literal

from quietchoir.federation.spec.policy import ProtectionTable, Recipe
from quietchoir.simulations import machine
from quietchoir.simulations.bench.stopwatch import Arm, interleaved
from quietchoir.simulations.run import simulate
from quietchoir.simulations.scenario import Population, Scenario


def rounds(mode: Literal["plain", "masked"], members: int, values: int) -> Scenario:
    """Three rounds of a rehearsal in this mode."""
    return Scenario(
        name=f"{mode}-rounds",
        population=Population(kind="rehearsal", households=members, values=values),
        protection=ProtectionTable(mode=mode, min_cohort=3, threshold=3),
        recipe=Recipe(rounds=3),
    )


if __name__ == "__main__":
    members, values, repeats = (*map(int, sys.argv[1:]), *(4, 20_000, 5)[len(sys.argv) - 1 :])
    print(f"{machine.line()}\n{members} members, {values} values, {repeats} repeats of 3 rounds")
    arms = {
        "plain": Arm(partial(simulate, rounds("plain", members, values), None)),
        "masked": Arm(partial(simulate, rounds("masked", members, values), None)),
    }
    for mode, sample in interleaved(arms, repeats).items():
        fastest, slowest = sample.spread
        print(f"{mode:>7}  {sample.median:.3f} s  ({fastest:.3f} to {slowest:.3f})")
