"""What is found again in the cache, by whom, and what is given away first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.engine.block_pool import BLOCK_TOKENS, BlockPool
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.prefix_cache import PrefixCache
from quietchoir.core.engine.request import GenerationRequest, TextDelta
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import SchedulerLimits
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import (
    END,
    TINY_BLOCK_BYTES,
    FakeModel,
    config,
    drain,
    generate,
    tiny_adapter,
    tiny_weights,
)

SYSTEM = tuple(range(1, 41))  # two full blocks and a half
QUESTIONS = [SYSTEM + (100 + number,) * (3 + number) for number in range(5)]
REQUESTS = [
    GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=20))
    for prompt in QUESTIONS
]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


def plainly(weights: Weights, requests: list[GenerationRequest]) -> list[str]:
    """Texts of requests that share nothing with anybody."""
    return [
        generate(Engine(weights, config(share_prefixes=False, drafts=0)), [request])[0]
        for request in requests
    ]


def test_requests_that_begin_alike_share_blocks_and_say_what_they_say_alone(weights):
    engine = Engine(weights, config())
    first = generate(engine, REQUESTS[:1])
    assert engine.stats().reused_tokens == 0
    rest = generate(engine, REQUESTS[1:])
    assert first + rest == plainly(weights, REQUESTS)
    assert engine.stats().reused_tokens == 4 * 2 * BLOCK_TOKENS
    read = engine.stats().prompt_tokens + engine.stats().reused_tokens
    # the last token of a prompt counts with the answer
    assert read == sum(len(prompt) - 1 for prompt in QUESTIONS)


def test_a_conversations_next_turn_reads_only_what_is_new(weights):
    engine = Engine(weights, config())
    first = GenerationRequest(prompt=SYSTEM, sampling_params=SamplingParams(max_tokens=40))
    said = [token for piece in ended(engine, first) if (token := piece.token) is not None]
    turn = GenerationRequest(
        prompt=(*SYSTEM, *said[:-1], 7, 8, 9), sampling_params=SamplingParams(max_tokens=10)
    )
    before = engine.stats().prompt_tokens
    text = generate(engine, [turn])
    assert engine.stats().reused_tokens == (len(turn.prompt) - 4) // BLOCK_TOKENS * BLOCK_TOKENS
    assert (
        engine.stats().prompt_tokens - before == len(turn.prompt) - 1 - engine.stats().reused_tokens
    )
    assert text == plainly(weights, [turn])


def ended(engine: Engine, request: GenerationRequest) -> list[TextDelta]:
    generation = engine.submit(request)
    drain(engine)
    return [piece for piece in generation if piece.token is not None and piece.token != END]


def test_requests_that_come_together_share_what_the_first_has_read(weights):
    engine = Engine(weights, config(max_running=5))
    long = tuple(range(1, 200)) + (3,) * 40
    requests = [
        GenerationRequest(prompt=(*long, number), sampling_params=SamplingParams(max_tokens=5))
        for number in range(4)
    ]
    engine.scheduler.limits = SchedulerLimits(step_rows=64, shared_rows=64)
    assert generate(engine, requests) == plainly(weights, requests)
    assert engine.stats().reused_tokens > 2 * len(long)


def test_other_adapters_and_other_versions_share_nothing(weights):
    engine = Engine(weights, config())
    request = GenerationRequest(
        prompt=SYSTEM, sampling_params=SamplingParams(max_tokens=8), adapter="a"
    )
    engine.adapters.load("a", tiny_adapter(1))
    plain = generate(
        engine, [GenerationRequest(prompt=SYSTEM, sampling_params=SamplingParams(max_tokens=8))]
    )
    first = generate(engine, [request])
    engine.adapters.load("a", tiny_adapter(2))
    second = generate(engine, [request])
    assert engine.stats().reused_tokens == 0
    engine.adapters.load("a", tiny_adapter(1))
    again = generate(engine, [request])
    assert engine.stats().reused_tokens == 2 * BLOCK_TOKENS
    assert again == first
    assert len({*plain, *first, *second}) == 3


def test_a_request_with_a_seed_computes_everything_anew_and_leaves_it_to_others(weights):
    engine = Engine(weights, config())
    seeded = GenerationRequest(
        prompt=QUESTIONS[0], sampling_params=SamplingParams(max_tokens=9, temperature=1.0, seed=2)
    )
    texts = [generate(engine, [seeded])[0] for _ in range(2)]
    assert texts[0] == texts[1] and engine.stats().reused_tokens == 0
    generate(engine, REQUESTS[1:2])
    assert engine.stats().reused_tokens == 2 * BLOCK_TOKENS
    generate(engine, [seeded, REQUESTS[0], seeded])
    assert engine.stats().blocks_free == engine.stats().blocks_total


def test_sharing_can_be_turned_off(weights):
    engine = Engine(weights, config(share_prefixes=False))
    assert generate(engine, REQUESTS) == plainly(weights, REQUESTS)
    assert (engine.stats().reused_tokens, engine.stats().blocks_cached) == (0, 0)


def test_kept_blocks_give_way_to_requests_that_need_room(weights):
    engine = Engine(weights, config(kv_bytes=9 * TINY_BLOCK_BYTES))
    texts = generate(engine, REQUESTS)
    other = GenerationRequest(
        prompt=tuple(range(120, 240)), sampling_params=SamplingParams(max_tokens=20)
    )
    assert generate(engine, [other]) == plainly(weights, [other])
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total
    assert generate(engine, REQUESTS) == texts


def test_what_was_used_last_is_given_away_last():
    pool = BlockPool(4)
    prefixes = PrefixCache(pool)
    blocks = pool.allocate(4)
    root = prefixes.root("")
    old, new = prefixes.add(root, [1] * 16, blocks[0]), prefixes.add(root, [2] * 16, blocks[1])
    behind = prefixes.add(new, [3] * 16, blocks[2])
    pool.release([old.block])
    pool.release([new.block, behind.block])
    pool.release([blocks[3]])
    assert (pool.cached, pool.free) == (3, 4)
    assert pool.allocate(1) == [blocks[3]]
    assert pool.allocate(1) == [old.block]
    assert prefixes.follow(root, [2] * 16 + [3] * 16, 9) == [new, behind]
    assert pool.allocate(1) == [behind.block]
    assert prefixes.follow(root, [2] * 16 + [3] * 16, 9) == [new]
    prefixes.check_integrity()


def test_a_block_is_found_only_by_all_tokens_before_it():
    pool = BlockPool(4)
    prefixes = PrefixCache(pool)
    one, two = pool.allocate(2)
    first = prefixes.add(prefixes.root(""), [1] * 16, one)
    prefixes.add(first, [2] * 16, two)
    assert prefixes.follow(prefixes.root(""), [9] * 16 + [2] * 16, 2) == []
    assert prefixes.follow(prefixes.root("other"), [1] * 16, 1) == []
    assert [node.block for node in prefixes.follow(prefixes.root(""), [1] * 16 + [2] * 16, 1)] == [
        one
    ]


def test_a_free_block_cannot_be_shared():
    with pytest.raises(RuntimeError, match="free and cannot be shared"):
        BlockPool(2).share(0)


def test_integrity_notices_a_block_that_counts_an_owner_who_left():
    pool = BlockPool(2)
    block = pool.allocate(1)[0]
    PrefixCache(pool).add(PrefixCache(pool).root(""), [1] * 16, block)
    pool.share(block)
    with pytest.raises(RuntimeError, match="owners that have left"):
        pool.check_integrity([block])


def test_what_a_broken_request_wrote_is_found_by_nobody(weights):
    model = FakeModel()
    engine = Engine(weights, config(), backend=model)
    model.breaks_on = 200
    broken = engine.submit(
        GenerationRequest(
            prompt=(*SYSTEM, 200, *SYSTEM), sampling_params=SamplingParams(max_tokens=4)
        )
    )
    drain(engine)
    assert broken.finish_reason == "error"
    assert engine.stats().blocks_cached == 0
    # wiped: infinities would outlive a mask
    assert set(model.memory[: 6 * BLOCK_TOKENS]) <= {0, -1}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 70), st.integers(1, 30)),
        min_size=1,
        max_size=10,
    ),
    st.integers(7, 20),
)
def test_whatever_is_shared_every_text_is_the_text_alone(asked, blocks):
    """The fake model reads its memory, so a block that is shared wrongly or too early changes a
    text.
    """
    weights = tiny_weights()
    requests = [
        GenerationRequest(
            prompt=(*range(kind, kind + 60), *range(200, 250))[:length],
            sampling_params=SamplingParams(max_tokens=answer),
        )
        for kind, length, answer in asked
    ]
    shared = Engine(
        weights,
        config(kv_bytes=blocks * TINY_BLOCK_BYTES, max_running=4),
        backend=FakeModel(blocks),
    )
    alone = [
        generate(
            Engine(weights, config(share_prefixes=False, drafts=0), backend=FakeModel()), [request]
        )[0]
        for request in requests
    ]
    assert generate(shared, requests) == alone
    assert generate(shared, requests) == alone
