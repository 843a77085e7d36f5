"""The suite `compress` on a tiny model and a few tokens: its keys are there; nothing is judged."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from quietchoir.core.models import to_gguf, weights
from quietchoir.core.training.quantization.quality import text_loss
from quietchoir.simulations.bench import compress, compress_distill, compress_plan, suites
from quietchoir.simulations.bench.stopwatch import Sample
from quietchoir.tests.fakes.models import make_model
from quietchoir.tests.fakes.tokenizers import save


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers in 4-bit blocks, its head the embedding."""
    path = tmp_path_factory.mktemp("tiny")
    shape: dict[str, Any] = {"vocab_size": 720, "num_hidden_layers": 2, "tie_word_embeddings": True}
    make_model("llama-linear", rope_parameters=None, **shape).save_pretrained(path / "folder")
    save("smollm", path / "folder")
    to_gguf.save(weights.load(path / "folder"), path / "tiny.gguf", "Q4_1")
    return path / "tiny.gguf"


class Engine:
    """In the place of an engine's process, which other suites' tests start."""

    def __init__(self, name: str, model: Path) -> None:
        self.name = name
        assert model.exists()

    def start(self) -> None: ...

    def close(self) -> None: ...

    def ask(self, order: Any) -> float:
        assert order == {"what": "peak_mb"} or order["what"] == "decode"
        return 100.0


@pytest.fixture
def alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite over the tiny model, without a peer."""
    monkeypatch.setattr(compress, "has_peer", lambda: False)
    for suite in (compress, compress_distill):
        monkeypatch.setattr(suite, "MODEL", str(tiny))
    monkeypatch.setattr(compress, "contender", Engine)
    speeds = {"f16": Sample((2.0,)), "q4": Sample((5.0,))}
    monkeypatch.setattr(compress, "turns", lambda *_: speeds)


@pytest.mark.usefixtures("alone")
def test_every_figure_is_there_and_files_have_the_sizes_that_are_said() -> None:
    report, rows = suites.run("compress", quick=True, tell=lambda _: None)
    assert report["failed"] == {} and {*report["part_s"]} == {*compress.PARTS}
    keys = {row.key for row in rows}
    arms = {f"perplexity.{arm}" for arm in ("fp16", "rounded", "calibrated", "mixed", "qat")}
    assert arms < keys and {"qat_recovered", "speedup_b1.135m", "size_saved.135m"} < keys
    assert {"student.accuracy_kept", "federated_distillation.together", "plan.cases"} < keys
    assert report["speedup_b1"]["135m"] == 2.5
    assert report["mb"]["mixed"] <= report["mb"]["calibrated"] < report["mb"]["fp16"]
    assert report["exact"] is True


@pytest.mark.usefixtures("alone")
def test_a_part_that_fails_is_named_and_the_others_are_measured_and_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(compress_plan, "measure_plan", lost)
    kept: list[dict[str, Any]] = []
    report, rows = suites.run(
        "compress", quick=True, tell=lambda _: None, keep=kept.append, only=("plan", "speeds")
    )
    assert report["failed"] == {"plan": "RuntimeError: the device is gone"}
    assert "speedup_b1.135m" in {row.key for row in rows} and "plan.right" not in report
    assert [{*one["part_s"]} for one in kept] == [{"speeds"}, {"speeds", "plan"}]


def test_channels_that_are_scaled_change_no_logit_and_leave_the_grid(tiny: Path) -> None:
    plain = weights.load(tiny)
    scaled = compress.rescaled(plain)
    tokens = plain.tokenizer.encode("The kitchen light is on. " * 4)
    # float16 rounds a little
    assert math.isclose(text_loss(scaled, tokens), text_loss(plain, tokens), rel_tol=1e-3)
    name = "model.layers.1.mlp.down_proj.weight"
    groups = [one.tensors[name].dequantize().view(-1, 32) for one in (plain, scaled)]
    levels = [max(len(torch.unique(group)) for group in part) for part in groups]
    assert levels[0] <= 16 < levels[1]
