"""What the engine asks of a model: one step, and what its cache holds.

Knows batches and blocks. Knows nothing of how anything is computed, nor of torch.
"""

import math
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..models.architecture import Architecture
from ..models.weights import Weights
from .block_pool import BLOCK_TOKENS
from .scheduler import Batch

if TYPE_CHECKING:
    from torch import Tensor


class LanguageModel(Protocol):
    """What the engine asks of a model."""

    def forward(self, batch: Batch) -> "Tensor | NDArray[np.float32]":
        """Run the batch's tokens and remember their keys and values.

        Returns:
            Logits [batch.logit_rows, V], float32, in the processor's memory: of the last
            `span.sampled` rows of each span, in the order of `batch.spans`. What a span's rows hold
            is `span.tokens`, which ends with its drafts.
        """
        ...

    def read_cache(self, blocks: Items[int]) -> bytes:
        """What these blocks of the cache hold, under the label of its layout; see `cachelabel`."""
        ...

    def write_cache(self, blocks: Items[int], data: bytes) -> None:
        """Put what `read_cache` returned for as many blocks into these.

        Raises:
            CacheError: another layout or size; nothing was written.
        """
        ...


def exact(weights: Weights) -> bool:
    """Whether the cache must hold float32: bfloat16 will do beside quantised weights, whose own
    rounding is far coarser.
    """
    return all(blocks.quant_type in ("F32", "F16") for blocks in weights.tensors.values())


def block_bytes(architecture: Architecture, itemsize: int) -> int:
    """Memory of one block over all layers, keys and values.

    Args:
        itemsize: bytes of one number.
    """
    return math.prod(
        (
            2,
            architecture.num_layers,
            BLOCK_TOKENS,
            architecture.num_kv_heads,
            architecture.head_dim,
            itemsize,
        )
    )
