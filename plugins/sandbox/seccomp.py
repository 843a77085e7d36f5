"""Which system calls a confined plugin may make, compiled to the kernel's filter language.

Knows system call numbers of x86-64 and AArch64 and six BPF instructions. Knows nothing of
processes: bytes out.
Always: what is not on the list is refused with EPERM, and so are commands of prctl, fcntl, ioctl
and setsockopt that are not on theirs, and pairs of sockets that are not the machine's own. Sockets
that have a name open only where a network is granted, and are TCP's; nobody listens but
`inside.py`, before the plugin's first line. Without a network no descriptor is sent through a
socket: there it would hold what nobody sees; with one the watchdog looks for them. A call of
another architecture or of the x32 table kills the process. clone3, and what is newer than the list,
fails with ENOSYS: the C library then falls back to what is older, to clone, whose flags can be
read.

Not covered: bugs in the system calls that stay allowed.
Source: linux/filter.h, linux/seccomp.h, linux/audit.h; numbers from asm/unistd_64.h and
asm-generic/unistd.h.
"""

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import SandboxUnavailableError

X86_64, AARCH64 = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_*
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}
X32_BIT = 0x40000000
# name: (x86-64, AArch64); None where the machine has no such call. Whatever is not here is refused:
# new calls of the kernel too, and those that show or change mounts, modules, keys, other processes,
# clocks or memory beyond accounting.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files, in the folders that the namespace shows
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "lseek": (8, 62), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69),
    "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287), "openat": (257, 56),
    "openat2": (437, 437), "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43),
    "fstatfs": (138, 44), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "sync_file_range": (277, 84),
    "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47), "fadvise64": (221, 223),
    "readahead": (187, 213), "getdents": (78, None), "getdents64": (217, 61), "getcwd": (79, 17),
    "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "creat": (85, None), "link": (86, None), "linkat": (265, 37), "unlink": (87, None),
    "unlinkat": (263, 35), "symlink": (88, None), "symlinkat": (266, 36), "readlink": (89, None),
    "readlinkat": (267, 78), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "umask": (95, 166), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88),
    "copy_file_range": (326, 285), "getxattr": (191, 8), "lgetxattr": (192, 9),
    "fgetxattr": (193, 10), "listxattr": (194, 11), "llistxattr": (195, 12),
    "flistxattr": (196, 13),
    # its own memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "mremap": (25, 216), "msync": (26, 227), "madvise": (28, 233), "mseal": (462, 462),
    "membarrier": (324, 283),
    # its own processes and threads (clone: without new namespaces)
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "execve": (59, 221),
    "exit": (60, 93), "exit_group": (231, 94), "wait4": (61, 260), "waitid": (247, 95),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getpgrp": (111, None), "getpgid": (121, 155), "setpgid": (109, 154),
    "getsid": (124, 156), "setsid": (112, 157), "set_tid_address": (218, 96),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "futex": (202, 98), "futex_waitv": (449, 449), "futex_wake": (454, 454),
    "futex_wait": (455, 455), "futex_requeue": (456, 456),
    "arch_prctl": (158, None), "close_range": (436, 436),
    # what it is and what it may use
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "capget": (125, 90),
    "uname": (63, 160), "sysinfo": (99, 179), "times": (100, 153), "getrusage": (98, 165),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "prlimit64": (302, 261),
    "getpriority": (140, 141), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120), "sched_getattr": (315, 275),
    "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "sched_rr_get_interval": (148, 127), "getcpu": (309, 168), "getrandom": (318, 278),
    # signals and time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "pause": (34, None), "restart_syscall": (219, 128),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "alarm": (37, None),
    "getitimer": (36, 102), "setitimer": (38, 103), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87),
    # waiting, pipes, and pairs of sockets, for event loops; no socket that has a name
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "pipe": (22, None), "pipe2": (293, 59), "eventfd": (284, None), "eventfd2": (290, 19),
    "socketpair": (53, 199), "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211),
    "recvmsg": (47, 212), "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205),
    "getsockopt": (55, 209),
}  # fmt: skip
# the newest call when this list was made; one above it does not exist here, as on an older kernel
LAST_KNOWN = 471
CLONE, CLONE3, IOCTL = (56, 220), (435, 435), (16, 29)
# Refused with EINVAL, as where the files do not allow it, so that callers copy instead: sendfile,
# splice, tee. A socket holds the whole page of each byte that was moved into it.
MOVES = ((40, 71), (275, 76), (276, 77))
# Commands that are allowed: which argument says it, and its values.
# - prctl: PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_{SET,GET}_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ,
#   PR_GET_TIMERSLACK, PR_{SET,GET}_NO_NEW_PRIVS, PR_GET_THP_DISABLE. Not what undoes
#   --die-with-parent, hides from the watchdog or makes the kernel hold tables.
# - fcntl: F_DUPFD, F_{GET,SET}FD, F_{GET,SET}FL, F_GETLK, F_SETLK, F_SETLKW, F_GETOWN, F_OFD_GETLK,
#   F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS. Not locks without an owner, which nobody counts;
#   signals of a choice (one that continues whoever is stopped); larger pipes.
# - setsockopt: SO_DEBUG or TCP_NODELAY, SO_REUSEADDR, SO_KEEPALIVE, SO_LINGER, SO_PASSCRED,
#   SO_{RCV,SND}TIMEO. Not larger buffers.
COMMANDS: tuple[tuple[tuple[int, int], int, tuple[int, ...]], ...] = (
    ((157, 167), 0, (2, 3, 15, 16, 21, 23, 30, 38, 39, 42)),
    ((72, 25), 1, (0, 1, 2, 3, 4, 5, 6, 7, 9, 36, 1030, 1032, 1034)),
    ((54, 208), 2, (1, 2, 9, 13, 16, 20, 21)),
)
# Only with a network, which holds nothing but the broker: socket (AF_INET; SOCK_STREAM with or
# without SOCK_CLOEXEC and SOCK_NONBLOCK; TCP), connect.
SOCKET, CONNECT, BIND, LISTEN = (41, 198), (42, 203), (49, 200), (50, 201)
SOCKET_ARGUMENTS = ((0, (2,)), (1, (1, 0x801, 0x80001, 0x80801)), (2, (0, 6)))
PRCTL, SET_SECCOMP = (157, 167), 22
# With a folder to write to nothing is planted in it that acts on whoever comes by: no links, and no
# file that runs as its owner or group (which argument holds the mode of chmod, fchmod, fchmodat,
# fchmodat2, open, openat, creat); openat2 hides its mode, so it does not exist.
LINKS = ((86, None), (265, 37), (88, None), (266, 36))
CHMODS = ("chmod", "fchmod", "fchmodat", "fchmodat2")
MODES = (
    ((90, None), 1), ((91, 52), 1), ((268, 53), 2), ((452, 452), 2), ((2, None), 2), ((257, 56), 3),
    ((85, None), 1),
)  # fmt: skip
OPENAT2, SET_ID_BITS = (437, 437), 0o6000
# What can send descriptors; only with a network, as event loops write to TCP with it.
SENDMSG = ALLOWED["sendmsg"]
# A pair of another family than AF_UNIX fails, but has the kernel load what that family is made of.
EVERYWHERE_ARGUMENTS: tuple[tuple[str, int, tuple[int, ...]], ...] = (("socketpair", 0, (1,)),)
# Without namespaces, where it shares files and processes with others of its user:
# - where Landlock keeps its signals within (ABI 6), it may begin programs, but none leaves its
#   process group or is its own sibling, so that who ends the group has ended all of it; else it
#   stays one process, with threads, and signals itself alone;
# - limits are its own alone; `inside.py` puts its number in the place of OWN, no process's;
# - calls that Landlock does not judge, and that change a file or tell more of it than it is there;
# - pairs of sockets are streams: a datagram of one could be addressed to any local socket;
# - clocks are the machine's, or its own (-6, -2): those of other processes tell when they compute.
OWN = 0x7FFFFFFF
CLONE_THREAD, CLONE_PARENT = 0x00010000, 0x00008000
BEGINNING = ("fork", "vfork", "tkill")  # refused where it stays one process
LEAVING = ("setsid", "setpgid")  # refused where it may begin others
SHARED_REFUSED = (
    *("pidfd_open", "pidfd_send_signal", *CHMODS),
    *("utime", "utimes", "futimesat", "utimensat"),
    *("getxattr", "lgetxattr", "listxattr", "llistxattr"),
)
SOCKETPAIR_TYPES = (1, 0x801, 0x80001, 0x80801)  # SOCK_STREAM, as in SOCKET_ARGUMENTS
CLOCKS = (*range(12), 0xFFFFFFFA, 0xFFFFFFFE)  # CLOCK_REALTIME to CLOCK_TAI
# which argument, and what it may be
OWN_SIGNALS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("kill", 0, (OWN,)),
    ("tgkill", 0, (OWN,)),
)
SHARED_ARGUMENTS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("prlimit64", 0, (0, OWN)),
    ("socketpair", 1, SOCKETPAIR_TYPES),
    ("clock_gettime", 0, CLOCKS),
    ("clock_getres", 0, CLOCKS),
    ("clock_nanosleep", 0, CLOCKS),
)
# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; CLONE_NEWTIME exists in unshare and clone3 alone
NEW_NAMESPACES = 0x7E020000
# what a file or a stream may be asked; what types into a terminal (TIOCSTI, TIOCLINUX) is not among
# them
IOCTLS = (
    # TCGETS, TCGETS2, TIOCGWINSZ, TIOCGPGRP: is it a terminal, how large
    0x5401, 0x802C542A, 0x5413, 0x540F,
    0x541B, 0x5421, 0x5450, 0x5451, 0x40049409,  # FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FICLONE
)  # fmt: skip

# BPF_LD|W|ABS, BPF_JMP|J{EQ,GE,SET}|K, BPF_RET|K
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, KILL = 0x7FFF0000, 0x80000000
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def refuse(code: int) -> Instruction:
    """End with an error number."""
    return (RETURN, 0, 0, 0x00050000 | code)


def low_word(argument: int) -> Instruction:
    """Load the low half of a system call's argument; both machines are little-endian."""
    return (LOAD, 0, 0, ARGUMENTS_AT + 8 * argument)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What the filter lets or refuses besides."""

    network: bool = False  # TCP connections
    listens: bool = False  # and one that listens, and a filter more: for `inside.py` alone
    writes: bool = False  # it may write to a folder of its owner's
    shared: bool = False  # it has no namespaces: others of its user are beside it
    programs: bool = False  # and may begin programs, as Landlock keeps their signals within


def rules(architecture: int, extra: Extra = Extra()) -> list[Instruction]:
    """The filter for one machine: first match decides."""
    column = (X86_64, AARCH64).index(architecture)
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCH_AT),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    if architecture == X86_64:
        program += [(AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    program += only_if(CLONE[column], 0, [(ANY_BIT, 0, 1, NEW_NAMESPACES), refuse(errno.EPERM)])
    program += bound(column, EVERYWHERE_ARGUMENTS)
    if extra.shared:
        program += alone(column, programs=extra.programs)
    if extra.writes:
        program += planting(column)
    if extra.network:
        program += opening(column)
    else:
        sending = SENDMSG[column]
        assert sending is not None  # each machine has it
        program += [(EQUAL, 0, 1, sending), refuse(errno.EPERM)]
    if extra.listens:
        for call in (BIND, LISTEN):
            program += [(EQUAL, 0, 1, call[column]), (RETURN, 0, 0, ALLOW)]
        filtering = [(EQUAL, 0, 1, SET_SECCOMP), (RETURN, 0, 0, ALLOW)]
        program += only_if(PRCTL[column], 0, filtering)
    for call, argument, allowed in ((IOCTL, 1, IOCTLS), *COMMANDS):
        checks = [step for one in allowed for step in ((EQUAL, 0, 1, one), (RETURN, 0, 0, ALLOW))]
        program += only_if(call[column], argument, [*checks, refuse(errno.EPERM)])
    for call in MOVES:
        program += [(EQUAL, 0, 1, call[column]), refuse(errno.EINVAL)]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    program += [(EQUAL, 0, 1, CLONE3[column]), refuse(errno.ENOSYS)]
    return [*program, (AT_LEAST, 0, 1, LAST_KNOWN + 1), refuse(errno.ENOSYS), refuse(errno.EPERM)]


def alone(column: int, *, programs: bool) -> list[Instruction]:
    """Refuse what reaches others of the same user, and further processes, or else what takes them
    out of its group.
    """
    threads = [(ANY_BIT, 1, 0, CLONE_THREAD), refuse(errno.EPERM)]
    siblings = [(ANY_BIT, 0, 1, CLONE_PARENT), refuse(errno.EPERM)]
    program = only_if(CLONE[column], 0, siblings if programs else threads)
    for name in (*SHARED_REFUSED, *(LEAVING if programs else BEGINNING)):
        if (number := ALLOWED[name][column]) is not None:
            program += [(EQUAL, 0, 1, number), refuse(errno.EPERM)]
    return program + bound(column, (*SHARED_ARGUMENTS, *(() if programs else OWN_SIGNALS)))


def bound(column: int, arguments: Sequence[tuple[str, int, tuple[int, ...]]]) -> list[Instruction]:
    """Refuse these calls unless an argument is one of those that are listed."""
    program: list[Instruction] = []
    for name, argument, allowed in arguments:
        number = ALLOWED[name][column]
        assert number is not None  # each machine has them
        lefts = range(len(allowed), 0, -1)
        checks = [(EQUAL, left, 0, one) for left, one in zip(lefts, allowed, strict=True)]
        program += only_if(number, argument, [*checks, refuse(errno.EPERM)])
    return program


def planting(column: int) -> list[Instruction]:
    """Refuse links, and modes that give rights away."""
    program: list[Instruction] = []
    for call in LINKS:
        if (number := call[column]) is not None:
            program += [(EQUAL, 0, 1, number), refuse(errno.EPERM)]
    for call, argument in MODES:
        if (number := call[column]) is not None:
            bits = [(ANY_BIT, 0, 1, SET_ID_BITS), refuse(errno.EPERM)]
            program += only_if(number, argument, bits)
    return [*program, (EQUAL, 0, 1, OPENAT2[column]), refuse(errno.ENOSYS)]


def opening(column: int) -> list[Instruction]:
    """Allow TCP sockets, and connections of them."""
    checks: list[Instruction] = []
    for argument, allowed in SOCKET_ARGUMENTS:
        checks.append(low_word(argument))
        for left, one in zip(range(len(allowed), 0, -1), allowed, strict=True):
            checks.append((EQUAL, left, 0, one))
        checks.append(refuse(errno.EAFNOSUPPORT))
    program = only_if(SOCKET[column], 0, [*checks, (RETURN, 0, 0, ALLOW)])
    return [*program, (EQUAL, 0, 1, CONNECT[column]), (RETURN, 0, 0, ALLOW)]


def only_if(number: int, argument: int, checks: Sequence[Instruction]) -> list[Instruction]:
    """Run `checks` on one argument of one call, then go on with the call's number loaded again."""
    return [
        (EQUAL, 0, len(checks) + 2, number),
        low_word(argument),
        *checks,
        (LOAD, 0, 0, NUMBER_AT),
    ]


def compile_filter(machine: str, extra: Extra = Extra()) -> bytes:
    """The filter as `bwrap --seccomp` reads it.

    Raises:
        SandboxUnavailableError: a machine whose system call numbers are not listed here.
    """
    if machine not in MACHINES:
        raise SandboxUnavailableError(
            f"no system call filter for {machine}; plugins run on {' and '.join(sorted(MACHINES))} "
            f"only"
        )
    return b"".join(struct.pack("<HBBI", *step) for step in rules(MACHINES[machine], extra))
