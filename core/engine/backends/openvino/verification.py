"""Is an exported graph the model? Its logits beside the engine's.

Knows what both sides say of the same tokens. Always: a graph that says something else is deleted.
"""

from collections import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import ModelError
from ....models.weights import Weights
from ...block_pool import BLOCK_TOKENS
from ...request import GenerationRequest
from ...scheduler import Batch, Span
from ...sequence import Sequence
from ..backend import Backend
from ..native.runner import NativeRunner, supports
from ..torch_cpu.runner import TorchRunner

TOKENS = 96  # of the sequence that both are asked of
# Of the logits' own spread: 16-bit weights there and 16-bit keys here are off by a per cent of it.
MOST_ERROR = 0.05


@dataclass(frozen=True, slots=True)
class Verified:
    """How near a graph is."""

    rows: int
    alike: int  # whose likeliest token is the engine's
    error: float  # root mean square of the difference, as a share of the engine's deviation


def verify(weights: Weights, path: Path) -> Verified:
    """Ask the graph at `path` and the engine the same.

    Raises:
        ModelError: they say different things; the graph is deleted.
    """
    import openvino

    tokens = np.random.default_rng(1).integers(0, weights.vocab_size, TOKENS).tolist()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled: Any = openvino.Core().compile_model(path, "CPU", exact)
    given = {"tokens": np.array(tokens, np.int64), "rows": np.arange(TOKENS)}
    theirs = np.array(compiled(given)["logits"])
    ours = engine_logits(weights, tokens)
    error = float(np.sqrt(np.mean((theirs - ours) ** 2)) / ours.std())
    alike = int(np.sum(theirs.argmax(1) == ours.argmax(1)))
    if not error <= MOST_ERROR:  # also where it is no number
        del compiled
        for file in (path, path.with_suffix(".bin")):
            file.unlink(missing_ok=True)
        raise ModelError(
            f"{path}: the graph's logits differ from the engine's by {error:.0%} of their spread, "
            f"{MOST_ERROR:.0%} are allowed; it was deleted, report this model"
        )
    return Verified(TOKENS, alike, error)


def engine_logits(weights: Weights, tokens: list[int]) -> np.ndarray:
    """What the engine's backend says behind each token, [N, V]."""
    blocks = -(-len(tokens) // BLOCK_TOKENS)
    runner: Backend
    if supports(weights):
        runner = TorchRunner(weights, blocks)
    else:
        runner = NativeRunner(weights, blocks, precision="exact")
    found = np.array(runner.forward(span_of(tokens, range(blocks))))
    if isinstance(runner, NativeRunner):
        runner.close()
    return found


def span_of(tokens: abc.Sequence[int], blocks: abc.Sequence[int]) -> Batch:
    """A step of one whole sequence, whose every row's logits are wanted."""
    sequence = Sequence(GenerationRequest(prompt=tuple(tokens)))
    sequence.block_table = list(blocks)
    return Batch((Span(sequence, 0, len(tokens), len(tokens)),))
