"""Collections and memory, put together: the verbs `collection` and `memory`, and what a node uses
of them.

Knows flags, tables and which part stands on which. Knows nothing of formats, ranks or models.
Always: what is deleted here is deleted from what a node saved of its conversations too. A node that
serves indexes what changes in the folders of its collections; it asks for no passphrase to do so.
"""

import sys
import threading
import time
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import log, paths, screen
from .core.errors import QuietchoirError

if TYPE_CHECKING:
    from collections import Counter

    from .core.engine.embedder import SentenceEmbedder
    from .core.retrieval.collections import Collections
    from .core.retrieval.database import Passphrase
    from .core.retrieval.indexing import Progress, Update
    from .core.retrieval.memory import FactStore
    from .plugins.documents import SandboxedParser

SHOWN_KINDS = 5  # of the files that are left alone
COLLECTIONS = "collections"  # in the node's home
WATCH_S = 2.0  # between two looks of `collection watch`
# Of a node that serves: at least so long, and at least so many times what the look took, however
# large the folders; or so long after an update that failed.
SERVED_WATCH_S, WATCH_REST, FAILED_WATCH_S = 5.0, 50.0, 60.0
logger = log.get("documents")


def register(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `collection` and `memory`."""
    _register_collection(verbs.add_parser("collection", help="documents that answers may cite"))
    _register_memory(verbs.add_parser("memory", help="what the assistant remembers of you"))


def _register_collection(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="an empty collection")
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--locked", action="store_true", help="encrypt it with a passphrase that is asked for"
    )
    create.set_defaults(run=create_collection)
    add = actions.add_parser("add", help="add files and folders, and index what is in them")
    add.add_argument("name", metavar="NAME")
    add.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    add.set_defaults(run=add_documents)
    listing = actions.add_parser("list", help="collections, or the documents of one")
    listing.add_argument("name", nargs="?", metavar="NAME")
    listing.set_defaults(run=list_collections)
    search = actions.add_parser("search", help="the passages that a question finds")
    search.add_argument("name", metavar="NAME")
    search.add_argument("question", metavar="QUESTION")
    search.add_argument("--most", type=int, default=5, metavar="N", help="passages (default 5)")
    search.set_defaults(run=search_collection)
    remove = actions.add_parser(
        "remove", help="delete a collection, or one of its files or folders; documents stay"
    )
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("path", nargs="?", metavar="PATH", help="a file or folder that was added")
    remove.set_defaults(run=remove_collection)
    watch = actions.add_parser("watch", help="index what changes, until Ctrl-C")
    watch.add_argument("name", metavar="NAME")
    watch.set_defaults(run=watch_collection)
    for action in (create, add, listing, search, remove, watch):
        action.set_defaults(needs="documents")


def _register_memory(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="facts that are kept, and those that wait for a yes")
    listing.set_defaults(run=list_facts)
    add = actions.add_parser("add", help="a fact in your own words")
    add.add_argument("text", metavar="TEXT")
    add.set_defaults(run=add_fact)
    keep = actions.add_parser("keep", help="say yes to a fact that was proposed")
    edit = actions.add_parser("edit", help="a fact in other words; it is kept then")
    forget = actions.add_parser("forget", help="delete a fact")
    for action, run in ((keep, keep_fact), (edit, edit_fact), (forget, forget_fact)):
        action.add_argument("id", type=int, metavar="ID", help="as `memory list` shows it")
        action.set_defaults(run=run)
    edit.add_argument("text", metavar="TEXT")
    for action in (listing, add, keep, edit, forget):
        action.set_defaults(needs="documents")


def open_collections(
    passphrase: "Passphrase | None" = None,
    read: "Callable[[Path], SentenceEmbedder] | None" = None,
    model: str = "",
) -> "Collections":
    """This node's collections; an embedding model is read when they first need one, by `read` where
    others hold it too. `model`: its name or folder; empty: what config.toml says.
    """
    from .core import config
    from .core.models.hub import catalog
    from .core.retrieval.collections import Collections
    from .core.retrieval.embedding import at_first_use
    from .federation.membership.unlock import Asked

    return Collections(
        paths.home() / COLLECTIONS,
        passphrase=passphrase or Asked(),
        embedder=at_first_use(lambda: catalog.find(model or config.load().embedding.model), read),
    )


def open_memory(passphrase: "Passphrase | None" = None) -> "FactStore":
    """This node's memory."""
    from .core.retrieval.memory import FILE, FactStore
    from .federation.membership.unlock import Asked

    return FactStore(paths.home() / FILE, passphrase=passphrase or Asked())


class NodeDocuments:
    """Collections and memory of one running node. Nothing is opened, read or started before it is
    asked for: a node that has none pays nothing.

    Args:
        run: carries a coroutine out in the node's loop, called from other threads.
        read: gives the embedding model, which the node holds once for all who need it.
        model: its name or folder; empty: what config.toml says.
    """

    def __init__(
        self,
        run: "Callable[[Coroutine[Any, Any, Any]], Any]",
        read: "Callable[[Path], SentenceEmbedder] | None" = None,
        model: str = "",
    ) -> None:
        from .federation.membership.unlock import Asked

        self._passphrase = Asked()  # one answer for all of them
        self.collections = open_collections(self._passphrase, read, model)
        self._run = run
        self._memory: FactStore | None = None
        self._parser: SandboxedParser | None = None
        self._lock = threading.Lock()

    def memory(self) -> "FactStore":
        """The facts. Raises: RetrievalError, ConfigError: the file does not open."""
        with self._lock:
            if self._memory is None:
                self._memory = open_memory(self._passphrase)
            return self._memory

    def facts(self) -> list[str]:
        """Those that are kept; none, and no file is made, where nothing was ever proposed."""
        from .core.retrieval.memory import FILE

        if not (paths.home() / FILE).exists():
            return []
        return [fact.text for fact in self.memory().facts(kept=True)]

    def remember(self, fact: str, conversation: str, turn: int, said: str) -> None:
        """Keep a fact that its owner said yes to. Raises: as `FactStore.propose`."""
        self.memory().propose(fact, conversation=conversation, turn=turn, said=said, kept=True)

    def forget_said(self, conversation: str) -> None:
        """Take what a forgotten conversation left in memory. Raises: as `FactStore`."""
        from .core.retrieval.memory import FILE

        if (paths.home() / FILE).exists():
            self.memory().forget_conversation(conversation)

    def parser(self) -> "SandboxedParser":
        """The documents plugin. Raises: PluginError: it is not usable."""
        from .plugins.documents import SandboxedParser

        with self._lock:
            if self._parser is None:
                self._parser = SandboxedParser(self._run)
            return self._parser

    def close(self) -> None:
        """Let the files go, and end the parser."""
        self.collections.close()
        if self._memory is not None:
            self._memory.close()
        if self._parser is not None:
            self._parser.close()


class FolderWatcher:
    """Indexes what changes in the folders of a running node's collections, in a thread of its own.

    Args:
        parser: gives the documents' parser; called when something has changed.
        is_idle: does nobody wait for an answer? Nothing is indexed meanwhile.
    """

    def __init__(
        self,
        collections: "Collections",
        parser: "Callable[[], SandboxedParser]",
        is_idle: Callable[[], bool],
    ) -> None:
        self._collections, self._parser, self._is_idle = collections, parser, is_idle
        self._stopped = threading.Event()
        self._told: dict[str, str] = {}  # collection → the fault that was told last
        self._thread = threading.Thread(target=self._run, name="quietchoir-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the document that is read now; the next start goes on there."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = SERVED_WATCH_S
        while not self._stopped.wait(pause):
            began = time.monotonic()
            names = [name for name in self._collections.names() if self.changed(name)]
            pause = max(SERVED_WATCH_S, WATCH_REST * (time.monotonic() - began))
            for name in names:
                if not self.index(name):
                    pause = max(pause, FAILED_WATCH_S)

    def changed(self, name: str) -> bool:
        """Is there something to index, and nobody who waits?"""
        from .plugins.documents import SUFFIXES

        try:
            return self._is_idle() and self._collections.changed(name, SUFFIXES)
        except QuietchoirError as error:
            self._fail(name, error)
            return False

    def index(self, name: str) -> bool:
        """Index what has changed; False: it could not be."""
        try:
            done = self._collections.update(name, self._parser(), self._go_on)
        except _Stopped:
            return True
        except QuietchoirError as error:
            self._fail(name, error)
            return False
        self._told.pop(name, None)
        logger.info("%s: %s", name, told(done))
        return True

    def _fail(self, name: str, error: QuietchoirError) -> None:
        """Tell a fault, once until another comes."""
        if self._told.get(name) != str(error):
            logger.warning("what changed for collection %s is not indexed: %s", name, error)
        self._told[name] = str(error)

    def _go_on(self, _what: str, _done: int, _whole: int) -> None:
        """Hears an update's progress, and ends it between two documents."""
        if self._stopped.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The node ends; what was indexed stands."""


@contextmanager
def progress_bar() -> "Iterator[Progress]":
    """A bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda what, done, whole: bars.update(
            task, description=what, completed=done, total=whole
        )


def create_collection(arguments: Namespace) -> None:
    """Make an empty collection."""
    from .federation.membership.unlock import choose

    collections = open_collections(lambda path: choose("passphrase", path).passphrase or "")
    collections.create(arguments.name, locked=arguments.locked)
    print(f"{collections.path(arguments.name)}{': locked' if arguments.locked else ''}")
    collections.close()


def add_documents(arguments: Namespace) -> int:
    """Add sources, and index them."""
    from .core.errors import ConfigError

    sources = [path.expanduser().absolute() for path in arguments.paths]
    for path in sources:
        if not path.exists():
            raise ConfigError(f"{path}: not there; give a file or a folder that is")
    collections = open_collections()
    store = collections.store(arguments.name)
    for path in sources:
        store.add_source(path)
    return bring_up(collections, arguments.name)


def bring_up(collections: "Collections", name: str) -> int:
    """Update, and tell what came of it; 1 if a document could not be read."""
    from .plugins.documents import parsing

    with parsing() as parser, progress_bar() as progress:
        done = collections.update(name, parser, progress, retry=True)
    chunks, vectors = collections.store(name).count()
    passages = screen.counted(chunks, "passage")
    print(f"{name}: {told(done)}; {passages}, {vectors} of them found by meaning")
    for words in done.problems.values():
        print(f"  not read: {screen.one_line(words)}", file=sys.stderr)
    for source in done.absent:
        print(f"  {screen.one_line(source)} is not there; what it held is kept", file=sys.stderr)
    collections.close()
    return 1 if done.problems or done.absent else 0


def told(done: "Update") -> str:
    """An update in words."""
    return (
        f"{screen.counted(done.read, 'document')} read, {done.unchanged} unchanged, "
        f"{done.removed} gone, {len(done.problems)} not read{left_alone(done.others)}"
    )


def left_alone(others: "Counter[str]") -> str:
    """Files that no format here reads, in words; nothing of none."""
    if not others:
        return ""
    kinds = [screen.one_line(kind) or "no ending" for kind, _ in others.most_common(SHOWN_KINDS)]
    more = ", …" if len(others) > SHOWN_KINDS else ""
    return f"; {others.total()} of other kinds left alone ({', '.join(kinds)}{more})"


def list_collections(arguments: Namespace) -> None:
    """Print all collections, or one's documents."""
    from .core.errors import QuietchoirError

    collections = open_collections()
    if arguments.name:
        table = screen.table("document", "passages", "", ids=("document",), box=None)
        for entry in collections.store(arguments.name).documents().values():
            table.add_row(entry.path, str(entry.chunks), entry.problem)
    else:
        names = ("collection", "documents", "passages", "by meaning", "")
        table = screen.table(*names, ids=names[:1], box=None)
        for name in collections.names():
            try:
                store = collections.store(name)
                chunks, vectors = map(str, store.count())
                state = "locked with a passphrase" if store.locked else ""
                table.add_row(name, str(len(store.documents())), chunks, vectors, state)
            except QuietchoirError as error:
                table.add_row(name, "", "", "", str(error))
    screen.show(table)
    collections.close()


def search_collection(arguments: Namespace) -> None:
    """Print passages and where they stand."""
    collections = open_collections()
    found = collections.find([arguments.name], arguments.question, arguments.most)
    for number, (_, passage) in enumerate(found, 1):
        print(f"[{number}] {screen.one_line(passage.place)}  {screen.one_line(passage.heading)}")
        print("\n".join(f"    {line}" for line in screen.visible(passage.text).splitlines()))
    if not found:
        print("nothing is found; ask in other words, or add documents")
    collections.close()


def remove_collection(arguments: Namespace) -> None:
    """Delete a collection or one of its sources; tell which copies are not ours to delete."""
    from .core.history.remains import forget_consent, forget_saved

    collections = open_collections()
    if arguments.path is None:
        forget_consent(paths.home(), arguments.name)
        collections.remove(arguments.name)
        print(f"{arguments.name}: deleted; the documents themselves are untouched")
    else:
        given = Path(arguments.path)
        known = collections.store(arguments.name).documents()
        path = arguments.path if arguments.path in known else str(given.expanduser().absolute())
        collections.forget(arguments.name, path)
        print(f"{path}: deleted from {arguments.name}")
    collections.close()
    forget_saved(paths.home())
    for path in copies(paths.home() / COLLECTIONS, arguments.name):
        print(f"  a copy is left, delete it yourself: {path}")


def watch_collection(arguments: Namespace) -> None:
    """Index what changes, until Ctrl-C."""
    from .plugins.documents import parsing

    collections = open_collections()
    store = collections.store(arguments.name)
    print(f"watching {', '.join(store.sources()) or 'nothing: add a folder first'}", flush=True)
    with parsing() as parser:
        while True:
            done = collections.update(arguments.name, parser)
            if done.read or done.removed:
                print(f"{arguments.name}: {told(done)}", flush=True)
            time.sleep(WATCH_S)


def list_facts(_arguments: Namespace) -> None:
    """Print what is remembered, and what waits for a yes."""
    memory = open_memory()
    table = screen.table("id", "fact", "", "from", ids=("id",), box=None)
    for fact in memory.facts():
        came = f"conversation {fact.conversation}, turn {fact.turn}" if fact.turn else "you"
        quote = f': "{fact.said}"' if fact.said else ""
        table.add_row(
            str(fact.id), fact.text, "" if fact.kept else "not kept yet", f"{came}{quote}"
        )
    screen.show(table)
    memory.close()


def add_fact(arguments: Namespace) -> None:
    """Keep a fact that the owner wrote."""
    memory = open_memory()
    fact = memory.propose(arguments.text, kept=True)
    print(f"{fact.id}: {screen.one_line(fact.text)}")
    memory.close()


def keep_fact(arguments: Namespace) -> None:
    """Say yes to a proposed fact."""
    memory = open_memory()
    print(f"kept: {screen.one_line(memory.keep(arguments.id).text)}")
    memory.close()


def edit_fact(arguments: Namespace) -> None:
    """Put a fact into other words."""
    from .core.history.remains import forget_saved

    memory = open_memory()
    print(f"kept: {screen.one_line(memory.keep(arguments.id, arguments.text).text)}")
    memory.close()
    forget_saved(paths.home())


def forget_fact(arguments: Namespace) -> None:
    """Delete a fact."""
    from .core.history.remains import forget_saved

    memory = open_memory()
    memory.forget(arguments.id)
    print(f"{arguments.id}: forgotten")
    memory.close()
    forget_saved(paths.home())


def copies(folder: Path, name: str) -> list[Path]:
    """Files beside a collection that bear its name and are not its own: somebody's copies."""
    from .core.retrieval.collections import ENDING

    own = {f"{name}{ENDING}{companion}" for companion in ("", "-wal", "-shm")}
    return [
        path
        for path in sorted(folder.glob(f"*{name}*"))
        if path.name not in own and path.suffix != ENDING
    ]
