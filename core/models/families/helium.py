"""Helium: Llama whose folders hold what rope turns in pairs. GGUF files of it are not read.

Source: transformers' `models/helium`.
"""

from ..family import FolderFamily

FAMILY = FolderFamily(
    name="helium",
    hf_defaults={
        "helium": {
            "vocab_size": 48000,
            "head_dim": 128,
            "rms_norm_eps": 1e-8,
            "rope_theta": 100_000.0,
            "max_position_embeddings": 4096,
        }
    },
    gguf_written=False,
    hf_interleaved=True,
)
