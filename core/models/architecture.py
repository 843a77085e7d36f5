"""The shape of a network, and how each model family writes it down.

Knows sizes, tensor names and row orders. Knows no weights.
Always: what a file says and this page does not understand is refused, never guessed: a wrong guess is a model that
talks nonsense.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ModelFileError
from .gguf import GgufFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Sizes of one decoder."""

    family: str  # a key of FAMILIES
    layers: int
    width: int  # D, of the residual stream
    ffn_width: int  # F
    heads: int  # H, of queries
    kv_heads: int  # KV, of keys and values; H is a multiple of it
    head_size: int
    vocabulary: int  # V
    rope_theta: float
    norm_eps: float
    context: int  # positions the model was trained for

    def projection(self, name: str) -> tuple[int, int]:
        """Rows and columns of one projection of a layer, for example of "self_attn.q_proj"."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "self_attn.q_proj": (queries, self.width),
            "self_attn.k_proj": (keys, self.width),
            "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, queries),
            "mlp.gate_proj": (self.ffn_width, self.width),
            "mlp.up_proj": (self.ffn_width, self.width),
            "mlp.down_proj": (self.width, self.ffn_width),
        }[name]


# In the order in which every list of ours names them.
PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one family names things in a GGUF file; a further family is a further value of this class."""

    layer_tensors: Mapping[str, str]  # inside a layer: our name -> the file's
    model_tensors: Mapping[str, str]  # outside the layers
    interleaved: tuple[str, ...]  # projections whose rows the file orders for interleaved rope


LLAMA = Family(
    layer_tensors={
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    model_tensors={"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
    interleaved=("self_attn.q_proj", "self_attn.k_proj"),
)
FAMILIES: Mapping[str, Family] = {"llama": LLAMA}


def read(file: GgufFile) -> Architecture:
    """The sizes that a file's metadata states.

    Raises:
        ModelFileError: a family we do not know, a missing or impossible size, or a rope that is stretched.
    """
    family = file.value("general.architecture", str)
    if family not in FAMILIES:
        raise ModelFileError(f"{file.path}: family {family!r} is not supported; choose a model of {', '.join(FAMILIES)}")

    def number(key: str, default: int | None = None) -> int:
        found = file.value(f"{family}.{key}", int, default)
        if found <= 0:
            raise ModelFileError(f"{file.path}: {family}.{key} is {found}, expected a positive number; get another file")
        return found

    heads, width = number("attention.head_count"), number("embedding_length")
    architecture = Architecture(
        family=family,
        layers=number("block_count"),
        width=width,
        ffn_width=number("feed_forward_length"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_size=number("attention.key_length", width // heads),
        vocabulary=len(file.value("tokenizer.ggml.tokens", list)),
        rope_theta=file.value(f"{family}.rope.freq_base", float, 10000.0),
        norm_eps=file.value(f"{family}.attention.layer_norm_rms_epsilon", float),
        context=number("context_length"),
    )
    check(file, architecture)
    return architecture


def check(file: GgufFile, architecture: Architecture) -> None:
    """Refuse what this code would compute wrongly.

    Raises:
        ModelFileError: says which property of the file is not supported.
    """
    family, size = architecture.family, architecture.head_size
    stretched = file.value(f"{family}.rope.scaling.type", str, "none") != "none" or "rope_freqs.weight" in file.tensors
    complaint = ""
    if architecture.heads % architecture.kv_heads:
        complaint = f"{architecture.heads} query heads do not share {architecture.kv_heads} key heads evenly"
    elif size % 2 or file.value(f"{family}.rope.dimension_count", int, size) != size:
        complaint = "rope turns only part of a head"
    elif file.value(f"{family}.attention.value_length", int, size) != size:
        complaint = "keys and values differ in size"
    elif stretched:
        complaint = "rope is scaled for a longer context"
    elif file.value(f"{family}.expert_count", int, 0):
        complaint = "it is a mixture of experts"
    if complaint:
        raise ModelFileError(f"{file.path}: {complaint}, which is not supported; choose another model")
