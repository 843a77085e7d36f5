"""Blocks are free or owned, once."""

import pytest

from quietchoir.core.engine.block_pool import BlockPool


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


def test_blocks_that_were_used_are_handed_out_again_before_others_are_touched():
    """The memory of a large cache is what was needed at once, or `keep`, whichever was more."""
    pool = BlockPool(100, cache_limit=6)
    touched: set[int] = set()
    forgotten: list[int] = []
    pool.on_evict = forgotten.append
    for _ in range(20):
        taken = pool.allocate(4)
        touched |= set(taken)
        pool.known |= set(taken)
        pool.release(taken)
        pool.check_integrity([])
    assert len(touched) == 6 and pool.cached == 6 and len(forgotten) == 80 - 6
    many = pool.allocate(10)
    assert pool.cached == 0 and touched <= set(many)  # who runs comes before what is cached
    pool.release(many)
    pool.check_integrity([])


def test_kept_blocks_go_the_longest_unused_first_when_more_would_not_be_free_than_may_be():
    pool = BlockPool(100, cache_limit=3)
    first, second, third = pool.allocate(3)
    pool.known |= {first, second, third}
    for block in (second, first, third):
        pool.release([block])
    assert pool.allocate(1) == [second]
    pool.share(first)
    assert pool.cached == 1 and pool.allocate(1) == [third]
    assert pool.cached == 0
