"""Which C++ sources the compiled library is made of, and how they are compiled.

Knows file names and flags. Imports only the standard library: the build runs this file by its path,
before anything is installed. Always: the library carries the digest of the sources that it was made
of, so a stale one is never loaded.
"""

import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = "_native.dll" if sys.platform == "win32" else "_native.so"
DIGEST_MACRO = "QUIETCHOIR_SOURCES"

# No -march: one binary runs on every processor of its architecture, each file asks for its own
# instruction set. No -ffast-math: linking with it switches denormal numbers off in the whole
# process, torch included. -ffp-contract=off: a product and a sum are fused only where the source
# says so, so that instruction sets agree. -Wno-…uninitialized: GCC 12 warns of its own AVX-512
# header; clang knows only one of the two names.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-Wno-unknown-warning-option",
)
LINK_FLAGS = ("-pthread",)


def units() -> list[Path]:
    """Every translation unit, sorted."""
    return sorted((FOLDER / "src").glob("*.cpp"))


def headers() -> list[Path]:
    """Every header, sorted."""
    return sorted((FOLDER / "src").glob("*.h"))


def digest() -> str:
    """Of all sources, names included; 16 hex digits."""
    found = hashlib.sha256()
    for path in (*units(), *headers()):
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
