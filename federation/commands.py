"""The verbs `federation`, `coordinate`, `join` and `adapter`.

Knows flags and words for people. Always: heavy imports happen inside the function that runs a verb.
"""

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable
from pathlib import Path

from .library import commands as library_commands

Event = dict[str, object]


def register(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Add this folder's verbs, and the library's."""
    register_federation(verbs.add_parser("federation", help="the signed file that members agree on"))
    register_coordinate(verbs.add_parser("coordinate", help="run a federation's rounds"))
    register_join(verbs.add_parser("join", help="take part in a federation with this node's data"))
    register_adapter(verbs.add_parser("adapter", help="adapters on this disk"))
    library_commands.register(verbs)


def register_federation(parser: ArgumentParser) -> None:
    """`federation identity | init | enroll | show`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    me = actions.add_parser("identity", help="print this node's public card: give it to the federation's owner")
    me.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
    me.add_argument(
        "--protect", choices=["passphrase", "keyring", "none"], help="lock this node's private keys on the disk from now on"
    )
    me.set_defaults(run=show_identity)

    init = actions.add_parser("init", help="found a federation: keys, certificate, signed file")
    init.add_argument("folder", type=Path, metavar="DIR", help="where federation.toml and the keys go")
    init.add_argument("--name", required=True)
    init.add_argument("--address", default="127.0.0.1:8790", metavar="HOST:PORT", help="where the coordinator answers")
    init.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME", help="a model on this disk")
    init.add_argument("--model-digest", metavar="SHA256", help="instead of reading the model file")
    init.add_argument("--protection", default="masked", choices=["plain", "masked", "sealed"])
    for flag, kind in INIT_NUMBERS.items():
        init.add_argument(f"--{flag.replace('_', '-')}", type=kind, metavar="N")
    init.set_defaults(run=found_federation)

    enroll = actions.add_parser("enroll", help="add a member and sign the next version")
    enroll.add_argument("file", type=Path, metavar="FED")
    enroll.add_argument("--name", required=True, help="the member's name in the roster")
    enroll.add_argument("--public", required=True, metavar="CARD", help="the node's public card, or a file that holds it")
    enroll.add_argument("--owner-key", type=Path, metavar="FILE", help="default: owner.key beside FED")
    enroll.set_defaults(run=enroll_member)

    show = actions.add_parser("show", help="check a federation file and print it")
    show.add_argument("file", type=Path, metavar="FED")
    show.set_defaults(run=show_federation)

    status = actions.add_parser("status", help="how far a coordinator's run is")
    status.add_argument("--state", type=Path, required=True, metavar="DIR", help="as given to `coordinate`")
    status.set_defaults(run=show_status)


PROTECTION_NUMBERS: dict[str, type] = {"bits": int, "threshold": int, "min_cohort": int, "min_tokens": int}
ADAPTER_NUMBERS: dict[str, type] = {"rank": int, "alpha": float, "upper_layers": int, "seed": int}
RECIPE_NUMBERS: dict[str, type] = {
    "rounds": int, "lr": float, "batch": int, "epochs": int, "server_momentum": float, "update_range": float,
    "evaluate_every": int, "attempts": int, "work_timeout_s": float, "stage_timeout_s": float,
}  # fmt: skip
INIT_NUMBERS = {**PROTECTION_NUMBERS, **ADAPTER_NUMBERS, **RECIPE_NUMBERS}


def register_coordinate(parser: ArgumentParser) -> None:
    """`coordinate FED`."""
    parser.add_argument("file", type=Path, metavar="FED")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the run lives here; start again to go on")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: the federation's")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what happened as JSON")
    parser.add_argument("--keys", type=Path, metavar="DIR", help="coordinator.key and tls.key; default: beside FED")
    parser.add_argument("--home", type=Path, metavar="DIR", help="the finished adapter is kept here; default: the node's home")
    parser.add_argument("--wait", type=float, default=600.0, metavar="S", help="seconds to wait for too few members")
    parser.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds to wait for the rest once the minimum is there"
    )
    parser.add_argument(
        "--rehearse", type=int, default=0, metavar="N", help="N pretended values, no model: try keys and network"
    )
    parser.add_argument("--json-lines", action="store_true", help="progress as JSON lines on standard output")
    parser.set_defaults(run=run_coordinator)


def register_join(parser: ArgumentParser) -> None:
    """`join FED`."""
    parser.add_argument("file", type=Path, metavar="FED")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="train.jsonl and test.jsonl that you consent to train on")
    parser.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
    parser.add_argument("--once", action="store_true", help="leave after the first finished adapter")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="give up if the coordinator is away so long; 0: never"
    )
    parser.add_argument("--rehearse", type=int, default=0, metavar="N", help="N pretended values, no model, no data")
    parser.add_argument("--json-lines", action="store_true", help="progress as JSON lines on standard output")
    parser.set_defaults(run=run_member)


def register_adapter(parser: ArgumentParser) -> None:
    """`adapter list | show | activate | rollback`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="adapters on this disk")
    show = actions.add_parser("show", help="one adapter's card")
    activate = actions.add_parser("activate", help="serve this adapter from the next start on; `none` for the bare model")
    rollback = actions.add_parser("rollback", help="go back to the adapter that was active before")
    for action in (show, activate):
        action.add_argument("adapter", metavar="NAME", help="the first characters of its name are enough")
    for action, run in (
        (listing, list_adapters),
        (show, show_adapter),
        (activate, activate_adapter),
        (rollback, rollback_adapter),
    ):
        action.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
        action.set_defaults(run=run)


def show_identity(arguments: Namespace) -> None:
    """Print the public card, and nothing else; lock the private keys first if asked to."""
    from .member import default_home
    from .membership import identity, unlock

    home = arguments.home or default_home()
    if arguments.protect is None:
        keys = identity.load_or_create(home)
    else:
        asked = unlock.Asked()
        if (home / identity.IDENTITY_FILE).exists():
            identity.load_or_create(home, asked=asked)  # who cannot open the keys is not asked for a new passphrase
        keys = identity.protect(home, unlock.choose(arguments.protect, home / identity.IDENTITY_FILE), asked=asked)
    print(keys.card.text)


def found_federation(arguments: Namespace) -> None:
    """Make keys and file."""
    from ..core.errors import ConfigError
    from .membership.founding import FILE, Founding, found
    from .membership.policy import AdapterTable, ModelTable, ProtectionTable, Recipe

    def given(names: dict[str, type]) -> dict[str, object]:
        return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}

    digest = arguments.model_digest or model_digest(arguments.model)
    try:
        founding = Founding(
            name=arguments.name,
            address=arguments.address,
            model=ModelTable(name=arguments.model, digest=digest),
            adapter=AdapterTable(**given(ADAPTER_NUMBERS)),  # type: ignore[arg-type]
            protection=ProtectionTable(mode=arguments.protection, **given(PROTECTION_NUMBERS)),  # type: ignore[arg-type]
            recipe=Recipe(**given(RECIPE_NUMBERS)),  # type: ignore[arg-type]
        )
        policy = found(arguments.folder, founding)
    except ValueError as error:
        raise ConfigError(f"federation init: {error}") from error
    print(f"founded {policy.name}: {arguments.folder / FILE}")
    print(f"owner's fingerprint, for members to compare: {fingerprint(policy.owner)}")
    print("next: quietchoir federation enroll, once for each member; then give the file to all of them")


def model_digest(name: str) -> str:
    """sha256 of a model file on this disk."""
    import hashlib

    from ..core.models import catalog

    with catalog.find(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def enroll_member(arguments: Namespace) -> None:
    """Add one member."""
    from .membership.founding import OWNER_KEY, enroll
    from .membership.identity import PublicCard

    given = Path(arguments.public)
    is_file = len(arguments.public) < 128 and given.exists()
    card = PublicCard.parse(given.read_text("utf-8") if is_file else arguments.public)
    owner_key = arguments.owner_key or arguments.file.parent / OWNER_KEY
    policy = enroll(arguments.file, owner_key, arguments.name, card)
    print(f"{arguments.name} is in; {policy.name} is now version {policy.version} with {len(policy.members)} members")


def fingerprint(key: str) -> str:
    """32 hex digits in groups, for people to compare."""
    from ..crypto.keys import PublicIdentity

    digits = PublicIdentity(bytes.fromhex(key)).fingerprint[:32]
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def show_federation(arguments: Namespace) -> None:
    """Check and print."""
    from .membership import roster

    policy = roster.load(arguments.file)
    protection, recipe = policy.protection, policy.recipe
    print(f"{policy.name}, version {policy.version}, signature valid")
    print(f"  owner        {fingerprint(policy.owner)}  (compare with what the owner tells you)")
    print(f"  coordinator  {policy.coordinator.address}")
    print(f"  model        {policy.model.name}  sha256 {policy.model.digest[:16]}…")
    print(f"  adapter      rank {policy.adapter.rank}, upper {policy.adapter.upper_layers} layers, seed {policy.adapter.seed}")
    print(f"  protection   {protection.mode}, {protection.bits} bits, at least {protection.min_cohort} members a sum")
    print(f"  recipe       {recipe.rounds} rounds, lr {recipe.lr:g}, server momentum {recipe.server_momentum:g}")
    for member in policy.members:
        print(f"  member       {member.name:<20} {fingerprint(member.key)}")


def show_status(arguments: Namespace) -> None:
    """One line a round, read from the checkpoint; a running coordinator is not disturbed."""
    from ..core.errors import FederationError
    from .rounds.checkpoint import FILE, decode

    path = arguments.state / FILE
    if not path.exists():
        raise FederationError(f"{path}: no run here yet; start one with `quietchoir coordinate FED --state {arguments.state}`")
    state = decode(path.read_bytes(), path)
    for entry in state.history:
        print(f"{entry['kind']:<6} " + str(sentence({"event": "round", **entry})))
    ended = "finished" if state.finished else f"round {state.round + 1} is next, {state.attempt} attempts at it so far"
    print(f"{state.round} rounds done; {ended}")


def run_coordinator(arguments: Namespace) -> None:
    """Rounds until they are done."""
    from .member import Coordinating, coordinate, default_home

    report = coordinate(
        Coordinating(
            file=arguments.file, state=arguments.state, keys=arguments.keys or arguments.file.parent,
            home=arguments.home or default_home(), rounds=arguments.rounds, rehearse=arguments.rehearse,
            wait_s=arguments.wait, grace_s=arguments.grace,
        ),
        teller(arguments.json_lines),
    )  # fmt: skip
    if arguments.report:
        report.write(arguments.report)
    if not arguments.json_lines:
        before, after = (percent(report.accuracy[key]) for key in ("before", "after"))
        print(f"{report.rounds} rounds, {report.protection}; accuracy {before} before, {after} after; {report.seconds:.1f} s")
        if report.adapter:
            print(f"adapter {report.adapter[:12]} is kept here and by {', '.join(report.delivered) or 'nobody else'}")


def run_member(arguments: Namespace) -> None:
    """Serve letters until stopped."""
    from ..core import config
    from .member import Joining, default_home, join

    settings = config.load(arguments.config)
    joining = Joining(
        file=arguments.file, data=arguments.data or settings.training.data, home=arguments.home or default_home(),
        once=arguments.once, rehearse=arguments.rehearse, wait_s=arguments.wait,
    )  # fmt: skip
    join(joining, settings, teller(arguments.json_lines))


def list_adapters(arguments: Namespace) -> None:
    """A table."""
    from .registry.registry import SHOWN, Registry

    registry = Registry(arguments.home)
    active = registry.active()
    for name in registry.list():
        card = registry.card(name)
        mark = "*" if name == active else " "
        scores = f"{percent(card.accuracy_before)} → {percent(card.accuracy_after)}"
        print(f"{mark} {name[:SHOWN]}  {card.name:<20} {card.rounds:>3} rounds  {card.protection:<7} {scores}")
    if not registry.list():
        print("no adapters here yet; join a federation: quietchoir join FED --data FOLDER")


def show_adapter(arguments: Namespace) -> None:
    """The card, checked, as JSON."""
    import dataclasses
    import json

    from .registry.registry import Registry

    registry = Registry(arguments.home)
    print(
        json.dumps(
            {**dataclasses.asdict(registry.card(arguments.adapter)), "path": str(registry.path(arguments.adapter))}, indent=2
        )
    )


def activate_adapter(arguments: Namespace) -> None:
    """Move the pointer."""
    from .registry.registry import Registry

    name = Registry(arguments.home).activate("" if arguments.adapter == "none" else arguments.adapter)
    print(f"active: {name or 'the bare model'}; a running node takes it through its page or at its next start")


def rollback_adapter(arguments: Namespace) -> None:
    """Move the pointer back."""
    from .registry.registry import Registry

    print(f"active: {Registry(arguments.home).rollback() or 'the bare model'}")


def teller(json_lines: bool) -> Callable[[Event], None]:
    """Says what happens: JSON lines for programs, short lines for people."""
    from .member import line

    def tell(event: Event) -> None:
        if json_lines:
            print(line(event), flush=True)
        elif (text := sentence(event)) is not None:
            print(text, file=sys.stderr, flush=True)

    return tell


def sentence(event: Event) -> str | None:
    """An event for people; None for those that only programs want."""
    kind = event["event"]
    if kind == "round":
        loss = event["loss"]
        words = f"round {event['round']}: {len(event['parties'])} members, {event['seconds']} s"  # type: ignore[arg-type]
        shown = f"{loss:.3f}" if isinstance(loss, float) else "not measured"
        return f"{words}, loss {shown}, accuracy before it {percent(event['accuracy'])}"
    sentences = {
        "waiting": "{present} of {roster} members are here, need {minimum}",
        "aborted": "round {round} aborted, the adapter is unchanged: {reason}",
        "open": "the door is open at {address}",
        "connected": "connected to {address}",
        "disconnected": "the coordinator {reason}; trying again",
        "joining": "joining {federation} as {name}",
        "train": "round {round}: training",
        "trained": "round {round}: trained on {tokens} answer tokens, loss {loss:.3f}",
        "refused": "refused: {reason}",
        "adopted": "a finished adapter came: {adapter}",
    }
    return sentences[str(kind)].format(**event) if kind in sentences else None


def percent(share: object) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %" if isinstance(share, float) else "not measured"
