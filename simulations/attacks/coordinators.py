"""Attacks by coordinators: who runs the rounds, alone or with members that help."""

from .catalogue import Attack

ATTACKS: tuple[Attack, ...] = ()
