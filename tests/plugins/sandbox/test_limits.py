"""A hostile plugin tries to use up the machine. It gets its share, then an error or its end; the
node goes on.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import PluginError, ToolError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins.sandbox import watchdog
from quietchoir.plugins.sandbox.probe import SandboxReport

from ..conftest import ATTACK, hostile, unconfined, write_bundle

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
    while len(running) < 4 and not call.done():  # bwrap, its init, the plugin, the daemon
        await asyncio.sleep(0.01)
        running = watchdog.family(plugin.connection.pid) if plugin.connection else []
    with pytest.raises(ToolError, match=r"no answer to attack within (1|0\.\d+) s"):
        await call
    assert len(running) >= 4
    await host.stop()
    async with asyncio.timeout(10):
        while any(lives(pid) for pid in running):
            await asyncio.sleep(0.01)


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
