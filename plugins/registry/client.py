"""A registry as this node sees it: a static folder, over HTTP or on a disk, that it trusts by the
digest of a root file and by nothing else.

Knows where it lies and how bytes come from there. python-tuf's `Updater` decides what is believed:
thresholds, versions, expiry, lengths and hashes are checked there, in the specification's order.
Always: bytes are counted while they come, a server that is slow or endless is left, and nothing of
what came is used before it was checked; what a node saw once it does not forget, so an older state
is refused.

Not covered: who runs the server learns this node's address and which files it takes; a mirror on a
disk learns nothing.
Source: the TUF specification 1.0.31, section 5.
"""

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
from tuf.api import exceptions as tuf
from tuf.api.metadata import Delegations, Metadata, Root, Snapshot, TargetFile, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from ...core import paths, tables
from ...core.errors import ConfigError, RegistryError
from .. import installing
from ..manifest import ID
from . import keys, listing, lock, log, review
from .listing import INDEX, LOG, POLICY, REVOCATIONS, Listing
from .lock import ABOUT, FORGOTTEN, registries
from .log import LogHead
from .review import Review, ReviewPolicy

# of the days until rules and revocations end (`repository.DAYS`), so many must be left for a node
# that knows of no state: what is held back from it is at most half as old as it could be
FRESH_DAYS = 45
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,38}")
STATE = re.compile(r"[0-9]{1,9}:[0-9a-f]{64}")  # version of targets.json, an entry of the log
HEAD = "log-head.json"
PIECE = 64 << 10  # bytes read at once
MAX_BYTES = 32 << 20  # of an index, a log, a review record, rules
QUIET_S = 10.0  # a server that sends nothing for so long is left
BEGINNING_S, LEAST_RATE = 5.0, 10_000  # after so long it must have sent so many bytes a second
LIMITS = UpdaterConfig(
    max_root_rotations=64,
    root_max_length=256_000,
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=2_000_000,
    app_user_agent=None,
)


class FolderFetcher(FetcherInterface):
    """Files of a folder: a mirror, or a registry on this disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = (self.folder / unquote(urlsplit(url).path).lstrip("/")).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise tuf.DownloadHTTPError(f"{path}: no such file", 404)
        return self._pieces(path)

    def _pieces(self, path: Path) -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece
        except OSError as error:
            raise tuf.DownloadError(f"{path}: {error.strerror}") from error


class HttpFetcher(FetcherInterface):
    """Files of a server. No redirects, no cookies, no compression: bytes are counted as they come.

    Args:
        patience_s: seconds before a rate is asked for.
    """

    def __init__(self, patience_s: float = BEGINNING_S, quiet_s: float = QUIET_S) -> None:
        self.patience_s = patience_s
        self._client = httpx.Client(
            timeout=quiet_s,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "quietchoir"},
        )

    def _fetch(self, url: str) -> Iterator[bytes]:
        began, count = time.monotonic(), 0
        try:
            with self._client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise tuf.DownloadHTTPError(
                        f"{url}: {response.status_code}", response.status_code
                    )
                for piece in response.iter_raw():
                    count += len(piece)
                    took = time.monotonic() - began
                    if took > self.patience_s and count < LEAST_RATE * took:
                        raise tuf.SlowRetrievalError(f"{url}: {count} bytes in {took:.0f} s")
                    yield piece
        except httpx.TimeoutException as error:
            raise tuf.SlowRetrievalError(f"{url}: nothing came any more") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise tuf.DownloadError(f"{url}: {error}") from error

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()


@dataclass(frozen=True, slots=True)
class Trust:
    """What the owner said once, in `registry.json`."""

    url: str  # http(s), or a folder
    root_sha256: str  # of the root file that trust began with


@dataclass(frozen=True, slots=True)
class Release:
    """One release, as its author and the reviewers signed it."""

    registry: str
    listing: Listing
    target: TargetFile
    reviews: tuple[Review, ...]
    policy: ReviewPolicy

    @property
    def sha256(self) -> str:
        """Of the archive."""
        return str(self.target.hashes["sha256"])

    @property
    def shortfall(self) -> str:
        """Why it may not be installed; empty if it may, as far as its registry's words go."""
        return self.shortfall_of(self.listing)

    def shortfall_of(self, said: Listing) -> str:
        """The same, by what its archive asks for."""
        return review.shortfall(self.policy, said, self.sha256, self.reviews)


def trusted() -> list[str]:
    """Their names."""
    return sorted(path.parent.name for path in registries().glob(f"*/{ABOUT}"))


def trust(name: str, url: str, root_sha256: str, state: str = "") -> None:
    """Trust a registry from now on, if its root file is the one that the owner means.

    Args:
        state: what it must show at least, as `plugin registry publish` printed it; without it
            whoever stole the online key can hide from a new node what is newer.

    Raises:
        ConfigError: a name or digest that is none, or one of this name is trusted already.
        RegistryError: no such root file there, or the registry does not verify; nothing stays.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a registry: small letters, digits and hyphens")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", root_sha256):
        raise ConfigError("--root-sha256 takes the 64 hexadecimal digits of a root file's SHA-256")
    if state and not STATE.fullmatch(state):
        raise ConfigError("--state takes what `plugin registry publish` printed: NUMBER:DIGEST")
    if name in trusted():
        raise ConfigError(f"{name} is trusted already; first: plugin registry forget {name}")
    url = (
        url if urlsplit(url).scheme in ("http", "https") else str(Path(url).expanduser().resolve())
    )
    held = paths.private_folder(registries())
    least = seen_before(name, root_sha256.lower())
    with tempfile.TemporaryDirectory(dir=held, prefix=".new-") as made:
        folder = Path(made) / name
        folder.mkdir(mode=0o700)
        about = {"url": url, "root_sha256": root_sha256.lower()}
        paths.write_atomically(folder / ABOUT, json.dumps(about).encode())
        content = root_file(name, url, root_sha256)
        paths.write_atomically(folder / "root.json", content)
        with opened(name, folder=folder) as registry:
            registry.refresh()
            version, _, entry = state.partition(":")
            registry.require(max(least, int(version or 0)), entry)
            if not state:
                registry.require_fresh()
            entries, _ = registry.chain()
            stopped = registry.rows(REVOCATIONS, "revocations")
            rejected = registry.rejected(entries)
        lock.remember(name, stopped, rejected)
        shutil.rmtree(registries() / name, ignore_errors=True)  # what `forget` left
        folder.rename(registries() / name)


def seen_before(name: str, root_sha256: str) -> int:
    """The version of its revocations when it was forgotten; 0 if it never was.

    Raises:
        ConfigError: what is installed came from another registry of this name.
    """
    try:
        before = json.loads((registries() / name / FORGOTTEN).read_bytes())
        if before["root_sha256"] in (root_sha256, ""):
            return int(before["version"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{registries() / name}: damaged ({error}); use another name") from None
    if mine := sorted(one.id for one in lock.read().origins.values() if one.registry == name):
        raise ConfigError(
            f"{', '.join(mine)} came from another registry called {name}; use another name, or "
            f"first: plugin remove"
        )
    return 0


def root_file(name: str, url: str, root_sha256: str) -> bytes:
    """The root file with this digest. Raises: RegistryError: none there has it."""
    fetcher = fetcher_for(url)
    try:
        with understood(name):
            for file in ("1.root.json", "root.json"):
                where = f"{base(url)}metadata/{file}"
                content = fetcher.download_bytes(where, LIMITS.root_max_length)
                if hashlib.sha256(content).hexdigest() == root_sha256.lower():
                    return content
    finally:
        if isinstance(fetcher, HttpFetcher):
            fetcher.close()
    raise RegistryError(
        f"{url}: no root file there has the SHA-256 {root_sha256}; it is another registry, or "
        f"somebody stands between: ask its owner for the digest again"
    )


def forget(name: str) -> None:
    """Trust it no longer; what is installed from it stays, and what it revoked stays stopped, also
    if it is trusted again. Raises: ConfigError: as `folder_of`.
    """
    folder = folder_of(name)
    paths.write_atomically(folder / FORGOTTEN, json.dumps(last_seen(folder)).encode())
    (folder / ABOUT).unlink()
    for path in folder.iterdir():
        if path.name != FORGOTTEN:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def last_seen(folder: Path) -> dict[str, Any]:
    """What a registry may not go back behind, if it is trusted again; nothing if it is damaged."""
    try:
        root = json.loads((folder / ABOUT).read_bytes())["root_sha256"]
        version = json.loads((folder / "metadata/targets.json").read_bytes())["signed"]["version"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {"root_sha256": "", "version": 0}
    return {"root_sha256": root, "version": version}


def folder_of(name: str) -> Path:
    """Where a registry is remembered. Raises: ConfigError: none of this name is trusted."""
    if name not in trusted():
        raise ConfigError(
            f"no registry called {name!r} is trusted; trusted are: {', '.join(trusted()) or 'none'}"
            f" (plugin registry trust NAME URL --root-sha256 DIGEST)"
        )
    return registries() / name


def base(url: str) -> str:
    """What paths inside a registry are added to."""
    return f"{url.rstrip('/')}/" if urlsplit(url).scheme in ("http", "https") else "folder:///"


def fetcher_for(url: str) -> FetcherInterface:
    """How its bytes come."""
    return HttpFetcher() if urlsplit(url).scheme in ("http", "https") else FolderFetcher(Path(url))


@contextmanager
def opened(
    name: str, *, folder: Path | None = None, fetcher: FetcherInterface | None = None
) -> Iterator["RegistryClient"]:
    """A registry for a while, this process alone: the library wants its files for itself.

    Raises:
        ConfigError: as `folder_of`. RegistryError: what was remembered of it is damaged, or
        another process looks at it for longer than a minute.
    """
    where = folder or folder_of(name)
    with (where / ".lock").open("w") as held, understood(name):
        for _ in range(600):
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise RegistryError(f"{name}: another process looks at it; try again later")
        client = RegistryClient(name, where, fetcher)
        try:
            yield client
        finally:
            if isinstance(client.fetcher, HttpFetcher):
                client.fetcher.close()


class RegistryClient:
    """One look at a registry; `opened` makes it."""

    def __init__(self, name: str, folder: Path, fetcher: FetcherInterface | None) -> None:
        self.name, self.folder = name, folder
        try:
            self.about = tables.fill(
                Trust, json.loads((folder / ABOUT).read_bytes()), f"{folder}: "
            )
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RegistryError(f"{folder}: damaged ({error}); forget and trust it again") from None
        self.metadata = folder / "metadata"
        self.fetcher = fetcher or fetcher_for(self.about.url)
        (folder / "targets").mkdir(exist_ok=True)
        self.metadata.mkdir(exist_ok=True)
        self._chained: tuple[list[dict[str, Any]], LogHead] | None = None
        self._updater = Updater(
            str(self.metadata),
            f"{base(self.about.url)}metadata/",
            str(folder / "targets"),
            f"{base(self.about.url)}targets/",
            self.fetcher,
            LIMITS,
            bootstrap=self._bootstrap(),
        )

    def _bootstrap(self) -> bytes:
        """The newest root that was believed; at first the one that the owner gave a digest of."""
        known = self.metadata / "root.json"
        if known.exists():
            return known.read_bytes()
        content = (self.folder / "root.json").read_bytes()
        if hashlib.sha256(content).hexdigest() != self.about.root_sha256:
            raise RegistryError(f"{self.folder}: its root file was changed; trust it again")
        return content

    def refresh(self) -> None:
        """Look what is new there, and remember what was revoked.

        Raises:
            RegistryError: what is there is not to be believed; the last good state stays.
        """
        self._updater.refresh()
        self._chained = None
        if self.folder.parent == registries():  # not one that is still to be trusted
            lock.remember(self.name, self.rows(REVOCATIONS, "revocations"))

    def file(self, path: str) -> bytes:
        """A target's bytes, checked; fetched if they are not here. Raises: RegistryError: none."""
        target = self._updater.get_targetinfo(path)
        if target is None:
            raise RegistryError(f"{self.name}: has no {path}; its owner must publish it again")
        return self._bytes(target)

    def _bytes(self, target: TargetFile, most: int = MAX_BYTES) -> bytes:
        if target.length > most:
            raise RegistryError(
                f"{self.name}: {target.path} has {target.length} bytes; at most {most} are fetched"
            )
        where = self._held(target)
        if self._updater.find_cached_target(target, str(where)) is None:
            fresh = where.with_name(f"{where.name}.new")
            self._updater.download_target(target, str(fresh))
            fresh.replace(where)
        content = where.read_bytes()
        target.verify_length_and_hashes(content)
        return content

    def _held(self, target: TargetFile) -> Path:
        return self.folder / "targets" / target.path.replace("/", "%2F")

    def rows(self, path: str, field: str) -> list[dict[str, Any]]:
        """A list in one of its JSON files. Raises: RegistryError: it is none."""
        try:
            found = json.loads(self.file(path))[field]
            return [dict(row) for row in found]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RegistryError(f"{self.name}: {path} is no list of {field} ({error})") from None

    def search(self, words: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the index in which every word stands."""
        wanted = [word.casefold() for word in words]
        found = []
        for row in listing.read_index(self.rows(INDEX, "plugins"), f"{self.name}: {INDEX}"):
            if all(word in f"{row.id} {row.description}".casefold() for word in wanted):
                found.append({**asdict(row), "registry": self.name})
        return found

    def releases(self, plugin_id: str) -> dict[str, TargetFile]:
        """Version → target, as the plugin's author signed them; empty if there is no such author or
        plugin.
        """
        author = plugin_id.partition("/")[0]
        role = f"author.{author}"
        if not ID.fullmatch(plugin_id) or self._delegations(author) is None:
            return {}
        entries = Metadata[Targets].from_file(str(self.metadata / f"{role}.json")).signed.targets
        found = {}
        for path, target in entries.items():
            version = path.rpartition("/")[2].removesuffix(".zip")
            if listing.is_version(version) and path == listing.path_of(plugin_id, version):
                found[version] = target
        return found

    def release(self, plugin_id: str, version: str = "") -> Release:
        """One release, by default the newest that was not revoked, with its reviews.

        Raises:
            RegistryError: there is none, or what it says of itself does not fit where it lies.
        """
        found = self.releases(plugin_id)
        if not found or (version and version not in found):
            here = ", ".join(sorted(found, key=listing.order)[-20:])
            advice = f"versions there: {here}" if found else "plugin search WORD finds what is"
            raise RegistryError(
                f"{self.name}: no {' '.join((plugin_id, version)).rstrip()}; {advice}"
            )
        version = version or max(self._sound(plugin_id, found), key=listing.order)
        target = found[version]
        said = listing.read(target.custom, f"{self.name}: {target.path}")
        if (said.id, said.version) != (plugin_id, version):
            raise RegistryError(f"{self.name}: {target.path} says it is {said.id} {said.version}")
        known = self.author_keys(plugin_id.partition("/")[0])
        if said.author_key not in known:
            raise RegistryError(
                f"{self.name}: {plugin_id} names an author's key that the registry does not know"
            )
        if len(known) > 1:  # which of them signed is what tells an author's next release
            raise RegistryError(
                f"{self.name}: {len(known)} keys speak for the author of {plugin_id}; its owners "
                f"must admit one: plugin registry admit"
            )
        path = listing.review_path(plugin_id, version)
        record = self._updater.get_targetinfo(path)
        reviews = review.read(self._bytes(record), path) if record is not None else []
        policy = review.policy_of(self.file(POLICY), f"{self.name}: {POLICY}")
        about = plugin_id, version, str(target.hashes["sha256"])
        reviews = self._with_rejections(about, reviews, policy)
        return Release(self.name, said, target, tuple(reviews), policy)

    def _sound(self, plugin_id: str, versions: Collection[str]) -> list[str]:
        """Those that were not revoked; if all were, all of them: the reason is told of one."""
        sound = [one for one in versions if not lock.revoked(plugin_id, one)]
        return sound or list(versions)

    def _with_rejections(
        self, about: tuple[str, str, str], reviews: list[Review], policy: ReviewPolicy
    ) -> list[Review]:
        """What the record says, and the rejections of the log in place of what it says of them: the
        record is the online key's, which could leave one out. So could a copy of the log that is
        older than what this node saw.
        """
        entries, _ = self.chain()
        once = [row for row in lock.rejections(about[2]) if row not in entries]
        rows = {row.get("key"): row for row in log.standing([*entries, *once], *about)}
        rejected = {key: rows[key] for key in policy.reviewers.values() if key in rows}
        kept = [
            one
            for one in reviews
            if one.key not in rejected
            or (one.id, one.version, one.sha256, one.verdict) == (*about, "reject")
        ]
        missing = {*rejected} - {one.key for one in kept}
        where = f"{self.name}: {LOG}"
        return kept + [review.logged(rejected[key], where) for key in sorted(missing)]

    def author_keys(self, author: str) -> list[str]:
        """The keys that speak for an author, as the registry's owners signed them."""
        found = self._delegations(author)
        if found is None or found.roles is None:
            return []
        return [keys.shown(found.keys[keyid]) for keyid in found.roles[f"author.{author}"].keyids]

    def _delegations(self, author: str) -> Delegations | None:
        """Who speaks for the authors of this one's group; None: nobody published in this name."""
        role = f"author.{author}"
        snapshot = Metadata[Snapshot].from_file(str(self.metadata / "snapshot.json")).signed
        if f"{role}.json" not in snapshot.meta:
            return None
        # No release is called so: the walk reads, and checks, the author's whole role.
        self._updater.get_targetinfo(listing.path_of(f"{author}/none", "none"))
        path = self.metadata / f"authors-{listing.group(author)}.json"
        found = Metadata[Targets].from_file(str(path)).signed.delegations
        return found if found is not None and role in (found.roles or {}) else None

    def archive(self, release: Release) -> bytes:
        """Its bytes, checked against what its author signed. Raises: RegistryError: others."""
        with understood(self.name):
            content = self._bytes(release.target, installing.MAX_ARCHIVE_BYTES)
            for other in (self.folder / "targets").glob("*.zip*"):  # one is kept, not all of them
                if other != self._held(release.target):
                    other.unlink()
            return content

    def log(self) -> tuple[list[dict[str, Any]], LogHead]:
        """All decisions, each signature checked. Raises: RegistryError: as `chain`, or a signature
        that does not fit.
        """
        entries, head = self.chain()
        for row in entries:
            keys.signer_of(log.KIND, row)
        return entries, head

    def version(self) -> int:
        """Of rules and revocations."""
        path = self.metadata / "targets.json"
        return int(Metadata[Targets].from_file(str(path)).signed.version)

    def require(self, version: int, entry: str = "") -> None:
        """Refuse what is older than a state that is known of it from elsewhere.

        Args:
            entry: SHA-256 of a line that its log must have; empty: none.

        Raises:
            RegistryError: older rules or revocations, or a log without that entry.
        """
        lines = {hashlib.sha256(one).hexdigest() for one in self.file(LOG).split(b"\n")}
        if self.version() < version or (entry and entry not in lines):
            raise RegistryError(
                f"{self.name}: it shows an older state than is known of it, or another; somebody "
                f"holds news back: ask its owner"
            )

    def require_fresh(self) -> None:
        """Refuse rules and revocations that their holders signed long ago: of them nobody who knows
        nothing else can tell whether newer ones are held back.

        Raises:
            RegistryError: they are older than holders are to let them become.
        """
        signed = Metadata[Targets].from_file(str(self.metadata / "targets.json")).signed
        left = signed.expires - datetime.now(UTC)
        if left < timedelta(days=FRESH_DAYS):
            raise RegistryError(
                f"{self.name}: its rules and revocations were signed so long ago that newer ones "
                f"may be held back ({left.days} days are left of them, a new node wants "
                f"{FRESH_DAYS}); ask its owner for its state, and trust it with --state, or to "
                f"sign anew (plugin registry renew)"
            )

    def chain(self) -> tuple[list[dict[str, Any]], LogHead]:
        """All decisions in their order, remembered as the beginning of whatever comes later;
        whoever relies on one checks its signature.

        Raises:
            RegistryError: it does not chain, or is not the one that was seen before.
        """
        if self._chained is not None:
            return self._chained
        content = self.file(LOG)
        entries, head = log.chained(content, f"{self.name}: {LOG}")
        kept = self.folder / HEAD
        if kept.exists():
            seen = LogHead(**json.loads(kept.read_bytes()))
            if not log.extends(content, seen):
                raise RegistryError(
                    f"{self.name}: its log does not go on from the {seen.count} entries seen once; "
                    f"somebody rewrote it. Keep {self.folder}, and ask others which one they see"
                )
        paths.write_atomically(
            kept, json.dumps({"count": head.count, "digest": head.digest}).encode()
        )
        if self.folder.parent == registries():
            lock.remember(self.name, (), self.rejected(entries))
        self._chained = entries, head
        return self._chained

    def rejected(self, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rejections among entries that those signed who are reviewers now."""
        policy = review.policy_of(self.file(POLICY), f"{self.name}: {POLICY}")
        reviewers = {*policy.reviewers.values()}
        rows = [
            row
            for row in entries
            if (row.get("what"), row.get("verdict")) == ("review", "reject")
            and row.get("key") in reviewers
            and row.get("id")
            and row.get("sha256")
        ]
        for row in rows:
            keys.signer_of(log.KIND, row)
        return rows


@contextmanager
def understood(name: str) -> Iterator[None]:
    """What the library and the system say, as one sentence that says what to do."""
    try:
        yield
    except tuf.ExpiredMetadataError as error:
        why = "its signed state has expired: an old mirror, or somebody who holds news back"
        raise RegistryError(f"{name}: {why} ({error}); nothing was changed") from error
    except tuf.BadVersionNumberError as error:
        why = "it shows an older state than this node has seen"
        raise RegistryError(f"{name}: {why} ({error}); nothing was changed") from error
    except tuf.UnsignedMetadataError as error:
        why = "not signed by as many of its keys as it takes"
        raise RegistryError(f"{name}: {why} ({error}); nothing was changed") from error
    except (tuf.LengthOrHashMismatchError, tuf.DownloadLengthMismatchError) as error:
        why = "a file is not the one that was signed"
        raise RegistryError(f"{name}: {why} ({error}); nothing was changed") from error
    except tuf.SlowRetrievalError as error:
        raise RegistryError(f"{name}: the server is too slow ({error}); try a mirror") from error
    except tuf.DownloadError as error:
        said = error.__cause__ or error
        raise RegistryError(f"{name}: cannot be reached ({said}); nothing was changed") from error
    except tuf.RepositoryError as error:
        raise RegistryError(f"{name}: cannot be believed ({error}); nothing was changed") from error
    except OSError as error:
        raise RegistryError(f"{name}: {error}; free the disk or mend the folder") from error


def root_digest(folder: Path) -> str:
    """SHA-256 of a registry's first root file, for whoever is to trust it. Raises: ConfigError:
    there is none yet.
    """
    path = folder / "metadata" / "1.root.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; first: plugin registry publish") from None
    try:
        Metadata[Root].from_bytes(content)
    except DeserializationError as error:
        raise ConfigError(f"{path}: no root file ({error}); restore the registry") from None
    return hashlib.sha256(content).hexdigest()
