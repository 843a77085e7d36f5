"""A model small enough to train in milliseconds, as our `Weights` and as transformers' own
class, with equal numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from quietchoir.core.models.architecture import PROJECTIONS, Architecture
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.weights import Weights
from quietchoir.core.prompt import PromptFormat
from quietchoir.core.training.examples import Example

START, END, VOCABULARY = 256, 257, 264
TINY = Architecture(
    family="llama",
    num_layers=4,
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=VOCABULARY,
    rope_theta=10000.0,
    norm_eps=1e-5,
    context_length=256,
)


class ByteTokenizer:
    """Bytes are tokens; every message stands between a start and an end mark."""

    stop_tokens = frozenset({END})

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            tokens += [START, *message["role"][:1].encode(), *message["content"].encode(), END]
        return [*tokens, START, *b"a"] if add_generation_prompt else tokens


def blocks(matrix: torch.Tensor) -> QuantTensor:
    """A matrix (or vector, as one row) as a file would hold it in F32."""
    rows = matrix.detach().reshape(-1, matrix.shape[-1]).contiguous()
    return QuantTensor("F32", (rows.shape[0], rows.shape[1]), rows.view(torch.uint8))


def tiny_pair(seed: int = 0) -> tuple[Weights, Any]:
    """The same random network twice: for our code, and as `LlamaForCausalLM`."""
    config = transformers.LlamaConfig(
        hidden_size=TINY.hidden_size,
        intermediate_size=TINY.intermediate_size,
        num_hidden_layers=TINY.num_layers,
        vocab_size=VOCABULARY,
        num_attention_heads=TINY.num_heads,
        num_key_value_heads=TINY.num_kv_heads,
        rms_norm_eps=TINY.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": TINY.rope_theta},
        attn_implementation="eager",
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    state = model.state_dict()
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for layer in range(TINY.num_layers):
        own = (*PROJECTIONS, "input_layernorm", "post_attention_layernorm")
        names += [f"model.layers.{layer}.{name}.weight" for name in own]
    tensors = {name: blocks(state[name]) for name in names}
    return Weights(TINY, tensors, ByteTokenizer(), "0" * 64), model  # type: ignore[arg-type]


CHATTER = PromptFormat(system="Do it.")  # what `chatter` shows the model


def conversation(request: str, answer: str, system: str = CHATTER.system) -> Example:
    """One exchange."""
    texts = {"system": system, "user": request, "assistant": answer}
    return Example(tuple({"role": role, "content": text} for role, text in texts.items()))


def chatter(count: int, seed: int = 0) -> list[Example]:
    """Different short conversations of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    letters = torch.randint(97, 123, (count, 40), generator=draw).tolist()
    sizes = torch.randint(3, 20, (count, 2), generator=draw).tolist()
    return [
        conversation(f"{index}" + bytes(row[:ask]).decode(), bytes(row[20 : 20 + reply]).decode())
        for index, (row, (ask, reply)) in enumerate(zip(letters, sizes, strict=True))
    ]
