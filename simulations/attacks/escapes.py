"""What a plugin may try to get out of its sandbox, or to use up the machine: one table of attempts.

Knows decoys, and ways to run the same attempts: as a plugin of the product, confined by each of its
launchers, as an ordinary process, and in a sandbox that lacks its filter, its limits and its
read-only root.
Always: an attempt counts only if its control arm, which lacks one layer, succeeds here; control
arms run as an ordinary user, aim at decoys, or live in namespaces that are thrown away.

Not covered: bugs of the kernel; the protocol's own limits (`tests/plugins/test_client.py`), and
attacks that need minutes (`tests/plugins/sandbox/test_limits.py`).
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.config import PluginsConfig
from ...core.errors import ToolError
from ...core.toolcall import ToolCall
from ...plugins import manifest
from ...plugins.host import PluginHost
from ...plugins.manifest import PluginLimits
from ...plugins.running import SDK
from ...plugins.sandbox import bubblewrap, interpreter, linux
from ...plugins.sandbox.policy import BUNDLE, KIT, START, SandboxPolicy
from ...plugins.sandbox.probe import Launcher, inside_source

DEADLINE_S = 60.0
LIMITS = {"memory_mb": 64, "processes": 8, "scratch_mb": 2}
RUNNER = """
from quietchoir_sdk import serve, tool
import ctypes, errno, fcntl, mmap, os, pty, resource, signal, socket, stat, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
ARM = os.uname().machine == "aarch64"

def call(numbers, *arguments):
    "A system call by its number: (x86-64, AArch64)."
    ctypes.set_errno(0)
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    got = libc.syscall(ctypes.c_long(numbers[ARM]), *given)
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got

def c(function, *arguments):
    "A function of the C library."
    ctypes.set_errno(0)
    if getattr(libc, function)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def tried(source, decoys):
    "Run its lines; how that ended."
    try:
        exec(source, globals() | {"D": decoys})
        return "open"
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
    except BaseException as error:
        return type(error).__name__ + " " + str(error)[:80]

@tool
def attack(attempts: dict, decoys: dict) -> dict:
    "Try each; what came of it."
    found = {}
    free = os.dup(0)  # where no process may begin, all are tried in this one
    os.close(free)
    for name, source in attempts.items():
        try:
            read, write = os.pipe()
            child = os.fork()
        except PermissionError:
            found[name] = tried(source, decoys)
            os.closerange(free, 4096)
            continue
        if child == 0:
            signal.alarm(10)
            os.write(write, tried(source, decoys).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        os.close(write)
        found[name] = os.read(read, 200).decode() or "killed"
        os.close(read)
        os.waitpid(child, 0)
    return found

serve("tests/escapes", "1.0.0")
"""
Arm = Literal["process", "loose"]
NOT_GRANTED = "not granted"


@dataclass(frozen=True, slots=True)
class Escape:
    """One attempt: it succeeded if its lines run to their end."""

    name: str
    lines: str
    control: Arm  # which arm shows that it works
    grant: Literal["", "hosts", "write_folders"] = ""  # what the plugin was granted besides
    everywhere: bool = True  # else a kernel may lack what it tries: then it is not counted
    gap: bool = False  # not held without namespaces, and said so in plugins/README.md
    shared: bool = False  # tried without namespaces alone, where it would matter


def table() -> tuple[Escape, ...]:
    """All attempts."""
    return (
        *(Escape(name, lines, "process") for name, lines in OUTSIDE.items()),
        *(Escape(name, lines, "process", gap=True) for name, lines in SEEN.items()),
        *(Escape(name, lines, "loose") for name, lines in INSIDE.items()),
        *(Escape(name, lines, "loose", everywhere=False) for name, lines in PERHAPS.items()),
        *(Escape(name, lines, "process", "hosts") for name, lines in ONLINE.items()),
        *(Escape(name, lines, "process", "write_folders") for name, lines in PLANTING.items()),
        *(Escape(name, lines, "process", shared=True) for name, lines in SHARED.items()),
    )


# Of this machine: files, network, other processes
OUTSIDE = {
    "read the owner's key": "open(D['key']).read()",
    "list the owner's folder": "os.listdir(D['folder'])",
    "write to the owner's file": "open(D['own'], 'a').write('!')",
    "make a file beside it": "open(D['folder'] + '/new', 'w')",
    "a symbolic link to it": "os.symlink(D['key'], D['scratch']); open(D['scratch']).read()",
    "a hard link to it": "os.link(D['own'], D['folder'] + '/again')",
    "a way round by dots": "open('/tmp/../usr/../' + D['key']).read()",
    "a way round by /proc/self/root": "open('/proc/self/root' + D['key']).read()",
    "a way round by /proc/self/cwd": "os.chdir('/'); open('/proc/self/cwd' + D['key']).read()",
    "read /etc/passwd": "open('/etc/passwd').read()",
    "read /etc/hosts": "open('/etc/hosts').read()",
    "list /sys": "os.listdir('/sys')",
    "list /var": "os.listdir('/var')",
    "list /run": "os.listdir('/run')",
    "list /home": "os.listdir('/home')",
    "a secret of the environment": "os.environ['DECOY_TOKEN']",
    "a descriptor left open": "assert os.read(D['descriptor'], 4) == b'open'",
    "connect over TCP": "socket.create_connection(('127.0.0.1', D['tcp']), 2)",
    "send a datagram": "socket.socket(2, 2).sendto(b'out', ('127.0.0.1', D['udp']))",
    "resolve a name": "socket.getaddrinfo('localhost', 80)",
    "a socket without a path": "socket.socket(socket.AF_UNIX).connect('\\0' + D['abstract'])",
    "a socket with a path": "socket.socket(socket.AF_UNIX).connect(D['socket'])",
    "talk to the kernel's network": "socket.socket(16, 3, 0).bind((0, 0))",
    "listen for others": "socket.socket().bind(('127.0.0.1', 0))",
    "signal a process": "os.kill(D['process'], 0)",
    "signal a group": "os.killpg(D['process'], 0)",
    "a handle on a process": "os.pidfd_open(D['process'])",
    "environment of a process": "open(f\"/proc/{D['process']}/environ\", 'rb').read(1)",
    "memory of a process": "open(f\"/proc/{D['process']}/mem\", 'rb')",
    "where a process works": "os.readlink(f\"/proc/{D['process']}/cwd\")",
    "files that a process holds": "os.listdir(f\"/proc/{D['process']}/fd\")",
    "see other processes": "assert sum(one.isdigit() for one in os.listdir('/proc')) > 4",
    "gain rights by a program of root's": "assert libc.prctl(39, 0, 0, 0, 0) == 0",
    "a capability to gain": (
        "rows = open('/proc/self/status').read().split()\n"
        "assert int(rows[rows.index('CapBnd:') + 1], 16)"
    ),
    "notes at the owner's file": "os.listxattr(D['own'])",
    "times of the owner's file": "os.utime(D['own'])",
    "rights of the owner's file": "os.chmod(D['own'], 0o600)",
    "limits of a process": "resource.prlimit(D['process'], resource.RLIMIT_CORE, (0, 0))",
    "a letter through a pair of sockets": (
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'out', D['letters'])"
    ),
}
# Of this machine too: names and numbers, which tell that something is there
SEEN = {
    "that the owner's key is there": "os.stat(D['key'])",
    "where the owner's link leads": "os.readlink(D['link'])",
    "that a process is there": "os.stat(f\"/proc/{D['process']}\")",
}
NEW_USER = "call((272, 97), 0x10000000)"
# Of its own sandbox: what the filter, the limits and the read-only root hold
INSIDE = {
    "a new user namespace": NEW_USER,
    "the same by clone": "call((56, 220), 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0)",
    "a process by clone3": (
        "call((435, 435), (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17), 64) or os._exit(0)"
    ),
    "a mount of its own": (
        "call((272, 97), 0x10020000); c('mount', b'none', b'/tmp', b'tmpfs', 0, None)"
    ),
    "another name of the machine": "call((272, 97), 0x14000000); socket.sethostname('other')",
    "a root of its own": f"{NEW_USER}; os.chroot('/tmp')",
    "another network": "call((272, 97), 0x50000000)",
    "trace a process": (
        "child = os.fork()\nif child == 0:\n    signal.pause()\n"
        "call((101, 117), 0x4206, child, 0, 0)"
    ),
    "read a process's memory by a call": (
        "held = ctypes.create_string_buffer(b'here')\n"
        "part = (ctypes.c_uint64 * 2)(ctypes.addressof(held), 4)\n"
        "call((310, 270), os.getpid(), part, 1, part, 1, 0)"
    ),
    "take a process's descriptor": "call((438, 438), os.pidfd_open(os.getpid()), 0, 0)",
    "outlive the node": "c('prctl', 1, 0, 0, 0, 0)",
    "hide from who counts": "c('prctl', 4, 0, 0, 0, 0)",
    "a filter of its own": (
        "rules = (ctypes.c_uint64 * 1)(6 | 0x7fff0000 << 32)\n"
        "program = (ctypes.c_uint64 * 2)(1, ctypes.addressof(rules))\n"
        "c('prctl', 22, ctypes.c_ulong(2), program, 0, 0)"
    ),
    "another personality": "call((135, 92), 0x0040000)",
    "memory without a name": "os.memfd_create('held')",
    "shared memory that stays": "call((29, 194), 0, 4096, 0o1600)",
    "a message queue that stays": "call((68, 186), 0, 0o1600)",
    "semaphores that stay": "call((64, 190), 0, 1, 0o1600)",
    "watch files": "call((294, 26), 0)",
    "a named pipe": "os.mkfifo('/tmp/pipe')",
    "move pages into a pipe": (
        "held = os.open('/tmp/held', os.O_RDWR | os.O_CREAT); os.write(held, b'page')\n"
        "os.lseek(held, 0, 0); assert os.splice(held, os.pipe()[1], 4) == 4"
    ),
    "move pages into a socket": (
        "held = os.open('/tmp/sent', os.O_RDWR | os.O_CREAT); os.write(held, b'page')\n"
        "pair = socket.socketpair(); os.sendfile(pair[0].fileno(), held, 0, 4)"
    ),
    "a larger pipe": "fcntl.fcntl(os.pipe()[1], 1031, 1 << 18)",
    "a larger buffer": "socket.socketpair()[0].setsockopt(1, 7, 1 << 18)",
    "signals by a file": "fcntl.fcntl(0, 10, signal.SIGCONT)",
    "locks without an owner": (
        "held = os.open('/tmp/lock', os.O_RDWR | os.O_CREAT)\n"
        "fcntl.fcntl(held, 37, struct.pack('hhqqi4x', 1, 0, 0, 1, 0))"
    ),
    "timers that signal": "call((222, 107), 0, None, ctypes.byref(ctypes.c_int()))",
    "memory that is never swapped": (
        "page = ctypes.create_string_buffer(4096); call((149, 228), ctypes.addressof(page), 4096)"
    ),
    "write to the root": "open('/planted', 'w')",
    "write beside its files": "open('/plugin/planted', 'w')",
    "thirty processes": (
        "for _ in range(30):\n    if os.fork() == 0:\n        signal.pause()\ntime.sleep(2)"
    ),
    "more memory than granted": "held = bytearray(300 << 20)",
    "a thousand open files": "[os.open('/dev/null', 0) for _ in range(1000)]",
    "a large file": "open('/tmp/large', 'wb').write(bytes(8 << 20))",
    "a large file in /dev/shm": "open('/dev/shm/large', 'wb').write(bytes(8 << 20))",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))",
    "dump its memory into a file": "resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))",
}
# As far as this machine's kernel has it
PERHAPS = {
    "input and output by rings": "call((425, 425), 4, (ctypes.c_uint64 * 32)())",
    "a keyring": "call((250, 219), 0, -3, 1)",
    "handle one's own page faults": "call((323, 282), 1)",
    "count events of the processor": (
        "call((298, 241), (ctypes.c_uint64 * 16)(1 | 120 << 32), 0, -1, -1, 0)"
    ),
    "compare processes": "call((312, 272), os.getpid(), os.getpid(), 0, 0, 0)",
    "list mounts": (
        "asked = (ctypes.c_uint64 * 4)(32, 2**64 - 1)\n"
        "call((458, 458), asked, (ctypes.c_uint64 * 8)(), 8, 0)"
    ),
    "a note at a file": "open('/tmp/x', 'w'); os.setxattr('/tmp/x', 'user.note', b'1')",
    "type into a terminal": (
        "os.setsid(); ours, theirs = pty.openpty(); fcntl.ioctl(theirs, 0x540E, 0)\n"
        "fcntl.ioctl(theirs, 0x5412, b'x')"
    ),
}
# With a host granted
ONLINE = {
    "with a network: straight to another port": (
        "socket.create_connection(('127.0.0.1', D['tcp']), 2)"
    ),
    "with a network: through the proxy": (
        "import urllib.request\n"
        "urllib.request.urlopen(f\"http://127.0.0.1:{D['tcp']}/\", timeout=5).read()"
    ),
    "with a network: through the proxy by a name": (
        "import urllib.request\n"
        "urllib.request.urlopen(f\"http://localhost:{D['tcp']}/\", timeout=5).read()"
    ),
    "with a network: through the proxy in another notation": (
        "import urllib.request\n"
        "urllib.request.urlopen(f\"http://2130706433:{D['tcp']}/\", timeout=5).read()"
    ),
    "with a network: datagrams": "socket.socket(2, 2).sendto(b'out', ('127.0.0.1', D['udp']))",
    "with a network: listen": "socket.socket().bind(('127.0.0.1', 0))",
    "with a network: local sockets": "socket.socket(socket.AF_UNIX).connect(D['socket'])",
    "with a network: the kernel's": "socket.socket(16, 3, 0)",
}
# With a folder to write to
PLANTING = {
    "in a folder: a symbolic link": "os.symlink('/etc/passwd', D['out'] + '/link')",
    "in a folder: a hard link": "os.link(D['out'] + '/note', D['out'] + '/again')",
    "in a folder: a file that runs as its owner": "os.chmod(D['out'] + '/note', 0o4755)",
    "in a folder: the same at its making": (
        "os.open(D['out'] + '/suid', os.O_CREAT | os.O_WRONLY, 0o4755)"
    ),
    "in a folder: a named pipe": "os.mkfifo(D['out'] + '/pipe')",
    "in a folder: to write beside it": "open(D['out'] + '/../beside', 'w')",
}


# Without namespaces: out of the group with which it ends, and out of its scratch space
SPACE = "space = os.environ.get('TMPDIR', D['folder'])\n"
SHARED = {
    "a session of its own": "os.setsid()",
    "a group of its own": "os.setpgid(0, 0)",
    "a sibling in the place of a child": (
        "call((56, 220), 0x8000 | 17, 0, 0, 0, 0) or os._exit(0)"
    ),
    "signal everybody": (
        "child = os.fork()\nif child == 0:\n    signal.pause()\n"
        "os.kill(D['process'], signal.SIGCONT); os.kill(child, signal.SIGKILL)"
    ),
    "a child that reads the owner's key": (
        "child = os.fork()\nif child == 0:\n    os._exit(not open(D['key']).read())\n"
        "assert os.waitpid(child, 0)[1] == 0"
    ),
    "a program that reads the owner's key": (
        "runs = os.posix_spawn('/usr/bin/cat', ['cat', D['key']], {}, file_actions="
        "[(os.POSIX_SPAWN_OPEN, 1, '/dev/null', os.O_WRONLY, 0)])\n"
        "assert os.waitpid(runs, 0)[1] == 0"
    ),
    "a program in its scratch space": (
        f"{SPACE}held = os.open(space + '/run', os.O_CREAT | os.O_WRONLY, 0o755)\n"
        "os.write(held, b'#!/bin/sh\\n'); os.close(held)\n"
        "assert os.waitpid(os.posix_spawn(space + '/run', ['run'], {}), 0)[1] == 0"
    ),
    "a link in its scratch space": f"{SPACE}os.symlink('/etc/passwd', space + '/planted')",
    "a second name in its scratch space": (
        f"{SPACE}open(space + '/one', 'w').close(); os.link(space + '/one', space + '/two')"
    ),
    "a file there that runs as its owner": (
        f"{SPACE}os.open(space + '/suid', os.O_CREAT | os.O_WRONLY, 0o4755)"
    ),
    "a named pipe there": f"{SPACE}os.mkfifo(space + '/pipe')",
    "a large file there": (
        f"{SPACE}try:\n    open(space + '/large', 'wb').write(bytes(8 << 20))\n"
        "finally:\n    os.unlink(space + '/large')"
    ),
    "a file beside it": (
        "space = os.environ.get('TMPDIR', D['folder'] + '/space')\n"
        "open(os.path.dirname(space) + '/beside', 'w')"
    ),
}
# What the watchdog counts there: it may end the plugin, with all that it began
COUNTED = ("thirty processes", "a large file there")


@dataclass(frozen=True, slots=True)
class Decoys:
    """What is aimed at."""

    table: Mapping[str, Any]
    scratch: Path  # everybody may pass


@contextlib.contextmanager
def decoys() -> Iterator[Decoys]:
    """Files, sockets and a process of the plugin's own user, as long as the block runs."""
    user = interpreter.unprivileged_user()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        scratch.chmod(0o755)
        folder, out = scratch / "folder", scratch / "data"
        for place in (folder, out, out / "out", out / "granted"):
            place.mkdir()
            place.chmod(0o777)
        notes = (out / "out" / "note", out / "granted" / "note")
        for path in (folder / "key", folder / "own", *notes):
            path.write_text("decoy")
            path.chmod(0o666)
            if user is not None:
                os.chown(path, user, user)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0quietchoir-{os.getpid()}")
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        for one in (abstract, local):
            one.listen()
        letters = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        letters.bind(str(folder / "letters"))
        (folder / "letters").chmod(0o777)
        (folder / "link").symlink_to("key")
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        os.write(writing, b"open" * 2)
        os.close(writing)
        os.set_inheritable(reading, True)
        runs = interpreter.find(user).executable
        process = subprocess.Popen(
            [runs, "-I", "-S", "-c", "import time; print('here', flush=True); time.sleep(600)"],
            stdout=subprocess.PIPE,
            cwd="/",
            env={"DECOY_TOKEN": "decoy"},
            start_new_session=True,
            **linux.as_user(user),
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        process.stdout.close()
        yield Decoys(
            {
                "key": str(folder / "key"),
                "own": str(folder / "own"),
                "folder": str(folder),
                "scratch": "/tmp/" + scratch.name + "-link",
                "descriptor": reading,
                "tcp": tcp.getsockname()[1],
                "udp": udp.getsockname()[1],
                "abstract": f"quietchoir-{os.getpid()}",
                "socket": str(folder / "socket"),
                "letters": str(folder / "letters"),
                "link": str(folder / "link"),
                "process": process.pid,
                "out": str(out / "out"),
            },
            scratch,
        )
        Path("/tmp/" + scratch.name + "-link").unlink(missing_ok=True)


def request(attempts: Mapping[str, str], aims: Mapping[str, Any]) -> str:
    """One call of the runner, as a line."""
    arguments = {"attempts": dict(attempts), "decoys": dict(aims)}
    asked = {"name": "attack", "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}) + "\n"


def answered(said: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What the runner found."""
    found: dict[str, str] = json.loads(said.stdout)["result"]["structuredContent"]
    return found


def as_process(attempts: Mapping[str, str], aims: Decoys) -> dict[str, str]:
    """The control arm without any layer: an ordinary process of the plugin's user."""
    user = interpreter.unprivileged_user()
    (aims.scratch / SDK.name).write_bytes(SDK.read_bytes())
    (aims.scratch / SDK.name).chmod(0o644)
    return answered(
        subprocess.run(
            [interpreter.find(user).executable, "-S", "-B", "-c", RUNNER],
            input=request(attempts, aims.table),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            pass_fds=(aims.table["descriptor"],),
            cwd="/",
            env={"PYTHONPATH": str(aims.scratch), "DECOY_TOKEN": "decoy"},
            check=True,
            start_new_session=True,
            **linux.as_user(user),
        )
    )


def loose(attempts: Mapping[str, str], aims: Decoys) -> dict[str, str]:
    """The control arm without filter, limits, bounded folders and read-only root, in namespaces
    that are thrown away.
    """
    user = interpreter.unprivileged_user()
    trial = SandboxPolicy(
        interpreter=interpreter.find(user),
        files={
            START: inside_source(),
            f"{KIT}/{SDK.name}": SDK.read_bytes(),
            f"{BUNDLE}/server.py": RUNNER.encode(),
        },
        module="bundle.server",
        limits=PluginLimits(**LIMITS),
    )
    with linux.prepared(trial, bubblewrap.find(user).path) as launch:
        command, kept = list(launch.command), list[str]()
        while command:
            word = command.pop(0)
            if word in ("--seccomp", "--size", "--remount-ro"):
                command.pop(0)
            elif word != "--disable-userns":
                kept.append(word)
        kept[-2] = "{}"  # its limits
        return answered(
            subprocess.run(
                kept,
                input=request(attempts, aims.table),
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                pass_fds=launch.descriptors,
                cwd="/",
                env={},
                check=True,
                **linux.as_user(launch.user),
            )
        )


async def as_plugin(
    attempts: Mapping[str, str], aims: Decoys, grant: str, launcher: Launcher
) -> dict[str, str]:
    """The product: a plugin that was granted `grant` and nothing else; NOT_GRANTED if this launcher
    refuses to.
    """
    name = f"{launcher}-{grant or 'nothing'}"
    folder = aims.scratch / f"plugin-{name}"
    tool = {
        "name": "attack",
        "description": "Try each; what came of it.",
        "inputSchema": {
            "type": "object",
            "properties": {"attempts": {"type": "object"}, "decoys": {"type": "object"}},
            "required": ["attempts", "decoys"],
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": False},
    }
    terms = {
        "schema": manifest.SCHEMA,
        "id": "tests/escapes",
        "version": "1.0.0",
        "kind": "mcp",
        "description": "Tries to get out.",
        "entry": "server.py",
        "license": {"spdx": "Apache-2.0"},
        "permissions": {grant: ["out"]} if grant else {},
        "limits": LIMITS,
        "tools_digest": manifest.digest([tool]),
        "tools": [tool],
    }
    folder.mkdir()
    (folder / manifest.FILE).write_text(json.dumps(terms))
    (folder / "server.py").write_text(RUNNER)
    private = folder.with_name(f"private-{name}")
    (private / "tests" / "escapes").mkdir(parents=True, mode=0o700)
    # a host of this machine, where nobody listens
    granted = str(aims.scratch / "data" / "granted")
    filled = {"hosts": {"out": ["127.0.0.1:9"]}, "folders": {"out": granted}}
    (private / "tests" / "escapes" / "settings.json").write_text(json.dumps(filled))
    table = dict(aims.table) | ({"out": "/data/out"} if grant == "write_folders" else {})
    host = PluginHost(
        PluginsConfig(enabled=("tests/escapes",), call_timeout_s=DEADLINE_S),
        bundles=[folder],
        folder=private,
        installed=False,
        sandbox=launcher,
    )
    await host.start()
    try:
        if host.plugins["tests/escapes"].refused_by(host.report.launcher):
            return dict.fromkeys(attempts, NOT_GRANTED)
        alone = {*COUNTED} & attempts.keys() if launcher == "landlock" else set[str]()
        found = dict[str, str]()
        for names in (attempts.keys() - alone, *({one} for one in alone)):
            of = {name: lines for name, lines in attempts.items() if name in names}
            call = ToolCall("attack", {"attempts": of, "decoys": table})
            try:
                found |= json.loads((await host.call(call, DEADLINE_S)).text)
            except ToolError as error:
                if not names <= alone:
                    raise
                found |= dict.fromkeys(names, str(error))
    finally:
        await host.stop()
    return found


async def tried(
    launchers: Sequence[Launcher] = ("bubblewrap",),
) -> dict[Launcher, list[dict[str, str]]]:
    """All attempts, by what confines the plugin: name, how its control arm went, how the product's
    went, and the verdict.
    """
    rows = table()

    def rows_for(launcher: Launcher) -> list[Escape]:
        return [row for row in rows if launcher == "landlock" or not row.shared]

    with decoys() as aims:
        answering = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = answering.sockets[0].getsockname()[1]
        aims = Decoys({**aims.table, "tcp": port}, aims.scratch)
        arms = {"process": as_process, "loose": loose}
        control = dict[str, str]()
        product: dict[Launcher, dict[str, str]] = {one: {} for one in launchers}
        try:
            for launcher in launchers:
                for grant in ("", "hosts", "write_folders"):
                    of = {row.name: row.lines for row in rows_for(launcher) if row.grant == grant}
                    product[launcher] |= await as_plugin(of, aims, grant, launcher)
            for arm, run in arms.items():  # last: some of them change their decoys
                of = {row.name: row.lines for row in rows if row.control == arm}
                control |= await asyncio.to_thread(run, of, aims)
        finally:
            answering.close()
    return {
        launcher: [
            {
                "name": row.name,
                "control": control[row.name],
                "product": found[row.name],
                "verdict": verdict(row, control[row.name], found[row.name], launcher),
            }
            for row in rows_for(launcher)
        ]
        for launcher, found in product.items()
    }


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The decoy's server."""
    await reader.readline()
    writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\ndecoy")
    writer.close()


def verdict(
    row: Escape, control: str, product: str, launcher: Launcher = "bubblewrap"
) -> Literal["held", "open", "gap", "control failed", "not here"]:
    """What an attempt shows."""
    if product == "open":
        return "gap" if row.gap and launcher == "landlock" else "open"
    if control != "open":
        return "control failed" if row.everywhere else "not here"
    return "held"


def report(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Counts, and whatever is not held, by name."""
    counted = [row for row in rows if row["verdict"] != "not here"]
    return {
        "tried": len(counted),
        "open": sum(row["verdict"] == "open" for row in counted),
        "controls_failed": sum(row["verdict"] == "control failed" for row in counted),
        "known_gaps": sum(row["verdict"] == "gap" for row in counted),
        "gaps": [row["name"] for row in counted if row["verdict"] == "gap"],
        "not_held": {row["name"]: row for row in rows if row["verdict"] != "held"},
    }
