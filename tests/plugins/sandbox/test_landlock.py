"""A plugin without namespaces: what it still may do, what bounds it, and what it is not granted."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import SandboxUnavailableError, ToolError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins import manifest
from quietchoir.plugins.host import BUILTIN
from quietchoir.plugins.manifest import Permissions, PluginLimits
from quietchoir.plugins.running import Plugin
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
    space = found.pop(f"{tmp_path / 's'}/tmp")
    assert not space & landlock.EXECUTE and space & landlock.WRITE_FILE
    assert not space & (1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12)  # devices, pipes, links …
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


def test_a_stage_is_taken_away_with_folders_that_its_plugin_closed(tmp_path: Path) -> None:
    (tmp_path / "stage" / "tmp" / "open").mkdir(parents=True)
    (tmp_path / "stage" / "tmp" / "open" / "file").write_text("left")
    (tmp_path / "stage" / "tmp" / "open" / "closed").mkdir(mode=0)
    landlock.remove(tmp_path / "stage")
    assert not (tmp_path / "stage").exists()


async def test_where_its_files_find_no_place_it_is_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: landlock.LEAST)
    monkeypatch.setattr(landlock, "place_for", lambda user: tmp_path / "gone")
    with pytest.raises(SandboxUnavailableError, match="no place for what a plugin reads"):
        await landlock.start(confined())


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_leaves_its_own_signals_or_its_group_and_nothing_of_others(
    machine: str, column: int
) -> None:
    program = seccomp.compile_filter(machine, seccomp.Extra(shared=True))
    grouped = seccomp.compile_filter(machine, seccomp.Extra(shared=True, programs=True))
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
            assert said(name, of=grouped) == no
    for names, allowing in ((seccomp.BEGINNING, grouped), (seccomp.LEAVING, program)):
        for name in names:
            if seccomp.ALLOWED[name][column] is not None:
                both = {said(name), said(name, of=grouped)}
                assert (both, said(name, of=allowing)) == ({no, seccomp.ALLOW}, seccomp.ALLOW)
    assert said("clone", 0x01200011) == no
    assert said("clone", 0x01200011, of=grouped) == seccomp.ALLOW
    assert said("clone", 0x01208011, of=grouped) == no  # a sibling
    assert said("clone", 0x11200011, of=grouped) == no  # a namespace
    assert said("kill", 1, of=grouped) == seccomp.ALLOW  # Landlock's to judge
    assert said("prlimit64", 1, of=grouped) == no
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


async def test_the_kernel_bounds_its_memory_and_where_it_cannot_keep_signals_nothing_begins(
    inside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: landlock.PROGRAMS - 1)
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


async def test_a_tool_that_begins_a_program_says_where_that_is_held(
    inside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: landlock.PROGRAMS - 1)
    host = await inside(hostile("subprocess.run(['/bin/true'])"))
    found = await host.call(ToolCall("attack"))
    assert not found.ok and "programs only where Landlock has version 6" in found.text


@pytest.fixture
def programs(shared: SandboxReport) -> None:
    """A machine whose Landlock holds programs that a plugin begins."""
    if not landlock.begins_programs(landlock.abi()):
        pytest.skip(f"Landlock has version {landlock.abi()} here")


# a grandchild whose parent is gone, and that holds none of the plugin's streams
LEAVES = """
if os.fork() == 0:
    if os.fork() == 0:
        for one in range(3):
            os.close(one)
        time.sleep(600)
    os._exit(0)
os.wait()
"""


async def test_programs_that_a_plugin_begins_are_counted_stopped_and_end_with_it(
    programs: None, inside: Callable[..., Any]
) -> None:
    body = f"""
    import tempfile
    {textwrap.indent(LEAVES, "    ").strip()}
    place = tempfile.mkdtemp()
    open(place + "/note", "w").write("kept")
    return subprocess.run(["cat", "note"], cwd=place, capture_output=True, text=True).stdout
    """
    host = await inside(hostile(body))
    assert (await host.call(ToolCall("attack"))).text == "kept"
    plugin = host.plugins["tests/hostile"]
    leader = plugin.connection.pid
    _, orphan = watchdog.family(leader)
    handle = os.pidfd_open(orphan)
    try:
        async with asyncio.timeout(20):
            while not plugin.connection.watchdog.frozen:
                await asyncio.sleep(0.02)
        assert watchdog.state(orphan) == "T"
        await host.stop()
        assert has_ended(handle)
    finally:
        os.close(handle)


async def test_whoever_is_left_of_a_plugin_that_ended_by_itself_ends_too(
    programs: None, inside: Callable[..., Any]
) -> None:
    body = f"""
    {textwrap.indent(LEAVES, "    ").strip()}
    return "left"
    """
    host = await inside(hostile(body))
    assert (await host.call(ToolCall("attack"))).text == "left"
    leader, orphan = watchdog.family(host.plugins["tests/hostile"].connection.pid)
    handle = os.pidfd_open(orphan)
    try:
        os.kill(leader, signal.SIGKILL)
        assert has_ended(handle)
    finally:
        os.close(handle)


async def test_processes_beyond_its_limit_end_it_with_all_of_them(
    programs: None, inside: Callable[..., Any]
) -> None:
    body = """
    for _ in range(30):
        if os.fork() == 0:
            time.sleep(600)
    time.sleep(60)
    """
    host = await inside(hostile(body))
    with pytest.raises(ToolError, match=r"ran \d+ threads, more than 6"):
        await host.call(ToolCall("attack"))


async def test_scratch_space_beyond_its_limit_ends_it(inside: Callable[..., Any]) -> None:
    body = """
    for number in range(9):
        with open(f"{os.environ['TMPDIR']}/{number}", "wb") as file:
            file.write(bytes(1 << 20))
    time.sleep(60)
    """
    host = await inside(hostile(body))
    with pytest.raises(ToolError, match=r"tmp holds more than 2 MB"):
        await host.call(ToolCall("attack"))


async def test_the_code_plugin_runs_checks_and_tests_without_namespaces(
    programs: None, tmp_path: Path
) -> None:
    plugin = Plugin(manifest.read(BUILTIN / "code"), tmp_path / "code", {}, sandbox="landlock")
    try:
        run = {"code": "import numpy\nint(numpy.arange(4).sum())"}
        assert await plugin.call("code_run", run, 60) == ("6", True)
        assert await plugin.call("code_format", {"code": "x=1"}, 60) == ("x = 1", True)
        tests = "from main import f\ndef test_f(): assert f() == 2"
        said, ok = await plugin.call("code_test", {"code": "def f(): return 2", "tests": tests}, 60)
        assert ok and "1 passed" in said
    finally:
        await plugin.stop()


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
    begins = landlock.begins_programs(landlock.abi())
    bundle = write_bundle(tmp_path / "hostile", hostile((LEAVES if begins else "") + "return ''"))
    node = subprocess.Popen(
        [sys.executable, "-c", STARTS, bundle, tmp_path / "private"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdout is not None
    pid = int(node.stdout.readline())
    with node.stdout:
        family = watchdog.family(pid)
        assert len(family) == 1 + begins
        handles = list(map(os.pidfd_open, family))
        try:
            node.send_signal(signal.SIGKILL)
            node.wait()
            assert all(map(has_ended, handles))
        finally:
            for handle in handles:
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
    assert found["FSIZE"] == asked.limits.scratch_mb << 20 and found["CORE"] == 0
