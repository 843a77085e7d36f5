"""Which blocks of the cache are free, owned or cached.

Knows how many tokens a block holds and how many owners a block has (its reference count).
Knows nothing of what is in them, nor whose they are.
Always: a block is free (nobody's), owned (once or by several), or cached (nobody's, but its
content is known and may be asked for again); cached blocks are evicted when free ones run out, or
when more than `cache_limit` would not be free, the least recently used first. Blocks are handed out
again before others are touched, so the cache's memory is that of `cache_limit` or of all owners'
blocks, whichever was more.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

# a 2,048-token conversation is 128 blocks; at most 15 places of a request stay unused
BLOCK_TOKENS = 16


class BlockPool:
    """Free block numbers, and how many owners the others have."""

    def __init__(
        self, blocks: int, block_tokens: int = BLOCK_TOKENS, cache_limit: int | None = None
    ) -> None:
        """All blocks free.

        Args:
            cache_limit: owned and cached ones together, as far as cached ones decide; None: all.
        """
        self.total = blocks
        self.cache_limit = blocks if cache_limit is None else cache_limit
        self.block_tokens = block_tokens
        # blocks that the prefix cache can find; they stay cached when their last owner goes
        self.known: set[int] = set()
        # whose part of windowed layers was given back, so that they can be gone on from only where
        # no window reaches them
        self.hollow: set[int] = set()
        # a cached block is given away: nobody may find it any more
        self.on_evict: Callable[[int], None] = lambda _: None
        self._free = list(range(blocks - 1, -1, -1))
        self._ref_counts = [0] * blocks
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    @property
    def free(self) -> int:
        """Blocks that can be allocated now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        """Blocks that nobody owns and that still hold something known."""
        return len(self._cached)

    def by_use(self) -> list[int]:
        """Cached blocks, the least recently used first."""
        return list(self._cached)

    def needed(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def ref_count(self, block: int) -> int:
        """How many own this block."""
        return self._ref_counts[block]

    def allocate(self, blocks: int) -> list[int]:
        """Take `blocks` block numbers.

        Raises:
            RuntimeError: fewer are free (the scheduler looks before it asks, so this is a bug).
        """
        if blocks > self.free:
            raise RuntimeError(f"{blocks} blocks asked for, {self.free} free")
        while self._cached and (
            len(self._free) < blocks or self.total - len(self._free) + blocks > self.cache_limit
        ):
            self.evict(next(iter(self._cached)))
        taken = [self._free.pop() for _ in range(blocks)]
        self.hollow.difference_update(taken)
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def share(self, block: int) -> None:
        """Add an owner to a known block.

        Raises:
            RuntimeError: the block is free, so what is in it is nobody's (a bug).
        """
        if not self._ref_counts[block]:
            if block not in self._cached:
                raise RuntimeError(f"block {block} is free and cannot be shared")
            del self._cached[block]
        self._ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Take one owner from each block, the last one first: what stands behind others is
        evicted before them.

        Raises:
            RuntimeError: one of them had no owner (a bug).
        """
        for block in reversed(list(blocks)):
            if not self._ref_counts[block]:
                raise RuntimeError(f"block {block} was freed twice")
            self._ref_counts[block] -= 1
            if not self._ref_counts[block]:
                if block in self.known:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def evict(self, block: int) -> None:
        """Make a known block unfindable, and free it unless somebody owns it."""
        self.known.discard(block)
        self.on_evict(block)
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Compare with the blocks that their owners believe they hold, each as often as it has
        owners.

        Raises:
            RuntimeError: a block is lost, has more or fewer owners than it counts, or is free and
            owned (a bug).
        """
        held = Counter(owned)
        if any(held[block] > owners for block, owners in enumerate(self._ref_counts)):
            raise RuntimeError("a block has two owners that did not agree to share it")
        if len(set(self._free)) != len(self._free) or any(
            self._ref_counts[block] for block in (*self._free, *self._cached)
        ):
            raise RuntimeError("a block is free and owned, or free twice")
        if not set(self._cached) <= self.known or self.known & set(self._free):
            raise RuntimeError(
                "a block is cached though nobody can find it, or free though somebody can"
            )
        if len(held) + self.free != self.total:
            raise RuntimeError(f"{len(held)} blocks owned and {self.free} free, of {self.total}")
        if any(held[block] < owners for block, owners in enumerate(self._ref_counts)):
            raise RuntimeError("a block counts owners that have left")
