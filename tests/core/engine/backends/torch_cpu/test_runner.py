"""The tiny float32 model through the paged cache, against the plain forward pass."""

import pytest
import torch

from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.block_pool import BlockPool
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import Scheduler, SchedulerLimits
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import END, TINY_BLOCK_BYTES, config, generate, tiny_weights

PROMPTS = [
    tuple(
        torch.randint(0, END, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    )
    for length in (1, 5, 16, 17, 40, 90)
]
REQUESTS = [
    GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=24))
    for prompt in PROMPTS
]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


@pytest.fixture(scope="module")
def plain(weights: Weights) -> TorchRunner:
    """Holds the transformer of the oracle."""
    return TorchRunner(weights, blocks=1)


@torch.inference_mode()
def oracle(plain: TorchRunner, tokens: list[int]) -> torch.Tensor:
    """Logits of the last token without any cache, [V]."""
    rows = plain.transformer.embed(torch.tensor(tokens))
    rows = plain.transformer.layers_forward(
        rows, torch.arange(len(tokens)), packed_attention([len(tokens)])
    )
    return plain.transformer.logits(rows[-1:])[0]


def oracle_text(plain: TorchRunner, request: GenerationRequest, weights: Weights) -> str:
    tokens = list(request.prompt)
    for _ in range(request.sampling_params.limit):
        tokens.append(int(oracle(plain, tokens).argmax()))
        if tokens[-1] == END:
            break
    return weights.tokenizer.decode(tokens[len(request.prompt) :])


def test_every_step_of_a_mixed_batch_gives_the_logits_of_the_plain_forward(weights, plain):
    """Chunks that begin anywhere, single rows of different lengths and short prompts in one
    step.
    """
    runner = TorchRunner(weights, blocks=40)
    books = Scheduler(BlockPool(40), SchedulerLimits(step_rows=37, shared_rows=11))
    for request in REQUESTS:
        books.add(Sequence(request))
    compared = mixed = 0
    for _ in range(30):
        batch = books.plan()
        logits = runner.forward(batch)
        assert logits.shape == (len(batch.sampled), END + 1)
        for row, sequence in zip(logits, batch.sampled, strict=True):
            torch.testing.assert_close(row, oracle(plain, sequence.tokens), atol=2e-4, rtol=1e-4)
            compared += 1
        mixed += {span.count == 1 for span in batch.spans} == {True, False}
        books.commit(batch, logits.argmax(-1).tolist())
    assert compared > 80
    assert mixed > 5


def test_greedy_text_of_a_batch_is_the_text_of_each_alone_and_of_the_plain_forward(weights, plain):
    together = generate(Engine(weights, config()), REQUESTS)
    assert together == [generate(Engine(weights, config()), [request])[0] for request in REQUESTS]
    assert together == [oracle_text(plain, request, weights) for request in REQUESTS]


def test_a_preempted_request_ends_with_the_same_text(weights):
    plenty, scarce = (
        Engine(weights, config()),
        Engine(weights, config(kv_bytes=9 * TINY_BLOCK_BYTES)),
    )
    assert generate(scarce, REQUESTS) == generate(plenty, REQUESTS)
    assert scarce.stats().preemptions > 0
    assert plenty.stats().preemptions == 0


def test_a_prompt_in_chunks_gives_the_text_of_the_whole_prompt(weights):
    request = REQUESTS[-1]
    whole, chunked = Engine(weights, config()), Engine(weights, config())
    chunked.scheduler.limits = SchedulerLimits(step_rows=7)
    assert generate(chunked, [request]) == generate(whole, [request])
    assert chunked.stats().steps == whole.stats().steps + 12  # 90 tokens in 13 steps instead of one


def test_blocks_of_an_ended_request_do_not_show_through_in_the_next(weights):
    engine = Engine(weights, config(kv_bytes=9 * TINY_BLOCK_BYTES))
    first = generate(engine, [REQUESTS[-1]])
    generate(engine, [REQUESTS[3]])
    assert generate(engine, [REQUESTS[-1]]) == first


def test_a_step_without_a_row_to_sample_gives_no_logits(weights):
    books = Scheduler(BlockPool(8), SchedulerLimits(step_rows=16))
    books.add(Sequence(REQUESTS[-1]))
    assert TorchRunner(weights, blocks=8).forward(books.plan()).shape == (0, END + 1)
