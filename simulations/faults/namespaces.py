"""This process in network namespaces: made, entered, and gone with the last process in them. Linux
only.

Knows four system calls. Knows nothing of packets.
Always: no name is left behind in the file system, and no network outside the new namespaces is
touched; a process that entered one dies with its parent, also if that was killed.
"""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path

from ...core.errors import QuietchoirError

NEW_USER, NEW_NET = 0x10000000, 0x40000000  # linux/sched.h: CLONE_NEWUSER, CLONE_NEWNET
DIE_WITH_PARENT = 1  # linux/prctl.h: PR_SET_PDEATHSIG
MAKE_TUNNEL = 0x400454CA  # linux/if_tun.h: TUNSETIFF
# IFF_TUN: packets, not frames; IFF_NO_PI: without a header of the device's own
TUNNEL, BARE = 0x0001, 0x1000
# linux/sockios.h: SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK
SET_FLAGS, SET_ADDRESS, SET_MASK = 0x8914, 0x8916, 0x891C
UP = 0x1
DEVICE, DEVICE_FILE = "line", Path("/dev/net/tun")
MASK = "255.255.255.0"


class NoNamespacesError(QuietchoirError):
    """This machine, or this user on it, cannot make network namespaces; nothing was changed."""


def leave_network(allowed_users: bool = True) -> bool:
    """Move this process into a new, empty network; True if that took a user namespace of its own.

    Args:
        allowed_users: may a user namespace be made, if this user alone may not do it?

    Raises:
        NoNamespacesError: it may not; says why.
    """
    if sys.platform != "linux":
        raise NoNamespacesError("network namespaces are Linux's; this fault cannot be tried here")
    if call("unshare", NEW_NET) == 0:
        return False
    user, group = os.getuid(), os.getgid()
    if not allowed_users or call("unshare", NEW_USER | NEW_NET):
        why = os.strerror(ctypes.get_errno())
        raise NoNamespacesError(
            f"no network namespace may be made here ({why}); run this as root, or allow "
            f"unprivileged user namespaces"
        )
    Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")
    return True


def tunnel(address: str) -> int:
    """A network card of this namespace with `address`, and loopback beside it: a descriptor to read
    and write its packets.

    Raises:
        NoNamespacesError: the system has no such devices.
    """
    try:
        handle = os.open(DEVICE_FILE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NoNamespacesError(
            f"{DEVICE_FILE}: {error.strerror}; a line between namespaces needs TUN devices"
        ) from error
    fcntl.ioctl(handle, MAKE_TUNNEL, struct.pack("16sH22x", DEVICE.encode("ascii"), TUNNEL | BARE))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        for request, numbers in ((SET_ADDRESS, address), (SET_MASK, MASK)):
            where = struct.pack(
                "16sH2x4s8x", DEVICE.encode("ascii"), socket.AF_INET, socket.inet_aton(numbers)
            )
            fcntl.ioctl(card, request, where)
        for name in (DEVICE, "lo"):
            fcntl.ioctl(card, SET_FLAGS, struct.pack("16sH14x", name.encode("ascii"), UP))
    return handle


def enter(user: str, network: str, parent: int) -> None:
    """Move this process, which has one thread, into namespaces that another one made.

    Args:
        user: file of the user namespace; empty if there is none. network: file of the network
        namespace. parent: the process that started this one; if it has ended by now, so does this
        one.

    Raises:
        NoNamespacesError: they are gone, or not for us.
    """
    for path, kind in ((user, NEW_USER), (network, NEW_NET)):
        if not path:
            continue
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NoNamespacesError(
                f"{path}: {error.strerror}; whoever made this namespace has ended"
            ) from error
        failed = call("setns", handle, kind)
        os.close(handle)
        if failed:
            raise NoNamespacesError(
                f"{path}: {os.strerror(ctypes.get_errno())}; this process may not enter it"
            )
    die_with(parent)


def die_with(parent: int) -> None:
    """Be killed when the thread that started this process ends. After anything that changes
    rights: that takes it back.
    """
    if call("prctl", DIE_WITH_PARENT, signal.SIGKILL):
        raise NoNamespacesError(
            f"prctl: {os.strerror(ctypes.get_errno())}; this process would outlive its parent"
        )
    if os.getppid() != parent:  # it ended before we asked
        raise SystemExit(errno.ESRCH)


def call(name: str, *numbers: int) -> int:
    """One call of the C library."""
    return int(getattr(ctypes.CDLL(None, use_errno=True), name)(*numbers))


if __name__ == "__main__":
    (user_, network_, parent_, *command) = sys.argv[1:]
    try:
        enter(user_, network_, int(parent_))
    except QuietchoirError as reason:
        sys.exit(f"namespaces: {reason}")
    os.execvp(command[0], command)
