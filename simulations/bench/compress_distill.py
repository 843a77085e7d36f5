"""Part of the suite `compress`: a student of half the depth, and members whose models differ.

    student                  the household's task: how much of its teacher's accuracy a student
                             keeps, and how much faster it answers
    federated_distillation   four members on two models, each with examples of its own: alone, and
                             together over a public set

Knows training, the engine and a simulated federation. Always: both sides of a figure were trained
on the same examples as often, and are asked the same held-out requests.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.config import EngineConfig
from ...core.engine.engine import Engine
from ...core.engine.request import GenerationRequest
from ...core.engine.sampling.params import SamplingParams
from ...core.models import to_gguf, weights
from ...core.models.hub import catalog
from ...core.models.lora.layout import AdapterShape
from ...core.models.lora.merge import merged
from ...core.models.weights import Weights
from ...core.training.dataset import make_homes
from ...core.training.distillation.candidates import CandidateScorer, PublicItem, PublicSet
from ...core.training.distillation.distiller import Distiller
from ...core.training.distillation.settings import DistillationSettings
from ...core.training.distillation.student import evenly, kept
from ...core.training.distillation.targets import exact_answers
from ...core.training.examples import Example
from ...core.training.packing import tokenize
from ...core.training.precision import resolve_dtype
from ...core.training.trainer import Hyperparameters, Trainer
from ...federation.spec.policy import Recipe
from ...federation.training.distillation import DistillationLearner
from ..cast import Cast
from ..run import simulate
from ..scenario import Population, Scenario
from . import random_model
from .confidence import kept_adapter
from .figures import Figure, has
from .stopwatch import Arm, interleaved, put

MODEL = "smollm2-135m-instruct"
SEED = 1
HOUSEHOLDS, TRAIN, TEST = 2, 150, 60  # of the student's task
TYPE = "Q4_0"  # of both files that are timed
TIMED = 12  # requests that both answer
SETTINGS = DistillationSettings(epochs=5, lr=1e-3, temperature=2.0, hard=0.3)

# The federation: each member's few examples; of a public item its answer and so many others.
MEMBERS, OWN, HELD_OUT, PUBLIC, ANSWERS = 4, 40, 20, 32, 4
UPPER, ROUNDS = 4, 2
RECIPE = Hyperparameters(lr=1e-2, batch=8, epochs=1)
RANGE = 16.0


def rows(
    report: dict[str, Any], quick: bool, tell: Callable[[str], None] = lambda _: None
) -> Sequence[Figure]:
    """Measure, put it into `report`, and say which figures there are.

    Args:
        quick: tiny sizes; what is measured means nothing.
    """
    report.setdefault("spread", {})
    with tempfile.TemporaryDirectory() as folder:
        model = weights.load(model_file(Path(folder), quick))
    tell("a student of half the depth")
    student(report, model, quick, tell)
    tell("members whose models differ")
    report["federated_distillation"] = federated(model, quick)
    return figures(report)


def model_file(folder: Path, quick: bool) -> Path:
    """What is measured; `quick`: a tiny model of its vocabulary, whose answers mean nothing."""
    path = catalog.find(MODEL)
    return (
        random_model.write(folder / "tiny.gguf", path, random_model.TINY, seed=SEED)
        if quick
        else path
    )


def figures(report: Mapping[str, Any]) -> Sequence[Figure]:
    """The rows of the table."""
    found = (
        Figure("student.accuracy_teacher", "share", "exact answers of the teacher, held out"),
        Figure("student.accuracy_student", "share", "of the student at half its depth"),
        Figure("student.accuracy_kept", "of the teacher's", "of it kept", at_least=0.8),
        Figure("student.speedup", "x", "prompts and answers, the student's speed", at_least=1.7),
        Figure("student.speedup_decode", "x", "answers alone, one at a time"),
        Figure("student.size", "of the teacher's", "the student's file"),
        Figure("federated_distillation.alone", "share", "right of held-out choices, alone"),
        Figure("federated_distillation.together", "share", "the same members, masked scores"),
        Figure("federated_distillation.bytes", "bytes", "a member's masked scores of a round"),
    )
    return [row for row in found if has(report, row.key)]


def student(
    report: dict[str, Any], model: Weights, quick: bool, tell: Callable[[str], None]
) -> None:
    """Teach half of the model what the whole one learned."""
    homes = make_homes(
        households=1 if quick else HOUSEHOLDS,
        train=4 if quick else TRAIN,
        test=2 if quick else TEST,
        seed=SEED,
    )
    examples = [request.example() for home in homes for request in home.train]
    held_out = [request.example() for home in homes for request in home.test]
    teacher = model
    if not quick:
        teacher = merged(model, kept_adapter(model, examples, tell), "bench")
    layers = teacher.architecture.num_layers
    settings = dataclasses.replace(SETTINGS, epochs=1, batch=4) if quick else SETTINGS
    with tempfile.TemporaryDirectory() as folder:
        whole, dtype = Path(folder) / "teacher.gguf", resolve_dtype("auto")
        to_gguf.save(kept(teacher, range(layers)), whole, TYPE)
        half = kept(teacher, evenly(layers, layers // 2))
        run = Distiller(teacher, half, examples, settings, Path(folder) / "run", quant_type=TYPE)
        path = run.run().student
        tokens = tokenize(held_out, teacher.tokenizer, longest=teacher.context_length)
        known, learned = (
            exact_answers(weights.load(file), tokens, dtype) / len(tokens) for file in (whole, path)
        )
        found = report.setdefault("student", {})
        found |= {
            "accuracy_teacher": known,
            "accuracy_student": learned,
            "accuracy_kept": learned / known if known else 0.0,
            "size": path.stat().st_size / whole.stat().st_size,
        }
        prompts = [one.prompt for one in tokens[: 2 if quick else TIMED]]
        time_both(report, whole, path, prompts, repeats=1 if quick else 5)


def time_both(
    report: dict[str, Any],
    whole: Path,
    half: Path,
    prompts: Sequence[tuple[int, ...]],
    *,
    repeats: int,
) -> None:
    """Both files answer the same prompts, one at a time, with the same number of tokens."""
    engines = {}
    for name, path in (("whole", whole), ("half", half)):
        model = weights.load(path)
        model.tokenizer.stop_tokens = frozenset()
        config = EngineConfig(drafts=0, share_prefixes=False)
        engines[name] = Engine(model, config)
        engines[name].start()
    try:
        for key, tokens, given in (
            ("speedup", 16, prompts),
            ("speedup_decode", 48, [one[:2] for one in prompts[:4]]),
        ):
            arms = {name: Arm(asking(one, given, tokens)) for name, one in engines.items()}
            samples = interleaved(arms, repeats)
            put(report, f"student.{key}", samples["whole"].over(samples["half"]))
    finally:
        for engine in engines.values():
            engine.stop()


def asking(engine: Engine, prompts: Sequence[tuple[int, ...]], tokens: int) -> Callable[[], object]:
    """What has one engine answer these prompts, one behind the other."""
    params = SamplingParams(max_tokens=tokens)

    def ask() -> None:
        for prompt in prompts:
            engine.submit(GenerationRequest(prompt=prompt, sampling_params=params)).text()

    return ask


@dataclasses.dataclass(frozen=True, slots=True)
class Choices:
    """Requests whose right answer stands among some."""

    public: PublicSet
    right: tuple[int, ...]  # of each item

    def accuracy(self, scorer: CandidateScorer, flat_b: torch.Tensor) -> float:
        """Share of the items whose right answer scores highest."""
        best = scorer.scores(flat_b).argmax(1)
        return float((best == torch.tensor(self.right)).float().mean())


def choices(examples: Sequence[Example], pool: Sequence[str], seed: int) -> Choices:
    """Each example's answer among others of the pool."""
    rng, items, right = np.random.default_rng([seed]), [], []
    for example in examples:
        others = sorted({*pool} - {example.answer})
        drawn = [str(one) for one in rng.choice(others, ANSWERS - 1, replace=False)]
        place = int(rng.integers(ANSWERS))
        drawn.insert(place, example.answer)
        messages = tuple(dict(message) for message in example.messages[:-1])
        items.append(PublicItem(messages, tuple(drawn)))
        right.append(place)
    return Choices(PublicSet(tuple(items), ""), tuple(right))


def federated(model: Weights, quick: bool) -> dict[str, float]:
    """Members with two models, apart and together; the mean of their held-out choices that are
    right.
    """
    own, held, public = (2, 2, 2) if quick else (OWN, HELD_OUT, PUBLIC)
    members, rounds = (3, 1) if quick else (MEMBERS, ROUNDS)
    homes = make_homes(households=members + 1, train=max(own, public), test=held, seed=SEED)
    spoken = [[request.example() for request in home.train] for home in homes]
    pool = sorted({example.answer for one in spoken for example in one})
    asked = choices(spoken[members][:public], pool, SEED)
    union = [request.example() for home in homes[:members] for request in home.test]
    held_out = choices(union[:: 1 if quick else 2], pool, SEED + 1)
    layers = model.architecture.num_layers
    models = (model, kept(model, evenly(layers, 2 * layers // 3)))
    shape = AdapterShape(rank=8, alpha=16.0, upper_layers=UPPER)
    trainers = [Trainer(one, shape) for one in models]
    learners = {
        f"household-{index}": DistillationLearner(
            CandidateScorer(trainers[index % 2], asked.public, 0.48 * RANGE),
            trainers[index % 2].prepare(spoken[index][:own]),
            None,
            RECIPE,
        )
        for index in range(members)
    }
    judges = [CandidateScorer(trainer, held_out.public, RANGE) for trainer in trainers]

    def mean_accuracy() -> float:
        found = [
            held_out.accuracy(judges[index % 2], one.own)
            for index, one in enumerate(learners.values())
        ]
        return float(np.mean(found))

    # alone: as many epochs over the own examples as the federation has rounds
    alone_recipe = dataclasses.replace(RECIPE, epochs=rounds)
    alone = []
    for index, one in enumerate(learners.values()):
        flat = one.trainer.train(one.own, one.train_set, alone_recipe, seed=SEED).flat_b
        alone.append(held_out.accuracy(judges[index % 2], flat))
    scenario = scenario_of(members, rounds, asked.public.size)
    ended: dict[str, Any] = {}
    report = simulate(
        scenario,
        None,
        cast=Cast(learners, asked.public.size),
        on_adopt=lambda name, flat: ended.__setitem__(name, flat),
    )
    for name, flat in ended.items():
        learners[name].learn(flat, SEED)
    return {
        "alone": float(np.mean(alone)),
        "together": mean_accuracy(),
        "bytes": report.bytes_per_node_round,
    }


def scenario_of(members: int, rounds: int, size: int) -> Scenario:
    """Masked rounds of scores."""
    return Scenario(
        name="federated-distillation",
        seed=SEED,
        population=Population(kind="rehearsal", households=members, values=size),
        recipe=Recipe(
            rounds=rounds, server_optimizer="fedavg", update_range=RANGE, evaluate_every=0
        ),
    )
