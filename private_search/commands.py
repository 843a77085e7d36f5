"""`quietchoir library serve | ask | classify | status | key`, the libraries that this node may ask
in a conversation (`add | list | remove`), and the tokens that a host hands out (`token`).

Knows flags and words for people. Imports what is heavy when a verb runs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.screen import UNSEEN, json_line, one_line, visible

if TYPE_CHECKING:
    import socket
    import ssl

    from ..crypto.identity.keys import Identity
    from .client import LibraryAddress, SearchAnswer, SearchCost
    from .index import Embeds

PORT = 8770
MAX_QUERIES = 64
ADDRESS_HELP = "http://HOST:PORT/#KEY, as the host printed it, or a name from `library add`"
TOKEN_HELP = "what the library's owner gave you to ask with; kept in this node's home"
MEMBER_HELP = (
    "ask as this node is called in a federation, whose members have an account each "
    "where the library is served with --federation; its host then knows who asks"
)
FROM_NOW = "a library that is served already sees it at its next start"
MAX_WORKERS = 64
QUOTE = "> "  # before each line of a passage


@dataclass(frozen=True, slots=True)
class FederationAccounts:
    """Federations, as whoever stands above both tells of them: this folder knows none."""

    members: Callable[[Path], Mapping[str, str]]  # of a signed file: names by public key, hex
    identity: "Callable[[], Identity]"  # what this node signs with as a member


def register(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    federations: FederationAccounts | None = None,
) -> None:
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
        help="questions (and passages) for each account, ever; all of them together tell coarse "
        f"embeddings of every passage (README), fewer tell less; default {MAX_QUERIES}",
    )
    serve.add_argument(
        "--allow",
        type=Path,
        metavar="FILE",
        help="askers' keys, one a line, that get an account each",
    )
    serve.add_argument(
        "--federation",
        type=Path,
        metavar="FED",
        help="a federation's signed file, whose members get an account each",
    )
    serve.add_argument(
        "--listed-only",
        action="store_true",
        help="answer nobody but those in --allow, with a token, or in --federation",
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
    serve.add_argument(
        "--page",
        type=int,
        metavar="PORT",
        help="show on this machine what the host can and cannot see: a page, and /metrics for "
        "Prometheus; 0: a free port",
    )
    serve.add_argument("--json", action="store_true", help="one line of JSON when ready")
    serve.set_defaults(run=run_serve, needs="federation", federations=federations)
    ask = kinds.add_parser("ask", help="ask a library; its host sees only ciphertext")
    ask.add_argument("address", help=ADDRESS_HELP)
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
    ask.add_argument(
        "--near",
        action="store_true",
        help="score what is near the question alone, where a library is large enough to have "
        "clusters: less work and fewer bytes, and nearly all is found",
    )
    _add_accounts(ask)
    ask.add_argument("--json", action="store_true", help="one line of JSON")
    ask.set_defaults(run=run_ask, needs="federation", federations=federations)
    label = kinds.add_parser(
        "classify", help="which of a library's labels fits a text; its host sees only ciphertext"
    )
    label.add_argument("address", help=ADDRESS_HELP)
    label.add_argument("text")
    label.add_argument(
        "--certificate", type=Path, metavar="PEM", help="the host's certificate, for https"
    )
    _add_accounts(label)
    label.add_argument("--json", action="store_true", help="one line of JSON")
    label.set_defaults(run=run_classify, needs="federation", federations=federations)
    status = kinds.add_parser("status", help="what a library says of itself and what asking costs")
    status.add_argument("address", help=ADDRESS_HELP)
    status.add_argument(
        "--certificate", type=Path, metavar="PEM", help="the host's certificate, for https"
    )
    status.add_argument("--json", action="store_true", help="one line of JSON")
    status.set_defaults(run=run_status, needs="federation")
    key = kinds.add_parser("key", help="print our key for a library, for its owner's --allow file")
    key.add_argument("address")
    key.set_defaults(run=run_key)
    add = kinds.add_parser(
        "add", help="name a library, so that conversations may ask it where you choose it"
    )
    add.add_argument("name")
    add.add_argument("address", help="http://HOST:PORT/#KEY, as the host printed it")
    add.add_argument(
        "--certificate", type=Path, metavar="PEM", help="the host's certificate, for https"
    )
    _add_accounts(add)
    add.set_defaults(run=run_add, federations=federations)
    listing = kinds.add_parser("list", help="named libraries, and what each was sent")
    listing.add_argument("--json", action="store_true", help="one line of JSON")
    listing.set_defaults(run=run_list)
    remove = kinds.add_parser("remove", help="forget a named library")
    remove.add_argument("name")
    remove.set_defaults(run=run_remove)
    token = kinds.add_parser("token", help="accounts at the libraries that this node serves")
    tokens = token.add_subparsers(dest="token", required=True, metavar="VERB")
    give = tokens.add_parser("add", help="print a new token, for one person to ask with")
    give.add_argument("name")
    give.set_defaults(run=run_token_add)
    given = tokens.add_parser("list", help="who has one")
    given.set_defaults(run=run_token_list)
    taken = tokens.add_parser("remove", help="take one back")
    taken.add_argument("name")
    taken.set_defaults(run=run_token_remove)


def _add_accounts(verb: argparse.ArgumentParser) -> None:
    who = verb.add_mutually_exclusive_group()
    who.add_argument("--token", metavar="TOKEN", help=TOKEN_HELP)
    who.add_argument("--member", action="store_true", help=MEMBER_HELP)


def run_serve(arguments: argparse.Namespace, embedder: "Embeds | None" = None) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: port in use, flags that do not fit, a budget too large, or a home that came out
        of a backup.
        DataError: nothing to read in the folder.
        RosterError: --federation names a file that its owner did not sign so, or that is over.
        ModelNotFoundError: the embedding model is not on this disk.
    """
    import asyncio
    import contextlib

    from ..core import paths
    from ..core.errors import ConfigError
    from ..core.hardware.discovery import core_count
    from . import index, known
    from .budget import QueryBudget, why_restored
    from .classifier import fit, labels_of
    from .host import LibraryService, serve
    from .page import LibraryPage
    from .tokens import TokenList

    passages = index.read_folder(arguments.folder)  # an empty one is told before a model is loaded
    if not 0 <= arguments.workers <= MAX_WORKERS:
        raise ConfigError(f"--workers {arguments.workers}: 1 to {MAX_WORKERS}; 0 takes all cores")
    names = {key: name for name, key in TokenList(known.room()).names().items()}
    if arguments.federation is not None:
        names = {**arguments.federations.members(arguments.federation), **names}
    if arguments.listed_only and arguments.allow is None and not names:
        raise ConfigError(
            "--listed-only without --allow, --federation or a token answers nobody; name a file "
            "with --allow, or hand out tokens with `quietchoir library token add`"
        )
    if arguments.classify:
        labels_of([passage.folder for passage in passages])
    tls = _host_tls(arguments.certificate, arguments.private_key)
    listed = _listed(arguments.allow) | names.keys()
    if why := why_restored(known.room()):
        raise ConfigError(why)
    room = known.room() / f"index-{_label(arguments.folder)}"
    with contextlib.closing(_listen(arguments.host, arguments.port)) as listener, index.held(room):
        built = index.build(passages, embedder or _embedder(), room, _progress)
        classifier = None
        if arguments.classify:
            folders = built.ordered([passage.folder for passage in passages])
            classifier = fit(folders, built.rows())
        identity = known.lasting("host")
        budget = QueryBudget(
            known.room() / f"budget-{_label(arguments.folder)}.json",
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
            names=names,
        )
        page = None
        if arguments.page is not None:
            page = LibraryPage(service, arguments.page, paths.home())
        address = f"{'https' if tls else 'http'}://{_netloc(listener)}/#{identity.public.raw.hex()}"

        def ready() -> None:
            if arguments.json:
                told = {"address": address, "passages": built.passages}
                print(json.dumps(told | ({"page": page.url} if page else {})), flush=True)
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
                f"An account gets {arguments.max_queries} questions; {len(listed)} askers have one "
                f"each, others {'get none' if arguments.listed_only else 'share one'}."
            )
            if page is not None:
                print(f"What it sees: {page.url}")
            sys.stdout.flush()

        asyncio.run(serve(service, listener, tls=tls, ready=ready, beside=page))


def run_ask(arguments: argparse.Namespace, embedder: "Embeds | None" = None) -> None:
    """Ask one question and print the best passage.

    Raises:
        QuietchoirError: no host, no model, no budget left; the message says what to do.
    """
    import asyncio

    from ..core.errors import ConfigError
    from . import known
    from .client import SearchTraffic, ask

    if arguments.passages < 1 or not arguments.question.strip():
        raise ConfigError("a question and at least one passage to read are needed; ask something")
    address, tls, member = _library(arguments)
    embedder, moved = embedder or _embedder(), SearchTraffic()
    with known.asking(address, arguments.token, member) as asker:
        try:
            answer = asyncio.run(
                ask(
                    address,
                    arguments.question,
                    embedder,
                    asker,
                    passages=arguments.passages,
                    near=arguments.near,
                    kept=known.room(),
                    tls=tls,
                    moved=moved,
                )
            )
        finally:
            known.KnownLibraries(_embedder).count(address.text, moved)
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
    from . import known
    from .client import SearchTraffic, classify

    if not arguments.text.strip():
        raise ConfigError("a text is needed; write one")
    address, tls, member = _library(arguments)
    embedder, moved = embedder or _embedder(), SearchTraffic()
    with known.asking(address, arguments.token, member) as asker:
        try:
            found = asyncio.run(
                classify(address, arguments.text, embedder, asker, tls=tls, moved=moved)
            )
        finally:
            known.KnownLibraries(_embedder).count(address.text, moved, text=True)
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

    from . import known
    from .client import SearchCost, describe

    address, tls, _ = _library(arguments)
    manifest = asyncio.run(describe(address, known.asker(address), tls=tls))
    cost = SearchCost.of(manifest.shape, manifest.text_bytes, 1)
    if arguments.json:
        told = {
            "title": manifest.title,
            "passages": manifest.passages,
            "dimension": manifest.dimension,
            "edition": manifest.edition,
            "questions": manifest.questions,
            "labels": list(manifest.labels),
            "clustered": manifest.clustered,
            **_cost(cost),
        }
        print(json_line(told))
        return
    print(
        f"{one_line(manifest.title)}: {manifest.passages} passages, edition "
        f"{manifest.edition[:8]}, {manifest.questions} questions to an account."
    )
    if manifest.labels:
        print(f"It tells texts apart by: {', '.join(map(one_line, manifest.labels))}.")
    print(_explained(cost))


def _library(
    arguments: argparse.Namespace,
) -> "tuple[LibraryAddress, ssl.SSLContext | None, Identity | None]":
    """The library of this name or address, what pins its certificate, and our key as a member of a
    federation where it is to be asked so.
    """
    from . import known
    from .client import LibraryAddress

    named, pem = known.KnownLibraries(_embedder).at(arguments.address), arguments.certificate
    if named is not None and pem is None and named.certificate:
        pem = Path(named.certificate)
    address = LibraryAddress.parse(arguments.address if named is None else named.address)
    # a name may have been added so; `status` signs nothing
    as_member = getattr(arguments, "member", None)
    if as_member is False and not arguments.token and named is not None:
        as_member = named.member
    member = arguments.federations.identity() if as_member else None
    return address, known.asker_tls(address, pem), member


def _cost(cost: "SearchCost") -> dict[str, int]:
    return {
        "session_bytes": cost.session_bytes,
        "question_bytes": cost.question_bytes,
        "near_bytes": cost.near_bytes,
        "map_bytes": cost.map_bytes,
        "plain_bytes": cost.plain_bytes,
        "break_even": cost.break_even,
    }


def _explained(cost: "SearchCost") -> str:
    near = (
        f" ({cost.near_bytes / 1000:.0f} with --near, and {cost.map_bytes / 1000:.0f} once an "
        f"edition)"
        if cost.near_bytes
        else ""
    )
    return (
        f"A session's keys are {cost.session_bytes / 1000:.0f} kB, a question "
        f"{cost.question_bytes / 1000:.0f} kB{near}. Having all texts and their embeddings, and "
        f"telling the host no more than that one has them, would be about "
        f"{cost.plain_bytes / 1000:.0f} kB: cheaper from question {cost.break_even} on, where the "
        f"host gives them away."
    )


def _progress(done: int, total: int) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    if sys.stderr.isatty() or (done and done % 4096 == 0):
        print(f"{done} of {total} passages are embedded", end=end, file=sys.stderr, flush=True)


def run_key(arguments: argparse.Namespace) -> None:
    """Print our public key for one library."""
    from . import known
    from .client import LibraryAddress

    print(known.asker(LibraryAddress.parse(arguments.address)).public.raw.hex())


def run_add(arguments: argparse.Namespace) -> None:
    """Name a library.

    Raises:
        ConfigError: no name, address or token for one, or a name or key that is there already.
    """
    from . import known

    if arguments.member:
        arguments.federations.identity()  # which is there, or says what to do
    libraries = known.KnownLibraries(_embedder)
    libraries.add(
        arguments.name,
        arguments.address,
        arguments.certificate,
        arguments.token,
        member=arguments.member,
    )
    print(
        f"{arguments.name} can be chosen in a conversation: on the page beside your documents, in "
        f"the terminal with `quietchoir chat --collection library:{arguments.name}`. Where it is "
        f"chosen, each question goes there as ciphertext and reads {known.READ} passages, which "
        f"count against your account."
    )


def run_list(arguments: argparse.Namespace) -> None:
    """Print the named libraries, and what each was sent."""
    import time
    from dataclasses import asdict

    from . import known

    entries = known.KnownLibraries(_embedder).entries()
    if arguments.json:
        print(json_line({"libraries": [asdict(entry) for entry in entries]}))
        return
    for entry in entries:
        last = (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last)) if entry.last else "never"
        )
        print(
            f"{entry.name}  {entry.address}  {entry.questions} questions, {entry.texts} texts, "
            f"{entry.bytes_up / 1000:.0f} kB of ciphertext up, "
            f"{entry.bytes_down / 1000:.0f} kB down, last {last}"
        )


def run_remove(arguments: argparse.Namespace) -> None:
    """Forget a named library.

    Raises:
        UnknownEntryError: none is called so.
    """
    from . import known

    known.KnownLibraries(_embedder).remove(arguments.name)
    print(f"{arguments.name} is asked no more")


def run_token_add(arguments: argparse.Namespace) -> None:
    """Print a new token.

    Raises:
        ConfigError: no name for one, or one that is given already.
    """
    from . import known
    from .tokens import TokenList

    print(TokenList(known.room()).add(arguments.name))
    print(
        f"Shown this once: give it to {arguments.name}, who asks with `library ask --token`, or "
        f"names the library with `library add --token`. Here it counts as an account of its own; "
        f"{FROM_NOW}.",
        file=sys.stderr,
    )


def run_token_list(_arguments: argparse.Namespace) -> None:
    """Print who has a token, and the key that it signs with."""
    from . import known
    from .tokens import TokenList

    for name, key in TokenList(known.room()).names().items():
        print(f"{name}  {key}")


def run_token_remove(arguments: argparse.Namespace) -> None:
    """Take a token back.

    Raises:
        UnknownEntryError: none is called so.
    """
    from . import known
    from .tokens import TokenList

    TokenList(known.room()).remove(arguments.name)
    print(f"{arguments.name} has no account of its own any more; {FROM_NOW}")


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
    from . import known

    return SentenceEmbedder.load(catalog.find(known.EMBEDDER))


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
