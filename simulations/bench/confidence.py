"""The suite `confidence`: of the calls that are carried out unasked, how many are right?

One half of held-out requests calibrates, the other half is judged, over many ways to halve them:
for the household's task, with an adapter that is trained once and kept, and for tools that no
training saw, with the plain model, where a call is demanded of it. Beside it, the same with the
probability alone.

Knows the shipped task, the tool set and calibration. Knows nothing of HTTP.
Always: what is judged calibrated nothing; a call is right only if its tool and all its arguments
are, to the letter.
"""

import asyncio
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core import paths
from ...core.assistant.assistant import Assistant
from ...core.assistant.calibration import (
    MEASURED,
    Calibration,
    WeighedCall,
    calibrate,
    sure_ones,
    weigh,
)
from ...core.assistant.context import Message
from ...core.assistant.events import ANY_TOOL
from ...core.assistant.tools import ToolInfo, ToolResult
from ...core.config import EngineConfig
from ...core.engine.engine import Engine
from ...core.models import weights
from ...core.models.hub import catalog
from ...core.models.lora.adapter import Adapter, assemble
from ...core.models.weights import Weights
from ...core.prompt import AS_IT_COMES, HOUSEHOLD
from ...core.toolcall import ToolCall, parse_all
from ...core.training.dataset import HELD_OUT as UNSEEN
from ...core.training.dataset import Beside, HomeData, household_examples, make_homes
from ...core.training.examples import Example, encode_jsonl
from ...core.training.household.dialogue import dialogues, split_wordings
from ...core.training.own_answers import own_answers
from ...core.training.trainer import Trainer
from ...plugins import manifest
from ...plugins.host import BUILTIN
from ..scenario import load
from . import tool_set
from .figures import Figure, Keep, nobody, put_share
from .parts import run_parts

WHAT = "calls that are carried out unasked: how many are right, and of how many requests"
SCENARIO = "four-households"
# What `--only` may name, with about how long it takes on two quiet cores.
PARTS = {
    "other": "tools that no training saw, the plain model, calls demanded; 1 min",
    "home": "held-out requests to an adapter that is trained once (7 min) and kept; 3 min",
    "second": "second requests to it; 1 min, and `home` before",
    "talk": "small talk to it; 1 min, and `home` before",
}
KEPT = "bench"  # in the node's home: what was trained here, by what it was trained of
HOME = "home"  # the adapter that is trained here
LR = 1e-2
HELD_OUT = 150  # requests of each household, of templates that no training saw
SECOND = 40  # second requests of each household, of wordings that no training saw
OTHER = 240  # requests to tools that no training saw
AT_ONCE = 8
DIVISIONS = 40  # into halves; a single one is right or wrong by a handful of calls
SEED = 1
Asked = tuple[Sequence[Message], Sequence[ToolCall]]


class Listed:
    """Tools that are only on offer."""

    def __init__(self, tools: Sequence[ToolInfo]) -> None:
        self.listed = tools

    def tools(self) -> Sequence[ToolInfo]:
        """All of them."""
        return self.listed

    async def call(self, call: ToolCall, *_: object) -> ToolResult:
        """Never comes here."""
        raise AssertionError(f"{call.name} was carried out")


def measure(
    *, quick: bool, tell: Callable[[str], None], keep: Keep = nobody, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Both tasks, or the named `PARTS`; `quick`: few requests to the plain model, and no adapter is
    trained.
    """
    report: dict[str, Any] = {
        "what": WHAT,
        "seed": SEED,
        "clock": "not timed",
        "repeats": {"requests": 1},
        "spread": {},
        "exact": True,
    }
    model = weights.load(catalog.find(EngineConfig().model))
    engine = Engine(model, EngineConfig())
    engine.start()
    try:
        bench = ConfidenceBench(engine, model, report, tell, quick=quick)
        run_parts(bench.parts(), only, report, tell, keep)
    finally:
        engine.stop()
    return report


@dataclass(frozen=True)  # no slots: what is made once is kept beside
class ConfidenceBench:
    """The parts, in whichever order: the adapter is trained, and its requests are weighed, for the
    first that needs it.
    """

    engine: Engine
    model: Weights
    report: dict[str, Any]
    tell: Callable[[str], None]
    quick: bool = False

    def parts(self) -> dict[str, Callable[[], None]]:
        """By the names of `PARTS`; a quick run trains nothing."""
        trained = {"home": self.home, "second": self.second, "talk": self.talk}
        return {"other": self.other, **({} if self.quick else trained)}

    def other(self) -> None:
        """The plain model and tools that no training saw."""
        tasks = tool_set.drawn(16 if self.quick else OTHER, seed=1)
        asked = [(task.messages, task.calls) for task in tasks]
        self.put("other", judged(self.weighed(asked, tool_set.TOOLS, None), tool_set.TOOLS))

    def home(self) -> None:
        """Held-out requests of the households that taught the adapter."""
        self.put("", judged(self.held_out, self.tools))

    def second(self) -> None:
        """Second requests, calibrated with the single ones."""
        second = self.weighed(second_requests(self.homes), self.tools, HOME)
        found = judged([*self.held_out, *second], self.tools, lambda one: len(one.said) > 1)
        self.put("second", found)

    def talk(self) -> None:
        """Small talk, to the adapter without its router."""
        calibration = calibrate(self.held_out, by_name(self.tools))
        talk: list[Asked] = [((Message("user", text),), ()) for text in tool_set.TALK]
        answered = self.weighed(talk, self.tools, HOME)
        sure = unasked(calibration, answered, self.tools)
        put_share(self.report, "small_talk_called.adapter", [bool(one.calls) for one in answered])
        put_share(
            self.report, "small_talk_called.adapter_unasked", [one in sure for one in answered]
        )

    def weighed(
        self, asked: Sequence[Asked], tools: Sequence[ToolInfo], adapter: str | None
    ) -> list[WeighedCall]:
        """What is called for each of these."""
        if adapter:
            self.load()
        return asyncio.run(weigh_all(self.engine, self.model, tools, asked, adapter))

    def load(self) -> None:
        """The adapter into the engine, once."""
        if HOME not in self.engine.adapters.names():
            taught = [one for several in examples_of(self.homes, self.model) for one in several]
            self.engine.adapters.load(HOME, kept_adapter(self.model, taught, self.tell))

    @cached_property
    def homes(self) -> list[HomeData]:
        """The scenario's households."""
        return scenario_homes()

    @cached_property
    def tools(self) -> list[ToolInfo]:
        """The shipped household's."""
        return household_tools()

    @cached_property
    def held_out(self) -> list[WeighedCall]:
        """Held-out requests of all households, weighed."""
        asked = [asked_for(request.example()) for home in self.homes for request in home.test]
        return self.weighed(asked, self.tools, HOME)

    def put(self, place: str, found: dict[str, Any]) -> None:
        """One task's shares, and of each the least and the most of all divisions."""
        whole = self.report.setdefault("confirm", {})
        if place:
            whole[place] = found
        else:
            whole |= found
        prefix = f"confirm.{place}." if place else "confirm."
        for key, spread in found["spread"].items():
            self.report["spread"][f"{prefix}{key}"] = spread


def scenario_homes() -> list[HomeData]:
    """The households of the scenario."""
    scenario = load(SCENARIO)
    people = scenario.population
    return make_homes(
        households=people.households, train=people.train, test=HELD_OUT, seed=scenario.seed
    )


def examples_of(homes: Sequence[HomeData], model: Weights) -> list[list[Example]]:
    """What each household learns from, as `data build home` makes it."""
    beside = Beside.usual(len(homes[0].train), answers=partial(own_answers, model))
    seed = load(SCENARIO).seed
    return [
        household_examples(home, beside, [seed, 1 << 20, index]) for index, home in enumerate(homes)
    ]


def kept_adapter(
    model: Weights, examples: Sequence[Example], tell: Callable[[str], None]
) -> Adapter:
    """An adapter trained on all of them; read back where the very same was trained before."""
    scenario = load(SCENARIO)
    shape = scenario.adapter.shape()
    recipe = dataclasses.replace(scenario.recipe.trainer(), lr=LR, epochs=scenario.recipe.rounds)
    told = f"{model.digest} {shape} {recipe}".encode() + encode_jsonl(examples)
    folder = paths.home() / KEPT / f"adapter-{hashlib.sha256(told).hexdigest()[:16]}"
    if folder.is_dir():
        tell(f"the adapter in {folder}, trained by an earlier run")
        return Adapter.load(folder)
    tell(f"training on {len(examples)} examples, which takes minutes; kept in {folder}")
    import torch

    trainer = Trainer(model, shape)
    flat = trainer.train(torch.zeros(trainer.size), trainer.prepare(examples), recipe, seed=1)
    adapter = assemble(shape, model.architecture, model.digest, flat.flat_b)
    adapter.save(folder)
    return adapter


async def weigh_all(
    engine: Engine,
    model: Weights,
    tools: Sequence[ToolInfo],
    examples: Sequence[Asked],
    adapter: str | None,
) -> list[WeighedCall]:
    """`weigh`, a few at a time, in their order; of the plain model one call is demanded."""
    assistant = Assistant(
        engine,
        model.tokenizer,
        Listed(tools),
        context=engine.context,
        prompt_of=lambda id: HOUSEHOLD if id == HOME else AS_IT_COMES,
        calibration_of=lambda _: Calibration(),
        config=MEASURED,
        small=True,
    )
    choice = None if adapter else ANY_TOOL
    parts = await at_once(weigh(assistant, [one], adapter, choice) for one in examples)
    return [one for part in parts for one in part]


async def at_once(made: Iterable[Any]) -> list[Any]:
    """The results of coroutines, a few at a time."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(work: Any) -> Any:
        async with free:
            return await work

    return await asyncio.gather(*map(one, made))


def judged(
    weighed: Sequence[WeighedCall],
    tools: Sequence[ToolInfo],
    counts: Callable[[WeighedCall], bool] = lambda _: True,
) -> dict[str, Any]:
    """What one half calibrates and does with the other, over many ways to halve them.

    Args:
        counts: which of the other half is judged.
    """
    rng, half = np.random.default_rng(SEED), len(weighed) // 2
    ours: list[list[WeighedCall]] = []
    alone: list[list[WeighedCall]] = []
    judged_each = 0.0
    for _ in range(DIVISIONS):
        mixed = [weighed[place] for place in rng.permutation(len(weighed))]
        first, rest = mixed[:half], [one for one in mixed[half:] if counts(one)]
        judged_each += len(rest) / DIVISIONS
        ours.append(unasked(calibrate(first, by_name(tools)), rest, tools))
        likely = sure_ones(one for one in first if one.calls)
        alone.append([one for one in rest if likely and one.probability >= likely[-1].probability])
    counted = [one for one in weighed if counts(one)]
    return {
        **shares(ours, judged_each),
        "by_probability_alone": shares(alone, judged_each),
        "accuracy": sum(one.right for one in counted) / len(counted),
        "calibrated_on": half,
        "judged": round(judged_each),
        "divisions": DIVISIONS,
    }


def unasked(
    calibration: Calibration, rest: Sequence[WeighedCall], tools: Sequence[ToolInfo]
) -> list[WeighedCall]:
    """Those whose calls would all be carried out without a question."""
    named = by_name(tools)
    return [
        one
        for one in rest
        if one.calls
        and all(
            calibration.sure(one.probability, one.said, one.calls, named[call.name])
            for call in one.calls
        )
    ]


def shares(found: Sequence[Sequence[WeighedCall]], judged_each: float) -> dict[str, Any]:
    """Of these the right ones, over all divisions and in the worst of them, and how many of all
    they are; in how many divisions there were none.
    """
    told = [sum(one.right for one in sure) / len(sure) for sure in found if sure]
    covered = [len(sure) / judged_each for sure in found]
    count = sum(map(len, found))
    right = sum(one.right for sure in found for one in sure)
    return {
        "precision_unasked": right / count if count else "none",
        "precision_worst": min(told, default="none"),
        "coverage": count / (len(found) * judged_each),
        "always_asked": sum(not sure for sure in found) / len(found),
        "spread": {"coverage": [min(covered), max(covered)]}
        | ({"precision_unasked": [min(told), max(told)]} if told else {}),
    }


def by_name(tools: Sequence[ToolInfo]) -> dict[str, ToolInfo]:
    """Tools by their names."""
    return {tool.name: tool for tool in tools}


def asked_for(example: Example) -> Asked:
    """A held-out request without the system message, which serving puts there itself."""
    return (Message("user", example.request),), parse_all(example.answer)


def second_requests(homes: Sequence[HomeData]) -> list[Asked]:
    """Requests that lean on one before them, of wordings that no training saw."""
    seed = load(SCENARIO).seed
    _, unseen = split_wordings(UNSEEN, np.random.default_rng([seed, 1 << 20]))
    rng = np.random.default_rng([seed, 1 << 21])
    return [
        (
            (
                Message("user", one.first.text),
                Message("assistant", "", (one.first.call,)),
                Message("user", one.text),
            ),
            (one.call,),
        )
        for home in homes
        for one in dialogues(home.household, home.test, unseen, SECOND, rng)
    ]


def household_tools() -> list[ToolInfo]:
    """The shipped household's, from its manifest."""
    terms = manifest.read(Path(BUILTIN) / "household")
    return [
        ToolInfo(tool.name, tool.description, tool.schema, terms.id, tool.effect)
        for tool in terms.tools
    ]


def figures(report: dict[str, Any]) -> list[Figure]:
    """Rows of the table; without a call that is sure there is no share of right ones to judge."""
    rows = []
    for place, task in (
        ("confirm", "home task"),
        ("confirm.second", "second requests"),
        ("confirm.other", "tools no training saw"),
    ):
        part = place.removeprefix("confirm").strip(".")
        whole = report.get("confirm", {})
        found = whole.get(part, {}) if part else whole
        if "coverage" not in found:
            continue
        aim = 0.95 if found.get("precision_unasked", "none") != "none" else None
        rows += [
            Figure(f"{place}.accuracy", "", f"{task}: right calls"),
            Figure(f"{place}.precision_unasked", "", f"{task}: right of those unasked", None, aim),
            Figure(f"{place}.precision_worst", "", f"{task}: the same in the worst division"),
            Figure(f"{place}.coverage", "", f"{task}: carried out unasked"),
            Figure(f"{place}.always_asked", "", f"{task}: divisions that make nobody sure"),
            Figure(
                f"{place}.by_probability_alone.precision_unasked", "",
                f"{task}: right of those unasked, by probability alone",
            ),
            Figure(
                f"{place}.by_probability_alone.coverage", "",
                f"{task}: carried out unasked, by probability alone",
            ),
        ]  # fmt: skip
    if "adapter" in report.get("small_talk_called", {}):
        rows += [
            Figure("small_talk_called.adapter", "", "small talk answered with a call, adapter"),
            Figure("small_talk_called.adapter_unasked", "", "of it, carried out unasked"),
        ]
    return rows
