"""One step through the model on a GPU, or partly on one.

Knows how a batch becomes tensors, and where the cut between processor and device is. Knows nothing
of queues, sampling or text.
Always: a step of up to sixteen rows is one recorded graph; padding rows write into a block that
belongs to nobody; a step is made on the processor and moves once, as rows of the residual stream,
whether these are embedded tokens or lower layers' output.
"""

from collections import abc
from itertools import repeat

import torch
from torch import Tensor

from ....errors import ConfigError
from ....models.weights import Weights
from ...block_pool import BLOCK_TOKENS
from ...scheduler import Batch, Span
from .adapters import AdapterSlots
from .cache import Cache, block_bytes, clear_blocks, read_blocks, write_blocks
from .cpu_layers import CpuLayers
from .decoder import Change, DeviceDecoder, PromptChunk, WeightPlace, unsupported
from .graphs import Graphs, Inputs, Recorded, size_for
from .ops import DeviceStep, Ops, TorchOps


class CudaRunner:
    """A `Backend` on one device. `ops` and `device` are given in tests; by default
    the fused kernels on CUDA.
    """

    deterministic = False
    owns_threads = False
    paged = True
    windows = None
    states = None

    def __init__(
        self,
        weights: Weights,
        blocks: int,
        context: int,
        *,
        cpu_layers: int = 0,
        device: torch.device | None = None,
        ops: Ops | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Move the weights to the device and reserve the cache.

        Args:
            blocks: of the cache.
            context: the longest sequence, tokens.
            cpu_layers: so many of the lowest layers stay on the processor, their part of the cache
            beside them.

        Raises:
            ConfigError: this model does something that the device code does not.
        """
        if (reason := unsupported(weights)) is not None:
            raise ConfigError(f"{reason}; it runs on the CPU")
        self.device, self.vocabulary = (
            device or torch.device("cuda"),
            weights.architecture.vocab_size,
        )
        self.block_bytes = block_bytes(weights.architecture)
        self.width = -(-context // BLOCK_TOKENS)  # of a row's table of blocks
        self.cpu = CpuLayers(
            weights, blocks, cpu_layers, torch.float32 if dtype is torch.float32 else None
        )
        upper = weights.architecture.num_layers - cpu_layers
        self.cache = Cache(weights.architecture, blocks, self.device, layers=upper)
        self.slots = AdapterSlots(self.device, dtype, first_layer=cpu_layers)
        self.decoder = DeviceDecoder(
            weights,
            WeightPlace(self.device, dtype),
            ops or fused(dtype, self.device),
            self.width * BLOCK_TOKENS,
            first_layer=cpu_layers,
        )
        self.graphs = Graphs(
            self.compute, self.device, Recorded if self.device.type == "cuda" else None
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what packing took on the way: steps are smaller

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """See `Backend.forward`; logits come to the CPU, float32."""
        slots = self.slots.place([span.sequence.adapter for span in batch.spans])
        rows, step = self.cpu.forward(batch.spans), self.step(batch.spans)
        # may be none, inside a prompt
        wanted = torch.tensor(wanted_rows(batch), dtype=torch.long, device=self.device)
        if (size := size_for(len(rows))) is not None:
            inputs = self.padded(Inputs(rows, step, by_rows(batch, slots)), size)
            logits = self.graphs.run(inputs, -1 if slots is None else self.slots.generation)[wanted]
        else:
            moved = Inputs(rows, step, None).on(self.device)
            change = self.change_of_runs(batch, slots)
            out = self.decoder.forward(
                moved.rows, moved.step, self.cache, change, chunks_of(batch.spans)
            )
            logits = (
                self.decoder.logits(out[wanted])
                if len(wanted)
                else out.new_empty(0, self.vocabulary)
            )
        return logits.float().cpu()

    def read_cache(self, blocks: abc.Sequence[int]) -> bytes:
        """See `Backend.read_cache`; the same bytes wherever the cut is."""
        return read_blocks((self.cpu.cache, self.cache), blocks)

    def write_cache(self, blocks: abc.Sequence[int], data: bytes) -> None:
        """See `Backend.write_cache`."""
        write_blocks((self.cpu.cache, self.cache), blocks, data)

    def clear_cache(self, blocks: abc.Sequence[int]) -> None:
        """See `Backend.clear_cache`."""
        clear_blocks((self.cpu.cache, self.cache), blocks)

    def compute(self, inputs: Inputs) -> Tensor:
        """Logits of every row, [M, V]: what a graph records, so nothing in here waits for the
        device or depends on numbers.
        """
        change = self.change_of_rows(inputs.slots)
        return self.decoder.logits(
            self.decoder.forward(inputs.rows, inputs.step, self.cache, change)
        )

    def change_of_rows(self, slots: Tensor | None) -> Change:
        """What adapters add in a step of few rows, which have these slots [M]."""
        if slots is None:
            return unchanged
        return lambda module, x: self.slots.by_row(module, x, slots)

    def change_of_runs(self, batch: Batch, slots: abc.Sequence[int] | None) -> Change:
        """What adapters add in a step of many rows, whose spans have these slots."""
        if slots is None:
            return unchanged
        runs = [(slot, span.count) for slot, span in zip(slots, batch.spans, strict=True)]
        return lambda module, x: self.slots.by_run(module, x, runs)

    def step(self, spans: abc.Sequence[Span]) -> DeviceStep:
        """Where the rows of these spans stand, on the processor."""
        positions = torch.cat([torch.arange(span.start, span.start + span.count) for span in spans])
        tables = torch.zeros(len(spans), self.width, dtype=torch.int32)
        for index, span in enumerate(spans):
            tables[index, : len(span.sequence.block_table)] = torch.tensor(
                span.sequence.block_table, dtype=torch.int32
            )
        whole = tables.repeat_interleave(torch.tensor([span.count for span in spans]), dim=0)
        block = whole.gather(1, (positions // BLOCK_TOKENS)[:, None])[:, 0].long()
        places = block * BLOCK_TOKENS + positions % BLOCK_TOKENS
        return DeviceStep(positions, places, whole, (positions + 1).to(torch.int32))

    def padded(self, inputs: Inputs, size: int) -> Inputs:
        """The step with rows added that see one token of nobody's block."""
        more = size - len(inputs.rows)
        if not more:
            return inputs
        step, spare = inputs.step, self.cache.blocks

        def grown(tensor: Tensor, value: float) -> Tensor:
            return torch.cat([tensor, tensor.new_full((more, *tensor.shape[1:]), value)])

        filled = DeviceStep(
            grown(step.positions, 0),
            grown(step.places, spare * BLOCK_TOKENS),
            grown(step.tables, spare),
            grown(step.lengths, 1),
        )
        return Inputs(
            grown(inputs.rows, 0), filled, None if inputs.slots is None else grown(inputs.slots, 0)
        )


def unchanged(module: str, x: Tensor) -> Tensor | None:  # noqa: ARG001
    """No adapter in this step."""
    return None


def fused(dtype: torch.dtype, device: torch.device) -> Ops:
    """The fused kernels, where Triton and CUDA are; plain torch elsewhere."""
    if device.type != "cuda":
        return TorchOps(dtype)
    try:
        from .triton_ops import TritonOps
    except ImportError:
        return TorchOps(dtype)
    return TritonOps(dtype)


def by_rows(batch: Batch, slots: abc.Sequence[int] | None) -> Tensor | None:
    """The slot of each row, int64 [M], from those of the spans."""
    if slots is None:
        return None
    return torch.tensor(
        [
            one
            for slot, span in zip(slots, batch.spans, strict=True)
            for one in repeat(slot, span.count)
        ]
    )


def wanted_rows(batch: Batch) -> list[int]:
    """Rows whose logits are wanted, in the order of `batch.spans`."""
    rows, stop = list[int](), 0
    for span in batch.spans:
        stop += span.count
        rows += range(stop - span.sampled, stop)
    return rows


def chunks_of(spans: abc.Sequence[Span]) -> list[PromptChunk]:
    """The spans of more than one row."""
    chunks, stop = list[PromptChunk](), 0
    for span in spans:
        start, stop = stop, stop + span.count
        if span.count > 1:
            chunks.append(PromptChunk(start, stop, span.start))
    return chunks
