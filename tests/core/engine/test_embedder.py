"""The embedding model against its oracle, and what callers may count on."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.encoder import NativeEncoder
from quietchoir.core.engine.embedder import SentenceEmbedder
from quietchoir.core.errors import ModelFileError, ModelNotFoundError
from quietchoir.core.models.embedding.folder import Role
from quietchoir.core.models.embedding.torch_encoder import TorchEncoder

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


@pytest.fixture(scope="module")
def theirs(embedder_path: Path) -> np.ndarray:
    """What transformers makes of TEXTS, with mean pooling, [N, 384]."""
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
    return torch.nn.functional.normalize((rows * real).sum(1) / real.sum(1), dim=1).numpy()


def test_torch_gives_transformers_vectors(
    embedder_path: Path, theirs: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    ours = SentenceEmbedder.load(embedder_path)
    assert isinstance(ours.encoder, TorchEncoder)
    assert np.abs(ours.embed(TEXTS) - theirs).max() < 1e-5


def test_the_compiled_encoder_gives_them_within_what_8_bits_cost(
    embedder: SentenceEmbedder, theirs: np.ndarray
) -> None:
    assert isinstance(embedder.encoder, NativeEncoder)
    cosines = (embedder.embed(TEXTS) * theirs).sum(1)
    said = np.array([bool(text) for text in TEXTS])
    assert cosines[said].min() > 0.999 and cosines.min() > 0.995  # the last: of no words at all


def test_a_gguf_file_gives_the_folders_vectors(
    embedder: SentenceEmbedder, embedder_path: Path, tmp_path: Path
) -> None:
    """Written as llama.cpp's converter writes BERT: half precision, ▁ before a word's beginning."""
    described = json.loads((embedder_path / "tokenizer.json").read_bytes())
    config = json.loads((embedder_path / "config.json").read_bytes())
    words = sorted(described["model"]["vocab"], key=described["model"]["vocab"].__getitem__)
    control = {one["content"] for one in described["added_tokens"]}
    path = tmp_path / "minilm.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(
        [
            word if word in control else word[2:] if word.startswith("##") else f"▁{word}"
            for word in words
        ]
    )
    writer.add_token_types([3 if word in control else 1 for word in words])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, values in load_file(embedder_path / "model.safetensors").items():
        found = names.get_name(name.removeprefix("bert."), (".weight", ".bias"))
        if found is not None and "pooler" not in name:
            half = values.ndim == 2 and "position" not in name and "type" not in name
            writer.add_tensor(found, values.astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, short = SentenceEmbedder.load(path), TEXTS[:5]
    assert ours.count(short) == embedder.count(short)
    cosines = (ours.embed(short) * embedder.embed(short)).sum(1)
    assert cosines[:4].min() > 0.9995 and cosines[4] > 0.998  # the last: of no words at all
    assert ours.identity != embedder.identity


def test_neither_reading_nor_embedding_needs_torch(embedder_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from quietchoir.core.engine.embedder import SentenceEmbedder\n"
        "from quietchoir.core.retrieval.search import Search\n"
        f"print(SentenceEmbedder.load(Path({str(embedder_path)!r})).embed(['hello']).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(1, 384)\n"


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
    assert np.array_equal(together, alone)
    assert np.array_equal(together, backwards)


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
        (
            "config.json",
            {"model_type": "xlnet"},
            ModelFileError,
            "only 'bert', 'roberta', 'xlm-roberta', 'modernbert', 'nomic_bert', 'qwen3'",
        ),
        (
            "config.json",
            {"num_hidden_layers": None},
            ModelFileError,
            "num_hidden_layers is None, expected a positive whole number",
        ),
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


def vocabulary(**given: Any) -> Callable[[Any], None]:
    def change(described: Any) -> None:
        described["model"]["vocab"] |= given

    return change


def unknown_words(described: Any) -> None:
    del described["model"]["vocab"]["[UNK]"]
    described["added_tokens"] = []
    described["post_processor"] = None


def added(content: str, *, special: bool) -> Callable[[Any], None]:
    def change(described: Any) -> None:
        like = described["added_tokens"][0]
        described["added_tokens"].append(
            like | {"id": 30_522, "content": content, "special": special}
        )

    return change


def marked(count: int, token: int) -> Callable[[Any], None]:
    def change(described: Any) -> None:
        mark = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
        described["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [*[mark] * count, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": each, "type_id": 0}} for each in "AB"],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [token], "tokens": ["[CLS]"]}},
        }

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (vocabulary(hello=300_000_000), "has token 300000000, the encoder has 30522 tokens"),
        (vocabulary(hello=2**32 - 1), "has token 4294967295, the encoder has 30522 tokens"),
        (vocabulary(quietchoir=30_522), "has token 30522, the encoder has 30522 tokens"),
        (vocabulary(quietchoir=30_521), None),
        (added("quietchoir", special=True), None),  # as Gemma's token of pictures
        (added("quietchoir", special=False), "has token 30522, the encoder has 30522 tokens"),
        (unknown_words, r"not a tokenizer \(.*UNK"),
        (marked(1, 1_000_000), "has token 1000000, the encoder has 30522 tokens"),
        (marked(256, 101), "puts 256 marks around a text, expected fewer than the 256 tokens"),
        (marked(255, 101), None),
    ],
)
def test_a_tokenizer_whose_tokens_the_encoder_does_not_have_is_refused_in_little_memory(
    embedder_path: Path, tmp_path: Path, change: Callable[[Any], None], sentence: str | None
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in embedder_path.iterdir():
        (folder / path.name).symlink_to(path)
    described = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(described)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(described), "utf-8")
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from quietchoir.core.engine.embedder import SentenceEmbedder\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from quietchoir.core.errors import ModelFileError\n"
        "try: print(SentenceEmbedder.load(Path(sys.argv[1]), 1).embed(['quietchoir']).shape)\n"
        "except ModelFileError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    assert re.search(sentence or r"\(1, 384\)", done.stdout), done.stdout


def beside(embedder_path: Path, folder: Path) -> Path:
    """A folder of the same files, to put others beside them."""
    folder.mkdir()
    for path in embedder_path.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def test_a_model_reads_before_a_text_what_its_folder_says_it_shall(
    embedder: SentenceEmbedder, embedder_path: Path, tmp_path: Path
) -> None:
    folder = beside(embedder_path, tmp_path / "model")
    said = folder / "config_sentence_transformers.json"
    said.unlink(missing_ok=True)
    prompts = {"query": "search: ", "passage": "title: none | text: ", "STS": "task: "}
    said.write_text(json.dumps({"prompts": prompts, "default_prompt_name": "STS"}))
    ours = SentenceEmbedder.load(folder)
    before: dict[Role, str] = {"query": "search: ", "document": prompts["passage"], "": "task: "}
    for role, prompt in before.items():
        expected = embedder.embed([prompt + text for text in TEXTS[:3]])
        assert np.array_equal(ours.embed(TEXTS[:3], role), expected)
        assert np.array_equal(embedder.embed(TEXTS[:3], role), embedder.embed(TEXTS[:3]))
    assert ours.identity.endswith("prompted") and ours.identity != embedder.identity
    for wrong in ({"prompts": {"query": 3}}, {"prompts": prompts, "default_prompt_name": "other"}):
        said.write_text(json.dumps(wrong))
        with pytest.raises(ModelFileError, match=r"expected texts|expected one of 'query'"):
            SentenceEmbedder.load(folder)


def test_weights_that_are_no_numbers_are_refused(embedder_path: Path, tmp_path: Path) -> None:
    folder = beside(embedder_path, tmp_path / "model")
    tensors = load_file(embedder_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.3.attention.self.query.weight"))
    tensors[name][7, 9] = np.nan
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"layers.3.q_proj.weight holds numbers that are not"):
        SentenceEmbedder.load(folder)


def test_parts_behind_the_encoder_are_computed_or_refused(
    embedder: SentenceEmbedder, embedder_path: Path, tmp_path: Path
) -> None:
    folder = beside(embedder_path, tmp_path / "model")
    parts = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    lay_out = [{"type": f"some.module.{kind}", "path": place} for kind, place in parts]
    (folder / "modules.json").write_text(json.dumps(lay_out))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "2_Dense").mkdir()
    config = {"activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "2_Dense/config.json").write_text(json.dumps(config))
    matrix = np.random.default_rng(1).standard_normal((48, 384)).astype(np.float32)
    save_file({"linear.weight": matrix}, folder / "2_Dense/model.safetensors")
    ours = SentenceEmbedder.load(folder)
    expected = embedder.embed(TEXTS) @ matrix.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert ours.width == 48 and np.abs(ours.embed(TEXTS) - expected).max() < 1e-5
    assert ours.identity != embedder.identity
    (folder / "2_Dense/config.json").write_text(json.dumps({"activation_function": "Tanh"}))
    with pytest.raises(ModelFileError, match="activation_function is 'Tanh'"):
        SentenceEmbedder.load(folder)
    (folder / "modules.json").write_text(json.dumps([{"type": "a.Router", "path": ""}]))
    with pytest.raises(ModelFileError, match="a part 'Router' is not known"):
        SentenceEmbedder.load(folder)
    (folder / "modules.json").write_text(json.dumps([{"type": "a.Dense", "path": "../../x"}]))
    with pytest.raises(ModelFileError, match="outside the folder"):
        SentenceEmbedder.load(folder)
