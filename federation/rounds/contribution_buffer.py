"""The one contribution that a member of buffered rounds keeps until it is summed.

Knows a record of a member's database, and which groups it may be summed in. Knows nothing of how a
contribution is made or protected.
Always: at most one is kept; it is found in its own run under its own rules alone; it is there whole
or gone; what was wiped does not come back, also not after a kill.

    contribution     its fields | the change, 4 bytes a value

Not covered: a copy of the folder that is put back later; backups; what a disk keeps of blocks that
were written over.
"""

import dataclasses
import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from ...core import log
from ...core.errors import FederationError, MessageError, QuietchoirError
from ..aggregation.update import Statistics
from ..membership.update import ROSTER
from ..spec.policy import Policy, canonical
from ..store.checkpoint import Vector
from ..store.database import Database, StoredRecord
from ..wire.messages import Group, RoundId

logger = log.get("federation.contribution")
NAME = "contribution"
# tables that a contribution does not depend on: it outlives a new member
MAY_CHANGE = ROSTER | {"coordinator"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one training gave."""

    run: str
    rules: str  # `rules_of` the federation file that it was trained under
    version: int  # steps behind the adapter that it was trained from
    broadcast_digest: str  # the broadcast digest of the work that it came of, hex
    state: str  # name of the state that it was trained from, where members follow them
    adapter: str  # digest of that adapter, hex
    update: Vector  # [n]
    statistics: Statistics
    tokens: int  # answer tokens that it was trained on

    def record(self) -> StoredRecord:
        """As it lies on disk."""
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        fields["statistics"] = dataclasses.asdict(self.statistics)
        fields["told"] = fields.pop("broadcast_digest")  # as it always was called on disk
        return StoredRecord(fields, fields.pop("update").astype("<f4").tobytes())

    @staticmethod
    def read(record: StoredRecord) -> "Contribution":
        """What `record` gave. Raises ValueError, TypeError or LookupError for anything else."""
        statistics = Statistics(**record.fields["statistics"])
        update = np.frombuffer(record.body, "<f4").astype(np.float32)
        fields = {**record.fields, "statistics": statistics}
        return Contribution(broadcast_digest=fields.pop("told"), update=update, **fields)


@functools.lru_cache(maxsize=16)
def rules_of(policy: Policy) -> str:
    """64 hex digits that differ between files under which one would not train alike."""
    return hashlib.sha256(
        canonical({key: one for key, one in policy.table().items() if key not in MAY_CHANGE})
    ).hexdigest()


class ContributionBuffer:
    """Where it lies. In memory only if there is no database (simulations).

    Hazard: whoever reads the database reads the change in clear. The examples it was trained on lie
    on the same disk.
    """

    def __init__(self, database: Database | None = None) -> None:
        self.database = database
        self._kept: Contribution | None = None
        self._read()
        if database is not None:
            database.forget.append(self._read)

    def __repr__(self) -> str:
        return "ContributionBuffer()"

    def look(self, run: str, rules: str) -> Contribution | None:
        """What is kept for this run under these rules."""
        kept = self._kept
        return kept if kept is not None and (kept.run, kept.rules) == (run, rules) else None

    def fresh(self, run: str, policy: Policy, version: int) -> Contribution | None:
        """What may still be summed with contributions from `version`."""
        kept, limit = self.look(run, rules_of(policy)), policy.schedule.max_staleness
        return kept if kept is not None and 0 <= version - kept.version <= limit else None

    def for_group(
        self, round_id: RoundId, policy: Policy, name: str, group: Group
    ) -> tuple[Contribution, int]:
        """The contribution of the member `name` that may go into this group, and how stale it is.

        Raises:
            MessageError: a group that this member does not take part in.
        """
        limit = policy.schedule.max_staleness
        if name not in group.names or any(policy.member(one) is None for one in group.names):
            raise MessageError("the group names strangers, or not this node; refused")
        # The node's own floor, never the coordinator's word.
        if len(group.members) < (need := policy.group_size):
            raise MessageError(
                f"a group of {len(group.members)} is below the minimum of {need}; refused"
            )
        for one, version in group.members:
            if not 0 <= version <= group.version <= version + limit:
                raise MessageError(
                    f"{one}'s contribution from version {version} does not fit version "
                    f"{group.version}, at most {limit} "
                    "steps later; refused"
                )
        check_version(group.version, round_id)
        kept, claimed = self.look(round_id.run, rules_of(policy)), dict(group.members)[name]
        if kept is None:
            raise MessageError(
                "this member has no contribution to give: the last one has left, or "
                "was never made; refused"
            )
        if kept.version != claimed:
            raise MessageError(
                f"this member's contribution is from version {kept.version}, the group says "
                f"{claimed}; refused"
            )
        # else its neighbours may have trained from another adapter
        if (kept.broadcast_digest, kept.state) != group.adapter_of(kept.version):
            raise MessageError(
                f"this member's contribution came of another adapter or other work than the group "
                f"says of version "
                f"{kept.version}; refused"
            )
        return kept, group.version - kept.version

    @property
    def size(self) -> int:
        """Values of the change that is kept; 0 if none is."""
        return 0 if self._kept is None else self._kept.update.size

    def keep(self, contribution: Contribution) -> None:
        """Keep it in place of the one before. If the disk refuses, it is kept in memory: a
        restart then costs a training.
        """
        if self.database is not None:
            record = contribution.record()
            try:
                self.database.put(NAME, record.fields, record.body)
            except QuietchoirError as error:
                logger.warning("the contribution is kept in memory alone: %s", error)
        self._kept = contribution

    def wipe(self) -> None:
        """Forget it; call it before it leaves.

        Raises:
            QuietchoirError: the disk refuses; then it must not leave, and is kept.
        """
        if self.database is not None:
            self.database.wipe(NAME)
        self._kept = None

    def _read(self) -> None:
        self._kept = None
        try:
            if self.database is not None and (record := self.database.get(NAME)) is not None:
                self._kept = Contribution.read(record)
        except (FederationError, ValueError, LookupError, TypeError) as error:
            logger.warning("the contribution is damaged (%s); this member trains anew", error)


def check_version(version: int, round_id: RoundId) -> None:
    """Require that so many steps can have been made: numbers of rounds count them, and those that
    came to nothing.

    Raises:
        MessageError: they cannot.
    """
    if version >= round_id.round:
        raise MessageError(
            f"version {version} is said to be there before round {round_id.round} is over; refused"
        )
