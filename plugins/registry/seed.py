"""A registry to begin with: the plugins that come with quietchoir and some written by others, each
published through the same steps as anybody's.

Its keys are made for it and lie in one folder without passphrases: for trying, and for a first
mirror. Whoever runs a registry for others makes keys apart (`plugin registry key`).
"""

from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from ...core import paths
from ...core.errors import ConfigError
from .. import manifest
from ..manifest import FILE
from . import keys
from .client import root_digest
from .repository import PluginRepository
from .review import ReviewPolicy

NOTES = "made by plugin registry seed: a machine looked, no person did"
CHECKED = ("permissions", "tools", "scan")  # what a machine can say that it looked at


def build(folder: Path, key_folder: Path, others: Sequence[Path], builtin: Path) -> str:
    """Make it. Returns: the digest that nodes trust it by.

    Raises:
        ConfigError: a folder is not empty. ManifestError: one of the plugins is refused.
    """
    if key_folder.exists() and any(key_folder.iterdir()):
        raise ConfigError(f"{key_folder}: not empty; keys are made in a new folder")
    paths.make_folder(key_folder, mode=0o700)
    made = {
        name: keys.make(key_folder / f"{name}.key", None)
        for name in ("root-1", "root-2", "targets-1", "targets-2", "online", "review-1", "review-2")
    }
    offline = [made["targets-1"], made["targets-2"]]
    registry = PluginRepository.init(
        folder,
        root=[made["root-1"], made["root-2"]],
        targets=offline,
        online=made["online"],
        thresholds=(2, 2),
    )
    reviewers = {"first": made["review-1"], "second": made["review-2"]}
    shown = {name: keys.shown(signer.public_key) for name, signer in reviewers.items()}
    registry.set_policy(ReviewPolicy(reviewers=shown), offline)
    authors = dict[str, CryptoSigner]()
    bundles = sorted(path.parent for path in builtin.glob(f"*/{FILE}"))
    for terms in map(manifest.read, (*bundles, *others)):
        author = terms.id.partition("/")[0]
        if author not in authors:
            authors[author] = keys.make(key_folder / f"author-{author}.key", None)
            registry.admit(author, authors[author].public_key, offline)
        said = registry.add(terms, authors[author])
        for signer in list(reviewers.values())[: 2 if said.sensitive else 1]:
            registry.review(
                said.id, said.version, signer, verdict="approve", checked=CHECKED, notes=NOTES
            )
    registry.publish(made["online"])
    return root_digest(folder)
