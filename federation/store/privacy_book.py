"""What was paid in privacy, as one database keeps it for one or several accounts.

Knows the table `charges`. Knows nothing of budgets.
Always: a charge is on the disk before `append` returns; a line that cannot be read is an error.
"""

import dataclasses
import json

from ...core.errors import ConfigError
from ...crypto.privacy.accountant import Step
from .database import Database


class PrivacyBook:
    """Accounts by their scope. Args: alone: a line of any other account is refused."""

    def __init__(self, database: Database, *, alone: bool = True) -> None:
        self.database, self.alone = database, alone

    def read(self, scope: str) -> list[tuple[str, Step]]:
        """One account's history, in the order of charging.

        Raises:
            ConfigError: of somebody else, or not whole and readable.
        """
        history = list[tuple[str, Step]]()
        for account, round_, step in self.database.rows(
            "SELECT account, round, step FROM charges ORDER BY place"
        ):
            try:
                if account == scope:
                    history.append((round_, Step(**json.loads(step))))
                elif self.alone:
                    raise ValueError(f"it says {account!r}")
            except (ValueError, TypeError, ConfigError) as error:
                raise ConfigError(
                    f"{self.database.path}: not the privacy history of {scope} ({error}); put the "
                    "right file back. Never delete it: what was spent stays spent"
                ) from error
        return history

    def append(self, scope: str, round_: str, step: Step) -> None:
        """One more charge.

        Raises:
            QuietchoirError: the disk refuses; nothing was changed.
        """
        with self.database.step() as connection:
            connection.execute(
                "INSERT INTO charges (account, round, step) VALUES (?, ?, ?)",
                (scope, round_, json.dumps(dataclasses.asdict(step), sort_keys=True)),
            )
