"""The verbs `federation identity | init | accept | show | log`: who belongs, and under which rules.

Knows flags and words for people. What the owner does later stands in `owner_commands`.
Always: heavy imports happen inside the function that runs a verb.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.prompt import HOUSEHOLD
from ...core.screen import one_line
from ..spec import flags, privacy_budget
from . import ownership

if TYPE_CHECKING:
    from ..membership.log import Change
    from ..spec.policy import DistillationTable, Policy


def register(actions: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `federation identity | init | accept | show | log`, and the owner's."""
    me = actions.add_parser(
        "identity", help="print this node's public card: give it to the federation's owner"
    )
    me.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
    me.add_argument(
        "--protect",
        choices=["passphrase", "keyring", "none"],
        help="lock this node's private keys on the disk from now on",
    )
    me.set_defaults(run=show_identity)

    init = actions.add_parser("init", help="found a federation: keys, certificate, signed file")
    init.add_argument(
        "folder", type=Path, metavar="DIR", help="where federation.toml and the keys go"
    )
    init.add_argument(
        "--name", required=True, help="what members call it: lower-case letters, digits, dashes"
    )
    init.add_argument(
        "--address",
        default="127.0.0.1:8790",
        metavar="HOST:PORT",
        help="where the coordinator answers (default: %(default)s, this machine alone)",
    )
    init.add_argument(
        "--model",
        default="smollm2-135m-instruct",
        metavar="NAME",
        help="a model on this disk, by name or path; members need the same file, wherever it lies "
        "there (default: %(default)s)",
    )
    which = init.add_mutually_exclusive_group()
    which.add_argument("--model-digest", metavar="SHA256", help="instead of reading the model file")
    which.add_argument(
        "--rehearse",
        action="store_true",
        help="no model at all: to try keys and network with `coordinate --rehearse N` and "
        "`join --rehearse N`",
    )
    which.add_argument(
        "--distill",
        type=Path,
        metavar="FILE",
        help="members bring models of their own, and compare what these say of the answers of a "
        'public set: lines of {"messages": […], "answers": […]}',
    )
    init.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME[=SHA256]",
        help="another quantisation of the model, on this disk or named by its digest, which "
        "members may hold instead; may be given again",
    )
    init.add_argument(
        "--protect",
        choices=["passphrase", "keyring", "none"],
        default="none",
        help="lock the three private keys as they are made (default: %(default)s)",
    )
    flags.add(init)
    privacy_budget.add(init)
    init.set_defaults(run=init_federation)

    accept = actions.add_parser(
        "accept", help="answer an invitation with this node's card: give the answer to the owner"
    )
    accept.add_argument(
        "token", metavar="TOKEN", help="the line that the owner gave you, or a file that holds it"
    )
    accept.add_argument(
        "--file",
        type=Path,
        metavar="FED",
        help="also check that this file is of the federation that invites",
    )
    accept.add_argument(
        "--rank", type=int, metavar="N",
        help="columns of the adapter that this node can train (default: training.max_rank of its "
             "configuration)",
    )  # fmt: skip
    accept.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
    accept.set_defaults(run=accept_invitation)

    show = actions.add_parser(
        "show", help="check a federation file and print it, and what joining would cost"
    )
    log = actions.add_parser(
        "log", help="check a federation file and print every change it went through"
    )
    for action, run in ((show, show_federation), (log, show_log)):
        action.add_argument("file", type=Path, metavar="FED")
        action.set_defaults(run=run)
    ownership.register(actions)


def show_identity(arguments: Namespace) -> None:
    """Print the public card, and nothing else; lock the private keys first if asked to."""
    from ..client_node import default_home
    from ..membership import keys, unlock

    home = arguments.home or default_home()
    if arguments.protect is None:
        own = keys.load_or_create(home)
    else:
        asked = unlock.Asked()
        if (home / keys.IDENTITY_FILE).exists():
            # who cannot open the keys is not asked for a new passphrase
            keys.load_or_create(home, asked=asked)
        own = keys.protect(
            home, unlock.choose(arguments.protect, home / keys.IDENTITY_FILE), asked=asked
        )
    print(own.card.text)


def init_federation(arguments: Namespace) -> None:
    """Make keys and file."""
    import dataclasses

    from ...core.errors import ConfigError
    from ...core.models.hub import catalog
    from ..membership import unlock
    from ..membership.founding import FILE, Founding, create_federation
    from ..model_files import remember, title, variant_given
    from ..spec.address import Address
    from ..spec.policy import ModelTable
    from ..training.synthetic_task import REHEARSAL_DIGEST, REHEARSAL_MODEL

    if arguments.distill:
        from ..training.distillation import ANY_DIGEST, ANY_MODEL
    try:
        Address.parse(arguments.address)  # a wrong one is said before a model's file is looked for
    except ValueError as error:
        raise ConfigError(f"federation init: {error}") from error
    named, digest = title(arguments.model), arguments.model_digest
    if arguments.rehearse:
        named, digest = REHEARSAL_MODEL, REHEARSAL_DIGEST
    elif arguments.distill:
        named, digest = ANY_MODEL, ANY_DIGEST
    elif not digest:
        digest = model_digest(arguments.model)
        if named != arguments.model:
            remember(catalog.find(arguments.model), digest)
    chosen = flags.given(arguments)
    if arguments.distill:
        chosen["recipe"] = {**DISTILLED, **chosen.get("recipe", {})}
    try:
        tables = {name: kind(**chosen.get(name, {})) for name, kind in flags.TABLES.items()}
        tables["prompt"] = HOUSEHOLD.changed(**chosen.get("prompt", {}))
        tables["distillation"] = distillation_table(arguments.distill)
        budget = ownership.with_budget(
            arguments, tables, chosen.get("privacy", {}), arguments.model
        )
        flags.check_used(chosen, tables)
        if not arguments.distill and not arguments.rehearse and not arguments.model_digest:
            ownership.adapter_size(tables["adapter"], arguments.model)  # has it so many layers?
        model = ModelTable(name=named, digest=digest)
        if arguments.variant:
            model = dataclasses.replace(
                model, variants=tuple(variant_given(model, text) for text in arguments.variant)
            )
        lock = unlock.choose(arguments.protect, arguments.folder)  # before any key exists
        policy = create_federation(
            arguments.folder,
            Founding(name=arguments.name, address=arguments.address, model=model, **tables),
            lock,
        )
    except ValueError as error:
        raise ConfigError(f"federation init: {error}") from error
    print(f"founded {policy.name}: {arguments.folder / FILE}")
    for line in [] if budget is None else budget.lines():
        print(f"privacy: {line}")
    print(f"owner's fingerprint, for members to compare: {fingerprint(policy.owner)}")
    also = f", with {arguments.distill} beside it" if arguments.distill else ""
    print(
        "next: quietchoir federation enroll, once for each member; then give the file to all of "
        f"them{also}"
    )


# What a federation's recipe is where scores are compared, unless it is said otherwise.
DISTILLED = {"server_optimizer": "fedavg", "update_range": 16.0}


def distillation_table(path: Path | None) -> "DistillationTable":
    """What the federation's file says of a public set; of none, that there is none.

    Raises:
        DataError: no such set.
    """
    from ...core.training.distillation.candidates import PublicSet
    from ..spec.policy import DistillationTable

    if path is None:
        return DistillationTable()
    public = PublicSet.read(path)
    return DistillationTable(public=public.digest, items=len(public.items), answers=public.answers)


def model_digest(name: str) -> str:
    """sha256 of a model on this disk, file or folder."""
    from ...core.models.hub import catalog
    from ...core.models.weights import digest_of

    return digest_of(catalog.find(name))


def accept_invitation(arguments: Namespace) -> None:
    """Print the answer on standard output, what it means on standard error."""
    import sys

    from ...core import config
    from ..client_node import default_home
    from ..membership import invitation, keys, roster

    home = arguments.home or default_home()
    rank = (
        config.load(arguments.config).training.max_rank
        if arguments.rank is None
        else arguments.rank
    )
    card = keys.member_keys(home).card
    token, answer = invitation.accept(
        ownership.text_of(arguments.token), card, home, max(0, rank), arguments.file
    )
    print(
        f"invited to {token.title} as {token.name} until {roster.date(token.expires)}; give this "
        f"to its owner:",
        file=sys.stderr,
    )
    print(answer)


def fingerprint(key: str) -> str:
    """32 hex digits in groups, for people to compare."""
    from ...crypto.identity.keys import PublicIdentity

    digits = PublicIdentity(bytes.fromhex(key)).fingerprint[:32]
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def show_federation(arguments: Namespace) -> None:
    """Check and print."""
    from ..membership import roster
    from ..rounds.report import ballots_sentence
    from ..spec.policy import is_over, ranks_sentence

    policy = roster.load(arguments.file)
    protection, recipe = policy.protection, policy.recipe
    until = f", until {roster.date(policy.expires)}" if policy.expires else ""
    print(f"{policy.name}, version {policy.version}, every signature valid{until}")
    print(f"  owner        {fingerprint(policy.owner)}  (compare with what the owner tells you)")
    if policy.founder not in ("", policy.owner):
        print(f"  founder      {fingerprint(policy.founder)}  (its key signed the owner's in)")
    print(one_line(f"  coordinator  {policy.coordinator.address}"))
    if (compared := policy.distillation).on:
        print(
            f"  public set   {compared.items} items of {compared.answers} answers, sha256 "
            f"{compared.public[:16]}…; every member brings a model of its own"
        )
    else:
        print(one_line(f"  model        {policy.model.name}  sha256 {policy.model.digest[:16]}…"))
    for variant in policy.model.variants:
        print(one_line(f"  or           {variant.name}  sha256 {variant.digest[:16]}…"))
    print(
        f"  adapter      rank {policy.adapter.rank}, upper {policy.adapter.upper_layers} layers, "
        f"seed {policy.adapter.seed}"
    )
    print(
        f"  protection   {protection.mode}, {protection.bits} bits, at least "
        f"{protection.min_cohort} members a sum"
    )
    print(
        f"  recipe       {recipe.rounds} rounds, lr {recipe.lr:g}, server momentum "
        f"{recipe.server_momentum:g}"
    )
    print(one_line(f"  prompt       {policy.prompt.told()}"))
    if policy.guard.open:
        print(f"  votes        {ballots_sentence(policy)}")
    for member in policy.members:
        left = f"  until {roster.date(member.expires)}" if member.expires else ""
        rank = f"  rank {member.rank}" if member.rank else ""
        over = " (over)" if is_over(member.expires) else ""
        print(f"  member       {member.name:<20} {fingerprint(member.key)}{rank}{left}{over}")
    if (ranks := ranks_sentence(policy)) is not None:
        print(f"  ranks        {ranks}")
    for cost in joining_costs(policy):
        print(one_line(f"  joining      {cost}"))


def joining_costs(policy: "Policy") -> list[str]:
    """What a member would send, receive and reveal."""
    from ...core.errors import ModelFileError, QuietchoirError
    from ..costs import cost_sentence, privacy_bound_sentence, round_cost
    from ..model_files import name_here
    from ..training.synthetic_task import REHEARSAL_DIGEST

    lines = [
        f"a sum over at least {policy.protection.min_cohort} members is opened, nothing smaller"
    ]
    if policy.protection.mode == "plain":
        lines = ["the coordinator sees each update (mode plain)"]
    try:
        size = policy.distillation.size or ownership.adapter_size(
            policy.adapter, name_here(policy.model)
        )
        lines.append(cost_sentence(round_cost(policy, policy.carried(size))))
    except ModelFileError as error:
        lines.append(f"bytes of a round: none, nobody can take part: {error}")
    except QuietchoirError:
        lines.append(
            f"bytes of a round: pull the model first (quietchoir model pull {policy.model.name})"
            if policy.model.digest != REHEARSAL_DIGEST
            else "bytes of a round: as the N of --rehearse says; a rehearsal has no model"
        )
    return [*lines, privacy_bound_sentence(policy)]


def show_log(arguments: Namespace) -> None:
    """One line an entry, oldest first."""
    from ..membership import roster

    chain = roster.read(arguments.file)
    for entry, change in zip(chain.entries, chain.changes, strict=True):
        print(
            one_line(
                f"{change.number:>4}  {roster.date(change.at)}  {entry.digest[:16]}  "
                f"{change.kind:<7} {said(change)}"
            )
        )
    print(
        f"{len(chain.entries)} entries of {chain.policy.name}, every signature valid, owner "
        f"{fingerprint(chain.policy.owner)}"
    )


def said(change: "Change") -> str:
    """What an entry changed, for people."""
    table = change.change
    if change.kind == "found":
        return f"{table['name']}, owner {fingerprint(table['owner'])}"
    if change.kind == "enroll":
        return f"{table['member']['name']}{', invited' if table.get('invitation') else ''}"
    if change.kind == "revoke":
        return f"{table['name']}{': ' + table['reason'] if table.get('reason') else ''}"
    if change.kind == "rotate":
        return ", ".join(
            f"key of {table['member']['name']}" if who == "member" else f"the {who}"
            for who in table
        )
    parts = [
        f"{name}.{key} = {new}"
        for name, value in table.items()
        if isinstance(value, dict)
        for key, new in value.items()
    ]
    return ", ".join(
        [
            *parts,
            *(f"{name} = {value}" for name, value in table.items() if not isinstance(value, dict)),
        ]
    )
