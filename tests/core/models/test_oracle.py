"""`transformers` reads the same file and agrees. The slowest module here: it dequantises the whole
model.

Stated bound: logits within 1e-3 of transformers' (they range over about 40), both in float32.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import nn

from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.models import QuickReader

from .conftest import MakeLinear
from .tokenizer.test_tokenizer import TRICKY

BOUND = 1e-3
CONVERSATION = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "Name 3 animals that live in the sea."},
]


@pytest.fixture(scope="module")
def quick_gguf() -> Iterator[None]:
    """Spare the oracle a minute of the library's own slowness; neither change touches a number.

    The lists come through our short cut (`test_gguf` holds it against the library's), and the table
    of tensor names, which transformers builds anew for each tensor, is built once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", QuickReader)
        patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        yield


@pytest.fixture(scope="module")
def their_model(model_path: Path, quick_gguf: None) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model_path.parent, gguf_file=model_path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def their_tokenizer(model_path: Path, quick_gguf: None) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path.parent, gguf_file=model_path.name)


@pytest.fixture(scope="module")
def network(smollm2: Weights, make_linear: MakeLinear) -> Transformer:
    return Transformer(smollm2, make_linear)


def test_every_matrix_equals_theirs_bit_for_bit(smollm2: Weights, their_model: nn.Module) -> None:
    theirs = their_model.state_dict()
    assert theirs.keys() == smollm2.tensors.keys()
    for name, blocks in smollm2.tensors.items():
        assert torch.equal(blocks.dequantize().view(theirs[name].shape), theirs[name]), name


@torch.inference_mode()
def test_logits_stay_within_the_bound(
    smollm2: Weights, network: Transformer, their_model: nn.Module
) -> None:
    tokens = torch.tensor(smollm2.tokenizer.encode_chat(CONVERSATION))
    rows = network.layers_forward(
        network.embed(tokens), torch.arange(len(tokens)), packed_attention([len(tokens)])
    )
    difference = (network.logits(rows) - their_model(tokens[None]).logits[0]).abs().max()
    assert difference < BOUND


@torch.inference_mode()
def test_greedy_answers_are_the_same(
    smollm2: Weights, network: Transformer, their_model: Any
) -> None:
    prompt = smollm2.tokenizer.encode_chat(CONVERSATION)
    stop = sorted(smollm2.tokenizer.stop_tokens)
    given = torch.tensor([prompt])
    theirs = their_model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop[0],
    )[0]
    assert len(theirs) > len(prompt) + 5
    # If after each of their tokens our likeliest next one is theirs, then by induction our greedy
    # answer is theirs.
    rows = network.layers_forward(
        network.embed(theirs), torch.arange(len(theirs)), packed_attention([len(theirs)])
    )
    assert (
        network.logits(rows)[len(prompt) - 1 : -1].argmax(1).tolist()
        == theirs[len(prompt) :].tolist()
    )


def test_conversations_become_the_same_tokens(smollm2: Weights, their_tokenizer: Any) -> None:
    for messages in (
        CONVERSATION,
        CONVERSATION[1:],
        [*CONVERSATION, {"role": "assistant", "content": "\n Whale. "}],
    ):
        for prompt in (True, False):
            theirs = their_tokenizer.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=False
            )
            expected = their_tokenizer.encode(theirs, add_special_tokens=False)
            assert smollm2.tokenizer.encode_chat(messages, add_generation_prompt=prompt) == expected


def test_text_becomes_the_same_tokens(smollm2: Weights, their_tokenizer: Any) -> None:
    """The oracle forgets one thing on its way from GGUF: the file's rule "smollm" cuts digits
    off first; so it is told.
    """
    from tokenizers.pre_tokenizers import Digits, Sequence

    cutter = their_tokenizer.backend_tokenizer
    cutter.pre_tokenizer = Sequence([Digits(individual_digits=True), cutter.pre_tokenizer])
    cutter.encode_special_tokens = True  # role marks in a text are letters
    for text in TRICKY:
        assert (
            smollm2.tokenizer.encode(text) == cutter.encode(text, add_special_tokens=False).ids
        ), text
