"""A model cut between processor and device: what is counted is what is taken, and no cut changes
a text.
"""

import dataclasses
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends import select
from quietchoir.core.engine.backends.cuda import memory
from quietchoir.core.engine.backends.cuda.cache import block_bytes
from quietchoir.core.engine.backends.cuda.decoder import Linear
from quietchoir.core.engine.backends.cuda.ops import Heads, Norm, TorchOps
from quietchoir.core.engine.backends.cuda.packed import Packed
from quietchoir.core.engine.backends.cuda.runner import CudaRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.errors import ConfigError
from quietchoir.core.hardware.placement import GIB
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import TINY, config, generate, tiny_adapter, tiny_weights
from quietchoir.tests.fakes.engine_paths import WAYS, Make, few_words, plainly, restored

CPU = torch.device("cpu")
CUTS = (0, 1, 2)  # layers on the processor


@pytest.fixture(scope="module")
def tiny() -> Weights:
    return tiny_weights()


def maker(tiny: Weights, cpu_layers: int) -> Make:
    def made(blocks: int = 64, **changes: Any) -> Engine:
        plain = TorchOps(torch.float32)
        model = CudaRunner(
            tiny, blocks, 256, cpu_layers=cpu_layers, device=CPU, ops=plain, dtype=torch.float32
        )
        settings = config(kv_bytes=blocks * model.block_bytes, **changes)
        engine = Engine(tiny, settings, backend=model, clock=lambda: 0.0)
        engine.adapters.load("a", tiny_adapter(1))
        return engine

    return made


@pytest.fixture(scope="module")
def plain(tiny: Weights) -> dict[str | None, list[str]]:
    """Of the model that is not cut, by adapter."""
    return {adapter: plainly(maker(tiny, 0), few_words(adapter)) for adapter in (None, "a")}


@pytest.mark.parametrize("cpu_layers", CUTS)
def test_every_way_leads_to_the_text_of_the_model_that_is_not_cut(tiny, plain, cpu_layers):
    make = maker(tiny, cpu_layers)
    ways = WAYS if cpu_layers == 1 else WAYS[-1:]
    for way in ways:
        assert way(make, few_words("a")) == plain["a"], way.__name__
    assert WAYS[-1](make, few_words(None)) == plain[None]  # all others at once


def test_a_conversation_saved_under_one_cut_goes_on_under_another(tiny, plain, tmp_path):
    makers = iter((maker(tiny, 0), maker(tiny, 2)))  # the engine that saves, the one that restores
    assert (
        restored(lambda **changes: next(makers)(**changes), few_words(None), tmp_path / "kept")
        == plain[None]
    )


def quantised(weights: Weights, kind: str) -> Weights:
    """The tiny shape, wider, with matrices of this kind."""
    sizes = dataclasses.replace(
        TINY,
        hidden_size=64,
        intermediate_size=96,
        head_dim=16,
        qk_norm=True,
        biases=("self_attn.q_proj",),
    )

    def blocks(name: str, rows: int, columns: int) -> QuantTensor:
        numbers = torch.randn(rows, columns, generator=torch.Generator().manual_seed(len(name)))
        if rows == 1 or kind == "F32":
            return QuantTensor("F32", (rows, columns), numbers.view(torch.uint8))
        raw = gguf.quants.quantize(numbers.numpy(), getattr(gguf.GGMLQuantizationType, kind))
        return QuantTensor(kind, (rows, columns), torch.from_numpy(raw))

    tensors = {name: blocks(name, *shape) for name, shape in sizes.shapes().items()}
    return Weights(sizes, tensors, weights.tokenizer, digest="q" * 64)


def held(thing: object) -> int:
    """Bytes of the tensors that one object of the decoder holds, tables of rope left out."""
    if isinstance(thing, Tensor):
        return thing.numel() * thing.element_size()
    if isinstance(thing, Linear):  # rounded, as `memory.taken` says
        matrix = thing.matrix
        tensors = (
            (matrix.words, matrix.scales, matrix.zeros) if isinstance(matrix, Packed) else (matrix,)
        )
        return sum(memory.taken(held(tensor)) for tensor in tensors)
    if isinstance(thing, Heads):
        return held(thing.bias) + held(thing.norms)
    if isinstance(thing, Norm):
        return held(thing.weight)
    return sum(map(held, thing)) if isinstance(thing, tuple) else 0


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F32"])
def test_a_layer_the_head_and_the_cache_take_what_was_counted(tiny, kind):
    weights = quantised(tiny, kind)
    counted = memory.needs(weights, blocks=9, context=64, answers=4)
    device = CudaRunner(weights, 9, 64, device=CPU, dtype=torch.bfloat16)
    assert counted.layers == tuple(
        sum(map(held, vars(layer).values())) for layer in device.decoder.layers
    )
    assert counted.cache * TINY.num_layers == held(device.cache.integers) + held(
        device.cache.scales
    )
    assert counted.always["its head"] == held(device.decoder.head) + held(device.decoder.norm)
    assert counted.always["tables of rope"] == held(device.decoder.layers[0].heads.rope)


def test_a_large_tensor_takes_pages_of_its_own():
    assert [
        memory.taken(size) for size in (0, 1, 512, (10 << 20) - 1, 10 << 20, (10 << 20) + 1)
    ] == [0, 512, 512, 10 << 20, 10 << 20, 12 << 20]


def settings(**changes: Any) -> EngineConfig:
    return EngineConfig(device="cuda", **changes)


def test_a_cut_takes_what_is_free_or_what_the_owner_grants_but_never_more_than_is_free(tiny):
    def host(free: int, **changes: Any) -> int:
        return select.cut(tiny, 64, settings(**changes), 256, free).host

    counted = memory.needs(tiny, 64, 256, answers=16 * 9)
    assert host(counted.total(2)) == 0
    assert host(counted.total(2) - 1) == 1
    assert host(GIB, gpu_bytes=counted.total(1)) == 1
    assert host(counted.total(0), gpu_bytes=GIB) == 2
    assert host(GIB, gpu_layers=1) == 1
    with pytest.raises(ConfigError, match="1 layers fit"):
        host(counted.total(2) - 1, gpu_layers=2)


def test_a_runner_for_a_gpu_gets_the_cut_and_the_log_says_what_stays(tiny, monkeypatch, caplog):
    given: dict[str, int] = {}
    free = memory.needs(tiny, 64, 256, answers=16 * 9).total(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2 * free))
    monkeypatch.setattr(
        "quietchoir.core.engine.backends.cuda.runner.CudaRunner",
        lambda *sizes, **more: given.update(more),
    )
    select.select(tiny, settings()).build(64, 256)
    assert given == {"cpu_layers": 1}


def test_the_owner_s_memory_for_keys_holds_twice_the_blocks_in_eight_bits(tiny):
    narrow = quantised(tiny, "Q4_0")  # a cache of bfloat16 on the CPU
    here = select.select(narrow, EngineConfig()).block_bytes
    on_device = block_bytes(narrow.architecture)
    # sixteen numbers a head in two bytes each; in one, and a scale
    assert here / on_device == 32 / 18


def test_texts_of_a_cut_model_are_not_those_of_another_one(tiny, plain):
    """The tests above compare something: the upper layer alone would answer otherwise."""
    other = dataclasses.replace(
        tiny,
        tensors={
            **tiny.tensors,
            **{
                name: tiny.tensors[name.replace(".0.", ".1.")]
                for name in tiny.tensors
                if ".layers.0." in name
            },
        },
    )
    assert generate(maker(other, 1)(drafts=0), few_words(None)) != plain[None]
