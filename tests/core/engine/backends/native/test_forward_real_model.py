"""The native engine on the real model, beside float32 over the same blocks."""

from pathlib import Path

import pytest
import torch

from quietchoir.core.config import EngineConfig
from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.engine.perplexity import perplexity
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.native import TensorRunner, sequence, step, whole

pytestmark = pytest.mark.skipif(
    library.available() is not None, reason="the kernels were not compiled"
)

BLOCKS = 96
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "How many legs does a spider have?",
)
NEAR_TIE = 1.0  # of logits that reach 40
LICENCE = Path(__file__).parents[5] / "LICENSE"


@pytest.fixture(scope="module")
def exact(smollm2: Weights) -> TorchRunner:
    """The float32 path."""
    return TorchRunner(smollm2, BLOCKS, compute=torch.float32)


@pytest.fixture(scope="module")
def native(smollm2: Weights) -> TensorRunner:
    return TensorRunner(smollm2, BLOCKS, threads=2)


def test_logits_stay_near_float32(smollm2, exact, native):
    tokens = smollm2.tokenizer.encode(LICENCE.read_text("utf-8")[:2000])
    batch = step(whole(sequence(tokens, range(BLOCKS))))
    found, wanted = native.forward(batch), exact.forward(batch)
    difference = (found - wanted).abs()
    assert difference.mean() < 0.3  # measured 0.2, of logits that reach 40
    assert difference.amax(1).median() < 1.2  # measured 0.64: the largest of 49,152 in a usual row
    assert difference.max() < 10  # measured 6.8: in a few rows of a licence known by heart
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.95


def test_perplexity_is_that_of_float32_within_a_percent(smollm2, exact, native):
    """On 6,000 tokens the loss is 0.23 %; here the text is short, so the bound is wider."""
    tokens = smollm2.tokenizer.encode(LICENCE.read_text("utf-8"))[:800]
    assert perplexity(native, tokens) == pytest.approx(perplexity(exact, tokens), rel=0.01)


def test_greedy_answers_are_float32s_or_part_at_a_near_tie(smollm2, exact, native):
    engine = Engine(smollm2, EngineConfig(context=512), backend=native)
    prompts = [
        tuple(smollm2.tokenizer.encode_chat([{"role": "user", "content": text}]))
        for text in QUESTIONS
    ]
    generations = [
        engine.submit(
            GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=24))
        )
        for prompt in prompts
    ]
    while engine.stats().running + engine.stats().waiting:
        engine.step()
    same = counted = 0
    for prompt, generation in zip(prompts, generations, strict=True):
        answer = [piece.token for piece in generation if piece.token is not None]
        logits = exact.forward(step(whole(sequence([*prompt, *answer], range(BLOCKS)))))[
            len(prompt) - 1 : -1
        ]
        chosen = logits[torch.arange(len(answer)), torch.tensor(answer)]
        assert (logits.amax(-1) - chosen).max() < NEAR_TIE
        same += int((chosen == logits.amax(-1)).sum())
        counted += len(answer)
    assert same > 0.95 * counted


def test_answers_are_the_same_alone_and_together_and_in_chunks(smollm2, native):
    """To the last bit of every logit, hence the same text for certain."""
    prompts = [
        tuple(smollm2.tokenizer.encode_chat([{"role": "user", "content": text}]))
        for text in QUESTIONS
    ]

    def answers(together: bool, step_rows: int) -> list[str]:
        engine = Engine(smollm2, EngineConfig(context=512), backend=native)
        limits = engine.scheduler.limits
        engine.scheduler.limits = type(limits)(step_rows=step_rows, shared_rows=step_rows)
        texts = []
        for group in [prompts] if together else [[prompt] for prompt in prompts]:
            generations = [
                engine.submit(
                    GenerationRequest(prompt=prompt, sampling_params=SamplingParams(max_tokens=20))
                )
                for prompt in group
            ]
            while engine.stats().running + engine.stats().waiting:
                engine.step()
            texts += [generation.text() for generation in generations]
        return texts

    wanted = answers(together=False, step_rows=512)
    assert answers(together=True, step_rows=512) == wanted
    assert answers(together=True, step_rows=7) == wanted


def test_perplexity_needs_something_to_predict(native):
    for tokens, window in (([], 512), ([1], 512), ([1, 2], 1)):
        with pytest.raises(ValueError, match="needs two tokens"):
            perplexity(native, tokens, window)
