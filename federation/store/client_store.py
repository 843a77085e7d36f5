"""What a member of a sealed federation keeps to itself: the members' key, or its share of a joint
one, and the adapter with its optimizer.

Knows records of a member's database. Knows nothing of messages or rounds' protection.
Always: a key, and a share of one, belongs to one epoch (one version of the federation file) and
serves no other; what was done with a share is on disk before an answer leaves, and a share without
its memory is given up; what others are told of the adapter is a keyed tag, from which it cannot be
guessed.

    group key             epoch | 32-byte seed
    key share, and        epoch | `KeyShare.encode`; `ThresholdMemory.encode`, where nobody holds
    its memory            the key singly
    model of RUN          steps done, adapter, velocity; and the same one step earlier

Not covered: a copy of the folder that is put back later forgets what was done in between.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

import numpy as np

from ...core import log
from ...core.errors import FederationError, ProtocolError
from ...crypto.experimental.threshold import KeyShare, ThresholdMemory
from ...crypto.he.bfv import SEED_BYTES, key_id
from ...crypto.identity.keys import bind, hkdf
from ..spec.policy import check_hex
from .checkpoint import ServerState
from .database import DamagedError, Database, StoredRecord

logger = log.get("federation.client_store")
GROUP_KEY, SHARE, SHARE_MEMORY = "group key", "key share", "key share's memory"
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
    """One run in a client store."""

    now: Progress
    before: Progress | None = None


class KeyShareStore:
    """One member's share of a joint key. In memory only if there is no database (simulations).

    Hazard: whoever reads the database holds this member's share; as many as the threshold open
    every sum of the epoch.
    """

    def __init__(self, database: Database | None) -> None:
        self.database = database
        self._held = self._read()

    def __repr__(self) -> str:
        return "KeyShareStore()"

    def key_share(self, epoch: bytes) -> KeyShare | None:
        """The holding of this epoch, if there is one; that of another epoch is wiped."""
        if self._held is not None and self._held[0] != epoch:
            self.wipe()
        return None if self._held is None else self._held[1]

    def keep(self, epoch: bytes, key_share: KeyShare) -> None:
        """Keep a holding instead of the one before.

        Raises:
            QuietchoirError: the disk refuses; the one before is then kept.
        """
        if self.database is not None:
            with self.database.step():
                self.database.put(SHARE, {"epoch": epoch.hex()}, key_share.encode())
                self.database.put(SHARE_MEMORY, {}, key_share.memory.encode())
        self._held = (epoch, key_share)

    def note(self) -> None:
        """Write down what was done with the holding; call it before an answer leaves.

        Raises:
            QuietchoirError: the disk refuses; then the answer must not leave.
        """
        if self.database is not None and self._held is not None:
            self.database.put(SHARE_MEMORY, {}, self._held[1].memory.encode())

    def wipe(self) -> None:
        """Forget the holding. Raises: QuietchoirError: the disk refuses; it is tried again."""
        if self.database is not None:
            self.database.wipe(SHARE, SHARE_MEMORY)
        self._held = None

    def _read(self) -> tuple[bytes, KeyShare] | None:
        share, memory = (found(self.database, name) for name in (SHARE, SHARE_MEMORY))
        if share is None:
            return None
        try:
            if memory is None:
                raise ProtocolError("what was done with it is not known any more")
            key_share = KeyShare.decode(share.body, ThresholdMemory.decode(memory.body))
        except ProtocolError as error:
            logger.warning("this member gives its share of the joint key up: %s", error)
            self.wipe()
            return None
        return bytes.fromhex(share.fields["epoch"]), key_share


class ClientStore:
    """One member's secrets in one federation. In memory only if there is no database (simulations).

    Args:
        size: values of the adapter.

    Hazard: whoever reads the database reads the key and the adapter. Not covered: backups of it.
    """

    def __init__(self, database: Database | None, size: int) -> None:
        self.database, self.size = database, size
        self._key: tuple[str, bytes] | None = None
        self._kept: dict[str, Kept] = {}  # the last run asked for
        self.key_shares = KeyShareStore(database)
        self._read_key()
        if database is not None:
            database.forget += [self._read_key, lambda: self._kept.clear()]

    def __repr__(self) -> str:
        return f"ClientStore({self.size} values)"

    def seed(self, epoch: bytes) -> bytes | None:
        """The secret that all members of this epoch have, if it is here: what their key is made
        from.

        Where each holds only a share of the key, what they have in common instead: the key of their
        parts.
        """
        if (key_share := self.key_shares.key_share(epoch)) is not None:
            return key_share.readers
        return self._key[1] if self._key is not None and self._key[0] == epoch.hex() else None

    def key_name(self, epoch: bytes) -> bytes | None:
        """32 bytes that name the members' key of this epoch, if it, or a share of it, is here."""
        if (key_share := self.key_shares.key_share(epoch)) is not None:
            return key_share.key_id
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
        if self.database is not None:
            with self.database.step():
                self.database.wipe(GROUP_KEY)  # of the log as well: it opens every sum of its epoch
                self.database.put(GROUP_KEY, {"epoch": epoch.hex()}, seed)
        self._key = (epoch.hex(), seed)

    def progress(self, run: str) -> Progress:
        """Where this member is in `run`; at the beginning, with B = 0, if it never was in it.

        Raises:
            FederationError: what is kept is of another adapter shape.
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
        if self.database is not None:
            before = b"" if kept.before is None else kept.before.encode()
            self.database.put(model_of(run), {}, progress.encode() + before)
        self._kept = {run: kept}

    def _of(self, run: str) -> "Kept":
        if run not in self._kept:
            self._kept = {run: self._read(run)}
        return self._kept[run]

    def _read(self, run: str) -> "Kept":
        record = found(self.database, model_of(run))
        if record is None:
            return Kept(Progress(0, ServerState.zeros(self.size)))
        one = encoded_size(record.body, self.size)
        rest = record.body[one:]
        before = Progress.decode(rest, self.size) if rest else None
        return Kept(Progress.decode(record.body[:one], self.size), before)

    def _read_key(self) -> None:
        record = found(self.database, GROUP_KEY)
        good = record is not None and len(record.body) == SEED_BYTES
        self._key = (record.fields["epoch"], record.body) if record is not None and good else None


def model_of(run: str) -> str:
    """Name of a run's record. Raises FederationError for what is no run."""
    try:
        check_hex(run, 16, "run")
    except ValueError as error:
        raise FederationError(f"{error}; refused") from None
    return f"model of {run}"


def found(database: Database | None, name: str) -> StoredRecord | None:
    """A record that other members hand over again where it is damaged: then it is not there."""
    try:
        return None if database is None else database.get(name)
    except DamagedError as error:
        logger.warning("%s; the other members hand it over again", error)
        return None
