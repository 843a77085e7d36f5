"""Nemotron and Minitron: LayerNorms that folders hold less 1, no gate, what is above 0 squared,
rope of half a head.

Not covered: Nemotron-H (state spaces); Llama-Nemotron is Llama's.

Source: transformers' `models/nemotron`, llama.cpp's `nemotron` graph and its converter.
"""

from ..family import Family

FAMILY = Family(
    name="nemotron",
    hf_defaults={
        "nemotron": {
            "vocab_size": 256_000,
            "norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "max_position_embeddings": 4096,
            "hidden_act": "relu2",
        }
    },
    traits={"layer_norms": True, "norm_biases": True, "gated": False, "activation": "relu2"},
    unit_norms=True,
    hf_epsilon="norm_eps",
    hf_partial_rope=True,
    hf_activations={"relu2": "relu2"},
)
