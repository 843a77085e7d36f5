"""What left this node in one federation: in which round, when, under which protection, and how many
bytes in answer to which stage; and what of the round's training did not count.

Knows a member's database. Knows nothing of what the bytes say: they are not kept.
Always: an answer is written down before it leaves, so what stands here is never too little; of an
attempt that failed it is the sum with the next ones of its round.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from .database import Database

PREFIX = "sent "  # records: "sent RUN ROUND"


class SentMessages:
    """One member's. Args: now: seconds since 1970."""

    def __init__(self, database: Database, *, now: Callable[[], float] = time.time) -> None:
        self.database, self.now = database, now

    def note(
        self,
        run: str,
        round_: int,
        stage: str,
        mode: str,
        size: int,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        """An answer of `size` bytes is about to leave.

        Args:
            limits: what of this round's training did not count: share of values that are "clipped",
                of its length that a change was "shortened" to, examples that were "left" to later
                rounds.

        Raises:
            QuietchoirError: the disk refuses; then it must not leave.
        """
        name = f"{PREFIX}{run} {round_:09d}"
        before = self.database.get(name)
        kept = {} if before is None else dict(before.fields)
        stages = dict(kept.get("stages", {}))
        stages[stage] = stages.get(stage, 0) + size
        fields = {"at": self.now(), "run": run, "round": round_, "mode": mode, "stages": stages}
        self.database.put(name, {**kept, **fields, **(limits or {})})

    def rounds(self) -> list[Mapping[str, Any]]:
        """Each round's, the last one first: at, run, round, mode, stages, bytes; clipped,
        shortened and left where something of its training did not count.

        Raises:
            FederationError: damaged.
        """
        found = [
            record.fields
            for (name,) in self.database.rows(
                "SELECT name FROM records WHERE name GLOB ?", f"{PREFIX}*"
            )
            if (record := self.database.get(name)) is not None
        ]
        rows = [fields | {"bytes": sum(fields["stages"].values())} for fields in found]
        return sorted(rows, key=lambda fields: (fields["at"], fields["round"]), reverse=True)
