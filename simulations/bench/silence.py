"""Does an adapter know when to be silent? Small talk, requests beyond the home, second requests.

Two adapters learn the home task: one from single commands alone, one also from talk with the
model's own answers and from second requests that lean on a first. Each is asked with and without
the router. Everything that is asked is of templates that no training and no router saw.

Knows training, the engine and the router. Knows nothing of HTTP or tools.
Always: accuracy is exact match of the whole answer; talk counts as answered with a call if what the
model writes greedily begins as one; all arms are asked the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...core.assistant.router import EMBEDDING, Router, centroids
from ...core.config import EngineConfig
from ...core.engine.engine import Engine
from ...core.engine.request import GenerationRequest
from ...core.engine.sampling.params import SamplingParams
from ...core.models import weights
from ...core.models.hub import catalog
from ...core.models.lora.adapter import AdapterShape, assemble
from ...core.models.weights import Weights
from ...core.prompt import HOUSEHOLD, HOUSEHOLD_TALK, PromptFormat
from ...core.training.dataset import HELD_OUT, Beside, HomeData, make_homes, with_talk
from ...core.training.evaluate import exact
from ...core.training.examples import Example
from ...core.training.household.dialogue import HomeDialogue, dialogues, split_wordings
from ...core.training.household.talk import TalkRequest, split_talk, talk_requests
from ...core.training.own_answers import own_answers
from ...core.training.trainer import Hyperparameters, Trainer
from .figures import Figure, Keep

MODEL = "smollm2-135m-instruct"
SEED = 7  # no default of ours was chosen on these households
OPENING = '{"name"'  # how a call begins
GENERAL = 192  # requests that are the plain model's, for the router
# What is told of each kind of talk.
CALLED = {"talk": "small_talk_called", "unserved": "beyond_home_called"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is learned and asked."""

    households: int
    train: int
    test: int
    talk: int  # of each household
    follow_ups: int
    asked: int  # talk that is held out
    epochs: int


WHOLE = Size(households=3, train=100, test=60, talk=60, follow_ups=30, asked=120, epochs=6)
QUICK = Size(households=1, train=12, test=6, talk=4, follow_ups=6, asked=8, epochs=1)


@dataclass(frozen=True, slots=True)
class Exam:
    """What everybody is asked."""

    single: list[Example]  # commands, as the taught adapter is asked
    alone: list[Example]  # the same, as the other one is
    second: list[HomeDialogue]
    talk: list[TalkRequest]

    @property
    def kinds(self) -> dict[str, list[TalkRequest]]:
        """Small talk, and what no tool of a home can do."""
        return {kind: [one for one in self.talk if one.kind == kind] for kind in CALLED}


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep) -> dict[str, Any]:
    """Train both adapters, ask all arms."""
    size = QUICK if quick else WHOLE
    model = weights.load(catalog.find(MODEL))
    homes = make_homes(households=size.households, train=size.train, test=size.test, seed=SEED)
    exam = exam_of(homes, size)
    plain = [request.example() for data in homes for request in data.train]
    report: dict[str, Any] = {
        "what": f"{MODEL}, {len(plain)} commands; the taught one also {size.talk} times talk and "
        f"{size.follow_ups} second requests a household; {size.epochs} epochs",
        "seed": SEED, "repeats": {"training": 1}, "clock": "not timed", "spread": {}, "exact": True,
        "asked": {"commands": len(exam.single), "second": len(exam.second),
                  **{kind: len(talk) for kind, talk in exam.kinds.items()}},
    }  # fmt: skip
    router, home = router_of(homes)
    routed = [goes(router, home, [one.request]) for one in exam.single]
    report["routed"] = {
        "commands": share(routed),
        "second": share([goes(router, home, [one.first.text, one.text]) for one in exam.second]),
    }
    through: dict[str, list[bool]] = {}
    for kind, talk in exam.kinds.items():
        through[kind] = [goes(router, home, [one.text]) for one in talk]
        report["routed"][kind] = share(through[kind])
        report["routed"][f"{kind}_after_command"] = share(
            [goes(router, home, [exam.single[0].request, one.text]) for one in talk]
        )
    keep(report)
    tell(f"own answers of {MODEL} to talk")
    beside = Beside(talk=size.talk, follow_ups=size.follow_ups, answers=partial(own_answers, model))
    mixed = [
        one
        for index, data in enumerate(homes)
        for one in with_talk(data, beside, [SEED, 1 << 20, index])[0]
    ]
    report["examples"] = {"adapter": len(plain), "taught": len(mixed)}
    trainer = Trainer(model, AdapterShape())
    for name, learned, single, prompt in (
        ("adapter", plain, exam.alone, HOUSEHOLD),
        ("taught", mixed, exam.single, HOUSEHOLD_TALK),
    ):
        tell(f"training: {name}, {len(learned)} examples")
        flat = trained(trainer, learned, size)
        hits = asked(trainer, flat, single)
        report.setdefault("commands", {}).update(
            {name: share(hits), f"{name}_routed": share(both_of(hits, routed))}
        )
        for kind, talk in exam.kinds.items():
            called = calls(model, flat, talk, prompt)
            report.setdefault(CALLED[kind], {}).update(
                {name: share(called), f"{name}_routed": share(both_of(called, through[kind]))}
            )
        if name == "taught":
            second = [one.example(prompt.system) for one in exam.second]
            right = asked(trainer, flat, second)
            report["multi_turn"] = {
                "single": share(hits), "second": share(right),
                "gap": share(hits) - share(right),
            }  # fmt: skip
        keep(report)
    report["cost"] = report["commands"]["adapter"] - report["commands"]["taught_routed"]
    return report


def both_of(one: Sequence[bool], other: Sequence[bool]) -> list[bool]:
    """Where both hold."""
    return [left and right for left, right in zip(one, other, strict=True)]


def share(found: Sequence[bool]) -> float:
    """How many of them."""
    return sum(found) / max(1, len(found))


def exam_of(homes: Sequence[HomeData], size: Size) -> Exam:
    """Commands, second requests and talk, of templates that are held out."""
    common = np.random.default_rng([SEED, 1 << 20])  # as `with_talk` divides
    _, talk = split_talk(HELD_OUT, common)
    _, unseen = split_wordings(HELD_OUT, common)
    rng = np.random.default_rng([SEED, 1 << 21])
    system = HOUSEHOLD_TALK.system
    count = max(4, size.test // 3)
    return Exam(
        [request.example(system) for data in homes for request in data.test],
        [request.example() for data in homes for request in data.test],
        [one for data in homes for one in dialogues(data.household, data.test, unseen, count, rng)],
        talk_requests(talk, size.asked, rng),
    )


def router_of(homes: Sequence[HomeData]) -> tuple[Router, Any]:
    """The router, and the home adapter's route, of what is learned alone."""
    from ...core.engine.embedder import SentenceEmbedder

    embed = SentenceEmbedder.load(catalog.find(EMBEDDING)).embed
    kept, _ = split_talk(HELD_OUT, np.random.default_rng([SEED, 1 << 20]))
    general = talk_requests(kept, GENERAL, np.random.default_rng([SEED, 1 << 22]))
    requests = [request.text for data in homes for request in data.train]
    return (
        Router(embed, centroids(embed([one.text for one in general]))),
        centroids(embed(requests)),
    )


def goes(router: Router, home: Any, requests: Sequence[str]) -> bool:
    """Is the last of these the home adapter's?"""
    return router.choose(requests, {"home": home}).adapter == "home"


def trained(trainer: Trainer, examples: Sequence[Example], size: Size) -> Any:
    """A flat B."""
    import torch

    prepared = trainer.prepare(examples)
    numbers = Hyperparameters(epochs=size.epochs)
    return trainer.train(torch.zeros(trainer.size), prepared, numbers, seed=SEED).flat_b


def asked(trainer: Trainer, flat: Any, examples: Sequence[Example]) -> list[bool]:
    """Which answers are right, to the last token."""
    prepared = trainer.prepare(examples)
    trainer.upper.set(trainer.checked(flat))
    return exact(trainer.upper, prepared, trainer.weights.tensors["lm_head.weight"])


def calls(
    model: Weights, flat: Any, requests: Sequence[TalkRequest], prompt: PromptFormat
) -> list[bool]:
    """Which of these an adapter answers with a call, in the engine that serves it."""
    limits = EngineConfig(
        kv_bytes=64 << 20, max_waiting=max(64, len(requests)), queue_timeout_s=3600.0
    )
    engine = Engine(model, limits)
    shape = AdapterShape()
    engine.adapters.load("home", assemble(shape, model.architecture, model.digest, flat))
    engine.start()
    try:
        generations = [
            engine.submit(
                GenerationRequest(
                    prompt=tuple(model.tokenizer.encode_chat(
                        [{"role": "system", "content": prompt.system},
                         {"role": "user", "content": one.text}]
                    )),
                    sampling_params=SamplingParams(max_tokens=8),
                    adapter="home",
                )
            )
            for one in requests
        ]  # fmt: skip
        return [one.text().lstrip().startswith(OPENING) for one in generations]
    finally:
        engine.stop()


def figures(_report: dict[str, Any]) -> Sequence[Figure]:
    """The table."""
    told = {
        "adapter": "by an adapter that learned commands alone",
        "adapter_routed": "the same behind the router",
        "taught": "by one that also learned talk and second requests",
        "taught_routed": "the same behind the router",
    }
    called = {"small_talk_called": "talk", "beyond_home_called": "requests beyond the home"}
    return [
        *(
            Figure(
                f"{key}.{arm}", "of 1", f"held-out {what} answered with a call, {words}",
                at_most=0.03 if (key, arm) == ("small_talk_called", "taught_routed") else None,
            )
            for key, what in called.items()
            for arm, words in told.items()
        ),
        *(
            Figure(f"commands.{arm}", "of 1", f"held-out commands answered exactly, {words}")
            for arm, words in told.items()
        ),
        Figure("cost", "of 1", "commands that are lost by it: the adapter alone, less the last row",
               at_most=0.02),
        Figure("multi_turn.second", "of 1", "second requests (and the attic too) answered exactly"),
        Figure("multi_turn.gap", "of 1", "single commands less second requests", at_most=0.05),
        Figure("routed.commands", "of 1", "held-out commands that the router gives to the adapter"),
        Figure("routed.second", "of 1", "second requests that it gives to the adapter"),
        Figure("routed.talk", "of 1", "held-out talk that it gives to the adapter"),
        Figure("routed.talk_after_command", "of 1", "the same right after a command"),
        Figure("routed.unserved", "of 1", "requests beyond the home that it gives to the adapter"),
    ]  # fmt: skip
