"""Encoders in llama.cpp's GGUF files: sizes, names, and what cuts text.

Knows llama.cpp's metadata keys and tensors' names of each family. Knows nothing of who computes.
Always: blocks stay as they are; every tensor has a place with the shape that the sizes demand; what
a file asks for and is not computed here is refused, never ignored.

Source: llama.cpp's `gguf-py/gguf/constants.py` for names; `src/llama-model.cpp` and
`src/llama-graph.cpp` (`build_pooling`) for what is not written in the file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.models import Unigram, WordPiece

from ...errors import ModelFileError
from ..files.gguf import GgufFile
from ..files.gguf import read as read_gguf
from ..files.settings import GgufSettings
from ..quant.tensor import QuantTensor
from ..tokenizer.pretokenizers import build
from ..tokenizer.vocabulary import CONTROL, SPACE, Vocabulary, read_scores, texts
from .architecture import (
    HEAD_NORMS,
    MOST_LAYERS,
    EncoderArchitecture,
    EncoderWeights,
    Pooling,
    ScoreHead,
    numbers,
    plain,
)
from .folder import advice

POOLINGS: dict[int, Pooling] = {1: "mean", 2: "first", 3: "last"}
RANK = 4  # a file that scores pairs, of its first token or of a decoder's last one
# outside of layers, what stands for itself: read where it is there
APART = (
    *("cls.weight", "cls.bias", "cls.norm.weight", "cls.output.weight", "cls.output.bias"),
    *("dense_2.weight", "dense_3.weight", "output.weight", "token_types.weight"),
)
# below the family's name, what changes no vector
HARMLESS = (
    *("vocab_size", "context_length", "block_count", "embedding_length", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "attention.layer_norm_epsilon"),
    *("attention.layer_norm_rms_epsilon", "attention.causal", "pooling_type"),
    *("attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base"),
    *("rope.freq_base_swa", "rope.dimension_count", "classifier.output_labels"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufEncoder:
    """One family."""

    traits: Callable[[GgufSettings], dict[str, Any]]  # fields of `EncoderArchitecture`
    names: Mapping[str, str]  # ours -> theirs, inside a layer
    ends: Mapping[str, str]  # ours -> theirs, outside
    # one tensor of theirs, several of ours one above the other
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    activation: str = "tanh"  # of what scores pairs


def open_encoder(path: Path) -> GgufFile:
    """Raises: ModelFileError: not GGUF, or of a family that makes no vectors here."""
    file = read_gguf(path)
    if (name := file.value("general.architecture", str, "")) not in FAMILIES:
        raise ModelFileError(
            f"{path}: family {name!r:.40} makes no vectors or scores here, only "
            f"{', '.join(map(repr, FAMILIES))} do; choose another embedding model"
        )
    return file


def read_weights(file: GgufFile) -> EncoderWeights:
    """Sizes and tensors. Raises: ModelFileError: impossible, missing, or not computed here."""
    name = file.value("general.architecture", str)
    family, settings = FAMILIES[name], GgufSettings(file, name)
    architecture = read_architecture(family, settings)
    return named(file, family, architecture)


def read_architecture(family: GgufEncoder, settings: GgufSettings) -> EncoderArchitecture:
    """Raises: ModelFileError: a size that cannot be, or a setting that would be passed over."""
    file, heads = settings.file, settings.size("attention.head_count")
    width, layers = settings.size("embedding_length"), settings.size("block_count")
    if layers > MOST_LAYERS:
        raise ModelFileError(
            f"{file.path}: {settings.family}.block_count is {layers}, expected {MOST_LAYERS} at "
            f"most; {advice()}"
        )
    head_dim = settings.size("attention.key_length", max(width // heads, 1))
    for key in settings.all():
        if key not in HARMLESS:
            raise ModelFileError(
                f"{file.path}: it has the setting {settings.family}.{key:.60}, which is not "
                f"computed here; choose another embedding model"
            )
    usual: dict[str, Any] = {
        "model_type": settings.family,
        "num_layers": layers,
        "hidden_size": width,
        "intermediate_size": settings.size("feed_forward_length"),
        "num_heads": heads,
        "num_kv_heads": settings.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": len(file.value("tokenizer.ggml.tokens", list)),
        "max_positions": settings.size("context_length"),
        "attention_scale": head_dim**-0.5,
        "pooling": read_pooling(settings),
    }
    found = EncoderArchitecture(**usual | family.traits(settings))
    if not found.is_possible():
        raise ModelFileError(f"{file.path}: impossible sizes {found}; {advice()}")
    return found


def read_pooling(settings: GgufSettings) -> Pooling:
    """Raises: ModelFileError: rows of tokens alone, or a kind that is not known."""
    decoder = settings.family in DECODERS
    said = settings.whole("pooling_type", 3 if settings.family == "qwen3" else 1)
    if said == RANK:
        return "last" if decoder else "first"
    if said not in POOLINGS:
        raise ModelFileError(
            f"{settings.file.path}: {settings.family}.pooling_type is {said}, expected one of "
            f"{', '.join(map(str, (*POOLINGS, RANK)))}; choose another embedding model"
        )
    return POOLINGS[said]


def judges(file: GgufFile) -> bool:
    """Whether a file says of itself that it scores pairs, be it by its words."""
    name = file.value("general.architecture", str)
    if GgufSettings(file, name).whole("pooling_type", 0) == RANK:
        return True
    names = (file.value(f"general.{key}", str, "") for key in ("name", "basename"))
    return any("rerank" in one.lower() for one in names)


def named(file: GgufFile, family: GgufEncoder, architecture: EncoderArchitecture) -> EncoderWeights:
    """The tensors under our names. Raises: ModelFileError: missing, of another shape, or one that
    has no place.
    """
    width, sizes = architecture.hidden_size, dict(architecture.matrices())
    tensors: dict[str, QuantTensor] = {}
    placed = set(APART)

    def take(ours: str, theirs: str, expected: tuple[int, int], *, needed: bool) -> None:
        blocks = file.tensors.get(theirs)
        if blocks is None and not needed:
            return
        if blocks is None or blocks.shape != expected:
            state = "is missing" if blocks is None else f"is {blocks.shape}"
            raise ModelFileError(f"{file.path}: {theirs} {state}, expected {expected}; {advice()}")
        tensors[ours] = blocks
        placed.add(theirs)

    take("embedding.weight", "token_embd.weight", (architecture.vocab_size, width), needed=True)
    if architecture.learned_positions:
        shape = (architecture.max_positions, width)
        take("positions.weight", "position_embd.weight", shape, needed=True)
    for ours, theirs in family.ends.items():
        for kind in ("weight", "bias"):
            take(f"{ours}.{kind}", f"{theirs}.{kind}", (1, width), needed=kind == "weight")
    for layer in range(architecture.num_layers):
        ours, theirs = f"layers.{layer}.", f"blk.{layer}."
        for fused, parts in family.fused.items():
            rows = [sizes[part][0] for part in parts]
            for kind, shape in (("weight", (sum(rows), width)), ("bias", (1, sum(rows)))):
                if f"{theirs}{fused}.{kind}" in file.tensors:
                    take("fused", f"{theirs}{fused}.{kind}", shape, needed=True)
                    split(
                        tensors,
                        tensors.pop("fused"),
                        [f"{ours}{part}.{kind}" for part in parts],
                        rows,
                    )
        for name, shape in sizes.items():
            if f"{ours}{name}.weight" not in tensors:
                own = f"{theirs}{family.names[name]}"
                take(f"{ours}{name}.weight", f"{own}.weight", shape, needed=True)
                take(f"{ours}{name}.bias", f"{own}.bias", (1, shape[0]), needed=False)
        for name, own in family.names.items():
            if name.endswith("_norm"):
                size = architecture.head_dim if name in HEAD_NORMS else width
                # ModernBERT's first layer has none of its input: the embedding's stands before it
                needed = not (name == "attention_norm" and layer == 0 and family.fused)
                take(f"{ours}{name}.weight", f"{theirs}{own}.weight", (1, size), needed=needed)
                take(f"{ours}{name}.bias", f"{theirs}{own}.bias", (1, size), needed=False)
    if (kinds := file.tensors.get("token_types.weight")) is not None:
        take("types", "token_types.weight", (kinds.shape[0], width), needed=True)
        shifts = numbers(tensors.pop("types"))
        tensors["shift.weight"] = plain(shifts[:1])
        if len(shifts) > 1:
            tensors["second_shift.weight"] = plain(shifts[1:2] - shifts[:1])
    take("head.weight", "output.weight", (architecture.vocab_size, width), needed=False)
    if spare := file.tensors.keys() - placed:
        raise ModelFileError(
            f"{file.path}: it has the tensor {min(spare)!r:.60}, which has no place in an encoder "
            f"of {architecture.num_layers} layers; {advice()}"
        )
    return EncoderWeights(architecture, tensors, read_head(file, family, architecture))


def split(
    tensors: dict[str, QuantTensor], whole: QuantTensor, names: list[str], rows: list[int]
) -> None:
    """One tensor as the several that stand in it one above the other, into `tensors`."""
    at = 0
    for name, count in zip(names, rows, strict=True):
        if whole.shape[0] > 1:
            tensors[name] = whole.part(at, at + count)
        else:
            tensors[name] = plain(numbers(whole)[:, at : at + count])
        at += count


def read_head(
    file: GgufFile, family: GgufEncoder, architecture: EncoderArchitecture
) -> ScoreHead | None:
    """What makes a pair's score of its vector; None: the file scores nothing, or by the words that
    a decoder would say.

    Raises:
        ModelFileError: it tells several labels apart, or has parts of another shape.
    """
    width, labels = architecture.hidden_size, file.metadata.get("qwen3.classifier.output_labels")
    out, dense = file.tensors.get("cls.output.weight"), file.tensors.get("cls.weight")
    if out is None and dense is not None and dense.shape[0] < width:
        out, dense = dense, None  # a matrix of labels alone
    if out is None:
        return None
    matrix = numbers(out)
    if labels == ["yes", "no"] and matrix.shape == (2, width):
        return ScoreHead(out=matrix[0] - matrix[1])
    if matrix.shape != (1, width) or (dense is not None and dense.shape != (width, width)):
        raise ModelFileError(
            f"{file.path}: its scores are made by {out.shape} after "
            f"{dense and dense.shape}, expected {(1, width)} after {(width, width)} or nothing; "
            f"choose another model"
        )

    def vector(name: str, size: int) -> NDArray[np.float32] | None:
        found = file.tensors.get(name)
        if found is not None and found.shape != (1, size):
            raise ModelFileError(
                f"{file.path}: {name} is {found.shape}, expected {(1, size)}; {advice()}"
            )
        return None if found is None else numbers(found)[0]

    bias = vector("cls.output.bias", 1)
    return ScoreHead(
        out=matrix[0],
        out_bias=0.0 if bias is None else float(bias[0]),
        dense=None if dense is None else numbers(dense),
        dense_bias=vector("cls.bias", width),
        activation=family.activation,
        norm=vector("cls.norm.weight", width),
        norm_eps=architecture.norm_eps,
    )


def read_dense(file: GgufFile, width: int) -> tuple[NDArray[np.float32], ...]:
    """Matrices that a vector goes through, [rows, columns] each.

    Raises:
        ModelFileError: of other widths.
    """
    found = []
    for name in ("dense_2.weight", "dense_3.weight"):
        if (blocks := file.tensors.get(name)) is not None:
            if blocks.shape[1] != width:
                raise ModelFileError(
                    f"{file.path}: {name} is {blocks.shape}, expected {width} columns; {advice()}"
                )
            found.append(numbers(blocks))
            width = blocks.shape[0]
    return tuple(found)


def read_tokenizer(file: GgufFile, vocab_size: int) -> BackendTokenizer:
    """What cuts text, with the marks that the family puts around it.

    Raises:
        ModelFileError: a kind of vocabulary that is not known here.
    """
    kind = file.value("tokenizer.ggml.model", str)
    if kind not in ("bert", "t5", "gpt2", "llama"):
        raise ModelFileError(
            f"{file.path}: tokenizer {kind!r:.40} is not supported for encoders; choose a file "
            f"with one of 'bert', 't5', 'gpt2', 'llama'"
        )
    tokens = texts(file, "tokenizer.ggml.tokens")
    try:
        if kind == "bert":
            backend = word_pieces(file, tokens)
        elif kind == "t5":
            backend = unigrams(file, tokens)
        else:
            backend = build(Vocabulary.read(file))
            kinds = file.value("tokenizer.ggml.token_type", list)
            control = [token for token, one in zip(tokens, kinds, strict=True) if one == CONTROL]
            backend.add_special_tokens(
                [AddedToken(token, normalized=False, special=True) for token in control]
            )
        backend.post_processor = marks(file, tokens)
    except ModelFileError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(
            f"{file.path}: its vocabulary cannot be used ({error}); {advice()}"
        ) from error
    if backend.get_vocab_size() > vocab_size:
        raise ModelFileError(
            f"{file.path}: spells {backend.get_vocab_size()} tokens, the encoder has {vocab_size}; "
            f"{advice()}"
        )
    return backend


def word_pieces(file: GgufFile, tokens: tuple[str, ...]) -> BackendTokenizer:
    """BERT's: in the file a word's beginning has ▁ before it, what goes on has nothing."""
    kinds = file.value("tokenizer.ggml.token_type", list)
    spelled = {}
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if token.startswith(SPACE):
            spelled[token[1:]] = number
        elif kind == CONTROL or (token.startswith("[") and token.endswith("]")):
            spelled[token] = number
        else:
            spelled[f"##{token}"] = number
    unknown = tokens[file.value("tokenizer.ggml.unknown_token_id", int, tokens.index("[UNK]"))]
    backend = BackendTokenizer(WordPiece(spelled, unk_token=unknown))
    # llama.cpp writes letters small whatever the model was, unless the file says so
    small = file.value("tokenizer.ggml.normalizer.lowercase", bool, True)
    backend.normalizer = normalizers.BertNormalizer(lowercase=small)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [
        token for token in spelled if token in ("[CLS]", "[SEP]", "[PAD]", "[MASK]", unknown)
    ]
    backend.add_special_tokens(special)
    return backend


def unigrams(file: GgufFile, tokens: tuple[str, ...]) -> BackendTokenizer:
    """XLM-R's: the likeliest way to cut a text into pieces."""
    scores = read_scores(file, len(tokens))
    unknown = file.value("tokenizer.ggml.unknown_token_id", int, 3)
    backend = BackendTokenizer(Unigram(list(zip(tokens, scores, strict=True)), unknown))
    steps: list[Any] = []
    if table := file.value("tokenizer.ggml.precompiled_charsmap", list, []):
        steps.append(normalizers.Precompiled(bytes(one & 255 for one in table)))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    special = [one for one in ("<s>", "</s>", "<pad>", "<unk>", "<mask>") if one in tokens]
    backend.add_special_tokens(special)
    return backend


def marks(file: GgufFile, tokens: tuple[str, ...]) -> processors.PostProcessor:
    """What stands around a text, and around and between two.

    Source: the models' tokenizers in transformers; of two, RoBERTa's twice.
    """

    def mark(key: str, *, added: bool) -> str | None:
        number = file.value(f"tokenizer.ggml.{key}_token_id", int, -1)
        asked = file.value(f"tokenizer.ggml.add_{key}_token", bool, added)
        return tokens[number] if asked and 0 <= number < len(tokens) else None

    kind = file.value("tokenizer.ggml.model", str)
    encoder = "[CLS]" in tokens and "[SEP]" in tokens
    if encoder:
        first, last, between = "[CLS]", "[SEP]", ["[SEP]"]
    elif kind == "t5":
        first, last, between = "<s>", "</s>", ["</s>", "</s>"]
    else:
        start = mark("bos", added=kind == "llama")
        end = mark("eos", added=True)
        single = [*filter(None, [start, "$A", end])]
        used = [*filter(None, [start, end])]
        return processors.TemplateProcessing(
            single=single, special_tokens=[(one, tokens.index(one)) for one in dict.fromkeys(used)]
        )
    second = 1 if kind == "bert" else 0
    return processors.TemplateProcessing(
        single=[first, "$A", last],
        pair=[first, "$A", *between, f"$B:{second}", f"{last}:{second}"],
        special_tokens=[(one, tokens.index(one)) for one in (first, last)],
    )


def bert(settings: GgufSettings) -> dict[str, Any]:
    """BERT and, with positions less their unused ones, RoBERTa."""
    rows = settings.file.tensors.get("position_embd.weight")
    positions = {} if rows is None else {"max_positions": rows.shape[0]}
    return {
        **positions,
        "norm_eps": settings.real("attention.layer_norm_epsilon"),
        "activation": "gelu",
        "learned_positions": True,
        "norm_sums": True,
    }


def nomic_bert(settings: GgufSettings) -> dict[str, Any]:
    """nomic-embed-text, 2024: BERT's order with rope and gates."""
    return {
        "norm_eps": settings.real("attention.layer_norm_epsilon"),
        "activation": "silu",
        "gated": True,
        "norm_sums": True,
        "thetas": (settings.real("rope.freq_base", 1000.0),) * settings.size("block_count"),
    }


def modern_bert(settings: GgufSettings) -> dict[str, Any]:
    """ModernBERT, 2024."""
    every = settings.size("attention.sliding_window_pattern", 3)
    near, wide = settings.real("rope.freq_base_swa", 10_000.0), settings.real("rope.freq_base")
    sliding = [bool(layer % every) for layer in range(settings.size("block_count"))]
    reach = settings.size("attention.sliding_window", 128) // 2
    return {
        "norm_eps": settings.real("attention.layer_norm_epsilon"),
        "activation": "gelu",
        "gated": True,
        "thetas": tuple(near if one else wide for one in sliding),
        "reaches": tuple(reach if one else 0 for one in sliding),
    }


def qwen3(settings: GgufSettings) -> dict[str, Any]:
    """Qwen3-Embedding and Qwen3-Reranker, 2025."""
    return {
        "norm_eps": settings.real("attention.layer_norm_rms_epsilon"),
        "activation": "silu",
        "gated": True,
        "rms_norms": True,
        "causal": True,
        "thetas": (settings.real("rope.freq_base", 1e6),) * settings.size("block_count"),
    }


def gemma_embedding(settings: GgufSettings) -> dict[str, Any]:
    """EmbeddingGemma, 2025: five layers of six see a window to either side."""
    layers = settings.size("block_count")
    every = settings.size("attention.sliding_window_pattern", 6)
    sliding = [bool((layer + 1) % every) for layer in range(layers)]
    near, wide = settings.real("rope.freq_base_swa", 10_000.0), settings.real("rope.freq_base", 1e6)
    reach = settings.size("attention.sliding_window", 512) // 2
    return {
        "norm_eps": settings.real("attention.layer_norm_rms_epsilon"),
        "activation": "gelu_tanh",
        "gated": True,
        "rms_norms": True,
        "embedding_scale": math.sqrt(settings.size("embedding_length")),
        "thetas": tuple(near if one else wide for one in sliding),
        "reaches": tuple(reach if one else 0 for one in sliding),
    }


ATTENTION = {f"{part}_proj": f"attn_{part}" for part in "qkv"} | {"o_proj": "attn_output"}
FEED_FORWARD = {f"{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
BEHIND = {"post_attention_norm": "attn_output_norm", "post_mlp_norm": "layer_output_norm"}
DECODER = {
    **ATTENTION,
    **FEED_FORWARD,
    **{"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"},
    **{"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"},
}
QKV = {"attn_qkv": ("q_proj", "k_proj", "v_proj")}
DECODERS = ("qwen3", "gemma-embedding")
FAMILIES: Mapping[str, GgufEncoder] = {
    "bert": GgufEncoder(
        traits=bert,
        names=ATTENTION | FEED_FORWARD | BEHIND,
        ends={"embedding_norm": "token_embd_norm"},
        fused=QKV,
    ),
    "nomic-bert": GgufEncoder(
        traits=nomic_bert,
        names=ATTENTION | FEED_FORWARD | BEHIND,
        ends={"embedding_norm": "token_embd_norm"},
        fused=QKV,
    ),
    "modern-bert": GgufEncoder(
        traits=modern_bert,
        names=ATTENTION | FEED_FORWARD | {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"},
        ends={"embedding_norm": "token_embd_norm", "final_norm": "output_norm"},
        fused=QKV | {"ffn_up": ("gate_proj", "up_proj")},
        activation="gelu",
    ),
    "qwen3": GgufEncoder(traits=qwen3, names=DECODER, ends={"final_norm": "output_norm"}),
    "gemma-embedding": GgufEncoder(
        traits=gemma_embedding,
        names=DECODER
        | {"post_attention_norm": "post_attention_norm", "post_mlp_norm": "post_ffw_norm"},
        ends={"final_norm": "output_norm"},
    ),
}
