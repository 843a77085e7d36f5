"""What the devices of this machine take for prompts, answers and embeddings of one model each.

Knows every backend that can do such a job, and jobs of a size without meaning. Knows nothing of how
a plan is made of it.
Always: what cannot run here is left out; memory is given back when `Jobs` is closed.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ... import parts
from ...config import EngineConfig
from ...hardware.plan import PlannedDevice
from ...models.embedding.architecture import EncoderWeights
from ...models.weights import Weights
from ..block_pool import BLOCK_TOKENS
from ..request import GenerationRequest
from ..scheduler import Batch, Span
from ..sequence import Sequence
from .backend import Backend, Encoder
from .native import encoder, library
from .native.runner import NativeRunner, supports

PREFILL, DECODE, EMBEDDING = "prefill", "decode", "embedding"
DEPTH = 64  # tokens before the one that is decoded
TEXT_TOKENS = 48  # of a text that is embedded
Work = Callable[[int], Callable[[], object]]  # of a size
Prompts = Callable[[tuple[int, ...], list[int]], object]  # tokens and rows, as `openvino.graph`


@dataclass(slots=True)
class Jobs:
    """Devices, and how each does a job of some size."""

    devices: list[PlannedDevice] = field(default_factory=list)
    by_job: dict[str, dict[str, Work]] = field(default_factory=dict)
    opened: ExitStack = field(default_factory=ExitStack)

    def add(self, name: str, work: Mapping[str, Work], memory_bytes: int = 0) -> None:
        """One more device, with what it does of each of its jobs."""
        self.devices.append(PlannedDevice(name, frozenset(work), memory_bytes))
        for job, does in work.items():
            self.by_job.setdefault(job, {})[name] = does

    def of(self, job: str, size: int) -> dict[str, Callable[[], object]]:
        """How each device does one job of a size."""
        return {name: does(size) for name, does in self.by_job.get(job, {}).items()}

    def close(self) -> None:
        """Give back what backends hold."""
        self.opened.close()


def add_decoders(jobs: Jobs, weights: Weights, config: EngineConfig, *, longest: int) -> None:
    """The backends of a language model, for prompts of at most `longest` tokens and as many answers
    as `config` runs at once.
    """
    answers = config.max_running * (-(-(DEPTH + 1) // BLOCK_TOKENS))
    blocks = max(-(-longest // BLOCK_TOKENS), answers)
    if supports(weights) is None and library.available() is None:
        native = NativeRunner(weights, blocks, config.threads)
        jobs.opened.callback(native.close)
        jobs.add("processor, compiled", decoder_work(native, weights.vocab_size))
    if not parts.missing("train"):
        from .torch_cpu.runner import TorchRunner

        jobs.add("processor, torch", decoder_work(TorchRunner(weights, blocks), weights.vocab_size))
    if not parts.missing("openvino") and not parts.missing("train"):
        from .openvino import graph, runner

        if graph.unsupported(weights.architecture) is None:
            for name, make in runner.devices_of(weights, config.threads).items():
                work = {PREFILL: prompt_work(make, weights.vocab_size)}
                jobs.add(name, work, runner.F32_BYTES * weights.parameters)


def decoder_work(backend: Backend, vocabulary: int) -> dict[str, Work]:
    """Prompts and answers on one backend; what its cache holds is of no matter."""

    def sequence(tokens: int, first: int) -> Sequence:
        found = Sequence(GenerationRequest(prompt=random_tokens(tokens, vocabulary)))
        blocks = -(-tokens // BLOCK_TOKENS)
        found.block_table = list(range(first, first + blocks))
        return found

    def prefill(rows: int) -> Callable[[], object]:
        batch = Batch((Span(sequence(rows, 0), 0, rows, 1),))
        return lambda: backend.forward(batch)

    def decode(answers: int) -> Callable[[], object]:
        each = -(-(DEPTH + 1) // BLOCK_TOKENS)
        spans = (Span(sequence(DEPTH + 1, each * one), DEPTH, 1, 1) for one in range(answers))
        batch = Batch(tuple(spans))
        return lambda: backend.forward(batch)

    return {PREFILL: prefill, DECODE: decode}


def prompt_work(make: Callable[[], Prompts], vocabulary: int) -> Work:
    """Prompts on a device that is made when it is first asked."""
    made = cache(make)

    def prefill(rows: int) -> Callable[[], object]:
        tokens = random_tokens(rows, vocabulary)
        return lambda: made()(tokens, [rows - 1])

    return prefill


def add_encoders(jobs: Jobs, weights: EncoderWeights, threads: int) -> None:
    """The encoders of an embedding model."""
    found: dict[str, Encoder] = {}
    if library.available() is None and encoder.unsupported(weights.architecture) is None:
        found["processor, compiled encoder"] = encoder.NativeEncoder(weights, threads)
    if not parts.missing("train"):
        from ...models.embedding.torch_encoder import TorchEncoder

        found["processor, torch encoder"] = TorchEncoder(weights)
    for name, one in found.items():
        jobs.add(name, {EMBEDDING: encoder_work(one, weights.architecture.vocab_size)})


def encoder_work(one: Encoder, vocabulary: int) -> Work:
    """So many texts at once."""

    def embed(texts: int) -> Callable[[], object]:
        given = [random_tokens(TEXT_TOKENS, vocabulary, seed) for seed in range(texts)]
        return lambda: one.encode(given)

    return embed


def random_tokens(count: int, vocabulary: int, seed: int = 1) -> tuple[int, ...]:
    """Tokens that mean nothing, the same each time."""
    return tuple(np.random.default_rng(seed).integers(0, vocabulary, count).tolist())
