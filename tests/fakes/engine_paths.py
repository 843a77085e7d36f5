"""The ways that a greedy answer can take through an engine; whichever it is, the text must be
that of the plain one.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import Constraint, SamplingParams
from quietchoir.core.engine.scheduler import SchedulerLimits
from quietchoir.tests.fakes.engine import drain, generate

SYSTEM = tuple(b"You answer in one line, and repeat: one line. ")
ASKED = [
    (*SYSTEM, *ask)
    for ask in (b"one two", b"the cat sat on the mat, the cat sat", b"?", b"abc" * 30)
]
MOST = 40
Make = Callable[..., Engine]


def requests(
    prompts: list[tuple[int, ...]], adapter: str | None = None, **settings: Any
) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt=prompt,
            sampling_params=SamplingParams(max_tokens=MOST, **settings),
            adapter=adapter,
        )
        for prompt in prompts
    ]


def with_params(request: GenerationRequest, **changes: Any) -> GenerationRequest:
    """The same prompt, sampled otherwise."""
    params = dataclasses.replace(request.sampling_params, **changes)
    return dataclasses.replace(request, sampling_params=params)


def few_words(adapter: str | None) -> list[GenerationRequest]:
    """What the tiny model is asked: it may choose among few tokens, so that it repeats itself
    and guesses come true.
    """
    return requests(ASKED, adapter=adapter, logit_bias=tuple((token, 25.0) for token in b"abcde "))


def plainly(make: Make, asked: list[GenerationRequest]) -> list[str]:
    """Each alone, its prompt in one chunk, no guesses, nothing shared."""
    return [generate(make(drafts=0, share_prefixes=False), [request])[0] for request in asked]


def batched(make: Make, asked: list[GenerationRequest]) -> list[str]:
    return generate(make(drafts=0, share_prefixes=False), asked)


def preempted(make: Make, asked: list[GenerationRequest]) -> list[str]:
    engine = make(drafts=0, share_prefixes=False, blocks=14)
    texts = generate(engine, asked)
    assert engine.stats().preemptions > 0
    return texts


def chunked(make: Make, asked: list[GenerationRequest]) -> list[str]:
    engine = make(drafts=0, share_prefixes=False)
    engine.scheduler.limits = SchedulerLimits(
        step_rows=13, shared_rows=5, share_prefixes=False, drafts=0
    )
    texts = generate(engine, asked)
    assert engine.stats().steps > MOST + 20
    return texts


def shared(make: Make, asked: list[GenerationRequest]) -> list[str]:
    engine = make(drafts=0)
    generate(engine, asked[:1])
    texts = generate(engine, asked)
    assert engine.stats().reused_tokens >= 2 * len(asked) * 16
    return texts


def guessed(make: Make, asked: list[GenerationRequest]) -> list[str]:
    engine = make(share_prefixes=False)
    texts = generate(engine, asked)
    assert engine.stats().accepted > 0
    return texts


def restored(make: Make, asked: list[GenerationRequest], folder: Path) -> list[str]:
    first, second = make(drafts=0), make(drafts=0)
    generate(first, asked)
    first.conversations.save_latest(folder, 8)
    second.conversations.restore_latest(folder)
    texts = generate(second, asked)
    assert second.stats().reused_tokens > 0
    return texts


def told(make: Make, asked: list[GenerationRequest]) -> list[str]:
    """With log-probabilities beside it, and beside a neighbour that is drawn, penalised and in a
    form.
    """
    engine = make()
    neighbour = with_params(
        asked[0],
        temperature=1.0,
        presence_penalty=1.0,
        logprobs=None,
        constraint=Constraint("regex", "[a-z ]*"),
    )
    return generate(engine, [neighbour, *(with_params(one, logprobs=2) for one in asked)])[1:]


def everything(make: Make, asked: list[GenerationRequest]) -> list[str]:
    """Little memory, small chunks, shared beginnings, guesses, and a neighbour that comes and
    goes.
    """
    engine = make(blocks=14)
    engine.scheduler.limits = SchedulerLimits(step_rows=24, shared_rows=8, max_running=3)
    generations = [engine.submit(request) for request in asked]
    drain(engine, until=lambda: generations[0].completion_tokens > 3)
    leaving = engine.submit(asked[-1])
    drain(engine, until=lambda: generations[1].completion_tokens > 9)
    leaving.cancel()
    drain(engine)
    return [generation.text() for generation in generations]


WAYS: list[Callable[[Make, list[GenerationRequest]], list[str]]] = [
    batched,
    preempted,
    chunked,
    shared,
    guessed,
    told,
    everything,
]
