"""The verbs of `quietchoir plugin`: those of an owner (list, run, install, grant, wrap, remove) and
those of an author (new, dev, test, pack).
"""

import argparse
import asyncio
import dataclasses
import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, ToolError
from ..core.screen import one_line, typed

if TYPE_CHECKING:
    from .manifest import Manifest


def register(verbs: Any) -> None:
    """Add this folder's verbs."""
    plugin = verbs.add_parser("plugin", help="plugins: list, run, install, wrap, write one")
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
    install = actions.add_parser("install", help="let a plugin in: a folder, or what pack wrote")
    install.add_argument("source", type=Path, metavar="FOLDER|FILE")
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
    dev.add_argument("tool", nargs="?", metavar="TOOL")
    dev.add_argument("arguments", nargs="?", default="{}", metavar="JSON")


def show(chosen: argparse.Namespace) -> int:
    """Print installed plugins and the sandbox's state."""
    from ..core import config
    from . import installing
    from .host import available
    from .sandbox.probe import probe

    plugins = config.load(chosen.config).plugins
    let_in = installing.installed()
    found = available((*plugins.folders, *let_in))
    for plugin_id, terms in sorted(found.manifests.items()):
        state = "enabled" if plugin_id in plugins.enabled else "not enabled"
        state = "installed" if found.folders[plugin_id] in let_in else state
        print(f"{plugin_id} {terms.head.version}  {state}, {len(terms.tools)} tools")
        print(f"    {one_line(terms.head.description)}")
        print(f"    may use: {'; '.join(terms.head.asks())}")
    for folder, reason in sorted(found.refused.items()):
        print(f"{folder}  refused: {one_line(str(reason))}")
    report = probe()
    print(
        f"sandbox: {report.reason}"
        if report.available
        else f"sandbox: none. {report.reason}; {report.advice}"
    )
    return 0


def run_once(chosen: argparse.Namespace) -> int:
    """Call one tool and print its text; exit status 1 if the tool says that it failed."""
    from ..core import config
    from ..core.toolcall import ToolCall
    from .host import PluginHost

    arguments = arguments_of(chosen.arguments)
    handed: dict[str, Path] = {}
    for pair in chosen.file:
        name, sign, path = pair.partition("=")
        if not sign:
            raise ConfigError(f"--file {pair!r} must be NAME=PATH")
        handed[name] = Path(path)
    limits = config.load(chosen.config).plugins
    host = PluginHost(
        dataclasses.replace(limits, enabled=(chosen.id,)),
        files={chosen.id: handed},
        installed=False,
    )

    async def once() -> int:
        try:
            await host.start()
            if chosen.tool not in {tool.name for tool in host.tools()} and host.report.available:
                known = [tool.name for tool in host.tools()]
                near = difflib.get_close_matches(chosen.tool, known, n=3) or known[:3]
                raise ToolError(
                    f"{chosen.id} has no tool {chosen.tool!r}; among its {len(known)} "
                    f"tools are {', '.join(near)}"
                )
            result = await host.call(ToolCall(chosen.tool, arguments))
        finally:
            await host.stop()
        print(result.text)
        return 0 if result.ok else 1

    return asyncio.run(once())


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

    known = others(chosen)
    with tempfile.TemporaryDirectory() as folder:
        terms = installing.open_bundle(chosen.source, Path(folder))
        if not agreed(terms, known.get(terms.id), chosen.yes):
            return 1
        left = installing.left_over(terms)
        same = bool(left) and (chosen.same or succeeds(terms.id, left, chosen.yes))
        installing.install(terms, known, same=same)
    if left and not same:
        print(f"{', '.join(map(one_line, left))} of the one before: set aside, not given to it")
    print(f"installed {terms.id}; try: quietchoir plugin run {terms.id} TOOL")
    return 0


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
    from . import installing

    installing.remove(chosen.id, forget=chosen.forget)
    print(f"removed {chosen.id}")
    return 0


def grant_one(chosen: argparse.Namespace) -> int:
    """Write what the owner fills in for a plugin, beside what is there; say what it holds then."""
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
    added = grants.filled(terms, given, interpreter.unprivileged_user())
    settings = grants.joined(grants.read(folder), added)
    if any(added.values()):
        installing.fill_in(folder, settings)
    for line in grants.told(terms, settings):
        print(one_line(line))
    return 0


def wrap_one(chosen: argparse.Namespace) -> int:
    """Write an existing server's manifest from what it says, show it, ask, and install it."""
    from . import grants, installing, wrapping
    from .grants import PluginSettings
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
        grants.may_write(folder, interpreter.unprivileged_user())
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
    print(f"installed {terms.id}; try: quietchoir plugin run {terms.id} TOOL")
    return 0


def others(chosen: argparse.Namespace) -> dict[str, "Manifest"]:
    """All plugins that are here already."""
    from ..core import config
    from . import installing
    from .host import available

    plugins = config.load(chosen.config).plugins
    return dict(available((*plugins.folders, *installing.installed())).manifests)


def agreed(terms: "Manifest", before: "Manifest | None", yes: bool) -> bool:
    """Show what a plugin asks for, and what is new in it; whether the owner lets it in."""
    print(f"{terms.id} {terms.head.version}: {one_line(terms.head.description)}")
    print(f"may use: {'; '.join(terms.head.asks())}")
    for tool in terms.tools:
        print(f"  {tool.name} ({tool.effect}): {one_line(tool.description)[:100]}")
    if before is not None:
        new = [ask for ask in terms.head.asks() if ask not in before.head.asks()]
        was = {tool.name: tool for tool in before.tools}
        for tool in terms.tools:
            if tool.name not in was:
                new.append(f"the tool {tool.name}")
            elif tool.effect != was[tool.name].effect:
                new.append(f"{tool.name} is {tool.effect}, was {was[tool.name].effect}")
            elif tool != was[tool.name]:
                new.append(f"{tool.name} says something else of itself")
        if terms.tools == before.tools and terms.head.tools_digest != before.head.tools_digest:
            new.append("titles, icons or the like of its tools")
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
    from . import installing
    from .running import Plugin

    log.start("debug")
    arguments = arguments_of(chosen.arguments)

    async def once() -> int:
        terms = await installing.pin(chosen.folder)
        print(f"{terms.id}: pinned {', '.join(tool.name for tool in terms.tools) or 'no tools'}")
        if chosen.tool is None:
            return 0
        plugin = Plugin(terms, installing.trial_folder(terms.id, chosen.folder), {})
        try:
            text, ok = await plugin.call(chosen.tool, arguments, installing.START_S)
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
    from . import installing, manifest

    terms = manifest.read(folder)
    tools, _ = asyncio.run(installing.live(terms, installing.trial_folder(terms.id, folder)))
    if manifest.digest(tools) != terms.head.tools_digest:
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
