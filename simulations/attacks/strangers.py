"""Attacks by strangers: who reaches the network and holds no key."""

from .catalogue import Attack

ATTACKS: tuple[Attack, ...] = ()
