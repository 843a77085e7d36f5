"""Where a model's layers go when a GPU has no room for all of them.

Knows bytes and layers. Knows nothing of models, tensors or how anything was counted.
Always: the lowest layers stay on the processor and the upper ones, with the head, go to the device.
The embedding is on the processor anyway, so a step crosses once, where embedded rows would have
crossed, and logits come back as they always do; the head, which every answer needs whole, is
multiplied where memory is fastest. Nothing is allocated to find out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError

GIB = 1 << 30
ALL_THAT_FIT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one model takes of a device, bytes."""

    layers: tuple[int, ...]  # the weights of each layer, from the lowest
    cache: int  # keys and values of one layer
    always: Mapping[str, int]  # by name for people, what is there however many layers are

    def total(self, layers: int) -> int:
        """With the uppermost `layers` of them there."""
        return (
            sum(self.always.values())
            + sum(self.layers[len(self.layers) - layers :])
            + layers * self.cache
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Layers [0, `host`) on the processor, the other `device` ones on the GPU."""

    host: int
    device: int
    bytes: int  # of the device, by `Needs`
    budget: int

    def __str__(self) -> str:
        where = f"{self.device} of {self.host + self.device} layers on the GPU"
        return f"{where}, {gib(self.bytes)} of {gib(self.budget)}"


def place(needs: Needs, budget: int, layers: int = ALL_THAT_FIT) -> Placement:
    """Cut the model.

    Args:
        budget: bytes of the device that may be taken.
        layers: so many on the device; -1: as many as fit, none if it must be.

    Raises:
        ConfigError: what was asked for does not fit or does not exist; names what is short, and
        what would fit.
    """
    count = len(needs.layers)
    if not ALL_THAT_FIT <= layers <= count:
        raise ConfigError(
            f"engine.gpu_layers = {layers}, the model has {count} layers; take -1 "
            f"(as many as fit) to {count}"
        )
    fitting = next(
        (number for number in range(count, -1, -1) if needs.total(number) <= budget), None
    )
    if fitting is None:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in needs.always.items())
        raise ConfigError(
            f"the GPU has {gib(budget)} for this model, and without a single layer it takes "
            f"{gib(needs.total(0))} ({parts}); "
            "lower engine.context or engine.max_running, free memory there, or set engine.device "
            'to "cpu"'
        )
    if layers > fitting:
        raise ConfigError(
            f"engine.gpu_layers = {layers} takes {gib(needs.total(layers))} of the GPU, "
            f"{gib(budget)} are there; weights take "
            f"{gib(sum(needs.layers[count - layers :]))} of it, keys and values "
            f"{gib(layers * needs.cache)}; {fitting} layers "
            "fit: lower engine.gpu_layers to that or to -1, or lower engine.kv_bytes"
        )
    chosen = fitting if layers == ALL_THAT_FIT else layers
    return Placement(host=count - chosen, device=chosen, bytes=needs.total(chosen), budget=budget)


def gib(size: int) -> str:
    """For people."""
    return f"{size / GIB:.2f} GiB"
