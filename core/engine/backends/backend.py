"""What the engine asks of whatever computes: a step through the model, and its cache.

Knows batches, blocks, and how saved blocks are labelled. Knows nothing of how anything is computed,
nor of torch.
Always: who holds the cache counts it; saved bytes of one layout are never read as another's.
"""

from collections import abc
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import CacheError
from ...models.weights import Weights
from ..prefix_cache import StateSnapshot
from ..scheduler import Batch
from ..sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor


class LayerWindows(Protocol):
    """Layers whose rows see the latest tokens alone, and their part of the cache."""

    tokens: int  # that a row sees in one of them at most, itself included

    def release(self, blocks: abc.Sequence[int]) -> None:
        """Give back what they hold of these blocks; nobody looks at it again."""
        ...


class RecurrentStates(Protocol):
    """What recurrent layers remember of each sequence beside the cache."""

    saved_bytes: int  # of one in a saved conversation; 0: none is saved

    def snapshot(self, sequence: Sequence) -> StateSnapshot:
        """A copy of a sequence's, as its last step left it. A sequence that `resumes` one begins
        its next span there.
        """
        ...

    def dump(self, state: Any) -> bytes:
        """A snapshot's state for a file."""
        ...

    def load(self, data: bytes) -> Any:
        """What `dump` returned.

        Raises:
            CacheError: another size, or numbers that are not finite.
        """
        ...


class Backend(Protocol):
    """One model on one kind of hardware, with a paged cache of keys and values."""

    # a row's logits are the same to the last bit whatever else is in its step
    deterministic: bool
    # it has threads for a step; else torch's in the engine's thread do the work
    owns_threads: bool
    # what a block of the pool stands for is in that block, and others may find it there; else it is
    # memory beside a sequence's one state, which drafts would spoil
    paged: bool
    block_bytes: int  # of the cache, one block over all layers, keys and values

    @property
    def states(self) -> "RecurrentStates | None":
        """What layers remember beside blocks; None: nothing, or nobody else can go on from it."""
        ...

    @property
    def windows(self) -> "LayerWindows | None":
        """Of layers that do not see everything; None: there are none, or their memory stays
        theirs.
        """
        ...

    def forward(self, batch: Batch) -> "Tensor | NDArray[np.float32]":
        """Run the batch's tokens and write their keys and values.

        Returns:
            Logits [batch.logit_rows, V], float32, in the processor's memory: of the last
            `span.sampled` rows of each span, in the order of `batch.spans`. What a span's rows hold
            is `span.tokens`, which ends with its drafts.
        """
        ...

    def read_cache(self, blocks: abc.Sequence[int]) -> bytes:
        """What these blocks of the cache hold, under the label of its layout."""
        ...

    def write_cache(self, blocks: abc.Sequence[int], data: bytes) -> None:
        """Put what `read_cache` returned for as many blocks into these.

        Raises:
            CacheError: another layout or size; nothing was written.
        """
        ...

    def clear_cache(self, blocks: abc.Sequence[int]) -> None:
        """Fill these blocks with zeros: numbers that are not finite outlive a mask."""
        ...


def is_exact(weights: Weights) -> bool:
    """Whether the cache must hold float32: bfloat16 will do beside quantised weights, whose own
    rounding is far coarser.
    """
    return all(blocks.quant_type in ("F32", "F16") for blocks in weights.tensors.values())


def label(layout: str, payload: bytes) -> bytes:
    """Saved blocks under the name of their layout: one line of text, then the bytes."""
    return layout.encode() + b"\n" + payload


def unlabel(layout: str, data: bytes, size: int) -> memoryview:
    """The payload of `label`.

    Raises:
        CacheError: the label is not `layout`, or the payload has not `size` bytes.
    """
    head = layout.encode() + b"\n"
    if not data.startswith(head):
        found = data[:80].split(b"\n")[0].decode("ascii", "replace")
        raise CacheError(
            f"saved keys and values are laid out as {found!r}, this engine needs "
            f"{layout!r}; let it compute anew"
        )
    if len(data) - len(head) != size:
        raise CacheError(
            f"saved keys and values have {len(data) - len(head)} bytes, expected "
            f"{size}; the file is damaged"
        )
    return memoryview(data)[len(head) :]


class Encoder(Protocol):
    """Whoever computes the vectors of whole texts."""

    def encode(
        self, texts: abc.Sequence[abc.Sequence[int]], seconds: abc.Sequence[int] | None = None, /
    ) -> NDArray[np.float32]:
        """One vector a text, not scaled to length one, [N, D]; each text has a token at least.

        Args:
            seconds: of pairs, where the second text begins, its length where there is none.
        """
        ...
