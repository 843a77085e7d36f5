"""What a node says in the head of each request to prove who it is, and the coordinator's clock that
it must follow.

Flower's door wants each request's time signed, and turns away what is five seconds ahead of its own
clock or five minutes behind it. A household's clock may be off by years. Knows the `Date` that a
refusal carries; knows nothing else of time.
Always: only the times in these proofs are shifted. Nothing of a round depends on this node's clock:
letters are told apart by numbers, and every time limit runs on a clock that nobody sets.

Hazard: a coordinator can have a node sign any time. Our own proof (`proof`) is worth something at
this federation's door alone, Flower's at the doors that know this transport key; neither opens a
letter or signs one.
"""

import datetime
from base64 import b64encode
from email.utils import parsedate_to_datetime

import httpx
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from ..membership.keys import NodeKeys
from .proof import prove

TURNED_AWAY = 401
ENOUGH_S = 2.0  # a smaller difference cannot be why the door turned us away


class ClockedAuth:
    """As Flower's `NodeAuthHttpInterceptor`, on the coordinator's clock, with our own proof beside
    it.
    """

    def __init__(self, keys: NodeKeys, federation: bytes, session: str) -> None:
        self.keys, self.federation, self.session = keys, federation, session
        self.public_key = public_key_to_bytes(keys.transport.public_key())
        self.behind = datetime.timedelta()  # how far this node's clock is behind the coordinator's

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add key, time and both signatures to one request."""
        timestamp, path = (now() + self.behind).isoformat(), context.request.url.path
        signature = sign_message(self.keys.transport, timestamp.encode("ascii"))
        context.request.headers.update(
            {
                FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_key).decode("ascii"),
                TIMESTAMP_HEADER: timestamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
                **prove(self.keys.identity, self.federation, path, timestamp, self.session),
            }
        )
        return call_next(context)

    def learn(self, refusal: httpx.Response) -> bool:
        """Take over the coordinator's time from its refusal. False: the clocks agree, the reason
        is another.
        """
        if refusal.status_code != TURNED_AWAY or "date" not in refusal.headers:
            return False
        try:
            theirs = parsedate_to_datetime(refusal.headers["date"])
            behind = theirs.astimezone(datetime.UTC) - now()
        except (ValueError, TypeError, OverflowError):
            return False
        differs = abs(behind - self.behind).total_seconds() > ENOUGH_S
        if differs:
            self.behind = behind
        return differs
