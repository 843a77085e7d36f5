"""Which block holds the keys and values of which tokens.

Knows tokens, adapters by their digest, and block numbers. Knows nothing of requests or of what is
in a block.
Always: a block is found only by exactly the tokens that it and all before it hold, under the same
adapter; where a block can be found, so can all before it.
Hazard: whoever shares a node can tell by the time of a first token whether another request began
with the same words. Nodes that serve people who do not trust each other set `engine.share_prefixes
= false`.
"""

from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .block_pool import BlockPool

NO_BLOCK = -1


@dataclass(frozen=True, slots=True, eq=False)
class StateSnapshot:
    """A copy of what recurrent layers remember of a sequence, and after how many tokens."""

    state: Any  # the backend's own, never written to
    tokens: int


@dataclass(slots=True, eq=False)
class PrefixNode:
    """All tokens up to the end of one full block."""

    tokens: tuple[int, ...]  # of the last block
    block: int
    depth: int  # blocks from the start
    parent: "PrefixNode | None"
    children: dict[tuple[int, ...], "PrefixNode"] = field(default_factory=dict)
    # where a sequence goes on from if the model's layers remember more than blocks hold
    snapshot: StateSnapshot | None = None

    def path(self) -> list["PrefixNode"]:
        """From the first block to this one."""
        found: list[PrefixNode] = []
        node: PrefixNode | None = self
        while node is not None and node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


class PrefixCache:
    """A tree of full blocks, one root for each adapter version."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._roots: dict[str, PrefixNode] = {}
        self._by_block: dict[int, PrefixNode] = {}
        pool.on_evict = self._evict

    def root(self, adapter: str) -> PrefixNode:
        """Where the tokens of an adapter's requests begin; "" is the plain model."""
        return self._roots.setdefault(adapter, PrefixNode((), NO_BLOCK, 0, None))

    def follow(self, start: PrefixNode, tokens: abc.Sequence[int], blocks: int) -> list[PrefixNode]:
        """The known blocks after `start` that hold `tokens`, at most as many as make `blocks`
        from the first token on.
        """
        found: list[PrefixNode] = []
        size = self._pool.block_tokens
        while start.depth < blocks:
            at = start.depth * size
            child = start.children.get(tuple(tokens[at : at + size]))
            if child is None:
                break
            found.append(child)
            start = child
        return found

    def add(self, parent: PrefixNode, tokens: abc.Sequence[int], block: int) -> PrefixNode:
        """Let `block` be found by `tokens` after `parent`; an older block of the same tokens
        stays the one that is found.
        """
        key = tuple(tokens)
        if key in parent.children:
            return parent.children[key]
        made = PrefixNode(key, block, parent.depth + 1, parent)
        parent.children[key] = self._by_block[block] = made
        self._pool.known.add(block)
        return made

    def invalidate(self, prefix: PrefixNode) -> None:
        """Forget what only this prefix's owner uses, from its end on: the numbers in it are not
        to be trusted.
        """
        for node in reversed(prefix.path()):
            if (
                node.children
                or self._pool.ref_count(node.block) != 1
                or self._by_block.get(node.block) is not node
            ):
                return
            self._pool.evict(node.block)

    def leaves(self) -> Iterator[tuple[str, PrefixNode]]:
        """The longest known prefixes, each with its adapter; those used last stand last."""
        adapters = {id(root): adapter for adapter, root in self._roots.items()}
        used = {block: place for place, block in enumerate(self._pool.by_use())}
        for node in sorted(self._by_block.values(), key=lambda one: used.get(one.block, len(used))):
            if not node.children:
                first = node.path()[0].parent
                yield adapters[id(first)], node

    def check_integrity(self) -> None:
        """Raises: RuntimeError: a block that can be found though one before it cannot, or under
        a wrong number (a bug).
        """
        if set(self._by_block) != self._pool.known:
            raise RuntimeError("the blocks that can be found are not those that the pool keeps")
        for block, node in self._by_block.items():
            parent = node.parent
            if (
                node.block != block
                or parent is None
                or parent.children.get(node.tokens) is not node
            ):
                raise RuntimeError(f"block {block} is not where its prefix says")
            if parent.parent is not None and self._by_block.get(parent.block) is not parent:
                raise RuntimeError(f"block {block} can be found, the one before it cannot")
            if (
                parent.parent is not None
                and not self._pool.ref_count(parent.block)
                and self._pool.ref_count(block)
            ):
                raise RuntimeError(f"block {block} has an owner, the one before it has none")

    def _evict(self, block: int) -> None:
        node = self._by_block.pop(block)
        if node.children or node.parent is None:
            raise RuntimeError(f"block {block} is given away before the blocks behind it")
        del node.parent.children[node.tokens]
        node.snapshot = None
