"""What a node's owner is shown of its memberships: what left, under which protection, at which cost
in privacy, and what the next round would train on; and the word that pauses them.

Knows a node's home, and the records that members keep there. Knows nothing of how it is shown.
Always: it only reads, but for the pause; a running member is not disturbed. The examples are made
by the calls that make what a learner is given (`client_node`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ...core.config import Config
from ...core.errors import DataError, QuietchoirError
from ...core.history.training_set import TrainingSet
from ...crypto.privacy.accountant import Account, Budget
from ..client_node import LentHistory, examples_in
from ..membership import consent, keys, roster
from ..spec.policy import Policy
from ..store import member
from ..store.database import Database
from ..store.privacy_book import PrivacyBook
from ..store.sent_messages import SentMessages

MOST_EXAMPLES = 50  # that are shown; the rest: quietchoir data show --for FILE
MOST_ROUNDS = 100
Row = dict[str, Any]


def memberships(home: Path) -> list[tuple[Path, Policy]]:
    """The federation files that the node of this home accepted. One that is damaged is left to its
    member to tell.
    """
    found = []
    for file in sorted((home / "federations").glob(f"*/{roster.FILE}")):
        try:
            found.append((file, roster.read(file).policy))
        except QuietchoirError:
            continue
    return found


class MemberStatus:
    """The memberships in a home.

    Args:
        latest: of a federation's id, what its member in this process told last ({"at", "words"});
            None: none runs here.
    """

    def __init__(
        self, home: Path, config: Config, latest: Callable[[str], Mapping[str, Any] | None]
    ) -> None:
        self.home, self.config, self.latest = home, config, latest
        self.lent: dict[str, LentHistory] = {}

    def federations(self) -> Sequence[Row]:
        """Every membership, as JSON's types.

        Raises:
            FederationError, ConfigError: a member's database is damaged.
        """
        return [self.row(file, policy) for file, policy in memberships(self.home)]

    def row(self, file: Path, policy: Policy) -> Row:
        """One of them."""
        sent: list[Mapping[str, Any]] = []
        privacy = privacy_of(policy, None)
        path = file.parent / member.FILE
        if path.exists():
            with closing(Database(path, member.TABLES, member.VERSION)) as database:
                sent = SentMessages(database).rounds()
                privacy = privacy_of(policy, database)
        return {
            "id": policy.federation.hex(),
            "name": policy.name,
            "version": policy.version,
            "mode": policy.protection.mode,
            "min_cohort": policy.protection.min_cohort,
            "members": len(policy.members),
            "coordinator": policy.coordinator.address,
            "paused": bool(consent.why_paused(file.parent)),
            "latest": self.latest(policy.federation.hex()) or unknown(self.home),
            "privacy": privacy,
            "bytes": sum(one["bytes"] for one in sent),
            "rounds": sent[:MOST_ROUNDS],
        }

    def training(self, federation: str) -> Row:
        """What the next round would train on.

        Raises:
            DataError: not a member of it; or the examples cannot be read. MissingPartError: what
            redacts is not installed.
        """
        file, policy = self.found(federation)
        folder = self.config.training.data
        row: Row = {"file": str(file), "source": "folder" if folder else "conversations"}
        if folder is not None:
            own = examples_in(folder, policy.prompt)
            train, test = own.train, own.test
        else:
            if federation not in self.lent:
                words = self.config.history.words
                self.lent[federation] = LentHistory(self.home, policy, words)
            given: TrainingSet = self.lent[federation].current()
            train, test = given.train, given.test
            row |= {
                "left_out": given.left_out, "redacted": given.redacted, "digest": given.digest,
            }  # fmt: skip
        shown = [list(one.messages) for one in train[:MOST_EXAMPLES]]
        return row | {"train": len(train), "test": len(test), "examples": shown}

    def pause(self, federation: str, paused: bool) -> None:
        """Let nothing more leave, also after a restart; or go on. An answer whose sending has begun
        leaves whole, and what has left is not taken back.

        Raises:
            DataError: not a member of it. QuietchoirError: the disk refuses.
        """
        consent.pause(self.found(federation)[0].parent, paused)

    def found(self, federation: str) -> tuple[Path, Policy]:
        """One by its id. Raises: DataError: not a member of it."""
        for file, policy in memberships(self.home):
            if policy.federation.hex() == federation:
                return file, policy
        raise DataError(
            f"this node is no member of a federation {federation[:16]!r}; it joins one with: "
            f"quietchoir serve --federation FILE"
        )


def unknown(home: Path) -> Row | None:
    """That this node may not take part, and what it spent is not known; None: it may."""
    words = keys.why_restored(home)
    return {"at": (home / keys.RESTORED_FILE).stat().st_mtime, "words": words} if words else None


def privacy_of(policy: Policy, database: Database | None) -> Row | None:
    """What is spent so far of the budget, with its delta; None: no noise. Args: database: None:
    this node has taken part in no round.
    """
    privacy = policy.privacy
    if not privacy.on:
        return None
    budget = Budget(epsilon=privacy.epsilon, delta=privacy.delta)
    spent = 0.0
    if database is not None and (accounts := database.rows("SELECT DISTINCT account FROM charges")):
        account = Account(budget, scope=accounts[0][0], book=PrivacyBook(database))
        spent = account.epsilon().epsilon
    return {"epsilon": spent, "budget": privacy.epsilon, "delta": privacy.delta}
