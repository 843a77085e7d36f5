"""Copies of what recurrent layers remember, at places of texts from which others may go on.

Knows nodes of the prefix cache and how many copies memory holds. Knows nothing of what is in one.
Always: no more than `limit` are kept, the least recently used goes first; one whose block is given
away goes with it. A sequence that passes by leaves one copy at a time behind, its latest, so that a
long text does not put out the others'.

Source: borders and branches as places to keep are those of SGLang's cache for Mamba layers and of
vLLM's aligned mode.
"""

from collections import OrderedDict
from typing import Protocol

from .prefix_cache import PrefixNode, StateSnapshot
from .sequence import Sequence


class CopiesStates(Protocol):
    """Who holds the states of sequences that run."""

    def snapshot(self, sequence: Sequence) -> StateSnapshot:
        """A copy of this sequence's, which stands behind its last step."""
        ...


class StateSnapshots:
    """The snapshots of one engine."""

    def __init__(self, states: CopiesStates, limit: int) -> None:
        """`limit`: copies at most, one at least."""
        self._states, self._limit = states, limit
        # whether a passing sequence may still take it away; the least recently used first
        self._kept: OrderedDict[PrefixNode, bool] = OrderedDict()

    def __len__(self) -> int:
        return sum(node.snapshot is not None for node in self._kept)

    def find(self, node: PrefixNode) -> StateSnapshot | None:
        """What stands at a node; whoever asks goes on from it."""
        if node.snapshot is not None and node in self._kept:
            self._kept[node] = False
            self._kept.move_to_end(node)
        return node.snapshot

    def keep(self, sequence: Sequence, *, passing: bool) -> None:
        """Keep what is remembered at the end of a sequence's last shared block, where it stands.

        Args:
            passing: until its next one, unless somebody goes on from it before.
        """
        node, before = sequence.prefix, sequence.passing
        if node is None:
            raise RuntimeError("a sequence that shares nothing has no place for a snapshot")
        sequence.passing = node if passing else None
        if before is not None and before is not node and self._kept.get(before):
            self._forget(before)
        if node.snapshot is None:
            self._make_room()
            self.put(node, self._states.snapshot(sequence), passing=passing)
        elif node in self._kept:
            self._kept[node] = self._kept[node] and passing
            self._kept.move_to_end(node)

    def put(self, node: PrefixNode, snapshot: StateSnapshot, *, passing: bool = False) -> None:
        """Let a node have this snapshot."""
        self._make_room()
        node.snapshot = snapshot
        self._kept[node] = passing
        self._kept.move_to_end(node)

    def _make_room(self) -> None:
        for node in [node for node in self._kept if node.snapshot is None]:  # given away
            del self._kept[node]
        while len(self._kept) >= self._limit:
            self._forget(next(iter(self._kept)))

    def _forget(self, node: PrefixNode) -> None:
        node.snapshot = None
        self._kept.pop(node, None)
