"""What one model family is: its traits, what it calls things in its files, and its own reading of
them.

Knows names in GGUF files and in Hugging Face's. Knows no family by name: each is a file in
`families/`.
Always: what a family does not say is Llama's; a window that a family does not know how to read is
refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .architecture import ATTENTION_PROJECTIONS, QKV, Architecture
from .files.settings import GgufSettings, HfSettings
from .quant.tensor import QuantTensor
from .quant.tensor import plain as plain_blocks

GGUF_NAMES: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_correction": "exp_probs_b",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "self_attn.sinks": "attn_sinks",
    "self_attn.q_down": "attn_q_a",
    "self_attn.q_down_norm": "attn_q_a_norm",
    "self_attn.kv_down": "attn_kv_a_mqa",
    "self_attn.kv_down_norm": "attn_kv_a_norm",
    "per_layer.gate": "inp_gate",
    "per_layer.proj": "proj",
    "per_layer.norm": "post_norm",
    "layer_scale": "layer_output_scale",
    "altup.predict": "altup_predict_coef",
    "altup.correct": "altup_correct_coef",
    "altup.router": "altup_router",
    "altup.norm": "altup_router_norm",
    "altup.scale": "altup_correct_scale",
    "laurel.left": "laurel_l",
    "laurel.right": "laurel_r",
    "laurel.norm": "laurel_post_norm",
}
# of families that have no other norms of the width
NORMS_BEHIND: Mapping[str, str] = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GGUF_ENDS: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.embed_positions": "position_embd",
    "model.embed_norm": "token_embd_norm",
    "model.embed_per_layer": "per_layer_token_embd",
    "model.per_layer_proj": "per_layer_model_proj",
    "model.per_layer_norm": "per_layer_proj_norm",
    "model.altup_proj": "altup_proj",
    "model.altup_unembed": "altup_unembd_proj",
}
HF_ACTIVATIONS: Mapping[str, str] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class AdaptedPart:
    """One of our matrices that a projection of a folder's is, or is cut into."""

    name: str  # inside a layer
    # which of the projection's rows and columns, in our order; None: all, as they stand
    rows: NDArray[np.int64] | None = None
    columns: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family. What the fields cannot say, a subclass says in the three hooks at the end."""

    name: str  # GGUF's `general.architecture`
    # by config.json's `model_type`: what `transformers` takes where a config is silent
    hf_defaults: Mapping[str, Mapping[str, Any]]
    traits: Mapping[str, Any] = field(default_factory=dict)  # fields of `Architecture`
    # inside a layer, ours -> theirs, where not as usual
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    # one tensor in the file, several of ours one above the other
    gguf_fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hf_fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # the same, of which a file may also hold each by itself
    gguf_may_fuse: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gguf_written: bool = True  # whether `model convert` makes such files
    interleaved: bool = False  # GGUF files hold the rows of q and k in interleaved rope order
    hf_interleaved: bool = False  # so do Hugging Face's
    unit_norms: bool = False  # Hugging Face's files hold norms less 1 (GGUF's hold them whole)
    # settings of a GGUF file, below the family's name, that only this family's hook reads
    gguf_reads: tuple[str, ...] = ()
    # settings that nothing reads, and whether a value says what this family does anyway
    gguf_neutral: Mapping[str, Callable[[object], bool]] = field(default_factory=dict)
    # in a GGUF file every control token but these swallows the white space behind it (its
    # converter knows of it, the format has no place for it); None = none does
    gguf_keeps_space: tuple[str, ...] | None = None
    # another model_type, under which the language model's settings are an object of config.json
    hf_nested: Mapping[str, str] = field(default_factory=dict)
    # of the language model's tensors inside a larger one, theirs -> ours; and what stands beside it
    hf_prefixes: Mapping[str, str] = field(default_factory=dict)
    hf_skipped: tuple[str, ...] = ()
    # what a config calls some settings, theirs -> ours
    hf_keys: Mapping[str, str] = field(default_factory=dict)
    hf_activation_key: str = "hidden_act"
    hf_activations: Mapping[str, str] = field(default_factory=lambda: HF_ACTIVATIONS)
    # the projections to which a config's `attention_bias` gives one
    hf_attention_bias: tuple[str, ...] = ATTENTION_PROJECTIONS
    hf_epsilon: str = "rms_norm_eps"
    hf_head_dim: str = "head_dim"  # how a config calls the numbers of a head, or of what rope turns
    hf_partial_rope: bool = False  # whether a config's `partial_rotary_factor` is listened to
    # files may hold layers behind the last one, which guess further tokens and are left out
    further_layers: bool = False
    # its folders hold matrices one above the other in a third dimension, for `hf_unpacked`
    hf_stacked: bool = False
    mixture: bool = False  # whether its feed-forward may be a mixture of experts
    # parts of the names of a folder's tensors, theirs -> ours
    hf_renamed: Mapping[str, str] = field(default_factory=dict)

    def in_gguf(self, ours: str) -> str:
        """The file's name of a tensor inside a layer, without its ".weight" or ".bias"."""
        return self.gguf_names.get(ours) or GGUF_NAMES[ours]

    def hf_settings(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A config's settings under the names that readers know."""
        said = {ours: values[theirs] for theirs, ours in self.hf_keys.items() if theirs in values}
        return {**values, **said}

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """The rule by which layers of full attention turn, as config.json states it."""
        return {**settings.rule("rope_scaling"), **settings.rule("rope_parameters")}

    def gguf_yarn(self) -> dict[str, Any]:
        """What YaRN's rule says in this family and has no place in a GGUF file."""
        return {}

    def gguf_kv_heads(self, settings: GgufSettings, heads: int) -> int:
        """Heads of keys and values; as many as those of queries where a file does not say.

        Raises:
            ValueError: as `from_gguf`.
        """
        return settings.size("attention.head_count_kv", heads)

    def gguf_inner(self, settings: GgufSettings) -> int:
        """Width of a feed-forward."""
        return settings.size("feed_forward_length")

    def hf_scaled(
        self,
        found: dict[str, QuantTensor],
        settings: HfSettings,  # noqa: ARG002
    ) -> dict[str, QuantTensor]:
        """A folder's tensors, those multiplied that a config says factors of."""
        return found

    def hf_unpacked(
        self,
        found: dict[str, QuantTensor],
        architecture: Architecture,  # noqa: ARG002
    ) -> dict[str, QuantTensor]:
        """A folder's tensors, where it holds several in one in an order of its own; those of three
        dimensions come as matrices one above the other.
        """
        return found

    def gguf_unpacked(
        self,
        found: Mapping[str, QuantTensor],
        architecture: Architecture,  # noqa: ARG002
    ) -> Mapping[str, QuantTensor]:
        """The same of a GGUF file, by its names."""
        return found

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """Fields of `Architecture` in which a GGUF file says more than sizes and traits.

        Args:
            plain: sizes, traits and rope, already validated.

        Raises:
            ValueError: it asks for something that would be computed wrongly; the sentence goes on
            with ", which is not supported".
        """
        if 0 < settings.whole("attention.sliding_window", 0) < plain.context_length:
            raise ValueError(f"some layers of this {self.name} model see only a window")
        return {}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """The same of a config.json.

        Raises:
            ValueError: as `from_gguf`.
        """
        if hf_window(settings, plain.context_length):
            raise ValueError(f"some layers of this {self.name} model see only a window")
        return {}

    def adapted(
        self,
        name: str,  # noqa: ARG002
        layer: int,  # noqa: ARG002
        architecture: Architecture,  # noqa: ARG002
    ) -> tuple[AdaptedPart, ...] | None:
        """What an adapter of a folder's projection changes of ours, where rows or columns stand
        otherwise or nothing of ours has its name; empty: this layer has none. None: ours alike, of
        `Architecture.projection`.
        """
        return None

    def in_files(self, architecture: Architecture) -> Architecture:
        """The same model as its GGUF files hold it, where that is otherwise than folders do."""
        return architecture

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """What a GGUF file says besides the sizes: settings below the family's name, and tensors
        of one row.
        """
        factors = architecture.rope_factors
        settings: dict[str, Any] = {}
        if any(architecture.windows):
            settings["attention.sliding_window"] = max(architecture.windows)
        if architecture.rope_magnitude != 1.0:
            settings["rope.scaling.attn_factor"] = float(architecture.rope_magnitude)
        if len(set(factors)) == 1:
            settings |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factors[0])}
            return settings, {}
        return settings, {"rope_freqs.weight": factors} if factors else {}


class FolderFamily(Family):
    """A family whose GGUF files nobody's converter makes."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:  # noqa: ARG002
        """As `Family.from_gguf`.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"it is a GGUF file of the family {self.name}")


def gguf_window(settings: GgufSettings, context: int, usual: int = 0) -> int:
    """How many rows a windowed layer sees; 0 where no text is long enough to notice."""
    window = settings.whole("attention.sliding_window", usual)
    return window if 0 < window < context else 0


def gguf_windowed(settings: GgufSettings, layers: int, pattern: int) -> list[bool]:
    """Which layers see only a window: all but every `pattern`-th, or as the file says, by a number
    or layer by layer.

    Raises:
        ValueError: it says neither.
    """
    said = settings.all().get("attention.sliding_window_pattern", pattern)
    if isinstance(said, int) and not isinstance(said, bool) and said > 0:
        return every_but(layers, said)
    if not isinstance(said, list) or len(said) < layers:
        raise ValueError(f"its windows follow the pattern {said!r:.40}")
    return [bool(one) for one in said[:layers]]


def every_but(layers: int, pattern: int) -> list[bool]:
    """All layers but every `pattern`-th."""
    return [layer % pattern != 0 for layer in range(1, layers + 1)]


def hf_window(settings: HfSettings, context: int) -> int:
    """As `gguf_window`, of a config.json."""
    if settings.get("sliding_window") is None:
        return 0
    window = settings.size("sliding_window")
    return window if window < context else 0


def layer_ropes(settings: HfSettings, kinds: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Rope's rule by kind of layer, where newer configs hold one for each; else one for all."""
    rule = settings.rule("rope_parameters")
    if not any(isinstance(rule.get(kind), dict) for kind in kinds):
        return dict.fromkeys(kinds, rule)
    others = sorted(key for key, one in rule.items() if one is not None and key not in kinds)
    if others:
        raise ValueError(f"rope has the setting {others[0]!r:.60}")
    return {kind: HfSettings(settings.path, rule, {}).rule(kind) for kind in kinds}


def hf_windowed(settings: HfSettings, layers: int) -> list[bool] | None:
    """Which layers see only a window, where a config lists their types.

    Raises:
        ValueError: a type that is neither.
    """
    types = settings.entries("layer_types", layers)
    if types is not None and not all(
        one in ("sliding_attention", "full_attention") for one in types
    ):
        raise ValueError("it has layers that are neither full nor windowed attention")
    return types and [one == "sliding_attention" for one in types]


def upright(blocks: QuantTensor) -> QuantTensor:
    """A matrix of numbers whose rows and columns a folder holds the other way round."""
    import torch

    exact = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return plain_blocks(blocks.dequantize(exact[blocks.quant_type]).T.contiguous())


def qkv_of(
    found: dict[str, QuantTensor], fused: str, instead: str, rows: tuple[NDArray[np.int64], ...]
) -> None:
    """Cut one layer's q, k and v out of a tensor, in place.

    Args:
        fused: its name without its ending.
        instead: what the names of the three begin with.
        rows: of each of the three.
    """
    for kind in ("weight", "bias"):
        blocks = found.get(f"{fused}.{kind}")
        if blocks is None or sum(map(len, rows)) not in blocks.shape:
            continue
        del found[f"{fused}.{kind}"]
        for name, taken in zip(QKV, rows, strict=True):
            found[f"{instead}{name}.{kind}"] = (
                blocks.take(taken) if kind == "weight" else numbers_of(blocks, taken)
            )


def numbers_of(blocks: QuantTensor, taken: NDArray[np.int64]) -> QuantTensor:
    """Some numbers of a vector."""
    numbers = blocks.vector()[taken]
    return QuantTensor("F32", (1, len(taken)), numbers.view(np.uint8)[None])


def dense_first(layers: int, first: int, size: int) -> dict[str, Any]:
    """The first layers of a mixture have one feed-forward of this size for all rows."""
    if not isinstance(first, int) or not 0 <= first <= layers:
        raise ValueError(f"{first!r:.20} of its {layers} layers have no experts")
    if not first:
        return {}
    return {"dense_layers": tuple(layer < first for layer in range(layers)), "dense_size": size}


def ones_of(names: Iterable[str], size: int) -> dict[str, QuantTensor]:
    """Weights of norms that stand in no file."""
    row = np.ones((1, size), np.float32)
    return dict.fromkeys(names, QuantTensor("F32", row.shape, row.view(np.uint8)))


def kv_sources(kinds: Sequence[object], shared: int) -> tuple[int, ...]:
    """`Architecture.kv_sources`: the last `shared` layers read the keys and values of the last
    layer of their kind before them.

    Raises:
        ValueError: there is none of that kind.
    """
    first = len(kinds) - shared
    before = list(range(max(first, 0)))
    try:
        return (
            *before,
            *(max(at for at in before if kinds[at] == kind) for kind in kinds[max(first, 0) :]),
        )
    except ValueError:
        raise ValueError(f"{shared} of its {len(kinds)} layers read others' keys") from None


def layer_windows(window: int, inside: list[bool]) -> tuple[int, ...]:
    """`Architecture.windows`: the window of each layer that is inside one; () = all see all."""
    return tuple(window * one for one in inside) if window and any(inside) else ()
