"""The suite `families`: does each family of models load, by whom is it computed, and rightly?

Knows families by transformers' `model_type`, and sizes that make a small one of each.
Then how many times slower transformers is than the compiled kernels, over one file.
Always: a family is computed in float32 by whoever would serve it, a prompt in two pieces and then
token after token, and compared with one pass of transformers' own model over the whole text; what
differs is `wrong`, which must be 0.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.config import EngineConfig
from ...core.engine.backends.backend import Backend
from ...core.engine.backends.torch_cpu.runner import TorchRunner
from ...core.engine.backends.transformers.runner import TransformersRunner
from ...core.engine.block_pool import BLOCK_TOKENS
from ...core.engine.engine import Engine
from ...core.engine.request import GenerationRequest
from ...core.engine.sampling.params import SamplingParams
from ...core.engine.scheduler import Batch, Span
from ...core.engine.sequence import Sequence
from ...core.errors import ModelFileError, UnsupportedModelError
from ...core.models import transformers_model, weights
from ...core.models.hub import catalog
from ...core.models.transformers_model import ServedModel
from ...core.models.weights import Weights
from .figures import Figure, Keep, nobody
from .stopwatch import Arm, interleaved, put

SEED = 1
MODEL = "smollm2-135m-instruct"
STATES = ("native", "transformers", "refused", "wrong")
TOKENS, PIECES = 40, (23, 32)  # of a text, and where its prompt is cut
CONTEXT = 256
NEAR = 1e-3  # of the largest logit: float32 in another order of sums
VOCABULARY = 260  # every byte, and a few beside

SMALL: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": None,
}
WINDOW = {"sliding_window": 9}
HEADS = {"head_dim": 16}  # of another size than the width demands
MAMBA2 = {
    "num_hidden_layers": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
DELTA = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
CONVOLVED = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
}


@dataclass(frozen=True, slots=True)
class SmallFamily:
    """One family, and what its configuration says beside `SMALL`."""

    title: str  # as people call its models
    model_type: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    remote: bool = False  # transformers has no code of it: the folder brings its own


FAMILIES = (
    SmallFamily("Llama 2, 3", "llama"),
    SmallFamily("Mistral", "mistral", WINDOW),
    SmallFamily("Ministral", "ministral", WINDOW | HEADS),
    SmallFamily("Ministral 3", "ministral3", HEADS),
    SmallFamily("Mixtral", "mixtral", {"num_local_experts": 4}),
    SmallFamily("Llama 4", "llama4_text", HEADS | {
        "num_hidden_layers": 4, "num_local_experts": 4, "intermediate_size_mlp": 96,
        "attention_chunk_size": 16,
    }),
    SmallFamily("Qwen2, 2.5", "qwen2"),
    SmallFamily("Qwen2-MoE", "qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 32}),
    SmallFamily("Qwen3", "qwen3", HEADS),
    SmallFamily("Qwen3-MoE", "qwen3_moe", EXPERTS | HEADS),
    SmallFamily("Qwen3-Next", "qwen3_next", EXPERTS | HEADS | DELTA | {
        "shared_expert_intermediate_size": 32,
    }),
    SmallFamily("Qwen3.5", "qwen3_5_text", HEADS | DELTA),
    SmallFamily("Qwen3.5-MoE", "qwen3_5_moe_text", EXPERTS | HEADS | DELTA | {
        "shared_expert_intermediate_size": 32,
    }),
    SmallFamily("Gemma", "gemma", HEADS),
    SmallFamily("Gemma 2", "gemma2", HEADS | WINDOW),
    SmallFamily("Gemma 3", "gemma3_text", HEADS | WINDOW),
    SmallFamily("Gemma 3n", "gemma3n_text", HEADS | WINDOW | {
        "num_hidden_layers": 4, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 4, "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.0] * 4,
    }),
    SmallFamily("Gemma 4", "gemma4_text", HEADS | WINDOW | {
        "num_hidden_layers": 7, "global_head_dim": 32, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 1,
    }),
    SmallFamily("Gemma 4 (26B-A4B)", "gemma4_text", HEADS | WINDOW | {
        "num_hidden_layers": 4, "hidden_size_per_layer_input": 0, "enable_moe_block": True,
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
    }),
    SmallFamily("RecurrentGemma", "recurrent_gemma", HEADS | {
        "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 9,
    }),
    SmallFamily("Phi-1.5, 2", "phi"),
    SmallFamily("Phi-3, 3.5, 4", "phi3"),
    SmallFamily("Phi-3.5-MoE", "phimoe", {"num_local_experts": 4}),
    SmallFamily("gpt-oss", "gpt_oss", HEADS | WINDOW | {
        "num_local_experts": 4, "num_experts_per_tok": 2,
    }),
    SmallFamily("DeepSeek-V2", "deepseek_v2", ROUTED | LATENT),
    SmallFamily("DeepSeek-V3", "deepseek_v3", ROUTED | LATENT),
    SmallFamily("Kimi Linear", "kimi_linear", ROUTED | LATENT | EXPERTS | HEADS | {
        "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2, "num_experts_per_token": 2,
    }),
    SmallFamily("MiniMax-M2", "minimax_m2", HEADS | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8,
    }),
    SmallFamily("MiniCPM3", "minicpm3", LATENT),
    SmallFamily("GLM-4 (9B)", "glm", HEADS),
    SmallFamily("GLM-4 (0414)", "glm4", HEADS),
    SmallFamily("GLM-4.5", "glm4_moe", ROUTED | HEADS),
    SmallFamily("Command R", "cohere"),
    SmallFamily("Command R7B, A", "cohere2", WINDOW | {"num_hidden_layers": 4}),
    SmallFamily("OLMo", "olmo"),
    SmallFamily("OLMo 2", "olmo2"),
    SmallFamily("OLMo 3", "olmo3", WINDOW | {"num_hidden_layers": 4}),
    SmallFamily("OLMoE", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    SmallFamily("Granite 3, 4 dense", "granite"),
    SmallFamily("Granite MoE", "granitemoe", {"num_local_experts": 4}),
    SmallFamily("Granite 4 hybrid", "granitemoehybrid", MAMBA2 | {
        "num_local_experts": 4, "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"] * 2,
    }),
    SmallFamily("EXAONE 4", "exaone4", WINDOW),
    SmallFamily("SmolLM3", "smollm3"),
    SmallFamily("LFM2", "lfm2", CONVOLVED | {"block_multiple_of": 8}),
    SmallFamily("LFM2-MoE", "lfm2_moe", CONVOLVED | EXPERTS | {"num_dense_layers": 1}),
    SmallFamily("Nemotron", "nemotron"),
    SmallFamily("Nemotron-H", "nemotron_h", {
        "num_hidden_layers": 4, "hybrid_override_pattern": "M*M-", "mamba_num_heads": 8,
        "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1,
    }),
    SmallFamily("Nemotron 3", "nemotron_h", {
        "num_hidden_layers": 4, "hybrid_override_pattern": "ME*E", "mamba_num_heads": 8,
        "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "n_routed_experts": 4,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
    }),
    SmallFamily("Ernie 4.5", "ernie4_5"),
    SmallFamily("Ernie 4.5 MoE", "ernie4_5_moe", {
        "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1,
    }),
    SmallFamily("Hunyuan", "hunyuan_v1_dense", HEADS),
    SmallFamily("Hunyuan-A13B", "hunyuan_v1_moe", HEADS | {"num_experts": 4, "moe_topk": 2}),
    SmallFamily("Seed-OSS", "seed_oss", HEADS),
    SmallFamily("dots.llm1", "dots1", ROUTED | HEADS | {"n_shared_experts": 1}),
    SmallFamily("Arcee", "arcee"),
    SmallFamily("Apertus", "apertus"),
    SmallFamily("Helium", "helium", HEADS),
    SmallFamily("BitNet", "bitnet"),
    SmallFamily("Falcon", "falcon", {"new_decoder_architecture": True}),
    SmallFamily("Falcon-H1", "falcon_h1", MAMBA2 | HEADS | {"mamba_d_ssm": 128}),
    SmallFamily("Falcon-Mamba", "falcon_mamba", {"state_size": 8}),
    SmallFamily("Mamba", "mamba", {"state_size": 8}),
    SmallFamily("Mamba 2", "mamba2", HEADS | {"state_size": 8, "num_heads": 8, "n_groups": 1}),
    SmallFamily("Jamba", "jamba", {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4,
        "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    }),
    SmallFamily("Bamba", "bamba", MAMBA2 | {"attn_layer_indices": [1, 3]}),
    SmallFamily("Zamba2", "zamba2", {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "mamba_d_state": 8,
        "mamba_headdim": 16, "n_mamba_heads": 8, "mamba_ngroups": 1,
    }),
    SmallFamily("RWKV-4", "rwkv", {"attention_hidden_size": 64}),
    SmallFamily("StableLM 2", "stablelm"),
    SmallFamily("StarCoder", "gpt_bigcode"),
    SmallFamily("StarCoder2", "starcoder2", WINDOW),
    SmallFamily("GPT-2", "gpt2"),
    SmallFamily("GPT-Neo", "gpt_neo", {
        "attention_types": [[["global", "local"], 1]], "window_size": 8,
    }),
    SmallFamily("GPT-J", "gptj", {"rotary_dim": 8}),
    SmallFamily("CodeGen", "codegen", {"rotary_dim": 8}),
    SmallFamily("GPT-NeoX, Pythia", "gpt_neox"),
    SmallFamily("OPT", "opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    SmallFamily("BLOOM", "bloom"),
    SmallFamily("MPT", "mpt", {"max_seq_len": CONTEXT}),
    SmallFamily("Baichuan", "baichuan", remote=True),
    SmallFamily("InternLM 2", "internlm2", remote=True),
    SmallFamily("MiniCPM 1, 2", "minicpm", remote=True),
    SmallFamily("ChatGLM 2, 3", "chatglm", remote=True),
    SmallFamily("Qwen 1", "qwen", remote=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FamilyOutcome:
    """What became of one family."""

    state: str  # one of `STATES`
    said: str = ""  # why it was refused, how far it was off, or what it cannot do in pieces


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep = nobody) -> dict[str, Any]:
    """Make, load and compute each; `quick` every eighth."""
    report: dict[str, Any] = {
        "what": f"random models of {len(FAMILIES)} families, {TOKENS} tokens, float32, beside "
        f"transformers",
        "seed": SEED,
        "repeats": {"families": 1, "slower": 1 if quick else 3},
        "clock": "processor seconds, one thread",
        "spread": {},
        "exact": True,
        "families": dict.fromkeys(STATES, 0),
        "each": {},
        "said": {},
    }
    torch.set_num_threads(1)  # models this small only wait for each other on several
    for family in FAMILIES[:: 8 if quick else 1]:
        with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as scratch:
            found = outcome(family, Path(scratch))
        report["families"][found.state] += 1
        report["each"][family.title] = found.state
        report["said"][family.title] = found.said
        report["exact"] &= found.state != "wrong"
        keep(report)
    tell("\n" + table(report["each"]))
    tell("one file through the kernels and through transformers")
    slower(report, tokens=4 if quick else 32, repeats=1 if quick else 3)
    keep(report)
    return report


def slower(report: dict[str, Any], *, tokens: int, repeats: int) -> None:
    """The default model by the kernels and by transformers, over the same file: processor time of
    one answer, and of eight at a time.
    """
    path = catalog.find(MODEL)
    asked = UnsupportedModelError("it is run to be compared")
    models: dict[str, ServedModel] = {
        "native": weights.load(path),
        "transformers": transformers_model.read(path, asked),
    }
    engines = {name: Engine(model, EngineConfig(threads=1)) for name, model in models.items()}
    for batch in (1, 8):
        arms = {
            name: Arm(partial(answer, engine, models[name], batch, tokens))
            for name, engine in engines.items()
        }
        found = interleaved(arms, repeats)
        for name, sample in found.items():
            put(report, f"token_ms.{name}.b{batch}", sample, 1e3 / (batch * tokens))
        put(report, f"slower.b{batch}", found["transformers"].over(found["native"]))


def answer(engine: Engine, model: ServedModel, batch: int, tokens: int) -> None:
    """So many answers side by side, none of which ends early."""
    ends = model.tokenizer.vocabulary.stop
    params = SamplingParams(
        max_tokens=tokens,
        speculate=False,
        logit_bias=tuple((end, -100.0) for end in sorted(ends)),
        seed=SEED,
    )
    answers = [
        engine.submit(GenerationRequest(prompt=(1, 100 + place, 7, 9), sampling_params=params))
        for place in range(batch)
    ]
    while any(one.finish_reason is None for one in answers):
        engine.step()


def outcome(family: SmallFamily, folder: Path) -> FamilyOutcome:
    """Make a small one, load it, and compare what it computes."""
    text = torch.randint(256, (TOKENS,), generator=torch.Generator().manual_seed(SEED)).tolist()
    expected = expected_logits(family, folder, text)
    try:
        loaded = transformers_model.load(folder)
        backend = backend_of(loaded)
    except ModelFileError as error:
        return FamilyOutcome("refused", str(error))
    if expected is None:
        return FamilyOutcome("wrong", "it was loaded, and nobody can know what it should compute")
    off = float((step_by_step(backend, text) - expected).abs().max() / expected.abs().max())
    if not off < NEAR:
        return FamilyOutcome("wrong", f"{off:.2g} of the largest logit away")
    if isinstance(backend, TransformersRunner):
        return FamilyOutcome("transformers", str(backend.abilities))
    return FamilyOutcome("native")


def backend_of(loaded: ServedModel) -> Backend:
    """Whoever computes it, in float32."""
    if isinstance(loaded, Weights):
        return TorchRunner(loaded, CONTEXT // BLOCK_TOKENS, compute=torch.float32)
    return TransformersRunner(loaded)


def step_by_step(backend: Backend, text: list[int]) -> Tensor:
    """Logits [n, V] from the prompt's last token on, the prompt in pieces."""
    sequence = Sequence(GenerationRequest(prompt=tuple(text)))
    sequence.block_table = list(range(CONTEXT // BLOCK_TOKENS))
    rows = []
    for start, stop in zip((0, *PIECES), (*PIECES, len(text)), strict=True):
        single = start == PIECES[-1]
        for place in range(start, stop) if single else (start,):
            count = 1 if single else stop - start
            sequence.tokens = text[: place + count]
            sampled = int(place + count >= PIECES[-1])
            span = Span(sequence, place, count, sampled)
            rows.append(torch.as_tensor(backend.forward(Batch((span,)))))
    return torch.cat(rows)


@torch.inference_mode()
def expected_logits(family: SmallFamily, folder: Path, text: list[int]) -> Tensor | None:
    """Write the model; transformers' own logits [n, V] from the prompt's last token on, in one
    pass. None where it has no such family.
    """
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    if family.remote:
        config = {**SMALL, "model_type": family.model_type, "auto_map": {"AutoConfig": "c.Config"}}
        (folder / "config.json").write_text(json.dumps(config))
        return None
    model = write_model(family, folder)
    whole: Tensor = model(torch.tensor([text])).logits[0, PIECES[-1] - 1 :].float()
    return whole[:, :VOCABULARY]


def write_model(family: SmallFamily, folder: Path) -> Any:
    """A random model, and the same as safetensors with its config.json."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    from ...core.engine.backends.transformers.network import quietly

    with quietly():
        config = CONFIG_MAPPING[family.model_type](**{**SMALL, **family.sizes})
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED)
            model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
            # As published ones: biases and norms that are not their first values, and logits that
            # are not all alike.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(0.08 * torch.randn_like(parameter))
                else:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are bytes, and one pair of them: files want a merge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def table(each: Mapping[str, str]) -> str:
    """The families by who computes them, as `core/models/README.md` has it."""
    counts = Counter(each.values())
    rows = [
        f"| {state} | {counts[state]} | "
        f"{'; '.join(title for title, found in each.items() if found == state) or '–'} |"
        for state in STATES
    ]
    return "\n".join(("| computed by | | families |", "|---|---|---|", *rows))


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    for state, meaning, most in (
        ("native", "families that core/models computes", None),
        ("transformers", "families that transformers computes", None),
        ("refused", "families that are refused by name", None),
        ("wrong", "families that are computed otherwise than transformers does", 0),
    ):
        yield Figure(f"families.{state}", "", meaning, at_most=most)
    for batch in (1, 8) if "slower" in report else ():
        what = f"{batch} answer{'s' * (batch > 1)} at a time, SmolLM2-135M"
        yield Figure(f"token_ms.native.b{batch}", "ms", f"a token by the kernels, {what}")
        yield Figure(f"token_ms.transformers.b{batch}", "ms", f"by transformers, {what}")
        yield Figure(f"slower.b{batch}", "×", f"transformers over the kernels, {what}")
    for title, state in report["each"].items():
        if state in ("refused", "wrong"):
            yield Figure(f"said.{title}", "", f"{title}: {state}")
