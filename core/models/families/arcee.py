"""Arcee (AFM-4.5B): Llama whose feed-forward has no gate and squares what is above 0.

Source: transformers' `models/arcee`, llama.cpp's `arcee` graph.
"""

from ..family import Family

FAMILY = Family(
    name="arcee",
    hf_defaults={
        "arcee": {
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 4096,
            "hidden_act": "relu2",
        }
    },
    traits={"gated": False, "activation": "relu2"},
    interleaved=True,
    hf_activations={"relu2": "relu2"},
)
