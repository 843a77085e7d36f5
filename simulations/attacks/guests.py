"""Attacks by guests: who wrote a plugin, a model file or a request to the node."""

from .catalogue import Attack

ATTACKS: tuple[Attack, ...] = ()
