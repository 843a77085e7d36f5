"""The command line, composed: every folder brings its own verbs.

Knows which folders have verbs. Imports nothing heavy: a verb imports what it needs when it runs, so
that `--help` loads neither torch nor flwr; and the folders' verbs are imported where Ctrl-C is a
sentence already.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__, manual
from .core import log, parts, paths, screen
from .core.errors import QuietchoirError

if TYPE_CHECKING:
    from .crypto.identity.keys import Identity

INTERRUPTED = 130  # what a shell expects after Ctrl-C
AGAIN_S = 0.05  # a Ctrl-C that nobody could take comes once more after so long


def parser() -> argparse.ArgumentParser:
    """All verbs of all folders."""
    from . import commands, documents
    from .core import commands as core_commands
    from .federation import cli as federation_commands
    from .plugins import commands as plugin_commands
    from .private_search import commands as search_commands
    from .simulations import commands as simulation_commands

    top = argparse.ArgumentParser(
        prog="quietchoir", description="A private assistant that learns with others, unheard."
    )
    top.add_argument("--version", action="version", version=f"quietchoir {__version__}")
    top.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file (default: config.toml in the node's home)",
    )
    top.add_argument(
        "--log",
        default="warning",
        choices=["debug", "info", "warning", "error"],
        help="how much to say on standard error",
    )
    top.add_argument(
        "--log-format",
        default="lines",
        choices=["lines", "json"],
        help="how to say it: words, or an object of JSON a line",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for folder in (
        commands,
        documents,
        core_commands,
        federation_commands,
        plugin_commands,
        simulation_commands,
    ):
        folder.register(verbs)
    search_commands.register(verbs, search_commands.FederationAccounts(_members_of, _own_identity))
    completing = verbs.add_parser(
        "completion", help="print a script that completes this command line in a shell"
    )
    completing.add_argument("shell", choices=manual.SHELLS, help="which one")
    completing.set_defaults(run=lambda chosen: print(manual.completion(parser(), chosen.shell)))
    paging = verbs.add_parser("manual", help="write pages for man, one of each command")
    paging.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="for example ~/.local/share/man/man1; pages there are replaced",
    )  # fmt: skip
    paging.set_defaults(run=write_manual)
    return top


def _members_of(federation: Path) -> Mapping[str, str]:
    from . import library_accounts

    return library_accounts.members(federation)


def _own_identity() -> "Identity":
    from . import library_accounts

    return library_accounts.identity()


def write_manual(arguments: argparse.Namespace) -> None:
    """Write them. Raises: QuietchoirError: the folder cannot be written to."""
    made = manual.pages(parser(), __version__)
    for name, page in made.items():
        paths.write_atomically(arguments.out / name, page.encode(), durable=False)
    print(f"{arguments.out}: {len(made)} pages; man quietchoir shows the first")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; what its owner can mend is one sentence, never a traceback."""
    with screen.guarded(), obeyed():
        return run(arguments)


@contextmanager
def obeyed() -> Iterator[None]:
    """Within the block no Ctrl-C is lost.

    Python raises it wherever the main thread happens to be. In a finalizer or a weak reference's
    callback, which run when a connection or a thread is dropped, nobody can take it: it is told to
    `sys.unraisablehook` and gone. It comes again then, a moment later and so elsewhere.
    """
    before = sys.unraisablehook

    def tell(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        # to the main thread itself: what it waits for in the system must end
        again = threading.Timer(
            AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
        )
        again.daemon = True
        again.start()

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = before


def run(arguments: Sequence[str] | None) -> int:
    """The verb that `arguments` name, on the screen that stands now."""
    try:
        chosen = parser().parse_args(arguments)
        log.start(chosen.log, chosen.log_format)
        verb = f"quietchoir {chosen.verb}"
        if extra := getattr(chosen, "needs", None):
            parts.require(extra, verb)
        with parts.wanted(verb):
            return int(chosen.run(chosen) or 0)
    except QuietchoirError as error:
        log.say(f"quietchoir: {screen.one_line(str(error))}", logging.ERROR)
        return error.exit_code
    except KeyboardInterrupt:
        log.say("quietchoir: interrupted; nothing is left half-written")
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except Exception as error:
        if not parts.updated():
            raise
        log.get("cli").info("after an update", exc_info=error)
        log.say(f"quietchoir: {screen.one_line(parts.told_updated(error))}", logging.ERROR)
        return QuietchoirError.exit_code


if __name__ == "__main__":
    sys.exit(main())
