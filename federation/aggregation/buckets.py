"""Several sums at once: each bucket of members goes through the same stages by itself.

Knows servers of one bucket and who belongs to which. Knows nothing of how one protects, or of what
is done with the sums.
Always: a member's bytes reach the server of its own bucket alone; a bucket that fails is left out,
and the round fails with the last of its reasons once no bucket is left.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

from ...core import log
from ...core.errors import CryptoError, RoundAborted, WorkerError
from ..spec.policy import Policy
from .base import AggregationServer, Sum
from .rank_masks import RankMasks

logger = log.get("federation.buckets")
Step = tuple[str, Mapping[str, bytes]]


class Buckets:
    """The coordinator's side of one attempt, whatever the number of its sums.

    Args:
        servers: each with the members of its bucket; all of one mode, so that their stages are the
        same.
    """

    def __init__(self, servers: Sequence[tuple[tuple[str, ...], AggregationServer]]) -> None:
        self.servers = list(servers)
        self.asked = len(self.servers)

    @property
    def opens_at(self) -> str:
        """As `AggregationServer`."""
        return self.servers[0][1].opens_at

    def begin(self) -> Step:
        """The first stage and its payloads, by party."""
        return merge([server.begin() for _, server in self.servers])

    def receive(self, party: str, payload: bytes) -> None:
        """Give one answer to its bucket.

        Raises:
            As `AggregationServer.receive`. An answer for a bucket that failed is dropped.
        """
        for members, server in self.servers:
            if party in members:
                server.receive(party, payload)

    def advance(self) -> Step | None:
        """The next stage of all buckets that are left; None once their sums are open.

        Raises:
            CryptoError, WorkerError, RoundAborted: the last bucket's reason.
        """
        steps: list[Step | None] = []
        for entry in tuple(self.servers):
            try:
                steps.append(entry[1].advance())
            except (CryptoError, RoundAborted, WorkerError) as error:
                logger.warning("the sum over %s failed: %s", ", ".join(entry[0]), error)
                self.servers.remove(entry)
                if not self.servers:
                    raise
        going = [step for step in steps if step is not None]
        return merge(going) if going else None

    def sums(self) -> tuple[Sum, ...]:
        """One sum for each bucket that is left, after `advance` said None."""
        return tuple(one for _, server in self.servers for one in server.sums())


def merge(steps: Sequence[Step]) -> Step:
    """One stage, everybody's payloads."""
    return steps[0][0], {
        name: payload for _, payloads in steps for name, payload in payloads.items()
    }


def buckets(
    policy: Policy,
    adapter: bytes,
    ready: Collection[str],
    shares: RankMasks | None = None,
    groups: Sequence[Collection[str]] = (),
) -> tuple[tuple[str, ...], ...]:
    """`ready` members split for sums of their own, each over `Policy.smallest_sum` at least; sizes
    differ by at most one.

    Args:
        adapter: digest of the one that the sums are about: the same members from the same adapter
        are split alike, again.
        groups: of the cohort, that trained at different rates: each is a sum, if enough of it are
        ready; else all are one.

    Who was ready is known after the work only, so nobody can choose a bucket before that. Where
    members train different columns, the minimum is of those that train the most, and they are dealt
    out first.
    """
    if groups:
        split = tuple(tuple(sorted(set(group).intersection(ready))) for group in groups)
        if min(map(len, split)) >= policy.smallest_sum:
            return split
    if policy.aggregation.buckets == 1:
        return (tuple(sorted(ready)),)
    if policy.can.model_held_by == "members":
        adapter = b""  # the server knows none: those that are ready are split alike in every round
    full_rank = set(ready) if shares is None else shares.full_rank.intersection(ready)
    count = max(1, min(policy.aggregation.buckets, len(full_rank) // policy.smallest_sum))
    seed = hashlib.sha256(b"quietchoir buckets 2" + policy.digest + adapter).digest()
    order = sorted(
        ready,
        key=lambda name: (name not in full_rank, hashlib.sha256(seed + name.encode()).digest()),
    )
    return tuple(tuple(sorted(order[start::count])) for start in range(count))
