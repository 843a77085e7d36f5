"""A smaller model that guesses: the same texts, fewer steps where it is right, and none where it
does not pay.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.draft_model import MOST_ANSWERS, DraftModel
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.engine.sampling.speculation import RETRY, DraftTrust
from quietchoir.core.errors import ConfigError
from quietchoir.core.models.tokenizer.vocabulary import UNUSED
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import config, generate, tiny_adapter, tiny_weights

LENGTH = 40


class Ticking:
    """A clock on which a step of the large model takes ten times as long as one of the small."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def timed(backend: Any, clock: Ticking, seconds: float) -> Any:
    forward = backend.forward

    def slower(batch: Any) -> Any:
        clock.now += seconds
        return forward(batch)

    backend.forward = slower
    return backend


@pytest.fixture(scope="module")
def tiny() -> Weights:
    return tiny_weights()


Make = Callable[..., Engine]


def guessing(engine: Engine) -> DraftModel:
    assert engine.draft is not None
    return engine.draft


@pytest.fixture(scope="module")
def make(tiny: Weights) -> Make:
    def made(draft: Weights | None = None, seconds: float = 0.1, **changes: Any) -> Engine:
        clock, settings = Ticking(), config(**changes)
        guessing = None
        if draft is not None:
            guessing = DraftModel.load(draft, tiny, settings, settings.context, clock)
            timed(guessing.backend, clock, seconds)
        engine = Engine(tiny, settings, clock=clock, draft=guessing)
        timed(engine.backend, clock, 1.0)
        engine.adapters.load("a", tiny_adapter(1))
        return engine

    return made


def asked(count: int = 2, adapter: str | None = None, **params: Any) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt=(at + 3, 2 * at + 5, 7, 9),
            adapter=adapter,
            sampling_params=SamplingParams(**{"max_tokens": LENGTH, "speculate": True} | params),
        )
        for at in range(count)
    ]


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "seed": 4, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.3},
)


@pytest.mark.parametrize("params", SETTINGS)
@pytest.mark.parametrize("other", [1, 2])
def test_guesses_change_no_text(make: Make, params: dict[str, Any], other: int) -> None:
    expected = generate(make(), asked(**params | {"speculate": False}))
    engine = make(tiny_weights(other))
    assert generate(engine, asked(**params)) == expected
    found = engine.stats()
    assert found.drafted > 0
    if other == 1:  # the same model: it knows every word
        assert found.accepted == found.drafted > LENGTH
        assert found.steps < LENGTH
    assert not guessing(engine)._shadows  # nothing is held of those that ended


def test_a_guide_that_does_not_pay_is_asked_no_more_than_now_and_then(make: Make) -> None:
    bad = make(tiny_weights(2))
    generate(bad, asked(1, max_tokens=200, temperature=1.0, seed=1))
    assert 0 < bad.stats().drafted < 60
    slow = make(tiny_weights(1), seconds=2.0)
    generate(slow, asked(1))
    assert slow.stats().drafted < LENGTH / 2


def test_by_rule_there_are_none_for_adapters_forms_and_crowds(make: Make) -> None:
    form = Constraint("regex", "[a-z]{30}")
    for request in (
        asked(1, adapter="a"),
        asked(1, constraint=form),
        asked(1, speculate=False),
        asked(MOST_ANSWERS + 1, temperature=1.0, seed=1),
    ):
        engine = make(tiny_weights(1), drafts=1)
        engine.scheduler.speculation_cost.learn(len(request), 0, 1.0)
        generate(engine, request)
        assert not guessing(engine)._shadows


def test_a_model_of_another_vocabulary_is_refused(tiny: Weights) -> None:
    vocabulary = tiny.tokenizer.vocabulary
    other = replace(vocabulary, tokens=("other", *vocabulary.tokens[1:]))
    strange = replace(tiny, tokenizer=type(tiny.tokenizer)(other))
    with pytest.raises(ConfigError, match="another vocabulary: its token 0 is 'other'"):
        Engine(tiny, EngineConfig(context=64), draft=strange)


def of_size(weights: Weights, size: int, **vocabulary: Any) -> Weights:
    """The first tokens alone."""
    own = weights.tokenizer.vocabulary
    parts = {"tokens": own.tokens[:size], "token_types": own.token_types[:size]} | vocabulary
    return replace(
        weights,
        architecture=replace(weights.architecture, vocab_size=size),
        tensors={
            name: tensor.part(0, size) if tensor.shape[0] == weights.vocab_size else tensor
            for name, tensor in weights.tensors.items()
        },
        tokenizer=type(weights.tokenizer)(replace(own, **parts)),
    )


def test_a_model_of_fewer_or_more_tokens_is_refused_unless_no_text_has_them(tiny: Weights) -> None:
    size, own = tiny.vocab_size, tiny.tokenizer.vocabulary
    shorter = of_size(tiny, size - 2)
    with pytest.raises(ConfigError, match=f"its token {size - 2} is None"):
        Engine(tiny, config(), draft=shorter)
    with pytest.raises(ConfigError, match="the model's is None"):
        Engine(shorter, config(), draft=tiny)
    with pytest.raises(ConfigError, match="spelled as sentencepiece"):
        Engine(tiny, config(), draft=of_size(tiny, size, spelling="sentencepiece"))
    padded = of_size(tiny, size, token_types=(*own.token_types[:-2], UNUSED, UNUSED))
    engine = Engine(padded, config(), draft=shorter)
    rare = GenerationRequest(
        prompt=(5, size - 1, 9),
        sampling_params=SamplingParams(
            max_tokens=LENGTH, speculate=True, logit_bias=((size - 2, 100.0),)
        ),
    )
    whole = Engine(padded, config())
    for request in (rare, *asked(1)):
        # more is guessed than now and then: costs are not measured here
        engine.scheduler.speculation_cost.learn(1, 0, 1.0)
        before = engine.stats().drafted
        assert generate(engine, [request]) == generate(whole, [request])
        assert engine.stats().drafted > before
    assert not guessing(engine)._given_up


def test_a_draft_model_that_breaks_takes_no_answer_with_it_and_helps_the_next(make: Make) -> None:
    expected = generate(make(), asked(speculate=False))
    engine = make(tiny_weights(1))
    draft, calls = guessing(engine), 0
    works = draft.backend.forward

    def broken(_: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        raise RuntimeError("no")

    draft.backend.forward = broken  # type: ignore[method-assign, assignment]
    assert generate(engine, asked()) == expected
    assert calls == 1 and engine.stats().drafted == 0
    draft.backend.forward = works  # type: ignore[method-assign]
    assert generate(engine, asked()) == expected
    assert engine.stats().drafted > LENGTH / 2 and not draft._given_up


def test_trust_follows_what_was_right_and_lengths_follow_trust_and_cost() -> None:
    trust = DraftTrust()
    assert trust.length(8, float("inf")) == 0
    for _ in range(20):
        trust.learn(4, 4)
    assert trust.length(8, 0.2) == 8
    for _ in range(40):
        trust.learn(4, 0)
    lengths = [trust.length(8, 0.2) for _ in range(2 * RETRY)]
    assert lengths.count(0) == 2 * RETRY - 2 and max(lengths) == 1
