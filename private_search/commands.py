"""`quietchoir library serve | ask | classify | status | key`.

Knows flags and words for people. Imports what is heavy when a verb runs.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.screen import UNSEEN, json_line, one_line, visible

if TYPE_CHECKING:
    import socket
    import ssl

    from ..crypto.identity.keys import Identity
    from .client import LibraryAddress, SearchAnswer, SearchCost
    from .index import Embeds

EMBEDDER = "minilm-l6-v2"
PORT = 8770
MAX_QUERIES = 64
MAX_WORKERS = 64
QUOTE = "> "  # before each line of a passage


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `library`."""
    library = verbs.add_parser(
        "library", help="search a folder of texts without telling its host what for"
    )
    kinds = library.add_subparsers(dest="library", required=True, metavar="VERB")
    serve = kinds.add_parser("serve", help="let others search a folder of .txt and .md files")
    serve.add_argument("folder", type=Path)
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    serve.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0 takes a free one")
    serve.add_argument(
        "--max-queries",
        type=int,
        default=MAX_QUERIES,
        help="questions (and passages) for each account, ever",
    )
    serve.add_argument(
        "--allow",
        type=Path,
        metavar="FILE",
        help="askers' keys, one a line, that get an account each",
    )
    serve.add_argument(
        "--listed-only", action="store_true", help="answer nobody but those in --allow"
    )
    serve.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that share the work of a question (default: as many as cores)",
    )
    serve.add_argument(
        "--certificate",
        type=Path,
        metavar="PEM",
        help="serve over TLS with this certificate, which askers are given; needs --private-key",
    )
    serve.add_argument(
        "--private-key",
        type=Path,
        metavar="PEM",
        help="of --certificate; not encrypted, readable by its owner alone",
    )
    serve.add_argument(
        "--classify",
        action="store_true",
        help="also say to which of the folder's subfolders a text belongs, without seeing it",
    )
    serve.add_argument("--json", action="store_true", help="one line of JSON when ready")
    serve.set_defaults(run=run_serve, needs="federation")
    ask = kinds.add_parser("ask", help="ask a library; its host sees only ciphertext")
    ask.add_argument("address", help="http://HOST:PORT/#KEY, as the host printed it")
    ask.add_argument("question")
    ask.add_argument(
        "--passages", type=int, default=1, help="how many passages to read (default 1)"
    )
    ask.add_argument(
        "--certificate", type=Path, metavar="PEM", help="the host's certificate, for https"
    )
    ask.add_argument(
        "--explain",
        action="store_true",
        help="also after how many questions a plain download would be cheaper",
    )
    ask.add_argument("--json", action="store_true", help="one line of JSON")
    ask.set_defaults(run=run_ask, needs="federation")
    label = kinds.add_parser(
        "classify", help="which of a library's labels fits a text; its host sees only ciphertext"
    )
    label.add_argument("address", help="http://HOST:PORT/#KEY, as the host printed it")
    label.add_argument("text")
    label.add_argument(
        "--certificate", type=Path, metavar="PEM", help="the host's certificate, for https"
    )
    label.add_argument("--json", action="store_true", help="one line of JSON")
    label.set_defaults(run=run_classify, needs="federation")
    status = kinds.add_parser("status", help="what a library says of itself and what asking costs")
    status.add_argument("address", help="http://HOST:PORT/#KEY, as the host printed it")
    status.add_argument(
        "--certificate", type=Path, metavar="PEM", help="the host's certificate, for https"
    )
    status.add_argument("--json", action="store_true", help="one line of JSON")
    status.set_defaults(run=run_status, needs="federation")
    key = kinds.add_parser("key", help="print our key for a library, for its owner's --allow file")
    key.add_argument("address")
    key.set_defaults(run=run_key)


def run_serve(arguments: argparse.Namespace, embedder: "Embeds | None" = None) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: port in use, flags that do not fit, a budget too large, or a home that came out
        of a backup.
        DataError: nothing to read in the folder.
        ModelNotFoundError: the embedding model is not on this disk.
    """
    import asyncio
    import contextlib

    from ..core.errors import ConfigError
    from ..core.hardware.discovery import core_count
    from . import index
    from .budget import QueryBudget, why_restored
    from .classifier import fit, labels_of
    from .host import LibraryService, serve

    passages = index.read_folder(arguments.folder)  # an empty one is told before a model is loaded
    if not 0 <= arguments.workers <= MAX_WORKERS:
        raise ConfigError(f"--workers {arguments.workers}: 1 to {MAX_WORKERS}; 0 takes all cores")
    if arguments.listed_only and arguments.allow is None:
        raise ConfigError("--listed-only without --allow answers nobody; name a file with --allow")
    if arguments.classify:
        labels_of([passage.folder for passage in passages])
    tls = _host_tls(arguments.certificate, arguments.private_key)
    listed = _listed(arguments.allow)
    if why := why_restored(_room()):
        raise ConfigError(why)
    room = _room() / f"index-{_label(arguments.folder)}"
    with contextlib.closing(_listen(arguments.host, arguments.port)) as listener, index.held(room):
        built = index.build(passages, embedder or _embedder(), room, _progress)
        classifier = None
        if arguments.classify:
            classifier = fit([passage.folder for passage in passages], built.rows())
        identity = _identity("host")
        budget = QueryBudget(
            _room() / f"budget-{_label(arguments.folder)}.json",
            limit=arguments.max_queries,
            listed=listed,
            strangers=not arguments.listed_only,
        )
        service = LibraryService(
            built,
            identity,
            budget,
            title=arguments.folder.resolve().name,
            workers=arguments.workers or core_count(),
            classifier=classifier,
        )
        address = f"{'https' if tls else 'http'}://{_netloc(listener)}/#{identity.public.raw.hex()}"

        def ready() -> None:
            if arguments.json:
                print(json.dumps({"address": address, "passages": built.passages}), flush=True)
                return
            print(
                f"{built.passages} passages of {arguments.folder} can be searched at\n  {address}"
            )
            if classifier is not None:
                print(
                    f"Texts are told apart by {len(classifier.labels)} subfolders, "
                    f"{100 * classifier.accuracy:.0f} % right on texts left out."
                )
            print(
                "This host sees how often and when each asker asks; not the question, the scores "
                "or what is read."
            )
            print(
                f"An account gets {arguments.max_queries} questions; askers outside --allow "
                f"{'get none' if arguments.listed_only else 'share one account'}.",
                flush=True,
            )

        asyncio.run(serve(service, listener, tls=tls, ready=ready))


def run_ask(arguments: argparse.Namespace, embedder: "Embeds | None" = None) -> None:
    """Ask one question and print the best passage.

    Raises:
        QuietchoirError: no host, no model, no budget left; the message says what to do.
    """
    import asyncio

    from ..core.errors import ConfigError
    from .client import LibraryAddress, ask

    if arguments.passages < 1 or not arguments.question.strip():
        raise ConfigError("a question and at least one passage to read are needed; ask something")
    address = LibraryAddress.parse(arguments.address)
    tls, embedder = _asker_tls(address, arguments.certificate), embedder or _embedder()
    with _asking(address) as asker:
        answer = asyncio.run(
            ask(address, arguments.question, embedder, asker, passages=arguments.passages, tls=tls)
        )
    if arguments.json:
        _print_json(answer)
        return
    _print_text(answer)
    if arguments.explain:
        print(_explained(answer.cost))


def run_classify(arguments: argparse.Namespace, embedder: "Embeds | None" = None) -> None:
    """Print a library's labels for one text, best first.

    Raises:
        QuietchoirError: no host, no model, no classifier there, no budget left.
    """
    import asyncio

    from ..core.errors import ConfigError
    from .client import LibraryAddress, classify

    if not arguments.text.strip():
        raise ConfigError("a text is needed; write one")
    address = LibraryAddress.parse(arguments.address)
    tls, embedder = _asker_tls(address, arguments.certificate), embedder or _embedder()
    with _asking(address) as asker:
        found = asyncio.run(classify(address, arguments.text, embedder, asker, tls=tls))
    if arguments.json:
        print(json_line({"labels": [{"label": label, "score": score} for label, score in found]}))
        return
    for label, score in found:
        print(f"{score:5.2f}  {one_line(label)}")


def run_status(arguments: argparse.Namespace) -> None:
    """Print what a library says of itself; asks it nothing and costs nothing of a budget.

    Raises:
        QuietchoirError: no library there.
    """
    import asyncio

    from .client import LibraryAddress, SearchCost, describe

    address = LibraryAddress.parse(arguments.address)
    manifest = asyncio.run(
        describe(address, _asker(address), tls=_asker_tls(address, arguments.certificate))
    )
    cost = SearchCost.of(manifest.shape, manifest.text_bytes, 1)
    if arguments.json:
        told = {
            "title": manifest.title,
            "passages": manifest.passages,
            "dimension": manifest.dimension,
            "edition": manifest.edition,
            "questions": manifest.questions,
            "labels": list(manifest.labels),
            **_cost(cost),
        }
        print(json_line(told))
        return
    print(
        f"{one_line(manifest.title)}: {manifest.passages} passages, edition "
        f"{manifest.edition[:8]}, {manifest.questions} questions to an account."
    )
    print(_explained(cost))


def _cost(cost: "SearchCost") -> dict[str, int]:
    return {
        "session_bytes": cost.session_bytes,
        "question_bytes": cost.question_bytes,
        "plain_bytes": cost.plain_bytes,
        "break_even": cost.break_even,
    }


def _explained(cost: "SearchCost") -> str:
    return (
        f"A session's keys are {cost.session_bytes / 1000:.0f} kB, a question "
        f"{cost.question_bytes / 1000:.0f} kB. Having all texts and their embeddings, and telling "
        f"the host no more than that one has them, would be about {cost.plain_bytes / 1000:.0f} "
        f"kB: cheaper from question {cost.break_even} on, where the host gives them away."
    )


def _progress(done: int, total: int) -> None:
    import sys

    end = "\r" if sys.stderr.isatty() else "\n"
    if sys.stderr.isatty() or (done and done % 4096 == 0):
        print(f"{done} of {total} passages are embedded", end=end, file=sys.stderr, flush=True)


def run_key(arguments: argparse.Namespace) -> None:
    """Print our public key for one library."""
    from .client import LibraryAddress

    print(_asker(LibraryAddress.parse(arguments.address)).public.raw.hex())


def _print_json(answer: "SearchAnswer") -> None:
    found = [
        {"source": each.passage.source, "text": each.passage.text, "score": each.score}
        for each in answer.found
    ]
    costs = {
        "bytes_up": answer.bytes_up,
        "bytes_down": answer.bytes_down,
        "seconds": round(answer.seconds, 3),
    }
    print(json_line({"found": found, "passages": answer.passages, **costs, **_cost(answer.cost)}))


def _print_text(answer: "SearchAnswer") -> None:
    for each in answer.found:
        print(_quoted(each.passage.text))
        print(f"  — {one_line(each.passage.source)}, score {each.score:.2f}\n")
    print(
        f"{answer.passages} passages searched under encryption: {answer.bytes_up / 1000:.0f} kB "
        f"up, "
        f"{answer.bytes_down / 1000:.0f} kB down, {answer.seconds:.1f} s. "
        f"The host saw ciphertext only: not the question, not the scores, not which "
        f"{len(answer.found)} of them you read."
    )


def _quoted(text: str) -> str:
    """A stranger's text, each line behind a mark, also where a terminal would begin another: no
    line of it can be taken for one of ours.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    width = max(1, console.width - len(QUOTE)) if console.is_terminal else UNSEEN
    lines = Text(visible(text)).wrap(console, width, overflow="fold")
    return "\n".join(f"{QUOTE}{line.plain}" for line in lines)


def _embedder() -> "Embeds":
    from ..core.engine.embedder import SentenceEmbedder
    from ..core.models.hub import catalog

    return SentenceEmbedder.load(catalog.find(EMBEDDER))


def _room() -> Path:
    from ..core import paths
    from .budget import FOLDER

    return paths.private_folder(paths.home() / FOLDER)


def _identity(name: str) -> "Identity":
    from ..crypto.identity.keys import Identity

    path = _room() / f"{name}.key"
    if not path.exists():
        Identity.generate().save(path)
    return Identity.load(path)


def _asker(address: "LibraryAddress") -> "Identity":
    # Another key for every host: two hosts cannot find out that the same node asks them.
    return _identity(_asker_name(address))


def _asker_name(address: "LibraryAddress") -> str:
    return f"asker-{address.host.fingerprint[:16]}"


@contextmanager
def _asking(address: "LibraryAddress") -> Iterator["Identity"]:
    """Our key for one session with a library, alone: a later session ends an earlier one."""
    import fcntl
    import sys

    with (_room() / f"{_asker_name(address)}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another question of this node to this library", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield _asker(address)


def _label(folder: Path) -> str:
    import hashlib

    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _listed(path: Path | None) -> frozenset[str]:
    from ..core.errors import ConfigError

    if path is None:
        return frozenset()
    try:
        lines = [
            line.split("#")[0].strip().lower() for line in path.read_text("utf-8").splitlines()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); --allow names a file with one key a line"
        ) from error
    for number, line in enumerate(lines, 1):
        if line and (len(line) != 64 or set(line) - set("0123456789abcdef")):
            raise ConfigError(
                f"{path}:{number}: not a key of 64 hexadecimal digits; askers print "
                f"theirs with `library key`"
            )
    return frozenset(filter(None, lines))


def _listen(host: str, port: int) -> "socket.socket":
    import socket

    from ..core.errors import ConfigError

    if not 0 <= port < 1 << 16:
        raise ConfigError(
            f"port {port} does not exist; choose one below 65536 with --port, 0 takes a free one"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port} ({error}); choose another with --port, 0 takes a "
            f"free one"
        ) from error


def _netloc(listener: "socket.socket") -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_tls(certificate: Path | None, private_key: Path | None) -> "ssl.SSLContext | None":
    import ssl

    from ..core.errors import ConfigError

    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise ConfigError("--certificate and --private-key go together; give both or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{certificate}: certificate or key cannot be used ({error}); give PEM files that fit"
        ) from error
    return context


def _asker_tls(address: "LibraryAddress", certificate: Path | None) -> "ssl.SSLContext | None":
    import ssl

    from ..core.errors import ConfigError

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
