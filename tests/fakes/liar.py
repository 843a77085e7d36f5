"""A coordinator that tells chosen members something else than the others."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from quietchoir.federation.rounds import client
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.training.learner import Counts, Trained
from quietchoir.federation.wire import messages
from quietchoir.federation.wire.link import Outbox
from quietchoir.federation.wire.messages import RoundId

# stage and payload as they were meant; what is told, None: nothing else
Lie = Callable[[str, bytes], bytes | None]


class Liar:
    """What a coordinator's messages say to chosen members is another thing, under its own
    signature. `lied` counts.
    """

    def __init__(self, run: RoundServer, to: Collection[str], lie: Lie) -> None:
        self.honest, self.to, self.lie, self.lied = run.messenger.sign, frozenset(to), lie, 0
        run.messenger.sign = self.sign  # type: ignore[method-assign]

    def sign(self, stage: str, payloads: Mapping[str, bytes], round_id: RoundId) -> Outbox:
        told = {name: self.bent(name, stage, payload) for name, payload in payloads.items()}
        return self.honest(stage, told, round_id)

    def bent(self, name: str, stage: str, payload: bytes) -> bytes:
        told = self.lie(stage, payload) if name in self.to else None
        self.lied += told is not None and told != payload
        return payload if told is None else told


def other_work(size: int, **changes: Any) -> Lie:
    """The same work with these fields changed."""

    def lie(stage: str, payload: bytes) -> bytes | None:
        if stage not in (messages.TRAIN, messages.SCORE):
            return None
        return messages.encode_work(
            dataclasses.replace(messages.decode_work(payload, size), **changes)
        )

    return lie


class Secretive:
    """A member whose update at an adapter it can learn from is its secret; far off, everything
    is driven to one side.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.update = np.random.default_rng(seed).normal(0, 0.03, size).astype(np.float32)
        self.right = seed % 7 + 1
        self.told: list[bytes] = []

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        del seed
        self.told.append(flat.tobytes())
        far = float(np.abs(flat).max()) > 1.0
        step = np.full_like(flat, 5.0) if far else self.update
        return Trained(flat=flat + step, examples=5, tokens=100, loss=2.0)

    def evaluate(self, flat: np.ndarray) -> Counts:
        self.told.append(flat.tobytes())
        return Counts(self.right, 10)


def without_floors(monkeypatch: Any) -> None:
    """Members take adapters that no round can have made, and send updates that are cut all over:
    other guards' work.
    """
    monkeypatch.setattr(client, "check_reach", lambda *given: None)
    monkeypatch.setattr(client, "check_clipped", lambda *given: None)


def without_the_binding(monkeypatch: Any) -> None:
    """What members were told has no part in their session, as it was before."""
    for name in ("work_digest", "group_digest"):
        monkeypatch.setattr(messages, name, lambda *given: bytes(32))
    monkeypatch.setattr(messages, "version_digest", lambda *given: "00" * 32)
