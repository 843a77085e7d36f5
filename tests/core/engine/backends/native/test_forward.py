"""Whole forward passes of the native engine beside the plain float32 transformer, on networks of
odd sizes.
"""

import pytest
import torch

from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.runner import supports
from quietchoir.core.engine.scheduler import Span
from quietchoir.core.models.quant.tensor import QuantTensor
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

BLOCKS = 48
# Layers, group sizes, head sizes and widths that no kernel was written for.
SIZES = {
    "usual": {},
    "one head each": {"num_kv_heads": 4, "num_layers": 3},
    "one key head": {"num_heads": 5, "num_kv_heads": 1, "hidden_size": 80},
    "seven share": {"num_heads": 14, "num_kv_heads": 2, "num_layers": 1},
    "many share": {"num_heads": 40, "num_kv_heads": 1, "num_layers": 1},
    "odd widths": {"hidden_size": 50, "intermediate_size": 75, "vocab_size": 131},
    "one tile and a bit": {"hidden_size": 17, "intermediate_size": 33},
    "heads of 48": {"head_dim": 48, "num_layers": 5},
    "heads of 80": {"head_dim": 80},
    "heads of 128": {"head_dim": 128, "num_heads": 2, "num_kv_heads": 1},
    "heads of 256": {"head_dim": 256, "num_heads": 2, "num_kv_heads": 1},
}
MIXTRAL = {"num_experts": 8, "experts_per_token": 2}
# heads of two sizes, upper layers that read keys of lower ones, numbers beside the stream
DIFFERING = {
    "num_layers": 5,
    "qk_norm": True,
    "post_norms": True,
    "activation": "gelu_tanh",
    "attention_scale": 0.3,
    "intermediate_size": 128,
    "head_dim": 32,
    "head_dims": (16, 32, 16, 16, 32),
    "kv_heads": (2, 1, 2, 2, 1),
    "inner_sizes": (96, 96, 96, 128, 128),
    "kv_sources": (0, 1, 2, 2, 1),
    "windows": (24, 0, 24, 24, 0),
    "rope_bases": (10000.0, 1000000.0, 10000.0, 10000.0, 1000000.0),
    "rope_theta": 1000000.0,
    "rope_factors": (1.0,) * 4 + (1e30,) * 12,
    "value_norm": True,
    "per_layer_size": 32,
    "layer_scales": True,
    "logit_softcap": 20.0,
}
STREAMS = {
    "num_layers": 4,
    "qk_norm": True,
    "post_norms": True,
    "activation": "gelu_tanh",
    "attention_scale": 0.3,
    "windows": (24, 0, 24, 0),
    "rope_bases": (10000.0, 1000000.0, 10000.0, 1000000.0),
    "rope_theta": 1000000.0,
    "kv_sources": (0, 1, 0, 1),
    "value_norm": True,
    "per_layer_size": 32,
    "per_layer_tokens": 200,
    "streams": 4,
    "laurel_rank": 32,
    "gate_cutoffs": (0.8, 0.5, float("-inf"), float("-inf")),
    "logit_softcap": 20.0,
}
FAMILIES = {
    "Qwen2": {"biases": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    "Qwen3": {"qk_norm": True, "head_dim": 32},
    "Gemma 3": {
        "num_layers": 3,
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "embedding_scale": 8.0,
        "windows": (24, 0, 24),
        "rope_bases": (10000.0, 1000000.0, 10000.0),
        "rope_theta": 1000000.0,
        "rope_factors": (8.0,) * 8,
        "attention_scale": 0.3,
    },
    "Gemma 3, odd widths": {
        "qk_norm": True,
        "post_norms": True,
        "hidden_size": 50,
        "intermediate_size": 75,
        "windows": (1, 5),
    },
    "SmolLM3": {"rope_bases": (10000.0, 0.0)},
    "Phi-3": {"rope_factors": tuple(1.0 + i / 4 for i in range(8)), "rope_magnitude": 1.2},
    "Phi-4-mini": {
        "rope_dim": 12,
        "rope_factors": tuple(1.0 + i / 4 for i in range(6)),
        "rope_magnitude": 1.2,
    },
    "Granite": {"residual_scale": 0.22, "logit_scale": 0.125, "embedding_scale": 12.0},
    "OLMo 2": {"pre_norms": False, "post_norms": True, "qk_norm": True, "wide_qk_norm": True},
    "OLMo 2, odd widths": {
        "pre_norms": False,
        "post_norms": True,
        "qk_norm": True,
        "wide_qk_norm": True,
        "hidden_size": 50,
        "intermediate_size": 75,
        "residual_scale": 0.5,
    },
    "Mixtral": MIXTRAL,
    "Gemma 3n": STREAMS,
    "Gemma 4": DIFFERING,
    "Nemotron 3's experts": {
        "num_experts": 6,
        "experts_per_token": 2,
        "gated": False,
        "activation": "relu2",
        "routing": "sigmoid",
        "routing_bias": True,
        "shared_size": 48,
        "hidden_size": 50,
    },
    "Qwen3-MoE, odd widths": {
        "num_experts": 21,
        "experts_per_token": 3,
        "expert_norm": False,
        "qk_norm": True,
        "hidden_size": 50,
        "intermediate_size": 23,
        "residual_scale": 0.5,
    },
}


def tokens_of(weights: Weights, count: int, seed: int = 5) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, weights.architecture.vocab_size, (count,), generator=generator).tolist()


def assert_near(found: torch.Tensor, wanted: torch.Tensor, bound: float) -> None:
    """The largest difference stays below `bound` of the logits' own spread."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < bound * wanted.std(), (
        found - wanted
    ).abs().max() / wanted.std()


@pytest.mark.parametrize("changes", [*SIZES.values(), *FAMILIES.values()], ids=[*SIZES, *FAMILIES])
def test_plain_numbers_give_the_logits_of_the_plain_transformer(changes):
    weights = random_weights(architecture(**changes))
    tokens = tokens_of(weights, 150)
    wanted = Oracle(weights).logits(tokens)
    assert supports(weights) is None
    runner = TensorRunner(weights, BLOCKS, threads=2)
    # a key may round the other way
    assert_near(runner.forward(step(whole(sequence(tokens, range(3, 13))))), wanted, 3e-2)


@pytest.mark.parametrize(
    ("kind", "bound"), [("F16", 3e-2), ("BF16", 3e-2), ("Q8_0", 0.7), ("Q4_0", 0.7), ("Q4_1", 0.7)]
)
def test_quantised_activations_stay_within_a_stated_part_of_the_spread(kind, bound):
    weights = random_weights(
        architecture(
            hidden_size=128,
            intermediate_size=224,
            num_heads=6,
            num_kv_heads=2,
            head_dim=32,
            num_layers=3,
        ),
        kind,
    )
    tokens = tokens_of(weights, 70)
    wanted = Oracle(weights).logits(tokens)
    found = TensorRunner(weights, BLOCKS, threads=2).forward(
        step(whole(sequence(tokens, range(5))))
    )
    assert_near(found, wanted, bound)
    assert (found - wanted).abs().mean() < bound / 10 * wanted.std()


@pytest.mark.parametrize(("kind", "other"), [("Q4_K", "Q6_K"), ("Q5_K", "Q8_0"), ("Q6_K", "Q4_0")])
def test_k_quants_run_whole_models_and_mix(kind, other):
    kinds = {"self_attn.v_proj": other, "mlp.down_proj": other, "lm_head": other}
    weights = random_weights(
        architecture(hidden_size=256, intermediate_size=512, num_heads=8, head_dim=32),
        kind,
        kinds=kinds,
    )
    tokens = tokens_of(weights, 40)
    found = TensorRunner(weights, BLOCKS, threads=2).forward(
        step(whole(sequence(tokens, range(3))))
    )
    assert_near(found, Oracle(weights).logits(tokens), 0.7)


def test_matrices_of_one_layer_may_be_of_different_kinds():
    kinds = {
        "self_attn.v_proj": "Q8_0",
        "mlp.up_proj": "F16",
        "mlp.down_proj": "Q4_1",
        "lm_head": "Q8_0",
    }
    weights = random_weights(architecture(), "Q4_0", kinds=kinds)
    tokens = tokens_of(weights, 40)
    found = TensorRunner(weights, BLOCKS, threads=2).forward(
        step(whole(sequence(tokens, range(3))))
    )
    assert_near(found, Oracle(weights).logits(tokens), 0.7)


@pytest.fixture(scope="module", params=["F32", "Q4_0", "windows"])
def weights(request) -> Weights:
    if request.param == "windows":
        return random_weights(architecture(windows=(100, 0), num_heads=6, num_kv_heads=2), "Q4_1")
    return random_weights(architecture(num_heads=6, num_kv_heads=2), request.param)


@pytest.fixture(scope="module")
def runner(weights: Weights) -> TensorRunner:
    return TensorRunner(weights, BLOCKS * 3, threads=2)


def test_chunks_and_single_tokens_give_the_bits_of_one_pass(weights, runner):
    tokens = tokens_of(weights, 300)
    whole_pass = runner.forward(step(whole(sequence(tokens, range(19)))))
    other = sequence(tokens, range(30, 49))
    parts = [runner.forward(step(Span(other, start, stop - start, stop - start))) for start, stop in
             ((0, 1), (1, 18), (18, 150), (150, 290))]  # fmt: skip
    parts += [runner.forward(step(Span(other, place, 1, 1))) for place in range(290, 300)]
    assert torch.equal(torch.cat(parts), whole_pass)


def test_a_row_has_the_same_bits_alone_and_in_every_batch(weights, runner):
    """Also where a lone row's context is cut into pieces for several threads."""
    alone = sequence(tokens_of(weights, 600), range(38))
    runner.forward(step(Span(alone, 0, 599, 0)))
    wanted = runner.forward(step(Span(alone, 599, 1, 1)))
    for company in (1, 3, 8, 20):
        others = [
            sequence(tokens_of(weights, 30, seed), range(40 + 2 * seed, 42 + 2 * seed))
            for seed in range(company)
        ]
        found = runner.forward(
            step(*(whole(one, 1) for one in others), Span(alone, 599, 1, 1), whole(others[0], 2))
        )
        assert torch.equal(found[company], wanted[0])


def test_threads_change_no_bit(weights, runner):
    tokens = tokens_of(weights, 200)
    wanted = runner.forward(step(whole(sequence(tokens, range(13)))))
    for threads in (1, 3, 5):
        other = TensorRunner(weights, 13, threads=threads)
        assert torch.equal(other.forward(step(whole(sequence(tokens, range(13))))), wanted)


def test_two_sequences_may_read_the_same_blocks(weights, runner):
    begin = tokens_of(weights, 32)
    runner.forward(step(whole(sequence(begin, [7, 9]), 0)))
    ends = [tokens_of(weights, 20, seed) for seed in (1, 2)]
    sharers = [sequence(begin + end, [7, 9, 10 + 2 * i, 11 + 2 * i]) for i, end in enumerate(ends)]
    found = runner.forward(step(*(Span(one, 32, 20, 20) for one in sharers)))
    for i, end in enumerate(ends):
        alone = runner.forward(step(Span(sequence(begin + end, range(40, 44)), 0, 52, 20)))
        assert torch.equal(found[20 * i : 20 * i + 20], alone)


def test_what_a_block_held_before_does_not_show_through(weights, runner):
    tokens = tokens_of(weights, 23)
    runner.network.cache[20:22] = 0
    wanted = runner.forward(step(whole(sequence(tokens, [20, 21]))))
    runner.network.cache[20:22] = 0x7FC0  # not a number, in every place
    assert torch.equal(runner.forward(step(whole(sequence(tokens, [20, 21])))), wanted)


def test_a_step_may_want_no_logits_or_those_of_a_few_last_rows(weights, runner):
    tokens = tokens_of(weights, 60)
    every = runner.forward(step(whole(sequence(tokens, range(4)))))
    assert runner.forward(step(whole(sequence(tokens, range(4)), 0))).shape == (
        0,
        weights.architecture.vocab_size,
    )
    some = runner.forward(
        step(whole(sequence(tokens, range(4)), 3), whole(sequence(tokens[:9], range(8, 9)), 1))
    )
    assert torch.equal(some, torch.cat([every[57:], every[8:9]]))


@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_reaches_the_logits_of_its_row_and_of_no_other(kind, bad):
    """The engine fails a request by its logits; a damaged one must not pass for a healthy one,
    nor harm its neighbours.
    """
    weights = random_weights(architecture(), kind, kinds={"embed_tokens": "F32"})
    tensors = dict(weights.tensors)
    rows = tensors["model.embed_tokens.weight"].dequantize().clone()
    rows[9, 40] = bad
    tensors["model.embed_tokens.weight"] = QuantTensor("F32", (257, 64), rows.view(torch.uint8))
    runner = TensorRunner(
        Weights(weights.architecture, tensors, weights.tokenizer, "x"), BLOCKS, threads=2
    )
    healthy = [sequence([1 + i] * 20, [2 * i, 2 * i + 1]) for i in range(3)]
    wanted = runner.forward(step(*(whole(one, 1) for one in healthy)))
    found = runner.forward(
        step(
            whole(healthy[0], 1),
            whole(sequence([5, 9], [10]), 1),
            whole(healthy[1], 1),
            whole(healthy[2], 1),
        )
    )
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2, 3]], wanted)


@pytest.mark.parametrize(
    ("changes", "kv_type"), [(DIFFERING, "bf16"), (DIFFERING, "q8"), (STREAMS, "bf16")]
)
def test_layers_that_differ_give_the_bits_of_one_pass_in_chunks_and_among_others(changes, kv_type):
    plain = ("altup.router", "altup.predict", "altup.correct")
    weights = random_weights(architecture(**changes), "Q8_0", kinds=dict.fromkeys(plain, "F32"))
    tokens = tokens_of(weights, 70)
    runner = TensorRunner(weights, BLOCKS, threads=2, kv_type=kv_type)
    wanted = runner.forward(step(whole(sequence(tokens, range(5)))))
    assert_near(wanted, Oracle(weights, kv_type).logits(tokens), 0.7)
    own, other = sequence(tokens, range(6, 11)), sequence(tokens_of(weights, 9, 7), [12])
    parts = [runner.forward(step(Span(own, 0, 33, 33)))]
    parts += [runner.forward(step(whole(other, 1), Span(own, 33, 20, 20)))[1:]]
    parts += [runner.forward(step(Span(own, place, 1, 1))) for place in range(53, 70)]
    assert torch.equal(torch.cat(parts), wanted)
    saved = runner.read_cache(range(5))
    runner.write_cache(range(20, 25), saved)
    again = runner.forward(step(Span(sequence(tokens, range(20, 25)), 69, 1, 1)))
    assert torch.equal(again[0], wanted[69])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_mixtures_rows_are_the_same_to_the_bit_alone_and_among_others(threads):
    """Whatever else is in a step decides how many rows an expert gets and in which panel a row
    stands, and neither may show.
    """
    weights = random_weights(architecture(**MIXTRAL, num_layers=3), "Q4_0")
    tokens = tokens_of(weights, 61)
    runner = TensorRunner(weights, BLOCKS, threads=threads)
    wanted = runner.forward(step(whole(sequence(tokens, range(4)))))
    others = [sequence(tokens_of(weights, 9, seed), range(4 + seed, 5 + seed)) for seed in range(5)]
    mixed = runner.forward(step(*map(whole, others), whole(sequence(tokens[:23], [20, 9]))))
    assert torch.equal(mixed[-23:], wanted[:23])
    own = sequence(tokens, [12, 30, 13, 31])
    for place in range(61):
        alone = runner.forward(step(Span(own, place, 1, 1)))
        assert torch.equal(alone[0], wanted[place]), place


def test_a_row_of_a_mixture_that_is_not_finite_spoils_only_itself():
    weights = random_weights(architecture(**MIXTRAL, num_layers=1), "F32")
    embedding = weights.tensors["model.embed_tokens.weight"].raw.view(torch.float32)
    embedding[7] = float("nan")
    runner = TensorRunner(weights, BLOCKS, threads=2)
    right = whole(sequence([1, 2, 3], [0]))
    wanted = runner.forward(step(right))
    found = runner.forward(step(whole(sequence([7], [1])), right))
    assert not torch.isfinite(found[0]).any()
    assert torch.equal(found[1:], wanted)
