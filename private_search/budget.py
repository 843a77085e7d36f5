"""How much a library has told to whom.

Knows accounts, counts and the last sequence number of each asker. Knows nothing of ciphertexts.
Always: a count is on disk before the answer leaves; a refused request changes nothing.

Why accounts: an identity costs nothing to make, so a limit for each stranger would be no limit.
Askers whom the owner has listed have an account each; everybody else shares one.
Not covered: a copy of the folder under another path, or of the home by other means than `backup`,
begins to count anew, or where the copy stood.
"""

import json
import sys
import threading
from pathlib import Path

from ..core.errors import AuthenticationError, BudgetError, ConfigError, MessageError
from ..core.paths import write_atomically
from ..crypto.identity.keys import PublicIdentity
from .messages import RequestKind

STRANGERS = "strangers"
FOLDER = "library"  # of a home
SPENT = {RequestKind.KEYS: "sessions", RequestKind.CHOICE: "passages"}  # the rest are questions
BUDGETS = "budget-*.json"  # in it; no backup holds them
RESTORED_FILE = "restored"  # beside them, where a home came out of a backup


def why_restored(room: Path) -> str:
    """Why no library of this folder is served; "": they may be."""
    if not (room / RESTORED_FILE).exists():
        return ""
    return (
        f"this home came out of a backup, which does not know what its libraries have answered: "
        f"what an account may ask ever it could ask twice. If the old home is still there, put its "
        f"{BUDGETS} into {room}; then, or if every asker may begin again, remove "
        f"{room / RESTORED_FILE}"
    )


class QueryBudget:
    """Counts of one library, kept in one file.

    Args:
        limit: requests of each kind that one account may make, ever. Only the owner resets it, by
            deleting the file: new passages do not, because the old ones are still there to be
            worked out.
        listed: public keys (hex) with an account of their own.
        strangers: False leaves whoever is not listed without any.

    Raises:
        ConfigError: a budget file that cannot be read: rather no library than a forgotten count.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit: int,
        listed: frozenset[str] = frozenset(),
        strangers: bool = True,
    ) -> None:
        self._path, self.limit, self._listed = path, limit, listed
        self._strangers = strangers
        # told to one person on all accounts it may have had; a library lowers it to its dimension's
        self.most = sys.maxsize
        self._lock = threading.Lock()
        self._spent: dict[str, dict[str, int]] = {}
        self._last: dict[str, int] = {}
        if path.exists():
            self._load()

    def is_listed(self, asker: PublicIdentity) -> bool:
        """Has this asker an account of its own?"""
        return asker.raw.hex() in self._listed

    def account(self, asker: PublicIdentity) -> str:
        """Whose budget this asker draws on."""
        return asker.raw.hex() if self.is_listed(asker) else STRANGERS

    @property
    def accounts_of_one(self) -> int:
        """Accounts that one person can draw on: the listed are strangers too, under a new key."""
        return 2 if self._listed and self._strangers else 1

    def left(self, asker: PublicIdentity, kind: RequestKind) -> int:
        """Requests of this kind that are left to this asker's account.

        Whoever has one was told what strangers were ever told as well, for all we know; a stranger,
        what the account that was told most was. Both count, whoever is listed by now.
        """
        spent = {account: counts.get(kind.name, 0) for account, counts in self._spent.items()}
        strangers = spent.pop(STRANGERS, 0)
        own = spent.get(asker.raw.hex(), 0) if self.is_listed(asker) else strangers
        both = strangers + (own if self.is_listed(asker) else max(spent.values(), default=0))
        return min(self.limit - own, self.most - both)

    def spent(self) -> dict[str, dict[str, int]]:
        """What each account was ever told, by the names of the kinds of requests."""
        with self._lock:
            return {account: dict(counts) for account, counts in self._spent.items()}

    def charge(self, asker: PublicIdentity, kind: RequestKind, sequence: int) -> None:
        """Count one request, on disk, before it is answered.

        Raises:
            MessageError: the sequence number is not above the last one: a replay.
            BudgetError: nothing is left.
            AuthenticationError: a stranger, where strangers get nothing.
            QuietchoirError: the disk does not take it; nothing is counted and nothing must be
            answered.
        """
        with self._lock:
            name, account = asker.raw.hex(), self.account(asker)
            if account == STRANGERS and not self._strangers:
                raise AuthenticationError(
                    "this library answers those whom its owner listed; ask with the token that you "
                    "were given, ask with --member if it knows your federation, or send its owner "
                    "the key that `quietchoir library key` prints"
                )
            if sequence <= self._last.get(name, -1):
                raise MessageError(
                    "a request that was sent before, or out of order; sign a new one"
                )
            if self.left(asker, kind) <= 0:
                raise BudgetError(
                    f"all {SPENT.get(kind, 'questions')} of this account, at most {self.limit}, "
                    f"are used up (what strangers were told counts where it could be the same "
                    f"person); only the library's owner can open another account"
                )
            spent = {
                **self._spent,
                account: {
                    **self._spent.get(account, {}),
                    kind.name: self._spent.get(account, {}).get(kind.name, 0) + 1,
                },
            }
            last = {**self._last, name: sequence}
            write_atomically(
                self._path, json.dumps({"spent": spent, "last": last}).encode(), mode=0o600
            )
            self._spent, self._last = spent, last

    def _load(self) -> None:
        try:
            found = json.loads(self._path.read_bytes())
            self._spent = {
                str(account): {
                    RequestKind[kind].name: _count(count) for kind, count in counts.items()
                }
                for account, counts in found["spent"].items()
            }
            self._last = {str(name): _count(sequence) for name, sequence in found["last"].items()}
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self._path}: the library's budget cannot be read ({error}); restore it, "
                "or delete it if every asker may begin again"
            ) from error


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
