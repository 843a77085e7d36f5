"""A plugin without namespaces: what it still may do, what bounds it, and what it is not granted."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import SandboxUnavailableError, ToolError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins.manifest import Permissions, PluginLimits
from quietchoir.plugins.sandbox import interpreter, keeper, landlock, policy, seccomp, watchdog
from quietchoir.plugins.sandbox.policy import SandboxPolicy
from quietchoir.plugins.sandbox.probe import SandboxReport

from ..conftest import hostile, write_bundle
from .test_policy import SYSTEM_PYTHON, refused, verdict

STARTS = """
import asyncio, sys
from pathlib import Path
from quietchoir.plugins import manifest
from quietchoir.plugins.running import Plugin
async def main():
    plugin = Plugin(manifest.read(Path(sys.argv[1])), Path(sys.argv[2]), {}, sandbox="landlock")
    await plugin.call("attack", {}, 60)
    print(plugin.connection.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def confined(**more: Any) -> SandboxPolicy:
    """A policy that grants nothing but `more`."""
    return SandboxPolicy(
        interpreter=SYSTEM_PYTHON,
        files={policy.START: b"", "/plugin/bundle/server.py": b""},
        **({"module": "bundle.server"} | more),
    )


def test_what_is_handled_grows_with_the_kernel_and_what_is_left_does_not(tmp_path: Path) -> None:
    shown, runs = tmp_path / "shown", tmp_path / "runs"
    for place in (shown, runs):
        place.mkdir()
    asked = confined(folders={"/data/shown": shown, policy.FILES: runs})
    look = landlock.READ_FILE | landlock.READ_DIR
    oldest, newest = (landlock.ruleset(asked, tmp_path / "s", one) for one in (4, 9))
    assert oldest.handled == (0x7FFF, 3)
    assert newest.handled == (0xFFFF, 3, 3)
    assert oldest.rules == newest.rules
    found = dict(oldest.rules)
    assert found[str(tmp_path / "s")] == found[str(shown)] == look
    assert found["/usr"] == found[str(runs)] == look | landlock.EXECUTE
    writing = {path for path, rights in found.items() if rights & landlock.WRITE_FILE}
    assert writing <= {"/dev/null", "/dev/zero", "/dev/full"}
    beyond = look | landlock.EXECUTE | landlock.WRITE_FILE
    assert not any(rights & ~beyond for rights in found.values())


def test_words_of_a_command_are_led_to_where_things_lie() -> None:
    words = ("python", "/plugin/files/run.py", "--at=/data/papers/a", "/database", "x/data/y")
    asked = confined(module="", command=words)
    found = policy.program(asked, {}, "/s")
    assert found[:5] == ["/usr/bin/python3", "-I", "-S", "-B", "/s/quietchoir/inside.py"]
    assert found[6:] == [
        *("/usr/bin/python3", "/s/plugin/files/run.py", "--at=/s/data/papers/a"),
        *("/database", "x/data/y"),
    ]
    assert policy.environment(asked, "/s")["PYTHONPATH"] == "/s/plugin/files"
    assert policy.program(asked, {})[7] == "/plugin/files/run.py"


def test_what_it_cannot_hold_is_refused_in_words() -> None:
    assert landlock.refuses(Permissions(config=("a",), folders=("b",), storage_bytes=9)) == ""
    said = landlock.refuses(Permissions(network=("example.org",), write_folders=("out",)))
    assert "the network and folders to write to" in said
    with pytest.raises(SandboxUnavailableError):
        landlock.launch(confined(broker=3), Path("/s"), None)


async def test_where_its_files_find_no_place_it_is_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: landlock.LEAST)
    monkeypatch.setattr(landlock, "place_for", lambda user: tmp_path / "gone")
    with pytest.raises(SandboxUnavailableError, match="no place for what a plugin reads"):
        await landlock.start(confined())


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_leaves_one_process_its_own_signals_and_nothing_of_others(
    machine: str, column: int
) -> None:
    program = seccomp.compile_filter(machine, seccomp.Extra(shared=True))
    usual = seccomp.compile_filter(machine)
    architecture = seccomp.MACHINES[machine]

    def said(name: str, *arguments: int, of: bytes = program) -> int:
        number = seccomp.ALLOWED[name][column]
        assert number is not None
        return verdict(of, number, arguments, architecture=architecture)

    no = refused(errno.EPERM)
    for name in seccomp.SHARED_REFUSED:
        if seccomp.ALLOWED[name][column] is not None:
            assert (said(name), said(name, of=usual)) == (no, seccomp.ALLOW)
    assert said("clone", 0x01200011) == no
    assert said("clone", 0x003D0F00) == seccomp.ALLOW
    assert said("clone", 0x003D0F00 | 0x10000000) == no  # a thread, and a namespace
    for name in ("kill", "tgkill"):
        assert said(name, seccomp.OWN) == seccomp.ALLOW
        # process 1, its own group, everybody
        assert [said(name, one) for one in (1, 0, 0xFFFFFFFF)] == [no] * 3
    assert said("prlimit64", 0) == seccomp.ALLOW and said("prlimit64", 1) == no
    assert said("socketpair", 1, 0x80801) == seccomp.ALLOW
    assert said("socketpair", 1, 2) == said("socketpair", 1, 5) == no
    # CLOCK_MONOTONIC; its own processor time; those of process 1 and of a thread of another
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep"):
        assert said(name, 1) == said(name, 0xFFFFFFFA) == seccomp.ALLOW
        others = [(~1 << 3 | 2) & 0xFFFFFFFF, (~4711 << 3 | 6) & 0xFFFFFFFF]
        assert [said(name, one) for one in others] == [no] * 2
        assert said(name, others[0], of=usual) == seccomp.ALLOW  # where others have no numbers
    assert said("openat") == said("execve") == seccomp.ALLOW


@pytest.fixture
def inside(shared: SandboxReport, hosts: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Starts a host without namespaces on one bundle."""

    async def begin(source: str, **more: Any) -> Any:
        return await hosts(
            write_bundle(tmp_path / "hostile", source, **more), sandbox="landlock", idle_s=60.0
        )

    return begin


USEFUL = """
from quietchoir_sdk import Storage, config, folder, serve, tool
import os, sys, threading
@tool
def attack() -> str:
    "Attack."
    kept = Storage()
    kept.save((kept.value or 0) + 1)
    note = (folder("papers") / "note").read_text()
    started = threading.Thread(target=print, kwargs={"file": sys.stderr})
    started.start()
    started.join()
    return f"{config('home.json')['name']} {note} {kept.value} {sorted(os.environ)}"
serve("tests/hostile", "1.0.0")
"""


@pytest.fixture
def papers() -> Iterator[Path]:
    """A folder that the plugin's user can reach; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "note").write_text("a note")
        yield Path(folder)


async def test_a_plugin_reads_keeps_and_runs_threads_as_in_the_other_sandbox(
    inside: Callable[..., Any], tmp_path: Path, papers: Path
) -> None:
    private = tmp_path / "plugins" / "tests" / "hostile"
    private.mkdir(parents=True)
    (private / "home.json").write_text('{"name": "nine"}')
    (private / "settings.json").write_text(json.dumps({"folders": {"papers": str(papers)}}))
    asked = {"config": ["home.json"], "folders": ["papers"], "storage_bytes": 4096}
    host = await inside(USEFUL, permissions=asked)
    for count in (1, 2):
        found = await host.call(ToolCall("attack"))
        assert found.text.startswith(f"nine a note {count} ['HOME', 'LANG'"), found.text
    plugin = host.plugins["tests/hostile"]
    place = landlock.place_for(interpreter.unprivileged_user())
    mine = [one for one in place.iterdir() if one.name.startswith(f"{os.getpid()}-")]
    assert mine and watchdog.family(plugin.connection.pid) == [plugin.connection.pid]
    async with asyncio.timeout(20):
        while not plugin.connection.watchdog.frozen:
            await asyncio.sleep(0.02)
    assert watchdog.state(plugin.connection.pid) == "T"
    assert (await host.call(ToolCall("attack"))).ok  # it runs on
    await host.stop()
    assert not any(one.exists() for one in mine)


async def test_threads_beyond_its_limit_end_it(inside: Callable[..., Any]) -> None:
    body = """
    import threading
    threading.stack_size(1 << 18)
    for _ in range(12):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    time.sleep(60)
    return "ran"
    """
    host = await inside(hostile(body))
    with pytest.raises(ToolError, match=r"ran \d+ threads, more than 6"):
        await host.call(ToolCall("attack"))


async def test_the_kernel_bounds_its_memory_and_it_begins_no_program(
    inside: Callable[..., Any],
) -> None:
    body = """
    found = []
    for attempt in (lambda: bytearray(300 << 20), os.fork, lambda: subprocess.run(["/bin/true"])):
        try:
            attempt()
            found.append("open")
        except (MemoryError, OSError) as error:
            found.append(type(error).__name__)
    return " ".join(found)
    """
    host = await inside(hostile(body))
    found = await host.call(ToolCall("attack"))
    assert found.text == "MemoryError PermissionError PermissionError"


async def test_a_tool_that_begins_a_program_says_what_is_not_there(
    inside: Callable[..., Any],
) -> None:
    host = await inside(hostile("subprocess.run(['/bin/true'])"))
    found = await host.call(ToolCall("attack"))
    assert not found.ok and "has no namespaces, so plugins begin no programs" in found.text


async def test_who_asks_for_the_network_is_off_and_says_why(
    inside: Callable[..., Any], tmp_path: Path
) -> None:
    host = await inside(hostile("return 'ran'"), permissions={"network": ["example.org"]})
    assert host.tools() == []
    with pytest.raises(ToolError, match="asks for the network"):
        await host.call(ToolCall("attack"))
    assert host.plugins["tests/hostile"].connection is None


async def test_who_cannot_be_watched_does_not_run(
    inside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance: no descriptor was left to watch it by, and it ran on without any bound."""
    host, handles = await inside(hostile("return 'ran'")), list[int]()

    def refuse(handle: int) -> None:
        handles.append(os.dup(handle))
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as without:
        without.setattr(keeper.KEEPER, "hold", refuse)
        with pytest.raises(ToolError, match="cannot be watched"):
            await host.call(ToolCall("attack"))
    assert len(handles) == 1 and has_ended(handles[0])
    os.close(handles[0])
    assert (await host.call(ToolCall("attack"))).text == "ran"  # the control


def test_it_ends_with_the_node_and_its_folder_goes_at_the_next_start(
    shared: SandboxReport, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "hostile", hostile("return 'ran'"))
    node = subprocess.Popen(
        [sys.executable, "-c", STARTS, bundle, tmp_path / "private"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdout is not None
    pid = int(node.stdout.readline())
    with node.stdout:
        handle = os.pidfd_open(pid)
        try:
            node.send_signal(signal.SIGKILL)
            node.wait()
            assert has_ended(handle)
        finally:
            os.close(handle)
    place = landlock.place_for(interpreter.unprivileged_user())
    assert not [one for one in place.iterdir() if one.name.startswith(f"{node.pid}-")]


def has_ended(handle: int) -> bool:
    """Whether the process of `handle` ends within a minute."""
    import select

    return bool(select.select([handle], [], [], 60)[0])


def test_a_limit_counts_the_threads_that_its_user_has_already() -> None:
    asked = confined(limits=PluginLimits(processes=3))
    user = os.geteuid()
    before = landlock.threads_of_user(user)
    assert before >= 1
    found = landlock.resource_limits(asked, user if user else None)
    assert found["NPROC"] >= 3 + landlock.SPARE_THREADS
    assert found["FSIZE"] == 0 and found["CORE"] == 0
