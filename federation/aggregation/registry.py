"""Which ways to protect a sum there are: one line each.

Knows their names, as `spec.compatibility` lists what each can do. Knows nothing of how they work.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .base import AggregationClient, AggregationServer, ClientContext, ServerContext, Values
from .buckets import Buckets
from .encrypted import EncryptedBuckets, EncryptedClient, EncryptedServer
from .experimental.threshold import ThresholdClient, ThresholdServer
from .plain import PlainClient, PlainServer
from .secagg import MaskedClient, MaskedServer


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One of them: a member's side, and the server's side of one bucket."""

    client: Callable[[ClientContext, Values, int, bool], AggregationClient]
    server: Callable[[ServerContext, tuple[str, ...]], AggregationServer]
    together: Callable[..., AggregationServer] = Buckets  # the server's side of several


AGGREGATIONS = {
    "plain": Aggregation(PlainClient, PlainServer),
    "masked": Aggregation(MaskedClient, MaskedServer),
    "sealed": Aggregation(EncryptedClient, EncryptedServer, EncryptedBuckets),
    "threshold": Aggregation(ThresholdClient, ThresholdServer),
}
