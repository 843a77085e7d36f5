"""Models from a hub: chosen, agreed to, fetched once, taken up again, checked; a local server plays
the hub, its files lie on another host.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quietchoir import cli
from quietchoir.core.errors import (
    IntegrityError,
    LicenceError,
    ModelError,
    ModelNotFoundError,
    PullStoppedError,
)
from quietchoir.core.models.hub import catalog, client, store
from quietchoir.core.models.hub.client import HubClient
from quietchoir.core.models.hub.known_models import KNOWN_MODELS
from quietchoir.core.models.hub.offer import offered
from quietchoir.tests.fakes.hub import COMMIT, FakeHub

TOKEN = "hf_" + "t" * 34
MEDIUM = b"four bits" * 40_000
FILES = {
    "README.md": b"# a card",
    "mmproj-model-f16.gguf": b"sees",
    "tiny-model-F16.gguf": b"sixteen bits" * 50_000,
    "tiny-model-Q4_K_M.gguf": MEDIUM,
    "tiny-model-Q8_0.gguf": b"eight bits" * 50_000,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's home; the owner has no other programs with models."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QUIETCHOIR_MODELS", raising=False)
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(client, "PAUSE_S", 0.001)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path) -> Iterator[FakeHub]:
    """One with a repository of four quantisations."""
    with FakeHub({"some/Tiny-Model-GGUF": dict(FILES)}).running() as running:
        (home / "config.toml").write_text(f'[models]\nhub = "{running.address}"\n')
        yield running


def asks(hub: FakeHub) -> HubClient:
    return HubClient(hub.address)


def left_in(home: Path) -> set[str]:
    models = home / "models"
    files = (path.relative_to(models) for path in models.rglob("*") if path.is_file())
    return {str(path) for path in files if store.BLOBS not in path.parts}


def test_of_a_repository_the_file_is_chosen_said_fetched_and_found_by_its_name(
    hub: FakeHub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["model", "pull", "hf:some/Tiny-Model-GGUF"]) == 0
    said = capsys.readouterr().out
    assert "tiny-model-Q4_K_M.gguf, Q4_K_M" in said and "others: F16, Q8_0" in said
    assert "apache-2.0" in said and "it will be tiny-model-q4_k_m" in said
    path = catalog.find("tiny-model-q4_k_m")
    assert path.read_bytes() == MEDIUM
    assert left_in(home) == {
        "tiny-model-q4_k_m/tiny-model-Q4_K_M.gguf",
        "tiny-model-q4_k_m/model.json",
    }
    entry = json.loads((path.parent / "model.json").read_text())
    assert entry["source"] == f"hf:some/Tiny-Model-GGUF@{COMMIT}"
    assert entry["files"][0]["sha256"] == hashlib.sha256(MEDIUM).hexdigest()
    # once more: nothing is fetched again
    before = len(hub.asked)
    catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    assert not [one for one in hub.asked[before:] if "/files/" in one[1]]
    # and by its name nobody is asked at all
    before = len(hub.asked)
    assert catalog.pull("tiny-model-q4_k_m", hub=asks(hub)) == path
    assert len(hub.asked) == before
    assert cli.main(["model", "list"]) == 0
    assert "tiny-model-q4_k_m" in capsys.readouterr().out
    assert cli.main(["model", "remove", "tiny-model-q4_k_m"]) == 0
    assert left_in(home) == set()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hf:some/Tiny-Model-GGUF:q8_0", "tiny-model-Q8_0.gguf"),
        ("hf:some/Tiny-Model-GGUF:tiny-model-F16.gguf", "tiny-model-F16.gguf"),
        ("https://huggingface.co/some/Tiny-Model-GGUF", "tiny-model-Q4_K_M.gguf"),
        ("hf:some/Tiny-Model-GGUF@main", "tiny-model-Q4_K_M.gguf"),
    ],
)
def test_a_file_or_a_quantisation_may_be_named(hub: FakeHub, name: str, file: str) -> None:
    assert [one.path for one in offered(name, asks(hub)).files] == [file]


def test_what_a_repository_does_not_have_is_told_with_what_it_has(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no Q5_K_M; it has F16, Q4_K_M, Q8_0"):
        offered("hf:some/Tiny-Model-GGUF:Q5_K_M", asks(hub))
    with pytest.raises(ModelNotFoundError, match="no such repository"):
        offered("hf:nobody/nothing", asks(hub))
    hub.repositories["some/onnx"] = {"model.onnx": b"x"}
    with pytest.raises(ModelError, match="holds no GGUF file, nor config"):
        offered("hf:some/onnx", asks(hub))


def test_all_parts_of_a_split_model_come_in_order_and_a_folder_of_safetensors_comes_whole(
    hub: FakeHub,
) -> None:
    parts = {f"q4/big-Q4_0-0000{n}-of-00002.gguf": b"part %d" % n * 9 for n in (2, 1)}
    hub.repositories["some/big"] = parts
    folder = catalog.pull("hf:some/big", hub=asks(hub))
    assert folder.name == "big-q4_0" and sorted(one.name for one in folder.glob("*.gguf")) == [
        "big-Q4_0-00001-of-00002.gguf",
        "big-Q4_0-00002-of-00002.gguf",
    ]
    hub.repositories["some/Plain"] = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": b"tensors" * 999,
        "pytorch_model.bin": b"a pickle",
    }
    folder = catalog.pull("hf:some/Plain", hub=asks(hub))
    assert {one.name for one in folder.iterdir()} == {
        *("config.json", "tokenizer.json", "model.safetensors", "model.json")
    }
    # the small ones were checked by git's hash, and have ours from now on
    (folder / "config.json").write_bytes(b'{"model_type": "mamba"}')
    assert catalog.pull("plain", hub=asks(hub)) == folder
    assert (folder / "config.json").read_bytes() == b'{"model_type": "llama"}'


def test_a_cut_connection_is_taken_up_where_it_was_cut(hub: FakeHub) -> None:
    hub.breaks_after = 100_000
    path = catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    assert path.read_bytes() == MEDIUM
    ranges = [one[2] for one in hub.asked if "/files/" in one[1]]
    assert ranges[0] == "" and len(ranges) >= 4
    begun = [int(one[6:-1]) for one in ranges[1:]]
    assert begun == sorted(set(begun)) and begun[0] > 0


def test_a_pull_that_was_stopped_goes_on_in_the_next_one_and_two_at_once_are_one(
    hub: FakeHub, home: Path
) -> None:
    hub.hold, stop, half = threading.Event(), threading.Event(), threading.Event()
    failed: list[Exception] = []

    def pull() -> None:
        try:
            catalog.pull(
                "hf:some/Tiny-Model-GGUF",
                hub=asks(hub),
                stop=stop,
                progress=lambda done, _: half.set() if done else None,
            )
        except ModelError as error:
            failed.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    assert half.wait(30)
    with pytest.raises(ModelError, match="is being pulled or removed already"):
        catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    stop.set()
    hub.hold.set()
    thread.join(30)
    assert isinstance(failed[0], PullStoppedError)
    assert 0 < catalog.unfinished() < len(MEDIUM)
    with pytest.raises(ModelNotFoundError):
        catalog.find("tiny-model-q4_k_m")
    hub.asked.clear()
    path = catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    assert path.read_bytes() == MEDIUM and catalog.unfinished() == 0
    (resumed,) = [one[2] for one in hub.asked if "/files/" in one[1]]
    assert int(resumed[6:-1]) > 0


def test_two_pulls_at_once_that_want_the_same_file_both_have_it_whole(
    hub: FakeHub, home: Path
) -> None:
    shared = bytes(range(256)) * 4_000
    for name in ("one", "two"):
        own = {"config.json": name.encode(), "model.safetensors": name.encode() * 9}
        hub.repositories[f"some/{name}"] = {"tokenizer.json": shared, **own}
    hub.hold, failed = threading.Event(), list[Exception]()

    def pull(name: str) -> None:
        try:
            catalog.pull(f"hf:some/{name}", hub=asks(hub))
        except ModelError as error:
            failed.append(error)

    pulls = [threading.Thread(target=pull, args=(name,)) for name in ("one", "two")]
    for one in pulls:
        one.start()
    ends = time.monotonic() + 30
    while sum(path.endswith("tokenizer.json") for _, path, *_ in hub.asked) < 4:  # asked, sent on
        assert time.monotonic() < ends
        time.sleep(0.01)
    hub.hold.set()
    for one in pulls:
        one.join(30)
    assert failed == []
    for name in ("one", "two"):
        assert (home / "models" / name / "tokenizer.json").read_bytes() == shared
    assert catalog.unfinished() == 0 and not list((home / "models/.partial").iterdir())


def test_another_hash_than_the_hub_told_does_not_stay(hub: FakeHub, home: Path) -> None:
    hub.hashes["tiny-model-Q4_K_M.gguf"] = "0" * 64
    with pytest.raises(
        IntegrityError, match=r"came with sha256 .* expected 0{64}; it did not stay"
    ):
        catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    assert left_in(home) == set()


def test_a_damaged_part_of_an_earlier_pull_does_not_survive(hub: FakeHub, home: Path) -> None:
    right = hashlib.sha256(MEDIUM).hexdigest()
    partial = home / "models" / ".partial" / right
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"damaged" * 100)
    with pytest.raises(IntegrityError, match="did not stay; pull again"):
        catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    assert catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub)).read_bytes() == MEDIUM


def test_a_pointer_instead_of_a_file_is_told_as_one(hub: FakeHub, home: Path) -> None:
    hub.sends = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    with pytest.raises(IntegrityError, match="Git LFS pointer"):
        catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    hub.sends = b"more than was told" * 100_000
    with pytest.raises(IntegrityError, match="bytes, expected"):
        catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    assert left_in(home) == set()


def test_the_owners_token_goes_to_the_hub_and_does_not_follow_to_where_files_lie(
    hub: FakeHub,
) -> None:
    hub.gated = True
    catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    told = {host: {one[3] for one in hub.asked if one[0] == host} for host, *_ in hub.asked}
    assert told == {"127.0.0.1": {f"Bearer {TOKEN}"}, "localhost": {""}}
    # and never in clear to another machine
    assert HubClient("http://hub.example")._told_token() == ""
    assert HubClient("https://hub.example")._told_token() == TOKEN


def test_a_gated_repository_says_where_to_agree(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    with pytest.raises(ModelError, match=r"no token was sent.*Tiny-Model-GGUF, agree.*HF_TOKEN"):
        catalog.pull("hf:some/Tiny-Model-GGUF", hub=HubClient(hub.address, token=""))


@pytest.mark.parametrize("licence", ["llama3.2", None])
def test_a_licence_that_is_not_open_is_shown_and_asked_for(
    hub: FakeHub, home: Path, licence: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.licence = licence
    assert cli.main(["model", "pull", "hf:some/Tiny-Model-GGUF"]) == 1
    said = capsys.readouterr().err
    word = licence or "unknown"
    assert "not known to be open" in said and f"--accept-licence {word}" in said
    assert f"{hub.address}/some/Tiny-Model-GGUF" in said
    assert left_in(home) == set()
    with pytest.raises(LicenceError):
        catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub), accepted="another")
    pull = ["model", "pull", "hf:some/Tiny-Model-GGUF", "--accept-licence", word]
    assert cli.main(pull) == 0


def test_a_model_of_the_catalog_comes_from_its_repository_under_its_own_name(
    hub: FakeHub, home: Path
) -> None:
    known = next(one for one in KNOWN_MODELS if one.name == "qwen3-0.6b")
    hub.repositories[known.repository] = {
        "Qwen3-0.6B-Q8_0.gguf": b"q8",
        "Qwen3-0.6B-Q4_0.gguf": b"q4",
    }
    with pytest.raises(ModelNotFoundError, match=r"run: quietchoir model pull qwen3-0\.6b"):
        catalog.find("qwen3-0.6b")
    assert catalog.pull("qwen3-0.6b", hub=asks(hub)).read_bytes() == b"q8"
    assert catalog.find("qwen3-0.6b").parent.name == "qwen3-0.6b"
    # another's file of that name does not take it
    hub.repositories["evil/Qwen"] = {"Qwen3-0.6B.gguf": b"other"}
    assert catalog.pull("hf:evil/Qwen", hub=asks(hub)).parent.name == "evil--qwen3-0.6b"
    assert catalog.find("qwen3-0.6b").read_bytes() == b"q8"


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("file", ["Qwen3-0.6B-Q4_K_M.gguf", "config.json"])
def test_what_its_owner_put_under_a_name_of_the_catalog_is_never_written_to_or_deleted(
    hub: FakeHub, home: Path, tmp_path: Path, linked: bool, file: str
) -> None:
    name, own = "qwen3-0.6b", b"the owner's, and nowhere else"
    repository = next(model.repository for model in KNOWN_MODELS if model.name == name)
    hub.repositories[repository] = {"Qwen3-0.6B-Q4_K_M.gguf": MEDIUM}
    theirs = tmp_path / "elsewhere" if linked else home / "models" / name
    theirs.mkdir(parents=True)
    (theirs / file).write_bytes(own)
    if linked:
        (home / "models").mkdir()
        (home / "models" / name).symlink_to(theirs)
    with pytest.raises(ModelError, match=rf"{name}: was put there by hand, .*move it away"):
        catalog.pull(name, hub=asks(hub))
    with pytest.raises((ModelError, ModelNotFoundError)):
        catalog.remove(name)
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == {file: own}
    assert not [one for one in hub.asked if "/files/" in one[1]]
    # moved away, the same pull brings the model
    (home / "models" / name).rename(tmp_path / "moved")
    assert catalog.pull(name, hub=asks(hub)).read_bytes() == MEDIUM
    assert [model.name for model in catalog.search("qwen3 0.6b")] == [name]


def test_a_file_put_into_a_folder_of_ours_and_one_of_a_models_name_stay_their_owners(
    hub: FakeHub, home: Path
) -> None:
    hub.repositories["some/Folder"] = {
        "config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": MEDIUM
    }  # fmt: skip
    folder = catalog.pull("hf:some/Folder", hub=asks(hub))
    theirs = folder / "generation_config.json"
    theirs.write_bytes(b"the owner's")
    hub.repositories["some/Folder"]["generation_config.json"] = b"the hub's"
    with pytest.raises(ModelNotFoundError, match=r"has no Q4_K_M, nor any GGUF file"):
        catalog.pull("hf:some/Folder:Q4_K_M", hub=asks(hub))
    with pytest.raises(ModelError, match=r"generation_config\.json: was put there by hand"):
        catalog.pull("hf:some/Folder", hub=asks(hub))
    catalog.remove("folder")
    assert theirs.read_bytes() == b"the owner's"
    # a hub's model of a name that stands there comes under its maker's
    assert catalog.pull("hf:some/Folder", hub=asks(hub)).name == "some--folder"
    (home / "models" / "qwen3-0.6b.gguf").write_bytes(b"the owner's")
    repository = next(model.repository for model in KNOWN_MODELS if model.name == "qwen3-0.6b")
    hub.repositories[repository] = {"Qwen3-0.6B-Q4_K_M.gguf": MEDIUM}
    with pytest.raises(ModelError, match=r"qwen3-0\.6b\.gguf: was put there by hand"):
        catalog.pull("qwen3-0.6b", hub=asks(hub))


def test_room_is_asked_for_before_anything_comes(
    hub: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ModelError, match=r"0 MB free, this model needs 0 MB"):
        catalog.pull("hf:some/Tiny-Model-GGUF", hub=asks(hub))
    assert not [one for one in hub.asked if "/files/" in one[1]]


@pytest.mark.parametrize("path", ["../../escape.gguf", "/etc/escape.gguf", "a\\..\\escape.gguf"])
def test_a_hubs_path_leads_nowhere_else(hub: FakeHub, home: Path, path: str) -> None:
    hub.repositories["evil/paths"] = {path: b"GGUF"}
    with pytest.raises(ModelError, match="no file that can be fetched"):
        catalog.pull("hf:evil/paths", hub=asks(hub))


def test_a_search_asks_the_hub_only_if_it_is_told_to(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["model", "search", "qwen3", "4b"]) == 0
    assert "qwen3-4b" in capsys.readouterr().out and not hub.asked
    assert cli.main(["model", "search", "--hub", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "hf:some/Tiny-Model-GGUF" in said and "12,345" in said and "mit" in said


def test_a_name_that_nobody_knows_says_what_can_be_done(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["model", "pull", "llama3"]) == 1
    said = capsys.readouterr().err
    assert "did you mean llama-3.2-1b-instruct" in said
    assert "model search WORDS" in said and "hf:OWNER/REPO" in said and "--model FILE" in said


def test_the_catalog_is_a_dozen_models_and_more_each_of_a_family_that_is_computed_here() -> None:
    from quietchoir.core.models import families

    sizes = [known.parameters for known in KNOWN_MODELS]
    assert len(sizes) >= 12 and min(sizes) < 0.5 and max(sizes) > 12
    folder = Path(families.__file__).parent
    assert {known.family for known in KNOWN_MODELS} <= {one.stem for one in folder.glob("*.py")}
    for known in KNOWN_MODELS:
        bits = known.bytes * 8 / (known.parameters * 1e9)
        assert (8 if known.quantisation == "Q8_0" else 4.5) < bits < 9, known.name
