"""The suite `learn`: what a federation learns on tasks that its recipe was not chosen on, beside
central training with the best of a grid of knobs; and how fast it trains, beside peft's own loop.

Three tasks made from the PyPI package home-assistant-intents: `intents`, which of 16 intents a
sentence has, each member with four of them and no other; `intents_de`, the same in German, where
members share all intents unevenly (Dirichlet, 0.3); `tools`, tool calls of one home, each member
one service. Sentences that test are drawn from wordings that nobody trains on.

    zero_shot  the bare model                    alone    each member by itself, at `ALONE`
    central    one training on everybody's       fixed    the federation by its default recipe
    auto       the federation whose recipe chooses its rate (`recipe.tuning`)

Knows tasks, arms and the peer. Knows nothing of how a round works.
Always: all arms of a seed see each example at most so often, and are scored on the same held-out
answers, everybody's; the grid is searched on the first seed alone, and its winner on that seed's
own tests is central's at all seeds, which favours central. Each arm is kept as it ends; a run that
finds those of the same sizes and model goes on with the next.
"""

import dataclasses
import hashlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hassil.intents import Intents, RangeSlotList
from home_assistant_intents import get_intents
from torch import Tensor

from ...core import paths
from ...core.config import EngineConfig
from ...core.models import weights
from ...core.models.hub import catalog
from ...core.training.dataset import HELD_OUT
from ...core.training.examples import Example
from ...core.training.frozen_layers import Prepared
from ...core.training.household.home import furnish, requests
from ...core.training.household.templates import Filling, Grammar, Template, grammar, split
from ...core.training.trainer import Hyperparameters, Trainer, order
from ...federation.rounds.report import RunReport
from ...federation.spec.policy import AdapterTable, GuardTable, ProtectionTable, Recipe
from ...federation.store.checkpoint import Vector
from ...federation.training.learner import TrainerLearner
from ..cast import Cast
from ..run import simulate
from ..scenario import Population, Scenario
from .figures import Figure, Keep
from .peers.reference import unpacked
from .stopwatch import clock

RESUMES = True  # `measure` takes what an earlier run kept
MODEL = EngineConfig().model
MEMBERS, LABELS = 4, 16
DIRICHLET = 0.3
ALONE = Hyperparameters(lr=1e-2, batch=8)
GRID = tuple(Hyperparameters(lr=lr, batch=batch) for batch in (4, 16) for lr in (5e-3, 1e-2, 2e-2))
ARMS = ("zero_shot", "alone", "central", "fixed", "auto")
NEAR = 0.95  # of an arm's own end: how many rounds it takes to there
ASK = {"en": "Name the intent.", "de": "Nenne die Absicht."}
# What is said for lists that a household would name: rooms and devices, things, numbers.
WORDS = {
    "en": ("kitchen", "hall", "attic", "lamp", "radio", "heater", "fan", "milk", "tea", "jazz"),
    "de": ("Küche", "Flur", "Keller", "Lampe", "Radio", "Heizung", "Rollo", "Milch", "Tee", "Jazz"),
}
# Services of the home, by how their intents begin.
SERVICES = (
    ("HassTurn", "HassLight", "HassFan"),
    ("HassMedia", "HassSetVolume"),
    ("HassList", "HassShopping", "HassGet", "HassClimate"),
    ("HassStartTimer", "HassCancelTimer", "HassPauseTimer", "HassUnpauseTimer", "HassTimerStatus"),
)
TRIES = 200  # draws of one more different sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnScale:
    """How much is learned and asked."""

    train: Mapping[str, int]  # examples of one member, by task
    test: int
    rounds: int
    seeds: tuple[int, ...]
    grid: tuple[Hyperparameters, ...]
    layers: int = 8  # that carry LoRA
    timed: int = 96  # examples whose training is timed


WHOLE = LearnScale(
    train={"intents": 60, "intents_de": 60, "tools": 40},
    test=20, rounds=8, seeds=(1, 2, 3), grid=GRID,
)  # fmt: skip
QUICK = LearnScale(
    train=dict.fromkeys(WHOLE.train, 4), test=2, rounds=2, seeds=(1,), grid=GRID[:2], layers=1,
    timed=4,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Party:
    """What one member has."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]


# Tasks


def spoken(language: str, templates: Sequence[Template], said: Grammar, rng: np.random.Generator,
           count: int, avoid: set[str]) -> list[str]:  # fmt: skip
    """`count` different sentences, or as many as there are; they are added to `avoid`."""
    words = WORDS[language]

    def fill(name: str) -> Filling:
        found = said.lists.get(name)
        if isinstance(found, RangeSlotList):
            number = int(rng.integers(found.start, found.stop + 1))
            return Filling(str(number), number)
        try:
            return said.listed(name, None, rng)
        except (KeyError, TypeError):  # rooms, devices, free text
            word = words[rng.integers(len(words))]
            return Filling(word, word)

    drawn: list[str] = []
    for _ in range(TRIES * count):
        if len(drawn) == count:
            break
        text, _ = said.say(templates[int(rng.integers(len(templates)))], fill, rng)
        if text and text not in avoid:
            avoid.add(text)
            drawn.append(text)
    return drawn


def label(intent: str) -> str:
    """An intent's name as words."""
    return "".join(f" {one.lower()}" if one.isupper() else one for one in intent[4:]).strip()


def intents(seed: int, size: LearnScale, language: str, *, disjoint: bool) -> list[Party]:
    """Sentences and the names of their intents, of `LABELS` intents."""
    rng = np.random.default_rng([seed, 16])
    said = grammar() if language == "en" else Grammar(Intents.from_dict(get_intents(language)))
    parts = split(said.templates, HELD_OUT, rng)
    both = set.intersection(*({one.intent for one in part} for part in parts))
    wordings = {name: len({one.text for one in said.templates if one.intent == name})
                for name in both}  # fmt: skip
    chosen = sorted(both, key=lambda name: (-wordings[name], name))[:LABELS]
    names = [chosen[place] for place in rng.permutation(len(chosen))]
    task = "intents" if disjoint else "intents_de"
    avoid = set[str]()
    parties = []
    for member in range(MEMBERS):
        if disjoint:
            shares = np.array([float(place % MEMBERS == member) for place in range(len(names))])
        else:
            shares = rng.dirichlet(np.full(len(names), DIRICHLET))
        found = []
        for part, count in zip(parts, (size.train[task], size.test), strict=True):
            asked = rng.choice(len(names), size=count, p=shares / shares.sum())
            rows = [
                classified(text, names[place], language)
                for place in asked
                for text in spoken(
                    language, [one for one in part if one.intent == names[place]], said, rng, 1,
                    avoid,
                )
            ]  # fmt: skip
            found.append(tuple(rows))
        parties.append(Party(*found))
    return parties


def classified(text: str, intent: str, language: str) -> Example:
    """One sentence with its intent."""
    texts = {"system": ASK[language], "user": text, "assistant": label(intent)}
    return Example(tuple({"role": role, "content": words} for role, words in texts.items()))


def tools(seed: int, size: LearnScale) -> list[Party]:
    """Tool calls of one home, each member one service."""
    said, rng = grammar(), np.random.default_rng([seed, 17])
    parts = split(said.templates, HELD_OUT, rng)
    every = sorted({one.intent for one in said.templates})
    home = furnish("home", every, rng)
    # whatever the habits, each of a service's intents is said
    home = dataclasses.replace(home, habits=dict.fromkeys(every, 1.0 / len(every)))
    avoid, parties = set[str](), []
    for prefixes in SERVICES:
        found = []
        for part, count in zip(parts, (size.train["tools"], size.test), strict=True):
            own = [one for one in part if one.intent.startswith(prefixes)]
            drawn = requests(home, said, own, count, rng, avoid=avoid)
            avoid |= {one.text for one in drawn}
            found.append(tuple(one.example() for one in drawn))
        parties.append(Party(*found))
    return parties


TASKS: Mapping[str, Callable[[int, LearnScale], list[Party]]] = {
    "intents": lambda seed, size: intents(seed, size, "en", disjoint=True),
    "intents_de": lambda seed, size: intents(seed, size, "de", disjoint=False),
    "tools": tools,
}


# Arms


class Experiment:
    """One task at one seed: everybody's examples, prepared once."""

    def __init__(
        self, trainer: Trainer, parties: Sequence[Party], size: LearnScale, seed: int
    ) -> None:
        self.trainer, self.size, self.seed = trainer, size, seed
        self.train = trainer.prepare([one for party in parties for one in party.train])
        self.test = trainer.prepare([one for party in parties for one in party.test])
        self.own_train = parts(self.train, [len(party.train) for party in parties])
        self.own_test = parts(self.test, [len(party.test) for party in parties])

    def accuracy(self, flat: Tensor) -> float:
        """Of everybody's held-out answers."""
        return self.trainer.evaluate(flat, self.test).accuracy

    def zero_shot(self) -> dict[str, Any]:
        """The bare model."""
        return {"accuracy": self.accuracy(torch.zeros(self.trainer.size))}

    def trained(self, prepared: Prepared, knobs: Hyperparameters) -> Tensor:
        """One training from nothing, with one optimizer for as many epochs as there are rounds."""
        recipe = dataclasses.replace(knobs, epochs=self.size.rounds)
        start = torch.zeros(self.trainer.size)
        return self.trainer.train(start, prepared, recipe, seed=self.seed).flat_b

    def alone(self) -> dict[str, Any]:
        """Each member by itself: the mean, on everybody's tests and on its own."""
        everybody, own = [], []
        for train, test in zip(self.own_train, self.own_test, strict=True):
            flat = self.trained(train, ALONE)
            everybody.append(self.accuracy(flat))
            own.append(self.trainer.evaluate(flat, test).accuracy)
        return {"accuracy": statistics.mean(everybody), "own": statistics.mean(own)}

    def central(self, knobs: Sequence[Hyperparameters]) -> dict[str, Any]:
        """The best of these."""
        found = {(one.lr, one.batch): self.accuracy(self.trained(self.train, one)) for one in knobs}
        lr, batch = max(found, key=lambda key: found[key])
        grid = {f"lr {lr:g}, batch {batch}": value for (lr, batch), value in found.items()}
        return {"accuracy": found[lr, batch], "knobs": {"lr": lr, "batch": batch}, "grid": grid}

    def together(self, *, auto: bool) -> dict[str, Any]:
        """The federation, masked."""
        recipe = Recipe(rounds=self.size.rounds, tuning="auto" if auto else "fixed")
        scenario = Scenario(
            name="learn", seed=self.seed, model=MODEL, recipe=recipe,
            adapter=AdapterTable(upper_layers=self.trainer.shape.upper_layers, seed=1),
            population=Population(kind="rehearsal", households=MEMBERS),
            protection=ProtectionTable(mode="masked", min_cohort=3, threshold=2),
            guard=GuardTable(rule="vote" if auto else "off"),
        )  # fmt: skip
        learners = {
            f"household-{place}": TrainerLearner(self.trainer, train, test, recipe.trainer())
            for place, (train, test) in enumerate(zip(self.own_train, self.own_test, strict=True))
        }
        ends: dict[str, Vector] = {}
        report = simulate(
            scenario, self.trainer.weights, cast=Cast(learners, self.trainer.size),
            on_adopt=ends.__setitem__,
        )  # fmt: skip
        flat = torch.from_numpy(np.array(next(iter(ends.values())), np.float32))
        trained = [entry for entry in report.history if entry["kind"] == "train"]
        return {
            "accuracy": self.accuracy(flat),
            "rounds": report.rounds,
            "rounds_to_95": reached(report),
            "bytes": sum(map(bytes_of, report.history)),
            "knobs": {"lr": recipe.lr, "rates": [entry.get("rates", [1.0]) for entry in trained]},
            "undone": sum(not entry.get("guard", {"kept": True})["kept"] for entry in trained),
            "stopped": report.stopped,
        }


def parts(prepared: Prepared, counts: Sequence[int]) -> list[Prepared]:
    """Consecutive examples of so many each."""
    found, start = [], 0
    for count in counts:
        own = slice(start, start + count)
        found.append(
            dataclasses.replace(prepared, examples=prepared.examples[own], own=prepared.own[own])
        )
        start += count
    return found


def bytes_of(entry: Mapping[str, Any]) -> int:
    """Both ways, all members, the vote too."""
    return int(
        sum(entry["bytes_up"].values())
        + sum(entry["bytes_down"].values())
        + entry.get("guard", {}).get("bytes", 0)
    )


def reached(report: RunReport) -> int:
    """Rounds until members' own scores came to `NEAR` of the last ones."""
    scores: dict[int, float] = {}
    for entry in report.history:
        if entry["accuracy"] is not None:
            scores[entry["round"] - 1] = entry["accuracy"]
        if entry.get("guard", {}).get("kept"):
            scores[entry["round"]] = entry["guard"]["accuracy"]
    end = scores[max(scores)]
    return min(place for place, score in scores.items() if score >= NEAR * end)


# The suite


def measure(
    *,
    quick: bool,
    tell: Callable[[str], None],
    keep: Keep,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every arm of every task at every seed, and the two loops."""
    size = QUICK if quick else WHOLE
    model = weights.load(catalog.find(MODEL))
    told = f"{model.digest} {size} {ALONE} {Recipe()}".encode()
    found: dict[str, Any] = {
        "what": f"{MODEL}; {MEMBERS} members, masked, {size.rounds} rounds; exact match of the "
        f"whole answer on everybody's held-out requests",
        "sizes": hashlib.sha256(told).hexdigest()[:16],
        "seed": list(size.seeds), "repeats": {"seeds": len(size.seeds)},
        "clock": "processor seconds", "spread": {}, "exact": True,
        "runs": {task: {} for task in TASKS},
    }  # fmt: skip
    if earlier and earlier.get("sizes") == found["sizes"]:
        found |= {name: earlier[name] for name in ("runs", "train") if name in earlier}
    trainer = Trainer(model, AdapterTable(upper_layers=size.layers, seed=1).shape())
    if "train" not in found:
        tell("training's speed, beside peft's own loop")
        found["train"] = speeds(trainer, size)
        keep(found)
    for task, seed, arm, result in missing(trainer, found["runs"], size):
        found["runs"][task].setdefault(str(seed), {})[arm] = result
        tell(f"{task}, seed {seed}, {arm}: {100 * result['accuracy']:.1f} %")
        keep(found)
    for task, runs in found["runs"].items():
        found[task] = summary(runs)
        for arm in ARMS:
            values = [run[arm]["accuracy"] for run in runs.values()]
            found["spread"][f"{task}.{arm}"] = [min(values), max(values)]
    return found


def missing(
    trainer: Trainer, runs: Mapping[str, Mapping[str, Any]], size: LearnScale
) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Task, seed, arm and result of what was not measured before."""
    for task, make in TASKS.items():
        knobs = size.grid
        for seed in size.seeds:
            done = runs[task].get(str(seed), {})
            if any(arm not in done for arm in ARMS):
                experiment = Experiment(trainer, make(seed, size), size, seed)
            for arm in ARMS:
                if arm in done:
                    continue
                measured: Mapping[str, Callable[[], dict[str, Any]]] = {
                    "zero_shot": experiment.zero_shot,
                    "alone": experiment.alone,
                    "central": lambda: experiment.central(knobs),  # noqa: B023
                    "fixed": lambda: experiment.together(auto=False),  # noqa: B023
                    "auto": lambda: experiment.together(auto=True),  # noqa: B023
                }
                yield task, seed, arm, measured[arm]()
            best = runs[task][str(seed)]["central"]["knobs"]
            knobs = (Hyperparameters(lr=best["lr"], batch=best["batch"]),)


def summary(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds, and ratios of their sums: no seed's own small number divides."""

    def every(arm: str, name: str = "accuracy") -> list[Any]:
        return [run[arm][name] for run in runs.values()]

    central, auto, alone = sum(every("central")), sum(every("auto")), sum(every("alone"))
    return {
        **{arm: statistics.median(every(arm)) for arm in ARMS},
        "central_best": statistics.median(every("central")),
        "together_over_central": auto / central if central else 0.0,
        "fixed_over_central": sum(every("fixed")) / central if central else 0.0,
        "auto_over_fixed": auto / sum(every("fixed")) if sum(every("fixed")) else 0.0,
        "auto_over_alone": auto / alone if alone else 0.0,
        "rounds": statistics.median(every("auto", "rounds")),
        "rounds_to_95": statistics.median(every("auto", "rounds_to_95")),
        "fixed_rounds_to_95": statistics.median(every("fixed", "rounds_to_95")),
        "bytes": statistics.median(every("auto", "bytes")),
        "fixed_bytes": statistics.median(every("fixed", "bytes")),
        "knobs": {
            seed: {"auto": run["auto"]["knobs"], "central": run["central"]["knobs"]}
            for seed, run in runs.items()
        },
    }


def speeds(trainer: Trainer, size: LearnScale) -> dict[str, Any]:
    """Examples a processor second, ours and peft's, on the same tool calls.

    Ours runs the frozen layers once and then every epoch; theirs runs all layers in each step, so
    theirs is as long for one epoch as for any. A whole training has as many epochs as rounds.
    """
    examples = [one for party in tools(1, dataclasses.replace(size, train={"tools": size.timed}))
                for one in party.train][: size.timed]  # fmt: skip
    knobs = Hyperparameters(batch=16)
    begun = clock()
    prepared = trainer.prepare(examples)
    readied = clock() - begun
    trainer.train(torch.zeros(trainer.size), prepared, knobs, seed=1)  # warm
    begun = clock()
    trainer.train(torch.zeros(trainer.size), prepared, knobs, seed=1)
    ours = clock() - begun
    folder = unpacked(trainer.weights, paths.home() / "bench" / trainer.weights.digest[:16])
    theirs = {
        str(dtype).removeprefix("torch."): peft_epoch(folder, trainer, prepared, knobs, dtype)
        for dtype in {torch.float32, trainer.dtype}
    }
    best = min(theirs, key=lambda name: theirs[name])
    whole = (readied + size.rounds * ours) / size.rounds
    return {
        "examples_per_s": len(examples) / ours,
        "whole_examples_per_s": len(examples) / whole,
        "precision": trainer.precision,
        "peft_examples_per_s": len(examples) / theirs[best],
        "peft_precision": best,
        "ratio_peft": theirs[best] / whole,
    }


def peft_epoch(
    folder: Path, trainer: Trainer, prepared: Prepared, knobs: Hyperparameters, dtype: torch.dtype
) -> float:
    """Seconds of one epoch of peft's LoRA on the same layers, by transformers' own model and loss:
    the same examples padded to the longest of a batch, gradients where there is a LoRA.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    layers = trainer.weights.architecture.num_layers
    shape = trainer.shape
    config = LoraConfig(
        r=shape.rank, lora_alpha=int(shape.alpha), target_modules=list(shape.targets),
        layers_to_transform=list(range(layers - shape.upper_layers, layers)),
        layers_pattern="layers",
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    inject_adapter_in_model(config, model)
    chosen = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=knobs.lr, fused=True)
    batches = order(len(prepared), knobs, 1)
    begun = 0.0
    for batch in (batches[0], *batches):  # the first once more, for warmth
        begun = begun or (clock() if optimizer.state else 0.0)
        rows = [prepared.examples[index] for index in batch]
        tokens = [[*one.prompt, *one.answer] for one in rows]
        longest = max(map(len, tokens))
        ids = torch.tensor([one + [0] * (longest - len(one)) for one in tokens])
        seen = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in tokens])
        wanted = ids.masked_fill(seen == 0, -100)
        for place, one in enumerate(rows):
            wanted[place, : len(one.prompt)] = -100
        optimizer.zero_grad()
        loss: Any = model(input_ids=ids, attention_mask=seen, labels=wanted).loss
        loss.backward()
        optimizer.step()
    return clock() - begun


def figures(report: dict[str, Any]) -> list[Figure]:
    """Rows of the table."""
    del report
    rows = []
    for task in TASKS:
        for arm in ARMS:
            rows.append(Figure(f"{task}.{arm}", "", f"{task}: {arm.replace('_', ' ')}"))
        rows += [
            Figure(f"{task}.together_over_central", "×", "auto over central", at_least=0.98),
            Figure(f"{task}.auto_over_fixed", "×", "auto over fixed", at_least=1.0),
            Figure(f"{task}.auto_over_alone", "×", "auto over alone", at_least=2.0),
            Figure(f"{task}.rounds", "", "rounds of auto"),
            Figure(f"{task}.rounds_to_95", "", "of them to 95 % of its end", at_most=5),
            Figure(f"{task}.bytes", "B", "bytes of auto, all members"),
        ]
    return [
        *rows,
        Figure("train.examples_per_s", "1/s", "examples trained on, frozen layers run before"),
        Figure("train.whole_examples_per_s", "1/s", "the same with the frozen layers"),
        Figure("train.peft_examples_per_s", "1/s", "peft's loop"),
        Figure("train.ratio_peft", "×", "ours over peft's, whole trainings", at_least=2.0),
    ]
