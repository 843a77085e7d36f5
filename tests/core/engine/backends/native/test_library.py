"""The compiled library is found, is the one that its sources say, and says why where it cannot
be used.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quietchoir.core.engine.backends.native import library, sources
from quietchoir.core.engine.backends.native.network import ACTIVATIONS, KV_TYPES
from quietchoir.core.engine.block_pool import BLOCK_TOKENS
from quietchoir.core.errors import ConfigError
from quietchoir.core.models.architecture import PROJECTIONS

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No answer is remembered from one test to the next, and the environment asks for nothing."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library._open.cache_clear()
    yield
    library._open.cache_clear()


def test_the_installation_has_compiled_it() -> None:
    """Fails where no compiler was there; then install one and run `make setup`: the engine's
    tests need the library.
    """
    assert library.available() is None


def test_it_takes_the_best_set_of_this_processor_and_always_has_the_plain_one() -> None:
    there = library.instruction_sets()
    assert there[-1] == "plain"
    assert list(there) == sorted(there, key=library.INSTRUCTION_SETS.index)
    assert library.instruction_set() == there[0]


def test_the_sets_are_those_that_the_system_reports() -> None:
    words = set(re.findall(r"\S+", Path("/proc/cpuinfo").read_text("utf-8")))
    needs = {
        "avx512bf16": {*AVX512, "avx512_bf16"},
        "avx512": AVX512,
        "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
        "avx2": {"avx2", "fma", "f16c"},
        "neondot": {"asimddp"},
        "neon": {"asimd"},
        "plain": set(),
    }
    assert library.instruction_sets() == tuple(
        name for name, flags in needs.items() if flags <= words
    )


def test_the_environment_chooses_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in library.instruction_sets():
        monkeypatch.setenv(library.VARIABLE, name)
        assert library.available() is None
        assert library.instruction_set() == name


def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "off")
    assert "unset it" in str(library.available())


def test_a_set_that_this_processor_lacks_is_refused_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking = next(
        name for name in library.INSTRUCTION_SETS if name not in library.instruction_sets()
    )
    monkeypatch.setenv(library.VARIABLE, lacking)
    with pytest.raises(ConfigError, match=f"{lacking}: .* plain"):
        library.instruction_set()


def test_a_set_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "avx1024")
    with pytest.raises(ConfigError, match="known: off, avx512"):
        library.available()


def test_without_a_library_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LIBRARY", "_nothing.so")
    assert "install a C++ compiler" in str(library.available())
    with pytest.raises(RuntimeError, match="install a C\\+\\+ compiler"):
        library.library()


def test_a_library_of_other_sources_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "digest", lambda: "0" * 16)
    assert "other sources" in str(library.available())


def test_a_file_that_is_no_library_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / sources.LIBRARY).write_bytes(b"no library")
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    assert "cannot be loaded" in str(library.available())


def test_a_library_of_something_else_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other.c").write_text("int answer(void) { return 42; }\n")
    subprocess.run(
        ["g++", "-shared", "-fPIC", tmp_path / "other.c", "-o", tmp_path / sources.LIBRARY],
        check=True,
    )
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    assert "cannot be loaded" in str(library.available())


def test_the_digest_names_every_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(sources.FOLDER / "src", tmp_path / "src")
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    seen = {sources.digest()}
    for path in (*sources.units(), *sources.headers()):
        path.write_bytes(path.read_bytes() + b"\n")
        seen.add(sources.digest())
    (tmp_path / "src" / "team.h").rename(tmp_path / "src" / "crew.h")
    seen.add(sources.digest())
    assert len(seen) == 2 + len(sources.units()) + len(sources.headers())


def test_kinds_have_the_numbers_that_the_sources_give_them() -> None:
    text = (sources.FOLDER / "src" / "matrix.h").read_text("utf-8")
    [names] = re.findall(r"enum Kind : int32_t \{([^}]*),\s*KINDS\s*\};", text)
    assert tuple(re.findall(r"\w+", names)) == library.KINDS


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_what_python_and_the_library_count_by_number_is_the_same():
    block, kinds, roles, activations, kv_types = library.facts()
    assert block == [str(BLOCK_TOKENS)]
    assert tuple(kinds) == library.KINDS
    assert roles == [name.rpartition(".")[2] for name in PROJECTIONS]
    assert tuple(activations) == ACTIVATIONS
    assert tuple(kv_types) == KV_TYPES
