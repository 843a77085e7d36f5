"""A whole registry, checked as its clients would, from its folder alone.

Knows the log, the roles' targets and the review records. Needs no key and no network.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import PluginError
from .. import installing
from . import client, listing, log
from .client import RegistryClient, root_digest
from .listing import INDEX
from .lock import ABOUT
from .log import LogHead
from .repository import PluginRepository, dumped


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was found."""

    wrong: list[str]
    releases: int
    authors: int
    head: LogHead
    credit: Counter[str]
    names: dict[str, str]  # public key → author, or reviewer


def audit(folder: Path) -> AuditReport:
    """Check everything.

    Raises:
        RegistryError: it cannot be believed at all: a role below its threshold, or expired.
        ConfigError: nothing is published there.
    """
    digest = root_digest(folder)
    with tempfile.TemporaryDirectory() as made:
        trust = Path(made) / "audit"
        trust.mkdir()
        (trust / ABOUT).write_bytes(dumped({"url": str(folder.resolve()), "root_sha256": digest}))
        (trust / "root.json").write_bytes((folder / "metadata" / "1.root.json").read_bytes())
        with client.opened("audit", folder=trust) as registry:
            registry.refresh()
            return checked(registry, PluginRepository(folder, drafts=False))


def checked(registry: RegistryClient, repository: PluginRepository) -> AuditReport:
    """Every release, its reviews and the log against each other."""
    entries, head = registry.log()
    added = {
        (row.get("id"), row.get("version"), row.get("sha256")): row
        for row in entries
        if row.get("what") == "add"
    }
    reviewed = {
        (row["key"], row.get("id"), row.get("version"), row.get("sha256"))
        for row in entries
        if row.get("what") == "review"
    }
    wrong, names, count = list[str](), dict[str, str](), 0
    authors = repository.authors()
    for author in authors:
        for key in registry.author_keys(author):
            names[key] = author
        ids = {one.id for one in repository.releases(author).values()}
        for plugin_id in sorted(ids):
            for version in sorted(registry.releases(plugin_id), key=listing.order):
                count += 1
                try:
                    release = registry.release(plugin_id, version)
                    terms = installing.unpack(registry.archive(release))
                except PluginError as error:
                    wrong.append(f"{plugin_id} {version}: {error}")
                    continue
                about = f"{plugin_id} {version}"
                mine = listing.listing_of(terms, release.listing.commit)
                if not listing.agree(mine, release.listing):
                    wrong.append(f"{about}: its archive holds another plugin than is said of it")
                if (plugin_id, version, release.sha256) not in added:
                    wrong.append(f"{about}: the log knows nothing of it")
                if short := release.shortfall_of(mine):
                    wrong.append(f"{about}: {short}")
                for one in release.reviews:
                    if (one.key, plugin_id, version, release.sha256) not in reviewed:
                        wrong.append(f"{about}: the log knows nothing of a review")
                names |= {key: name for name, key in release.policy.reviewers.items()}
    if registry.rows(INDEX, "plugins") != repository.index():
        wrong.append("the index is not what the authors' roles say")
    return AuditReport(wrong, count, len(authors), head, log.credit(entries), names)
