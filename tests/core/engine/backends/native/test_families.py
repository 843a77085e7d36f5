"""Every family's random model, read from a folder, on the compiled kernels: the logits of the plain
pass (which `core/models/families` compares with `transformers`), in one pass, in chunks and among
others.

Stated bound: 3 % of the logits' own spread; a key may round the other way in the cache.
"""

from pathlib import Path

import pytest
import torch

from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.runner import supports
from quietchoir.core.engine.scheduler import Span
from quietchoir.core.models.checkpoint import from_hf
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import byte_tokenizer
from quietchoir.tests.fakes.models import FAMILIES, make_model
from quietchoir.tests.fakes.native import Oracle, TensorRunner, sequence, step, whole

pytestmark = pytest.mark.skipif(
    library.available() is not None, reason="the kernels were not compiled"
)

TOKENS = (torch.arange(60) * 37 % 259).tolist()
BOUND = 3e-2


SETS = library.instruction_sets() if library.available() is None else ("none",)
# what only some of these do, and no other test does on every set
RARE = ("lfm2moe", "qwen3next", "falcon_h1", "llama4", "mpt", "opt")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kernels_compute_what_the_plain_pass_computes(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path)


@pytest.mark.parametrize("instructions", SETS[1:])
@pytest.mark.parametrize("name", RARE)
def test_other_instruction_sets_compute_the_same(
    name: str, instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, instructions)
    compare(name, tmp_path)


def compare(name: str, tmp_path: Path) -> None:
    """A whole text's logits with the plain pass, and in pieces and company with themselves."""
    make_model(name).save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    weights = Weights(
        architecture, from_hf.name_tensors(tmp_path, architecture), byte_tokenizer(), "d" * 64
    )
    assert supports(weights) is None
    runner = TensorRunner(weights, 24, threads=2)
    found = runner.forward(step(whole(sequence(TOKENS, range(4)))))
    plain = Oracle(weights).logits(TOKENS)
    assert (found - plain).abs().max() < BOUND * plain.std()
    other = sequence(TOKENS, range(6, 10))
    company = sequence(TOKENS[7:30], range(12, 14))
    parts = [
        runner.forward(step(Span(other, start, stop - start, stop - start)))
        for start, stop in ((0, 17), (17, 50))
    ]
    last = runner.forward(step(Span(other, 50, 10, 10), whole(company, 1)))
    assert torch.equal(torch.cat([*parts, last[:10]]), found)
