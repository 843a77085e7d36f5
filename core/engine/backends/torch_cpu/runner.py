"""One step through the model.

Knows rows, positions and the cache. Knows nothing of queues, sampling or text.
Always: rows are flat, so chunks of prompts and single rows of answers share one pass; only rows
that will be sampled reach the head, which is a third of the work.
"""

from collections import abc
from functools import partial
from itertools import accumulate, groupby

import torch
from torch import Tensor

from ....models.transformer import Transformer
from ....models.weights import Weights
from ...adapters import LoadedAdapter
from ...scheduler import Batch, Span
from ..backend import is_exact
from ..states import SequenceStates
from .attention import LayerStates, PagedAttention
from .kernels import copy_fits, linear_for
from .kv_cache import KeyValueCache, block_bytes
from .lora import AdapterRows, Rows, adapt


class TorchRunner:
    """A `Backend` over one set of weights, on the CPU."""

    deterministic = False  # with quantised weights, few and many rows take different kernels
    owns_threads = False
    windows = None

    def __init__(self, weights: Weights, blocks: int, compute: torch.dtype | None = None) -> None:
        """Pack the weights and reserve the cache.

        Args:
            blocks: of the cache.
            compute: float32 asks for the exact path; None for the fastest that this processor has.
        """
        make_linear = partial(linear_for, compute=compute, copy=copy_fits(weights.tensors))
        self.transformer = Transformer(weights, make_linear)
        dtype = cache_dtype(weights, compute)
        self.block_bytes = block_bytes(weights.architecture, dtype)
        self.cache = KeyValueCache(weights.architecture, blocks, dtype)
        self.paged = not weights.architecture.deltas
        self.states = None if self.paged else SequenceStates[LayerStates](dict, dict.clear, copied)
        self.adapter_rows = AdapterRows()
        adapt(self.transformer, self.adapter_rows)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """See `Backend.forward`; logits are float32."""
        # Rows of one adapter stand together, so that each adapter multiplies a slice.
        spans = sorted(batch.spans, key=lambda span: id(span.sequence.adapter))
        tokens = torch.tensor([token for span in spans for token in span.tokens])  # [N]
        # [N]
        positions = torch.cat([torch.arange(span.start, span.start + span.count) for span in spans])
        states = [] if self.states is None else self.states.begin(spans)
        attention = PagedAttention(self.cache, spans, self.transformer.architecture.windows, states)
        with self.adapter_rows.use(rows_by_adapter(spans)):
            x = self.transformer.layers_forward(
                self.transformer.embed(tokens), positions, attention
            )  # [N, D]
        if self.states is not None:
            self.states.end(spans)
        return self.transformer.logits(x[_wanted_rows(batch, spans)]).float()

    def read_cache(self, blocks: abc.Sequence[int]) -> bytes:
        """See `Backend.read_cache`."""
        return self.cache.read_blocks(blocks)

    def write_cache(self, blocks: abc.Sequence[int], data: bytes) -> None:
        """See `Backend.write_cache`."""
        self.cache.write_blocks(blocks, data)

    def clear_cache(self, blocks: abc.Sequence[int]) -> None:
        """See `Backend.clear_cache`."""
        self.cache.clear_blocks(blocks)


def copied(source: LayerStates, target: LayerStates) -> None:
    """One state into another; its tensors are replaced by each step and never written to."""
    target.clear()
    target.update({layer: dict(own) for layer, own in source.items()})


def cache_dtype(weights: Weights, compute: torch.dtype | None) -> torch.dtype:
    """float32 on the exact path and where nothing is quantised, else bfloat16; see
    `backend.is_exact`.
    """
    return torch.float32 if compute is torch.float32 or is_exact(weights) else torch.bfloat16


def rows_by_adapter(spans: abc.Sequence[Span]) -> tuple[Rows, ...]:
    """Slices of the step by adapter; rows without one are left out. Spans of one adapter stand
    side by side.
    """
    groups: list[Rows] = []
    stop = 0
    for adapter, members in groupby(spans, key=lambda span: span.sequence.adapter):
        start, stop = stop, stop + sum(span.count for span in members)
        if isinstance(adapter, LoadedAdapter):
            groups.append(Rows(start, stop, adapter))
    return tuple(groups)


def _wanted_rows(batch: Batch, spans: abc.Sequence[Span]) -> Tensor:
    """Where the rows whose logits are wanted stand in the step, in the order of `batch.spans`,
    [batch.logit_rows].
    """
    stops = dict(
        zip((id(span) for span in spans), accumulate(span.count for span in spans), strict=True)
    )
    wanted = [
        row
        for span in batch.spans
        for row in range(stops[id(span)] - span.sampled, stops[id(span)])
    ]
    return torch.tensor(wanted, dtype=torch.long)
