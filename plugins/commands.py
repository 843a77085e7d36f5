"""The verbs `plugin list` and `plugin run`."""

import argparse
import asyncio
import dataclasses
import difflib
import json
from typing import Any

from ..core.errors import ConfigError, ToolError
from ..core.screen import one_line


def register(verbs: Any) -> None:
    """Add this folder's verbs."""
    plugin = verbs.add_parser("plugin", help="plugins: list, run one tool")
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


def show(chosen: argparse.Namespace) -> int:
    """Print installed plugins and the sandbox's state."""
    from ..core import config
    from .host import available
    from .sandbox.probe import probe

    plugins = config.load(chosen.config).plugins
    enabled = plugins.enabled
    found = available(plugins.folders)
    for plugin_id, terms in sorted(found.manifests.items()):
        state = "enabled" if plugin_id in enabled else "not enabled"
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
    from pathlib import Path

    from ..core import config
    from ..core.toolcall import ToolCall
    from .host import PluginHost

    try:
        arguments = json.loads(chosen.arguments)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"JSON = {chosen.arguments!r} is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ConfigError(
            f"JSON = {chosen.arguments!r} must be an object, for example " + '{"name": "lamp"}'
        )
    handed: dict[str, Path] = {}
    for pair in chosen.file:
        name, sign, path = pair.partition("=")
        if not sign:
            raise ConfigError(f"--file {pair!r} must be NAME=PATH")
        handed[name] = Path(path)
    limits = config.load(chosen.config).plugins
    host = PluginHost(dataclasses.replace(limits, enabled=(chosen.id,)), files={chosen.id: handed})

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
