"""What a network remembers of one conversation, as transformers keeps it: a cache, layer by layer.

Knows the library's kinds of layers: keys and values of all tokens, of a window, and states of a
fixed size (convolutions, Mamba, gated delta), alone or side by side. Knows nothing of requests.
Always: a state and its tokens belong together; what is taken from another state is copied first,
for layers of a fixed size are overwritten in place.

Such a state is no sequence of pages: a layer of a fixed size holds what all tokens together made of
it, and a window's layer has dropped the first ones. So a conversation's state is one thing, moved,
copied and dropped whole.
"""

import copy
from collections import abc
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

# Layers whose rows can be laid side by side and taken apart again; of others each conversation
# takes its steps alone.
JOINABLE = (
    *(DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer),
    *(LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer),
)


@dataclass(slots=True, eq=False)
class State:
    """A cache of one row, and the tokens and the adapter that made it."""

    cache: Cache
    tokens: list[int] = field(default_factory=list)
    adapter: str = ""  # its digest; "": none

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        return sum(tensor.nbytes for layer in self.cache.layers for tensor in tensors_of(layer))

    @property
    def cuttable(self) -> bool:
        """Whether it still holds what it was some tokens ago."""
        return all(map(can_forget, self.cache.layers))

    def copied(self) -> "State":
        """The same, which goes its own way."""
        return State(copy.deepcopy(self.cache), list(self.tokens), self.adapter)

    def cut(self, count: int) -> bool:
        """Forget all but the first `count` tokens; False if that cannot be done any more."""
        beyond = len(self.tokens) - count
        if not beyond:
            return True
        if not self.cuttable:
            return False
        for layer in self.cache.layers:
            layer.crop(-beyond)
        del self.tokens[count:]
        return True


def tensors_of(layer: Any) -> list[Tensor]:
    """Every tensor of a layer."""
    found: list[Tensor] = []
    for value in vars(layer).values():
        found += [
            one
            for one in (value.values() if isinstance(value, dict) else (value,))
            if isinstance(one, Tensor)
        ]
    return found


def can_forget(layer: Any) -> bool:
    """Whether a layer still holds what it was some tokens ago."""
    if type(layer) is DynamicSlidingWindowLayer:
        return bool(layer.get_seq_length() < layer.sliding_window)
    return type(layer) in (DummyLayer, DynamicLayer)


def joinable(cache: Cache) -> bool:
    """Whether `joined` and `taken` know all its layers."""
    return all(type(layer) in JOINABLE for layer in cache.layers)


def joined(states: abc.Sequence[State]) -> Cache:
    """One cache of B rows, each row's tokens at its end."""
    whole = copy.copy(states[0].cache)
    longest = max(len(state.tokens) for state in states)
    whole.layers = [
        join_layer([state.cache.layers[place] for state in states], longest)
        for place in range(len(whole.layers))
    ]
    return whole


def join_layer(rows: abc.Sequence[Any], longest: int) -> Any:
    """The layers of all rows as one."""
    made = copy.copy(rows[0])
    if isinstance(made, LinearAttentionLayer):
        for name in ("conv_states", "recurrent_states"):
            held = [getattr(row, name) for row in rows]
            setattr(
                made,
                name,
                {
                    key: None if one is None else torch.cat([states[key] for states in held])
                    for key, one in held[0].items()
                },
            )
        copy_flags(made)
    if isinstance(made, DynamicLayer) and made.is_initialized:
        made.keys = side_by_side([row.keys for row in rows])
        made.values = side_by_side([row.values for row in rows])
    if isinstance(made, DynamicSlidingWindowLayer):
        made.cumulative_length = longest
    return made


def copy_flags(layer: LinearAttentionLayer) -> None:
    """Give a copied layer dictionaries of its own."""
    for name, value in list(vars(layer).items()):
        if isinstance(value, dict):
            setattr(layer, name, dict(value))


def side_by_side(rows: abc.Sequence[Tensor]) -> Tensor:
    """Rows [1, H, n, hd] of several lengths n as one tensor [B, H, longest, hd], zeros before the
    shorter ones.
    """
    longest = max(row.shape[-2] for row in rows)
    return torch.cat(
        [torch.nn.functional.pad(row, (0, 0, longest - row.shape[-2], 0)) for row in rows]
    )


def taken(cache: Cache, row: int, tokens: list[int], adapter: str = "") -> State:
    """One row of a joined cache, by itself again."""
    own = copy.copy(cache)
    own.layers = [take_layer(layer, row, len(tokens)) for layer in cache.layers]
    return State(own, tokens, adapter)


def take_layer(layer: Any, row: int, length: int) -> Any:
    """One row of a layer; cloned, so that the others' memory does not stay with it."""
    made = copy.copy(layer)
    if isinstance(made, LinearAttentionLayer):
        copy_flags(made)
        for states in (made.conv_states, made.recurrent_states):
            for key, one in states.items():
                if one is not None:
                    states[key] = one[row : row + 1].clone()
    if isinstance(made, DynamicLayer) and made.is_initialized:
        own = min(length, made.keys.shape[-2])
        made.keys = made.keys[row : row + 1, :, made.keys.shape[-2] - own :].clone()
        made.values = made.values[row : row + 1, :, made.values.shape[-2] - own :].clone()
    if isinstance(made, DynamicSlidingWindowLayer):
        made.cumulative_length = length
    return made
