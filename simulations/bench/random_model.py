"""A model file of any size with random weights, for measuring speed where no trained one is at
hand.

Knows Llama's tensor names in GGUF. Knows nothing of what weights mean: its texts are noise.
Always: the same sizes and seed make the same file; the tokenizer is that of the file it is made
from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
GROUP = 32  # weights of one block


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A Llama decoder."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    context: int = 4096

    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """Rows and columns of each matrix of a layer."""
        keys = self.hidden_size // self.num_heads * self.num_kv_heads
        return {
            "attn_q": (self.hidden_size, self.hidden_size),
            "attn_k": (keys, self.hidden_size),
            "attn_v": (keys, self.hidden_size),
            "attn_output": (self.hidden_size, self.hidden_size),
            "ffn_gate": (self.intermediate_size, self.hidden_size),
            "ffn_up": (self.intermediate_size, self.hidden_size),
            "ffn_down": (self.hidden_size, self.intermediate_size),
        }


BILLION = Sizes(
    num_layers=16, hidden_size=2048, intermediate_size=8192, num_heads=32, num_kv_heads=8
)
TINY = Sizes(num_layers=8, hidden_size=64, intermediate_size=128, num_heads=4, num_kv_heads=2)


THIRTEEN = Sizes(
    num_layers=40, hidden_size=5120, intermediate_size=13824, num_heads=40, num_kv_heads=40
)


def write(path: Path, like: Path, sizes: Sizes, *, seed: int, kind: str = "Q4_0") -> Path:
    """Write the file unless it is there: matrices and an embedding that is the head too, float32
    norms; one matrix in memory at a time.

    Args:
        like: a GGUF file of the Llama family, whose tokenizer is taken over.
        kind: "Q4_0", whose embedding is Q8_0, or "F16".
    """
    if path.exists():
        return path
    part = path.with_suffix(".part")
    reader, draws = gguf.GGUFReader(like), np.random.default_rng(seed)
    writer = gguf.GGUFWriter(part, "llama")
    copy_tokenizer(reader, writer)
    for key, value in {
        "block_count": sizes.num_layers,
        "embedding_length": sizes.hidden_size,
        "feed_forward_length": sizes.intermediate_size,
        "attention.head_count": sizes.num_heads,
        "attention.head_count_kv": sizes.num_kv_heads,
        "context_length": sizes.context,
        "rope.dimension_count": sizes.hidden_size // sizes.num_heads,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    matrix, embedding = (four_bit, eight_bit) if kind == "Q4_0" else (sixteen_bit, sixteen_bit)
    tensors = list(tensors_of(sizes, vocabulary))
    for name, shape in tensors:
        announce(writer, name, shape, form_of(name, shape, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in tensors:
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            make = embedding if name == "token_embd" else matrix
            writer.write_tensor_data(make(draws, *shape))
    writer.close()
    part.rename(path)
    return path


def tensors_of(sizes: Sizes, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in the order of the file."""
    yield "token_embd", (vocabulary, sizes.hidden_size)
    yield "output_norm", (sizes.hidden_size,)
    for layer in range(sizes.num_layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}", (sizes.hidden_size,)
        for name, shape in sizes.matrices().items():
            yield f"blk.{layer}.{name}", shape


def form_of(name: str, shape: tuple[int, ...], kind: str) -> gguf.GGMLQuantizationType:
    """The type of one tensor."""
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    wide = kind == "Q4_0" and name == "token_embd"
    return gguf.GGMLQuantizationType["Q8_0" if wide else kind]


def announce(
    writer: Any, name: str, shape: tuple[int, ...], form: gguf.GGMLQuantizationType
) -> None:
    """Describe a tensor that follows."""
    size = gguf.quants.quant_shape_to_byte_shape(shape, form)
    writer.add_tensor_info(
        f"{name}.weight", size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=form
    )


def copy_tokenizer(reader: Any, writer: Any) -> None:
    """Every field of `reader` under `tokenizer.`, into `writer`."""
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            writer.add_key_value(
                name,
                field.contents(),
                kind,
                sub_type=field.types[-1] if kind.name == "ARRAY" else None,
            )


def four_bit(draws: np.random.Generator, rows: int, columns: int) -> Bytes:
    """Q4_0 rows [rows, bytes]: uniform nibbles under one scale that keeps a layer's output as
    large as its input.
    """
    blocks = rows * columns // GROUP
    scale = np.float16(1 / (4.6 * np.sqrt(columns)))  # 4.6: spread of -8 … 7
    return with_scale(scale, draws.integers(0, 256, (blocks, GROUP // 2), np.uint8), rows)


def sixteen_bit(draws: np.random.Generator, rows: int, columns: int) -> Bytes:
    """F16 rows [rows, bytes]."""
    numbers = draws.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
    return numbers.astype(np.float16).view(np.uint8)


def eight_bit(draws: np.random.Generator, rows: int, columns: int) -> Bytes:
    """Q8_0 rows [rows, bytes]."""
    blocks = rows * columns // GROUP
    return with_scale(
        np.float16(1 / (74 * np.sqrt(columns))),
        draws.integers(0, 256, (blocks, GROUP), np.uint8),
        rows,
    )


def with_scale(scale: np.float16, body: Bytes, rows: int) -> Bytes:
    """Blocks [n, bytes] behind one scale, as rows of the matrix."""
    head = np.broadcast_to(np.frombuffer(scale.tobytes(), np.uint8), (len(body), 2))
    return np.concatenate([head, body], axis=1).reshape(rows, -1)
