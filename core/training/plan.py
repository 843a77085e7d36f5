"""This machine's plan: which device measured fastest for prompts, answers, embeddings, training.

Knows which sizes of each job are looked at. Knows nothing of how a device does one.
Always: every device does the same job, in turns; a device or a model that is not here is left out
of the plan and not of its words.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

import torch

from .. import parts
from ..config import Config
from ..engine.backends.jobs import DECODE, EMBEDDING, PREFILL, Jobs, add_decoders, add_encoders
from ..errors import ModelError
from ..hardware.plan import Planner
from ..models.embedding import model as embedding_model
from ..models.hub import catalog
from ..models.lora.layout import AdapterShape
from ..models.weights import Weights, load
from .frozen_layers import Prepared
from .packing import TokenExample
from .precision import NAMES
from .trainer import Trainer

TRAINING = "training"
SIZES: Mapping[str, Sequence[int]] = {
    PREFILL: (32, 128, 512),  # tokens
    DECODE: (1, 8),  # answers at once
    EMBEDDING: (1, 32),  # texts
    TRAINING: (8,),  # examples of one step
}
REPEATS = 3
EXAMPLE = (24, 12)  # tokens of a prompt and of an answer that is learned


def measured(
    config: Config, tell: Callable[[str], None] = lambda _: None, *, repeats: int = REPEATS
) -> Planner:
    """Load the configured models, have every device do every job, and plan.

    Args:
        tell: hears what is measured, and what is left out and why.

    Raises:
        ModelError: the configured model cannot be read.
    """
    weights = load(catalog.find(config.engine.model))
    with closing(Jobs()) as jobs:
        add_decoders(jobs, weights, config.engine, longest=max(SIZES[PREFILL]))
        try:
            encoder = embedding_model.read(catalog.find(config.embedding.model))
            add_encoders(jobs, encoder.weights, config.engine.threads)
        except ModelError as error:
            tell(f"no embeddings: {error}")
        add_training(jobs, weights, tell)
        if parts.missing("openvino"):
            tell("OpenVINO's devices are left out: quietchoir[openvino] is not installed")
        return measure(jobs, tell, repeats)


def measure(jobs: Jobs, tell: Callable[[str], None], repeats: int) -> Planner:
    """A plan of what these devices take."""
    planner = Planner(jobs.devices)
    for job in jobs.by_job:
        for size in SIZES[job]:
            tell(f"{job}, {size}")
            planner.measure(job, size, jobs.of(job, size), repeats)
    return planner


def add_training(jobs: Jobs, weights: Weights, tell: Callable[[str], None]) -> None:
    """Torch in each of its number formats: one step of an adapter over the upper layers."""
    layers = min(AdapterShape().upper_layers, weights.architecture.num_layers)
    for name in NAMES:
        try:
            trainer = Trainer(weights, AdapterShape(upper_layers=layers), precision=name)
        except ModelError as error:
            tell(f"no training: {error}")
            return
        jobs.add(f"processor, torch in {name}", {TRAINING: training_work(trainer)})


def training_work(trainer: Trainer) -> Callable[[int], Callable[[], object]]:
    """Steps over so many examples without meaning."""

    def step(examples: int) -> Callable[[], object]:
        prompt, answer = EXAMPLE
        one = TokenExample(tuple(range(1, prompt + 1)), tuple(range(1, answer + 1)))
        width = trainer.weights.architecture.hidden_size
        own = tuple(torch.ones(one.rows, width, dtype=trainer.dtype) for _ in range(examples))
        prepared = Prepared((one,) * examples, 0, own[0][:0], own)
        return lambda: trainer.step(prepared, range(examples))

    return step
