"""Which blocks of the cache are free.

Knows how many tokens a block holds. Knows nothing of what is in them, nor whose they are.
Always: a block number is either free or handed out, once.
"""

from collections.abc import Iterable

BLOCK_TOKENS = 16  # a 2,048-token conversation is 128 blocks; at most 15 places of a request stay unused


class BlockPool:
    """A stack of free block numbers."""

    def __init__(self, blocks: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self.total = blocks
        self.block_tokens = block_tokens
        self._free = list(range(blocks - 1, -1, -1))
        self._is_free = [True] * blocks

    @property
    def free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def allocate(self, blocks: int) -> list[int]:
        """Take `blocks` block numbers.

        Raises:
            RuntimeError: fewer are free (the scheduler looks before it asks, so this is a bug).
        """
        if blocks > len(self._free):
            raise RuntimeError(f"{blocks} blocks asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(blocks)]
        for block in taken:
            self._is_free[block] = False
        return taken

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            RuntimeError: one of them was free already (a bug).
        """
        for block in blocks:
            if self._is_free[block]:
                raise RuntimeError(f"block {block} was freed twice")
            self._is_free[block] = True
            self._free.append(block)

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Compare with the blocks that their owners believe they hold.

        Raises:
            RuntimeError: a block is lost, shared, or both free and owned (a bug).
        """
        held = list(owned)
        if len(set(held)) != len(held):
            raise RuntimeError("a block has two owners")
        if len(set(self._free)) != len(self._free) or any(self._is_free[block] for block in held):
            raise RuntimeError("a block is free and owned, or free twice")
        if len(held) + len(self._free) != self.total:
            raise RuntimeError(f"{len(held)} blocks owned and {len(self._free)} free, of {self.total}")
