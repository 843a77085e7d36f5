"""Attacks by guests: who wrote a plugin, a model file or a request to the node.

Knows what each of them may hand over. Knows no engine: what is attacked here stands before it.
Always: a plugin's code runs in the sandbox, or as a decoy that only writes to its own streams; what
an arm starts it ends.
"""

import asyncio
import contextlib
import functools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from unittest import mock

from ...core.config import PluginsConfig
from ...core.engine.sampling import grammar_limits
from ...core.engine.sampling.params import Constraint
from ...core.errors import QuietchoirError
from ...core.toolcall import ToolCall, parse
from ...core.training.dataset import folder_name
from ...plugins import audit, client, manifest
from ...plugins.client import PluginConnection
from ...plugins.hidden import legible
from ...plugins.host import PluginHost
from ...plugins.sandbox.probe import SandboxReport, probe
from ...plugins.sandbox.watchdog import Bounds
from .catalogue import Attack, NotHere, Result

PLUGIN = "tests/guest"
# messages that a model reads and nobody sees
HIDDEN = "\U000e0073\U000e0065\U000e006e\U000e0064\u200b\u2062"
TOOL = {"name": "act", "description": "Act.", "inputSchema": {"type": "object", "properties": {}}}
PLAYED = """
import json, sys
def say(number, **told):
    print(json.dumps({{"jsonrpc": "2.0", "id": number, **told}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("method") == "initialize":
        say(asked["id"], result={{"protocolVersion": "2025-11-25"}})
    elif asked.get("method") == "tools/list":
        say(asked["id"], result={{"tools": [{tool!r}]}})
    elif asked.get("method") == "tools/call":
        {answer}
"""


def bundle(folder: Path, source: str, tool: Mapping[str, Any] = TOOL) -> Path:
    """A plugin."""
    terms = {
        "schema": 1,
        "id": PLUGIN,
        "version": "1.0.0",
        "kind": "mcp",
        "description": "A guest.",
        "entry": "server.py",
        "license": {"spdx": "Apache-2.0"},
        "tools_digest": manifest.digest([tool]),
        "tools": [tool],
    }
    folder.mkdir(parents=True)
    (folder / manifest.FILE).write_text(json.dumps(terms))
    (folder / "server.py").write_text(source)
    return folder


# A grammar, read in our own process before any worker sees it


def old_rules(text: str) -> None:
    """The count of a grammar's rules, with two repetitions that share messages."""
    re.findall(r"^[ \t]*[?!]*[A-Za-z_]\w*[^:\n\"/]*:", text, re.MULTILINE)


def all_bounds(text: str) -> None:
    """Everything that is looked at before the worker."""
    for kind in ("json_schema", "regex", "lark"):
        with contextlib.suppress(QuietchoirError):
            grammar_limits.check(Constraint(kind, text))


TEXTS: tuple[Callable[[int], str], ...] = (
    lambda size: "a" * size,
    lambda size: "a " * (size // 2),
    lambda size: " " * size + "x",
    lambda size: "?" * size,
    lambda size: "\n" * size,
    lambda size: "\\" * size,
    lambda size: "([{" * (size // 3),
    lambda size: '"$ref"' + " " * size,
    lambda size: '"$ref" ' * (size // 7),
    lambda size: "[" * 100 + '{"$ref": "#/' + "a/" * (size // 2) + '"}' + "]" * 100,
)


def square(read: Callable[[str], None], size: int) -> Result:
    """Does four times the text take far more than four times the time? The interpreter's lock is
    held all the while.
    """
    worst = 0.0, 0.0
    for text in TEXTS:
        seconds = []
        for length in (size, 4 * size):
            begun = time.thread_time()
            read(text(length))
            seconds.append(time.thread_time() - begun)
        worst = max(worst, (seconds[1] / max(seconds[0], 1e-4), seconds[1]))
    return Result(
        worst[0] > 9 and worst[1] > 0.2,
        f"four times the messages: {worst[0]:.1f} times as long, {worst[1]:.2f} s",
    )


# A plugin's call that leaves no trace


class Careless(PluginHost):
    """Counts an answer's bytes as if any text could be written down."""

    def _write(self, plugin: Any, call: ToolCall, text: str, seconds: float, *rest: Any) -> None:
        text.encode()
        super()._write(plugin, call, text, seconds, *rest)


class Played:
    """A plugin that did its work and says so with half a character."""

    async def call(self, *_: object) -> tuple[str, bool]:
        """Its answer."""
        return "done \ud800", True

    manifest = mock.Mock(id=PLUGIN)


def untraced(kind: type[PluginHost]) -> Result:
    """Lines of the log after one call."""
    with tempfile.TemporaryDirectory() as folder:
        host = kind(PluginsConfig(), folder=Path(folder))
        host._audit = audit.Audit(Path(folder) / "audit.jsonl")
        host.report = SandboxReport(True, "played", "")
        host._owners["act"] = cast(Any, Played())
        with contextlib.suppress(ValueError, QuietchoirError):
            asyncio.run(host.call(ToolCall("act")))
        lines, _ = audit.verify(Path(folder) / "audit.jsonl")
    return Result(lines == 0, f"one call, {lines} lines in the log")


# Messages that nobody sees, where nobody looked


def played(answer: str) -> str:
    """What the host passes on of a plugin that fails; a decoy, which writes to its streams and
    ends with its input.
    """

    async def once() -> str:
        source = PLAYED.format(tool=TOOL, answer=answer)
        started = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-c",
            source,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        connection = PluginConnection(started, PLUGIN, Bounds(1 << 30))
        try:
            await connection.handshake(30)
            await connection.call("act", {}, 30)
        except QuietchoirError as error:
            return str(error)
        finally:
            await connection.close()
        return ""

    return asyncio.run(once())


def unseen_in_errors(words: Callable[[str], str]) -> Result:
    """Messages that nobody sees, in a refusal and in last words."""
    answers = (
        f"say(asked['id'], error={{'code': 1, 'message': 'no {HIDDEN}'}})",
        f"sys.stderr.write('bye {HIDDEN}\\n'); sys.stderr.flush(); sys.exit(1)",
    )
    with mock.patch.object(client, "words", words):
        text = "".join(map(played, answers))
    left = sum(text.count(letter) for letter in HIDDEN)
    return Result(left > 0, f"{left} hidden messages of {2 * len(HIDDEN)} passed on")


def unseen_in_a_schema(texts: Callable[[Any], Iterator[str]]) -> Result:
    """The same in what a tool says of its arguments."""
    places: tuple[dict[str, Any], ...] = (
        {"properties": {"x": {"type": "string", "description": f"a lamp{HIDDEN}"}}},
        {"properties": {f"x{HIDDEN}": {}}},
        {"$defs": {"a": [{"enum": [f"on{HIDDEN}"]}]}},
        {"title": HIDDEN},
    )
    taken = 0
    with mock.patch.object(manifest, "texts", texts), tempfile.TemporaryDirectory() as folder:
        for number, place in enumerate(places):
            tool = {**TOOL, "inputSchema": {"type": "object", **place}}
            with contextlib.suppress(QuietchoirError):
                read = manifest.read(bundle(Path(folder) / str(number), "", tool))
                shown = json.dumps(read.tools[0].schema, ensure_ascii=False)
                taken += legible(shown) != shown
    return Result(
        taken > 0, f"{taken} of {len(places)} schemas with hidden messages are offered to models"
    )


# A process that stays when its plugin is gone


STAYS = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3):
            os.close(number)
        program = "import time; time.sleep(60)"
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", program, {mark!r}])
    os._exit(0)
time.sleep(0.5)
"""


def marked(mark: str) -> list[int]:
    """Processes of this machine, sandboxes' too, that carry a mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if place.read_bytes().rstrip(b"\0").endswith(mark.encode()):
                found.append(int(place.parent.name))
    return found


def stays(run: Callable[[str], int]) -> Result:
    """Processes of a plugin that are there after its end, of those that were there before it."""
    if sys.platform != "linux":
        raise NotHere("processes are looked up in /proc")
    mark = f"guest-{secrets.token_hex(8)}"
    before = run(mark)
    try:
        after = marked(mark)
        return Result(
            bool(after), f"{before} of its processes while it ran, {len(after)} after its end"
        )
    finally:
        for process in marked(mark):
            os.kill(process, signal.SIGKILL)


def in_the_open(mark: str) -> int:
    """A decoy that sleeps for a minute, started as anybody would."""
    with subprocess.Popen(
        [sys.executable, "-c", STAYS.format(mark=mark) + "sys.stdin.read()"], stdin=subprocess.PIPE
    ) as played:
        time.sleep(1.5)
        there = len(marked(mark))
        played.terminate()
    return there


def in_the_sandbox(mark: str) -> int:
    """The same as a plugin of a node, which ends it."""
    report = probe()
    if not report.available:
        raise NotHere(f"{report.reason}; {report.advice}")
    body = "\n".join("        " + line for line in STAYS.format(mark=mark).strip().splitlines())
    answer = body.lstrip() + (
        "\n        say(asked['id'], result={'content': [{'type': 'text', 'text': 'done'}]})"
    )

    async def once() -> int:
        with tempfile.TemporaryDirectory() as folder:
            guest = bundle(Path(folder) / "guest", PLAYED.format(tool=TOOL, answer=answer))
            host = PluginHost(
                PluginsConfig(enabled=(PLUGIN,)), bundles=(guest,), folder=Path(folder) / "plugins"
            )
            await host.start()
            try:
                await host.call(ToolCall("act"), 30)
                return len(marked(mark))
            finally:
                await host.stop()

    there = asyncio.run(once())
    if there == 0:
        raise RuntimeError("the plugin's process was never there: nothing is shown")
    return there


# What a model, or an adapter that somebody trained, writes as its answer


def shallow(text: str) -> ToolCall | None:
    """A reader that expects what is no JSON, and nothing else."""
    try:
        found = json.loads(text)
        return ToolCall(found["name"], found["arguments"])
    except (ValueError, KeyError, TypeError):
        return None


def deep_answers(read: Callable[[str], ToolCall | None]) -> Result:
    """Answers that end whoever reads them: a chat, a stream, a round that scores."""
    ended = set[str]()
    answers = [
        head + mark * depth
        for depth in (2_000, 100_000)
        for mark in ("[", '{"a":')
        for head in ("", '{"name":')
    ]
    for answer in (*answers, "1" * 10_000, '{"name": 1e999}', '"\ud800'):
        try:
            read(answer)
        except Exception as error:
            ended.add(type(error).__name__)
    return Result(
        bool(ended), f"{len(answers) + 3} answers, errors: {', '.join(sorted(ended)) or 'none'}"
    )


# A model's tokenizer that makes a short text a long one


def folder_with(folder: Path, **changes: Any) -> Path:
    """A model folder as far as its tokenizer."""
    letters = {chr(number): number - 33 for number in range(33, 127)}
    described = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": letters,
            "merges": [],
        },
        **changes,
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BETWEEN = {"type": "Replace", "pattern": {"Regex": ""}, "content": "aaaaaaaa"}
GROWING: tuple[dict[str, Any], ...] = (
    {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 14}},
    {"normalizer": {"type": "Sequence", "normalizers": [BETWEEN] * 4}},
    {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Sequence", "normalizers": [DOUBLE] * 7}] * 2,
        }
    },
    {"normalizer": {"type": "Prepend", "prepend": "a" * 10_000}},
)


def growing(count: Callable[[Path], int]) -> Result:
    """Tokens of one message."""
    most = taken = 0
    with tempfile.TemporaryDirectory() as there:
        for number, change in enumerate(GROWING):
            with contextlib.suppress(QuietchoirError):
                most = max(most, count(folder_with(Path(there) / str(number), **change)))
                taken += 1
    return Result(
        most > 1_000,
        f"{taken} of {len(GROWING)} tokenizers taken, most tokens of one message: {most}",
    )


def library_alone(folder: Path) -> int:
    """The library's own reader."""
    from tokenizers import Tokenizer

    return len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids)


def product(folder: Path) -> int:
    """The product's."""
    from ...core.models.tokenizer.hf_json import read_tokenizer

    return len(read_tokenizer(folder, 94).encode("a"))


# A row of examples that names a folder


NAMES = (
    "../../x",
    "/etc/x",
    "..",
    ".",
    "",
    "a/../../b",
    "..\\..\\x",
    "C:\\x",
    "con",
    "x\0y",
    "\u202e..",
    "…/…",
    "a" * 5_000,
    "~root",
)


def outside(name_of: Callable[[str], str]) -> Result:
    """Parties whose folder would lie elsewhere than in the folder of examples."""
    with tempfile.TemporaryDirectory() as there:
        root, led = (Path(there) / "data").resolve(), 0
        for name in NAMES:
            try:
                led += (root / name_of(name)).resolve().parent != root
            except (OSError, ValueError):
                led += 1
    return Result(led > 0, f"{led} of {len(NAMES)} names lead elsewhere")


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="a grammar whose bounds take the square of its length",
        who="client of the API",
        mode="server",
        promise="work and memory before the compiler are linear in the text",
        unprotected=lambda: square(old_rules, 3_000),
        protected=lambda: square(all_bounds, 25_000),
    ),
    Attack(
        name="a call that leaves no line in the log",
        who="plugin",
        mode="plugin",
        promise="every call is logged: names, sizes, time and outcome",
        unprotected=lambda: untraced(Careless),
        protected=lambda: untraced(PluginHost),
    ),
    Attack(
        name="letters that nobody sees, in a plugin's errors",
        who="plugin",
        mode="plugin",
        promise="what a plugin says is cleaned of invisible characters",
        unprotected=lambda: unseen_in_errors(lambda text: text[:200]),
        protected=functools.partial(unseen_in_errors, client.words),
    ),
    Attack(
        name="letters that nobody sees, in a tool's schema",
        who="plugin",
        mode="plugin",
        promise="what a plugin says is cleaned of invisible characters",
        unprotected=lambda: unseen_in_a_schema(lambda _: iter(())),
        protected=functools.partial(unseen_in_a_schema, manifest.texts),
    ),
    Attack(
        name="a process that stays when its plugin is gone",
        who="plugin",
        mode="plugin",
        promise="what a plugin started ends with it",
        unprotected=lambda: stays(in_the_open),
        protected=lambda: stays(in_the_sandbox),
    ),
    Attack(
        name="an answer nested too deep to be read",
        who="whoever trained an adapter",
        mode="file",
        promise="an answer is a tool call or a text, whatever the model writes",
        unprotected=lambda: deep_answers(shallow),
        protected=lambda: deep_answers(parse),
    ),
    Attack(
        name="a tokenizer that makes a letter a book",
        who="whoever made a model folder",
        mode="file",
        promise="what is not in the known form is refused before the node serves",
        unprotected=lambda: growing(library_alone),
        protected=lambda: growing(product),
    ),
    Attack(
        name="a row whose party is a path",
        who="whoever wrote a row of examples",
        mode="file",
        promise="a party's folder never leads out of its parent",
        unprotected=lambda: outside(str),
        protected=lambda: outside(folder_name),
    ),
)
