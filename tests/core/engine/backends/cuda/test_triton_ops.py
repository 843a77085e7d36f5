"""Each Triton kernel against its twin in plain torch, in Triton's interpreter."""

from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from quietchoir.core.engine.backends.cuda.cache import Cache
from quietchoir.core.engine.backends.cuda.ops import DeviceStep, Heads, Norm, TorchOps
from quietchoir.core.engine.backends.cuda.packed import pack
from quietchoir.core.engine.backends.cuda.triton_ops import TritonOps
from quietchoir.core.models.quant.tensor import QuantTensor

CPU = torch.device("cpu")
PLAIN, FUSED = TorchOps(torch.float32), TritonOps(torch.float32)
# of a step's rows, all of one sequence; several tiles of keys stand before one
POSITIONS = torch.tensor([0, 15, 16, 70, 39])
M, TABLE = len(POSITIONS), [5, 2, 7, 0, 4]  # its blocks, in no order


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "rows", "columns", "m"),
    [
        ("Q4_0", 70, 576, 1),
        ("Q4_0", 33, 128, 16),
        ("Q4_1", 70, 576, 16),
        ("Q4_1", 64, 1536, 19),
        ("Q8_0", 33, 576, 17),
    ],
)
def test_a_product_is_that_of_the_unpacked_matrix(kind, rows, columns, m):
    raw = gguf.quants.quantize(
        draws(rows, columns).numpy(), getattr(gguf.GGMLQuantizationType, kind)
    )
    packed, x = (
        pack([QuantTensor(kind, (rows, columns), torch.from_numpy(raw))], CPU),
        draws(m, columns, seed=1),
    )
    partial = FUSED.product(packed, x)
    assert len(partial) > 1 or columns == 128  # cut along its columns
    torch.testing.assert_close(
        partial.sum(0), PLAIN.product(packed, x).sum(0), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_unpacked_rows_are_those_of_the_matrix(kind):
    raw = gguf.quants.quantize(draws(70, 160).numpy(), getattr(gguf.GGMLQuantizationType, kind))
    packed = pack([QuantTensor(kind, (70, 160), torch.from_numpy(raw))], CPU)
    assert torch.equal(FUSED.unpack(packed, 3, 70), PLAIN.unpack(packed, 3, 70))
    assert torch.equal(PLAIN.unpack(packed, 3, 70), packed.dense(torch.float32)[3:])


@pytest.mark.parametrize(
    "post_norm", [None, Norm(draws(96, seed=3), 1e-3)], ids=["", "with a norm of what is added"]
)
def test_add_norm_adds_every_part_to_the_residual_and_norms_the_sum(post_norm):
    residual, partial, norm = draws(3, 96), draws(2, 3, 96, seed=1), Norm(draws(96, seed=2), 1e-5)
    mine, twin = residual.clone(), residual.clone()
    torch.testing.assert_close(
        FUSED.add_norm(mine, partial, norm, post_norm),
        PLAIN.add_norm(twin, partial, norm, post_norm),
    )
    torch.testing.assert_close(mine, twin)
    before = mine.clone()
    torch.testing.assert_close(FUSED.add_norm(mine, None, norm), PLAIN.add_norm(twin, None, norm))
    assert torch.equal(mine, before)  # nothing to add: the stream stays as it is


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_gate_is_the_activation_s(activation):
    partial = draws(2, 3, 2 * 1100) * 4
    torch.testing.assert_close(
        FUSED.gate(partial, activation), PLAIN.gate(partial, activation), atol=1e-5, rtol=1e-5
    )


def heads(**changes: Any) -> Heads:
    usual = {
        "heads": 6,
        "num_kv_heads": 2,
        "size": 24,
        "scale": 24**-0.5,
        "window": 0,
        "bias": None,
        "norms": None,
        "eps": 1e-6,
    }
    rope = (draws(80, 12, seed=3), draws(80, 12, seed=4))
    return Heads(**{**usual, "rope": rope, **changes})


def step() -> DeviceStep:
    places = torch.tensor(TABLE)[POSITIONS // 16] * 16 + POSITIONS % 16
    tables = torch.tensor([TABLE] * M, dtype=torch.int32)
    return DeviceStep(POSITIONS, places, tables, (POSITIONS + 1).to(torch.int32))


def caches() -> tuple[Cache, Cache]:
    """Two alike: what earlier tokens left there is at every place of layer 0, and at none of
    layer 1.
    """
    sizes: Any = SimpleNamespace(num_layers=2, num_kv_heads=2, head_dim=24)
    both = Cache(sizes, 8, CPU), Cache(sizes, 8, CPU)
    for cache in both:
        cache.write(0, torch.arange(8 * 16), draws(128, 2, 24, seed=8), draws(128, 2, 24, seed=9))
    return both


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window": 7, "bias": draws(240, seed=5), "norms": (draws(24, seed=6), draws(24, seed=7))},
        {"rope": None},
    ],
    ids=["plain", "window, bias and norms of heads", "no rope"],
)
def test_heads_are_finished_stored_and_attended_to_as_in_plain_torch(changes):
    own, twin = caches()
    shape, where, partial = heads(**changes), step(), draws(3, M, 240)
    q = PLAIN.rope_and_store(partial, shape, where, twin, 1)
    torch.testing.assert_close(
        FUSED.rope_and_store(partial, shape, where, own, 1), q, atol=1e-5, rtol=1e-5
    )
    # a half may round either way
    assert (own.integers.int() - twin.integers.int()).abs().max() <= 1
    torch.testing.assert_close(own.scales, twin.scales)
    assert int((own.integers[:, 1] != 0).any(-1).sum()) == 2 * M * 2  # nothing else was written
    mixed = PLAIN.attend(q, shape, where, twin, 0)
    torch.testing.assert_close(FUSED.attend(q, shape, where, twin, 0), mixed, atol=1e-5, rtol=1e-5)
