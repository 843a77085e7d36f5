"""Whoever stands between, or steals a key: each attack first succeeds against a client that checks
nothing, then fails here, and nothing of the node has changed.
"""

import hashlib
import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from quietchoir.core.errors import ConfigError, ManifestError, RegistryError
from quietchoir.plugins import installing, market
from quietchoir.plugins.registry import client, keys, listing, lock, review
from quietchoir.plugins.registry.client import HttpFetcher, opened
from quietchoir.plugins.registry.repository import COMPACT, PluginRepository
from quietchoir.plugins.registry.review import CHECKS
from quietchoir.tests.plugins.test_commands import run

from .conftest import World, credulous, founded, install, installed

Look = Callable[[], dict[str, bytes]]


def refused(world: World, node: Look, message: str, plugin_id: str = "ann/counter") -> None:
    """The node believes none of it and stays as it was."""
    before = node()
    with pytest.raises((RegistryError, ManifestError), match=message):
        market.propose(plugin_id, "", installed())
    after = node()
    assert {name: after.get(name) for name in before} == before
    assert not installed()


def forge(world: World, signer: CryptoSigner, role: str, metadata: Metadata[Targets]) -> None:
    """What a thief of the online key publishes: one role, a snapshot and a timestamp around it."""
    folder = world.folder / "metadata"
    timestamp = Metadata[Timestamp].from_file(str(folder / "timestamp.json"))
    number = timestamp.signed.snapshot_meta.version
    snapshot = Metadata[Snapshot].from_file(str(folder / f"{number}.snapshot.json"))
    version = metadata.signed.version
    metadata.to_file(str(folder / f"{version}.{role}.json"), COMPACT)
    snapshot.signed.meta[f"{role}.json"] = MetaFile(version)
    snapshot.signed.version = number + 1
    snapshot.sign(signer)
    snapshot.to_file(str(folder / f"{number + 1}.snapshot.json"), COMPACT)
    timestamp.signed.snapshot_meta = MetaFile(number + 1)
    timestamp.signed.version += 1
    timestamp.sign(signer)
    timestamp.to_file(str(folder / "timestamp.json"), COMPACT)


def test_a_mirror_that_goes_back_to_an_older_state_is_refused(world: World, node: Look) -> None:
    world.copy("older")
    world.release("ann/counter", "1.1.0")
    with opened("main") as registry:
        registry.refresh()
    world.put_back("older")
    assert credulous(world.folder, "ann/counter")[0] == "1.0.0"
    refused(world, node, "older state than this node has seen")


def test_a_mirror_that_is_frozen_is_refused_once_its_state_expires(
    days_ago: Callable[[int], World],
) -> None:
    frozen = days_ago(8)
    assert credulous(frozen.folder, "ann/counter")[0] == "1.0.0"
    with pytest.raises(RegistryError, match="has expired"):
        client.trust("old", str(frozen.folder), frozen.root)
    assert not client.trusted()


def test_parts_of_two_states_do_not_go_together(world: World, node: Look) -> None:
    metadata = world.folder / "metadata"
    old = (metadata / "1.author.ann.json").read_bytes()
    world.release("ann/counter", "1.1.0")
    (metadata / "2.author.ann.json").write_bytes(old)  # signed by ann, and older
    assert credulous(world.folder, "ann/counter")[0] == "1.0.0"
    refused(world, node, "older state than this node has seen")


def test_an_archive_of_other_bytes_is_refused(world: World, node: Look) -> None:
    (archive,) = (world.folder / "targets").rglob("*counter/*.zip")
    good = archive.read_bytes()
    for bad in (good + b"!", good[:-1], bytes([good[0] ^ 1]) + good[1:]):
        archive.write_bytes(bad)
        assert credulous(world.folder, "ann/counter")[1] == bad
        refused(world, node, "not the one that was signed")
    archive.write_bytes(good)
    install("ann/counter")


def test_an_author_publishes_nothing_under_another_name(world: World, node: Look) -> None:
    held = world.repository()
    with pytest.raises(RegistryError, match="this key does not speak for bob"):
        held.add(world.bundle("bob/teapot", "2.0.0"), world.signers["ann"])
    # past the command: ann signs bob's path in her own role
    path = listing.path_of("bob/teapot", "2.0.0")
    terms = world.bundle("bob/teapot", "2.0.0", author_key=world.public("ann"))
    said = listing.told(listing.listing_of(terms))
    held._put("author.ann", path, installing.pack(terms), said)
    held._keep(world.keys("ann"))
    with pytest.raises(RegistryError, match="which is another's; it is refused"):
        held.publish(world.signers["online"])
    held._require_reviewed = lambda: None  # type: ignore[method-assign]
    held.publish(world.signers["online"])
    listed = json.loads((world.folder / "metadata" / "2.author.ann.json").read_bytes())
    assert path in listed["signed"]["targets"]  # whoever asks no delegation believes it
    with opened("main") as registry:
        registry.refresh()
        assert set(registry.releases("bob/teapot")) == {"1.0.0"}
    with pytest.raises(RegistryError, match=r"no bob/teapot 2\.0\.0"):
        market.propose("bob/teapot", "2.0.0", {})


def test_a_stolen_online_key_brings_no_release(world: World, node: Look) -> None:
    thief = world.signers["online"]
    found = Metadata[Targets].from_file(str(world.folder / "metadata" / "1.author.ann.json"))
    (entry,) = found.signed.targets.values()
    evil = world.bundle("ann/counter", "1.0.1", description="Evil.")
    archive = installing.pack(evil)
    path = listing.path_of("ann/counter", "1.0.1")
    fresh = type(entry).from_data(path, archive, ["sha256"])
    fresh.unrecognized_fields["custom"] = listing.told(listing.listing_of(evil))
    found.signed.targets[path] = fresh
    found.signed.version = 2
    found.sign(thief)
    forge(world, thief, "author.ann", found)
    digest = hashlib.sha256(archive).hexdigest()
    where = world.folder / "targets" / path
    (where.parent / f"{digest}.1.0.1.zip").write_bytes(archive)
    assert credulous(world.folder, "ann/counter") == ("1.0.1", archive)
    refused(world, node, "not signed by as many of its keys as it takes")


def test_a_stolen_online_key_makes_no_review(world: World, node: Look) -> None:
    """The record lies in a role that the online key signs; the reviewers' signatures are inside."""
    held = world.repository()
    held.add(world.bundle("ann/counter", "1.1.0"), world.signers["ann"])
    sha256 = held.release("ann/counter", "1.1.0").hashes["sha256"]
    about = {"id": "ann/counter", "version": "1.1.0", "sha256": sha256, "verdict": "approve"}
    forged = review.sign(world.signers["stranger"], **about, at=1)
    claimed = {**json.loads(review.written([forged]))["reviews"][0], "key": world.public("rita")}
    path = listing.review_path("ann/counter", "1.1.0")
    for content, message in (
        (review.written([forged]), "0 of 1 reviews"),
        (json.dumps({"reviews": [claimed]}).encode(), "signature does not fit"),
    ):
        held._put(f"reviews-{path.split('/')[1]}", path, content)
        held._require_reviewed = lambda: None  # type: ignore[method-assign]
        held.publish(world.signers["online"])
        assert credulous(world.folder, "ann/counter")[0] == "1.1.0"
        refused(world, node, message)


def republished(world: World, path: str, content: bytes, log: bytes = b"") -> None:
    """What a thief of the online key publishes with the program itself: another review record."""
    held = world.repository()
    held._put(f"reviews-{path.split('/')[1]}", path, content)
    held._keep(world.keys("online"))
    if log:
        (held.draft / listing.LOG).write_bytes(log)
    held.publish(world.signers["online"])


def test_a_stolen_online_key_drops_no_rejection_that_a_node_could_have_seen(
    world: World, node: Look
) -> None:
    world.release("ann/counter", "1.1.0", "rita", "ruth")
    held = world.repository()
    path = listing.review_path("ann/counter", "1.1.0")
    approved = held.reviews("ann/counter", "1.1.0")
    before = held.content(held.role("records").signed.targets[listing.LOG])
    state = held.state()
    mine = world.scratch / "home/registries"
    shutil.copytree(mine / "main", world.scratch / "asleep")
    for plugin_id, version in (("bob/teapot", "1.0.0"), ("ann/counter", "1.1.0")):
        held.review(plugin_id, version, world.signers["ruth"], verdict="reject", notes="it lies")
    (decoy,) = (one for one in held.reviews("bob/teapot", "1.0.0") if one.verdict == "reject")
    held.publish(world.signers["online"])
    known = held.state()
    refused(world, node, "ruth rejected it: it lies")
    for record in (approved[:1], approved, [*approved, decoy]):
        republished(world, path, review.written(record))
        about = held.release("ann/counter", "1.1.0")
        said = listing.read(about.custom, "")
        digest = about.hashes["sha256"]
        assert not review.shortfall(held.policy(), said, digest, record)  # who asks no log
        refused(world, node, "ruth rejected it: as the log has it")
    republished(world, path, review.written(approved), before)
    refused(world, node, "its log does not go on")
    # What is left, as GOVERNANCE.md says: whoever saw nothing of it, and was told no state.
    shutil.copytree(world.scratch / "asleep", mine / "asleep")
    (mine / lock.WARNINGS).unlink()
    assert market.propose("ann/counter", "", {}, "asleep")
    client.trust("new", str(world.folder), world.root, state)
    assert market.propose("ann/counter", "", {}, "new")
    with pytest.raises(RegistryError, match="an older state than is known of it"):
        client.trust("told", str(world.folder), world.root, known)


def test_a_stolen_online_key_hides_a_revocation_from_a_new_node_that_was_told_nothing(
    world: World, node: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = world.repository()
    offline = world.keys("targets-1", "targets-2")
    held.revoke("ann/counter", [], "it lies", offline)
    held.publish(world.signers["online"])
    known = held.state()
    refused(world, node, "revoked by main: it lies")
    folder = world.folder / "metadata"
    older = Metadata[Targets].from_file(str(folder / "1.targets.json"))
    forge(world, world.signers["online"], "targets", older)
    refused(world, node, "an older state than this node has seen")
    client.trust("mirror", str(world.folder), world.root)
    with pytest.raises(RegistryError, match="revoked by main: it lies"):  # one registry, two names
        market.propose("ann/counter", "", {}, "mirror")
    monkeypatch.setenv("QUIETCHOIR_HOME", str(world.scratch / "another"))
    client.trust("new", str(world.folder), world.root)
    assert market.propose("ann/counter", "", {}, "new")  # the limit: until targets.json expires
    assert older.signed.expires - world.now.replace(tzinfo=older.signed.expires.tzinfo) < (
        timedelta(days=91)
    )
    for state in (known, f"{int(known[0]) + 1}:{known[2:]}"):
        with pytest.raises(RegistryError, match="an older state than is known of it"):
            client.trust("told", str(world.folder), world.root, state)
    assert client.trusted() == ["new"]


def test_a_registry_that_is_trusted_again_takes_no_revocation_back(world: World) -> None:
    install("ann/counter")
    world.copy("older")
    held = world.repository()
    held.revoke("ann/counter", [], "it lies", world.keys("targets-1", "targets-2"))
    held.publish(world.signers["online"])
    assert market.look() == {"main": ""}
    world.copy("newer")
    client.forget("main")
    world.put_back("older")
    assert credulous(world.folder, "ann/counter")[0] == "1.0.0"
    with pytest.raises(RegistryError, match="an older state than is known of it"):
        client.trust("main", str(world.folder), world.root)
    with pytest.raises(ConfigError, match="ann/counter came from another registry called main"):
        client.trust("main", str(world.folder), "0" * 64)
    assert "it lies" in lock.halted(installed()["ann/counter"])
    world.put_back("newer")
    client.trust("main", str(world.folder), world.root)
    assert "it lies" in lock.halted(installed()["ann/counter"])


def test_a_copy_of_a_registry_takes_no_revocation_back(world: World) -> None:
    older = world.copy("older")
    client.trust("mirror", str(older), world.root)
    held = world.repository()
    held.revoke("ann/counter", ["1.0.0"], "it lies", world.keys("targets-1", "targets-2"))
    held.publish(world.signers["online"])
    market.install(market.propose("ann/counter", "", {}, "mirror"), {})  # nobody has looked yet
    assert not lock.halted(installed()["ann/counter"])
    assert market.look() == {"main": "", "mirror": ""}
    with pytest.raises(RegistryError, match="revoked by main: it lies"):
        market.propose("ann/counter", "", {}, "mirror")
    assert "revoked by main: it lies" in lock.halted(installed()["ann/counter"])
    assert {one["id"]: one["revoked"] for one in market.search(["counter"])} == {
        "ann/counter": "revoked by main: it lies"
    }
    client.forget("main")
    assert "revoked by main: it lies" in lock.halted(installed()["ann/counter"])


def revoked(world: World) -> None:
    """`ann/counter` as its registry revokes it, and this node sees that."""
    held = world.repository()
    held.revoke("ann/counter", [], "it lies", world.keys("targets-1", "targets-2"))
    held.publish(world.signers["online"])
    assert set(market.look().values()) == {""}


def test_another_registry_under_the_name_takes_no_revocation_back(
    world: World, tmp_path: Path
) -> None:
    older = world.copy("older")
    revoked(world)
    client.forget("main")
    (tmp_path / "scratch").mkdir()
    other = founded(tmp_path / "other", tmp_path / "scratch")
    client.trust("main", str(other.folder), other.root)
    assert market.propose("bob/teapot", "", {})  # the control
    client.forget("main")
    client.trust("main", str(older), world.root)
    with pytest.raises(RegistryError, match="revoked by main: it lies"):
        market.propose("ann/counter", "", {})


def test_a_copy_that_is_trusted_by_a_newer_root_takes_no_revocation_back(world: World) -> None:
    fresh = CryptoSigner.generate_ed25519()
    held = world.repository()
    offline = world.keys("root-1", "root-2", "targets-1", "targets-2")
    held.rotate("online", [fresh.public_key], offline)
    held.publish(fresh)
    world.signers = {**world.signers, "online": fresh}
    older = world.copy("older")
    revoked(world)
    digest = hashlib.sha256((older / "metadata/root.json").read_bytes()).hexdigest()
    assert digest != world.root
    client.trust("mirror", str(older), digest)
    assert market.propose("bob/teapot", "", {}, "mirror")  # the control
    with pytest.raises(RegistryError, match="revoked by main: it lies"):
        market.propose("ann/counter", "", {}, "mirror")


def test_an_older_copy_takes_no_rejection_back_and_its_reviewer_does(world: World) -> None:
    world.release("ann/counter", "1.1.0", "rita", "ruth")
    older = world.copy("older")
    held = world.repository()
    held.review("ann/counter", "1.1.0", world.signers["ruth"], verdict="reject", notes="it lies")
    held.publish(world.signers["online"])
    assert market.look() == {"main": ""}
    client.trust("mirror", str(older), world.root)
    with pytest.raises(RegistryError, match="ruth rejected it"):
        market.propose("ann/counter", "1.1.0", {}, "mirror")
    client.forget("main")
    client.trust("main", str(older), world.root)
    with pytest.raises(RegistryError, match="ruth rejected it"):
        market.propose("ann/counter", "1.1.0", {}, "main")
    assert market.propose("ann/counter", "1.0.0", {}, "main")  # the control
    held = world.repository()
    held.review("ann/counter", "1.1.0", world.signers["ruth"], verdict="approve", checked=CHECKS)
    held.publish(world.signers["online"])
    client.trust("newer", str(world.folder), world.root)
    assert market.propose("ann/counter", "1.1.0", {}, "newer")


def test_the_bytes_of_a_revoked_plugin_do_not_come_back_as_a_file(
    world: World, tmp_path: Path
) -> None:
    archives = {}
    for plugin_id in ("ann/counter", "bob/teapot"):
        install(plugin_id)
        archives[plugin_id] = tmp_path / f"{plugin_id[:3]}.zip"
        archives[plugin_id].write_bytes(installing.pack(installed()[plugin_id]))
        market.remove(plugin_id, forget=False)
    file = ["plugin", "install", str(archives["ann/counter"]), "--yes"]
    assert run(*file) == 0  # nobody has looked yet
    revoked(world)
    assert "revoked by main: it lies" in lock.halted(installed()["ann/counter"])
    assert market.verify(installed()) == ["ann/counter: revoked by main: it lies"]
    market.remove("ann/counter", forget=False)
    client.forget("main")
    with pytest.raises(RegistryError, match=r"ann/counter 1\.0\.0 is revoked by main: it lies"):
        run(*file)
    assert not installed()
    assert run("plugin", "install", str(archives["bob/teapot"]), "--yes") == 0  # the control
    (lock.registries() / lock.WARNINGS).unlink()  # the owner's own way back
    assert run(*file) == 0 and not lock.halted(installed()["ann/counter"])


def test_bytes_that_a_reviewer_rejected_go_in_as_a_file_by_a_flag_that_says_so(
    world: World, tmp_path: Path
) -> None:
    install("ann/counter")
    archive = tmp_path / "counter.zip"
    archive.write_bytes(installing.pack(installed()["ann/counter"]))
    market.remove("ann/counter", forget=False)
    held = world.repository()
    held.review("ann/counter", "1.0.0", world.signers["ruth"], verdict="reject", notes="it lies")
    held.publish(world.signers["online"])
    assert market.look() == {"main": ""}
    file = ["plugin", "install", str(archive), "--yes"]
    with pytest.raises(RegistryError, match="rejected these very bytes"):
        run(*file)
    assert not installed()
    assert run(*file, "--rejected") == 0
    assert list(installed()) == ["ann/counter"]


def test_a_new_node_that_knows_of_no_state_believes_no_rules_that_are_long_signed(
    days_ago: Callable[[int], World],
) -> None:
    world = days_ago(50)
    PluginRepository(world.folder).publish(world.signers["online"])  # the online key's part is new
    with pytest.raises(RegistryError, match="signed so long ago"):
        client.trust("old", str(world.folder), world.root)
    assert not client.trusted()
    state = PluginRepository(world.folder).state()
    client.trust("old", str(world.folder), world.root, state)
    assert client.trusted() == ["old"]


def test_keys_that_were_stolen_are_replaced_by_a_threshold_of_root_keys(
    world: World, node: Look
) -> None:
    fresh = CryptoSigner.generate_ed25519()
    held = world.repository()
    offline = world.keys("targets-1", "targets-2")
    held.rotate("online", [fresh.public_key], [*world.keys("root-1"), *offline])
    with pytest.raises(RegistryError, match=r"root: root was signed by 1/2 keys"):
        held.publish(fresh)
    assert world.repository().sign(world.keys("root-2")) == []
    for signer, why in ((world.signers["online"], "not the registry's online key"), (fresh, "")):
        if why:
            with pytest.raises(RegistryError, match=why):
                world.repository().publish(signer)
        else:
            world.repository().publish(signer)
    install("ann/counter")  # this node followed the change
    world.signers = {**world.signers, "online": fresh}
    world.release("ann/counter", "1.1.0")
    found = Metadata[Targets].from_file(str(world.folder / "metadata" / "1.author.bob.json"))
    found.signed.version = 2
    shutil.copytree(world.folder, world.scratch / "sound")
    thief = CryptoSigner.generate_ed25519()
    forge(world, thief, "author.bob", found)
    before = node()
    with pytest.raises(RegistryError, match="not signed by as many"):
        market.propose("ann/counter", "", installed())
    assert {name: value for name, value in node().items() if name in before} == before
    world.put_back("sound")
    assert market.outdated(installed()) == {"ann/counter": "1.1.0"}


def test_one_root_key_of_two_gives_no_power(world: World, node: Look) -> None:
    thief = CryptoSigner.generate_ed25519()
    root = Metadata[Root].from_file(str(world.folder / "metadata" / "1.root.json"))
    root.signed.version = 2
    for role in ("timestamp", "snapshot", "targets"):
        root.signed.add_key(thief.public_key, role)
    root.signatures.clear()
    root.sign(world.signers["root-1"])
    root.to_file(str(world.folder / "metadata" / "2.root.json"), COMPACT)
    believed = Metadata[Root].from_file(str(world.folder / "metadata" / "2.root.json")).signed
    assert thief.public_key.keyid in believed.roles["targets"].keyids  # whoever checks nothing
    refused(world, node, "not signed by as many of its keys as it takes")


def test_an_archive_that_is_more_than_its_files_is_refused(world: World, node: Look) -> None:
    held = world.repository()
    held.add(world.bundle("ann/counter", "1.1.0"), world.signers["ann"])
    path = listing.path_of("ann/counter", "1.1.0")
    entry = held.role("author.ann").signed.targets[path]
    said, good = entry.custom, held.content(entry)
    first = good + b"PK\x05\x06" + b"\0" * 18
    for bad, message in (
        (first, r"no such folder|no folder and no archive"),
        (b"#!/bin/sh\n" + good, "not what `plugin pack` makes"),
        (installing.pack(world.bundle("bob/teapot", "1.1.0")), "another plugin than"),
    ):
        held._put("author.ann", path, bad, said)
        held._keep(world.keys("ann"))
        sha256 = hashlib.sha256(bad).hexdigest()
        about = {"id": "ann/counter", "version": "1.1.0", "sha256": sha256}
        signed = review.sign(world.signers["rita"], **about, verdict="approve", at=1)
        record = listing.review_path("ann/counter", "1.1.0")
        held._put(f"reviews-{record.split('/')[1]}", record, review.written([signed]))
        if bad is not first:
            with pytest.raises(RegistryError, match="was published with other bytes"):
                held.publish(world.signers["online"])
            held._require_reviewed = lambda: None  # type: ignore[method-assign]
        held.publish(world.signers["online"])
        held.__dict__.pop("_require_reviewed", None)
        assert credulous(world.folder, "ann/counter")[1] == bad
        refused(world, node, message)


@contextmanager
def server(
    folder: Path, answer: Callable[[http.server.BaseHTTPRequestHandler, bytes], object]
) -> Iterator[str]:
    """Serves a folder; `answer` writes the body of timestamp.json."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            try:
                if path.name == "timestamp.json":
                    answer(self, path.read_bytes())
                else:
                    self.wfile.write(path.read_bytes())
            except OSError:
                pass  # the client has left

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}/"
        finally:
            serving.shutdown()
            thread.join()


def test_a_server_is_as_good_as_a_folder(world: World) -> None:
    with server(world.folder, lambda handler, body: handler.wfile.write(body)) as url:
        client.trust("far", url, world.root)
        assert market.propose("ann/counter", "", {}, "far").release.registry == "far"
        with pytest.raises(RegistryError, match="no root file there has the SHA-256"):
            client.trust("other", url, "0" * 64)
    assert client.trusted() == ["far", "main"]
    with pytest.raises(RegistryError, match="far: cannot be reached"):
        market.propose("ann/counter", "", {}, "far")


def test_a_server_that_never_ends_is_left_at_the_limit(world: World, node: Look) -> None:
    sent = []

    def endless(handler: http.server.BaseHTTPRequestHandler, _body: bytes) -> None:
        for _ in range(1000):  # 64 MB; whoever waits for the end holds all of it
            handler.wfile.write(b" " * 65536)
            sent.append(65536)

    with server(world.folder, endless) as url:
        fetcher = HttpFetcher()
        whole = sum(len(piece) for piece in fetcher.fetch(f"{url}metadata/timestamp.json"))
        assert whole == 65_536_000
        sent.clear()
        with pytest.raises(RegistryError, match="not the one that was signed"):
            client.trust("far", url, world.root)
        fetcher.close()
    assert sum(sent) < 10_000_000  # what the system's buffers took, and no more
    assert client.trusted() == ["main"]


def test_a_server_that_trickles_is_left(world: World) -> None:
    def trickle(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        for letter in body:
            handler.wfile.write(bytes([letter]))
            handler.wfile.flush()
            time.sleep(0.001)

    with server(world.folder, trickle) as url:
        patient = HttpFetcher(patience_s=1e9)
        assert len(patient.download_bytes(f"{url}metadata/timestamp.json", 16_384)) > 300
        patient.close()
        hurried = HttpFetcher(patience_s=0.05)
        client.trust("far", str(world.folder), world.root)
        about = world.scratch / "home" / "registries" / "far" / "registry.json"
        about.write_text(json.dumps({"url": url, "root_sha256": world.root}))
        with (
            pytest.raises(RegistryError, match="the server is too slow"),
            opened("far", fetcher=hurried) as registry,
        ):
            registry.refresh()
        hurried.close()


def test_an_installation_that_is_interrupted_leaves_the_old_one(
    world: World, node: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("ann/counter")
    world.release("ann/counter", "1.1.0")
    known = installed()
    proposal = market.propose("ann/counter", "", known)
    before = node()
    rename = Path.rename

    def cut(path: Path, target: Path) -> Path:
        if path.name == "bundle":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as broken:
        broken.setattr(installing, "exchange", lambda one, other: False)  # a kernel without it
        broken.setattr(Path, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            market.install(proposal, known)
    assert node() == before
    assert installed()["ann/counter"].head.version == "1.0.0"
    market.install(proposal, known)
    assert installed()["ann/counter"].head.version == "1.1.0"


def test_a_statement_of_one_kind_is_none_of_another(world: World) -> None:
    said = keys.signed(world.signers["rita"], "review", {"id": "ann/counter"})
    assert keys.signer_of("review", said) == world.public("rita")
    with pytest.raises(RegistryError, match="signature does not fit"):
        keys.signer_of("licence", said)
