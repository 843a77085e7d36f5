"""The verbs `federation status | audit`, of a coordinator's run, and `status | pause | resume`, of
this node's part.

Knows flags and words for people. Always: heavy imports happen inside the function that runs a verb;
the first two only read.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..monitor.event_printer import percent

NO_MEMBER = (
    "this node is a member of no federation; it joins one with: quietchoir serve --federation FILE"
)


def register(actions: "_SubParsersAction[ArgumentParser]") -> None:
    """Add them."""
    status = actions.add_parser(
        "status", help="how far a coordinator's run is, or this node's part in its federations"
    )
    status.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="as given to `coordinate`; without it: of which federations this node is a member, "
        "and which its owner paused",
    )
    status.add_argument(
        "--json", action="store_true", help="one JSON object, as the coordinator's page gets it"
    )
    status.add_argument(
        "--home", type=Path, metavar="DIR", help="a member's; default: the node's home"
    )
    status.set_defaults(run=show_status)
    audit = actions.add_parser(
        "audit", help="check a coordinator's audit log and name the first line that was changed"
    )
    audit.add_argument("state", type=Path, metavar="STATE", help="as given to `coordinate --state`")
    audit.add_argument("--lines", action="store_true", help="also print every line")
    audit.set_defaults(run=check_audit)
    for name, paused, words in (
        ("pause", True, "train and send nothing in a federation, from now on and after a restart"),
        ("resume", False, "take part again"),
    ):
        action = actions.add_parser(name, help=words)
        action.add_argument(
            "federation", nargs="?", metavar="NAME", help="default: the only one of this node"
        )
        action.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
        action.set_defaults(run=set_pause, paused=paused)


def set_pause(arguments: Namespace) -> None:
    """As the node's page does it; a member that runs notices by itself.

    Raises:
        ConfigError: not one federation that this node is a member of.
    """
    from ...core.errors import ConfigError
    from ..client_node import default_home
    from ..membership import consent
    from ..monitor.member_status import memberships

    joined = memberships(arguments.home or default_home())
    wanted = arguments.federation
    meant = [
        (file, policy)
        for file, policy in joined
        if wanted is None or policy.name == wanted or policy.federation.hex().startswith(wanted)
    ]
    if not joined:
        raise ConfigError(NO_MEMBER)
    if len(meant) != 1:
        known = ", ".join(f"{one.name} ({one.federation.hex()[:8]})" for _, one in joined)
        raise ConfigError(
            f"federation {wanted or '(none named)'}: this node is a member of {known}; "
            f"name one of them, or join one with: quietchoir serve --federation FILE"
        )
    [(file, policy)] = meant
    consent.pause(file.parent, arguments.paused)
    print(
        f"{policy.name}: paused; nothing more is trained or sent, what has begun to leave leaves "
        f"whole; quietchoir federation resume {policy.name} takes part again"
        if arguments.paused
        else f"{policy.name}: this node takes part again, once it runs as a member"
    )


def show_status(arguments: Namespace) -> None:
    """A table, read from the disk; a running coordinator is not disturbed."""
    import json

    if arguments.state is None:
        show_memberships(arguments)
        return
    from ..monitor.run_status import from_disk

    seen = from_disk(arguments.state).snapshot()
    if arguments.json:
        print(json.dumps(seen))
        return
    print_rounds(seen)
    ended = "finished" if seen["finished"] else f"round {seen['round'] + 1} is next"
    budget = (
        ""
        if seen["budget"] is None
        else (f"; epsilon {seen['epsilon'] or 0:.2f} of {seen['budget']:g}")
    )
    print(
        f"{seen['federation']}, version {seen['version']}, {seen['mode']}: {seen['round']} "
        f"rounds done; {ended}{budget}"
    )


def show_memberships(arguments: Namespace) -> None:
    """A line for each federation of this node."""
    import json

    from ...core import config
    from ...core.screen import one_line
    from ..client_node import default_home
    from ..monitor.member_status import MemberStatus

    home = arguments.home or default_home()
    rows = MemberStatus(home, config.load(arguments.config), lambda _: None).federations()
    if arguments.json:
        print(json.dumps({"federations": rows}))
        return
    for row in rows:
        taken = f"{len(row['rounds'])} rounds, {row['bytes'] / 1e6:.2f} MB sent"
        state = "; paused: nothing is trained or sent" if row["paused"] else ""
        state += limits(row["rounds"])
        if row["latest"]:
            state += f"; {one_line(row['latest']['words'])}"
        print(
            f"{one_line(row['name'])} ({row['id'][:8]}), version {row['version']}, {row['mode']}, "
            f"{row['members']} members, coordinator {one_line(row['coordinator'])}: {taken}{state}"
        )
    if not rows:
        print(NO_MEMBER)


def limits(rounds: Sequence[Mapping[str, Any]]) -> str:
    """What of the last training did not count, as part of a sentence; empty where all did."""
    last = next((one for one in rounds if "train" in one["stages"]), {})
    cut, left, short = last.get("clipped", 0.0), last.get("left", 0), last.get("shortened", 0.0)
    words = (
        f"its change was shortened to {100 * short:.1f} % of its length" if short else "",
        f"{100 * cut:.1f} % of its values were cut to the federation's range" if cut else "",
        f"{left} of its examples waited for a later round" if left else "",
    )
    found = ", ".join(filter(None, words))
    return f"; in its last training {found}" if found else ""


def print_rounds(seen: dict[str, Any]) -> None:
    """One line a round."""
    from rich.console import Console

    from ...core import screen

    names = (
        "round",
        "in the sum",
        "dropped",
        "MB up",
        "MB down",
        "seconds",
        "loss",
        "accuracy before",
        "epsilon",
    )
    table = screen.table(*names, box=None)
    for entry in seen["history"]:
        undone = " undone" if entry["kept"] is False else ""
        table.add_row(
            (str(entry["round"]) if entry["kind"] == "train" else "score") + undone,
            f"{entry['parties']} of "
            f"{entry['asked']}", str(entry["dropped"]), f"{entry['bytes_up'] / 1e6:.2f}",
            f"{entry['bytes_down'] / 1e6:.2f}", f"{entry['seconds']:.1f}", shown(entry["loss"], 3),
            percent(entry["accuracy"]), shown(entry["epsilon"], 2),
        )  # fmt: skip
    Console(width=120).print(table)


def shown(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def check_audit(arguments: Namespace) -> None:
    """Every line against the one before it, then the log against the run's database."""
    import json

    from ...core.errors import FederationError
    from ..monitor import audit_log
    from ..store import checkpoint

    path, last = arguments.state / audit_log.FILE, None
    if not path.exists():
        raise FederationError(
            f"{path}: no audit log here; name the folder that was given to `coordinate --state`"
        )
    for last in audit_log.read(path):
        if arguments.lines:
            print(f"{last.number:>6}  {last.at}  {last.digest[:16]}  {json.dumps(last.event)}")
    state = checkpoint.read(arguments.state)
    absent = audit_log.missing(path, state.history if state is not None else ())
    if absent:
        raise FederationError(
            f"{path}: round {absent[0]['round']} ({absent[0]['kind']}) is in the run's database "
            f"and not in the log; its "
            "end was cut off, or a kill came between the two (the next start of the coordinator "
            "then adds the line)"
        )
    if last is None:
        print(f"{path}: empty")
    else:
        print(
            f"{path}: {last.number} lines, every one leads to the next; the last hash is "
            f"{last.digest}"
        )
