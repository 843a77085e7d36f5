"""Which block holds the keys and values of which tokens.

Knows tokens, adapters by their digest, and block numbers. Knows nothing of requests or of what is
in a block.
Always: a block is found only by exactly the tokens that it and all before it hold, under the same
adapter; where a block can be found, so can all before it.
Hazard: whoever shares a node can tell by the time of a first token whether another request began
with the same words. Nodes that serve people who do not trust each other set `engine.share_prefixes
= false`.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from .block_pool import BlockPool

NO_BLOCK = -1


@dataclass(slots=True, eq=False)
class Prefix:
    """All tokens up to the end of one full block."""

    tokens: tuple[int, ...]  # of the last block
    block: int
    depth: int  # blocks from the start
    before: "Prefix | None"
    longer: dict[tuple[int, ...], "Prefix"] = field(default_factory=dict)

    def path(self) -> list["Prefix"]:
        """From the first block to this one."""
        found: list[Prefix] = []
        node: Prefix | None = self
        while node is not None and node.before is not None:
            found.append(node)
            node = node.before
        return found[::-1]


class Prefixes:
    """A tree of full blocks, one root for each adapter version."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._roots: dict[str, Prefix] = {}
        self._by_block: dict[int, Prefix] = {}
        pool.on_forget = self._forget

    def root(self, adapter: str) -> Prefix:
        """Where the tokens of an adapter's requests begin; "" is the plain model."""
        return self._roots.setdefault(adapter, Prefix((), NO_BLOCK, 0, None))

    def follow(self, start: Prefix, tokens: Items[int], blocks: int) -> list[Prefix]:
        """The known blocks after `start` that hold `tokens`, at most as many as make `blocks`
        from the first token on.
        """
        found: list[Prefix] = []
        size = self._pool.block_tokens
        while start.depth < blocks:
            at = start.depth * size
            longer = start.longer.get(tuple(tokens[at : at + size]))
            if longer is None:
                break
            found.append(longer)
            start = longer
        return found

    def add(self, before: Prefix, tokens: Items[int], block: int) -> Prefix:
        """Let `block` be found by `tokens` after `before`; an older block of the same tokens
        stays the one that is found.
        """
        key = tuple(tokens)
        if key in before.longer:
            return before.longer[key]
        made = Prefix(key, block, before.depth + 1, before)
        before.longer[key] = self._by_block[block] = made
        self._pool.known.add(block)
        return made

    def drop(self, prefix: Prefix) -> None:
        """Forget what only this prefix's owner uses, from its end on: the numbers in it are not
        to be trusted.
        """
        for node in reversed(prefix.path()):
            if (
                node.longer
                or not self._pool.alone(node.block)
                or self._by_block.get(node.block) is not node
            ):
                return
            self._pool.forget(node.block)

    def leaves(self) -> Iterator[tuple[str, Prefix]]:
        """The longest known prefixes, each with its adapter; the latest stand last."""
        adapters = {id(root): adapter for adapter, root in self._roots.items()}
        for node in self._by_block.values():
            if not node.longer:
                first = node.path()[0].before
                yield adapters[id(first)], node

    def check_integrity(self) -> None:
        """Raises: RuntimeError: a block that can be found though one before it cannot, or under
        a wrong number (a bug).
        """
        if set(self._by_block) != self._pool.known:
            raise RuntimeError("the blocks that can be found are not those that the pool keeps")
        for block, node in self._by_block.items():
            before = node.before
            if node.block != block or before is None or before.longer.get(node.tokens) is not node:
                raise RuntimeError(f"block {block} is not where its prefix says")
            if before.before is not None and self._by_block.get(before.block) is not before:
                raise RuntimeError(f"block {block} can be found, the one before it cannot")
            if (
                before.before is not None
                and self._pool.idle(before.block)
                and not self._pool.idle(block)
            ):
                raise RuntimeError(f"block {block} has an owner, the one before it has none")

    def _forget(self, block: int) -> None:
        node = self._by_block.pop(block)
        if node.longer or node.before is None:
            raise RuntimeError(f"block {block} is given away before the blocks behind it")
        del node.before.longer[node.tokens]
