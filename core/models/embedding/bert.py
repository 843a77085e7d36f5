"""A BERT encoder: tokens of whole texts to one vector a token.

Knows BERT's layers and its safetensors folder. Knows nothing of text, pooling or search.
Always: padding changes no result; sizes come from the folder's own config.json and every tensor is
checked against them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ...errors import ModelFileError, ModelNotFoundError
from ..files.lfs_pointer import refuse_pointer


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """Sizes of one encoder."""

    num_layers: int
    hidden_size: int  # D
    intermediate_size: int
    num_heads: int
    vocab_size: int
    max_positions: int  # longest text, in tokens
    norm_eps: float


class Encoder:
    """BERT with absolute positions, float32, inference only."""

    def __init__(self, shape: EncoderShape, tensors: Mapping[str, Tensor]) -> None:
        """`tensors` under Hugging Face's names, as `load` checked them."""
        self.shape = shape
        self._tensors = tensors

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Encode a padded batch.

        Args:
            tokens: ids [B, L], L at most `shape.max_positions`.
            real: bool [B, L], False where padding stands.

        Returns:
            [B, L, D]; rows of padding hold nothing of use.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        table = "embeddings.{}_embeddings.weight".format
        weight = self._tensors
        # Token type 0 everywhere: these are single texts, never pairs.
        x = (
            weight[table("word")][tokens]
            + weight[table("position")][positions]
            + weight[table("token_type")][0]
        )
        x = self._norm("embeddings", x)
        for layer in range(self.shape.num_layers):
            name = f"encoder.layer.{layer}"
            x = self._norm(
                f"{name}.attention.output", x + self._attend(f"{name}.attention", x, real)
            )
            inner = functional.gelu(self._linear(f"{name}.intermediate.dense", x))
            x = self._norm(f"{name}.output", x + self._linear(f"{name}.output.dense", inner))
        return x

    def _attend(self, name: str, x: Tensor, real: Tensor) -> Tensor:
        batch, length, width = x.shape

        def heads(part: str) -> Tensor:  # [B, L, D] -> [B, heads, L, hd]
            return (
                self._linear(f"{name}.self.{part}", x)
                .view(batch, length, self.shape.num_heads, -1)
                .transpose(1, 2)
            )

        mask = real[:, None, None, :]  # every row may look at every real row
        mixed = functional.scaled_dot_product_attention(
            heads("query"), heads("key"), heads("value"), attn_mask=mask
        )
        return self._linear(
            f"{name}.output.dense", mixed.transpose(1, 2).reshape(batch, length, width)
        )

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (
            self._tensors[f"{name}.LayerNorm.weight"],
            self._tensors[f"{name}.LayerNorm.bias"],
        )
        return functional.layer_norm(x, weight.shape, weight, bias, self.shape.norm_eps)


def load(folder: Path) -> Encoder:
    """Read config.json and model.safetensors.

    Raises:
        ModelNotFoundError: one of them is not there.
        ModelFileError: not a BERT encoder as computed here, damaged, or tensors that do not fit the
        sizes.
    """
    shape = read_shape(folder / "config.json")
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path}: no such file; run: quietchoir model pull minilm-l6-v2"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        refuse_pointer(path)
        raise ModelFileError(f"{path}: damaged ({error}); pull it again") from error
    for name, expected in expected_shapes(shape).items():
        found = tensors.get(name)
        if found is None or tuple(found.shape) != expected:
            state = "is missing" if found is None else f"is {tuple(found.shape)}"
            raise ModelFileError(f"{path}: {name} {state}, expected {expected}; pull it again")
    return Encoder(
        shape,
        {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()},
    )


def read_shape(path: Path) -> EncoderShape:
    """Sizes from a Hugging Face config.json.

    Raises:
        ModelNotFoundError, ModelFileError: as `load`.
    """
    config = read_json(path)
    wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ModelFileError(
                f"{path}: {key} is {config[key]!r}, only {value!r} is supported; choose another "
                f"embedding model"
            )
    try:
        shape = EncoderShape(
            num_layers=int(config["num_hidden_layers"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_heads=int(config["num_attention_heads"]),
            vocab_size=int(config["vocab_size"]),
            max_positions=int(config["max_position_embeddings"]),
            norm_eps=float(config["layer_norm_eps"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: {error} is missing or no number; pull the model again"
        ) from error
    if (
        min(shape.num_layers, shape.num_heads, shape.hidden_size) < 1
        or shape.hidden_size % shape.num_heads
        or not math.isfinite(shape.norm_eps)
    ):
        raise ModelFileError(f"{path}: impossible sizes {shape}; pull the model again")
    return shape


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ModelNotFoundError: no such file.
        ModelFileError: not a JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(
            f"{path}: no such file; run: quietchoir model pull minilm-l6-v2"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: not readable JSON ({error}); pull the model again"
        ) from error
    if not isinstance(found, dict):
        raise ModelFileError(
            f"{path}: holds a {type(found).__name__}, expected an object; pull the model again"
        )
    return found


def expected_shapes(shape: EncoderShape) -> dict[str, tuple[int, ...]]:
    """Every tensor that `Encoder` reads, with its shape."""
    width, ffn = shape.hidden_size, shape.intermediate_size
    expected: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocab_size, width),
        "embeddings.position_embeddings.weight": (shape.max_positions, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms = ["embeddings"]
    dense = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
    }
    dense |= {
        "attention.output.dense": (width, width),
        "intermediate.dense": (ffn, width),
        "output.dense": (width, ffn),
    }
    for layer in range(shape.num_layers):
        prefix = f"encoder.layer.{layer}"
        norms += [f"{prefix}.attention.output", f"{prefix}.output"]
        for name, (rows, columns) in dense.items():
            expected |= {
                f"{prefix}.{name}.weight": (rows, columns),
                f"{prefix}.{name}.bias": (rows,),
            }
    for name in norms:
        expected |= {f"{name}.LayerNorm.weight": (width,), f"{name}.LayerNorm.bias": (width,)}
    return expected
