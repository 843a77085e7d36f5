"""What a model's makers recommend is found in its files, and nonsense among it is left out."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.config import SamplingConfig
from quietchoir.core.models import to_gguf, weights
from quietchoir.tests.fakes.models import make_model
from quietchoir.tests.fakes.tokenizers import save

from .conftest import WriteModel

RECOMMENDED = SamplingConfig(
    temperature=0.7, top_p=0.8, top_k=20, min_p=0.01, repetition_penalty=1.05
)


def test_a_gguf_file_says_how_it_wants_to_be_sampled(write_model: WriteModel) -> None:
    path = write_model(
        metadata={
            "general.sampling.temp": 0.7,
            "general.sampling.top_p": 0.8,
            "general.sampling.top_k": 20,
            "general.sampling.min_p": 0.01,
            "general.sampling.penalty_repeat": 1.05,
        }
    )
    assert weights.load(path).sampling == RECOMMENDED
    assert weights.load(write_model()).sampling == SamplingConfig()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (RECOMMENDED.given(), RECOMMENDED),
        ({"do_sample": False, "temperature": 0.7}, SamplingConfig(temperature=0.0)),
        ({"temperature": None, "top_k": -1}, SamplingConfig(top_k=0)),
        ({"pad_token_id": None}, SamplingConfig()),
    ],
)
def test_a_folder_says_it_and_the_converted_file_says_the_same(
    said: dict[str, Any], meant: SamplingConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    make_model("llama3", vocab_size=720).save_pretrained(folder)
    save("llama3", folder)
    (folder / "generation_config.json").write_text(json.dumps(said))
    loaded = weights.load(folder)
    assert loaded.sampling == meant
    to_gguf.save(loaded, tmp_path / "model.gguf", "F16")
    assert weights.load(tmp_path / "model.gguf").sampling == meant


@pytest.mark.parametrize("odd", ["warm", True, -0.5, 7.0, [0.7]])
def test_a_recommendation_that_no_sampler_could_follow_is_told_and_left_out(
    odd: Any, write_model: WriteModel, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_model(metadata={"general.sampling.temp": odd, "general.sampling.top_p": 0.9})
    logging.getLogger("quietchoir").propagate = True
    with caplog.at_level("WARNING"):
        assert weights.load(path).sampling == SamplingConfig(top_p=0.9)
    assert "general.sampling.temp" in caplog.text and "from 0 to 2" in caplog.text


def test_who_is_nearer_to_the_owner_is_heard_first() -> None:
    owner, catalog, file = (
        SamplingConfig(temperature=0.1, loop_guard=False),
        SamplingConfig(temperature=0.5, top_p=0.9),
        RECOMMENDED,
    )
    assert owner.over(catalog).over(file) == SamplingConfig(
        temperature=0.1, top_p=0.9, top_k=20, min_p=0.01, repetition_penalty=1.05, loop_guard=False
    )
    with pytest.raises(ValueError, match=r"temperature = 3.0 must lie between 0 and 2"):
        SamplingConfig(temperature=3.0)
