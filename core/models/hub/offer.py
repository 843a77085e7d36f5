"""What a pull from a hub would fetch: which files of a repository, under which licence.

Knows how GGUF files are named by their quantisation, and which of them to take where nobody says.
Fetches nothing but the hub's description of the repository.
Always: what is offered has a hash for each file, and names that lead nowhere else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import ModelError, ModelNotFoundError
from ..files.gguf import SPLIT
from .client import HubClient, Repository, RepositoryFile
from .fetch import RemoteFile
from .known_models import is_open

REPOSITORY = re.compile(
    r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?::(?P<file>[^:\\]+))?"
)
# As other programs and the hub's own pages spell it.
SPELLINGS = ("https://huggingface.co/", "huggingface.co/", "https://hf.co/", "hf.co/")
QUANTISATION = re.compile(
    r"(?:^|[-._/])(I?Q\d(?:_\w+)?|TQ\d_\d|MXFP4(?:_MOE)?|BF16|F16|F32)(?=$|[-.])", re.IGNORECASE
)
# Where nobody says: 4 bits, as nearly everybody runs them, then the nearest that there is.
# Source: the trade of size against perplexity in llama.cpp's `quantize` notes.
PREFERRED = (
    *("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    *("Q6_K", "Q8_0", "Q3_K_L", "Q3_K_M", "MXFP4", "Q3_K_S", "IQ3_S", "Q2_K", "BF16", "F16", "F32"),
)
# Of a folder of safetensors: what a loader reads besides tensors.
BESIDE = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "model.safetensors.index.json"),
)
TENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
UNKNOWN = "unknown"  # the licence, where a hub does not say
SHA256, SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOffer:
    """What would be fetched."""

    name: str  # under which it will be known here
    source: str
    licence: str
    files: tuple[RemoteFile, ...]
    page: str = ""  # where a person reads about it, and its licence
    asks: bool = False  # the licence is not open, or unknown: its owner must agree first
    gated: bool = False  # the hub gives it out after consent only
    quantisation: str = ""
    others: tuple[str, ...] = ()  # quantisations that could be had instead
    family: str = ""  # as the hub read it from the file

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


def is_repository(name: str) -> bool:
    """Whether a name leads to a hub."""
    return name.startswith(("hf:", *SPELLINGS))


def offered(name: str, hub: HubClient, quantisation: str = "") -> PullOffer:
    """What a hub has under hf:OWNER/REPO[@REVISION][:FILE].

    Args:
        quantisation: taken if there is one and the name says nothing.

    Raises:
        ModelNotFoundError: no such repository or file.
        ModelError: not such a name; no file that is of use; or the hub does not answer.
    """
    plain = name
    for spelling in SPELLINGS:
        if name.startswith(spelling):
            plain = "hf:" + name.removeprefix(spelling).rstrip("/")
    found = REPOSITORY.fullmatch(plain)
    if found is None:
        raise ModelError(
            f"{name}: expected hf:OWNER/REPO, hf:OWNER/REPO:FILE or hf:OWNER/REPO:Q4_K_M, "
            f"perhaps with @REVISION behind REPO"
        )
    repository = hub.repository(found["name"], found["revision"] or "main")
    files, took = choose(repository, found["file"], quantisation)
    first = PurePosixPath(files[0].path)
    split = SPLIT.fullmatch(first.name)
    stem = split["stem"] if split else first.stem
    own_name = stem if first.suffix == ".gguf" else found["name"].partition("/")[2]
    return PullOffer(
        name=slug(own_name),
        source=f"hf:{repository.name}@{repository.commit}",
        licence=repository.licence or UNKNOWN,
        files=tuple(checked(file) for file in files),
        page=f"{hub.address}/{repository.name}",
        asks=not is_open(repository.licence),
        gated=repository.gated,
        quantisation=took,
        others=tuple(sorted({kind for kind in kinds(repository) if kind} - {took})),
        family=repository.family,
    )


def choose(
    repository: Repository, file: str | None, quantisation: str
) -> tuple[Sequence[RepositoryFile], str]:
    """The files of one model, and its quantisation as they are named.

    Raises:
        ModelNotFoundError: no such file. ModelError: nothing to choose from.
    """
    models = gguf_models(repository)
    if not models:
        files = folder_of(repository)
        if file is not None and file not in {one.path for one in files}:
            raise ModelNotFoundError(
                f"{repository.name} has no {file}, nor any GGUF file; without :{file} its folder "
                f"of safetensors would come, {sum(one.size for one in files) / 1e6:.0f} MB"
            )
        return files, ""
    if file is not None:
        named = [one for one in models if file in (one[0].path, PurePosixPath(one[0].path).name)]
        named = named or [one for one in models if kind_of(one[0]) == file.upper()]
        if not named:
            offers = ", ".join(sorted({kind_of(one[0]) or one[0].path for one in models}))
            raise ModelNotFoundError(
                f"{repository.name} has no {file}; it has {offers[:400]} (or name a whole file)"
            )
        return named[0], kind_of(named[0][0])
    by_kind = {kind_of(one[0]): one for one in reversed(models)}
    for kind in (quantisation, *PREFERRED):
        if kind in by_kind:
            return by_kind[kind], kind
    return models[0], kind_of(models[0][0])


def gguf_models(repository: Repository) -> list[list[RepositoryFile]]:
    """Each GGUF model's files, the parts of a split one in order; no projectors of images, no
    matrices of importance.
    """
    whole, parts = [], dict[tuple[str, str], list[RepositoryFile]]()
    for file in sorted(repository.files, key=lambda file: file.path):
        name = PurePosixPath(file.path).name
        if not name.endswith(".gguf") or name.startswith("mmproj") or "imatrix" in name:
            continue
        if (split := SPLIT.fullmatch(name)) is None:
            whole.append([file])
        else:
            folder = str(PurePosixPath(file.path).parent / split["stem"])
            parts.setdefault((folder, split["count"]), []).append(file)
    return whole + [files for (_, count), files in parts.items() if len(files) == int(count)]


def folder_of(repository: Repository) -> list[RepositoryFile]:
    """The files of a folder of safetensors. Raises: ModelError: it is none."""
    files = [
        file
        for file in repository.files
        if file.path in BESIDE or TENSORS.fullmatch(file.path) is not None
    ]
    paths = {file.path for file in files}
    tensors = any(TENSORS.fullmatch(path) for path in paths)
    if not tensors or not {"config.json", "tokenizer.json"} <= paths:
        raise ModelError(
            f"{repository.name} holds no GGUF file, nor config.json, tokenizer.json and "
            f"model.safetensors; look for another upload of the model: quietchoir model search "
            f"--hub {repository.name.partition('/')[2]}"
        )
    return files


def kinds(repository: Repository) -> set[str]:
    """Quantisations that a repository has."""
    return {kind_of(files[0]) for files in gguf_models(repository)}


def kind_of(file: RepositoryFile) -> str:
    """The quantisation that a file is named by; "" where it says none."""
    name = PurePosixPath(file.path).name.removesuffix(".gguf")
    split = SPLIT.fullmatch(PurePosixPath(file.path).name)
    found = QUANTISATION.findall(split["stem"] if split else name)
    return str(found[-1]).upper() if found else ""


def checked(file: RepositoryFile) -> RemoteFile:
    """A file that may be fetched. Raises: ModelError: no hash, no size, or a path that leads out
    of its repository.
    """
    parts = PurePosixPath(file.path).parts
    if file.path.startswith("/") or ".." in parts or "\\" in file.path or file.size < 1:
        raise ModelError(f"{file.path[:200]!r}: no file that can be fetched; do not use this hub")
    sha256 = file.sha256 if SHA256.fullmatch(file.sha256) else ""
    git_blob = file.git_blob if SHA1.fullmatch(file.git_blob) else ""
    if not sha256 and not git_blob:
        raise ModelError(
            f"{file.path}: the hub tells no hash of it, so that nobody could check what comes; "
            f"download it by other means and give the file (--model FILE)"
        )
    return RemoteFile(file.path, Path(parts[-1]), sha256, file.size, git_blob)


def slug(text: str) -> str:
    """A name of our own kind."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "model"
