"""The engine on the real model, against its own transformer without any cache."""

from collections.abc import Iterator

import pytest
import torch

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import generate

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many legs does a spider have?",
)
BLOCKS = 64


@pytest.fixture(scope="module")
def exact(smollm2: Weights) -> TorchRunner:
    """The float32 path."""
    return TorchRunner(smollm2, BLOCKS, compute=torch.float32)


@pytest.fixture(scope="module")
def fast(smollm2: Weights) -> TorchRunner:
    """The path that serves."""
    return TorchRunner(smollm2, BLOCKS)


@pytest.fixture(scope="module")
def served(smollm2: Weights, fast: TorchRunner) -> Iterator[Engine]:
    """An engine with its thread running."""
    engine = Engine(smollm2, EngineConfig(context=512), backend=fast)
    engine.start()
    yield engine
    engine.stop()


@torch.inference_mode()
def plain_logits(runner: TorchRunner, tokens: list[int]) -> torch.Tensor:
    """All rows' logits in one pass without a cache, [N, V]."""
    rows = runner.transformer.embed(torch.tensor(tokens))
    return runner.transformer.logits(
        runner.transformer.layers_forward(
            rows, torch.arange(len(tokens)), packed_attention([len(tokens)])
        )
    )


def chat(weights: Weights, question: str) -> tuple[int, ...]:
    return tuple(weights.tokenizer.encode_chat([{"role": "user", "content": question}]))


def test_greedy_tokens_of_a_batch_are_those_of_the_plain_forward(smollm2, exact):
    engine = Engine(smollm2, EngineConfig(context=512), backend=exact)
    engine.scheduler.limits = type(engine.scheduler.limits)(step_rows=24, shared_rows=16)
    prompts = [chat(smollm2, question) for question in QUESTIONS]
    generations = [
        engine.submit(
            GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=10))
        )
        for prompt in prompts
    ]
    while engine.stats().running + engine.stats().waiting:
        engine.step()
    for prompt, generation in zip(prompts, generations, strict=True):
        answer = [piece.token for piece in generation if piece.token is not None]
        # Every token is the best one after all tokens before it: that is what greedy decoding
        # without a cache gives.
        best = plain_logits(exact, [*prompt, *answer])[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert answer == best
        assert len(answer) >= 5


def test_the_fast_path_stays_close_to_float32(smollm2, exact, fast):
    tokens = smollm2.tokenizer.encode(
        "The quick brown fox jumps over the lazy "
        "dog. " * 6 + "To be or not to be, that is the question."
    )
    expected = plain_logits(exact, tokens)
    for runner_input in (tokens, tokens[:4]):  # many rows and few take different back-ends
        difference = (plain_logits(fast, runner_input) - expected[: len(runner_input)]).abs()
        assert difference.mean() < 0.2  # on logits that reach 40
        assert difference.max() < 2.5


def test_the_served_answer_is_sensible_and_the_same_each_time(smollm2, served):
    request = GenerationRequest(
        prompt=chat(smollm2, QUESTIONS[0]), sampling_params=SamplingParams(max_tokens=24)
    )
    answer = served.submit(request).text()
    assert "Paris" in answer
    assert served.submit(request).text() == answer


def test_a_seed_repeats_a_sampled_answer(smollm2, served):
    request = GenerationRequest(
        prompt=chat(smollm2, "Tell me a story."),
        sampling_params=SamplingParams(max_tokens=16, temperature=0.9, top_p=0.95, seed=11),
    )
    assert served.submit(request).text() == served.submit(request).text()


def test_an_engine_without_a_given_model_packs_the_weights_itself(smollm2, served):
    small = GenerationRequest(
        prompt=chat(smollm2, QUESTIONS[1]), sampling_params=SamplingParams(max_tokens=4)
    )
    engine = Engine(smollm2, EngineConfig(context=256, kv_bytes=64 << 20))
    assert generate(engine, [small]) == [served.submit(small).text()]
