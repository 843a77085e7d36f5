"""Qwen3, dense: a norm over each head of q and k.

Not covered: Qwen3-MoE, Qwen3-Next.
"""

from .qwen2 import Qwen2

FAMILY = Qwen2(
    name="qwen3",
    hf_defaults={
        "qwen3": {
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_window_layers": 28,
            "sliding_window": 4096,
            "head_dim": 128,
        }
    },
    traits={"qk_norm": True},
)
