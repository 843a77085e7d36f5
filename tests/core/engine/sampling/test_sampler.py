"""Facts about distributions, counted over many draws."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling import sampler
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.sampling.state import LogitRow
from quietchoir.core.engine.sequence import Sequence

PROBABILITIES = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04])
LOGITS = PROBABILITIES.log()
DRAWS = 20_000


def sequence(**params: Any) -> Sequence:
    return Sequence(
        GenerationRequest(
            prompt=(1,), sampling_params=SamplingParams(**{"temperature": 1.0, "seed": 5, **params})
        )
    )


def rows(one: Sequence, count: int) -> list[LogitRow]:
    """Rows of one request, each with a number of its own."""
    return [LogitRow(one.sampling, offset=offset) for offset in range(count)]


def sample(logits: torch.Tensor, rows: list[LogitRow]) -> list[int | None]:
    """The product's, which takes arrays."""
    return sampler.sample(logits.numpy(), rows)


def frequencies(logits: torch.Tensor = LOGITS, **params: Any) -> torch.Tensor:
    """How often each token is drawn, by one request after another number of its own."""
    drawn = torch.tensor(sample(logits.expand(DRAWS, -1), rows(sequence(**params), DRAWS)))
    return torch.bincount(drawn, minlength=len(logits)) / DRAWS


def test_tokens_come_as_often_as_the_model_says():
    assert torch.allclose(frequencies(), PROBABILITIES, atol=0.015)


def test_temperature_sharpens_and_flattens():
    assert torch.allclose(frequencies(temperature=0.5), (LOGITS / 0.5).softmax(-1), atol=0.015)
    assert torch.allclose(frequencies(temperature=2.0), (LOGITS / 2.0).softmax(-1), atol=0.015)


def test_top_k_keeps_the_best_in_proportion():
    expected = torch.tensor([0.4, 0.3, 0.2, 0.0, 0.0]) / 0.9
    assert torch.allclose(frequencies(top_k=3), expected, atol=0.015)


def test_top_p_keeps_the_smallest_set_that_holds_the_mass():
    expected = torch.tensor([0.4, 0.3, 0.0, 0.0, 0.0]) / 0.7
    assert torch.allclose(frequencies(top_p=0.6), expected, atol=0.015)


def test_top_p_counts_the_mass_that_top_k_left():
    # Of the mass 0.7 of the best two, 0.5 is reached by the best alone (0.4 / 0.7).
    assert frequencies(top_k=2, top_p=0.5).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_tiny_temperature_or_top_p_is_greedy():
    assert frequencies(temperature=1e-30)[0] == 1
    assert frequencies(top_p=1e-12)[0] == 1


def test_top_p_looks_beyond_the_first_thousand_candidates_where_the_mass_lies_there():
    nearly_flat = torch.arange(5000) * -1e-5
    kept = int((nearly_flat.softmax(-1).cumsum(-1) < 0.9).sum())
    some = rows(sequence(top_p=0.9), 1000)
    drawn = [token for token in sample(nearly_flat.expand(1000, -1), some) if token is not None]
    assert len(drawn) == 1000
    assert sampler.HEADS[-1] < kept - 100 < max(drawn) <= kept


def test_a_whole_vocabulary_is_drawn_from_as_the_model_says():
    """Wide rows are looked at in chunks: the same token as one cumulative sum over all would
    find.
    """
    generator = torch.Generator().manual_seed(3)
    for width in (257, 300, 5000):
        weights = torch.rand(200, width, generator=generator).double() ** 8
        weights[:, width // 2 :] *= torch.rand(200, 1, generator=generator) < 0.5
        uniform = torch.rand(200, 1, generator=generator, dtype=torch.float64)
        whole = sampler._find(weights.numpy(), (uniform * weights.sum(-1, keepdim=True)).numpy())
        assert (sampler._invert(weights.numpy(), uniform.numpy()) == whole).all()
    edge = torch.zeros(1, 1000)
    edge[0, 70] = 1.0
    for value in (0.0, 0.5, 1.0 - 2**-53):
        assert sampler._invert(edge.numpy(), np.array([[value]])).item() == 70


def test_the_best_of_a_wide_row_are_found_among_its_chunks():
    generator = np.random.default_rng(4)
    for size in (20_000, 49_152, 49_199):  # the last with a rest behind its last whole chunk
        numbers = generator.integers(0, 5000, (3, size)).astype(np.float32)  # with equals
        whole = np.argsort(-numbers, -1, kind="stable")
        for width in (1, 64):
            assert (sampler.top_indices(numbers, width) == whole[:, :width]).all()
        last = np.zeros((1, size), np.float32)
        last[0, size - 1] = 1
        assert sampler.top_indices(last, 3).tolist() == [[size - 1, 0, 1]]


def test_the_same_seed_draws_the_same_whoever_shares_the_batch():
    logits = torch.randn(40, 3000, generator=torch.Generator().manual_seed(1))
    alone, shared, other = sequence(top_p=0.9), sequence(top_p=0.9), sequence(seed=9, top_k=50)
    greedy = sequence(temperature=0.0)
    expected, found = [], []
    for row in logits:
        expected.append(sample(row[None], [LogitRow(alone.sampling)])[0])
        found.append(
            sample(
                row.expand(3, -1),
                [LogitRow(greedy.sampling), LogitRow(other.sampling), LogitRow(shared.sampling)],
            )[2]
        )
        for each in (alone, shared, other):
            each.accept(1)
    assert found == expected
    assert len(set(expected)) > 20


def test_requests_without_a_seed_differ():
    logits = torch.zeros(1, 3000)
    one, two = (
        Sequence(GenerationRequest(prompt=(1,), sampling_params=SamplingParams(temperature=1.0)))
        for _ in range(2)
    )
    draws = [sample(logits.expand(8, -1), rows(each, 8)) for each in (one, two)]
    assert draws[0] != draws[1]


def test_greedy_takes_the_best_and_no_random_number():
    one, other = sequence(temperature=0.0), sequence()
    assert sample(torch.tensor([[0.0, 3.0, 1.0]]), [LogitRow(one.sampling)]) == [1]
    one.accept(1)
    assert one.sampling.rng.peek(0) == other.sampling.rng.peek(0)


def test_a_row_that_is_not_finite_gives_none_and_the_others_their_token():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [float("-inf"), 0.0]])
    assert sample(logits, [LogitRow(sequence(temperature=0.0).sampling)] * 3) == [1, None, 1]
    assert sample(logits, [LogitRow(sequence(top_k=1).sampling)] * 3) == [1, None, 1]


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
    st.floats(1e-3, 100),
    st.floats(1e-6, 1),
    st.integers(0, 40),
    st.integers(0, 1000),
)
def test_the_token_is_always_among_the_best_k_and_possible(logits, temperature, top_p, top_k, seed):
    row = torch.tensor([logits])
    one = sequence(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    token = sample(row, [LogitRow(one.sampling)])[0]
    assert token is not None
    better = sum(value > logits[token] for value in row[0].tolist())
    assert top_k == 0 or better < top_k
