"""One version of an adapter, as requests hold it.

Knows factors and their digest. Knows nothing of steps or files, nor imports torch.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """One version of an adapter, ready to multiply. Never changed; a request keeps the version
    it started with.
    """

    name: str
    factors: (
        "Mapping[str, "
        "tuple[Tensor, "
        "Tensor]]"
    )  # module -> A transposed [K, r], scale * B transposed [r, rows]
    # of all the numbers: two versions share no keys and values unless they are equal
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        whole = hashlib.sha256()
        for module, (a, b) in sorted(self.factors.items()):
            whole.update(f"{module} {tuple(a.shape)} {tuple(b.shape)}\n".encode())
            for factor in (a, b):
                whole.update(factor.detach().cpu().float().contiguous().numpy().tobytes())
        object.__setattr__(self, "digest", whole.hexdigest())  # frozen, and known only now
