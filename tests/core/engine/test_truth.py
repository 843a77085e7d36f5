"""Whatever way a greedy answer takes through the engine, it is the answer of the plain way: alone, whole, one token a step.

On the float32 path of a tiny model without near-ties, and, where the kernels were compiled, on the native path of the real one.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.kvcache import block_bytes
from quietchoir.core.engine.native import library
from quietchoir.core.engine.native.runner import NativeRunner
from quietchoir.core.engine.request import Constraint, GenerationRequest
from quietchoir.core.engine.scheduler import Limits
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes_engine import TINY_BLOCK_BYTES, config, drain, generate, tiny_adapter, tiny_weights

SYSTEM = tuple(b"You answer in one line, and repeat: one line. ")
ASKED = [(*SYSTEM, *ask) for ask in (b"one two", b"the cat sat on the mat, the cat sat", b"?", b"abc" * 30)]
MOST = 40
Make = Callable[..., Engine]


def requests(prompts: list[tuple[int, ...]], **settings: Any) -> list[GenerationRequest]:
    return [GenerationRequest(prompt=prompt, max_tokens=MOST, **settings) for prompt in prompts]


def few_words(adapter: str | None) -> list[GenerationRequest]:
    """What the tiny model is asked: it may choose among few tokens, so that it repeats itself and guesses come true."""
    return requests(ASKED, adapter=adapter, logit_bias=tuple((token, 25.0) for token in b"abcde "))


def plainly(make: Make, asked: list[GenerationRequest]) -> list[str]:
    """Each alone, its prompt in one chunk, no guesses, nothing shared."""
    return [generate(make(drafts=0, share_prefixes=False), [request])[0] for request in asked]


def batched(make: Make, asked: list[GenerationRequest]) -> list[str]:
    return generate(make(drafts=0, share_prefixes=False), asked)


def preempted(make: Make, asked: list[GenerationRequest]) -> list[str]:
    engine = make(drafts=0, share_prefixes=False, blocks=14)
    texts = generate(engine, asked)
    assert engine.stats().preemptions > 0
    return texts


def chunked(make: Make, asked: list[GenerationRequest]) -> list[str]:
    engine = make(drafts=0, share_prefixes=False)
    engine.scheduler.limits = Limits(step_rows=13, shared_rows=5, share_prefixes=False, drafts=0)
    texts = generate(engine, asked)
    assert engine.stats().steps > MOST + 20
    return texts


def shared(make: Make, asked: list[GenerationRequest]) -> list[str]:
    engine = make(drafts=0)
    generate(engine, asked[:1])
    texts = generate(engine, asked)
    assert engine.stats().reused_tokens >= 2 * len(asked) * 16
    return texts


def guessed(make: Make, asked: list[GenerationRequest]) -> list[str]:
    engine = make(share_prefixes=False)
    texts = generate(engine, asked)
    assert engine.stats().accepted > 0
    return texts


def restored(make: Make, asked: list[GenerationRequest], folder: Path) -> list[str]:
    first, second = make(drafts=0), make(drafts=0)
    generate(first, asked)
    first.conversations.save_latest(folder, 8)
    second.conversations.restore_latest(folder)
    texts = generate(second, asked)
    assert second.stats().reused_tokens > 0
    return texts


def told(make: Make, asked: list[GenerationRequest]) -> list[str]:
    """With log-probabilities beside it, and beside a neighbour that is drawn, penalised and in a form."""
    engine = make()
    neighbour = dataclasses.replace(
        asked[0], temperature=1.0, presence_penalty=1.0, logprobs=None, constraint=Constraint("regex", "[a-z ]*")
    )
    return generate(engine, [neighbour, *(dataclasses.replace(request, logprobs=2) for request in asked)])[1:]


def everything(make: Make, asked: list[GenerationRequest]) -> list[str]:
    """Little memory, small chunks, shared beginnings, guesses, and a neighbour that comes and goes."""
    engine = make(blocks=14)
    engine.scheduler.limits = Limits(step_rows=24, shared_rows=8, max_running=3)
    generations = [engine.submit(request) for request in asked]
    drain(engine, until=lambda: generations[0].completion_tokens > 3)
    leaving = engine.submit(asked[-1])
    drain(engine, until=lambda: generations[1].completion_tokens > 9)
    leaving.cancel()
    drain(engine)
    return [generation.text() for generation in generations]


WAYS: list[Callable[[Make, list[GenerationRequest]], list[str]]] = [
    batched,
    preempted,
    chunked,
    shared,
    guessed,
    told,
    everything,
]


@pytest.fixture(scope="module")
def tiny() -> Weights:
    return tiny_weights()


@pytest.fixture(scope="module")
def make(tiny: Weights) -> Make:
    def made(blocks: int = 64, **changes: Any) -> Engine:
        engine = Engine(tiny, config(kv_bytes=blocks * TINY_BLOCK_BYTES, **changes), clock=lambda: 0.0)
        engine.adapters.load("a", tiny_adapter(1))
        return engine

    return made


@pytest.fixture(scope="module")
def plain(make: Make) -> dict[str | None, list[str]]:
    """By adapter."""
    return {adapter: plainly(make, few_words(adapter)) for adapter in (None, "a")}


@pytest.mark.parametrize("adapter", [None, "a"])
@pytest.mark.parametrize("way", WAYS)
def test_on_the_float32_path_every_way_leads_to_the_same_text(make, plain, way, adapter):
    assert way(make, few_words(adapter)) == plain[adapter]
    assert len({*plain[None], *plain["a"]}) == 2 * len(ASKED)


def test_a_cache_from_disk_leads_to_the_same_text(make, plain, tmp_path):
    assert restored(make, few_words(None), tmp_path / "kept") == plain[None]


QUESTIONS = ("Name three colours.", "Repeat: red, green, blue, red, green, blue, red, green.", "What is the capital of France?")


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_on_the_native_path_every_way_leads_to_the_same_text(smollm2, tmp_path):
    """Its rows are computed alike whoever shares the step, so the bound on logits is zero and near-ties do not matter."""
    runners = {blocks: NativeRunner(smollm2, blocks, threads=2) for blocks in (64, 14)}
    block = block_bytes(smollm2.architecture, torch.bfloat16)

    def made(blocks: int = 64, **changes: Any) -> Engine:
        settings = EngineConfig(**{"context": 220, "kv_bytes": blocks * block} | changes)
        engine = Engine(smollm2, settings, model=runners[blocks], clock=lambda: 0.0)
        assert engine.scheduler.pool.total == blocks
        return engine

    system = {"role": "system", "content": "You answer in one short line. " * 6}
    prompts = [tuple(smollm2.tokenizer.encode_chat([system, {"role": "user", "content": question}])) for question in QUESTIONS]
    endless = tuple((token, -100.0) for token in smollm2.tokenizer.stop_tokens)
    asked = requests(prompts, logit_bias=endless)
    expected = plainly(made, asked)
    for way in WAYS:
        assert way(made, asked) == expected, way.__name__
    assert restored(made, asked, tmp_path / "kept") == expected
    seeded = requests(prompts, temperature=0.8, top_p=0.95, seed=5)
    engine = made()
    drawn = [generate(engine, seeded) for _ in range(2)]
    assert drawn[0] == drawn[1] == plainly(made, seeded)
    assert engine.stats().reused_tokens > 0
