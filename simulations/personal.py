"""Does a personal adapter help? Each household's own held-out requests, with three adapters.

    shared       the federation's last adapter, the same for all
    personal     that, and this household's own change on top (`federation.personalization`)
    guarded      the personal one where the guard of one took it, else the shared one: what a node
                 would answer with
    alone        this household by itself from nothing, for as many epochs as federation and change
                 had together
    elsewhere    the personal one on the other households' requests, beside the shared one on the
                 same: what it forgets

Knows experiments. Knows nothing of how rounds or personal training work: it runs the shipped ones.
Always: one half of a household's held-out requests is for the guard, the other half is what every
arm is measured on, so that no figure was chosen by itself; every arm of one seed sees the same
examples.

    python -m quietchoir.simulations.personal [--seeds 101 102 103] [--train N] [--rounds N]
    [--epochs N] [--lr RATE] …
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
from torch import Tensor

from ..core import log, paths
from ..core.errors import QuietchoirError
from ..core.models import weights
from ..core.models.hub import catalog
from ..core.models.weights import Weights
from ..core.training.evaluate import Score
from ..core.training.frozen_layers import Prepared
from ..core.training.trainer import Trainer
from ..federation.personalization.change import PersonalChange
from ..federation.personalization.keeping import training_seed
from ..federation.personalization.settings import PersonalSettings
from ..federation.personalization.trainer import PersonalTrainer, PersonalVerdict
from ..federation.store.checkpoint import Vector
from . import machine
from .cast import adapter_of, make_learners
from .population import PartyData, populate
from .report import percent, wide_console
from .run import simulate
from .scenario import Scenario, load

ARMS = ("shared", "personal", "guarded", "alone", "elsewhere_shared", "elsewhere_personal")
# not those of the shipped scenarios: nothing here was tuned on what it is measured on
SEEDS = (101, 102, 103)


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedHousehold:
    """One household's examples, as the trainer wants them."""

    name: str
    train: Prepared
    guard: Prepared  # what its guard of one sees
    measured: Prepared  # what figures are taken on


class Study:
    """All arms of one seed."""

    def __init__(
        self, scenario: Scenario, model: Weights, settings: PersonalSettings, alone_lr: float
    ) -> None:
        self.scenario, self.model, self.settings, self.alone_lr = (
            scenario,
            model,
            settings,
            alone_lr,
        )
        self.trainer = Trainer(model, adapter_of(scenario).shape())  # the federation's A
        self.people = populate(scenario)
        self.homes = [self.household(person) for person in self.people]

    def household(self, person: PartyData) -> PreparedHousehold:
        """Its held-out requests in two halves, every other one."""
        train, guard, measured = (
            self.trainer.prepare(part)
            for part in (person.train, person.test[::2], person.test[1::2])
        )
        return PreparedHousehold(person.name, train, guard, measured)

    def run(self, report: Callable[[str], None]) -> dict[str, float]:
        """Accuracy of every arm, and of how many households the guard took the personal one."""
        shared = self.together()
        report(
            f"seed {self.scenario.seed}: shared "
            f"{percent(share([self.score(shared, home) for home in self.homes]))}"
        )
        found: dict[str, list[Score]] = {arm: [] for arm in ARMS}
        taken = 0
        for home in self.homes:
            personal, verdict = self.personalize(shared, home)
            accepted = verdict.accepted
            own, before = self.score(personal, home), self.score(shared, home)
            others = [other for other in self.homes if other is not home]
            taken += accepted
            found["shared"].append(before)
            found["personal"].append(own)
            found["guarded"].append(own if accepted else before)
            found["alone"].append(self.score(self.alone(home), home))
            found["elsewhere_shared"] += [self.score(shared, other) for other in others]
            found["elsewhere_personal"] += [self.score(personal, other) for other in others]
            gains = ", ".join(
                f"{arm} {percent(found[arm][-1].accuracy)}"
                for arm in ("shared", "personal", "alone")
            )
            report(f"seed {self.scenario.seed}: {home.name}: {gains}; {verdict_sentence(verdict)}")
        return {arm: share(scores) for arm, scores in found.items()} | {
            "taken": taken,
            "households": len(self.homes),
        }

    def together(self) -> Tensor:
        """The federation's last adapter [n]."""
        recipe = dataclasses.replace(self.scenario.recipe, evaluate_every=0)
        scenario = dataclasses.replace(self.scenario, recipe=recipe)
        # scores are taken elsewhere
        people = [dataclasses.replace(person, test=person.test[:1]) for person in self.people]
        cast = make_learners(scenario, self.model, people, lambda event: None)
        kept = dict[str, Vector]()
        simulate(scenario, self.model, cast=cast, on_adopt=kept.__setitem__)
        if not kept:
            raise QuietchoirError(
                "the federation ended and no member took its adapter; look at its log"
            )
        return torch.from_numpy(next(iter(kept.values())))

    def personalize(
        self, shared: Tensor, home: PreparedHousehold
    ) -> tuple[Tensor, PersonalVerdict]:
        """The personal adapter [n], and what the guard of one says to it."""
        personal_trainer = PersonalTrainer(self.trainer, home.train, home.guard)
        seed = training_seed(f"{self.scenario.seed} {home.name}")
        change = personal_trainer.learn(
            shared, PersonalChange.nothing(len(shared)), self.settings, seed=seed
        )
        return change.upon(shared), personal_trainer.judge(shared, change)

    def alone(self, home: PreparedHousehold) -> Tensor:
        """By itself, from nothing."""
        epochs = self.scenario.recipe.rounds * self.scenario.recipe.epochs + self.settings.epochs
        recipe = dataclasses.replace(
            self.scenario.recipe.trainer(), lr=self.alone_lr, epochs=epochs
        )
        return self.trainer.train(
            torch.zeros(self.trainer.size), home.train, recipe, seed=self.scenario.seed
        ).flat_b

    def score(self, flat: Tensor, home: PreparedHousehold) -> Score:
        """One adapter on one household's requests."""
        return self.trainer.evaluate(flat, home.measured)


def verdict_sentence(verdict: PersonalVerdict) -> str:
    """What the guard of one saw, on its own half."""
    word = "took" if verdict.accepted else "refused"
    return (
        f"the guard {word} it: {verdict.personal.correct} against {verdict.shared.correct} of "
        f"{verdict.shared.total}"
    )


def share(scores: Sequence[Score]) -> float:
    """Correct answers of all answers."""
    return sum(score.correct for score in scores) / max(1, sum(score.total for score in scores))


def show(console: Console, runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The table; returns its figures."""
    table = Table(
        title=f"exact match on held-out requests, {len(runs)} seeds", box=None, title_justify="left"
    )
    for column in ("", "median", "range"):
        table.add_column(column)
    summary = {}
    for arm in ARMS:
        found = [run[arm] for run in runs]
        summary[arm] = {"median": statistics.median(found), "low": min(found), "high": max(found)}
        table.add_row(
            arm.replace("_", ": "),
            percent(summary[arm]["median"]),
            f"{percent(min(found))} to {percent(max(found))}",
        )
    console.print(table)
    gains = [run["personal"] - run["shared"] for run in runs]
    by_seed = ", ".join(f"{100 * gain:+.1f}" for gain in gains)
    taken, asked = (round(sum(run[key] for run in runs)) for key in ("taken", "households"))
    console.print(
        f"personal - shared, seed by seed: {by_seed} points; the guard took {taken} of {asked}"
    )
    return summary


def main() -> int:
    """Run the study; print its table and write its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = PersonalSettings()
    parser.add_argument("--scenario", default="four-households")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    for name in ("households", "train", "test", "rounds"):
        parser.add_argument(f"--{name}", type=int, help="default: the scenario's")
    parser.add_argument("--epochs", type=int, default=usual.epochs)
    parser.add_argument("--lr", type=float, default=usual.lr)
    parser.add_argument("--proximal", type=float, default=usual.proximal)
    parser.add_argument("--alone-lr", type=float, default=1e-2, help="learning rate of alone")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    chosen = parser.parse_args()
    log.start("warning")
    console = wide_console()
    scenario = load(chosen.scenario)
    given = {
        name: value
        for name in ("households", "train", "test")
        if (value := getattr(chosen, name)) is not None
    }
    rounds = {} if chosen.rounds is None else {"rounds": chosen.rounds}
    scenario = dataclasses.replace(
        scenario,
        population=dataclasses.replace(scenario.population, **given),
        recipe=dataclasses.replace(scenario.recipe, **rounds),
    )
    settings = PersonalSettings(epochs=chosen.epochs, lr=chosen.lr, proximal=chosen.proximal)
    model = weights.load(catalog.find(scenario.model))
    console.print(machine.line())
    runs = [
        Study(dataclasses.replace(scenario, seed=seed), model, settings, chosen.alone_lr).run(
            console.print
        )
        for seed in chosen.seeds
    ]
    summary = show(console, runs)
    if chosen.out is not None:
        content = {
            "accuracy": summary,
            "runs": runs,
            "seeds": chosen.seeds,
            "settings": dataclasses.asdict(settings),
            "population": {**dataclasses.asdict(scenario.population), "folder": None},
            "rounds": scenario.recipe.rounds,
            "machine": machine.line(),
        }
        paths.write_atomically(chosen.out, (json.dumps(content, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuietchoirError as error:
        print(f"personal: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
