"""The adapters that requests can name.

Knows names and the base they belong to. Knows nothing of steps or of what an adapter is good at.
Always: an adapter is on the shelf whole or not at all; taking one off or putting another in its
place never disturbs a request that already runs with it.
"""

import threading
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..models.architecture import LORA_A, LORA_B
from ..models.weights import Weights
from .loaded import LoadedAdapter

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.lora.adapter import Adapter


class AdapterShelf:
    """Loaded adapters by name; safe to use from several threads while the engine runs."""

    def __init__(self, weights: Weights) -> None:
        self._architecture, self._digest = weights.architecture, weights.digest
        self._loaded: dict[str, LoadedAdapter] = {}
        self._lock = threading.Lock()

    def load(self, name: str, adapter: "Adapter") -> None:
        """Put `adapter` on the shelf; a new version takes the old one's place for all later
        requests.

        An adapter that names no base at all (a foreign one) is taken if its shapes fit.

        Raises:
            RequestError: trained on another base model, or no name.
            ModelFileError: a matrix that fits no projection of this model.
        """
        if not name:
            raise RequestError("an adapter needs a name; give it one")
        if adapter.base_digest not in ("", self._digest):
            raise RequestError(
                f"adapter {name} was trained on base {adapter.base_digest[:12]}…, this engine runs "
                f"{self._digest[:12]}…; "
                "pull the model it belongs to"
            )
        adapter.check(self._architecture)
        loaded = LoadedAdapter(name, _factors(adapter))
        with self._lock:
            self._loaded[name] = loaded

    def unload(self, name: str) -> None:
        """Take an adapter off the shelf.

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
        """The version now on the shelf; None for None.

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


def _factors(adapter: "Adapter") -> "dict[str, tuple[Tensor, Tensor]]":
    """Each module's A transposed and scale * B transposed, copied, so that later changes to the
    caller's do not reach us.
    """
    modules = {name.removesuffix(LORA_A) for name in adapter.tensors if name.endswith(LORA_A)}
    return {
        module: (
            adapter.tensors[module + LORA_A].float().T.contiguous().clone(),
            (adapter.tensors[module + LORA_B].float() * adapter.shape.scale).T.contiguous(),
        )
        for module in modules
    }
