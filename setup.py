"""The compiled parts of the product, each a plain shared library: the kernels of
`core/engine/backends/native`, and the product of `crypto/pir/scan.cpp`.

Everything else stands in pyproject.toml. Needs setuptools alone. Always: without a compiler, or
with one that fails, the installation goes on without them, and the product says at its start
and in `quietchoir doctor` what is slower.
"""

import os
import runpy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NATIVE = runpy.run_path(str(ROOT / "core" / "engine" / "backends" / "native" / "sources.py"))
SCAN = ROOT / "crypto" / "pir" / "scan.cpp"
NAMES = {"_native": NATIVE["LIBRARY"]}  # of the others: their own with .so, on every system


def relative(paths: list[Path]) -> list[str]:
    """As setuptools wants them: from here, with slashes."""
    return [path.relative_to(ROOT).as_posix() for path in paths]


class BuildLibrary(build_ext):
    """A shared library for ctypes: no module to import, hence no Python version in its name."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where it goes."""
        *package, name = fullname.split(".")
        return str(Path(*package, NAMES.get(name, f"{name}.so")))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None besides those that the sources export: there is no PyInit."""
        return list(ext.export_symbols)

    def build_extension(self, ext: Extension) -> None:
        """Compile the units side by side: each holds every kernel for one instruction set, and
        takes a while.

        A library that is already there counts only if it carries the digest of these sources: times
        of files may lie.
        """
        built = Path(self.get_ext_fullpath(ext.name))
        macros = [value.strip('"').encode() for _, value in ext.define_macros if value]
        if not built.exists() or not all(digest in built.read_bytes() for digest in macros):
            self.force = True
        self.compiler.compile = side_by_side(self.compiler.compile)
        super().build_extension(ext)


def side_by_side(compile_all: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The same, one thread a source."""

    def compile_each(sources: list[str], **options: Any) -> list[str]:
        with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
            found = list(pool.map(lambda source: compile_all([source], **options), sources))
        return [part for objects in found for part in objects]

    return compile_each


class WheelForEveryPython(bdist_wheel):
    """The library depends on the system and its processor, not on which Python loads it."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3, no ABI, this platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "quietchoir.core.engine.backends.native._native",
            sources=relative(NATIVE["units"]()),
            depends=relative(NATIVE["headers"]()),
            define_macros=[(NATIVE["DIGEST_MACRO"], f'"{NATIVE["digest"]()}"')],
            extra_compile_args=list(NATIVE["FLAGS"]),
            extra_link_args=list(NATIVE["LINK_FLAGS"]),
            language="c++",
            optional=True,
        ),
        Extension(
            "quietchoir.crypto.pir._scan",
            sources=relative([SCAN]),
            define_macros=[
                ("QUIETCHOIR_SCAN_SOURCE", f'"{sha256(SCAN.read_bytes()).hexdigest()[:16]}"')
            ],
            extra_compile_args=list(NATIVE["FLAGS"]),
            language="c++",
            optional=True,
        ),
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": WheelForEveryPython},
)
