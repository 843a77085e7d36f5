"""What of this node's history trains, for one destination: the exact examples, and their bytes.

Knows consent, redaction and how an adapter is asked. Knows nothing of tokens, rounds or HTTP.
Always: what `show` prints and what a learner is given are made here, by the same call: `encoded` is
the bytes of the examples that train; equal requests are all learned or all held out.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..assistant.context import Message, as_trained
from ..errors import DataError
from ..prompt import PromptFormat
from ..toolcall import parse_all, render_all
from ..training.examples import Example, encode_jsonl
from .redactor import Redactor
from .store import HistoryStore, KeptExample

HELD_OUT = 0.2  # of the requests, by their digest
REASONS = ("not consented", "another form of answer", "not redactable")


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """An example as it trains, with the numbers of what it was made of: said twice, it is learned
    once.
    """

    ids: tuple[str, ...]
    example: Example
    held_out: bool


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What trains, and how much does not."""

    destination: str
    chosen: tuple[TrainingExample, ...]
    left_out: Mapping[str, int]  # by one of `REASONS`
    redacted: Mapping[str, int]  # what was taken out, by its kind

    @property
    def train(self) -> list[Example]:
        """Those that are learned."""
        return [one.example for one in self.chosen if not one.held_out]

    @property
    def test(self) -> list[Example]:
        """Those that only judge."""
        return [one.example for one in self.chosen if one.held_out]

    @property
    def ids(self) -> tuple[str, ...]:
        """Numbers of those that are learned."""
        return tuple(id for one in self.chosen if not one.held_out for id in one.ids)

    @property
    def encoded(self) -> bytes:
        """The bytes that train, and nothing else does: one JSON object a line."""
        return encode_jsonl(self.train)

    @property
    def digest(self) -> str:
        """Of those bytes and of the held-out ones; what is told of a training is this."""
        return hashlib.sha256(self.encoded + b"\0" + encode_jsonl(self.test)).hexdigest()


def training_set(
    store: HistoryStore, destination: str, prompt: PromptFormat, redactor: Redactor
) -> TrainingSet:
    """What may train `destination` now, shown to the model as `prompt` says."""
    left_out = dict.fromkeys(REASONS, 0)
    redacted: dict[str, int] = {}
    made: dict[tuple[tuple[str, str], ...], tuple[Example, list[str]]] = {}
    for kept in store.examples():
        if not kept.may_train(destination):
            left_out["not consented"] += 1
            continue
        if not fits(kept, prompt):
            left_out["another form of answer"] += 1
            continue
        try:
            example, found = redacted_example(kept, prompt, redactor)
        except DataError:
            left_out["not redactable"] += 1
            continue
        for kind, count in found.items():
            redacted[kind] = redacted.get(kind, 0) + count
        whole = tuple((one["role"], one["content"]) for one in example.messages)
        made.setdefault(whole, (example, []))[1].append(kept.id)
    chosen = [
        TrainingExample(tuple(ids), example, is_held_out(example)) for example, ids in made.values()
    ]
    return TrainingSet(destination, tuple(chosen), left_out, redacted)


def fits(kept: KeptExample, prompt: PromptFormat) -> bool:
    """Is the answer of the form that the adapter learns?"""
    called = bool(parse_all(kept.answer))
    return prompt.answers in ("any", "tool_call_or_text") or called == (
        prompt.answers == "tool_call"
    )


def redacted_example(
    kept: KeptExample, prompt: PromptFormat, redactor: Redactor
) -> tuple[Example, Mapping[str, int]]:
    """One example as the model is shown it, and what was taken out of it.

    Raises:
        DataError: something has to be taken out and cannot be.
    """
    shown = as_asked(kept.messages, prompt)
    done = redactor.example([content for _, content in shown], kept.answer)
    messages = [
        {"role": role, "content": text}
        for (role, _), text in zip(shown, done.texts[:-1], strict=True)
    ]
    return Example((*messages, {"role": "assistant", "content": done.texts[-1]})), done.found


def as_asked(messages: Sequence[Message], prompt: PromptFormat) -> list[tuple[str, str]]:
    """Role and text of each message, as they reach the model when the adapter serves."""
    trained = as_trained([one for one in messages if one.role != "system"], prompt)
    head = [("system", prompt.system)] if prompt.system else []
    texts = [render_all(one.calls) if one.calls else one.content for one in trained]
    return [*head, *((one.role, text) for one, text in zip(trained, texts, strict=True))]


def is_held_out(example: Example) -> bool:
    """Whether an example only judges: it follows from its request alone."""
    digest = hashlib.sha256(example.request.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * (1 << 32)
