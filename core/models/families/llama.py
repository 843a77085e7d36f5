"""Llama 2 and 3, SmolLM2; Mistral, Ministral (windows in some layers) and a mixture of experts,
Mixtral, whose GGUF files call them llama.

Not covered: Llama 4; GGUF files of Mixtral with a tensor for each expert, as the first ones had.
"""

from typing import Any

from ..architecture import Architecture
from ..family import Family, gguf_window, hf_window, hf_windowed, layer_windows
from ..files.settings import GgufSettings, HfSettings


class Llama(Family):
    """Mistral's window holds for every layer; Llama has none, and its config's is not looked at."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        window = gguf_window(settings, plain.context_length)
        return {"windows": layer_windows(window, [True] * plain.num_layers)}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        if settings.model_type == "llama":
            return {}
        inside = [True] * plain.num_layers
        if settings.model_type == "ministral":
            inside = hf_windowed(settings, plain.num_layers) or inside
        window = hf_window(settings, plain.context_length)
        return {"windows": layer_windows(window, inside)}


FAMILY = Llama(
    name="llama",
    hf_defaults={
        "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10000.0},
        "mistral": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096},
        "ministral": {
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
        "mixtral": {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    },
    interleaved=True,
    mixture=True,
    hf_renamed={
        ".block_sparse_moe.": ".mlp.",
        ".w1.weight": ".gate_proj.weight",
        ".w2.weight": ".down_proj.weight",
        ".w3.weight": ".up_proj.weight",
    },
)
