"""This floor's verbs, gathered from its rooms: `federation`, `coordinate`, `join`, `adapter`.

Knows which rooms have verbs, nothing else.
"""

from argparse import ArgumentParser, _SubParsersAction

from . import adapters as registry_commands
from . import membership as membership_commands
from . import monitor as watch_commands
from . import personalization as personal_commands
from . import rounds as round_commands


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
