"""Which runner serves."""

import pytest

from quietchoir.core.engine.backends import select as choose
from quietchoir.core.engine.backends.native.runner import NativeRunner, supports
from quietchoir.core.engine.engine import Engine
from quietchoir.core.errors import ConfigError
from quietchoir.tests.fakes.engine import config, tiny_weights


def test_a_gpu_that_is_asked_for_and_not_there_is_said_before_anything_is_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError,
        match=r'engine\.device is "cuda", but torch finds no CUDA '
        r'device here; set it to "cpu"',
    ):
        Engine(tiny_weights(), config(device="cuda"))


@pytest.mark.parametrize("native", ["", "off"])
def test_a_cache_takes_the_memory_that_is_counted_for_it(
    native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIETCHOIR_NATIVE", native)
    weights = tiny_weights()  # of floats alone: torch's cache is float32, the compiled one bfloat16
    runner = choose.processor_runner(weights, 8)
    taken = (
        runner.network.cache.nbytes
        if isinstance(runner, NativeRunner)
        else sum(part.nbytes for part in (runner.cache.keys, runner.cache.values))  # type: ignore[attr-defined]
    )
    assert isinstance(runner, NativeRunner) == (native != "off" and supports(weights) is None)
    assert taken == 8 * choose.cache_block_bytes(weights, config())
