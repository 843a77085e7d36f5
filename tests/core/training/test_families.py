"""Families that are not Llama train as well: what training computes is what the whole network
computes.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.checkpoint import from_hf
from quietchoir.core.models.lora.adapter import AdapterShape
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.core.training import packing
from quietchoir.core.training.frozen_layers import dense_linear
from quietchoir.core.training.trainer import Hyperparameters, Trainer
from quietchoir.tests.fakes.models import make_model
from quietchoir.tests.fakes.training import VOCABULARY, ByteTokenizer, conversation

EXAMPLES = [conversation("turn it on " * (1 + turn % 3), f"done {turn}") for turn in range(6)]


@pytest.mark.parametrize(
    "name",
    [
        *("gemma3", "mistral", "qwen2", "qwen3", "smollm3", "phi3-long"),
        *("granite", "olmo2", "exaone4", "phi4-mini"),
        *("qwen35", "falcon_h1", "granitehybrid-dense", "nemotron_h"),
    ],
)
def test_training_sees_what_the_whole_network_computes_and_learns(
    name: str, tmp_path: Path
) -> None:
    make_model(name, vocab_size=VOCABULARY).save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    weights = Weights(
        architecture,
        from_hf.name_tensors(tmp_path, architecture),
        ByteTokenizer(),  # type: ignore[arg-type]
        "0" * 64,
    )
    targets = tuple(one.split(".")[1] for one in architecture.projections)
    shape = AdapterShape(rank=4, upper_layers=3, targets=targets)
    trainer = Trainer(weights, shape, precision="float32")
    prepared = trainer.prepare(EXAMPLES)
    x, batch = prepared.batch(range(len(EXAMPLES)))
    answers = trainer.upper.answers(x, batch)

    network = Transformer(weights, dense_linear(torch.float32))
    apart = []
    for example in prepared.examples:
        alone = packing.plan([example], 0)
        attend = packed_attention([len(alone.positions)], architecture.windows)
        whole = network.layers_forward(
            network.embed(packing.input_tokens([example], 0)), alone.positions, attend
        )
        apart.append(
            network.model.norm(whole)[alone.answer_rows[: len(alone.targets)]]
            * architecture.logit_scale
        )
    torch.testing.assert_close(answers, torch.cat(apart), rtol=1e-3, atol=1e-4)

    first = trainer.train(
        torch.zeros(trainer.size), prepared, Hyperparameters(lr=3e-3, batch=6), seed=1
    )
    later = trainer.train(
        first.flat_b, prepared, Hyperparameters(lr=3e-3, batch=6, epochs=8), seed=1
    )
    assert later.loss < first.loss


def test_training_without_the_models_windows_is_refused(tmp_path: Path) -> None:
    make_model("mistral", vocab_size=VOCABULARY).save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    weights = Weights(
        architecture,
        from_hf.name_tensors(tmp_path, architecture),
        ByteTokenizer(),  # type: ignore[arg-type]
        "0" * 64,
    )
    trainer = Trainer(weights, AdapterShape(rank=4, upper_layers=3), precision="float32")
    x, batch = replace(trainer.prepare(EXAMPLES), windows=()).batch([0])
    with pytest.raises(ValueError, match="see windows of rows"):
        trainer.upper.answers(x, batch)
