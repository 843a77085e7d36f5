"""The embedding model against its oracle, and what callers may count on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core.errors import ModelFileError, ModelNotFoundError
from quietchoir.core.models.embedding.embedder import SentenceEmbedder

TEXTS = [
    "The cat sits on the mat.",
    "A kitten is resting on a rug.",
    "Stock markets fell sharply today.",
    "Ünïcödé, 漢字 and 12345!",
    "",
    "word " * 400,
]


@pytest.fixture(scope="module")
def embedder(embedder_path: Path) -> SentenceEmbedder:
    return SentenceEmbedder.load(embedder_path)


def test_vectors_equal_transformers_with_mean_pooling(
    embedder: SentenceEmbedder, embedder_path: Path
) -> None:
    from transformers import BertModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(embedder_path / "tokenizer.json"), pad_token="[PAD]"
    )
    model = BertModel.from_pretrained(embedder_path, add_pooling_layer=False).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        rows = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
    real = batch["attention_mask"][:, :, None].float()
    theirs = torch.nn.functional.normalize((rows * real).sum(1) / real.sum(1), dim=1)
    assert np.abs(embedder.embed(TEXTS) - theirs.numpy()).max() < 1e-5


def test_rows_have_length_one_and_near_meanings_lie_near(embedder: SentenceEmbedder) -> None:
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_a_text_does_not_depend_on_its_neighbours_or_their_order(
    embedder: SentenceEmbedder,
) -> None:
    together, backwards = embedder.embed(TEXTS), embedder.embed(TEXTS[::-1])[::-1]
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - backwards).max() < 1e-5


def test_half_a_surrogate_pair_is_a_question_mark(embedder: SentenceEmbedder) -> None:
    assert np.array_equal(embedder.embed(["a \ud83d b"]), embedder.embed(["a ? b"]))


def test_no_texts_give_no_rows(embedder: SentenceEmbedder) -> None:
    assert embedder.embed([]).shape == (0, 384)


@pytest.mark.parametrize(
    ("file", "change", "error", "sentence"),
    [
        (
            "config.json",
            {"hidden_size": 400, "num_attention_heads": 10},
            ModelFileError,
            r"expected \(30522, 400\)",
        ),
        ("config.json", {"model_type": "roberta"}, ModelFileError, "only 'bert' is supported"),
        ("config.json", {"num_hidden_layers": None}, ModelFileError, "missing or no number"),
        ("config.json", {"num_attention_heads": 7}, ModelFileError, "impossible sizes"),
        (
            "sentence_bert_config.json",
            {"max_seq_length": 100_000},
            ModelFileError,
            "expected 3 to 512",
        ),
        ("tokenizer.json", {"model": {}}, ModelFileError, "not a tokenizer"),
        ("config.json", None, ModelNotFoundError, "no such file; run: quietchoir model pull"),
        ("tokenizer.json", None, ModelNotFoundError, "no such file; run: quietchoir model pull"),
        ("model.safetensors", None, ModelNotFoundError, "no such file; run: quietchoir model pull"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    embedder_path: Path,
    tmp_path: Path,
    file: str,
    change: dict[str, Any] | None,
    error: type[Exception],
    sentence: str,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in embedder_path.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder)
        else:
            (folder / path.name).symlink_to(path)
    changed = (folder / file).read_text("utf-8") if change is not None else ""
    (folder / file).unlink()
    if change is not None:
        (folder / file).write_text(json.dumps(json.loads(changed) | change))
    with pytest.raises(error, match=sentence):
        SentenceEmbedder.load(folder)
