"""This floor's verbs, gathered from its rooms: `federation`, `coordinate`, `join`, `adapter`,
`library`.

Knows which rooms have verbs, nothing else.
"""

from argparse import ArgumentParser, _SubParsersAction

from .library import commands as library_commands
from .membership import commands as membership_commands
from .personal import commands as personal_commands
from .registry import commands as registry_commands
from .rounds import commands as round_commands
from .watch import commands as watch_commands


def register(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Add every room's verbs; `federation` has actions of several rooms."""
    federation = verbs.add_parser(
        "federation", help="the signed file that members agree on, and how its rounds go"
    )
    actions = federation.add_subparsers(dest="action", required=True, metavar="ACTION")
    membership_commands.register(actions)
    watch_commands.register(actions)
    round_commands.register(verbs)
    personal_commands.register(registry_commands.register(verbs))
    library_commands.register(verbs)
