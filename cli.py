"""The command line, composed: every folder brings its own verbs.

Knows which folders have verbs. Imports nothing heavy: a verb imports what it needs when it runs, so
that `--help` loads neither torch nor flwr; and the folders' verbs are imported where Ctrl-C is a
sentence already.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .core import log, parts, screen
from .core.errors import QuietchoirError

INTERRUPTED = 130  # what a shell expects after Ctrl-C


def parser() -> argparse.ArgumentParser:
    """All verbs of all folders."""
    from . import commands
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
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for folder in (
        commands,
        core_commands,
        federation_commands,
        search_commands,
        plugin_commands,
        simulation_commands,
    ):
        folder.register(verbs)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; what its owner can mend is one sentence, never a traceback."""
    with screen.guarded():
        return run(arguments)


def run(arguments: Sequence[str] | None) -> int:
    """The verb that `arguments` name, on the screen that stands now."""
    try:
        chosen = parser().parse_args(arguments)
        log.start(chosen.log)
        verb = f"quietchoir {chosen.verb}"
        if extra := getattr(chosen, "needs", None):
            parts.require(extra, verb)
        with parts.wanted(verb):
            return int(chosen.run(chosen) or 0)
    except QuietchoirError as error:
        print(f"quietchoir: {screen.one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("quietchoir: interrupted; nothing is left half-written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
