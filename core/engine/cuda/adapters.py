"""Adapters on the device, several in one step.

Knows slots and matrices. Knows nothing of requests.
Always: slot 0 holds zeros, which is what rows without an adapter multiply; an adapter that a step needs is in a slot before the
step begins, and never moves while it is there.
"""

from collections import OrderedDict
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from ...errors import RequestError
from ..lora import LoadedAdapter

SLOTS = 16  # different adapters of one step, at most


class AdapterSlots:
    """Factors of up to `SLOTS` adapters, stacked by module: A [slots + 1, K, r], B [slots + 1, r, rows]."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self.generation = 0  # a captured step is good as long as this stays: the stacks have not moved
        self.rank = 0
        self._slots: OrderedDict[LoadedAdapter, int] = OrderedDict()  # least recently used first

    def place(self, adapters: Items[LoadedAdapter | None]) -> Tensor | None:
        """Slots of a step's rows, int64 [M]; None where no row has an adapter.

        Raises:
            RequestError: more than `SLOTS` different ones.
        """
        wanted = list(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        if not wanted:
            return None
        if len(wanted) > SLOTS:
            raise RequestError(f"{len(wanted)} different adapters in one step, this device takes {SLOTS}; lower max_running")
        for adapter in wanted:
            if adapter in self._slots:
                self._slots.move_to_end(adapter)
        for adapter in wanted:
            if adapter not in self._slots:
                self._load(adapter, keep=wanted)
        return torch.tensor([self._slots[adapter] if adapter else 0 for adapter in adapters], device=self.device)

    def change(self, module: str, x: Tensor, slots: Tensor) -> Tensor | None:
        """What the adapters add to one projection's rows: x [M, K] -> [M, rows]; None if none of them changes it."""
        if module not in self.factors:
            return None
        a, b = self.factors[module]
        return ((x[:, None] @ a[slots]) @ b[slots])[:, 0]

    def _load(self, adapter: LoadedAdapter, keep: Items[LoadedAdapter]) -> None:
        """Into a free slot, or that of the adapter that was used longest ago."""
        if len(self._slots) < SLOTS:
            slot = len(self._slots) + 1
        else:
            slot = self._slots.pop(next(one for one in self._slots if one not in keep))
        rank = max((a.shape[1] for a, _ in adapter.factors.values()), default=0)
        if rank > self.rank:
            self._widen(rank)
        for module, (a, b) in adapter.factors.items():
            if module not in self.factors:
                self._add(module, a.shape[0], b.shape[1])
        for module, (into, out) in self.factors.items():
            a_b = adapter.factors.get(module)
            into[slot].zero_()
            out[slot].zero_()
            if a_b is not None:
                into[slot, :, : a_b[0].shape[1]] = a_b[0].to(self.device, self.dtype)
                out[slot, : a_b[1].shape[0]] = a_b[1].to(self.device, self.dtype)
        self._slots[adapter] = slot

    def _add(self, module: str, columns: int, rows: int) -> None:
        into = torch.zeros(SLOTS + 1, columns, self.rank, dtype=self.dtype, device=self.device)
        out = torch.zeros(SLOTS + 1, self.rank, rows, dtype=self.dtype, device=self.device)
        self.factors[module] = (into, out)
        self.generation += 1

    def _widen(self, rank: int) -> None:
        """Make every stack wide enough for a higher rank."""
        more = rank - self.rank
        self.factors = {
            module: (torch.nn.functional.pad(a, (0, more)), torch.nn.functional.pad(b, (0, 0, 0, more)))
            for module, (a, b) in self.factors.items()
        }
        self.rank = rank
        self.generation += 1
