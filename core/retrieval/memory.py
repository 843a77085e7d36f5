"""What the assistant may remember of its owner: facts, each shown before it is kept.

Knows facts and the turns they came from. Knows nothing of models or conversations.
Always: a fact that was only proposed reaches no prompt; what is kept is what its owner was shown,
or wrote; a forgotten fact is gone from the file.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, UnknownEntryError
from .database import Passphrase, PrivateDatabase

FILE = "memory"  # in the node's home
VERSION = 1
FACT_CHARACTERS = 500
MOST_FACTS = 500
TABLES = """
CREATE TABLE facts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL, kept INTEGER NOT NULL,
    conversation TEXT NOT NULL, turn INTEGER NOT NULL, said TEXT NOT NULL, created REAL NOT NULL
) STRICT
""".strip()


@dataclass(frozen=True, slots=True)
class Fact:
    """One sentence about the owner, and where it comes from."""

    id: int
    text: str
    kept: bool  # False: proposed, its owner has not said yes
    conversation: str  # its id; empty: the owner wrote it outside of any
    turn: int  # of that conversation, counted from one; 0: none
    said: str  # the owner's message that it was taken from
    created: float  # Unix seconds


class FactStore:
    """The facts of one node.

    Raises:
        RetrievalError, AuthenticationError, ConfigError: as `PrivateDatabase`.
    """

    def __init__(
        self,
        path: Path,
        *,
        passphrase: Passphrase | None = None,
        locked: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = PrivateDatabase(path, TABLES, VERSION, passphrase=passphrase, locked=locked)
        self._clock = clock

    def facts(self, *, kept: bool | None = None) -> list[Fact]:
        """All, or those that are kept, or those that wait for a yes; the oldest first."""
        rows = self.database.rows(
            "SELECT id, text, kept, conversation, turn, said, created FROM facts ORDER BY id"
        )
        found = [Fact(row[0], row[1], bool(row[2]), *row[3:]) for row in rows]
        return [fact for fact in found if kept is None or fact.kept == kept]

    def fact(self, id: int) -> Fact:
        """One of them. Raises: UnknownEntryError: there is none."""
        for fact in self.facts():
            if fact.id == id:
                return fact
        raise UnknownEntryError(f"there is no fact {id}; `quietchoir memory list` shows them")

    def propose(
        self,
        text: str,
        *,
        conversation: str = "",
        turn: int = 0,
        said: str = "",
        kept: bool = False,
    ) -> Fact:
        """Put a fact before its owner; with `kept`, its owner wrote it.

        Raises:
            ConfigError: empty, too long, or too many. RetrievalError: the disk refuses.
        """
        text = checked(text)
        facts = self.facts()
        for fact in facts:
            if fact.text.casefold() == text.casefold():
                return self.keep(fact.id) if kept and not fact.kept else fact
        if len(facts) >= MOST_FACTS:
            raise ConfigError(f"{MOST_FACTS} facts are remembered already; forget some first")
        id = self.database.write(
            "INSERT INTO facts (text, kept, conversation, turn, said, created) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            text,
            int(kept),
            conversation,
            turn,
            said[:FACT_CHARACTERS],
            self._clock(),
        )
        return self.fact(id)

    def keep(self, id: int, text: str | None = None) -> Fact:
        """Its owner said yes, perhaps in other words.

        Raises:
            UnknownEntryError: there is no such fact. ConfigError: as `propose`.
        """
        fact = self.fact(id)
        words = fact.text if text is None else checked(text)
        self.database.write("UPDATE facts SET kept = 1, text = ? WHERE id = ?", words, id)
        if words != fact.text:
            self._scrub()
        return self.fact(id)

    def forget(self, id: int) -> None:
        """Delete one, kept or proposed. Raises: UnknownEntryError: there is no such fact."""
        self.fact(id)
        self.database.write("DELETE FROM facts WHERE id = ?", id)
        self._scrub()

    def forget_conversation(self, conversation: str) -> None:
        """A conversation is forgotten: what was proposed from it goes, and of what its owner kept
        from it the message that it was taken from.
        """
        self.database.write("DELETE FROM facts WHERE conversation = ? AND NOT kept", conversation)
        self.database.write("UPDATE facts SET said = '' WHERE conversation = ?", conversation)
        self._scrub()

    def _scrub(self) -> None:
        self.database.compact()
        self.database.scrub_log()

    def close(self) -> None:
        """Let the file go."""
        self.database.close()


def checked(text: str) -> str:
    """A fact on one line. Raises: ConfigError: empty, or too long."""
    words = " ".join(text.split())
    if not words or len(words) > FACT_CHARACTERS:
        raise ConfigError(
            f"a fact has 1 to {FACT_CHARACTERS} characters, this one has {len(words)}; say it in "
            f"a sentence"
        )
    return words
