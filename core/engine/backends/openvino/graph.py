"""A model as one graph for others' runtimes: tokens in; logits, keys and values out.

    tokens int64 [N], rows int64 [M]  →  logits [M, V], keys and values [L, N, KV, hd], float32

Knows the readable network (`models/transformer`) and how OpenVINO takes a torch module. Knows
nothing of caches or batches: a graph is one whole sequence from its first token on.
Always: `rows` are numbers of tokens, whose next token's logits are wanted; keys are turned, and
both stand as the engine's caches hold them.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....errors import ModelError
from ....models.architecture import Architecture
from ....models.attention import SOFTMAX_ALONE, ScoreRule
from ....models.transformer import Embedding, RMSNorm, Transformer
from ....models.weights import Weights
from ....paths import make_folder

INPUTS, OUTPUTS = ("tokens", "rows"), ("logits", "keys", "values")
EXAMPLE_TOKENS = 5  # of the sequence by which the network is walked


def unsupported(architecture: Architecture) -> str | None:
    """Why a model is not exported, for people; None if it is."""
    own = architecture
    for there, said in (
        (any(own.windows), "layers that see a window of rows"),
        (any(own.convolutions) or any(own.deltas), "layers that do not attend"),
        (own.num_experts, "experts"),
        (own.latent_size, "latent attention"),
        (
            own.per_layer_size or own.streams or not own.alike,
            "layers that differ, or read each other's keys",
        ),
        (own.sinks or own.attention_softcap or own.alibi, "scores that are more than products"),
        (own.temperature or own.positions, "rows that change with their position besides rope"),
        (own.layer_norms, "norms that subtract the mean"),
    ):
        if there:
            return f"it has {said}"
    return None


class CausalAttention:
    """Attention of one sequence, which remembers the keys and values of every layer."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule = SOFTMAX_ALONE
    ) -> Tensor:
        """As `models.attention.Attention`."""
        del layer, rule
        self.keys.append(k)
        self.values.append(v)
        groups = q.shape[1] // k.shape[1]
        keys, values = (
            one.repeat_interleave(groups, dim=1).transpose(0, 1)[None] for one in (k, v)
        )
        mixed = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, is_causal=True
        )
        return mixed[0].transpose(0, 1)


class SpelledNorm(nn.Module):
    """`RMSNorm` in operations that every runtime knows."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


class PromptGraph(nn.Module):
    """The network to be walked, float32."""

    def __init__(self, weights: Weights) -> None:
        """Decode all of it: 4 bytes a weight.

        Raises:
            ModelError: a network that is not exported; says why.
        """
        super().__init__()
        if reason := unsupported(weights.architecture):
            raise ModelError(f"this {weights.architecture.family} model is not exported: {reason}")
        self.network = Transformer(weights, dense)
        table = weights.tensors["model.embed_tokens.weight"].dequantize()
        embedding = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
        self.network.model.embed_tokens = cast(Embedding, embedding)
        for parent in list(self.network.modules()):
            for name, one in list(parent.named_children()):
                if isinstance(one, RMSNorm):
                    setattr(parent, name, SpelledNorm(one))
        self.network.requires_grad_(False)

    def forward(self, tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the head of this file has it."""
        attention = CausalAttention()
        # counted, not measured: the length of the example shall not be part of the graph
        positions = torch.ones_like(tokens).cumsum(0) - 1
        x = self.network.layers_forward(self.network.embed(tokens), positions, attention)
        logits = self.network.logits(x[rows])
        return logits, torch.stack(attention.keys), torch.stack(attention.values)


def dense(blocks: Any) -> nn.Module:
    """A frozen `nn.Linear` in float32."""
    linear = nn.Linear(blocks.shape[1], blocks.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(blocks.dequantize(), requires_grad=False)
    return linear


def converted(weights: Weights) -> Any:
    """The model as an `openvino.Model`.

    Raises:
        ModelError: a network that is not exported. MissingPartError: OpenVINO is not installed.
    """
    import openvino

    module = PromptGraph(weights).eval()
    example = (torch.arange(EXAMPLE_TOKENS), torch.tensor([EXAMPLE_TOKENS - 1]))
    with torch.no_grad(), warnings.catch_warnings():
        # OpenVINO walks it by torch.jit.trace, which warns of its age and of every constant
        warnings.simplefilter("ignore")
        model = openvino.convert_model(module, example_input=example)
    for kinds, names in ((model.inputs, INPUTS), (model.outputs, OUTPUTS)):
        for port, name in zip(kinds, names, strict=True):
            port.get_tensor().set_names({name})
    return model


def save(weights: Weights, folder: Path) -> Path:
    """Write `folder/openvino_model.xml` and its weights, float16, beside it.

    Raises:
        ModelError: a network that is not exported, or the disk refuses.
    """
    import openvino

    model = converted(weights)
    path = folder / "openvino_model.xml"
    try:
        make_folder(folder)
        openvino.save_model(model, path, compress_to_fp16=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be written ({error!s:.200}); make room") from error
    return path
