"""Attacks by hosts: who serves a library."""

from .catalogue import Attack

ATTACKS: tuple[Attack, ...] = ()
