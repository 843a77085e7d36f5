"""Files are whole or untouched."""

import errno
import os
from pathlib import Path

import pytest

from quietchoir.core import paths
from quietchoir.core.errors import ConfigError, QuietchoirError


def test_the_environment_decides_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "h"))
    monkeypatch.delenv("QUIETCHOIR_MODELS", raising=False)
    assert paths.home() == tmp_path / "h"
    assert paths.models() == tmp_path / "h" / "models"


def test_nodes_may_share_one_model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIETCHOIR_MODELS", str(tmp_path / "m"))
    assert paths.models() == tmp_path / "m"


def test_a_written_file_has_the_content_and_the_mode(tmp_path: Path) -> None:
    paths.write_atomically(tmp_path / "deep" / "f", b"content", mode=0o600)
    assert (tmp_path / "deep" / "f").read_bytes() == b"content"
    assert (tmp_path / "deep" / "f").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("first", ["write", "private", "models", "deep"])
def test_whatever_makes_the_home_first_makes_it_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The instance: `model pull` made it, with the mode of any folder."""
    home = tmp_path / "outside" / "home"
    monkeypatch.setenv("QUIETCHOIR_HOME", str(home))
    monkeypatch.delenv("QUIETCHOIR_MODELS", raising=False)
    before = os.umask(0o022)
    try:
        {
            "write": lambda: paths.write_atomically(home / "data" / "home" / "x", b""),
            "private": lambda: paths.private_folder(home / "library"),
            "models": lambda: paths.make_folder(paths.models()),
            "deep": lambda: paths.make_folder(home / "a" / "b" / "c", mode=0o777),
        }[first]()
    finally:
        os.umask(before)
    modes = {
        folder: folder.stat().st_mode & 0o777
        for folder in (home, *(each for each in home.rglob("*") if each.is_dir()))
    }
    assert set(modes.values()) == {0o700}, modes
    assert (tmp_path / "outside").stat().st_mode & 0o777 == (0o700 if first == "private" else 0o755)


def test_a_folder_that_is_there_keeps_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("QUIETCHOIR_HOME", str(home))
    home.mkdir(mode=0o750)
    paths.private_folder(home)
    assert home.stat().st_mode & 0o777 == 0o750
    (home / "f").write_text("")
    with pytest.raises(ConfigError, match="no folder can be made"):
        paths.private_folder(home / "f" / "x")


def test_a_full_disk_leaves_the_old_file_and_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        QuietchoirError, match="the disk is full; the old file, if any, is untouched"
    ):
        paths.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]
