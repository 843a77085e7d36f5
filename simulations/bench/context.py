"""The suite `context`: what of a long conversation reaches the model, and what it makes of it.

Knows conversations with a planted fact (`planted.py`), the product's window and engine, and the
usual way beside it: keep the newest tokens. Knows which figures are promised and what they aim at.
Always: both arms get the same conversation and the same budget, that of a node's default context;
`in_prompt` asks whether the fact's value stands in the prompt, whatever the model makes of it;
`recall` asks the model, greedily; `covered` asks for all that was said, and counts which of twelve
facts stand in the prompt, of the product's way, of the same as if the model's notes were good
enough (`noted`), and of truncation. The figures at the top are those of `planted.HELD_OUT`, on
which nothing was tuned; `tuned` has those of what it was tuned on, `german` those of another
language, on which nothing was tuned either.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...core.assistant.condenser import FILE, Condenser
from ...core.assistant.context import ContextWindow, Message
from ...core.assistant.passages import PassageRanker
from ...core.config import EngineConfig
from ...core.engine.embedder import SentenceEmbedder
from ...core.engine.engine import Engine
from ...core.engine.request import GenerationRequest
from ...core.engine.sampling.params import SamplingParams
from ...core.models import weights
from ...core.models.generation_config import UNSAID
from ...core.models.hub import catalog
from ...core.models.tokenizer.tokenizer import Tokenizer
from ...core.models.weights import Weights
from .figures import Figure, Keep, has, nobody, put_share
from .parts import run_parts
from .planted import (
    GERMAN,
    HELD_OUT,
    TUNED,
    Kind,
    PlantedConversation,
    PlantedSet,
    conversation,
    survey,
)

MODEL, EMBEDDING = "smollm2-135m-instruct", "minilm-l6-v2"
CONTEXT = 2048  # tokens of a node by default
BUDGET = CONTEXT - CONTEXT // 4  # of them a prompt's, as the assistant divides them
WHOLE = 8192  # tokens that the model was made for
SURVEYS = {"4k": 4000}
DEPTHS = {"1k": 1000, "2k": 2000, "4k": 4000, "8k": 8000, "16k": 16000}
KINDS: tuple[Kind, ...] = ("dialogue", "document")
ANSWER_TOKENS = 48
PATIENCE_S = 3600.0  # all questions are asked at once
# What `--only` may name, with about how long it takes on two quiet cores.
PARTS = {
    "in_prompt": "does the fact stand in the prompt; 6 min",
    "recall": "does the model tell it; 7 min",
    "time": "what choosing takes, beside reading the prompt; 1 min",
    "loops": "everyday answers that end in a repetition; 1 min",
    "survey": "facts in the prompt where all is asked for, and the model's notes; 1 min",
}
TALK_TOKENS = 400
# Of `in_prompt.ours`; truncation is the control: where it has the fact too, nothing is shown.
AIMS = {"8k": 0.95, "16k": 0.9}
TRUNCATED = 0.3
ADDED_SHARE = 0.1
EVERYDAY = (
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What is the capital of France?",
    "Write a short poem about autumn.",
    "How can I fall asleep faster?",
    "What should I cook with potatoes and eggs?",
    "Explain photosynthesis to a child.",
    "Give me tips for a job interview.",
    "What is the difference between a virus and a bacterium?",
    "Tell me a story about a fox.",
    "How do I remove a coffee stain from a shirt?",
    "What are the benefits of walking?",
    "Who was Marie Curie?",
    "How does a refrigerator work?",
    "Suggest a name for my cat.",
    "Write an email that cancels a meeting.",
    "What is inflation?",
    "How do I learn to play the guitar?",
    "What can I do on a rainy day with children?",
    "Explain how to change a bicycle tyre.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextScale:
    """How much is measured."""

    cases: int = 24  # conversations of a kind and depth; of sets but the first half as many
    answered: int = 10  # of them
    timed: int = 5
    surveyed: int = 3
    questions: int = len(EVERYDAY)
    depths: Sequence[str] = tuple(DEPTHS)


QUICK = ContextScale(cases=2, answered=1, timed=1, surveyed=1, questions=2, depths=("1k", "4k"))


def measure(
    *, quick: bool, tell: Callable[[str], None], keep: Keep = nobody, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Run everything, or the named `PARTS`.

    Args:
        quick: a case or two of each kind, to see that it runs.
        tell: hears what is being measured.
        keep: gets the report after each depth of a part.
    """
    scale = QUICK if quick else ContextScale()
    report: dict[str, Any] = {
        "what": f"prompts of {BUDGET} tokens for conversations with a fact at a depth, "
        f"{scale.cases} dialogues and {scale.cases} documents each, half as many of what it was "
        f"tuned on, and in German; of the first {scale.answered} and {scale.answered} are answered",
        "seed": "names of the cells",
        "repeats": {"cases": 2 * scale.cases, "answers": 2 * scale.answered, "times": scale.timed},
        "clock": "processor seconds of all threads",
        "spread": {},
        "exact": True,
    }
    loaded = weights.load(catalog.find(MODEL))
    embedder = SentenceEmbedder.load(catalog.find(EMBEDDING))
    config = EngineConfig(context=WHOLE, share_prefixes=False, queue_timeout_s=PATIENCE_S)
    engine = Engine(loaded, config)
    engine.start()
    try:
        bench = ContextBench(scale, loaded, embedder, engine, report, tell, keep)
        parts = {
            "in_prompt": bench.in_prompt,
            "recall": bench.recall,
            "time": bench.time,
            "loops": bench.loops,
            "survey": bench.survey,
        }
        run_parts(parts, only, report, tell, keep)
    finally:
        engine.stop()
    return report


@dataclass(frozen=True, slots=True)
class ContextBench:
    """The parts: one model, one report."""

    scale: ContextScale
    loaded: Weights
    embedder: SentenceEmbedder
    engine: Engine
    report: dict[str, Any]
    tell: Callable[[str], None]
    keep: Keep

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.loaded.tokenizer

    def in_prompt(self) -> None:
        """Of each set and depth, where the fact stands."""
        windows = {"ours": Settled(self.tokenizer, self.embedder), "words": Settled(self.tokenizer)}
        half = self.scale.cases // 2
        sets = ((HELD_OUT, "", 2 * half), (TUNED, "tuned.", half), (GERMAN, "german.", half))
        for material, prefix, count in sets:
            for name in self.scale.depths:
                self.tell(f"{material.name}: a fact {name} tokens back")
                asked = planted(material, DEPTHS[name], count, self.tokenizer)
                in_prompt(asked, f"{prefix}in_prompt", name, windows, self.tokenizer, self.report)
                self.keep(self.report)

    def recall(self) -> None:
        """Of each depth, what the model answers."""
        window = Settled(self.tokenizer, self.embedder)
        for name in self.scale.depths:
            self.tell(f"answers to what was said {name} tokens back")
            asked = planted(HELD_OUT, DEPTHS[name], self.scale.answered, self.tokenizer)
            recall(asked, name, window, self.engine, self.tokenizer, self.report)
            self.keep(self.report)

    def time(self) -> None:
        """Of each depth, what choosing takes."""
        for name in self.scale.depths:
            self.tell(f"time, {name} tokens back")
            added_share(
                name, DEPTHS[name], self.scale.timed, self.embedder, self.engine, self.tokenizer,
                self.report,
            )  # fmt: skip
            self.keep(self.report)

    def loops(self) -> None:
        """Everyday questions."""
        questions = EVERYDAY[: self.scale.questions]
        self.report["loops"] = loops(self.engine, self.tokenizer, questions)

    def survey(self) -> None:
        """Where all that was said is asked for."""
        for name, depth in SURVEYS.items():
            self.tell(f"all of {name} is asked for")
            covered(name, depth, self.scale.surveyed, self.engine, self.loaded, self.report)


class Settled:
    """The product's window, with the quiet moments in which it reads what passages mean."""

    def __init__(self, tokenizer: Tokenizer, embedder: SentenceEmbedder | None = None) -> None:
        self.tokenizer = tokenizer
        self.ranker = PassageRanker(lambda: embedder)
        self.window = ContextWindow(tokenizer.encode, self.ranker)

    def first(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt of a conversation as it comes."""
        return self.window.fit(messages, self.tokenizer, BUDGET).tokens

    def fit(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt once nobody has waited for a while."""
        self.first(messages)
        while self.ranker.settle():
            pass
        return self.first(messages)


Asked = Sequence[tuple[Kind, PlantedConversation]]


def planted(material: PlantedSet, depth: int, cases: int, tokenizer: Tokenizer) -> Asked:
    """So many conversations of each kind."""
    return [
        (kind, conversation(material, kind, depth, number, counter(tokenizer)))
        for kind in KINDS
        for number in range(cases)
    ]


def in_prompt(
    asked: Asked,
    place: str,
    name: str,
    windows: "dict[str, Settled]",
    tokenizer: Tokenizer,
    report: dict[str, Any],
) -> None:
    """Share of conversations whose fact stands in the prompt, of each arm, and by kind."""
    for arm in (*windows, "truncation"):
        found: dict[Kind, list[bool]] = {kind: [] for kind in KINDS}
        for kind, one in asked:
            prompt = (
                truncated(one.messages, tokenizer)
                if arm == "truncation"
                else windows[arm].fit(one.messages)
            )
            found[kind].append(one.value in tokenizer.decode(prompt))
        for kind, hits in found.items():
            put_share(report, f"{place}.by_kind.{kind}.{arm}.{name}", hits)
        put_share(report, f"{place}.{arm}.{name}", [hit for hits in found.values() for hit in hits])


def recall(
    conversations: Asked,
    name: str,
    window: "Settled",
    engine: Engine,
    tokenizer: Tokenizer,
    report: dict[str, Any],
) -> None:
    """Share of conversations whose question the model answers, of each arm."""
    asked = [one for _, one in conversations]
    prompts = {
        "ours": [window.fit(one.messages) for one in asked],
        "truncation": [truncated(one.messages, tokenizer) for one in asked],
        "whole": [encoded(one.messages, tokenizer) for one in asked],
    }
    for arm, texts in prompts.items():
        if max(map(len, texts)) > WHOLE - ANSWER_TOKENS:
            report.setdefault("recall", {}).setdefault(arm, {})[name] = "more than the model holds"
            continue
        said = answers(engine, texts, max_tokens=ANSWER_TOKENS)
        hits = [one.value.lower() in text.lower() for one, text in zip(asked, said, strict=True)]
        put_share(report, f"recall.{arm}.{name}", hits)


def added_share(
    name: str,
    depth: int,
    repeats: int,
    embedder: SentenceEmbedder,
    engine: Engine,
    tokenizer: Tokenizer,
    report: dict[str, Any],
) -> None:
    """What choosing takes, as a share of what reading the chosen prompt takes: of a conversation
    that was never seen (its words decide), and of one whose earlier turns were.
    """
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for number in range(repeats):
        one = conversation(TUNED, "dialogue", depth, number, counter(tokenizer))
        for arm in found:
            window = Settled(tokenizer, embedder)
            if arm == "warm":
                window.fit(one.messages[:-2])
            before = time.process_time()
            prompt = window.first(one.messages)
            choosing = time.process_time() - before
            before = time.process_time()
            answers(engine, [prompt], max_tokens=1)
            found[arm].append(choosing / (time.process_time() - before))
    for arm, shares in found.items():
        medians = report.setdefault("added_share", {}).setdefault(arm, {})
        medians[name] = sorted(shares)[len(shares) // 2]
        report["spread"][f"added_share.{arm}.{name}"] = [min(shares), max(shares)]


def covered(
    name: str, size: int, cases: int, engine: Engine, loaded: Weights, report: dict[str, Any]
) -> None:
    """Share of facts in the prompt where all that was said is asked for, of each arm; and how well
    the model takes notes, which decides whether the product uses them.
    """
    tokenizer = loaded.tokenizer
    arms: dict[str, list[float]] = {"ours": [], "noted": [], "truncation": []}
    with tempfile.TemporaryDirectory() as home:
        tried = Condenser(engine, tokenizer, home=Path(home), model=loaded.digest)
        report["condensing"] = asdict(skill := tried.try_out()) | {"used": skill.is_enough}
        good = {loaded.digest: asdict(replace(skill, facts=1.0, wrong=0.0, length=0.1))}
        (Path(home) / FILE).write_text(json.dumps(good))
        noting = Condenser(engine, tokenizer, home=Path(home), model=loaded.digest)
        windows = {
            "ours": ContextWindow(tokenizer.encode, condenser=noting if skill.is_enough else None),
            "noted": ContextWindow(tokenizer.encode, condenser=noting),
        }
        for kind in KINDS:
            for number in range(cases):
                one = survey(HELD_OUT, kind, size, number, counter(tokenizer))
                prompts = {"truncation": truncated(one.messages, tokenizer)}
                for arm, window in windows.items():
                    window.fit(one.messages, tokenizer, BUDGET)
                    while noting.settle():
                        pass
                    prompts[arm] = window.fit(one.messages, tokenizer, BUDGET).tokens
                for arm, prompt in prompts.items():
                    text = tokenizer.decode(prompt)
                    arms[arm].append(sum(value in text for value in one.values) / len(one.values))
    for arm, shares in arms.items():
        report.setdefault("covered", {}).setdefault(arm, {})[name] = sum(shares) / len(shares)
        report["spread"][f"covered.{arm}.{name}"] = [min(shares), max(shares)]


def loops(engine: Engine, tokenizer: Tokenizer, questions: Sequence[str]) -> dict[str, Any]:
    """How many answers end in a loop: greedily, and as a node draws them, without its guard and
    with it. Whether one does is judged here by another rule than the guard's.
    """
    said = (catalog.sampling(MODEL).over(UNSAID)).given()
    arms = {
        "greedy": SamplingParams(max_tokens=TALK_TOKENS),
        "unguarded": SamplingParams(max_tokens=TALK_TOKENS, **said | {"loop_guard": False}),  # type: ignore[arg-type]  # fields by their names
        "ours": SamplingParams(max_tokens=TALK_TOKENS, **said),  # type: ignore[arg-type]
        "guarded_greedy": SamplingParams(max_tokens=TALK_TOKENS, loop_guard=True),
    }
    found: dict[str, Any] = {"questions": len(questions)}
    for arm, params in arms.items():
        running = [
            engine.submit(
                GenerationRequest(
                    prompt=encoded([Message("user", question)], tokenizer),
                    sampling_params=replace(params, seed=number),
                )
            )
            for number, question in enumerate(questions)
        ]
        texts = [generation.text() for generation in running]
        found[arm] = sum(map(is_loop, texts))
        found[f"{arm}_ended"] = sum(one.finish_reason == "repetition" for one in running)
        found[f"{arm}_tokens"] = sum(one.completion_tokens for one in running) / len(running)
    return found


def is_loop(text: str, last: int = 60) -> bool:
    """Do the last words of a text mostly repeat each other?"""
    words = text.split()[-last:]
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) == last and len(set(trigrams)) < 0.5 * len(trigrams)


def answers(engine: Engine, prompts: Sequence[tuple[int, ...]], *, max_tokens: int) -> list[str]:
    """What the model says to each, greedily, all asked at once."""
    params = SamplingParams(max_tokens=max_tokens)
    running = [
        engine.submit(GenerationRequest(prompt=prompt, sampling_params=params))
        for prompt in prompts
    ]
    return [one.text() for one in running]


def truncated(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The usual way, at its best: the newest whole messages, and the end of the one before them."""
    kept = len(messages) - 1
    while kept and len(encoded(messages[kept - 1 :], tokenizer)) <= BUDGET:
        kept -= 1
    known = encoded(messages[kept:], tokenizer)
    cut = max(kept - 1, 0) if len(known) <= BUDGET else kept
    low, high = 0, len(messages[cut].content)
    while low < high:  # as many of the message's last characters as fit
        middle = (low + high) // 2
        if len(encoded(ended(messages, cut, middle), tokenizer)) <= BUDGET:
            high = middle
        else:
            low = middle + 1
    return encoded(ended(messages, cut, low), tokenizer)


def ended(messages: Sequence[Message], cut: int, start: int) -> list[Message]:
    """Messages from `cut` on, that one without its first characters."""
    first = messages[cut]
    return [Message(first.role, first.content[start:]), *messages[cut + 1 :]]


def encoded(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[int, ...]:
    """All of a conversation."""
    return tuple(tokenizer.encode_chat([message.for_template() for message in messages]))


def counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """Counts tokens."""
    return lambda text: len(tokenizer.encode(text))


def figures(report: dict[str, Any]) -> Sequence[Figure]:
    """The rows of the table, of the parts that were measured."""
    depths = [name for name in DEPTHS if has(report, f"in_prompt.ours.{name}")]
    rows = []
    for place, title in (("", "held out"), ("tuned.", "tuned on"), ("german.", "in German")):
        for depth in depths:
            for arm in ("ours", "words", "truncation"):
                aim = AIMS.get(depth) if arm == "ours" else None
                most = TRUNCATED if arm == "truncation" and depth in AIMS else None
                key = f"{place}in_prompt.{arm}.{depth}"
                meaning = f"fact {depth} back stands in the prompt, {title}: {arm}"
                rows.append(Figure(key, "share", meaning, at_least=aim, at_most=most))
    for depth in report.get("recall", {}).get("ours", {}):
        for arm in ("ours", "truncation", "whole"):
            key = f"recall.{arm}.{depth}"
            rows.append(Figure(key, "share", f"model answers, fact {depth} back: {arm}"))
    for depth in report.get("added_share", {}).get("warm", {}):
        key = f"added_share.warm.{depth}"
        words = f"choosing, of the time to read the prompt, {depth}: earlier turns known"
        rows.append(Figure(key, "share", words, at_most=ADDED_SHARE))
        key = f"added_share.cold.{depth}"
        rows.append(Figure(key, "share", f"the same, {depth}: nothing known"))
    for name in report.get("covered", {}).get("ours", {}):
        for arm in ("ours", "noted", "truncation"):
            words = f"facts in the prompt where all of {name} is asked for: {arm}"
            rows.append(Figure(f"covered.{arm}.{name}", "share", words))
    if "condensing" in report:
        for key, words in (
            ("facts", "facts told"),
            ("wrong", "told wrongly"),
            ("length", "length"),
        ):
            rows.append(
                Figure(f"condensing.{key}", "share", f"the model's notes on trial: {words}")
            )
    if "loops" not in report:
        return rows
    count = report["loops"]["questions"]
    for arm, words in (
        ("greedy", "greedy"),
        ("guarded_greedy", "greedy, with the guard"),
        ("unguarded", "as recommended, without the guard"),
    ):
        rows.append(Figure(f"loops.{arm}", "answers", f"of {count} that end in a loop: {words}"))
    ours = f"of {count} that end in a loop: as a node answers"
    ended = f"of {count} that the guard ended, by its own rule"
    return [
        *rows,
        Figure("loops.ours", "answers", ours, at_most=0),
        Figure("loops.ours_ended", "answers", ended),
    ]
