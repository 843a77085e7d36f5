"""What an owner fills in for one plugin: folders, hosts, variables.

Knows manifests, the file that holds what was filled in, and what a folder must be like to be
written to by others. Starts nothing.
Always: only what the manifest asks for is filled in; a folder that a plugin may change holds
nothing that is also in another place (no hard links), nothing of the system's or of programs', and
nothing that this node runs, or reads as its settings, models or plugins.

Not covered: what is written there is foreign. A folder that other programs act on by themselves (a
repository's hooks, a build's scripts) should be nobody's to write to but theirs.
"""

import contextlib
import dataclasses
import json
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import paths, tables
from ..core.errors import ConfigError
from . import endpoints, wrapping
from .manifest import Manifest
from .sandbox.watchdog import used_bytes

MAX_ENTRIES = 50_000  # of a folder to write to, which is read through before each start
EVERYTHING = 1 << 62
SETTINGS = "settings.json"
NOT_GRANTED = "not granted"


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """What its owner fills in for one plugin, in `SETTINGS` of its private folder."""

    folders: dict[str, Path] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # HOST or HOST:PORT
    # bytes that may lie in a folder it writes to; default: limits.folder_mb
    quotas: dict[str, int] = field(default_factory=dict)


def read(folder: Path) -> PluginSettings:
    """What was filled in for the plugin whose private folder this is; nothing if there is no file.

    Raises:
        ConfigError: the file cannot be read, or is not what is expected.
    """
    path = folder / SETTINGS
    try:
        return tables.fill(PluginSettings, json.loads(path.read_bytes()), f"{path}: ")
    except FileNotFoundError:
        return PluginSettings()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None


def pairs_of(option: str, texts: Sequence[str]) -> dict[str, list[str]]:
    """`NAME=VALUE` texts, by name. Raises: ConfigError: one that is none."""
    found = defaultdict[str, list[str]](list)
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise ConfigError(f"{option} {text!r} must be NAME=VALUE")
        found[name].append(value)
    return dict(found)


def filled(
    terms: Manifest,
    given: Mapping[str, Mapping[str, Sequence[str]]],
    user: int | None,
    read: Iterable[Path] = (),
) -> dict[str, dict[str, Any]]:
    """What `given` adds to a plugin's settings, checked.

    Args:
        given: option ("--read" …) → name that the manifest asks for → values.
        user: who runs the plugin; None: ourselves.
        read: as `may_write`.

    Raises:
        ConfigError: a name that it does not ask for, two values where one is expected, a folder
        or a host that is not granted to anybody.
    """
    asked = terms.head.permissions
    known = {
        "--read": asked.folders,
        "--write": asked.write_folders,
        "--env": asked.environment,
        "--host": asked.hosts,
    }
    added: dict[str, dict[str, Any]] = {
        name: {} for name in ("folders", "environment", "hosts", "quotas")
    }
    for option, values in given.items():
        for name, of in values.items():
            if name not in known[option]:
                raise ConfigError(
                    f"{option} {name}: {terms.id} does not ask for it; it asks for: "
                    f"{', '.join(known[option]) or 'none'}"
                )
            if option == "--host":
                added["hosts"][name] = [checked_host(one) for one in of]
                continue
            if len(of) > 1:
                raise ConfigError(f"{option} {name}: two values; name one")
            if option == "--env":
                added["environment"][name] = of[0]
                continue
            folder = wrapping.shown(Path(of[0]), option)
            added["folders"][name] = str(folder)
            if option == "--write":
                may_write(folder, user, read)
                added["quotas"] |= quotas({name: folder}, terms.head.limits.folder_mb)
    return added


def quotas(folders: Mapping[str, Path], grow_mb: int) -> dict[str, int]:
    """Bytes that may lie in each folder: what lies there now, and so much more."""
    return {
        name: used_bytes(folder, EVERYTHING) + (grow_mb << 20) for name, folder in folders.items()
    }


def joined(before: PluginSettings, added: Mapping[str, dict[str, Any]]) -> PluginSettings:
    """What was filled in, and what is added to it."""
    folders = {name: Path(path) for name, path in added["folders"].items()}
    hosts = {name: tuple(of) for name, of in added["hosts"].items()}
    return PluginSettings(
        folders=before.folders | folders,
        environment=before.environment | added["environment"],
        hosts=before.hosts | hosts,
        quotas=before.quotas | added["quotas"],
    )


def told(terms: Manifest, settings: PluginSettings) -> list[str]:
    """What a plugin asks its owner for, and what it was given, in lines for him."""
    asked = terms.head.permissions
    lines = [
        f"reads in {name}: {settings.folders.get(name, NOT_GRANTED)}" for name in asked.folders
    ]
    for name in asked.write_folders:
        most = settings.quotas.get(name, terms.head.limits.folder_mb << 20) >> 20
        folder = settings.folders.get(name)
        granted = f"{folder} (at most {most} MB in all)" if folder else NOT_GRANTED
        lines.append(f"reads, changes and deletes in {name}: {granted}")
    for name in asked.hosts:
        lines.append(f"connects to {name}: {', '.join(settings.hosts.get(name, (NOT_GRANTED,)))}")
    lines += [
        f"variable {name}: {'filled in' if name in settings.environment else NOT_GRANTED}"
        for name in asked.environment
    ]
    return lines or [f"{terms.id} asks its owner for nothing"]


def checked_host(text: str) -> str:
    """A host as its owner may name it. Raises: ConfigError: it is none."""
    try:
        return str(endpoints.parse(text, private=True))
    except ValueError as error:
        raise ConfigError(f"--host: {error}") from None


def may_write(folder: Path, user: int | None, read: Iterable[Path] = ()) -> None:
    """Whether a plugin of `user` may be let write to `folder`.

    Args:
        read: what else this node reads its settings or plugins from: `named_in` its configuration.

    Raises:
        ConfigError: it is too broad, cannot be written to or looked through, is reached by a link,
        holds a file that has another name elsewhere, which would change too, or is, holds or lies
        in a folder that this node reads programs, models, settings or plugins from.
    """
    if wrapping.shown(folder, "--write") != folder:
        raise ConfigError(f"{folder}: a link leads there; name the folder itself")
    home = Path.home().resolve()
    # `Path.resolve` ends with an error where links lead in a circle, which one in PATH may
    for source in {Path(os.path.realpath(one)) for one in (*read, *own_sources())}:
        inside = folder.is_relative_to(source) and not home.is_relative_to(source)
        if inside or source.is_relative_to(folder):
            raise ConfigError(
                f"{folder}: this node runs programs from, or reads models, settings or plugins in, "
                f"{source}; what a plugin writes there would act outside of its sandbox; name a "
                f"folder apart from it"
            )
    if not writable(folder, user):
        who = "this user" if user is None else f"user {user}, who runs plugins for root,"
        raise ConfigError(f"{folder}: {who} may not write there; change its owner or its mode")
    waiting, count, device = [folder], 0, folder.stat().st_dev
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    about, count = entry.stat(follow_symlinks=False), count + 1
                    # files may say another one than their folder does (overlayfs)
                    if stat.S_ISDIR(about.st_mode) and about.st_dev != device:
                        raise ConfigError(
                            f"{entry.path}: another disk is mounted there, whose room is not "
                            f"counted; name a folder without one"
                        )
                    if stat.S_ISDIR(about.st_mode):
                        waiting.append(Path(entry.path))
                    elif stat.S_ISREG(about.st_mode) and about.st_nlink > 1:
                        raise ConfigError(
                            f"{entry.path}: this file has another name too (a hard link), and "
                            f"would change there; put a copy in its place"
                        )
                    if count > MAX_ENTRIES:
                        raise ConfigError(f"{folder}: more than {MAX_ENTRIES} files; name another")
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: cannot be looked through ({error.strerror}), so nobody "
            f"knows what would change; mend its mode, or take it away"
        ) from None


def own_sources() -> Iterator[Path]:
    """Where this node finds its home, programs, libraries and models, whatever its settings say."""
    from ..core.models.hub.elsewhere import lm_studio_folders, ollama_folders

    yield from (paths.home(), paths.models(), Path(__file__).parents[1])
    yield from (*lm_studio_folders(), *ollama_folders())
    yield from map(Path, (sys.prefix, sys.base_prefix, sys.executable, *sys.path))
    listed = (os.environ.get("PATH"), os.environ.get("LD_LIBRARY_PATH"))
    for folders in filter(None, listed):
        yield from (Path(one) for one in folders.split(os.pathsep) if one)


def named_in(settings: object) -> Iterator[Path]:
    """All files and folders that a configuration names. A text may name one too (`engine.model`):
    one that begins at the root or at a home, or by which something lies here.
    """
    if isinstance(settings, Path):
        yield settings
    elif isinstance(settings, str) and settings:
        with contextlib.suppress(RuntimeError):  # of nobody's home
            place = Path(settings).expanduser()
            if place.is_absolute() or os.path.lexists(place):
                yield place
    elif isinstance(settings, tuple):
        for one in settings:
            yield from named_in(one)
    elif dataclasses.is_dataclass(settings):
        for held in dataclasses.fields(settings):
            yield from named_in(getattr(settings, held.name))


def writable(folder: Path, user: int | None) -> bool:
    """Whether `user` (None: ourselves) may make files in `folder`."""
    if user is None:
        return os.access(folder, os.W_OK | os.X_OK)
    about = folder.stat()
    return bool(about.st_mode & stat.S_IWOTH) or (
        about.st_uid == user and bool(about.st_mode & stat.S_IWUSR)
    )
