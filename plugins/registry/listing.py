"""What a registry says of one release of a plugin, before anybody has its archive.

Knows a manifest and the paths of targets. Knows nothing of keys or files.
Always: what is read here was made from the manifest that its author signed, and is compared with
the archive's before anything is installed.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ...core import tables
from ...core.errors import ConfigError, RegistryError
from ..hidden import legible
from ..manifest import ID, VERSION, Manifest, Permissions

# targets of the registry itself
POLICY, REVOCATIONS, INDEX, LOG = "policy.json", "revocations.json", "index.json", "log.jsonl"
GROUPS = "0123456789abcdef"  # roles that authors are divided among, by the digest of their names
# What a plugin may be granted without a second reviewer; anything else, of versions to come too, is
# sensitive.
HARMLESS = frozenset({"config", "optional", "storage_bytes", "private_data"})
MAX_TEXT = 100_000  # characters that are said of one release


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One release, in a target's `custom` field."""

    id: str
    version: str
    description: str
    author_key: str  # 64 hexadecimal digits, also in the manifest
    asks: tuple[str, ...] = ()  # all that it may use, in words
    sensitive: tuple[str, ...] = ()  # permissions that take a second reviewer
    tools: tuple[str, ...] = ()  # "name (effect)"
    licence: str = ""  # SPDX
    price: str = ""  # empty: free
    shop: str = ""  # where a licence is sold
    commit: str = ""  # of the source that the archive was made from

    def __post_init__(self) -> None:
        lists = (*self.asks, *self.sensitive, *self.tools)
        texts = (self.description, self.licence, self.price, self.shop, self.commit, *lists)
        require_plain(self.id, self.version, texts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """A plugin's newest release, as a search is told of it."""

    id: str
    version: str
    description: str = ""
    price: str = ""
    sensitive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_plain(self.id, self.version, (self.description, self.price, *self.sensitive))


def require_plain(plugin_id: str, version: str, texts: Sequence[str]) -> None:
    """Raise ValueError for a name or version that is none, and for texts that are too long or that
    a reader does not see whole.
    """
    if not ID.fullmatch(plugin_id) or not is_version(version):
        raise ValueError(f"{plugin_id[:80]!r} {version[:40]!r} is no plugin's name and version")
    if sum(map(len, texts)) > MAX_TEXT:
        raise ValueError(f"{plugin_id}: says more than {MAX_TEXT} characters of itself")
    if any(legible(text) != text for text in texts):
        raise ValueError(f"{plugin_id}: holds characters that a reader does not see")


def listing_of(terms: Manifest, commit: str = "") -> Listing:
    """What a registry says of this manifest. Raises: RegistryError: what no listing may say."""
    head = terms.head
    granted, nothing = head.permissions, Permissions()
    asked = [
        field.name
        for field in dataclasses.fields(granted)
        if getattr(granted, field.name) != getattr(nothing, field.name)
    ]
    try:
        return Listing(
            id=terms.id,
            version=head.version,
            description=head.description,
            author_key=head.author_key,
            asks=tuple(head.asks()),
            sensitive=tuple(sorted(set(asked) - HARMLESS)),
            tools=tuple(f"{tool.name} ({tool.effect})" for tool in terms.tools),
            licence=head.license.spdx,
            price=head.license.price,
            shop=head.license.shop,
            commit=commit,
        )
    except ValueError as error:
        raise RegistryError(f"{error}; mend its manifest") from None


def told(listing: Listing) -> dict[str, Any]:
    """As JSON; what is empty is left out."""
    said = dataclasses.asdict(listing).items()
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in said}
    return {name: value for name, value in lists.items() if value}


def read(custom: object, where: str) -> Listing:
    """A target's `custom` field. Raises: RegistryError: it is no listing."""
    if not isinstance(custom, Mapping):
        raise RegistryError(f"{where}: says nothing of the plugin; its registry is broken")
    try:
        return tables.fill(Listing, custom, f"{where}: ")
    except ConfigError as error:
        raise RegistryError(f"{str(error)[:400]}; a newer quietchoir may know it") from None


def read_index(rows: Sequence[Mapping[str, Any]], where: str) -> list[IndexRow]:
    """The index; what a row says more is left out. Raises: RegistryError: a row is none."""
    names = {field.name for field in dataclasses.fields(IndexRow)}
    try:
        return [
            tables.fill(IndexRow, {name: row[name] for name in row if name in names}, f"{where}: ")
            for row in rows
        ]
    except ConfigError as error:
        raise RegistryError(f"{str(error)[:400]}; its owner must publish it again") from None


def agree(one: Listing, other: Listing) -> bool:
    """Whether two listings speak of the same plugin; their words for permissions are those of the
    quietchoir that wrote them.
    """
    mine = dataclasses.replace(one, asks=other.asks, sensitive=other.sensitive)
    return mine == other


def is_version(text: object) -> bool:
    """Three numbers that can be compared."""
    return isinstance(text, str) and VERSION.fullmatch(text) is not None


def order(version: str) -> tuple[int, ...]:
    """Versions by age: of three numbers."""
    return tuple(int(part) for part in version.split("."))


def group(author: str) -> str:
    """Which of `GROUPS` an author belongs to."""
    return hashlib.sha256(author.encode()).hexdigest()[0]


def path_of(plugin_id: str, version: str) -> str:
    """The target that holds a release."""
    return f"{group(plugin_id.partition('/')[0])}/{plugin_id}/{version}.zip"


def review_path(plugin_id: str, version: str) -> str:
    """The target that holds its review record."""
    return f"reviews/{group(plugin_id.partition('/')[0])}/{plugin_id}/{version}.json"
