"""What a node proves in the head of each request, before anybody reads or does anything for it; and
how it is turned away.

Knows two headers of Flower's and two of ours, the roster's keys and how old a proof may be. Knows
nothing of connections, bodies or messages.
Always: a proof is a signature with the member's Ed25519 key over this federation, this route, this
time and this session; one that lacks anything, or has anything twice, proves nothing.

Flower's own signature is over a time alone, so whoever is shown it (another federation's
coordinator) could show it on; it is checked as well, behind the door. Not covered: the body, which
travels under the same TLS connection as the head.
"""

import base64
import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.date import now

from ...core.errors import AuthenticationError
from ...crypto.identity.keys import Identity, PublicIdentity, bind

SESSION_HEADER = "quietchoir-session"
PROOF_HEADER = "quietchoir-proof"
CONTEXT = b"quietchoir fleet request v1"
SESSION = re.compile(r"[0-9a-f]{32}")  # drawn by each process of a node, anew each time it starts
NOT_PROVED, TAKEN, NOT_DIALLED_IN = 401, 409, 410  # TAKEN: another process of the member is here
UNHEARD_S = 10.0  # a process that is not heard for so long is gone; hearts beat every 4 s
Heads = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Proof:
    """Who makes a request, proved."""

    key: bytes  # the transport key that names the member
    session: str


def prove(
    identity: Identity, federation: bytes, path: str, timestamp: str, session: str
) -> dict[str, str]:
    """The two headers that go with Flower's."""
    signature = identity.sign(CONTEXT, bind(federation, path, timestamp, session))
    return {SESSION_HEADER: session, PROOF_HEADER: base64.b64encode(signature).decode("ascii")}


def check(
    headers: Heads,
    path: str,
    federation: bytes,
    identity_of: Callable[[bytes], PublicIdentity | None],
) -> Proof | None:
    """Who makes this request; None if that is not proved.

    Args:
        headers: of the request, names in small letters.
        identity_of: what signs for a transport key of the roster.
    """
    try:
        key = base64.b64decode(only(headers, FLEET_HTTP_PUBLIC_KEY_HEADER), validate=True)
        timestamp, session = only(headers, TIMESTAMP_HEADER), only(headers, SESSION_HEADER)
        signature = base64.b64decode(only(headers, PROOF_HEADER), validate=True)
        identity = identity_of(key)
        if identity is None or not SESSION.fullmatch(session) or not is_fresh(timestamp):
            return None
        identity.verify(CONTEXT, bind(federation, path, timestamp, session), signature)
    except (AuthenticationError, ValueError, TypeError):
        return None
    return Proof(key, session)


def only(headers: Heads, name: str) -> str:
    """The one value of a header. Raises ValueError: none, several, or not ASCII."""
    wanted = name.lower().encode("ascii")
    (value,) = [given for known, given in headers if known == wanted]
    return value.decode("ascii")


def is_fresh(timestamp: str) -> bool:
    """Is this time within what Flower takes? Raises ValueError, TypeError: no time with its
    zone.
    """
    age = (now() - datetime.datetime.fromisoformat(timestamp)).total_seconds()
    return -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
