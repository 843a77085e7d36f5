"""Everything at once, at random: sharing, guesses, grammars, seeds, adapters, little memory, and
callers who leave.
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.engine.scheduler import SchedulerLimits
from quietchoir.tests.fakes.engine import (
    TINY_BLOCK_BYTES,
    FakeModel,
    config,
    generate,
    tiny_weights,
)

CASES = 400 if os.environ.get("QUIETCHOIR_FUZZ") == "full" else 40
WEIGHTS = tiny_weights()
BEGINNINGS = [tuple(range(5, 55)), tuple(range(5, 40)) * 2, tuple(b"ab" * 30)]
SETTINGS = st.sampled_from(
    [
        {},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 0.8, "seed": 2, "speculate": True},
        {"constraint": Constraint("regex", "[a-f]+(xyz[0-9]{4}){1,4}"), "speculate": True},
        {"presence_penalty": 3.0, "logprobs": 1},
        {"frequency_penalty": 1.0, "repetition_penalty": 1.3, "stop": ("ab",)},
        {"logit_bias": ((97, 20.0), (98, 20.0))},
    ]
)
ASKED = st.tuples(
    st.integers(0, 2),
    st.integers(1, 70),
    st.integers(1, 30),
    SETTINGS,
    st.none() | st.integers(1, 25),
)


class Parrot(FakeModel):
    """Its words depend on all it finds in its memory, and often repeat what stood two places
    before.
    """

    def _logits(self, context, prompt):
        logits = super()._logits(context, prompt)
        if len(context) > 3 and len(context) % 5:
            logits[context[-2]] += 12.0
        return logits


@pytest.mark.fuzz
@settings(max_examples=CASES, deadline=None)
@given(
    st.lists(ASKED, min_size=1, max_size=9),
    st.integers(7, 20),
    st.integers(3, 40),
    st.integers(0, 8),
)
def test_every_answer_is_the_one_it_would_have_been_alone(asked, blocks, rows, drafts):
    requests = [
        GenerationRequest(
            prompt=BEGINNINGS[kind][:length],
            sampling_params=SamplingParams(max_tokens=answer, **settings),
        )
        for kind, length, answer, settings, _ in asked
    ]
    engine = Engine(
        WEIGHTS,
        config(kv_bytes=blocks * TINY_BLOCK_BYTES, drafts=drafts),
        backend=Parrot(blocks),
        clock=lambda: 0.0,
    )
    engine.scheduler.limits = SchedulerLimits(
        max_running=4, step_rows=rows, shared_rows=max(1, rows // 2), drafts=drafts
    )
    generations = [engine.submit(request) for request in requests]
    leaving = {
        generation: case[4]
        for generation, case in zip(generations, asked, strict=True)
        if case[4] is not None
    }
    while engine.stats().running + engine.stats().waiting:
        engine.step()
        engine.scheduler.check_integrity()
        for generation, after in leaving.items():
            if generation.completion_tokens >= after:
                generation.cancel()
    for generation, request in zip(generations, requests, strict=True):
        alone = generate(
            Engine(
                WEIGHTS, config(share_prefixes=False, drafts=0), backend=Parrot(), clock=lambda: 0.0
            ),
            [request],
        )[0]
        text = "".join(piece.text for piece in generation)
        assert alone == text if generation.finish_reason != "cancelled" else alone.startswith(text)
    assert engine.stats().blocks_free == blocks
