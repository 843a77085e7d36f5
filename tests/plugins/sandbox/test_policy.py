"""The sandbox's policy as data: what is on the command line, and what the system call filter
decides.
"""

import errno
import re
import struct
from pathlib import Path

import pytest

from quietchoir.core.errors import SandboxUnavailableError
from quietchoir.plugins.manifest import PluginLimits
from quietchoir.plugins.sandbox import policy, seccomp
from quietchoir.plugins.sandbox.policy import Interpreter, SandboxPolicy

SYSTEM_PYTHON = Interpreter(Path("/usr/bin/python3"), Path("/usr"))
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": None}


def command(confined: SandboxPolicy) -> list[str]:
    """The arguments for `confined`, with made-up descriptors."""
    descriptors = {path: number for number, path in enumerate(confined.files, 10)}
    return policy.arguments(
        Path("/usr/bin/bwrap"), confined, descriptors=descriptors, seccomp=9, links=LINKS
    )


def verdict(
    program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = seccomp.X86_64
) -> int:
    """Run a filter as the kernel would, on one system call."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
    steps = list(struct.iter_unpack("<HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, constant = steps[at]
        at += 1
        if code == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == seccomp.RETURN:
            return int(constant)
        else:
            holds = {
                seccomp.EQUAL: accumulator == constant,
                seccomp.AT_LEAST: accumulator >= constant,
                seccomp.ANY_BIT: bool(accumulator & constant),
            }[code]
            at += if_true if holds else if_false


def refused(code: int) -> int:
    """The verdict that fails a call with `code`."""
    return 0x00050000 | code


def test_the_command_starts_from_nothing_and_shows_little() -> None:
    confined = SandboxPolicy(
        interpreter=SYSTEM_PYTHON,
        files={policy.START: b"", "/plugin/bundle/server.py": b""},
        module="bundle.server",
    )
    found = command(confined)
    for flag in (
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
    ):
        assert flag in found
    shown = [
        found[index + 1]
        for index, word in enumerate(found)
        if word in ("--ro-bind", "--ro-bind-try")
    ]
    assert shown == ["/usr", "/lib64", "/etc/ld.so.cache", "/etc/localtime"]
    assert not {"--bind", "--dev-bind", "--bind-try", "--share-net", "--bind-data"} & set(found)
    assert found[found.index("--cap-drop") + 1] == "ALL"
    assert found.index("--remount-ro") < found.index("--seccomp") < found.index("--")


def test_every_writable_folder_has_a_size() -> None:
    found = command(
        SandboxPolicy(
            interpreter=SYSTEM_PYTHON,
            files={},
            module="bundle.server",
            limits=PluginLimits(scratch_mb=3),
        )
    )
    places = [index for index, word in enumerate(found) if word == "--tmpfs"]
    assert [found[index + 1] for index in places] == ["/dev/shm", "/tmp"]
    assert [found[index - 2 : index] for index in places] == [["--size", str(3 << 20)]] * 2


def test_an_interpreter_outside_of_usr_is_shown_and_its_libraries_are_found() -> None:
    own = SandboxPolicy(
        interpreter=Interpreter(Path("/opt/py/bin/python3"), Path("/opt/py")),
        files={},
        module="bundle.server",
    )
    found = command(own)
    at = found.index("/opt/py")
    assert found[at - 1 : at + 2] == ["--ro-bind", "/opt/py", "/opt/py"]
    # where an interpreter may lie, and must not be hidden by the scratch folder
    assert at > found.index("/tmp")
    assert policy.environment(own)["LD_LIBRARY_PATH"] == "/opt/py/lib"
    assert "LD_LIBRARY_PATH" not in policy.environment(
        SandboxPolicy(interpreter=SYSTEM_PYTHON, files={}, module="bundle.server")
    )


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/plugin/bundle/../../etc/passwd", "relative", "/plugin/bundlex/a"]
)
def test_a_file_outside_of_the_plugins_folders_is_our_bug(path: str) -> None:
    with pytest.raises(ValueError, match="outside of the folders"):
        SandboxPolicy(interpreter=SYSTEM_PYTHON, files={path: b""}, module="bundle.server")


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_of_all_numbers_only_the_listed_calls_pass(machine: str, column: int) -> None:
    architecture = seccomp.MACHINES[machine]
    program = seccomp.compile_filter(machine)
    allowed = {numbers[column] for numbers in seccomp.ALLOWED.values()} - {None}
    # argument 0: no family; and what only a network needs
    allowed -= {seccomp.ALLOWED[name][column] for name in ("socketpair", "sendmsg")}
    clone, ioctl, fcntl = seccomp.CLONE[column], seccomp.IOCTL[column], (72, 25)[column]
    for number in range(4096):
        found = verdict(program, number, architecture=architecture)
        if number in allowed or number in (clone, fcntl):  # argument 0: F_DUPFD
            assert found == seccomp.ALLOW
        elif number in {call[column] for call in seccomp.MOVES}:
            assert found == refused(errno.EINVAL)
        elif number == 435 or number > seccomp.LAST_KNOWN:
            assert found == refused(errno.ENOSYS)
        else:
            assert found == refused(errno.EPERM)
    assert ioctl not in allowed


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("name", "number"),
    {
        "open_tree": 428,
        "mount_setattr": 442,
        "cachestat": 451,
        "map_shadow_stack": 453,
        "statmount": 457,
        "listmount": 458,
        "lsm_get_self_attr": 459,
        "lsm_set_self_attr": 460,
        "lsm_list_modules": 461,
        "setxattrat": 463,
        "getxattrat": 464,
        "listxattrat": 465,
        "removexattrat": 466,
        "open_tree_attr": 467,
        "file_getattr": 468,
        "file_setattr": 469,
        "listns": 470,
        "io_uring_setup": 425,
        "landlock_create_ruleset": 444,
        "pidfd_getfd": 438,
        "memfd_secret": 447,
    }.items(),
)
def test_calls_that_came_after_a_list_of_bad_ones_are_refused(
    machine: str, name: str, number: int
) -> None:
    """The instance: statmount, listmount and open_tree_attr were on nobody's list, and passed."""
    program = seccomp.compile_filter(machine)
    assert verdict(program, number, architecture=seccomp.MACHINES[machine]) == refused(
        errno.EPERM
    ), name


@pytest.mark.parametrize(
    ("column", "header"),
    [
        (0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        (1, "/usr/aarch64-linux-gnu/include/asm-generic/unistd.h"),
    ],
)
def test_the_numbers_are_those_of_the_kernels_headers(column: int, header: str) -> None:
    path = Path(header)
    if not path.exists():
        pytest.skip(f"no {header} here")
    said = {
        name: int(number)
        for name, number in re.findall(
            r"#define "
            r"__NR(?:3264)?_(\w+) (\d+)",
            path.read_text(),
        )
    }
    said |= {"newfstatat": said.get("newfstatat", said.get("fstatat", -1))}
    wrong = {
        name: (numbers[column], said[name])
        for name, numbers in seccomp.ALLOWED.items()
        if name in said and numbers[column] != said[name]
    }
    newer = {
        name
        for name, numbers in seccomp.ALLOWED.items()
        if numbers[column] is not None and name not in said
    }
    assert wrong == {}
    # than the headers of this machine
    assert newer <= {"fchmodat2", "futex_wake", "futex_wait", "futex_requeue", "mseal"}


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_of_prctl_fcntl_and_setsockopt_only_the_listed_commands_pass(
    machine: str, column: int
) -> None:
    program = seccomp.compile_filter(machine)
    for numbers, argument, commands in seccomp.COMMANDS:
        passed = {
            command
            for command in range(4096)
            if verdict(
                program,
                numbers[column],
                (0,) * argument + (command,),
                architecture=seccomp.MACHINES[machine],
            )
            == seccomp.ALLOW
        }
        assert passed == set(commands)
    prctl, fcntl, setsockopt = (set(commands) for _, _, commands in seccomp.COMMANDS)
    assert not prctl & {1, 4, 78}  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_FUTEX_HASH
    assert not fcntl & {10, 37, 38, 1031}  # F_SETSIG, F_OFD_SETLK, F_OFD_SETLKW, F_SETPIPE_SZ
    assert not setsockopt & {7, 8, 26}  # SO_SNDBUF, SO_RCVBUF, SO_ATTACH_FILTER


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
@pytest.mark.parametrize("shared", [False, True])
def test_pairs_of_sockets_are_the_machines_own_alone(
    machine: str, column: int, shared: bool
) -> None:
    """Another family fails too, but only after the kernel has loaded what it is made of."""
    program = seccomp.compile_filter(machine, seccomp.Extra(shared=shared))
    number = seccomp.ALLOWED["socketpair"][column]
    assert number is not None
    passed = {
        family
        for family in (*range(64), 1 << 31, 0xFFFFFFFF)
        if verdict(program, number, (family, 1), architecture=seccomp.MACHINES[machine])
        == seccomp.ALLOW
    }
    assert passed == {1}


def test_a_clone_is_judged_by_its_flags() -> None:
    program = seccomp.compile_filter("x86_64")
    fork, thread = 0x01200011, 0x003D0F00
    assert verdict(program, 56, (fork,)) == verdict(program, 56, (thread,)) == seccomp.ALLOW
    for bit in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, 56, (fork | bit,)) == refused(errno.EPERM)


def test_a_terminal_cannot_be_typed_into_even_with_high_bits_set() -> None:
    program = seccomp.compile_filter("x86_64")
    assert verdict(program, 16, (0, 0x5413)) == seccomp.ALLOW
    # TIOCSTI, TIOCLINUX, TIOCSTI again (the kernel reads the low half only), TIOCSCTTY,
    # NS_GET_USERNS
    for code in (0x5412, 0x541C, 0x5412 | 1 << 32, 0x540E, 0xB701):
        assert verdict(program, 16, (0, code)) == refused(errno.EPERM)


def test_other_architectures_and_the_x32_table_are_deadly() -> None:
    program = seccomp.compile_filter("x86_64")
    # 32-bit x86, where numbers mean other calls
    assert verdict(program, 1, architecture=0x40000003) == seccomp.KILL
    assert verdict(program, 0x40000000 | 41) == seccomp.KILL


def test_an_unknown_machine_has_no_filter_and_so_no_plugins() -> None:
    with pytest.raises(SandboxUnavailableError, match="riscv64"):
        seccomp.compile_filter("riscv64")
