"""What a node adds to the shared adapter: B_p, over the same public A.

Knows one flat vector. Knows nothing of files, training or messages.
Always: a change shows its length and nothing else, cannot be pickled, and is no array: nothing that
writes messages takes it.

LoRA is linear in B: (B_s + B_p) A x = B_s A x + B_p A x. Over one A, the shared and the personal
part are again one adapter of the same rank, so a personal adapter costs in the engine what the
shared one costs.
"""

from typing import NoReturn

import torch
from torch import Tensor

from ...core.errors import IntegrityError, RequestError
from ...core.models.lora.adapter import Adapter
from ...core.models.lora.layout import Layout, frozen_a
from ...core.models.weights import Weights


class PersonalChange:
    """B_p, float32 [n].

    Hazard: it holds what its owner's own examples taught it, in clear. There is no way from here
    into a message; keep it so.
    """

    __slots__ = ("_flat",)

    def __init__(self, flat: Tensor) -> None:
        self._flat = flat.detach().to("cpu", torch.float32).clone()

    @staticmethod
    def nothing(size: int) -> "PersonalChange":
        """B_p = 0: the shared adapter as it is."""
        return PersonalChange(torch.zeros(size))

    @staticmethod
    def between(shared: Tensor, whole: Tensor) -> "PersonalChange":
        """What `whole` [n] adds to `shared` [n]."""
        return PersonalChange(whole.detach().to("cpu", torch.float32) - shared)

    def upon(self, shared: Tensor) -> Tensor:
        """B_s + B_p, float32 [n]: the personal adapter over this shared one.

        Raises:
            ValueError: another length.
        """
        if shared.shape != self._flat.shape:
            raise ValueError(
                f"a change of {len(self._flat)} values does not fit a shared adapter "
                f"of {tuple(shared.shape)}"
            )
        return shared + self._flat

    def __len__(self) -> int:
        return len(self._flat)

    def __repr__(self) -> str:
        return f"Change({len(self._flat)} values)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a personal change stays in its process; keep it as an adapter in the registry instead"
        )


def shared_b(adapter: Adapter, weights: Weights) -> Tensor:
    """B of an adapter over the public A of its shape, float32 [n].

    Raises:
        IntegrityError: made for another model.
        ModelFileError: another shape. RequestError: another A: what is trained over the public one
        could not be added to it.
    """
    if adapter.base_digest != weights.digest:
        raise IntegrityError(
            f"the adapter was made for model {adapter.base_digest[:12]}…, found "
            f"{weights.digest[:12]}…; name its own "
            "with --model"
        )
    try:
        public = frozen_a(adapter.shape, weights.architecture)
        layout = Layout(adapter.shape, weights.architecture)
    except ValueError as error:
        raise RequestError(f"this adapter cannot be built on: {error}") from error
    adapter.check(weights.architecture)
    tensors = adapter.trained(weights.architecture)
    own = {name: tensor for name, tensor in tensors.items() if name not in layout.shapes}
    if own.keys() != public.keys() or not all(
        torch.equal(own[name].float(), public[name]) for name in public
    ):
        raise RequestError(
            "this adapter's A is not the public one of its shape, so a personal change cannot be "
            "added to it; build on an "
            "adapter that a federation made"
        )
    return layout.flatten(tensors)
