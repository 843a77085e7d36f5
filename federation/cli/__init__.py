"""This floor's verbs, gathered from its rooms: `federation`, `coordinate`, `join`, `adapter`.

Knows which rooms have verbs, nothing else.
"""

from argparse import ArgumentParser, _SubParsersAction

from . import adapters, membership, monitor, personalization, rounds


def register(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Add every room's verbs; `federation` has actions of several rooms."""
    federation = verbs.add_parser(
        "federation", help="the signed file that members agree on, and how its rounds go"
    )
    actions = federation.add_subparsers(dest="action", required=True, metavar="ACTION")
    membership.register(actions)
    monitor.register(actions)
    rounds.register(verbs)
    personalization.register(adapters.register(verbs))
