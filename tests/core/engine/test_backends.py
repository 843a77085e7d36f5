"""Which backend serves, and what each says of itself."""

import pytest
import torch

from quietchoir.core.engine.backends.backend import Backend
from quietchoir.core.engine.backends.cuda.ops import TorchOps
from quietchoir.core.engine.backends.cuda.runner import CudaRunner
from quietchoir.core.engine.backends.native.runner import NativeRunner, supports
from quietchoir.core.engine.backends.select import select
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.errors import CacheError, ConfigError
from quietchoir.tests.fakes.engine import FakeModel, config, tiny_weights
from quietchoir.tests.fakes.native import architecture, random_weights

BLOCKS = 8
needs_kernels = pytest.mark.skipif(
    supports(random_weights(architecture())) is not None, reason="the kernels were not compiled"
)


def native() -> Backend:
    return NativeRunner(random_weights(architecture()), BLOCKS, threads=1)


def on_device() -> Backend:
    plain = TorchOps(torch.float32)
    device = torch.device("cpu")
    return CudaRunner(tiny_weights(), BLOCKS, 256, device=device, ops=plain, cpu_layers=1)


BACKENDS = [
    pytest.param(native, marks=needs_kernels, id="native"),
    pytest.param(lambda: TorchRunner(tiny_weights(), BLOCKS), id="torch, float32"),
    pytest.param(lambda: TorchRunner(random_weights(architecture(), "Q8_0"), BLOCKS), id="torch"),
    pytest.param(on_device, id="cuda, on the CPU"),
    pytest.param(lambda: FakeModel(BLOCKS), id="the tests' own"),
]


def cache_bytes(backend: Backend) -> int:
    """What the cache takes, by what was allocated."""
    if isinstance(backend, NativeRunner):
        return backend.network.cache.nbytes
    if isinstance(backend, TorchRunner):
        kinds = (backend.cache.keys, backend.cache.values)
        return sum(part.nbytes for kind in kinds for part in kind.values())
    assert isinstance(backend, CudaRunner)
    # one block more, for padding rows
    caches = (backend.cpu.cache, backend.cache)
    whole = sum(cache.integers.nbytes + cache.scales.nbytes for cache in caches)
    return whole * BLOCKS // (BLOCKS + 1)


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


@pytest.mark.parametrize("make", BACKENDS[:-1])
def test_a_cache_takes_the_memory_that_its_backend_counts(make) -> None:
    backend = make()
    assert cache_bytes(backend) == BLOCKS * backend.block_bytes


@pytest.mark.parametrize("environment", ["", "off"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_an_engine_has_as_many_blocks_as_the_memory_holds(
    environment: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the weights: the compiled cache is bfloat16, torch's float32 beside floats."""
    monkeypatch.setenv("QUIETCHOIR_NATIVE", environment)
    weights = random_weights(architecture(), kind)
    choice = select(weights, config())
    built = choice.build(BLOCKS, 256)
    assert built.block_bytes == choice.block_bytes
    assert cache_bytes(built) == BLOCKS * choice.block_bytes
    engine = Engine(weights, config(kv_bytes=5 * choice.block_bytes + 1, context=256))
    assert engine.scheduler.pool.total == 5
    assert engine.scheduler.deterministic == isinstance(engine.backend, NativeRunner)
    assert isinstance(built, NativeRunner) == (supports(weights) is None)


@pytest.mark.parametrize("make", BACKENDS)
def test_blocks_can_be_read_written_and_cleared_and_no_others_change(make) -> None:
    backend = make()
    empty = backend.read_cache([0])
    head, _, payload = empty.partition(b"\n")
    size = len(payload)
    numbers = bytes([1, 0] * (size // 2))  # finite in every layout
    backend.write_cache([0, 2], head + b"\n" + numbers + numbers)
    written = backend.read_cache([2])
    assert backend.read_cache([0]) == written != empty
    with pytest.raises(CacheError):
        backend.write_cache([2], head + b"\n" + numbers[1:])
    with pytest.raises(CacheError):
        backend.write_cache([2], b"other" + head + b"\n" + numbers)
    assert backend.read_cache([2]) == written
    backend.clear_cache([2])
    assert set(backend.read_cache([2]).partition(b"\n")[2]) == {0}
    assert backend.read_cache([0]) == written
