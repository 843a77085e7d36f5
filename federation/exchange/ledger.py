"""What a member has already answered and opened, so that nothing is answered or opened twice.

Knows places, the masks' own ledger, and one small file. Knows nothing of payloads.
Always: a place is on disk before any work for it begins, and a round that is about to be opened before its shares
leave; within a run, only later attempts are new, also after a restart of the node and also when a coordinator comes
back with an older state.
"""

import json
from pathlib import Path

from ...core import paths
from ...core.errors import MessageError
from ...crypto.secagg import Ledger as SumLedger
from .messages import Place


class Ledger:
    """High-water marks, one for each run; in memory only if there is no path (simulations)."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the marks.

        Raises:
            MessageError: the file is damaged.
            ConfigError: the part about sums is damaged.
        """
        self.path = path
        self.marks: dict[str, tuple[int, int]] = {}
        self.sums = SumLedger()  # handed to every attempt under masks
        if path is None or not path.exists():
            return
        try:
            content = json.loads(path.read_text("utf-8"))
            self.marks = {run: (int(at[0]), int(at[1])) for run, at in content["marks"].items()}
            sums = str(content["sums"]).encode("ascii")
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            raise MessageError(f"{path}: damaged ({error}); restore it, without it old rounds could be replayed") from error
        self.sums = SumLedger.restore(sums)

    def check(self, place: Place) -> None:
        """Require that `place` is later than all that was answered in its run.

        Raises:
            MessageError: it is not.
        """
        mark = self.marks.get(place.run)
        if mark is not None and (place.round, place.attempt) <= mark:
            raise MessageError(
                f"round {place.round}, attempt {place.attempt} was already answered (this node is at round {mark[0]}, "
                f"attempt {mark[1]}); a replay, or a coordinator with an older state; refused"
            )

    def record(self, place: Place) -> None:
        """Write down that work for `place` begins.

        Raises:
            MessageError: as `check`.
            QuietchoirError: the disk refuses; then nothing is recorded.
        """
        self.check(place)
        marks = {**self.marks, place.run: (place.round, place.attempt)}
        self.write(marks)
        self.marks = marks

    def save(self) -> None:
        """Write down what the masks' ledger has noted; call it before an answer leaves.

        Raises:
            QuietchoirError: the disk refuses; then the answer must not leave.
        """
        self.write(self.marks)

    def write(self, marks: dict[str, tuple[int, int]]) -> None:
        """The file, whole."""
        if self.path is not None:
            content = {"marks": marks, "sums": self.sums.snapshot().decode("ascii")}
            paths.write_atomically(self.path, json.dumps(content, sort_keys=True).encode("ascii"), mode=0o600)
