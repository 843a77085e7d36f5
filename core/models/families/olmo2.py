"""OLMo 2: norms behind attention and MLP alone, and one norm over all heads of q and of k.

Not covered: OLMo 1 (norms without weights), OLMo 3 (windows), OLMoE.

Source: transformers' `models/olmo2`, llama.cpp's `olmo2` graph.
"""

from ..family import NORMS_BEHIND, Family

FAMILY = Family(
    name="olmo2",
    hf_defaults={
        "olmo2": {
            "vocab_size": 50304,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
        }
    },
    traits={"qk_norm": True, "wide_qk_norm": True, "pre_norms": False, "post_norms": True},
    gguf_names=NORMS_BEHIND,
)
