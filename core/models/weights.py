"""A model file, ready to compute with: sizes, named blocks, tokenizer, digest.

Knows how a family's tensors are called and ordered in the file. Knows nothing of devices or speed.
Always: every tensor is checked against the architecture before anything computes with it; blocks stay as the file
holds them, except that rows of q and k come in half-split rope order (whole rows move, no number changes).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelFileError
from . import architecture as shapes
from . import gguf
from .architecture import FAMILIES, Architecture
from .blocks import Blocks
from .gguf import GgufFile
from .tokenizer import Tokenizer
from .vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One model, shared by everything on this machine that computes with it; nobody changes it."""

    architecture: Architecture
    tensors: Mapping[str, Blocks] = field(
        repr=False
    )  # Hugging Face names; "lm_head.weight" is the embedding's object where they are tied
    tokenizer: Tokenizer = field(repr=False)
    digest: str  # sha256 of the model file, hexadecimal: what an adapter's `base_digest` must equal


def load(path: Path) -> Weights:
    """Map one GGUF file.

    Raises:
        ModelNotFoundError: no such file.
        ModelFileError: not GGUF, cut short, an unknown family or block type, or tensors that do not fit its sizes.
    """
    file = gguf.read(path)
    architecture = shapes.read(file)
    return Weights(architecture, name_tensors(file, architecture), Tokenizer(Vocabulary.read(file)), digest_of(path))


def digest_of(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_tensors(file: GgufFile, architecture: Architecture) -> dict[str, Blocks]:
    """The file's tensors under Hugging Face's names, each with the shape that the architecture demands.

    Raises:
        ModelFileError: a tensor is missing, has another shape, or is none that this family uses.
    """
    family = FAMILIES[architecture.family]
    left = dict(file.tensors)

    def take(theirs: str, expected: tuple[int, int]) -> Blocks:
        blocks = left.pop(f"{theirs}.weight", None)
        if blocks is None or blocks.shape != expected:
            found = "is missing" if blocks is None else f"is {blocks.shape}"
            raise ModelFileError(f"{file.path}: {theirs}.weight {found}, expected {expected}; pull or download it again")
        return blocks

    width, matrix = architecture.width, (architecture.vocabulary, architecture.width)
    theirs = family.model_tensors
    named = {
        "model.embed_tokens.weight": take(theirs["model.embed_tokens"], matrix),
        "model.norm.weight": take(theirs["model.norm"], (1, width)),
    }
    tied = f"{theirs['lm_head']}.weight" not in left
    named["lm_head.weight"] = named["model.embed_tokens.weight"] if tied else take(theirs["lm_head"], matrix)
    for layer in range(architecture.layers):
        for ours, name in family.layer_tensors.items():
            expected = (1, width) if ours.endswith("norm") else architecture.projection(ours)
            blocks = take(f"blk.{layer}.{name}", expected)
            if ours in family.interleaved:
                blocks = blocks.take(half_split(expected[0], architecture.head_size))
            named[f"model.layers.{layer}.{ours}.weight"] = blocks
    if left:
        raise ModelFileError(f"{file.path}: {min(left)} is not part of a {architecture.family} model; choose another file")
    return named


def half_split(rows: int, head_size: int) -> Tensor:
    """Row order that brings interleaved rope pairs (0, 1), (2, 3)… of each head into two halves, [rows]."""
    return torch.arange(rows).view(-1, head_size // 2, 2).transpose(1, 2).reshape(-1)
