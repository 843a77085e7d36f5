"""Attacks by members: who holds a key of the roster."""

from .catalogue import Attack

ATTACKS: tuple[Attack, ...] = ()
