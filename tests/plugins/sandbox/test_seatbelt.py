"""The profile for macOS, as text: nothing here has run on a Mac."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.plugins import commands, manifest
from quietchoir.plugins.manifest import Permissions, PluginLimits
from quietchoir.plugins.sandbox import seatbelt
from quietchoir.plugins.sandbox.seatbelt import Places, profile, refuses

from ..conftest import hostile, write_bundle

PLACES = Places(
    python=Path("/Library/Python"),
    program=[Path("/p/bundle"), Path("/p/kit")],
    scratch=Path("/p/scratch"),
    folders={"papers": Path("/Users/ann/papers"), "out": Path("/Users/ann/out")},
)
NOTHING = Permissions()


def head(folder: Path, permissions: Permissions = NOTHING, processes: int = 8) -> manifest.Head:
    """Of a plugin that asks for these."""
    terms = manifest.read(write_bundle(folder / "hostile", hostile("return ''")))
    limits = PluginLimits(processes=processes)
    return replace(terms.head, permissions=permissions, limits=limits)


def test_all_is_denied_but_what_was_granted_and_what_python_needs(tmp_path: Path) -> None:
    asked = Permissions(folders=("papers",), write_folders=("out",))
    text = profile(head(tmp_path, asked), PLACES)
    rules = [line for line in text.splitlines() if not line.startswith(";")]
    assert rules[:2] == ["(version 1)", "(deny default)"]
    assert rules[-2:] == ["(deny file-write-setugid)", "(deny network*)"]  # the last one counts
    allowed = {line.split(" ")[1].rstrip(")") for line in rules if line.startswith("(allow")}
    assert not any("network" in one or "mach" in one or one == "default" for one in allowed)
    reading = next(line for line in rules if "/p/bundle" in line)
    assert reading.startswith("(allow file-read* (subpath")
    assert '(subpath "/Users/ann/papers")' in reading and "/Users/ann/out" not in reading
    (writing,) = [line for line in rules if "file-write*" in line]
    assert re.findall('"([^"]+)"', writing) == ["/p/scratch", "/Users/ann/out"]
    assert text.count("(") == text.count(")") and "not held here" in text


def test_what_was_not_asked_for_is_not_shown_and_one_process_begins_no_other(
    tmp_path: Path,
) -> None:
    text = profile(head(tmp_path, processes=1), PLACES)
    assert "/Users/ann" not in text and "process-fork" not in text
    assert "(allow process-fork)" in profile(head(tmp_path), PLACES)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (Permissions(network=("example.org",)), "the network"),
        (Permissions(hosts=("hub",)), "hosts"),
        (Permissions(storage_bytes=4096), "storage"),
        (Permissions(model_tokens=5), "the model"),
        (Permissions(tools=("a/b:c",)), "tools of other plugins"),
    ],
)
def test_what_it_cannot_hold_is_refused_in_words(
    tmp_path: Path, asked: Permissions, word: str
) -> None:
    assert word in refuses(asked) and refuses(Permissions(folders=("papers",))) == ""
    granted = replace(PLACES, folders={"hub": Path("/x")})
    with pytest.raises(ConfigError, match=word):
        profile(head(tmp_path, asked), granted)


def test_a_missing_folder_and_a_path_that_ends_the_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="asks for tea; fill it in"):
        profile(head(tmp_path, Permissions(folders=("tea",))), PLACES)
    for path in ('/a") (allow default) ("', "/a\\", "/a\n", "relative"):
        with pytest.raises(ConfigError, match="absolute path"):
            seatbelt.quoted(Path(path))


def test_the_verb_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bundle(tmp_path / "hostile", hostile("return ''"))
    chosen = argparse.Namespace(folder=folder, scratch=tmp_path)
    assert commands.profile_one(chosen) == 0
    assert f'(subpath "{folder}")' in capsys.readouterr().out
