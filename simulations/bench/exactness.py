"""How near the logits of a path come to float32 over the same blocks: one text, teacher-forced.

Knows logits and tokens. Always: every path reads the same file and the same tokens, in the same
windows; what it is measured against is torch's float32, with float32 keys and values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...core.engine.backends.native import library
from ...core.engine.backends.native.network import KV_TYPES, PRECISIONS
from ...core.engine.backends.native.runner import NativeRunner
from ...core.engine.backends.torch_cpu.runner import TorchRunner
from ...core.engine.block_pool import BLOCK_TOKENS
from ...core.engine.request import GenerationRequest
from ...core.engine.scheduler import Batch, Span
from ...core.engine.sequence import Sequence as Tokens
from ...core.models.weights import Weights

WINDOW = 512  # tokens that know nothing of those before
BITS = {"bf16": "16bit", "q8": "8bit", "q4": "4bit"}
Logits = Callable[[Sequence[int]], torch.Tensor]  # of one window, [N, V]


@dataclass
class LogitDistance:
    """Sums over the rows of a text."""

    rows: int = 0
    divergence: float = 0.0
    agreed: int = 0
    surprise: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, own: torch.Tensor, exact: torch.Tensor, tokens: Sequence[int]) -> None:
        """Rows [N, V] of both, and the tokens that they are after."""
        q, p = (torch.log_softmax(rows[:-1].float(), dim=1) for rows in (own, exact))
        self.rows += len(q)
        self.divergence += float((p.exp() * (p - q)).sum())
        self.agreed += int((p.argmax(dim=1) == q.argmax(dim=1)).sum())
        self.surprise -= float(q.gather(1, torch.tensor(tokens[1:]).unsqueeze(1)).sum())
        self.figures = {
            "kl": self.divergence / self.rows,  # nats, of this path from float32
            "top1": 100 * self.agreed / self.rows,  # percent of rows
            "ppl": math.exp(self.surprise / self.rows),
        }


def distances(
    weights: Weights, tokens: Sequence[int], beside: Path | None
) -> dict[str, dict[str, dict[str, float]]]:
    """`exactness` and `kv`, each path's figures by name.

    Args:
        beside: llama.cpp's logits over the same windows, float32 [N, V], or None.
    """
    exact = TorchRunner(weights, WINDOW // BLOCK_TOKENS, compute=torch.float32)
    runners = paths(weights)
    found = {name: LogitDistance() for name in runners}
    theirs = None if beside is None else np.load(beside, mmap_mode="r")
    if theirs is not None:
        found["exactness.llamacpp"] = LogitDistance()
    for start in range(0, len(tokens), WINDOW):
        window = tokens[start : start + WINDOW]
        wanted = rows(exact, window)
        for name, runner in runners.items():
            found[name].add(rows(runner, window), wanted, window)
        if theirs is not None:
            part = torch.from_numpy(np.array(theirs[start : start + len(window)]))
            found["exactness.llamacpp"].add(part, wanted, window)
    report: dict[str, dict[str, dict[str, float]]] = {"exactness": {}, "kv": {}}
    for name, distance in found.items():
        part_of, _, own = name.partition(".")
        report[part_of][own] = distance.figures
    return report


def paths(weights: Weights) -> dict[str, NativeRunner]:
    """What the kernels offer: each precision; each type of keys and values, all else exact."""
    if library.available() is not None:
        return {}
    blocks = WINDOW // BLOCK_TOKENS
    return {
        f"exactness.{name}": NativeRunner(weights, blocks, precision=name) for name in PRECISIONS
    } | {
        f"kv.{BITS[name]}": NativeRunner(weights, blocks, kv_type=name, precision="exact")
        for name in KV_TYPES
    }


def rows(runner: NativeRunner | TorchRunner, window: Sequence[int]) -> torch.Tensor:
    """Logits of a window's rows, [N, V]."""
    sequence = Tokens(GenerationRequest(prompt=tuple(window)))
    sequence.block_table = list(range(-(-len(window) // BLOCK_TOKENS)))
    span = Span(sequence, 0, len(window), len(window))
    return torch.as_tensor(runner.forward(Batch((span,))))
