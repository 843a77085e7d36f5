"""Plugins that the owner lets in: copied under the node's home, where nobody else writes.

Knows manifests, archives and folders. Asks nobody: whoever calls has shown `Head.asks` before.
Always: an installed plugin is a copy, checked whole before the old one makes room; what one kept is
given to no other of its id unasked; a packed one is the same bytes each time; no archive writes
outside of its own folder, nor more than it says.
"""

import ctypes
import hashlib
import io
import json
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core import paths
from ..core.errors import ConfigError, ManifestError
from . import manifest, skills
from .grants import SETTINGS, PluginSettings
from .hidden import legible
from .manifest import DIGEST, FILE, ID, Manifest, PluginLimits
from .running import Introduction, Plugin, plugin_folder
from .sandbox import interpreter, store
from .wrapping import Wrapped

START_S = 60.0  # a server that is started for the first time compiles its files
WRAPPED_LIMITS = PluginLimits(memory_mb=512, cpu_s=600, processes=32, scratch_mb=64)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a bound
BROKEN = (  # what `zipfile` says of an archive that is none
    *(OSError, EOFError, NotImplementedError, RuntimeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
LONGEST = 400  # characters of a description
MAX_ARCHIVE_BYTES = manifest.MAX_BUNDLE_BYTES + (4 << 20)  # of `pack`, names included
SERVER = '''"""{id}: say here what it is for."""

from quietchoir_sdk import serve, tool


@tool(read_only=True)
def greet(name: str = "you") -> str:
    "Greet somebody."
    return f"Hello, {{name}}."


serve("{id}", "0.1.0")
'''


def root() -> Path:
    """Where installed plugins lie."""
    return paths.home() / "plugins" / "installed"


def installed() -> list[Path]:
    """The folders of all installed plugins."""
    return sorted(path.parent for path in root().glob(f"*/*/{FILE}"))


def open_bundle(source: Path, into: Path) -> Manifest:
    """The plugin in `source`, a folder or an archive of `pack`.

    Args:
        into: an empty folder, for what an archive holds.

    Raises:
        ManifestError: neither, or a plugin that is refused.
    """
    if source.is_dir():
        return skills.read(source)
    try:
        if source.stat().st_size > 2 * manifest.MAX_BUNDLE_BYTES:
            raise ManifestError(f"{source}: more than a bundle may hold; see plugins/sdk")
        with zipfile.ZipFile(source) as archive:
            rows = archive.infolist()
            if len(rows) > manifest.MAX_FILES or (
                sum(row.file_size for row in rows) > manifest.MAX_BUNDLE_BYTES
            ):
                raise ManifestError(f"{source}: more than a bundle may hold; see plugins/sdk")
            for row in rows:
                path = into / row.filename
                if row.is_dir() or not path.resolve().is_relative_to(into.resolve()):
                    raise ManifestError(f"{source}: {row.filename!r} is no file of a bundle")
                if row.compress_type not in METHODS:
                    raise ManifestError(
                        f"{source}: {row.filename!r} is packed by method {row.compress_type}; "
                        f"stored and deflated files are read"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(row) as packed:  # `read` of all would unpack past what it says
                    path.write_bytes(packed.read(row.file_size + 1))
    except BROKEN as error:
        raise ManifestError(f"{source}: no folder and no archive of a plugin ({error})") from None
    return skills.read(into)


def unpack(archive: bytes) -> Manifest:
    """The plugin in an archive that a registry has. Raises: ManifestError: as `open_bundle`; or it
    is not what `pack` makes of its files, and so holds more than them.
    """
    with tempfile.TemporaryDirectory() as folder:
        packed, into = Path(folder) / "plugin.zip", Path(folder) / "bundle"
        packed.write_bytes(archive)
        terms = open_bundle(packed, into)
    if pack(terms) != archive:
        raise ManifestError(
            f"{terms.id}: the archive is not what `plugin pack` makes of its files; it is refused"
        )
    return terms


def differences(terms: Manifest, before: Manifest) -> list[str]:
    """What is new in a plugin for its owner, in words: what it may use, and what its tools say."""
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
    if terms.head.author_key != before.head.author_key:
        new.append("another author's key")
    if terms.head.license != before.head.license:
        new.append(f"licence {terms.head.license.spdx} {terms.head.license.price or 'free'}")
    return new


def install(terms: Manifest, host: Mapping[str, Manifest], *, same: bool = False) -> Path:
    """Copy a plugin in; the one that was there under its id makes room.

    Args:
        host: the plugins that are installed already, by id.
        same: its owner says that it is the next version of the one that was there, and is given
            what that one kept (`left_over`); else that is set aside.

    Raises:
        ManifestError: it poses as ours, was wrapped elsewhere, or offers a tool that another
        installed plugin offers.
    """
    if terms.head.command:
        raise ManifestError(f"{terms.id} was wrapped for another node; wrap its server here")
    return place(terms, host, aside=not same)


def place(
    terms: Manifest,
    host: Mapping[str, Manifest],
    *,
    settings: PluginSettings | None = None,
    aside: bool = False,
) -> Path:
    """As `install`, for what this node itself wrapped too.

    Args:
        settings: in place of those that are here.
        aside: what another plugin of this id kept is put where no plugin looks.
    """
    require_place(terms, host)
    target = root() / terms.id
    replaced = content_of(target)
    paths.private_folder(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as made:
        fresh = Path(made) / "bundle"
        for name, content in terms.files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)
        manifest.read(fresh)
        if aside and left_over(terms):
            set_aside(plugin_folder(terms.id))
        if settings is not None:
            (plugin_folder(terms.id) / SETTINGS).unlink(missing_ok=True)  # never the old one's
        swap(fresh, target)
    if settings is not None:
        fill_in(plugin_folder(terms.id), settings)
    forget_content(replaced)
    return target


def require_place(terms: Manifest, host: Mapping[str, Manifest]) -> None:
    """Raises: ManifestError: it poses as ours, or offers a tool that another plugin offers."""
    if terms.id.startswith("quietchoir/"):
        raise ManifestError(f"{terms.id}: quietchoir publishes only what comes with it")
    mine = {tool.name for tool in terms.tools}
    for other in host.values():
        if both := mine & {tool.name for tool in other.tools if other.id != terms.id}:
            raise ManifestError(
                f"{terms.id} and {other.id} both offer the tool {min(both)}; remove one of them"
            )


def swap(fresh: Path, target: Path) -> None:
    """Put one folder in another's place, and the other in its own. In one step where the kernel
    can, so that not even a power cut leaves nothing there; else the old one goes back if it fails.
    """
    if not target.exists():
        fresh.rename(target)
    elif not exchange(fresh, target):
        old = fresh.with_name("old")
        target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:  # Ctrl-C too
            old.rename(target)
            raise


def exchange(one: Path, other: Path) -> bool:
    """Whether the kernel exchanged two names; nothing changed if not."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swaps = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and not call(here, os.fsencode(one), here, os.fsencode(other), swaps)


def left_over(terms: Manifest) -> list[str]:
    """What lies in the private folder of this id and was not given to these very bytes: an id is
    the bundle's own word, so its next version and a stranger's plugin look alike.
    """
    here = root() / terms.id
    try:
        if here.is_dir() and manifest.bundle(here) == terms.files:
            return []
    except ManifestError:
        pass  # spoiled: whose it was is not known
    folder = plugin_folder(terms.id)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def set_aside(folder: Path) -> None:
    """Rename a private folder to what no id is called."""
    number = 1
    while (gone := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(gone)


def fill_in(folder: Path, settings: PluginSettings) -> None:
    """Write what an owner fills in for one plugin into its private folder."""
    filled = {
        "folders": {name: str(path) for name, path in settings.folders.items()},
        "environment": settings.environment,
        "hosts": {name: list(of) for name, of in settings.hosts.items()},
        "quotas": settings.quotas,
    }
    paths.private_folder(folder)
    paths.write_atomically(folder / SETTINGS, json.dumps(filled, indent=1).encode(), mode=0o600)


def remove(plugin_id: str, *, forget: bool) -> None:
    """Take an installed plugin away.

    Args:
        forget: its storage and settings too, and what was set aside of its id.

    Raises:
        ConfigError: no such plugin is installed.
    """
    target = root() / plugin_id
    if not ID.fullmatch(plugin_id) or not target.is_dir():
        known = [path.relative_to(root()).as_posix() for path in installed()]
        raise ConfigError(
            f"{plugin_id!r} is not installed; installed are: {', '.join(known) or 'none'}"
        )
    content = content_of(target)
    shutil.rmtree(target)
    if forget:
        private = plugin_folder(plugin_id)
        for folder in (private, *private.parent.glob(f"{private.name}.*")):  # set aside, or of dev
            shutil.rmtree(folder, ignore_errors=True)
    forget_content(content)


def forget_content(content: str) -> None:
    """Remove what a wrapped server ran on, unless another one runs on it too."""
    if content and content not in {content_of(path) for path in installed()}:
        store.forget(content, interpreter.unprivileged_user())


def content_of(folder: Path) -> str:
    """The folder of `sandbox.store` that an installed plugin runs on; empty if none."""
    try:
        found = json.loads((folder / FILE).read_bytes()).get("content", "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return found if isinstance(found, str) and DIGEST.fullmatch(found) else ""


def scaffold(folder: Path, plugin_id: str) -> None:
    """A plugin of ten lines in an empty or new `folder`; `pin` makes it whole.

    Raises:
        ConfigError: something lies there already, or an id that is none.
    """
    if not ID.fullmatch(plugin_id):
        raise ConfigError(f"--id {plugin_id!r}: expected publisher/name, for example ann/counter")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.py").write_text(SERVER.format(id=plugin_id), "utf-8")
    write_manifest(
        folder,
        {
            "schema": manifest.SCHEMA,
            "id": plugin_id,
            "version": "0.1.0",
            "kind": "mcp",
            "description": "Say here what it is for.",
            "entry": "server.py",
            "license": {"spdx": "Apache-2.0"},
        },
        [],
    )


def write_manifest(folder: Path, table: Mapping[str, Any], tools: Sequence[Any]) -> None:
    """Write a manifest with `tools` and their digest pinned. Raises: ManifestError: as `pinned`."""
    paths.write_atomically(folder / FILE, pinned(table, tools) + b"\n")


def pinned(table: Mapping[str, Any], tools: Sequence[Any]) -> bytes:
    """A manifest's text. Raises: ManifestError: half a character in it, which no file can hold."""
    whole = {**table, "tools_digest": manifest.digest(tools), "tools": list(tools)}
    try:
        return json.dumps(whole, indent=1, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ManifestError(
            f"{table.get('id')}: {error.object[error.start : error.end]!r} in its command or tools "
            f"is half a character (a lone surrogate); ask its author to mend it"
        ) from None


def trial_folder(plugin_id: str, bundle: Path) -> Path:
    """The private folder of a plugin that is tried and not installed: not that of the installed one
    of its id, whose owner gave it what it has.
    """
    whole = hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()
    return plugin_folder(f"{plugin_id}.dev-{whole[:12]}")


async def live(terms: Manifest, folder: Path) -> Introduction:
    """What a plugin offers when it is started here, confined, with what lies in `folder`. Raises:
    as `Plugin.listing`.
    """
    plugin = Plugin(terms, folder, {})
    try:
        return await plugin.listing(START_S)
    finally:
        await plugin.stop()


def table_of(folder: Path) -> dict[str, Any]:
    """A manifest as JSON, whatever its tools say. Raises: ManifestError: no such file, no JSON."""
    try:
        table = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(
            f"{folder / FILE}: cannot be read ({error}); begin with: quietchoir plugin new"
        ) from None
    if not isinstance(table, dict):
        raise ManifestError(f"{folder / FILE}: expected an object")
    return table


async def pin(folder: Path) -> Manifest:
    """Write what the plugin in `folder` really offers into its manifest, with its digest. Effects
    that its author wrote by hand stay.

    Raises:
        ManifestError: the rest of the manifest is refused; the file is unchanged.
        PluginError: it does not start, or offers what no manifest may hold.
    """
    table = table_of(folder)
    rows = table.get("tools")
    written = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    effects = {row.get("name"): row["effect"] for row in written if "effect" in row}
    blank = {**table, "tools": [], "tools_digest": manifest.digest([])}
    files = manifest.bundle(folder) | {FILE: json.dumps(blank).encode()}
    terms = manifest.parse(files, folder)
    said = await live(terms, trial_folder(terms.id, folder))
    tools = said.tools
    table.pop("offers", None)
    if said.offers:
        table["offers"] = list(said.offers)
    for tool in tools:
        if tool.get("name") in effects:
            tool["effect"] = effects[tool["name"]]
    whole = {**table, "tools": tools, "tools_digest": manifest.digest(tools)}
    manifest.parse(files | {FILE: json.dumps(whole).encode()}, folder)  # before anything is written
    write_manifest(folder, table, tools)
    return manifest.read(folder)


def pack(terms: Manifest) -> bytes:
    """The plugin as one archive: the same bytes for the same files, whenever and wherever."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(terms.files):
            row = zipfile.ZipInfo(name)  # 1980-01-01, and no owner
            row.external_attr = 0o644 << 16
            row.create_system = 3
            archive.writestr(row, terms.files[name], zipfile.ZIP_STORED)
    return packed.getvalue()


def digest_of(archive: bytes) -> str:
    """SHA-256 of a packed plugin."""
    return hashlib.sha256(archive).hexdigest()


async def wrap(
    plugin_id: str,
    command: Sequence[str],
    found: Wrapped,
    *,
    settings: PluginSettings,
    limits: PluginLimits = WRAPPED_LIMITS,
) -> Manifest:
    """The manifest of an existing MCP server, from what it says when it is started, confined.

    Args:
        command: as it is called inside.
        found: what it runs on; copied.
        settings: what its owner shows to it and fills in, kept apart from the manifest; `place`
            is what writes them.

    Raises:
        ManifestError: an id that is none, a folder that the plugin's user may not read, or a server
        whose tools no manifest may hold.
        PluginError: it does not start in the sandbox; with its last words.
    """
    user = interpreter.unprivileged_user()
    for folder in settings.folders.values():
        if not interpreter.reachable(folder, user):
            raise ManifestError(
                f"{folder}: no folder that the plugin's user may read; name another, or run "
                f"quietchoir as an ordinary user"
            )
    runs_on = interpreter.find(user)
    if found.python and found.python != (version := interpreter.minor_version(runs_on)):
        raise ManifestError(
            f"{found.folder}: packages of Python {found.python}, and plugins run on {version} "
            f"({runs_on.executable}); install them with that one"
        )
    content = store.keep(found.folder, user) if found.folder else ""
    try:
        head = {
            "schema": manifest.SCHEMA,
            "id": plugin_id,
            "version": "0.0.0",
            "kind": "mcp",
            "description": "An MCP server.",
            "command": list(command),
            "content": content,
            "license": {"spdx": "NOASSERTION"},
            "permissions": {
                "folders": [name for name in settings.folders if name not in settings.quotas],
                "write_folders": list(settings.quotas),
                "environment": list(settings.environment),
                "hosts": list(settings.hosts),
            },
            "limits": asdict(limits),
        }
        here = paths.private_folder(paths.home() / "plugins")
        with tempfile.TemporaryDirectory(dir=here, prefix=".trial-") as trial:
            fill_in(Path(trial), settings)
            said = await live(draft(head, []), Path(trial))
        if said.offers:
            head["offers"] = list(said.offers)
        name, version = (str(said.about.get(key, ""))[:LONGEST] for key in ("name", "version"))
        if manifest.VERSION.fullmatch(version):
            head["version"] = version
        head["description"] = legible(f"MCP server {name} {version}, wrapped.")
        return draft(head, said.tools)
    except BaseException:
        forget_content(content)
        raise


def draft(head: Mapping[str, Any], tools: Sequence[Any]) -> Manifest:
    """A manifest that is not on the disk yet. Raises: ManifestError: as `manifest.read`."""
    return manifest.parse({FILE: pinned(head, tools)}, Path(str(head["id"])))


def slug(text: str) -> str:
    """A name that an id may hold."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:39].strip("-") or "server"
