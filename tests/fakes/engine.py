"""A tiny model and a model of no weights, so that engine tests need neither files nor time."""

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.backend import label, unlabel
from quietchoir.core.engine.block_pool import BLOCK_TOKENS
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import Generation, GenerationRequest
from quietchoir.core.engine.scheduler import Batch
from quietchoir.core.models.architecture import PROJECTIONS, Architecture
from quietchoir.core.models.lora.adapter import Adapter, AdapterShape, assemble
from quietchoir.core.models.lora.layout import Layout
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.tokenizer.tokenizer import Tokenizer
from quietchoir.core.models.tokenizer.vocabulary import CONTROL, Vocabulary, byte_of_letter
from quietchoir.core.models.weights import Weights

END = 256  # the tiny vocabulary: a token for each byte, then the end mark
TINY = Architecture(
    family="llama",
    num_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=END + 1,
    rope_theta=10000.0,
    norm_eps=1e-5,
    context_length=256,
)
TINY_SHAPE = AdapterShape(rank=4, alpha=8.0, upper_layers=2, seed=3)
# One block of keys and values of the tiny model, in float32.
TINY_BLOCK_BYTES = 2 * TINY.num_layers * BLOCK_TOKENS * TINY.num_kv_heads * TINY.head_dim * 4


def byte_tokenizer() -> Tokenizer:
    """Token n is byte n; END ends an answer."""
    letters = {byte: letter for letter, byte in byte_of_letter().items()}
    tokens = (*(letters[byte] for byte in range(256)), "<|endoftext|>")
    kinds = (*([1] * 256), CONTROL)
    return Tokenizer(
        Vocabulary(
            tokens=tokens,
            token_types=kinds,
            merges=(),
            splitting="gpt-2",
            start=(),
            stop=frozenset({END}),
            template="",
        )
    )


def float_blocks(matrix: Tensor) -> QuantTensor:
    """A float32 matrix as blocks."""
    return QuantTensor(
        "F32", (matrix.shape[0], matrix.shape[1]), matrix.contiguous().view(torch.uint8)
    )


def tiny_weights(seed: int = 1) -> Weights:
    """Two layers of random float32 numbers, large enough that the best token is never a matter
    of rounding.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int, size: float) -> QuantTensor:
        return float_blocks(torch.randn(rows, columns, generator=generator) * size)

    tensors = {
        "model.embed_tokens.weight": random(TINY.vocab_size, TINY.hidden_size, 1.0),
        "model.norm.weight": float_blocks(torch.ones(1, TINY.hidden_size)),
        "lm_head.weight": random(TINY.vocab_size, TINY.hidden_size, 1.0),
    }
    for layer in range(TINY.num_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = float_blocks(
                torch.ones(1, TINY.hidden_size)
            )
        for name in PROJECTIONS:
            tensors[f"model.layers.{layer}.{name}.weight"] = random(*TINY.projection(name), 0.3)
    return Weights(TINY, tensors, byte_tokenizer(), digest="d" * 64)


def tiny_adapter(seed: int, base_digest: str = "d" * 64) -> Adapter:
    """An adapter of the tiny model, strong enough to change what it says."""
    size = Layout(TINY_SHAPE, TINY).size
    flat_b = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 0.5
    return assemble(TINY_SHAPE, TINY, base_digest, flat_b)


def merged(weights: Weights, adapter: Adapter) -> Weights:
    """The same model with the adapter added into its matrices."""
    tensors = dict(weights.tensors)
    for name in {name.split(".lora_")[0] for name in adapter.tensors}:
        change = adapter.tensors[f"{name}.lora_B.weight"] @ adapter.tensors[f"{name}.lora_A.weight"]
        tensors[f"{name}.weight"] = float_blocks(
            tensors[f"{name}.weight"].dequantize() + adapter.shape.scale * change
        )
    return Weights(weights.architecture, tensors, weights.tokenizer, weights.digest)


class FakeModel:
    """A `Backend` without weights.

    It keeps tokens where a real one keeps keys and values, and each next token depends on all
    tokens it finds in the sequence's blocks: a lost, shared or stale block changes the answer.
    Never says END.
    """

    deterministic = False
    owns_threads = False
    paged = True
    windows = None
    states = None
    block_bytes = TINY_BLOCK_BYTES  # as if it held float32

    def __init__(self, blocks: int = 64) -> None:
        self.memory = [-1] * (blocks * BLOCK_TOKENS)
        self.batches: list[Batch] = []
        self.fails_on: int | None = None  # a token that makes the step raise
        self.crash: BaseException | None = None  # ends the thread itself
        self.breaks_on: int | None = None  # a token after which the logits are not finite
        self.script: Sequence[int] | None = None  # says these tokens instead

    def forward(self, batch: Batch) -> Tensor:
        """Remember tokens; logits [batch.logit_rows, V]."""
        self.batches.append(batch)
        if self.crash is not None:
            raise self.crash
        rows = []
        for span in batch.spans:
            sequence = span.sequence
            if self.fails_on in span.tokens:
                raise RuntimeError("the fake model was told to fail")
            for position, token in enumerate(span.tokens, span.start):
                self.memory[self._place(sequence.block_table, position)] = token
            stop = span.start + span.count
            context = (
                [self.memory[self._place(sequence.block_table, p)] for p in range(stop)]
                if span.sampled
                else []
            )
            rows += [
                self._logits(context[:length], len(sequence.request.prompt))
                for length in range(stop - span.sampled + 1, stop + 1)
            ]
        return torch.stack(rows) if rows else torch.empty(0, TINY.vocab_size)

    def read_cache(self, blocks: Sequence[int]) -> bytes:
        """The tokens in these blocks."""
        found = [self.memory[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS] for block in blocks]
        return label("fake", torch.tensor(found, dtype=torch.int32).numpy().tobytes())

    def write_cache(self, blocks: Sequence[int], data: bytes) -> None:
        """Remember the tokens of `read_cache`."""
        payload = unlabel("fake", data, len(blocks) * BLOCK_TOKENS * 4)
        for block, tokens in zip(
            blocks,
            torch.frombuffer(bytearray(payload), dtype=torch.int32).split(BLOCK_TOKENS),
            strict=True,
        ):
            self.memory[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS] = tokens.tolist()

    def clear_cache(self, blocks: Sequence[int]) -> None:
        """Token 0 everywhere in these blocks."""
        for block in blocks:
            self.memory[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS] = [0] * BLOCK_TOKENS

    def _place(self, blocks: Sequence[int], position: int) -> int:
        return blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS

    def _logits(self, context: Sequence[int], prompt: int) -> Tensor:
        logits = torch.zeros(TINY.vocab_size)
        if self.breaks_on is not None and self.breaks_on in context:
            return logits / 0
        token = zlib.crc32(repr(context).encode()) % 128
        logits[token if self.script is None else self.script[len(context) - prompt]] = 10.0
        return logits


def config(**changes: object) -> EngineConfig:
    """Limits of a tiny engine."""
    small = {"context": 256, "kv_bytes": 64 * TINY_BLOCK_BYTES}
    return EngineConfig(**{**small, **changes})  # type: ignore[arg-type]


def drain(engine: Engine, until: Callable[[], bool] = lambda: False) -> None:
    """Step an engine that has no thread until nothing is left to do, keeping watch over its
    books.
    """
    while engine.stats().running + engine.stats().waiting and not until():
        engine.step()
        engine.scheduler.check_integrity()


def generate(engine: Engine, requests: Sequence[GenerationRequest]) -> list[str]:
    """Texts of requests that run together."""
    generations: list[Generation] = [engine.submit(request) for request in requests]
    drain(engine)
    return [generation.text() for generation in generations]
