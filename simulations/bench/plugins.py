"""The suite `plugins`: what the sandbox adds to a start and to a call, what idle plugins cost, what
attempts to get out of it came to, and how many servers of other people work in it.

Knows one small server and three ways to start it: confined, through the same client without a
sandbox, and a bare process that is read and written by hand. Knows nothing of what plugins do.
Always: the arms take turns within every repeat; times are on the wall, for a call waits more than
it computes, so a busy machine says so in the spread.

Real servers are not downloaded. They are looked for where `SERVERS` says, in the node's home:

    python3 -m venv DIR/python; DIR/python/bin/pip install mcp-server-time mcp-server-git
    python3 -m venv DIR/sqlite; DIR/sqlite/bin/pip install mcp-server-sqlite 'mcp<2'
    npm install --prefix DIR/npm @modelcontextprotocol/server-{memory,filesystem,everything}
"""

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core import paths
from ...core.config import PluginsConfig
from ...core.errors import QuietchoirError
from ...core.toolcall import ToolCall
from ...plugins import installing, manifest, wrapping
from ...plugins.client import PROTOCOLS, PluginConnection
from ...plugins.grants import PluginSettings
from ...plugins.host import PluginHost
from ...plugins.running import SDK, Plugin, plugin_folder
from ...plugins.sandbox import interpreter, watchdog
from ...plugins.sandbox.probe import Launcher, probe
from ...plugins.sandbox.watchdog import Bounds
from ..attacks import escapes
from . import market
from .figures import Figure, Keep

ECHO = """
from quietchoir_sdk import serve, tool

@tool(read_only=True)
def echo(text: str) -> str:
    "Say it again."
    return text

serve("bench/echo", "1.0.0")
"""
ID, DEADLINE_S = "bench/echo", 60.0
ASKED = {"text": "x" * 100}
LAUNCHERS: tuple[Launcher, ...] = ("bubblewrap", "landlock")
AROUND_MS, AROUND_CALL = 60.0, 0.15  # aims: what a sandbox may add


def servers() -> Path:
    """Where real servers are installed for this suite."""
    return paths.home() / "bench" / "mcp"


@dataclass(frozen=True, slots=True)
class Real:
    """One server of other people's, and a call whose answer is known."""

    name: str
    folder: str  # below `servers()`
    words: tuple[str, ...]
    call: ToolCall
    answer: str  # is in its answer
    environment: Mapping[str, str] = field(default_factory=dict)


# git refuses a folder of another user's, which root's is to the plugin's user
GIT = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
NPM = "@modelcontextprotocol/server-"
REAL = (
    Real(
        "time",
        "python",
        ("uvx", "mcp-server-time"),
        ToolCall("get_current_time", {"timezone": "Asia/Tokyo"}),
        "+09:00",
    ),
    Real(
        "git",
        "python",
        ("uvx", "mcp-server-git"),
        ToolCall("git_log", {"repo_path": "/data/shown"}),
        "a first line",
        GIT,
    ),
    Real(
        "sqlite",
        "sqlite",
        ("uvx", "mcp-server-sqlite", "--db-path", "/tmp/bench.db"),
        ToolCall("read_query", {"query": "select 6 * 7 as answer"}),
        "42",
    ),
    Real(
        "memory",
        "npm",
        ("npx", f"{NPM}memory"),
        ToolCall("read_graph"),
        "entities",
        {"MEMORY_FILE_PATH": "/tmp/memory.jsonl"},
    ),
    Real(
        "filesystem",
        "npm",
        ("npx", f"{NPM}filesystem", "/data/shown"),
        ToolCall("read_text_file", {"path": "/data/shown/note.txt"}),
        "a note",
    ),
    Real(
        "everything", "npm", ("npx", f"{NPM}everything"), ToolCall("get-sum", {"a": 2, "b": 3}), "5"
    ),
)


class Unconfined(Plugin):
    """The same server through the same client, without a sandbox. Our own code alone runs so."""

    async def _begin(self) -> PluginConnection:
        pipe = asyncio.subprocess.PIPE
        started = await asyncio.create_subprocess_exec(
            *command(),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            env={"PYTHONPATH": str(SDK.parent)},
            limit=8 << 20,
        )
        return PluginConnection(started, ID, Bounds(1 << 30))


def command() -> list[str]:
    """The echo server as a program, on the interpreter that sandboxes use."""
    python = interpreter.find(interpreter.unprivileged_user()).executable
    return [str(python), "-S", "-B", "-c", ECHO]


class Bare:
    """The same server as a child that is written to and read by hand: what no client can beat."""

    def __init__(self) -> None:
        self.started = subprocess.Popen(
            command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": str(SDK.parent)},
        )

    def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """One request and its answer."""
        assert self.started.stdin is not None and self.started.stdout is not None
        line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        self.started.stdin.write(line.encode() + b"\n")
        self.started.stdin.flush()
        found: dict[str, Any] = json.loads(self.started.stdout.readline())
        return found

    def close(self) -> None:
        """End it."""
        assert self.started.stdin is not None and self.started.stdout is not None
        self.started.stdin.close()
        self.started.wait()
        self.started.stdout.close()


def bundle(folder: Path, name: str = "echo") -> Path:
    """The echo server as a plugin, called `bench/NAME`."""
    tool = {
        "name": name,
        "description": "Say it again.",
        "inputSchema": {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": True},
    }
    folder.mkdir(parents=True)
    (folder / "server.py").write_text(ECHO.replace("def echo", f"def {name}"))
    table = {
        "schema": manifest.SCHEMA,
        "id": f"bench/{name}",
        "version": "1.0.0",
        "kind": "mcp",
        "description": "Says it again.",
        "entry": "server.py",
        "license": {"spdx": "Apache-2.0"},
    }
    installing.write_manifest(folder, table, [tool])
    return folder


async def elapsed(work: Awaitable[Any]) -> float:
    """Seconds on the wall."""
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


def memory_mb(leader: int) -> float:
    """What a family of processes holds, shared pages divided among those who share them."""
    return sum(map(watchdog.held_bytes, watchdog.family(leader))) / (1 << 20)


async def costs(folder: Path, repeats: int, calls: int) -> dict[str, Any]:
    """Starts and calls of the three arms, in turn."""
    terms = manifest.read(bundle(folder / "echo"))
    plugins = {
        "sandbox": Plugin(terms, folder / "confined", {}, sandbox="bubblewrap"),
        "unsandboxed": Unconfined(terms, folder / "plain", {}, sandbox="bubblewrap"),
    }
    if probe("landlock").available:
        plugins["landlock"] = Plugin(terms, folder / "shared", {}, sandbox="landlock")
    cold: dict[str, list[float]] = {name: [] for name in (*plugins, "bare")}
    call: dict[str, list[float]] = {name: [] for name in (*plugins, "bare")}
    held = dict[str, float]()
    hello = {"protocolVersion": PROTOCOLS[0], "capabilities": {}}
    asked = {"name": "echo", "arguments": ASKED}
    for _ in range(repeats):
        bare = Bare()
        try:
            for name, plugin in plugins.items():
                cold[name].append(await elapsed(plugin.call("echo", ASKED, DEADLINE_S)))
            begun = time.perf_counter()
            again = Bare()
            for method, params in (
                ("initialize", hello),
                ("tools/list", {}),
                ("tools/call", asked),
            ):
                again.ask(method, params)
            cold["bare"].append(time.perf_counter() - begun)
            again.close()
            bare.ask("tools/call", asked)
            for _ in range(calls):
                for name, plugin in plugins.items():
                    call[name].append(await elapsed(plugin.call("echo", ASKED, DEADLINE_S)))
                begun = time.perf_counter()
                bare.ask("tools/call", asked)
                call["bare"].append(time.perf_counter() - begun)
            for name, plugin in plugins.items():
                assert plugin.connection is not None  # it answered a moment ago
                held[name] = memory_mb(plugin.connection.pid)
            held["bare"] = memory_mb(bare.started.pid)
        finally:
            bare.close()
            await asyncio.gather(*(plugin.stop() for plugin in plugins.values()))
    starts = {name: 1e3 * statistics.median(values) for name, values in cold.items()}
    quantiles = {name: statistics.quantiles(values, n=100) for name, values in call.items()}
    return {
        "cold_start_ms": starts,
        "cold_start_added_ms": starts["sandbox"] - starts["unsandboxed"],
        "call_us": {
            name: {"p50": 1e6 * rows[49], "p99": 1e6 * rows[98]} for name, rows in quantiles.items()
        },
        "call_added": quantiles["sandbox"][49] / quantiles["unsandboxed"][49] - 1,
        "rss_mb": held,
        "spread": {
            f"cold_start_ms.{name}": [1e3 * min(values), 1e3 * max(values)]
            for name, values in cold.items()
        },
    }


async def idle(folder: Path, count: int, seconds: float) -> dict[str, Any]:
    """Many plugins that were called once and are left alone."""
    names = [f"echo{number}" for number in range(count)]
    host = PluginHost(
        PluginsConfig(enabled=tuple(f"bench/{name}" for name in names)),
        bundles=[bundle(folder / name, name) for name in names],
        folder=folder / "host",
        installed=False,
    )
    await host.start()
    try:
        for name in names:
            await host.call(ToolCall(name, ASKED), DEADLINE_S)
        running = [one.connection for one in host.plugins.values() if one.connection is not None]
        async with asyncio.timeout(DEADLINE_S):
            while not all(one.watchdog.frozen for one in running):
                await asyncio.sleep(0.05)
        before, begun = spent(running), time.perf_counter()
        await asyncio.sleep(seconds)
        passed = time.perf_counter() - begun
        return {
            "plugins": len(running),
            "memory_mb": sum(memory_mb(one.pid) for one in running),
            "cpu_share": (spent(running) - before) / passed,
        }
    finally:
        await host.stop()


def spent(running: Sequence[PluginConnection]) -> float:
    """Processor seconds of these plugins, and of this process, which looks after them."""
    pids = [pid for one in running for pid in watchdog.family(one.pid)]
    ticks = sum(int(tick) for pid in pids for tick in watchdog.status(pid)[11:13])
    return ticks / os.sysconf("SC_CLK_TCK") + time.process_time()


@contextmanager
def another_home(folder: Path) -> Iterator[None]:
    """A node's home for a while: what is installed in it is gone afterwards."""
    before = os.environ.get("QUIETCHOIR_HOME")
    os.environ["QUIETCHOIR_HOME"] = str(folder)
    try:
        yield
    finally:
        del os.environ["QUIETCHOIR_HOME"]
        if before is not None:
            os.environ["QUIETCHOIR_HOME"] = before


def shown(folder: Path) -> Path:
    """A folder with a note and one commit, which every user may read."""
    place = folder / "shown"
    place.mkdir(mode=0o755)
    (place / "note.txt").write_text("a note\n")
    author = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "a first line")):
        subprocess.run(["git", *words], cwd=place, check=True, capture_output=True)
    return place


async def tried(real: Real, home: Path, place: Path) -> str:
    """Wrap one real server and call it; why not, or nothing."""
    plugin_id = f"bench/{real.name}"
    try:
        found = wrapping.resolve(real.words, home / real.folder)
        settings = PluginSettings(folders={"shown": place}, environment=dict(real.environment))
        terms = await installing.wrap(plugin_id, found.command, found, settings=settings)
        installing.fill_in(plugin_folder(plugin_id), settings)
        plugin = Plugin(terms, plugin_folder(plugin_id), {})
        try:
            text, ok = await plugin.call(real.call.name, real.call.arguments, DEADLINE_S)
        finally:
            await plugin.stop()
            installing.forget_content(terms.head.content)
    except QuietchoirError as error:
        return str(error)
    return "" if ok and real.answer in text else f"answered {text[:200]!r}"


async def third_party(folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Servers of other people that are installed in `servers()`, wrapped and called."""
    home, rows = servers(), dict[str, str]()
    for real in REAL:
        if (home / real.folder).is_dir():
            with another_home(folder / "home"):
                place = folder / "shown" if (folder / "shown").exists() else shown(folder)
                rows[real.name] = await tried(real, home, place)
            tell(f"  {real.name}: {rows[real.name] or 'works'}")
    if not rows:
        tell(
            f"  no servers of other people in {home}; this suite's file says how to put them there"
        )
    works = sum(not reason for reason in rows.values())
    return {"servers_tried": len(rows), "work": works, "servers": rows}


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep) -> dict[str, Any]:
    """All parts.

    Raises:
        QuietchoirError: nothing on this machine can confine a plugin.
    """
    if not (sandbox := probe("bubblewrap")).available:
        raise QuietchoirError(f"no sandbox: {sandbox.reason}; {sandbox.advice}")
    repeats, calls, count, seconds = (2, 40, 3, 0.5) if quick else (15, 400, 50, 5.0)
    report: dict[str, Any] = {
        "what": "the echo plugin in the full sandbox, through the same client without one, and as "
        "a bare process; on the wall",
        "seed": "none",
        "clock": "wall, s",
        "repeats": {"starts": repeats, "calls": repeats * calls},
        "spread": {},
        "exact": True,
        "sandbox": sandbox.reason,
    }

    async def parts() -> None:
        async with AsyncExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            scratch.chmod(0o755)  # the plugin's user reads what is shown to it
            tell("starts and calls")
            report.update(await costs(scratch / "costs", repeats, calls))
            keep(report)
            tell("idle plugins")
            report["idle"] = await idle(scratch / "idle", count, seconds)
            keep(report)
            tell("attempts to get out")
            launchers = [one for one in LAUNCHERS if probe(one).available]
            rows = await escapes.tried(launchers)
            report["escapes"] = escapes.report(rows["bubblewrap"])
            report["escapes_landlock"] = escapes.report(rows.get("landlock", []))
            keep(report)
            tell("servers of other people")
            report["mcp"] = await third_party(scratch, tell)

    asyncio.run(parts())
    tell("a registry of many plugins")
    with tempfile.TemporaryDirectory() as folder:
        report["market"] = market.measure(Path(folder), 20 if quick else 1000, 2 if quick else 5)
    return report


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    yield from (
        Figure("cold_start_ms.sandbox", "ms", "a start to its first answer, in the sandbox"),
        Figure("cold_start_ms.unsandboxed", "ms", "the same client and server without one"),
        Figure("cold_start_ms.bare", "ms", "the server as a bare process"),
        Figure("cold_start_added_ms", "ms", "what the sandbox adds", at_most=AROUND_MS),
        Figure("call_us.sandbox.p50", "µs", "a call in the sandbox"),
        Figure("call_us.sandbox.p99", "µs", "of a hundred calls the slowest"),
        Figure("call_us.unsandboxed.p50", "µs", "without one"),
        Figure("call_us.bare.p50", "µs", "by hand, without a client"),
        Figure("call_added", "", "what the sandbox adds, a fraction", at_most=AROUND_CALL),
        Figure("rss_mb.sandbox", "MB", "memory of the plugin with its sandbox"),
        Figure("rss_mb.unsandboxed", "MB", "without one"),
        Figure("idle.plugins", "", "plugins that were called once and are left alone"),
        Figure("idle.memory_mb", "MB", "memory of the idle plugins"),
        Figure("idle.cpu_share", "", "of one processor, with the host's own", at_most=0.01),
        Figure("escapes.tried", "", "attempts to get out of the sandbox", at_least=60),
        Figure("escapes.open", "", "of them, successful", at_most=0),
        Figure("escapes.controls_failed", "", "that show nothing", at_most=0),
        Figure("escapes_landlock.tried", "", "the same without namespaces (0: not here)"),
        Figure("escapes_landlock.open", "", "of them, successful", at_most=0),
        Figure("escapes_landlock.known_gaps", "", "that tell that a file or a process is there"),
        Figure("market.plugins", "", "plugins in a registry, each by an author of its own"),
        Figure("market.install_s", "s", "trust it and install one, over HTTP", at_most=2),
        Figure("market.metadata_kb", "kB", "of metadata that came for it", at_most=200),
        Figure(
            "market.targets_kb", "kB", "of archive, reviews, rules and log, the log once a change"
        ),
        Figure("market.another_s", "s", "install a second one"),
        Figure("market.search_s", "s", "search all of them"),
        Figure("market.index_kb", "kB", "of index that came for it"),
        Figure("market.file_s", "s", "the peer: the same archive, from a file"),
        Figure("mcp.servers_tried", "", "servers of other people that are installed here"),
    )
    if "landlock" in report["cold_start_ms"]:
        yield from (
            Figure("cold_start_ms.landlock", "ms", "a start without namespaces, under Landlock"),
            Figure("call_us.landlock.p50", "µs", "a call there"),
            Figure("rss_mb.landlock", "MB", "memory of the plugin there"),
        )
    tried = report["mcp"]["servers_tried"]
    yield Figure("mcp.work", "", "of them, wrapped and called", at_least=tried)
