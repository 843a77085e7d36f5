"""Attacks by members that poison what all learn: two of ten, who know the defence.

Knows scenarios of a classifier that learns in milliseconds, and what an adapter is then worth to
honest members. Knows nothing of how sums are protected.
Always: nothing is drawn anew: the same arm ends with the same adapter, bit for bit; honest members'
examples are the same in all arms.

Not covered: backdoors. A vote on held-out examples does not see them, and nothing here stops them:
`quietchoir simulate run liars` prints how far they get.

What is shown of them is shown on a linear classifier (`linear`), in plain mode, where three buckets
take nine members; under masks they take twelve. On the adapter: `poisoning`.
"""

import dataclasses
import functools
from typing import Any

from ...federation.spec.policy import AggregationTable, GuardTable, ProtectionTable, Recipe
from ...federation.store.checkpoint import Vector
from ..cast import Cast, make_learners, pooled
from ..population import PartyData, populate
from ..run import simulate
from ..scenario import LINEAR, PoisonAttack, Population, Scenario
from .catalogue import Attack, Result

POINTS = 0.05  # of accuracy that honest members may lose
OFTEN = 0.2  # share of triggered requests from which on a backdoor counts as open
STAGE = Scenario(
    name="poisoners",
    model=LINEAR,
    population=Population(households=10, train=100, test=40, partition="iid", parties=10),
    protection=ProtectionTable(mode="plain", bits=12, min_cohort=3),
    recipe=Recipe(rounds=4, lr=2e-2, update_range=2.0, attempts=2),
)
BUCKETS = AggregationTable(rule="median", buckets=3)
MEAN: dict[str, Any] = {}
SUMS: dict[str, Any] = {"aggregation": BUCKETS, "guard": GuardTable(rule="choose")}
OPEN: dict[str, Any] = {"aggregation": BUCKETS, "guard": GuardTable(rule="choose", ballots="open")}


@functools.cache
def people() -> list[PartyData]:
    """Everybody's examples."""
    return populate(STAGE)


def learned(scenario: Scenario) -> tuple[Cast, Vector, float]:
    """Who took part, the finished adapter [n], and kilobytes of votes a member and round."""
    cast, kept = make_learners(scenario, None, people(), lambda event: None), dict[str, Vector]()
    report = simulate(scenario, None, cast=cast, on_adopt=kept.__setitem__)
    votes = sum((entry.get("guard") or {}).get("bytes", 0) for entry in report.history)
    return cast, kept[max(kept)], votes / 1000 / len(cast.learners) / report.rounds


@functools.cache
def undisturbed() -> float:
    """Accuracy of the plain mean without attackers, over the members that are honest elsewhere."""
    cast, flat, _ = learned(STAGE)
    names = sorted(cast.learners)[2:]
    return pooled({name: cast.learners[name] for name in names}, flat) or 0.0


def poisoned(defence: dict[str, Any], **attack: Any) -> Result:
    """Two of ten attack in every round. Args: defence: tables; attack: as `PoisonAttack`."""
    scenario = dataclasses.replace(STAGE, attack=(PoisonAttack(count=2, **attack),), **defence)
    cast, flat, votes = learned(scenario)
    accuracy = pooled(cast.honest(), flat) or 0.0
    assert cast.spy is not None  # there are examples to trigger
    tried = cast.spy.evaluate(flat)
    triggered = tried.correct / tried.total
    return Result(
        accuracy < undisturbed() - POINTS or triggered > OFTEN,
        f"{100 * accuracy:.1f} % right of {100 * undisturbed():.1f}, {100 * triggered:.1f} % of "
        f"triggered requests; {votes:.0f} kB of votes a member and round",
    )


PROMISE = (
    "with more buckets than attackers and open ballots, two of ten that are worse for the others "
    "cost them five points at most"
)
ATTACKS = (
    Attack(
        name="signs flipped by two of ten",
        who="two members of ten",
        mode="plain, buckets, ballots",
        promise=PROMISE,
        unprotected=lambda: poisoned(MEAN, kind="flip"),
        protected=lambda: poisoned(OPEN, kind="flip"),
    ),
    Attack(
        name="signs flipped by two of ten that lie in votes",
        who="two members of ten",
        mode="plain, buckets, ballots",
        promise=PROMISE,
        unprotected=lambda: poisoned(SUMS, kind="flip", votes="lies"),
        protected=lambda: poisoned(OPEN, kind="flip", votes="lies"),
    ),
)
