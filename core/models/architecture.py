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
KEYS_VALUES = PROJECTIONS[1:3]
ROPE_PROJECTIONS = PROJECTIONS[:2]  # whose rows rope turns
GATE_UP = PROJECTIONS[4:6]
MLP_PROJECTIONS = PROJECTIONS[4:]
# our own matrices that others' adapters change in models with delta nets (`Family.adapted`)
OUT_GATE = "self_attn.out_gate"
ADAPTED_BESIDE = (*(OUT_GATE, "linear_attn.in_proj", "linear_attn.gate", "linear_attn.out_proj"),)
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
MOST_STREAMS = 16
MOST_POSITIONS = 1 << 16  # of a table
MOST_TAPS = 16  # rows that a convolution sees: as many as a block of the cache holds


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
    # by layer: a row sees itself and window - 1 earlier ones, 0 = all, -n = those of its own run of
    # n, counted from the first row (Llama 4); () = all everywhere
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
    # by layer, whether its rope is stretched; () = where it turns by rope_theta (OLMo 3)
    rope_stretched: tuple[bool, ...] = ()
    # scores before the softmax, and logits: c * tanh(x / c); 0.0 = as they are (Gemma 2)
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    sinks: bool = False  # a score of each head takes part in its softmax, mixing nothing (gpt-oss)
    qk_norm_last: bool = False  # `qk_norm` is behind rope (Hunyuan)
    layer_norms: bool = False  # norms over the width are LayerNorms (Cohere)
    norm_biases: bool = False  # and have a bias (Phi-2)
    parallel: bool = False  # attention and feed-forward read the same rows (Cohere)
    one_norm: bool = False  # both through the same norm
    gated: bool = True  # the feed-forward has a gate (StarCoder2: none)
    head_bias: bool = False  # the head has a bias (Phi-2)
    # by layer of a mixture, whether it has one feed-forward for all rows instead, of `dense_size`;
    # () = none has (GLM-4.5)
    dense_layers: tuple[bool, ...] = ()
    dense_size: int = 0
    shared_size: int = 0  # of a feed-forward for all rows beside the experts (GLM-4.5)
    shared_gate: bool = False  # each row opens it by a sigmoid of its own (Qwen2-MoE)
    routing: str = "softmax"  # over all experts; or "sigmoid" of each (GLM-4.5)
    # a bias by which experts are chosen, which is in no share (GLM-4.5)
    routing_bias: bool = False
    expert_scale: float = 1.0  # of the shares
    # a row's experts come from its best groups (DeepSeek-V3); 0 = from all
    expert_groups: int = 0
    groups_per_token: int = 0
    expert_biases: bool = False  # router and experts have biases (gpt-oss)
    # keys and values of all heads are made of so many numbers, and of the numbers of a key that
    # rope turns, which all heads share and which stand first in each; 0 = each head has its own
    # (DeepSeek-V2)
    latent_size: int = 0
    query_rank: int = 0  # queries are made of so many numbers; 0 = of the row itself
    value_dim: int = 0  # numbers of a head's value, where keys have more
    # rows of a table of which each position adds one to the embedding; 0 = no table (GPT-2)
    positions: int = 0
    # by layer, whether it has a short convolution in the place of attention; () = none has (LFM2)
    convolutions: tuple[bool, ...] = ()
    conv_kernel: int = 0  # rows that one sees, its own included
    # by layer, whether it has a gated delta net in the place of attention, whose convolution sees
    # `conv_kernel` rows; () = none has (Qwen3-Next). Its heads of keys, each of which serves some
    # of values; `delta_tiled`: value head i is served by i modulo their number (else, by the i-th
    # of as many parts), as GGUF files of Qwen3.5 have them
    deltas: tuple[bool, ...] = ()
    delta_key_heads: int = 0
    delta_value_heads: int = 0
    delta_key_dim: int = 0  # numbers of a head
    delta_value_dim: int = 0
    delta_tiled: bool = False
    # those are Mamba-2's scans instead: what a head of values remembers is added to and forgotten,
    # never corrected; its heads of keys are groups, their numbers a state's (Granite 4's hybrids)
    state_spaces: bool = False
    scan_norm: bool = False  # what a scan gives passes a norm over each group
    scan_beside: bool = False  # in every layer, attention beside it (Falcon-H1)
    # by layer, whether nothing is behind its mixer: no feed-forward; () = none is (Nemotron-H)
    lone_mixers: tuple[bool, ...] = ()
    attention_gate: bool = False  # what attention gives passes a gate of each row (Qwen3-Next)
    # heads' scores fall with the distance by slopes that begin with this one's power of 2; 0.0 = no
    # such slopes (ALiBi: BLOOM, MPT)
    alibi: float = 0.0
    embedding_norm: bool = False  # a norm over the width behind the embedding (BLOOM)
    # `qk_norm` is in layers alone that rope turns (Llama 4)
    rope_norms: bool = False
    # queries of layers that rope does not turn grow by so much of the logarithm of how often
    # `temperature_floor` positions went by; 0.0 = they do not (Llama 4)
    temperature: float = 0.0
    temperature_floor: int = 0
    # a row's share scales what its expert is given, not what it gives (Llama 4)
    expert_inputs: bool = False
    # by layer, numbers of a head, heads of keys, and the feed-forward's width, where layers differ;
    # () = as above, which are the largest (Gemma 4)
    head_dims: tuple[int, ...] = ()
    kv_heads: tuple[int, ...] = ()
    inner_sizes: tuple[int, ...] = ()
    # by layer, whose keys and values it reads: its own, or an earlier layer's; () = all their own
    kv_sources: tuple[int, ...] = ()
    value_norm: bool = False  # each head's values are normed, by no weights
    # numbers that each layer is given of a row beside the stream, made of its token and its
    # embedding; 0 = none
    per_layer_size: int = 0
    layer_scales: bool = False  # what a layer gives is multiplied by a number of its own
    # streams of rows, of which each layer computes the first and foresees the others; 0 = one alone
    # (Gemma 3n)
    streams: int = 0
    laurel_rank: int = 0  # of what is added beside attention; 0 = nothing is
    # by layer, how many deviations above its row's mean a gate must be to open; -inf = it always
    # does, () = all do
    gate_cutoffs: tuple[float, ...] = ()
    # tokens of which layers are given something; the others have what the first one has; 0 = all
    per_layer_tokens: int = 0

    def head_size(self, layer: int) -> int:
        """Numbers of a head in this layer."""
        return self.head_dims[layer] if self.head_dims else self.head_dim

    def key_heads(self, layer: int) -> int:
        """Heads of keys and values in this layer."""
        return self.kv_heads[layer] if self.kv_heads else self.num_kv_heads

    def inner_size(self, layer: int) -> int:
        """Width of the feed-forward for all rows of a layer without experts."""
        own = self.inner_sizes[layer] if self.inner_sizes else self.intermediate_size
        return self.dense_size if self.num_experts else own

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values this one reads, itself or an earlier one."""
        return self.kv_sources[layer] if self.kv_sources else layer

    @property
    def alike(self) -> bool:
        """Whether all layers that attend keep keys and values of the same sizes, each its own."""
        return not (self.head_dims or self.kv_heads or self.kv_sources)

    def is_convolution(self, layer: int) -> bool:
        """Whether this layer has a short convolution in the place of attention."""
        return bool(self.convolutions) and self.convolutions[layer]

    def is_delta(self, layer: int) -> bool:
        """Whether this layer has a gated delta net in the place of attention."""
        return bool(self.deltas) and self.deltas[layer]

    def is_lone(self, layer: int) -> bool:
        """Whether this layer has no feed-forward."""
        return bool(self.lone_mixers) and self.lone_mixers[layer]

    def attends(self, layer: int) -> bool:
        """Whether this layer has attention."""
        return self.scan_beside or not (self.is_convolution(layer) or self.is_delta(layer))

    @property
    def attending(self) -> int:
        """How many layers have attention."""
        return sum(map(self.attends, range(self.num_layers)))

    @property
    def delta_width(self) -> int:
        """Numbers of a row that a delta net's convolution sees: queries, keys, values."""
        keys = self.delta_key_heads * self.delta_key_dim
        return 2 * keys + self.delta_value_heads * self.delta_value_dim

    @property
    def delta_state(self) -> int:
        """Numbers that one layer with a delta net remembers of a sequence: the rows that its
        convolution will see, then each value head's matrix.
        """
        matrices = self.delta_value_heads * self.delta_key_dim * self.delta_value_dim
        return (self.conv_kernel - 1) * self.delta_width + matrices

    def window(self, layer: int) -> int:
        """How many rows a row of this layer sees, itself included; 0 = all before it, -n = of its
        own run of n.
        """
        return self.windows[layer] if self.windows else 0

    def rope_base(self, layer: int) -> float:
        """The base of this layer's rope; 0.0 = its rows are not turned."""
        return self.rope_bases[layer] if self.rope_bases else self.rope_theta

    def grows(self, layer: int) -> bool:
        """Whether this layer's queries grow with their position."""
        return bool(self.temperature) and not self.rope_base(layer)

    def scale(self) -> float:
        """What q·k is multiplied by before the softmax."""
        return self.attention_scale or self.head_dim**-0.5

    def slopes(self) -> NDArray[np.float32]:
        """By how much a score of each head falls with each token of distance, [H]; empty = not.

        Source: Press et al. 2021 (ALiBi), with its rule for other numbers of heads than powers of
        2.
        """
        if not self.alibi:
            return np.empty(0, np.float32)
        heads, whole = np.arange(self.num_heads), 1 << (self.num_heads.bit_length() - 1)
        powers = np.where(heads < whole, heads + 1.0, heads - whole + 0.5)
        return np.exp2(-self.alibi / whole * powers).astype(np.float32)

    @property
    def turned(self) -> int:
        """How many numbers of each head rope turns, the first ones."""
        return self.rope_dim or self.head_dim

    def turned_in(self, layer: int) -> int:
        """The same in this layer."""
        return self.head_size(layer) if self.head_dims else self.turned

    def inv_freq(self, layer: int) -> NDArray[np.float32]:
        """By how much a position turns pair i of each head in this layer, [turned / 2]; empty
        = no rope.
        """
        rope = self.rope_base(layer)
        if rope == 0.0:
            return np.empty(0, np.float32)
        turned = self.turned_in(layer)
        exponents = np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned)
        # The power to its last bit, as torch's own comes; numpy's in float32 may miss it by one.
        powers = np.power(np.float64(rope), exponents.astype(np.float64)).astype(np.float32)
        plain: NDArray[np.float32] = np.float32(1) / powers
        if self.rope_factors and self.stretched(layer):
            plain /= np.array(self.rope_factors, np.float32)
        return plain

    def stretched(self, layer: int) -> bool:
        """Whether rope's factors and magnitude hold for this layer."""
        own = self.rope_base(layer) == self.rope_theta
        return self.rope_stretched[layer] if self.rope_stretched else own

    def magnitude(self, layer: int) -> float:
        """What this layer's cosines and sines are multiplied by."""
        return self.rope_magnitude if self.stretched(layer) else 1.0

    def norms(self) -> tuple[str, ...]:
        """Norms of one layer over the width, under Hugging Face's names.

        With `post_norms`, "post_attention_layernorm" stands after attention and
        "pre_feedforward_layernorm" before the MLP; without, "post_attention_layernorm" is the one
        before the MLP. Without `pre_norms` there are those behind alone.
        """
        if self.one_norm:
            return ("input_layernorm",)
        if not self.pre_norms:
            return ("post_attention_layernorm", "post_feedforward_layernorm")
        usual = ("input_layernorm", "post_attention_layernorm")
        return (
            (*usual, "pre_feedforward_layernorm", "post_feedforward_layernorm")
            if self.post_norms
            else usual
        )

    @property
    def value_size(self) -> int:
        """Numbers of a head's value."""
        return self.value_dim or self.head_dim

    @property
    def unadapted(self) -> str:
        """What its layers have beside which no adapter of ours changes anything; "" = nothing."""
        if not self.alike or self.per_layer_size:
            return "layers that differ in their heads or read each other's keys"
        return "latent attention" if self.latent_size else ""

    @property
    def projections(self) -> tuple[str, ...]:
        """Those that a layer has once and adapters change: not what the experts of a mixture have,
        nor what stands in the place of attention, nor anything of a model that has what is
        `unadapted`.
        """
        if self.unadapted:
            return ()
        own = () if self.num_experts else self.mlp_projections
        return (*ATTENTION_PROJECTIONS, *own)

    @property
    def mlp_projections(self) -> tuple[str, ...]:
        """Those of one feed-forward."""
        return MLP_PROJECTIONS if self.gated else MLP_PROJECTIONS[1:]

    def has_bias(self, name: str) -> bool:
        """Whether this projection, or this expert's, has a bias."""
        return name in self.biases or (self.expert_biases and ".experts." in name)

    def is_mixture(self, layer: int) -> bool:
        """Whether this layer has experts."""
        dense = self.dense_layers and self.dense_layers[layer]
        return bool(self.num_experts) and not (dense or self.is_lone(layer))

    def has_projection(self, layer: int, name: str) -> bool:
        """Whether this layer has one of `projections`: attention's where it attends."""
        attention = name in ATTENTION_PROJECTIONS
        return self.attends(layer) if attention else not self.is_lone(layer)

    def projection(self, name: str) -> tuple[int, int]:
        """Rows and columns of one projection of a layer, for example of "self_attn.q_proj".

        Raises:
            ModelError: the projection of a mixture's feed-forward: there are many.
        """
        if self.unadapted:
            raise ModelError(
                f"this {self.family} model has {self.unadapted}, whose matrices no adapter of ours "
                f"changes; use the model as it is, or one of another family"
            )
        if name not in self.projections and not self.num_experts:
            there = ", ".join(one.partition(".")[2] for one in self.projections)
            raise ModelError(f"this {self.family} model has no {name}; name {there}")
        if name not in self.projections:
            raise ModelError(
                f"{self.num_experts} experts of this {self.family} model have a {name} each, and "
                f"adapters change what all rows share; name q_proj, k_proj, v_proj or o_proj"
            )
        if name in MLP_PROJECTIONS:
            return self.expert_projection(name)
        return self.attention_projection(name)

    def attention_projection(self, name: str, layer: int = 0) -> tuple[int, int]:
        """Rows and columns of one of `ATTENTION_PROJECTIONS`, where a layer attends."""
        size = self.head_size(layer)
        queries, keys = self.num_heads * size, self.key_heads(layer) * size
        return {
            "self_attn.q_proj": (queries, self.hidden_size),
            "self_attn.k_proj": (keys, self.hidden_size),
            "self_attn.v_proj": (keys, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, queries),
        }[name]

    def expert_projection(self, name: str) -> tuple[int, int]:
        """Rows and columns of one expert's "mlp.gate_proj", "mlp.up_proj" or "mlp.down_proj"."""
        return self.mlp_shape(name, self.intermediate_size)

    def mlp_shape(self, name: str, size: int) -> tuple[int, int]:
        """The same of a feed-forward of this size."""
        into = (size, self.hidden_size)
        return into[::-1] if name == "mlp.down_proj" else into

    def shared(self, name: str) -> str:
        """The name inside a layer of "mlp.gate_proj", for example, beside the experts."""
        return f"mlp.shared_experts.{name.removeprefix('mlp.')}"

    def experts(self, name: str) -> tuple[str, ...]:
        """The names inside a layer of all experts' "mlp.gate_proj", for example."""
        leaf = name.removeprefix("mlp.")
        return tuple(f"mlp.experts.{expert}.{leaf}" for expert in range(self.num_experts))

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """Every tensor of one layer, under Hugging Face's name inside the layer; a vector is one
        row.
        """
        kinds = ("weight", "bias") if self.norm_biases else ("weight",)
        width = (1, self.hidden_size)
        matrices = self.mixer_shapes(layer)
        if self.is_lone(layer):
            return {"input_layernorm.weight": width} | matrices
        norms = {f"{name}.{kind}": width for name in self.norms() for kind in kinds}
        if not self.is_mixture(layer):
            size = self.inner_size(layer)
            matrices |= {
                f"{name}.weight": self.mlp_shape(name, size) for name in self.mlp_projections
            }
        if self.per_layer_size:
            matrices |= {
                "per_layer.gate.weight": (self.per_layer_size, self.hidden_size),
                "per_layer.proj.weight": (self.hidden_size, self.per_layer_size),
                "per_layer.norm.weight": width,
            }
        matrices |= {"layer_scale.weight": (1, 1)} if self.layer_scales else {}
        if self.streams:
            matrices |= {
                "altup.predict.weight": (self.streams**2, self.streams),
                "altup.correct.weight": (self.streams, self.streams),
                "altup.router.weight": (self.streams, self.hidden_size),
                **{f"altup.{name}.weight": width for name in ("norm", "scale")},
                "laurel.left.weight": (self.laurel_rank, self.hidden_size),
                "laurel.right.weight": (self.hidden_size, self.laurel_rank),
                "laurel.norm.weight": width,
            }
        biases = {f"{name}.bias": (1, matrices[f"{name}.weight"][0]) for name in self.biases}
        mixture = self.mixture_shapes() if self.is_mixture(layer) else {}
        return norms | matrices | mixture | biases

    def mixer_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """What a layer has through which its rows see earlier ones."""
        if self.is_convolution(layer):
            width = self.hidden_size
            return {
                "conv.in_proj.weight": (3 * width, width),
                "conv.out_proj.weight": (width, width),
                "conv.kernel.weight": (1, self.conv_kernel * width),  # the earliest row's first
            }
        recurs = self.delta_shapes() if self.is_delta(layer) else {}
        if not self.attends(layer):
            return recurs
        shares = {"q": self.num_heads, "k": self.num_kv_heads} if self.wide_qk_norm else {}
        own = self.kv_source(layer) == layer
        heads = {
            f"self_attn.{letter}_norm.weight": (1, self.head_size(layer) * shares.get(letter, 1))
            for letter in ("qk" if own else "q")
            if self.qk_norm and (self.rope_base(layer) or not self.rope_norms)
        }
        sinks = {"self_attn.sinks.weight": (1, self.num_heads)} if self.sinks else {}
        plain = {
            f"{name}.weight": self.attention_projection(name, layer)
            for name in ATTENTION_PROJECTIONS
            if own or name not in KEYS_VALUES
        }
        gate = {"self_attn.out_gate.weight": plain["self_attn.q_proj.weight"]}
        plain |= gate if self.attention_gate else {}
        return recurs | heads | sinks | (self.latent_shapes() if self.latent_size else plain)

    def delta_shapes(self) -> dict[str, tuple[int, int]]:
        """What a gated delta net has: `in_proj` makes queries, keys and values, `gate` what closes
        its output, `beta` how far each value head learns a row, `alpha` how far it forgets. In a
        scan, what it reads by and writes by (C and B) and its inputs stand for those three, and
        `alpha` says how long a step each head takes.
        """
        width, heads = self.hidden_size, self.delta_value_heads
        values = heads * self.delta_value_dim
        shared = {
            "linear_attn.in_proj.weight": (self.delta_width, width),
            "linear_attn.gate.weight": (values, width),
            "linear_attn.alpha.weight": (heads, width),
            "linear_attn.out_proj.weight": (width, values),
            # the earliest row's first
            "linear_attn.kernel.weight": (1, self.conv_kernel * self.delta_width),
            "linear_attn.decay.weight": (1, heads),
            "linear_attn.decay_bias.weight": (1, heads),
        }
        if not self.state_spaces:
            return shared | {
                "linear_attn.beta.weight": (heads, width),
                "linear_attn.gain.weight": (1, self.delta_value_dim),
            }
        norm = {"linear_attn.gain.weight": (1, values)} if self.scan_norm else {}
        return (
            shared
            | norm
            | {
                "linear_attn.kernel.bias": (1, self.delta_width),
                "linear_attn.skip.weight": (1, heads),  # what of an input passes a head by
            }
        )

    def latent_shapes(self) -> dict[str, tuple[int, int]]:
        """What latent attention has: `q_down` and `kv_down` make the latents (the shared key's
        numbers stand behind them), a norm each, and the projections make heads of them.
        """
        heads, own = self.num_heads, self.head_dim - self.turned
        found = {
            "self_attn.kv_down.weight": (self.latent_size + self.turned, self.hidden_size),
            "self_attn.kv_down_norm.weight": (1, self.latent_size),
            "self_attn.q_proj.weight": (heads * self.head_dim, self.query_rank or self.hidden_size),
            "self_attn.k_proj.weight": (heads * own, self.latent_size),
            "self_attn.v_proj.weight": (heads * self.value_size, self.latent_size),
            "self_attn.o_proj.weight": (self.hidden_size, heads * self.value_size),
        }
        if self.query_rank:
            found["self_attn.q_down.weight"] = (self.query_rank, self.hidden_size)
            found["self_attn.q_down_norm.weight"] = (1, self.query_rank)
        return found

    def mixture_shapes(self) -> dict[str, tuple[int, int]]:
        """What a layer has that has experts."""
        experts = {
            f"{name}.weight": self.expert_projection(kind)
            for kind in self.mlp_projections
            for name in self.experts(kind)
        }
        shared = {
            f"{self.shared(kind)}.weight": self.mlp_shape(kind, self.shared_size)
            for kind in self.mlp_projections
            if self.shared_size
        }
        found = {"mlp.gate.weight": (self.num_experts, self.hidden_size)} | experts | shared
        if self.shared_gate:
            found["mlp.shared_expert_gate.weight"] = (1, self.hidden_size)
        if self.routing_bias:
            found["mlp.gate_correction.bias"] = (1, self.num_experts)
        if self.expert_biases:
            found["mlp.gate.bias"] = (1, self.num_experts)
            found |= {
                f"{name}.bias": (1, self.expert_projection(kind)[0])
                for kind in MLP_PROJECTIONS
                for name in self.experts(kind)
            }
        return found

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Every tensor, under Hugging Face's names; the head is named also where it is the
        embedding.
        """
        ends = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size),
            "model.norm.weight": (1, self.hidden_size),
            "lm_head.weight": (self.vocab_size, self.hidden_size),
        }
        for kind in ("weight", "bias") if self.norm_biases else ("weight",):
            if self.embedding_norm:
                ends[f"model.embed_norm.{kind}"] = (1, self.hidden_size)
        if self.positions:
            ends["model.embed_positions.weight"] = (self.positions, self.hidden_size)
        if self.per_layer_size:
            whole = self.num_layers * self.per_layer_size
            ends["model.embed_per_layer.weight"] = (self.per_layer_tokens or self.vocab_size, whole)
            ends["model.per_layer_proj.weight"] = (whole, self.hidden_size)
            ends["model.per_layer_norm.weight"] = (1, self.per_layer_size)
        if self.streams:
            others = ((self.streams - 1) * self.hidden_size, self.hidden_size)
            ends["model.altup_proj.weight"] = ends["model.altup_unembed.weight"] = others
        if self.norm_biases:
            ends["model.norm.bias"] = (1, self.hidden_size)
        if self.head_bias:
            ends["lm_head.bias"] = (1, self.vocab_size)
        return ends | {
            f"model.layers.{layer}.{name}": shape
            for layer in range(self.num_layers)
            for name, shape in self.layer_shapes(layer).items()
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
            *(self.residual_scale, self.logit_scale, self.expert_scale),
        )
        if not all(math.isfinite(number) and number > 0 for number in numbers) or not all(
            0 <= number < math.inf
            for number in (
                *(self.attention_scale, self.attention_softcap, self.logit_softcap),
                *(self.alibi, self.temperature, self.temperature_floor),
            )
        ):
            raise ValueError(f"norm_eps {self.norm_eps} or another factor is not a positive number")
        if self.positions and not self.context_length <= self.positions <= MOST_POSITIONS:
            raise ValueError(
                f"its table has {self.positions} positions, at most {MOST_POSITIONS} are taken, "
                f"for texts of {self.context_length}"
            )
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
        self.validate_mixture()
        latent = (self.latent_size, self.query_rank, self.value_dim)
        if not all(0 <= size <= LIMITS["hidden_size"] for size in latent) or (
            self.latent_size
            and (
                self.num_kv_heads != self.num_heads
                or not self.rope_dim
                or self.value_size > self.head_dim
                or self.biases
                or self.qk_norm
            )
        ):
            raise ValueError(f"its latent attention has the sizes {latent}")
        if not self.pre_norms and not self.post_norms:
            raise ValueError("it has no norms")
        if self.parallel and self.post_norms:
            raise ValueError("it has norms behind what stands side by side")
        by_layer = [
            len(one)
            for one in (
                *(self.windows, self.rope_bases, self.rope_stretched),
                *(self.dense_layers, self.convolutions, self.deltas, self.lone_mixers),
                *(self.head_dims, self.kv_heads, self.inner_sizes, self.kv_sources),
                self.gate_cutoffs,
            )
        ]
        if any(n not in (0, self.num_layers) for n in by_layer):
            raise ValueError(
                f"windows or ropes of {by_layer[0]} and {max(by_layer[1:])} layers, "
                f"there are {self.num_layers}"
            )
        self.validate_mixers()
        self.validate_layers()

    def validate_layers(self) -> None:
        """The same for what only models have whose layers differ in size.

        Raises:
            ValueError: as `validate`.
        """
        for largest, each in (
            (self.head_dim, self.head_dims),
            (self.num_kv_heads, self.kv_heads),
            (self.intermediate_size, self.inner_sizes),
        ):
            if each and (max(each) != largest or min(each) < 1):
                raise ValueError(f"its layers have sizes of {min(each)} to {max(each)}")
        if any(size % 2 for size in self.head_dims) or any(
            self.num_heads % heads for heads in self.kv_heads
        ):
            raise ValueError(f"its layers have {self.kv_heads} heads of {self.head_dims}")
        for layer, source in enumerate(self.kv_sources):
            if (
                not 0 <= source <= layer
                or self.kv_sources[source] != source
                or self.head_size(source) != self.head_size(layer)
                or self.key_heads(source) != self.key_heads(layer)
                or self.window(source) != self.window(layer)
            ):
                raise ValueError(f"layer {layer} reads the keys of layer {source}")
        if not 0 <= self.per_layer_size <= self.hidden_size:
            raise ValueError(f"each layer is given {self.per_layer_size} numbers of a row")
        if not 0 <= self.per_layer_tokens <= self.vocab_size or any(
            map(math.isnan, self.gate_cutoffs)
        ):
            raise ValueError(f"layers are given something of {self.per_layer_tokens} tokens")
        if self.streams and not (
            2 <= self.streams <= MOST_STREAMS
            and 0 < self.laurel_rank <= self.hidden_size
            and self.per_layer_size
            and self.post_norms
            and self.pre_norms
        ):
            raise ValueError(f"it has {self.streams} streams beside a rank of {self.laurel_rank}")
        others = (self.convolutions, self.deltas, self.latent_size, self.parallel, self.biases)
        rare = self.num_experts or self.attention_gate or self.wide_qk_norm or self.rope_dim
        special = not self.alike or self.value_norm or self.per_layer_size or self.layer_scales
        if special and (any(others) or rare or not self.attention_scale):
            raise ValueError("its layers differ beside what no such model is known to have")

    def validate_mixers(self) -> None:
        """The same for what only models have whose layers do not all attend.

        Raises:
            ValueError: as `validate`.
        """
        others = bool(self.convolutions or self.deltas)
        if others != (2 <= self.conv_kernel <= MOST_TAPS) or not self.attending:
            raise ValueError(
                f"its convolutions see {self.conv_kernel} rows, expected 2 to {MOST_TAPS}, or no "
                f"layer of it attends"
            )
        if others and (self.biases or self.parallel or self.latent_size):
            raise ValueError("it has convolutions beside what none of them is known to have")
        sizes = (self.delta_key_heads, self.delta_key_dim)
        values = (self.delta_value_heads, self.delta_value_dim)
        if self.deltas and (
            not all(0 < size <= LIMITS["head_dim"] for size in (*sizes, *values))
            or self.delta_value_heads % self.delta_key_heads
            or self.convolutions
        ):
            raise ValueError(f"its delta nets or scans have keys {sizes} and values {values}")
        if self.lone_mixers and not self.state_spaces:
            raise ValueError("some of its layers have no feed-forward")
        if (self.scan_beside or self.state_spaces) and (
            not self.state_spaces
            or (self.scan_beside and not all(self.deltas or (False,)))
            or self.attention_gate
            or self.post_norms
        ):
            raise ValueError("it has scans beside what none of them is known to have")

    def validate_mixture(self) -> None:
        """The same for what only mixtures have.

        Raises:
            ValueError: as `validate`.
        """
        sizes = (self.dense_size, self.shared_size)
        if not all(0 <= size <= LIMITS["intermediate_size"] for size in sizes) or (
            any(self.dense_layers) and not self.dense_size
        ):
            raise ValueError(f"feed-forwards beside the experts have sizes {sizes}")
        groups, each = self.expert_groups, self.num_experts // (self.expert_groups or 1)
        if groups and (
            not 0 < self.groups_per_token <= groups
            or each * groups != self.num_experts
            or self.experts_per_token > each * self.groups_per_token
        ):
            raise ValueError(
                f"a row takes {self.experts_per_token} of {self.num_experts} experts from "
                f"{self.groups_per_token} of {groups} groups"
            )
        if self.routing not in ("softmax", "sigmoid"):
            raise ValueError(f"its router's scores are {self.routing!r:.20}")
        if self.num_experts and (self.post_norms or (self.expert_biases and not self.gated)):
            raise ValueError("its experts have biases and no gate, or a norm behind them")
