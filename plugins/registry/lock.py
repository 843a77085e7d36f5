"""Where installed plugins came from, which of them stay at their version, and which may not run.

Knows one file, by the SHA-256 of packed plugins. Knows nothing of networks: what was revoked is
what the last look brought.
Always: an origin is of exactly these bytes, so an installation that was interrupted leaves no
plugin with another's origin; other bytes under an id that came from a registry do not run; a plugin
of no registry has none.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ...core import paths, tables
from ...core.errors import ConfigError, RegistryError
from .. import installing
from ..manifest import Manifest
from .listing import REVOCATIONS

# in the folder of a registry: what its owner said of it, and what it was when it was forgotten
ABOUT, FORGOTTEN = "registry.json", "forgotten.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who published one packed plugin."""

    id: str
    version: str
    registry: str
    author_key: str
    reviewers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFile:
    """The file's content."""

    origins: dict[str, Origin] = field(default_factory=dict)  # by the archive's SHA-256
    pinned: tuple[str, ...] = ()  # ids that `update` leaves as they are


def registries() -> Path:
    """Where the registries that this node trusts are remembered."""
    return paths.home() / "registries"


def path() -> Path:
    """Where the file lies."""
    return paths.home() / "plugins" / "plugins.lock"


def read() -> LockFile:
    """What it says. Raises: ConfigError: it cannot be read."""
    try:
        return tables.fill(LockFile, json.loads(path().read_bytes()), f"{path()}: ")
    except FileNotFoundError:
        return LockFile()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path()}: cannot be read ({error}); restore it or move it away"
        ) from None


def write(content: LockFile) -> None:
    """Say something else."""
    paths.private_folder(path().parent)
    whole = {
        "origins": {digest: asdict(origin) for digest, origin in content.origins.items()},
        "pinned": sorted(content.pinned),
    }
    paths.write_atomically(path(), json.dumps(whole, indent=1).encode() + b"\n", mode=0o600)


@contextmanager
def changing() -> Iterator[LockFile]:
    """What it says, to this process alone until it has said something else."""
    with (paths.private_folder(path().parent) / ".plugins.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield read()


def record(digest: str, origin: Origin) -> None:
    """Remember where an archive came from, before it is installed; what is there stays known."""
    with changing() as held:
        write(replace(held, origins={**held.origins, digest: origin}))


def prune(plugin_id: str, digest: str = "") -> None:
    """Forget the other archives of a plugin, once `digest` is installed or it is removed."""
    with changing() as held:
        kept = {
            key: origin
            for key, origin in held.origins.items()
            if origin.id != plugin_id or key == digest
        }
        pinned = tuple(one for one in held.pinned if one != plugin_id or digest)
        if (kept, pinned) != (held.origins, held.pinned):
            write(LockFile(origins=kept, pinned=pinned))


def pin(plugin_id: str, *, stays: bool) -> None:
    """Let `update` leave a plugin at its version, or no longer."""
    with changing() as held:
        write(replace(held, pinned=tuple({*held.pinned} - {plugin_id}) + (plugin_id,) * stays))


def origin_of(terms: Manifest) -> Origin | None:
    """Where a plugin came from, if from a registry; also one whose files were changed since."""
    return sought(read(), terms)[0]


def intact(terms: Manifest) -> bool:
    """Whether exactly these bytes came from a registry."""
    return sought(read(), terms)[1]


def sought(held: LockFile, terms: Manifest) -> tuple[Origin | None, bool]:
    """Where a plugin came from, and whether it still is to the byte what came."""
    exact = held.origins.get(installing.digest_of(installing.pack(terms)))
    if exact is not None and (exact.id, exact.version) == (terms.id, terms.head.version):
        return exact, True
    mine = (one for one in reversed(held.origins.values()) if one.id == terms.id)
    return next(mine, None), False


def revoked(origin: Origin) -> str:
    """Why its registry stopped a plugin, as it was told under any of its names here; empty if it
    did not.

    Raises:
        RegistryError: what the registry revoked was brought and cannot be read.
    """
    return next(filter(None, (told(origin, name) for name in mirrors(origin.registry))), "")


def mirrors(name: str) -> list[str]:
    """A registry, and others that begin with the same root file: copies of it, also those that were
    forgotten.
    """
    roots = dict[str, str]()
    for file in (ABOUT, FORGOTTEN):
        for about in registries().glob(f"*/{file}"):
            with suppress(OSError, ValueError, TypeError, KeyError):
                roots[about.parent.name] = f"{json.loads(about.read_bytes())['root_sha256']}"
    mine = roots.get(name)
    return [name, *(one for one in sorted(roots) if mine and roots[one] == mine and one != name)]


def told(origin: Origin, name: str) -> str:
    """Why a plugin was stopped, as the registry called `name` says. Raises: as `revoked`."""
    held = registries() / name / "targets" / REVOCATIONS
    try:
        rows = json.loads(held.read_bytes())["revocations"]
        for row in rows:
            if row["id"] == origin.id and (
                not row["versions"] or origin.version in row["versions"]
            ):
                return f"revoked by {name}: {row['reason']}"
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RegistryError(
            f"{held}: cannot be read ({error}); run: plugin update --look"
        ) from None
    return ""


def news() -> tuple[tuple[str, int], ...]:
    """Another value whenever a look, of this process or another, brought other revocations."""
    found = []
    for held in sorted(registries().glob(f"*/targets/{REVOCATIONS}")):
        with suppress(FileNotFoundError):  # replaced in this moment
            found.append((str(held), held.stat().st_mtime_ns))
    return tuple(found)


def halted(terms: Manifest) -> str:
    """Why an installed plugin may not run now: changed, revoked, or without the licence that it is
    sold under. Empty if it may. What cannot be read says so, and stops it.
    """
    try:
        origin, whole = sought(read(), terms)
        if origin is not None and not whole:
            return (
                f"its files were changed since they came from {origin.registry}; plugin install "
                f"{terms.id} brings it again, or: plugin remove {terms.id}"
            )
        if origin is not None and (why := revoked(origin)):
            return why
        if terms.head.license.kind == "free":
            return ""
        from . import licences  # with it the libraries of signatures, which free ones do without

        return licences.missing(terms)
    except (ConfigError, RegistryError, ValueError, OSError) as error:
        return str(error)


def origins(manifests: Mapping[str, Manifest]) -> dict[str, Origin]:
    """Of all plugins that came from a registry."""
    held = read()
    found = {plugin_id: sought(held, terms)[0] for plugin_id, terms in manifests.items()}
    return {plugin_id: origin for plugin_id, origin in found.items() if origin is not None}
