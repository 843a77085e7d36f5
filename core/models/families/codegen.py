"""CodeGen: GPT-J whose folders hold q, v and k in one, by the four parts of what trained it. GGUF
files of it are not read.

Source: transformers' `models/codegen`.
"""

import numpy as np

from ..architecture import Architecture
from ..family import qkv_of
from ..quant.tensor import QuantTensor
from .gptj import DEFAULTS, FOLDERS, GptJ

PARTS = 4


class CodeGen(GptJ):
    """Each part holds its heads' queries, then values, then keys."""

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`."""
        there = dict(found)
        if architecture.num_heads % PARTS:
            raise ValueError(f"its {architecture.num_heads} heads do not make {PARTS} parts")
        rows = np.arange(3 * architecture.hidden_size).reshape(PARTS, 3, -1)
        three = tuple(rows[:, place].reshape(-1) for place in (0, 2, 1))
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}."
            qkv_of(there, f"{prefix}self_attn.qkv_proj", prefix, three)
        return there


FAMILY = CodeGen(name="codegen", hf_defaults={"codegen": DEFAULTS}, **FOLDERS)
