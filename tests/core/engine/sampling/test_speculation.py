"""Guessed tokens: they change how many steps an answer takes and nothing else."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.block_pool import BlockPool
from quietchoir.core.engine.engine import Engine, EngineStats
from quietchoir.core.engine.request import Generation, GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.sampling.speculation import PromptLookup, SpeculationCost
from quietchoir.core.engine.sampling.state import RandomStream
from quietchoir.core.engine.scheduler import Batch, Scheduler, SchedulerLimits, Span
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import (
    END,
    TINY_BLOCK_BYTES,
    FakeModel,
    config,
    drain,
    tiny_weights,
)

REFRAIN = b"the cat sat on the mat, the cat sat on the mat. " * 3


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


def saying(
    weights: Weights, text: bytes, drafts: int, **params: Any
) -> tuple[Generation, EngineStats]:
    """An answer of a model that says `text`."""
    model = FakeModel()
    model.script = [*text, *([END] * 64)]
    engine = Engine(weights, config(drafts=drafts), backend=model, clock=lambda: 0.0)
    generation = engine.submit(
        GenerationRequest(
            prompt=(1, 2, 3), sampling_params=SamplingParams(**{"max_tokens": 200, **params})
        )
    )
    drain(engine)
    return generation, engine.stats()


def test_what_repeats_takes_fewer_steps_and_is_the_same_text(weights):
    plain, slow = saying(weights, REFRAIN, drafts=0)
    guessed, fast = saying(weights, REFRAIN, drafts=8)
    assert guessed.text() == plain.text() == REFRAIN.decode()
    assert (guessed.finish_reason, guessed.completion_tokens) == (
        plain.finish_reason,
        plain.completion_tokens,
    )
    assert slow.drafted == 0 and fast.steps < slow.steps / 2
    assert fast.steps + fast.accepted == slow.steps
    assert fast.accepted > 0.5 * fast.drafted
    assert fast.completion_tokens == slow.completion_tokens


def test_what_does_not_repeat_is_hardly_guessed_at(weights):
    """The fake model's own words: the same three tokens never come with the same fourth."""
    engine = Engine(weights, config(), backend=FakeModel(), clock=lambda: 0.0)
    prompt = tuple(b"abcabcabcabcabdabeabfabg")
    generations = [
        engine.submit(
            GenerationRequest(
                prompt=(*prompt, number), sampling_params=SamplingParams(max_tokens=200)
            )
        )
        for number in range(4)
    ]
    drain(engine)
    assert sum(generation.completion_tokens for generation in generations) == 800
    assert engine.stats().drafted < 16


@pytest.mark.parametrize(
    "request_",
    [
        {"stop": ("mat. the",)},
        {"max_tokens": 61},
        {"temperature": 0.7, "seed": 3, "speculate": True},
        {"presence_penalty": 0.5, "frequency_penalty": 0.1, "repetition_penalty": 1.05},
        {"logit_bias": ((32, 2.0),)},
        {"logprobs": 3},
    ],
)
def test_guessing_goes_with_every_other_setting(weights, request_):
    plain, _ = saying(weights, REFRAIN, drafts=0, **request_)
    guessed, stats = saying(weights, REFRAIN, drafts=8, **request_)
    assert stats.accepted > 10
    assert pieces(guessed) == pieces(plain)
    assert guessed.finish_reason == plain.finish_reason


def pieces(generation: Generation) -> list[object]:
    return [(piece.text, piece.token, piece.logprobs, piece.finish_reason) for piece in generation]


@pytest.mark.parametrize("request_", [{"speculate": False}, {"seed": 1}])
def test_a_request_can_forbid_guessing_and_one_that_wants_its_text_again_does(weights, request_):
    generation, stats = saying(weights, REFRAIN, drafts=8, **request_)
    assert (stats.drafted, stats.accepted) == (0, 0)
    assert generation.text() == REFRAIN.decode()


def test_the_end_among_guessed_tokens_ends_the_answer(weights):
    model = FakeModel()
    model.script = [*b"xyz one two three", END, *b" never said", *([END] * 9)]
    engine = Engine(weights, config(), backend=model, clock=lambda: 0.0)
    prompt = (*b"xyz one two three", END, *b" never said ")
    generation = engine.submit(
        GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=60))
    )
    drain(engine)
    assert generation.text() == "xyz one two three"
    assert engine.stats().accepted > 5


def test_rejected_rows_leave_no_block_and_no_trace_behind(weights):
    books = Scheduler(BlockPool(8), SchedulerLimits(drafts=8))
    one = Sequence(
        GenerationRequest(prompt=tuple(range(14)), sampling_params=SamplingParams(max_tokens=100))
    )
    books.add(one)
    books.commit(books.plan(), [50])
    one.block_table += books.pool.allocate(1)
    guess = Span(one, one.num_computed_tokens, 9, sampled=9, drafts=(1, 2, 3, 4, 5, 6, 7, 8))
    assert books.commit(Batch((guess,)), [1, 2, 30, 31, 32, 33, 34, 35, 36]) == [[1, 2, 30]]
    assert one.tokens[14:] == [50, 1, 2, 30]
    assert (one.num_computed_tokens, len(one.block_table)) == (17, 2)
    books.check_integrity()
    again = Span(one, one.num_computed_tokens, 2, sampled=2, drafts=(9,))
    assert books.commit(Batch((again,)), [None, 5]) == [[None]]


def test_guesses_take_no_block_that_somebody_may_need_for_his_next_token():
    books = Scheduler(BlockPool(1), SchedulerLimits(drafts=8))
    one = Sequence(
        GenerationRequest(prompt=(1, 2, 3) * 4, sampling_params=SamplingParams(max_tokens=100))
    )
    books.add(one)
    books.commit(books.plan(), [1])
    one.sampling.lookup.trust = 0.99
    # the block has 16 places, 12 are taken, the last token needs one
    assert books.plan().spans[0].count == 4


def test_a_seed_gives_the_same_text_with_and_without_guesses_on_a_real_network(weights):
    requests = [
        GenerationRequest(
            prompt=tuple(b"one two one two one two"),
            sampling_params=SamplingParams(
                max_tokens=60, temperature=0.3, seed=seed, speculate=True
            ),
        )
        for seed in range(4)
    ]
    texts, accepted = [], []
    for drafts in (0, 8):
        engine = Engine(weights, config(drafts=drafts), clock=lambda: 0.0)
        generations = [engine.submit(request) for request in requests]
        drain(engine)
        texts.append([generation.text() for generation in generations])
        accepted.append(engine.stats().accepted)
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    assert accepted[0] == 0


def test_looking_ahead_at_random_numbers_uses_none_up():
    one, two = RandomStream(7), RandomStream(7)
    assert one.peek(3) == one.peek(3)
    assert [one.peek(place) for place in range(4)] == [two.peek(place) for place in range(4)]
    one.take(2)
    assert one.peek(0) == two.peek(2)


def test_the_last_thing_that_followed_is_guessed_as_far_as_it_is_worth_it():
    tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3]
    assert PromptLookup().propose(tokens, len(tokens), most=8, cost=0.2) == (4,)
    sure = PromptLookup()
    sure.trust = 0.95
    assert sure.propose(tokens, len(tokens), most=8, cost=0.2) == (4, 5, 6, 9, 1, 2, 3)
    assert sure.propose(tokens, len(tokens), most=2, cost=0.2) == (4, 5)
    assert sure.propose(tokens, len(tokens), most=8, cost=0.9) == ()
    assert sure.propose([1, 2, 7], 3, most=8, cost=0.1) == ()


def test_trust_falls_with_wrong_guesses_and_rises_with_right_ones_also_while_none_are_made():
    lookup, tokens = PromptLookup(), [1, 2, 3] * 4
    for wrong in range(10, 30):
        tokens += [1, 2, 3, wrong]
        lookup.propose(tokens, 12, most=8, cost=0.9)
    low = lookup.trust
    assert low < 0.75  # three in four followed as before, the fourth never
    for _ in range(20):
        tokens += [1, 2, 3, 4]
        lookup.propose(tokens, 12, most=8, cost=0.9)
    assert lookup.trust > 0.9


def test_a_price_follows_what_steps_took_and_forgets():
    price = SpeculationCost()
    first = price.of_row(2)
    for _ in range(60):
        price.learn(2, 0, 0.010)
        price.learn(2, 4, 0.0104)  # four rows cost a twenty-fifth of the step
    assert price.of_row(2) < first / 4
    for _ in range(60):
        price.learn(2, 4, 0.020)
    assert price.of_row(2) > first
    for _ in range(2000):
        price.learn(2, 0, 0.010)
    assert price.of_row(2) == pytest.approx(first, rel=0.05)
    # beside sixteen answers a row costs nearly what a token costs, until it is measured
    assert price.of_row(16) > 0.7


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.booleans()), min_size=1, max_size=6
    ),
    st.integers(8, 16),
)
def test_whatever_is_guessed_the_logits_of_rejected_rows_reach_nobody(asked, blocks):
    """A model that loves to repeat itself, in little memory, with preemption: the same texts as
    one token at a time.
    """
    weights = tiny_weights()
    requests = [
        GenerationRequest(
            prompt=tuple(b"ab" * length),
            sampling_params=SamplingParams(
                max_tokens=answer, temperature=0.5 * hot, seed=5, speculate=True
            ),
        )
        for length, answer, hot in asked
    ]
    texts = []
    for drafts, room in ((0, 64), (8, blocks)):
        model = Repeating(room)
        engine = Engine(
            weights,
            config(kv_bytes=room * TINY_BLOCK_BYTES, drafts=drafts),
            backend=model,
            clock=lambda: 0.0,
        )
        generations = [engine.submit(request) for request in requests]
        drain(engine)
        texts.append([generation.text() for generation in generations])
    assert texts[0] == texts[1]


class Repeating(FakeModel):
    """Says what followed the last two tokens before, mostly."""

    def _logits(self, context, prompt):
        logits = super()._logits(context, prompt)
        if len(context) % 7:
            logits[context[-2] if len(context) > 1 else 5] += 11.0
        return logits


def test_a_batch_with_guesses_gives_the_logits_of_one_row_at_a_time(weights):
    runner = TorchRunner(weights, blocks=4)
    one = Sequence(
        GenerationRequest(prompt=(5, 6, 7), sampling_params=SamplingParams(max_tokens=50))
    )
    one.block_table = [2, 0]
    together = runner.forward(Batch((Span(one, 0, 6, sampled=4, drafts=(8, 9, 10)),)))
    other = Sequence(one.request)
    other.tokens, other.block_table = [5, 6, 7, 8, 9, 10], [1, 3]
    for place in range(6):
        alone = runner.forward(Batch((Span(other, place, 1, sampled=1),)))
        if place >= 2:
            assert (together[place - 2] - alone[0]).abs().max() < 1e-4
