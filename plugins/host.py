"""All plugins of one node, behind the seam `core.assistant.tools.Tools`.

Knows which plugins the owner enabled and which tool belongs to which. Knows nothing of models or of
HTTP.
Always: without a working sandbox there are no tools and every call is refused; nothing ever runs
beside the sandbox.
"""

import asyncio
import difflib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core import log, paths
from ..core.assistant.approvals import Approvals
from ..core.assistant.tools import ALONE, CallContext, Effect, ToolInfo, ToolResult
from ..core.config import PluginsConfig
from ..core.errors import ConfigError, ManifestError, SandboxUnavailableError, ToolError
from ..core.toolcall import ToolCall
from . import delegation, elicitation, installing, manifest, skills
from .audit import Audit, Call, Outcome
from .hidden import legible
from .manifest import Manifest, ToolEntry
from .registry import lock
from .running import IDLE_S, Plugin
from .sampling import Write
from .sandbox.probe import Launcher, SandboxReport, Wanted, probe

BUILTIN = Path(__file__).with_name("builtin")
PUBLISHER = "quietchoir"  # of the built-in plugins
EFFECTS: tuple[Effect, ...] = ("read", "write", "outside")  # the weightiest last
MAX_TEXT = 64 << 10  # characters of one answer that are passed on
logger = log.get("plugins")


class PluginHost:
    """The plugins that the owner enabled.

    Args:
        bundles: folders of plugins besides the built-in ones.
        files: plugin id → name of a config file → where it lies, when not in `plugin_folder(id)`.
        folder: where storage and the audit log lie; default: `plugins` in the node's home.
        installed: installed plugins may answer besides those that the configuration enables.
        reads: what the node's configuration names: no plugin is started that may write there.
        write: this node's model, for plugins that were granted its use; None: there is none.
        approvals: the owner's rules and what was said in a conversation, by which plugins call each
            other's tools, whatever a manifest names.
        elicits: whoever calls may be shown a plugin's form (`CallContext.elicit`).
        sandbox: what confines them; "auto": the best that this machine has.
    """

    def __init__(
        self,
        config: PluginsConfig,
        *,
        bundles: Sequence[Path] = (),
        files: Mapping[str, Mapping[str, Path]] | None = None,
        folder: Path | None = None,
        idle_s: float = IDLE_S,
        installed: bool = True,
        reads: Iterable[Path] = (),
        write: Write | None = None,
        sandbox: Wanted = "auto",
        approvals: Approvals | None = None,
        elicits: bool = False,
    ) -> None:
        self.config = config
        self.plugins: dict[str, Plugin] = {}
        self.report = SandboxReport(False, "the plugin host was not started", "start it first")
        self._files, self._idle_s, self._installed = files or {}, idle_s, installed
        self._write_text, self._sandbox, self._elicits = write, sandbox, elicits
        self._approvals = approvals or Approvals()
        self._bundles = (*config.folders, *bundles, *installing.installed())
        self._reads = (*self._bundles, *reads)
        self._folder = folder or paths.home() / "plugins"
        self._owners: dict[str, Plugin] = {}  # tool name → who answers
        self._audit: Audit | None = None
        self._edges: dict[str, set[str]] = {}  # who may call whom
        self._news = 0  # of registries, as far as they were looked at

    async def start(self) -> None:
        """Read the manifests and try the sandbox; no plugin starts before it is called.

        Raises:
            ConfigError: the owner enabled a plugin that is not there, or refused.
            ManifestError: two enabled plugins offer one tool.
            PluginError: the audit log was changed.
        """
        found = available(self._bundles)
        self._audit = Audit(self._folder / "audit.jsonl")
        for reason in found.refused.values():
            logger.warning("a plugin is left out: %s", reason)
        let_in = installing.installed() if self._installed else []
        mine = [name for name, folder in found.folders.items() if folder in let_in]
        for plugin_id in dict.fromkeys((*self.config.enabled, *mine)):
            if plugin_id not in found.manifests:
                raise ConfigError(f"plugins.enabled names {plugin_id!r}; {found.told()}")
            terms = found.manifests[plugin_id]
            plugin = Plugin(
                terms,
                self._folder / plugin_id,
                self._files.get(plugin_id, {}),
                self._idle_s,
                self._audit.write,
                self._write_text,
                self._reads,
                carry=partial(self._carry, plugin_id),
                elicits=self._elicits,
            )
            for tool in terms.tools:
                if tool.name in self._owners:
                    other = self._owners[tool.name].manifest.id
                    raise ManifestError(
                        f"{plugin_id} and {other} both offer the tool {tool.name}; "
                        f"enable one of them only"
                    )
                self._owners[tool.name] = plugin
            self.plugins[plugin_id] = plugin
        allowed = {name: one.manifest.head.permissions.tools for name, one in self.plugins.items()}
        self._edges = delegation.edges(allowed)
        for plugin_id in delegation.too_long(self._edges):
            self.plugins[plugin_id].disabled = (
                f"its calls of other plugins' tools come back to it, or pass through more than "
                f"{delegation.MAX_LINKS} others"
            )
            logger.error("plugin %s: %s", plugin_id, self.plugins[plugin_id].disabled)
        self._news = lock.news()
        await self.look()
        if self.plugins:
            self.report = await asyncio.to_thread(probe, self._sandbox)
            if not self.report.available:
                logger.error("no plugin will run: %s; %s", self.report.reason, self.report.advice)
            self._confine(self.report.launcher)

    def _confine(self, launcher: Launcher) -> None:
        """All of them by this; who asks for what it cannot hold does not run."""
        if launcher == "landlock":
            logger.warning("plugins are confined by %s", self.report.reason)
        for plugin in self.plugins.values():
            plugin.sandbox = launcher
            if plugin.disabled is None and (why := plugin.refused_by(launcher)):
                plugin.disabled = why
                logger.warning("plugin %s does not run: %s", plugin.manifest.id, why)

    async def look(self) -> list[str]:
        """Stop the plugins that their registries revoked, and paid ones without a licence, as far
        as this node knows. Returns: the ids of those that this look stopped.
        """
        stopped = []
        for plugin_id, plugin in self.plugins.items():
            if plugin.disabled is None and not plugin_id.startswith(f"{PUBLISHER}/"):
                plugin.disabled = lock.halted(plugin.manifest) or None
                if plugin.disabled is not None:
                    logger.error("plugin %s does not run: %s", plugin_id, plugin.disabled)
                    await plugin.stop()
                    stopped.append(plugin_id)
        return stopped

    async def stop(self) -> None:
        """End all plugins."""
        await asyncio.gather(*(plugin.stop() for plugin in self.plugins.values()))
        if self._audit is not None:
            self._audit.close()

    def tools(self) -> list[ToolInfo]:
        """What can be called now: nothing without a sandbox, nothing of a disabled plugin."""
        if not self.report.available:
            return []
        return [
            self._info(plugin, tool)
            for plugin in self.plugins.values()
            if plugin.disabled is None
            for tool in plugin.manifest.tools
        ]

    def _info(self, plugin: Plugin, tool: ToolEntry) -> ToolInfo:
        effect = self.effect(plugin, tool.effect)
        return ToolInfo(tool.name, tool.description, tool.schema, plugin.manifest.id, effect)

    def effect(self, plugin: Plugin, said: Effect) -> Effect:
        """What a call of this plugin may do at most, by itself and by the tools of others that it
        may call.
        """
        found, reached = {plugin.effect(said)}, [plugin]
        for one in reached:
            for wanted in one.manifest.head.permissions.tools if one.disabled is None else ():
                name, _, tool = wanted.partition(":")
                other = self._owners.get(tool)
                if other is None or other.manifest.id != name:
                    continue
                found |= {
                    other.effect(own.effect) for own in other.manifest.tools if own.name == tool
                }
                if other not in reached:
                    reached.append(other)
        return max(found, key=EFFECTS.index)

    async def _carry(
        self, asker: str, plugin_id: str, tool: str, arguments: Mapping[str, Any]
    ) -> tuple[str, bool]:
        """A call of `asker`'s, which its manifest names, for a call of it that the owner's rules
        let pass. Raises: as `call`, or they do not let pass this one.
        """
        owner = self._owners.get(tool)
        if owner is None or owner.manifest.id != plugin_id:
            raise ToolError(f"{plugin_id}:{tool} is not enabled here")
        asking = self.plugins[asker]
        found = [
            self._info(plugin, entry)
            for plugin, name in ((asking, asking.calling), (owner, tool))
            for entry in plugin.manifest.tools
            if entry.name == name
        ]
        context = asking.on_behalf()
        if len(found) != 2 or not self._approvals.covers(found[0], found[1], context.conversation):
            raise ToolError(f"{tool} is not called by plugins here, by its owner's rule")
        result = await self.call(ToolCall(tool, dict(arguments)), None, context, caller=asker)
        return result.text, result.ok

    async def call(
        self,
        call: ToolCall,
        deadline_s: float | None = None,
        context: CallContext = ALONE,
        /,
        *,
        caller: str = "",
    ) -> ToolResult:
        """Carry out one call in its plugin's sandbox; the text is cleaned of what a reader cannot
        see, and cut.

        Args:
            deadline_s: default, and longest: `plugins.call_timeout_s`.
            context: for whom; what a plugin of it calls in turn is for the same.
            caller: the plugin that asks for it; empty: nobody of them.

        Raises:
            ToolError: no such tool, out of time, or the plugin died or is disabled.
            SandboxUnavailableError: nothing on this machine can confine a plugin.
        """
        plugin = self._owners.get(call.name)
        if plugin is None or self._audit is None:
            near = difflib.get_close_matches(call.name, self._owners, n=3)
            raise ToolError(
                f"no tool "
                f"is called {call.name!r}; "
                + (f"near: {', '.join(near)}" if near else "ask for the list of tools")
            )
        if not self.report.available:
            raise SandboxUnavailableError(f"{self.report.reason}; {self.report.advice}")
        if self._news != (news := lock.news()):
            self._news = news
            await self.look()  # another program of its owner's looked
        if plugin.manifest.head.license.kind == "paid" and plugin.disabled is None:
            plugin.disabled = lock.halted(plugin.manifest) or None  # a licence ends while we run
        if context.elicit is not None and not caller:
            context = replace(context, elicit=elicitation.counted(context.elicit))
        longest = self.config.call_timeout_s
        outcome: Outcome = "failed"
        began, text = time.monotonic(), ""
        try:
            text, ok = await plugin.call(
                call.name, call.arguments, min(deadline_s or longest, longest), context
            )
            outcome = "ok" if ok else "tool error"
        finally:
            self._write(plugin, call, text, time.monotonic() - began, outcome, caller)
        return ToolResult(legible(text)[:MAX_TEXT], ok)

    def _write(
        self,
        plugin: Plugin,
        call: ToolCall,
        text: str,
        seconds: float,
        outcome: Outcome,
        caller: str,
    ) -> None:
        assert self._audit is not None  # checked by `call`
        sent = len(json.dumps(dict(call.arguments)))
        self._audit.write(
            Call(
                plugin=plugin.manifest.id,
                tool=call.name,
                sent_bytes=sent,
                # half a character is no reason to log nothing
                received_bytes=len(text.encode(errors="replace")),
                seconds=round(seconds, 4),
                outcome=outcome,
                caller=caller,
            )
        )


@dataclass(frozen=True, slots=True)
class Available:
    """What is installed here."""

    manifests: Mapping[str, Manifest]  # by id
    folders: Mapping[str, Path]  # by id
    refused: Mapping[Path, ManifestError]  # folders whose plugin cannot be used, and why

    def told(self) -> str:
        """Its names, for who named another."""
        refused = "".join(f"; refused: {reason}" for reason in self.refused.values())
        return f"installed are: {', '.join(sorted(self.manifests)) or 'none'}{refused}"


def available(bundles: Sequence[Path] = ()) -> Available:
    """The built-in plugins and those of `bundles`. One that is refused is no reason to do without
    the others.

    An id is the bundle's own word: it opens the storage and the files of that id, so of two folders
    that share one neither is used, and the publisher of the built-in plugins stands for bytes that
    came with this package alone.
    """
    found = dict[str, tuple[Path, Manifest]]()
    refused = dict[Path, ManifestError]()
    builtin = sorted(path.parent for path in BUILTIN.glob(f"*/{manifest.FILE}"))
    for folder in dict.fromkeys((*builtin, *bundles)):
        try:
            terms = skills.read(folder)
        except ManifestError as error:
            refused[folder] = error
            continue
        if folder == installing.root() / folder.parent.name / folder.name and (
            terms.id != f"{folder.parent.name}/{folder.name}"
        ):
            refused[folder] = ManifestError(
                f"{folder}: calls itself {terms.id} and was installed as another; its files were "
                f"changed, remove it"
            )
        elif folder not in builtin and terms.id.startswith(f"{PUBLISHER}/"):
            refused[folder] = ManifestError(
                f"{folder}: calls itself {terms.id}, but {PUBLISHER} publishes only what comes "
                f"with this package; its author must use a publisher's name of their own"
            )
        elif terms.id in found:
            other = found[terms.id][0]
            reason = ManifestError(f"{folder} and {other} both hold {terms.id}; remove one")
            refused |= {folder: reason, other: reason}
        else:
            found[terms.id] = folder, terms
    kept = {name: row for name, row in found.items() if row[0] not in refused}
    return Available(
        {name: terms for name, (_, terms) in kept.items()},
        {name: folder for name, (folder, _) in kept.items()},
        refused,
    )
