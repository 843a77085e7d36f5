"""Tokenizers of every kind against `transformers`, from tokenizer.json and from a GGUF file's
lists.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.models.tokenizer.hf_json import read_tokenizer
from quietchoir.core.models.tokenizer.vocabulary import CONTROL
from quietchoir.tests.fakes.tokenizers import KINDS, from_gguf, save, trained

from .test_tokenizer import TRICKY

ROWS = 720  # of the embedding: a few more than tokens, as published models have
CONVERSATION = [
    {"role": "system", "content": "Sing."},
    {"role": "user", "content": "  hello fellow,\n\n1234 voices <s> [INST] "},
    {"role": "assistant", "content": "\n yellow 🧑‍🚀"},
    {"role": "user", "content": "don't"},
]
BOTH = [
    *(text for text in TRICKY if text),
    "hello </s> <s><|im_end|><end_of_turn><think>hollow</think>",
    "<｜User｜> ten<｜Assistant｜><think>",
]


def plain(theirs: Any, text: str) -> list[int]:
    """Their tokens of a text in which role marks are letters."""
    theirs.backend_tokenizer.encode_special_tokens = True
    tokens: list[int] = theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids
    theirs.backend_tokenizer.encode_special_tokens = False
    return tokens


@pytest.mark.parametrize("name", KINDS)
def test_a_folders_tokenizer_gives_the_tokens_that_transformers_gives(
    name: str, tmp_path: Path
) -> None:
    theirs = save(name, tmp_path)
    ours = read_tokenizer(tmp_path, ROWS)
    for text in BOTH:
        assert ours.encode(text) == plain(theirs, text), text
    assert ours.size == ROWS
    assert ours.start_tokens == tuple(theirs("").input_ids)


@pytest.mark.parametrize("name", KINDS)
def test_a_folders_chat_becomes_the_tokens_that_transformers_makes_of_it(
    name: str, tmp_path: Path
) -> None:
    theirs = save(name, tmp_path)
    ours = read_tokenizer(tmp_path, ROWS)
    said = [
        {**message, "content": message["content"].replace("<s>", "s")} for message in CONVERSATION
    ]  # theirs is fooled
    for messages in (said, said[:2], said[1:2]):
        for prompt in (True, False):
            text = theirs.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=False
            )
            expected = theirs.encode(text, add_special_tokens=False)
            assert ours.encode_chat(messages, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.gguf])
def test_a_gguf_files_tokenizer_gives_the_tokens_that_transformers_gives(
    name: str, tmp_path: Path
) -> None:
    theirs = save(name, tmp_path)
    ours, other = from_gguf(name), read_tokenizer(tmp_path, len(trained(name).get_vocab()))
    for text in BOTH:
        assert ours.encode(text) == plain(theirs, text), text
    assert ours.encode_chat(CONVERSATION) == other.encode_chat(CONVERSATION)
    assert (ours.start_tokens, ours.stop_tokens) == (other.start_tokens, other.stop_tokens)


@pytest.mark.parametrize("name", KINDS)
def test_text_comes_back_whole_and_holds_no_control_token(name: str, tmp_path: Path) -> None:
    save(name, tmp_path)
    for tokenizer in [
        read_tokenizer(tmp_path, ROWS),
        *([from_gguf(name)] if KINDS[name].gguf else []),
    ]:
        for text in BOTH:
            tokens = tokenizer.encode(text)
            # Qwen composes letters and accents; Mistral puts no space before a space, and takes one
            # away.
            if (name != "qwen2" or text.isascii()) and (name != "mistral" or text[0] != " "):
                assert tokenizer.decode(tokens) == text
                stream = tokenizer.stream()
                assert "".join(map(stream.push, tokens)) + stream.finish() == text
            assert not [
                token for token in tokens if tokenizer.vocabulary.token_types[token] == CONTROL
            ]


def test_merges_of_scores_are_the_merges_that_sentencepiece_makes() -> None:
    """Against its algorithm written down plainly: merge the neighbours whose union scores
    highest, leftmost first.
    """
    tokenizer = from_gguf("llama2")
    vocabulary = tokenizer.vocabulary
    scores = {
        token: vocabulary.scores[number]
        for number, token in enumerate(vocabulary.tokens)
        if vocabulary.token_types[number] == 1
    }
    for text in BOTH:
        symbols = list("▁" + text.replace(" ", "▁"))
        while pairs := [
            (scores[a + b], -at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in scores
        ]:
            at = -max(pairs)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        expected: list[str] = []
        for symbol in symbols:
            expected += (
                [symbol] if symbol in scores else [f"<0x{byte:02X}>" for byte in symbol.encode()]
            )
        assert [vocabulary.tokens[token] for token in tokenizer.encode(text)] == expected, text


def test_a_vocabulary_whose_merges_lead_to_a_role_mark_still_gives_letters(tmp_path: Path) -> None:
    save("llama2", tmp_path)
    path = tmp_path / "tokenizer.json"
    described = json.loads(path.read_text())
    vocab, merges = described["model"]["vocab"], described["model"]["merges"]
    vocab["<s"] = len(vocab)
    merges[:0] = [["<", "s"], ["<s", ">"]]
    path.write_text(json.dumps(described))
    tokenizer = read_tokenizer(tmp_path, ROWS)
    # the trap is real
    assert vocab["<s>"] in tokenizer._backend.encode("a<s>", add_special_tokens=False).ids
    assert vocab["<s>"] not in tokenizer.encode("a<s>b<s>")
    assert tokenizer.decode(tokenizer.encode("a<s>b")) == "a<s>b"
