"""One plugin of this node: started when it is called, stopped when it is not.

Knows a manifest, the files its owner hands to it, and its storage. Knows nothing of other plugins.
Always: it runs in a sandbox or not at all, and a plugin whose live tools differ from its manifest
never runs again.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import log, paths, tables
from ..core.errors import ConfigError, PluginError, ToolError
from . import manifest
from .client import PluginConnection
from .manifest import Manifest
from .sandbox import interpreter, linux, packages, store
from .sandbox.policy import (
    BUNDLE,
    CONFIG,
    DATA,
    FILES,
    KIT,
    SCRATCH,
    START,
    VARIABLES,
    Interpreter,
    SandboxPolicy,
)
from .sandbox.probe import inside_source
from .sandbox.watchdog import Bounds
from .storage import PluginStorage

SETTINGS = "settings.json"
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


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """What its owner fills in for one plugin, in `SETTINGS` of its private folder."""

    folders: dict[str, Path] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class Plugin:
    """One plugin: its terms, and its process while it has one."""

    def __init__(
        self, manifest: Manifest, folder: Path, config: Mapping[str, Path], idle_s: float = IDLE_S
    ) -> None:
        """
        Args:
            folder: private folder of this plugin on this node; its storage lies here, and its
            config files by default. config: files that the owner hands to it from elsewhere, by the
            name the manifest asks for.
        """
        self.manifest, self.folder, self.config, self.idle_s = manifest, folder, config, idle_s
        self.disabled: str | None = None
        self.connection: PluginConnection | None = None
        self._runs_on: Interpreter | None = None
        granted = manifest.head.permissions.storage_bytes
        self._storage = PluginStorage(folder / "storage", granted) if granted else None
        self._content: Path | None = None
        self._lock = asyncio.Lock()
        self._quiet: asyncio.Task[None] | None = None

    async def call(
        self, tool: str, arguments: Mapping[str, Any], deadline_s: float
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
            if self._quiet is not None:
                self._quiet.cancel()  # it sleeps, or waits for the lock that we hold
            try:
                connection = await self._connected(deadline_s)
                return await connection.call(tool, arguments, deadline_s)
            finally:
                await self._keep()  # before the answer: what it says it did is on the disk
        finally:
            self._lock.release()
            if self.connection is not None:
                self._quiet = asyncio.create_task(self._fall_quiet(self.connection))

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

    async def listing(self, deadline_s: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What it offers, and what it says of itself, from a start of its own; for whoever writes
        its manifest. Nothing is compared, and nothing else is asked of it.

        Raises:
            ToolError: no or a malformed answer in time; with its last words.
            SandboxUnavailableError: nothing on this machine can confine it.
        """
        connection = await self._begin()
        try:
            return await connection.handshake(deadline_s), connection.server
        finally:
            await connection.close()

    async def _begin(self) -> PluginConnection:
        limits = self.manifest.head.limits
        return PluginConnection(
            await linux.start(await asyncio.to_thread(self._policy)),
            self.manifest.id,
            Bounds(limits.memory_mb << 20, SCRATCH, limits.scratch_mb << 20),
        )

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

    def _policy(self) -> SandboxPolicy:
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
        if wanted := self.manifest.head.runtime.packages:
            files[f"{KIT}/packages.zip"] = packages.archive(wanted)
        head = self.manifest.head
        asked = head.permissions
        if asked.network or asked.hosts or asked.write_folders:
            raise ToolError(
                f"plugin {head.id} asks for hosts or for folders to write to, which this version "
                f"does not grant yet"
            )
        module = "bundle." + head.entry.removesuffix(".py").replace("/", ".")
        storage = (self._storage.open(), self._storage.size) if self._storage is not None else None
        settings = self._settings()
        if head.permissions.environment:
            files[VARIABLES] = json.dumps(settings.environment).encode()
        folders = {f"{DATA}/{name}": folder for name, folder in settings.folders.items()}
        if head.content:
            folders[FILES] = self._program(head.content)
        return SandboxPolicy(
            interpreter=self._runs_on,
            files=files,
            module=module,
            command=head.command,
            folders=folders,
            limits=head.limits,
            storage=storage,
        )

    def _program(self, content: str) -> Path:
        """The folder that a wrapped server runs on; read through once."""
        if self._content is None:
            self._content = store.find(content, interpreter.unprivileged_user())
        return self._content

    def _settings(self) -> "PluginSettings":
        """What the owner filled in, and no more than the manifest asks for.

        Raises:
            ToolError: something is missing, or a folder cannot be read by the plugin's user.
        """
        asked = self.manifest.head.permissions
        if not asked.folders and not asked.environment:
            return PluginSettings()
        path = self.folder / SETTINGS
        try:
            filled = tables.fill(PluginSettings, json.loads(path.read_bytes()), f"{path}: ")
        except FileNotFoundError:
            filled = PluginSettings()
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            raise ToolError(f"{path}: {error}; mend it, or wrap the plugin again") from None
        for kind, names, values in (
            ("folders", asked.folders, filled.folders),
            ("environment", asked.environment, filled.environment),
        ):
            if missing := [name for name in names if name not in values]:
                raise ToolError(
                    f"{path}: plugin {self.manifest.id} asks for {missing[0]}; write it there, "
                    f"under {kind}"
                )
        folders = {name: Path(filled.folders[name]) for name in asked.folders}
        user = interpreter.unprivileged_user()
        for folder in folders.values():
            if not folder.is_dir() or not interpreter.reachable(folder, user):
                raise ToolError(
                    f"{folder}: no folder that the plugin's user may read; name another in {path}"
                )
        environment = {name: filled.environment[name] for name in asked.environment}
        return PluginSettings(folders=folders, environment=environment)

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
