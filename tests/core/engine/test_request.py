"""What callers see: requests that are checked, and answers read from threads and tasks."""

import asyncio
import threading

import pytest

from quietchoir.core.engine.request import Generation, GenerationRequest, TextDelta, Wakeups
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.errors import EngineError, RequestError

A, B, END = TextDelta("a", 1), TextDelta("b", 2), TextDelta("c", 3, "stop")


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"stop": ("x", "")},
    ],
)
def test_parameters_that_no_engine_could_serve_are_refused_when_they_are_made(values):
    with pytest.raises(RequestError):
        SamplingParams(**values)


def test_an_empty_prompt_is_refused_when_the_request_is_made():
    with pytest.raises(RequestError, match="no tokens"):
        GenerationRequest(prompt=())


def test_a_thread_reads_the_pieces_in_order_while_another_delivers_them():
    generation = Generation(prompt_tokens=1)
    read: list[TextDelta] = []
    reader = threading.Thread(target=lambda: read.extend(generation))
    reader.start()
    for piece in (A, B, END):
        generation.deliver(piece)
    reader.join()
    assert read == [A, B, END]
    assert generation.completion_tokens == 3
    assert list(generation) == []


async def test_a_task_reads_the_pieces_that_a_thread_delivers():
    generation = Generation(prompt_tokens=1)
    task = asyncio.ensure_future(_collect(generation))
    await asyncio.sleep(0)  # the task now waits for its first piece
    deliverer = threading.Thread(target=lambda: list(map(generation.deliver, (A, B, END))))
    deliverer.start()
    assert await task == [A, B, END]
    deliverer.join()


async def test_a_task_that_is_cancelled_while_it_waits_does_not_hinder_the_next_reader():
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    generation = Generation(prompt_tokens=1)
    task = asyncio.ensure_future(_collect(generation))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    generation.deliver(A)
    generation.deliver(END)
    await asyncio.sleep(0)  # the wake-up call for the cancelled task comes now
    assert await _collect(generation) == [A, END]
    assert complaints == []


def test_a_reader_whose_event_loop_is_gone_counts_as_gone():
    generation = Generation(prompt_tokens=1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(_collect(generation))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    generation.deliver(A)
    assert generation.cancel_requested


def test_nothing_follows_the_last_piece():
    generation = Generation(prompt_tokens=1)
    generation.deliver(END)
    with pytest.raises(RuntimeError, match="after the generation finished"):
        generation.deliver(A)
    assert list(generation) == [END]


def test_cancelling_a_finished_answer_does_nothing():
    calls: list[str] = []
    generation = Generation(1, lambda: calls.append("cancelled"))
    generation.deliver(END)
    generation.cancel()
    assert not calls
    assert not generation.cancel_requested


def test_leaving_the_block_cancels_what_is_not_finished():
    calls: list[str] = []
    with Generation(1, lambda: calls.append("cancelled")) as generation:
        generation.deliver(A)
    assert calls == ["cancelled"]
    assert generation.cancel_requested


def test_the_whole_text_raises_what_the_last_piece_only_tells():
    generation = Generation(prompt_tokens=1)
    generation.deliver(TextDelta("", None, "error"), EngineError("it broke"))
    with pytest.raises(EngineError, match="it broke"):
        generation.text()
    assert generation.completion_tokens == 0


async def _collect(generation: Generation) -> list[TextDelta]:
    return [piece async for piece in generation]


async def first_of(generation: Generation) -> TextDelta:
    return await anext(generation)


async def test_tasks_that_wait_are_woken_by_one_call_of_their_loop(monkeypatch):
    wakeups, loop, calls = Wakeups(), asyncio.get_running_loop(), []
    both = [Generation(1, wakeups=wakeups) for _ in range(2)]
    readers = [asyncio.create_task(first_of(one)) for one in both]
    await asyncio.sleep(0)
    wake = loop.call_soon_threadsafe

    def counted(*given):
        calls.append(given)
        wake(*given)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    with wakeups.together():
        for one in both:
            one.deliver(A)
        assert not calls
    assert len(calls) == 1
    assert await asyncio.gather(*readers) == [A, A]


def test_of_tasks_that_are_woken_together_only_those_of_a_closed_loop_are_cancelled():
    wakeups, gone, here = Wakeups(), asyncio.new_event_loop(), asyncio.new_event_loop()
    lost, read = Generation(1, wakeups=wakeups), Generation(1, wakeups=wakeups)
    waiting = {loop: loop.create_task(first_of(one)) for loop, one in ((gone, lost), (here, read))}
    for loop in waiting:
        loop.call_soon(loop.stop)
        loop.run_forever()
    waiting[gone].cancel()
    with pytest.raises(asyncio.CancelledError):
        gone.run_until_complete(waiting[gone])
    gone.close()
    with wakeups.together():
        for one in (lost, read):
            one.deliver(A)
    assert (lost.cancel_requested, read.cancel_requested) == (True, False)
    assert here.run_until_complete(waiting[here]) == A
    here.close()
