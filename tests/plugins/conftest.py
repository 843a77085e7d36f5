"""What the plugin tests share: a real sandbox or the reason why not, plugins written on the
spot, a small home.
"""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from quietchoir.core.config import PluginsConfig
from quietchoir.plugins import manifest
from quietchoir.plugins.host import PluginHost
from quietchoir.plugins.manifest import PluginLimits
from quietchoir.plugins.running import SDK
from quietchoir.plugins.sandbox import bubblewrap, interpreter, linux
from quietchoir.plugins.sandbox.policy import BUNDLE, KIT, START, SandboxPolicy
from quietchoir.plugins.sandbox.probe import SandboxReport, inside_source, probe

HOME = {
    "name": "number nine",
    "areas": [
        {"name": "kitchen", "floor": "ground floor"},
        {"name": "bedroom", "floor": "first floor"},
    ],
    "devices": [
        {"name": "ceiling lamp", "domain": "light", "area": "kitchen"},
        {"name": "spotlight", "domain": "light", "area": "kitchen"},
        {"name": "reading lamp", "domain": "light", "area": "bedroom"},
        {"name": "roller blind", "domain": "cover", "area": "bedroom", "device_class": "blind"},
        {"name": "thermostat", "domain": "climate", "area": "kitchen"},
        {"name": "stereo", "domain": "media_player", "area": "bedroom"},
        {"name": "front door", "domain": "lock", "area": "kitchen"},
        {"name": "robbie", "domain": "vacuum", "area": "kitchen"},
        {"name": "movie night", "domain": "scene", "area": "bedroom"},
    ],
    "lists": ["groceries"],
}
NOTHING = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
ATTACK: dict[str, Any] = {"name": "attack", "description": "Attack.", "inputSchema": NOTHING}
HOSTILE = """
from quietchoir_sdk import Storage, serve, tool
import array, ctypes, errno, fcntl, os, signal, socket, subprocess, sys, time
@tool
def attack() -> str:
    "Attack."
{body}
serve("tests/hostile", "1.0.0")
"""


@pytest.fixture(scope="session")
def sandbox() -> SandboxReport:
    """A machine that can confine plugins. In CI a missing sandbox is a failure, elsewhere a skip
    with its reason.
    """
    report = probe()
    if not report.available:
        reason = f"no sandbox: {report.reason}; {report.advice}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return report


@pytest.fixture(scope="session")
def shared() -> SandboxReport:
    """A machine that can confine plugins without namespaces, or the reason why not."""
    report = probe("landlock")
    if not report.available:
        pytest.skip(f"no Landlock: {report.reason}")
    return report


def write_bundle(
    folder: Path, source: str, listed: Sequence[Mapping[str, Any]] = (ATTACK,), **changes: Any
) -> Path:
    """A plugin in `folder`: `source` is its server, `changes` are fields of its manifest."""
    terms = {
        "schema": 1,
        "id": "tests/hostile",
        "version": "1.0.0",
        "kind": "mcp",
        "description": "Written by a test.",
        "entry": "server.py",
        "license": {"spdx": "Apache-2.0"},
        "limits": {"memory_mb": 64, "cpu_s": 20, "processes": 6, "scratch_mb": 2},
        "tools_digest": manifest.digest(listed),
        "tools": list(listed),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(terms | changes))
    (folder / "server.py").write_text(source)
    return folder


def hostile(body: str) -> str:
    """Source of a plugin whose one tool runs `body`."""
    return HOSTILE.format(body=textwrap.indent(textwrap.dedent(body), "    "))


def unconfined(body: str, **environment: str) -> str:
    """The control arm: the same attack without a sandbox. For decoys only, made and owned by the
    test.
    """
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "attack", "arguments": {}},
    }
    asked = subprocess.run(
        [sys.executable, "-c", hostile(body)],
        input=json.dumps(call) + "\n",
        capture_output=True,
        text=True,
        timeout=20,
        env={"PYTHONPATH": str(SDK.parent), **environment},
        check=True,
    )
    return str(json.loads(asked.stdout)["result"]["content"][0]["text"])


def unlimited(body: str, *removed: str) -> str:
    """The control arm of a limit: the same attack in namespaces that are thrown away, without the
    limits of its processes, without the watchdog, and without `removed` arguments of bubblewrap.
    """
    user = interpreter.unprivileged_user()
    trial = SandboxPolicy(
        interpreter=interpreter.find(user),
        files={
            START: inside_source(),
            f"{KIT}/{SDK.name}": SDK.read_bytes(),
            f"{BUNDLE}/server.py": hostile(body).encode(),
        },
        module="bundle.server",
        limits=PluginLimits(scratch_mb=2),
    )
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "attack"}}
    with linux.prepared(trial, bubblewrap.find(user).path) as launch:
        command = [word for word in launch.command if word not in removed]
        command[-2] = "{}"
        asked = subprocess.run(
            command,
            input=json.dumps(call) + "\n",
            capture_output=True,
            text=True,
            timeout=30,
            pass_fds=launch.descriptors,
            cwd="/",
            env={},
            check=True,
            **linux.as_user(launch.user),
        )
    return str(json.loads(asked.stdout)["result"]["content"][0]["text"])


@pytest.fixture
def home_file(tmp_path: Path) -> Path:
    """The small home as a file."""
    path = tmp_path / "home.json"
    path.write_text(json.dumps(HOME))
    return path


@pytest_asyncio.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts plugin hosts on bundles, and stops them after the test."""
    started: list[PluginHost] = []

    async def begin(
        *bundles: Path,
        enabled: tuple[str, ...] = ("tests/hostile",),
        timeout_s: float = 60.0,
        **more: Any,
    ) -> PluginHost:
        host = PluginHost(
            PluginsConfig(enabled=enabled, call_timeout_s=timeout_s),
            bundles=bundles,
            folder=tmp_path / "plugins",
            **more,
        )
        started.append(host)
        await host.start()
        return host

    yield begin
    for host in started:
        await host.stop()


@pytest.fixture
def attack(sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Runs one attack inside the real sandbox and gives back what the plugin says."""

    async def run(body: str, *, timeout_s: float = 60.0, **changes: Any) -> str:
        from quietchoir.core.toolcall import ToolCall

        host = await hosts(
            write_bundle(tmp_path / "hostile", hostile(body), **changes), timeout_s=timeout_s
        )
        result = await host.call(ToolCall("attack"), timeout_s)
        return str(result.text)

    return run
