"""Which runner serves."""

import pytest

from quietchoir.core.engine.engine import Engine
from quietchoir.core.errors import ConfigError
from quietchoir.tests.fakes_engine import config, tiny_weights


def test_a_gpu_that_is_asked_for_and_not_there_is_said_before_anything_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r'engine\.device is "cuda", but torch finds no CUDA device here; set it to "cpu"'):
        Engine(tiny_weights(), config(device="cuda"))
