"""The shape of a network, for every family that one forward pass serves.

Knows sizes, and what a family does beyond Llama. Knows no files and no weights.
Always: an `Architecture` that was read from a file passed `validate`, so nobody allocates by a
number that makes no sense.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError

# In the order in which every list of ours names them.
PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
ATTENTION_PROJECTIONS = PROJECTIONS[:4]
QKV = PROJECTIONS[:3]
ROPE_PROJECTIONS = PROJECTIONS[:2]  # whose rows rope turns
GATE_UP = PROJECTIONS[4:6]
MLP_PROJECTIONS = PROJECTIONS[4:]
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"  # behind a projection's name, as PEFT writes

# Larger than any model that this code could hold; a file that claims more is damaged or hostile.
LIMITS = {
    "num_layers": 1024,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_heads": 1024,
    "num_kv_heads": 1024,
    "head_dim": 1024,
    "vocab_size": 1 << 22,
    "context_length": 1 << 30,
}
MAX_EXPERTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Sizes of one decoder."""

    family: str  # a key of families.FAMILIES
    num_layers: int
    hidden_size: int  # D, of the residual stream
    intermediate_size: int  # F; of a mixture, that of one expert
    num_heads: int  # H, of queries
    num_kv_heads: int  # KV, of keys and values; H is a multiple of it
    head_dim: int
    vocab_size: int  # V
    rope_theta: float
    norm_eps: float
    context_length: int  # positions the model was trained for
    # What some families do beyond Llama; the defaults are Llama's.
    qk_norm: bool = False  # an RMSNorm over each head of q and of k, before rope (Qwen3, Gemma 3)
    # projections with a bias, for example "self_attn.q_proj" (Qwen2: q, k, v)
    biases: tuple[str, ...] = ()
    activation: str = "silu"  # of the gate; or "gelu_tanh" (Gemma 3)
    # rows of the embedding are multiplied by it (Gemma 3: sqrt(hidden_size))
    embedding_scale: float = 1.0
    # a norm after attention and one after the MLP, before each is added back (Gemma 3)
    post_norms: bool = False
    # by layer: a row sees itself and window - 1 earlier ones, 0 = all; () = all everywhere
    windows: tuple[int, ...] = ()
    # by layer, 0.0 = no rope there (SmolLM3); () = rope_theta everywhere
    rope_bases: tuple[float, ...] = ()
    # head_dim/2 divisors of the frequencies, in layers that turn by rope_theta; () = 1
    rope_factors: tuple[float, ...] = ()
    # cosines and sines are multiplied by it in those layers (Phi-3's long rope)
    rope_magnitude: float = 1.0
    attention_scale: float = 0.0  # of q·k; 0.0 = 1/sqrt(head_dim)
    # the first numbers of each head that rope turns; 0 = all of them (Phi-4-mini)
    rope_dim: int = 0
    # a feed-forward of so many experts, of which each row takes some; 0 = one for all (Mixtral)
    num_experts: int = 0
    experts_per_token: int = 0
    # the shares of a row's experts add up to 1; else they are as the softmax over all has them
    expert_norm: bool = True
    # norms before attention and before the MLP; without them there are `post_norms` (OLMo 2)
    pre_norms: bool = True
    # `qk_norm` is over all heads of a row at once (OLMo 2)
    wide_qk_norm: bool = False
    # what attention and MLP add is multiplied by it (Granite)
    residual_scale: float = 1.0
    logit_scale: float = 1.0  # of the logits (Granite)

    def window(self, layer: int) -> int:
        """How many rows a row of this layer sees, itself included; 0 = all before it."""
        return self.windows[layer] if self.windows else 0

    def rope_base(self, layer: int) -> float:
        """The base of this layer's rope; 0.0 = its rows are not turned."""
        return self.rope_bases[layer] if self.rope_bases else self.rope_theta

    def scale(self) -> float:
        """What q·k is multiplied by before the softmax."""
        return self.attention_scale or self.head_dim**-0.5

    @property
    def turned(self) -> int:
        """How many numbers of each head rope turns, the first ones."""
        return self.rope_dim or self.head_dim

    def inv_freq(self, layer: int) -> NDArray[np.float32]:
        """By how much a position turns pair i of each head in this layer, [turned / 2]; empty
        = no rope.
        """
        rope = self.rope_base(layer)
        if rope == 0.0:
            return np.empty(0, np.float32)
        exponents = np.arange(0, self.turned, 2, dtype=np.float32) / np.float32(self.turned)
        # The power to its last bit, as torch's own comes; numpy's in float32 may miss it by one.
        powers = np.power(np.float64(rope), exponents.astype(np.float64)).astype(np.float32)
        plain: NDArray[np.float32] = np.float32(1) / powers
        stretched = self.rope_factors and rope == self.rope_theta
        if stretched:
            plain /= np.array(self.rope_factors, np.float32)
        return plain

    def magnitude(self, layer: int) -> float:
        """What this layer's cosines and sines are multiplied by."""
        return self.rope_magnitude if self.rope_base(layer) == self.rope_theta else 1.0

    def layer_norms(self) -> tuple[str, ...]:
        """Norms of one layer over the width, under Hugging Face's names.

        With `post_norms`, "post_attention_layernorm" stands after attention and
        "pre_feedforward_layernorm" before the MLP; without, "post_attention_layernorm" is the one
        before the MLP. Without `pre_norms` there are those behind alone.
        """
        if not self.pre_norms:
            return ("post_attention_layernorm", "post_feedforward_layernorm")
        usual = ("input_layernorm", "post_attention_layernorm")
        return (
            (*usual, "pre_feedforward_layernorm", "post_feedforward_layernorm")
            if self.post_norms
            else usual
        )

    @property
    def projections(self) -> tuple[str, ...]:
        """Those that each layer has once: not what the experts of a mixture have."""
        return ATTENTION_PROJECTIONS if self.num_experts else PROJECTIONS

    def projection(self, name: str) -> tuple[int, int]:
        """Rows and columns of one projection of a layer, for example of "self_attn.q_proj".

        Raises:
            ModelError: the projection of a mixture's feed-forward: there are many.
        """
        if name not in self.projections:
            raise ModelError(
                f"{self.num_experts} experts of this {self.family} model have a {name} each, and "
                f"adapters change what all rows share; name q_proj, k_proj, v_proj or o_proj"
            )
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if name in MLP_PROJECTIONS:
            return self.expert_projection(name)
        return {
            "self_attn.q_proj": (queries, self.hidden_size),
            "self_attn.k_proj": (keys, self.hidden_size),
            "self_attn.v_proj": (keys, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, queries),
        }[name]

    def expert_projection(self, name: str) -> tuple[int, int]:
        """Rows and columns of one expert's "mlp.gate_proj", "mlp.up_proj" or "mlp.down_proj"."""
        into = (self.intermediate_size, self.hidden_size)
        return into[::-1] if name == "mlp.down_proj" else into

    def experts(self, name: str) -> tuple[str, ...]:
        """The names inside a layer of all experts' "mlp.gate_proj", for example."""
        leaf = name.removeprefix("mlp.")
        return tuple(f"mlp.experts.{expert}.{leaf}" for expert in range(self.num_experts))

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Every tensor of one layer, under Hugging Face's name inside the layer; a vector is one
        row.
        """
        norms = {f"{name}.weight": (1, self.hidden_size) for name in self.layer_norms()}
        shares = {"q": self.num_heads, "k": self.num_kv_heads} if self.wide_qk_norm else {}
        heads = {
            f"self_attn.{letter}_norm.weight": (1, self.head_dim * shares.get(letter, 1))
            for letter in "qk"
            if self.qk_norm
        }
        matrices = {f"{name}.weight": self.projection(name) for name in self.projections}
        if self.num_experts:
            matrices["mlp.gate.weight"] = (self.num_experts, self.hidden_size)
        of_experts = {
            f"{name}.weight": self.expert_projection(kind)
            for kind in MLP_PROJECTIONS
            for name in self.experts(kind)
        }
        biases = {f"{name}.bias": (1, self.projection(name)[0]) for name in self.biases}
        return norms | heads | matrices | of_experts | biases

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Every tensor, under Hugging Face's names; the head is named also where it is the
        embedding.
        """
        ends = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size),
            "model.norm.weight": (1, self.hidden_size),
            "lm_head.weight": (self.vocab_size, self.hidden_size),
        }
        own = self.layer_shapes()
        return ends | {
            f"model.layers.{layer}.{name}": shape
            for layer in range(self.num_layers)
            for name, shape in own.items()
        }

    def validate(self) -> None:
        """See that this code computes such a network.

        Raises:
            ValueError: it would not, or wrongly; the sentence goes on with ", which is not
            supported".
        """
        for name, limit in LIMITS.items():
            if not 0 < getattr(self, name) <= limit:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {limit}")
        numbers = (
            *(self.norm_eps, self.embedding_scale, self.rope_magnitude, *self.rope_factors),
            *(self.residual_scale, self.logit_scale),
        )
        if (
            not all(math.isfinite(number) and number > 0 for number in numbers)
            or not 0 <= self.attention_scale < math.inf
        ):
            raise ValueError(f"norm_eps {self.norm_eps} or another factor is not a positive number")
        bases = (self.rope_theta, *self.rope_bases)
        if not all(base == 0.0 or 1.0 <= base < 1e30 for base in bases):
            raise ValueError(f"rope turns with base {self.rope_theta}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not share {self.num_kv_heads} key heads evenly"
            )
        if (
            self.head_dim % 2
            or self.turned % 2
            or not 0 < self.turned <= self.head_dim
            or len(self.rope_factors) not in (0, self.turned // 2)
        ):
            raise ValueError(
                f"rope cannot turn {self.turned} of {self.head_dim} numbers of a head by "
                f"{len(self.rope_factors)} factors"
            )
        if not 0 <= self.num_experts <= MAX_EXPERTS or (
            self.num_experts and not 0 < self.experts_per_token <= self.num_experts
        ):
            raise ValueError(f"a row takes {self.experts_per_token} of {self.num_experts} experts")
        if not self.pre_norms and not self.post_norms:
            raise ValueError("it has no norms")
        by_layer = (self.windows, self.rope_bases)
        if min(self.windows, default=0) < 0 or any(
            len(one) not in (0, self.num_layers) for one in by_layer
        ):
            raise ValueError(
                f"windows or ropes of {len(self.windows)} and {len(self.rope_bases)} layers, "
                f"there are {self.num_layers}"
            )
