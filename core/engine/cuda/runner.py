"""One step through the model on a GPU.

Knows how a batch becomes tensors. Knows nothing of queues, sampling or text.
Always: a step of up to sixteen rows is one recorded graph; padding rows write into a block that belongs to nobody.
"""

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from ...errors import ConfigError
from ...models.transformer import Embedding
from ...models.weights import Weights
from ..blockpool import BLOCK_TOKENS
from ..scheduler import Batch, Span
from .adapters import AdapterSlots
from .cache import Cache
from .decoder import Change, Chunk, DeviceDecoder, Place, unsupported
from .graphs import Graphs, Inputs, size_for
from .operations import Operations, PlainOperations, Step


class CudaRunner:
    """A `LanguageModel` on one device. `operations` and `device` are given in tests; by default the fused kernels on CUDA."""

    def __init__(
        self,
        weights: Weights,
        blocks: int,
        context: int,
        *,
        device: torch.device | None = None,
        operations: Operations | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Move the weights to the device and reserve the cache.

        Args:
            blocks: of the cache.
            context: the longest sequence, tokens.

        Raises:
            ConfigError: this model does something that the device code does not.
        """
        if (reason := unsupported(weights)) is not None:
            raise ConfigError(f"{reason}; it runs on the CPU")
        self.device = device or torch.device("cuda")
        self.cache = Cache(weights.architecture, blocks, self.device)
        self.width = -(-context // BLOCK_TOKENS)  # of a row's table of blocks
        self.embedding = Embedding(weights.tensors["model.embed_tokens.weight"], torch.float32)
        self.embedding_scale = weights.architecture.embedding_scale
        self.slots = AdapterSlots(self.device, dtype)
        place = Place(self.device, dtype)
        self.decoder = DeviceDecoder(weights, place, operations or fused(dtype, self.device), self.width * BLOCK_TOKENS)
        self.graphs = Graphs(self.compute, record=self.device.type == "cuda")

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """See `LanguageModel.forward`; logits come to the CPU, float32."""
        rows = self.embed([token for span in batch.spans for token in span.tokens])
        step = self.step(batch.spans)
        slots = self.slots.place([span.sequence.adapter for span in batch.spans for _ in range(span.count)])
        wanted = torch.tensor(wanted_rows(batch), device=self.device)
        if (size := size_for(len(rows))) is not None:
            inputs = self.padded(Inputs(rows, step, slots), size)
            logits = self.graphs.run(inputs, -1 if slots is None else self.slots.generation)[wanted]
        else:
            out = self.decoder.forward(rows, step, self.cache, self.change(slots), chunks_of(batch.spans))
            logits = self.decoder.logits(out[wanted])
        return logits.float().cpu()

    def read_cache(self, blocks: Items[int]) -> bytes:
        """See `LanguageModel.read_cache`."""
        return self.cache.read_blocks(blocks)

    def write_cache(self, blocks: Items[int], data: bytes) -> None:
        """See `LanguageModel.write_cache`."""
        self.cache.write_blocks(blocks, data)

    def compute(self, inputs: Inputs) -> Tensor:
        """Logits of every row, [M, V]: what a graph records."""
        change = self.change(inputs.slots)
        return self.decoder.logits(self.decoder.forward(inputs.rows, inputs.step, self.cache, change))

    def change(self, slots: Tensor | None) -> Change:
        """What adapters add in a step whose rows have these slots."""
        if slots is None:
            return lambda module, x: None
        return lambda module, x: self.slots.change(module, x, slots)

    def embed(self, tokens: Items[int]) -> Tensor:
        """Rows of the embedding, decoded beside the file: float32 [M, D] on the device."""
        rows: Tensor = self.embedding(torch.tensor(tokens)) * self.embedding_scale
        return rows.to(self.device)

    def step(self, spans: Items[Span]) -> Step:
        """Where the rows of these spans stand."""
        positions = torch.cat([torch.arange(span.start, span.start + span.count) for span in spans])
        tables = torch.zeros(len(spans), self.width, dtype=torch.int32)
        for index, span in enumerate(spans):
            tables[index, : len(span.sequence.blocks)] = torch.tensor(span.sequence.blocks, dtype=torch.int32)
        whole = tables.repeat_interleave(torch.tensor([span.count for span in spans]), dim=0)
        block = whole.gather(1, (positions // BLOCK_TOKENS)[:, None])[:, 0].long()
        places = block * BLOCK_TOKENS + positions % BLOCK_TOKENS
        parts = (positions, places, whole, (positions + 1).to(torch.int32))
        return Step(*(part.to(self.device) for part in parts))

    def padded(self, inputs: Inputs, size: int) -> Inputs:
        """The step with rows added that see one token of nobody's block."""
        more = size - len(inputs.rows)
        if not more:
            return inputs
        step, spare = inputs.step, self.cache.blocks

        def grown(tensor: Tensor, value: float) -> Tensor:
            return torch.cat([tensor, tensor.new_full((more, *tensor.shape[1:]), value)])

        filled = Step(
            grown(step.positions, 0),
            grown(step.places, spare * BLOCK_TOKENS),
            grown(step.tables, spare),
            grown(step.lengths, 1),
        )
        return Inputs(grown(inputs.rows, 0), filled, None if inputs.slots is None else grown(inputs.slots, 0))


def fused(dtype: torch.dtype, device: torch.device) -> Operations:
    """The fused kernels, where Triton and CUDA are; plain torch elsewhere."""
    if device.type != "cuda":
        return PlainOperations(dtype)
    try:
        from .fused import FusedOperations
    except ImportError:
        return PlainOperations(dtype)
    return FusedOperations(dtype)


def wanted_rows(batch: Batch) -> list[int]:
    """Rows whose logits are wanted, in the order of `batch.spans`."""
    rows, stop = list[int](), 0
    for span in batch.spans:
        stop += span.count
        rows += range(stop - span.sampled, stop)
    return rows


def chunks_of(spans: Items[Span]) -> list[Chunk]:
    """The spans of more than one row."""
    chunks, stop = list[Chunk](), 0
    for span in spans:
        start, stop = stop, stop + span.count
        if span.count > 1:
            chunks.append(Chunk(start, stop, span.start))
    return chunks
