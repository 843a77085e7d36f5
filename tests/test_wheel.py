"""What is installed is the whole product, and starts anywhere without loading anything heavy."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from quietchoir.core import paths
from quietchoir.core.engine.backends.native import sources

ROOT = Path(__file__).resolve().parent.parent
COMPILED = {
    f"quietchoir/core/engine/backends/native/{sources.LIBRARY}",
    "quietchoir/crypto/pir/_scan.so",
}
LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv",
    "build",
    "dist",
    "demo",
    "tests",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "*.so",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that nothing is left in the checkout."""
    place = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(ROOT, place, ignore=LEFT_OUT)
    return place


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """With the kernels as this checkout's own set-up compiled them, by the same `setup.py`; where
    it did not, or from other sources, they are compiled here, which takes a minute.
    """
    compiled = sources.FOLDER / sources.LIBRARY
    built = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    place = source / "build" / built / "quietchoir" / compiled.parent.relative_to(ROOT)
    if compiled.exists():
        place.mkdir(parents=True)
        shutil.copyfile(compiled, place / compiled.name)
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
    subprocess.run(
        command,
        cwd=source,
        check=True,
        capture_output=True,
        timeout=280,
        env=os.environ | environment,
    )
    return next(place.glob("quietchoir-*.whl"))


def test_every_file_that_the_product_reads_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"quietchoir/{path.relative_to(ROOT).as_posix()}"
        for room in ("core", "crypto", "federation", "plugins", "simulations")
        for path in (ROOT / room).rglob("*")
        if path.is_file()
        and path.suffix in {".py", ".js", ".css", ".html", ".svg", ".json", ".toml", ".cpp", ".h"}
        and "__pycache__" not in path.parts
    }
    assert wanted <= names, sorted(wanted - names)
    assert "quietchoir/simulations/scenarios/library/heating.md" in names


def test_the_wheel_carries_the_compiled_kernels_for_any_python(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if name.endswith((".so", ".dll"))} == COMPILED


def test_without_a_compiler_the_wheel_is_built_and_lacks_only_the_kernels(
    wheel: Path, source: Path
) -> None:
    shutil.rmtree(source / "build", ignore_errors=True)  # objects of the other wheel
    nothing = str(source / "no-such-compiler")
    bare = build_wheel(
        source,
        source.parent / "bare",
        {"CC": nothing, "CXX": nothing, "LDSHARED": nothing, "LDCXXSHARED": nothing},
    )
    lacking = set(zipfile.ZipFile(wheel).namelist()) - set(zipfile.ZipFile(bare).namelist())
    assert lacking == COMPILED


def test_the_installed_command_runs_from_the_root_folder(wheel: Path, tmp_path: Path) -> None:
    """Without its dependencies: the version and the help need none of them."""
    venv.create(tmp_path / "fresh", with_pip=True)
    programs = tmp_path / "fresh" / ("Scripts" if sys.platform == "win32" else "bin")
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
        timeout=240,
    )
    told = subprocess.run(
        [programs / "quietchoir", "--version"],
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.stdout.startswith("quietchoir ")
    helped = subprocess.run(
        [programs / "quietchoir", "--help"],
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
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


def closure(distribution: str) -> Iterator[Distribution]:
    """What a plain install of `distribution` brings with it, here."""
    pending, seen = [Requirement(distribution)], set()
    while pending:
        wanted = pending.pop()
        name = canonicalize_name(wanted.name)
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(wanted.name)
        yield found
        extras = wanted.extras or {""}
        for line in found.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in extras
            ):
                pending.append(needed)


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the wheel and what its plain install asks for, and nothing else: no
    torch.
    """
    place = tmp_path_factory.mktemp("plain") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    packages = next(place.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
        told = archive.read(
            next(name for name in archive.namelist() if name.endswith("/METADATA"))
        ).decode()
    for line in told.splitlines():
        if not line.startswith("Requires-Dist: ") or "extra ==" in line:
            continue
        needed = Requirement(line.removeprefix("Requires-Dist: "))
        if needed.marker is not None and not needed.marker.evaluate():
            continue
        for found in closure(needed.name):
            for top in {
                file.parts[0]
                for file in found.files or []
                if file.parts[0] not in ("..", "__pycache__")
            }:
                link = packages / top
                if not link.exists():
                    link.symlink_to(str(found.locate_file(top)))
    return place / "bin" / "python"


def asked(
    python: Path, home: Path, *arguments: str, said: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {paths.MODELS_VARIABLE: str(paths.models()), paths.HOME_VARIABLE: str(home)}
    command = [str(python), "-m", "quietchoir.cli", *arguments]
    return subprocess.run(
        command, input=said, env=environment, cwd="/", capture_output=True, text=True, timeout=240
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_plain_install_answers_a_chat_from_a_gguf_file_without_torch(
    plain: Path, tmp_path: Path, model_path: Path
) -> None:
    without = subprocess.run(
        [plain, "-c", "import torch"], capture_output=True, text=True, cwd="/", timeout=60
    )
    assert "ModuleNotFoundError" in without.stderr
    answered = asked(plain, tmp_path, "chat", "--model", str(model_path), said="Say hello.\n")
    assert answered.returncode == 0, answered.stderr
    assert len(answered.stdout.split()) > 1
    shown = asked(plain, tmp_path, "model", "show", str(model_path))
    assert shown.returncode == 0 and "llama" in shown.stdout, shown.stderr
    examined = asked(plain, tmp_path, "doctor")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert (
        "[train] and [federation] not installed (pip install 'quietchoir[train,federation]')"
    ) in examined.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize(
    "extra, arguments",
    [
        ("train", ["model", "convert", ".", "--out", "x.gguf"]),
        ("train", ["data", "build", "home"]),
        ("federation", ["join", "federation.toml"]),
        ("federation", ["coordinate", "federation.toml", "--state", "state"]),
        ("federation", ["library", "ask", "127.0.0.1:9", "what?"]),
        ("federation", ["simulate", "run", "four-households"]),
        ("federation", ["serve", "--federation", "/etc/hosts", "--data", "/etc"]),
    ],
)  # fmt: skip
def test_a_missing_part_is_one_sentence_that_names_its_extra(
    plain: Path, tmp_path: Path, extra: str, arguments: list[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    refused = asked(plain, tmp_path, *arguments)
    assert refused.returncode == 2, refused.stderr
    assert (
        refused.stderr.count("\n") == 1 and (f"pip install 'quietchoir[{extra}]'") in refused.stderr
    ), refused.stderr
    assert sorted(tmp_path.rglob("*")) == before
