"""Adapters on the device, several in one step.

Knows slots and matrices. Knows nothing of requests.
Always: slot 0 holds zeros, which is what rows without an adapter multiply; an adapter that a step
needs is in a slot before the step begins, and never moves while it is there.
"""

from collections import OrderedDict, abc

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....errors import RequestError
from ...adapters import LoadedAdapter

SLOTS = 16  # different adapters of one step, at most


class AdapterSlots:
    """Factors of up to `SLOTS` adapters, stacked by module: A [slots + 1, K, r], B [slots + 1, r,
    rows].

    Stacks grow by doubling as adapters come, because sixteen adapters of a large model are
    gigabytes and one is not.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, first_layer: int = 0) -> None:
        """`first_layer`: factors of lower ones are not taken: those layers are elsewhere."""
        self.device, self.dtype, self.first_layer = device, dtype, first_layer
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        # a captured step is good as long as this stays: the stacks have not moved
        self.generation = 0
        self.rank, self.room = 0, 1  # of every stack: columns, and adapters beside slot 0
        self._slots: OrderedDict[LoadedAdapter, int] = OrderedDict()  # least recently used first

    def place(self, adapters: abc.Sequence[LoadedAdapter | None]) -> list[int] | None:
        """Slots of these adapters, 0 for none; None where there is none at all.

        Raises:
            RequestError: more than `SLOTS` different ones.
        """
        wanted = list(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        if not wanted:
            return None
        if len(wanted) > SLOTS:
            raise RequestError(
                f"{len(wanted)} different adapters in one step, this device takes "
                f"{SLOTS}; lower max_running"
            )
        for adapter in wanted:
            if adapter in self._slots:
                self._slots.move_to_end(adapter)
        for adapter in wanted:
            if adapter not in self._slots:
                self._load(adapter, keep=wanted)
        return [self._slots[adapter] if adapter else 0 for adapter in adapters]

    def by_row(self, module: str, x: Tensor, slots: Tensor) -> Tensor | None:
        """What the adapters of slots [M] add to as many rows: x [M, K] -> [M, rows]; None if
        none changes the module.
        """
        if module not in self.factors:
            return None
        a, b = self.factors[module]
        return ((x[:, None] @ a[slots]) @ b[slots])[:, 0]

    def by_run(self, module: str, x: Tensor, runs: abc.Sequence[tuple[int, int]]) -> Tensor | None:
        """The same for many rows, given as runs (slot, rows) behind one another: no factor is
        copied for every row.
        """
        if module not in self.factors:
            return None
        a, b = self.factors[module]
        parts = torch.split(x, [rows for _, rows in runs])
        return torch.cat(
            [(part @ a[slot]) @ b[slot] for part, (slot, _) in zip(parts, runs, strict=True)]
        )

    def _load(self, adapter: LoadedAdapter, keep: abc.Sequence[LoadedAdapter]) -> None:
        """Into a free slot, or that of the adapter that was used longest ago.

        Raises:
            RequestError: it does more to a product than add to it.
        """
        if adapter.outputs:
            raise RequestError(
                f"adapter {adapter.name} scales products or trains biases (DoRA, bias, lora_bias), "
                f'which the GPU does not compute; set engine.device = "cpu", or train it without'
            )
        if len(self._slots) == SLOTS:
            self._slots.pop(next(one for one in self._slots if one not in keep))
        taken = set(self._slots.values())
        slot = next(free for free in range(1, SLOTS + 1) if free not in taken)
        factors = {
            module: pair
            for module, pair in adapter.factors.items()
            if layer_of(module) >= self.first_layer
        }
        rank = max((a.shape[1] for a, _ in factors.values()), default=0)
        if rank > self.rank or slot > self.room:
            self._grow(
                max(rank, self.rank), self.room if slot <= self.room else min(SLOTS, 2 * self.room)
            )
        for module, (a, b) in factors.items():
            if module not in self.factors:
                self._add(module, a.shape[0], b.shape[1])
        for module, (into, out) in self.factors.items():
            a_b = factors.get(module)
            into[slot].zero_()
            out[slot].zero_()
            if a_b is not None:
                into[slot, :, : a_b[0].shape[1]] = a_b[0].to(self.device, self.dtype)
                out[slot, : a_b[1].shape[0]] = a_b[1].to(self.device, self.dtype)
        self._slots[adapter] = slot

    def _add(self, module: str, columns: int, rows: int) -> None:
        into = torch.zeros(self.room + 1, columns, self.rank, dtype=self.dtype, device=self.device)
        out = torch.zeros(self.room + 1, self.rank, rows, dtype=self.dtype, device=self.device)
        self.factors[module] = (into, out)
        self.generation += 1

    def _grow(self, rank: int, room: int) -> None:
        """Make every stack wide enough for a higher rank, and long enough for more adapters."""
        wider, longer = rank - self.rank, room - self.room
        for module, (a, b) in self.factors.items():  # one after another: never all stacks twice
            self.factors[module] = (
                pad(a, (0, wider, 0, 0, 0, longer)),
                pad(b, (0, 0, 0, wider, 0, longer)),
            )
        self.rank, self.room = rank, room
        self.generation += 1


def layer_of(module: str) -> int:
    """The number in "model.layers.3.self_attn.q_proj"."""
    return int(module.split(".", 3)[2])
