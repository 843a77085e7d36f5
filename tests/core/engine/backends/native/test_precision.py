"""How exact the native engine is: keys and values of fewer bits, activations of more, beside
float32 over the same stored numbers.
"""

import numpy as np
import pytest
import torch

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.network import KV_TYPES
from quietchoir.core.engine.backends.select import select
from quietchoir.core.engine.block_pool import BLOCK_TOKENS
from quietchoir.core.engine.scheduler import Span
from quietchoir.core.errors import CacheError, ConfigError
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.native import (
    Oracle,
    TensorRunner,
    architecture,
    random_weights,
    sequence,
    step,
    whole,
)

pytestmark = pytest.mark.skipif(
    library.available() is not None, reason="the kernels were not compiled"
)

TOKENS = torch.randint(0, 131, (150,), generator=torch.Generator().manual_seed(5)).tolist()
HEADS = {
    "heads of 64": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 64},
    "a group and a part": {"head_dim": 80},
    "half a vector": {"head_dim": 16, "num_layers": 1},
    "ten share, no power of two": {"head_dim": 48, "num_heads": 10, "num_kv_heads": 1},
    "windows and capped scores": {
        **{"head_dim": 256, "num_heads": 2, "num_kv_heads": 1, "windows": (24, 0)},
        "attention_softcap": 20.0,
    },
}
# Mean and largest difference, of the logits' spread: integers may round the other way, and a step
# of four bits is sixteen times as wide. What they replace is 0.02 and 0.3 away at these sizes.
NEAR = {"q8": (2.5e-3, 0.1), "q4": (1.2e-2, 0.4)}


@pytest.mark.parametrize("changes", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("kv_type", NEAR)
def test_a_narrow_cache_gives_the_logits_of_the_plain_transformer_over_what_it_holds(
    changes, kv_type
):
    weights = random_weights(architecture(**changes, vocab_size=131))
    runner = TensorRunner(weights, 12, threads=2, kv_type=kv_type)
    found = runner.forward(step(whole(sequence(TOKENS, range(2, 12)))))
    wanted = Oracle(weights, kv_type).logits(TOKENS)
    off = (found - wanted).abs() / wanted.std()
    mean, largest = NEAR[kv_type]
    assert off.mean() < mean
    assert off.max() < largest


@pytest.fixture(scope="module", params=["q8", "q4"])
def narrow(request) -> tuple[Weights, TensorRunner]:
    shape = architecture(num_heads=6, num_kv_heads=2, head_dim=64, windows=(100, 0))
    weights = random_weights(shape, "Q4_0")
    return weights, TensorRunner(
        weights, 80, threads=2, kv_type=request.param, precision="balanced"
    )


def test_a_row_over_a_narrow_cache_has_the_same_bits_however_it_is_computed(narrow):
    """In one pass, in chunks, alone, among others, on other threads, over others' blocks."""
    weights, runner = narrow
    tokens = (TOKENS * 3)[:300]
    wanted = runner.forward(step(whole(sequence(tokens, range(19)))))
    own = sequence(tokens, range(30, 49))
    parts = [
        runner.forward(step(Span(own, start, stop - start, stop - start)))
        for start, stop in ((0, 1), (1, 18), (18, 150), (150, 299))
    ]
    others = [sequence(TOKENS[seed : seed + 30], [60 + 2 * seed, 61 + 2 * seed]) for seed in (0, 1)]
    last = runner.forward(step(*map(whole, others), Span(own, 299, 1, 1)))
    assert torch.equal(torch.cat([*parts, last[-1:]]), wanted)
    shared = sequence(tokens, [*range(10), *range(50, 59)])
    assert torch.equal(runner.forward(step(Span(shared, 160, 140, 140))), wanted[160:])
    kinds = {"kv_type": KV_TYPES[runner.network.kv_type], "precision": "balanced"}
    alone = TensorRunner(weights, 19, threads=1, **kinds)
    assert torch.equal(alone.forward(step(whole(sequence(tokens, range(19))))), wanted)


def test_what_a_narrow_block_held_before_does_not_show_through(narrow):
    _, runner = narrow
    own = sequence(TOKENS[:23], [70, 71])
    runner.network.cache[70:72] = 0
    wanted = runner.forward(step(whole(own)))
    runner.network.cache[70:72] = 0x7FC0  # scales that are no numbers
    assert torch.equal(runner.forward(step(whole(own))), wanted)


def test_a_number_that_is_not_finite_in_a_narrow_cache_reaches_whoever_reads_it_and_nobody_else(
    narrow,
):
    _, runner = narrow
    own, other = sequence(TOKENS[:40], [70, 71, 72]), sequence(TOKENS[:40], [73, 74, 75])
    runner.forward(step(whole(own, 0), whole(other, 0)))
    wanted = runner.forward(step(Span(other, 39, 1, 1)))
    runner.network.cache[71] = 0x7FC0
    found = runner.forward(step(Span(own, 39, 1, 1), Span(other, 39, 1, 1)))
    assert not torch.isfinite(found[0]).any()
    assert torch.equal(found[1:], wanted)


def test_saved_blocks_of_one_type_are_not_read_as_another(narrow):
    weights, runner = narrow
    runner.forward(step(whole(sequence(TOKENS[:32], [70, 71]), 0)))
    saved = runner.read_cache([70, 71])
    runner.write_cache([72, 73], saved)
    assert np.array_equal(runner.network.cache[72:74], runner.network.cache[70:72])
    before = runner.network.cache.copy()
    with pytest.raises(CacheError, match="this engine needs"):
        TensorRunner(weights, 2).write_cache([0, 1], saved)
    bad = bytearray(saved)
    bad[saved.index(b"\n") + 1 : saved.index(b"\n") + 3] = b"\xc0\x7f"
    with pytest.raises(CacheError, match="not finite"):
        runner.write_cache([72, 73], bytes(bad))
    assert np.array_equal(runner.network.cache, before)


@pytest.mark.parametrize(("kv_type", "bits"), [("bf16", 16.0), ("q8", 8.25), ("q4", 4.5)])
def test_a_cache_takes_the_bits_that_are_said_of_it_and_no_more(kv_type, bits):
    weights = random_weights(architecture(num_kv_heads=2, head_dim=64))
    runner = TensorRunner(weights, 7, kv_type=kv_type)
    assert runner.block_bytes * 8 == 2 * 2 * 2 * 64 * BLOCK_TOKENS * bits  # layers, heads, k and v
    assert runner.network.cache.nbytes == 7 * runner.block_bytes
    assert len(runner.read_cache([0, 1])) <= 2 * runner.block_bytes + 80


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q8_0"])
def test_exact_activations_give_the_logits_of_float32_and_balanced_ones_come_nearer(kind):
    shape = architecture(
        hidden_size=256, intermediate_size=512, num_heads=4, head_dim=64, num_layers=3
    )
    weights = random_weights(shape, kind)
    wanted = Oracle(weights).logits(TOKENS[:40])
    off = {}
    for precision in ("fast", "balanced", "exact"):
        runner = TensorRunner(weights, 3, threads=2, precision=precision)
        found = runner.forward(step(whole(sequence(TOKENS[:40], range(3)))))
        off[precision] = ((found - wanted).abs().mean() / wanted.std()).item()
    # a key may round to another bfloat16, as on plain numbers
    assert off["exact"] < 1e-3
    assert off["exact"] * 5 < off["balanced"] < off["fast"]


def test_a_mixtures_experts_take_exact_activations_too():
    shape = architecture(num_experts=8, experts_per_token=2)
    weights = random_weights(shape, "Q4_0")
    wanted = Oracle(weights).logits(TOKENS[:40])
    runner = TensorRunner(weights, 3, threads=2, precision="exact")
    found = runner.forward(step(whole(sequence(TOKENS[:40], range(3)))))
    assert ((found - wanted).abs().mean() / wanted.std()) < 1e-3


@pytest.mark.parametrize("setting", [{"kv_type": "q8"}, {"precision": "exact"}])
def test_what_the_compiled_kernels_alone_offer_is_refused_elsewhere(setting, monkeypatch):
    weights = random_weights(architecture())
    choice = select(weights, EngineConfig(**setting))
    assert next(iter(setting.values())) in choice.exactness
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    with pytest.raises(ConfigError, match="compiled kernels alone offer"):
        select(weights, EngineConfig(**setting))
