"""What a registry of many plugins costs whoever installs one: seconds, and bytes of metadata.

Every plugin has an author of its own, which is the most that a registry of that many plugins can
hold of keys and roles. The registry lies behind a real server on this machine; the peer is the same
archive, installed from a file without any registry.
"""

import http.server
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner

from ...core import paths
from ...plugins import installing, manifest, market
from ...plugins.registry import client, keys
from ...plugins.registry.repository import PluginRepository
from ...plugins.registry.review import CHECKS, ReviewPolicy


def bundle(folder: Path, plugin_id: str) -> manifest.Manifest:
    """A plugin with one tool."""
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "server.py").write_text(installing.SERVER.format(id=plugin_id), "utf-8")
    tool = {
        "name": f"greet_{plugin_id.replace('/', '_').replace('-', '_')}",
        "description": "Greet somebody by name, and say where and when it happened.",
        "inputSchema": {"type": "object", "properties": {"name": {"type": "string"}}},
    }
    table = {
        "schema": manifest.SCHEMA,
        "id": plugin_id,
        "version": "1.0.0",
        "kind": "mcp",
        "description": "Greets somebody, as the first plugin of most authors does.",
        "entry": "server.py",
        "license": {"spdx": "Apache-2.0"},
    }
    installing.write_manifest(folder, table, [tool])
    return manifest.read(folder)


def build(folder: Path, scratch: Path, count: int) -> tuple[str, list[str]]:
    """A registry of `count` plugins by as many authors. Returns: its root's digest, the ids."""
    offline, online, reviewer = (CryptoSigner.generate_ed25519() for _ in range(3))
    held = PluginRepository.init(folder, root=[offline], targets=[offline], online=online)
    rules = ReviewPolicy(reviewers={"reviewer": keys.shown(reviewer.public_key)})
    held.set_policy(rules, [offline])
    ids = []
    for number in range(count):
        author = CryptoSigner.generate_ed25519()
        name = f"author-{author.public_key.keyid[:12]}"
        plugin_id = f"{name}/plugin-{author.public_key.keyid[12:24]}"
        held.admit(name, author.public_key, [offline])
        terms = bundle(scratch / f"{number}", plugin_id)
        held.add(terms, author)
        held.review(plugin_id, "1.0.0", reviewer, verdict="approve", checked=CHECKS)
        ids.append(plugin_id)
    held.publish(online)
    return client.root_digest(folder), ids


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """A registry behind a server; bytes sent, by the first part of their path."""
    sent: dict[str, int] = {}

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def copyfile(self, source: Any, outputfile: Any) -> None:
            part = self.path.split("/")[1]
            content = source.read()
            sent[part] = sent.get(part, 0) + len(content)
            outputfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", sent
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def fresh_home() -> Iterator[Path]:
    """A node that knows nothing yet."""
    before = os.environ.get(paths.HOME_VARIABLE)
    with tempfile.TemporaryDirectory() as home:
        os.environ[paths.HOME_VARIABLE] = home
        try:
            yield Path(home)
        finally:
            if before is None:
                del os.environ[paths.HOME_VARIABLE]
            else:
                os.environ[paths.HOME_VARIABLE] = before


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds on the wall, and what came."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def install(plugin_id: str) -> None:
    """As the command does, with a yes to everything."""
    market.install(market.propose(plugin_id, "", {}), {})


def measure(scratch: Path, count: int, repeats: int) -> dict[str, Any]:
    """First installation of a node that trusts the registry since then; another one; a search; and
    the same archive from a file.
    """
    folder = scratch / "registry"
    digest, ids = build(folder, scratch / "bundles", count)
    rows: dict[str, list[float]] = {"install_s": [], "another_s": [], "search_s": [], "file_s": []}
    first, searched = {}, 0
    with served(folder) as (url, sent):
        for number in range(repeats):
            one, other = ids[number % count], ids[(number + count // 2) % count]
            with fresh_home():
                sent.clear()

                began = time.perf_counter()
                client.trust("market", url, digest)
                install(one)
                rows["install_s"].append(time.perf_counter() - began)
                first = dict(sent)
                rows["another_s"].append(timed(partial(install, other))[0])
                before = sent["targets"]
                took, found = timed(partial(market.search, ["greets"]))
                rows["search_s"].append(took)
                searched = sent["targets"] - before
            with fresh_home():
                terms = manifest.read(scratch / "bundles" / f"{number % count}")
                rows["file_s"].append(timed(partial(installing.install, terms, {}))[0])
    assert len(found) == count
    return {
        "plugins": count,
        **{name: round(statistics.median(values), 4) for name, values in rows.items()},
        "metadata_kb": round(first["metadata"] / 1000, 1),
        "targets_kb": round(first["targets"] / 1000, 1),  # archive, reviews, rules, log
        "index_kb": round(searched / 1000, 1),
    }
