"""Plugins of the registries that this node trusts: found, shown, installed, updated; for the
command line and for the page.

Knows which registry a plugin came from. Asks nobody: whoever calls shows a `Proposal` first.
Always: nothing is fetched unless somebody asks for it here; what is installed is, to the byte, what
was shown; an update comes from the registry that the plugin came from, and no other; until it is
whole the old one stays.
"""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..core.config import PluginsConfig
from ..core.errors import ConfigError, ManifestError, PluginError, RegistryError
from . import installing, manifest
from .host import PUBLISHER, PluginHost, available
from .manifest import Manifest, Permissions
from .registry import client, listing, lock
from .registry.client import Release, opened
from .registry.lock import Origin


@dataclass(frozen=True, slots=True)
class Proposal:
    """A release that may be installed, as it is shown to the node's owner."""

    release: Release
    terms: Manifest
    before: Manifest | None  # what is installed of it
    new: tuple[str, ...]  # what the installed one does not have
    same_author: bool  # its key signed the installed one too, in the same registry


def look() -> dict[str, str]:
    """Ask every trusted registry what is new, revocations first of all. Returns: name → why it
    cannot be believed; empty if it can.
    """
    found = {}
    for name in client.trusted():
        try:
            with opened(name) as registry:
                registry.refresh()
                registry.chain()  # a rejection that was seen is not dropped later
            found[name] = ""
        except RegistryError as error:
            found[name] = str(error)
    return found


def search(words: Sequence[str]) -> list[dict[str, Any]]:
    """What the trusted registries offer, each plugin's newest release.

    Raises:
        ConfigError: none is trusted. RegistryError: one is not to be believed.
    """
    found = []
    for name in required():
        with opened(name) as registry:
            registry.refresh()
            found += registry.search(words)
    return [{**row, "revoked": lock.revoked(row["id"], row["version"])} for row in found]


def required() -> list[str]:
    """The trusted registries. Raises: ConfigError: none."""
    if names := client.trusted():
        return names
    raise ConfigError(
        "no registry is trusted yet; its owner tells the digest of its root file, then: plugin "
        "registry trust NAME URL --root-sha256 DIGEST"
    )


def find(plugin_id: str, version: str = "", registry: str = "") -> Release:
    """One release, the newest by default.

    Raises:
        RegistryError: none, or two registries have one: who is meant must be said.
    """
    with opened(registry or sole(plugin_id)) as held:
        held.refresh()
        return held.release(plugin_id, version)


def sole(plugin_id: str) -> str:
    """The one trusted registry that has a plugin. Raises: RegistryError: none has, or two have."""
    names = required()
    if len(names) == 1:
        return names[0]
    having = []
    for name in names:
        with opened(name) as registry:
            registry.refresh()
            if registry.releases(plugin_id):
                having.append(name)
    if len(having) != 1:
        raise RegistryError(
            f"{plugin_id} is in {' and '.join(having)}; say which with --registry"
            if having
            else f"{plugin_id} is in none of {', '.join(names)}"
        )
    return having[0]


def propose(
    plugin_id: str, version: str, known: Mapping[str, Manifest], registry: str = ""
) -> Proposal:
    """Fetch a release and check all of it; nothing is installed.

    Args:
        known: the plugins that are here, by id.

    Raises:
        RegistryError: not to be believed, revoked, or not reviewed enough.
        ManifestError: the archive is none, or another one than its registry says.
    """
    before = known.get(plugin_id)
    held = lock.origin_of(before) if before is not None else None
    if held is not None and registry not in ("", held.registry):
        raise RegistryError(
            f"{plugin_id} came from {held.registry}; remove it first, if it shall come from "
            f"{registry}"
        )
    name = registry or (held.registry if held is not None else sole(plugin_id))
    with opened(name) as source:
        source.refresh()
        release = source.release(plugin_id, version)
        if why := lock.revoked(plugin_id, release.listing.version):
            raise RegistryError(f"{plugin_id} {release.listing.version} is {why}")
        if short := release.shortfall:  # before anything of it is fetched
            raise RegistryError(f"{plugin_id} {release.listing.version} is not installed: {short}")
        terms = installing.unpack(source.archive(release))
    mine = listing.listing_of(terms, release.listing.commit)
    if not listing.agree(mine, release.listing):
        raise ManifestError(f"{plugin_id}: its archive holds another plugin than {name} says")
    if short := release.shortfall_of(mine):
        raise RegistryError(f"{plugin_id} {mine.version} is not installed: {short}")
    installing.require_place(terms, known)
    new = installing.differences(terms, before) if before is not None else []
    whole = before is not None and lock.intact(before)
    same = whole and held is not None and held.author_key == terms.head.author_key
    return Proposal(release, terms, before, tuple(new), same)


def origin_of(release: Release) -> Origin:
    """What the lock file is to know of it."""
    names = {key: name for name, key in release.policy.reviewers.items()}
    return Origin(
        id=release.listing.id,
        version=release.listing.version,
        registry=release.registry,
        author_key=release.listing.author_key,
        reviewers=tuple(sorted({names[one.key] for one in release.reviews if one.key in names})),
    )


def install(proposal: Proposal, known: Mapping[str, Manifest], *, same: bool = False) -> None:
    """Copy it in. Where it came from is written first, so that no moment leaves it without.

    Args:
        same: its owner says that it is the next version of what is here; an author's key that
            signed both says so too.

    Raises:
        ManifestError: as `installing.install`; nothing was changed.
    """
    lock.record(proposal.release.sha256, origin_of(proposal.release))
    try:
        installing.install(proposal.terms, known, same=same or proposal.same_author)
    finally:
        settle(proposal.terms.id)


def settle(plugin_id: str) -> None:
    """Forget the origins of a plugin that are not those of what is installed; if that was changed,
    they stay, so that it does not run.
    """
    folder = installing.root() / plugin_id
    if not folder.exists():
        lock.prune(plugin_id)
        return
    with suppress(ManifestError):
        here = manifest.read(folder)
        if lock.intact(here):
            lock.prune(plugin_id, installing.digest_of(installing.pack(here)))


def remove(plugin_id: str, *, forget: bool) -> None:
    """Take it away, and forget where it came from. Raises: ConfigError: as `installing.remove`."""
    try:
        installing.remove(plugin_id, forget=forget)
    finally:
        settle(plugin_id)


def outdated(known: Mapping[str, Manifest]) -> dict[str, str]:
    """Installed plugin → newer version in its own registry; pinned ones are left out.

    Raises:
        RegistryError: one of the registries is not to be believed.
    """
    found, pinned = dict[str, str](), lock.read().pinned
    by_registry = dict[str, list[str]]()
    origins = lock.origins(known)
    for plugin_id, origin in origins.items():
        if plugin_id not in pinned and origin.registry in client.trusted():
            by_registry.setdefault(origin.registry, []).append(plugin_id)
    for name, ids in by_registry.items():
        with opened(name) as registry:
            registry.refresh()
            for plugin_id in ids:
                versions = [
                    version
                    for version in registry.releases(plugin_id)
                    if not lock.revoked(plugin_id, version)
                ]
                newest = max(versions, key=listing.order, default="")
                here = known[plugin_id].head.version
                if newest and listing.order(newest) > listing.order(here):
                    found[plugin_id] = newest
    return found


def verify(known: Mapping[str, Manifest]) -> list[str]:
    """What is wrong with the installed plugins and with what their registries say; a sentence each.

    Every registry is looked at; its whole log is fetched and must go on from the one seen before,
    and each installed release must stand in it.
    """
    wrong = []
    origins = lock.origins(known)
    logs: dict[str, set[tuple[object, object, object]]] = {}
    for name in {origin.registry for origin in origins.values()} | set(client.trusted()):
        try:
            with opened(name) as registry:
                registry.refresh()
                entries, _ = registry.log()
                rows = [row for row in entries if row.get("what") == "add"]
                logs[name] = {
                    (row.get("id"), row.get("version"), row.get("sha256")) for row in rows
                }
        except (ConfigError, PluginError) as error:
            wrong.append(str(error))
    for plugin_id in sorted({one.id for one in lock.read().origins.values()} - set(known)):
        wrong.append(f"{plugin_id}: came from a registry, and is gone or cannot be read")
    for plugin_id, origin in origins.items():
        digest = installing.digest_of(installing.pack(known[plugin_id]))
        if (
            origin.registry in logs
            and (plugin_id, origin.version, digest) not in logs[origin.registry]
        ):
            wrong.append(f"{plugin_id}: the log of {origin.registry} knows nothing of this release")
        if why := lock.halted(known[plugin_id]):
            wrong.append(f"{plugin_id}: {why}")
    for plugin_id, terms in known.items():  # also of those that came as a file
        if plugin_id not in origins and (why := lock.revoked(plugin_id, terms.head.version)):
            wrong.append(f"{plugin_id}: {why}")
    return wrong


class NodeMarket:
    """The market of a running node, as JSON for its page: `core.server.plugins_api.OwnersPlugins`.

    Args:
        host: what runs; a revoked plugin is stopped there. An installed one answers after the
            node's next start.
    """

    def __init__(self, host: PluginHost, config: PluginsConfig) -> None:
        self.host, self.config = host, config

    def overview(self) -> dict[str, Any]:
        """What this node knows without asking anybody."""
        known, rows = self._known(), []
        let_in = {terms.id for terms in self._installed()}
        origins, pinned = lock.origins(known), lock.read().pinned
        for plugin_id, terms in sorted(known.items()):
            origin = origins.get(plugin_id)
            rows.append(
                {
                    "id": plugin_id,
                    "version": terms.head.version,
                    "description": terms.head.description,
                    "registry": origin.registry if origin is not None else "",
                    "pinned": plugin_id in pinned,
                    "removable": plugin_id in let_in,
                    "runs": plugin_id in self.host.plugins,
                    "stopped": lock.halted(terms) if plugin_id in let_in else "",
                    "permissions": permissions(terms),
                    "tools": [{"name": tool.name, "effect": tool.effect} for tool in terms.tools],
                }
            )
        return {"registries": [{"name": name} for name in client.trusted()], "installed": rows}

    def search(self, words: Sequence[str]) -> list[dict[str, Any]]:
        """As `search`."""
        return search(words)

    def offer(self, plugin_id: str, version: str, registry: str) -> dict[str, Any]:
        """A proposal."""
        proposal = propose(plugin_id, version, self._known(), registry)
        release, terms = proposal.release, proposal.terms
        names = {key: name for name, key in release.policy.reviewers.items()}
        return {
            "id": plugin_id,
            "version": release.listing.version,
            "registry": release.registry,
            "description": release.listing.description,
            "sha256": release.sha256,
            "author_key": release.listing.author_key,
            "commit": release.listing.commit,
            "licence": release.listing.licence,
            "price": release.listing.price,
            "shop": release.listing.shop,
            "before": proposal.before.head.version if proposal.before is not None else "",
            "new": list(proposal.new),
            "permissions": permissions(terms),
            "tools": [
                {"name": tool.name, "effect": tool.effect, "description": tool.description}
                for tool in terms.tools
            ],
            "reviews": [
                {
                    "reviewer": names.get(one.key, one.key[:16]),
                    "verdict": one.verdict,
                    "at": one.at,
                    "checked": list(one.checked),
                    "commit": one.commit,
                    "notes": one.notes,
                    "found": list(one.found),
                    "scanned": one.scanned,
                }
                for one in release.reviews
            ],
        }

    def install(self, plugin_id: str, version: str, registry: str, sha256: str) -> None:
        """The release that was shown, or none.

        Raises:
            RegistryError: another one is there now; as `propose`.
        """
        known = self._known()
        proposal = propose(plugin_id, version, known, registry)
        if proposal.release.sha256 != sha256:
            raise RegistryError(
                f"{plugin_id} {version} is another archive than the one shown; look again"
            )
        install(proposal, known)

    def remove(self, plugin_id: str) -> None:
        """As `remove`; what it kept stays."""
        remove(plugin_id, forget=False)

    async def look(self) -> dict[str, Any]:
        """Ask all registries; stop what they revoked; tell what is newer."""
        said = await asyncio.to_thread(look)
        stopped = await self.host.look()
        try:
            newer = await asyncio.to_thread(outdated, self._known())
        except PluginError as error:
            newer, said = {}, {**said, "": str(error)}
        return {
            "registries": [{"name": name, "problem": why} for name, why in said.items()],
            "newer": [{"id": one, "version": version} for one, version in newer.items()],
            "stopped": stopped,
        }

    def _installed(self) -> list[Manifest]:
        found = available(tuple(installing.installed())).manifests
        return [terms for terms in found.values() if not terms.id.startswith(f"{PUBLISHER}/")]

    def _known(self) -> dict[str, Manifest]:
        return dict(available((*self.config.folders, *installing.installed())).manifests)


def permissions(terms: Manifest) -> list[dict[str, str]]:
    """All that it may use: kind and value, for whoever has words for the kinds."""
    granted, nothing = terms.head.permissions, Permissions()
    rows = [
        (field.name, getattr(granted, field.name))
        for field in dataclasses.fields(granted)
        if getattr(granted, field.name) != getattr(nothing, field.name)
    ]
    idle = {"folder_mb"} if not granted.write_folders else set[str]()
    idle |= set() if granted.network or granted.hosts else {"network_mb"}
    limits = dataclasses.asdict(terms.head.limits)
    rows += [(kind, value) for kind, value in limits.items() if kind not in idle]
    return [
        {
            "kind": kind,
            "value": ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value}",
        }
        for kind, value in rows
    ]
