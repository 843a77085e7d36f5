"""Random networks of every family's shape, so that the native engine meets sizes that no real
model has.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from quietchoir.core.engine.backends.native.runner import NativeRunner
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import Batch, Span
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.models.architecture import PROJECTIONS, Architecture
from quietchoir.core.models.attention import SOFTMAX_ALONE, ScoreRule, packed_attention
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.blocks import block_size, with_scales
from quietchoir.tests.fakes.engine import byte_tokenizer

SMALL = {
    "family": "llama",
    "num_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 257,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "context_length": 4096,
}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPREAD = {"Q4_0": 4.6, "Q4_1": 4.6, "Q8_0": 74.0}  # deviation of the integers, which are uniform
# deviation, and dmin / d for a mean of 0
SUPER = {"Q4_K": (350.0, 7.5), "Q5_K": (700.0, 15.5), "Q6_K": (1330.0, 0.0)}


class TensorRunner(NativeRunner):
    """The native runner, its logits as tensors, to be compared with torch's."""

    def forward(self, batch: Batch) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(super().forward(batch))


def architecture(**changes: object) -> Architecture:
    """A small decoder with these changes."""
    return Architecture(**{**SMALL, **changes})  # type: ignore[arg-type]


def random_blocks(
    kind: str, rows: int, columns: int, generator: torch.Generator, size: float
) -> QuantTensor:
    """Blocks whose weights have mean 0 and about the deviation `size`."""
    if kind in PLAIN:
        narrow = (torch.randn(rows, columns, generator=generator) * size).to(PLAIN[kind])
        return QuantTensor(
            kind, (rows, columns), narrow.contiguous().view(torch.uint8).view(rows, -1)
        )
    if kind in SUPER:
        return random_super_blocks(kind, rows, columns, generator, size)
    groups = columns // 32
    d = (torch.rand(rows, groups, 1, generator=generator) + 0.5) * size / SPREAD[kind]
    integers = torch.randint(
        0, 256, (rows, groups, 32 if kind == "Q8_0" else 16), generator=generator, dtype=torch.uint8
    )
    scales = [d, -7.5 * d] if kind == "Q4_1" else [d]
    halves = torch.cat([scale.half().view(torch.uint8) for scale in scales], dim=2)
    return QuantTensor(kind, (rows, columns), torch.cat([halves, integers], dim=2).view(rows, -1))


def random_super_blocks(
    kind: str, rows: int, columns: int, generator: torch.Generator, size: float
) -> QuantTensor:
    """The same for the K-quants: random bits under scales that bring mean and deviation about
    right.
    """
    spread, middle = SUPER[kind]
    width, stored = block_size(kind)
    blocks = torch.randint(
        0, 256, (rows * columns // width, stored), generator=generator, dtype=torch.uint8
    ).numpy()
    raw = with_scales(
        kind, blocks, np.tile(np.array([1, middle]) * size / spread, (len(blocks), 1))
    )
    return QuantTensor(kind, (rows, columns), torch.from_numpy(raw).view(rows, -1))


def random_weights(
    shape: Architecture, kind: str = "F32", seed: int = 1, kinds: Mapping[str, str] | None = None
) -> Weights:
    """A whole model; `kinds` names other kinds for projections ("mlp.down_proj") or for
    "lm_head".
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (rows, columns) in shape.shapes().items():
        if rows == 1:
            mean, size = (0.0, 0.3) if name.endswith("bias") else (1.0, 0.2)
            numbers = mean + size * torch.randn(1, columns, generator=generator)
            tensors[name] = QuantTensor("F32", (1, columns), numbers.view(torch.uint8))
            continue
        inner = name.removesuffix(".weight").split(".", 3)[-1]
        size = 1.0 if "embed" in name else 2.0 * columns**-0.5
        tensors[name] = random_blocks(
            (kinds or {}).get(inner, kind), rows, columns, generator, size
        )
    return Weights(shape, tensors, byte_tokenizer(), digest="e" * 64)


def random_factors(
    shape: Architecture, rank: int, seed: int, layers: range | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """An adapter's factors for every projection of `layers` (all of them by default)."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers or range(shape.num_layers):
        for name in PROJECTIONS:
            rows, columns = shape.projection(name)
            a = torch.randn(columns, rank, generator=generator) * columns**-0.5
            found[f"model.layers.{layer}.{name}"] = (
                a,
                torch.randn(rank, rows, generator=generator) * 0.5 * rank**-0.5,
            )
    return found


def sequence(tokens: list[int], blocks: list[int] | range, adapter: object = None) -> Sequence:
    """A sequence that already has its blocks."""
    made = Sequence(
        GenerationRequest(prompt=tuple(tokens), sampling_params=SamplingParams(max_tokens=1))
    )
    made.block_table, made.adapter = list(blocks), adapter  # type: ignore[assignment]
    return made


def whole(found: Sequence, sampled: int | None = None) -> Span:
    """All of a sequence in one span; logits of every row unless `sampled` says of how many."""
    return Span(found, 0, len(found.tokens), len(found.tokens) if sampled is None else sampled)


def step(*spans: Span) -> Batch:
    """One step's work."""
    return Batch(tuple(spans))


def turn(heads: Tensor) -> Tensor:
    """Each head's parts of the largest power of two that divides its size, times a Hadamard
    matrix that keeps lengths; twice is once back.
    """
    size = heads.shape[-1]
    part = size & -size
    matrix = torch.ones(1, 1)
    while len(matrix) < part:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return (heads.unflatten(-1, (-1, part)) @ (matrix * part**-0.5)).flatten(-2)


def stored(numbers: Tensor, kv_type: str) -> Tensor:
    """What a cache of that type gives back of keys or values [N, KV, hd]."""
    if kv_type == "bf16":
        return numbers.bfloat16().float()
    groups = []
    for group in numbers.split(64, dim=-1):
        least, most = group.aminmax(dim=-1, keepdim=True)
        least = least.bfloat16().float() if kv_type == "q4" else torch.zeros_like(least)
        step = (most - least) / 15 if kv_type == "q4" else group.abs().amax(-1, True) / 127.25
        step = step.bfloat16().float()
        lowest, highest = (0, 15) if kv_type == "q4" else (-128, 127)
        groups.append(((group - least) / step).round().clamp(lowest, highest) * step + least)
    return torch.cat(groups, dim=-1)


class RoundedAttention:
    """Plain attention over one sequence; keys and values are rounded as a cache would."""

    def __init__(self, rows: int, windows: tuple[int, ...], kv_type: str) -> None:
        self.windows, self.plain, self.kv_type = windows, packed_attention([rows], windows), kv_type

    def recent(self, layer: int, rows: Tensor, count: int) -> Tensor:
        return self.plain.recent(layer, stored(rows, "bf16"), count)

    def sequences(self, layer: int) -> list[tuple[slice, dict[str, Tensor]]]:
        return self.plain.sequences(layer)

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule = SOFTMAX_ALONE
    ) -> Tensor:
        """q [N, H, hd], k and v [N, KV, hd] -> [N, H, hd]."""
        keys = stored(k, "bf16") if self.kv_type == "bf16" else turn(stored(turn(k), self.kv_type))
        return self.plain(layer, q, keys, stored(v, self.kv_type), rule)


class Oracle:
    """The plain float32 transformer, without a cache."""

    def __init__(self, weights: Weights, kv_type: str = "bf16") -> None:
        self.kv_type = kv_type
        self.transformer = TorchRunner(weights, blocks=1, compute=torch.float32).transformer

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> Tensor:
        """Logits of all rows, [N, V]."""
        attention = RoundedAttention(
            len(tokens), self.transformer.architecture.windows, self.kv_type
        )
        rows = self.transformer.embed(torch.tensor(tokens))
        return self.transformer.logits(
            self.transformer.layers_forward(rows, torch.arange(len(tokens)), attention)
        )
