"""Several adapters in one batch, changed while requests run."""

import pytest
import torch

from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import Generation, GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.errors import ModelFileError, RequestError
from quietchoir.core.models.lora.adapter import Adapter
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import (
    config,
    drain,
    generate,
    merged,
    tiny_adapter,
    tiny_weights,
)

PROMPTS = [(5, 9, 33), tuple(range(40, 70)), (200,)]
ADAPTERS = {name: tiny_adapter(seed) for name, seed in (("one", 1), ("two", 2), ("three", 3))}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


@pytest.fixture
def engine(weights: Weights) -> Engine:
    """Its shelf holds "one", "two" and "three"."""
    engine = Engine(weights, config())
    for name, adapter in ADAPTERS.items():
        engine.adapters.load(name, adapter)
    return engine


def request(prompt: tuple[int, ...], adapter: str | None = None) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt, sampling_params=SamplingParams(max_tokens=20), adapter=adapter
    )


def alone(weights: Weights, prompt: tuple[int, ...], adapter: Adapter | None = None) -> str:
    """The text of a model that has the adapter in its weights."""
    base = weights if adapter is None else merged(weights, adapter)
    return generate(Engine(base, config()), [request(prompt)])[0]


def test_a_request_with_an_adapter_says_what_merged_weights_say(weights, engine):
    said = generate(engine, [request(PROMPTS[1], "one")])[0]
    assert said == alone(weights, PROMPTS[1], ADAPTERS["one"])
    assert said != alone(weights, PROMPTS[1])


def test_several_adapters_and_none_share_a_batch_without_touching_each_other(weights, engine):
    pairs = [(prompt, name) for prompt in PROMPTS for name in ("two", None, "one", "three")]
    texts = generate(engine, [request(prompt, name) for prompt, name in pairs])
    assert engine.scheduler.limits.max_running >= len(pairs)
    assert texts == [
        alone(weights, prompt, ADAPTERS[name] if name else None) for prompt, name in pairs
    ]


def test_a_running_request_keeps_its_version_when_the_adapter_is_replaced_or_removed(
    weights, engine
):
    old, base = engine.submit(request(PROMPTS[0], "one")), engine.submit(request(PROMPTS[1]))
    drain(engine, until=lambda: old.completion_tokens == 6)
    engine.adapters.load("one", ADAPTERS["two"])
    new = engine.submit(request(PROMPTS[0], "one"))
    drain(engine, until=lambda: new.completion_tokens == 3)
    engine.adapters.unload("one")
    drain(engine)
    assert old.text() == alone(weights, PROMPTS[0], ADAPTERS["one"])
    assert new.text() == alone(weights, PROMPTS[0], ADAPTERS["two"])
    assert base.text() == alone(weights, PROMPTS[1])


def test_adapters_come_and_go_under_a_running_thread(weights, engine):
    engine.start()
    base: list[Generation] = [engine.submit(request(prompt)) for prompt in PROMPTS]
    for _ in range(20):
        engine.adapters.load("one", ADAPTERS["one"])
        engine.adapters.load("one", ADAPTERS["three"])
    changed = engine.submit(request(PROMPTS[0], "one"))
    engine.adapters.unload("one")
    assert [generation.text() for generation in base] == [
        alone(weights, prompt) for prompt in PROMPTS
    ]
    assert changed.text() == alone(weights, PROMPTS[0], ADAPTERS["three"])
    engine.stop()


def test_changing_the_callers_tensors_does_not_change_a_loaded_adapter(weights, engine):
    mine = tiny_adapter(1)
    engine.adapters.load("mine", mine)
    for tensor in mine.tensors.values():
        tensor.zero_()
    assert generate(engine, [request(PROMPTS[0], "mine")])[0] == alone(
        weights, PROMPTS[0], ADAPTERS["one"]
    )


def test_an_adapter_of_another_base_is_refused_and_the_shelf_is_unchanged(engine):
    with pytest.raises(RequestError, match="was trained on base eeee"):
        engine.adapters.load("four", tiny_adapter(1, base_digest="e" * 64))
    assert engine.adapters.names() == ("one", "three", "two")


def test_a_foreign_adapter_that_names_no_base_is_taken_if_it_fits(weights, engine):
    foreign = tiny_adapter(2, base_digest="")
    engine.adapters.load("foreign", foreign)
    assert generate(engine, [request(PROMPTS[0], "foreign")])[0] == alone(
        weights, PROMPTS[0], ADAPTERS["two"]
    )
    name = next(iter(foreign.tensors))
    crooked = Adapter(foreign.shape, "", {**foreign.tensors, name: torch.zeros(4, 7)})
    with pytest.raises(ModelFileError):
        engine.adapters.load("crooked", crooked)
    assert "crooked" not in engine.adapters.names()


def test_an_unloaded_adapter_is_unknown_to_new_requests(engine):
    engine.adapters.unload("two")
    with pytest.raises(RequestError, match="'two' is not loaded; loaded: one, three"):
        engine.submit(request(PROMPTS[0], "two"))
    with pytest.raises(RequestError, match="'two' is not loaded"):
        engine.adapters.unload("two")


def test_an_adapter_needs_a_name(engine):
    with pytest.raises(RequestError, match="needs a name"):
        engine.adapters.load("", ADAPTERS["one"])
