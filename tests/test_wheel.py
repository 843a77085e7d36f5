"""What is installed is the whole product, and starts anywhere without loading anything heavy."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from quietchoir.core.engine.native import sources

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "demo", "tests", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "*.so"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that nothing is left in the checkout."""
    place = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(ROOT, place, ignore=LEFT_OUT)
    return place


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """Built with the compiler of this machine."""
    return build_wheel(source, source.parent / "built", {})


def build_wheel(source: Path, place: Path, environment: dict[str, str]) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(place),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=280, env=os.environ | environment)
    return next(place.glob("quietchoir-*.whl"))


def test_every_file_that_the_product_reads_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"quietchoir/{path.relative_to(ROOT).as_posix()}"
        for room in ("core", "crypto", "federation", "plugins", "simulations")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix in {".py", ".js", ".css", ".html", ".svg", ".json", ".toml", ".cpp", ".h"}
        and "__pycache__" not in path.parts
    }  # fmt: skip
    assert wanted <= names, sorted(wanted - names)
    assert "quietchoir/simulations/scenarios/library/heating.md" in names


def test_the_wheel_carries_the_compiled_kernels_for_any_python(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name
    libraries = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".so", ".dll"))]
    assert libraries == [f"quietchoir/core/engine/native/{sources.LIBRARY}"]


def test_without_a_compiler_the_wheel_is_built_and_lacks_only_the_kernels(wheel: Path, source: Path) -> None:
    shutil.rmtree(source / "build", ignore_errors=True)  # objects of the other wheel
    nothing = str(source / "no-such-compiler")
    bare = build_wheel(
        source, source.parent / "bare", {"CC": nothing, "CXX": nothing, "LDSHARED": nothing, "LDCXXSHARED": nothing}
    )
    lacking = set(zipfile.ZipFile(wheel).namelist()) - set(zipfile.ZipFile(bare).namelist())
    assert lacking == {f"quietchoir/core/engine/native/{sources.LIBRARY}"}


def test_the_installed_command_runs_from_the_root_folder(wheel: Path, tmp_path: Path) -> None:
    """Without its dependencies: the version and the help need none of them."""
    venv.create(tmp_path / "fresh", with_pip=True)
    programs = tmp_path / "fresh" / ("Scripts" if sys.platform == "win32" else "bin")
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True, timeout=240)
    told = subprocess.run(
        [programs / "quietchoir", "--version"], cwd="/", check=True, capture_output=True, text=True, timeout=60
    )
    assert told.stdout.startswith("quietchoir ")
    helped = subprocess.run(
        [programs / "quietchoir", "--help"], cwd="/", check=True, capture_output=True, text=True, timeout=60
    )
    for verb in (
        "serve",
        "chat",
        "doctor",
        "federation",
        "coordinate",
        "join",
        "simulate",
        "model",
        "adapter",
        "data",
        "plugin",
        "library",
    ):
        assert verb in helped.stdout
