"""How rows look at each other.

Knows queries, keys and values of flat rows. Knows nothing of weights; caches belong to the engine.
Always: a row sees itself and earlier rows of its own sequence, nothing else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """What becomes of a layer's scores besides the softmax."""

    softcap: float = 0.0  # c * tanh(score / c); 0.0 = as they are
    sinks: Tensor | None = None  # [H]: a score of each head that takes part and mixes nothing
    slopes: Tensor | None = None  # [H]: by how much a score falls with each token of distance

    @property
    def plain(self) -> bool:
        """Whether nothing does."""
        return not self.softcap and self.sinks is None and self.slopes is None


SOFTMAX_ALONE = ScoreRule()


class Attention(Protocol):
    """What a forward pass asks of attention; rope is already applied.

    An attention for a model with windows says so: its attribute `windows` equals the
    architecture's, or the forward pass refuses it. One that knows of none needs no such attribute.
    """

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule = SOFTMAX_ALONE
    ) -> Tensor:
        """q [N, H, hd], k and v [N, KV, hd] -> [N, H, hd]; N rows of any number of sequences."""
        ...


class RowMemory(Protocol):
    """What a forward pass asks of an attention where a layer convolves."""

    def recent(self, layer: int, rows: Tensor, count: int) -> Tensor:
        """The last `count` rows of its sequence for each of rows [N, D], itself last and zeros
        before the first, [N, count, D].
        """
        ...

    def sequences(self, layer: int) -> "Iterable[tuple[slice, dict[str, Tensor]]]":
        """Each sequence's rows in the step, and what this layer remembers of it, by name: empty
        before its first row; whoever computes writes it anew before the next is asked for.
        """
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
        self.lengths = tuple(lengths)
        # Right-padded: a causal row never sees the padding behind it, so no mask is needed.
        self.place = torch.cat(
            [torch.arange(length) + number * self.longest for number, length in enumerate(lengths)]
        )

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule = SOFTMAX_ALONE
    ) -> Tensor:
        """As `Attention`."""
        mask = window_mask(self.longest, self.windows[layer] if self.windows else 0, q.device)
        mixed = masked_attention(self.spread(q), self.spread(k), self.spread(v), mask, rule)
        flat = mixed.transpose(1, 2).reshape(self.count * self.longest, *q.shape[1:])
        return flat if len(q) == len(flat) else flat.index_select(0, self.place.to(q.device))

    def sequences(self, layer: int) -> "list[tuple[slice, dict[str, Tensor]]]":  # noqa: ARG002
        """As `RowMemory.sequences`; nothing is remembered."""
        ends = list(accumulate(self.lengths))
        starts = (0, *ends[:-1])
        return [(slice(start, end), {}) for start, end in zip(starts, ends, strict=True)]

    def recent(self, layer: int, rows: Tensor, count: int) -> Tensor:  # noqa: ARG002
        """As `RowMemory.recent`."""
        position = torch.cat([torch.arange(length) for length in self.lengths])
        back = torch.arange(count - 1, -1, -1)
        place = (torch.arange(len(rows))[:, None] - back).clamp_min_(0).to(rows.device)
        there = (position[:, None] >= back).to(rows.device)
        return rows[place] * there[..., None]

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


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rule: ScoreRule
) -> Tensor:
    """q [B, H, L, hd], k and v [B, KV, S, hd] -> [B, H, L, hd].

    Args:
        mask: who sees whom, bool [L, S] or [B, 1, 1, S]; None = the last L rows of S, causally.
    """
    if rule.plain:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
    rows, seen, groups = q.shape[2], k.shape[2], k.shape[1]
    if mask is None:
        mask = torch.ones(rows, seen, dtype=torch.bool, device=q.device).tril_(seen - rows)
    elif mask.dim() == 4:
        mask = mask[:, :, None]
    wide = q.reshape(len(q), groups, -1, rows, q.shape[-1])  # [B, KV, H / KV, L, hd]
    scores = (wide @ k[:, :, None].transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if rule.softcap:
        scores = rule.softcap * (scores / rule.softcap).tanh()
    if rule.slopes is not None:
        # as far from the last one: what a row's scores have in common is in none of its shares
        distance = torch.arange(seen - 1, -1, -1, device=q.device)
        scores = scores - rule.slopes.view(1, groups, -1, 1, 1) * distance
    scores = scores.masked_fill(~mask, -torch.inf)
    if rule.sinks is not None:
        sinks = rule.sinks.float().view(1, groups, -1, 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], dim=-1)
    shares = scores.softmax(-1)[..., :seen].to(v.dtype)
    mixed: Tensor = shares @ v[:, :, None]
    return mixed.view(q.shape)


def window_mask(length: int, window: int, device: torch.device | None = None) -> Tensor | None:
    """Who sees whom, bool [length, length], as `Architecture.window` has it; None where plain
    causality says it all.
    """
    if not 0 < abs(window) < length:
        return None
    if window < 0:
        run = torch.arange(length, device=device) // -window
        return (run[:, None] == run).tril_()
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
