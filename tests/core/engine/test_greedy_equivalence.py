"""Whatever way a greedy answer takes through the engine, it is the answer of the plain way: alone,
whole, one token a step.

On the float32 path of a tiny model without near-ties, and, where the kernels were compiled, on the
native path of the real one.
"""

from typing import Any

import pytest

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.network import block_bytes
from quietchoir.core.engine.backends.native.runner import NativeRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import (
    TINY_BLOCK_BYTES,
    config,
    generate,
    tiny_adapter,
    tiny_weights,
)
from quietchoir.tests.fakes.engine_paths import (
    ASKED,
    WAYS,
    Make,
    few_words,
    plainly,
    requests,
    restored,
)


@pytest.fixture(scope="module")
def tiny() -> Weights:
    return tiny_weights()


@pytest.fixture(scope="module")
def make(tiny: Weights) -> Make:
    def made(blocks: int = 64, **changes: Any) -> Engine:
        engine = Engine(
            tiny, config(kv_bytes=blocks * TINY_BLOCK_BYTES, **changes), clock=lambda: 0.0
        )
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


QUESTIONS = (
    "Name three colours.",
    "Repeat: red, green, blue, red, green, blue, red, green.",
    "What is the capital of France?",
)


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_on_the_native_path_every_way_leads_to_the_same_text(smollm2, tmp_path):
    """Its rows are computed alike whoever shares the step, so the bound on logits is zero and
    near-ties do not matter.
    """
    runners = {blocks: NativeRunner(smollm2, blocks, threads=2) for blocks in (64, 14)}
    block = block_bytes(smollm2.architecture)

    def made(blocks: int = 64, **changes: Any) -> Engine:
        settings = EngineConfig(**{"context": 220, "kv_bytes": blocks * block} | changes)
        engine = Engine(smollm2, settings, backend=runners[blocks], clock=lambda: 0.0)
        assert engine.scheduler.pool.total == blocks
        return engine

    system = {"role": "system", "content": "You answer in one short line. " * 6}
    prompts = [
        tuple(smollm2.tokenizer.encode_chat([system, {"role": "user", "content": question}]))
        for question in QUESTIONS
    ]
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
