"""Prompts on another device: the same answers, and nobody waits for a device that is gone."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core import parts
from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.export import verification
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.network import kept_parts
from quietchoir.core.engine.backends.native.runner import NativeRunner, as_bfloat16
from quietchoir.core.engine.backends.openvino import graph, plan, runner
from quietchoir.core.engine.backends.openvino.runner import LEAST_ROWS, PREFILL, PlannedRunner
from quietchoir.core.engine.backends.select import select
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.errors import CacheError, ConfigError, DeviceLostError, ModelError
from quietchoir.core.hardware.plan import TRIES
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import generate
from quietchoir.tests.fakes.native import architecture, random_weights

pytestmark = pytest.mark.skipif(library.available() is not None, reason="no compiled kernels")
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)
BLOCKS = 32


class TorchPrompts:
    """Another device: the very graph that is exported, computed by torch."""

    def __init__(self, weights: Weights, *, fails_at: int = -1) -> None:
        self.network, self.asked, self.fails_at = graph.PromptGraph(weights), 0, fails_at

    def __call__(self, tokens: Sequence[int], rows: Sequence[int]) -> tuple[Any, Any, Any]:
        if self.asked == self.fails_at:
            raise DeviceLostError("it was pulled out")
        self.asked += 1
        with torch.no_grad():
            found = self.network(torch.tensor(tokens), torch.tensor(list(rows)))
        logits, keys, values = (one.numpy() for one in found)
        return logits, keys, values


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(architecture())


def requests(count: int) -> list[GenerationRequest]:
    """Prompts longer than what is worth asking about, that begin differently."""
    draw = np.random.default_rng(3)
    return [
        GenerationRequest(
            prompt=tuple(draw.integers(0, 256, LEAST_ROWS + 5 * number).tolist()),
            sampling_params=SamplingParams(max_tokens=6),
        )
        for number in range(count)
    ]


def engine_of(weights: Weights, prompts: TorchPrompts) -> tuple[Engine, PlannedRunner]:
    inner = NativeRunner(weights, BLOCKS, 1)
    planned = PlannedRunner(weights, inner, {"other": lambda: prompts})
    config = EngineConfig(context=256, kv_bytes=BLOCKS * planned.block_bytes, max_running=2)
    return Engine(weights, config, backend=planned), planned


def test_an_answer_goes_on_from_another_devices_prompt(weights: Weights) -> None:
    plain = Engine(weights, EngineConfig(context=256), backend=NativeRunner(weights, 2 * BLOCKS, 1))
    expected = generate(plain, requests(5))
    prompts = TorchPrompts(weights)
    engine, planned = engine_of(weights, prompts)
    assert generate(engine, requests(5)) == expected
    assert prompts.asked >= TRIES  # two of five at least were computed there, and both were timed
    assert {one.job for one in planned.planner.plan()} == {PREFILL}
    planned.close()


def test_a_prompt_moves_when_its_device_disappears(weights: Weights) -> None:
    plain = Engine(weights, EngineConfig(context=256), backend=NativeRunner(weights, 2 * BLOCKS, 1))
    prompts = TorchPrompts(weights, fails_at=1)
    engine, planned = engine_of(weights, prompts)
    assert generate(engine, requests(6)) == generate(plain, requests(6))
    assert planned.planner.lost == {"other": "it was pulled out"}
    assert prompts.asked == 1
    assert engine.stats().failed == 0
    planned.close()


def test_who_wants_the_same_text_again_stays_with_the_kernels(weights: Weights) -> None:
    """The instance: eight answers to one seeded request were of two texts."""
    prompts = TorchPrompts(weights)
    engine, planned = engine_of(weights, prompts)
    seeded = [
        dataclasses.replace(one, sampling_params=SamplingParams(max_tokens=6, seed=7))
        for one in requests(5)
    ]
    generate(engine, seeded)
    assert prompts.asked == 0  # of as many without a seed some are (above)
    planned.close()


def test_keys_and_values_lie_where_the_kernels_write_them(weights: Weights) -> None:
    tokens = requests(1)[0].prompt
    ours, theirs = NativeRunner(weights, 3, 1), NativeRunner(weights, 3, 1)
    verification_span = verification.span_of(tokens, [2, 0, 1])
    ours.forward(verification_span)
    with torch.no_grad():
        _, keys, values = graph.PromptGraph(weights)(torch.tensor(tokens), torch.tensor([0]))
    theirs.write_prompt([2, 0, 1], keys.numpy(), values.numpy())
    for layer, part in kept_parts(weights.architecture, "bf16").items():
        mine, other = (as_float(part.of(one.network.cache)) for one in (ours, theirs))
        near = 0.1 if layer else 0.01  # the kernels' second layer saw the first one's rounded keys
        np.testing.assert_allclose(mine, other, rtol=near, atol=near)
        assert np.count_nonzero(mine) == np.count_nonzero(other)
    with pytest.raises(CacheError, match="do not fit a cache"):
        theirs.write_prompt([0], keys.numpy()[:1], values.numpy()[:1])
    assert as_bfloat16(np.array([1.0], np.float32))[0] == 0x3F80


def as_float(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def test_what_cannot_go_elsewhere_is_refused_when_it_is_asked_for(weights: Weights) -> None:
    windowed = random_weights(architecture(windows=(8, 0)))
    with pytest.raises(ModelError, match="is not exported: it has layers that see a window"):
        graph.PromptGraph(windowed)
    if importlib.util.find_spec("openvino") is None:
        return
    for model, given in ((windowed, {}), (weights, {"kv_type": "q8"})):
        with pytest.raises(ConfigError, match="no other device takes this model's"):
            select(model, EngineConfig(prefill="planned", **given))  # type: ignore[arg-type]


def test_the_plan_that_is_shown_has_the_devices_that_a_node_asks(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = TorchPrompts(weights)
    monkeypatch.setattr(parts, "missing", lambda extra: [])
    monkeypatch.setattr(plan, "devices_of", lambda *_: {"other": lambda: prompts})
    monkeypatch.setattr(plan, "ROWS", (LEAST_ROWS,))
    told: list[str] = []
    planner = plan.measured(weights, EngineConfig(threads=1), told.append, repeats=1)
    (one,) = planner.plan()
    assert (one.job, one.size) == (PREFILL, LEAST_ROWS) and prompts.asked == 2
    assert {one.device, *one.others} == {runner.OWN, "other"} == {*planner.devices}
    plan.measured(weights, EngineConfig(threads=1, kv_type="q8"), told.append, repeats=1)
    assert "its keys and values are kept in q8" in told[-2] and prompts.asked == 2
    monkeypatch.setattr(plan, "supports", lambda _: "too odd")
    with pytest.raises(ConfigError, match=r"torch alone runs this model here \(too odd\)"):
        plan.measured(weights, EngineConfig(), told.append)


@needs_openvino
def test_openvino_computes_the_prompts_of_a_node_that_wants_it(weights: Weights) -> None:
    prompts = runner.OpenVinoPrompts(weights, "CPU", 1)
    logits, keys, values = prompts(list(range(40)), [39])
    with torch.no_grad():
        exact = graph.PromptGraph(weights)(torch.arange(40), torch.tensor([39]))
    for mine, theirs in zip((logits, keys, values), exact, strict=True):
        # its processor multiplies in bfloat16 where it can
        apart = np.sqrt(np.mean((mine - theirs.numpy()) ** 2)) / theirs.numpy().std()
        assert mine.shape == theirs.shape
        assert apart < 0.1, apart
    with pytest.raises(DeviceLostError, match="OpenVINO's NOWHERE"):
        runner.OpenVinoPrompts(weights, "NOWHERE")
    choice = select(weights, EngineConfig(prefill="planned", threads=1))
    backend = choice.build(BLOCKS, 256)
    assert isinstance(backend, PlannedRunner)
    assert "OpenVINO CPU" in backend.planner.devices
    backend.close()
