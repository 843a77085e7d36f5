"""What this machine can do.

Knows cores, memory, CPU features, GPUs and other accelerators, as the operating system, torch, ONNX
Runtime and OpenVINO name them. Decides nothing.
Always: an unknown answer is 0 or empty, never a guess; nothing is started, changed or sent.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

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


def core_list() -> tuple[int, ...]:
    """The numbers of the cores that this thread may run on, in order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def core_count(root: Path = Path("/")) -> int:
    """Cores that this program may run on: affinity and a container's quota respected, at least
    1.
    """
    cores = len(core_list())
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


def float_bytes(numbers: int) -> int:
    """Of each of so many numbers where a library keeps them plain: 4, float32, if all together then
    take no more than half of the memory that is free, else 2.
    """
    _, free = memory_sizes()
    return 4 if not free or 4 * numbers <= free // 2 else 2


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """Something beside the processor that could compute."""

    kind: Literal["cuda", "rocm", "mps", "xpu", "npu", "gpu"]  # "gpu": of a maker, by no library
    name: str  # its maker's, or the library's that knows it
    memory: int = 0  # bytes; 0: unknown, or the machine's own
    advice: str = ""  # what is missing before anything here could use it; "": nothing


# PCI's vendors, and what makes torch use a GPU of theirs.
MAKERS = {
    "0x10de": ("NVIDIA", "torch's CUDA build and NVIDIA's driver (nvidia-smi must list it)"),
    "0x1002": ("AMD", "torch's ROCm build and the amdgpu driver (/dev/kfd must be there)"),
    "0x8086": ("Intel", "torch's XPU build and Intel's level-zero driver"),
}
DISPLAY, PROCESSING = "0x03", "0x12"  # PCI's classes of graphics and of other accelerators
NPU_PROVIDERS = ("OpenVINO", "QNN", "CoreML")  # of ONNX Runtime


def accelerators(root: Path = Path("/")) -> tuple[Accelerator, ...]:
    """All that libraries here can use, then what is there and no library uses."""
    found = (*torch_devices(), *npus())
    makers = {"cuda": "NVIDIA", "rocm": "AMD", "xpu": "Intel"}
    used = {makers[one.kind] for one in found if one.kind in makers}
    known = any(one.kind == "npu" for one in found)
    idle = (one for one in pci_devices(root) if one.name.partition(" ")[0] not in used)
    return (*found, *(one for one in idle if one.kind != "npu" or not known))


def torch_devices() -> Iterator[Accelerator]:
    """GPUs that torch can use: CUDA's, ROCm's, Apple's, Intel's; none where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    kind: Literal["rocm", "cuda"] = "rocm" if getattr(torch.version, "hip", None) else "cuda"
    for gpu in cuda_devices():
        yield Accelerator(kind=kind, name=gpu.name, memory=gpu.memory)
    if torch.backends.mps.is_available():
        yield Accelerator(kind="mps", name=processor_name() or "Apple GPU")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        for index in range(torch.xpu.device_count()):
            properties = torch.xpu.get_device_properties(index)
            yield Accelerator(kind="xpu", name=properties.name, memory=properties.total_memory)


def npus() -> Iterator[Accelerator]:
    """Neural processors that ONNX Runtime or OpenVINO can use, if either is installed."""
    with suppress(ImportError):
        for provider in import_module("onnxruntime").get_available_providers():
            if provider.removesuffix("ExecutionProvider") in NPU_PROVIDERS:
                yield Accelerator(kind="npu", name=f"{provider} of ONNX Runtime")
    with suppress(ImportError):
        core = import_module("openvino").Core()
        if "NPU" in core.available_devices:
            name = core.get_property("NPU", "FULL_DEVICE_NAME")
            yield Accelerator(kind="npu", name=f"{name} of OpenVINO")


def pci_devices(root: Path = Path("/")) -> Iterator[Accelerator]:
    """GPUs and accelerators on the bus, whatever can use them; a server's display chip (of another
    maker) is none.
    """
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        kind = read(device / "class").strip()
        maker, advice = MAKERS.get(read(device / "vendor").strip(), ("", ""))
        number = read(device / "device").strip()
        if maker and kind.startswith(DISPLAY):
            yield Accelerator(kind="gpu", name=f"{maker} GPU {number}", advice=advice)
        elif maker and kind.startswith(PROCESSING):
            advice = "OpenVINO or ONNX Runtime with a provider for it, and the maker's driver"
            yield Accelerator(kind="npu", name=f"{maker} NPU {number}", advice=advice)


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
