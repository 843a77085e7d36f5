"""What this node has already taken part in, so that no round is opened twice.

Knows federation, round and attempt. Knows nothing of secrets.
Always: an attempt begins once; after one attempt of a round was opened, no other attempt of it begins or opens. (Two sums
of the same updates over two different sets of survivors give away the difference: one member's update.)
Not covered: a node whose ledger is lost with its disk. Keep `snapshot` with the node's other state.
"""

import json
from typing import Self

from ...core.errors import ConfigError, ProtocolError


class Ledger:
    """One node's memory of attempts, for any number of federations; hand the same one to every `SecAggClient`."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, int], int] = {}  # (federation, round) → highest attempt begun
        self._opened: dict[tuple[str, int], int] = {}  # (federation, round) → attempt opened

    def begin(self, federation: bytes, number: int, attempt: int) -> None:
        """Note a new attempt.

        Raises:
            ProtocolError: this attempt or a later one has begun already, or the round was opened.
        """
        at = (federation.hex(), number)
        if at in self._opened:
            raise ProtocolError(f"round {number} was opened in attempt {self._opened[at]}; its update is not masked again")
        if attempt <= self._begun.get(at, -1):
            raise ProtocolError(
                f"round {number} is at attempt {self._begun[at]}, got {attempt}; a retry needs a higher attempt"
            )
        self._begun[at] = attempt

    def open(self, federation: bytes, number: int, attempt: int) -> None:
        """Note that shares are about to be revealed.

        Raises:
            ProtocolError: the round was opened before.
        """
        at = (federation.hex(), number)
        if at in self._opened:
            raise ProtocolError(f"round {number} was opened in attempt {self._opened[at]}; nothing more is revealed")
        self._opened[at] = attempt

    def snapshot(self) -> bytes:
        """Everything noted, as canonical JSON."""
        rows = {key: sorted([*at, attempt] for at, attempt in table.items()) for key, table in self._tables().items()}
        return json.dumps(rows, sort_keys=True).encode()

    @classmethod
    def restore(cls, snapshot: bytes) -> Self:
        """Raises ConfigError if this is no snapshot."""
        ledger = cls()
        try:
            rows = json.loads(snapshot)
            for key, table in ledger._tables().items():
                table.update({(str(federation), int(number)): int(attempt) for federation, number, attempt in rows[key]})
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ConfigError("the ledger of rounds cannot be read; restore it, or leave and rejoin the federation") from error
        return ledger

    def _tables(self) -> dict[str, dict[tuple[str, int], int]]:
        return {"begun": self._begun, "opened": self._opened}
