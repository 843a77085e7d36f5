"""An adapter's share of a product, for the rows that ask for it.

Knows which rows of this step belong to which adapter. Knows nothing of requests or files.
Always: rows of no adapter come out exactly as without this module; adapters are summed on, never
merged into weights, so switching one costs nothing and several stand in one batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ....models.architecture import ADAPTED_BESIDE, PROJECTIONS
from ...adapters import LoadedAdapter


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows [start, stop) of a step, and their adapter."""

    start: int
    stop: int
    adapter: LoadedAdapter


class AdapterRows:
    """This step's rows by adapter; every adapted projection looks here."""

    def __init__(self) -> None:
        self.now: tuple[Rows, ...] = ()

    @contextmanager
    def use(self, rows: tuple[Rows, ...]) -> Iterator[None]:
        """Within the block, these rows have these adapters."""
        self.now = rows
        try:
            yield
        finally:
            self.now = ()


class AdaptedLinear(nn.Module):
    """y = W x; on the rows of an adapter that changes this projection gain * W x + shift +
    scale * B A x.
    """

    def __init__(self, inner: nn.Module, module: str, rows: AdapterRows) -> None:
        super().__init__()
        self.inner, self.module, self.rows = inner, module, rows

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] -> [N, rows]."""
        y: Tensor = self.inner(x)
        for group in self.rows.now:
            if factors := group.adapter.factors.get(self.module):
                a, b = factors
                own = y[group.start : group.stop]
                if output := group.adapter.outputs.get(self.module):
                    gain, shift = output
                    own.mul_(gain).add_(shift)
                own.addmm_(x[group.start : group.stop] @ a, b)
        return y


def adapt(transformer: nn.Module, rows: AdapterRows) -> None:
    """Put an `AdaptedLinear` around every projection of every layer."""
    for name, layer in list(transformer.named_modules()):
        holder, _, leaf = name.rpartition(".")
        if any(name.endswith(f".{projection}") for projection in (*PROJECTIONS, *ADAPTED_BESIDE)):
            setattr(transformer.get_submodule(holder), leaf, AdaptedLinear(layer, name, rows))
