"""Is an exported graph the model? Its logits beside the engine's.

Knows what both sides say of the same tokens. Always: a graph that says something else is refused.
"""

from collections import abc
from collections.abc import Callable, Mapping
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
from ..openvino import graph
from ..torch_cpu.runner import TorchRunner
from . import onnx

# What each runtime's graph is, the graph itself last, and who writes it into a folder.
FILES: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino_model.bin", "openvino_model.xml"),
    "onnx": (onnx.WEIGHTS, onnx.FILE),
}
SAVED: Mapping[str, Callable[[Weights, Path], Path]] = {"openvino": graph.save, "onnx": onnx.save}
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
        ModelError: they say different things.
    """
    tokens = np.random.default_rng(1).integers(0, weights.vocab_size, TOKENS).tolist()
    ask = onnx.logits if path.name == onnx.FILE else openvino_logits
    theirs, ours = ask(path, tokens), engine_logits(weights, tokens)
    error = float(np.sqrt(np.mean((theirs - ours) ** 2)) / ours.std())
    alike = int(np.sum(theirs.argmax(1) == ours.argmax(1)))
    if not error <= MOST_ERROR:  # also where it is no number
        raise ModelError(
            f"{path.name}: the graph's logits differ from the engine's by {error:.0%} of their "
            f"spread, {MOST_ERROR:.0%} are allowed; it is not kept, report this model"
        )
    return Verified(TOKENS, alike, error)


def openvino_logits(path: Path, tokens: abc.Sequence[int]) -> np.ndarray:
    """What OpenVINO's processor says behind each token, float32 [N, V]."""
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled: Any = openvino.Core().compile_model(path, "CPU", exact)
    given = {"tokens": np.array(tokens, np.int64), "rows": np.arange(len(tokens))}
    return np.array(compiled(given)[graph.OUTPUTS[0]])


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
