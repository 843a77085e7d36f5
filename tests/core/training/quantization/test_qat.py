"""Quantisation-aware training on a small random model: it comes nearer to its original, computes
with what its file holds, and goes on after it was killed.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core.errors import DataError, ModelError, TrainingError
from quietchoir.core.models import to_gguf, weights
from quietchoir.core.models.lora.adapter import Adapter
from quietchoir.core.models.quant.grid import GRIDS
from quietchoir.core.models.quant.quantize import encoded
from quietchoir.core.models.quant.tensor import plain
from quietchoir.core.models.quantization import quantizer
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.quantization import commands, qat, quality
from quietchoir.core.training.quantization.qat import QatSettings
from quietchoir.tests.fakes.models import make_model
from quietchoir.tests.fakes.tokenizers import save

EXACT: dict[str, Any] = {"precision": "float32", "seed": 3, "windows": 4}
FULL = QatSettings(mode="full", steps=24, lr=1e-3, **EXACT)
# of few tokens, so that what is learned holds for texts that were not trained on
TEXTS = np.random.default_rng(0).integers(10, 22, (16, 24)).tolist()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("model")
    make_model("llama3", vocab_size=720, num_hidden_layers=3).save_pretrained(path)
    save("llama3", path)
    return weights.load(path)


@pytest.fixture(scope="module")
def rounded(original: Weights, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    request = quantizer.QuantizationRequest(quant_type="Q4_0")
    journal = quantizer.QuantizationJournal(
        tmp_path_factory.mktemp("j") / "journal", request.digest(original)
    )
    return quantizer.quantize(original, request, journal)


def distance(found: Weights, original: Weights) -> float:
    """From the original, on texts that were trained on."""
    teacher = qat.OriginalTeacher(original, FULL)
    return float(teacher.distance(qat.QuantizedStudent(found, original, FULL), TEXTS).detach())


def test_full_training_comes_nearer_and_keeps_every_type(
    original: Weights, rounded: Weights, tmp_path: Path
) -> None:
    result = qat.train(rounded, original, TEXTS, FULL)
    assert result.distance[1] < 0.6 * result.distance[0]
    assert distance(result.weights, original) < 0.6 * distance(rounded, original)
    for name, blocks in result.weights.tensors.items():
        assert blocks.quant_type == rounded.tensors[name].quant_type
    assert result.weights.tensors["lm_head.weight"] is rounded.tensors["lm_head.weight"]
    to_gguf.save(result.weights, tmp_path / "trained.gguf")
    read = weights.load(tmp_path / "trained.gguf")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(read.tensors[name].dequantize(), result.weights.tensors[name].dequantize())


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q6_K", "Q4_K"])
def test_the_forward_pass_computes_with_what_the_blocks_will_hold(kind: str) -> None:
    draw = torch.Generator().manual_seed(1)
    matrix = torch.randn(8, 256, generator=draw)
    blocks = encoded(plain(matrix), kind)
    linear = qat.FakeQuantLinear(blocks, matrix)
    x = torch.randn(5, 256, generator=draw)
    assert torch.equal(linear.blocks().dequantize(), blocks.dequantize())
    assert torch.allclose(linear(x), x @ blocks.dequantize().T, atol=1e-4)
    with torch.no_grad():
        linear.weight.add_(0.05 * torch.randn(linear.weight.shape, generator=draw))
        if linear.gain.requires_grad:
            linear.gain.add_(0.02)
    after = linear.blocks().dequantize()
    assert not torch.equal(after, blocks.dequantize())
    assert torch.allclose(linear(x), x @ after.T, atol=1e-3)


def test_gradients_pass_straight_through_where_the_grid_reaches() -> None:
    kind, step = GRIDS["Q4_0"], torch.tensor([[0.5]], requires_grad=True)
    weight = torch.tensor([[0.2, -0.6, 9.0, 3.4]], requires_grad=True)  # the third is beyond
    out = qat.FakeQuant.apply(weight, step, torch.zeros(1, 1), kind)
    assert out.tolist() == [[0.0, -0.5, 3.5, 3.5]]
    out.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert weight.grad is not None and step.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0, 0.0, 4.0]]
    # q - w / s of each within, q of the one beyond
    expected = 1 * (0 - 0.4) + 2 * (-1 + 1.2) + 3 * 7 + 4 * (7 - 6.8)
    assert float(step.grad) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("mode", "rate"), [("full", 0.3), ("norms", 0.9), ("adapters", 0.9)])
def test_a_rate_far_too_high_gives_the_start_back_and_ends_early(
    mode: qat.Mode, rate: float, original: Weights, rounded: Weights
) -> None:
    settings = QatSettings(mode=mode, steps=60, lr=rate, rank=4, **EXACT)
    start = qat.QuantizedStudent(rounded, original, settings)
    result = qat.train(rounded, original, TEXTS, settings)
    assert result.kept == 0 and result.distance[0] == result.distance[1]
    assert max(result.judged.values()) > 2 * result.judged[0]  # it did become worse
    assert result.steps == qat.PATIENCE * qat.JUDGE_EVERY
    assert result.ended == "it no longer fell"
    for name, blocks in result.weights.tensors.items():
        assert np.array_equal(blocks.memory, rounded.tensors[name].memory)
    for name, factor in start.adapter().items():
        assert torch.equal(result.adapter[name], factor)
    said = commands.told_training(result, settings.steps)
    assert "the start is kept" in said and "ended after 15 of 60" in said


def test_a_state_in_between_is_the_one_that_is_kept(
    original: Weights, rounded: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_far(step: int, _steps: int) -> float:
        return 1.0 if step < 10 else 500.0

    monkeypatch.setattr(qat, "schedule", too_far)
    result = qat.train(rounded, original, TEXTS, replace(FULL, steps=20))
    assert result.kept == 10 and result.judged[20] > result.judged[0] > result.judged[10]
    _, apart = qat.held_out(TEXTS)
    teacher = qat.OriginalTeacher(original, FULL)
    with torch.no_grad():
        found = teacher.distance(qat.QuantizedStudent(result.weights, original, FULL), apart)
    assert float(found) == pytest.approx(result.distance[1], rel=1e-3)


def test_states_are_judged_by_text_that_no_step_sees() -> None:
    for texts in (TEXTS, TEXTS[:2], [list(range(40))]):
        taught, apart = qat.held_out(texts)
        assert apart and all(len(text) > 1 for text in (*taught, *apart))
        assert not {tuple(text) for text in taught} & {tuple(text) for text in apart}
        assert sorted(t for one in (*taught, *apart) for t in one) == sorted(
            token for text in texts for token in text
        )


def test_norms_alone_leave_every_block_as_it_was(original: Weights, rounded: Weights) -> None:
    settings = QatSettings(mode="norms", steps=16, lr=1e-2, **EXACT)
    result = qat.train(rounded, original, TEXTS, settings)
    changed = {
        name
        for name, blocks in result.weights.tensors.items()
        if not np.array_equal(blocks.memory, rounded.tensors[name].memory)
    }
    assert changed and all(name.endswith("norm.weight") for name in changed)
    assert distance(result.weights, original) < distance(rounded, original)


def test_an_adapter_starts_at_the_error_of_rounding_and_is_served_with_the_file(
    original: Weights, rounded: Weights, tmp_path: Path
) -> None:
    tokens = [token for text in TEXTS for token in text]
    settings = QatSettings(mode="adapters", steps=12, lr=1e-3, rank=8, **EXACT)
    start = qat.QuantizedStudent(rounded, original, settings).adapter()
    name = "model.layers.1.mlp.down_proj"
    exact = original.tensors[f"{name}.weight"].dequantize()
    error = exact - rounded.tensors[f"{name}.weight"].dequantize()
    made_up = start[f"{name}.lora_B.weight"] @ start[f"{name}.lora_A.weight"]
    assert (error - made_up).norm() < 0.95 * error.norm()
    result = qat.train(rounded, original, TEXTS, settings)
    assert result.distance[1] < result.distance[0]
    for blocks, held in zip(result.weights.tensors.values(), rounded.tensors.values(), strict=True):
        assert np.array_equal(blocks.memory, held.memory)
    qat.save_adapter(result, settings.rank, "ab" * 32, tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter")
    adapter.check(original.architecture)
    assert adapter.base_digest == "ab" * 32
    factors, _ = adapter.products(rounded.tensors)
    a, b = factors[name]
    assert torch.allclose((a @ b).T, result.adapter[f"{name}.lora_B.weight"]
                          @ result.adapter[f"{name}.lora_A.weight"], atol=1e-5)  # fmt: skip
    assert quality.text_loss(rounded, tokens, result.adapter) != quality.text_loss(rounded, tokens)


def test_a_training_that_is_killed_goes_on_from_what_it_kept(
    original: Weights, rounded: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat, "KEEP_EVERY", 4)
    settings = replace(FULL, steps=8)
    told: list[int] = []

    def killed(step: int, steps: int, distance: float) -> None:
        told.append(step)
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qat.train(rounded, original, TEXTS, settings, folder=tmp_path, on_step=killed)
    qat.train(rounded, original, TEXTS, settings, folder=tmp_path, on_step=told_only(told))
    assert told == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
    told.clear()
    other = replace(settings, lr=2e-3)  # other settings begin anew
    qat.train(rounded, original, TEXTS, other, folder=tmp_path, on_step=told_only(told))
    assert told[0] == 1
    kept = tmp_path / quantizer.CHECKPOINT
    flipped = bytearray(kept.read_bytes())
    flipped[-9] ^= 1  # a number of a tensor, to which the file's own format has no sum
    for damaged in (bytes(flipped), b"half"):
        kept.write_bytes(damaged)
        told.clear()
        qat.train(rounded, original, TEXTS, other, folder=tmp_path, on_step=told_only(told))
        assert told[0] == 1  # anew


def told_only(told: list[int]) -> Callable[[int, int, float], None]:
    """Hears steps, and kills nothing."""
    return lambda step, _steps, _distance: told.append(step)


def test_what_cannot_be_trained_is_a_sentence(original: Weights, rounded: Weights) -> None:
    with pytest.raises(DataError, match="no two texts of two tokens"):
        qat.train(rounded, original, [[5]], FULL)
    capped = replace(original, architecture=replace(original.architecture, logit_softcap=30.0))
    with pytest.raises(ModelError, match="quantise it without --qat"):
        qat.train(rounded, capped, TEXTS, FULL)
    with pytest.raises(TrainingError, match="not finite, before any step"):
        broken = plain(torch.full((1, original.architecture.hidden_size), torch.nan))
        hurt = replace(rounded, tensors={**rounded.tensors, "model.norm.weight": broken})
        qat.train(hurt, original, TEXTS, FULL)
    with pytest.raises(ValueError, match="out of range"):
        QatSettings(mode="full", steps=0)
