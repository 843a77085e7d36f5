"""Attention of one step's rows over the paged cache.

Knows spans, blocks and the cache. Knows nothing of weights.
Always: a row sees exactly the tokens of its own sequence up to and including itself, in a windowed
layer the last `window` of them; the step's keys and values are written before any row looks.
"""

from collections import abc, defaultdict
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ....models.attention import SOFTMAX_ALONE, ScoreRule, masked_attention
from ...block_pool import BLOCK_TOKENS
from ...scheduler import Span

LayerStates = dict[int, dict[str, Tensor]]  # what a sequence's layers remember, by their number


class Stored(Protocol):
    """What attention asks of a cache; see `kvcache.KeyValueCache`."""

    dtype: torch.dtype

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None: ...

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]: ...


class StoredRows(Protocol):
    """The same where layers convolve."""

    def write_rows(self, layer: int, places: Tensor, rows: Tensor) -> None: ...

    def read_rows(self, layer: int, places: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Singles:
    """Spans of one row, whose contexts are of similar length, so that padding them to one length
    wastes little.
    """

    rows: Tensor  # [B], where their rows stand in the step
    table: Tensor  # [B, n] block numbers, padded with block 0
    length: int  # of the longest context
    # [B, 1, 1, length], True where a row may look; None where all contexts are equally long
    mask: Tensor | None

    def within(self, window: int) -> Tensor | None:
        """The mask of a layer whose rows see `window` tokens; 0 = all."""
        if not 0 < abs(window) < self.length:
            return self.mask
        position = torch.arange(self.length)
        stop = (
            torch.full((len(self.rows), 1, 1, 1), self.length)
            if self.mask is None
            else self.mask.sum(-1, keepdim=True)
        )
        first = stop - window if window > 0 else (stop - 1) // -window * -window
        return (position < stop) & (position >= first)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of several rows."""

    start: int  # its first row in the step
    stop: int
    table: Tensor  # [1, n]
    length: int
    # [rows, length]; None where the span is the whole context, hence plainly causal
    mask: Tensor | None

    def within(self, window: int) -> Tensor | None:
        """As `Singles.within`."""
        if not 0 < abs(window) < self.length:
            return self.mask
        rows = self.stop - self.start
        offset = self.length - rows  # the first row's own position
        if window < 0:
            run = torch.arange(self.length) // -window
            return (run[offset:, None] == run).tril_(offset)
        return (
            torch.ones(rows, self.length, dtype=torch.bool).tril(offset).triu(offset - window + 1)
        )


class PagedAttention:
    """What `Transformer.layers_forward` calls in each layer; made anew for each step."""

    def __init__(
        self,
        cache: Stored,
        spans: abc.Sequence[Span],
        windows: tuple[int, ...] = (),
        states: abc.Sequence[LayerStates] = (),
    ) -> None:
        """`windows`: the architecture's; `states`: of each span's sequence, where it has one."""
        self.states = states or [{} for _ in spans]
        self.cache, self.windows, self.spans = cache, windows, tuple(spans)
        # by group and window: layers of one window share them
        self.masks: dict[tuple[int, int], Tensor | None] = {}
        self.places = torch.cat([_places(span) for span in spans])  # [N]
        self.positions = torch.cat(
            [torch.arange(span.start, span.start + span.count) for span in spans]
        )  # [N]
        alike: dict[int, list[tuple[int, Span]]] = defaultdict(list)
        self.chunks: list[Chunk] = []
        row = 0
        for span in spans:
            if span.count == 1:
                # Contexts of one power of two together: no context is padded to more than twice its
                # own length.
                alike[span.start.bit_length()].append((row, span))
            else:
                self.chunks.append(_chunk(row, span))
            row += span.count
        self.singles = [_singles(group) for group in alike.values()]

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule = SOFTMAX_ALONE
    ) -> Tensor:
        """q [N, H, hd], k and v [N, KV, hd] -> [N, H, hd]."""
        self.cache.write(layer, self.places, k, v)
        narrow = q.to(self.cache.dtype)
        out = torch.empty_like(narrow)
        for group in self.singles:
            whole = len(group.rows) == len(q)  # the usual step: everyone is answering
            mixed = self._one_row_each(layer, narrow if whole else narrow[group.rows], group, rule)
            if whole:
                return mixed.to(q.dtype)
            out[group.rows] = mixed
        for chunk in self.chunks:
            out[chunk.start : chunk.stop] = self._many_rows(
                layer, narrow[chunk.start : chunk.stop], chunk, rule
            )
        return out.to(q.dtype)

    def sequences(self, layer: int) -> list[tuple[slice, dict[str, Tensor]]]:
        """As `RowMemory.sequences`."""
        found, row = [], 0
        for span, own in zip(self.spans, self.states, strict=True):
            found.append((slice(row, row + span.count), own.setdefault(layer, {})))
            row += span.count
        return found

    def recent(self, layer: int, rows: Tensor, count: int) -> Tensor:
        """As `RowMemory.recent`; rows come back as the cache holds them."""
        cache: StoredRows = self.cache  # type: ignore[assignment]  # of a model that convolves
        cache.write_rows(layer, self.places, rows)
        back = torch.arange(count - 1, -1, -1)
        places = torch.cat([_places_before(span, back) for span in self.spans])
        there = self.positions[:, None] >= back
        return (cache.read_rows(layer, places) * there[..., None]).to(rows.dtype)

    def _one_row_each(self, layer: int, q: Tensor, group: Singles, rule: ScoreRule) -> Tensor:
        """[B, H, hd] -> [B, H, hd]."""
        keys, values = self.cache.read(layer, group.table, group.length)  # [B, KV, length, hd]
        if not rule.plain:
            mask = self._mask(layer, group)
            return masked_attention(q[:, :, None], keys, values, mask, rule)[:, :, 0]
        # The query heads that share a key head stand in the place of query positions: four times as
        # fast as enable_gqa.
        grouped = q.view(len(q), keys.shape[1], -1, q.shape[-1])  # [B, KV, H / KV, hd]
        return nn.functional.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=self._mask(layer, group)
        ).reshape(q.shape)

    def _many_rows(self, layer: int, q: Tensor, chunk: Chunk, rule: ScoreRule) -> Tensor:
        """[n, H, hd] -> [n, H, hd]."""
        keys, values = self.cache.read(layer, chunk.table, chunk.length)
        mask = self._mask(layer, chunk)
        return masked_attention(q.transpose(0, 1)[None], keys, values, mask, rule)[0].transpose(
            0, 1
        )

    def _mask(self, layer: int, group: Singles | Chunk) -> Tensor | None:
        window = self.windows[layer] if self.windows else 0
        key = (id(group), window)
        if key not in self.masks:
            self.masks[key] = group.within(window)
        return self.masks[key]


def _places(span: Span) -> Tensor:
    """Where the span's keys and values go: block * block tokens + offset, [count]."""
    position = torch.arange(span.start, span.start + span.count)
    blocks = torch.tensor(span.sequence.block_table)
    return blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS


def _places_before(span: Span, back: Tensor) -> Tensor:
    """Where rows stand that are so many tokens before each of the span's, [count, len(back)]; the
    sequence's first where there are none.
    """
    position = (torch.arange(span.start, span.start + span.count)[:, None] - back).clamp_min_(0)
    blocks = torch.tensor(span.sequence.block_table)
    return blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS


def _chunk(row: int, span: Span) -> Chunk:
    length = span.start + span.count
    mask = torch.ones(span.count, length, dtype=torch.bool).tril(span.start) if span.start else None
    return Chunk(row, row + span.count, _table([span], length), length, mask)


def _singles(group: abc.Sequence[tuple[int, Span]]) -> Singles:
    spans = [span for _, span in group]
    lengths = torch.tensor([span.start + 1 for span in spans])
    longest = int(lengths.max())
    equal = bool((lengths == longest).all())
    mask = None if equal else (torch.arange(longest)[None] < lengths[:, None])[:, None, None]
    return Singles(torch.tensor([row for row, _ in group]), _table(spans, longest), longest, mask)


def _table(spans: abc.Sequence[Span], length: int) -> Tensor:
    """Block numbers of each span's context, [B, n]; block 0 stands where a shorter one has none,
    and is masked.
    """
    width = -(-length // BLOCK_TOKENS)
    return torch.tensor([(span.sequence.block_table + [0] * width)[:width] for span in spans])
