"""What was said on this node, what its owner made of it, and what of it may train.

Knows one SQLite database: conversations and their turns, examples, consent, which adapter was
trained on which example. Knows nothing of tokens, models, federations or HTTP.
Always: nothing trains that its owner did not say; a step is written whole or not at all; what is
forgotten is written over with zeros, in the log too, and only its number stays, so that adapters
which were trained on it can be told. Mode 0600.

Not covered: copies of the file and backups; what a disk keeps of blocks that were written over;
adapters that were trained on what was forgotten: they are marked, and an adapter unlearns nothing.
"""

import contextlib
import difflib
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .. import paths
from ..assistant.context import Message
from ..errors import DataError, QuietchoirError, UnknownConversationError
from ..toolcall import ToolCall, parse, render, render_all

FILE = "history.sqlite"
KIND, VERSION = 0x51_43_48_49, 4  # "QCHI": SQLite's application id; of the tables below
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")  # of a conversation, as its client calls it
# of what a client said before and says otherwise now; more are those of one that does so each time
MOST_FORMER = 16
FORMER = "-former-"  # in the names of those branches
WORDLESS_S = 86_400.0  # a conversation without a word is none after that
TITLE_CHARACTERS = 80
NEVER, PERSONAL = "never", "personal"
FEDERATION = re.compile(r"federation:[0-9a-f]{64}")  # by the federation's id, since names repeat
Origin = Literal["thumb", "correction", "confirmed"]
Kind = Literal["conversation", "collection", "source"]
Exchange = tuple[str, str, str]  # what was asked, the words of its answer, and its calls
TABLES = """
CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY, source TEXT NOT NULL, title TEXT NOT NULL, at REAL NOT NULL,
    root TEXT NOT NULL DEFAULT '', latest REAL NOT NULL DEFAULT 0,
    settings TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE TABLE IF NOT EXISTS turns (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    position INTEGER NOT NULL, message TEXT NOT NULL, PRIMARY KEY (conversation, position)
) STRICT;
CREATE TABLE IF NOT EXISTS notes (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    name TEXT NOT NULL, note TEXT NOT NULL, PRIMARY KEY (conversation, name)
) STRICT;
CREATE TABLE IF NOT EXISTS uses (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    collection TEXT NOT NULL, PRIMARY KEY (conversation, collection)
) STRICT;
CREATE TABLE IF NOT EXISTS sources (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    source TEXT NOT NULL, PRIMARY KEY (conversation, source)
) STRICT;
CREATE TABLE IF NOT EXISTS examples (
    id TEXT PRIMARY KEY, conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    turn INTEGER NOT NULL, origin TEXT NOT NULL, messages TEXT NOT NULL, answer TEXT NOT NULL,
    at REAL NOT NULL, UNIQUE (conversation, turn)
) STRICT;
CREATE TABLE IF NOT EXISTS consents (
    kind TEXT NOT NULL, name TEXT NOT NULL, destination TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
CREATE TABLE IF NOT EXISTS trained (
    adapter TEXT NOT NULL, example TEXT NOT NULL, PRIMARY KEY (adapter, example)
) STRICT;
CREATE TABLE IF NOT EXISTS forgotten (example TEXT PRIMARY KEY, at REAL NOT NULL) STRICT
"""
# From version 1, where an example was called by its answer's place among the turns, which moved
# when a client sent its tools' results along. Of two for one answer the later stays.
FROM_1 = f"""
ALTER TABLE examples RENAME TO examples_1; {TABLES};
INSERT OR REPLACE INTO examples SELECT id, conversation,
    (SELECT count(*) FROM json_each(messages) WHERE json_extract(value, '$.role') = 'user'),
    origin, messages, answer, at FROM examples_1 ORDER BY at;
DROP TABLE examples_1;
INSERT OR IGNORE INTO sources SELECT id, source FROM conversations
"""
# To version 3, which had no branches, by the version that was there; 2 had no notes.
TO_3 = {1: FROM_1, 2: TABLES, 3: ""}
FROM_3 = """
ALTER TABLE conversations ADD COLUMN root TEXT NOT NULL DEFAULT '';
ALTER TABLE conversations ADD COLUMN latest REAL NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
UPDATE conversations SET root = id, latest = at
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationInfo:
    """One conversation, without what was said."""

    id: str
    source: str  # who kept it: "page", "chat", "api", or a name that a client gives
    title: str  # how it began, or what its owner calls it
    at: float  # of its beginning, in seconds since 1970
    latest: float  # when something was said in it last
    root: str  # the conversation that it is a branch of; itself: it was the first
    turns: int
    examples: int
    consent: str  # what holds for it: NEVER, PERSONAL or "federation:ID"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptExample:
    """A request with the answer that its owner wants for it."""

    id: str
    conversation: str
    turn: int  # which of the conversation's answers, counted from one
    origin: Origin
    messages: tuple[Message, ...]  # up to the request
    answer: str  # a text, or a call as `toolcall.render` writes it
    at: float  # seconds since 1970
    consent: str  # what holds for it

    @property
    def as_said(self) -> list[dict[str, str]]:
        """Roles and texts, the answer last."""
        said = [
            {"role": one.role, "content": render_all(one.calls) if one.calls else one.content}
            for one in self.messages
        ]
        return [*said, {"role": "assistant", "content": self.answer}]

    def may_train(self, destination: str) -> bool:
        """Is it for `destination`? What may train a federation may train its owner's adapter."""
        return self.consent != NEVER and destination in (self.consent, PERSONAL)


class HistoryStore:
    """One open database.

    Hazard: it holds in clear what its owner said; whoever reads the node's home reads it.
    """

    def __init__(self, folder: Path) -> None:
        """Open it in `folder`, or make it.

        Raises:
            DataError: damaged, of another kind, or of a later version; it is left as it is.
            QuietchoirError: no space or no permission.
        """
        self.path = paths.private_folder(folder) / FILE
        self._lock = threading.RLock()
        try:
            # Never opened here if it is there: closing it would drop the locks that this process
            # holds on it through another connection, and the next to leave would end the log.
            if not self.path.exists():
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self.connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=10.0
            )
        except (OSError, sqlite3.Error) as error:
            raise QuietchoirError(
                f"{self.path}: cannot open ({error}); free the disk or choose another folder"
            ) from error
        try:
            self._check()
        except BaseException:
            self.connection.close()
            raise

    def _check(self) -> None:
        try:
            for pragma in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "secure_delete = ON",
                "foreign_keys = ON",
            ):
                self.connection.execute(f"PRAGMA {pragma}")
            kind, version = (
                self.connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version")
            )
            if (kind, version) == (0, 0):
                self._make(TABLES)
                return
            sound = self.connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            if sound and kind == KIND and version in TO_3:
                self._make(f"{TO_3[version]};{FROM_3}")
                version = VERSION
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path}: damaged ({error}); restore it from a copy") from error
        if not sound:
            raise DataError(f"{self.path}: damaged; restore it from a copy")
        if (kind, version) != (KIND, VERSION):
            raise DataError(
                f"{self.path}: of kind {kind} and version {version}, expected {KIND} and "
                f"{VERSION}; use the program that wrote it, or move it away"
            )

    def _make(self, statements: str) -> None:
        with self.step():
            for statement in filter(str.strip, statements.split(";")):
                self.connection.execute(statement)
            self.connection.execute(f"PRAGMA application_id = {KIND}")
            self.connection.execute(f"PRAGMA user_version = {VERSION}")

    def stamp(self) -> tuple[int, ...]:
        """Another one after every change, by whichever program."""
        return tuple(
            part
            for name in (self.path, self.path.with_name(f"{FILE}-wal"))
            if name.exists() and name.stat().st_size  # an empty log comes and goes
            for part in (name.stat().st_mtime_ns, name.stat().st_size)
        )

    def close(self) -> None:
        """Let go of the file, once whoever still reads or writes is through."""
        with self._lock:
            self.connection.close()

    @contextmanager
    def step(self) -> Iterator[None]:
        """All that is written inside is on the disk when this returns, or nothing is.

        Raises:
            QuietchoirError: the disk refused, or another program kept the database for too long.
        """
        with self._lock:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self.connection.execute("COMMIT")
                except BaseException:
                    if self.connection.in_transaction:
                        self.connection.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                raise QuietchoirError(
                    f"{self.path}: nothing was written ({error}); free the disk, or try again"
                ) from error

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self.connection.execute(query, values).fetchall()

    # What was said

    def keep(
        self,
        conversation: str,
        messages: Sequence[Message],
        *,
        source: str,
        collections: Sequence[str] = (),
        began: float | None = None,
    ) -> None:
        """Keep a conversation as it stands now. Turns that were said otherwise before, or that are
        not among these, go on as a branch of it, with the examples that were made of them, at most
        `MOST_FORMER` of such branches. But where the newest answer is still among these, somebody
        goes on from there, and what the client has cut off or wrote anew before it stays as it was
        said. What was thought before an answer stays with it.

        Args:
            source: who said what is new in it; all who ever did limit what it may train.
            collections: documents that an answer was made of.
            began: what `begin` told when the answer began, so that one which was forgotten
                meanwhile does not come back.

        Raises:
            DataError: a name that no conversation may have, or it was forgotten meanwhile.
        """
        check_name(conversation, "conversation")
        check_name(source, "source")
        opening = next((one.content for one in messages if one.role == "user"), "")
        title = " ".join(opening.split())[:TITLE_CHARACTERS]
        with self.step():
            if began is not None and self.began(conversation) != began:
                raise DataError(f"conversation {conversation} was forgotten while it was answered")
            before = [
                read(text)
                for (text,) in self._rows(
                    "SELECT message FROM turns WHERE conversation = ? ORDER BY position",
                    conversation,
                )
            ]
            if joint := newest_in(before, messages):
                messages = [*before[: joint[0]], *messages[joint[1] :]]
            messages = with_thoughts(messages, before)
            if turn := first_left_out(before, messages):
                self._put_aside(conversation, len(before), turn)
            self.connection.execute(
                "INSERT INTO conversations (id, source, title, at, root, latest)"
                " VALUES (?1, ?2, ?3, ?4, ?1, ?4) ON CONFLICT (id) DO UPDATE SET"
                " title = iif(title = '', excluded.title, title), latest = excluded.latest",
                (conversation, source, title, time.time()),
            )
            if not {one.content for one in before} <= {one.content for one in messages}:
                # what was said otherwise before is gone, and so is what was noted of it
                self.connection.execute("DELETE FROM notes WHERE conversation = ?", (conversation,))
            self.connection.execute("DELETE FROM turns WHERE conversation = ?", (conversation,))
            rows = [(conversation, place, written(one)) for place, one in enumerate(messages)]
            self.connection.executemany("INSERT INTO turns VALUES (?, ?, ?)", rows)
            self.connection.executemany(
                "INSERT OR IGNORE INTO uses VALUES (?, ?)",
                [(conversation, name) for name in collections],
            )
            self.connection.execute(
                "INSERT OR IGNORE INTO sources VALUES (?, ?)", (conversation, source)
            )

    def begin(self, conversation: str, source: str) -> float:
        """An answer begins: when its conversation was kept first, seconds since 1970. A new one is
        kept from now on, without a word, so that it can be forgotten before its first answer ends.

        Raises:
            DataError: a name that no conversation may have.
        """
        check_name(conversation, "conversation")
        check_name(source, "source")
        now = time.time()
        with self.step():
            self.connection.execute(  # of answers that came to nothing
                "DELETE FROM conversations WHERE at < ? AND id <> ? AND NOT EXISTS"
                " (SELECT 1 FROM turns WHERE conversation = conversations.id)",
                (now - WORDLESS_S, conversation),
            )
            self.connection.execute(
                "INSERT OR IGNORE INTO conversations (id, source, title, at, root, latest)"
                " VALUES (?1, ?2, '', ?3, ?1, ?3)",
                (conversation, source, now),
            )
        began = self.began(conversation)
        assert began is not None  # it was written just now
        return began

    def began(self, conversation: str) -> float | None:
        """When a conversation was kept first, seconds since 1970; None: it is not kept."""
        found = self._rows("SELECT at FROM conversations WHERE id = ?", conversation)
        return found[0][0] if found else None

    def conversations(self) -> list[ConversationInfo]:
        """All that are kept, each branch by itself, those first in which something was said
        last.
        """
        return self._infos(None)

    def conversation(self, name: str) -> ConversationInfo:
        """One of them.

        Raises:
            UnknownConversationError: there is none of this name.
        """
        self._require(name)
        return self._infos(name)[0]

    def _infos(self, name: str | None) -> list[ConversationInfo]:
        found = self._rows(
            "SELECT id, source, title, at, latest, root,"
            " (SELECT count(*) FROM turns WHERE conversation = conversations.id),"
            " (SELECT count(*) FROM examples WHERE conversation = conversations.id)"
            " FROM conversations WHERE id = ?1 OR (?1 IS NULL AND EXISTS"
            " (SELECT 1 FROM turns WHERE conversation = conversations.id))"
            " ORDER BY latest DESC, id",
            name,
        )
        keys = ("id", "source", "title", "at", "latest", "root", "turns", "examples")
        return [
            ConversationInfo(**dict(zip(keys, row, strict=True)), consent=self.consent_of(row[0]))
            for row in found
        ]

    def messages(self, conversation: str) -> tuple[Message, ...]:
        """What was said in one.

        Raises:
            UnknownConversationError: there is none of this name.
        """
        self._require(conversation)
        found = self._rows(
            "SELECT message FROM turns WHERE conversation = ? ORDER BY position", conversation
        )
        return tuple(read(text) for (text,) in found)

    def matching(self, words: str) -> list[str]:
        """Conversations with each of these words in their title or in what was said, by their ids;
        without case, and a part of a word counts.
        """
        wanted = words.casefold().split()
        texts = {one.id: [one.title] for one in self.conversations()}
        for name, message in self._rows("SELECT conversation, message FROM turns"):
            texts[name].append(read(message).content)
        whole = {name: "\n".join(parts).casefold() for name, parts in texts.items()}
        return [name for name, text in whole.items() if all(word in text for word in wanted)]

    def rename(self, conversation: str, title: str) -> None:
        """Call a conversation, and all its branches, by another title.

        Raises:
            UnknownConversationError: there is none of this name. DataError: no word is in it.
        """
        self._require(conversation)
        found = " ".join(title.split())[:TITLE_CHARACTERS]
        if not found:
            raise DataError("the title is empty; give one with a word in it")
        with self.step():
            self.connection.execute(
                "UPDATE conversations SET title = ? WHERE root = ?",
                (found, self.root(conversation)),
            )

    def settings(self, conversation: str) -> dict[str, Any]:
        """How its owner wants one answered, as its client wrote that down.

        Raises:
            UnknownConversationError: there is none of this name.
        """
        self._require(conversation)
        [(text,)] = self._rows("SELECT settings FROM conversations WHERE id = ?", conversation)
        return dict(json.loads(text))

    def put_settings(self, conversation: str, settings: Mapping[str, Any]) -> None:
        """Keep how one is to be answered. Raises: UnknownConversationError: there is none."""
        self._require(conversation)
        with self.step():
            self.connection.execute(
                "UPDATE conversations SET settings = ? WHERE id = ?",
                (json.dumps(settings, ensure_ascii=False), conversation),
            )

    # Branches: conversations of one root, each with all its turns

    def root(self, conversation: str) -> str:
        """The conversation that one is a branch of; itself if it is of none, or not kept."""
        found = self._rows("SELECT root FROM conversations WHERE id = ?", conversation)
        return str(found[0][0]) if found else conversation

    def branches(self, conversation: str) -> list[str]:
        """All branches of a conversation, it among them, in the order of their beginning."""
        found = self._rows(
            "SELECT id FROM conversations WHERE root = ? ORDER BY at, rowid",
            self.root(conversation),
        )
        return [id for (id,) in found]

    def branch(self, conversation: str, turn: int) -> str:
        """Begin a further branch, which holds what was said before a question and goes on
        otherwise; returns its name. What holds for the conversation holds for it: consent, sources
        and collections.

        Args:
            turn: which of the user's messages, counted from one; it may be the one that would come
                next.

        Raises:
            UnknownConversationError: there is none. DataError: it has not so many messages.
        """
        messages = self.messages(conversation)
        asked = [place for place, one in enumerate(messages) if one.role == "user"]
        if not 1 <= turn <= len(asked) + 1:
            raise DataError(
                f"turn {turn} of conversation {conversation} is not there to branch from; its user "
                f"said {len(asked)} things"
            )
        place = [*asked, len(messages)][turn - 1]
        with self.step():
            return self._copy(conversation, place)

    def _put_aside(self, conversation: str, place: int, turn: int) -> None:
        """The first `place` turns of a conversation become a branch, with the examples of its
        answers from `turn` on; beyond `MOST_FORMER` of them the oldest goes in which nobody went on
        and of which nothing was made. Inside of a step.
        """
        former = self._copy(conversation, place, FORMER)
        self.connection.execute(
            "UPDATE examples SET conversation = ? WHERE conversation = ? AND turn >= ?",
            (former, conversation, turn),
        )
        idle = self._rows(
            "SELECT id FROM conversations WHERE root = ? AND id LIKE ? AND at = latest AND id <> ?"
            " AND NOT EXISTS (SELECT 1 FROM examples WHERE conversation = conversations.id)"
            " ORDER BY at DESC, rowid DESC",
            self.root(conversation),
            f"%{FORMER}%",
            conversation,
        )
        for (id,) in idle[MOST_FORMER:]:
            self.connection.execute("DELETE FROM conversations WHERE id = ?", (id,))

    def _copy(self, conversation: str, place: int, mark: str = "-") -> str:
        """A branch with the first `place` turns of a conversation, inside of a step."""
        [(source,)] = self._rows("SELECT source FROM conversations WHERE id = ?", conversation)
        name = f"{source[:40]}{mark}{secrets.token_hex(8)}"
        self.connection.execute(
            "INSERT INTO conversations SELECT ?, source, title, ?2, root, ?2, settings"
            " FROM conversations WHERE id = ?3",
            (name, time.time(), conversation),
        )
        self.connection.execute(
            "INSERT INTO turns SELECT ?, position, message FROM turns"
            " WHERE conversation = ? AND position < ?",
            (name, conversation, place),
        )
        for table, column in (("uses", "collection"), ("sources", "source")):
            self.connection.execute(
                f"INSERT INTO {table} SELECT ?, {column} FROM {table} WHERE conversation = ?",
                (name, conversation),
            )
        return name

    def variants(self, conversation: str) -> dict[int, list[str]]:
        """Where the branches part: of each of the user's messages that has others in its place, or
        other answers, one branch for each of them in the order of their beginning, this one among
        them.
        """
        by_branch = {name: exchanges(self.messages(name)) for name in self.branches(conversation)}
        own, found = by_branch.get(conversation, []), {}
        for turn in range(len(own) + 1):
            different: dict[object, list[str]] = {}
            for name, pairs in by_branch.items():
                if pairs[:turn] == own[:turn] and (len(pairs) > turn or name == conversation):
                    next_pair = pairs[turn] if len(pairs) > turn else None
                    different.setdefault(next_pair, []).append(name)
            if len(different) > 1:
                found[turn + 1] = [
                    conversation if conversation in names else names[-1]
                    for names in different.values()
                ]
        return found

    def notes(self, conversation: str) -> dict[str, str]:
        """What the model noted of a conversation's earlier turns, by the notes' names.

        Raises:
            QuietchoirError: the disk refused.
        """
        try:
            return dict(
                self._rows("SELECT name, note FROM notes WHERE conversation = ?", conversation)
            )
        except sqlite3.Error as error:
            raise QuietchoirError(f"{self.path}: cannot be read ({error}); try again") from error

    def keep_note(self, conversation: str, name: str, note: str) -> None:
        """Keep a note; it goes with its conversation, and none is kept of one that is not.

        Raises:
            QuietchoirError: the disk refused; nothing was written.
        """
        with self.step():
            self.connection.execute(
                "INSERT OR REPLACE INTO notes SELECT id, ?, ? FROM conversations WHERE id = ?",
                (name, note, conversation),
            )

    def _require(self, conversation: str) -> None:
        if not self._rows("SELECT 1 FROM conversations WHERE id = ?", conversation):
            raise UnknownConversationError(
                f"no conversation {conversation[:64]!r} is kept here; "
                f"`quietchoir data conversations` lists them"
            )

    # What its owner made of it

    def approve(
        self, conversation: str, turn: int | None = None, *, origin: Origin = "thumb"
    ) -> str:
        """Make an example of an answer as it is; returns the example's id.

        Args:
            turn: which answer, counted from one as its owner saw them: what came between one of
                the owner's messages and the next, calls and their results too; None: the last.

        Raises:
            DataError: no such conversation or answer.
        """
        turn, messages = self._answer(conversation, turn)
        return self._put(conversation, turn, origin, messages[:-1], text_of(messages[-1]))

    def correct(self, conversation: str, answer: str | ToolCall, turn: int | None = None) -> str:
        """Make an example of a request with the answer that should have come; returns its id.

        Raises:
            DataError: as `approve`; or an answer that is empty.
        """
        turn, messages = self._answer(conversation, turn)
        call = answer if isinstance(answer, ToolCall) else parse(answer)
        text = render(call) if call is not None else str(answer)
        if not text.strip():
            raise DataError("the correction is empty; give the answer that should have come")
        wrong = self._made_of(conversation, turn, messages)
        return self._put(conversation, turn, "correction", messages[:-1], text, instead_of=wrong)

    def reject(self, conversation: str, turn: int | None = None) -> None:
        """An answer was bad: what was made an example of it is none any more.

        Raises:
            DataError: as `approve`.
        """
        turn, messages = self._answer(conversation, turn)
        found = self._rows(
            "SELECT id FROM examples WHERE conversation = ? AND turn = ?", conversation, turn
        )
        self.forget([*(one for (one,) in found), *self._made_of(conversation, turn, messages)])

    def _answer(self, conversation: str, turn: int | None) -> tuple[int, tuple[Message, ...]]:
        """Which answer it is, counted from one, and all messages up to it."""
        messages = self.messages(conversation)
        places: dict[int, int] = {}  # of each answer's last turn
        asked = 0
        for place, one in enumerate(messages):
            asked += one.role == "user"
            if one.role == "assistant" and asked:
                places[asked] = place
        wanted = max(places, default=0) if turn is None else turn
        if wanted not in places:
            raise DataError(
                f"answer {wanted} of conversation {conversation} is not there to be judged; "
                f"kept are the answers {', '.join(map(str, places)) or 'none'}"
            )
        return wanted, messages[: places[wanted] + 1]

    def _made_of(self, conversation: str, turn: int, messages: Sequence[Message]) -> list[str]:
        """Examples that say what `messages` say, their last one the answer, in any branch."""
        return [
            one.id
            for name in self.branches(conversation)
            for one in self.examples(name)
            if one.turn == turn
            and one.messages == tuple(messages[:-1])
            and one.answer == text_of(messages[-1])
        ]

    def _put(
        self,
        conversation: str,
        turn: int,
        origin: Origin,
        messages: Sequence[Message],
        answer: str,
        instead_of: Sequence[str] = (),
    ) -> str:
        id = secrets.token_hex(8)
        shown = [replace(one, thought="") for one in messages]
        text = json.dumps([json.loads(written(one)) for one in shown], ensure_ascii=False)
        with self.step():
            old = self._rows(
                "SELECT id, messages, answer FROM examples WHERE conversation = ? AND turn = ?",
                conversation,
                turn,
            )
            if old and old[0][1:] == (text, answer):
                return str(old[0][0])  # said twice
            self._drop([*(one for one, *_ in old), *instead_of])
            self.connection.execute(
                "INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id, conversation, turn, origin, text, answer, time.time()),
            )
        return id

    def examples(self, conversation: str | None = None) -> list[KeptExample]:
        """All examples, or those of one conversation, the oldest first."""
        found = self._rows(
            "SELECT id, conversation, turn, origin, messages, answer, at FROM examples"
            " WHERE ?1 IS NULL OR conversation = ?1 ORDER BY at, id",
            conversation,
        )
        holds = {name: self.consent_of(name) for name in {row[1] for row in found}}
        return [
            KeptExample(
                id=id, conversation=where, turn=turn, origin=origin,
                messages=tuple(from_json(one) for one in json.loads(prompt)),
                answer=answer, at=at, consent=holds[where],
            )
            for id, where, turn, origin, prompt, answer, at in found
        ]  # fmt: skip

    # Consent

    def consent(self, kind: Kind, name: str, destination: str | None) -> None:
        """Say what a conversation, a collection or a source may train; None: say nothing of it.

        Raises:
            DataError: no such destination or kind, or a name that none may have.
        """
        check_name(name, kind)
        name = self.root(name) if kind == "conversation" else name  # of all branches
        if kind not in get_args(Kind):
            raise DataError(f"{kind!r} has no consent; expected one of {', '.join(get_args(Kind))}")
        if destination not in (None, NEVER, PERSONAL) and not FEDERATION.fullmatch(
            str(destination)
        ):
            raise DataError(
                f"{destination!r} is nothing that can be trained; expected {NEVER}, {PERSONAL} or "
                f"federation:ID"
            )
        if kind == "conversation":
            self._require(name)
        elif (
            destination in (None, NEVER)
            and name not in (known := self._named(kind))
            # a slip of the pen would leave the one that was meant as it is
            and (near := difflib.get_close_matches(name.casefold(), known, n=1))
        ):
            raise DataError(f"no {kind} {name} was used; did you mean {near[0]}?")
        with self.step():
            self.connection.execute(
                "DELETE FROM consents WHERE kind = ? AND name = ?", (kind, name)
            )
            if destination is not None:
                self.connection.execute(
                    "INSERT INTO consents VALUES (?, ?, ?, ?)",
                    (kind, name, destination, time.time()),
                )

    def _named(self, kind: Kind) -> list[str]:
        """Collections or sources that were used, or of which something was said."""
        column, table = ("collection", "uses") if kind == "collection" else ("source", "sources")
        used = [name for (name,) in self._rows(f"SELECT DISTINCT {column} FROM {table}")]
        return [*used, *(name for of, name, _ in self.consents() if of == kind)]

    def consents(self) -> list[tuple[Kind, str, str]]:
        """All that was said: kind, name, destination."""
        return [(kind, name, where) for kind, name, where in self._rows(
            "SELECT kind, name, destination FROM consents ORDER BY kind, name"
        )]  # fmt: skip

    def consent_of(self, conversation: str) -> str:
        """What a conversation may train: the least of what was said about all that it is of.

        A conversation of which nothing was said is as its first source; of all sources that said
        something in it, one of which nothing was said forbids nothing; a collection of which
        nothing was said, never trains.
        """
        consents = {(kind, name): where for kind, name, where in self.consents()}
        [(source,)] = self._rows("SELECT source FROM conversations WHERE id = ?", conversation)
        used = self._rows("SELECT collection FROM uses WHERE conversation = ?", conversation)
        spoke = self._rows("SELECT source FROM sources WHERE conversation = ?", conversation)
        by_first = consents.get(("source", source), NEVER)
        by_sources = [consents[one] for (name,) in spoke if (one := ("source", name)) in consents]
        own = consents.get(("conversation", self.root(conversation)), by_first)
        limits = [own, *(consents.get(("collection", name), NEVER) for (name,) in used)]
        return least([*limits, *by_sources])

    # What was trained, and what was forgotten

    def note_trained(self, adapter: str, examples: Sequence[str]) -> None:
        """An adapter was trained on these examples; one that is still made in a federation is
        called by that destination.
        """
        with self.step():
            self.connection.executemany(
                "INSERT OR IGNORE INTO trained VALUES (?, ?)", [(adapter, one) for one in examples]
            )

    def note_adapter(self, adapter: str, destination: str) -> None:
        """An adapter came out of a federation: it, and what follows on it, was trained on all that
        this node trained there.
        """
        with self.step():
            self.connection.execute(
                "INSERT OR IGNORE INTO trained SELECT ?, example FROM trained WHERE adapter = ?",
                (adapter, destination),
            )

    def marks(self) -> Mapping[str, int]:
        """Adapters that were trained on what was forgotten since, with how much of it."""
        return dict(
            self._rows(
                "SELECT adapter, count(*) FROM trained JOIN forgotten USING (example)"
                " WHERE adapter NOT LIKE 'federation:%' GROUP BY adapter ORDER BY adapter"
            )
        )

    def forgotten_since(self) -> Mapping[str, float]:
        """Adapters that were trained on what was forgotten since, with when the last of it was."""
        return dict(
            self._rows(
                "SELECT adapter, max(at) FROM trained JOIN forgotten USING (example)"
                " WHERE adapter NOT LIKE 'federation:%' GROUP BY adapter ORDER BY adapter"
            )
        )

    def learned_by(self, adapter: str) -> list[KeptExample]:
        """The examples that an adapter was trained on and that are still here."""
        ids = {id for (id,) in self._rows("SELECT example FROM trained WHERE adapter = ?", adapter)}
        return [one for one in self.examples() if one.id in ids]

    def drop_marks(self, adapter: str) -> None:
        """An adapter is gone: nothing needs to be told of it any more."""
        with self.step():
            self.connection.execute("DELETE FROM trained WHERE adapter = ?", (adapter,))

    def forget(self, examples: Sequence[str], conversation: str = "") -> int:
        """Delete examples, each by its id, and a conversation with all its branches: turns, consent
        and examples; returns how many examples there were.

        Raises:
            UnknownConversationError: there is none; the log is written over all the same.
            QuietchoirError: deleted, and still in the log, which another program reads.
        """
        root = self.root(conversation)
        with self.step():
            count = self._drop(examples)
            for name in self.branches(conversation):
                count += self._drop([one.id for one in self.examples(name)])
            gone = self.connection.execute(
                "DELETE FROM conversations WHERE root = ?", (root,)
            ).rowcount
            self.connection.execute(
                "DELETE FROM consents WHERE kind = 'conversation' AND name = ?", (root,)
            )
        self._scrub()
        if conversation and not gone:
            self._require(conversation)
        return count

    def forget_conversation(self, conversation: str) -> int:
        """One conversation. Raises: as `forget`."""
        return self.forget((), conversation)

    def forget_collection(self, collection: str) -> None:
        """A collection is removed: its consent goes too, and one of the same name that is made
        later says nothing of what answers were made of this one.
        """
        with self.step():
            self.connection.execute(
                "DELETE FROM consents WHERE kind = 'collection' AND name = ?", (collection,)
            )
            self.connection.execute(
                "UPDATE OR REPLACE uses SET collection = ? WHERE collection = ?",
                (f"{collection} (removed)", collection),  # no name that consent can be given to
            )

    def _drop(self, examples: Sequence[str]) -> int:
        count = 0
        for one in examples:
            gone = self.connection.execute("DELETE FROM examples WHERE id = ?", (one,)).rowcount
            if gone and self._rows("SELECT 1 FROM trained WHERE example = ?", one):
                self.connection.execute(
                    "INSERT OR IGNORE INTO forgotten VALUES (?, ?)", (one, time.time())
                )
            count += gone
        return count

    def _scrub(self) -> None:
        """What was deleted leaves the log too.

        Raises:
            QuietchoirError: another program reads it.
        """
        with self._lock:
            if self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise QuietchoirError(
                    f"{self.path}: another program reads it, so that what was deleted is still in "
                    f"its log; end that program, then forget the same again"
                )


def least(destinations: Sequence[str]) -> str:
    """What all of these allow. Two federations have nothing in common but the owner's adapter."""
    if NEVER in destinations:
        return NEVER
    different = set(destinations)
    return different.pop() if len(different) == 1 else PERSONAL


def check_name(name: str, kind: str) -> None:
    """Raises: DataError: a name that would not stand in an address or on a line."""
    if not NAME.fullmatch(name):
        raise DataError(
            f"{name[:64]!r} cannot name a {kind}; use 1 to 64 of the letters A-Z a-z 0-9 _ . : -"
        )


def exchanges(messages: Sequence[Message]) -> list[Exchange]:
    """What was asked, each time with all the words of its answer and all its calls."""
    found: list[Exchange] = []
    for one in messages:
        if one.role == "user":
            found.append((one.content, "", ""))
        elif one.role == "assistant" and found:
            asked, words, calls = found[-1]
            found[-1] = (asked, words + one.content, calls + "".join(map(render, one.calls)))
    return found


def first_left_out(before: Sequence[Message], now: Sequence[Message]) -> int:
    """The first of the user's messages, counted from one, that is not said any more, or whose
    answer is not; 0: all are. An answer may have grown, spaces and lines count for nothing, and a
    client may send the calls of an answer back or not.
    """
    left, present = without_blanks(before), without_blanks(now)
    for turn, one in enumerate(left):
        if turn >= len(present) or not is_said(one, present[turn]):
            return turn + 1
    return 0


def newest_in(before: Sequence[Message], now: Sequence[Message]) -> tuple[int, int] | None:
    """Where the question of the newest answer stands, in what was kept and in what a client sends
    that leaves its beginning out or writes it anew; None: it sends all, or not that answer any
    more, as when somebody goes back and asks otherwise.
    """
    left, present = without_blanks(before), without_blanks(now)
    asked_before, asked = (
        [place for place, one in enumerate(messages) if one.role == "user"]
        for messages in (before, now)
    )
    went_back = len(present) > 1 and not first_left_out(now[: asked[-1]], before)
    if not left or not first_left_out(before, now) or went_back:
        return None
    turns = [turn for turn, one in enumerate(present) if is_said(left[-1], one)]
    return (asked_before[-1], asked[turns[-1]]) if turns else None


def without_blanks(messages: Sequence[Message]) -> list[Exchange]:
    """As `exchanges`, without spaces and lines, which count for nothing."""
    return [
        (blankless(asked), blankless(words), blankless(calls))
        for asked, words, calls in exchanges(messages)
    ]


def blankless(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())


def is_said(left: Exchange, there: Exchange) -> bool:
    """Whether an exchange is said still; its answer may have grown, and a client may send its calls
    back or not.
    """
    asked, words, calls = left
    same = there[0] == asked and there[1].startswith(words)
    return same and (there[2].startswith(calls) or (not there[2] and bool(words)))


def with_thoughts(messages: Sequence[Message], before: Sequence[Message]) -> list[Message]:
    """The same, each answer with what was thought before it: clients do not send that again."""

    def placed(messages: Sequence[Message]) -> Iterator[tuple[Message, tuple[int, str]]]:
        asked = 0
        for one in messages:
            asked += one.role == "user"
            yield one, (asked, blankless(one.content))

    known = {place: one.thought for one, place in placed(before) if one.thought}
    return [
        replace(one, thought=one.thought or known.get(place, ""))
        if one.role == "assistant"
        else one
        for one, place in placed(messages)
    ]


def text_of(answer: Message) -> str:
    """What an example says of an answer: its calls, or else its words."""
    return render_all(answer.calls) if answer.calls else answer.content


def written(message: Message) -> str:
    """One message as JSON."""
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.calls]
    fields: dict[str, object] = {"role": message.role, "content": message.content}
    beside = {"calls": calls, "thought": message.thought}
    whole = fields | {name: value for name, value in beside.items() if value}
    return json.dumps(whole, ensure_ascii=False)


def read(text: str) -> Message:
    """One message of `written`."""
    return from_json(json.loads(text))


def from_json(fields: Mapping[str, Any]) -> Message:
    """The same, decoded already."""
    calls = tuple(ToolCall(one["name"], one["arguments"]) for one in fields.get("calls", ()))
    return Message(fields["role"], fields["content"], calls, thought=fields.get("thought", ""))


def marks_in(home: Path) -> Mapping[str, int]:
    """As `HistoryStore.marks`, of a node that may keep nothing.

    Raises:
        DataError: the history is damaged.
    """
    if not (home / FILE).exists():
        return {}
    with closing(HistoryStore(home)) as store:
        return store.marks()
