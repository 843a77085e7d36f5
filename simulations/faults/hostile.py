"""A member that answers what no honest member would: python -m
quietchoir.simulations.faults.hostile FILE ARGUMENTS…

FILE holds one of `KINDS`, or nothing; it is read anew for every message. Knows the product's own
party, and holds a real member's keys: that is what a hostile member has.
"""

import runpy
import secrets
import sys
from pathlib import Path

import numpy as np

from ...federation import client_node
from ...federation.aggregation.update import Codec, SumContext
from ...federation.rounds.client import Client
from ...federation.store.checkpoint import Vector
from ...federation.training.learner import Trained
from ...federation.training.synthetic_task import SyntheticLearner
from ...federation.wire import messages
from ...federation.wire.messages import Reply

KINDS = ("noise", "huge", "short", "long", "name", "nan", "poison")
TRAINED = ("nan", "poison")  # what it trains is bad, and what it sends is as it should be
POISONED = 2  # trainings that are poisoned; after them it does its work, so that a run shows both
STRENGTH = np.float32(-10.0)  # of the poison: its honest change, so many times
STAGE = "mask"  # where it shows


class Hostile(Client):
    """A party that spoils what it sends."""

    kind_file = Path()

    def handle(self, message: bytes) -> bytes:
        """As `Client.handle`, and then not."""
        kind, task = kind_in(self.kind_file), messages.decode_task(message, self.policy, self.name)
        if isinstance(self.learner, Spoiled):
            self.learner.kind = kind
        honest = super().handle(message)
        if task.stage != STAGE or kind in ("", *TRAINED):
            return honest
        if kind == "noise":
            return secrets.token_bytes(len(honest))
        if kind == "huge":
            # more than the door lets in at once, less than a message may be
            return secrets.token_bytes(64 << 20)
        payload = messages.split(honest, messages.Reply)[1]
        spoiled = {"short": payload[: len(payload) // 2], "long": payload * 2}
        sender = (
            next(one.name for one in self.policy.members if one.name != self.name)
            if kind == "name"
            else self.name
        )
        reply = Reply(
            round_id=task.round_id,
            stage=task.stage,
            sender=sender,
            task=messages.fingerprint(message),
            payload=spoiled.get(kind, payload),
        )
        return messages.encode_reply(reply, self.policy, self.identity)

    def clipped(self, update: Vector, terms: SumContext, clip: float = 0.0) -> int:
        """As `Client`, and sent whatever it is: a hostile member has no floor of its own."""
        return Codec(self.size, self.policy, terms).clipped(update, clip)


class Spoiled(SyntheticLearner):
    """A learner whose training may end in values that are not finite, or lead away from where
    the others go.
    """

    kind = ""
    poisoned = 0

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        """As its kind says."""
        trained = super().train(flat, seed)
        if self.kind == "nan":
            trained.flat[::3] = np.nan
        if self.kind == "poison" and self.poisoned < POISONED:
            self.poisoned += 1
            trained.flat[:] = flat + STRENGTH * (trained.flat - flat)
        return trained


def kind_in(path: Path) -> str:
    """What it does now."""
    return path.read_text("ascii").strip() if path.exists() else ""


if __name__ == "__main__":
    Hostile.kind_file = Path(sys.argv[1])
    vars(client_node)["Client"] = Hostile
    vars(client_node)["SyntheticLearner"] = Spoiled
    sys.argv = ["quietchoir", *sys.argv[2:]]
    runpy.run_module("quietchoir.cli", run_name="__main__")
