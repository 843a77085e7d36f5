"""The adapters that requests can name.

Knows names, factors and the base they belong to. Knows nothing of steps or of what an adapter is
good at; does not import torch.
Always: an adapter is loaded whole or not at all; unloading one or loading another in its place
never disturbs a request that already runs with it.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..models.transformers_model import ServedModel, TransformersModel

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.lora.adapter import Adapter
    from ..models.quant.tensor import QuantTensor


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """One version of an adapter, ready to multiply. Never changed; a request keeps the version
    it started with.
    """

    name: str
    # module -> A transposed [K, r], scale * B transposed [r, rows]
    factors: "Mapping[str, tuple[Tensor, Tensor]]"
    # module, one of the above -> gain and shift [rows]: what becomes of W x before factors are
    # added and the model's own bias after it; modules that are not here keep W x
    outputs: "Mapping[str, tuple[Tensor, Tensor]]" = field(default_factory=dict)
    # of all the numbers: two versions share no keys and values unless they are equal
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        whole = hashlib.sha256()
        for pairs in (self.factors, self.outputs):
            for module, pair in sorted(pairs.items()):
                whole.update(f"{module} {[tuple(one.shape) for one in pair]}\n".encode())
                for one in pair:
                    whole.update(one.detach().cpu().float().contiguous().numpy().tobytes())
        object.__setattr__(self, "digest", whole.hexdigest())  # frozen, and known only now


class AdapterRegistry:
    """Loaded adapters by name; safe to use from several threads while the engine runs."""

    def __init__(
        self, weights: ServedModel, projections: "Mapping[str, QuantTensor] | None" = None
    ) -> None:
        """`projections`: of a model that transformers computes, the tensors that adapters change,
        by name.
        """
        self._weights, self._projections = weights, projections
        self._loaded: dict[str, LoadedAdapter] = {}
        self._lock = threading.Lock()

    def load(self, name: str, adapter: "Adapter") -> None:
        """Load `adapter`; a new version takes the old one's place for all later requests.

        An adapter that names no base at all (a foreign one) is taken if its shapes fit.

        Raises:
            RequestError: trained on another base model, or no name.
            ModelFileError: a matrix that fits no projection of this model.
        """
        if not name:
            raise RequestError("an adapter needs a name; give it one")
        if adapter.base_digest not in ("", self._weights.digest):
            raise RequestError(
                f"adapter {name} was trained on base {adapter.base_digest[:12]}…, this engine runs "
                f"{self._weights.digest[:12]}…; "
                "pull the model it belongs to"
            )
        if isinstance(self._weights, TransformersModel):
            base = self._projections or {}
            adapter.check_projections(base)
        else:
            base = self._weights.tensors
            adapter.check(self._weights.architecture)
            adapter = adapter.in_our_rows(self._weights.architecture)
        loaded = LoadedAdapter(name, *adapter.products(base))
        with self._lock:
            self._loaded[name] = loaded

    def unload(self, name: str) -> None:
        """Unload an adapter.

        Raises:
            RequestError: no such adapter.
        """
        with self._lock:
            if self._loaded.pop(name, None) is None:
                raise RequestError(self._unknown(name))

    def names(self) -> tuple[str, ...]:
        """What requests can name, in alphabetical order."""
        with self._lock:
            return tuple(sorted(self._loaded))

    def find(self, name: str | None) -> LoadedAdapter | None:
        """The version that is loaded now; None for None.

        Raises:
            RequestError: no such adapter.
        """
        if name is None:
            return None
        with self._lock:
            if found := self._loaded.get(name):
                return found
            raise RequestError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        known = ", ".join(sorted(self._loaded)) or "none"
        return f"adapter {name!r:.80} is not loaded; loaded: {known}"
