"""A one-time token that lets one node's keys into one federation, without a server and without a
secret at the owner's.

    owner   invite   token: a fresh signing key, number and newest entry of the federation, a name,
                     a date → in private
    node    accept   the node's public card, signed with the token's key                      → to
                     the owner, by any way
    owner   enroll   checks the signature against the invitation's public key, which it wrote down

Knows tokens, answers and the owner's list of open invitations. Knows nothing of the network.
Always: an answer is good for one federation, one name, one card, once, until its date; the chain of
the federation file notes which invitation was used, so no copy of the owner's list brings a used
one back; a file that the node accepts later goes on from the entry that its invitation names.

Covered: somebody who changes or replaces the answer on its way (a card by mail is otherwise
whatever the mailer says it is); an old or a used answer; an invitation to another federation; at
the node, a file of the same name by another owner, or of the same owner on another branch or from
before the invitation.
Not covered: whoever reads the token on its way to the person can answer it first. Then the person's
own answer is refused as used, and the owner revokes the thief.
"""

import base64
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...core import paths, tables
from ...core.errors import AuthenticationError, ConfigError, RosterError
from ...crypto.identity.keys import Identity, PublicIdentity, bind
from ..spec.policy import LAST_MOMENT, NAME, Policy, canonical, check_hex, is_over, require
from .keys import PublicCard
from .roster import Invited, check_goes_on, date, note_invited, read

T = TypeVar("T")
CONTEXT = b"quietchoir invitation v1"
TOKEN, ANSWER = "qci2-", "qca2-"
OLD = ("qci1-", "qca1-")  # named no entry of the chain
OPEN_FILE = "invitations.json"  # the owner's: public keys, names, dates
MAX_CHARACTERS = 4096
DAY_S = 86400
MAX_DAYS = 36500


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What the owner hands over in private."""

    federation: str  # hex
    version: int  # number of the newest entry of the federation's chain
    head: str  # hash of that entry, hex
    title: str  # the federation's name
    name: str  # that the new member will have
    expires: int  # seconds since 1970
    seed: str  # of the invitation's signing key, hex

    def __post_init__(self) -> None:
        for text, what in (
            (self.federation, "federation"),
            (self.head, "head"),
            (self.seed, "seed"),
        ):
            check_hex(text, 32, what)
        require(
            bool(NAME.fullmatch(self.title) and NAME.fullmatch(self.name)),
            f"title = {self.title!r:.80} and name = {self.name!r:.80} must be lower-case letters, "
            f"digits and dashes",
        )
        require(
            self.version >= 1 and 0 < self.expires <= LAST_MOMENT,
            f"version = {self.version} must be at least 1, expires = {self.expires} a moment in "
            f"seconds since 1970",
        )

    def __repr__(self) -> str:
        return f"Token({self.title}, {self.name})"

    @property
    def key(self) -> Identity:
        """The invitation's signing key."""
        return Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.seed)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the node sends back."""

    invitation: str  # the invitation's public key, hex
    card: str
    signature: str
    rank: int = 0  # columns of the adapter that the node can train; 0: all of them

    def __post_init__(self) -> None:
        require(0 <= self.rank < 1 << 16, f"rank = {self.rank} is no number of columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """One invitation that nobody has answered yet."""

    name: str
    expires: int
    head: str  # the chain's newest entry when it was made, hex


def invite(policy: Policy, folder: Path, name: str, days: float) -> str:
    """Make a token and note its public key in `folder`.

    Raises:
        ConfigError: a name that is taken, or no time at all.
    """
    if policy.member(name) is not None:
        raise ConfigError(f"{name} is enrolled already in {policy.name}; choose another name")
    if not 0 < days <= MAX_DAYS:
        raise ConfigError(
            f"an invitation for {days:g} days; give --days above 0 and at most {MAX_DAYS}"
        )
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} must be lower-case letters, digits and dashes")
    seed = Ed25519PrivateKey.generate().private_bytes_raw().hex()
    expires = int(time.time() + days * DAY_S)
    token = Token(
        federation=policy.federation.hex(),
        version=policy.version,
        head=policy.head,
        title=policy.name,
        name=name,
        expires=expires,
        seed=seed,
    )
    keep(
        folder,
        {
            **pending(folder),
            token.key.public.raw.hex(): Open(name=name, expires=expires, head=policy.head),
        },
    )
    return pack(TOKEN, asdict(token))


def accept(
    text: str, card: PublicCard, home: Path, rank: int = 0, file: Path | None = None
) -> tuple[Token, str]:
    """Read a token and answer it with this node's card; the node remembers which federation it was
    invited to.

    Args:
        rank: columns of the adapter that this node can train; 0: all of them.
        file: a federation file that must be of the federation that invites.

    Raises:
        ConfigError: not a token, its time is over, or this node was invited to another federation
        of that name. RosterError: `file` does not go on from what the invitation names. In either
        case nothing was changed.
    """
    token = unpack(TOKEN, text, Token, "invitation")
    if is_over(token.expires):
        raise ConfigError(
            f"this invitation to {token.title} ended on {date(token.expires)}; ask "
            f"its owner for a new one"
        )
    invited = Invited(federation=token.federation, version=token.version, head=token.head)
    if file is not None:
        check_goes_on(read(file), invited, f"{file}: ")
    note_invited(home, token.title, invited)
    identity = token.key
    signed = message(token.federation, token.head, token.name, token.expires, card.text, rank)
    signature = identity.sign(CONTEXT, signed).hex()
    answer = Answer(
        invitation=identity.public.raw.hex(), card=card.text, signature=signature, rank=rank
    )
    return token, pack(ANSWER, {key: value for key, value in asdict(answer).items() if value != 0})


def check(text: str, policy: Policy, folder: Path) -> tuple[str, PublicCard, str, int]:
    """Name, card and public key of an answered invitation, and the rank that the node can train; 0:
    any.

    Raises:
        ConfigError: not an answer.
        RosterError: no open invitation, past its date, or signed over something else.
    """
    answer = unpack(ANSWER, text, Answer, "answer")
    known = pending(folder).get(answer.invitation)
    if known is None:
        raise RosterError(
            "this answers no open invitation of this federation, or one that was "
            "used; make a new one"
        )
    if is_over(known.expires):
        raise RosterError(
            f"the invitation of {known.name} ended on {date(known.expires)}; make a new one"
        )
    signed = message(
        policy.federation.hex(), known.head, known.name, known.expires, answer.card, answer.rank
    )
    try:
        PublicIdentity(bytes.fromhex(answer.invitation)).verify(
            CONTEXT, signed, bytes.fromhex(answer.signature)
        )
    except (AuthenticationError, ValueError):
        raise RosterError(
            f"the answer to {known.name}'s invitation was changed on its way, or answers another "
            f"federation's; ask for it again"
        ) from None
    return known.name, PublicCard.parse(answer.card), answer.invitation, answer.rank


def close(folder: Path, invitation: str) -> None:
    """Forget an invitation that was used."""
    keep(folder, {key: one for key, one in pending(folder).items() if key != invitation})


def pending(folder: Path) -> dict[str, Open]:
    """Open invitations, by public key.

    Raises:
        ConfigError: the list is damaged.
    """
    path = folder / OPEN_FILE
    if not path.exists():
        return {}
    try:
        given = json.loads(path.read_text("ascii"))
        return {key: tables.fill(Open, one, f"{path}: ") for key, one in given.items()}
    except (ValueError, RecursionError, AttributeError, TypeError, ConfigError) as error:
        raise ConfigError(
            f"{path}: damaged, or of an older version ({error}); remove it, open invitations are "
            f"lost with it"
        ) from error


def keep(folder: Path, invitations: dict[str, Open]) -> None:
    """Write the list, without those whose time is over."""
    left = {key: asdict(one) for key, one in invitations.items() if not is_over(one.expires)}
    paths.write_atomically(
        folder / OPEN_FILE, json.dumps(left, indent=1, sort_keys=True).encode("ascii"), mode=0o600
    )


def message(federation: str, head: str, name: str, expires: int, card: str, rank: int) -> bytes:
    """What the invitation's key signs."""
    return bind(federation, head, name, expires, card, rank)


def pack(prefix: str, table: dict[str, object]) -> str:
    """One line without spaces."""
    return prefix + base64.urlsafe_b64encode(canonical(table)).decode("ascii").rstrip("=")


def unpack(prefix: str, text: str, kind: type[T], what: str) -> T:
    """Read what `pack` wrote.

    Raises:
        ConfigError: something else.
    """
    line = text.strip()
    if line.startswith(OLD):
        raise ConfigError(
            f"this {what} is from an older version, which named no entry of the "
            f"federation; ask for a new one"
        )
    try:
        if not line.startswith(prefix) or len(line) > MAX_CHARACTERS:
            raise ValueError("another beginning or length")
        body = line.removeprefix(prefix)
        table = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return tables.fill(kind, table, "")
    except (ValueError, TypeError, AttributeError, RecursionError, ConfigError):
        raise ConfigError(
            f"this is no {what}; copy the whole line that begins with {prefix}"
        ) from None
