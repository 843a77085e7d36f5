"""One plugin of this node: started when it is called, stopped when it is not.

Knows a manifest, the files its owner hands to it, and its storage. Knows nothing of other plugins.
Always: it runs in a sandbox or not at all, and a plugin whose live tools differ from its manifest
never runs again.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import log, paths
from ..core.assistant.elicitation import Elicit, ElicitResult, Form
from ..core.assistant.tools import ALONE, CallContext, Effect
from ..core.errors import ConfigError, PluginError, SandboxUnavailableError, ToolError
from . import endpoints, grants, manifest, offers
from .audit import Row
from .client import PluginConnection
from .delegation import Carry, OtherTools
from .elicitation import OwnersForms
from .endpoints import Endpoint, is_public
from .grants import SETTINGS, PluginSettings
from .manifest import Manifest
from .sampling import ModelAccess, Write
from .sandbox import interpreter, landlock, linux, packages, store
from .sandbox.policy import (
    BUNDLE,
    CONFIG,
    DATA,
    FILES,
    KIT,
    SCRATCH,
    START,
    TEMPORARY,
    TRUSTED,
    VARIABLES,
    Interpreter,
    SandboxPolicy,
)
from .sandbox.probe import Launcher, Wanted, inside_source, probe
from .sandbox.watchdog import Bounds, kill_group
from .storage import PluginStorage

if TYPE_CHECKING:
    from .broker import Broker

SDK = Path(__file__).with_name("sdk") / "quietchoir_sdk.py"
MAX_CONFIG_BYTES = 4 << 20
REST_S = 1.0  # after its last answer all of a plugin's processes are stopped, until the next call
IDLE_S = 120.0  # a plugin nobody called for so long is stopped; starting again takes some 50 ms
logger = log.get("plugins")


def plugin_folder(plugin_id: str) -> Path:
    """Where a plugin's storage lies on this node, and where its owner puts the files it asks
    for.
    """
    return paths.home() / "plugins" / plugin_id


def refused_by(launcher: Launcher, terms: Manifest, folder: Path) -> str:
    """What a manifest asks for, its owner filled in in the plugin's private `folder`, and this
    launcher cannot hold, in words; empty if all can be held.
    """
    if launcher == "bubblewrap":
        return ""
    try:
        found = grants.read(folder)
    except ConfigError:
        found = PluginSettings()  # its start says what is wrong
    names = {*found.folders, *found.environment, *found.hosts}
    return landlock.refuses(terms.head.permissions.filled(names))


def say(row: Row) -> None:
    """Note what a plugin that is only tried did besides its calls."""
    logger.info("%s", row)


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a plugin says when it is started, for whoever writes its manifest."""

    tools: list[dict[str, Any]]
    offers: tuple[str, ...]  # of `manifest.OFFERS`
    about: Mapping[str, Any]  # of itself: name, version


class Plugin:
    """One plugin: its terms, and its process while it has one."""

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        config: Mapping[str, Path],
        idle_s: float = IDLE_S,
        tell: Callable[[Row], None] = say,
        write: Write | None = None,
        sources: Sequence[Path] = (),
        sandbox: Wanted = "auto",
        carry: Carry | None = None,
        elicits: bool = False,
    ) -> None:
        """
        Args:
            folder: private folder of this plugin on this node; its storage lies here, and its
            config files by default. config: files that the owner hands to it from elsewhere, by the
            name the manifest asks for. tell: hears where it connected to, and what the model wrote
            for it. write: this node's model; None: there is none. sources: what this node
            reads, to which no plugin writes. sandbox: what confines it; "auto": what its first
            start finds. carry: who calls tools of other plugins for it; None: nobody. elicits:
            it is told that whoever calls it may be shown a form.
        """
        self.manifest, self.folder, self.config, self.idle_s = manifest, folder, config, idle_s
        self._sources, self.sandbox = sources, sandbox
        self.disabled: str | None = None
        self.connection: PluginConnection | None = None
        self.calling = ""  # its tool whose call it has its turn for
        self.context = ALONE  # for whom
        self._runs_on: Interpreter | None = None
        granted = manifest.head.permissions.storage_bytes
        self._storage = PluginStorage(folder / "storage", granted) if granted else None
        self._content: Path | None = None
        self._tell = tell
        tokens = manifest.head.permissions.model_tokens
        self._model = ModelAccess(manifest.id, tokens, write, tell) if tokens and write else None
        allowed = manifest.head.permissions.tools
        self._others = OtherTools(allowed, carry) if allowed and carry else None
        self._forms = OwnersForms(manifest.id, self._asked_by, tell) if elicits else None
        self._hosts_own = {tool.name: tool.offers for tool in manifest.tools if tool.offers}
        self._broker: Broker | None = None
        self._granted: tuple[Endpoint, ...] | None = None
        self._lock = asyncio.Lock()
        self._quiet: asyncio.Task[None] | None = None

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        deadline_s: float,
        context: CallContext = ALONE,
    ) -> tuple[str, bool]:
        """Call `tool`, starting the plugin if need be; one call at a time. Waiting for its turn,
        the start, and the call itself have `deadline_s` each: nobody pays for who came before.

        Raises:
            ToolError: disabled, out of time, died, or its config files are missing.
            PluginError: its storage cannot be read or written.
            SandboxUnavailableError: nothing on this machine can confine it.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._lock.acquire()
        except TimeoutError:
            raise ToolError(
                f"plugin {self.manifest.id} was busy for {deadline_s:g} s; ask again"
            ) from None
        try:
            self.calling, self.context = tool, context
            if self._quiet is not None:
                self._quiet.cancel()  # it sleeps, or waits for the lock that we hold
            try:
                connection = await self._connected(deadline_s)
                if kind := self._hosts_own.get(tool):
                    return await offers.answer(connection, kind, arguments, deadline_s)
                return await connection.call(tool, arguments, deadline_s)
            finally:
                if self.manifest.head.runtime.fresh and self.connection is not None:
                    await self.connection.close()
                    self.connection = None
                await self._keep()  # before the answer: what it says it did is on the disk
        finally:
            self.calling, self.context = "", ALONE
            self._lock.release()
            if self.connection is not None:
                self._quiet = asyncio.create_task(self._fall_quiet(self.connection))

    def _asked_by(self) -> Elicit | None:
        return self.context.elicit

    def on_behalf(self) -> CallContext:
        """For whom another plugin carries out a call that this one asks for: whoever is shown a
        form then, neither's time runs.
        """
        connection, elicit = self.connection, self.context.elicit
        if connection is None or elicit is None:
            return self.context

        async def standing_still(form: Form) -> ElicitResult:
            with connection.paused():
                return await elicit(form)

        return replace(self.context, elicit=standing_still)

    async def warm(self, deadline_s: float) -> None:
        """Start it, if it does not run. Raises: as `call`."""
        async with self._lock:
            await self._connected(deadline_s)

    async def stop(self) -> None:
        """End its process, if it has one."""
        if self._quiet is not None:
            self._quiet.cancel()
            await asyncio.gather(self._quiet, return_exceptions=True)
        connection, self.connection = self.connection, None
        if connection is not None:
            await connection.close()
        if self._storage is not None:
            try:
                await self._keep()
            finally:
                self._storage.close()

    async def _keep(self) -> None:
        if self._storage is not None:
            await asyncio.to_thread(self._storage.keep)

    async def _connected(self, deadline_s: float) -> PluginConnection:
        if self.disabled is not None:
            raise ToolError(f"plugin {self.manifest.id} is disabled: {self.disabled}")
        if self.connection is not None:
            self.connection.watchdog.thaw()
            await self.connection.settled()
            if self.connection.ended is None and self.connection.list_changed:
                self._compare(await self.connection.tools(deadline_s))
            if self.connection.ended is None:
                return self.connection
            await self.connection.close()
            self.connection = None
        connection = await self._begin()
        try:
            self._compare(await connection.handshake(deadline_s))
        except BaseException:
            # whatever it was, nobody calls a plugin whose tools were not compared
            await connection.close()
            raise
        self.connection = connection
        logger.info("plugin %s started", self.manifest.id)
        return connection

    async def listing(self, deadline_s: float) -> Introduction:
        """What it offers, and what it says of itself, from a start of its own; for whoever writes
        its manifest. Nothing is compared, and nothing else is asked of it.

        Raises:
            ToolError: no or a malformed answer in time; with its last words.
            SandboxUnavailableError: nothing on this machine can confine it.
        """
        connection = await self._begin()
        try:
            tools = await connection.handshake(deadline_s)
            return Introduction(tools, connection.offers, connection.server)
        finally:
            await connection.close()

    def effect(self, said: Effect) -> Effect:
        """What a call of it may do at most, whatever its manifest says: who can send to the public
        network may tell it what he is told.
        """
        if not self._online:
            return said
        try:
            granted = self._endpoints()
        except ToolError:
            return "outside"  # nobody filled it in, so nobody knows
        own = (one.address is not None and not is_public(one.address) for one in granted)
        return said if all(own) else "outside"

    @property
    def _online(self) -> bool:
        asked = self.manifest.head.permissions
        return bool(asked.network or asked.hosts)

    def _endpoints(self) -> tuple[Endpoint, ...]:
        """All that it may connect to: what its manifest names, and what its owner filled in. What
        was read once holds until the node's end, as the effect of its tools does.

        Raises:
            ToolError: as `_settings`, or what was filled in is no host.
        """
        if self._granted is None:
            filled = [one for of in self._settings().hosts.values() for one in of]
            try:
                named = [endpoints.parse(one, private=True) for one in filled]
            except ValueError as error:
                raise ToolError(f"{self.folder / SETTINGS}: hosts: {error}") from None
            public = self.manifest.head.permissions.network
            self._granted = (*(endpoints.parse(one, private=False) for one in public), *named)
        return self._granted

    def refused_by(self, launcher: Launcher) -> str:
        """As `refused_by`."""
        return refused_by(launcher, self.manifest, self.folder)

    async def _launcher(self) -> Launcher:
        """What confines it: found once, so that no later start finds something weaker.

        Raises:
            SandboxUnavailableError: nothing on this machine does.
        """
        if self.sandbox == "auto":
            report = await asyncio.to_thread(probe)
            if not report.available:
                raise SandboxUnavailableError(f"{report.reason}; {report.advice}")
            self.sandbox = report.launcher
        return self.sandbox

    async def _begin(self) -> PluginConnection:
        head = self.manifest.head
        if why := self.refused_by(await self._launcher()):
            raise ToolError(f"plugin {self.manifest.id} does not run here: {why}")
        if not self._online or self.sandbox == "landlock":
            return await self._started(None)
        from .broker import (
            Broker,
            TrafficBudget,
        )  # aiohttp, which a plugin without a network does not need

        if self._broker is None:
            budget = TrafficBudget(head.limits.network_mb << 20)
            self._broker = Broker(self.manifest.id, self._endpoints(), budget, self._tell)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                connection = await self._started(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        connection.attend(self._broker.serve(ours))
        return connection

    async def _started(self, broker: int | None) -> PluginConnection:
        confined, limits = await asyncio.to_thread(self._policy, broker), self.manifest.head.limits
        folders = [seen for seen in (*confined.folders, *confined.writable) if seen != FILES]
        if await self._launcher() == "landlock":
            started, stage = await landlock.start(confined)
            bounds = Bounds(
                limits.memory_mb << 20,
                folders=((Path(f"{stage}{TEMPORARY}"), limits.scratch_mb << 20),),
                leads=True,
                threads=limits.processes,
            )
            folders = [f"{stage}{seen}" for seen in folders]
            try:
                connection = self._connect(started, bounds, folders)
            except BaseException:
                landlock.remove(stage)
                raise
            connection.afterwards = partial(landlock.remove, stage)
            return connection
        bounds = Bounds(
            limits.memory_mb << 20,
            SCRATCH,
            limits.scratch_mb << 20,
            tuple(confined.writable.values()),
            broker is not None,
        )
        return self._connect(await linux.start(confined), bounds, folders)

    def _connect(
        self, started: asyncio.subprocess.Process, bounds: Bounds, folders: Sequence[str]
    ) -> PluginConnection:
        try:
            return PluginConnection(
                started, self.manifest.id, bounds, folders, self._model, self._others, self._forms
            )
        except BaseException as error:
            kill_group(started.pid)  # nobody watches it
            if not isinstance(error, OSError):
                raise
            raise ToolError(
                f"plugin {self.manifest.id} cannot be watched ({error.strerror}), so it does not "
                f"run; end other programs, or plugins, and try again"
            ) from error

    def _compare(self, live: Sequence[Mapping[str, Any]]) -> None:
        """Disable the plugin for good if what it offers is not what its manifest promised:
        descriptions steer a model.
        """
        promised = self.manifest.head.tools_digest
        if (found := manifest.digest(live)) != promised:
            if self.connection is not None:
                self.connection.kill("its tools changed while it ran")
            self.disabled = (
                f"its live tools hash to {found[:12]}…, its manifest promises {promised[:12]}…"
            )
            logger.error("plugin %s is disabled: %s", self.manifest.id, self.disabled)
            raise ToolError(
                f"plugin {self.manifest.id} is disabled: {self.disabled}; remove it or "
                f"ask its publisher"
            )

    def _policy(self, broker: int | None = None) -> SandboxPolicy:
        """What it may see this time: its bundle as it was checked, and the owner's files as they
        are now.
        """
        if self._runs_on is None:
            self._runs_on = interpreter.find(interpreter.unprivileged_user())
        files = {START: inside_source(), f"{KIT}/{SDK.name}": SDK.read_bytes()}
        files |= {f"{BUNDLE}/{path}": content for path, content in self.manifest.files.items()}
        files |= {
            f"{CONFIG}/{name}": self._config(name) for name in self.manifest.head.permissions.config
        }
        head = self.manifest.head
        module = "bundle." + head.entry.removesuffix(".py").replace("/", ".")
        storage = (self._storage.open(), self._storage.size) if self._storage is not None else None
        settings = self._settings()
        if head.permissions.environment:
            files[VARIABLES] = json.dumps(settings.environment).encode()
        if broker is not None:
            from .broker import trusted

            files[TRUSTED] = trusted()
        asked, usual = head.permissions.filled(settings.folders), head.limits.folder_mb << 20
        folders = {f"{DATA}/{name}": settings.folders[name] for name in asked.folders}
        writable = {
            f"{DATA}/{name}": (settings.folders[name], settings.quotas.get(name, usual))
            for name in asked.write_folders
        }
        if head.content or head.runtime.packages:
            folders[FILES] = self._program(self._runs_on)
        return SandboxPolicy(
            interpreter=self._runs_on,
            files=files,
            module=module,
            command=head.command,
            folders=folders,
            writable=writable,
            limits=head.limits,
            storage=storage,
            broker=broker,
            hosts=settings.hosts,
        )

    def _program(self, runs_on: Interpreter) -> Path:
        """The folder that a wrapped server, or the packages that a bundle asks for, lie in; read
        through once.
        """
        if self._content is None:
            head, user = self.manifest.head, interpreter.unprivileged_user()
            self._content = (
                store.find(head.content, user)
                if head.content
                else packages.folder(head.runtime.packages, runs_on, user)
            )
        return self._content

    def _settings(self) -> PluginSettings:
        """What the owner filled in, and no more than the manifest asks for.

        Raises:
            ToolError: something is missing, or a folder cannot be used by the plugin's user.
        """
        asked = self.manifest.head.permissions
        places = (*asked.folders, *asked.write_folders)
        if not places and not asked.environment and not asked.hosts:
            return PluginSettings()
        try:
            filled = grants.read(self.folder)
        except ConfigError as error:
            raise ToolError(f"{error}; mend it, or fill it in anew") from None
        asked = asked.filled({*filled.folders, *filled.environment, *filled.hosts})
        places = (*asked.folders, *asked.write_folders)
        for kind, names, values in (
            ("--read", asked.folders, filled.folders),
            ("--write", asked.write_folders, filled.folders),
            ("--env", asked.environment, filled.environment),
            ("--host", asked.hosts, filled.hosts),
        ):
            if missing := [name for name in names if name not in values]:
                which = "FOLDER" if ".dev-" in self.folder.name else self.manifest.id
                raise ToolError(
                    f"plugin {self.manifest.id} asks for {missing[0]}; fill it in: quietchoir "
                    f"plugin grant {which} {kind} {missing[0]}=…"
                )
        folders = {name: Path(filled.folders[name]) for name in places}
        user = interpreter.unprivileged_user()
        for folder in folders.values():
            if not folder.is_dir() or not interpreter.reachable(folder, user):
                raise ToolError(
                    f"{folder}: no folder that the plugin's user may read; name another in "
                    f"{self.folder / SETTINGS}"
                )
        for name in asked.write_folders:
            try:
                grants.may_write(folders[name], user, self._sources)
            except ConfigError as error:
                raise ToolError(f"plugin {self.manifest.id}: {error}") from None
        return PluginSettings(
            folders=folders,
            environment={name: filled.environment[name] for name in asked.environment},
            hosts={name: filled.hosts[name] for name in asked.hosts},
            quotas=filled.quotas,
        )

    def _config(self, name: str) -> bytes:
        path = self.config.get(name, self.folder / name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ToolError(
                f"{path}: no such file; plugin {self.manifest.id} needs a {name} there"
            ) from None
        except OSError as error:
            raise ToolError(
                f"{path}: plugin {self.manifest.id} needs it, and it cannot be read "
                f"({error.strerror})"
            ) from error
        if len(content) > MAX_CONFIG_BYTES:
            raise ToolError(
                f"{path}: {len(content)} bytes; plugins are handed at most {MAX_CONFIG_BYTES}"
            )
        return content

    async def _fall_quiet(self, connection: PluginConnection) -> None:
        """Stop all that a plugin still does after its answer; end it once nobody has called it for
        long.
        """
        if self.idle_s > REST_S:
            await asyncio.sleep(REST_S)
            async with self._lock:
                await connection.settled()
                await connection.watchdog.freeze()
            await asyncio.sleep(self.idle_s - REST_S)
        else:
            await asyncio.sleep(self.idle_s)
        async with self._lock:
            await connection.close()
            self.connection = None
            try:
                await self._keep()
            except PluginError as error:
                logger.error("plugin %s: %s", self.manifest.id, error)
