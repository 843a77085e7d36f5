"""What left this node in one federation: in which round, when, under which protection, and how many
bytes in answer to which stage.

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

    def note(self, run: str, round_: int, stage: str, mode: str, size: int) -> None:
        """An answer of `size` bytes is about to leave.

        Raises:
            QuietchoirError: the disk refuses; then it must not leave.
        """
        name = f"{PREFIX}{run} {round_:09d}"
        before = self.database.get(name)
        stages = {} if before is None else dict(before.fields["stages"])
        stages[stage] = stages.get(stage, 0) + size
        self.database.put(
            name, {"at": self.now(), "run": run, "round": round_, "mode": mode, "stages": stages}
        )

    def rounds(self) -> list[Mapping[str, Any]]:
        """Each round's, the last one first: at, run, round, mode, stages, bytes.

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
