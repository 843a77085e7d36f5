"""What this node has already taken part in, so that no two sums can be subtracted.

Knows federation, round, attempt, and whose values were summed about what. Knows nothing of secrets.
Always: an attempt begins once; a masked upload counts as used when it leaves, whether it is opened
or not, and then no other attempt of its round begins, masks or opens. (Two sums of the same updates
over two different sets of survivors give away the difference: one member's update.) About one
subject, as are updates from the same adapter, a member signs for one set of survivors, and for the
same again. So of different sums about it no honest member is in two, and whatever is added up and
subtracted of them holds all honest members of one. (A rule that looks at two sets at a time, and
lets them differ by enough, is none: sums over ten sets of seven of ten, any two of which differ by
four, give each of the ten away.)
Not covered: a node whose ledger is lost with its disk. Keep `snapshot` with the node's other state.
"""

import json
from collections.abc import Collection
from typing import Self

from ...core.errors import ConfigError, ProtocolError


class RevealLedger:
    """One node's memory of attempts, for any number of federations; hand the same one to every
    `SecAggClient`.
    """

    def __init__(self) -> None:
        self._begun: dict[tuple[str, int], int] = {}  # (federation, round) → highest attempt begun
        # (federation, round) → attempt whose upload has left
        self._used: dict[tuple[str, int], int] = {}
        self._opened: dict[tuple[str, int], int] = {}  # (federation, round) → attempt opened
        self._signed: dict[str, set[tuple[str, ...]]] = {}  # subject → sets of survivors signed for

    def begin(self, federation: bytes, number: int, attempt: int) -> None:
        """Note a new attempt.

        Raises:
            ProtocolError: this attempt or a later one has begun already, or the round's upload has
            left.
        """
        at = (federation.hex(), number)
        for table, what in (
            (self._opened, "was opened"),
            (self._used, "has sent its masked update"),
        ):
            if at in table:
                raise ProtocolError(
                    f"round {number} {what} in attempt {table[at]}; its update is not masked again"
                )
        if attempt <= self._begun.get(at, -1):
            raise ProtocolError(
                f"round {number} is at attempt {self._begun[at]}, got {attempt}; a retry needs a "
                f"higher attempt"
            )
        self._begun[at] = attempt

    def leave(self, federation: bytes, number: int, attempt: int) -> None:
        """Note that the masked upload is about to leave.

        Raises:
            ProtocolError: one of this round has left before.
        """
        at = (federation.hex(), number)
        if at in self._used or at in self._opened:
            raise ProtocolError(
                f"round {number} has sent its masked update before; it is not masked again"
            )
        self._used[at] = attempt

    def before(self, subject: bytes) -> tuple[tuple[str, ...], ...]:
        """The sets of survivors, by name, that this node signed for about `subject`."""
        return tuple(sorted(self._signed.get(subject.hex(), ())))

    def check(self, subjects: Collection[bytes], survivors: Collection[str]) -> None:
        """Require that this node is in no sum over other members about the same.

        Args:
            subjects: 32 bytes each: what the sum is about.

        Raises:
            ProtocolError: it is; nothing was noted.
        """
        names = set(survivors)
        for subject in subjects:
            for earlier in self.before(subject):
                if found := len(names.symmetric_difference(earlier)):
                    raise ProtocolError(
                        f"these {len(names)} survivors differ by {found} members from "
                        f"{len(earlier)} whose sum from the same "
                        "adapter this member signed for, need the very same; nothing is signed"
                    )

    def sign(self, subjects: Collection[bytes], survivors: Collection[str]) -> None:
        """Note that survivors are about to be signed for: from here on others may open their sum.

        Raises:
            ProtocolError: as `check`; nothing was noted.
        """
        self.check(subjects, survivors)
        for subject in subjects:
            self._signed.setdefault(subject.hex(), set()).add(tuple(sorted(survivors)))

    def open(self, federation: bytes, number: int, attempt: int) -> None:
        """Note that shares are about to be revealed.

        Raises:
            ProtocolError: the round was opened before.
        """
        at = (federation.hex(), number)
        if at in self._opened:
            raise ProtocolError(
                f"round {number} was opened in attempt {self._opened[at]}; nothing more is revealed"
            )
        self._opened[at] = attempt

    def snapshot(self) -> bytes:
        """Everything noted, as canonical JSON."""
        rows: dict[str, object] = {
            key: sorted([*at, attempt] for at, attempt in table.items())
            for key, table in self._tables().items()
        }
        rows["signed"] = {
            subject: sorted(map(list, found)) for subject, found in self._signed.items()
        }
        return json.dumps(rows, sort_keys=True).encode()

    @classmethod
    def restore(cls, snapshot: bytes) -> Self:
        """What `snapshot` wrote, also before uploads and survivors were noted.

        Raises:
            ConfigError: this is no snapshot.
        """
        ledger = cls()
        try:
            rows = {"used": [], "signed": {}, **json.loads(snapshot)}
            for key, table in ledger._tables().items():
                table.update(
                    {
                        (str(federation), int(number)): int(attempt)
                        for federation, number, attempt in rows[key]
                    }
                )
            for subject, found in rows["signed"].items():
                ledger._signed[str(subject)] = {tuple(map(str, names)) for names in found}
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                "the ledger of rounds cannot be read; restore it, or leave and "
                "rejoin the federation"
            ) from error
        return ledger

    def _tables(self) -> dict[str, dict[tuple[str, int], int]]:
        return {"begun": self._begun, "used": self._used, "opened": self._opened}
