"""What a model takes of a device, before anything is there.

Knows the sizes of everything that `decoder`, `cache` and `runner` put on the device. Allocates
nothing.
Always: weights, tables, keys and values are counted to the byte, and matrices with what torch's
allocator rounds off (a test compares both with the tensors made); what a step takes besides is the
sum of its largest tensors, and RESERVE stands for what only a device could tell. None of it was
measured on one. Not counted: adapters (they come while the node runs; leave room by
`engine.gpu_bytes`), CUDA's own context, and the scores of attention, should torch choose the way
that writes them down.
"""

from collections import abc

from ....hardware.placement import Needs
from ....models.architecture import Architecture
from ....models.quant.tensor import QuantTensor
from ....models.weights import Weights
from ...block_pool import BLOCK_TOKENS
from .cache import block_bytes
from .decoder import HEAD_NUMBERS, SLAB_NUMBERS, STACKS, slab_rows
from .graphs import SIZES
from .packed import packed_bytes, supports

STEP_ROWS = 512  # of the longest step; `scheduler.Limits.step_rows`
SPLITS = 8  # as `triton_ops.SPLITS`, which needs Triton
# recordings of all sizes, with and without adapters, take about so much of the largest one
RECORDED = 4
# cuBLAS's workspace (8 to 32 MiB), compiled kernels, and what the allocator's rounding leaves
# unused
RESERVE = 96 << 20


def needs(weights: Weights, blocks: int, context: int, answers: int) -> Needs:
    """What the device runner takes.

    Args:
        blocks: of the cache.
        context: the longest sequence, tokens.
        answers: rows of logits of one step, at most.
    """
    architecture = weights.architecture
    layer_cache = (blocks + 1) * block_bytes(architecture) // architecture.num_layers
    ends = linear_bytes([weights.tensors["lm_head.weight"]]) + 4 * architecture.hidden_size
    always = {
        "its head": ends,
        "tables of rope": ropes(architecture)
        * 4
        * architecture.head_dim
        * -(-context // BLOCK_TOKENS)
        * BLOCK_TOKENS,
        "a step's numbers": step_bytes(architecture, context, answers),
        "recorded steps": recorded_bytes(architecture),
        "reserve": RESERVE,
    }
    return Needs(
        layers=tuple(layer_bytes(weights, layer) for layer in range(architecture.num_layers)),
        cache=layer_cache,
        always=always,
    )


def layer_bytes(weights: Weights, layer: int) -> int:
    """The weights of one layer as `decoder.DeviceLayer` holds them."""
    architecture, prefix = weights.architecture, f"model.layers.{layer}."
    matrices = sum(
        linear_bytes([weights.tensors[f"{prefix}{name}.weight"] for name in names])
        for names in STACKS
    )
    norms = (
        len(architecture.norms()) * architecture.hidden_size
        + 2 * architecture.head_dim * architecture.qk_norm
    )
    biases = (
        (architecture.num_heads + 2 * architecture.num_kv_heads) * architecture.head_dim
        if architecture.biases
        else 0
    )
    return matrices + 4 * (norms + biases)


def linear_bytes(parts: abc.Sequence[QuantTensor]) -> int:
    """One `decoder.Linear`: packed, or two bytes a weight; each tensor as torch's allocator
    rounds it.
    """
    sizes = (
        packed_bytes(parts)
        if supports(parts)
        else (sum(2 * part.shape[0] * part.shape[1] for part in parts),)
    )
    return sum(map(taken, sizes))


def taken(size: int) -> int:
    """What a tensor of so many bytes takes: a large one has pages of its own, which nothing else
    can use.

    Source: PyTorch, c10/cuda/CUDACachingAllocator (kMinLargeAlloc 10 MiB, kRoundLarge 2 MiB,
    kMinBlockSize 512).
    """
    grain = 2 << 20 if size >= 10 << 20 else 512
    return -(-size // grain) * grain


def ropes(architecture: Architecture) -> int:
    """Different kinds of rope."""
    return len({architecture.rope_base(layer) for layer in range(architecture.num_layers)} - {0.0})


def row_bytes(architecture: Architecture) -> int:
    """What one row of a step keeps alive through a layer: the stream, and what was added to it
    last.
    """
    return (
        14 * architecture.hidden_size
        + 2 * architecture.num_heads * architecture.head_dim
        + 12 * architecture.intermediate_size
    )


def step_bytes(architecture: Architecture, context: int, answers: int) -> int:
    """The largest moment of the longest step: its feed-forward, its attention, or its logits."""
    queries = architecture.num_heads * architecture.head_dim
    kept = STEP_ROWS * row_bytes(architecture)
    slab = 2 * SLAB_NUMBERS + 2 * STEP_ROWS * slab_rows(
        2 * architecture.intermediate_size, architecture.hidden_size
    )
    keys = 10 * max(HEAD_NUMBERS, context * architecture.head_dim)
    share = architecture.num_heads // architecture.num_kv_heads
    attention = STEP_ROWS * (6 * queries + 3 * share * context) + keys
    return max(
        kept + slab,
        kept - 10 * STEP_ROWS * architecture.intermediate_size + attention,
        8 * answers * architecture.vocab_size,
    )


def recorded_bytes(architecture: Architecture) -> int:
    """The pool that all recordings share."""
    queries = architecture.num_heads * architecture.head_dim
    row = row_bytes(architecture) + 4 * SPLITS * queries + 8 * architecture.vocab_size
    return RECORDED * max(SIZES) * row
