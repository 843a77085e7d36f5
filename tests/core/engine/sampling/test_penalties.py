"""Penalties, biases and log-probabilities: what they change, and whom."""

import math
from typing import Any

import pytest
import torch

from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling import sampler
from quietchoir.core.engine.sampling.logprobs import capture_logits, token_logprobs
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.sampling.state import LogitRow
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.errors import RequestError
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import END, config, drain, generate, tiny_weights

SIZE = 12


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


def row(
    said: tuple[int, ...] = (), drafts: tuple[int, ...] = (), offset: int = 0, **params: object
) -> LogitRow:
    sampled = SamplingParams(**params)  # type: ignore[arg-type]
    one = Sequence(GenerationRequest(prompt=(1, 2, 2), sampling_params=sampled))
    for token in said:
        one.accept(token)
    return LogitRow(one.sampling, drafts, offset)


def adjusted(*rows: LogitRow, logits: torch.Tensor | None = None) -> torch.Tensor:
    """What becomes of logits that are 1 in the lower half and -1 in the upper one."""
    start = torch.cat([torch.ones(SIZE // 2), -torch.ones(SIZE // 2)]).expand(len(rows), -1).clone()
    out = start if logits is None else logits
    for logits_row, one in zip(out.numpy(), rows, strict=True):
        one.state.penalties.apply(logits_row, one.ahead)
    return out - torch.cat([torch.ones(SIZE // 2), -torch.ones(SIZE // 2)])


def test_presence_counts_once_and_frequency_each_time_and_the_prompt_not_at_all():
    change = adjusted(row((3, 3, 8), presence_penalty=0.5, frequency_penalty=0.25))[0]
    expected = torch.zeros(SIZE)
    expected[3], expected[8] = -(0.5 + 0.5), -(0.5 + 0.25)
    torch.testing.assert_close(change, expected)


def test_repetition_divides_what_is_likely_and_multiplies_what_is_not():
    change = adjusted(row((8,), repetition_penalty=2.0))[0]
    expected = torch.zeros(SIZE)
    expected[[1, 2]], expected[8] = -0.5, -1.0  # 1 and 2 stand in the prompt
    torch.testing.assert_close(change, expected)


def test_a_bias_is_added_also_to_a_token_that_is_penalised():
    change = adjusted(row((3,), presence_penalty=1.0, logit_bias=((3, 5.0), (9, -100.0))))[0]
    assert (change[3].item(), change[9].item(), change.count_nonzero().item()) == (4.0, -100.0, 2)


def test_a_row_after_guesses_counts_them_as_said():
    rows = [
        row((3,), (4, 3), place, frequency_penalty=1.0, repetition_penalty=2.0)
        for place in range(3)
    ]
    said = [
        row((3, 4, 3)[: 1 + place], frequency_penalty=1.0, repetition_penalty=2.0)
        for place in range(3)
    ]
    torch.testing.assert_close(adjusted(*rows), adjusted(*said))
    assert rows[0].state.penalties.counts == {3: 1}


def test_every_row_comes_out_as_alone_and_those_that_ask_nothing_untouched():
    asks: list[dict[str, Any]] = [
        {},
        {"presence_penalty": 1.0},
        {"repetition_penalty": 3.0},
        {"logit_bias": ((0, 1.0),)},
        {},
        {"frequency_penalty": 2.0},
    ]
    rows = [row((number, 7), **ask) for number, ask in enumerate(asks)]
    together = adjusted(*rows)
    torch.testing.assert_close(together, torch.cat([adjusted(one) for one in rows]))
    assert together[0].count_nonzero() == together[4].count_nonzero() == 0


def test_min_p_leaves_out_what_is_much_less_likely_than_the_best():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    one = Sequence(
        GenerationRequest(
            prompt=(1,), sampling_params=SamplingParams(temperature=1.0, seed=1, min_p=0.4)
        )
    )
    drawn = sampler.sample(
        logits.expand(5000, -1).numpy(),
        [LogitRow(one.sampling, offset=offset) for offset in range(5000)],
    )
    assert set(drawn) == {0, 1}
    assert abs(drawn.count(0) / 5000 - 0.5 / 0.8) < 0.02
    everything = Sequence(
        GenerationRequest(
            prompt=(1,), sampling_params=SamplingParams(temperature=1.0, seed=1, min_p=1.0)
        )
    )
    assert sampler.sample(logits[None].numpy(), [LogitRow(everything.sampling)]) == [0]


def test_what_is_told_is_the_models_own_opinion_whatever_was_asked_for():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).numpy()
    asking = row(logprobs=2, logit_bias=((0, 100.0),))
    captured = capture_logits(logits, [asking])
    chosen = sampler.sample(logits, [asking])
    assert chosen == [0]
    told = token_logprobs(captured, [asking], chosen, lambda token: b"%d" % token)[0]
    assert told is not None
    expected = torch.tensor([0.0, 3.0, 1.0, 2.0]).log_softmax(-1)
    assert (told.chosen.token, told.chosen.text) == (0, b"0")
    assert told.chosen.logprob == pytest.approx(float(expected[0]))
    assert [token.token for token in told.top] == [1, 3]
    assert [token.logprob for token in told.top] == pytest.approx(
        [float(expected[1]), float(expected[3])]
    )
    assert token_logprobs(capture_logits(logits, [row()]), [row()], [1], lambda _: b"") == [None]


def test_each_piece_of_an_answer_is_told_and_the_best_token_of_a_greedy_one_is_its_own(weights):
    engine = Engine(weights, config())
    generation = engine.submit(
        GenerationRequest(
            prompt=(5, 6, 7), sampling_params=SamplingParams(max_tokens=12, logprobs=4)
        )
    )
    silent = engine.submit(
        GenerationRequest(prompt=(5, 6, 7), sampling_params=SamplingParams(max_tokens=12))
    )
    drain(engine)
    for piece in generation:
        assert piece.logprobs is not None and piece.logprobs.chosen == piece.logprobs.top[0]
        assert piece.logprobs.chosen.token == piece.token and len(piece.logprobs.top) == 4
        assert sum(math.exp(token.logprob) for token in piece.logprobs.top) <= 1.0001
    assert all(piece.logprobs is None for piece in silent)


def test_a_penalised_answer_does_not_repeat_itself_and_disturbs_nobody(weights):
    plain = GenerationRequest(prompt=(5, 6, 7), sampling_params=SamplingParams(max_tokens=40))
    varied = GenerationRequest(
        prompt=(5, 6, 7), sampling_params=SamplingParams(max_tokens=40, frequency_penalty=100.0)
    )
    alone = generate(Engine(weights, config()), [plain])[0]
    engine = Engine(weights, config())
    generations = [engine.submit(varied), engine.submit(plain)]
    drain(engine)
    tokens = [piece.token for piece in generations[0]]
    assert len(set(tokens)) == len(tokens)
    assert generations[1].text() == alone


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("min_p", 1.5, "must be 0"),
        ("presence_penalty", math.inf, "finite"),
        ("frequency_penalty", math.nan, "finite"),
        ("repetition_penalty", 0.0, "positive"),
        ("logit_bias", ((1, math.inf),), "must be a finite number"),
        ("logprobs", 21, "0 to 20"),
    ],
)
def test_a_setting_that_cannot_be_served_is_refused(field, value, words):
    with pytest.raises(RequestError, match=words):
        GenerationRequest(prompt=(1,), sampling_params=SamplingParams(**{field: value}))


def test_a_bias_on_a_token_that_the_model_does_not_know_is_refused(weights):
    with pytest.raises(RequestError, match=r"outside 0\.\.256"):
        Engine(weights, config()).submit(
            GenerationRequest(
                prompt=(1,),
                sampling_params=SamplingParams(max_tokens=9, logit_bias=((END + 1, 1.0),)),
            )
        )
