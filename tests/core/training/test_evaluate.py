"""The exact match without generation against real greedy generation, on the real model."""

import pytest
import torch

from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.lora.adapter import AdapterShape
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.evaluate import misses
from quietchoir.core.training.examples import Example
from quietchoir.core.training.frozen_layers import Prepared, dense_linear
from quietchoir.core.training.trainer import Hyperparameters, Trainer
from quietchoir.tests.fakes.training import conversation

SHAPE = AdapterShape(rank=8, alpha=16.0, upper_layers=2, seed=1)
COLOURS = ("red", "blue", "green", "black")


@pytest.fixture(scope="module")
def trainer(smollm2: Weights) -> Trainer:
    return Trainer(smollm2, SHAPE, precision="float32")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [
        conversation(f"make it {colour}", f"set {colour}", system="Obey.") for colour in COLOURS
    ]


@pytest.fixture(scope="module")
def prepared(trainer: Trainer, examples: list[Example]) -> Prepared:
    return trainer.prepare(examples)


@torch.inference_mode()
def generate(
    trainer: Trainer, lower: Transformer, prompt: tuple[int, ...], limit: int
) -> list[int]:
    """Greedy decoding, one whole forward pass a token, until a stop token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit:
        attention, positions = packed_attention([len(tokens)]), torch.arange(len(tokens))
        x = lower.layers_forward(lower.embed(torch.tensor(tokens)), positions, attention)
        x = trainer.upper.model.layers_forward(x, positions, attention)
        tokens.append(int(trainer.upper.model.logits(x[-1:]).argmax()))
        if tokens[-1] in trainer.weights.tokenizer.stop_tokens:
            break
    return tokens[len(prompt) :]


def test_all_answer_tokens_right_is_the_same_as_a_greedy_match(
    trainer: Trainer, prepared: Prepared
) -> None:
    half = trainer.train(
        torch.zeros(trainer.size),
        first(prepared, 2),
        Hyperparameters(lr=2e-2, batch=2, epochs=8),
        seed=0,
    ).flat_b
    assert trainer.evaluate(half, prepared).total == len(COLOURS)
    missed = misses(trainer.upper, prepared, trainer.weights.tensors["lm_head.weight"])
    hits = [count == 0 for count in missed]
    found = trainer.evaluate(half, prepared)
    assert found.tokens - found.right == sum(missed) and found.accuracy < found.near < 1
    lower = Transformer(
        trainer.weights,
        dense_linear(torch.float32),
        last_layer=trainer.weights.architecture.num_layers - SHAPE.upper_layers,
    )
    for hit, example in zip(hits, prepared.examples, strict=True):
        said = generate(trainer, lower, example.prompt, len(example.answer) + 1)
        assert hit == (said == list(example.answer))
    assert any(hits)
    assert not all(hits)


def first(prepared: Prepared, count: int) -> Prepared:
    """The first examples only."""
    return Prepared(
        prepared.examples[:count], prepared.shared, prepared.start, prepared.own[:count]
    )


def test_an_untrained_model_is_scored_with_nothing_right(
    trainer: Trainer, prepared: Prepared
) -> None:
    score = trainer.evaluate(torch.zeros(trainer.size), prepared)
    assert (score.correct, score.total, score.accuracy) == (0, len(COLOURS), 0.0)


def test_an_answer_ends_with_the_end_of_turn(trainer: Trainer, prepared: Prepared) -> None:
    for example in prepared.examples:
        assert example.answer[-1] in trainer.weights.tokenizer.stop_tokens
        assert not trainer.weights.tokenizer.stop_tokens & set(example.answer[:-1])
