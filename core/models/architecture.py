"""The shape of a network, for every family that one forward pass serves.

Knows sizes, and what a family does beyond Llama. Knows no files and no weights.
Always: an `Architecture` that was read from a file passed `complaint`, so nobody allocates by a
number that makes no sense.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# Larger than any model that this code could hold; a file that claims more is damaged or hostile.
LIMITS = {
    "layers": 1024,
    "width": 1 << 17,
    "ffn_width": 1 << 20,
    "heads": 1024,
    "kv_heads": 1024,
    "head_size": 1024,
    "vocabulary": 1 << 22,
    "context": 1 << 30,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Sizes of one decoder."""

    family: str  # a key of families.FAMILIES
    layers: int
    width: int  # D, of the residual stream
    ffn_width: int  # F
    heads: int  # H, of queries
    kv_heads: int  # KV, of keys and values; H is a multiple of it
    head_size: int
    vocabulary: int  # V
    rope_theta: float
    norm_eps: float
    context: int  # positions the model was trained for
    # What some families do beyond Llama; the defaults are Llama's.
    qk_norm: bool = False  # an RMSNorm over each head of q and of k, before rope (Qwen3, Gemma 3)
    # projections with a bias, for example "self_attn.q_proj" (Qwen2: q, k, v)
    biases: tuple[str, ...] = ()
    activation: str = "silu"  # of the gate; or "gelu_tanh" (Gemma 3)
    # rows of the embedding are multiplied by it (Gemma 3: sqrt(width))
    embedding_scale: float = 1.0
    # a norm after attention and one after the MLP, before each is added back (Gemma 3)
    post_norms: bool = False
    # by layer: a row sees itself and window - 1 earlier ones, 0 = all; () = all everywhere
    windows: tuple[int, ...] = ()
    # by layer, 0.0 = no rope there (SmolLM3); () = rope_theta everywhere
    rope_bases: tuple[float, ...] = ()
    # head_size/2 divisors of the frequencies, in layers that turn by rope_theta; () = 1
    rope_factors: tuple[float, ...] = ()
    # cosines and sines are multiplied by it in those layers (Phi-3's long rope)
    rope_magnitude: float = 1.0
    attention_scale: float = 0.0  # of q·k; 0.0 = 1/sqrt(head_size)

    def window(self, layer: int) -> int:
        """How many rows a row of this layer sees, itself included; 0 = all before it."""
        return self.windows[layer] if self.windows else 0

    def rope_base(self, layer: int) -> float:
        """The base of this layer's rope; 0.0 = its rows are not turned."""
        return self.rope_bases[layer] if self.rope_bases else self.rope_theta

    def scale(self) -> float:
        """What q·k is multiplied by before the softmax."""
        return self.attention_scale or self.head_size**-0.5

    def radians(self, layer: int) -> NDArray[np.float32]:
        """By how much a position turns pair i of each head in this layer, [head_size / 2]; empty
        = no rope.
        """
        rope = self.rope_base(layer)
        if rope == 0.0:
            return np.empty(0, np.float32)
        exponents = np.arange(0, self.head_size, 2, dtype=np.float32) / np.float32(self.head_size)
        # The power to its last bit, as torch's own comes; numpy's in float32 may miss it by one.
        powers = np.power(np.float64(rope), exponents.astype(np.float64)).astype(np.float32)
        plain: NDArray[np.float32] = np.float32(1) / powers
        stretched = self.rope_factors and rope == self.rope_theta
        if stretched:
            plain /= np.array(self.rope_factors, np.float32)
        return plain

    def frequencies(self, layer: int) -> "Tensor":
        """`radians` as a tensor."""
        import torch

        return torch.from_numpy(self.radians(layer))

    def magnitude(self, layer: int) -> float:
        """What this layer's cosines and sines are multiplied by."""
        return self.rope_magnitude if self.rope_base(layer) == self.rope_theta else 1.0

    def layer_norms(self) -> tuple[str, ...]:
        """Norms of one layer over the width, under Hugging Face's names.

        With `post_norms`, "post_attention_layernorm" stands after attention and
        "pre_feedforward_layernorm" before the MLP; without, "post_attention_layernorm" is the one
        before the MLP.
        """
        usual = ("input_layernorm", "post_attention_layernorm")
        return (
            (*usual, "pre_feedforward_layernorm", "post_feedforward_layernorm")
            if self.post_norms
            else usual
        )

    def projection(self, name: str) -> tuple[int, int]:
        """Rows and columns of one projection of a layer, for example of "self_attn.q_proj"."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "self_attn.q_proj": (queries, self.width),
            "self_attn.k_proj": (keys, self.width),
            "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, queries),
            "mlp.gate_proj": (self.ffn_width, self.width),
            "mlp.up_proj": (self.ffn_width, self.width),
            "mlp.down_proj": (self.width, self.ffn_width),
        }[name]

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Every tensor of one layer, under Hugging Face's name inside the layer; a vector is one
        row.
        """
        norms = {f"{name}.weight": (1, self.width) for name in self.layer_norms()}
        heads = {
            f"self_attn.{letter}_norm.weight": (1, self.head_size)
            for letter in "qk"
            if self.qk_norm
        }
        matrices = {f"{name}.weight": self.projection(name) for name in PROJECTIONS}
        biases = {f"{name}.bias": (1, self.projection(name)[0]) for name in self.biases}
        return norms | heads | matrices | biases

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Every tensor, under Hugging Face's names; the head is named also where it is the
        embedding.
        """
        ends = {
            "model.embed_tokens.weight": (self.vocabulary, self.width),
            "model.norm.weight": (1, self.width),
            "lm_head.weight": (self.vocabulary, self.width),
        }
        own = self.layer_shapes()
        return ends | {
            f"model.layers.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in own.items()
        }

    def complaint(self) -> str:
        """Why this code would compute such a network wrongly, or not at all; empty where it
        computes it.
        """
        for name, limit in LIMITS.items():
            if not 0 < getattr(self, name) <= limit:
                return f"{name} is {getattr(self, name)}, expected 1 to {limit}"
        numbers = (self.norm_eps, self.embedding_scale, self.rope_magnitude, *self.rope_factors)
        if (
            not all(math.isfinite(number) and number > 0 for number in numbers)
            or not 0 <= self.attention_scale < math.inf
        ):
            return f"norm_eps {self.norm_eps} or another factor is not a positive number"
        if not all(
            rope == 0.0 or 1.0 <= rope < 1e30 for rope in (self.rope_theta, *self.rope_bases)
        ):
            return f"rope turns with base {self.rope_theta}"
        if self.heads % self.kv_heads:
            return f"{self.heads} query heads do not share {self.kv_heads} key heads evenly"
        if self.head_size % 2 or len(self.rope_factors) not in (0, self.head_size // 2):
            return f"rope cannot turn heads of {self.head_size} by {len(self.rope_factors)} factors"
        if (
            any(
                len(by_layer) not in (0, self.layers)
                for by_layer in (self.windows, self.rope_bases)
            )
            or min(self.windows, default=0) < 0
        ):
            return (
                f"windows or ropes of {len(self.windows)} and {len(self.rope_bases)} layers, "
                f"there are {self.layers}"
            )
        return ""


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
