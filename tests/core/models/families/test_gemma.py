"""Gemma, the first: a random model against `transformers`, from a folder, from a GGUF file, and
from a folder converted to one.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quietchoir.core.errors import ModelFileError
from quietchoir.core.models import to_gguf, weights
from quietchoir.core.models.checkpoint import from_gguf, from_hf
from quietchoir.core.models.files import gguf
from quietchoir.tests.fakes import models
from quietchoir.tests.fakes.models import GgufWriter, make_model, their_logits
from quietchoir.tests.fakes.tokenizers import save

from ..conftest import MakeLinear
from .test_families import BOUND, TOKENS, our_logits, weights_of


class GemmaWriter(GgufWriter):
    """llama.cpp's converter adds 1 to every norm, as it does for Gemma 3; the rest is as usual."""

    def tensor(self, name: str, tensor: torch.Tensor) -> None:
        super().tensor(name, tensor + 1 if name.endswith("norm.weight") else tensor)


@pytest.fixture(scope="module")
def model() -> Any:
    """Heads of a size of their own, one of keys, embedding and head one matrix."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}
        patch.setitem(models.FAMILIES, "gemma", ("GemmaConfig", sizes))
        return make_model("gemma", vocab_size=720)


def test_a_folder_computes_what_transformers_computes(
    model: Any, make_linear: MakeLinear, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    ours = weights_of(architecture, from_hf.name_tensors(tmp_path, architecture))
    theirs = their_logits(model, TOKENS)
    assert theirs.abs().max() > 1
    assert (our_logits(ours, make_linear) - theirs).abs().max() < BOUND
    for trait in ({"embedding_scale": 1.0}, {"activation": "silu"}):
        other = weights_of(replace(architecture, **trait), dict(ours.tensors))
        assert (our_logits(other, make_linear) - theirs).abs().max() > 100 * BOUND


def test_a_gguf_file_computes_what_transformers_computes(
    model: Any, make_linear: MakeLinear, tmp_path: Path
) -> None:
    GemmaWriter(model, tmp_path / "tiny.gguf").write()
    file = gguf.read(tmp_path / "tiny.gguf")
    assert file.value("general.architecture", str) == "gemma"
    architecture = from_gguf.read_architecture(file)
    ours = weights_of(architecture, from_gguf.name_tensors(file, architecture))
    assert (our_logits(ours, make_linear) - their_logits(model, TOKENS)).abs().max() < BOUND


def test_a_converted_folder_is_the_same_model(
    model: Any, make_linear: MakeLinear, tmp_path: Path
) -> None:
    (folder := tmp_path / "folder").mkdir()
    model.save_pretrained(folder)
    save("gemma", folder)
    loaded = weights.load(folder)
    to_gguf.save(loaded, tmp_path / "tiny.gguf", "F32")
    again = weights.load(tmp_path / "tiny.gguf")
    assert again.architecture.embedding_scale == loaded.architecture.embedding_scale
    assert torch.equal(our_logits(again, make_linear), our_logits(loaded, make_linear))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_act": "relu"}, "its activation is 'relu'"),
        ({"hidden_activation": "gelu"}, "its activation is 'gelu'"),
        ({"sliding_window": 9}, "some layers of this gemma model see only a window"),
        ({"use_bidirectional_attention": True}, "its rows see later rows"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta is 'x', expected a positive number"),
    ],
)
def test_what_is_not_computed_is_refused(
    model: Any, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    legacy = {**config, "hidden_act": "gelu", "hidden_activation": None}
    (tmp_path / "config.json").write_text(json.dumps(legacy))
    assert from_hf.read_architecture(tmp_path).activation == "gelu_tanh"
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelFileError, match=sentence):
        from_hf.read_architecture(tmp_path)
