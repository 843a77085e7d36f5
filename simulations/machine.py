"""The line that stands above every measured number: what it was measured on.

Knows the operating system's own description of this machine. Knows nothing of what is measured.
"""

import os
import platform
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "flwr", "tenseal", "cryptography")


def processor() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def line() -> str:
    """One line: processor, cores, memory, system, Python and the libraries that decide speed."""
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        if hasattr(os, "sysconf")
        else 0
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    return (
        f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} "
        f"{platform.machine()}, "
        f"Python {platform.python_version()}, {versions}"
    )
