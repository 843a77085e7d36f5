"""The one contribution that a member of buffered rounds keeps until it is summed.

Knows a file in one private folder. Knows nothing of letters, or of how a contribution is protected.
Always: at most one is kept; it is found in its own run under its own rules alone; the file is a
whole one, mode 0600, or gone; what was wiped does not come back, also not after a kill.

    contribution.kept     magic and header length, 4 bytes each | header, JSON | the change, 4 bytes
                          a value | sha256 of it all

Not covered: a copy of the folder that is put back later; backups; what a disk keeps of wiped files.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core import log, paths
from ...core.errors import QuietchoirError
from ..aggregation.server_optimizer import Vector
from ..aggregation.update import Statistics
from ..membership.update import ROSTER
from ..spec.policy import Policy, canonical

logger = log.get("federation.contribution")
FILE = "contribution.kept"
MAGIC = b"QCK2"
HASH_BYTES = 32
# tables that a contribution does not depend on: it outlives a new member
MAY_CHANGE = ROSTER | {"coordinator"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one training gave."""

    run: str
    rules: str  # `rules_of` the federation file that it was trained under
    version: int  # steps behind the adapter that it was trained from
    told: str  # the broadcast digest of the work that it came of, hex
    state: str  # name of the state that it was trained from, where members follow them
    adapter: str  # digest of that adapter, hex
    update: Vector  # [n]
    statistics: Statistics
    tokens: int  # answer tokens that it was trained on

    def encode(self) -> bytes:
        """As it lies on disk."""
        header = canonical(
            {
                "adapter": self.adapter,
                "rules": self.rules,
                "run": self.run,
                "state": self.state,
                "statistics": dataclasses.asdict(self.statistics),
                "told": self.told,
                "tokens": self.tokens,
                "version": self.version,
            }
        )
        body = MAGIC + len(header).to_bytes(4, "big") + header + self.update.astype("<f4").tobytes()
        return body + hashlib.sha256(body).digest()

    @staticmethod
    def decode(data: bytes) -> "Contribution":
        """Read what `encode` wrote.

        Raises:
            ValueError: damaged.
        """
        body, start = data[:-HASH_BYTES], len(MAGIC) + 4
        if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != data[-HASH_BYTES:]:
            raise ValueError("not what was written")
        length = int.from_bytes(body[len(MAGIC) : start], "big")
        header = json.loads(body[start : start + length])
        update = np.frombuffer(body, "<f4", offset=start + length).astype(np.float32)
        return Contribution(
            **{**header, "statistics": Statistics(**header["statistics"])}, update=update
        )


def rules_of(policy: Policy) -> str:
    """64 hex digits that differ between files under which one would not train alike."""
    return hashlib.sha256(
        canonical({key: one for key, one in policy.table().items() if key not in MAY_CHANGE})
    ).hexdigest()


class Drawer:
    """Where it lies. In memory only if `folder` is None (simulations).

    Hazard: whoever reads the folder reads the change in clear. The examples it was trained on lie
    on the same disk.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = None if folder is None else folder / FILE
        self._kept: Contribution | None = self._read()

    def __repr__(self) -> str:
        return "Drawer()"

    def look(self, run: str, rules: str) -> Contribution | None:
        """What is kept for this run under these rules."""
        kept = self._kept
        return kept if kept is not None and (kept.run, kept.rules) == (run, rules) else None

    def keep(self, contribution: Contribution) -> None:
        """Keep it in place of the one before. If the disk refuses, it is kept in memory: a
        restart then costs a training.
        """
        self.wipe()
        if self.path is not None:
            try:
                paths.private_folder(self.path.parent)
                paths.write_atomically(self.path, contribution.encode(), mode=0o600)
            except (OSError, QuietchoirError) as error:
                logger.warning("the contribution is kept in memory alone: %s", error)
        self._kept = contribution

    def wipe(self) -> None:
        """Forget it: its file is overwritten, then removed; call it before it leaves.

        Raises:
            QuietchoirError: the disk refuses; then it must not leave, and is kept.
        """
        if self.path is not None and self.path.exists():
            try:
                with self.path.open("r+b") as file:
                    file.write(bytes(self.path.stat().st_size))
                    file.flush()
                    os.fsync(file.fileno())
                self.path.unlink()
                paths.sync_folder(self.path.parent)
            except OSError as error:
                raise QuietchoirError(
                    f"{self.path}: not wiped ({error.strerror}); it is not sent, free the disk"
                ) from error
        self._kept = None

    def _read(self) -> Contribution | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            return Contribution.decode(self.path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: damaged (%s); this member trains anew", self.path, error)
            return None
