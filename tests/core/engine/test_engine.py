"""The loop: what a request gets, and what one request cannot do to another. No weights, no
clock, mostly no thread.
"""

import asyncio
import dataclasses
import logging
import re
from typing import Any

import pytest

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest, Timing
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.errors import EngineError, OverloadedError, RequestError
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import (
    END,
    TINY_BLOCK_BYTES,
    FakeModel,
    config,
    drain,
    generate,
    tiny_weights,
)

PROMPTS = [tuple(range(3, 3 + length)) for length in (5, 40, 17, 90, 16, 33)]
REQUESTS = [
    GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=30))
    for prompt in PROMPTS
]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def engine(weights: Weights, model: FakeModel) -> Engine:
    """An engine whose steps the test makes."""
    return Engine(weights, config(), backend=model)


def saying(weights: Weights, text: str, **params: Any) -> tuple[list[str], str | None, int]:
    """Pieces, end and token count of an answer by a model that says `text`."""
    model = FakeModel()
    model.script = [*text.encode(), *([END] * 64)]
    engine = Engine(weights, config(), backend=model)
    generation = engine.submit(
        GenerationRequest(
            prompt=(1, 2, 3), sampling_params=SamplingParams(**{"max_tokens": 50, **params})
        )
    )
    drain(engine)
    return (
        [piece.text for piece in generation],
        generation.finish_reason,
        generation.completion_tokens,
    )


def test_requests_together_say_what_each_says_alone(weights, engine):
    alone = [
        generate(Engine(weights, config(), backend=FakeModel()), [request])[0]
        for request in REQUESTS
    ]
    assert generate(engine, REQUESTS) == alone
    assert len(set(alone)) == len(alone)


def test_a_preempted_request_ends_with_the_same_text(weights, engine):
    scarce = Engine(weights, config(kv_bytes=9 * TINY_BLOCK_BYTES), backend=FakeModel(9))
    assert generate(scarce, REQUESTS) == generate(engine, REQUESTS)
    assert scarce.stats().preemptions > 0
    assert scarce.stats().blocks_free == scarce.stats().blocks_total


def test_a_stop_token_ends_the_answer_and_is_counted(weights):
    pieces, finished, tokens = saying(weights, "hi")
    assert ("".join(pieces), finished, tokens) == ("hi", "stop", 3)


def test_the_length_limit_ends_the_answer(weights):
    pieces, finished, tokens = saying(weights, "hello", max_tokens=3)
    assert ("".join(pieces), finished, tokens) == ("hel", "length", 3)


def test_a_stop_text_across_tokens_ends_the_answer_and_does_not_go_out(weights):
    pieces, finished, tokens = saying(weights, "one END two", stop=("END", "never"))
    assert ("".join(pieces), finished, tokens) == ("one ", "stop", 7)


def test_the_beginning_of_a_stop_text_goes_out_when_the_answer_ends_there(weights):
    assert "".join(saying(weights, "one EN", stop=("END",))[0]) == "one EN"


def test_every_piece_has_whole_characters(weights):
    pieces, _, tokens = saying(weights, "né 家!")
    assert "".join(pieces) == "né 家!"
    assert tokens == len("né 家!".encode()) + 1
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_cut_off_by_the_length_limit_is_marked(weights):
    assert "".join(saying(weights, "家", max_tokens=2)[0]) == "\ufffd"


def test_a_cancelled_request_frees_its_blocks_and_disturbs_nobody(weights, engine):
    expected = generate(Engine(weights, config(), backend=FakeModel()), REQUESTS[:2])
    leaving = engine.submit(REQUESTS[3])
    staying = [engine.submit(request) for request in REQUESTS[:2]]
    drain(engine, until=lambda: leaving.completion_tokens == 5)
    held = engine.stats().blocks_total - engine.stats().blocks_free
    leaving.cancel()
    engine.step()
    assert leaving.finish_reason == "cancelled"
    assert engine.stats().blocks_total - engine.stats().blocks_free < held
    drain(engine)
    assert [generation.text() for generation in staying] == expected
    assert engine.stats().blocks_free == engine.stats().blocks_total


def test_a_request_cancelled_in_the_queue_never_runs(engine, model):
    generation = engine.submit(REQUESTS[0])
    generation.cancel()
    engine.step()
    assert [piece.finish_reason for piece in generation] == ["cancelled"]
    assert model.batches == []


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(weights, engine, model):
    model.fails_on = 200
    broken = engine.submit(
        GenerationRequest(prompt=(1, 200), sampling_params=SamplingParams(max_tokens=4))
    )
    drain(engine)
    with pytest.raises(EngineError, match="told to fail"):
        broken.text()
    assert engine.stats().blocks_free == engine.stats().blocks_total
    assert generate(engine, REQUESTS[:1]) == generate(
        Engine(weights, config(), backend=FakeModel()), REQUESTS[:1]
    )


def test_logits_that_are_not_finite_fail_their_own_request_only(weights, engine, model):
    model.breaks_on = 200
    broken = engine.submit(
        GenerationRequest(prompt=(1, 200), sampling_params=SamplingParams(max_tokens=4))
    )
    sound = engine.submit(REQUESTS[0])
    drain(engine)
    assert broken.finish_reason == "error"
    with pytest.raises(EngineError, match="not finite"):
        broken.text()
    assert sound.text() == generate(Engine(weights, config(), backend=FakeModel()), REQUESTS[:1])[0]


def test_a_request_too_long_for_the_context_is_refused_with_the_numbers(engine):
    with pytest.raises(
        RequestError,
        match=r"200 tokens .* up to 100 make 300, the context holds "
        r"256",
    ):
        engine.submit(
            GenerationRequest(prompt=(1,) * 200, sampling_params=SamplingParams(max_tokens=100))
        )
    assert engine.stats().waiting == 0


def test_the_context_is_never_more_than_the_cache_can_hold(weights):
    engine = Engine(weights, config(kv_bytes=5 * TINY_BLOCK_BYTES), backend=FakeModel(5))
    with pytest.raises(RequestError, match="the context holds 80"):
        engine.submit(
            GenerationRequest(prompt=(1,) * 60, sampling_params=SamplingParams(max_tokens=21))
        )
    assert (
        len(
            generate(
                engine,
                [
                    GenerationRequest(
                        prompt=(1,) * 60, sampling_params=SamplingParams(max_tokens=20)
                    )
                ],
            )[0]
        )
        > 0
    )


@pytest.mark.parametrize("wanted, got", [(2048, 2048), (4096, 4096), (100_000, 8192)])
def test_the_context_is_what_the_owner_sets_up_to_what_the_model_was_made_for(weights, wanted, got):
    long = dataclasses.replace(
        weights, architecture=dataclasses.replace(weights.architecture, context_length=8192)
    )
    assert EngineConfig().context == 2048
    engine = Engine(long, EngineConfig(context=wanted), backend=FakeModel(600))
    assert engine.context == got
    request = GenerationRequest(
        prompt=(1,) * (got - 4), sampling_params=SamplingParams(max_tokens=4, speculate=False)
    )
    if wanted == 4096:
        assert len(generate(engine, [request])[0]) == 4
    with pytest.raises(RequestError, match=f"the context holds {got}"):
        engine.submit(dataclasses.replace(request, sampling_params=SamplingParams(max_tokens=5)))


@pytest.mark.parametrize("token", [-1, 257])
def test_a_token_that_the_model_does_not_know_is_refused(engine, token):
    with pytest.raises(RequestError, match=r"outside 0\.\.256"):
        engine.submit(
            GenerationRequest(prompt=(1, token), sampling_params=SamplingParams(max_tokens=5))
        )


def test_an_unknown_adapter_is_refused(engine):
    with pytest.raises(RequestError, match="'nobody' is not loaded; loaded: none"):
        engine.submit(GenerationRequest(prompt=(1,), adapter="nobody"))


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(weights):
    engine = Engine(weights, config(max_waiting=1), backend=FakeModel())
    kept = engine.submit(REQUESTS[0])
    with pytest.raises(OverloadedError):
        engine.submit(REQUESTS[1])
    drain(engine)
    assert kept.finish_reason == "length"
    assert len(generate(engine, [REQUESTS[1]])[0]) > 0


def test_a_request_that_waits_too_long_is_told_so(weights):
    now = [0.0]
    engine = Engine(
        weights,
        config(max_running=1, queue_timeout_s=5.0),
        backend=FakeModel(),
        clock=lambda: now[0],
    )
    first, second = engine.submit(REQUESTS[0]), engine.submit(REQUESTS[1])
    engine.step()
    now[0] = 6.0
    drain(engine)
    assert first.finish_reason == "length"
    with pytest.raises(OverloadedError, match="longer than 5 s"):
        second.text()


def test_the_thread_serves_callers_and_stopping_cancels_the_rest(weights):
    engine = Engine(weights, config(), backend=FakeModel())
    engine.start()
    engine.start()  # a second start is the same start
    expected = generate(Engine(weights, config(), backend=FakeModel()), REQUESTS)
    assert [
        generation.text() for generation in [engine.submit(request) for request in REQUESTS]
    ] == expected
    long = engine.submit(
        GenerationRequest(prompt=(1,), sampling_params=SamplingParams(max_tokens=255))
    )
    next(long)
    engine.stop()
    assert long.finish_reason in ("cancelled", "length")
    assert engine.stats().blocks_free == engine.stats().blocks_total
    with pytest.raises(EngineError, match="was stopped"):
        engine.submit(REQUESTS[0])
    engine.start()
    assert engine.submit(REQUESTS[0]).text() == expected[0]
    engine.stop()


async def test_tasks_read_answers_of_the_thread(weights):
    engine = Engine(weights, config(), backend=FakeModel())
    engine.start()

    async def read(request: GenerationRequest) -> str:
        return "".join([piece.text async for piece in engine.submit(request)])

    texts = await asyncio.gather(*(read(request) for request in REQUESTS))
    engine.stop()
    assert list(texts) == generate(Engine(weights, config(), backend=FakeModel()), REQUESTS)


def test_an_engine_that_broke_down_tells_every_caller(weights, engine, model):
    model.crash = SystemExit("out of everything")  # no step failure, which the engine would survive
    early = [engine.submit(request) for request in REQUESTS]
    engine.start()
    for generation in early:
        with pytest.raises(EngineError, match=r"broke down \(out of everything\); restart it"):
            generation.text()
    with pytest.raises(EngineError, match="broke down"):
        engine.submit(REQUESTS[0])
    engine.stop()
    assert engine.stats().blocks_free == engine.stats().blocks_total


def test_a_step_is_a_line_of_the_log_which_is_not_made_when_it_is_off(weights, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("quietchoir"), "propagate", True)
    engine = Engine(weights, config(), backend=FakeModel())
    with caplog.at_level(logging.DEBUG, "quietchoir.engine"):
        generate(engine, REQUESTS[:2])
    # once each: elsewhere in the process a second handler of caplog's may be hung on our logger
    records = {id(one): one for one in caplog.records}.values()
    lines = [one.message for one in records if one.message.startswith("step ")]
    assert len(lines) == engine.stats().steps
    assert re.match(r"step 1: 45 rows in .* ms \(43 prompt, 2 answers, 0 of 0 drafts", lines[0])
    monkeypatch.delattr(Engine, "_trace")
    with caplog.at_level(logging.INFO, "quietchoir.engine"):
        generate(engine, REQUESTS[:2])


def test_how_long_a_request_took_is_told_once_when_it_ends(weights, model):
    now, told = iter(range(1000)), list[Timing]()
    engine = Engine(
        weights, config(), backend=model, clock=lambda: float(next(now)), observe=told.append
    )
    served, refused = engine.submit(REQUESTS[0]), engine.submit(REQUESTS[1])
    refused.cancel()
    drain(engine)
    assert served.finish_reason and refused.finish_reason == "cancelled"
    cancelled, done = told
    assert cancelled.first_token_s is None and cancelled.tokens == 0
    assert done.tokens == served.completion_tokens
    assert done.first_token_s is not None
    assert 0 < done.queue_s < done.first_token_s < done.total_s


def test_fewer_are_admitted_while_the_machine_is_spared_and_who_runs_goes_on(weights, model):
    engine = Engine(weights, config(max_running=4), backend=model)
    for request in REQUESTS[:4]:
        engine.submit(request)
    engine.step()
    running = engine.stats().running
    engine.admit(1)
    later = engine.submit(REQUESTS[4])
    engine.step()
    assert running > 1 and engine.stats().running == running
    engine.admit(99)  # never more than the owner's own limit
    assert engine.scheduler.max_admitted == 4
    engine.admit(0)  # and never none
    drain(engine)
    assert later.finish_reason and engine.stats().finished == 5
