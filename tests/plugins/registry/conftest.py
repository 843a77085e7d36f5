"""A registry with two authors and two reviewers, made once; each test has a copy of it, and a node
of its own.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from quietchoir.plugins import manifest, market
from quietchoir.plugins.registry import client, keys
from quietchoir.plugins.registry.repository import PluginRepository
from quietchoir.plugins.registry.review import CHECKS, ReviewPolicy
from quietchoir.tests.plugins.conftest import ATTACK, hostile, write_bundle

NAMES = (
    *("root-1", "root-2", "root-3", "targets-1", "targets-2", "online"),
    *("ann", "bob", "rita", "ruth", "stranger"),
)


@dataclass
class World:
    """A registry's folder, all keys, and ways to act on it."""

    folder: Path
    scratch: Path
    signers: dict[str, CryptoSigner]
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    root: str = ""  # the digest that nodes trust it by

    def repository(self) -> PluginRepository:
        """As it lies there now."""
        return PluginRepository(self.folder, self.now)

    def keys(self, *names: str) -> list[CryptoSigner]:
        """Some of them."""
        return [self.signers[name] for name in names]

    def public(self, name: str) -> str:
        """As people write it."""
        return keys.shown(self.signers[name].public_key)

    def bundle(self, plugin_id: str, version: str, **changes: Any) -> manifest.Manifest:
        """A plugin that was written on the spot."""
        where = self.scratch / f"{plugin_id.replace('/', '-')}-{version}"
        name = plugin_id.partition("/")[2]  # two plugins do not offer one tool
        source = hostile(f"return {version!r}").replace("tests/hostile", plugin_id)
        listed = changes.pop("listed", [{**ATTACK, "name": name}])
        source = source.replace("def attack", f"def {name}")
        write_bundle(where, source, listed, id=plugin_id, version=version, **changes)
        return manifest.read(where)

    def release(self, plugin_id: str, version: str, *reviewers: str, **changes: Any) -> None:
        """Add, review and publish one."""
        author = plugin_id.partition("/")[0]
        held = self.repository()
        held.add(self.bundle(plugin_id, version, **changes), self.signers[author], "c0ffee")
        for name in reviewers or ("rita",):
            held.review(plugin_id, version, self.signers[name], verdict="approve", checked=CHECKS)
        held.publish(self.signers["online"])

    def copy(self, name: str) -> Path:
        """The folder as it is now, elsewhere."""
        return Path(shutil.copytree(self.folder, self.scratch / name))

    def put_back(self, name: str) -> None:
        """What a mirror does that shows an older state."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.scratch / name, self.folder)


def founded(folder: Path, scratch: Path, now: datetime | None = None) -> World:
    """A registry with the authors ann and bob and the reviewers rita and ruth, and two plugins."""
    made = {name: CryptoSigner.generate_ed25519() for name in NAMES}
    world = World(folder, scratch, made, now or datetime.now(UTC))
    offline = world.keys("targets-1", "targets-2")
    held = PluginRepository.init(
        folder,
        root=world.keys("root-1", "root-2", "root-3"),
        targets=offline,
        online=made["online"],
        thresholds=(2, 2),
        now=world.now,
    )
    reviewers = {name: world.public(name) for name in ("rita", "ruth")}
    held.set_policy(ReviewPolicy(reviewers=reviewers), offline)
    for author in ("ann", "bob"):
        held.admit(author, made[author].public_key, offline)
    world.release("ann/counter", "1.0.0", description="Counts things.")
    world.release("bob/teapot", "1.0.0", description="Makes tea.")
    world.root = client.root_digest(folder)
    return world


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Nobody changes this one."""
    where = tmp_path_factory.mktemp("registry")
    return founded(where / "folder", where)


@pytest.fixture
def world(first: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy, and a home of the test's own that trusts it as `main`."""
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    shutil.copytree(first.folder, tmp_path / "folder")
    made = World(tmp_path / "folder", tmp_path, first.signers, first.now, first.root)
    client.trust("main", str(made.folder), made.root)
    return made


@pytest.fixture
def node(world: World, tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """All that this node keeps, so that a test sees that nothing changed."""

    def look() -> dict[str, bytes]:
        home = tmp_path / "home"
        kept = sorted(path for path in home.rglob("*") if path.is_file())
        return {
            str(path.relative_to(home)): path.read_bytes()
            for path in kept
            if "registries" not in path.parts  # what a registry says newly is remembered there
        }

    return look


def credulous(folder: Path, plugin_id: str) -> tuple[str, bytes]:
    """The unprotected arm: a client that takes the newest release that lies there, and checks
    nothing. Returns: version, archive.
    """
    from quietchoir.plugins.registry import listing

    metadata = folder / "metadata"
    role = f"author.{plugin_id.partition('/')[0]}.json"
    snapshot = json.loads((metadata / "timestamp.json").read_bytes())["signed"]["meta"]
    number = snapshot["snapshot.json"]["version"]
    meta = json.loads((metadata / f"{number}.snapshot.json").read_bytes())["signed"]["meta"]
    signed = json.loads((metadata / f"{meta[role]['version']}.{role}").read_bytes())["signed"]
    versions = {
        path.rpartition("/")[2].removesuffix(".zip"): entry
        for path, entry in signed["targets"].items()
        if f"/{plugin_id}/" in path
    }
    newest = max(versions, key=listing.order)
    path = listing.path_of(plugin_id, newest)
    folder_, _, name = path.rpartition("/")
    digest = versions[newest]["hashes"]["sha256"]
    return newest, (folder / "targets" / folder_ / f"{digest}.{name}").read_bytes()


@pytest.fixture
def days_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], World]:
    """A registry that nobody has published in for some days."""
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    return lambda days: founded(
        tmp_path / "old", tmp_path / "scratch", datetime.now(UTC) - timedelta(days=days)
    )


def install(plugin_id: str, version: str = "") -> market.Proposal:
    """As the command does, with a yes to everything."""
    known = installed()
    proposal = market.propose(plugin_id, version, known)
    market.install(proposal, known)
    return proposal


def installed() -> dict[str, manifest.Manifest]:
    """What is installed here."""
    from quietchoir.plugins import installing

    read = [manifest.read(folder) for folder in installing.installed()]
    return {terms.id: terms for terms in read}
