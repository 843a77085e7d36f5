"""What a member keeps of a joint key: its holding, and what it did with it.

Knows two files in one private folder. Knows nothing of letters or rounds.
Always: a holding serves one epoch (one version of the federation file) and is wiped when another
one begins; neither file is used without the other; both are whole old ones or whole new ones, mode
0600; what was done is on disk before an answer leaves.

    sealed.holding      epoch, `Holding.encode`
    sealed.opened       name of key and member, `Memory.encode`

Not covered: a copy of the folder that is put back later forgets what was done in between; backups;
what a disk keeps of wiped files.
"""

import hashlib
import os
import stat
from pathlib import Path

from ...core import log, paths
from ...core.errors import ConfigError, ProtocolError
from ...crypto.experimental.threshold import Holding, Memory
from ...crypto.identity.keys import KEY_BYTES, digest

logger = log.get("federation.shelf")
HOLDING_FILE, MEMORY_FILE = "sealed.holding", "sealed.opened"
MAGIC = b"QCH1"
HASH_BYTES = 32


class Shelf:
    """One member's holding. In memory only if `folder` is None (simulations).

    Raises:
        ConfigError: files that others may read, or that are damaged.

    Hazard: whoever reads the folder holds this member's share; as many folders as the threshold
    open every sum of the epoch.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: tuple[bytes, Holding] | None = None
        if folder is not None and (folder / HOLDING_FILE).exists():
            self._held = self._read(folder)

    def __repr__(self) -> str:
        return "Shelf()"

    def holding(self, epoch: bytes) -> Holding | None:
        """The holding of this epoch, if there is one; that of another epoch is wiped."""
        if self._held is not None and self._held[0] != epoch:
            self.wipe()
        return None if self._held is None else self._held[1]

    def keep(self, epoch: bytes, holding: Holding) -> None:
        """Keep a holding instead of the one before.

        Raises:
            QuietchoirError: the disk refuses; the one before is then kept, or gone where the disk
            failed between both files.
        """
        if self.folder is not None:
            paths.private_folder(self.folder)
            self._write(MEMORY_FILE, whose(holding), holding.memory.encode())
            self._write(HOLDING_FILE, epoch, holding.encode())
        self._held = (epoch, holding)

    def note(self) -> None:
        """Write down what was done with the holding; call it before an answer leaves.

        Raises:
            QuietchoirError: the disk refuses; then the answer must not leave.
        """
        if self.folder is not None and self._held is not None:
            holding = self._held[1]
            self._write(MEMORY_FILE, whose(holding), holding.memory.encode())

    def wipe(self) -> None:
        """Forget the holding: its file is overwritten, then removed."""
        self._held = None
        for name in (HOLDING_FILE, MEMORY_FILE):
            path = None if self.folder is None else self.folder / name
            if path is not None and path.exists():
                with path.open("r+b") as file:
                    file.write(bytes(path.stat().st_size))
                    file.flush()
                    os.fsync(file.fileno())
                path.unlink()

    def _write(self, name: str, label: bytes, content: bytes) -> None:
        assert self.folder is not None
        body = MAGIC + label + content
        paths.write_atomically(self.folder / name, body + hashlib.sha256(body).digest(), mode=0o600)

    def _read(self, folder: Path) -> tuple[bytes, Holding] | None:
        epoch, raw = unwrap(folder / HOLDING_FILE)
        memory = (b"", b"") if not (folder / MEMORY_FILE).exists() else unwrap(folder / MEMORY_FILE)
        try:
            holding = Holding.decode(raw, Memory.decode(memory[1]) if memory[0] else Memory())
        except ProtocolError as error:
            raise ConfigError(
                f"{folder / HOLDING_FILE}: {error}; remove it, the members make another key"
            ) from error
        if memory[0] != whose(holding):  # a kill between both files, or one of them was put back
            logger.warning(
                "what was done under the joint key is not known any more; this member "
                "gives its share up"
            )
            self.wipe()
            return None
        return epoch, holding


def whose(holding: Holding) -> bytes:
    """32 bytes that name one member's holding of one key."""
    return digest("quietchoir holding 1", holding.key_id, holding.name)


def unwrap(path: Path) -> tuple[bytes, bytes]:
    """Label (32 bytes) and content of one of the two files.

    Raises:
        ConfigError: others may read it, or it is damaged.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"{path}: mode {mode:04o} lets others read this member's share; run: chmod 600 {path}"
        )
    data = path.read_bytes()
    body, start = data[:-HASH_BYTES], len(MAGIC) + KEY_BYTES
    if (
        len(data) < start + HASH_BYTES
        or not data.startswith(MAGIC)
        or hashlib.sha256(body).digest() != data[-HASH_BYTES:]
    ):
        raise ConfigError(
            f"{path}: damaged; remove it and {HOLDING_FILE}, the members make another key"
        )
    return body[len(MAGIC) : start], body[start:]
