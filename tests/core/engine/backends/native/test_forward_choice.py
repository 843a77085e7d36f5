"""Which runner a model gets, and that whoever gets the slower one is told why."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.backend import Backend
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.runner import NativeRunner
from quietchoir.core.engine.backends.select import select
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.models.architecture import Architecture
from quietchoir.tests.fakes.native import architecture, random_weights


def served(shape: Architecture) -> Backend:
    """What the engine would choose and build."""
    return select(random_weights(shape), EngineConfig(threads=1)).build(4, 64)


@pytest.fixture(autouse=True)
def lines_reach_the_test(monkeypatch):
    """Also after a test that sent them to standard error alone."""
    monkeypatch.setattr(logging.getLogger("quietchoir"), "propagate", True)


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_a_model_that_the_native_engine_runs_is_given_to_it(caplog):
    with caplog.at_level(logging.INFO, "quietchoir.engine"):
        assert isinstance(served(architecture()), NativeRunner)
    assert f"with {library.instruction_set()}" in caplog.text


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_another_model_goes_to_torch_with_the_reason_in_the_log(caplog):
    with caplog.at_level(logging.INFO, "quietchoir.engine"):
        assert isinstance(served(architecture(head_dim=8)), TorchRunner)
    assert "8 to 10 times slower" in caplog.text
    assert "heads of 8 are no multiple of 16" in caplog.text


def test_the_owner_may_switch_it_off(caplog, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "off")
    assert isinstance(served(architecture()), TorchRunner)
    assert "QUIETCHOIR_NATIVE=off" in caplog.text


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For torch, which takes one in tests."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_in_the_thread_of_the_native_engine_torch_computes_alone_and_elsewhere_as_before(
    two_threads,
):
    """Torch's threads spin after their work, on the cores that the native engine needs."""
    seen = []

    class Watched(NativeRunner):
        def forward(self, batch):
            seen.append(torch.get_num_threads())
            return super().forward(batch)

    weights = random_weights(architecture(), "Q4_0")
    engine = Engine(
        weights, EngineConfig(context=64, threads=2), backend=Watched(weights, 8, threads=2)
    )
    engine.start()
    engine.submit(
        GenerationRequest(prompt=(1, 2, 3), sampling_params=SamplingParams(max_tokens=2))
    ).text()
    engine.stop()
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 2
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
