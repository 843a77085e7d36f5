"""The verbs of `quietchoir plugin`: those of an owner (list, run, search, show, install, update,
pin, verify, grant, wrap, remove) and those of an author (new, dev, test, pack).
`registry/commands.py` has those of registries and licences.
"""

import argparse
import asyncio
import dataclasses
import difflib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, PluginError, RegistryError, ToolError
from ..core.screen import one_line, typed

if TYPE_CHECKING:
    from ..core.assistant.elicitation import ElicitResult, Form
    from .manifest import Manifest
    from .registry.client import Release


def register(verbs: Any) -> None:
    """Add this folder's verbs."""
    from .registry import commands as registry_commands

    plugin = verbs.add_parser("plugin", help="plugins: find, install, update, wrap, write, publish")
    actions = plugin.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list", help="installed plugins, what they may do, and whether they can be confined here"
    )
    listing.set_defaults(run=show)
    run = actions.add_parser("run", help="one call through the sandbox")
    run.add_argument("id", metavar="ID", help="for example quietchoir/household")
    run.add_argument("tool", metavar="TOOL", help="for example HassTurnOn")
    run.add_argument(
        "arguments",
        metavar="JSON",
        nargs="?",
        default="{}",
        help="""for example '{"name": "lamp"}'""",
    )
    run.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="hand a file to the plugin, for example home.json=FILE",
    )
    run.set_defaults(run=run_once)
    install = actions.add_parser(
        "install", help="let a plugin in: one of a registry, a folder, or what pack wrote"
    )
    install.add_argument("source", metavar="ID[@VERSION]|FOLDER|FILE")
    install.add_argument(
        "--rejected", action="store_true", help="a folder or file that a reviewer rejected, too"
    )
    install.set_defaults(run=install_one)
    grant = actions.add_parser(
        "grant", help="fill in what a plugin asks its owner for: folders, hosts, variables"
    )
    grant.add_argument("id", metavar="ID|FOLDER")
    for option, value, words in (
        ("--read", "DIR", "show it a folder"),
        ("--write", "DIR", "let it read, change and delete in a folder"),
        ("--host", "HOST[:PORT]", "let it connect there; more than one if repeated"),
        ("--env", "VALUE", "a variable, or a secret"),
    ):
        grant.add_argument(option, action="append", default=[], metavar=f"NAME={value}", help=words)
    grant.set_defaults(run=grant_one)
    _register_market(actions, install)
    registry_commands.register(actions)
    remove = actions.add_parser("remove", help="take an installed plugin away")
    remove.add_argument("id", metavar="ID")
    remove.add_argument("--forget", action="store_true", help="its storage and settings too")
    remove.set_defaults(run=remove_one)
    wrap = actions.add_parser(
        "wrap",
        help="let any MCP server in: plugin wrap -- COMMAND …",
        description="Starts the server confined, shows what it offers and what it will be able to "
        "use, and installs it if its owner says yes. Nothing is downloaded.",
    )
    wrap.add_argument("--id", metavar="ID", help="default: local/ and the program's name")
    wrap.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the server and its packages are installed"
    )
    wrap.add_argument(
        "--servers", type=Path, metavar="FILE", help="a file with mcpServers; SERVER names one"
    )
    wrap.add_argument(
        "--read", action="append", default=[], type=Path, metavar="DIR", help="show it a folder"
    )
    wrap.add_argument(
        "--write", action="append", default=[], type=Path, metavar="DIR", help="let it change one"
    )
    wrap.add_argument(
        "--host", action="append", default=[], metavar="HOST[:PORT]", help="let it connect there"
    )
    wrap.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable, or a secret"
    )
    wrap.add_argument("--memory-mb", type=int, metavar="N", help="default: 512")
    wrap.add_argument("command", nargs="+", metavar="COMMAND|SERVER")
    wrap.set_defaults(run=wrap_one)
    install.add_argument(
        "--same",
        action="store_true",
        help="it is the next version of the one that is here, and is given what that one kept",
    )
    for parser in (install, wrap):
        parser.add_argument("--yes", action="store_true", help="ask nothing")
    new = actions.add_parser("new", help="begin a plugin of your own")
    new.add_argument("folder", type=Path, metavar="FOLDER")
    new.add_argument("--id", required=True, metavar="PUBLISHER/NAME")
    new.set_defaults(run=new_one)
    dev = actions.add_parser(
        "dev", help="write what a plugin really offers into its manifest, and call a tool"
    )
    test = actions.add_parser("test", help="does a plugin start confined and keep its manifest?")
    pack = actions.add_parser("pack", help="test a plugin and write it as one file")
    pack.add_argument("--out", type=Path, metavar="FILE")
    for parser, act in ((dev, dev_one), (test, test_one), (pack, pack_one)):
        parser.add_argument("folder", type=Path, metavar="FOLDER")
        parser.set_defaults(run=act)
    profile = actions.add_parser(
        "profile",
        help="what macOS's sandbox-exec is to hold a plugin to, as text (no Mac has tried it)",
        description="Prints a profile for sandbox-exec -f. Here plugins run on Linux alone; "
        "who starts one on a Mac with this text has a weaker sandbox, which nobody has tried.",
    )
    profile.add_argument("folder", type=Path, metavar="FOLDER")
    profile.add_argument(
        "--scratch", type=Path, required=True, metavar="DIR", help="its own, empty"
    )
    profile.set_defaults(run=profile_one)
    dev.add_argument("tool", nargs="?", metavar="TOOL")
    dev.add_argument("arguments", nargs="?", default="{}", metavar="JSON")


def profile_one(chosen: argparse.Namespace) -> int:
    """Print a plugin's profile, with the folders that its owner has filled in."""
    from . import grants, installing, skills
    from .running import SDK
    from .sandbox import seatbelt

    terms = skills.read(chosen.folder)
    filled_in = grants.read(installing.trial_folder(terms.id, chosen.folder))
    places = seatbelt.Places(
        python=Path(sys.base_prefix).resolve(),
        program=[chosen.folder.resolve(), SDK.parent.resolve()],
        scratch=chosen.scratch.resolve(),
        folders={name: path.resolve() for name, path in filled_in.folders.items()},
    )
    print(seatbelt.profile(terms.head, places), end="")
    return 0


def _register_market(actions: Any, install: argparse.ArgumentParser) -> None:
    search = actions.add_parser("search", help="plugins by words, in the registries you trust")
    search.add_argument("words", nargs="*", metavar="WORD")
    search.set_defaults(run=search_all)
    about = actions.add_parser("show", help="a plugin of a registry: permissions, reviews, price")
    about.add_argument("id", metavar="ID[@VERSION]")
    about.set_defaults(run=show_one)
    update = actions.add_parser(
        "update", help="newer versions of what came from a registry: shows what is new, and asks"
    )
    update.add_argument("ids", nargs="*", metavar="ID", help="default: all that are not pinned")
    update.add_argument("--look", action="store_true", help="change nothing: what is new, revoked")
    update.add_argument(
        "--yes", action="store_true", help="ask nothing; what wants to use more stays as it is"
    )
    update.set_defaults(run=update_all)
    pin = actions.add_parser("pin", help="let update leave a plugin at its version")
    pin.add_argument("id", metavar="ID")
    pin.add_argument("--off", action="store_true", help="no longer")
    pin.set_defaults(run=pin_one)
    verify = actions.add_parser(
        "verify", help="installed plugins against what their registries signed and logged"
    )
    verify.set_defaults(run=verify_all)
    for parser in (about, install):
        parser.add_argument("--registry", default="", metavar="NAME", help="where two have it")


def show(chosen: argparse.Namespace) -> int:
    """Print installed plugins and the sandbox's state."""
    from ..core import config
    from . import installing
    from .host import available
    from .registry import lock
    from .running import plugin_folder, refused_by
    from .sandbox.probe import probe

    report = probe()
    plugins = config.load(chosen.config).plugins
    let_in = installing.installed()
    found = available((*plugins.folders, *let_in))
    origins = lock.origins(found.manifests) if let_in else {}
    for plugin_id, terms in sorted(found.manifests.items()):
        state = "enabled" if plugin_id in plugins.enabled else "not enabled"
        if found.folders[plugin_id] in let_in:
            origin = origins.get(plugin_id)
            state = f"installed from {origin.registry}" if origin else "installed"
            state = one_line(lock.halted(terms)) or state
        if why := refused_by(report.launcher, terms, plugin_folder(plugin_id)):
            state = f"{state}; off: {one_line(why)}"
        print(f"{plugin_id} {terms.head.version}  {state}, {len(terms.tools)} tools")
        print(f"    {one_line(terms.head.description)}")
        print(f"    may use: {'; '.join(terms.head.asks())}")
    for folder, reason in sorted(found.refused.items()):
        print(f"{folder}  refused: {one_line(str(reason))}")
    told = "; ".join(filter(None, (report.reason, report.advice)))
    print(f"sandbox: {'' if report.available else 'none. '}{told}")
    return 0


def run_once(chosen: argparse.Namespace) -> int:
    """Call one tool and print its text; exit status 1 if the tool says that it failed."""
    from ..core import config
    from ..core.assistant.tools import ALONE, CallContext
    from ..core.toolcall import ToolCall
    from . import grants, installing
    from .host import PluginHost, available

    arguments = arguments_of(chosen.arguments)
    handed: dict[str, Path] = {}
    for pair in chosen.file:
        name, sign, path = pair.partition("=")
        if not sign:
            raise ConfigError(f"--file {pair!r} must be NAME=PATH")
        handed[name] = Path(path)
    settings = config.load(chosen.config)
    limits = settings.plugins
    found = available((*limits.folders, *installing.installed()))
    if chosen.id not in found.manifests:
        raise ConfigError(f"no plugin is called {chosen.id!r}; {found.told()}")
    host = PluginHost(
        dataclasses.replace(limits, enabled=(chosen.id,)),
        files={chosen.id: handed},
        installed=False,
        reads=grants.named_in(settings),
        elicits=sys.stdin.isatty(),
    )

    async def once() -> int:
        try:
            await host.start()
            runs = host.report.available and host.plugins[chosen.id].disabled is None
            if runs and chosen.tool not in {tool.name for tool in host.tools()}:
                known = [tool.name for tool in host.tools()]
                near = difflib.get_close_matches(chosen.tool, known, n=3) or known[:3]
                raise ToolError(
                    f"{chosen.id} has no tool {chosen.tool!r}; among its {len(known)} "
                    f"tools are {', '.join(near)}"
                )
            context = CallContext(elicit=at_terminal) if sys.stdin.isatty() else ALONE
            result = await host.call(ToolCall(chosen.tool, arguments), None, context)
        finally:
            await host.stop()
        print(result.text)
        return 0 if result.ok else 1

    return asyncio.run(once())


async def at_terminal(form: "Form") -> "ElicitResult":
    """Put a plugin's form to whoever sits here."""
    from ..core.assistant.terminal import fill_in

    return await fill_in(form, typed_line, lambda text: print(text, end="", flush=True))


async def typed_line(prompt: str) -> str:
    """One line of a terminal's, read once it is there: whoever gives up waiting leaves nothing
    behind that reads what is typed afterwards.

    Raises: as `typed`.
    """
    print(prompt, end="", flush=True)
    loop, there = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, there.set)
    try:
        await there.wait()
    except asyncio.CancelledError:
        print()  # what comes next begins a line
        raise
    finally:
        loop.remove_reader(sys.stdin)
    return typed("")


def arguments_of(text: str) -> dict[str, Any]:
    """A tool's arguments. Raises: ConfigError: no JSON object."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"JSON = {text!r} is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ConfigError(f"JSON = {text!r} must be an object, for example " + '{"name": "lamp"}')
    return arguments


def install_one(chosen: argparse.Namespace) -> int:
    """Show what a plugin asks for, ask, and copy it in."""
    import tempfile

    from . import installing
    from .manifest import ID
    from .registry import lock

    known = others(chosen)
    if ID.fullmatch(chosen.source.partition("@")[0]):
        if Path(chosen.source).exists():
            raise ConfigError(
                f"{chosen.source} is here, and the name of a plugin: write ./{chosen.source} for it"
            )
        return install_listed(chosen, known)
    with tempfile.TemporaryDirectory() as folder:
        terms = installing.open_bundle(Path(chosen.source), Path(folder))
        installing.require_place(terms, known)  # before anybody is asked
        if why := lock.revoked(terms.id, terms.head.version):
            raise RegistryError(f"{terms.id} {terms.head.version} is {why}")
        if lock.rejections(digest := installing.digest_of(installing.pack(terms))):
            if not chosen.rejected:
                raise RegistryError(
                    f"{terms.id}: a reviewer rejected these very bytes (plugin show {terms.id} "
                    f"says who and why, and whether it stands); --rejected installs them"
                )
            print("a reviewer rejected these very bytes; installed because you said --rejected")
        if not agreed(terms, known.get(terms.id), chosen.yes):
            return 1
        left = installing.left_over(terms)
        same = bool(left) and (chosen.same or succeeds(terms.id, left, chosen.yes))
        installing.install(terms, known, same=same)
        lock.prune(terms.id, digest)  # it came from nobody
    if left and not same:
        print(f"{', '.join(map(one_line, left))} of the one before: set aside, not given to it")
    print(f"installed {terms.id}; try: quietchoir plugin run {terms.id} TOOL")
    return 0


def install_listed(chosen: argparse.Namespace, known: "dict[str, Manifest]") -> int:
    """One of a registry: its reviews first, then as any other."""
    from . import installing, market

    plugin_id, _, version = chosen.source.partition("@")
    proposal = market.propose(plugin_id, version, known, chosen.registry)
    describe(proposal.release)
    if not agreed(proposal.terms, proposal.before, chosen.yes):
        return 1
    left = [] if proposal.same_author else installing.left_over(proposal.terms)
    same = bool(left) and (chosen.same or succeeds(plugin_id, left, chosen.yes))
    market.install(proposal, known, same=same)
    if left and not same:
        print(f"{', '.join(map(one_line, left))} of the one before: set aside, not given to it")
    print(f"installed {plugin_id}; try: quietchoir plugin run {plugin_id} TOOL")
    return 0


def describe(release: "Release") -> None:
    """Who stands for a release, and what they looked at."""
    said = release.listing
    print(f"{said.id} {said.version} of {release.registry}, sha256 {release.sha256}")
    print(f"price: {one_line(said.price) or 'free'}; licence {one_line(said.licence)}")
    if said.price:
        shop = f", sold at {one_line(said.shop)}" if said.shop else ""
        print(f"it does not run without a licence{shop}; then: plugin licence add FILE")
    commit = f", made from commit {one_line(said.commit)}" if said.commit else ""
    print(f"signed by its author, key {said.author_key}{commit}")
    names = {key: name for name, key in release.policy.reviewers.items()}
    for one in release.reviews:
        when = time.strftime("%Y-%m-%d", time.gmtime(one.at))
        who = one_line(names.get(one.key, "somebody who is no reviewer any more"))
        print(f"{one.verdict} by {who}, {when}: checked {', '.join(one.checked) or 'nothing'}")
        if one.commit or one.notes:
            print(f"  commit {one_line(one.commit) or 'none'}; {one_line(one.notes)}")
        print(f"  the scan found: {'; '.join(map(one_line, one.found)) or 'nothing'}")
    for scanned in dict.fromkeys(one.scanned for one in release.reviews):
        print(f"the scan looks for: {one_line(scanned)}")
    print(f"reviews: {release.shortfall or 'enough'}")


def search_all(chosen: argparse.Namespace) -> int:
    """Print what is offered."""
    from . import market

    rows = market.search(chosen.words)
    for row in rows:
        asks = ", ".join(map(str, row.get("sensitive", ())))
        price = f", {row['price']}" if row.get("price") else ""
        print(f"{row['id']} {row['version']}  {row['registry']}{one_line(price)}")
        if row["revoked"]:
            print(f"    {one_line(row['revoked'])}")
        print(f"    {one_line(str(row.get('description', '')))}")
        print(f"    asks for: {asks or 'nothing that takes a second reviewer'}")
    if not rows:
        print("nothing with these words")
    return 0


def show_one(chosen: argparse.Namespace) -> int:
    """Print one release; nothing is installed."""
    from . import market
    from .registry import lock

    plugin_id, _, version = chosen.id.partition("@")
    release = market.find(plugin_id, version, chosen.registry)
    describe(release)
    if why := lock.revoked(plugin_id, release.listing.version):
        print(one_line(why))
    print(one_line(release.listing.description))
    print(f"may use: {'; '.join(map(one_line, release.listing.asks))}")
    for tool in release.listing.tools:
        print(f"  {one_line(tool)}")
    return 0


def update_all(chosen: argparse.Namespace) -> int:
    """Look what is new; show what each newer version wants; install those that its owner wants."""
    from . import market
    from .registry import lock

    known, failed = others(chosen), 0
    for name, why in market.look().items():
        if why:
            print(f"{name}: {one_line(why)}")
    for plugin_id in lock.origins(known):
        if why := lock.halted(known[plugin_id]):
            told = one_line(why).removeprefix(f"{plugin_id} ")
            print(f"{plugin_id}: {told}; it does not run")
    newer = market.outdated(known)
    if not newer and not chosen.ids:
        print("nothing newer")
    if unknown := [one for one in chosen.ids if one not in newer]:
        print(f"nothing newer for {', '.join(map(one_line, unknown))}, or pinned")
    for plugin_id in (one for one in newer if not chosen.ids or one in chosen.ids):
        before = known[plugin_id].head.version
        if chosen.look:
            print(f"{plugin_id}: {before} is here, {newer[plugin_id]} is there")
            continue
        try:
            proposal = market.propose(plugin_id, newer[plugin_id], known)
        except PluginError as error:  # no reason to leave the others as they are
            print(f"{plugin_id} stays at {before}: {one_line(str(error))}")
            failed = 1
            continue
        describe(proposal.release)
        if chosen.yes and proposal.new:
            print(f"{plugin_id} stays at {before}: {'; '.join(map(one_line, proposal.new))}")
        elif agreed(proposal.terms, proposal.before, chosen.yes):
            market.install(proposal, known)
            known[plugin_id] = proposal.terms
            print(f"{plugin_id}: {newer[plugin_id]} is installed")
    return failed


def pin_one(chosen: argparse.Namespace) -> int:
    """Hold a plugin at its version."""
    from .registry import lock

    known = others(chosen)
    if chosen.id not in lock.origins(known):
        raise ConfigError(f"{chosen.id!r} did not come from a registry, so nothing updates it")
    lock.pin(chosen.id, stays=not chosen.off)
    print(f"{chosen.id}: {'updated again' if chosen.off else 'stays as it is'}")
    return 0


def verify_all(chosen: argparse.Namespace) -> int:
    """Say what is wrong; exit status 1 if anything is."""
    from . import market
    from .registry import lock

    known = others(chosen)
    wrong = market.verify(known)
    for row in wrong:
        print(one_line(row))
    if not wrong:
        print(
            f"{len(lock.origins(known))} plugins of registries are as they were signed and logged"
        )
    return 1 if wrong else 0


def succeeds(plugin_id: str, left: list[str], yes: bool) -> bool:
    """Whether the owner says that a plugin is the next version of the one that kept `left`; said of
    nothing unasked.
    """
    if yes:
        return False
    print(f"A plugin called {plugin_id} kept here: {', '.join(map(one_line, left))}")
    asked = "Is this one from the same maker, and to be given that? [y/N] "
    try:
        return typed(asked).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def remove_one(chosen: argparse.Namespace) -> int:
    """Take one away."""
    from . import market

    market.remove(chosen.id, forget=chosen.forget)
    print(f"removed {chosen.id}")
    return 0


def grant_one(chosen: argparse.Namespace) -> int:
    """Write what the owner fills in for a plugin, beside what is there; say what it holds then."""
    from ..core import config
    from . import grants, installing, skills
    from .running import plugin_folder
    from .sandbox import interpreter

    known = others(chosen)
    if chosen.id in known:
        terms, folder = known[chosen.id], plugin_folder(chosen.id)
    elif Path(chosen.id).is_dir():
        terms = skills.read(Path(chosen.id))
        folder = installing.trial_folder(terms.id, Path(chosen.id))
    else:
        raise ConfigError(f"{chosen.id!r} is not here; here are: {', '.join(sorted(known))}")
    given = {
        option: grants.pairs_of(option, getattr(chosen, option.removeprefix("--")))
        for option in ("--read", "--write", "--host", "--env")
    }
    added = grants.filled(terms, given, interpreter.unprivileged_user(), sources_of(chosen))
    settings = grants.joined(grants.read(folder), added)
    if any(added.values()):
        installing.fill_in(folder, settings)
    for line in grants.told(terms, settings):
        print(one_line(line))
    on = config.load(chosen.config).plugins.enabled
    if chosen.id in known and chosen.id not in on and not (installing.root() / chosen.id).is_dir():
        print(f"it is off; to let it answer, add {chosen.id} to [plugins] enabled in config.toml")
    return 0


def wrap_one(chosen: argparse.Namespace) -> int:
    """Write an existing server's manifest from what it says, show it, ask, and install it."""
    from . import grants, installing, wrapping
    from .grants import PluginSettings
    from .registry import lock
    from .sandbox import interpreter

    words, variables = tuple(chosen.command), variables_of(chosen.env)
    if chosen.servers is not None:
        servers = wrapping.read_servers(chosen.servers)
        if len(words) != 1 or words[0] not in servers:
            raise ConfigError(f"{chosen.servers}: name one of {', '.join(servers) or 'none'}")
        words, variables = (servers[words[0]].words, {**servers[words[0]].environment, **variables})
    folders, changed = wrapping.granted(chosen.read), wrapping.granted(chosen.write, "--write")
    if both := folders.keys() & changed.keys():
        raise ConfigError(f"--write: another folder is called {min(both)} too; rename one")
    hosts = {"wrapped": tuple(map(grants.checked_host, chosen.host))} if chosen.host else {}
    found = wrapping.resolve(words, chosen.folder)
    print(f"sees a copy of {found.folder}" if found.folder else "sees the system's programs alone")
    plugin_id = chosen.id or f"local/{installing.slug(wrapping.name_of(words))}"
    limits = installing.WRAPPED_LIMITS
    if chosen.memory_mb is not None:
        try:
            limits = dataclasses.replace(limits, memory_mb=chosen.memory_mb)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    for folder in changed.values():
        grants.may_write(folder, interpreter.unprivileged_user(), sources_of(chosen))
    quotas = grants.quotas(changed, limits.folder_mb)
    command = wrapping.seen_words(found.command, {**folders, **changed})
    known = others(chosen)
    settings = PluginSettings({**folders, **changed}, dict(variables), hosts, quotas)
    terms = asyncio.run(
        installing.wrap(plugin_id, command, found, settings=settings, limits=limits)
    )
    print(f"runs: {one_line(' '.join(command))}")
    for line in grants.told(terms, settings):
        print(one_line(line))
    if not agreed(terms, known.get(terms.id), chosen.yes):
        installing.forget_content(terms.head.content)
        return 1
    installing.place(terms, known, settings=settings)
    lock.prune(terms.id)
    print(f"installed {terms.id}; try: quietchoir plugin run {terms.id} TOOL")
    return 0


def sources_of(chosen: argparse.Namespace) -> list[Path]:
    """What the node reads because its configuration says so; the configuration itself, and a
    plugin that is named by its folder.
    """
    from ..core import config
    from . import grants

    named = [Path(one) for one in (chosen.config, chosen.id) if one and Path(one).exists()]
    return [*named, *grants.named_in(config.load(chosen.config))]


def others(chosen: argparse.Namespace) -> dict[str, "Manifest"]:
    """All plugins that are here already."""
    from ..core import config
    from . import installing
    from .host import available

    plugins = config.load(chosen.config).plugins
    return dict(available((*plugins.folders, *installing.installed())).manifests)


def agreed(terms: "Manifest", before: "Manifest | None", yes: bool) -> bool:
    """Show what a plugin asks for, and what is new in it; whether the owner lets it in."""
    from . import installing

    print(f"{terms.id} {terms.head.version}: {one_line(terms.head.description)}")
    print(f"may use: {'; '.join(map(one_line, terms.head.asks()))}")
    for tool in terms.tools:
        print(f"  {tool.name} ({tool.effect}): {one_line(tool.description)[:100]}")
    if before is not None:
        new = [one_line(row) for row in installing.differences(terms, before)]
        print(f"version {before.head.version} is here; new: {'; '.join(new) or 'nothing it asks'}")
    try:
        return yes or typed("Let it in? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise ConfigError("nobody answered; say --yes to let it in unasked") from None


def variables_of(pairs: list[str]) -> dict[str, str]:
    """`NAME=VALUE` pairs. Raises: ConfigError: one that is none."""
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"--env {name!r} must be NAME=VALUE")
        found[name] = value
    return found


def new_one(chosen: argparse.Namespace) -> int:
    """Begin a plugin."""
    from . import installing

    installing.scaffold(chosen.folder, chosen.id)
    asyncio.run(installing.pin(chosen.folder))
    print(f"write {chosen.folder / 'server.py'}, then: quietchoir plugin dev {chosen.folder}")
    return 0


def dev_one(chosen: argparse.Namespace) -> int:
    """Pin a plugin's tools, and call one if it is named, with all that it complains of."""
    from ..core import log
    from ..core.assistant.tools import ALONE, CallContext
    from . import installing
    from .running import Plugin

    log.start("debug")
    arguments = arguments_of(chosen.arguments)

    async def once() -> int:
        terms = await installing.pin(chosen.folder)
        print(f"{terms.id}: pinned {', '.join(tool.name for tool in terms.tools) or 'no tools'}")
        if chosen.tool is None:
            return 0
        trial, shown = installing.trial_folder(terms.id, chosen.folder), sys.stdin.isatty()
        plugin = Plugin(terms, trial, {}, elicits=shown)
        context = CallContext(elicit=at_terminal) if shown else ALONE
        try:
            text, ok = await plugin.call(chosen.tool, arguments, installing.START_S, context)
        finally:
            await plugin.stop()
        print(text)
        return 0 if ok else 1

    return asyncio.run(once())


def tested(folder: Path) -> "Manifest":
    """A plugin that starts confined and offers what its manifest says.

    Raises:
        ManifestError: it offers something else.
    """
    from ..core.errors import ManifestError
    from . import installing, manifest, skills

    terms = skills.read(folder)
    said = asyncio.run(installing.live(terms, installing.trial_folder(terms.id, folder)))
    pinned = manifest.digest(said.tools) == terms.head.tools_digest
    if not pinned or set(said.offers) != set(terms.head.offers):
        raise ManifestError(
            f"{folder}: it offers other tools than its manifest says; run: quietchoir plugin dev "
            f"{folder}"
        )
    return terms


def test_one(chosen: argparse.Namespace) -> int:
    """Say that a plugin is what its manifest says."""
    terms = tested(chosen.folder)
    for tool in terms.tools:
        print(f"{tool.name} ({tool.effect}): {one_line(tool.description)[:100]}")
    print(f"{terms.id} {terms.head.version} starts confined and keeps its manifest")
    return 0


def pack_one(chosen: argparse.Namespace) -> int:
    """Write a plugin as one file."""
    from ..core import paths
    from . import installing

    terms = tested(chosen.folder)
    archive = installing.pack(terms)
    name = terms.id.replace("/", "-")
    out = chosen.out or Path(f"{name}-{terms.head.version}.zip")
    paths.write_atomically(out, archive)
    print(f"{out}: {len(archive)} bytes, sha256 {installing.digest_of(archive)}")
    return 0
