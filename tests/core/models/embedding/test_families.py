"""Every family of encoders against transformers, on tiny random weights: torch's twin to float32's
rounding, the compiled encoder within what 8 bits cost, on every instruction set.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from quietchoir.core.engine.backends.native import library
from quietchoir.core.engine.backends.native.encoder import NativeEncoder, unsupported
from quietchoir.core.errors import EngineError, ModelFileError
from quietchoir.core.models.embedding import families
from quietchoir.core.models.embedding import gguf as from_gguf
from quietchoir.core.models.embedding.architecture import EncoderWeights
from quietchoir.core.models.embedding.torch_encoder import TorchEncoder

SETS = library.instruction_sets() if library.available() is None else ("none",)
if "avx512bf16" in SETS:  # whose products are avx512's
    SETS = tuple(name for name in SETS if name != "avx512")
SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "initializer_range": 0.25,  # so that layers differ from nothing
}
TEXTS = [[5], [7, 8, 9, 10, 7], list(range(3, 50)), [17] * 33, list(range(119, 40, -1))]


def bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**SIZES), add_pooling_layer=False)


def modernbert() -> Any:
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        **SIZES, local_attention=16, pad_token_id=0, initializer_cutoff_factor=2.0
    )
    return ModernBertModel(config)


def nomic_bert() -> Any:
    from transformers import NomicBertConfig, NomicBertModel

    # gates of wilder weights are too steep for 8 bits
    return NomicBertModel(NomicBertConfig(**SIZES | {"initializer_range": 0.12}))


def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=32, pad_token_id=0))


def gemma3() -> Any:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    config = Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=16,
        sliding_window_pattern=3,
        use_bidirectional_attention=True,
    )
    return Gemma3TextModel(config)


MODELS: dict[str, Callable[[], Any]] = {
    "bert": bert,
    "modernbert": modernbert,
    "nomic_bert": nomic_bert,
    "qwen3": qwen3,
    "gemma3_text": gemma3,
}


@pytest.fixture(scope="module", params=list(MODELS))
def oracle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    torch.manual_seed(7)
    model = MODELS[request.param]().eval()
    with torch.no_grad():  # biases and norms begin as nothing and one: let them say something
        for name, values in model.named_parameters():
            if values.ndim == 1:
                values.add_(0.2 * torch.randn(values.shape))
            assert values.abs().max() > 0, name
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def theirs(model: Any, pooling: str) -> np.ndarray:
    """Transformers' own rows of each text alone, pooled."""
    found = []
    with torch.inference_mode():
        for tokens in TEXTS:
            rows = model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
            found.append(rows[-1] if pooling == "last" else rows.mean(0))
    return torch.stack(found).numpy()


def cosines(ours: np.ndarray, others: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(others, axis=1)
    return (ours * others).sum(1) / lengths


def test_torchs_twin_gives_transformers_vectors(oracle: tuple[Any, Path]) -> None:
    model, folder = oracle
    weights = families.read(folder)
    expected = theirs(model, weights.architecture.pooling)
    ours = TorchEncoder(weights).encode(TEXTS)
    assert np.abs(ours - expected).max() < 2e-5 * np.abs(expected).max()


def test_a_gguf_file_gives_transformers_vectors(oracle: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = oracle
    path = tmp_path / "encoder.gguf"
    write_gguf(model, path)
    weights = from_gguf.read_weights(from_gguf.open_encoder(path))
    expected = theirs(model, weights.architecture.pooling)
    ours = TorchEncoder(weights).encode(TEXTS)
    assert np.abs(ours - expected).max() < 2e-5 * np.abs(expected).max()


def write_gguf(model: Any, path: Path) -> None:
    """A model as llama.cpp's converter writes it, under the names of its own package."""
    config = model.config
    kind = GGUF_KINDS[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    decoder = config.model_type in ("qwen3", "gemma3_text")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_causal_attention(config.model_type == "qwen3")
    pooling = gguf.PoolingType.LAST if config.model_type == "qwen3" else gguf.PoolingType.MEAN
    writer.add_pooling_type(pooling)
    if decoder:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.norm_eps)
    match config.model_type:
        case "modernbert":
            writer.add_sliding_window(config.local_attention)
            writer.add_sliding_window_pattern(3)
            writer.add_rope_freq_base(160_000.0)
            writer.add_rope_freq_base_swa(10_000.0)
        case "gemma3_text":
            writer.add_sliding_window(16)
            writer.add_sliding_window_pattern(3)
            writer.add_rope_freq_base(1_000_000.0)
        case "nomic_bert":
            writer.add_rope_freq_base(1000.0)
        case "qwen3":
            writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_token_list([f"token{at}" for at in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, values in model.state_dict().items():
        given = f"model.{name}" if decoder else name
        found = names.get_name(given, (".weight", ".bias")) or name_by_hand(name)
        unit = 1 if config.model_type == "gemma3_text" and name.endswith("norm.weight") else 0
        writer.add_tensor(found, values.float().numpy() + np.float32(unit))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_KINDS = {
    "bert": gguf.MODEL_ARCH.BERT,
    "modernbert": gguf.MODEL_ARCH.MODERN_BERT,
    "nomic_bert": gguf.MODEL_ARCH.NOMIC_BERT,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA_EMBEDDING,
}


def name_by_hand(name: str) -> str:
    """Of transformers' own class of nomic's, which the package has not."""
    ends = {
        "post_attention_layernorm": "attn_output_norm",
        "post_mlp_layernorm": "layer_output_norm",
        "self_attn.o_proj": "attn_output",
        **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
        **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    }
    _, layer, rest = name.split(".", 2)
    stem, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{ends[stem]}.{kind}"


@pytest.mark.parametrize("instruction_set", SETS)
def test_the_compiled_encoder_gives_them_within_what_8_bits_cost(
    oracle: tuple[Any, Path], instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, instruction_set)
    model, folder = oracle
    weights = families.read(folder)
    expected = theirs(model, weights.architecture.pooling)
    exact = NativeEncoder(weights, 2, exact=True).encode(TEXTS)
    assert np.abs(exact - expected).max() < 1e-4 * np.abs(expected).max()
    # these weights are wilder than trained ones: of those, see test_embedder.py
    assert cosines(NativeEncoder(weights, 2).encode(TEXTS), expected).min() > 0.997
    # what would be seen if a trait were lost: other texts are far away
    assert cosines(np.roll(expected, 1, 0), expected).max() < 0.99


def test_a_texts_vector_is_the_same_in_every_batch_and_on_any_number_of_threads(
    oracle: tuple[Any, Path],
) -> None:
    weights = families.read(oracle[1])
    together = NativeEncoder(weights, 1).encode(TEXTS)
    alone = NativeEncoder(weights, 3)
    assert np.array_equal(together, np.concatenate([alone.encode([text]) for text in TEXTS]))
    assert np.array_equal(together[::-1], alone.encode(TEXTS[::-1]))


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([[1, 120]], "token 120 of 120"),
        ([[-1]], "token -1 of 120"),
        ([[1], []], "text 1 has 0 tokens"),
    ],
)
def test_texts_that_cannot_be_are_refused(
    oracle: tuple[Any, Path], texts: list[list[int]], sentence: str
) -> None:
    encoder = NativeEncoder(families.read(oracle[1]), 1)
    with pytest.raises(EngineError, match=sentence):
        encoder.encode(texts)
    encoder.close()
    with pytest.raises(EngineError, match="closed"):
        encoder.encode([[1]])


def test_a_text_beyond_the_learned_positions_is_refused(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="81 tokens, at most 80"):
        NativeEncoder(families.read(tmp_path), 1).encode([[1] * 81])


def test_half_precision_files_are_read(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = modernbert().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    weights = families.read(tmp_path)
    assert weights.tensors["embedding.weight"].quant_type == "BF16"
    expected = TorchEncoder(weights).encode(TEXTS)
    ours = NativeEncoder(weights, exact=True).encode(TEXTS)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("family", "change", "sentence"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("modernbert", {"layer_types": ["sideways"] * 4}, "layer_types has 'sideways'"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window"),
        ("gemma3_text", {"use_bidirectional_attention": False}, "use_bidirectional_attention"),
        ("gemma3_text", {"num_key_value_heads": 3}, "impossible sizes"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_its_name(
    tmp_path: Path, family: str, change: dict[str, Any], sentence: str
) -> None:
    MODELS[family]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFileError, match=sentence):
        families.read(tmp_path)


def spoiled(tensor: np.ndarray, how: str) -> np.ndarray:
    match how:
        case "wider":
            return np.concatenate([tensor, tensor], -1)
        case "shorter":
            return tensor[: len(tensor) // 2].copy()
        case "whole numbers":
            return tensor.astype(np.int8)
    return tensor[None, None]


@pytest.mark.parametrize("how", ["wider", "shorter", "whole numbers", "deeper"])
def test_a_tensor_of_another_shape_or_type_is_refused_by_its_name(
    oracle: tuple[Any, Path], tmp_path: Path, how: str
) -> None:
    tensors = load_file(oracle[1] / "model.safetensors")
    shutil.copy(oracle[1] / "config.json", tmp_path)
    names = [name for name in tensors if "pooler" not in name and "position_ids" not in name]
    for name in names:
        if how == "shorter" and "token_type" in name:
            continue  # of its rows the first alone is read
        save_file(tensors | {name: spoiled(tensors[name], how)}, tmp_path / "model.safetensors")
        with pytest.raises(ModelFileError, match=rf"{re.escape(name)} is .*expected"):
            families.read(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    assert families.read(tmp_path).tensors


def test_an_embedding_of_fewer_rows_than_tokens_never_reaches_the_library(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    weights = families.read(tmp_path)
    cut = weights.tensors["embedding.weight"].part(0, 4)
    weights = EncoderWeights(weights.architecture, {**weights.tensors, "embedding.weight": cut})
    with pytest.raises(EngineError, match=r"the embedding is \(4, 64\), expected \(120, 64\)"):
        NativeEncoder(weights, 1)


def test_widths_that_no_kernel_takes_are_named(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**SIZES | {"intermediate_size": 100})).save_pretrained(tmp_path)
    weights: EncoderWeights = families.read(tmp_path)
    assert unsupported(weights.architecture) == "a width of 100 is no multiple of 32"
    assert TorchEncoder(weights).encode([[1, 2]]).shape == (1, 64)
