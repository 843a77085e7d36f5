"""Which system calls a confined plugin may not make, compiled to the kernel's filter language.

Knows system call numbers of x86-64 and AArch64 and six BPF instructions. Knows nothing of processes: bytes out.
Always: a call of another architecture or of the x32 table kills the process; what is denied fails with EPERM,
except clone3, which fails with ENOSYS so that the C library falls back to clone, whose flags can be read.

Not covered: bugs in the system calls that stay allowed.
Source: linux/filter.h, linux/seccomp.h, linux/audit.h; numbers from asm/unistd_64.h and asm-generic/unistd.h.
"""

import errno
import struct
from collections.abc import Sequence

from ...core.errors import SandboxUnavailableError

X86_64, AARCH64 = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_*
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}
X32_BIT = 0x40000000
# name: (x86-64, AArch64); None where the machine has no such call
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    # wide kernel surfaces
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262), "lookup_dcookie": (212, 18),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # memory that neither the watchdog nor a file system's size would see
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # network: socketpair stays, for event loops; nothing else does
    "socket": (41, 198),
    # the machine itself
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "syslog": (103, 116), "quotactl": (179, 60), "quotactl_fd": (443, 443), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "personality": (135, 92), "vhangup": (153, 58), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "migrate_pages": (256, 238), "move_pages": (279, 239), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
}  # fmt: skip
CLONE, CLONE3, IOCTL = (56, 220), (435, 435), (16, 29)
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; CLONE_NEWTIME exists in unshare and clone3 alone
TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|J{EQ,GE,SET}|K, BPF_RET|K
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, KILL = 0x7FFF0000, 0x80000000
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def refuse(code: int) -> Instruction:
    """End with an error number."""
    return (RETURN, 0, 0, 0x00050000 | code)


def low_word(argument: int) -> Instruction:
    """Load the low half of a system call's argument; both machines are little-endian."""
    return (LOAD, 0, 0, ARGUMENTS_AT + 8 * argument)


def rules(architecture: int) -> list[Instruction]:
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
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            program += [(EQUAL, 0, 1, number), refuse(errno.EPERM)]
    program += [(EQUAL, 0, 1, CLONE3[column]), refuse(errno.ENOSYS)]
    program += only_if(CLONE[column], 0, [(ANY_BIT, 0, 1, NEW_NAMESPACES), refuse(errno.EPERM)])
    checks = [step for code in TERMINAL_INJECTION for step in ((EQUAL, 0, 1, code), refuse(errno.EPERM))]
    program += only_if(IOCTL[column], 1, checks)
    return [*program, (RETURN, 0, 0, ALLOW)]


def only_if(number: int, argument: int, checks: Sequence[Instruction]) -> list[Instruction]:
    """Run `checks` on one argument of one call, then go on with the call's number loaded again."""
    return [(EQUAL, 0, len(checks) + 2, number), low_word(argument), *checks, (LOAD, 0, 0, NUMBER_AT)]


def compile_filter(machine: str) -> bytes:
    """The filter as `bwrap --seccomp` reads it.

    Raises:
        SandboxUnavailableError: a machine whose system call numbers are not listed here.
    """
    if machine not in MACHINES:
        raise SandboxUnavailableError(
            f"no system call filter for {machine}; plugins run on {' and '.join(sorted(MACHINES))} only"
        )
    return b"".join(struct.pack("<HBBI", *step) for step in rules(MACHINES[machine]))
