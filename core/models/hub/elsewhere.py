"""Models that other programs on this machine brought: Ollama's and LM Studio's, used in place.

Knows where those programs keep their files. Reads them, and nothing here writes, moves or deletes.
Always: a name means the same file as long as its program keeps it; a file that is not whole, by
the size that its program wrote down, is not found.

Source: Ollama's `docs/` and manifests as it writes them (OCI image manifests with its own media
types); LM Studio's documentation of its folder of models.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..files.gguf import SPLIT

OLLAMA, LM_STUDIO = "ollama:", "lmstudio:"
WEIGHTS = "application/vnd.ollama.image.model"
ADAPTER = "application/vnd.ollama.image.adapter"
LICENCE = "application/vnd.ollama.image.license"
TAGGED = re.compile(r"^(ollama:.+?):latest(?=:|$)")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"
LARGEST_MANIFEST = 1 << 20  # bytes
DEEPEST = 3  # folders below LM Studio's own: publisher/repository/file


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModel:
    """One model that another program keeps."""

    name: str  # "ollama:NAME:TAG" or "lmstudio:PUBLISHER/REPOSITORY/FILE", without its ending
    program: Literal["Ollama", "LM Studio"]
    path: Path  # of its file; of a split one, the first part
    size: int  # bytes of all its files
    licence: Path | None = None  # its text, as Ollama keeps it
    refused: str = ""  # why it cannot be used here


def models() -> Iterator[ForeignModel]:
    """All that are on this machine, by name."""
    yield from sorted((*ollama(), *lm_studio()), key=lambda model: model.name)


def find(name: str) -> ForeignModel | None:
    """The one of this name; Ollama's `:latest` may be left out."""
    plain = plain_name(name)
    return next((model for model in models() if model.name == plain), None)


def plain_name(name: str) -> str:
    """A name, perhaps with an adapter behind it, without the tag `:latest` of Ollama's models."""
    return TAGGED.sub(r"\1", name)


def ollama() -> Iterator[ForeignModel]:
    """Ollama's: a manifest each, whose blobs hold weights, template and licence."""
    seen = set()
    for root in ollama_folders():
        for manifest in sorted((root / "manifests").glob("*/**/*")):
            found = read_manifest(manifest, root)
            if found is not None and found.name not in seen:
                seen.add(found.name)
                yield found


def ollama_folders() -> list[Path]:
    """Where Ollama keeps models: the owner's word, else its own and its system service's."""
    if given := os.environ.get("OLLAMA_MODELS"):
        return [Path(given).expanduser()]
    return [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]


def read_manifest(path: Path, root: Path) -> ForeignModel | None:
    """What one manifest names; None: it is none, or its weights are not here whole."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_MANIFEST:
            return None
        layers = json.loads(path.read_bytes())["layers"]
        by_kind = {layer["mediaType"]: layer for layer in reversed(layers)}
        weights = blob(by_kind.get(WEIGHTS), root)
        if weights is None or weights.stat().st_size != by_kind[WEIGHTS]["size"]:
            return None
        size, licence = weights.stat().st_size, blob(by_kind.get(LICENCE), root)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    refused = "Ollama lays an adapter over it, which is not read here" if ADAPTER in by_kind else ""
    return ForeignModel(
        name=OLLAMA + ollama_name(path.relative_to(root / "manifests").parts),
        program="Ollama",
        path=weights,
        size=size,
        licence=licence,
        refused=refused,
    )


def ollama_name(parts: tuple[str, ...]) -> str:
    """As `ollama list` shows it, without `:latest`: registry, namespace, model and tag, the usual
    first two left out.
    """
    *head, model, tag = parts
    if head[:1] == [REGISTRY]:
        head = [part for part in head[1:] if part != LIBRARY]
    return "/".join([*head, model]) + ("" if tag == LATEST else f":{tag}")


def blob(layer: Any, root: Path) -> Path | None:
    """The file of one layer, under either spelling of its name; None: it is not here."""
    digest = layer.get("digest") if isinstance(layer, Mapping) else None
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        return None
    places = (root / "blobs" / digest.replace(":", "-"), root / "blobs" / digest)
    return next((place for place in places if place.is_file()), None)


def lm_studio() -> Iterator[ForeignModel]:
    """LM Studio's: GGUF files in PUBLISHER/REPOSITORY/."""
    seen = set()
    for root in lm_studio_folders():
        for path in sorted(root.glob("*/" * (DEEPEST - 1) + "*.gguf")):
            try:
                parts = split_parts(path)
                size = sum(part.stat().st_size for part in parts or ())
            except OSError:  # a link to where this user may not look
                continue
            if parts is None:
                continue
            stem = SPLIT.fullmatch(path.name)
            name = stem["stem"] if stem else path.stem
            folder = path.parent.relative_to(root).as_posix()
            name = f"{LM_STUDIO}{folder}/{name}"
            if name not in seen:
                seen.add(name)
                yield ForeignModel(name=name, program="LM Studio", path=path, size=size)


def lm_studio_folders() -> list[Path]:
    """Where LM Studio keeps models: its two usual places, and the one that its owner chose."""
    found = [Path.home() / ".lmstudio/models", Path.home() / ".cache/lm-studio/models"]
    for settings in (".lmstudio/settings.json", ".cache/lm-studio/settings.json"):
        try:
            chosen = json.loads((Path.home() / settings).read_bytes())["downloadsFolder"]
            found.append(Path(chosen).expanduser())
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError):
            continue
    return list(dict.fromkeys(found))


def split_parts(path: Path) -> list[Path] | None:
    """A model's files, from the first of them; None: `path` is another part, or no language model,
    or a part is missing.
    """
    if path.name.startswith("mmproj") or not path.is_file():
        return None
    split = SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    if int(split["number"]) != 1:
        return None
    parts = sorted(path.parent.glob(f"{glob.escape(split['stem'])}-*-of-{split['count']}.gguf"))
    return parts if len(parts) == int(split["count"]) else None
