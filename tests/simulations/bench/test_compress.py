"""The suite `compress` on two layers and a few tokens: its keys are there. No figure is judged."""

import importlib.util
import math

import pytest
import torch

from quietchoir.core.models.weights import Weights
from quietchoir.core.training.quantization.quality import text_loss
from quietchoir.simulations.bench import compress, suites
from quietchoir.simulations.bench.figures import look_up


def test_every_figure_is_there_and_ours_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)  # no peers, no neighbours
    report, rows = suites.run("compress", quick=True, tell=lambda _: None)
    assert all(look_up(report, row.key) is not None for row in rows)
    keys = {row.key for row in rows}
    arms = {f"perplexity.{arm}" for arm in ("fp16", "rounded", "calibrated", "mixed", "qat")}
    assert arms < keys and {"qat_recovered", "135m.speedup_b1", "135m.size_saved"} < keys
    assert report["mb"]["mixed"] <= report["mb"]["calibrated"] < 0.6 * report["mb"]["fp16"]
    assert report["deployment"]["135m"]["memory_mb"] > 0
    assert report["exact"] is True


def test_channels_that_are_scaled_change_no_logit_and_leave_the_grid(smollm2: Weights) -> None:
    plain = compress.first_layers(smollm2, 2)
    scaled = compress.rescaled(plain)
    tokens = plain.tokenizer.encode("The kitchen light is on. " * 4)
    # float16 rounds a little
    assert math.isclose(text_loss(scaled, tokens), text_loss(plain, tokens), rel_tol=1e-3)
    name = "model.layers.1.mlp.down_proj.weight"
    groups = [one.tensors[name].dequantize().view(-1, 32)[:500] for one in (plain, scaled)]
    levels = [sum(len(torch.unique(group)) for group in part) / 500 for part in groups]
    assert levels[0] <= 16 < levels[1]
