"""Qwen2.5-VL and Qwen3-VL: their language model alone, from a folder that nests it beside what sees
pictures, and from a GGUF file, against `transformers` on text.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quietchoir.core.models.checkpoint import from_gguf, from_hf
from quietchoir.core.models.files import gguf
from quietchoir.tests.fakes.models import SIZES, GgufWriter, make_model, their_logits

from ..conftest import MakeLinear
from .test_families import BOUND, TOKENS, our_logits, weights_of

SECTIONS = [2, 3, 3]  # pairs that count time, height and width; heads have 16 numbers
KINDS = {
    "qwen2_vl": ("Qwen2VL", "qwen2"),
    "qwen2_5_vl": ("Qwen2_5_VL", "qwen2"),
    "qwen3_vl": ("Qwen3VL", "qwen3"),
}


class SectionsWriter(GgufWriter):
    """The language model's file is that of its family without pictures, under another name."""

    def __init__(self, model: Any, path: Path, family: str) -> None:
        super().__init__(model, path)
        self.family = family
        self.writer.arch = family
        self.writer.add_architecture()

    def sizes(self) -> None:
        super().sizes()
        self.writer.add_rope_dimension_sections([*SECTIONS, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_computes_for_text_what_transformers_computes(
    kind: str, make_linear: MakeLinear, tmp_path: Path
) -> None:
    import transformers

    prefix, _ = KINDS[kind]
    rope = {"rope_type": "default", "mrope_section": SECTIONS, "rope_theta": 10000.0}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "out_hidden_size": 64}
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**SIZES, "head_dim": 16, "rope_parameters": rope}, vision_config=vision
    )
    torch.manual_seed(3)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    architecture = from_hf.read_architecture(tmp_path)
    ours = weights_of(architecture, from_hf.name_tensors(tmp_path, architecture))
    theirs = their_logits(model, TOKENS)
    assert theirs.abs().max() > 1
    assert (our_logits(ours, make_linear) - theirs).abs().max() < BOUND


@pytest.mark.parametrize(("family", "plain"), [("qwen2vl", "qwen2"), ("qwen3vl", "qwen3")])
def test_a_gguf_file_computes_for_text_what_its_family_without_pictures_does(
    family: str, plain: str, make_linear: MakeLinear, tmp_path: Path
) -> None:
    model = make_model(plain)
    SectionsWriter(model, tmp_path / "tiny.gguf", family).write()
    file = gguf.read(tmp_path / "tiny.gguf")
    assert file.value("general.architecture", str) == family
    architecture = from_gguf.read_architecture(file)
    ours = weights_of(architecture, from_gguf.name_tensors(file, architecture))
    assert (our_logits(ours, make_linear) - their_logits(model, TOKENS)).abs().max() < BOUND
