"""The owner's verbs: `federation invite | enroll | revoke | rotate | change | lock`.

Knows flags and words for people. Always: heavy imports happen inside the function that runs a verb;
each verb signs one entry of the chain, or makes a token.
"""

import dataclasses
import time
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.screen import counted
from ..spec import flags, privacy_budget

if TYPE_CHECKING:
    from ..spec.policy import AdapterTable, Policy
    from ..spec.privacy_budget import Budgeted

DAY_S = 86400
LOCKED = {
    "passphrase": "a passphrase opens them from now on",
    "keyring": "this user's keyring opens them from now on",
    "none": "whoever reads the files has them from now on",
}
# what `change` may touch
CHANGED = ("protection", "recipe", "privacy", "guard", "aggregation", "schedule", "prompt")


def register(actions: "_SubParsersAction[ArgumentParser]") -> None:
    """Add them."""
    invite = actions.add_parser(
        "invite", help="make a one-time token that lets one node in under one name"
    )
    invite.add_argument("--name", required=True, help="the member's name in the roster")
    invite.add_argument(
        "--days",
        type=float,
        default=7.0,
        metavar="N",
        help="the invitation is good for so long (default 7)",
    )

    enroll = actions.add_parser("enroll", help="add a member and sign the next version")
    enroll.add_argument(
        "--name", help="the member's name in the roster; an answered invitation has one"
    )
    how = enroll.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--public", metavar="CARD", help="the node's public card, or a file that holds it"
    )
    how.add_argument(
        "--answer",
        metavar="LINE",
        help="what `federation accept` printed on the node, or a file that holds it",
    )
    enroll.add_argument(
        "--days",
        type=float,
        default=0.0,
        metavar="N",
        help="the member's key is good for so long; 0: always",
    )

    enroll.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="columns of the adapter that it trains; default: what an answer names, else all",
    )

    revoke = actions.add_parser(
        "revoke", help="take a member out and sign the next version; its keys never come back"
    )
    revoke.add_argument("--name", required=True)
    revoke.add_argument(
        "--reason", default="", help="a few words for the log that all members can read"
    )

    rotate = register_rotate(actions)
    change = actions.add_parser("change", help="other rules, signed as the next version")
    change.add_argument(
        "--days", type=float, metavar="N", help="the file is good for so long from now; 0: always"
    )
    change.add_argument(
        "--member-rank",
        action="append",
        default=[],
        metavar="NAME=N",
        help="a member trains N columns of the adapter; 0: all",
    )
    change.add_argument(
        "--variant", action="append", default=[], metavar="NAME[=SHA256]",
        help="another quantisation of the same model, which members may hold instead: on this "
             "disk, or named by its digest",
    )  # fmt: skip
    flags.add(change, *CHANGED, left_out="default: as it is")
    privacy_budget.add(change)

    for action, run in (
        (invite, invite_member),
        (enroll, enroll_member),
        (revoke, revoke_member),
        (rotate, rotate_key),
        (change, change_rules),
    ):
        action.add_argument("file", type=Path, metavar="FED")
        if action is not invite:
            action.add_argument(
                "--owner-key", type=Path, metavar="FILE", help="default: owner.key beside FED"
            )
        action.set_defaults(run=run)

    lock = actions.add_parser(
        "lock", help="lock owner.key, coordinator.key and tls.key on the disk from now on"
    )
    lock.add_argument(
        "folder", type=Path, metavar="DIR", help="where those of them lie that are to be locked"
    )
    lock.add_argument("--protect", choices=["passphrase", "keyring", "none"], required=True)
    lock.set_defaults(run=lock_keys)


def register_rotate(actions: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `rotate`, without its file."""
    rotate = actions.add_parser("rotate", help="replace a key and sign the next version")
    which = rotate.add_mutually_exclusive_group(required=True)
    which.add_argument("--member", metavar="NAME", help="with --public: the new card of a node")
    which.add_argument("--coordinator", action="store_true", help="the key that signs tasks")
    which.add_argument(
        "--certificate",
        action="store_true",
        help="the key and certificate of the coordinator's door",
    )
    which.add_argument(
        "--owner", action="store_true", help="the owner's own key: the old one signs the new one in"
    )
    rotate.add_argument("--public", metavar="CARD", help="with --member")
    rotate.add_argument(
        "--days",
        type=float,
        default=0.0,
        metavar="N",
        help="with --member: the new key is good for so long",
    )
    rotate.add_argument(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="with --certificate: the coordinator moves there",
    )
    rotate.add_argument(
        "--protect",
        choices=["passphrase", "keyring", "none"],
        help="lock the new key as it is written; default: as the old one",
    )
    rotate.add_argument(
        "--keys", type=Path, metavar="DIR", help="coordinator.key and tls.key; default: beside FED"
    )
    return rotate


def invite_member(arguments: Namespace) -> None:
    """The token on standard output, what to do with it on standard error."""
    import sys

    from ..membership import invitation, roster

    token = invitation.invite(
        roster.load(arguments.file), arguments.file.parent, arguments.name, arguments.days
    )
    print(
        f"good for {arguments.days:g} days, once; give it to {arguments.name} in private: whoever "
        f"answers it first is in",
        file=sys.stderr,
    )
    print(token)


def enroll_member(arguments: Namespace) -> None:
    """Add one member."""
    from ...core.errors import ConfigError
    from ..membership import invitation, ownership, roster
    from ..membership.keys import PublicCard

    folder, used, rank = arguments.file.parent, "", arguments.rank or 0
    if arguments.answer:
        name, card, used, limit = invitation.check(
            text_of(arguments.answer), roster.read(arguments.file).policy, folder
        )
        whole = roster.read(arguments.file).policy.adapter.rank
        rank = (limit if limit < whole else 0) if arguments.rank is None else rank
        if arguments.name not in (None, name):
            raise ConfigError(
                f"--name {arguments.name}, but the invitation was for {name}; leave --name out"
            )
    elif arguments.name:
        name, card = arguments.name, PublicCard.parse(text_of(arguments.public))
    else:
        raise ConfigError("--public needs --name: the member's name in the roster")
    policy = ownership.enroll(
        arguments.file,
        owner_key(arguments),
        name,
        card,
        expires=until(arguments.days),
        invitation=used,
        rank=rank,
    )
    if used:
        invitation.close(folder, used)
    print(f"{name} is in; {now(policy)}")


def revoke_member(arguments: Namespace) -> None:
    """Take one member out."""
    from ..membership.ownership import revoke

    policy = revoke(arguments.file, owner_key(arguments), arguments.name, arguments.reason)
    print(f"{arguments.name} is out; {now(policy)}")
    print(
        "give the file to the coordinator: a running one takes it between rounds and hands it on; "
        "until then the old one holds"
    )


def rotate_key(arguments: Namespace) -> None:
    """Replace one key."""
    from ...core.errors import ConfigError
    from ..membership import ownership
    from ..membership.keys import PublicCard

    file, key, keys = arguments.file, owner_key(arguments), arguments.keys or arguments.file.parent
    if arguments.member and arguments.protect:
        raise ConfigError(
            "--protect locks a key that is made here; a member's is made, and "
            "locked, on its own node"
        )
    if arguments.member:
        if not arguments.public:
            raise ConfigError(
                "--member needs --public: the line of `quietchoir federation identity` on the node "
                "with its new keys"
            )
        card = PublicCard.parse(text_of(arguments.public))
        policy = ownership.rotate_member(
            file, key, arguments.member, card, expires=until(arguments.days)
        )
        print(f"{arguments.member} has a new key; {now(policy)}")
    elif arguments.owner:
        policy = ownership.rotate_owner(file, key, arguments.protect)
        print(f"the federation has a new owner's key in {key}; {now(policy)}")
    else:
        policy = (
            ownership.rotate_coordinator(file, key, keys, arguments.protect)
            if arguments.coordinator
            else ownership.rotate_certificate(file, key, keys, arguments.address, arguments.protect)
        )
        print(
            f"the coordinator has a new key in {keys}; {now(policy)}; start it again; nodes that "
            f"are away need the file"
        )


def lock_keys(arguments: Namespace) -> None:
    """The keys in a folder under another lock."""
    from ..membership import locking, unlock

    asked = unlock.Asked()
    # who cannot open the keys is not asked for a new passphrase
    locking.readable(arguments.folder, asked)
    names = locking.protect(
        arguments.folder, unlock.choose(arguments.protect, arguments.folder), asked=asked
    )
    print(f"{', '.join(names)} in {arguments.folder}: {LOCKED[arguments.protect]}")


def change_rules(arguments: Namespace) -> None:
    """Other values in the tables."""
    from ...core.errors import ConfigError
    from ..membership import roster
    from ..membership.ownership import change

    tables: dict[str, Any] = dict(flags.given(arguments, *CHANGED))
    if "prompt" in tables:
        prompt = roster.read(arguments.file).policy.prompt
        try:
            later = prompt.changed(**tables["prompt"])
        except ValueError as error:
            raise ConfigError(f"{arguments.file}: {error}") from error
        if later.system != prompt.system:
            tables["prompt"]["system"] = later.system
    lines = budget_of_change(arguments, tables)
    if arguments.days is not None:
        tables["expires"] = until(arguments.days)
    if arguments.member_rank:
        tables["ranks"] = dict(rank_given(text) for text in arguments.member_rank)
    if arguments.variant:
        tables["model"] = more_variants(arguments.file, arguments.variant)
    if not tables:
        raise ConfigError(
            "nothing to change was named; `quietchoir federation change --help` lists what can be"
        )
    policy = change(arguments.file, owner_key(arguments), tables)
    for line in lines:
        print(f"privacy: {line}")
    again = (
        ""
        if set(tables) <= {"expires", "ranks"}
        else ("; coordinator and nodes must be started again")
    )
    print(f"{now(policy)}{again}")


def rank_given(text: str) -> tuple[str, int]:
    """NAME=N. Raises ConfigError for anything else."""
    from ...core.errors import ConfigError

    name, _, number = text.partition("=")
    if not name or not number.isdigit():
        raise ConfigError(
            f"--member-rank {text}: expected NAME=N, for example ann=4; 0: the whole adapter"
        )
    return name, int(number)


def more_variants(file: Path, given: list[str]) -> dict[str, object]:
    """The model's table with these variants besides those it has.

    Raises:
        ModelNotFoundError: not on this disk. ConfigError: not the same model.
    """
    from ..membership import roster
    from ..model_files import variant_given
    from ..spec.policy import with_variants

    model = roster.read(file).policy.model
    return {"variants": with_variants(model, [variant_given(model, text) for text in given])}


def budget_of_change(arguments: Namespace, tables: dict[str, Any]) -> list[str]:
    """Put the noise for `--epsilon` into the tables that change, if it was given; what it means,
    for people.

    Raises:
        ConfigError: as `with_budget`, tables that make no federation, or a flag that does
        nothing.
    """
    from ...core.errors import ConfigError
    from ..membership import roster
    from ..model_files import name_here

    policy = roster.read(arguments.file).policy
    try:
        later = {
            name: dataclasses.replace(getattr(policy, name), **tables.get(name, {}))
            for name in (*flags.TABLES, "distillation")
        }
    except ValueError as error:
        raise ConfigError(f"{arguments.file}: {error}") from error
    asked = dict(tables)
    named = policy.model.name if arguments.epsilon is None else name_here(policy.model)
    budget = with_budget(arguments, later, tables.get("privacy", {}), named)
    flags.check_used(asked, later)
    if budget is None:
        return []
    tables["privacy"] = dataclasses.asdict(budget.privacy)
    return [*budget.lines(), "what earlier rounds have cost stays spent: the account adds up both"]


def owner_key(arguments: Namespace) -> Path:
    """Where the owner's key lies."""
    return Path(arguments.owner_key or arguments.file.parent / "owner.key")


def until(days: float) -> int:
    """The moment after so many days; 0 for 0.

    Raises:
        ConfigError: a moment that is past, or that has no date.
    """
    from ...core.errors import ConfigError
    from ..spec.policy import LAST_MOMENT

    if not 0 <= days * DAY_S < LAST_MOMENT - time.time():  # neither does nan lie between them
        raise ConfigError(f"--days {days:g}: give days from now on, 0 for always")
    return int(time.time() + days * DAY_S) if days else 0


def now(policy: "Policy") -> str:
    """Where the file is now."""
    members = counted(len(policy.members), "member")
    return f"{policy.name} is now version {policy.version} with {members}"


def with_budget(
    arguments: Namespace, tables: dict[str, Any], given: dict[str, Any], model: str
) -> "Budgeted | None":  # fmt: skip
    """Put the noise for `--epsilon` into tables["privacy"], if it was given.

    Raises:
        ConfigError: as `budgeting.budgeted`; or `--delta` alone.
    """
    from ...core.errors import ConfigError

    if arguments.epsilon is None:
        if arguments.delta is not None:
            raise ConfigError(
                "--delta needs --epsilon; to set the field of the file alone, use --privacy-delta"
            )
        return None
    size = tables["distillation"].size or known_size(tables["adapter"], model)
    budget = privacy_budget.budgeted(arguments.epsilon, arguments.delta, tables, given, size)
    tables["privacy"] = budget.privacy
    return budget


def known_size(adapter: "AdapterTable", model: str) -> int | None:
    """Values of the adapter, if the model is on this disk."""
    from ...core.errors import QuietchoirError

    try:
        return adapter_size(adapter, model)
    except QuietchoirError:
        return None


def text_of(given: str) -> str:
    """What was given, or what the file of that name holds.

    Raises:
        ConfigError: nothing at all, or a file that holds no text.
    """
    from ...core.errors import ConfigError

    if not given.strip():
        raise ConfigError(
            "an empty text was given; give the whole line, or the name of a file that holds it"
        )
    path = Path(given)
    try:
        return path.read_text("utf-8") if len(given) < 128 and path.is_file() else given
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: no text can be read there ({error}); give the line itself, or a text file"
        ) from error


def adapter_size(adapter: "AdapterTable", model: str) -> int:
    """Values of the adapter that is trained on the model of this name.

    Raises:
        ModelError: the model is not on this disk, or does not fit the adapter's table.
    """
    from ...core.errors import ModelFileError
    from ...core.models.hub import catalog
    from ...core.models.lora.adapter import Layout
    from ...core.models.weights import load

    try:
        return Layout(adapter.shape(), load(catalog.find(model)).architecture).size
    except ValueError as error:
        raise ModelFileError(str(error)) from error
