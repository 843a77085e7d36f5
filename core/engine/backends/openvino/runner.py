"""Prompts on the device that is fastest for them, answers on the compiled kernels.

Knows which parts of a step are whole prompts, and how keys and values get into the engine's cache.
Knows nothing of how either side computes.
Always: a prompt that a device fails at is computed by the kernels in the same step, and the device
is not asked again; whoever waits for the answer sees neither.
"""

from collections import abc
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import DeviceLostError
from ....hardware.plan import PlannedDevice, Planner
from ....models.architecture import Architecture
from ....models.weights import Weights
from ...scheduler import Batch, Span
from ..backend import LayerWindows, RecurrentStates
from ..native.runner import NativeRunner
from . import graph

PREFILL = "prefill"
OWN = "processor"  # the compiled kernels
LEAST_ROWS = 32  # of a prompt that is worth asking which device is faster
F32_BYTES = 4  # of a weight: a graph is dense
# Tokens and rows to logits, keys and values, as `graph`.
PromptDevice = abc.Callable[
    [abc.Sequence[int], abc.Sequence[int]],
    tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
]


class OpenVinoPrompts:
    """One compiled graph on one of OpenVINO's devices."""

    def __init__(self, weights: Weights, device: str = "CPU", threads: int = 0) -> None:
        """Convert and compile (seconds, 4 bytes a weight).

        Args:
            device: as OpenVINO calls it.

        Raises:
            DeviceLostError: no such device, or the graph does not run on it.
        """
        import openvino

        self.device = device
        options = {"INFERENCE_NUM_THREADS": threads} if threads and device == "CPU" else {}
        try:
            model = graph.converted(weights)
            self.compiled: Any = openvino.Core().compile_model(model, device, options)
        except Exception as error:  # what its front ends and drivers raise is open-ended
            raise DeviceLostError(f"OpenVINO's {device}: {error!s:.200}") from error
        self.request: Any = self.compiled.create_infer_request()

    def __call__(
        self, tokens: abc.Sequence[int], rows: abc.Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """As `graph`: logits [M, V], keys and values [L, N, KV, hd].

        Raises:
            DeviceLostError: the device failed, or gave what is no number.
        """
        given = {"tokens": np.array(tokens, np.int64), "rows": np.array(rows, np.int64)}
        try:
            found = self.request.infer(given)
            logits, keys, values = (np.array(found[name]) for name in graph.OUTPUTS)
        except RuntimeError as error:
            raise DeviceLostError(f"OpenVINO's {self.device}: {error!s:.200}") from error
        if not all(np.isfinite(one).all() for one in (logits, keys, values)):
            raise DeviceLostError(f"OpenVINO's {self.device} gave numbers that are not finite")
        return logits, keys, values


def devices_of(weights: Weights, threads: int = 0) -> dict[str, abc.Callable[[], OpenVinoPrompts]]:
    """What makes each of OpenVINO's devices that are here, by name: processor, GPU, NPU.

    Args:
        threads: of the processor's; 0: as many as it likes.
    """
    import openvino

    names = openvino.Core().available_devices
    return {f"OpenVINO {name}": partial(OpenVinoPrompts, weights, name, threads) for name in names}


def unplanned(architecture: Architecture, kv_type: str) -> str | None:
    """Why a model's prompts stay with the kernels, for people; None if they need not."""
    if kv_type != "bf16":
        return f'its keys and values are kept in {kv_type}, not in "bf16"'
    return graph.unsupported(architecture)


class PlannedRunner:
    """A `Backend`: the compiled kernels', which gives whole prompts to another device where that
    measured faster.
    """

    # a row's last bits depend on which device its prompt was computed on
    deterministic = False
    owns_threads = True

    def __init__(
        self,
        weights: Weights,
        inner: NativeRunner,
        others: abc.Mapping[str, abc.Callable[[], PromptDevice]],
        *,
        planner: Planner | None = None,
    ) -> None:
        """Args: others: by name, what makes another device when it is first tried."""
        self.inner, self._make = inner, others
        self.paged, self.block_bytes = inner.paged, inner.block_bytes
        self._made = dict[str, PromptDevice]()
        jobs, size = frozenset({PREFILL}), F32_BYTES * weights.parameters
        devices = [PlannedDevice(OWN, jobs), *(PlannedDevice(name, jobs, size) for name in others)]
        self.planner = planner or Planner(devices)

    @property
    def states(self) -> RecurrentStates | None:
        """See `Backend.states`."""
        return self.inner.states

    @property
    def windows(self) -> LayerWindows | None:
        """See `Backend.windows`."""
        return self.inner.windows

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """See `Backend.forward`."""
        whole = [span for span in batch.spans if is_prompt(span)]
        if not whole:
            return self.inner.forward(batch)
        rest = [span for span in batch.spans if not is_prompt(span)]
        found = {id(span): self.prompt(span) for span in whole}
        if rest:
            logits = self.inner.forward(Batch(tuple(rest)))
            stops = np.cumsum([span.sampled for span in rest])[:-1]
            found |= {
                id(span): own for span, own in zip(rest, np.split(logits, stops), strict=True)
            }
        return np.concatenate([found[id(span)] for span in batch.spans])

    def prompt(self, span: Span) -> NDArray[np.float32]:
        """One whole prompt on the device that the plan says; logits [span.sampled, V]."""
        return self.planner.run(PREFILL, span.count, self.ways(span))

    def ways(self, span: Span) -> dict[str, abc.Callable[[], NDArray[np.float32]]]:
        """How each device computes one whole prompt."""
        return {
            OWN: lambda: self.inner.forward(Batch((span,))),
            **{name: partial(self.elsewhere, name, span) for name in self._make},
        }

    def elsewhere(self, name: str, span: Span) -> NDArray[np.float32]:
        """One prompt on another device, its keys and values into the cache.

        Raises:
            DeviceLostError: it failed; nothing was written.
        """
        if name not in self._made:
            self._made[name] = self._make[name]()
        rows = range(span.count - span.sampled, span.count)
        # a graph without wanted rows is no graph: one is computed, and thrown away
        logits, keys, values = self._made[name](span.tokens, rows or [span.count - 1])
        self.inner.write_prompt(span.sequence.block_table, keys, values)
        return logits[: span.sampled]

    def read_cache(self, blocks: abc.Sequence[int]) -> bytes:
        """See `Backend.read_cache`."""
        return self.inner.read_cache(blocks)

    def write_cache(self, blocks: abc.Sequence[int], data: bytes) -> None:
        """See `Backend.write_cache`."""
        self.inner.write_cache(blocks, data)

    def clear_cache(self, blocks: abc.Sequence[int]) -> None:
        """See `Backend.clear_cache`."""
        self.inner.clear_cache(blocks)

    def close(self) -> None:
        """Give memory and threads back; the runner cannot be used any more."""
        self._made.clear()
        self.inner.close()


def is_prompt(span: Span) -> bool:
    """Does a span begin a sequence, long enough to ask, without an adapter or drafts? Where the
    same text is wanted again the kernels compute it: which device is next may change.
    """
    sequence = span.sequence
    plain = sequence.adapter is None and not span.drafts
    again = sequence.request.sampling_params.repeatable
    return plain and not again and span.start == 0 and span.count >= LEAST_ROWS
