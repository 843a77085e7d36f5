"""How rows look at each other.

Knows queries, keys and values of flat rows. Knows nothing of weights; caches belong to the engine.
Always: a row sees itself and earlier rows of its own sequence, nothing else.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Attention(Protocol):
    """What a forward pass asks of attention; rope is already applied."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, H, hd], k and v [N, KV, hd] -> [N, H, hd]; N rows of any number of sequences."""
        ...


def packed_attention(lengths: Sequence[int]) -> Attention:
    """Causal attention for whole sequences that stand one behind the other, without a cache.

    Args:
        lengths: rows of each sequence, all positive; their sum is N.

    Works under autograd.
    """
    count, longest = len(lengths), max(lengths)
    if min(lengths) < 1:
        raise ValueError(f"sequence lengths must be positive, got {min(lengths)}")
    # Right-padded: a causal row never sees the padding behind it, so no mask is needed.
    place = torch.cat([torch.arange(length) + number * longest for number, length in enumerate(lengths)])

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG001  # the same in every layer
        index = place.to(q.device)

        def spread(rows: Tensor) -> Tensor:  # [N, heads, hd] -> [B, heads, L, hd]
            if len(rows) == count * longest:
                padded = rows
            else:
                padded = rows.new_zeros(count * longest, *rows.shape[1:]).index_copy(0, index, rows)
            return padded.view(count, longest, *rows.shape[1:]).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(spread(q), spread(k), spread(v), is_causal=True, enable_gqa=True)
        flat = mixed.transpose(1, 2).reshape(count * longest, *q.shape[1:])
        return flat if len(q) == len(flat) else flat.index_select(0, index)

    return attend
