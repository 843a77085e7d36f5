"""The first code that runs inside a sandbox: give up what the namespaces cannot take, then become
the plugin.

Runs alone, copied in as one file, on the standard library. It is outside of the plugin's trust: it
sets hard limits that no plugin can raise again, and only then lets the bundle's first line run.

    python -I -S -B inside.py '{"AS": …, "NPROC": …}' bundle.server
    python -I -S -B inside.py '{"DATA": …, "NPROC": …}' /usr/bin/node /plugin/files/server.js

Where there are no namespaces (`landlock.json` lies beside it) it gives up here what they would have
taken: its right to files, to the network and to other processes.
Source: linux/landlock.h, linux/prctl.h.
"""

import json
import os
import resource
import runpy
import sys

HERE = os.path.dirname(__file__)  # noqa: PTH120  pathlib takes 8 ms of every start
STAGE = os.path.dirname(HERE).rstrip("/")  # noqa: PTH120  empty where it is the root
VARIABLES = f"{HERE}/environment.json"  # of the owner's; not on the command line, which all see
FILTER = f"{HERE}/filter.bpf"  # of a plugin with a network, or without namespaces
RULESET = f"{HERE}/landlock.json"  # without namespaces
PORT, BACKLOG = 3128, 16  # of the broker; nobody else is in this network
SET_SECCOMP, FILTER_MODE, INSTRUCTION_BYTES = 22, 2, 8  # linux/prctl.h, linux/seccomp.h
DIE_WITH_PARENT, NO_NEW_PRIVILEGES, KILL = 1, 38, 9  # linux/prctl.h, SIGKILL
TAKE_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, BENEATH = 444, 445, 446, 1  # linux/landlock.h


def main(limits: str, module: str, *words: str) -> None:
    """Set the limits, hard as well as soft, and run `module`, or the program whose path it is."""
    for name, most in json.loads(limits).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    if channel := os.environ.pop("QUIETCHOIR_BROKER", ""):
        open_network(int(channel))
    if os.path.exists(RULESET):  # noqa: PTH110
        with open(RULESET, encoding="utf-8") as file:  # noqa: PTH123
            give_up(json.load(file))
    if os.path.exists(VARIABLES):  # noqa: PTH110
        with open(VARIABLES, encoding="utf-8") as file:  # noqa: PTH123
            os.environ.update(json.load(file))
    if module.startswith("/"):
        os.execv(module, [module, *words])
    # A bundle is a package called `bundle`, so its files may import each other relatively or by
    # bare name.
    # Packages that it asked for lie in one folder, if any.
    plugin = f"{STAGE}/plugin"
    sys.path[:0] = [HERE, plugin, f"{plugin}/bundle", f"{plugin}/files"]
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def open_network(channel: int) -> None:
    """Hand the broker, who is outside, a socket that listens in here; then give up the right to
    make another.

    Raises:
        OSError: one of both is not possible.
    """
    import socket

    with socket.socket(fileno=channel) as out, socket.socket() as listening:
        listening.bind(("127.0.0.1", PORT))
        listening.listen(BACKLOG)
        socket.send_fds(out, [b"."], [listening.fileno()])
    with open(FILTER, "rb") as file:  # noqa: PTH123
        set_filter(file.read())


def set_filter(rules: bytes) -> None:
    """Let a filter judge every system call from now on. Raises: OSError: it was not set."""
    import ctypes

    class Program(ctypes.Structure):
        """`struct sock_fprog` of linux/filter.h."""

        _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_char_p)]

    program = Program(len(rules) // INSTRUCTION_BYTES, rules)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(SET_SECCOMP, ctypes.c_ulong(FILTER_MODE), ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the plugin's own filter was not set")


def give_up(given: dict) -> None:  # type: ignore[type-arg]
    """Keep what `given` (`landlock.Ruleset`) allows, and nothing else; end with the parent.

    Raises:
        OSError: one of it is not possible; nobody goes on then.
    """
    import ctypes  # as above
    import struct

    libc = ctypes.CDLL(None, use_errno=True)

    def call(function, *arguments: object) -> int:  # type: ignore[no-untyped-def]
        long = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
        got: int = function(*long)
        if got < 0:
            raise OSError(ctypes.get_errno(), "the plugin was not confined")
        return got

    call(libc.prctl, DIE_WITH_PARENT, KILL, 0, 0, 0)
    if os.getppid() != given["parent"]:
        raise ProcessLookupError("who started the plugin is gone")
    call(libc.prctl, NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    call(libc.prctl, TAKE_ORPHANS, 1, 0, 0, 0)  # so that whoever counts its family finds them
    handled = struct.pack(f"={len(given['handled'])}Q", *given["handled"])
    ruleset = call(libc.syscall, CREATE_RULESET, handled, len(handled), 0)
    for path, rights in given["rules"]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(libc.syscall, ADD_RULE, ruleset, BENEATH, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    with open(FILTER, "rb") as file:  # noqa: PTH123
        rules = file.read()
    call(libc.syscall, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    own, nobody = struct.pack("=I", os.getpid()), struct.pack("=I", given["own"])
    steps = [rules[at : at + INSTRUCTION_BYTES] for at in range(0, len(rules), INSTRUCTION_BYTES)]
    set_filter(b"".join(step[:4] + (own if step[4:] == nobody else step[4:]) for step in steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
