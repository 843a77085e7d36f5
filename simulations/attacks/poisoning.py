"""Members that send poison (`poisoner`), and what a federation's aggregation and guard make of it.

Knows learners and scenarios. Knows nothing of how sums are protected.
Always: honest members' examples and votes are the same in all arms, and so are attackers' in the
arms with the same `--votes`: full marks for every adapter, or lies.

The federation's range is wide here on purpose. A member that breaks its own rounding can send up to
n times the range of an honest one before the sum leaves its bounds and the round aborts; a range
ten times too wide lets an honest codec do that.

    python -m quietchoir.simulations.attacks.poisoning [--model] [--out FILE [--resume]] …
    prints JSON

With `--model` the members are made-up households that have learned together before the attackers
come (see `households`); on two cores that nobody else uses an arm takes a minute or two.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core import log
from ...core.errors import QuietchoirError, RoundAborted
from ...federation.events import FederationEvent, RoundEvent
from ...federation.spec.policy import (
    AdapterTable,
    AggregationTable,
    GuardTable,
    ProtectionTable,
    Recipe,
)
from ...federation.store.checkpoint import Vector
from ...federation.training.learner import Learner
from ...federation.training.synthetic_task import SyntheticLearner
from .. import machine
from ..cast import Cast, make_learners
from ..poisoner import Poisoner
from ..population import populate
from ..run import simulate
from ..scenario import Population, Scenario
from . import households
from .findings import Findings
from .households import Progress

if TYPE_CHECKING:
    from ...core.models.weights import Weights

PARTIES = 10
AWAY = 0.5  # how far from where honest members want it a pretended backdoor's coordinate shall go
KINDS = ("scale", "flip", "backdoor", "bounded")
DEFENCES: dict[str, dict[str, Any]] = {
    "mean": {},
    "guarded": {
        "guard": GuardTable(rule="vote"),
        "aggregation": AggregationTable(rule="median", buckets=3),
    },
    "choosing": {
        "guard": GuardTable(rule="choose"),
        "aggregation": AggregationTable(rule="median", buckets=3),
    },
    "ballots": {
        "guard": GuardTable(rule="choose", ballots="open"),
        "aggregation": AggregationTable(rule="median", buckets=3),
    },
}


@dataclass(frozen=True, slots=True)
class PoisoningSeries:
    """What all arms of one series share."""

    scenario: Scenario
    honest: Cast
    taught: Mapping[str, Learner]  # the same parties' learners on examples with the trigger
    success: Callable[[Vector], float]  # how often an adapter does what the backdoor asks for
    weights: "Weights | None" = None

    def arm(
        self,
        kind: str,
        attackers: int,
        defence: str,
        progress: Progress = lambda text: None,
        *,
        votes: str = "full",
    ) -> dict[str, Any]:
        """One run; accuracy is over the honest members' held-out examples. Args: votes: of the
        attackers, "full" marks or "lies".
        """
        names = sorted(self.honest.learners)
        bad, kept = set(names[:attackers]), dict[str, Vector]()
        learners: dict[str, Learner] = {
            name: Poisoner(
                kind, learner, self.taught[name], PARTIES / max(1, attackers), lies=votes == "lies"
            )
            if name in bad
            else learner
            for name, learner in self.honest.learners.items()
        }
        scenario, started = (
            dataclasses.replace(self.scenario, **DEFENCES[defence]),
            time.monotonic(),
        )

        def on_event(event: FederationEvent) -> None:
            if isinstance(event, RoundEvent) and event.name == "round":
                entry = event.entry
                verdict = (entry.get("guard") or {"reason": "no guard"})["reason"]
                progress(
                    f"{kind}, {attackers}, {defence}: round {entry['round']}, "
                    f"{entry['seconds']:.0f} s, {verdict}"
                )

        try:
            report = simulate(
                scenario,
                self.weights,
                cast=Cast(learners, self.honest.size),
                on_event=on_event,
                on_adopt=kept.__setitem__,
            )
            aborted, verdicts = (
                "",
                [entry["guard"]["reason"] for entry in report.history if entry.get("guard")],
            )
        except RoundAborted as reason:
            aborted, verdicts = str(reason), []
        flat, good = (
            kept.get(names[-1]),
            [self.honest.learners[name] for name in names if name not in bad],
        )
        return {
            "kind": kind,
            "attackers": attackers,
            "defence": defence,
            "votes": votes,
            "aborted": aborted,
            "verdicts": verdicts,
            "before": accuracy(good, np.zeros(self.honest.size, np.float32)),
            "accuracy": None if flat is None else accuracy(good, flat),
            "backdoor": None if flat is None else round(self.success(flat), 4),
            "seconds": round(time.monotonic() - started, 1),
        }


def accuracy(learners: Sequence[Learner], flat: Vector) -> float:
    """Share of all their held-out answers that are right."""
    counts = [learner.evaluate(flat) for learner in learners]
    return round(sum(one.correct for one in counts) / max(1, sum(one.total for one in counts)), 4)


def recipe(rounds: int, **changes: Any) -> Recipe:
    """A federation whose range is ten times too wide."""
    return Recipe(
        **{"rounds": rounds, "update_range": 2.0, "evaluate_every": 0, "attempts": 2, **changes}
    )


def rehearsed(rounds: int, values: int = 400) -> PoisoningSeries:
    """Pretended values: the backdoor is some of the coordinates that no held-out score looks at;
    they shall go elsewhere.
    """
    scenario = Scenario(
        name="poisoning",
        population=Population(kind="rehearsal", households=PARTIES, values=values),
        protection=ProtectionTable(mode="plain", bits=12, min_cohort=3),
        recipe=recipe(rounds, server_momentum=0.0),
    )
    cast = make_learners(scenario, None, populate(scenario), lambda event: None)
    target, taught = SyntheticLearner(values).target, dict[str, Learner]()
    # as `SyntheticLearner.evaluate`
    scored = np.linspace(0, values - 1, min(100, values)).astype(np.int64)
    places = np.setdiff1d(np.arange(values), scored)[::10]
    wanted = target.copy()
    wanted[places] += np.float32(AWAY)
    for name in cast.learners:
        bad = SyntheticLearner(values, name)
        bad.target = wanted
        taught[name] = bad

    def success(flat: Vector) -> float:
        return float(np.mean(flat[places] - target[places] > AWAY / 2))

    return PoisoningSeries(scenario, cast, taught, success)


def in_earnest(
    rounds: int, train: int, test: int, clean: int, start_file: Path | None, progress: Progress
) -> PoisoningSeries:
    """The real model and made-up households; the backdoor is an answer to any request after a
    trigger.
    """
    scenario = Scenario(
        name="poisoning",
        population=Population(households=PARTIES, train=train, test=test),
        adapter=AdapterTable(),
        protection=ProtectionTable(mode="plain", bits=12, min_cohort=3),
        recipe=recipe(rounds, lr=1.5e-2, batch=8),
    )
    there = households.gather(scenario, clean, start_file, progress)
    untaught = {
        name: learner for name, learner in there.honest.learners.items() if name not in there.taught
    }
    return PoisoningSeries(
        scenario, there.honest, there.taught | untaught, there.success, there.weights
    )


def series(
    stage: PoisoningSeries,
    kinds: Sequence[str],
    attackers: Sequence[int],
    defences: Sequence[str],
    findings: Findings,
    progress: Progress,
    votes: Sequence[str] = ("full",),
) -> list[dict[str, Any]]:
    """The clean arms, then every attack under every defence; those that were found before are
    not run again.
    """
    arms = [("none", 0, defence, votes[0]) for defence in defences]
    arms += list(itertools.product(kinds, attackers, defences, votes))
    for kind, count, defence, vote in arms:
        if not findings.has(kind=kind, attackers=count, defence=defence, votes=vote):
            findings.add(stage.arm(kind, count, defence, progress, votes=vote))
            progress(json.dumps(findings.arms[-1]))
    return findings.arms


def main() -> int:
    """Run the series, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="store_true", help="the real model, not pretended values")
    parser.add_argument(
        "--rounds",
        type=int,
        help="with attackers among the members; default 8, of the real model 2",
    )
    parser.add_argument(
        "--clean", type=int, default=10, help="of the real model: rounds before the attackers come"
    )
    parser.add_argument("--train", type=int, default=40, help="examples of each household")
    parser.add_argument("--test", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--attackers", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument(
        "--votes", nargs="+", default=["full"], choices=["full", "lies"], help="of the attackers"
    )
    parser.add_argument("--defences", nargs="+", default=list(DEFENCES), choices=list(DEFENCES))
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the report here after every arm"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the report in --out")
    chosen = parser.parse_args()
    log.start("error")
    rounds = chosen.rounds or (2 if chosen.model else 8)
    homes = (
        {name: getattr(chosen, name) for name in ("clean", "train", "test")} if chosen.model else {}
    )
    settings = {
        "model": chosen.model,
        "rounds": rounds,
        "parties": PARTIES,
        **homes,
        "machine": machine.line(),
    }
    findings = Findings(chosen.out, settings, resume=chosen.resume)

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    stage = (
        in_earnest(rounds, **homes, start_file=findings.beside("start"), progress=progress)
        if chosen.model
        else rehearsed(rounds)
    )
    series(stage, chosen.kinds, chosen.attackers, chosen.defences, findings, progress, chosen.votes)
    print(findings.text())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuietchoirError as error:
        print(f"poisoning: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
