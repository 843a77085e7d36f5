"""The lowest layers of a model, on the processor, where a GPU has no room for all.

Knows how rows of a step go through them, and their part of the cache. Knows nothing of the device
or of the layers above.
Always: what comes out is what the first layer on the device gets, so with no layers here it is the
embedding alone; keys and values are rounded as on the device (`cache`), so a token's logits do not
depend on where the cut is.
"""

from collections import abc
from functools import partial

import torch
from torch import Tensor

from ....models.transformer import Transformer
from ....models.weights import Weights
from ...scheduler import Span
from ..torch_cpu.attention import PagedAttention
from ..torch_cpu.kernels import copy_fits, linear_for
from ..torch_cpu.lora import AdapterRows, adapt
from ..torch_cpu.runner import rows_by_adapter
from .cache import Cache

CPU = torch.device("cpu")


class CpuKeys:
    """The 8-bit cache as the processor's attention reads it; see `attention.Stored`."""

    dtype = torch.float32

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [N, KV, hd] at `places` [N]."""
        self.cache.write(layer, places, k, v)

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of B sequences from their blocks [B, n], each [B, KV, length, hd]."""
        keys, values = self.cache.read(layer, table)
        return keys[:, :, :length], values[:, :, :length]


class CpuLayers:
    """Tokens in, the residual stream after the layers [0, `layers`) out."""

    def __init__(
        self, weights: Weights, blocks: int, layers: int, compute: torch.dtype | None = None
    ) -> None:
        """Pack the weights of these layers and reserve their part of the cache.

        Args:
            blocks: of the cache.
            compute: float32 asks for the exact path; None for the fastest that this processor has.
        """
        own = tuple(f"model.layers.{layer}." for layer in range(layers))
        matrices = {
            name: blocks for name, blocks in weights.tensors.items() if name.startswith(own)
        }
        make_linear = partial(linear_for, compute=compute, copy=copy_fits(matrices))
        self.transformer = Transformer(weights, make_linear, last_layer=layers)
        self.cache = Cache(weights.architecture, blocks, CPU, layers=layers)
        self.adapter_rows = AdapterRows()
        adapt(self.transformer, self.adapter_rows)

    def forward(self, spans: abc.Sequence[Span]) -> Tensor:
        """Float32 [M, D] on the processor, in the order of `spans`."""
        # Rows of one adapter stand together, so that each adapter multiplies a slice.
        ordered = sorted(spans, key=lambda span: id(span.sequence.adapter))
        tokens = torch.tensor([token for span in ordered for token in span.tokens])
        x = self.transformer.embed(tokens)
        if self.cache.layers:
            positions = torch.cat(
                [torch.arange(span.start, span.start + span.count) for span in ordered]
            )
            attention = PagedAttention(
                CpuKeys(self.cache), ordered, self.transformer.architecture.windows
            )
            with self.adapter_rows.use(rows_by_adapter(ordered)):
                x = self.transformer.layers_forward(x, positions, attention)
        return x.float()[rows_of(spans, ordered)]


def rows_of(spans: abc.Sequence[Span], ordered: abc.Sequence[Span]) -> Tensor:
    """Where the rows of `spans` stand among those of the same spans in another order, [M]."""
    starts: dict[int, int] = {}
    stop = 0
    for span in ordered:
        starts[id(span)], stop = stop, stop + span.count
    return torch.cat(
        [torch.arange(starts[id(span)], starts[id(span)] + span.count) for span in spans]
    )
