"""Several adapters in one step of the native engine, beside the float32 path, which multiplies
them one by one.
"""

import pytest
import torch

from quietchoir.core.engine.adapters import LoadedAdapter
from quietchoir.core.engine.backends.native import library, runner
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.scheduler import Span
from quietchoir.core.errors import EngineError
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.native import (
    TensorRunner,
    architecture,
    random_factors,
    random_weights,
    sequence,
    step,
    whole,
)

pytestmark = pytest.mark.skipif(
    library.available() is not None, reason="the kernels were not compiled"
)

BLOCKS = 80
SHAPE = architecture(
    num_layers=3, hidden_size=50, intermediate_size=75, num_heads=6, num_kv_heads=3
)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(SHAPE)


@pytest.fixture(scope="module")
def native(weights: Weights) -> TensorRunner:
    return TensorRunner(weights, BLOCKS, threads=2)


@pytest.fixture(scope="module")
def adapters() -> list[LoadedAdapter | None]:
    """None, then adapters of different ranks, one of which knows only the upper layers."""
    found: list[LoadedAdapter | None] = [None]
    for seed, (rank, layers) in enumerate([(8, None), (3, None), (16, range(1, 3)), (8, None)]):
        found.append(LoadedAdapter(f"a{seed}", random_factors(SHAPE, rank, seed + 1, layers)))
    return found


def tokens_of(count: int, seed: int) -> list[int]:
    return torch.randint(
        0, SHAPE.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


def test_each_row_gets_its_own_adapter_and_no_other(weights, native, adapters):
    sequences = [
        sequence(tokens_of(9 + i, i), range(2 * i, 2 * i + 2), adapter)
        for i, adapter in enumerate(adapters * 2)
    ]
    batch = step(*(whole(one) for one in sequences))
    found, wanted = (
        native.forward(batch),
        TorchRunner(weights, BLOCKS, compute=torch.float32).forward(batch),
    )
    # factors, keys and values are rounded to bfloat16
    assert (found - wanted).abs().max() < 0.15 * wanted.std()
    assert (found - wanted).abs().mean() < 0.015 * wanted.std()
    bare = step(*(whole(sequence(one.tokens, one.block_table)) for one in sequences))
    change = (native.forward(bare) - found).abs().amax(1)
    adapted = torch.cat(
        [torch.full((len(one.tokens),), one.adapter is not None) for one in sequences]
    )
    assert (change[adapted] > 0.1 * wanted.std()).all()
    # to the last bit, as if nobody had one
    assert torch.equal(change[~adapted], torch.zeros_like(change[~adapted]))


def test_an_adapted_row_has_the_same_bits_alone_and_in_every_batch(native, adapters):
    ours = sequence(tokens_of(40, 77), range(3), adapters[1])
    wanted = native.forward(step(whole(ours)))
    others = [
        sequence(tokens_of(20, i), range(10 + 2 * i, 12 + 2 * i), adapter)
        for i, adapter in enumerate(adapters)
    ]
    found = native.forward(
        step(*(whole(one, 0) for one in others[:3]), whole(ours), whole(others[3], 0))
    )
    assert torch.equal(found, wanted)
    singles = [native.forward(step(Span(ours, place, 1, 1))) for place in range(40)]
    assert torch.equal(torch.cat(singles), wanted)


def test_quantised_matrices_take_adapters_too(adapters):
    shape = architecture(hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2)
    weights = random_weights(shape, "Q4_0")
    adapter = LoadedAdapter("q", random_factors(shape, 8, 5))
    batch = step(whole(sequence(tokens_of(50, 3), range(4), adapter)))
    found, wanted = (
        TensorRunner(weights, 4, threads=2).forward(batch),
        TorchRunner(weights, 4, compute=torch.float32).forward(batch),
    )
    assert (found - wanted).abs().mean() < 0.07 * wanted.std()


def with_outputs(adapter: LoadedAdapter, seed: int) -> LoadedAdapter:
    """The same, which also scales and shifts what half of its matrices give."""
    draw = torch.Generator().manual_seed(seed)
    outputs = {
        module: (0.5 + torch.rand(rows, generator=draw), torch.randn(rows, generator=draw) / 8)
        for module, (_, b) in list(adapter.factors.items())[::2]
        for rows in [b.shape[1]]
    }
    return LoadedAdapter(f"{adapter.name}+", adapter.factors, outputs)


def test_an_adapter_may_scale_and_shift_what_a_matrix_gives_beside_others_that_do_not(
    weights, native, adapters
):
    more = [one if one is None else with_outputs(one, seed) for seed, one in enumerate(adapters)]
    assert not {one.digest for one in more if one} & {one.digest for one in adapters if one}
    sequences = [
        sequence(tokens_of(9 + i, i), range(2 * i, 2 * i + 2), adapter)
        for i, adapter in enumerate((more + adapters) * 2)
    ]
    batch = step(*(whole(one) for one in sequences))
    found, wanted = (
        native.forward(batch),
        TorchRunner(weights, BLOCKS, compute=torch.float32).forward(batch),
    )
    assert (found - wanted).abs().max() < 0.15 * wanted.std()
    assert (found - wanted).abs().mean() < 0.015 * wanted.std()
    plain = native.forward(
        step(*(whole(sequence(one.tokens, one.block_table)) for one in sequences))
    )
    bare = torch.cat([torch.full((len(one.tokens),), one.adapter is None) for one in sequences])
    assert torch.equal(found[bare], plain[bare])
    alone = native.forward(step(whole(sequences[1])))
    first = len(sequences[0].tokens)
    assert torch.equal(alone, found[first : first + len(alone)])


def test_adapters_long_unused_are_freed_and_packed_again(weights, adapters, monkeypatch):
    monkeypatch.setattr(runner, "KEPT_ADAPTERS", 2)
    own = TensorRunner(weights, BLOCKS, threads=1)
    wanted = [
        own.forward(step(whole(sequence(tokens_of(9, 1), [0], adapter)))) for adapter in adapters
    ]
    assert len(own._adapters) == 2
    again = [
        own.forward(step(whole(sequence(tokens_of(9, 1), [0], adapter)))) for adapter in adapters
    ]
    assert all(torch.equal(*pair) for pair in zip(wanted, again, strict=True))
    together = own.forward(
        step(*(whole(sequence(tokens_of(9, 1), [i], a)) for i, a in enumerate(adapters)))
    )
    assert torch.equal(together, torch.cat(wanted))  # four in one step, though only two are kept


def test_factors_that_fit_no_matrix_are_refused(native, adapters):
    a, b = torch.zeros(51, 4), torch.zeros(4, 96)
    wrong = LoadedAdapter("wrong", {"model.layers.0.self_attn.q_proj": (a, b)})
    with pytest.raises(EngineError, match="wrong does not fit"):
        native.forward(step(whole(sequence(tokens_of(5, 1), [0], wrong))))
    assert wrong.digest not in native._adapters
    module, (a, b) = "model.layers.0.self_attn.q_proj", (torch.zeros(50, 4), torch.zeros(4, 96))
    for outputs in ({module: (torch.ones(5),) * 2}, {"model.layers.1.mlp.up_proj": (b[0],) * 2}):
        wrong = LoadedAdapter("wrong", {module: (a, b)}, outputs)
        with pytest.raises(EngineError, match="wrong does not fit"):
            native.forward(step(whole(sequence(tokens_of(5, 1), [0], wrong))))
        assert wrong.digest not in native._adapters
