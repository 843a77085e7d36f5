"""A hub of models, asked over HTTPS: what it has, what a repository holds, and files of it.

Knows the four requests of Hugging Face's hub that this product makes; any hub that answers them
alike will do. Knows nothing of models.
Always: the owner's token goes to the hub itself and to no host that it points to; an answer is read
up to a limit; a file is taken up where it was broken off, and nobody believes it before it was
hashed.
Not covered: that a hub tells the truth about a file's hash.

Own code where `huggingface_hub` exists, because that one begins each download anew.

Source: https://huggingface.co/docs/hub/api
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ... import log
from ...errors import IntegrityError, ModelError, ModelNotFoundError, PullStoppedError
from ..files.lfs_pointer import LONGEST, pointer_words

if TYPE_CHECKING:
    import httpx

HUB = "https://huggingface.co"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
LARGEST_ANSWER = 32 << 20  # bytes of JSON
CHUNK = 1 << 20
CONNECT_S, SILENCE_S = 15.0, 60.0
ATTEMPTS = 5  # in a row that brought nothing
PAUSE_S = 0.5  # before the second attempt; twice as long before each further one
LOOPBACK = ("127.0.0.1", "localhost", "::1")
logger = log.get("hub")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFile:
    """One file of a repository, with one of the two hashes that a hub tells."""

    path: str
    size: int  # bytes
    sha256: str = ""  # of a large file
    git_blob: str = ""  # of a small one: git's SHA-1 of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What a hub tells of one repository."""

    name: str  # OWNER/REPO
    commit: str
    licence: str  # as its card says; "" where it says nothing
    gated: bool  # the hub asks for consent before it gives files out
    files: Sequence[RepositoryFile]
    family: str = ""  # of its GGUF files, as the hub read them


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRow:
    """One line of a search."""

    name: str
    licence: str
    downloads: int
    gated: bool


class HubClient:
    """One hub, as one owner."""

    def __init__(self, address: str = HUB, token: str | None = None) -> None:
        """`token`: None: the one that this machine's owner gave `huggingface_hub`."""
        self.address = address.rstrip("/")
        self._token = token

    def search(self, words: str, most: int = 20) -> Sequence[HubRow]:
        """Repositories with GGUF files, those that are fetched most first.

        Raises:
            ModelError: the hub does not answer, or says what no hub says.
        """
        query = {"search": words, "filter": "gguf", "sort": "downloads", "direction": "-1"}
        told = self._json("/api/models", query | {"limit": str(most), "full": "true"})
        if not isinstance(told, list):
            raise self._odd("a search", told)
        rows = [row for row in told if isinstance(row, Mapping) and isinstance(row.get("id"), str)]
        return [
            HubRow(
                name=row["id"],
                licence=licence_of(row),
                downloads=row["downloads"] if isinstance(row.get("downloads"), int) else 0,
                gated=bool(row.get("gated")),
            )
            for row in rows[:most]
        ]

    def repository(self, name: str, revision: str = "main") -> Repository:
        """What a repository holds.

        Raises:
            ModelNotFoundError: there is none. ModelError: as `search`, or it is not for this owner.
        """
        path = f"/api/models/{quote(name)}/revision/{quote(revision, safe='')}"
        told = self._json(path, {"blobs": "true"}, name)
        if not isinstance(told, Mapping) or not isinstance(told.get("siblings"), list):
            raise self._odd(name, told)
        read_by_hub = told.get("gguf")
        return Repository(
            name=name,
            commit=told["sha"] if isinstance(told.get("sha"), str) else revision,
            licence=licence_of(told),
            gated=bool(told.get("gated")),
            files=[file for row in told["siblings"] if (file := file_of(row)) is not None],
            family=str(read_by_hub.get("architecture", ""))
            if isinstance(read_by_hub, Mapping)
            else "",
        )

    def download(
        self,
        repository: str,
        commit: str,
        file: RepositoryFile,
        into: Path,
        progress: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        """Bring one file, going on after what of it lies in `into` already.

        Args:
            progress: called with the bytes that lie there.
            stop: looked at between two chunks.

        Raises:
            ModelError: it did not come whole; what came stays for the next try.
            PullStopped: the owner changed their mind; what came stays.
        """
        import httpx

        where = f"{self.address}/{quote(repository)}/resolve/{quote(commit, safe='')}"
        url = f"{where}/{quote(file.path)}"
        failed = 0
        while (before := size_of(into)) < file.size or not into.exists():
            go_on(stop)
            try:
                self._attempt(url, repository, file, into, progress, stop)
                if size_of(into) < file.size:
                    raise httpx.RemoteProtocolError(
                        f"it ended after {size_of(into)} of {file.size} bytes"
                    )
            except httpx.TransportError as error:
                failed = 1 if size_of(into) > before else failed + 1
                nothing = isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol)
                if failed >= ATTEMPTS or (nothing and not size_of(into)):
                    raise self._silent(file.path, error) from error
                logger.info("%s: taken up again after %s", file.path, error)
                stop.wait(PAUSE_S * 2 ** (failed - 1))

    def _attempt(
        self,
        url: str,
        repository: str,
        file: RepositoryFile,
        into: Path,
        progress: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        begun = size_of(into)
        # what a compressing proxy would make of it is not what was hashed
        headers = {"Accept-Encoding": "identity"}
        if begun:
            headers["Range"] = f"bytes={begun}-"
        with self._client() as client, client.stream("GET", url, headers=headers) as answer:
            if answer.status_code == 416:  # it has no more than lies here, whatever that is
                into.unlink()
                raise IntegrityError(
                    f"{file.path}: {begun} bytes came, the hub said {file.size} and now has no "
                    f"more; they did not stay, pull again"
                )
            self._check(answer, repository)
            goes_on = answer.status_code == 206 and starts_at(answer, begun)
            whole = answer.headers.get("Content-Length", "")
            if whole.isdigit() and int(whole) + begun * goes_on != file.size:
                told = pointer_words(next(answer.iter_raw(LONGEST + 1), b""))
                into.unlink(missing_ok=True)
                raise IntegrityError(
                    f"{file.path}: what came is {told}"
                    if told
                    else f"{file.path}: came with {int(whole) + begun * goes_on} bytes, expected "
                    f"{file.size}; it did not stay, pull again"
                )
            with into.open("ab" if goes_on else "wb") as out:
                held = begun if goes_on else 0
                # as it comes: what a chunk of a set size would wait for is lost with a connection
                for chunk in answer.iter_raw():
                    # one byte too many is enough for the check to refuse it
                    out.write(chunk[: file.size + 1 - held])
                    held = min(held + len(chunk), file.size + 1)
                    progress(held)
                    go_on(stop)
                    if held > file.size:
                        return

    def _json(self, path: str, query: Mapping[str, str], what: str = "") -> Any:
        import httpx

        try:
            with (
                self._client() as client,
                client.stream("GET", self.address + path, params=query) as answer,
            ):
                self._check(answer, what)
                told = bytearray()
                for chunk in answer.iter_bytes(CHUNK):
                    told += chunk
                    if len(told) > LARGEST_ANSWER:
                        raise ModelError(
                            f"{self.address} answered with more than {LARGEST_ANSWER >> 20} MB; "
                            f"check the address of the hub ([models] hub)"
                        )
            return json.loads(told)
        except httpx.HTTPError as error:
            raise self._silent(what or "the search", error) from error
        except (ValueError, RecursionError) as error:
            raise self._odd(what or "a search", None) from error

    @contextmanager
    def _client(self) -> Iterator["httpx.Client"]:
        import httpx

        headers = {"User-Agent": "quietchoir"}
        if token := self._told_token():
            # httpx takes it off a request that is sent on to another host
            headers["Authorization"] = f"Bearer {token}"
        limits = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        with httpx.Client(headers=headers, follow_redirects=True, timeout=limits) as client:
            yield client

    def _told_token(self) -> str:
        """The owner's token; never in clear beyond this machine."""
        parts = urlsplit(self.address)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            return ""
        if self._token is None:
            from huggingface_hub import get_token

            self._token = get_token() or ""
        return self._token

    def _check(self, answer: "httpx.Response", what: str) -> None:
        """Raises: ModelError: the answer is a refusal."""
        status = answer.status_code
        if status < 400:
            return
        own = urlsplit(self.address).hostname == answer.url.host
        page = f"{self.address}/{what}"
        if status in (401, 403) and own:
            have = "the token that was sent is not enough" if self._token else "no token was sent"
            raise ModelError(
                f"{what or self.address}: the hub wants to know who asks ({status}, {have}): "
                f"there is no such repository, or its files are given out after consent only. "
                f"Look at {page}, agree there to what it asks, and set HF_TOKEN to a token of your "
                f"account"
            )
        if status == 404:
            raise ModelNotFoundError(
                f"{what}: the hub at {self.address} has no such repository, revision or file; "
                f"quietchoir model search --hub WORDS finds names"
            )
        if status == 429:
            raise ModelError(f"{self.address}: too many requests for now (429); try again later")
        raise ModelError(
            f"{what or self.address}: {answer.url.host} answered {status}; try again later, and if "
            f"it stays so look at {page}"
        )

    def _silent(self, what: str, error: Exception) -> ModelError:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        return ModelError(
            f"{what}: did not come from {self.address} ({reason:.200}); check the network and "
            f"[models] hub; what came stays, and the next try goes on after it"
        )

    def _odd(self, what: str, told: Any) -> ModelError:
        found = f"{type(told).__name__}" if told is not None else "no JSON"
        return ModelError(
            f"{self.address}: answered {found} about {what}, not what Hugging Face's hub says; "
            f"check [models] hub"
        )


def file_of(row: Any) -> RepositoryFile | None:
    """One file of a hub's list; None: no name or no size."""
    if not isinstance(row, Mapping):
        return None
    path, size, lfs = row.get("rfilename"), row.get("size"), row.get("lfs")
    if not isinstance(path, str) or not isinstance(size, int):
        return None
    sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else ""
    blob = row.get("blobId")
    return RepositoryFile(
        path=path,
        size=size,
        sha256=sha256 if isinstance(sha256, str) else "",
        git_blob=blob if isinstance(blob, str) else "",
    )


def licence_of(row: Mapping[str, Any]) -> str:
    """A repository's licence: of its card, by its name where it has one, or of its tags."""
    card = row.get("cardData")
    said = card.get("license") if isinstance(card, Mapping) else None
    if said == "other" and isinstance(card, Mapping) and isinstance(card.get("license_name"), str):
        said = card["license_name"]
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, str):
        return said
    tags = row.get("tags")
    named = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return next((tag.partition(":")[2] for tag in named if tag.startswith("license:")), "")


def starts_at(answer: "httpx.Response", begun: int) -> bool:
    """Whether a partial answer begins where it was asked to."""
    return bool(re.match(rf"bytes {begun}-", answer.headers.get("Content-Range", "")))


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def go_on(stop: threading.Event) -> None:
    """Raises: PullStoppedError: the owner changed their mind."""
    if stop.is_set():
        raise PullStoppedError("the pull was stopped; what came stays, and the next one goes on")
