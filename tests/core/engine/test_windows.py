"""What windows have left behind is given back, and nothing that is said changes: with shared
beginnings, branches, preemption, chunks, and conversations from disk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.network import CacheWindows, block_bytes
from quietchoir.core.engine.backends.native.runner import NativeRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.models.checkpoint import from_hf
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import byte_tokenizer, drain, generate
from quietchoir.tests.fakes.engine_paths import WAYS, Make, few_words, plainly, requests, restored
from quietchoir.tests.fakes.models import make_model

pytestmark = pytest.mark.skipif(library.available() is not None, reason="no compiled kernels")
WINDOW = 12


class Spoiler:
    """Windows whose memory is not given back but spoiled: whoever looks at it again says nothing
    that is finite.
    """

    def __init__(self, inner: CacheWindows, runner: NativeRunner) -> None:
        self.tokens, self.released = inner.tokens, 0
        self._cache, self._parts = runner.network.cache, inner._parts

    def release(self, blocks: Sequence[int]) -> None:
        self.released += len(blocks)
        for block in blocks:
            for first, last in self._parts:
                self._cache[block, first // 2 : last // 2] = 0x7FC0


NEAR = ["sliding_attention"]
KINDS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "num_hidden_layers": 4,
        "layer_types": [*NEAR, *NEAR, "full_attention", *NEAR],
        "sliding_window": WINDOW,
    },
    "llama4": {"attention_chunk_size": WINDOW},  # its rows see runs of so many
}


@pytest.fixture(scope="module", params=list(KINDS))
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("windows")
    made = make_model(request.param, vocab_size=byte_tokenizer().size, **KINDS[request.param])
    made.save_pretrained(folder)
    architecture = from_hf.read_architecture(folder)
    tensors = from_hf.name_tensors(folder, architecture)
    return Weights(architecture, tensors, byte_tokenizer(), digest="d" * 64)


@pytest.fixture(scope="module")
def engines(windowed: Weights) -> tuple[Make, list[Spoiler]]:
    spoilers: list[Spoiler] = []
    block = block_bytes(windowed.architecture)
    near = [
        at for at in range(windowed.architecture.num_layers) if windowed.architecture.window(at)
    ]
    assert 0 < len(near) < windowed.architecture.num_layers

    def made(blocks: int = 64, *, whole: bool = False, **changes: Any) -> Engine:
        runner = NativeRunner(windowed, blocks, threads=2)
        assert runner.windows is not None and runner.windows.tokens == WINDOW
        if whole:
            runner.windows = None
        else:
            spoilers.append(Spoiler(runner.windows, runner))
            runner.windows = spoilers[-1]  # type: ignore[assignment]
        settings = EngineConfig(**{"context": 220, "kv_bytes": blocks * block} | changes)
        return Engine(windowed, settings, backend=runner, clock=lambda: 0.0)

    return made, spoilers


ASKS = few_words(None)


@pytest.fixture(scope="module")
def plain(engines: tuple[Make, list[Spoiler]]) -> list[str]:
    make, _ = engines
    return plainly(lambda **changes: make(whole=True, **changes), ASKS)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_leads_to_the_text_of_the_plain_one(
    engines: tuple[Make, list[Spoiler]], plain: list[str], way: Any
) -> None:
    make, spoilers = engines
    before = sum(one.released for one in spoilers)
    assert way(make, ASKS) == plain
    assert sum(one.released for one in spoilers) > before


def test_a_conversation_goes_on_and_a_branch_of_its_middle_is_computed_anew(
    engines: tuple[Make, list[Spoiler]],
) -> None:
    make, _ = engines
    engine, begin = make(), tuple(b"You answer in one line, and repeat: one line, to its end. ")
    generation = engine.submit(requests([begin])[0])
    drain(engine)
    said = (*begin, *(delta.token for delta in generation if delta.token is not None))
    on, branch, early = (*said, *b"and on"), (*said[:70], *b"or not"), (*said[:25], *b"or so")

    def plain_way(**changes: Any) -> Engine:
        return make(whole=True, **changes)

    for asked, reused in ((on, (len(said) - 1) // 16 * 16), (branch, 32), (early, 16)):
        before = engine.stats().reused_tokens
        assert generate(engine, requests([asked])) == plainly(plain_way, requests([asked]))
        assert engine.stats().reused_tokens - before == reused


def test_a_cache_from_disk_leads_to_the_same_text_and_knows_what_it_lacks(
    engines: tuple[Make, list[Spoiler]], plain: list[str], tmp_path: Path
) -> None:
    make, _ = engines
    assert restored(make, ASKS, tmp_path / "kept") == plain


def test_whole_pages_of_windowed_layers_alone_go_back_to_the_system() -> None:
    part = 1 << 15  # bytes of a layer
    cache = np.full((40, 4 * part // 2), 7, np.uint16)
    layers = cache.reshape(40, 4, part // 2)
    CacheWindows(WINDOW, cache, [(0, part), (part, 2 * part), (3 * part, 4 * part)]).release([5, 6])
    assert (layers[[5, 6], 2] == 7).all() and (layers[[4, 7]] == 7).all()
    assert (layers[5, 0:2] == 0).sum() >= (2 * part // 4096 - 1) * 2048
    assert (layers[6, 3] == 0).any()
