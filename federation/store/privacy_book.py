"""What was paid in privacy, as one database keeps it for one or several accounts.

Knows the table `charges`. Knows nothing of budgets.
Always: a charge is on the disk before `append` returns; a line that cannot be read is an error, and
so are lines that are not those that were written: their digest stands in a record, which has one of
its own.
"""

import dataclasses
import hashlib
import json

from ...core.errors import ConfigError
from ...crypto.privacy.accountant import PrivacyStep
from .database import Database

CHAIN = "charges of {}"  # record: what an account's lines come to


class PrivacyBook:
    """Accounts by their scope. Args: alone: a line of any other account is refused."""

    def __init__(self, database: Database, *, alone: bool = True) -> None:
        self.database, self.alone = database, alone

    def read(self, scope: str) -> list[tuple[str, PrivacyStep]]:
        """One account's history, in the order of charging.

        Raises:
            ConfigError: of somebody else, or not whole and readable.
        """
        history, chain = list[tuple[str, PrivacyStep]](), ""
        for account, round_, step in self.database.rows(
            "SELECT account, round, step FROM charges ORDER BY place"
        ):
            try:
                if account == scope:
                    history.append((round_, PrivacyStep(**json.loads(step))))
                    chain = linked(chain, round_, step)
                elif self.alone:
                    raise ValueError(f"it says {account!r}")
            except (ValueError, TypeError, RecursionError, ConfigError) as error:
                raise ConfigError(
                    f"{self.database.path}: not the privacy history of {scope} ({error}); put the "
                    "right file back. Never delete it: what was spent stays spent"
                ) from error
        if (written := self.chain(scope, chain)) != chain:
            raise ConfigError(
                f"{self.database.path}: damaged, the privacy history of {scope} comes to "
                f"{chain[:8] or 'nothing'}, {written[:8]} was written; restore it from a copy. "
                "Never delete it: what was spent stays spent"
            )
        return history

    def chain(self, scope: str, unwritten: str = "") -> str:
        """What an account's lines come to, as it was written with the last of them."""
        record = self.database.get(CHAIN.format(scope))
        return unwritten if record is None else str(record.fields["chain"])

    def append(self, scope: str, round_: str, step: PrivacyStep) -> None:
        """One more charge.

        Raises:
            QuietchoirError: the disk refuses; nothing was changed.
        """
        text = json.dumps(dataclasses.asdict(step), sort_keys=True)
        with self.database.step() as connection:
            if not (chain := self.chain(scope)):  # the first, or an earlier version wrote them
                for line in self.database.rows(
                    "SELECT round, step FROM charges WHERE account = ? ORDER BY place", scope
                ):
                    chain = linked(chain, *line)
            connection.execute(
                "INSERT INTO charges (account, round, step) VALUES (?, ?, ?)", (scope, round_, text)
            )
            self.database.put(CHAIN.format(scope), {"chain": linked(chain, round_, text)})


def linked(chain: str, round_: str, step: str) -> str:
    """A digest of one more line and all before it, hex."""
    return hashlib.sha256(json.dumps([chain, round_, step]).encode()).hexdigest()
