"""Licences of paid plugins: a token that its vendor signs, checked here without any network.

Knows tokens, the node's own key and the clock. Knows nothing of money: the shop is the vendor's.
Always: a token is bound to one plugin, a range of versions, one node's key and a span of days; a
token of another kind, plugin, node or vendor, and a changed one, is refused; nothing is reported to
anybody.

Not covered: an owner who changes this program, or who copies the node's private key. A clock that
is set back is noticed against the latest time that this node wrote down, not before that.
"""

import base64
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from ...core import paths, tables
from ...core.errors import ConfigError, RegistryError
from ..manifest import DIGEST, ID, VERSION, Manifest
from . import keys
from .listing import order

KIND = "licence"
DAY_S = 86_400
SLACK_S = DAY_S  # a clock may go back by so much: time zones, a battery that was changed
PREFIX = "qcl1."


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceToken:
    """What a vendor signed."""

    plugin: str
    first: str  # version that it is good for
    below: str  # version that it is not good for any more
    node: str  # public key of the node that it was sold to
    begins: int  # seconds since 1970
    ends: int
    grace_days: int  # that it works on after its end, with a warning
    key: str  # of the vendor
    signature: str

    def __post_init__(self) -> None:
        if not ID.fullmatch(self.plugin):
            raise ValueError(f"{self.plugin!r} is no plugin's name")
        if not (VERSION.fullmatch(self.first) and VERSION.fullmatch(self.below)):
            raise ValueError("versions are three numbers, for example 1.0.0")
        if not 0 <= self.grace_days <= 90:
            raise ValueError("a grace period is 0 to 90 days")
        if not 0 <= self.begins < self.ends < 1 << 37:
            raise ValueError("it ends after it begins, in seconds since 1970")
        if not DIGEST.fullmatch(self.node):
            raise ValueError("node is the 64 hexadecimal digits of `plugin licence node`")


def folder() -> Path:
    """Where tokens and the node's key lie."""
    return paths.home() / "licences"


def node_key(*, make: bool = False) -> str:
    """This node's public key, for vendors to bind licences to.

    Args:
        make: it is made if there is none.

    Raises:
        ConfigError: there is none.
    """
    path = folder() / "node.key"
    if make and not path.exists():
        paths.private_folder(folder())
        keys.make(path, None)
    return keys.shown(keys.load(path).public_key)


def issue(vendor: CryptoSigner, **said: str | int) -> str:
    """A token, for the vendor's shop to hand out. Raises: ConfigError: it would be none."""
    return encode(keys.signed(vendor, KIND, said))


def encode(statement: object) -> str:
    """One line that can be sent by mail."""
    packed = base64.urlsafe_b64encode(keys.canonical(statement)).decode().rstrip("=")
    return PREFIX + packed


def decode(token: str) -> LicenceToken:
    """A token, its signature checked against the key that it names.

    Raises:
        ConfigError: it is none, or was changed.
    """
    try:
        packed = token.strip().removeprefix(PREFIX)
        row = json.loads(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
        found = tables.fill(LicenceToken, row, "licence: ")
        keys.signer_of(KIND, row)
        return found
    except (
        *(ValueError, TypeError, AttributeError, RecursionError),
        *(ConfigError, RegistryError),
    ) as error:
        raise ConfigError(
            f"this is no licence, or it was changed ({error}); ask its vendor"
        ) from None


def place(token: str) -> LicenceToken:
    """Keep a token that its owner bought. Raises: ConfigError: as `decode`."""
    found = decode(token)
    target = paths.private_folder(folder() / found.plugin.partition("/")[0])
    name = f"{found.plugin.partition('/')[2]}.token"
    paths.write_atomically(target / name, token.strip().encode() + b"\n", mode=0o600)
    return found


def missing(terms: Manifest, now: float | None = None) -> str:
    """Why a paid plugin may not run here; empty if it may, or is free."""
    licence = terms.head.license
    if licence.kind == "free":
        return ""
    where = f"; sold at {licence.shop}" if licence.shop else ""
    path = folder() / f"{terms.id}.token"
    if not path.is_file():
        return f"{terms.id} costs {licence.price} and no licence of it is here{where}"
    try:
        token = decode(path.read_text())
        mine = node_key()
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        return f"{path}: {error}"
    return refusal(terms, token, mine, passed(time.time() if now is None else now))


def refusal(terms: Manifest, token: LicenceToken, node: str, now: "NodeClock") -> str:
    """Why a genuine token does not do; empty if it does."""
    head = terms.head
    if token.key != head.license.vendor_key:
        return f"the licence of {terms.id} is another vendor's"
    if token.plugin != terms.id:
        return f"the licence is for {token.plugin}, not for {terms.id}"
    if token.node != node:
        return f"the licence of {terms.id} was sold to another node"
    if not order(token.first) <= order(head.version) < order(token.below):
        return f"the licence of {terms.id} is for {token.first} to below {token.below}"
    if now.set_back:
        return f"the clock was set back by {now.set_back // DAY_S + 1} days; set it right"
    if now.seconds < token.begins - SLACK_S:
        return f"the licence of {terms.id} is not good yet"
    if now.seconds >= token.ends + token.grace_days * DAY_S:
        return f"the licence of {terms.id} ended; renew it"
    return ""


@dataclass(frozen=True, slots=True)
class NodeClock:
    """Now, and how far behind the latest time that was seen."""

    seconds: float
    set_back: int = 0


def passed(now: float) -> NodeClock:
    """The time, held against the latest one that this node wrote down; it is written down."""
    path = folder() / "clock.json"
    try:
        latest = float(json.loads(path.read_bytes())["latest"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        latest = 0.0
    if now < latest - SLACK_S:
        return NodeClock(now, int(latest - now))
    if now > latest + 60:
        paths.private_folder(folder())
        paths.write_atomically(path, json.dumps({"latest": int(now)}).encode(), mode=0o600)
    return NodeClock(now)


def told(token: LicenceToken) -> dict[str, object]:
    """What a token says, without its signature."""
    return {name: value for name, value in asdict(token).items() if name != "signature"}
