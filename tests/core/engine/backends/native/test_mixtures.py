"""Files that mix block types, as those called Q4_K_M and Q5_K_M do, run whole on every
instruction set.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.runner import supports
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.blocks import SCALES, block_size, meaning, random_rows, with_scales
from quietchoir.tests.fakes.native import (
    Oracle,
    TensorRunner,
    architecture,
    random_weights,
    sequence,
    step,
    whole,
)

SETS = library.instruction_sets() if library.available() is None else ("none",)
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "num_layers": 3,
}
MIXTURES = {
    "Q4_K_M": ("Q4_K", "Q6_K"),
    "Q5_K_M": ("Q5_K", "Q6_K"),
    "Q4_K_M of rows that are no multiple of 256": ("Q5_0", "Q8_0"),
    "Q5_K_M of such rows": ("Q5_1", "Q8_0"),
    "Q2_K": ("Q2_K", "Q3_K"),
    "Q3_K_M": ("Q3_K", "Q5_K"),
    "IQ3_XXS": ("IQ3_XXS", "IQ3_S"),
    "IQ3_M": ("IQ3_S", "Q4_K"),
    "IQ4_XS": ("IQ4_XS", "IQ4_NL"),
    "ternary": ("TQ1_0", "TQ2_0"),
    "gpt-oss": ("MXFP4", "Q8_0"),
    "Q4_0 and Q6_K": ("Q4_0", "Q6_K"),
    "Q4_K and Q8_0": ("Q4_K", "Q8_0"),
}
# what such files keep in the type with more bits
FINER = ("v_proj", "down_proj", "lm_head", "embed_tokens")


def random_blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> QuantTensor:
    """Random blocks whose weights have mean 0 and about the deviation of a trained model's."""
    width, size = block_size(kind)
    raw = random_rows(kind, rows, columns, rng).reshape(-1, size)

    def mean(d: float, m: float) -> float:
        return float(meaning(kind, with_scales(kind, raw.copy(), ones * (d, m))).mean())

    ones = np.ones((len(raw), 2))
    middle = -mean(1, 0) / mean(0, 1) if len(SCALES[kind]) == 2 else 0.0
    d = (0.5 + rng.random((len(raw), 1))) / 1000
    scales = np.hstack([d, d * middle])
    deviation = meaning(kind, with_scales(kind, raw.copy(), scales)).std()
    raw = with_scales(kind, raw, scales * (2 * columns**-0.5 / deviation)).reshape(rows, -1)
    assert columns % width == 0
    return QuantTensor(kind, (rows, columns), torch.from_numpy(raw))


def mixed(kinds: tuple[str, str]) -> Weights:
    """A whole model of two block types."""
    weights, rng = random_weights(architecture(**SHAPE)), np.random.default_rng(1)
    tensors = {
        name: random_blocks(kinds[any(part in name for part in FINER)], *blocks.shape, rng)
        if blocks.shape[0] > 1
        else blocks
        for name, blocks in weights.tensors.items()
    }
    return replace(weights, tensors=tensors)


@pytest.fixture(scope="module", params=MIXTURES)
def model(request: pytest.FixtureRequest) -> tuple[Weights, list[int], torch.Tensor]:
    """A mixture, tokens, and their logits in float32 over the same blocks."""
    weights = mixed(MIXTURES[request.param])
    tokens = torch.randint(0, 257, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    return weights, tokens, Oracle(weights).logits(tokens)


@pytest.mark.parametrize("instructions", SETS)
def test_a_mixture_runs_whole_and_near_the_plain_transformer(
    model, instructions: str, monkeypatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, instructions)
    weights, tokens, wanted = model
    assert supports(weights) is None
    runner = TensorRunner(weights, 8, threads=2)
    assert runner.instruction_set == instructions
    found = runner.forward(step(whole(sequence(tokens, range(4)))))
    assert (found - wanted).abs().mean() < 0.07 * wanted.std()
    # Wrong weights would be 1.4 spreads off on average; a choice of experts that was as good as a
    # tie may fall the other way in one row.
    assert ((found - wanted).abs().amax(1) > wanted.std()).sum() <= 1
    again = runner.forward(step(whole(sequence(tokens[:17], [7, 5]))))
    assert torch.equal(again, found[:17])
