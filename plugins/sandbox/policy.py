"""What one plugin may see, as data, and as the arguments of bubblewrap.

Knows paths inside and outside. Starts nothing and opens nothing: the argument list is a pure
function.
Always: the network is its own and empty, but for a port of the broker's where hosts were granted;
nothing of the home, of /etc (but the time zone and the linker's cache) or of other processes is
visible; all that can be written is two bounded in-memory folders, one granted descriptor, and the
folders that its owner lets it write to. Other folders that it is shown are read-only.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..manifest import PluginLimits

# folders as the plugin sees them
BUNDLE, CONFIG, KIT = "/plugin/bundle", "/plugin/config", "/quietchoir"
FILES, DATA = "/plugin/files", "/data"  # a wrapped server's own; its owner's, read-only
START, VARIABLES = f"{KIT}/inside.py", f"{KIT}/environment.json"
FILTER, TRUSTED = f"{KIT}/filter.bpf", f"{KIT}/trusted.pem"  # with a network
PROXY = "http://127.0.0.1:3128"  # inside, of the broker
PYTHON = "python"  # as the first word of a command: the sandbox's own
SYSTEM = Path("/usr")
MERGED = ("bin", "sbin", "lib", "lib32", "lib64")  # links into /usr today, folders on older systems
INTERPRETER_MB = 96  # address space of an idle interpreter with the libraries that plugins import
# a place inside, as a word of a command names it: alone, or as the value of an option
PLACE = re.compile(r"(?:^|(?<==))/(?:plugin/files|data)(?=/|$)")
DESCRIPTORS = 64
COMMAND_DESCRIPTORS = 512  # node opens the files that it imports all at once
SIGNALS = 64
TEMPORARY = "/tmp"
SCRATCH = ("/dev/shm", TEMPORARY)  # all folders that can be written; in memory


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python outside that its sandbox can see inside, at the same path."""

    executable: Path
    prefix: Path  # shown read-only; nothing more is needed when it is /usr


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """One plugin's whole world."""

    interpreter: Interpreter
    files: Mapping[str, bytes]  # absolute path inside → content, read-only copies
    module: str = ""  # what runs, for example "bundle.server"; or else:
    command: tuple[str, ...] = ()
    folders: Mapping[str, Path] = field(default_factory=dict)  # path inside → outside, read-only
    # path inside → outside, and how many bytes may lie there
    writable: Mapping[str, tuple[Path, int]] = field(default_factory=dict)
    limits: PluginLimits = field(default_factory=PluginLimits)
    storage: tuple[int, int] | None = None  # a descriptor of memory that cannot grow, and its bytes
    # through it `inside.py` hands the broker a socket that listens; None: no network
    broker: int | None = None
    hosts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # as its owner filled them in

    def __post_init__(self) -> None:
        for path in self.files:
            pure = PurePosixPath(path)
            if ".." in pure.parts or not path.startswith((BUNDLE + "/", CONFIG + "/", KIT + "/")):
                raise ValueError(
                    f"{path} is outside of the folders that a plugin may see"
                )  # our bug
        for path in (*self.folders, *self.writable):
            if path != FILES and PurePosixPath(path).parent != PurePosixPath(DATA):
                raise ValueError(f"{path} is no place for a folder")  # our bug


def resource_limits(policy: SandboxPolicy) -> dict[str, int]:
    """Limits per process, by the names of `resource.RLIMIT_*`. The sum over processes is the
    watchdog's business.
    """
    limits = policy.limits
    largest_file = max(limits.scratch_mb << 20, policy.storage[1] if policy.storage else 0)
    if policy.writable:
        largest_file = max(largest_file, limits.folder_mb << 20)
    # JavaScript engines reserve far more addresses than they fill, so of other programs what is
    # written to is bounded
    memory = "DATA" if policy.command else "AS"
    return {
        memory: (limits.memory_mb + INTERPRETER_MB) << 20,
        "CPU": limits.cpu_s,
        "NPROC": limits.processes,
        "FSIZE": largest_file,
        "NOFILE": COMMAND_DESCRIPTORS if policy.command else DESCRIPTORS,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": SIGNALS,
        "RTPRIO": 0,
    }


def environment(policy: SandboxPolicy, stage: str = "") -> dict[str, str]:
    """All variables that the plugin has; none comes from outside.

    Args:
        stage: the folder that stands in the root's place where there are no mounts.
    """
    found = {
        "PATH": "/usr/bin:/bin",
        "HOME": stage + TEMPORARY,
        "LANG": "C.UTF-8",
        "QUIETCHOIR_CONFIG": stage + CONFIG,
    }
    if stage:
        found["QUIETCHOIR_FOLDERS"] = stage + DATA
        found["TMPDIR"] = stage + TEMPORARY
        # which OpenSSL takes for a broken installation where it is there and cannot be read
        found["OPENSSL_CONF"] = "/dev/null"
    if policy.command:
        found |= {"PYTHONPATH": stage + FILES, "PYTHONDONTWRITEBYTECODE": "1"}
    if policy.broker is not None:
        ours = (  # of OpenSSL and Go, curl, git, Python's requests, node
            *("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE"),
            "NODE_EXTRA_CA_CERTS",
        )
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        found |= dict.fromkeys(proxies, PROXY) | dict.fromkeys(ours, TRUSTED)
        found |= {"NODE_USE_ENV_PROXY": "1", "QUIETCHOIR_BROKER": str(policy.broker)}
        found["QUIETCHOIR_HOSTS"] = json.dumps(
            {name: list(of) for name, of in policy.hosts.items()}
        )
    if policy.storage:
        found["QUIETCHOIR_STORAGE"] = f"{policy.storage[0]}:{policy.storage[1]}"
    if not policy.interpreter.prefix.is_relative_to(SYSTEM):
        # else another libpython of the system is found
        found["LD_LIBRARY_PATH"] = str(policy.interpreter.prefix / "lib")
    return found


def arguments(
    bubblewrap: Path,
    policy: SandboxPolicy,
    *,
    descriptors: Mapping[str, int],
    seccomp: int,
    links: Mapping[str, str | None],
) -> list[str]:
    """The command that starts the plugin.

    Args:
        descriptors: path inside → descriptor that holds its content.
        seccomp: descriptor of the compiled filter.
        links: name in / → what it links to, or None where it is a folder of its own (see `MERGED`).
    """
    command = [str(bubblewrap)]
    # --unshare-all alone only *tries* a user namespace; without one the rest would still start.
    command += [
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        # else bubblewrap's own first process stands inside without the limits, and a plugin may
        # write its memory
        "--as-pid-1",
    ]
    command += [
        "--cap-drop",
        "ALL",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--hostname",
        "plugin",
        "--clearenv",
    ]
    for name, value in environment(policy).items():
        command += ["--setenv", name, value]
    command += view(links)
    scratch = str(policy.limits.scratch_mb << 20)
    command += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--size",
        scratch,
        "--tmpfs",
        "/dev/shm",
        "--remount-ro",
        "/dev",
    ]
    command += ["--size", scratch, "--tmpfs", "/tmp"]
    prefix = policy.interpreter.prefix
    if not prefix.is_relative_to(SYSTEM):
        command += ["--ro-bind", str(prefix), str(prefix)]  # after /tmp, where it may lie
    for path, descriptor in descriptors.items():
        command += ["--perms", "0444", "--ro-bind-data", str(descriptor), path]
    for path, folder in policy.folders.items():
        command += ["--ro-bind", str(folder), path]
    for path, (folder, _) in policy.writable.items():
        command += ["--bind", str(folder), path]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(seccomp), "--"]
    return [*command, *program(policy, resource_limits(policy))]


def program(policy: SandboxPolicy, limits: Mapping[str, int], stage: str = "") -> list[str]:
    """What runs inside: the interpreter, the first code, and what that runs.

    Args:
        stage: as `environment`; words of a command that name a place inside are led there.
    """
    python = str(policy.interpreter.executable)
    words = [PLACE.sub(lambda found: stage + found[0], word) for word in policy.command]
    first = [python] if policy.command[:1] == (PYTHON,) else words[:1]
    runs = [*first, *words[1:]] if policy.command else [policy.module]
    return [python, "-I", "-S", "-B", stage + START, json.dumps(dict(limits)), *runs]


def view(links: Mapping[str, str | None]) -> list[str]:
    """Arguments that show the system's programs and libraries, all read-only."""
    found = ["--ro-bind", str(SYSTEM), str(SYSTEM)]
    for name, target in links.items():
        found += (
            ["--ro-bind", f"/{name}", f"/{name}"]
            if target is None
            else ["--symlink", target, f"/{name}"]
        )
    for path in ("/etc/ld.so.cache", "/etc/localtime"):
        found += ["--ro-bind-try", path, path]
    return found
