"""A file's tensors under our names, checked against its sizes."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from quietchoir.core.errors import ModelFileError
from quietchoir.core.models import weights
from quietchoir.core.models.checkpoint.from_gguf import half_split_order
from quietchoir.core.models.files import gguf
from quietchoir.core.models.weights import Weights

from .conftest import HEAD_SIZE, WIDTH, WriteModel


def test_the_default_model_has_the_sizes_its_makers_state(smollm2: Weights) -> None:
    sizes = smollm2.architecture
    assert (
        sizes.num_layers,
        sizes.hidden_size,
        sizes.intermediate_size,
        sizes.num_heads,
        sizes.num_kv_heads,
    ) == (30, 576, 1536, 9, 3)
    assert (sizes.head_dim, sizes.vocab_size, sizes.context_length, sizes.rope_theta) == (
        64,
        49152,
        8192,
        100000.0,
    )
    assert smollm2.tensors["lm_head.weight"] is smollm2.tensors["model.embed_tokens.weight"]
    assert len(smollm2.tensors) == 30 * 9 + 3


def test_the_digest_is_the_hash_of_the_file(smollm2: Weights, model_path: Path) -> None:
    assert smollm2.digest == hashlib.sha256(model_path.read_bytes()).hexdigest()


def test_rows_of_q_and_k_move_whole_and_all_other_blocks_stay_on_the_mapped_file(
    tiny_path: Path,
) -> None:
    file, loaded = gguf.read(tiny_path), weights.load(tiny_path)
    theirs, ours = (
        file.tensors["blk.0.attn_q.weight"],
        loaded.tensors["model.layers.0.self_attn.q_proj.weight"],
    )
    first_head = [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]
    assert half_split_order(2 * HEAD_SIZE, HEAD_SIZE).tolist() == first_head + [
        row + HEAD_SIZE for row in first_head
    ]
    assert torch.equal(ours.raw[:HEAD_SIZE], theirs.raw[first_head])
    assert sorted(map(bytes, ours.raw.numpy())) == sorted(map(bytes, theirs.raw.numpy()))
    same = loaded.tensors["model.layers.1.mlp.down_proj.weight"].raw
    assert torch.equal(same, file.tensors["blk.1.ffn_down.weight"].raw)


def test_an_untied_head_is_its_own_matrix(tiny_path: Path) -> None:
    loaded = weights.load(tiny_path)
    assert loaded.tensors["lm_head.weight"] is not loaded.tensors["model.embed_tokens.weight"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"family": "mamba"}, "family 'mamba' is not supported; choose a model of "),
        ({"metadata": {"llama.block_count": None}}, "llama.block_count is missing, expected int"),
        (
            {"metadata": {"llama.block_count": 0}},
            "llama.block_count is 0, expected a positive number",
        ),
        (
            {"metadata": {"llama.embedding_length": "64"}},
            "llama.embedding_length is '64', expected int",
        ),
        (
            {"metadata": {"llama.attention.head_count_kv": 3}},
            "4 query heads do not share 3 key heads",
        ),
        ({"metadata": {"llama.rope.scaling.type": "ntk"}}, "rope is scaled"),
        ({"metadata": {"llama.rope.dimension_count": 18}}, "cannot turn 18 of 16 numbers"),
        ({"metadata": {"llama.expert_count": 8}}, "llama.expert_used_count is missing"),
        (
            {"metadata": {"llama.expert_count": 8, "llama.expert_used_count": 9}},
            "a row takes 9 of 8 experts",
        ),
        (
            {"shapes": {"blk.1.ffn_up.weight": None}},
            r"blk.1.ffn_up.weight is missing, expected "
            r"\(96, 64\)",
        ),
        (
            {"shapes": {"blk.1.ffn_up.weight": (96, 32)}},
            r"blk.1.ffn_up.weight is \(96, 32\), "
            r"expected \(96, 64\)",
        ),
        ({"shapes": {"blk.0.attn_q.bias": (WIDTH,)}}, "blk.1.attn_q.bias is missing"),
        (
            {"shapes": {"blk.2.attn_norm.weight": (WIDTH,)}},
            "blk.2.attn_norm.weight is not part of a llama model",
        ),
        ({"metadata": {"tokenizer.ggml.model": "t5"}}, "tokenizer 't5' is not supported"),
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, "tokenizer.ggml.scores is missing"),
        (
            {"metadata": {"tokenizer.ggml.pre": "by-ear"}},
            "splitting rule 'by-ear' is not supported",
        ),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 99999}}, "an end or start token is beyond"),
        ({"metadata": {"tokenizer.ggml.merges": ["h zz"]}}, "merges do not fit its tokens"),
    ],
)
def test_a_file_that_this_code_would_compute_wrongly_is_refused(
    write_model: WriteModel, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelFileError, match=sentence):
        weights.load(write_model(**changes))
