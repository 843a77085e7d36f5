"""The suite `silence`: does an adapter know when to be silent? Small talk, requests beyond what it
can, second requests, two wishes in one sentence.

Three tasks, each with its adapter asked alone, behind the router, and as a node serves it (a call
that nothing said names is not begun, two wishes in one sentence are asked one after the other): the
households whose examples taught the home's adapter, by wordings that it did not learn; a household
that it never saw, with other rooms and devices; and requests to eight services (`tool_set.py`),
which share neither tool nor word with a home. A node's router knows the examples of that one node,
as it does where it serves.

Knows training, the engine and the router. Knows nothing of HTTP.
Always: accuracy is exact match of the whole answer; talk counts as answered with a call if what the
model writes greedily is one; all arms are asked the same. Talk is that of `tool_set.py`, written
apart from all that is learned, and the first sentences of conversations of the PyPI package
chatterbot-corpus, where it is installed; beyond the services is what a home is told.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core.assistant.router import EMBEDDING, Embed, Router, fit_route, route_example
from ...core.config import EngineConfig
from ...core.engine.embedder import SentenceEmbedder
from ...core.engine.engine import Engine
from ...core.engine.request import GenerationRequest
from ...core.engine.sampling.params import SamplingParams
from ...core.models import weights
from ...core.models.hub import catalog
from ...core.models.weights import Weights
from ...core.prompt import HOUSEHOLD
from ...core.toolcall import parse_all, render_all
from ...core.training.dataset import HELD_OUT, HomeData, make_homes
from ...core.training.examples import Example
from ...core.training.household.dialogue import dialogues, doubles, split_wordings
from ...core.training.household.talk import general_requests, talk_requests
from ...core.training.own_answers import own_answers
from . import tool_set
from .confidence import examples_of, kept_adapter, scenario_homes
from .figures import Figure, Keep, nobody, put_share
from .parts import run_parts

MODEL = EngineConfig().model
SEED = 7  # of the household that no adapter saw; no default of ours was chosen on it
ANSWER_TOKENS = 96
OPENING = '{"name"'  # how a call begins; serving holds what follows to the tool's schema
CORPUS = "chatterbot_corpus"
AFTER = "_after_command"
HALVES = "double_halves"
# What `--only` may name, with about how long it takes on two quiet cores.
PARTS = {
    "home": "homes that taught the adapter, which is trained once (7 min) and kept; 5 min",
    "other_home": "a home that it never saw; 3 min",
    "services": "eight services, with an adapter of their own (4 min, kept); 2 min",
}
# What is told of each kind of talk, by itself and right after a command.
SILENT = {
    "talk": "talk",
    "corpus": "first sentences of a package's conversations",
    "beyond": "requests beyond the task",
}
ARMS = {
    "alone": "the adapter alone",
    "routed": "behind the router",
    "served": "as a node serves it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is learned and asked."""

    homes: int  # of those that taught the adapter
    asked: int | None  # of each kind; None: all
    learned: int | None  # examples; None: all


WHOLE = Size(homes=2, asked=60, learned=None)
QUICK = Size(homes=1, asked=3, learned=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceTask:
    """One adapter's task on one node."""

    own: Sequence[Example]  # the node's examples, of which its router is made
    wanted: Mapping[str, Sequence[Example]]  # held out, by kind; the answers are right
    silent: Mapping[str, Sequence[str]]  # talk, by kind
    before: Sequence[Example] = field(default=())  # commands that talk is said right after


def measure(
    *, quick: bool, tell: Callable[[str], None], keep: Keep = nobody, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Each adapter is trained, or read where the very same was trained before, and asked; of all,
    or of the named `PARTS`.
    """
    model = weights.load(catalog.find(MODEL))
    embed = SentenceEmbedder.load(catalog.find(EMBEDDING)).embed
    report: dict[str, Any] = {
        "what": f"{MODEL}; an adapter of homes, one of services",
        "seed": SEED, "repeats": {"training": 1}, "clock": "not timed", "spread": {}, "exact": True,
    }  # fmt: skip
    bench = SilenceBench(model, embed, QUICK if quick else WHOLE, report, tell)
    parts = {"home": bench.home, "other_home": bench.other_home, "services": bench.services}
    run_parts(parts, only, report, tell, keep)
    return report


@dataclass(frozen=True)  # no slots: what is made once is kept beside
class SilenceBench:
    """The parts; the adapter of homes is trained for the first that needs it."""

    model: Weights
    embed: Embed
    size: Size
    report: dict[str, Any]
    tell: Callable[[str], None]

    def home(self) -> None:
        """Homes that taught the adapter."""
        nodes = [
            home_task(home, own, self.size, index)
            for index, (home, own) in enumerate(zip(self.homes, self.taught, strict=True))
        ]
        self.judge("home", self.learned, nodes[: self.size.homes])

    def other_home(self) -> None:
        """One that it never saw, with a router of its own examples."""
        [stranger] = make_homes(households=1, train=150, test=60, seed=SEED)
        [own] = examples_of([stranger], self.model)
        self.judge("other_home", self.learned, [home_task(stranger, own, self.size, SEED)])

    def services(self) -> None:
        """Another task, with an adapter of its own."""
        task, learned = services_task(self.model, self.size)
        self.judge("services", learned, [task])

    def judge(self, name: str, learned: Sequence[Example], nodes: Sequence[SilenceTask]) -> None:
        """What an adapter of these examples makes of what is said on these nodes."""
        adapter = kept_adapter(self.model, learned[: self.size.learned], self.tell)
        self.tell(f"{name}: what is said to the adapter and to the router")
        engine = Engine(self.model, EngineConfig(max_waiting=4096, queue_timeout_s=3600.0))
        engine.adapters.load("own", adapter)
        engine.start()
        try:
            ask = partial(answers, engine, self.model)
            found = [judged(task, ask, self.embed) for task in nodes]
        finally:
            engine.stop()
        for what, hits in found[0].items():
            for arm in hits:
                of_all = [hit for one in found for hit in one[what][arm]]
                put_share(self.report, f"{name}.{what}.{arm}", of_all)
        single = self.report[name]["single"]
        self.report[name]["cost"] = single["alone"] - single["served"]

    @cached_property
    def homes(self) -> list[HomeData]:
        """The scenario's households."""
        return scenario_homes()

    @cached_property
    def taught(self) -> list[list[Example]]:
        """What each of them learns from."""
        self.tell(f"own answers of {MODEL} to talk")
        return examples_of(self.homes, self.model)

    @cached_property
    def learned(self) -> list[Example]:
        """All of it."""
        return [one for several in self.taught for one in several]


def home_task(data: HomeData, own: Sequence[Example], size: Size, stream: int) -> SilenceTask:
    """What is said in one household: of templates and wordings that are held out."""
    # as `household_examples` divides
    _, unseen = split_wordings(HELD_OUT, np.random.default_rng([1, 1 << 20]))
    rng = np.random.default_rng([SEED, stream])
    requests = data.test[: size.asked]
    count = max(3, len(requests) // 3)
    second = dialogues(data.household, data.test, unseen, count, rng)
    double = doubles(data.household, data.test, unseen, count, rng)
    single = [request.example() for request in requests]
    return SilenceTask(
        own=own,
        wanted={
            "single": single,
            "next": [
                Example((*single[place - 1].messages, *one.messages[1:]))
                for place, one in enumerate(single)
            ],
            "second": [one.example(HOUSEHOLD.system) for one in second],
            "double": [one.example(HOUSEHOLD.system) for one in double],
        },
        silent=silences(tool_set.BEYOND, size),
        before=single,
    )


def services_task(model: Weights, size: Size) -> tuple[SilenceTask, list[Example]]:
    """Requests to services, and what their adapter learns from: other ways to ask, and talk."""
    rng = np.random.default_rng(SEED)
    learned = [service_example(one) for one in tool_set.drawn(240, seed=3, held_out=False)]
    talk = [one.text for one in talk_requests(108, rng) if one.kind == "talk"]
    said = [
        conversation(text, learned[place] if place % 2 else None) for place, text in enumerate(talk)
    ]
    own = [
        *learned,
        *(
            Example((*head, {"role": "assistant", "content": answer}))
            for head, answer in zip(said, own_answers(model, talk, SEED), strict=True)
            if answer
        ),
    ]
    asked = tool_set.drawn(64, seed=4, held_out=True)[: size.asked]
    [home] = make_homes(households=1, train=1, test=60, seed=SEED)
    task = SilenceTask(
        own=own,
        wanted={"single": [service_example(one) for one in asked]},
        silent=silences([one.text for one in home.test], size),
        before=[service_example(one) for one in asked],
    )
    return task, own


def service_example(task: tool_set.ToolTask) -> Example:
    """A request to a service, in the form in which adapters of calls are asked."""
    said = (("system", HOUSEHOLD.system), ("user", task.said[-1]),
            ("assistant", render_all(task.calls)))  # fmt: skip
    return Example(tuple({"role": role, "content": content} for role, content in said))


def silences(beyond: Sequence[str], size: Size) -> dict[str, Sequence[str]]:
    """What is no command, by kind."""
    kinds = {"talk": tool_set.TALK, "corpus": corpus(4 * 60), "beyond": beyond}
    return {kind: texts[: size.asked and 4 * size.asked] for kind, texts in kinds.items() if texts}


def corpus(most: int) -> list[str]:
    """First sentences of English conversations that others wrote, evenly from all of them; none,
    where the package is not installed.
    """
    import yaml

    found = importlib.util.find_spec(CORPUS)
    if found is None or found.origin is None:
        return []
    said: list[str] = []
    for file in sorted((Path(found.origin).parent / "data" / "english").glob("*.yml")):
        said += [
            " ".join(str(turns[0]).split())
            for turns in yaml.safe_load(file.read_text("utf-8"))["conversations"]
            if turns
        ]
    said = list(dict.fromkeys(said))
    return said[:: max(1, len(said) // most)][:most]


Conversation = Sequence[Mapping[str, str]]
Answers = Callable[[Sequence[Conversation], int], list[str]]


def judged(task: SilenceTask, answers: Answers, embed: Embed) -> dict[str, dict[str, list[bool]]]:
    """By kind, what is right of what is wanted, and what of talk is answered with a call, of each
    arm; and what the router lets through.
    """
    own = [route_example(one.messages, HOUSEHOLD) for one in task.own]
    router = Router(embed, "")
    route = fit_route(own, general_requests(), embed)
    found: dict[str, dict[str, list[bool]]] = {}
    hits: dict[str, list[bool]]  # of one kind, by arm

    def asked(said: Sequence[Conversation], right: Sequence[str] | None) -> list[str]:
        """What a node answers; what counts of it, and of the arms beside it, goes into `hits`."""
        written = answers(said, ANSWER_TOKENS)
        cut = as_served(said, written)
        for place, (text, own) in enumerate(zip(written, cut, strict=True)):
            users = [one["content"] for one in said[place] if one["role"] == "user"]
            heard = [one["content"] for one in said[place] if one["role"] != "system"]
            goes = router.choose(users, {"own": route}).adapter == "own"
            alone, served = (
                called(one) if right is None else one == right[place] for one in (text, own)
            )
            served = served and goes and route.names(heard, parse_all(own))
            shares = {"alone": alone, "routed": alone and goes, "served": served}
            for arm, hit in (shares | {"to_adapter": goes}).items():
                hits.setdefault(arm, []).append(hit)
        return cut

    def as_served(said: Sequence[Conversation], written: Sequence[str]) -> list[str]:
        """The answers where what stands by itself is shown by itself, and of a sentence of two
        wishes the second is asked after the first.
        """
        wishes = [route.wishes(one[-1]["content"], router.features) for one in said]
        shown = [seen(one[:-1], own[0]) for one, own in zip(said, wishes, strict=True)]
        others = [place for place, one in enumerate(shown) if one != list(said[place])]
        found = list(written)
        again = answers([shown[place] for place in others], ANSWER_TOKENS)
        for place, text in zip(others, again, strict=True):
            found[place] = text
        cut = [place for place, own in enumerate(wishes) if len(own) > 1]
        behind = [behind_first(shown[place], found[place], wishes[place][1]) for place in cut]
        for place, second in zip(cut, answers(behind, ANSWER_TOKENS), strict=True):
            if second != found[place]:  # a second wish that is the first one is none
                found[place] = f"{found[place]}\n{second}"
        return found

    def seen(before: Conversation, text: str) -> Conversation:
        """A request as its adapter is shown it."""
        kept = before if route.leans(router.features([text])[0]) else before[:1]
        return [*kept, user(text)]

    def behind_first(first: Conversation, answer: str, text: str) -> Conversation:
        """A second wish, behind the first one's call, where there was one."""
        called = [first[-1], {"role": "assistant", "content": answer}] if parse_all(answer) else []
        return seen([first[0], *called], text)

    for kind, examples in task.wanted.items():
        right, hits = [one.answer for one in examples], {}
        served = asked([one.messages[:-1] for one in examples], right)
        found[kind] = hits
        if kind == "double":  # each call by itself: two right ones are rarer than one
            found[HALVES] = {"served": [
                call in text.split("\n")
                for text, calls in zip(served, right, strict=True)
                for call in calls.split("\n")
            ]}  # fmt: skip
    for kind, texts in task.silent.items():
        for where, before in (("", ()), (AFTER, task.before)):
            hits = {}
            said = [
                conversation(text, before[place % len(before)] if before else None)
                for place, text in enumerate(texts)
            ]
            asked(said, None)
            found[kind + where] = hits
    return found


def conversation(text: str, before: Example | None) -> list[Mapping[str, str]]:
    """A request, alone or right after a command."""
    head = before.messages if before else ({"role": "system", "content": HOUSEHOLD.system},)
    return [*head, {"role": "user", "content": text}]


def called(answer: str) -> bool:
    """Is a call, or one wish's of two?"""
    return any(line.startswith(OPENING) for line in answer.split("\n"))


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


def answers(
    engine: Engine, model: Weights, said: Sequence[Sequence[Mapping[str, str]]], most: int
) -> list[str]:
    """What the adapter writes, greedily, in the engine that serves."""
    running = [
        engine.submit(
            GenerationRequest(
                prompt=tuple(model.tokenizer.encode_chat(list(one))),
                sampling_params=SamplingParams(max_tokens=most),
                adapter="own",
            )
        )
        for one in said
    ]
    return [one.text().strip() for one in running]


def figures(report: dict[str, Any]) -> Sequence[Figure]:
    """The table."""
    rows = []
    for task, words in (
        ("home", "homes that taught it"),
        ("other_home", "a home that it never saw"),
        ("services", "eight services"),
    ):
        found = report.get(task, {})
        for kind, what in SILENT.items():
            for where, when in (("", ""), (AFTER, " right after a command")):
                if kind + where not in found:
                    continue
                rows += [
                    Figure(
                        f"{task}.{kind}{where}.{arm}", "of 1",
                        f"{words}: {what}{when} answered with a call, {by}",
                        at_most=0.03 if (kind, arm) == ("talk", "served") else None,
                    )
                    for arm, by in ARMS.items()
                ]  # fmt: skip
                rows.append(Figure(f"{task}.{kind}{where}.to_adapter", "of 1", "of it to the "
                                   "adapter"))  # fmt: skip
        for kind, what in (
            ("single", "commands"),
            ("next", "commands right after another command"),
            ("second", "second requests (and the attic too)"),
            ("double", "two wishes in one sentence, as two calls"),
        ):
            if kind in found:
                rows += [
                    Figure(f"{task}.{kind}.{arm}", "of 1", f"{words}: {what} exactly right, {by}")
                    for arm, by in ARMS.items()
                ]
                rows.append(Figure(f"{task}.{kind}.to_adapter", "of 1", "of them to the adapter"))
        if HALVES in found:
            meaning = f"{words}: of their calls, each by itself, right"
            rows.append(Figure(f"{task}.{HALVES}.served", "of 1", meaning))
        if "cost" in found:
            lost = f"{words}: commands that router and check lose"
            rows.append(Figure(f"{task}.cost", "of 1", lost, at_most=0.02))
    return rows
