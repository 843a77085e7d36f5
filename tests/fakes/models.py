"""Tiny random models of every family, as `transformers` makes and saves them, and as a GGUF file
that llama.cpp would read.
"""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * pair for pair in range(8)],
    "long_factor": [2.0 + pair for pair in range(8)],
}
SIX_FACTORS = {
    "short_factor": [1.0 + 0.1 * pair for pair in range(6)],
    "long_factor": [2.0 + pair for pair in range(6)],
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
MISTRALS = {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
    "logits_scaling": 0.125,
}
LATENT = {
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 24,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
ROUTED = {
    "moe_intermediate_size": 48,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 2,
}
DELTA = {
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}
SCANS = {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_d_head": 16}
HYBRID = {
    **SCANS,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2
    + ["linear_attention", "full_attention"],
    "shared_intermediate_size": 80,
}
NEMOTRON = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "head_dim": 32,
}
LLAMA4 = {
    "head_dim": 32,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "intermediate_size_mlp": 80,
}
CONVOLVED = {
    "block_multiple_of": 8,
    "layer_types": ["full_attention" if layer in (2, 5) else "conv" for layer in range(8)],
}
# Name -> class of transformers' configuration, and what differs from SIZES. Windows are far shorter
# than the tests' texts.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-biased": ("LlamaConfig", {"attention_bias": True}),
    "llama-linear": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}},
    ),
    "mistral": ("MistralConfig", {"sliding_window": 9, "head_dim": 32}),
    "ministral": (
        "MinistralConfig",
        {
            "sliding_window": 9,
            "head_dim": 32,
            "layer_types": ["full_attention", "sliding_attention"] * 4,
        },
    ),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-windowed": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "sliding_window": 9,
            "query_pre_attn_scalar": 48,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            "head_dim": 16,
            "sliding_window": 9,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 280,
            "laurel_rank": 32,
            "activation_sparsity_pattern": [0.8] * 3 + [0.0] * 5,
            "final_logit_softcapping": 20.0,
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 9,
            "num_kv_shared_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2
            + ["sliding_attention", "full_attention"],
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 300,
            "final_logit_softcapping": 20.0,
        },
    ),
    "gemma4-large": (
        "Gemma4TextConfig",
        {
            "head_dim": 32,
            "global_head_dim": 64,
            "sliding_window": 9,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
        },
    ),
    "smollm2": ("LlamaConfig", {"tie_word_embeddings": True, "rope_theta": 100000.0}),
    "smollm3": ("SmolLM3Config", {"tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {"sliding_window": 11, "original_max_position_embeddings": 512}),
    "phi4-mini": (
        "Phi3Config",
        {
            "rope_parameters": {**LONG_ROPE, "partial_rotary_factor": 0.75} | SIX_FACTORS,
            "original_max_position_embeddings": 128,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2-yarn": ("Qwen2Config", {"rope_parameters": YARN, "head_dim": 16}),
    "llama-dynamic": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5000.0}},
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 5, "sliding_window": None}),
    "qwen3moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 32,
            "num_experts": 9,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
    "qwen3moe-shares": (
        "Qwen3MoeConfig",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0625,
            "logits_scaling": 0.125,
            "tie_word_embeddings": True,
        },
    ),
    "granite4": (
        "GraniteMoeHybridConfig",
        {
            **GRANITE,
            "layer_types": ["full_attention"] * 8,
            "num_local_experts": 0,
            "shared_intermediate_size": 80,
            "position_embedding_type": "rope",
            "mamba_n_heads": 8,
        },
    ),
    "granite4-nope": (
        "GraniteMoeHybridConfig",
        {
            **GRANITE,
            "layer_types": ["full_attention"] * 8,
            "num_local_experts": 0,
            "shared_intermediate_size": 80,
            "mamba_n_heads": 8,
        },
    ),
    "granitemoe": ("GraniteMoeConfig", {**GRANITE, "num_local_experts": 6}),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        {**GRANITE, "num_local_experts": 6, "shared_intermediate_size": 64},
    ),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": (
        "Olmo3Config",
        {
            "sliding_window": 9,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gemma2": ("Gemma2Config", {"head_dim": 32, "sliding_window": 9, "query_pre_attn_scalar": 32}),
    "gemma2-caps": (
        "Gemma2Config",
        {
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 20.0,
            "sliding_window": 9,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
        },
    ),
    "glm4": ("Glm4Config", {"head_dim": 32, "attention_bias": True}),
    "glm": ("GlmConfig", {"head_dim": 32, "attention_bias": True}),
    "seed_oss": ("SeedOssConfig", {"head_dim": 32}),
    "ernie4_5": ("Ernie4_5Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "ministral3": (
        "Ministral3Config",
        {"head_dim": 32, "rope_parameters": YARN | MISTRALS | {"llama_4_scaling_beta": 0.1}},
    ),
    "exaone4": ("Exaone4Config", {"sliding_window": 9}),
    "exaone4-small": (
        "Exaone4Config",
        {"sliding_window": None, "layer_types": ["full_attention"] * 8},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 9, "num_experts_per_tok": 3}),
    "qwen2moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 7,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
        },
    ),
    "glm4moe": (
        "Glm4MoeConfig",
        {
            "head_dim": 32,
            "attention_bias": True,
            "moe_intermediate_size": 48,
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.5,
            "first_k_dense_replace": 2,
            "use_qk_norm": True,
            "num_mtp_layers": 0,
        },
    ),
    "glm4moe-one-group": (
        "Glm4MoeConfig",
        {
            "moe_intermediate_size": 32,
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "norm_topk_prob": False,
            "num_mtp_layers": 0,
        },
    ),
    "gptneox": ("GPTNeoXConfig", {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    "gptneox-serial": (
        "GPTNeoXConfig",
        {"num_key_value_heads": 4, "hidden_act": "gelu", "use_parallel_residual": False},
    ),
    "ernie4_5-moe": (
        "Ernie4_5_MoeConfig",
        {
            "tie_word_embeddings": True,
            "moe_intermediate_size": 24,
            "moe_num_experts": 7,
            "moe_k": 3,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 2,
        },
    ),
    "minimax_m2": (
        "MiniMaxM2Config",
        {
            "head_dim": 32,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "dots1": (
        "Dots1Config",
        {
            "moe_intermediate_size": 48,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
    ),
    "hunyuan-moe": ("HunYuanMoEV1Config", {"head_dim": 32, "num_experts": 6, "moe_topk": 2}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 32,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "sliding_window": 9,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "truncate": False,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "cohere": ("CohereConfig", {"tie_word_embeddings": True, "logit_scale": 0.5}),
    "cohere2": (
        "Cohere2Config",
        {"tie_word_embeddings": True, "logit_scale": 0.5, "sliding_window": 9},
    ),
    "starcoder2": (
        "Starcoder2Config",
        {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "starcoder2-windowed": ("Starcoder2Config", {"sliding_window": 9}),
    "phi2": ("PhiConfig", {"hidden_act": "gelu_new", "num_key_value_heads": 4}),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "stablelm-parallel": ("StableLmConfig", {"use_parallel_residual": True}),
    "arcee": ("ArceeConfig", {"hidden_act": "relu2"}),
    "nemotron": ("NemotronConfig", {"hidden_act": "relu2"}),
    "hunyuan": (
        "HunYuanDenseV1Config",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 50.0,
                "factor": 1.0,
            },
        },
    ),
    "falcon": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-small": ("FalconConfig", {"bias": True}),
    "gpt2": ("GPT2Config", {}),
    "starcoder": ("GPTBigCodeConfig", {}),
    "olmo": ("OlmoConfig", {}),
    "gptj": ("GPTJConfig", {"rotary_dim": 8}),
    "codegen": ("CodeGenConfig", {"rotary_dim": 8}),
    "gpt_neo": ("GPTNeoConfig", {"attention_types": [[["global", "local"], 4]], "window_size": 9}),
    "helium": ("HeliumConfig", {"head_dim": 16}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **LATENT,
            **ROUTED,
            "q_lora_rank": 48,
            "n_group": 4,
            "topk_group": 2,
            "num_mtp_layers": 0,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v2": ("DeepseekV2Config", {**LATENT, **ROUTED, "q_lora_rank": None}),
    "minicpm3": ("MiniCPM3Config", {**LATENT, "q_lora_rank": 48, "tie_word_embeddings": True}),
    "opt": ("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("BloomConfig", {}),
    # so many heads that their slopes follow the second rule
    "mpt": ("MptConfig", {"hidden_size": 96, "num_attention_heads": 6, "max_seq_len": 512}),
    "llama4": (
        "Llama4TextConfig",
        {**LLAMA4, "attention_chunk_size": 9, "floor_scale": 8, "attn_scale": 0.5},
    ),
    "llama4-step": (
        "Llama4TextConfig",
        {**LLAMA4, "interleave_moe_layer_step": 2, "rope_parameters": LLAMA3_ROPE},
    ),
    "qwen3next": (
        "Qwen3NextConfig",
        {
            **DELTA,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
        },
    ),
    "qwen35": ("Qwen3_5TextConfig", DELTA),
    "qwen35moe": (
        "Qwen3_5MoeTextConfig",
        {
            **DELTA,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
        },
    ),
    "granitehybrid": ("GraniteMoeHybridConfig", {**GRANITE, **HYBRID, "num_local_experts": 5}),
    "granitehybrid-dense": (
        "GraniteMoeHybridConfig",
        {**GRANITE, **HYBRID, "num_local_experts": 0, "position_embedding_type": "rope"},
    ),
    "falcon_h1": (
        "FalconH1Config",
        {
            **SCANS,
            "head_dim": 16,
            "mamba_d_ssm": 128,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mlp_multipliers": [0.9, 0.8],
            "ssm_multipliers": [0.7, 0.9, 1.1, 1.2, 1.3],
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.85,
            "key_multiplier": 0.75,
            "attention_in_multiplier": 1.15,
            "attention_out_multiplier": 0.95,
            "embedding_multiplier": 1.5,
            "lm_head_multiplier": 0.6,
        },
    ),
    "nemotron_h": ("NemotronHConfig", {**NEMOTRON, "hybrid_override_pattern": "M-M*-MM-"}),
    "nemotron3": (
        "NemotronHConfig",
        {
            **NEMOTRON,
            "hybrid_override_pattern": "MEM*EME",
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.5,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 80,
        },
    ),
    "nemotron3-dense": (
        "NemotronHConfig",
        {
            **NEMOTRON,
            "hybrid_override_pattern": "M-*EM",
            "n_routed_experts": 4,
            "norm_topk_prob": False,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 64,
        },
    ),
    "falcon_h1-plain": ("FalconH1Config", {**SCANS, "mamba_d_ssm": 128, "head_dim": 16}),
    "lfm2": ("Lfm2Config", CONVOLVED),
    "lfm2moe": (
        "Lfm2MoeConfig",
        {
            **CONVOLVED,
            "conv_L_cache": 4,
            "moe_intermediate_size": 48,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "num_dense_layers": 1,
            "routed_scaling_factor": 1.5,
        },
    ),
    "phi3-long": (
        "Phi3Config",
        {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 128},
    ),
}


# whose folders hold norms less 1
LESS_ONE = (
    *("Gemma2Config", "Gemma3TextConfig", "GemmaConfig", "NemotronConfig"),
    *("Qwen3NextConfig", "Qwen3_5TextConfig", "Qwen3_5MoeTextConfig"),
)
# whose norms are LayerNorms
CENTRED = (
    "falcon",
    "gpt2",
    "starcoder",
    "olmo",
    "gptneox",
    "bloom",
    "mpt",
    "cohere2",
    "command-r",
    "starcoder2",
    "phi2",
    "stablelm",
    "nemotron",
)
# in whose GGUF files rows of q and k take turns that do not in a folder
PLAIN_MIXERS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
    *("gate", "experts", "shared_experts"),
)
GRANITES = ("granite", "granitemoe", "granitehybrid")
TURNED = ("olmo", "llama", "smollm3", *GRANITES, "mistral3", "arcee")
DELTAS = ("qwen3next", "qwen35", "qwen35moe")


def make_model(name: str, **changes: Any) -> Any:
    """One family's model, every weight random and far from its neutral value."""
    import transformers

    class_name, own = FAMILIES[name]
    config = getattr(transformers, class_name)(**{**SIZES, **own, **changes})
    torch.manual_seed(sum(name.encode()))
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("norm.weight"):
                parameter.uniform_(-0.5, 0.5).add_(0.0 if class_name in LESS_ONE else 1.0)
            elif parameter.dim() == 1:
                parameter.uniform_(-0.5, 0.5)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.uniform_(-0.3, 0.3)
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.7, 1.3)
        model.get_input_embeddings().weight.normal_(0, 0.3)
    return model


@torch.inference_mode()
def their_logits(model: Any, tokens: Tensor) -> Tensor:
    """[N] -> [N, V]."""
    logits: Tensor = model(tokens[None]).logits[0]
    return logits


def byte_level(size: int) -> tuple[list[str], list[int]]:
    """A vocabulary of `size` tokens: three controls, all bytes, one word, and unused ones."""
    from quietchoir.core.models.tokenizer.vocabulary import CONTROL, byte_of_letter

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_of_letter(), "he"]
    kinds = [CONTROL] * 3 + [1] * 257
    tokens += [f"[PAD{number}]" for number in range(len(tokens), size)]
    return tokens, kinds + [5] * (size - len(kinds))


def inner_size(config: Any) -> int:
    """Width of the feed-forward."""
    if config.model_type in ("bloom", "mpt"):
        return 4 * int(config.hidden_size)
    if config.model_type == "llama4_text":
        return int(config.intermediate_size_mlp)
    for key in ("ffn_hidden_size", "n_inner", "intermediate_size"):
        if hasattr(config, key):
            return getattr(config, key) or 4 * config.hidden_size
    raise AttributeError(config)


def key_heads(config: Any) -> int:
    """Heads of keys."""
    small = config.model_type == "falcon" and not config.new_decoder_architecture
    if small or config.model_type == "gpt_bigcode":
        return 1
    if config.model_type in ("gpt2", "bloom", "mpt"):
        return int(config.num_attention_heads)
    return int(getattr(config, "num_kv_heads", 0) or config.num_key_value_heads)


# of GPT-2, whose folders hold columns as rows
TURNED_ASIDE = ("c_attn", "c_proj", "c_fc")


class GgufWriter:
    """What llama.cpp's converter makes of a model, for the families above; by its names, orders
    and keys.
    """

    def __init__(self, model: Any, path: Path, kind: str = "F32", *, gate_up: bool = False) -> None:
        """`gate_up`: experts' gates and ups in one tensor."""
        self.model, self.config, self.kind, self.gate_up = model, model.config, kind, gate_up
        self.config.allow_global_per_layer_attribute_access = True  # where layers differ
        self.family = {
            "mistral": "llama",
            "ministral": "llama",
            "mixtral": "llama",
            "gemma3_text": "gemma3",
            "gemma3n_text": "gemma3n",
            "gemma4_text": "gemma4",
            "qwen3_moe": "qwen3moe",
            "ministral3": "mistral3",
            "olmo3": "olmo2",
            "qwen2_moe": "qwen2moe",
            "glm4_moe": "glm4moe",
            "deepseek_v2": "deepseek2",
            "gpt_bigcode": "starcoder",
            "deepseek_v3": "deepseek2",
            "gpt_oss": "gpt-oss",
            "granitemoehybrid": "granite",
            "gpt_neox": "gptneox",
            "ernie4_5_moe": "ernie4_5-moe",
            "minimax_m2": "minimax-m2",
            "hunyuan_v1_moe": "hunyuan-moe",
            "glm": "chatglm",
            "granitemoeshared": "granitemoe",
            "cohere": "command-r",
            "phi": "phi2",
            "hunyuan_v1_dense": "hunyuan-dense",
            "lfm2_moe": "lfm2moe",
            "llama4_text": "llama4",
            "qwen3_next": "qwen3next",
            "qwen3_5_text": "qwen35",
            "qwen3_5_moe_text": "qwen35moe",
            "falcon_h1": "falcon-h1",
        }.get(self.config.model_type, self.config.model_type)
        self.scans = any(name.endswith(".A_log") for name, _ in model.named_parameters())
        self.scans &= "linear_attn" not in "".join(name for name, _ in model.named_parameters())
        if self.scans and self.family == "granite":
            self.family = "granitehybrid"
        if self.family == "nemotron_h" and "moe" in self.config.layer_types:
            self.family = "nemotron_h_moe"
        self.writer = gguf.GGUFWriter(path, self.family)
        kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == self.family)
        # the package's own names, of a layer's tensors too
        self.names = gguf.get_tensor_name_map(kind, self.config.num_hidden_layers)

    def write(self) -> None:
        """Metadata, a byte-level vocabulary and all tensors."""
        self.sizes()
        self.ropes()
        tokens, kinds = byte_level(self.config.vocab_size)
        self.writer.add_tokenizer_model("gpt2")
        self.writer.add_tokenizer_pre("gpt-2")
        self.writer.add_token_list(tokens)
        self.writer.add_token_types(kinds)
        self.writer.add_token_merges(["h e"])
        self.writer.add_eos_token_id(2)
        for name, tensor in self.model.state_dict().items():
            if name != "lm_head.weight" or not self.config.tie_word_embeddings:
                self.tensor(name, tensor.float())
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()

    def sizes(self) -> None:
        config, writer = self.config, self.writer
        self.head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        # the dense ones of Granite 4 call theirs otherwise
        dense = config.model_type == "granitemoehybrid" and not config.num_local_experts
        ffn = config.shared_intermediate_size if dense else inner_size(config)
        if self.family == "lfm2":  # which works it out of the config's
            ffn = self.model.model.layers[0].feed_forward.w1.out_features
        if self.family == "nemotron_h":
            ffn = [ffn * (kind == "mlp") for kind in config.layer_types]
        if self.family == "nemotron_h_moe":
            ffn = [config.moe_intermediate_size * (kind == "moe") for kind in config.layer_types]
        if self.family == "gemma3n":
            self.streams()
        if self.family in ("gemma3n", "gemma4"):
            ffn = [layer.mlp.intermediate_size for layer in self.model.model.layers]
        writer.add_feed_forward_length(ffn)
        writer.add_head_count(config.num_attention_heads)
        one = config.model_type == "deepseek_v3"
        kept: int | list[int] = 1 if one else key_heads(config)
        if self.family.startswith("lfm2"):
            kept = [key_heads(config) * (kind != "conv") for kind in config.layer_types]
            writer.add_shortconv_l_cache(config.conv_L_cache)
        if self.scans:
            self.scan_sizes()
        if self.family.startswith(("granitehybrid", "nemotron_h")):
            kept = [key_heads(config) * (kind == "full_attention") for kind in config.layer_types]
        if self.family.startswith("nemotron_h"):
            writer.add_rope_scaling_finetuned(False)
        if self.family == "gemma4":
            kept = self.two_kinds()
        writer.add_head_count_kv(kept)
        if self.family == "olmo":
            writer.add_layer_norm_eps(1e-5)
        for key in ("layer_norm_eps", "norm_epsilon", "norm_eps", "layer_norm_epsilon"):
            if hasattr(config, key) and not self.family.startswith(("lfm2", "nemotron_h")):
                writer.add_layer_norm_eps(getattr(config, key))
        if hasattr(config, "rms_norm_eps") and self.family not in CENTRED:
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if hasattr(config, "kv_lora_rank"):
            self.latent()
        else:
            writer.add_key_length(self.head_dim)
            writer.add_value_length(self.head_dim)
        if getattr(config, "sliding_window", None) and config.model_type in (
            "mistral",
            "phi3",
            "gemma3_text",
            "exaone4",
            "gemma2",
            "gemma3n_text",
            "gemma4_text",
            "olmo3",
            "gpt_oss",
            "cohere2",
        ):
            writer.add_sliding_window(config.sliding_window)
        if config.model_type == "olmo3":
            writer.add_sliding_window_pattern(
                [kind == "sliding_attention" for kind in config.layer_types]
            )
        if self.family in DELTAS:
            values = config.linear_num_value_heads
            writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
            writer.add_ssm_state_size(config.linear_key_head_dim)
            writer.add_ssm_group_count(config.linear_num_key_heads)
            writer.add_ssm_time_step_rank(values)
            writer.add_ssm_inner_size(config.linear_value_head_dim * values)
            writer.add_full_attention_interval(4)
        if self.family == "mpt":
            writer.add_max_alibi_bias(8.0)
        if self.family in ("cohere2", "command-r"):
            writer.add_logit_scale(config.logit_scale)
            writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        if self.family in ("stablelm", "gptneox"):
            writer.add_parallel_residual(config.use_parallel_residual)
        if self.family == "gemma2":
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
        if self.family == "gemma3":
            writer.add_float32("gemma3.attention.scale", config.query_pre_attn_scalar**-0.5)
        if self.family in GRANITES:
            writer.add_float32(f"{self.family}.attention.scale", config.attention_multiplier)
            if shared := getattr(config, "shared_intermediate_size", 0):
                if self.family != "granite":
                    writer.add_expert_shared_feed_forward_length(shared)
                if self.family != "granitemoe":
                    writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")
            writer.add_embedding_scale(config.embedding_multiplier)
            writer.add_residual_scale(config.residual_multiplier)
            writer.add_logit_scale(config.logits_scaling)
        experts = getattr(config, "num_local_experts", getattr(config, "num_experts", 0))
        if experts and self.family != "nemotron_h":  # whose config always names some
            writer.add_expert_count(experts)
            taken = getattr(config, "num_experts_per_tok", None) or config.moe_topk
            writer.add_expert_used_count(taken)
            self.mixture()

    def streams(self) -> None:
        """What Gemma 3n says of its streams and gates."""
        config, writer = self.config, self.writer
        writer.add_altup_active_idx(config.altup_active_idx)
        writer.add_altup_num_inputs(config.altup_num_inputs)
        writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
        writer.add_shared_kv_layers(config.num_kv_shared_layers)
        normal = torch.distributions.normal.Normal(0, 1)
        sparse = normal.icdf(torch.tensor(config.activation_sparsity_pattern)).tolist()
        writer.add_activation_sparsity_scale(sparse)
        writer.add_sliding_window_pattern(
            [kind == "sliding_attention" for kind in config.layer_types]
        )
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_float32("gemma3n.rope.freq_base_swa", 10000.0)
        for theirs in ("altup_projections", "altup_unembed_projections"):
            modules = getattr(self.model.model, theirs)
            whole = torch.stack([module.weight.detach().float() for module in modules])
            name = self.names.get_name(f"model.{theirs}")
            writer.add_tensor(f"{name}.weight", whole.contiguous().numpy())

    def two_kinds(self) -> list[int]:
        """What Gemma 4 says of layers that see a window and of those that see everything; heads of
        keys by layer.
        """
        config, writer = self.config, self.writer
        each = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
        small, self.head_dim = each[0].head_dim, each[-1].head_dim
        writer.add_key_length_swa(small)
        writer.add_value_length_swa(small)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_rope_dimension_count_swa(small)
        writer.add_shared_kv_layers(config.num_kv_shared_layers)
        writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
        inside = [kind == "sliding_attention" for kind in config.layer_types]
        writer.add_sliding_window_pattern(inside)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
        turned = self.head_dim // 8
        factors = np.array([1.0] * turned + [1e30] * (self.head_dim // 2 - turned), np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
        writer.add_float32("gemma4.rope.freq_base_swa", 10000.0)
        return [one.num_key_value_heads for one in each]

    def scan_sizes(self) -> None:
        """What Mamba-2's layers say."""
        config, writer = self.config, self.writer
        names = ["conv_kernel", "ssm_state_size", "n_groups", "mamba_num_heads", "mamba_head_dim"]
        if not self.family.startswith("nemotron_h"):
            own = ("d_conv", "d_state", "n_groups", "n_heads", "d_head")
            names = [f"mamba_{name}" for name in own]
        taps, states, groups, heads, size = (getattr(config, name) for name in names)
        writer.add_ssm_conv_kernel(taps)
        writer.add_ssm_state_size(states)
        writer.add_ssm_group_count(groups)
        writer.add_ssm_inner_size(heads * size)
        writer.add_ssm_time_step_rank(heads)

    def scan(self, name: str, tensor: Tensor) -> None:
        """One of Mamba-2's tensors."""
        config, (_, _, layer, _, leaf) = self.config, name.split(".", 4)
        own = leaf.replace("conv1d", "ssm_conv1d").replace("norm.", "ssm_norm.")
        own = {
            "A_log": "ssm_a",
            "D": "ssm_d",
            "dt_bias": "ssm_dt.bias",
            "in_proj.weight": "ssm_in.weight",
            "out_proj.weight": "ssm_out.weight",
        }.get(leaf, own)
        if leaf == "A_log":
            tensor = -tensor.exp()
        if leaf in ("A_log", "D"):
            tensor = tensor[:, None]
        if leaf == "conv1d.weight":
            tensor = tensor.squeeze(1)
        if leaf == "norm.weight":
            groups = getattr(config, "mamba_n_groups", None) or config.n_groups
            tensor = tensor.view(groups, -1)
        if self.family == "falcon-h1" and leaf == "out_proj.weight":
            tensor = tensor * config.ssm_out_multiplier
        if self.family == "falcon-h1" and leaf == "in_proj.weight":
            inner, keys = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
            parts = tensor.split([inner, inner, keys, keys, config.mamba_n_heads])
            factors = zip(parts, config.ssm_multipliers, strict=True)
            tensor = torch.cat([part * own for part, own in factors]) * config.ssm_in_multiplier
        self.writer.add_tensor(f"blk.{layer}.{own}", tensor.contiguous().numpy())

    def falcon_factor(self, name: str) -> float:
        """What the converter multiplies one of Falcon-H1's other matrices by."""
        config, seen = self.config, self.config.attention_in_multiplier
        factors = {
            "gate_proj": config.mlp_multipliers[0],
            "down_proj": config.mlp_multipliers[1],
            "q_proj": seen,
            "k_proj": seen * config.key_multiplier,
            "v_proj": seen,
            "o_proj": config.attention_out_multiplier,
            "lm_head": config.lm_head_multiplier,
            "embed_tokens": config.embedding_multiplier,
        }
        return next((own for part, own in factors.items() if part in name), 1.0)

    def latent(self) -> None:
        """What latent attention says: the third version as newer converters write it, whose one
        key head is the latent, the others as older ones do.
        """
        config, writer = self.config, self.writer
        key = config.qk_nope_head_dim + config.qk_rope_head_dim
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_rope_dimension_count(config.qk_rope_head_dim)
        if config.q_lora_rank:
            writer.add_q_lora_rank(config.q_lora_rank)
        if config.model_type == "deepseek_v3":
            writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
            writer.add_value_length(config.kv_lora_rank)
            writer.add_key_length_mla(key)
            writer.add_value_length_mla(config.v_head_dim)
        else:
            writer.add_key_length(key)
            writer.add_value_length(config.v_head_dim)

    def mixture(self) -> None:
        """What mixtures say of their experts."""
        config, writer = self.config, self.writer
        width = getattr(config, "moe_intermediate_size", config.intermediate_size)
        if self.family == "nemotron_h_moe":
            writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
            writer.add_expert_shared_count(config.n_shared_experts)
            writer.add_expert_weights_norm(config.norm_topk_prob)
            writer.add_expert_weights_scale(config.routed_scaling_factor)
            writer.add_expert_group_count(config.n_group)
            writer.add_expert_group_used_count(config.topk_group)
        if self.family in ("ernie4_5-moe", "hunyuan-moe"):
            writer.add_expert_shared_feed_forward_length(
                width * getattr(config, "moe_num_shared_experts", 1)
            )
        if self.family == "ernie4_5-moe":
            writer.add_interleave_moe_layer_step(config.moe_layer_interval)
            writer.add_leading_dense_block_count(config.moe_layer_start_index)
        if self.family == "llama4":
            writer.add_interleave_moe_layer_step(config.interleave_moe_layer_step)
        if self.family == "lfm2moe":
            writer.add_leading_dense_block_count(config.num_dense_layers)
            writer.add_expert_weights_scale(config.routed_scaling_factor)
        if self.family in ("minimax-m2", "lfm2moe"):
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        if self.family not in ("llama", "olmoe", *GRANITES):
            writer.add_expert_feed_forward_length(width)
        if self.family in ("qwen2moe", "qwen3next", "qwen35moe"):
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
        if self.family in ("glm4moe", "dots1", "deepseek2"):
            writer.add_expert_shared_count(config.n_shared_experts)
            writer.add_leading_dense_block_count(config.first_k_dense_replace)
            writer.add_expert_weights_scale(config.routed_scaling_factor)
        if config.model_type in ("glm4_moe", "dots1", "deepseek_v3"):
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
            writer.add_expert_weights_norm(config.norm_topk_prob)
            writer.add_expert_group_count(config.n_group)
            writer.add_expert_group_used_count(config.topk_group)

    def ropes(self) -> None:
        rope = getattr(self.config, "rope_parameters", None)
        if rope is None:
            return
        rope = rope.get("full_attention", rope)
        if self.family in ("gemma3n", "gemma4"):
            self.writer.add_rope_freq_base(rope["rope_theta"])
            return
        base, alpha = rope["rope_theta"], rope.get("alpha")
        if alpha:  # which hunyuan's converter works into the base
            base *= alpha ** (self.head_dim / (self.head_dim - 2))
        self.writer.add_rope_freq_base(base)
        if part := rope.get("partial_rotary_factor"):
            self.writer.add_rope_dimension_count(int(self.head_dim * part))
        if rope["rope_type"] == "yarn":
            self.writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            self.writer.add_rope_scaling_factor(rope["factor"])
            self.writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            if self.family == "deepseek2":
                self.writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
            if self.family == "mistral3":
                self.writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
                self.writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
        if rope["rope_type"] == "linear":
            self.writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            self.writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "llama3":
            plain = 1.0 / rope["rope_theta"] ** (
                torch.arange(0, self.head_dim, 2).float() / self.head_dim
            )
            factors = plain / self.model.model.rotary_emb.inv_freq
            self.writer.add_tensor("rope_freqs.weight", factors.numpy())
        if rope["rope_type"] == "longrope":
            original = self.config.original_max_position_embeddings
            self.writer.add_rope_scaling_orig_ctx_len(original)
            self.writer.add_rope_scaling_attn_factors(self.model.model.rotary_emb.attention_scaling)
            for half in ("long", "short"):
                self.writer.add_tensor(
                    f"rope_factors_{half}.weight",
                    np.array(rope[f"{half}_factor"], dtype=np.float32),
                )

    def tensor(self, name: str, tensor: Tensor) -> None:
        """One tensor under llama.cpp's name, in its order and with its offset of norms."""
        if self.family.startswith("nemotron_h"):
            name = name.replace("model.", "backbone.")
        mixer = name.split(".")[4] if ".mixer." in name else ""
        if ".mamba." in name or (mixer and mixer not in PLAIN_MIXERS):
            self.scan(name, tensor)
            return
        if self.family == "falcon-h1":
            tensor = tensor * self.falcon_factor(name)
        if name.endswith("pre_ff_layernorm.weight"):
            self.writer.add_tensor(f"blk.{name.split('.')[2]}.ffn_norm", tensor.numpy())
            return
        if self.family in DELTAS:
            if name.endswith("norm.weight") and "linear_attn" not in name:
                tensor = tensor + 1
            if "linear_attn." in name:
                self.delta(name, tensor)
                return
        if self.family in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if self.family == "bloom":
            name = name.removeprefix("transformer.")
        if ".experts." in name:
            self.experts(name, tensor)
            return
        if "kv_b_proj" in name and self.config.model_type == "deepseek_v3":
            self.apart(name, tensor)
            return
        if "shared_mlp" in name and self.family.startswith("granite"):
            self.shared(name, tensor)
            return
        if name.startswith(("model.altup_projections", "model.altup_unembed")):
            return  # written by `streams`
        if name.endswith(("sinks", "layer_scalar", "correct_output_scale")):
            name += ".weight"
        if self.family == "gpt2" and name.endswith((*(f".{end}.weight" for end in TURNED_ASIDE),)):
            tensor = tensor.T
        if self.family == "falcon" and "query_key_value" in name:
            kept = key_heads(self.config)
            heads = tensor.view(kept, -1, self.head_dim, *tensor.shape[1:])
            three = (heads[:, :-2], heads[:, -2], heads[:, -1])
            tensor = torch.cat([one.reshape(-1, *tensor.shape[1:]) for one in three])
        elif "query_key_value" in name:  # each head's own three beside each other
            heads = tensor.view(-1, 3, self.head_dim, *tensor.shape[1:])
            tensor = heads.transpose(0, 1).reshape(tensor.shape)
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        if self.family.startswith("lfm2"):
            name = name.replace(".expert_bias", ".expert_bias.bias")
            tensor = tensor.squeeze(1) if "conv.conv" in name else tensor
        if ".gate.moe_statics." in name:
            name, tensor = name.replace(".gate.moe_statics.", ".moe_statics."), tensor.squeeze()
        name = name.replace("sparse_moe.router.weight", "sparse_moe.router.layer.weight")
        module, _, suffix = name.rpartition(".")
        if self.family in TURNED and module.endswith(("q_proj", "k_proj")):
            heads = tensor.shape[0] // self.head_dim
            tensor = (
                tensor.view(heads, 2, self.head_dim // 2, -1).transpose(1, 2).reshape(tensor.shape)
            )
        theirs = self.names.get_name(module)
        assert theirs, f"{self.family} has no {module}"
        values = tensor.contiguous().numpy()
        if values.ndim == 1 or self.kind == "F32":
            self.writer.add_tensor(f"{theirs}.{suffix}", values)
        else:
            form = gguf.GGMLQuantizationType[self.kind]
            self.writer.add_tensor(
                f"{theirs}.{suffix}", gguf.quants.quantize(values, form), raw_dtype=form
            )

    def delta(self, name: str, tensor: Tensor) -> None:
        """A delta net's: Qwen3.5's heads of values take turns among heads of keys."""
        config = self.config
        keys, size = config.linear_num_key_heads, config.linear_value_head_dim
        rest = 2 * keys * config.linear_key_head_dim
        module, _, leaf = name.partition(".linear_attn.")

        def tiled(part: Tensor, each: int) -> Tensor:
            heads = part.view(keys, -1, each, *part.shape[1:])
            return heads.transpose(0, 1).reshape(part.shape)

        if self.family.startswith("qwen35"):
            if leaf.startswith(("in_proj_qkv", "conv1d")):
                tensor = torch.cat([tensor[:rest], tiled(tensor[rest:], size)])
            elif leaf.startswith("in_proj_z"):
                tensor = tiled(tensor, size)
            elif leaf.startswith(("in_proj_a", "in_proj_b", "A_log", "dt_bias")):
                tensor = tiled(tensor, 1)
            elif leaf.startswith("out_proj"):
                tensor = tiled(tensor.T.contiguous(), size).T
        if leaf == "A_log":
            tensor = -tensor.exp()
        if leaf.startswith("conv1d"):
            tensor = tensor.squeeze(1)
        made = {f"{module}.linear_attn.{leaf}": tensor}
        if leaf.startswith("in_proj_qkvz"):
            heads, key = tensor.view(keys, -1, tensor.shape[1]), config.linear_key_head_dim
            ends = [key, key, (heads.shape[1] - 2 * key) // 2, (heads.shape[1] - 2 * key) // 2]
            q, k, v, z = (part.flatten(0, 1) for part in heads.split(ends, dim=1))
            layer = name.split(".")[2]
            made = {f"blk.{layer}.attn_qkv.weight": torch.cat([q, k, v])}
            made[f"blk.{layer}.attn_gate.weight"] = z
        for own, values in made.items():
            inner, _, suffix = own.replace("dt_bias", "dt_proj.bias").rpartition(".")
            found = self.names.get_name(inner) or inner
            theirs = f"{found}.{suffix}"
            if leaf == "A_log":
                theirs = self.names.get_name(own)
            self.writer.add_tensor(theirs, values.contiguous().numpy())

    def apart(self, name: str, tensor: Tensor) -> None:
        """Each head's own numbers of keys, turned on their side, and its values."""
        config, layer = self.config, name.split(".")[2]
        own = config.qk_nope_head_dim
        heads = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
        for kind, part in (("k", heads[:, :own].transpose(1, 2)), ("v", heads[:, own:])):
            self.writer.add_tensor(f"blk.{layer}.attn_{kind}_b.weight", part.contiguous().numpy())

    def experts(self, name: str, tensor: Tensor) -> None:
        """A matrix of all experts, [experts, rows, columns], or two of them one above the other."""
        layer, kind = name.split(".")[2], name.rpartition(".")[2]
        if self.family == "gpt-oss":
            self.turning_experts(layer, kind, tensor)
            return
        kinds = {"gate_up_proj": ("gate", "up"), "up_proj": ("up",)}.get(kind, ("down",))
        tensor = tensor.transpose(1, 2) if self.family == "llama4" else tensor
        if self.gate_up and len(kinds) > 1:
            kinds = ("gate_up",)
        for own, values in zip(kinds, tensor.chunk(len(kinds), dim=1), strict=True):
            self.writer.add_tensor(
                f"blk.{layer}.ffn_{own}_exps.weight", values.contiguous().numpy()
            )

    def shared(self, name: str, tensor: Tensor) -> None:
        """Granite's feed-forward for all rows: gate and up in one, gate first."""
        layer = name.split(".")[2]
        end = "_shexp" if getattr(self.config, "num_local_experts", 0) else ""
        kinds = ("gate", "up") if "input_linear" in name else ("down",)
        for own, values in zip(kinds, tensor.chunk(len(kinds)), strict=True):
            self.writer.add_tensor(
                f"blk.{layer}.ffn_{own}{end}.weight", values.contiguous().numpy()
            )

    def turning_experts(self, layer: str, kind: str, tensor: Tensor) -> None:
        """gpt-oss's: transposed, the rows of gate and up taking turns, and with biases."""
        kinds = ("gate", "up") if kind.startswith("gate_up_proj") else ("down",)
        suffix = "bias" if kind.endswith("_bias") else "weight"
        upright = tensor if suffix == "bias" else tensor.transpose(1, 2)
        for place, own in enumerate(kinds):
            self.writer.add_tensor(
                f"blk.{layer}.ffn_{own}_exps.{suffix}",
                upright[:, place :: len(kinds)].contiguous().numpy(),
            )


class QuickReader(gguf.GGUFReader):  # type: ignore[misc]  # the library is not typed
    """The library's reader with a short cut for long lists of texts, so that the oracle does not
    take three seconds.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        item = self._get(orig_offs, np.uint32)
        if raw_type != gguf.GGUFValueType.ARRAY or item[0] != gguf.GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        count, place, texts = self._get(orig_offs + 4, np.uint64), orig_offs + 12, []
        buffer = memoryview(self.data)
        for _ in range(int(count[0])):
            (length,) = struct.unpack_from("=Q", buffer, place)
            texts.append(buffer[place + 8 : place + 8 + length])
            place += 8 + length
        kinds = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]
        return place - orig_offs, [item, count, *texts], list(range(2, 2 + len(texts))), kinds
