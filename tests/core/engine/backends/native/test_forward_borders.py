"""What the native engine refuses, and that a refusal writes nothing."""

import os
import random

import pytest
import torch

from quietchoir.core.engine.backends.backend import label
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.network import Network
from quietchoir.core.engine.backends.native.runner import supports
from quietchoir.core.engine.scheduler import Span
from quietchoir.core.errors import CacheError, EngineError
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.native import (
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

BLOCKS = 8
ROUNDS = 10_000 if os.environ.get("QUIETCHOIR_FUZZ") == "full" else 1_000


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(architecture(), "Q4_0")


@pytest.fixture
def runner(weights: Weights) -> TensorRunner:
    return TensorRunner(weights, BLOCKS, threads=2)


@pytest.mark.parametrize(
    ("tokens", "blocks", "start", "count", "sampled"),
    [
        ([1, 257], [0], 0, 2, 2),
        ([1, -1], [0], 0, 2, 2),
        ([1] * 3, [BLOCKS], 0, 3, 1),
        ([1] * 3, [-1], 0, 3, 1),
        ([1] * 17, [0], 0, 17, 1),
        ([1] * 3, [], 0, 3, 1),
        ([1] * 40, [0, 1], 31, 2, 1),
        ([1] * 3, [0], -1, 2, 1),
        ([1] * 3, [0], 0, 3, 4),
        ([1] * 3, [0], 0, 3, -1),
    ],
)
def test_a_step_that_would_leave_its_memory_is_refused_whole(
    runner, tokens, blocks, start, count, sampled
):
    good = sequence([5] * 20, [3, 4])
    runner.forward(step(whole(good)))
    before = runner.network.cache.copy()
    with pytest.raises(EngineError, match="refuses this step"):
        runner.forward(
            step(
                whole(sequence([7] * 20, [5, 6])),
                Span(sequence(tokens, blocks), start, count, sampled),
            )
        )
    assert (runner.network.cache == before).all()
    assert torch.isfinite(runner.forward(step(whole(good)))).all()


def test_an_empty_step_is_refused(runner):
    with pytest.raises(EngineError, match="0 rows in 0 spans"):
        runner.forward(step())


@pytest.mark.fuzz
def test_no_random_step_writes_outside_the_blocks_it_names(runner):
    chance, refused = random.Random(11), 0
    for _ in range(ROUNDS):
        before = runner.network.cache.copy()
        spans = []
        for _ in range(chance.randint(1, 4)):
            count, start = chance.randint(1, 40), chance.randint(-1, 60)
            blocks = [chance.randint(-1, BLOCKS) for _ in range(chance.randint(0, 6))]
            tokens = [chance.randint(0, 256)] * max(start + count, 1)
            spans.append(Span(sequence(tokens, blocks), start, count, chance.randint(0, count)))
        named = {block for span in spans for block in span.sequence.block_table}
        try:
            runner.forward(step(*spans))
        except EngineError:
            refused += 1
            assert (runner.network.cache == before).all()
        untouched = [block for block in range(BLOCKS) if block not in named]
        assert (runner.network.cache[untouched] == before[untouched]).all()
    assert 0.2 * ROUNDS < refused < 0.98 * ROUNDS


def test_saved_blocks_come_back_elsewhere_with_every_bit(runner):
    conversation = sequence([random.Random(1).randrange(257) for _ in range(40)], [0, 2, 4])
    runner.forward(step(Span(conversation, 0, 39, 0)))
    wanted = runner.forward(step(Span(conversation, 39, 1, 1)))
    runner.write_cache([7, 5, 3], runner.read_cache([0, 2, 4]))
    moved = sequence(conversation.tokens, [7, 5, 3])
    assert torch.equal(runner.forward(step(Span(moved, 39, 1, 1))), wanted)


def test_saved_blocks_of_another_kind_are_refused(runner, weights):
    saved = runner.read_cache([0, 1])
    other = TensorRunner(random_weights(architecture(num_layers=3)), BLOCKS, threads=1)
    before = runner.network.cache.copy()
    bad = bytearray(saved)
    bad[-2:] = b"\x80\x7f"  # infinity
    for blocks, data in (
        ([0, 1], other.read_cache([0, 1])),
        ([0], saved),
        ([0, 1], bytes(bad)),
        ([0], label("x", b"")),
    ):
        with pytest.raises(CacheError):
            runner.write_cache(blocks, data)
    assert (runner.network.cache == before).all()


def test_models_it_cannot_run_are_named():
    assert "heads of 8" in str(supports(random_weights(architecture(head_dim=8))))
    assert "activation" in str(supports(random_weights(architecture(activation="tanh"))))
    odd = random_weights(architecture(hidden_size=272, num_heads=4, head_dim=16), "F32")
    assert supports(odd) is None


def test_a_model_that_the_library_refuses_raises_and_leaves_nothing(weights):
    broken = dict(weights.tensors)
    broken["model.layers.1.mlp.up_proj.weight"] = broken["model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(EngineError, match=r"64 x 96, expected 96 x 64"):
        Network(Weights(weights.architecture, broken, weights.tokenizer, "x"), BLOCKS, 1)
    with pytest.raises(EngineError, match="head size 8"):
        Network(random_weights(architecture(head_dim=8)), BLOCKS, 1)


def test_a_closed_runner_says_so_and_may_be_closed_again(runner):
    runner.close()
    runner.close()
    with pytest.raises(EngineError, match="closed"):
        runner.forward(step(whole(sequence([1], [0]))))
