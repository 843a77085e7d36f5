"""Every family through the paged cache, in chunks and single rows, against the plain forward
pass.
"""

from pathlib import Path

import pytest
import torch

from quietchoir.core.engine.backends.torch_cpu.runner import TorchRunner
from quietchoir.core.engine.block_pool import BlockPool
from quietchoir.core.engine.request import GenerationRequest
from quietchoir.core.engine.sampling.params import SamplingParams
from quietchoir.core.engine.scheduler import Scheduler, SchedulerLimits
from quietchoir.core.engine.sequence import Sequence
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.checkpoint import from_hf
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import byte_tokenizer
from quietchoir.tests.fakes.models import make_model

PROMPTS = [tuple((torch.arange(length) * 31 % 259).tolist()) for length in (1, 8, 20, 45)]
BLOCKS = 40


@torch.inference_mode()
def oracle(network: Transformer, tokens: list[int]) -> torch.Tensor:
    """Logits of the last token without any cache, [V]."""
    attend = packed_attention([len(tokens)], network.architecture.windows)
    rows = network.layers_forward(
        network.embed(torch.tensor(tokens)), torch.arange(len(tokens)), attend
    )
    return network.logits(rows[-1:])[0]


@pytest.mark.parametrize(
    "name",
    [
        *("gemma3", "mistral", "qwen2-windowed", "qwen3", "smollm3", "phi3-long", "phi4-mini"),
        *("mixtral", "granite", "olmo2", "exaone4"),
    ],
)
def test_a_mixed_batch_of_every_family_gives_the_logits_of_the_plain_forward(
    name: str, tmp_path: Path
) -> None:
    make_model(name).save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    weights = Weights(
        architecture,
        from_hf.name_tensors(tmp_path, architecture),
        byte_tokenizer(),
        digest="d" * 64,
    )
    runner = TorchRunner(weights, blocks=BLOCKS, compute=torch.float32)
    books = Scheduler(BlockPool(BLOCKS), SchedulerLimits(step_rows=19, shared_rows=7))
    for prompt in PROMPTS:
        books.add(
            Sequence(
                GenerationRequest(
                    prompt=prompt, sampling_params=SamplingParams(max_tokens=12, speculate=False)
                )
            )
        )
    compared = 0
    for _ in range(18):
        batch = books.plan()
        logits = runner.forward(batch)
        for row, sequence in zip(logits, batch.sampled, strict=True):
            torch.testing.assert_close(
                row, oracle(runner.transformer, sequence.tokens), atol=5e-4, rtol=1e-4
            )
            compared += 1
        books.commit(batch, (logits.argmax(-1) % 259).tolist())
    assert compared > 20
