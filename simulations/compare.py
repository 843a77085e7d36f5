"""Together, alone, central: the honest yardsticks, at the same number of examples seen.

    zero_shot    the base model, no adapter
    alone        each household trains by itself for as many epochs as the federation has rounds
    together     the federation, masked, over the in-process link
    central      one training on everybody's examples, which is what the federation avoids

Knows experiments. Knows nothing of how training or rounds work.
Always: every arm of one seed sees the same examples equally often and is scored on the same
held-out requests; alone and central keep their optimizer's state from epoch to epoch, which helps
them.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..core import log, paths
from ..core.errors import QuietchoirError
from ..core.models import weights
from ..core.models.hub import catalog
from ..core.models.weights import Weights
from ..core.training.evaluate import Score
from ..core.training.examples import Example
from ..core.training.trainer import Trainer
from . import machine
from .population import populate
from .report import percent, wide_console
from .run import simulate
from .scenario import Scenario, load

ARMS = ("zero_shot", "alone_own", "alone_union", "together", "central")
AIMS = (("together", "central", 0.9), ("together", "alone_union", 1.5))


class Comparison:
    """All arms of one seed."""

    def __init__(self, scenario: Scenario, model: Weights, alone_lr: float) -> None:
        self.scenario, self.model = scenario, model
        self.people = populate(scenario)
        self.trainer = Trainer(model, scenario.adapter.shape())
        self.recipe = dataclasses.replace(
            scenario.recipe.trainer(), lr=alone_lr, epochs=scenario.recipe.rounds
        )
        self.tests = [self.trainer.prepare(person.test) for person in self.people]
        self.examples_seen = (
            sum(len(person.train) for person in self.people) * scenario.recipe.rounds
        )

    def run(self, report: Callable[[str], None]) -> dict[str, float]:
        """Accuracy of every arm, told as each is done."""
        found: dict[str, float] = {}
        for names, arm in (
            (ARMS[:1], self.zero_shot),
            (ARMS[3:4], self.together),
            (ARMS[4:], self.central),
            (ARMS[1:3], self.alone),
        ):
            for name, accuracy in zip(names, arm(), strict=True):
                found[name] = accuracy
                report(f"seed {self.scenario.seed}: {name.replace('_', ' ')} {percent(accuracy)}")
        return found

    def zero_shot(self) -> tuple[float]:
        """The base model."""
        return (share(self.score(torch.zeros(self.trainer.size))),)

    def central(self) -> tuple[float]:
        """One training on everybody's examples."""
        return (
            share(
                self.score(
                    self.train([example for person in self.people for example in person.train])
                )
            ),
        )

    def alone(self) -> tuple[float, float]:
        """Each household by itself: on its own tests, and on everybody's."""
        own, union = [], []
        for index, person in enumerate(self.people):
            scores = self.score(self.train(person.train))
            own.append(scores[index])
            union += scores
        return share(own), share(union)

    def together(self) -> tuple[float]:
        """The federation's last adapter, scored by its members."""
        # only before the first and after the last round
        recipe = dataclasses.replace(self.scenario.recipe, evaluate_every=0)
        report = simulate(dataclasses.replace(self.scenario, recipe=recipe), self.model)
        after = report.accuracy["after"]
        if after is None:
            raise QuietchoirError("the federation ended without a score")
        return (after,)

    def train(self, examples: Sequence[Example]) -> torch.Tensor:
        """One training from nothing."""
        prepared = self.trainer.prepare(examples)
        return self.trainer.train(
            torch.zeros(self.trainer.size), prepared, self.recipe, seed=self.scenario.seed
        ).flat_b

    def score(self, flat: torch.Tensor) -> list[Score]:
        """One adapter on each household's held-out requests."""
        return [self.trainer.evaluate(flat, test) for test in self.tests]


def share(scores: Sequence[Score]) -> float:
    """Correct answers of all answers."""
    return sum(score.correct for score in scores) / sum(score.total for score in scores)


def summarize(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and range of every arm over the seeds."""
    return {
        arm: {
            "median": statistics.median(run[arm] for run in runs),
            "low": min(run[arm] for run in runs),
            "high": max(run[arm] for run in runs),
        }
        for arm in ARMS
    }


def show(console: Console, summary: dict[str, dict[str, float]], seeds: Sequence[int]) -> None:
    """The table and whether each aim was met."""
    table = Table(
        title=f"exact match on held-out requests, {len(seeds)} seeds",
        box=None,
        title_justify="left",
    )
    for column in ("", "median", "range"):
        table.add_column(column)
    for arm in ARMS:
        found = summary[arm]
        table.add_row(
            arm.replace("_", " "),
            percent(found["median"]),
            f"{percent(found['low'])} to {percent(found['high'])}",
        )
    console.print(table)
    for ours, theirs, aim in AIMS:
        ratio = summary[ours]["median"] / max(summary[theirs]["median"], 1e-9)
        verdict = "met" if ratio >= aim else "missed"
        console.print(f"{ours} / {theirs.replace('_', ' ')} = {ratio:.2f}, aim ≥ {aim}: {verdict}")


def main() -> int:
    """Run the comparison and write its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", default="four-households")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--alone-lr", type=float, default=1e-2, help="learning rate of alone and central"
    )
    parser.add_argument("--out", type=Path, default=Path("demo/compare.json"))
    chosen = parser.parse_args()
    log.start("warning")
    console = wide_console()
    scenario = load(chosen.scenario)
    model = weights.load(catalog.find(scenario.model))
    console.print(machine.line())
    runs: list[dict[str, float]] = []
    seen = 0
    for seed in chosen.seeds:
        comparison = Comparison(dataclasses.replace(scenario, seed=seed), model, chosen.alone_lr)
        runs.append(comparison.run(console.print))
        seen = comparison.examples_seen
    summary = summarize(runs)
    show(console, summary, chosen.seeds)
    content = {
        "accuracy": {arm: round(summary[arm]["median"], 4) for arm in ARMS},
        "spread": summary,
        "runs": runs,
        "examples_seen": seen,
        "seeds": chosen.seeds,
        "machine": machine.line(),
    }
    paths.write_atomically(chosen.out, (json.dumps(content, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuietchoirError as error:
        print(f"compare: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
