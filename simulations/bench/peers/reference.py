"""transformers' own `generate`, in bfloat16: what most people run first."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ....core.models.weights import Weights


class Transformers:
    """See `workload.Peer`."""

    def __init__(self, folder: Path, threads: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """See `workload.Peer`."""
        ids = torch.tensor(prompts)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        if out.shape[1] != ids.shape[1] + tokens:
            raise RuntimeError(
                f"{out.shape[1] - ids.shape[1]} tokens came, {tokens} were asked for"
            )

    def close(self) -> None:
        """Let go of the model."""
        del self.model


def unpacked(weights: Weights, folder: Path) -> Path:
    """The same weights as a bfloat16 folder that transformers loads without converting anything,
    written once.
    """
    from safetensors.torch import save_file

    done = folder / "config.json"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    a = weights.architecture
    tensors = {
        name: (
            blocks.dequantize(torch.bfloat16)
            if blocks.shape[0] > 1
            else blocks.dequantize(torch.bfloat16)[0]
        ).clone()
        for name, blocks in weights.tensors.items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done.write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": a.hidden_size,
                "torch_dtype": "bfloat16",
                "intermediate_size": a.intermediate_size,
                "num_hidden_layers": a.num_layers,
                "num_attention_heads": a.num_heads,
                "num_key_value_heads": a.num_kv_heads,
                "head_dim": a.head_dim,
                "vocab_size": a.vocab_size,
                "rms_norm_eps": a.norm_eps,
                "rope_theta": a.rope_theta,
                "max_position_embeddings": a.context_length,
                "tie_word_embeddings": True,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "hidden_act": "silu",
            }
        )
    )
    return folder
