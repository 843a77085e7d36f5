"""The transparency log: every decision of a registry, in order, and who made it.

Knows lines, keys and hashes. Knows nothing of plugins.
Always: lines are only added; each holds the hash of the one before and is signed by whoever acted,
so a changed, removed or reordered line is found without anybody's help, and a log that a client saw
is the beginning of every later one or of a fork, which it refuses.

Not covered: what somebody decides and never writes down. Two clients that were shown two logs find
out when they compare heads.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from securesystemslib.signer import CryptoSigner

from ...core.errors import RegistryError
from . import keys

KIND = "log entry"
START = "0" * 64
# What is read of an entry, by type.
ROW = (
    ("at", int),
    *((name, str) for name in ("what", "key", "id", "version", "sha256", "verdict")),
)
# What an entry is worth to whoever signed it; GOVERNANCE.md says why.
CREDIT = {"add": 3, "review": 2, "revoke": 1}


@dataclass(frozen=True, slots=True)
class LogHead:
    """How far a log went when somebody saw it."""

    count: int
    digest: str


def line(signer: CryptoSigner, before: LogHead, what: str, at: int, **facts: Any) -> bytes:
    """One more line, after a log with this head."""
    said = {name: value for name, value in facts.items() if value not in ("", None, [])}
    row = {"number": before.count + 1, "at": at, "what": what, "before": before.digest, **said}
    return json.dumps(keys.signed(signer, KIND, row), sort_keys=True).encode() + b"\n"


def read(content: bytes, where: str) -> tuple[list[dict[str, Any]], LogHead]:
    """All entries, each checked, and the head.

    Raises:
        RegistryError: as `chained`, or a line that is unsigned.
    """
    entries, head = chained(content, where)
    for row in entries:
        keys.signer_of(KIND, row)
    return entries, head


def chained(content: bytes, where: str) -> tuple[list[dict[str, Any]], LogHead]:
    """All entries, and the head; the signature of one that counts is still to be checked.

    Raises:
        RegistryError: the first line that does not follow from the one before.
    """
    entries = list[dict[str, Any]]()
    head = LogHead(0, START)
    for written in content.split(b"\n")[:-1]:
        number = len(entries) + 1
        try:
            row = json.loads(written)
            follows = row.get("before") == head.digest and row.get("number") == number
            follows = follows and all(type(row.get(name, kind())) is kind for name, kind in ROW)
        except (ValueError, AttributeError, RecursionError):
            follows = False
        if not follows:
            raise RegistryError(
                f"{where}: line {number} does not follow from the one before; the log was changed"
            )
        entries.append(row)
        head = LogHead(number, hashlib.sha256(written).hexdigest())
    if content and not content.endswith(b"\n"):
        raise RegistryError(f"{where}: ends in the middle of a line; the log was cut")
    return entries, head


def extends(content: bytes, seen: LogHead) -> bool:
    """Whether a checked log goes on from the one that had this head."""
    lines = content.split(b"\n")[:-1]
    if not seen.count:
        return True
    if len(lines) < seen.count:
        return False
    return hashlib.sha256(lines[seen.count - 1]).hexdigest() == seen.digest


def standing(
    entries: Sequence[dict[str, Any]], plugin_id: str, version: str, sha256: str
) -> list[dict[str, Any]]:
    """The rejections of a release that whoever signed them did not take back later. Raises:
    RegistryError: a review of it is unsigned.
    """
    latest = dict[str, dict[str, Any]]()
    for row in sorted(entries, key=lambda row: int(row.get("at", 0))):
        about = (row.get("what"), row.get("id"), row.get("version"), row.get("sha256"))
        if about == ("review", plugin_id, version, sha256):
            keys.signer_of(KIND, row)
            latest[row["key"]] = row
    return [row for row in latest.values() if row.get("verdict") == "reject"]


def credit(entries: Sequence[dict[str, Any]]) -> Counter[str]:
    """What each key has done, by `CREDIT`; a release or a review counts once."""
    names = ("key", "what", "id", "version")
    done = {tuple(str(row.get(name)) for name in names) for row in entries}
    counts = Counter[str]()
    for key, what, _, _ in done:
        counts[key] += CREDIT.get(what, 0)
    return +counts
