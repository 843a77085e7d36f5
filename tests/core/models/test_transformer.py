"""One forward pass, whole or in slices, packed or alone, with and without gradients."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quietchoir.core.models import weights
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights

from .conftest import MakeLinear

LENGTHS = [5, 1, 9]
TOKENS = torch.arange(sum(LENGTHS)) * 7 % 200


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Weights:
    return weights.load(tiny_path)


@pytest.fixture(scope="module")
def network(tiny: Weights, make_linear: MakeLinear) -> Transformer:
    return Transformer(tiny, make_linear)


def positions_of(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


def run(network: Transformer, tokens: Tensor, lengths: list[int]) -> Tensor:
    rows = network.layers_forward(
        network.embed(tokens), positions_of(lengths), packed_attention(lengths)
    )
    return network.logits(rows)


def test_packed_sequences_do_not_see_each_other(network: Transformer) -> None:
    together, start = run(network, TOKENS, LENGTHS), 0
    for length in LENGTHS:
        own = slice(start, start + length)
        torch.testing.assert_close(
            together[own], run(network, TOKENS[own], [length]), atol=2e-5, rtol=0
        )
        start += length


def test_a_row_does_not_see_later_rows(network: Transformer) -> None:
    torch.testing.assert_close(
        run(network, TOKENS, [15])[:6], run(network, TOKENS[:6], [6]), atol=2e-5, rtol=0
    )


def test_order_matters(network: Transformer) -> None:
    forward, backward = run(network, TOKENS[:6], [6]), run(network, TOKENS[:6].flip(0), [6])
    assert (forward[-1] - backward[-1]).abs().max() > 1e-2


def test_slices_one_after_another_equal_the_whole(
    tiny: Weights, network: Transformer, make_linear: MakeLinear
) -> None:
    lower, upper = (
        Transformer(tiny, make_linear, last_layer=1),
        Transformer(tiny, make_linear, first_layer=1),
    )
    attend, positions = packed_attention(LENGTHS), positions_of(LENGTHS)
    middle = lower.layers_forward(lower.embed(TOKENS), positions, attend)
    assert torch.equal(
        upper.logits(upper.layers_forward(middle, positions, attend)), run(network, TOKENS, LENGTHS)
    )
    assert not [name for name, _ in upper.named_modules() if ".layers.0" in name]
    with pytest.raises(RuntimeError, match="has no head"):
        lower.logits(middle)


def test_layers_that_are_not_there_are_refused(tiny: Weights, make_linear: MakeLinear) -> None:
    with pytest.raises(ValueError, match=r"\[1, 9\) are not in \[0, 2\)"):
        Transformer(tiny, make_linear, first_layer=1, last_layer=9)


def test_nothing_is_trainable_and_names_are_hugging_faces(network: Transformer) -> None:
    assert not [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    names = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    own = [f"self_attn.{letter}_proj" for letter in "qkvo"] + [
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    assert names == {f"model.layers.{layer}.{name}" for layer in (0, 1) for name in own} | {
        "lm_head"
    }


def test_gradients_reach_an_input_row_only_from_itself_and_later_rows(network: Transformer) -> None:
    rows = network.embed(TOKENS[:6]).requires_grad_()
    logits = network.logits(network.layers_forward(rows, torch.arange(6), packed_attention([4, 2])))
    (gradient,) = torch.autograd.grad(logits[3].square().sum(), rows)
    assert (gradient[:4].abs().sum(1) > 0).all()
    assert not gradient[4:].any()


def test_inference_mode_gives_the_same_numbers(network: Transformer) -> None:
    expected = run(network, TOKENS, LENGTHS)
    with torch.inference_mode():
        assert torch.equal(run(network, TOKENS, LENGTHS), expected)


def test_half_precision_stays_near(
    tiny: Weights, network: Transformer, make_linear: MakeLinear
) -> None:
    half = Transformer(tiny, lambda blocks: make_linear(blocks).bfloat16(), dtype=torch.bfloat16)
    difference = (run(half, TOKENS, LENGTHS).float() - run(network, TOKENS, LENGTHS)).abs().max()
    assert difference < 0.05 * run(network, TOKENS, LENGTHS).abs().max()


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        packed_attention([3, 0])
