"""What `bench engine` and `bench gpu` are made of, on a model of eight narrow layers. No figure
is judged here.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from quietchoir.core.errors import ConfigError, QuietchoirError
from quietchoir.core.models import weights
from quietchoir.core.models.hub import catalog
from quietchoir.simulations.bench import contest, engine, gpu, random_model
from quietchoir.simulations.bench.figures import look_up, misses, show
from quietchoir.simulations.bench.peers.workload import Prompts
from quietchoir.simulations.bench.stopwatch import Sample


@pytest.fixture(scope="module")
def tiny(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write(
        tmp_path_factory.mktemp("bench") / "tiny.gguf", model_path, random_model.TINY, seed=1
    )


def test_a_random_model_loads_and_follows_from_its_seed(tiny: Path, model_path: Path) -> None:
    loaded = weights.load(tiny)
    assert (loaded.architecture.num_layers, loaded.architecture.hidden_size) == (8, 64)
    assert {blocks.quant_type for blocks in loaded.tensors.values()} == {"Q4_0", "Q8_0", "F32"}
    assert loaded.tokenizer.encode("hello") == weights.load(model_path).tokenizer.encode("hello")
    again, other = (
        random_model.write(tiny.with_name(f"{seed}.gguf"), model_path, random_model.TINY, seed=seed)
        for seed in (1, 2)
    )
    assert again.read_bytes() == tiny.read_bytes() != other.read_bytes()


def test_engines_in_processes_of_their_own_are_asked_in_turn_and_all_end(tiny: Path) -> None:
    two = [
        contest.Contender("ours", tiny, 1),
        contest.Contender("no_compiler", tiny, 1, {"QUIETCHOIR_NATIVE": "off"}),
    ]
    try:
        for one in two:
            one.start()
        heard: list[int] = []
        orders = {"b2": {"what": "decode", "batch": 2, "tokens": 3, "adapters": 1, "prompt": 5}}
        found = contest.in_turn(
            two, orders, repeats=2, after=lambda part: heard.append(len(part["ours"]["b2"].seconds))
        )
        assert heard == [1, 2]  # the one for warmth is not told
        assert all(
            len(found[one.name]["b2"].seconds) == 2 and one.ask({"what": "peak_mb"}) > 100
            for one in two
        )
    finally:
        for one in two:
            one.close()
    assert all(one.process is not None and one.process.returncode == 0 for one in two)


# Answers orders as a peer does; the first argument says what kills it: nothing, the start, an
# order, or the second of a kind.
FAKE = """
import json, os, signal, sys
fatal = sys.argv[1]
def die(now):
    if now == fatal:
        os.kill(os.getpid(), signal.SIGILL)
die("start")
print("ready", flush=True)
asked = {}
for line in [] if "--first" in sys.argv else sys.stdin:
    what = json.loads(line)["what"]
    asked[what] = asked.get(what, 0) + 1
    die(what)
    die(f"{what} {asked[what]}")
    print(float(sum(asked.values())), flush=True)
"""


LONG = {"prefill_8k": 1.0, "decode_8k": 1.0, "share": 1.0}


def pretend(name: str, fatal: str, *, peer: bool) -> contest.Contender:
    one = contest.Contender(name, Path("none"), 1, peer=peer)
    one.command = [sys.executable, "-c", FAKE, fatal]
    return one


@pytest.mark.parametrize("fatal", ["start", "decode", "prefill 2", "peak_mb"])
def test_a_peer_that_dies_is_a_row_with_its_signal_and_the_others_go_on(
    fatal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deaths = {"llamacpp": fatal}
    monkeypatch.setattr(
        engine,
        "contender",
        lambda name, model: pretend(name, deaths.get(name, "never"), peer=name in engine.PEERS),
    )
    report: dict[str, Any] = {"spread": {}, "ratio": {}}
    read = dict.fromkeys(("ours", "llamacpp", "openvino"), Path("none"))
    engine.compare("", read, engine.QUICK, report, lambda words: None, lambda report: None)
    assert list(report["llamacpp"]) == ["ended"]
    assert report["llamacpp"]["ended"].startswith(
        "the engine llamacpp ended by SIGILL (Illegal instruction)"
    )
    assert not any("llamacpp" in key for key in report["spread"])
    assert (
        set(report["openvino"]) == {*engine.KEYS, "cold_ttft_s", "peak_mb"} == set(report["ours"])
    )
    assert (
        "llamacpp" not in report["ratio"] and report["ratio"]["best"] == report["ratio"]["openvino"]
    )
    rest = {
        "large": {"ratio": {}, "of_bandwidth_b1": 1.0},
        "memory_read_gb_s": 1.0,
        "perplexity": {"worse_percent": 0.0},
    }
    whole = report | rest | {"adapters": {"one": 0.0, "eight": 0.0}}
    rows = list(engine.figures(whole))
    assert [row.key for row in rows if "llamacpp" in row.key] == ["llamacpp.ended"]
    head = {
        "suite": "engine",
        "machine": "here",
        "what": "",
        "seed": 1,
        "repeats": {},
        "clock": "",
        "quick": True,
        "exact": True,
    }
    show(Console(width=200), whole | head | {"aims_missed": misses(whole, rows)}, rows)
    assert "ended by SIGILL" in capsys.readouterr().out


def test_only_the_named_parts_are_measured_and_have_rows(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "find", lambda name: model_path)
    monkeypatch.setattr(engine, "compare", lambda *given: pytest.fail("nobody asked for speeds"))
    monkeypatch.setattr(
        engine, "long_contexts", lambda model, scale, report, tell: report.update(long=LONG)
    )
    report = engine.measure(quick=True, tell=lambda words: None, only=["long"])
    rows = [row.key for row in engine.figures(report)]
    assert rows == ["long.prefill_8k", "long.decode_8k", "long.share"]
    assert report["parts"] == ["long"]


def test_a_peer_whose_quantiser_dies_is_a_row_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "contender", lambda name, model: pretend(name, "start", peer=True))
    place: dict[str, Any] = {}
    read = engine.files(tmp_path / "model.gguf", tmp_path, ["llamacpp", "openvino"], place)
    assert "ended by SIGILL" in place["llamacpp"]["ended"]
    assert set(read) == {"ours", "no_compiler", "openvino"}


def test_a_contest_without_ourselves_is_over() -> None:
    ours, peer = pretend("ours", "decode", peer=False), pretend("llamacpp", "never", peer=True)
    try:
        for one in (ours, peer):
            one.start()
        with pytest.raises(contest.EndedError, match="ours ended by SIGILL"):
            contest.in_turn([ours, peer], {"b1": {"what": "decode"}}, repeats=1)
    finally:
        ours.close()
        peer.close()


def test_an_engine_that_cannot_load_its_model_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    one = contest.Contender("ours", broken, 1)
    try:
        with pytest.raises(QuietchoirError, match=r"ours ended with code 1: .*broken\.gguf"):
            one.start()
    finally:
        one.close()


def test_ours_is_held_against_the_better_of_the_two_strong_peers() -> None:
    speeds = {"ours": 4.0, "llamacpp": 2.0, "openvino": 1.0, "no_compiler": 1.0}
    found = {
        name: {key: Sample((speed, speed)) for key in engine.KEYS} for name, speed in speeds.items()
    }
    found["openvino"]["prefill"] = Sample((8.0, 8.0))
    report: dict[str, object] = {"spread": {}}
    engine.ratios("", found, report)
    assert (look_up(report, "ratio.best.b1"), look_up(report, "ratio.best.prefill")) == (2.0, 0.5)


def test_no_prompt_comes_twice() -> None:
    prompts = Prompts(1)
    seen = [tuple(prompt) for _ in range(5) for prompt in prompts.take(4, 8)]
    assert len(set(seen)) == len(seen)


def test_the_gpu_suite_runs_on_the_cpu_when_it_is_only_tried() -> None:
    report = gpu.measure(quick=True, tell=lambda words: None)
    assert all(math.isfinite(look_up(report, figure.key)) for figure in gpu.figures(report))
    assert "these speeds mean nothing" in report["what"] or torch.cuda.is_available()


def test_without_a_gpu_there_are_no_gpu_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError,
        match=r"no CUDA device here.*--quick.*not measured: [78]\.\d\d "
        r"GiB",
    ) as told:
        gpu.measure(quick=False, tell=lambda words: None)
    assert told.value.exit_code == 2


def test_the_memory_of_13b_is_predicted_from_its_shape_alone() -> None:
    found, scale = gpu.prediction(gpu.GpuScale()), gpu.GpuScale()
    layer = 4 * scale.hidden_size**2 + 3 * scale.hidden_size * scale.intermediate_size
    weights = scale.num_layers * layer + scale.vocab_size * scale.hidden_size
    # of keys and values, the spare block's too
    numbers = 2 * scale.num_layers * scale.hidden_size * (scale.context + 16)
    # pages, and norms
    assert weights * 4.5 / 8 < found["weights_gib"] * gpu.GIB < weights * 4.5 / 8 + (160 << 20)
    assert found["cache_gib"] * gpu.GIB == numbers * (1 + 2 / 128)
    assert (
        found["weights_gib"] + found["cache_gib"]
        < found["ours_gib"]
        < 8.0
        < found["all_in_gib"]
        < 8.4
    )
    assert 36 <= found["layers_in_8_gib"] < scale.num_layers
    smaller = gpu.prediction(dataclasses.replace(scale, context=1024))
    assert smaller["all_in_gib"] < 8.0 and smaller["layers_in_8_gib"] == scale.num_layers
