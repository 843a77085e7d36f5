"""Who looked at a release, at what, and with which verdict.

Knows records and the rules that count them. Knows nothing of where they lie.
Always: a record speaks of one archive by its SHA-256 and is signed by its reviewer; nobody's record
counts twice, nor an author's of their own plugin; a rejection that stands, in the record or in the
log, outweighs any approval.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from securesystemslib.signer import CryptoSigner

from ...core import tables
from ...core.errors import ConfigError, RegistryError
from . import keys, log
from .listing import Listing

KIND = "review"
END_OF_TIME = 1 << 37  # seconds since 1970 that a calendar can show
# The checklist: docs/review-checklist.md says what each of them asks.
WORD = re.compile(r"[a-z-]{1,40}")
CHECKS = ("source", "commit", "permissions", "tools", "data", "start", "scan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One reviewer's word on one archive."""

    id: str
    version: str
    sha256: str  # of the archive
    verdict: Literal["approve", "reject"]
    at: int  # seconds since 1970
    key: str
    signature: str
    commit: str = ""  # what the reviewer compared the archive with
    checked: tuple[str, ...] = ()  # of CHECKS
    scanned: str = ""  # what the automatic scan looked for
    found: tuple[str, ...] = ()  # by it
    notes: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.at < END_OF_TIME:
            raise ValueError(f"at is {self.at}; expected seconds since 1970")
        if any(not WORD.fullmatch(one) for one in self.checked):
            raise ValueError("checked names what is on no checklist")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewPolicy:
    """Rules that the registry's owners signed, with the keys of `targets`."""

    reviewers: dict[str, str] = field(default_factory=dict)  # name → public key
    needed: int = 1  # approvals of any release
    sensitive: int = 2  # of one that asks for a sensitive permission
    names: tuple[str, ...] = ()  # ids that may resemble another's

    def __post_init__(self) -> None:
        if not 0 <= self.needed <= self.sensitive:
            raise ValueError("a sensitive release takes at least as many approvals as any other")


def sign(signer: CryptoSigner, **said: Any) -> Review:
    """A record. Raises: RegistryError: it says what no record says."""
    if unknown := sorted(set(said.get("checked", ())) - set(CHECKS)):
        raise RegistryError(f"{unknown[0]!r} is not on the checklist: {', '.join(CHECKS)}")
    rows = {
        name: list(value) if isinstance(value, tuple) else value for name, value in said.items()
    }
    whole = {name: value for name, value in rows.items() if value}  # as `written` writes it
    return one(keys.signed(signer, KIND, whole), "a review")


def one(row: Any, where: str) -> Review:
    """A record as it was signed. Raises: RegistryError: no record, or its signature does not
    fit.
    """
    try:
        found = tables.fill(Review, row, f"{where}: ")
    except (ConfigError, AttributeError, TypeError) as error:
        raise RegistryError(f"{where}: no review ({str(error)[:400]})") from None
    keys.signer_of(KIND, row)
    return found


def read(content: bytes, where: str) -> list[Review]:
    """All records of one release. Raises: RegistryError: as `one`."""
    try:
        rows = json.loads(content)["reviews"]
        return [one(row, where) for row in rows]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RegistryError(f"{where}: no review record ({error})") from None


def logged(row: Mapping[str, Any], where: str) -> Review:
    """A rejection as its reviewer signed it into the log, where nobody drops it unseen. Raises:
    RegistryError: its signature does not fit.
    """
    keys.signer_of(log.KIND, row)
    said = {name: row.get(name) for name in ("id", "version", "sha256", "verdict", "at")}
    notes = {"notes": "as the log has it; the record does not"}
    try:
        signed = {"key": row["key"], "signature": row["signature"]}
        return tables.fill(Review, {**said, **signed, **notes}, f"{where}: ")
    except (ConfigError, KeyError) as error:
        raise RegistryError(f"{where}: no review ({str(error)[:400]})") from None


def written(reviews: Sequence[Review]) -> bytes:
    """Records, for `read`."""
    rows = [{name: value for name, value in asdict(one).items() if value} for one in reviews]
    return json.dumps({"reviews": rows}, indent=1).encode() + b"\n"


def policy_of(content: bytes, where: str) -> ReviewPolicy:
    """The rules. Raises: RegistryError: they cannot be read."""
    try:
        return tables.fill(ReviewPolicy, json.loads(content), f"{where}: ")
    except (ValueError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise RegistryError(
            f"{where}: no rules ({error}); a newer quietchoir may know them"
        ) from None


def shortfall(
    policy: ReviewPolicy, listing: Listing, sha256: str, reviews: Sequence[Review]
) -> str:
    """Why a release is not reviewed enough to be installed; empty if it is."""
    names = {key: name for name, key in policy.reviewers.items()}
    latest: dict[str, Review] = {}
    for review in sorted(reviews, key=lambda review: review.at):
        about = (review.id, review.version, review.sha256)
        if about == (listing.id, listing.version, sha256) and review.key in names:
            latest[review.key] = review
    latest.pop(listing.author_key, None)  # nobody reviews their own plugin
    for review in latest.values():
        if review.verdict == "reject":
            return f"{names[review.key]} rejected it: {review.notes or 'without a word'}"
    needed = policy.sensitive if listing.sensitive else policy.needed
    if len(latest) < needed:
        why = f", as it asks for {', '.join(listing.sensitive)}" if listing.sensitive else ""
        return f"{len(latest)} of {needed} reviews approve of it{why}"
    return ""
