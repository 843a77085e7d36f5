"""Which ways to protect a sum there are: one line each.

Knows their names, as `spec.compatibility` lists what each can do. Knows nothing of how they work.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...core.errors import ConfigError
from ..spec.compatibility import refused
from ..spec.policy import Policy
from . import encrypted, plain, secagg
from .base import AggregationClient, AggregationServer, ClientContext, ServerContext, WireCost
from .buckets import Buckets
from .encrypted import EncryptedBuckets, EncryptedClient, EncryptedServer
from .experimental import threshold
from .experimental.threshold import ThresholdClient, ThresholdServer
from .plain import PlainClient, PlainServer
from .secagg import MaskedClient, MaskedServer


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One of them: a member's side, the server's side of one bucket, what they send."""

    client: type[AggregationClient]
    server: Callable[[ServerContext, tuple[str, ...]], AggregationServer]
    # of a contribution of so many values in a cohort of so many
    wire_cost: Callable[[Policy, int, int], WireCost]
    together: Callable[..., AggregationServer] = Buckets  # the server's side of several


AGGREGATIONS = {
    "plain": Aggregation(PlainClient, PlainServer, plain.wire_cost),
    "masked": Aggregation(MaskedClient, MaskedServer, secagg.wire_cost),
    "sealed": Aggregation(EncryptedClient, EncryptedServer, encrypted.wire_cost, EncryptedBuckets),
    "threshold": Aggregation(ThresholdClient, ThresholdServer, threshold.wire_cost),
}


def thaw(kept: bytes, context: ClientContext) -> AggregationClient:
    """The member's side that was frozen.

    Args:
        context: of the same place; who was asked and what was told are taken from the bytes.

    Raises:
        MessageError, ProtocolError: of another session than the federation file's.
    """
    make = AGGREGATIONS[context.policy.protection.kind].client
    aggregation = make(context, np.zeros(0, np.uint64), 0, False)
    aggregation.restore(kept)
    return aggregation


def check_freezable(policy: Policy) -> None:
    """Require a federation whose members can stop between two messages.

    Raises:
        ConfigError: a mode whose members cannot.
    """
    axes = dataclasses.replace(policy.axes, engines=True)
    if (rule := refused(axes)) is not None:
        raise ConfigError(f"federation {policy.name}: {rule.sentence(axes)}")
