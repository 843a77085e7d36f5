"""One step through the model, in one call of the compiled library.

Knows how a batch is told to the library, and which adapters the library holds. Knows nothing of the
model's insides (`network` does). Always: the same seam and the same meaning as `..runner.Runner`,
which is its readable twin.
"""

from collections import Counter, OrderedDict, abc

import numpy as np
from numpy.typing import NDArray

from ....errors import CacheError
from ....hardware.discovery import core_count
from ....models.weights import Weights
from ...adapters import LoadedAdapter
from ...block_pool import BLOCK_TOKENS
from ...scheduler import Batch
from ..backend import label, unlabel
from ..states import FlatStates
from . import library
from .network import (
    Network,
    NetworkStep,
    block_bytes,
    kept_parts,
    kv_bytes,
    scale_bytes,
    state_bytes,
    unsupported,
    windows_of,
)

# of saved keys and values; another one cannot be read
LAYOUTS = {"bf16": "bfloat16", "q8": "8-bit groups of 64", "q4": "4-bit groups of 64"}
KEPT_ADAPTERS = 32  # packed ones beyond those of the step; packing one takes about a millisecond


def supports(weights: Weights) -> str | None:
    """Why the native engine cannot run this model, for people; None if it can."""
    return unsupported(weights.architecture, weights.tensors)


class NativeRunner:
    """A `Backend` over one set of weights, on this processor's vector instructions.

    Keys and values are kept in bfloat16, or in 8 or 4 bits. Activations are quantised to 8 bits
    where weights are quantised, or to more as `precision` says; beside plain numbers they stay
    float32.
    """

    deterministic = True
    owns_threads = True

    def __init__(
        self,
        weights: Weights,
        blocks: int,
        threads: int = 0,
        *,
        kv_type: str = "bf16",
        precision: str = "fast",
    ) -> None:
        """Pack the weights and reserve the cache.

        Args:
            blocks: of the cache.
            threads: that share a step; 0: one for each core that this process may use.
            kv_type: of `network.KV_TYPES`, what keys and values are kept as.
            precision: of `network.PRECISIONS`, how exact activations are.

        Raises:
            EngineError: `supports` has a reason against this model.
        """
        own = self._architecture = weights.architecture
        self.vocabulary = own.vocab_size
        self.block_bytes = block_bytes(own, kv_type)
        self.network = Network(weights, blocks, threads or core_count(), kv_type, precision)
        self.paged = not own.deltas
        self.windows = windows_of(own, self.network.cache, kv_type) if self.paged else None
        numbers = state_bytes(own) // 4
        self.states = None if self.paged else FlatStates(numbers)
        convolve = sum(own.convolutions)
        self._parts = tuple(kept_parts(own, kv_type).values())
        kept = Counter((part.heads, part.size) for part in self._parts)
        inner = " and ".join(f"{n}x{heads}x{size}" for (heads, size), n in kept.items())
        inner += f" and {convolve} rows of {own.hidden_size}" if convolve else ""
        inner += "" if self.paged else f" and a state of {numbers}"
        self.layout = f"native {LAYOUTS[kv_type]} by block {inner}"
        self._kv_type = kv_type
        # by digest, the least recently used first
        self._adapters: OrderedDict[str, int] = OrderedDict()

    @property
    def instruction_set(self) -> str:
        """The vector instructions in use."""
        return library.instruction_set()

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """See `Backend.forward`.

        Raises:
            EngineError: a token or block that does not exist; nothing was written.
        """
        tokens: list[int] = []
        tables: list[int] = []
        spans: list[int] = []
        wanted = 0
        for span in batch.spans:
            blocks = span.sequence.block_table[: -(-(span.start + span.count) // BLOCK_TOKENS)]
            spans += (span.count, span.start, int(span.sampled), len(tables), len(blocks))
            tokens += span.tokens
            tables += blocks
            wanted += int(span.sampled)
        states = [] if self.states is None else self.states.begin(batch.spans)
        addresses = np.array([state.ctypes.data for state in states] or [0], np.uintp)
        adapters = self._packed([span.sequence.adapter for span in batch.spans])
        # one array: three would cost three times as long
        numbers = np.array((*spans, *tokens, *tables), np.int32)
        logits = np.empty((wanted, self.vocabulary), np.float32)
        at = numbers.ctypes.data
        self.network.forward(
            NetworkStep(
                spans=len(batch.spans),
                rows=len(tokens),
                wanted=wanted,
                span=at,
                tokens=at + 4 * len(spans),
                tables=at + 4 * (len(spans) + len(tokens)),
                table_length=len(tables),
                adapters=adapters.ctypes.data,
                states=addresses.ctypes.data if states else None,
                logits=logits.ctypes.data,
            )
        )
        if self.states is not None:
            self.states.end(batch.spans)
        return logits

    def read_cache(self, blocks: abc.Sequence[int]) -> bytes:
        """See `Backend.read_cache`."""
        return label(self.layout, self.network.cache[list(blocks)].tobytes())

    def write_cache(self, blocks: abc.Sequence[int], data: bytes) -> None:
        """See `Backend.write_cache`.

        Raises:
            CacheError: another layout or size, or numbers that are not finite; nothing was written.
        """
        cache = self.network.cache
        shape = (len(blocks), *cache.shape[1:])
        found = np.frombuffer(
            unlabel(self.layout, data, 2 * int(np.prod(shape))), np.uint16
        ).reshape(shape)
        # what says of itself whether it is a number: all of bf16, of integers their scales
        plain = self._kv_type == "bf16"
        ends = [
            None if plain else scale_bytes(part.size, self._kv_type) // 2 for part in self._parts
        ]
        kept = [part.of(found)[..., :end] for part, end in zip(self._parts, ends, strict=True)]
        rows = found[:, kv_bytes(self._architecture, self._kv_type) // 2 :]
        if any(np.any((part & 0x7F80) == 0x7F80) for part in (*kept, rows)):
            raise CacheError(
                "saved keys and values hold numbers that are not finite; the file is "
                "damaged, delete it"
            )
        cache[list(blocks)] = found

    def write_prompt(
        self, blocks: abc.Sequence[int], keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None:
        """Put the keys and values of a sequence's first N tokens, [L, N, KV, hd], into its blocks,
        as `write_kv` (attention.h) lays bfloat16 out.

        Raises:
            CacheError: this cache is of another type, or of another network's heads; nothing was
                written.
        """
        layers, count, heads, size = keys.shape
        there = [(part.heads, part.size) for part in self._parts]
        fits = there == [(heads, size)] * layers and keys.shape == values.shape
        if self._kv_type != "bf16" or not fits:
            raise CacheError(
                f"keys of {layers} layers and {heads} heads do not fit a cache of {len(there)} and "
                f"{there[0][0]} in {self.layout}; keep it in bf16"
            )
        used = -(-count // BLOCK_TOKENS)
        pairs, rows = size // 2, BLOCK_TOKENS // 2
        for at, part, shape, order in (
            # of a block of a head: keys of two neighbouring numbers of all tokens, one behind the
            # other; values of two neighbouring tokens
            (0, keys, (BLOCK_TOKENS, pairs, 2), (1, 0, 2)),
            (BLOCK_TOKENS * size, values, (rows, 2, size), (0, 2, 1)),
        ):
            padded = np.zeros((layers, used * BLOCK_TOKENS, heads, size), np.float32)
            padded[:, :count] = part
            # [blocks, L, KV, tokens, hd], then as it lies
            tiles = padded.reshape(layers, used, BLOCK_TOKENS, heads, size)
            tiles = tiles.transpose(1, 0, 3, 2, 4).reshape(used, layers, heads, *shape)
            tiles = tiles.transpose(0, 1, 2, *(3 + axis for axis in order))
            flat = as_bfloat16(tiles.reshape(used, layers, heads, -1))
            whole = self.network.cache[:, : sum(one.heads * one.bytes for one in self._parts) // 2]
            kv = whole.reshape(len(whole), layers, heads, -1)
            kv[list(blocks[:used]), :, :, at : at + flat.shape[-1]] = flat

    def clear_cache(self, blocks: abc.Sequence[int]) -> None:
        """See `Backend.clear_cache`."""
        self.network.cache[list(blocks)] = 0

    def close(self) -> None:
        """Give memory and threads back; the runner cannot be used any more."""
        self._adapters.clear()
        self.network.close()

    def _packed(self, adapters: abc.Sequence[LoadedAdapter | None]) -> np.ndarray:
        """The library's own copy of each, 0 for none; a new one is packed, the longest unused
        ones are freed.
        """
        for adapter in adapters:
            if adapter is not None:
                if adapter.digest not in self._adapters:
                    self._adapters[adapter.digest] = self.network.adapter(adapter)
                self._adapters.move_to_end(adapter.digest)
        in_use = {adapter.digest for adapter in adapters if adapter is not None}
        while len(self._adapters) > max(KEPT_ADAPTERS, len(in_use)):
            self.network.free_adapter(self._adapters.popitem(last=False)[1])
        return np.array(
            [0 if adapter is None else self._adapters[adapter.digest] for adapter in adapters],
            np.uintp,
        )


def as_bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of finite float32 numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
