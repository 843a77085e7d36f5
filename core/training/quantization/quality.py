"""What a model file is worth: its size, how surprised it is by a text, how fast it answers.

Knows the engine as it serves, and texts. Knows nothing of how a file was made.
Always: two files are asked the same, by the same path that would serve them.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...config import EngineConfig
from ...engine.backends.select import select
from ...engine.block_pool import BLOCK_TOKENS
from ...engine.engine import Engine
from ...engine.perplexity import perplexity
from ...engine.request import GenerationRequest
from ...engine.sampling.params import SamplingParams
from ...errors import DataError
from ...models import weights
from ...models.attention import packed_attention
from ...models.files import gguf
from ...models.lora.layout import a_name, b_name
from ...models.quant.tensor import QuantTensor, plain
from ...models.quantization.calibration import WINDOW, pieces
from ...models.tokenizer.tokenizer import Tokenizer
from ...models.transformer import Transformer
from .. import examples
from ..frozen_layers import dense_linear
from ..packing import tokenize

ANSWER, PROMPT = 48, 32  # tokens
READ_MOST = 64 << 20  # bytes of a text


@dataclass(frozen=True, slots=True)
class ModelQuality:
    """One file's."""

    bytes: int
    perplexity: float
    tokens_per_s: float  # of one answer

    def line(self) -> str:
        """For a terminal."""
        return (
            f"{self.bytes / 1e6:,.1f} MB, perplexity {self.perplexity:.3f}, "
            f"{self.tokens_per_s:.1f} tokens/s"
        )


def measure(path: Path, tokens: Sequence[int], size: int) -> ModelQuality:
    """A file or folder of `size` bytes, over a text."""
    loaded = weights.load(path)
    blocks = -(-WINDOW // BLOCK_TOKENS)
    try:
        found = perplexity(select(loaded, EngineConfig()).build(blocks, WINDOW), tokens, WINDOW)
    except OverflowError:  # a model that is none
        found = math.inf
    return ModelQuality(size, found, decode_speed(loaded, tokens))


def decode_speed(loaded: weights.Weights, tokens: Sequence[int]) -> float:
    """Tokens a second of one answer after the text's beginning, on the wall; its prompt's own time
    taken off, the better of two.
    """
    loaded.tokenizer.stop_tokens = frozenset()  # an answer is as long as it is asked for
    engine = Engine(loaded, EngineConfig(drafts=0))
    engine.start()
    try:
        best = 0.0
        for run in range(2):
            start = run * PROMPT
            whole = answer_s(engine, tokens[start : start + PROMPT], ANSWER)
            # another prompt: a prefix that is kept would be read in no time
            first = answer_s(engine, tokens[start + 1 : start + 1 + PROMPT], 1)
            best = max(best, (ANSWER - 1) / max(whole - first, 1e-9))
        return best
    finally:
        engine.stop()


def answer_s(engine: Engine, prompt: Sequence[int], count: int) -> float:
    """Seconds until an answer of `count` tokens is there."""
    begun = time.perf_counter()
    request = GenerationRequest(
        prompt=tuple(prompt), sampling_params=SamplingParams(max_tokens=count)
    )
    engine.submit(request).text()
    return time.perf_counter() - begun


@torch.inference_mode()
def text_loss(
    model: weights.Weights, tokens: Sequence[int], adapter: Mapping[str, Tensor] | None = None
) -> float:
    """Nats a token of a text in float32, in windows that know nothing of each other.

    Args:
        adapter: A and B beside the matrices, by PEFT's names, scaled by 1.
    """
    names = {id(blocks): name.removesuffix(".weight") for name, blocks in model.tensors.items()}
    beside = adapter or {}

    def make(blocks: QuantTensor) -> nn.Module:
        name = names[id(blocks)]
        if a_name(name) in beside:
            change = beside[b_name(name)] @ beside[a_name(name)]
            blocks = plain(blocks.dequantize() + change)
        return dense_linear(torch.float32)(blocks)

    network = Transformer(model, make)
    total, counted = 0.0, 0
    for piece in pieces(tokens):
        window = torch.tensor(piece)
        attend = packed_attention([len(piece) - 1], model.architecture.windows)
        x = network.layers_forward(network.embed(window[:-1]), torch.arange(len(piece) - 1), attend)
        total += float(functional.cross_entropy(network.logits(x), window[1:], reduction="sum"))
        counted += len(piece) - 1
    return total / counted


def size_of(path: Path) -> int:
    """Bytes of a model's tensors on disk."""
    path = weights.model_at(path)
    files = [*path.glob("*.safetensors")] if path.is_dir() else gguf.parts(path)
    return sum(file.stat().st_size for file in files)


def held_out_text() -> str:
    """A text that every Python carries, and that nobody should calibrate on: its language
    reference.
    """
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def read_texts(path: Path, tokenizer: Tokenizer, context: int, count: int) -> list[list[int]]:
    """A file as pieces of tokens, `count` tokens of them, spread evenly: plain text in windows, or
    conversations (.jsonl) as the chat template writes them.

    Raises:
        DataError: not text, or fewer than two tokens.
    """
    window = min(WINDOW, context)
    if path.suffix == ".jsonl":
        rows = tokenize(examples.read_jsonl(path), tokenizer, longest=context)
        cut = [[*row.prompt, *row.answer][:window] for row in rows]
    else:
        try:
            with path.open("rb") as file:
                text = file.read(READ_MOST).decode("utf-8")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read as UTF-8 text ({error}); give a text, or conversations "
                f"as .jsonl"
            ) from error
        cut = pieces(tokenizer.encode(text), window)
    if not cut:
        raise DataError(f"{path}: has fewer than two tokens; give a longer text")
    wanted = max(1, count // window)
    if len(cut) <= wanted:
        return cut
    return [cut[place * len(cut) // wanted] for place in range(wanted)]
