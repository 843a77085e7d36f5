"""SQLite's write-ahead log as it lies on the disk: was a step of it damaged after it was written?

Knows the log's format. Knows nothing of what the steps say.
Always: SQLite takes the first frame that does not check for the log's end and drops all that came
after, in silence; a log in which whole steps come after such a frame is refused before that.

Not covered: damage in the last step of a log, which looks like a step that power failed in. That
step is then gone, as if it had never been written.

Source: sqlite.org/fileformat2.html, section 4, "The Write-Ahead Log" (format, checksum, salts).
"""

import functools
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...core.errors import FederationError

HEADER_BYTES, FRAME_BYTES, SUMMED_BYTES = 32, 24, 8  # of the log, of a frame, of it in the checksum
MAGIC = {0x377F0682: "<", 0x377F0683: ">"}  # and the order of bytes in checksums
State = tuple[int, int]


def check_log(database: Path) -> None:
    """Require that no whole step of the database's log lies behind a damaged one.

    Raises:
        FederationError: one does, or the log's header is damaged.
    """
    path = database.with_name(f"{database.name}-wal")
    log = path.read_bytes() if path.exists() else b""
    if len(log) < HEADER_BYTES + FRAME_BYTES or not any(log[:HEADER_BYTES]):
        return  # nothing in it, or written over
    magic, _, page, _, *salts, first, second = struct.unpack(">8I", log[:HEADER_BYTES])
    order = MAGIC.get(magic, "<")
    state = after((0, 0), log[: HEADER_BYTES - 8], order)
    if magic not in MAGIC or state != (first, second):
        raise FederationError(f"{path}: damaged; restore it, with {database.name}, from a copy")
    lost, whole = 0, True
    for at in range(HEADER_BYTES, len(log) - FRAME_BYTES - page + 1, FRAME_BYTES + page):
        _, ends, *rest = struct.unpack(">6I", log[at : at + FRAME_BYTES])
        if rest[:2] != salts:  # of before the log began anew; or damaged, if others come after it
            whole = False
            continue
        if whole:
            body = log[at + FRAME_BYTES : at + FRAME_BYTES + page]
            state = after(state, log[at : at + SUMMED_BYTES] + body, order)
            whole = list(state) == rest[2:]
        lost += bool(ends) and not whole
    if lost > 1:  # one alone may be the step in which power failed
        raise FederationError(
            f"{path}: damaged, {lost} steps in it cannot be read; restore it, with "
            f"{database.name}, from a copy: without them what was answered would be forgotten"
        )


def after(state: State, data: bytes, order: str) -> State:
    """The checksum of what came before and `data`, whose words are added up with those that came
    before them as Fibonacci's numbers are.
    """
    words = np.frombuffer(data, f"{order}u4").astype(np.uint32)
    # as words before the first: the second of them has the first added, so it is taken away here
    start = np.array([state[0], (state[1] - state[0]) & 0xFFFFFFFF], np.uint32)
    terms, weights = np.concatenate([start, words]), fibonacci(len(words) + 2)[::-1]
    return (
        int((terms[:-1] * weights[1:]).sum(dtype=np.uint32)),
        int((terms * weights).sum(dtype=np.uint32)),
    )


@functools.lru_cache(maxsize=8)
def fibonacci(count: int) -> npt.NDArray[np.uint32]:
    """So many of them, from 1, 1, modulo 2^32."""
    found = [1, 1]
    while len(found) < count:
        found.append((found[-1] + found[-2]) & 0xFFFFFFFF)
    return np.array(found[:count], np.uint32)
