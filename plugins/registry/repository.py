"""A registry's folder, for whoever runs it, reviews in it or publishes through it.

Knows TUF's roles and files. Does no cryptography of its own: python-tuf and securesystemslib do.

    root                signs who the others are; a threshold of keys kept offline
    targets             a threshold of keys kept offline: rules, revocations, and these delegations
    ├── authors-0 … f   the same keys: which key speaks for which author; by a digest of the name
    │   └── author.NAME the author's key: the author's releases, nothing else
    ├── reviews-0 … f   the online key: review records, each signed by its reviewer
    └── records         the online key: index and log
    snapshot, timestamp the online key

Always: what is changed is a draft until `publish`, which refuses a role below its threshold, or a
release that lacks reviews; a client sees all of it or nothing of it, as `timestamp.json` is written
last; versions only grow.

Not covered: a stolen online key can hold news back: from a node that saw them never, from one that
did not for as long as what it shows is not expired, from a new one unless it was told a state
(`state`). It can neither bring a release nor an approval.
Source: the TUF specification 1.0.31; PEP 458 for dividing metadata.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from securesystemslib.exceptions import StorageError
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError as TufError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from ...core import paths
from ...core.errors import ConfigError, RegistryError
from .. import installing, manifest
from ..manifest import ID, Manifest
from . import keys, listing, log, names, review, scan
from .listing import GROUPS, INDEX, LOG, POLICY, REVOCATIONS, Listing
from .log import LogHead
from .review import Review, ReviewPolicy

RECORDS = "records"
# Until a role expires: what the online key could show an older one of ends sooner.
DAYS = {"timestamp": 7, "snapshot": 30, "targets": 90, "authors": 90}
LONG_DAYS = 365  # all others
COMPACT = JSONSerializer(compact=True)


class PluginRepository:
    """A registry's folder.

    Args:
        now: the time; another one in tests.
        drafts: what is drafted there counts; else what clients see.
    """

    def __init__(self, folder: Path, now: datetime | None = None, *, drafts: bool = True) -> None:
        self.folder = folder
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self.draft = folder / "draft"
        if not self.draft.is_dir() and not self.metadata.is_dir():
            raise ConfigError(f"{folder}: no registry; plugin registry init makes one")
        self.now = now or datetime.now(UTC)
        self._roles: dict[str, Metadata[Any]] = {}
        self._published: dict[str, int] = {}
        self._drafted: set[str] = set()
        self._touched: set[str] = set()  # of them, those that are not written down yet
        self._listings: dict[tuple[str, str], Listing] = {}
        self._load_versions(drafts)

    @classmethod
    def init(
        cls,
        folder: Path,
        *,
        root: Sequence[CryptoSigner],
        targets: Sequence[CryptoSigner],
        online: CryptoSigner,
        thresholds: tuple[int, int] = (0, 0),
        now: datetime | None = None,
    ) -> "PluginRepository":
        """A new registry, as a draft: `publish` makes it one that clients can trust.

        Args:
            thresholds: of root and targets; 0: more than half of their keys.

        Raises:
            ConfigError: the folder is not empty, or a threshold that cannot be met.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: not empty; name a new folder")
        paths.make_folder(folder / "draft")
        for role, signers, threshold in zip(
            ("root", "targets"), (root, targets), thresholds, strict=True
        ):
            known = {signer.public_key.keyid for signer in signers}
            if not known or not 0 <= threshold <= len(known):
                raise ConfigError(f"{role} has {len(known)} keys; a threshold of {threshold}?")
        made = cls(folder, now)
        made._begin(root, targets, online, thresholds)
        made._log(targets[0], "init")
        made._drafted |= set(made._roles)
        made.sign([*root, *targets, online])
        return made

    def _begin(
        self,
        root: Sequence[CryptoSigner],
        targets: Sequence[CryptoSigner],
        online: CryptoSigner,
        thresholds: tuple[int, int],
    ) -> None:
        top = Root(version=1, expires=self._expiry("root"), consistent_snapshot=True)
        for role, signers in {
            "root": root,
            "targets": targets,
            "snapshot": [online],
            "timestamp": [online],
        }.items():
            for signer in signers:
                top.add_key(signer.public_key, role)
        for role, threshold in zip(("root", "targets"), thresholds, strict=True):
            top.roles[role].threshold = threshold or len(top.roles[role].keyids) // 2 + 1
        self._roles["root"] = Metadata(top)
        offline = {signer.public_key.keyid: signer.public_key for signer in targets}
        self._roles["targets"] = Metadata(self._new_targets("targets"))
        self._roles["targets"].signed.delegations = Delegations(
            keys={**offline, online.public_key.keyid: online.public_key}, roles={}
        )
        self._delegate(list(offline), top.roles["targets"].threshold, online.public_key.keyid)
        for role in self._delegated():
            self._roles[role] = Metadata(self._new_targets(role))
        for letter in GROUPS:
            self._roles[f"authors-{letter}"].signed.delegations = Delegations({}, {})
        self._put("targets", POLICY, review_rules(ReviewPolicy()))
        self._put("targets", REVOCATIONS, dumped({"revocations": []}))

    def _delegate(self, offline: list[str], threshold: int, online: str) -> None:
        """Who signs the roles below `targets`."""
        roles = self._roles["targets"].signed.delegations.roles
        roles.clear()
        for letter in GROUPS:
            name = f"authors-{letter}"
            paths = [f"{letter}/*/*/*"]
            roles[name] = DelegatedRole(name, offline, threshold, True, paths=paths)
        for letter in GROUPS:
            name = f"reviews-{letter}"
            paths = [f"reviews/{letter}/*/*/*"]
            roles[name] = DelegatedRole(name, [online], 1, True, paths=paths)
        roles[RECORDS] = DelegatedRole(RECORDS, [online], 1, True, paths=[INDEX, LOG])

    def _delegated(self) -> list[str]:
        return list(self._roles["targets"].signed.delegations.roles)

    def _new_targets(self, role: str) -> Targets:
        return Targets(version=1, expires=self._expiry(role))

    # who may speak

    def admit(self, author: str, key: Key, signers: Sequence[CryptoSigner]) -> None:
        """Let an author's key speak for the author's name; a second time: another key does now.

        Raises:
            ConfigError: no publisher's name. RegistryError: it resembles another's.
        """
        if not ID.fullmatch(f"{author}/x"):
            raise ConfigError(f"{author!r} is no publisher's name: small letters, digits, hyphens")
        self._require_distinct(f"{author}/")
        role, group = f"author.{author}", f"authors-{listing.group(author)}"
        delegator = self.change(group).signed
        before = delegator.delegations.roles.get(role)
        pattern = [f"{listing.group(author)}/{author}/*/*"]
        delegator.delegations.roles[role] = DelegatedRole(role, [], 1, True, paths=pattern)
        for keyid in before.keyids if before is not None else ():
            if not any(keyid in other.keyids for other in delegator.delegations.roles.values()):
                del delegator.delegations.keys[keyid]
        delegator.add_key(key, role)
        if before is not None and role in {*self._published, *self._drafted}:
            self.change(role)  # the new key signs what the old one signed
        self._log(signers[0], "author", author=author, holder=keys.shown(key))
        self._keep(signers)

    def set_policy(self, rules: ReviewPolicy, signers: Sequence[CryptoSigner]) -> None:
        """Who reviews, and how many it takes."""
        for holder in rules.reviewers.values():
            keys.public(holder)
        self._put("targets", POLICY, review_rules(rules))
        self._log(signers[0], "policy", sha256=hashlib.sha256(review_rules(rules)).hexdigest())
        self._keep(signers)

    def rotate(
        self, role: str, fresh: Sequence[Key], signers: Sequence[CryptoSigner], threshold: int = 0
    ) -> None:
        """Give a top-level role (root, targets, or online for snapshot and timestamp) other keys.

        A threshold of old and one of new root keys must sign, now or by `sign`, before `publish`.
        """
        root = self.change("root").signed
        for name in ("snapshot", "timestamp") if role == "online" else (role,):
            for keyid in list(root.roles[name].keyids):
                root.revoke_key(keyid, name)
            for key in fresh:
                root.add_key(key, name)
            root.roles[name].threshold = threshold or (
                1 if role == "online" else len(fresh) // 2 + 1
            )
        if role != "root":
            self._redelegate(root)
        self._log(signers[0], "rotate", role=role, holders=[keys.shown(key) for key in fresh])
        self._keep(signers)

    def _redelegate(self, root: Root) -> None:
        """After another choice of keys: all that the old ones signed is signed anew."""
        held = root.roles["targets"]
        online = root.roles["timestamp"].keyids[0]
        targets = self.change("targets").signed
        targets.delegations.keys = {
            keyid: root.keys[keyid] for keyid in [*held.keyids, online] if keyid in root.keys
        }
        self._delegate(list(held.keyids), held.threshold, online)
        for role in self._delegated():
            self.change(role)

    def renew(self, signers: Sequence[CryptoSigner]) -> list[str]:
        """Draft anew, and sign, what these keys may sign and what would expire within half of its
        time. Returns: those roles.
        """
        mine = []
        for role in sorted({*self._published} - {"snapshot"}):
            held = any(one.public_key.keyid in self._may_sign(role) for one in signers)
            if held and self.ends_soon(role):
                self.change(role)
                mine.append(role)
        if mine:
            self._log(signers[0], "renew", roles=mine)
            self._keep(signers)
        return mine

    def ends_soon(self, role: str) -> bool:
        """Whether half of a role's time is over."""
        half = timedelta(days=days(role) // 2)
        return bool(self.role(role).signed.expires < self.now + half)

    # releases

    def add(self, terms: Manifest, signer: CryptoSigner, commit: str = "") -> Listing:
        """Put a release into the draft, signed by its author.

        A manifest without `author_key` is given the signer's.

        Raises:
            RegistryError: the key is not that author's, the name resembles another's, the version
            is not newer than what is there, or it is wrapped.
        """
        author = terms.id.partition("/")[0]
        role = f"author.{author}"
        found = self._holders(author)
        if signer.public_key.keyid not in found:
            raise RegistryError(
                f"{terms.id}: this key does not speak for {author}; the registry's owner admits "
                f"authors: plugin registry admit"
            )
        if terms.head.command:
            raise RegistryError(f"{terms.id} was wrapped for one node; publish a bundle")
        terms = keyed(terms, keys.shown(signer.public_key))
        if terms.head.author_key != keys.shown(signer.public_key):
            raise RegistryError(
                f"{terms.id}: its manifest names another author_key than the one that signs"
            )
        self._require_distinct(terms.id)
        said = listing.listing_of(terms, commit)
        for older in self.releases(author).values():
            if older.id == said.id and listing.order(older.version) >= listing.order(said.version):
                raise RegistryError(
                    f"{terms.id} {older.version} is there; a release has a newer version than "
                    f"{older.version} and is never changed"
                )
        archive = installing.pack(terms)
        self._put(role, listing.path_of(said.id, said.version), archive, listing.told(said))
        digest = hashlib.sha256(archive).hexdigest()
        self._log(signer, "add", id=said.id, version=said.version, sha256=digest, commit=commit)
        self._keep([signer])
        return said

    def _require_distinct(self, plugin_id: str) -> None:
        other = names.resembled(plugin_id, (*self.ids(), *(f"{one}/" for one in self.authors())))
        if other and plugin_id not in self.policy().names:
            raise RegistryError(
                f"{plugin_id.rstrip('/')} looks like {other.rstrip('/')}, which is another's; "
                f"choose a name that nobody takes for it (plugins/registry/names.py has the rule)"
            )

    def review(self, plugin_id: str, version: str, signer: CryptoSigner, **said: Any) -> Review:
        """A reviewer's word on a release, with what the scan finds in it.

        Args:
            said: verdict, checked, notes, commit, as in `Review`.

        Raises:
            RegistryError: no such release, no reviewer's key, or the author's own.
        """
        entry = self.release(plugin_id, version)
        about = listing.read(entry.custom, entry.path)
        holder = keys.shown(signer.public_key)
        if holder not in self.policy().reviewers.values():
            raise RegistryError("this key is no reviewer's; plugin registry policy names them")
        if holder == about.author_key:
            raise RegistryError(f"{plugin_id}: nobody reviews their own plugin")
        archive = self.content(entry)
        whole = {
            **{"id": plugin_id, "version": version, "sha256": entry.hashes["sha256"]},
            **{"at": self._seconds(), "scanned": scan.SCANNED, **said},
            "found": tuple(scan.scan(installing.unpack(archive))),
        }
        made = review.sign(signer, **whole)
        before = [one for one in self.reviews(plugin_id, version) if one.key != holder]
        path = listing.review_path(plugin_id, version)
        role = f"reviews-{path.split('/')[1]}"
        self._put(role, path, review.written([*before, made]))
        facts = {"verdict": made.verdict, "sha256": made.sha256}
        self._log(signer, "review", id=plugin_id, version=version, **facts)
        self._keep()
        return made

    def revoke(
        self, plugin_id: str, versions: Sequence[str], reason: str, signers: Sequence[CryptoSigner]
    ) -> None:
        """Stop a plugin wherever it is installed.

        Args:
            versions: none: all of them, those to come too.
        """
        if plugin_id not in self.ids():
            raise RegistryError(f"{plugin_id} is not in this registry")
        rows = json.loads(self.content(self.change("targets").signed.targets[REVOCATIONS]))
        said = {"id": plugin_id, "versions": list(versions), "reason": reason}
        rows["revocations"].append({**said, "at": self._seconds()})
        self._put("targets", REVOCATIONS, dumped(rows))
        self._log(signers[0], "revoke", id=plugin_id, versions=list(versions), reason=reason)
        self._keep(signers)

    # drafts

    def change(self, role: str) -> Metadata[Any]:
        """A role that is about to change: one version after the published one, and unsigned."""
        found = self.role(role)
        found.signed.version = self._published.get(role, 0) + 1
        found.signed.expires = self._expiry(role)
        found.signatures.clear()
        self._drafted.add(role)
        self._touched.add(role)
        return found

    def sign(self, signers: Sequence[CryptoSigner]) -> list[str]:
        """Sign every draft that these keys may sign. Returns: roles that still wait for somebody,
        as `waiting`.
        """
        self._touched |= self._drafted
        self._keep(signers)
        return self.waiting()

    def _keep(self, signers: Sequence[CryptoSigner] = ()) -> None:
        """Sign what was changed, as far as these keys may, and write it down."""
        for role in sorted(self._touched):
            found = self.role(role)
            for signer in signers:
                if signer.public_key.keyid in self._may_sign(role):
                    found.sign(signer, append=True)
            path = self.draft / f"{quote(role, '')}.json"
            paths.write_atomically(path, found.to_bytes(COMPACT), durable=False)
        self._touched.clear()

    def waiting(self) -> list[str]:
        """Drafts below their threshold, in words."""
        found = []
        for role in sorted(self._drafted):
            metadata = self.role(role)
            try:
                self._verify(role, metadata)
            except (TufError, ValueError) as error:
                found.append(f"{role}: {error}")
        return found

    def _may_sign(self, role: str) -> set[str]:
        if role == "root":
            before = self._read_root(self._published.get("root", 0))
            old = before.signed.roles["root"].keyids if before is not None else []
            return {*old, *self.role("root").signed.roles["root"].keyids}
        return set(self._delegator(role).signed.get_delegated_role(role).keyids)

    def _verify(self, role: str, metadata: Metadata[Any]) -> None:
        payload, signatures = metadata.signed_bytes, metadata.signatures
        if role == "root" and (before := self._read_root(self._published.get("root", 0))):
            before.signed.verify_delegate("root", payload, signatures)
        self._delegator(role).signed.verify_delegate(role, payload, signatures)

    def _delegator(self, role: str) -> Metadata[Any]:
        if role.startswith("author."):
            return self.role(f"authors-{listing.group(role.removeprefix('author.'))}")
        return self.role(
            "root" if role in ("root", "targets", "snapshot", "timestamp") else "targets"
        )

    def publish(self, online: CryptoSigner) -> None:
        """Show the draft to everybody.

        Raises:
            RegistryError: a role below its threshold, a release that lacks reviews, or not the
            online key. Nothing is published then.
        """
        if online.public_key.keyid not in self.role("root").signed.roles["timestamp"].keyids:
            raise RegistryError("this is not the registry's online key")
        self._require_reviewed()
        self._renew()
        if waiting := self.sign([online]):
            raise RegistryError(
                f"not published: {'; '.join(waiting)}; other keys sign with: plugin registry sign"
            )
        self._log(online, "publish")
        self._put(RECORDS, LOG, (self.draft / LOG).read_bytes())
        self._put(RECORDS, INDEX, dumped({"plugins": self.index()}))
        self._keep([online])
        self._write_out(online)

    def _renew(self) -> None:
        """What the online key signs and would expire within half of its time is signed anew."""
        for role in (*(f"reviews-{letter}" for letter in GROUPS), RECORDS):
            if self.ends_soon(role):
                self.change(role)

    def _require_reviewed(self) -> None:
        rules = self.policy()
        for role in sorted(self._drafted):
            if not role.startswith("author."):
                continue
            published = self._read(role, self._published[role]) if role in self._published else None
            old = published.signed.targets if published is not None else {}
            for path, entry in self.role(role).signed.targets.items():
                if path in old and old[path].hashes == entry.hashes:
                    continue
                if path in old:
                    raise RegistryError(f"{path} was published with other bytes; it is refused")
                said = listing.read(entry.custom, path)
                if path != listing.path_of(said.id, said.version) or role != author_role(said.id):
                    raise RegistryError(f"{role} holds {path}, which is another's; it is refused")
                if entry.length > installing.MAX_ARCHIVE_BYTES:
                    raise RegistryError(
                        f"{path}: no plugin has {entry.length} bytes; it is refused"
                    )
                found = self.reviews(said.id, said.version)
                if short := review.shortfall(rules, said, entry.hashes["sha256"], found):
                    raise RegistryError(f"{said.id} {said.version} is not published: {short}")

    def _write_out(self, online: CryptoSigner) -> None:
        for path in sorted((self.draft / "targets").rglob("*")):
            if path.is_file():
                target = self.targets / path.relative_to(self.draft / "targets")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        meta = dict(self._snapshot().signed.meta) if self._published.get("snapshot") else {}
        for role in sorted(self._drafted - {"root"}):
            metadata = self.role(role)
            self._write(f"{metadata.signed.version}.{quote(role, '')}.json", metadata)
            meta[f"{role}.json"] = MetaFile(metadata.signed.version)
        if "root" in self._drafted:
            root = self.role("root")
            self._write(f"{root.signed.version}.root.json", root)
            self._write("root.json", root)
        version = self._published.get("snapshot", 0) + 1
        snapshot = Metadata(Snapshot(version, expires=self._expiry("snapshot"), meta=meta))
        snapshot.sign(online)
        self._write(f"{version}.snapshot.json", snapshot)
        found = self.metadata / "timestamp.json"
        before = loaded(found).signed.version if found.exists() else 0
        timestamp = Metadata(
            Timestamp(
                before + 1, expires=self._expiry("timestamp"), snapshot_meta=MetaFile(version)
            )
        )
        timestamp.sign(online)
        self._write("timestamp.json", timestamp)  # last: from here on clients see all of it
        shutil.rmtree(self.draft)
        self._load_versions()

    # what is there

    def state(self) -> str:
        """What is published, for nodes that are new: `client.RegistryClient.require`."""
        content = self.content(self._read(RECORDS, self._published[RECORDS]).signed.targets[LOG])
        last = content.rstrip(b"\n").rpartition(b"\n")[2]
        return f"{self._published['targets']}:{hashlib.sha256(last).hexdigest()}"

    def role(self, name: str) -> Metadata[Any]:
        """A role as it stands in the draft, or else as it was published.

        Raises:
            RegistryError: there is none.
        """
        if name not in self._roles:
            path = self.draft / f"{quote(name, '')}.json"
            published = self._published.get(name, 0)
            if name in self._drafted and path.exists():
                self._roles[name] = loaded(path)
            elif name == "root" and (root := self._read_root(published)) is not None:
                self._roles[name] = root
            elif published:
                self._roles[name] = self._read(name, published)
            elif name.startswith("author."):  # admitted, and nothing published yet
                self._roles[name] = Metadata(self._new_targets(name))
            else:
                raise RegistryError(
                    f"{self.folder}: has no role {name}; plugin registry init makes one"
                )
        return self._roles[name]

    def authors(self) -> list[str]:
        """Everybody who may publish here."""
        return sorted(
            role.removeprefix("author.")
            for letter in GROUPS
            for role in self.role(f"authors-{letter}").signed.delegations.roles
        )

    def _holders(self, author: str) -> list[str]:
        group = self.role(f"authors-{listing.group(author)}").signed
        held = group.delegations.roles.get(f"author.{author}")
        return list(held.keyids) if held is not None else []

    def releases(self, author: str) -> dict[str, Listing]:
        """Path → listing, of all that an author published or drafted."""
        if not self._holders(author):
            return {}
        entries = self.role(f"author.{author}").signed.targets
        return {path: self._listing(path, one) for path, one in entries.items()}

    def _listing(self, path: str, entry: TargetFile) -> Listing:
        known = path, entry.hashes["sha256"]
        if known not in self._listings:
            self._listings[known] = listing.read(entry.custom, path)
        return self._listings[known]

    def all_releases(self) -> Iterator[Listing]:
        """Of all authors."""
        for author in self.authors():
            yield from self.releases(author).values()

    def ids(self) -> list[str]:
        """All plugins."""
        return sorted({one.id for one in self.all_releases()})

    def release(self, plugin_id: str, version: str) -> TargetFile:
        """One release's entry. Raises: RegistryError: there is none."""
        author = plugin_id.partition("/")[0]
        path = listing.path_of(plugin_id, version)
        if path not in self.releases(author):
            raise RegistryError(f"{plugin_id} {version} is not in this registry")
        found: TargetFile = self.role(f"author.{author}").signed.targets[path]
        return found

    def reviews(self, plugin_id: str, version: str) -> list[Review]:
        """What reviewers said of it."""
        path = listing.review_path(plugin_id, version)
        entry = self.role(f"reviews-{path.split('/')[1]}").signed.targets.get(path)
        return [] if entry is None else review.read(self.content(entry), path)

    def policy(self) -> ReviewPolicy:
        """The rules as they stand in the draft."""
        return review.policy_of(self.content(self.role("targets").signed.targets[POLICY]), POLICY)

    def index(self) -> list[dict[str, Any]]:
        """What a search looks through: the newest release of each plugin. A hint: what counts at
        an installation is its author's own word.
        """
        newest: dict[str, Listing] = {}
        for one in self.all_releases():
            held = newest.get(one.id)
            if held is None or listing.order(held.version) < listing.order(one.version):
                newest[one.id] = one
        short = ("id", "version", "description", "price", "sensitive")
        return [
            {name: value for name, value in listing.told(one).items() if name in short}
            for _, one in sorted(newest.items())
        ]

    def content(self, entry: TargetFile) -> bytes:
        """A target's bytes, drafted or published. Raises: RegistryError: they are not what the
        entry says.
        """
        for place in (self.draft / "targets", self.targets):
            path = place / hashed(entry.path, entry.hashes["sha256"])
            if path.is_file():
                content = path.read_bytes()
                try:
                    entry.verify_length_and_hashes(content)
                except TufError as error:
                    raise RegistryError(f"{path}: {error}") from None
                return content
        raise RegistryError(f"{self.folder}: the file of {entry.path} is missing")

    # files

    def _put(
        self, role: str, path: str, content: bytes, custom: Mapping[str, Any] | None = None
    ) -> None:
        """A target's bytes into the draft, and its entry into its role."""
        entry = TargetFile.from_data(path, content, ["sha256"])
        if custom:
            entry.unrecognized_fields["custom"] = dict(custom)
        place = self.draft / "targets" / hashed(path, entry.hashes["sha256"])
        paths.write_atomically(place, content, durable=False)
        self.change(role).signed.targets[path] = entry

    def _log(self, signer: CryptoSigner, what: str, **facts: Any) -> None:
        path = self.draft / LOG
        if path.exists():
            before = path.read_bytes()
        elif self._published:
            before = self.content(self.role(RECORDS).signed.targets[LOG])
        else:
            before = b""
        last = before.rstrip(b"\n").rpartition(b"\n")[2]
        head = (
            LogHead(before.count(b"\n"), hashlib.sha256(last).hexdigest())
            if last
            else LogHead(0, log.START)
        )
        more = log.line(signer, head, what, self._seconds(), **facts)
        paths.write_atomically(path, before + more, durable=False)

    def _write(self, name: str, metadata: Metadata[Any]) -> None:
        paths.write_atomically(self.metadata / name, metadata.to_bytes(COMPACT))

    def _load_versions(self, drafts: bool = True) -> None:
        """What clients see now, and which roles are drafted beside it."""
        self._roles.clear()
        self._published.clear()
        self._touched.clear()
        self._drafted = {
            path.stem
            for path in self.draft.glob("*.json")
            if drafts and not path.name.startswith(".")
        }
        if (self.metadata / "timestamp.json").exists():
            timestamp = loaded(self.metadata / "timestamp.json")
            self._published["snapshot"] = timestamp.signed.snapshot_meta.version
            meta = self._snapshot().signed.meta
            for name, entry in meta.items():
                self._published[name.removesuffix(".json")] = entry.version
            numbers = [int(path.name.split(".")[0]) for path in self.metadata.glob("*.root.json")]
            self._published["root"] = max(numbers)

    def _snapshot(self) -> Metadata[Snapshot]:
        return self._read("snapshot", self._published["snapshot"])

    def _read(self, role: str, version: int) -> Metadata[Any]:
        return loaded(self.metadata / f"{version}.{quote(role, '')}.json")

    def _read_root(self, version: int) -> Metadata[Any] | None:
        return self._read("root", version) if version else None

    def _expiry(self, role: str) -> datetime:
        return (self.now + timedelta(days=days(role))).replace(microsecond=0)

    def _seconds(self) -> int:
        return int(self.now.timestamp())


def days(role: str) -> int:
    """How long a role's signatures hold; the groups of authors count as one role."""
    return DAYS.get(role.partition("-")[0], LONG_DAYS)


def loaded(path: Path) -> Metadata[Any]:
    """A role's file. Raises: RegistryError: it cannot be read."""
    try:
        return Metadata.from_file(str(path))
    except (OSError, DeserializationError, StorageError) as error:
        raise RegistryError(f"{path}: cannot be read ({error}); restore the registry") from None


def author_role(plugin_id: str) -> str:
    """The role that may publish a plugin."""
    return f"author.{plugin_id.partition('/')[0]}"


def keyed(terms: Manifest, key: str) -> Manifest:
    """The same plugin, its author's key in its manifest where it names none."""
    if terms.head.author_key:
        return terms
    table = {**json.loads(terms.files[manifest.FILE]), "author_key": key}
    files = {**terms.files, manifest.FILE: json.dumps(table, indent=1).encode() + b"\n"}
    return manifest.parse(files, Path(terms.id))


def review_rules(rules: ReviewPolicy) -> bytes:
    """The rules, for `review.policy_of`."""
    fields = ("reviewers", "needed", "sensitive", "names")
    return dumped({name: getattr(rules, name) for name in fields})


def dumped(value: Any) -> bytes:
    """JSON, the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def hashed(path: str, digest: str) -> str:
    """Where a target's bytes lie, as TUF's consistent snapshots have it."""
    folder, stroke, name = path.rpartition("/")
    return f"{folder}{stroke}{digest}.{name}"
