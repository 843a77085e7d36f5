"""The runner for CUDA, its graphs left out, on the CPU: the same code, tensors elsewhere."""

import pytest
import torch
from torch import Tensor

from quietchoir.core.engine.blockpool import BlockPool
from quietchoir.core.engine.cuda.fused import FusedOperations
from quietchoir.core.engine.cuda.operations import Operations, PlainOperations
from quietchoir.core.engine.cuda.runner import CudaRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.runner import Runner
from quietchoir.core.engine.scheduler import Limits, Scheduler
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.errors import CacheError, ConfigError
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes_engine import END, config, generate, tiny_adapter, tiny_weights

CPU, BLOCKS, CONTEXT = torch.device("cpu"), 40, 256
PROMPTS = [tuple(torch.randint(0, END, (n,), generator=torch.Generator().manual_seed(n)).tolist()) for n in (1, 5, 17, 40)]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


def runner(weights: Weights, operations: Operations | None = None) -> CudaRunner:
    plain = PlainOperations(torch.float32)
    return CudaRunner(weights, BLOCKS, CONTEXT, device=CPU, operations=operations or plain, dtype=torch.float32)


def rounding(oracle: Runner) -> Runner:
    """The CPU's runner, its keys and values rounded to the device's 8 bits."""
    write = oracle.cache.write

    def rounded(x: Tensor) -> Tensor:
        scale = (x.abs().amax(-1, keepdim=True) / 127).half().float()
        return (x / scale.clamp(min=1e-12)).round().clamp(-127, 127) * scale

    oracle.cache.write = lambda layer, places, k, v: write(layer, places, rounded(k), rounded(v))  # type: ignore[method-assign]
    return oracle


@pytest.mark.parametrize(
    ("operations", "steps"), [(PlainOperations(torch.float32), 8), (FusedOperations(torch.float32), 2)], ids=["plain", "fused"]
)
def test_a_mixed_batch_gives_the_logits_of_the_cpu_s_runner(weights, operations, steps):
    """Chunks, single rows, padded steps, with and without an adapter."""
    device, oracle = runner(weights, operations), rounding(Runner(weights, blocks=BLOCKS, compute=torch.float32))
    engine = Engine(weights, config(), model=oracle)
    engine.adapters.load("a", tiny_adapter(1))
    books = Scheduler(BlockPool(BLOCKS), Limits(step_rows=37, shared_rows=11, drafts=0))
    for prompt, name in zip(PROMPTS, (None, "a", None, "a"), strict=True):
        books.add(Sequence(GenerationRequest(prompt=prompt, max_tokens=6), adapter=engine.adapters.find(name)))
    compared = 0
    for _ in range(steps):
        batch = books.plan()
        expected, found = oracle.forward(batch), device.forward(batch)
        # A half may round either way, which moves a logit by less than a hundredth; logits reach 13.
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=0.0)
        compared += len(expected)
        books.commit(batch, expected.argmax(-1).tolist())
    assert compared >= 2 * steps


def test_an_adapter_changes_only_the_rows_that_ask_for_it(weights):
    device = runner(weights)
    engine = Engine(weights, config(), model=device)
    engine.adapters.load("a", tiny_adapter(1))
    engine.adapters.load("b", tiny_adapter(2))
    requests = [GenerationRequest(prompt=PROMPTS[2], max_tokens=24, adapter=name) for name in (None, "a", "b")]
    alone = [generate(engine, [request])[0] for request in requests]
    assert len(set(alone)) == 3
    assert generate(engine, requests) == alone


def test_a_saved_cache_is_taken_back_and_a_foreign_one_is_not(weights):
    device, other = runner(weights), runner(weights)
    batch_of(device, PROMPTS[3])
    saved = device.read_cache([0, 1, 2])
    other.write_cache([3, 4, 5], saved)
    assert other.read_cache([3, 4, 5]) == saved
    before = other.cache.integers.clone()
    for bad in (saved[:-1], b"torch float32 2x16x2x8\n" + saved, saved.replace(b"int8", b"int4")):
        with pytest.raises(CacheError):
            other.write_cache([0, 1, 2], bad)
    assert torch.equal(other.cache.integers, before)


def test_a_model_that_the_device_cannot_compute_is_refused(weights):
    import dataclasses

    gemma = dataclasses.replace(weights, architecture=dataclasses.replace(weights.architecture, post_norms=True))
    with pytest.raises(ConfigError, match="runs on the CPU"):
        runner(gemma)


def batch_of(device: CudaRunner, prompt: tuple[int, ...]) -> None:
    """One prompt through the model."""
    books = Scheduler(BlockPool(BLOCKS), Limits())
    books.add(Sequence(GenerationRequest(prompt=prompt)))
    device.forward(books.plan())
