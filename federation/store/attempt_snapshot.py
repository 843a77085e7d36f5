"""An attempt put aside between two letters, for a member whose process ends with every answer.

    letter → take (the file is gone for everybody else) → answer → put (another file, under another
    key) → the answer leaves

Knows one sealed file in a member's folder. Knows nothing of Flower, or of where the key lies
meanwhile.
Always: what was put aside is taken once at most, whatever dies when; a refused letter leaves it as
it was; the file opens under one key only, which is new each time and never on this disk, so that an
old copy of the folder opens nothing; a crash between `take` and `put` loses the attempt for this
member, as a kill of `quietchoir join` does.

Covered: the disk, its backups and its remains. Not covered: whoever reads this machine's memory or
swap meanwhile.
"""

import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...core import paths
from ...core.errors import AuthenticationError
from ...crypto.identity.keys import KEY_BYTES, bind, open_box, seal_box
from ..aggregation.base import PartyContext
from ..aggregation.snapshot import freeze, thaw
from ..rounds.client import Attempt, Party
from ..wire.message import Place

FILE, TAKEN = "attempt.sealed", "attempt.taken"


class Recess:
    """What one member keeps between two letters of one attempt.

    Args:
        folder: the member's, of one federation; held by this process while this object is in use
        (`ledger.hold`). whose: digest of the federation file and the member's name; another one's
        file does not open.
    """

    def __init__(self, folder: Path, *whose: bytes | str) -> None:
        self.path, self.taken = folder / FILE, folder / TAKEN
        self.associated = bind("quietchoir attempt put aside 1", *whose)

    def take(self, key: bytes) -> bytes | None:
        """What was put aside under `key`; None if there is nothing, or nothing that this key
        opens.
        """
        try:
            self.path.replace(self.taken)  # from here on no other process, and no restart, finds it
        except FileNotFoundError:
            return None
        paths.sync_folder(self.path.parent)
        try:
            return open_box(key, self.taken.read_bytes(), self.associated) if key else None
        except AuthenticationError:
            return None

    def put(self, content: bytes) -> bytes:
        """Put `content` aside; returns the key that opens it.

        Raises:
            QuietchoirError: the disk refuses; then the answer must not leave.
        """
        key = secrets.token_bytes(KEY_BYTES)
        paths.write_atomically(self.path, seal_box(key, content, self.associated), mode=0o600)
        self.taken.unlink(missing_ok=True)
        return key

    def give_back(self) -> None:
        """The letter was refused: what was taken is there again, under the same key."""
        if self.taken.exists():
            self.taken.replace(self.path)
            paths.sync_folder(self.path.parent)

    def wipe(self) -> None:
        """The attempt is over."""
        for path in (self.path, self.taken):
            path.unlink(missing_ok=True)


def freeze_attempt(party: Party) -> bytes | None:
    """Whatever `party` needs to go on; None between attempts.

    Raises:
        ProtocolError: a mode whose members do not stop between two letters.
    """
    if party.attempt is None:
        return None
    attempt = party.attempt
    fields = {
        "place": asdict(attempt.place),
        "done": attempt.done,
        "size": party.size,
        "relies_on": attempt.relies_on,
    }
    header = json.dumps(fields).encode("ascii")
    return len(header).to_bytes(4, "big") + header + freeze(party.attempt.half)


def size_in(kept: bytes) -> int:
    """Values of the adapter that the attempt is about."""
    return int(split(kept)[0]["size"])


def thaw_attempt(kept: bytes, party: Party) -> Attempt:
    """The attempt that `freeze_attempt` kept, for a party of the same member.

    Raises:
        ProtocolError: of another session.
    """
    fields, half = split(kept)
    place = Place(**fields["place"])
    context = PartyContext(
        party.policy, party.name, party.identity, party.ledger.sums, place, keep_sum=party.keep_sum
    )
    return Attempt(place, thaw(half, context), fields["done"], fields["relies_on"])


def split(kept: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and half."""
    end = 4 + int.from_bytes(kept[:4], "big")
    return json.loads(kept[4:end]), kept[end:]
