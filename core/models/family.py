"""What one model family is: its traits, what it calls things in its files, and its own reading of
them.

Knows names in GGUF files and in Hugging Face's. Knows no family by name: each is a file in
`families/`.
Always: what a family does not say is Llama's; a window that a family does not know how to read is
refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .architecture import Architecture
from .files.settings import GgufSettings, HfSettings

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
}
HF_ACTIVATIONS: Mapping[str, str] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


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
    interleaved: bool = False  # GGUF files hold the rows of q and k in interleaved rope order
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
    hf_activation_key: str = "hidden_act"
    hf_activations: Mapping[str, str] = field(default_factory=lambda: HF_ACTIVATIONS)
    hf_attention_bias: bool = True  # whether a config's `attention_bias` is listened to
    hf_partial_rope: bool = False  # whether a config's `partial_rotary_factor` is listened to
    mixture: bool = False  # whether its feed-forward may be a mixture of experts
    # parts of the names of a folder's tensors, theirs -> ours
    hf_renamed: Mapping[str, str] = field(default_factory=dict)

    def in_gguf(self, ours: str) -> str:
        """The file's name of a tensor inside a layer, without its ".weight" or ".bias"."""
        return self.gguf_names.get(ours) or GGUF_NAMES[ours]

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """The rule by which layers of full attention turn, as config.json states it."""
        return settings.rule("rope_parameters")

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


def gguf_window(settings: GgufSettings, context: int) -> int:
    """How many rows a windowed layer sees; 0 where no text is long enough to notice."""
    window = settings.whole("attention.sliding_window", 0)
    return window if 0 < window < context else 0


def hf_window(settings: HfSettings, context: int) -> int:
    """As `gguf_window`, of a config.json."""
    if settings.get("sliding_window") is None:
        return 0
    window = settings.size("sliding_window")
    return window if window < context else 0


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


def layer_windows(window: int, inside: list[bool]) -> tuple[int, ...]:
    """`Architecture.windows`: the window of each layer that is inside one; () = all see all."""
    return tuple(window * one for one in inside) if window and any(inside) else ()
