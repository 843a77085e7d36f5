"""Blocks are free or owned, once."""

import pytest

from quietchoir.core.engine.blockpool import BlockPool


def test_blocks_are_counted_by_whole_blocks():
    pool = BlockPool(8, block_tokens=16)
    assert [pool.needed(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_released_blocks_can_be_taken_again():
    pool = BlockPool(3)
    taken = pool.allocate(3)
    assert sorted(taken) == [0, 1, 2]
    pool.release(taken[:2])
    assert sorted(pool.allocate(2)) == sorted(taken[:2])


def test_more_than_is_free_cannot_be_taken():
    pool = BlockPool(2)
    with pytest.raises(RuntimeError, match="3 blocks asked for, 2 free"):
        pool.allocate(3)
    assert pool.free == 2


def test_a_block_is_not_freed_twice():
    pool = BlockPool(2)
    taken = pool.allocate(1)
    pool.release(taken)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.release(taken)
