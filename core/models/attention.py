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
    """What a forward pass asks of attention; rope is already applied.

    An attention for a model with windows says so: its attribute `windows` equals the
    architecture's, or the forward pass refuses it. One that knows of none needs no such attribute.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, H, hd], k and v [N, KV, hd] -> [N, H, hd]; N rows of any number of sequences."""
        ...


class PackedAttention:
    """Causal attention for whole sequences that stand one behind the other, without a cache.
    Works under autograd.
    """

    def __init__(self, lengths: Sequence[int], windows: tuple[int, ...] = ()) -> None:
        """`lengths`: rows of each sequence, all positive; `windows`: the architecture's."""
        if min(lengths) < 1:
            raise ValueError(f"sequence lengths must be positive, got {min(lengths)}")
        self.windows, self.count, self.longest = windows, len(lengths), max(lengths)
        # Right-padded: a causal row never sees the padding behind it, so no mask is needed.
        self.place = torch.cat(
            [torch.arange(length) + number * self.longest for number, length in enumerate(lengths)]
        )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `Attention`."""
        mask = window_mask(self.longest, self.windows[layer] if self.windows else 0, q.device)
        mixed = functional.scaled_dot_product_attention(
            self.spread(q),
            self.spread(k),
            self.spread(v),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        flat = mixed.transpose(1, 2).reshape(self.count * self.longest, *q.shape[1:])
        return flat if len(q) == len(flat) else flat.index_select(0, self.place.to(q.device))

    def spread(self, rows: Tensor) -> Tensor:
        """[N, heads, hd] -> [B, heads, L, hd]."""
        padded = rows
        if len(rows) != self.count * self.longest:
            padded = rows.new_zeros(self.count * self.longest, *rows.shape[1:])
            padded = padded.index_copy(0, self.place.to(rows.device), rows)
        return padded.view(self.count, self.longest, *rows.shape[1:]).transpose(1, 2)


def packed_attention(lengths: Sequence[int], windows: tuple[int, ...] = ()) -> PackedAttention:
    """`PackedAttention` of sequences of these lengths; their sum is N."""
    return PackedAttention(lengths, windows)


def window_mask(length: int, window: int, device: torch.device | None = None) -> Tensor | None:
    """Who sees whom, bool [length, length]: row r sees rows r - window + 1 to r; None where
    plain causality says it all.
    """
    if not 0 < window < length:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril_().triu_(1 - window)


def check_windows(attention: Attention, windows: tuple[int, ...]) -> None:
    """Refuse an attention that would let rows of a windowed layer see too much.

    Raises:
        ValueError: it knows other windows than the architecture's, or none.
    """
    if windows and getattr(attention, "windows", ()) != windows:
        raise ValueError(
            "this model's layers see windows of rows, and the attention it was given "
            "does not keep them"
        )
