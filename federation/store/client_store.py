"""What a member of a sealed federation keeps to itself: the members' key, and the adapter with its
optimizer.

Knows one folder, private to its owner. Knows nothing of letters or rounds' protection.
Always: a key belongs to one epoch (one version of the federation file) and serves no other; a file
is the whole old one or the whole new one, mode 0600; what others are told of the adapter is a keyed
tag, from which it cannot be guessed.

    sealed.key          epoch and 32-byte seed; where nobody holds the key singly, `shelf` keeps
                        this member's share instead
    sealed-RUN.state    steps done, adapter, velocity; and the same one step earlier
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...core import paths
from ...core.errors import ConfigError, FederationError
from ...crypto.he.bfv import SEED_BYTES, key_id
from ...crypto.identity.keys import bind, hkdf
from ..aggregation.server_optimizer import ServerState
from ..spec.policy import check_hex
from .key_shares import Shelf

KEY_FILE = "sealed.key"
MAGIC = b"QCV1"
TAG_BYTES = 32


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a member is in one run."""

    steps: int  # sums applied so far
    server: ServerState = field(repr=False)

    def encode(self) -> bytes:
        """Which vectors there are, steps, adapter, velocity, and second moments if the optimizer
        has them.
        """
        return (
            bytes([len(self.server.vectors) - 2])
            + self.steps.to_bytes(7, "big")
            + self.server.encode()
        )

    @staticmethod
    def decode(data: bytes, size: int) -> "Progress":
        """Read what `encode` wrote for an adapter of `size` values.

        Raises:
            FederationError: another length, or values that are not finite.
        """
        if len(data) != encoded_size(data, size):
            raise FederationError(
                f"an adapter and its velocity of {len(data) - 8} bytes, expected "
                f"{8 * size}; refused"
            )
        server = ServerState.decode(data[8:], size)
        if not all(np.isfinite(vector).all() for vector in server.vectors):
            raise FederationError("an adapter that holds values that are not finite; refused")
        return Progress(int.from_bytes(data[1:8], "big"), server)

    def tag(self, seed: bytes, run: str) -> bytes:
        """32 bytes that are equal for equal adapters, and tell nothing to whoever lacks the key."""
        key = hkdf(seed, bind("quietchoir sealed state 1"))
        return hmac.digest(key, bind("state", run) + self.encode(), hashlib.sha256)


def encoded_size(data: bytes, size: int) -> int:
    """Bytes of the one `Progress` that `data` begins with, of an adapter of `size` values; 0 if
    it begins with none.
    """
    return 8 + (8 + 4 * data[0]) * size if data[:1] in (b"\0", b"\1") else 0


@dataclass(frozen=True, slots=True)
class Kept:
    """One run in a vault."""

    now: Progress
    before: Progress | None = None


class Vault:
    """One member's secrets in one federation. In memory only if `folder` is None (simulations).

    Args:
        size: values of the adapter.

    Hazard: whoever reads the folder reads the key and the adapter. Not covered: backups of that
    folder.
    """

    def __init__(self, folder: Path | None, size: int) -> None:
        self.folder, self.size = folder, size
        self._key: tuple[str, bytes] | None = (
            None if folder is None else read_key(folder / KEY_FILE)
        )
        self._kept: dict[str, Kept] = {}  # the last run asked for
        self.shelf = Shelf(folder)

    def __repr__(self) -> str:
        return f"Vault({self.size} values)"

    def seed(self, epoch: bytes) -> bytes | None:
        """The secret that all members of this epoch have, if it is here: what their key is made
        from.

        Where each holds only a share of the key, what they have in common instead: the key of their
        parts.
        """
        if (holding := self.shelf.holding(epoch)) is not None:
            return holding.readers
        return self._key[1] if self._key is not None and self._key[0] == epoch.hex() else None

    def key_name(self, epoch: bytes) -> bytes | None:
        """32 bytes that name the members' key of this epoch, if it, or a share of it, is here."""
        if (holding := self.shelf.holding(epoch)) is not None:
            return holding.key_id
        seed = self.seed(epoch)
        return None if seed is None else key_id(seed)

    def make_seed(self, epoch: bytes) -> bytes:
        """A new key from the operating system's generator, kept for this epoch."""
        seed = secrets.token_bytes(SEED_BYTES)
        self.keep_seed(epoch, seed)
        return seed

    def keep_seed(self, epoch: bytes, seed: bytes) -> None:
        """Keep a key; the one before it is forgotten.

        Raises:
            QuietchoirError: the disk refuses; then nothing has changed.
        """
        if self.folder is not None:
            content = json.dumps({"epoch": epoch.hex(), "seed": seed.hex()}).encode("ascii")
            paths.write_atomically(
                paths.private_folder(self.folder) / KEY_FILE, content, mode=0o600
            )
        self._key = (epoch.hex(), seed)

    def progress(self, run: str) -> Progress:
        """Where this member is in `run`; at the beginning, with B = 0, if it never was in it.

        Raises:
            FederationError: the file is damaged, or of another adapter shape.
        """
        return self._of(run).now

    def before(self, run: str) -> Progress | None:
        """Where this member was before its last step, if it has not gone back or jumped since.

        It is kept because a coordinator can die while only some members have stepped.
        """
        return self._of(run).before

    def keep_progress(self, run: str, progress: Progress) -> None:
        """Make `progress` the one to go on from, on disk first.

        Raises:
            QuietchoirError: the disk refuses; then nothing has changed.
        """
        now = self._of(run).now
        kept = Kept(progress, now if progress.steps == now.steps + 1 else None)
        if self.folder is not None:
            body = (
                MAGIC + progress.encode() + (b"" if kept.before is None else kept.before.encode())
            )
            content = body + hashlib.sha256(body).digest()
            paths.write_atomically(
                paths.private_folder(self.folder) / state_file(run), content, mode=0o600
            )
        self._kept = {run: kept}

    def _of(self, run: str) -> "Kept":
        if run not in self._kept:
            self._kept = {run: self._read(run)}
        return self._kept[run]

    def _read(self, run: str) -> "Kept":
        path = None if self.folder is None else self.folder / state_file(run)
        if path is None or not path.exists():
            return Kept(Progress(0, ServerState.zeros(self.size)))
        data = path.read_bytes()
        if not data.startswith(MAGIC) or hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise FederationError(
                f"{path}: damaged; remove it, the other members hand the adapter over again"
            )
        body = data[len(MAGIC) : -32]
        one = encoded_size(body, self.size)
        before = Progress.decode(body[one:], self.size) if len(body) > one else None
        return Kept(Progress.decode(body[:one], self.size), before)


def state_file(run: str) -> str:
    """Name of a run's file. Raises FederationError for what is no run: it becomes a path."""
    try:
        check_hex(run, 16, "run")
    except ValueError as error:
        raise FederationError(f"{error}; refused") from None
    return f"sealed-{run}.state"


def read_key(path: Path) -> tuple[str, bytes] | None:
    """Epoch and seed, or None if there is no file.

    Raises:
        ConfigError: others may read it, or it is damaged.
    """
    if not path.exists():
        return None
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"{path}: mode {mode:04o} lets others read the members' key; run: chmod 600 {path}"
        )
    try:
        fields = json.loads(path.read_text("ascii"))
        epoch, seed = str(fields["epoch"]), bytes.fromhex(fields["seed"])
    except (ValueError, RecursionError, LookupError, TypeError):
        seed, epoch = b"", ""
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"{path}: damaged; remove it, the other members hand the key over again")
    return epoch, seed
