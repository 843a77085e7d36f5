"""MiniCPM 3: latent attention as DeepSeek-V2's with halves that rope turns, one feed-forward for
all rows, factors on embedding, on what layers add, and on logits.

Source: transformers' `models/minicpm3`, llama.cpp's `minicpm3` graph and its converter.
"""

from typing import Any

from ..architecture import Architecture
from ..files.settings import GgufSettings, HfSettings
from .deepseek2 import LATENT_GGUF, LATENT_NAMES, READS, Latent

EMBEDDING, DEPTH, BASE = 12.0, 1.4, 256  # which GGUF files do not say


class MiniCpm3(Latent):
    """Its factors follow from sizes."""

    def from_gguf(self, settings: GgufSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_gguf`."""
        latent = self.latent_from_gguf(settings, plain)
        value = settings.whole("attention.value_length", plain.hidden_size // plain.num_heads)
        factors = factors_of(plain, EMBEDDING, DEPTH, BASE)
        return {**super().from_gguf(settings, plain), **latent, "value_dim": value, **factors}

    def from_hf(self, settings: HfSettings, plain: Architecture) -> dict[str, Any]:
        """As `Family.from_hf`."""
        said = (
            settings.real("scale_emb"),
            settings.real("scale_depth"),
            settings.size("dim_model_base"),
        )
        latent = self.latent_from_hf(settings)
        return {**super().from_hf(settings, plain), **latent, **factors_of(plain, *said)}

    @property
    def in_pairs(self) -> bool:
        """As `Latent.in_pairs`."""
        return False


def factors_of(plain: Architecture, embedding: float, depth: float, base: int) -> dict[str, Any]:
    """What a model of this depth and width multiplies by."""
    return {
        "embedding_scale": embedding,
        "residual_scale": depth / plain.num_layers**0.5,
        "logit_scale": base / plain.hidden_size,
    }


FAMILY = MiniCpm3(
    name="minicpm3",
    hf_defaults={
        "minicpm3": {
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 64,
            "v_head_dim": 64,
            "kv_lora_rank": 256,
            "q_lora_rank": 768,
            "scale_emb": EMBEDDING,
            "scale_depth": DEPTH,
            "dim_model_base": BASE,
        }
    },
    gguf_names=LATENT_GGUF,
    gguf_written=False,
    gguf_reads=READS,
    hf_head_dim="qk_rope_head_dim",
    hf_renamed=LATENT_NAMES,
)
