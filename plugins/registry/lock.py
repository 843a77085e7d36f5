"""Where installed plugins came from, which of them stay at their version, and which may not run.

Knows two files: origins, by the SHA-256 of packed plugins, and warnings, what any registry revoked
or rejected as this node looked. Knows nothing of networks.
Always: an origin is of exactly these bytes, so an installation that was interrupted leaves no
plugin with another's origin; other bytes under an id that came from a registry do not run; a plugin
of no registry has none.
"""

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...core import paths, tables
from ...core.errors import ConfigError, RegistryError
from .. import installing
from ..manifest import Manifest

# in the folder of a registry: what its owner said of it, and what it was when it was forgotten
ABOUT, FORGOTTEN = "registry.json", "forgotten.json"
WARNINGS = "warnings.jsonl"  # beside those folders; no command takes a line of it away


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


def warnings() -> list[dict[str, Any]]:
    """What any registry once said against a release, under any name and root: rows with `registry`
    and either `revoked`, a revocation, or `rejected`, a line of its log.

    Raises:
        RegistryError: the file cannot be read.
    """
    held = registries() / WARNINGS
    try:
        rows = [json.loads(line) for line in held.read_bytes().splitlines()]
        for row in rows:
            _ = row["registry"], row["revoked" if "revoked" in row else "rejected"]["id"]
        return rows
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RegistryError(
            f"{held}: cannot be read ({error}); restore it, or move it away and run: plugin "
            f"update --look"
        ) from None


def remember(
    registry: str, revoked: Iterable[Mapping[str, Any]], rejected: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Add to `warnings` what is not in it. Raises: RegistryError: as `warnings`, or no
    revocation; nothing of it is kept.
    """
    said = [{"revoked": dict(row)} for row in revoked]
    for row in said:
        about = row["revoked"]
        versions = about.get("versions")
        if not (
            isinstance(versions, list)
            and all(isinstance(one, str) for one in (*versions, about.get("id")))
        ):
            raise RegistryError(f"{registry}: {str(about)[:100]} is no revocation; ask its owner")
    said += [{"rejected": dict(row)} for row in rejected]
    if not said:
        return
    with (paths.private_folder(registries()) / f".{WARNINGS}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = warnings()
        known = [{key: row[key] for key in row if key != "registry"} for row in before]
        fresh = [{"registry": registry, **row} for row in said if row not in known]
        if fresh:
            lines = "".join(f"{json.dumps(row)}\n" for row in (*before, *fresh))
            paths.write_atomically(registries() / WARNINGS, lines.encode(), mode=0o600)


def revoked(plugin_id: str, version: str) -> str:
    """Why a release was stopped by any registry that this node ever asked; empty if it was not.
    Raises: as `warnings`.
    """
    for row in warnings():
        about = row.get("revoked")
        if about and about["id"] == plugin_id and version in (about["versions"] or [version]):
            return f"revoked by {row['registry']}: {about.get('reason')}"
    return ""


def rejections(sha256: str) -> list[dict[str, Any]]:
    """The lines of logs by which an archive was rejected, as far as this node saw any. Raises: as
    `warnings`.
    """
    found = (row.get("rejected", {}) for row in warnings())
    return [row for row in found if row.get("sha256") == sha256]


def news() -> int:
    """Another value whenever a look, of this process or another, brought other revocations."""
    try:
        return (registries() / WARNINGS).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


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
        if why := revoked(terms.id, terms.head.version):
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
