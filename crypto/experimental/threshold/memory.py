"""What one member has done under one joint key, so that it does no such thing twice.

Knows rounds, requests and counts. Knows no polynomial.
Always: a round is encrypted for once, and opened over one set of contributors; openings are counted
against the plan. It belongs to one `KeyShare`: whoever keeps that on a disk writes this down before
an answer leaves, and uses neither alone.
"""

import json

from ....core.errors import BudgetError, ProtocolError
from .plan import ThresholdPlan


class ThresholdMemory:
    """One member's memory."""

    def __init__(self) -> None:
        self.opened_rows = 0  # ciphertexts answered for
        self._encrypted: set[int] = set()  # rounds
        self._opened: dict[int, tuple[int, ...]] = {}  # round -> contributors
        self._answered: set[bytes] = set()  # requests

    def encrypt(self, round_number: int) -> None:
        """Note that a contribution is about to leave.

        Raises:
            ProtocolError: there was one; the same public polynomial twice would show the difference
            of the two.
        """
        if round_number in self._encrypted:
            raise ProtocolError(
                f"round {round_number} was encrypted for before; a retry takes another number"
            )
        self._encrypted.add(round_number)

    def check(
        self,
        plan: ThresholdPlan,
        round_number: int,
        contributors: tuple[int, ...],
        request: bytes,
        rows: int,
    ) -> None:
        """Raise unless this request may be answered.

        Raises:
            ProtocolError: answered before, or the round was opened over other contributors.
            BudgetError: so many openings that the smudging no longer hides what it should.
        """
        if request in self._answered:
            raise ProtocolError(
                f"this request of round {round_number} was answered before; it is "
                f"not answered twice"
            )
        if self._opened.get(round_number, contributors) != contributors:
            raise ProtocolError(
                f"round {round_number} was opened over others; the difference "
                f"would be a single member's"
            )
        if self.opened_rows + rows > plan.openings:
            raise BudgetError(
                f"{self.opened_rows} ciphertexts were opened, {plan.openings} at most under a key; "
                f"make a new one"
            )

    def open(
        self, round_number: int, contributors: tuple[int, ...], request: bytes, rows: int
    ) -> None:
        """Note an answer that is about to leave."""
        self.opened_rows += rows
        self._opened[round_number] = contributors
        self._answered.add(request)

    def encode(self) -> bytes:
        """Everything noted, as JSON."""
        noted = {
            "opened_rows": self.opened_rows,
            "encrypted": sorted(self._encrypted),
            "opened": {str(number): list(names) for number, names in self._opened.items()},
            "answered": sorted(request.hex() for request in self._answered),
        }
        return json.dumps(noted, sort_keys=True).encode("ascii")

    @staticmethod
    def decode(raw: bytes) -> "ThresholdMemory":
        """Read what `encode` wrote.

        Raises:
            ProtocolError: anything else.
        """
        memory = ThresholdMemory()
        try:
            noted = json.loads(raw)
            memory.opened_rows = int(noted["opened_rows"])
            memory._encrypted = {int(number) for number in noted["encrypted"]}
            memory._opened = {
                int(number): tuple(map(int, names)) for number, names in noted["opened"].items()
            }
            memory._answered = {bytes.fromhex(request) for request in noted["answered"]}
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise ProtocolError(
                "what was done under a joint key cannot be read; the key is not used, make another"
            ) from None
        return memory
