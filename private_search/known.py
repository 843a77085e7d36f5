"""Libraries that this node may ask, by the names that its owner gave them, and its keys for them.

Knows a file of addresses, one key for each host, and how much was sent to whom. Knows no text: a
question is embedded and encrypted by `client`, and nothing of it is kept here.
Always: nothing is sent but by `ask`, and only to the libraries that it names; what a question cost
is on the disk when its answer is given. A library that does not answer holds up nobody but who
asked it: questions wait in a loop of their own, in one thread, each for a bounded time.
"""

import asyncio
import fcntl
import json
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import parts, paths
from ..core.assistant.citations import LIBRARY, SourceReport
from ..core.errors import ConfigError, QuietchoirError, RetrievalError, UnknownEntryError
from ..core.retrieval.collections import NAME
from ..core.retrieval.store import RetrievedPassage
from ..crypto.identity.keys import Identity
from .budget import FOLDER
from .tokens import identity

if TYPE_CHECKING:
    from .client import Found, LibraryAddress, SearchTraffic
    from .index import Embeds

EMBEDDER = "minilm-l6-v2"  # of hosts and askers alike
FILE, LOCK = "known.json", "known.lock"
READ = 2  # passages that every question of a conversation reads, whatever it finds
ANSWER_S = 60.0  # that a conversation waits for a library in all, other questions to it included
TURN_S = 0.05  # between two looks whether another question is through


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLibrary:
    """One library, and what it was sent so far."""

    name: str
    address: str  # http://HOST:PORT/#KEY
    certificate: str = ""  # PEM file that is pinned, for https
    member: bool = False  # asked as a member of a federation, not under a key made for it
    questions: int = 0
    texts: int = 0  # that it was to classify
    bytes_up: int = 0
    bytes_down: int = 0
    last: float = 0.0  # seconds since 1970 of the last question or text

    @property
    def url(self) -> str:
        """Where it is, without its key."""
        return self.address.partition("/#")[0]


class KnownLibraries:
    """The libraries of one home.

    Args:
        embedder: read at the first question.
        member: what this node signs with in federations; for libraries that are asked so.
    """

    def __init__(
        self, embedder: "Callable[[], Embeds]", member: Callable[[], Identity] | None = None
    ) -> None:
        self._embedder, self._member = embedder, member
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # while its thread runs
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Event

    def close(self) -> None:
        """Ask nothing more; questions that wait are given up."""
        with self._starting:
            if self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
            self._loop = self._thread = None

    def entries(self) -> list[KnownLibrary]:
        """All of them, by name.

        Raises:
            ConfigError: the file cannot be read.
        """
        return [entry for _, entry in sorted(self._read().items())]

    def add(
        self,
        name: str,
        address: str,
        certificate: Path | None = None,
        token: str | None = None,
        *,
        member: bool = False,
    ) -> None:
        """Let conversations ask one, where their owner chooses it.

        Raises:
            ConfigError: no name, address or token for one, or a name or address that is there
            already.
        """
        from .client import LibraryAddress

        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name for a library; take small letters, digits, _ and -"
            )
        parsed = LibraryAddress.parse(address)
        asker_tls(parsed, certificate)
        with self._changed() as entries:
            if name in entries:
                raise ConfigError(f"a library {name} is known already; remove it first")
            for entry in entries.values():
                if entry.address == parsed.text:
                    raise ConfigError(f"this library is known already, as {entry.name}")
            asker(parsed, token)
            pem = "" if certificate is None else str(certificate.resolve())
            entries[name] = KnownLibrary(
                name=name, address=parsed.text, certificate=pem, member=member
            )

    def remove(self, name: str) -> None:
        """Forget one. Our key for its host stays: it counts there against the same account.

        Raises:
            UnknownEntryError: none is called so.
        """
        with self._changed() as entries:
            self._one(entries, name)
            del entries[name]

    async def ask(
        self, names: Sequence[str], question: str
    ) -> list[tuple[SourceReport, list[RetrievedPassage]]]:
        """Ask these, all at a time, and read `READ` passages of each; whoever is cancelled here
        asks them nothing more.

        Returns:
            What each was sent and what came back; where one gave no answer, why, and nothing else.

        Raises:
            UnknownEntryError: one of the names is none; nothing was sent then.
        """
        entries = self._read()
        chosen = [self._one(entries, name) for name in dict.fromkeys(names)]
        loop = self._running()
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._ask_all(chosen, question), loop)
        )

    def _running(self) -> asyncio.AbstractEventLoop:
        """The loop that questions wait in; its thread is begun with the first."""
        with self._starting:
            if self._loop is None:
                begun: Future[asyncio.AbstractEventLoop] = Future()

                async def run() -> None:
                    self._ended = asyncio.Event()
                    begun.set_result(asyncio.get_running_loop())
                    await self._ended.wait()

                def turn() -> None:
                    try:
                        asyncio.run(run())
                    except BaseException as error:
                        if begun.done():
                            raise
                        begun.set_exception(error)

                self._thread = threading.Thread(target=turn, name="libraries", daemon=True)
                self._thread.start()
                try:
                    self._loop = begun.result()
                except OSError as error:
                    raise RetrievalError(
                        f"libraries cannot be asked now ({error.strerror}); end other programs "
                        f"and ask again"
                    ) from error
            return self._loop

    async def _ask_all(
        self, chosen: Sequence[KnownLibrary], question: str
    ) -> list[tuple[SourceReport, list[RetrievedPassage]]]:
        return await asyncio.gather(*(self._ask(entry, question) for entry in chosen))

    async def _ask(
        self, entry: KnownLibrary, question: str
    ) -> tuple[SourceReport, list[RetrievedPassage]]:
        from .client import SearchTraffic

        moved, problem = SearchTraffic(), ""
        found: tuple[Found, ...] = ()
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await self._search(entry, question, moved)
        except TimeoutError:
            problem = (
                f"{entry.url}: no whole answer in {ANSWER_S:.0f} s; ask again, or leave it out of "
                f"this conversation"
            )
        except QuietchoirError as error:
            problem = str(error)
        finally:
            self.count(entry.address, moved)
        report = SourceReport(
            name=LIBRARY + entry.name,
            place=entry.url,
            sent_bytes=moved.up,
            received_bytes=moved.down,
            problem=problem,
        )
        return report, [
            RetrievedPassage(0, one.passage.source, 0, 0, 0, "", one.passage.text) for one in found
        ]

    async def _search(
        self, entry: KnownLibrary, question: str, moved: "SearchTraffic"
    ) -> "tuple[Found, ...]":
        from .client import LibraryAddress, ask

        parts.require("federation", "asking a library")
        address = LibraryAddress.parse(entry.address)
        tls = asker_tls(address, Path(entry.certificate) if entry.certificate else None)
        member = None
        if entry.member:
            assert self._member is not None, "whoever asks such a library says as whom"
            member = await asyncio.to_thread(self._member)
        async with asking_in_turn(address, member) as key:
            answer = await ask(
                address,
                question,
                self._embedder(),
                key,
                passages=READ,
                near=True,
                tls=tls,
                moved=moved,
                kept=room(),
            )
        return answer.found

    def at(self, given: str) -> KnownLibrary | None:
        """The one that has this name or this address."""
        return next((one for one in self.entries() if given in (one.name, one.address)), None)

    def count(self, address: str, moved: "SearchTraffic", *, text: bool = False) -> None:
        """Add what a question, or a text to classify, moved to the libraries of this address."""
        with self._changed() as entries:
            for name, entry in entries.items():
                if entry.address != address or not moved.up:
                    continue
                entries[name] = replace(
                    entry,
                    questions=entry.questions + (not text),
                    texts=entry.texts + text,
                    bytes_up=entry.bytes_up + moved.up,
                    bytes_down=entry.bytes_down + moved.down,
                    last=time.time(),
                )

    def _one(self, entries: dict[str, KnownLibrary], name: str) -> KnownLibrary:
        if name not in entries:
            raise UnknownEntryError(
                f"no library is called {name[:80]!r}; there are: "
                f"{', '.join(sorted(entries)) or 'none'}. Name it: quietchoir library add"
            )
        return entries[name]

    def _read(self) -> dict[str, KnownLibrary]:
        path = room() / FILE
        if not path.exists():
            return {}
        try:
            found: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
            return {name: KnownLibrary(name=name, **entry) for name, entry in found.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({error}); restore it, or delete it and name your "
                f"libraries again"
            ) from error

    @contextmanager
    def _changed(self) -> Iterator[dict[str, KnownLibrary]]:
        """The entries, kept from other processes, and written when the block ends well."""
        with (room() / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = self._read()
            yield entries
            told = {name: asdict(entry) for name, entry in entries.items()}
            for entry in told.values():
                del entry["name"]
            paths.write_atomically(room() / FILE, json.dumps(told).encode(), mode=0o600)


def room() -> Path:
    """The folder of all that libraries have in this home, made if it is not there."""
    return paths.private_folder(paths.home() / FOLDER)


def lasting(name: str) -> Identity:
    """A key of this home, made at its first use."""
    path = room() / f"{name}.key"
    if not path.exists():
        Identity.generate().save(path)
    return Identity.load(path)


def asker(address: "LibraryAddress", token: str | None = None) -> Identity:
    """Our key for one host. Another for every one: two hosts cannot find out that the same node
    asks them.

    Args:
        token: of that host; from now on it is our key there, and the one before stays beside it.

    Raises:
        ConfigError: no token.
    """
    given = room() / f"{_asker_name(address)}-token.key"
    if token is not None:
        identity(token).save(given, replace=True)
    return Identity.load(given) if given.exists() else lasting(_asker_name(address))


def _asker_name(address: "LibraryAddress") -> str:
    return f"asker-{address.host.fingerprint[:16]}"


@contextmanager
def asking(
    address: "LibraryAddress", token: str | None = None, member: Identity | None = None
) -> Iterator[Identity]:
    """Our key for one session with a library, alone: a later session ends an earlier one.

    Args:
        member: this node's key in federations, to ask with instead.
    """
    with (room() / f"{_asker_name(address)}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another question of this node to this library", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield member or asker(address, token)


@asynccontextmanager
async def asking_in_turn(
    address: "LibraryAddress", member: Identity | None = None
) -> AsyncIterator[Identity]:
    """As `asking`, in a loop that others wait in as well, and can be given up."""
    with (room() / f"{_asker_name(address)}.lock").open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(TURN_S)
        yield member or asker(address)


def asker_tls(address: "LibraryAddress", certificate: Path | None) -> ssl.SSLContext | None:
    """What pins a host's certificate; None: the system's authorities.

    Raises:
        ConfigError: no certificate, or one for an address that is not encrypted.
    """
    if certificate is None:
        return None
    if not address.url.startswith("https:"):
        raise ConfigError(
            f"--certificate with {address.url}, which is not encrypted on the way; give the "
            f"address with https://, as its host printed it"
        )
    try:
        context = ssl.create_default_context(cafile=certificate)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{certificate}: not a certificate ({error}); ask the host's owner for its PEM file"
        ) from error
    # The certificate itself is pinned, and every reply is signed by the key in the address: its
    # name adds nothing.
    context.check_hostname = False
    return context
