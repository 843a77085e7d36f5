"""What this machine can do.

Knows cores, memory, CPU features and GPUs, as the operating system and torch name them. Decides
nothing.
Always: an unknown answer is 0 or empty, never a guess; nothing is started, changed or sent.
"""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The features that kernels ask for, under Linux's names; "neon" is "asimd" there.
FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "neon",
    "asimddp",
    "i8mm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory: int  # bytes
    capability: tuple[int, int]  # CUDA's compute capability


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One machine, as this user may use it."""

    system: str  # "linux", "darwin", "win32"
    machine: str  # "x86_64", "arm64", …
    processor: str  # its maker's name for it; empty if unknown
    cores: int  # that this program may run on
    memory: int  # bytes, a container's limit respected
    memory_free: int  # bytes that a new program could take now; 0 if unknown
    features: tuple[str, ...]  # of FEATURES
    gpus: tuple[Gpu, ...]


def discover(*, gpus: bool = True) -> Device:
    """Look at this machine. `gpus=False` does not load torch."""
    memory, free = memory_sizes()
    return Device(
        system=sys.platform,
        machine=platform.machine(),
        processor=processor_name(),
        cores=core_count(),
        memory=memory,
        memory_free=free,
        features=cpu_features(),
        gpus=cuda_devices() if gpus else (),
    )


def core_count(root: Path = Path("/")) -> int:
    """Cores that this program may run on: affinity and a container's quota respected, at least
    1.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota, _, period = read(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, -(-int(quota) // int(period)))  # a part of a core is a core
    return max(cores, 1)


def memory_sizes(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory, and bytes free; a container's limit lowers both."""
    lines = dict(
        line.split(":", 1) for line in read(root / "proc/meminfo").splitlines() if ":" in line
    )
    total, free = (
        int(lines.get(key, "0 kB").split()[0]) * 1024 for key in ("MemTotal", "MemAvailable")
    )
    if not total and sys.platform == "darwin":
        total = int(sysctl("hw.memsize") or 0)
    limit, used = (
        read(root / "sys/fs/cgroup/memory.max").strip(),
        read(root / "sys/fs/cgroup/memory.current").strip(),
    )
    if limit.isdigit() and used.isdigit() and total:
        total, free = min(total, int(limit)), min(free, max(int(limit) - int(used), 0))
    return total, free


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """Which of FEATURES this CPU and its kernel offer."""
    found = set()
    for line in read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = set(value.split())
            break
    if "asimd" in found or (sys.platform == "darwin" and platform.machine() == "arm64"):
        found.add("neon")
    return tuple(feature for feature in FEATURES if feature in found)


def processor_name(root: Path = Path("/")) -> str:
    """The maker's name for the CPU; empty if unknown."""
    for line in read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return sysctl("machdep.cpu.brand_string") if sys.platform == "darwin" else ""


def cuda_devices() -> tuple[Gpu, ...]:
    """GPUs that torch can use now; none where torch is not installed, for then nothing here
    could use one.
    """
    try:
        import torch
    except ModuleNotFoundError:
        return ()
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(
        Gpu(name=gpu.name, memory=gpu.total_memory, capability=(gpu.major, gpu.minor))
        for gpu in found
    )


def read(path: Path) -> str:
    """A kernel's text file; empty where the system has none."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def sysctl(name: str) -> str:
    """One value from macOS; empty where there is none."""
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
