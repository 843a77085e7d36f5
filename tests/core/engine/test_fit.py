"""Which models run here: what they take from their own heads, and the bound that memory sets."""

import dataclasses
from pathlib import Path

import pytest

from quietchoir import cli
from quietchoir.core.config import EngineConfig
from quietchoir.core.engine import fit
from quietchoir.core.engine.fit import MachineMemory, ModelNeeds
from quietchoir.tests.fakes.models import GgufWriter, make_model

MACHINE = MachineMemory(bytes=16 << 30, free=8 << 30, limit=12 << 30, read_bytes_s=20e9)


def test_speed_is_what_memory_allows_and_room_is_weights_cache_and_the_program() -> None:
    needs = ModelNeeds(
        weight_bytes=4 << 30, read_bytes=2 << 30, cache_bytes=128 << 10, context=8192
    )
    engine = EngineConfig(context=4096, max_running=2, kv_bytes=4 << 30)
    found = fit.fit("x", needs, MACHINE, engine)
    assert found.bytes == (4 << 30) + 2 * 4096 * (128 << 10)
    small = dataclasses.replace(engine, kv_bytes=1 << 20)
    assert fit.fit("x", needs, MACHINE, small).bytes == (4 << 30) + (1 << 20)
    assert found.fits and found.now
    assert found.tokens_per_s == 20e9 / (2 << 30)
    longer = dataclasses.replace(engine, context=1 << 20)
    assert fit.fit("x", needs, MACHINE, longer).context == 8192
    larger = dataclasses.replace(needs, weight_bytes=11 << 30)
    assert fit.fit("x", larger, MACHINE, small).fits
    assert not fit.fit("x", larger, MACHINE, small).now
    recurrent = dataclasses.replace(needs, cache_bytes=1 << 10, state_bytes=1 << 28)
    found = fit.fit("x", recurrent, MACHINE, engine)  # two that run, four copies to go on from
    assert found.cache_bytes == (2 + 4) * (1 << 28) + 2 * 4096 * (1 << 10)
    huge = dataclasses.replace(needs, weight_bytes=13 << 30)
    assert not fit.fit("x", huge, MACHINE, small).fits


def test_a_file_tells_what_a_token_reads_of_it(tmp_path: Path) -> None:
    plain, mixture = tmp_path / "plain.gguf", tmp_path / "mixture.gguf"
    GgufWriter(make_model("llama2"), plain).write()  # its head is a matrix of its own
    GgufWriter(make_model("mixtral"), mixture).write()
    needs = fit.needs_of_file(plain)
    assert needs.weight_bytes - needs.read_bytes == 300 * 64 * 4  # the embedding
    assert needs.cache_bytes == 8 * 2 * 4 * 16 * 2 and needs.context == 512
    sparse = fit.needs_of_file(mixture)
    assert sparse.read_bytes < 0.8 * sparse.weight_bytes
    unread = tmp_path / "unread.gguf"
    unread.write_bytes(b"nothing that can be read")
    told = ModelNeeds(weight_bytes=24, read_bytes=24, cache_bytes=0, context=0)
    assert fit.needs_of(unread) == told


def test_memory_is_measured_and_the_table_names_every_known_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "READ_BYTES", 8 << 20)
    assert fit.read_speed(2) > 1e8
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path))
    monkeypatch.setattr(fit, "measure_memory", lambda *_: MACHINE)
    assert cli.main(["model", "fit", "--context", "4096"]) == 0
    said = capsys.readouterr().out
    assert "20.0 GB/s" in said and "qwen3-0.6b" in said and "olmo-2-1124-13b-instruct" in said
    assert cli.main(["model", "fit", "qwen3-4b", "nothing"]) == 1
    assert cli.main(["model", "fit", "--context", "0"]) == 2
