"""A tiny llama-style model file, written afresh for tests that break one thing in it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import nn

from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.tokenizer.vocabulary import CONTROL, byte_of_letter

LAYERS, WIDTH, FFN, HEADS, KV_HEADS, HEAD_SIZE = 2, 64, 96, 4, 2, 16
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LETTERS = tuple(sorted(byte_of_letter(), key=lambda letter: byte_of_letter()[letter]))
TOKENS = (*CONTROLS, *LETTERS, "he", "ll", "hell", "Ġhe")
MERGES = ("h e", "l l", "he ll", "Ġ he")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
METADATA: Mapping[str, Any] = {
    "llama.block_count": LAYERS,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": FFN,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.context_length": 128,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": tuple(CONTROL if token in CONTROLS else 1 for token in TOKENS),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.chat_template": TEMPLATE,
}
SHAPES: Mapping[str, tuple[int, ...]] = {
    "token_embd.weight": (len(TOKENS), WIDTH),
    "output_norm.weight": (WIDTH,),
    "output.weight": (len(TOKENS), WIDTH),
} | {
    f"blk.{layer}.{name}.weight": shape
    for layer in range(LAYERS)
    for name, shape in {
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
        "attn_q": (HEADS * HEAD_SIZE, WIDTH),
        "attn_k": (KV_HEADS * HEAD_SIZE, WIDTH),
        "attn_v": (KV_HEADS * HEAD_SIZE, WIDTH),
        "attn_output": (WIDTH, HEADS * HEAD_SIZE),
        "ffn_gate": (FFN, WIDTH),
        "ffn_up": (FFN, WIDTH),
        "ffn_down": (WIDTH, FFN),
    }.items()
}
WriteModel = Callable[..., Path]
MakeLinear = Callable[[QuantTensor], nn.Module]


def write(
    path: Path,
    *,
    family: str = "llama",
    kind: str = "Q8_0",
    metadata: Mapping[str, Any] | None = None,
    shapes: Mapping[str, tuple[int, ...] | None] | None = None,
) -> Path:
    """One model file; `metadata` and `shapes` change what is above, None leaves the thing out."""
    writer = gguf.GGUFWriter(path, family)
    for key, value in {**METADATA, **(metadata or {})}.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, list(value))
    rng = np.random.default_rng(7)
    for name, shape in {**SHAPES, **(shapes or {})}.items():
        if shape is None:
            continue
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2)
        if len(shape) == 1:
            writer.add_tensor(name, values + np.float32(1))
        else:
            form = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Function that writes the tiny model with changes, and returns its path."""

    def write_here(**changes: Any) -> Path:
        return write(tmp_path / "tiny.gguf", **changes)

    return write_here


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, unchanged."""
    return write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def dense_linear(blocks: QuantTensor) -> nn.Module:
    """A plain linear layer of the file's numbers, frozen."""
    linear = nn.Linear(blocks.shape[1], blocks.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(blocks.dequantize(torch.float32), requires_grad=False)
    return linear


@pytest.fixture(scope="session")
def make_linear() -> MakeLinear:
    """`dense_linear`."""
    return dense_linear
