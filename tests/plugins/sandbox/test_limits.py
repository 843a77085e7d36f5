"""A hostile plugin tries to use up the machine. It gets its share, then an error or its end; the
node goes on. Each row of the table of limits (plugins/README.md) has its test here; where the
attack does no harm it is first shown to work in a sandbox without that limit.
"""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quietchoir
from quietchoir.core.errors import PluginError, ToolError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins.sandbox import bubblewrap, interpreter, linux, policy, seccomp, watchdog
from quietchoir.plugins.sandbox.probe import SandboxReport

from ..conftest import ATTACK, hostile, unconfined, unlimited, write_bundle

GREET = ATTACK | {"name": "greet", "description": "Greet."}


async def test_a_fork_bomb_stops_at_its_number_of_processes(attack: Callable[..., Any]) -> None:
    body = """
    count = 0
    for _ in range(200):
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            count += 1
        except OSError as error:
            return f"{count} {errno.errorcode[error.errno]}"
    return f"{count} unlimited"
    """
    count, _, why = (await attack(body)).partition(" ")
    assert why == "EAGAIN"
    assert int(count) < 6


FIRST = """
with open("/proc/1/limits") as file:
    of_first = [line.split() for line in file if line.startswith("Max processes")][0][2]
with open("/proc/1/comm") as file:
    return f"{of_first} {file.read().strip()}"
"""


async def test_no_process_inside_stands_outside_of_the_limits(attack: Callable[..., Any]) -> None:
    # bubblewrap's own first process could be written to through /proc/1/mem, and forked from there
    assert unlimited(FIRST, "--as-pid-1").endswith(" bwrap")
    body = """
    own = open("/proc/self/limits").read()
    others = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    return f"{len(others)} {all(open(f'/proc/{entry}/limits').read() == own for entry in others)}"
    """
    assert await attack(body) == "1 True"
    assert (await attack(FIRST)).startswith("6 python")


EMPTY = """
made = 0
while made < 2000:
    os.close(os.open(f"{place}/{{made}}", os.O_CREAT | os.O_WRONLY))
    made += 1
"""


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
async def test_empty_files_are_counted(attack: Callable[..., Any], place: str) -> None:
    body = EMPTY.format(place=place)
    assert unlimited(body + "return str(made)") == "2000"
    # 2 MB of scratch space, so 512 files; an empty one takes no byte of it
    with pytest.raises(ToolError, match=rf"\d+ files in {place}, more than 512"):
        await attack(body + "time.sleep(60)")


COUNT_FILES = """
import os, subprocess
from quietchoir.plugins.sandbox import bubblewrap, interpreter, linux, watchdog
from quietchoir.plugins.sandbox.policy import BUNDLE, START, SandboxPolicy
from quietchoir.plugins.sandbox.probe import inside_source
body = b"for number in range(40): open(f'/tmp/{number}', 'x').close()\\n"
body += b"print('made', flush=True); import sys; sys.stdin.read()"
user = interpreter.unprivileged_user()
trial = SandboxPolicy(interpreter=interpreter.find(user), module="bundle.trial",
                      files={START: inside_source(), f"{BUNDLE}/trial.py": body})
with linux.prepared(trial, bubblewrap.find(user).path) as launch:
    pipe = subprocess.PIPE
    started = subprocess.Popen(launch.command, stdin=pipe, stdout=pipe, pass_fds=launch.descriptors,
                               cwd="/", env={}, **linux.as_user(launch.user))
    assert started.stdout.readline() == b"made\\n"
    size = trial.limits.scratch_mb << 20
    print(os.geteuid() == 0, watchdog.files_in("/tmp", size, watchdog.family(started.pid)[1:]))
    started.stdin.close()
    started.wait()
"""


@pytest.mark.parametrize("root", [True, False])
def test_files_are_counted_by_root_and_by_an_ordinary_user(
    sandbox: SandboxReport, root: bool
) -> None:
    if root and os.geteuid() != 0:
        pytest.skip("this is an ordinary user")
    package = Path(quietchoir.__file__).parent
    dropped = linux.as_user(None if root or os.geteuid() else interpreter.NOBODY)
    if dropped and not interpreter.reachable(package, interpreter.NOBODY):
        pytest.skip(f"{package} lies where an ordinary user may not read")
    with tempfile.TemporaryDirectory() as place:  # a checkout has any name
        Path(place).chmod(0o755)
        (Path(place) / "quietchoir").symlink_to(package)
        # the interpreter that plugins get may lack the packaged one: it is found where this one is
        program = bubblewrap.find(interpreter.NOBODY).path
        asked = subprocess.run(
            [interpreter.find(interpreter.NOBODY).executable, "-B", "-c", COUNT_FILES],
            env={"PYTHONPATH": place, "PATH": f"{program.parent}:/usr/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            **dropped,
        )
    assert asked.stdout.split() == [str(root), "41"], asked.stderr  # with the folder itself


SPIN = """
if os.fork() == 0:
    os.setsid()
    os.close(1), os.close(2)
    while True:
        pass
return str(os.getpid())
"""


async def test_nothing_computes_after_the_answer_and_the_next_call_finds_it_awake(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    host = await hosts(write_bundle(tmp_path / "hostile", hostile(SPIN)))
    first = (await host.call(ToolCall("attack"))).text
    connection = host.plugins["tests/hostile"].connection
    children = watchdog.family(connection.pid)[1:]
    assert len(children) == 2
    assert any(watchdog.status(pid)[0] == "R" for pid in children)  # the control: it does compute
    async with asyncio.timeout(20):
        while not connection.watchdog.frozen:
            await asyncio.sleep(0.02)
    spent = [watchdog.status(pid)[11:13] for pid in children]
    assert [watchdog.status(pid)[0] for pid in children] == ["T", "T"]
    await asyncio.sleep(0.2)
    assert [watchdog.status(pid)[11:13] for pid in children] == spent
    assert (await host.call(ToolCall("attack"))).text == first  # the same process, awake


async def test_two_slow_calls_at_once_are_both_answered(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    body = "time.sleep(0.7)\nreturn 'done'"
    host = await hosts(write_bundle(tmp_path / "hostile", hostile(body)), timeout_s=1.2)
    plugin = host.plugins["tests/hostile"]
    await plugin.warm(30)
    answers = await asyncio.gather(*(host.call(ToolCall("attack")) for _ in range(2)))
    assert [answer.text for answer in answers] == ["done", "done"]


BUFFERS = """
def fill(descriptor):
    os.set_blocking(descriptor, False)
    written = 0
    try:
        while True:
            written += os.write(descriptor, b"x" * 4096)
    except BlockingIOError:
        return written
larger = []
reader, writer = os.pipe()
try:
    fcntl.fcntl(writer, 1031, 1 << 20)
    larger.append("pipe")
except PermissionError:
    pass
left, right = socket.socketpair()
for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
    try:
        left.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        larger.append("socket")
    except PermissionError:
        pass
return f"{fill(writer)} {fill(left.fileno())} {' '.join(larger) or 'none'}"
"""


async def test_what_the_kernel_holds_for_pipes_and_sockets_is_bounded_and_counted(
    attack: Callable[..., Any],
) -> None:
    pipe, sockets, larger = (await attack(BUFFERS)).split(" ", 2)
    assert larger == "none"
    assert int(pipe) == watchdog.PIPE_BYTES
    assert 0 < int(sockets) <= watchdog.SOCKET_BYTES
    assert unconfined(BUFFERS).endswith("pipe socket socket")
    # 50 sockets in each of five processes may hold 62 MB beside five interpreters
    many = """
    for _ in range(4):
        if os.fork() == 0:
            break
    kept = [socket.socketpair() for _ in range(25)]
    time.sleep(60)
    """
    with pytest.raises(ToolError, match=r"its processes held \d+ MB, more than 64 MB"):
        await attack(many)


LOCKS = """
descriptor = os.open("/tmp/locked", os.O_CREAT | os.O_RDWR)
for held in range(3000):
    fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 2 * held)
"""


async def test_locks_are_counted(attack: Callable[..., Any]) -> None:
    assert unlimited(LOCKS + "return str(held + 1)") == "3000"
    with pytest.raises(ToolError, match=r"\d+ locks, more than 1024"):
        await attack(LOCKS + "time.sleep(60)")


TIMERS = """
libc = ctypes.CDLL(None)
made = 0
while made < 300 and libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) == 0:
    made += 1
return str(made)
"""
SET_ASIDE = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
sent = 0
try:
    while sent < 300:
        signal.raise_signal(signal.SIGRTMIN)
        sent += 1
except OSError:
    pass
return str(sent)
"""


async def test_no_timer_signals_and_few_signals_are_set_aside(attack: Callable[..., Any]) -> None:
    assert unconfined(TIMERS) == "300"
    assert await attack(TIMERS) == "0"  # one that sends SIGCONT would go on after the answer
    assert unlimited(SET_ASIDE) == "300"
    assert int(await attack(SET_ASIDE)) <= policy.SIGNALS


DESCRIPTORS = """
kept = []
try:
    while len(kept) < 200:
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    return errno.errorcode[error.errno]
return "unlimited"
"""
SPARSE = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    os.ftruncate(os.open("/tmp/sparse", os.O_CREAT | os.O_RDWR), 1 << 30)
except OSError as error:
    return errno.errorcode[error.errno]
return "unlimited"
"""


@pytest.mark.parametrize(("body", "refusal"), [(DESCRIPTORS, "EMFILE"), (SPARSE, "EFBIG")])
async def test_descriptors_and_the_size_of_a_file_are_bounded(
    attack: Callable[..., Any], body: str, refusal: str
) -> None:
    assert unlimited(body) == "unlimited"
    assert await attack(body) == refusal


SENDS = """
file = os.open(f"{os.environ.get('TMPDIR', '/tmp')}/gone", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(file, 0, 1 << 20)
ours, theirs = socket.socketpair()
ours.sendall(b"whole")
assert theirs.recv(5) == b"whole"
try:
    socket.send_fds(ours, [b"x"], [file])
except OSError as error:
    return errno.errorcode[error.errno]
os.unlink(os.readlink(f"/proc/self/fd/{file}"))
os.close(file)
time.sleep(WAIT)
return f"{os.fstat(socket.recv_fds(theirs, 1, 1)[1][0]).st_size} bytes in flight"
"""


@pytest.mark.parametrize("launcher", ["bubblewrap", "landlock"])
async def test_no_file_is_kept_on_the_disk_by_a_descriptor_on_its_way_through_a_socket(
    hosts: Callable[..., Any], request: pytest.FixtureRequest, tmp_path: Path, launcher: str
) -> None:
    request.getfixturevalue({"bubblewrap": "sandbox", "landlock": "shared"}[launcher])
    body = SENDS.replace("WAIT", "0")
    assert unconfined(body, TMPDIR=str(tmp_path)) == f"{1 << 20} bytes in flight"
    host = await hosts(write_bundle(tmp_path / "hostile", hostile(body)), sandbox=launcher)
    assert (await host.call(ToolCall("attack"))).text == "EPERM"


async def test_with_a_network_descriptors_on_their_way_through_a_socket_end_it(
    attack: Callable[..., Any],
) -> None:
    with pytest.raises(ToolError, match="it sent descriptors through a socket"):
        await attack(SENDS.replace("WAIT", "20"), permissions={"network": ["example.org"]})


async def test_the_storage_tells_no_path_of_the_owner(attack: Callable[..., Any]) -> None:
    body = """
    descriptor = os.environ["QUIETCHOIR_STORAGE"].partition(":")[0]
    with open("/proc/self/mountinfo") as file:
        return os.readlink(f"/proc/self/fd/{descriptor}") + file.read()
    """
    said = await attack(body, permissions={"storage_bytes": 4096})
    assert said.startswith("/memfd:quietchoir-storage (deleted)")
    assert "hostile" not in said


async def test_limits_cannot_be_raised_again(attack: Callable[..., Any]) -> None:
    body = """
    import resource
    raised = []
    for name in ("NPROC", "AS", "CPU", "FSIZE", "NOFILE", "CORE"):
        try:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), unlimited)
            raised.append(name)
        except (ValueError, OSError):
            pass
    return " ".join(raised) or "none"
    """
    assert await attack(body) == "none"


async def test_one_process_is_refused_more_memory_than_its_limit(
    attack: Callable[..., Any],
) -> None:
    body = """
    try:
        return str(len(bytearray(200 << 20)))
    except MemoryError:
        return "refused"
    """
    assert await attack(body) == "refused"  # 64 MB and an interpreter's share


async def test_many_processes_together_are_killed_at_the_limit(attack: Callable[..., Any]) -> None:
    body = """
    for _ in range(4):
        if os.fork() == 0:
            held = [os.urandom(1 << 20) for _ in range(60)]
            time.sleep(60)
    time.sleep(60)
    """
    with pytest.raises(ToolError, match=r"its processes held \d+ MB, more than 64 MB"):
        await attack(body)


async def test_scratch_space_is_bounded_in_every_place(attack: Callable[..., Any]) -> None:
    body = """
    sizes = []
    for place in ("/tmp", "/dev/shm"):
        written = 0
        try:
            for number in range(64):
                with open(f"{place}/{number}", "wb", buffering=0) as file:
                    written += file.write(b"x" * (1 << 20))
        except OSError:
            pass
        sizes.append(written >> 20)
    return " ".join(map(str, sizes))
    """
    assert await attack(body) == "2 2"  # scratch_mb of the test's manifest


GROW = """
if "QUIETCHOIR_STORAGE" in os.environ:
    descriptor = int(os.environ["QUIETCHOIR_STORAGE"].partition(":")[0])
else:
    descriptor = os.open(os.environ["DECOY"], os.O_RDWR | os.O_CREAT)
source = os.open(os.environ.get("DECOY", "/tmp/decoy") + ".source", os.O_RDWR | os.O_CREAT)
os.write(source, b"x" * 8192)
again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY)
appending = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_APPEND)
ways = {
    "write at the end": lambda: os.pwrite(descriptor, b"x" * 4096, 4096),
    "write far": lambda: os.pwrite(descriptor, b"x", 1 << 20),
    "write over the end": lambda: os.pwrite(descriptor, b"x" * 8192, 0),
    "append": lambda: os.write(appending, b"x" * 8192),
    "many vectors": lambda: os.pwritev(descriptor, [b"x" * 4096] * 16, 4096),
    "truncate longer": lambda: os.ftruncate(descriptor, 1 << 20),
    "allocate": lambda: os.posix_fallocate(descriptor, 0, 1 << 20),
    "send a file": lambda: (os.lseek(again, 4096, 0), os.sendfile(again, source, 0, 8192)),
    "copy a range": lambda: os.copy_file_range(source, descriptor, 8192, 0, 4096),
    "take the seals off": lambda: fcntl.fcntl(descriptor, 1033, 0) and 0,
}
grown = []
for name, way in ways.items():
    before = os.fstat(descriptor).st_size
    try:
        way()
    except OSError:
        pass
    if os.fstat(descriptor).st_size > max(before, 4096):
        grown.append(name)
return "; ".join(grown) or "none"
"""


async def test_storage_holds_what_was_granted_and_no_way_makes_it_grow(
    attack: Callable[..., Any], tmp_path: Path
) -> None:
    decoy = tmp_path / "decoy"
    assert "write at the end" in unconfined(GROW, DECOY=str(decoy))
    assert decoy.stat().st_size > 1 << 16
    assert await attack(GROW, permissions={"storage_bytes": 4096}) == "none"
    assert (tmp_path / "plugins" / "tests" / "hostile" / "storage").stat().st_size <= 4096


async def test_storage_on_disk_that_is_larger_than_granted_is_refused_and_stays(
    attack: Callable[..., Any], tmp_path: Path
) -> None:
    kept = tmp_path / "plugins" / "tests" / "hostile" / "storage"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x" * 4097)
    with pytest.raises(PluginError, match="more than the 4096 bytes"):
        await attack("return 'ran'", permissions={"storage_bytes": 4096})
    assert kept.read_bytes() == b"x" * 4097


async def test_what_a_plugin_keeps_is_on_the_disk_before_its_answer_and_also_if_it_dies(
    attack: Callable[..., Any], tmp_path: Path
) -> None:
    body = 'Storage().save("kept")\nos._exit(1)'
    with pytest.raises(ToolError, match="ended by itself"):
        await attack(body, permissions={"storage_bytes": 4096})
    kept = tmp_path / "plugins" / "tests" / "hostile" / "storage"
    assert b'"kept"' in kept.read_bytes() and kept.stat().st_mode & 0o077 == 0
    assert await attack("return Storage().value", permissions={"storage_bytes": 4096}) == "kept"


def lives(pid: int) -> bool:
    """Whether it runs; a dead one that the system's init has not collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_an_endless_loop_ends_at_the_deadline_with_all_its_processes(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    body = """
    if os.fork() == 0:
        os.setsid()  # a daemon that tries to outlive its parent
        while True:
            time.sleep(1)
    while True:
        pass
    """
    source = hostile(body).replace(
        "\nserve(", '\n@tool\ndef greet() -> str:\n    "Greet."\n    return "hello"\nserve('
    )
    host = await hosts(write_bundle(tmp_path / "hostile", source, [ATTACK, GREET]))
    await host.call(ToolCall("greet"))  # so that the deadline below is the attack's alone
    call = asyncio.create_task(host.call(ToolCall("attack"), 1.0))
    plugin = host.plugins["tests/hostile"]
    running: list[int] = []
    while len(running) < 3 and not call.done():  # bwrap, the plugin, the daemon
        await asyncio.sleep(0.01)
        running = watchdog.family(plugin.connection.pid) if plugin.connection else []
    with pytest.raises(ToolError, match=r"no answer to attack within (1|0\.\d+) s"):
        await call
    assert len(running) >= 3
    await host.stop()
    async with asyncio.timeout(10):
        while any(lives(pid) for pid in running):
            await asyncio.sleep(0.01)


COMMANDS = """
import struct
libc = ctypes.CDLL(None, use_errno=True)
passed = []
for name, option, value in (("outlive", 1, 0), ("hide", 4, 0), ("tables", 78, 1)):
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(1 << 10), 0, 0) == 0:
        passed.append(name)
place = os.environ.get("DECOY", "/tmp")
held = os.open(f"{place}/held", os.O_CREAT | os.O_RDWR)
os.write(held, b"x")
wait = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 0)
reader, writer = os.pipe()
ways = {"unowned lock": lambda: fcntl.fcntl(held, 37, wait),
        "signal of a choice": lambda: fcntl.fcntl(reader, 10, int(signal.SIGCONT)),
        "moved": lambda: os.sendfile(writer, held, 0, 1)}
for name, way in ways.items():
    try:
        way()
        passed.append(name)
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.EINVAL), name
import shutil
with open(f"{place}/first", "w") as file:
    file.write("content")
copy = open(shutil.copy(f"{place}/first", f"{place}/second")).read()
return f"{', '.join(passed) or 'none'}; {copy}"
"""


async def test_nothing_lets_it_outlive_its_parent_hide_or_hold_what_is_not_counted(
    attack: Callable[..., Any], tmp_path: Path
) -> None:
    everything = "outlive, hide, unowned lock, signal of a choice, moved; content"
    assert unconfined(COMMANDS, DECOY=str(tmp_path)).replace("tables, ", "") == everything
    assert await attack(COMMANDS) == "none; content"


async def test_one_that_no_longer_dies_with_its_parent_ends_all_the_same(
    sandbox: SandboxReport,
    hosts: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The instance: prctl(PR_SET_PDEATHSIG, 0) left the plugin to the system's init, and closing it
    waited for ever. Without that list of the filter the end has to reach it by itself.
    """
    prctl = seccomp.COMMANDS[0]
    monkeypatch.setattr(seccomp, "COMMANDS", ((prctl[0], 0, (1, *prctl[2])), *seccomp.COMMANDS[1:]))
    body = "return str(ctypes.CDLL(None).prctl(1, 0, 0, 0, 0))"
    host = await hosts(write_bundle(tmp_path / "hostile", hostile(body)))
    assert (await host.call(ToolCall("attack"))).text == "0"
    connection = host.plugins["tests/hostile"].connection
    await connection.watchdog.freeze()  # else it ends by itself once its input is closed
    running = watchdog.family(connection.pid)
    assert len(running) == 2
    async with asyncio.timeout(10):
        await host.stop()
        while any(map(lives, running)):  # its streams close before it is gone
            await asyncio.sleep(0.01)


async def test_the_next_call_finds_one_that_waits_for_its_vforks_child(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    body = """
    libc = ctypes.CDLL(None)
    if os.fork() == 0:
        if libc.vfork() == 0:
            while True:
                libc.pause()
    return "asleep"
    """
    host = await hosts(write_bundle(tmp_path / "hostile", hostile(body)))
    await host.call(ToolCall("attack"))
    connection = host.plugins["tests/hostile"].connection
    async with asyncio.timeout(20):
        while not connection.watchdog.frozen:
            await asyncio.sleep(0.02)
    assert (await host.call(ToolCall("attack"), 5.0)).text == "asleep"


async def test_processor_time_of_a_process_is_bounded(attack: Callable[..., Any]) -> None:
    with pytest.raises(ToolError, match="ended by itself"):
        await attack("while True: pass", limits={"cpu_s": 1, "memory_mb": 64})


async def test_after_an_attack_the_next_call_finds_a_fresh_plugin(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    source = """
import os
from quietchoir_sdk import serve, tool
@tool
def attack() -> str:
    "Attack."
    os._exit(3)
@tool
def greet() -> str:
    "Greet."
    return "hello"
serve("tests/hostile", "1.0.0")
"""
    host = await hosts(write_bundle(tmp_path / "hostile", source, [ATTACK, GREET]))
    with pytest.raises(ToolError, match="ended by itself"):
        await host.call(ToolCall("attack"))
    assert (await host.call(ToolCall("greet"))).text == "hello"
