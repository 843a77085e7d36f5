"""Other programs' models: found by the names that their owner knows, used in place, left as they
are.
"""

import hashlib
import json
from pathlib import Path

import pytest

from quietchoir import cli
from quietchoir.core.errors import ModelError, ModelNotFoundError
from quietchoir.core.models.hub import catalog, elsewhere

WEIGHTS = b"GGUF" + b"w" * 100


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has neither."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QUIETCHOIR_MODELS", raising=False)
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path / "user"


def put(root: Path, name: str, content: bytes = WEIGHTS, **layers: bytes) -> Path:
    """One model as Ollama keeps it; returns the file of its weights."""
    described, blobs = [], root / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for kind, held in {"model": content, **layers}.items():
        digest = hashlib.sha256(held).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(held)
        media = f"application/vnd.ollama.image.{kind}"
        described.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(held)})
    manifest = root / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": described}))
    return blobs / f"sha256-{hashlib.sha256(content).hexdigest()}"


def test_ollamas_models_have_the_names_that_it_lists_and_are_used_where_they_lie(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = user / ".ollama/models"
    library = "registry.ollama.ai/library"
    path = put(root, f"{library}/llama3.2/latest", license=b"\n  LLAMA 3.2 COMMUNITY LICENSE\n...")
    put(root, f"{library}/qwen3/0.6b", b"GGUF another")
    put(root, "registry.ollama.ai/ann/own/latest", b"GGUF of ann")
    put(root, "hf.co/some/Repo-GGUF/Q4_K_M", b"GGUF of a hub")
    assert [model.name for model in elsewhere.models()] == [
        "ollama:ann/own",
        "ollama:hf.co/some/Repo-GGUF:Q4_K_M",
        "ollama:llama3.2",
        "ollama:qwen3:0.6b",
    ]
    assert catalog.find("ollama:llama3.2") == catalog.find("ollama:llama3.2:latest") == path
    assert cli.main(["model", "pull", "ollama:llama3.2"]) == 0
    assert "used where it lies" in capsys.readouterr().out
    assert cli.main(["model", "list"]) == 0
    said = capsys.readouterr().out
    assert "ollama:llama3.2" in said and "LLAMA 3.2 COMMUNITY LICENSE" in said
    with pytest.raises(
        ModelError, match=r"not brought by quietchoir \(Ollama\); `ollama rm llama3\.2`"
    ):
        catalog.remove("ollama:llama3.2")
    assert path.read_bytes() == WEIGHTS
    with pytest.raises(
        ModelNotFoundError, match="Ollama has it here already: --model ollama:llama3"
    ):
        catalog.offer("llama3")


def test_what_of_ollamas_is_not_whole_or_not_plain_is_not_taken(user: Path) -> None:
    root = user / ".ollama/models"
    cut = put(root, "registry.ollama.ai/library/cut/latest", b"GGUF cut short")
    cut.write_bytes(b"GGUF")
    put(root, "registry.ollama.ai/library/tuned/latest", b"GGUF tuned", adapter=b"lora")
    (root / "manifests/registry.ollama.ai/library/odd").mkdir()
    for name, content in (("a", b"{"), ("b", b"[]"), ("c", b'{"layers": 7}'), ("d", b"{}")):
        (root / "manifests/registry.ollama.ai/library/odd" / name).write_bytes(content)
    escape = {"mediaType": elsewhere.WEIGHTS, "digest": "sha256:../../../secret", "size": 4}
    (root / "manifests/registry.ollama.ai/library/odd/e").write_text(
        json.dumps({"layers": [escape]})
    )
    assert [model.name for model in elsewhere.models()] == ["ollama:tuned"]
    with pytest.raises(ModelError, match="lays an adapter over it"):
        catalog.find("ollama:tuned")


def test_lm_studios_folders_are_found_the_owners_own_too_and_parts_are_one_model(
    user: Path, tmp_path: Path
) -> None:
    chosen = tmp_path / "big disk"
    (user / ".lmstudio").mkdir(parents=True)
    (user / ".lmstudio/settings.json").write_text(json.dumps({"downloadsFolder": str(chosen)}))
    for path in (
        user / ".lmstudio/models/maker/repo/model-Q4_K_M.gguf",
        user / ".lmstudio/models/maker/repo/mmproj-model-f16.gguf",
        chosen / "maker/split/big-00001-of-00002.gguf",
        chosen / "maker/split/big-00002-of-00002.gguf",
        chosen / "maker/half/big-00001-of-00002.gguf",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(WEIGHTS)
    found = {model.name: model for model in elsewhere.models()}
    assert set(found) == {"lmstudio:maker/repo/model-Q4_K_M", "lmstudio:maker/split/big"}
    assert found["lmstudio:maker/split/big"].size == 2 * len(WEIGHTS)
    assert catalog.find("lmstudio:maker/repo/model-Q4_K_M").read_bytes() == WEIGHTS
    with pytest.raises(ModelError, match=r"\(LM Studio\); delete it there"):
        catalog.remove("lmstudio:maker/repo/model-Q4_K_M")


def test_a_file_that_its_owner_put_into_the_folder_of_models_has_its_name(
    user: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "home/models/Mine-Q8_0.gguf"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(WEIGHTS)
    assert catalog.find("Mine-Q8_0") == mine
    with pytest.raises(ModelError, match=r"put here by hand\); delete .*Mine-Q8_0\.gguf yourself"):
        catalog.remove("Mine-Q8_0")
