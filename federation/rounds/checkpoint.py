"""A coordinator's run on disk: what a killed coordinator goes on from.

Knows one folder with one file in it. Knows nothing of parties or messages.
Always: the file is the whole old state or the whole new one; an attempt is on disk before anybody is asked, so
that no attempt's number is ever used twice. One process at a time holds the folder.
"""

import dataclasses
import fcntl
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...core import paths
from ...core.errors import FederationError
from ..learning.aggregate import ServerState
from ..membership.policy import Policy

MAGIC = b"QCS1"
FILE = "run.checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything that must survive a kill."""

    federation: str  # hex
    model: str  # digest of the frozen model
    run: str  # 32 hex digits
    version: int  # of the federation file
    server: ServerState
    round: int = 0  # rounds that are done
    attempt: int = 0  # attempts begun in the next round
    skipped: int = 0  # numbers of rounds that were opened and then lost: members never open one twice
    opening: bool = False  # shares are being asked for: after a kill this number is lost
    finished: bool = False  # scored and delivered
    history: tuple[dict[str, Any], ...] = field(default=())  # one report a round, as JSON types

    @staticmethod
    def fresh(policy: Policy, size: int) -> "RunState":
        """The state before the first round."""
        return RunState(
            federation=policy.federation.hex(), model=policy.model.digest, run=secrets.token_hex(16),
            version=policy.version, server=ServerState.zeros(size),
        )  # fmt: skip


class Store:
    """One run's folder. In memory only if `folder` is None (simulations)."""

    def __init__(self, folder: Path | None) -> None:
        """Take the folder for this process.

        Raises:
            FederationError: another coordinator runs on it.
        """
        self.path = None if folder is None else folder / FILE
        self.lock: IO[bytes] | None = None
        if folder is None:
            return
        paths.private_folder(folder)
        self.lock = (folder / "lock").open("ab")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            raise FederationError(
                f"{folder}: another coordinator runs on this state; stop it or choose another --state"
            ) from None

    def close(self) -> None:
        """Let the folder go."""
        if self.lock is not None:
            self.lock.close()

    def load(self, policy: Policy, size: int) -> RunState:
        """The state to go on from; a fresh one in an empty folder.

        Raises:
            FederationError: damaged, or of another federation, model, adapter shape or a newer federation file.
        """
        if self.path is None or not self.path.exists():
            return RunState.fresh(policy, size)
        state = decode(self.path.read_bytes(), self.path)
        if (state.federation, state.model) != (policy.federation.hex(), policy.model.digest):
            raise FederationError(f"{self.path}: a run of another federation or model; choose another --state")
        if state.server.flat.size != size:
            raise FederationError(
                f"{self.path}: an adapter of {state.server.flat.size} values, expected {size}; choose another --state"
            )
        if state.version > policy.version:
            raise FederationError(
                f"{self.path}: written under version {state.version} of the file, found {policy.version}; get the newest one"
            )
        return dataclasses.replace(state, version=policy.version)

    def save(self, state: RunState) -> None:
        """Make `state` the one to go on from."""
        if self.path is not None:
            paths.write_atomically(self.path, encode(state), mode=0o600)


def encode(state: RunState) -> bytes:
    """MAGIC | header length | header JSON | flat | velocity | sha256 of all before it."""
    fields = {name.name: getattr(state, name.name) for name in dataclasses.fields(state) if name.name != "server"}
    header = json.dumps({**fields, "size": int(state.server.flat.size)}).encode("ascii")
    vectors = b"".join(vector.astype("<f4").tobytes() for vector in (state.server.flat, state.server.velocity))
    body = MAGIC + len(header).to_bytes(4, "big") + header + vectors
    return body + hashlib.sha256(body).digest()


def decode(data: bytes, path: Path) -> RunState:
    """Read what `encode` wrote.

    Raises:
        FederationError: damaged.
    """
    body, digest = data[:-32], data[-32:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        raise FederationError(f"{path}: damaged; restore it from a copy, or choose another --state")
    length = int.from_bytes(body[4:8], "big")
    fields = json.loads(body[8 : 8 + length])
    size = fields.pop("size")
    vectors = np.frombuffer(body, "<f4", offset=8 + length).astype(np.float32)
    fields["history"] = tuple(fields["history"])
    return RunState(server=ServerState(vectors[:size].copy(), vectors[size:].copy()), **fields)
