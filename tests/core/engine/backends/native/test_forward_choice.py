"""Which runner a model gets, and that whoever gets the slower one is told why."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.runner import NativeRunner, usable_cores
from quietchoir.core.engine.backends.select import processor_runner
from quietchoir.core.engine.backends.torch_cpu.runner import Runner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.tests.fakes.native import architecture, random_weights


@pytest.fixture(autouse=True)
def lines_reach_the_test(monkeypatch):
    """Also after a test that sent them to standard error alone."""
    monkeypatch.setattr(logging.getLogger("quietchoir"), "propagate", True)


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_a_model_that_the_native_engine_runs_is_given_to_it(caplog):
    with caplog.at_level(logging.INFO, "quietchoir.engine"):
        assert isinstance(
            processor_runner(random_weights(architecture()), 4, threads=1), NativeRunner
        )
    assert f"with {library.instruction_set()}" in caplog.text


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_another_model_goes_to_torch_with_the_reason_in_the_log(caplog):
    with caplog.at_level(logging.INFO, "quietchoir.engine"):
        assert isinstance(processor_runner(random_weights(architecture(head_dim=8)), 4), Runner)
    assert "heads of 8 are no multiple of 16" in caplog.text


def test_the_owner_may_switch_it_off(caplog, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "off")
    assert isinstance(processor_runner(random_weights(architecture()), 4), Runner)
    assert "QUIETCHOIR_NATIVE=off" in caplog.text


@pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled")
def test_in_the_thread_of_the_native_engine_torch_computes_alone_and_elsewhere_as_before():
    """Torch's threads spin after their work, on the cores that the native engine needs."""
    before, seen = torch.get_num_threads(), []

    class Watched(NativeRunner):
        def forward(self, batch):
            seen.append(torch.get_num_threads())
            return super().forward(batch)

    weights = random_weights(architecture(), "Q4_0")
    engine = Engine(
        weights, EngineConfig(context=64, threads=2), model=Watched(weights, 8, threads=2)
    )
    engine.start()
    engine.submit(GenerationRequest(prompt=(1, 2, 3), max_tokens=2)).text()
    engine.stop()
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == before
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_there_is_at_least_one_core():
    assert usable_cores() >= 1
