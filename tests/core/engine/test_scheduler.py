"""Who runs next, with token counts alone."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.engine.block_pool import BlockPool
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import Batch, Scheduler, SchedulerLimits
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.errors import OverloadedError

FRESH = itertools.count(1000)


def sequence(
    prompt: int, arrived_s: float = 0.0, *, like: int = 0, speculate: bool = False
) -> Sequence:
    """A request of `prompt` tokens that begins like no other, or like others of the same `like`."""
    first = like or next(FRESH)
    return Sequence(
        GenerationRequest(
            prompt=(first,) + (7,) * (prompt - 1),
            sampling_params=SamplingParams(max_tokens=256, speculate=speculate),
        ),
        arrived_s=arrived_s,
    )


def scheduler(blocks: int = 64, **limits: float) -> Scheduler:
    return Scheduler(BlockPool(blocks), SchedulerLimits(**limits))  # type: ignore[arg-type]


def run(scheduler: Scheduler) -> Batch:
    """One step, every sampled token being 1."""
    batch = scheduler.plan()
    scheduler.commit(batch, [1] * batch.logit_rows)
    scheduler.check_integrity()
    return batch


def test_a_long_prompt_is_read_in_chunks_while_answers_go_on():
    books = scheduler(step_rows=64, shared_rows=32)
    talking, reading = sequence(10), sequence(100)
    books.add(talking)
    run(books)
    books.add(reading)
    chunks = []
    while reading.remaining > 1:
        batch = run(books)
        assert talking in batch.sampled
        chunks += [span.count for span in batch.spans if span.sequence is reading]
    assert chunks == [32, 32, 32, 4]


def test_a_prompt_alone_is_read_in_large_chunks():
    books = scheduler(step_rows=64, shared_rows=32)
    books.add(sequence(100))
    assert [run(books).rows, run(books).rows] == [64, 36]


def test_requests_start_in_the_order_in_which_they_came():
    books = scheduler(blocks=4)
    first, large, small = sequence(16), sequence(48), sequence(4)
    for each in (first, large, small):
        books.add(each)
    run(books)
    # `small` would fit beside `first`, but it came after `large`, which does not.
    assert books.running == [first]
    books.finish(first)
    run(books)
    assert books.running == [large]


def test_the_youngest_gives_way_when_blocks_run_out_and_keeps_its_tokens():
    books = scheduler(blocks=4)
    old, young = sequence(30), sequence(14)
    books.add(old)
    books.add(young)
    preempted = False
    for _ in range(40):
        run(books)
        preempted = preempted or (young in books.waiting)
        assert old in books.running
        if len(old.tokens) == 60:
            books.finish(old)
            break
    assert preempted
    said = len(young.tokens)
    assert young.block_table == [] and said > 14
    run(books)
    assert young in books.running
    assert len(young.tokens) == said + 1


def test_a_request_that_waits_too_long_expires_but_a_preempted_one_never_does():
    books = scheduler(queue_timeout_s=30.0)
    fresh, late, preempted = (
        sequence(4, arrived_s=90.0),
        sequence(4, arrived_s=10.0),
        sequence(4, arrived_s=10.0),
    )
    preempted.started = True
    for each in (fresh, late, preempted):
        books.add(each)
    assert books.expire(now_s=100.0) == [late]
    assert list(books.waiting) == [fresh, preempted]


def test_one_request_more_than_the_queue_holds_is_refused_and_nothing_changes():
    books = scheduler(max_waiting=2)
    kept = [sequence(4), sequence(4)]
    for each in kept:
        books.add(each)
    with pytest.raises(OverloadedError, match="2 requests are waiting, the limit is 2"):
        books.add(sequence(4))
    assert list(books.waiting) == kept


def test_no_more_run_than_the_limit_says():
    books = scheduler(max_running=3)
    for _ in range(5):
        books.add(sequence(4))
    run(books)
    assert (len(books.running), len(books.waiting)) == (3, 2)


def test_integrity_notices_a_block_with_two_owners():
    books = scheduler()
    one, two = sequence(4), sequence(4)
    books.add(one)
    books.add(two)
    run(books)
    two.block_table = list(one.block_table)
    with pytest.raises(RuntimeError, match="two owners"):
        books.check_integrity()


def test_integrity_notices_a_lost_block():
    books = scheduler()
    one = sequence(40)
    books.add(one)
    run(books)
    one.block_table.append(books.pool.allocate(1)[0])
    one.block_table.pop()
    with pytest.raises(RuntimeError, match="blocks owned and"):
        books.check_integrity()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 16),
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 68), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(4, 40),
    st.lists(st.integers(0, 30), max_size=5),
)
def test_whatever_comes_the_books_balance_and_every_request_ends(blocks, requests, rows, cancels):
    books = scheduler(blocks, max_running=4, step_rows=rows, shared_rows=max(1, rows // 2))
    goals = {
        sequence(prompt, like=like, speculate=speculate): prompt + answer
        for prompt, answer, like, speculate in requests
    }
    for each in goals:
        books.add(each)
    first_started: list[Sequence] = []
    for step in range(3000):
        batch = run(books)
        spans = [span.sequence for span in batch.spans]
        assert len(spans) == len(set(spans))
        assert spans, "nothing is scheduled though somebody waits"
        assert books.running == [each for each in goals if each in books.running], (
            "somebody overtook an older one"
        )
        first_started += [each for each in books.running if each not in first_started]
        done = [each for each in batch.sampled if len(each.tokens) >= goals[each]]
        done += [books.running[-1]] if step in cancels and books.running[-1] not in done else []
        for each in done:
            books.finish(each)
        books.check_integrity()
        if not books.running and not books.waiting:
            break
    assert not books.running and not books.waiting
    assert books.pool.free == blocks
    assert first_started == [each for each in goals if each in first_started]
