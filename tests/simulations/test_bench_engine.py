"""What `bench engine` and `bench gpu` are made of, on a model of eight narrow layers. No figure is judged here."""

from pathlib import Path

import pytest

from quietchoir.core.errors import ConfigError, QuietchoirError
from quietchoir.core.models import weights
from quietchoir.simulations.bench import contest, engine, gpu, random_model
from quietchoir.simulations.bench.figures import look_up
from quietchoir.simulations.bench.peers.workload import Prompts
from quietchoir.simulations.bench.stopwatch import Sample


@pytest.fixture(scope="module")
def tiny(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write(tmp_path_factory.mktemp("bench") / "tiny.gguf", model_path, random_model.TINY, seed=1)


def test_a_random_model_loads_and_follows_from_its_seed(tiny: Path, model_path: Path) -> None:
    loaded = weights.load(tiny)
    assert (loaded.architecture.layers, loaded.architecture.width) == (8, 64)
    assert {blocks.kind for blocks in loaded.tensors.values()} == {"Q4_0", "Q8_0", "F32"}
    assert loaded.tokenizer.encode("hello") == weights.load(model_path).tokenizer.encode("hello")
    again, other = (
        random_model.write(tiny.with_name(f"{seed}.gguf"), model_path, random_model.TINY, seed=seed) for seed in (1, 2)
    )
    assert again.read_bytes() == tiny.read_bytes() != other.read_bytes()


def test_engines_in_processes_of_their_own_are_asked_in_turn_and_all_end(tiny: Path) -> None:
    two = [contest.Contender("ours", tiny, 1), contest.Contender("no_compiler", tiny, 1, {"QUIETCHOIR_NATIVE": "off"})]
    try:
        for one in two:
            one.start()
        found = contest.in_turn(two, {"b2": {"what": "decode", "batch": 2, "tokens": 3, "adapters": 1}}, repeats=2)
        assert all(len(found[one.name]["b2"].seconds) == 2 and one.ask({"what": "peak_mb"}) > 100 for one in two)
    finally:
        for one in two:
            one.close()
    assert all(one.process is not None and one.process.returncode == 0 for one in two)


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
    found = {name: {key: Sample((speed, speed)) for key in engine.KEYS} for name, speed in speeds.items()}
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
    assert all(look_up(report, figure.key) >= 0 for figure in gpu.figures(report))


def test_without_a_gpu_there_are_no_gpu_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device here"):
        gpu.measure(quick=False, tell=lambda words: None)
