"""The runner for CUDA, its graphs left out, on the CPU: the same code, tensors elsewhere; whole,
and cut at every layer.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quietchoir.core.engine.adapters import LoadedAdapter
from quietchoir.core.engine.backends.cuda.adapters import SLOTS, AdapterSlots
from quietchoir.core.engine.backends.cuda.ops import Ops, TorchOps
from quietchoir.core.engine.backends.cuda.runner import CudaRunner
from quietchoir.core.engine.backends.cuda.triton_ops import TritonOps
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.block_pool import BlockPool
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import Scheduler, SchedulerLimits
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.errors import CacheError, ConfigError, RequestError
from quietchoir.core.models.checkpoint import from_hf
from quietchoir.core.models.lora.adapter import Adapter
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import (
    END,
    byte_tokenizer,
    config,
    generate,
    tiny_adapter,
    tiny_weights,
)
from quietchoir.tests.fakes.models import make_model

CPU, BLOCKS, CONTEXT = torch.device("cpu"), 40, 256
PROMPTS = [
    tuple(torch.randint(0, END, (n,), generator=torch.Generator().manual_seed(n)).tolist())
    for n in (1, 5, 17, 40)
]
MIXED = SchedulerLimits(step_rows=37, shared_rows=11, drafts=0)
PLAIN, FUSED = TorchOps(torch.float32), TritonOps(torch.float32)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


def runner(weights: Weights, ops: Ops = PLAIN, cpu_layers: int = 0) -> CudaRunner:
    return CudaRunner(
        weights, BLOCKS, CONTEXT, cpu_layers=cpu_layers, device=CPU, ops=ops, dtype=torch.float32
    )


def rounding(weights: Weights) -> TorchRunner:
    """The CPU's runner, its keys and values rounded to the device's 8 bits."""
    oracle = TorchRunner(weights, blocks=BLOCKS, compute=torch.float32)
    write = oracle.cache.write

    def rounded(x: Tensor) -> Tensor:
        scale = (x.abs().amax(-1, keepdim=True) / 127).half().float()
        return (x / scale.clamp(min=1e-12)).round().clamp(-127, 127) * scale

    oracle.cache.write = lambda layer, places, k, v: write(layer, places, rounded(k), rounded(v))  # type: ignore[method-assign]
    return oracle


def in_step(
    devices: list[CudaRunner],
    oracle: TorchRunner,
    steps: int,
    adapter: Adapter | None,
    limits: SchedulerLimits = MIXED,
) -> int:
    """Run chunks, single rows and padded steps of several prompts through all of them; rows
    compared.
    """
    engine = Engine(tiny_weights(), config(), backend=oracle)
    if adapter is not None:
        engine.adapters.load("a", adapter)
    names = (None, "a", None, "a") if adapter else (None,) * 4
    books = Scheduler(BlockPool(BLOCKS), limits)
    for prompt, name in zip(PROMPTS, names, strict=True):
        books.add(
            Sequence(
                GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=6)),
                adapter=engine.adapters.find(name),
            )
        )
    compared = 0
    for _ in range(steps):
        batch = books.plan()
        expected = oracle.forward(batch)
        for device in devices:
            # A half may round either way, which moves a logit by less than a hundredth; logits
            # reach 13.
            torch.testing.assert_close(device.forward(batch), expected, atol=2e-2, rtol=0.0)
            compared += len(expected)
        books.commit(batch, (expected.argmax(-1) % END).tolist())
    return compared


def test_a_mixed_batch_gives_the_logits_of_the_cpu_s_runner_wherever_the_cut_is(weights):
    devices = [runner(weights, PLAIN, cpu_layers) for cpu_layers in (0, 1, 2)]
    assert in_step(devices, rounding(weights), 8, tiny_adapter(1)) >= 2 * 8 * len(devices)


def test_so_it_does_through_the_fused_kernels(weights):
    small = SchedulerLimits(
        step_rows=18, shared_rows=3, drafts=0
    )  # a step that is not recorded, and one that is: the interpreter is slow
    assert (
        in_step(
            [runner(weights, FUSED, cpu_layers=1)], rounding(weights), 2, tiny_adapter(1), small
        )
        >= 4
    )


@pytest.mark.parametrize("name", ["gemma3", "qwen2-windowed", "qwen3"])
def test_so_do_families_that_do_more_than_llama(name, tmp_path: Path):
    """Norms of what layers add, windows, two kinds of rope, norms of heads, biases."""
    make_model(name).save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    whole = Weights(
        architecture,
        from_hf.name_tensors(tmp_path, architecture),
        byte_tokenizer(),
        digest="d" * 64,
    )
    assert in_step([runner(whole), runner(whole, cpu_layers=3)], rounding(whole), 5, None) >= 20


def test_an_adapter_changes_only_the_rows_that_ask_for_it(weights):
    device = runner(weights, cpu_layers=1)
    engine = Engine(weights, config(), backend=device)
    engine.adapters.load("a", tiny_adapter(1))
    engine.adapters.load("b", tiny_adapter(2))
    requests = [
        GenerationRequest(
            prompt=PROMPTS[2], sampling_params=SamplingParams(max_tokens=24), adapter=name
        )
        for name in (None, "a", "b")
    ]
    alone = [generate(engine, [request])[0] for request in requests]
    assert len(set(alone)) == 3
    assert generate(engine, requests) == alone
    # the lower layer's factors are not on the device
    assert {name.split(".")[2] for name in device.slots.factors} == {"1"}


def slot_adapter(number: int, rank: int) -> LoadedAdapter:
    a = torch.full((6, rank), float(number))
    return LoadedAdapter(
        f"{number}",
        {f"model.layers.{layer}.mlp.down_proj": (a, torch.ones(rank, 4)) for layer in (0, 3)},
    )


def test_slots_grow_as_adapters_come_and_keep_what_they_hold():
    slots, x = AdapterSlots(CPU, torch.float32, first_layer=3), torch.ones(3, 6)
    adapters = [slot_adapter(number, rank=1 + number % 3) for number in range(1, SLOTS + 3)]
    module = "model.layers.3.mlp.down_proj"
    for number, adapter in enumerate(adapters, start=1):
        slot = slots.place([None, adapter])
        assert slot is not None
        rows = torch.tensor([0, slot[1], slot[1]])
        expected = torch.tensor(
            [0.0, 6.0 * number * (1 + number % 3), 6.0 * number * (1 + number % 3)]
        )
        by_row, by_run = (
            slots.by_row(module, x, rows),
            slots.by_run(module, x, [(0, 1), (slot[1], 2)]),
        )
        assert (
            by_row is not None
            and by_run is not None
            and torch.equal(by_row, by_run)
            and torch.equal(by_row[:, 0], expected)
        )
        # no room for sixteen where one is
        assert len(slots.factors[module][0]) - 1 <= max(2 * number, 1)
    generation = slots.generation
    assert slots.place(adapters[-SLOTS:]) is not None
    assert slots.generation == generation  # all at their places: nothing has moved
    with pytest.raises(RequestError, match="17 different adapters"):
        slots.place(adapters[:17])
    assert set(slots.factors) == {module}
    assert slots.place([None]) is None


def test_a_saved_cache_fits_wherever_the_cut_is_and_a_foreign_one_nowhere(weights):
    devices = [runner(weights, cpu_layers=cpu_layers) for cpu_layers in (0, 1, 2)]
    for device in devices:
        batch_of(device, PROMPTS[3])
    saved = devices[0].read_cache([0, 1, 2])
    assert saved.startswith(b"cuda int8 2x2x16x8\n")
    for device in devices:
        device.write_cache([3, 4, 5], saved)
        assert device.read_cache([3, 4, 5]) == saved
        before = device.read_cache([0, 1, 2])
        for bad in (
            saved[:-1],
            b"torch float32 2x16x2x8\n" + saved,
            saved.replace(b"int8", b"int4"),
            saved[:-2] + b"\xff\x7f",
        ):
            with pytest.raises(CacheError):
                device.write_cache([0, 1, 2], bad)
        assert device.read_cache([0, 1, 2]) == before


def test_a_model_that_the_device_cannot_compute_is_refused(weights):
    biased = dataclasses.replace(weights.architecture, biases=("self_attn.o_proj",))
    with pytest.raises(ConfigError, match="runs on the CPU"):
        runner(dataclasses.replace(weights, architecture=biased))


def batch_of(device: CudaRunner, prompt: tuple[int, ...]) -> None:
    """One prompt through the model."""
    books = Scheduler(BlockPool(BLOCKS), SchedulerLimits())
    books.add(Sequence(GenerationRequest(prompt=prompt)))
    device.forward(books.plan())
