"""Does an adapter know when to be silent? Small talk, requests beyond the home, second requests,
two wishes in one sentence.

Two adapters learn the home task: one from single commands alone, one from what `data build home`
makes by default, with talk, second requests and double ones among them. Each is asked with and
without the router. Talk is that of `tool_set.py`, commands are of templates and the rest of
wordings that no training and no router saw.

Knows training, the engine and the router. Knows nothing of HTTP or tools.
Always: accuracy is exact match of the whole answer; talk counts as answered with a call if what the
model writes greedily begins as one; all arms are asked the same, in the one way that adapters of
the home task are asked.
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
from ...core.prompt import HOUSEHOLD
from ...core.toolcall import render
from ...core.training.dataset import HELD_OUT, Beside, HomeData, household_examples, make_homes
from ...core.training.evaluate import exact
from ...core.training.examples import Example
from ...core.training.household.dialogue import (
    DoubleRequest,
    HomeDialogue,
    dialogues,
    doubles,
    split_wordings,
)
from ...core.training.household.home import HomeRequest
from ...core.training.household.talk import general_requests
from ...core.training.own_answers import own_answers
from ...core.training.trainer import Hyperparameters, Trainer
from . import tool_set
from .figures import Figure, Keep

MODEL = "smollm2-135m-instruct"
SEED = 7  # no default of ours was chosen on these households
OPENING = '{"name"'  # how a call begins
GENERAL = 192  # requests that are the plain model's, for the router
# What is told of each kind of talk, by itself and right after a command.
CALLED = {"talk": "small_talk_called", "beyond": "beyond_home_called"}
AFTER = "_after_command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is learned and asked."""

    households: int
    train: int
    test: int
    asked: int | None  # of each kind of talk; None: all
    epochs: int


WHOLE = Size(households=3, train=150, test=60, asked=None, epochs=6)
QUICK = Size(households=1, train=12, test=6, asked=4, epochs=1)


@dataclass(frozen=True, slots=True)
class Exam:
    """What everybody is asked."""

    single: list[HomeRequest]
    second: list[HomeDialogue]
    double: list[DoubleRequest]
    talk: dict[str, Sequence[str]]  # by kind


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep) -> dict[str, Any]:
    """Train both adapters, ask all arms."""
    size = QUICK if quick else WHOLE
    model = weights.load(catalog.find(MODEL))
    homes = make_homes(households=size.households, train=size.train, test=size.test, seed=SEED)
    exam = exam_of(homes, size)
    plain = [request.example() for data in homes for request in data.train]
    tell(f"own answers of {MODEL} to talk")
    beside = Beside.usual(size.train, answers=partial(own_answers, model))
    mixed = [
        one
        for index, data in enumerate(homes)
        for one in household_examples(data, beside, [SEED, 1 << 20, index])
    ]
    report: dict[str, Any] = {
        "what": f"{MODEL}, {len(plain)} commands; the taught one also {beside.talk} times talk, "
        f"{beside.follow_ups} second requests and {beside.doubles} double ones a household; "
        f"{size.epochs} epochs",
        "seed": SEED, "repeats": {"training": 1}, "clock": "not timed", "spread": {}, "exact": True,
        "asked": {"commands": len(exam.single), "second": len(exam.second),
                  "double": len(exam.double),
                  **{kind: len(talk) for kind, talk in exam.talk.items()}},
        "examples": {"adapter": len(plain), "taught": len(mixed)},
    }  # fmt: skip
    routed = routes(homes, exam)
    report["routed"] = {what: share(goes) for what, goes in routed.items()}
    keep(report)
    trainer = Trainer(model, AdapterShape())
    for name, learned in (("adapter", plain), ("taught", mixed)):
        tell(f"training: {name}, {len(learned)} examples")
        flat = trained(trainer, learned, size)
        hits = asked(trainer, flat, [one.example() for one in exam.single])
        report.setdefault("commands", {}).update(
            {name: share(hits), f"{name}_routed": share(both_of(hits, routed["commands"]))}
        )
        for kind, texts in exam.talk.items():
            for where, before in (("", []), (AFTER, exam.single)):
                called = calls(model, flat, texts, before)
                kept = both_of(called, routed[kind + where])
                report.setdefault(CALLED[kind] + where, {}).update(
                    {name: share(called), f"{name}_routed": share(kept)}
                )
        second = share(asked(trainer, flat, [one.example(HOUSEHOLD.system) for one in exam.second]))
        double = share(asked(trainer, flat, [one.example(HOUSEHOLD.system) for one in exam.double]))
        report.setdefault("double", {})[name] = double
        report.setdefault("multi_turn", {})[name] = second
        keep(report)
    report["multi_turn"]["gap"] = report["commands"]["taught"] - report["multi_turn"]["taught"]
    report["cost"] = report["commands"]["adapter"] - report["commands"]["taught_routed"]
    return report


def both_of(one: Sequence[bool], other: Sequence[bool]) -> list[bool]:
    """Where both hold."""
    return [left and right for left, right in zip(one, other, strict=True)]


def share(found: Sequence[bool]) -> float:
    """How many of them."""
    return sum(found) / max(1, len(found))


def exam_of(homes: Sequence[HomeData], size: Size) -> Exam:
    """Commands, second and double requests of what is held out, and talk."""
    # as `household_examples` divides
    _, unseen = split_wordings(HELD_OUT, np.random.default_rng([SEED, 1 << 20]))
    rng = np.random.default_rng([SEED, 1 << 21])
    count = max(4, size.test // 3)
    return Exam(
        [request for data in homes for request in data.test],
        [one for data in homes for one in dialogues(data.household, data.test, unseen, count, rng)],
        [one for data in homes for one in doubles(data.household, data.test, unseen, count, rng)],
        {"talk": tool_set.TALK[: size.asked], "beyond": tool_set.BEYOND[: size.asked]},
    )


def routes(homes: Sequence[HomeData], exam: Exam) -> dict[str, list[bool]]:
    """Which requests the router gives to an adapter of the homes' commands, by kind."""
    from ...core.engine.embedder import SentenceEmbedder

    embed = SentenceEmbedder.load(catalog.find(EMBEDDING)).embed
    router = Router(embed, centroids(embed(general_requests(GENERAL))))
    home = centroids(embed([request.text for data in homes for request in data.train]))

    def goes(*requests: str) -> bool:
        return router.choose(requests, {"home": home}).adapter == "home"

    found = {
        "commands": [goes(one.text) for one in exam.single],
        "second": [goes(one.first.text, one.text) for one in exam.second],
        "double": [goes(one.text) for one in exam.double],
    }
    for kind, texts in exam.talk.items():
        found[kind] = [goes(text) for text in texts]
        found[kind + AFTER] = [
            goes(before.text, text) for text, before in zip(texts, exam.single, strict=False)
        ]
    return found


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
    model: Weights, flat: Any, texts: Sequence[str], before: Sequence[HomeRequest]
) -> list[bool]:
    """Which of these an adapter answers with a call, in the engine that serves it.

    Args:
        before: the command that each is said right after; none: it is said by itself.
    """
    limits = EngineConfig(
        kv_bytes=64 << 20, max_waiting=max(64, len(texts)), queue_timeout_s=3600.0
    )
    engine = Engine(model, limits)
    shape = AdapterShape()
    engine.adapters.load("home", assemble(shape, model.architecture, model.digest, flat))
    engine.start()
    try:
        generations = []
        for place, text in enumerate(texts):
            said = [("system", HOUSEHOLD.system)]
            for one in before[place : place + 1]:
                said += [("user", one.text), ("assistant", render(one.call))]
            chat = [{"role": role, "content": content} for role, content in (*said, ("user", text))]
            generations.append(
                engine.submit(
                    GenerationRequest(
                        prompt=tuple(model.tokenizer.encode_chat(chat)),
                        sampling_params=SamplingParams(max_tokens=8),
                        adapter="home",
                    )
                )
            )
        return [one.text().lstrip().startswith(OPENING) for one in generations]
    finally:
        engine.stop()


def figures(_report: dict[str, Any]) -> Sequence[Figure]:
    """The table."""
    told = {
        "adapter": "by an adapter that learned commands alone",
        "adapter_routed": "the same behind the router",
        "taught": "by one of the default data",
        "taught_routed": "the same behind the router",
    }
    called = {"talk": "talk", "beyond": "requests beyond the home"}
    return [
        *(
            Figure(
                f"{CALLED[kind]}{where}.{arm}", "of 1",
                f"held-out {what}{words} answered with a call, {by}",
                at_most=0.03 if (kind, arm) == ("talk", "taught_routed") else None,
            )
            for kind, what in called.items()
            for where, words in (("", ""), (AFTER, " right after a command"))
            for arm, by in told.items()
        ),
        *(
            Figure(f"commands.{arm}", "of 1", f"held-out commands answered exactly, {by}")
            for arm, by in told.items()
        ),
        Figure("cost", "of 1", "commands that are lost by it: the adapter alone, less the last row",
               at_most=0.02),
        *(
            Figure(f"{place}.{arm}", "of 1", f"{words} answered exactly, {told[arm]}")
            for place, words in (
                ("multi_turn", "second requests (and the attic too)"),
                ("double", "two wishes in one sentence, as two calls"),
            )
            for arm in ("adapter", "taught")
        ),
        Figure("multi_turn.gap", "of 1", "single commands less second requests", at_most=0.05),
        *(
            Figure(f"routed.{what}", "of 1", f"held-out {words} that go to the adapter")
            for what, words in (
                ("commands", "commands"),
                ("second", "second requests"),
                ("double", "double requests"),
                ("talk", "talk"),
                ("talk_after_command", "talk right after a command"),
                ("beyond", "requests beyond the home"),
                ("beyond_after_command", "the same right after a command"),
            )
        ),
    ]  # fmt: skip
