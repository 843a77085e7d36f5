"""The first code that runs inside a sandbox: give up what the namespaces cannot take, then become
the plugin.

Runs alone, copied in as one file, on the standard library. It is outside of the plugin's trust: it
sets hard limits that no plugin can raise again, and only then lets the bundle's first line run.

    python -I -S -B inside.py '{"AS": …, "NPROC": …}' bundle.server
    python -I -S -B inside.py '{"DATA": …, "NPROC": …}' /usr/bin/node /plugin/files/server.js
"""

import json
import os
import resource
import runpy
import sys

VARIABLES = "/quietchoir/environment.json"  # of the owner's; not on the command line, which all see
FILTER = "/quietchoir/filter.bpf"  # of a plugin with a network
PORT, BACKLOG = 3128, 16  # of the broker; nobody else is in this network
SET_SECCOMP, FILTER_MODE, INSTRUCTION_BYTES = 22, 2, 8  # linux/prctl.h, linux/seccomp.h


def main(limits: str, module: str, *words: str) -> None:
    """Set the limits, hard as well as soft, and run `module`, or the program whose path it is."""
    for name, most in json.loads(limits).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    if channel := os.environ.pop("QUIETCHOIR_BROKER", ""):
        open_network(int(channel))
    if os.path.exists(VARIABLES):  # noqa: PTH110  pathlib takes 8 ms of every start
        with open(VARIABLES, encoding="utf-8") as file:  # noqa: PTH123
            os.environ.update(json.load(file))
    if module.startswith("/"):
        os.execv(module, [module, *words])
    # A bundle is a package called `bundle`, so its files may import each other relatively or by
    # bare name.
    # Packages that it asked for lie in one folder, if any.
    sys.path[:0] = ["/quietchoir", "/plugin", "/plugin/bundle", "/plugin/files"]
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def open_network(channel: int) -> None:
    """Hand the broker, who is outside, a socket that listens in here; then give up the right to
    make another.

    Raises:
        OSError: one of both is not possible.
    """
    import ctypes  # some 10 ms, which a plugin without a network does not wait for
    import socket

    with socket.socket(fileno=channel) as out, socket.socket() as listening:
        listening.bind(("127.0.0.1", PORT))
        listening.listen(BACKLOG)
        socket.send_fds(out, [b"."], [listening.fileno()])
    with open(FILTER, "rb") as file:  # noqa: PTH123
        rules = file.read()

    class Program(ctypes.Structure):
        """`struct sock_fprog` of linux/filter.h."""

        _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_char_p)]

    program = Program(len(rules) // INSTRUCTION_BYTES, rules)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(SET_SECCOMP, ctypes.c_ulong(FILTER_MODE), ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the plugin's own filter was not set")


if __name__ == "__main__":
    main(*sys.argv[1:])
