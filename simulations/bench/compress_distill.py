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
from collections.abc import Callable, Sequence
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
from ...core.training.distillation.distiller import DistillationProgress, Distiller
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
from .figures import Figure
from .stopwatch import Arm, interleaved, put

MODEL = "smollm2-135m-instruct"
SEED = 1
HOUSEHOLDS, TRAIN, TEST = 2, 150, 60  # of the student's task
# Of both files: that of `model distill`. Plain rounding to 4 bits spoils the teacher, whose blocks
# had another grid (simulations/LOG.md), and a spoiled teacher is no bar.
TYPE = "Q8_0"
TIMED = 12  # requests that both answer
TELL_EVERY = 20  # steps
SETTINGS = DistillationSettings(epochs=10, lr=1e-3, temperature=2.0, hard=0.3)

# The federation: each member's few examples; of a public item its answer and so many others.
MEMBERS, OWN, HELD_OUT, PUBLIC, ANSWERS = 4, 40, 30, 32, 4
FEWER = 2  # layers of half of the members' model; of many fewer it would be no model (LOG.md)
UPPER, ROUNDS = 4, 2
RECIPE = Hyperparameters(lr=1e-2, batch=8, epochs=1)
RANGE = 16.0


def model_file(folder: Path, quick: bool) -> Path:
    """What is measured; `quick`: a tiny model of its vocabulary, whose answers mean nothing."""
    path = catalog.find(MODEL)
    return (
        random_model.write(folder / "tiny.gguf", path, random_model.TINY, seed=SEED)
        if quick
        else path
    )


FIGURES = (
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


def student(report: dict[str, Any], quick: bool, tell: Callable[[str], None]) -> None:
    """Teach half of the model what the whole one learned; into `report`."""
    homes = make_homes(
        households=1 if quick else HOUSEHOLDS,
        train=4 if quick else TRAIN,
        test=2 if quick else TEST,
        seed=SEED,
    )
    examples = [request.example() for home in homes for request in home.train]
    held_out = [request.example() for home in homes for request in home.test]
    settings = dataclasses.replace(SETTINGS, epochs=1, batch=4) if quick else SETTINGS
    found = report.setdefault("student", {})
    with tempfile.TemporaryDirectory() as scratch:
        folder, dtype = Path(scratch), resolve_dtype("auto")
        teacher = weights.load(model_file(folder, quick))
        if not quick:
            teacher = merged(teacher, kept_adapter(teacher, examples, tell), "bench")
        layers, whole = teacher.architecture.num_layers, folder / "teacher.gguf"
        to_gguf.save(kept(teacher, range(layers)), whole, TYPE)
        tokens = tokenize(held_out, teacher.tokenizer, longest=teacher.context_length)
        known = exact_answers(weights.load(whole), tokens, dtype) / len(tokens)
        found["accuracy_teacher"] = known
        tell(f"  the teacher answers {known:.3f} of held-out requests")
        half = kept(teacher, evenly(layers, layers // 2))
        path = Distiller(
            teacher,
            half,
            examples,
            settings,
            folder / "run",
            quant_type=TYPE,
            on_progress=lambda done: told_of(done, tell),
        ).run().student  # fmt: skip
        learned = exact_answers(weights.load(path), tokens, dtype) / len(tokens)
        found |= {
            "accuracy_student": learned,
            "accuracy_kept": learned / known if known else 0.0,
            "size": path.stat().st_size / whole.stat().st_size,
        }
        tell(f"  the student {learned:.3f}")
        prompts = [one.prompt for one in tokens[: 2 if quick else TIMED]]
        time_both(report, whole, path, prompts, repeats=1 if quick else 5)


def told_of(progress: DistillationProgress, tell: Callable[[str], None]) -> None:
    """Every now and then, for whoever waits."""
    if progress.done % TELL_EVERY == 0:
        loss = f", loss {progress.loss:.3f}" if progress.loss is not None else ""
        tell(f"  {progress.part}: {progress.done} of {progress.total}{loss}")


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


def federation(report: dict[str, Any], quick: bool, tell: Callable[[str], None]) -> None:
    """Members with two models, apart and together, into `report`: the mean of their held-out
    choices that are right.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = weights.load(model_file(Path(folder), quick))
        report["federated_distillation"] = federated(model, quick, tell)


def federated(model: Weights, quick: bool, tell: Callable[[str], None]) -> dict[str, float]:
    """Shares, and bytes of a member in a round."""
    own, held, public = (2, 2, 2) if quick else (OWN, HELD_OUT, PUBLIC)
    members, rounds = (3, 1) if quick else (MEMBERS, ROUNDS)
    homes = make_homes(households=members + 1, train=max(own, public), test=held, seed=SEED)
    spoken = [[request.example() for request in home.train] for home in homes]
    pool = sorted({example.answer for one in spoken for example in one})
    asked = choices(spoken[members][:public], pool, SEED)
    union = [request.example() for home in homes[:members] for request in home.test]
    held_out = choices(union, pool, SEED + 1)
    layers = model.architecture.num_layers
    models = (model, kept(model, evenly(layers, layers - FEWER)))
    shape = AdapterShape(rank=8, alpha=16.0, upper_layers=UPPER)
    trainers = [Trainer(one, shape) for one in models]
    tell("  the public answers through the layers that are frozen")
    scorers = [CandidateScorer(one, asked.public, 0.48 * RANGE) for one in trainers]
    learners = {
        f"household-{index}": DistillationLearner(
            scorers[index % 2], trainers[index % 2].prepare(spoken[index][:own]), None, RECIPE
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

    tell("  alone")
    # alone: as many epochs over the own examples as the federation has rounds
    alone_recipe = dataclasses.replace(RECIPE, epochs=rounds)
    alone = []
    for index, one in enumerate(learners.values()):
        flat = one.trainer.train(one.own, one.train_set, alone_recipe, seed=SEED).flat_b
        alone.append(held_out.accuracy(judges[index % 2], flat))
    tell("  together")
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
