"""gpt-oss: a mixture of experts with biases and a clamped gate in every layer, windows in every
other one, and a score of each head that takes part in its softmax and mixes nothing.

Not covered: folders whose experts are quantised (MXFP4; take the GGUF file).

Source: transformers' `models/gpt_oss`, llama.cpp's `gpt-oss` graph and its converter.
"""

from typing import TYPE_CHECKING, Any

from ..architecture import ATTENTION_PROJECTIONS, Architecture
from ..family import Family, gguf_window, hf_window, hf_windowed, layer_windows
from ..files.settings import GgufSettings, HfSettings
from ..quant.tensor import QuantTensor, plain

if TYPE_CHECKING:
    from torch import Tensor

FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
ALPHA, LIMIT = 1.702, 7.0  # of the gate: the ones that are computed
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}  # where a config has none


class GptOss(Family):
    """The first layer sees a window, the second all, and so on."""

    def gguf_yarn(self) -> dict[str, Any]:
        """As `Family.gguf_yarn`: its ramp begins and ends between pairs."""
        return {"truncate": False}

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        window = gguf_window(settings, plain.context_length)
        return {"windows": layer_windows(window, local(plain.num_layers))}

    def hf_rope(self, settings: HfSettings) -> dict[str, Any]:
        """As `Family.hf_rope`."""
        return super().hf_rope(settings) or dict(ROPE)

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if (settings.get("swiglu_alpha"), settings.get("swiglu_limit")) != (ALPHA, LIMIT):
            raise ValueError("its gate is not as steep or as clamped as gpt-oss's")
        inside = hf_windowed(settings, plain.num_layers) or local(plain.num_layers)
        return {"windows": layer_windows(hf_window(settings, plain.context_length), inside)}

    def hf_unpacked(
        self, found: dict[str, QuantTensor], architecture: Architecture
    ) -> dict[str, QuantTensor]:
        """As `Family.hf_unpacked`: experts transposed, the rows of gate and up taking turns."""
        there = dict(found)
        for layer in range(architecture.num_layers):
            prefix = f"model.layers.{layer}.mlp.experts."
            for name, parts in FUSED.items():
                for blocks, kind in (
                    (there.pop(f"{prefix}{name}", None), "weight"),
                    (there.pop(f"{prefix}{name}_bias", None), "bias"),
                ):
                    if blocks is not None:
                        there |= apart(prefix, blocks, parts, kind, architecture.num_experts)
        return there

    def to_gguf(
        self, architecture: Architecture
    ) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        """As `Family.to_gguf`."""
        settings, rows = super().to_gguf(architecture)
        settings.setdefault("attention.sliding_window", architecture.context_length)
        return settings, rows


def apart(
    prefix: str, blocks: QuantTensor, parts: tuple[str, ...], kind: str, experts: int
) -> dict[str, QuantTensor]:
    """One tensor of all experts, as each expert's own."""
    rows = blocks.shape[0] // experts
    found = {}
    for expert in range(experts):
        own = blocks.part(expert * rows, (expert + 1) * rows).dequantize()
        columns = own.T if kind == "weight" else own[0]
        for place, part in enumerate(parts):
            taken = columns[place :: len(parts)]
            found[f"{prefix}{expert}.{part}.{kind}"] = plain_blocks(taken, kind)
    return found


def plain_blocks(taken: "Tensor", kind: str) -> QuantTensor:
    """A matrix, or a vector as one row."""
    return plain(taken.contiguous() if kind == "weight" else taken[None].contiguous())


def local(layers: int) -> list[bool]:
    """Which layers see a window alone."""
    return [layer % 2 == 0 for layer in range(layers)]


FAMILY = GptOss(
    name="gpt-oss",
    hf_defaults={
        "gpt_oss": {
            "vocab_size": 201_088,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 128,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "attention_bias": True,
            "swiglu_alpha": ALPHA,
            "swiglu_limit": LIMIT,
        }
    },
    traits={
        "biases": ATTENTION_PROJECTIONS,
        "sinks": True,
        "activation": "swiglu_oai",
        "expert_biases": True,
    },
    gguf_names={"post_attention_layernorm": "post_attention_norm"},
    mixture=True,
    hf_stacked=True,
    hf_activations={"silu": "swiglu_oai"},
    hf_renamed={".self_attn.sinks": ".self_attn.sinks.weight", ".mlp.router.": ".mlp.gate."},
)
