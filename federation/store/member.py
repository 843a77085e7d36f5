"""A member's database in one federation: `member.sqlite` in that federation's folder of its home.

    runs       by run, the last place that was answered, and how the run stands (`ledger`)
    charges    what was paid in privacy (`privacy_book`)
    records    "federation", whose it is; "last heard", "opened sums" (`ledger`);
               "charges of ACCOUNT" (`privacy_book`); "group key", "model of RUN", "key share" and
               its memory (`client_store`);
               "contribution", "followed models" (`rounds`);
               "attempt" (`engines.stateless_client`); "personal adapter"
               (`personalization.worker`); "sent RUN ROUND" (`sent_messages`)

Knows the tables, and that nobody else may read them. Knows nothing of what is in them.
Always: one process takes part at a time (`hold`); what a former version kept is taken over first.

Hazard: it holds keys, adapters and a contribution in clear; it is as private as the folder.
"""

import os
import stat
from functools import partial
from pathlib import Path
from typing import IO

from ...core.errors import ConfigError, FederationError
from . import database, former
from .database import Database
from .write_ahead_log import check_log

FILE, LOCK = "member.sqlite", "taking-part.lock"
WHOSE = "federation"  # record
VERSION = 1
TABLES = """
CREATE TABLE runs (
    run TEXT PRIMARY KEY, round INTEGER NOT NULL, attempt INTEGER NOT NULL, standing TEXT NOT NULL
) STRICT
"""


def hold(folder: Path) -> IO[bytes]:
    """Take a node's folder for this process, until the file that comes back is closed.

    Raises:
        FederationError: another process of this node takes part.
    """
    return database.hold(
        folder, LOCK, "this node takes part already, in another process; stop that one first"
    )


def open_member(folder: Path, federation: str = "") -> Database:
    """The database in a folder that this process holds.

    Args:
        federation: hex; the one that it is of, or is of from now on. Empty: whichever.

    Raises:
        ConfigError: others may read it. FederationError: it is damaged, or what a former version
        kept is; or it is of another federation, and knows nothing of what was answered in this one.
        QuietchoirError: no space or no permission.
    """
    path = folder / FILE
    if os.name == "posix" and path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        raise ConfigError(
            f"{path}: mode {mode:04o} lets others read this member's secrets; run: chmod 600 {path}"
        )
    check_log(path)
    database = Database(path, TABLES, VERSION, partial(former.member, folder))
    try:
        former.put_away(database, former.MEMBER)
        if federation:
            check_whose(database, federation)
    except BaseException:
        database.close()
        raise
    return database


def check_whose(database: Database, federation: str) -> None:
    """Require a database of this federation; one that says nothing is of this from now on.

    Raises:
        FederationError: of another one.
    """
    if (found := database.get(WHOSE)) is None:
        database.put(WHOSE, {"id": federation})
    elif found.fields["id"] != federation:
        raise FederationError(
            f"{database.path}: of federation {str(found.fields['id'])[:16]}…, expected "
            f"{federation[:16]}…; put the right file back, without it old rounds could be replayed"
        )
