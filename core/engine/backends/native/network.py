"""One model inside the compiled library: its sizes, matrices and vectors handed over, its adapters
beside it.

Knows the library's C functions and what the library calls each tensor. Knows nothing of batches or
requests.
Always: what the library refuses raises here, and frees what it had taken; raw blocks are packed
once and never copied whole.
"""

import ctypes
import math
import mmap
import sys
from collections import abc
from collections.abc import Iterable, Mapping
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_size_t,
    c_void_p,
)
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....errors import EngineError
from ....models.architecture import (
    ADAPTED_BESIDE,
    ATTENTION_PROJECTIONS,
    KEYS_VALUES,
    MLP_PROJECTIONS,
    PROJECTIONS,
    Architecture,
)
from ....models.quant.tensor import QuantTensor
from ....models.weights import Weights
from ...adapters import LoadedAdapter
from ...block_pool import BLOCK_TOKENS
from . import library
from .library import KINDS

ACTIVATIONS = (
    "silu",
    "gelu_tanh",
    "gelu",
    "relu2",
    "swiglu_oai",
    "relu",
)  # in the order of `Activation`, run.h
HEAD = -1  # as a layer's number
# In the order of `Vector`, model.cpp.
ATTENTION_NORM, MLP_NORM, QUERY_NORM, KEY_NORM, AFTER_ATTENTION, AFTER_MLP, FINAL_NORM, BIASES = (
    range(8)
)
RARE = BIASES + len(PROJECTIONS)
ATTENTION_NORM_BIAS, MLP_NORM_BIAS, FINAL_NORM_BIAS, HEAD_BIAS, SINKS = range(RARE, RARE + 5)
ROUTER_BIAS, ROUTING_BIAS, SHARED_GATE = range(RARE + 5, RARE + 8)
QUERY_DOWN_NORM, LATENT_NORM, POSITIONS, CONV_KERNEL, SLOPES = range(RARE + 8, RARE + 13)
EMBEDDING_NORM, EMBEDDING_NORM_BIAS, DELTA_KERNEL, DECAY = range(RARE + 13, RARE + 17)
DECAY_BIAS, DELTA_GAIN, DELTA_KERNEL_BIAS, SKIP, VALUE_NORM = range(RARE + 17, RARE + 22)
GIVEN_NORM, LAYER_SCALE, GIVEN_PROJECTION_NORM, LAUREL_NORM = range(RARE + 22, RARE + 26)
ALTUP_NORM, ALTUP_SCALE, ALTUP_ROUTER, ALTUP_PREDICT = range(RARE + 26, RARE + 30)
ALTUP_CORRECT, GATE_CUTOFF, EXPERT_BIASES = range(RARE + 30, RARE + 33)
SIZES = (
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
)  # of `Shape`, as `Architecture` has them
MIXTURE = ("num_experts", "experts_per_token", "expert_norm")
FACTORS = ("norm_eps", "embedding_scale", "attention_scale", "residual_scale", "logit_scale")
# what only some families have, at the end of `Shape`
LATE_FACTORS = ("attention_softcap", "logit_softcap", "expert_scale", "temperature")
LATE_SIZES = ("dense_size", "shared_size", "sigmoid_routing", "expert_groups", "groups_per_token")
LATE_FLAGS = ("centred_norms", "parallel", "ungated", "norms_behind_rope")
LAST_SIZES = (
    *("latent_size", "query_rank", "value_dim", "positions", "conv_kernel"),
    *("temperature_floor", "expert_inputs", "attention_gate"),
    *("delta_key_heads", "delta_value_heads", "delta_key_dim", "delta_value_dim", "delta_tiled"),
    *("state_spaces", "scan_beside", "per_layer_size"),
    *("streams", "laurel_rank", "per_layer_tokens"),
)
# of the whole model, where it has them
ENDS = {
    FINAL_NORM_BIAS: "model.norm.bias",
    HEAD_BIAS: "lm_head.bias",
    EMBEDDING_NORM: "model.embed_norm.weight",
    EMBEDDING_NORM_BIAS: "model.embed_norm.bias",
    GIVEN_PROJECTION_NORM: "model.per_layer_norm.weight",
}
# as roles, of latent attention or of a convolution alone
QUERY_DOWN, LATENT, CONV_IN, CONV_OUT = -1, -2, -3, -4
# of a gated delta net or a scan, and of attention that has a gate
DELTA = {
    "linear_attn.in_proj": -5,
    "linear_attn.gate": -6,
    "linear_attn.beta": -7,
    "linear_attn.alpha": -8,
    "linear_attn.out_proj": -9,
}
OUT_GATE = -10
GIVEN = {"per_layer.gate": -11, "per_layer.proj": -12}
LAUREL = {"laurel.left": -13, "laurel.right": -14}
# of the whole model, where the head is 0; a further stream's last one each behind them
GIVEN_PROJECTION, STREAM_IN, STREAM_OUT = range(1, 4)
# of a layer, small matrices that are taken as vectors
ALTUP = {
    ALTUP_ROUTER: "altup.router.weight",
    ALTUP_PREDICT: "altup.predict.weight",
    ALTUP_CORRECT: "altup.correct.weight",
}
# what adapters change, in the order of `Role` and `RareRole`, run.h
ADAPTED = (*PROJECTIONS, *ADAPTED_BESIDE)
# what stands in the place of attention, in the order of `Mixer`, run.h
ATTENTION, CONVOLUTION, DELTA_NET = range(3)
KV_TYPES = ("bf16", "q8", "q4")  # in the order of `KvType`, run.h
PRECISIONS = ("fast", "balanced", "exact")
# of the logits near a row's largest, where they are more than the head's own
HEAD_TERMS = {"fast": 0, "balanced": 2, "exact": 0}
KV_BITS = {"q8": 8, "q4": 4}
KV_GROUP = 64  # numbers of a head that share a scale, where they are integers
VALUE = PROJECTIONS.index("self_attn.v_proj")
ROUTER = len(PROJECTIONS)  # as a role; the experts' matrices follow, three of each
LARGEST_HEAD, LARGEST_STATE = 512, 256  # numbers of a head: that attends, that remembers
PAGE = 4096  # bytes; tensors of one file stand closer together


class NetworkShape(Structure):
    """`Shape` of run.h."""

    _fields_ = (
        *((name, c_int32) for name in SIZES),
        *((name, c_int32) for name in ("blocks", "ropes", "activation", "rope_dim")),
        *((name, c_int32) for name in MIXTURE),
        ("wide_norms", c_int32),
        *((name, c_float) for name in (*FACTORS, *LATE_FACTORS)),
        *((name, c_int32) for name in (*LATE_SIZES, *LATE_FLAGS, *LAST_SIZES)),
        *((name, c_int32) for name in ("kv_type", "head_terms")),
    )


class NetworkStep(Structure):
    """`Step` of step.cpp."""

    _fields_ = (
        *((name, c_int32) for name in ("spans", "rows", "wanted")),
        *((name, c_void_p) for name in ("span", "tokens", "tables")),
        ("table_length", c_int32),
        ("adapters", c_void_p),
        ("states", c_void_p),
        ("logits", c_void_p),
    )


class Network(library.LibraryObject):
    """A model that the library has packed; its steps run one after another, whoever asks."""

    what = "model"

    def __init__(
        self,
        weights: Weights,
        blocks: int,
        threads: int,
        kv_type: str = "bf16",
        precision: str = "fast",
    ) -> None:
        """Pack the weights.

        Args:
            blocks: of the cache.
            threads: that share a step.
            kv_type: of `KV_TYPES`, what keys and values are kept as.
            precision: of `PRECISIONS`, see `terms`.

        Raises:
            EngineError: the library refuses the model; `complaint` says beforehand whether it will.
        """
        architecture = self._architecture = weights.architecture
        self._library = bind(library.library())
        self._adapters: set[int] = set()
        self._raw = list[NDArray[np.uint8]]()  # whose rows are read in every step
        self._precision, self.kv_type = precision, KV_TYPES.index(kv_type)
        self.cache = _cache(architecture, blocks, kv_type)
        ropes, tables = _ropes(architecture)
        shape = NetworkShape(
            *(getattr(architecture, name) for name in SIZES),
            blocks=blocks,
            ropes=len(tables),
            activation=ACTIVATIONS.index(architecture.activation),
            rope_dim=architecture.turned,
            **{name: int(getattr(architecture, name)) for name in MIXTURE},
            wide_norms=architecture.wide_qk_norm,
            **{name: getattr(architecture, name) for name in FACTORS if name != "attention_scale"},
            attention_scale=architecture.scale(),
            **late(architecture),
            kv_type=self.kv_type,
            head_terms=HEAD_TERMS[precision],
        )
        layers = range(architecture.num_layers)
        frequencies = _floats([number for radians, _ in tables for number in radians])
        magnitudes = _floats([magnitude for _, magnitude in tables])
        windows = np.array([architecture.window(layer) for layer in layers], np.int32)
        mixers = np.array([_mixer(architecture, layer) for layer in layers], np.int32)
        sizes = np.array([_sizes(architecture, layer) for layer in layers], np.int32)
        names = library.instruction_set().encode()
        self._handle: int | None = self._library.quietchoir_model_new(
            names,
            byref(shape),
            threads,
            *(_address(a) for a in (self.cache, frequencies, magnitudes, windows, ropes, mixers)),
            _address(sizes),
        )
        if not self._handle:
            raise EngineError(f"the native engine refuses this model: {self._problem()}")
        try:
            self._pack(weights)
        except BaseException:
            self.close()
            raise

    def forward(self, step: NetworkStep) -> None:
        """Run one step.

        Raises:
            EngineError: a token, block or position that does not exist, or a closed network;
            nothing was written.
        """
        if self._handle is None:
            raise EngineError("the native engine was closed; make a new one")
        if not self._library.quietchoir_forward(self._handle, byref(step)):
            raise EngineError(
                f"the native engine refuses this step ({self._problem()}); this is a "
                f"bug, please report it"
            )

    def adapter(self, adapter: LoadedAdapter) -> int:
        """The library's own copy of an adapter, in bfloat16; to be freed.

        Raises:
            EngineError: factors that fit no matrix.
        """
        handle: int | None = self._library.quietchoir_adapter_new(self._handle)
        try:
            for module, (a, b) in adapter.factors.items():
                layer, role = _place(module)
                # [r, K], [rows, r]
                down, up = (factor.detach().float().T.contiguous() for factor in (a, b))
                if not handle or not self._library.quietchoir_adapter_add(
                    handle,
                    layer,
                    role,
                    len(down),
                    *down.shape[1:],
                    *up.shape[:1],
                    down.data_ptr(),
                    up.data_ptr(),
                ):
                    raise EngineError(
                        f"adapter {adapter.name} does not fit {module}: {self._problem()}"
                    )
            for module, output in adapter.outputs.items():
                layer, role = _place(module)
                gain, shift = (one.detach().float().contiguous() for one in output)
                if not self._library.quietchoir_adapter_output(
                    handle, layer, role, len(gain), gain.data_ptr(), shift.data_ptr()
                ):
                    raise EngineError(
                        f"adapter {adapter.name} does not fit {module}: {self._problem()}"
                    )
        except BaseException:
            self.free_adapter(handle)
            raise
        if not handle:
            raise EngineError(f"adapter {adapter.name}: {self._problem()}")
        self._adapters.add(handle)
        return handle

    def free_adapter(self, handle: int | None) -> None:
        """Give an adapter's memory back; no step may run with it."""
        self._adapters.discard(handle or 0)
        self._library.quietchoir_adapter_free(handle)

    def close(self) -> None:
        """Give the memory, adapters' too, and the threads back; a second call does nothing."""
        for adapter in list(self._adapters):
            self.free_adapter(adapter)
        handle, self._handle = self._handle, None
        if handle:
            self._library.quietchoir_model_free(handle)

    def _pack(self, weights: Weights) -> None:
        tensors = weights.tensors
        for layer in range(weights.architecture.num_layers):
            if weights.architecture.num_experts and not weights.architecture.is_mixture(layer):
                self._check(self._library.quietchoir_model_dense(self._handle, layer))
            for name, role in _roles(weights.architecture, layer).items():
                self._matrix(layer, role, tensors[f"model.layers.{layer}.{name}.weight"])
            for which, name in _vectors(weights.architecture, layer).items():
                self._vector(layer, which, tensors[f"model.layers.{layer}.{name}"])
            if weights.architecture.value_norm and weights.architecture.kv_source(layer) == layer:
                ones = np.ones(weights.architecture.head_size(layer), np.float32)
                self._numbers(layer, VALUE_NORM, ones)
            if weights.architecture.streams:
                for which, name in ALTUP.items():
                    blocks = tensors[f"model.layers.{layer}.{name}"]
                    flat = np.ascontiguousarray(blocks.memory).reshape(1, -1)
                    shape = (1, math.prod(blocks.shape))
                    self._vector(layer, which, QuantTensor(blocks.quant_type, shape, flat))
            cutoffs = weights.architecture.gate_cutoffs
            if cutoffs and cutoffs[layer] > -math.inf:
                self._numbers(layer, GATE_CUTOFF, np.array([cutoffs[layer]], np.float32))
            if weights.architecture.expert_biases and weights.architecture.is_mixture(layer):
                self._expert_biases(layer, tensors)
            self._release_pages(
                tensor
                for name, tensor in tensors.items()
                if name.startswith(f"model.layers.{layer}.")
            )
        self._vector(HEAD, FINAL_NORM, tensors["model.norm.weight"])
        for which, name in ENDS.items():
            if name in tensors:
                self._vector(HEAD, which, tensors[name])
        if weights.architecture.alibi:
            self._numbers(HEAD, SLOPES, weights.architecture.slopes())
        if weights.architecture.positions:
            table = tensors["model.embed_positions.weight"]
            rows = table.dequantize().numpy() if table.quant_type != "F32" else table.memory
            numbers = np.ascontiguousarray(rows).view(np.float32).reshape(-1)
            self._numbers(HEAD, POSITIONS, numbers)
        self._matrix(HEAD, 0, tensors["lm_head.weight"])
        for take, name in (
            (self._library.quietchoir_model_embedding, "model.embed_tokens.weight"),
            (self._library.quietchoir_model_given, "model.embed_per_layer.weight"),
        ):
            if name in tensors:
                kind, raw = KINDS.index(tensors[name].quant_type), tensors[name].memory
                self._raw.append(raw)
                self._check(take(self._handle, kind, raw.ctypes.data, raw.strides[0]))
        if weights.architecture.per_layer_size:
            self._matrix(HEAD, GIVEN_PROJECTION, tensors["model.per_layer_proj.weight"])
        if weights.architecture.streams:
            self._matrix(HEAD, STREAM_IN, tensors["model.altup_proj.weight"])
            width, whole = weights.architecture.hidden_size, tensors["model.altup_unembed.weight"]
            for other in range(weights.architecture.streams - 1):
                part = whole.part(other * width, (other + 1) * width)
                self._matrix(HEAD, STREAM_OUT + other, part)
        self._check(self._library.quietchoir_model_complete(self._handle))
        self._release_pages(tensors.values())
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            # reading a vocabulary left some 10 MB free inside the C library; other libraries of C
            # have no such call
            trim(0)

    def _release_pages(self, packed: Iterable[QuantTensor]) -> None:
        """Let go of a mapped file's pages: else the model is in memory twice."""
        for start, stop in runs(blocks.memory for blocks in packed):
            self._library.quietchoir_release_pages(start, stop - start)

    def _matrix(self, layer: int, role: int, blocks: QuantTensor) -> None:
        raw = (
            blocks.memory if blocks.memory.strides[1] == 1 else np.ascontiguousarray(blocks.memory)
        )
        kind = KINDS.index(blocks.quant_type)
        self._check(
            self._library.quietchoir_model_matrix(
                self._handle,
                layer,
                role,
                kind,
                *blocks.shape,
                raw.ctypes.data,
                max(raw.strides[0], raw.shape[1]),
            )
        )
        wanted = terms(self._precision, self._architecture, layer, role)
        self._check(self._library.quietchoir_model_terms(self._handle, layer, role, wanted))

    def _vector(self, layer: int, which: int, blocks: QuantTensor) -> None:
        self._numbers(layer, which, blocks.vector())

    def _numbers(self, layer: int, which: int, numbers: NDArray[np.float32]) -> None:
        self._check(
            self._library.quietchoir_model_vector(
                self._handle, layer, which, numbers.ctypes.data, len(numbers)
            )
        )

    def _expert_biases(self, layer: int, tensors: Mapping[str, QuantTensor]) -> None:
        """Those of all experts of a layer, one behind the other."""
        for place, kind in enumerate(MLP_PROJECTIONS):
            names = self._architecture.experts(kind)
            rows = [tensors[f"model.layers.{layer}.{name}.bias"].vector() for name in names]
            self._numbers(layer, EXPERT_BIASES + place, np.concatenate(rows))


def unsupported(architecture: Architecture, tensors: Mapping[str, QuantTensor]) -> str | None:
    """Why the library cannot run a model of these sizes and matrices; None if it can."""
    if reason := library.available():
        return reason
    if architecture.head_dim % 16 or architecture.head_dim > LARGEST_HEAD:
        return f"heads of {architecture.head_dim} are no multiple of 16 up to {LARGEST_HEAD}"
    latents = (architecture.latent_size, architecture.query_rank)
    if max(latents) > architecture.hidden_size or any(size % 16 for size in latents):
        return f"latents of {latents} are no multiples of 16 up to the width"
    if (
        architecture.latent_size
        and architecture.num_heads * (architecture.head_dim - architecture.turned) % 16
    ):
        return "heads' own numbers of keys are no multiple of 16"
    widths = [architecture.hidden_size, architecture.num_heads * architecture.head_dim]
    if architecture.deltas:
        widths.append(architecture.delta_value_heads * architecture.delta_value_dim)
    if architecture.conv_kernel and any(width % 32 for width in widths):
        return f"beside convolutions the widths {widths} are no multiples of 32"
    sizes = (architecture.delta_key_dim, architecture.delta_value_dim)
    if architecture.deltas and (any(size % 16 for size in sizes) or max(sizes) > LARGEST_STATE):
        kind = "scans" if architecture.state_spaces else "delta nets"
        return f"its {kind}' heads of {sizes} are no multiples of 16 up to {LARGEST_STATE}"
    if any(size % 16 or architecture.num_heads * size % 32 for size in architecture.head_dims):
        return f"heads of {architecture.head_dims} are no multiples of 16, or all of 32"
    if architecture.streams and (reason := streams_unsupported(architecture, tensors)):
        return reason
    if architecture.per_layer_size % 16:
        return f"layers are given {architecture.per_layer_size} numbers, no multiple of 16"
    if architecture.activation not in ACTIVATIONS:
        return f"activation {architecture.activation} is not known"
    known = bind(library.library())
    for name, blocks in tensors.items():
        if ".altup." in name:
            continue
        if blocks.shape[0] > 1 and (
            blocks.quant_type not in KINDS
            or not known.quietchoir_takes(KINDS.index(blocks.quant_type), blocks.shape[1])
        ):
            return f"{name} is {blocks.quant_type} with {blocks.shape[1]} columns"
    return None


def streams_unsupported(
    architecture: Architecture, tensors: Mapping[str, QuantTensor]
) -> str | None:
    """The same of a model whose rows are several streams."""
    own = architecture
    inner = {own.inner_size(layer) for layer in range(own.num_layers)}
    if own.hidden_size % 32 or own.laurel_rank % 32 or any(size % 16 for size in inner):
        return f"beside streams widths are {own.hidden_size}, {own.laurel_rank} and {min(inner)}"
    if own.intermediate_size < own.hidden_size:
        return "its streams are wider than its feed-forwards"
    for name in ALTUP.values():
        kind = tensors[f"model.layers.0.{name}"].quant_type
        if kind not in ("F32", "F16", "BF16"):
            return f"{name} is {kind}, expected plain numbers"
    return None


def runs(memory: Iterable[NDArray[np.uint8]]) -> list[tuple[int, int]]:
    """Addresses [start, stop) of these bytes; what stands side by side in memory comes as one."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted({(raw.ctypes.data, raw.ctypes.data + raw.size) for raw in memory}):
        if found and start - found[-1][1] < PAGE:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def bind(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Say what each function takes and returns."""
    kinds: library.Functions = {
        "takes": (c_bool, (c_int, c_int)),
        "model_new": (c_void_p, (c_char_p, POINTER(NetworkShape), c_int, *[c_void_p] * 7)),
        "model_free": (None, (c_void_p,)),
        "model_dense": (c_bool, (c_void_p, c_int)),
        "model_matrix": (c_bool, (c_void_p, *[c_int] * 5, c_void_p, c_size_t)),
        "model_terms": (c_bool, (c_void_p, c_int, c_int, c_int)),
        "model_embedding": (c_bool, (c_void_p, c_int, c_void_p, c_size_t)),
        "model_given": (c_bool, (c_void_p, c_int, c_void_p, c_size_t)),
        "model_vector": (c_bool, (c_void_p, c_int, c_int, c_void_p, c_int)),
        "model_complete": (c_bool, (c_void_p,)),
        "adapter_new": (c_void_p, (c_void_p,)),
        "adapter_add": (c_bool, (c_void_p, *[c_int] * 5, c_void_p, c_void_p)),
        "adapter_output": (c_bool, (c_void_p, *[c_int] * 3, c_void_p, c_void_p)),
        "adapter_free": (None, (c_void_p,)),
        "release_pages": (c_bool, (c_void_p, c_size_t)),
        "forward": (c_bool, (c_void_p, POINTER(NetworkStep))),
    }
    return library.declare(loaded, kinds)


def late(architecture: Architecture) -> dict[str, float]:
    """What only some families have, by its name in `Shape`."""
    known = {name: getattr(architecture, name) for name in (*LATE_FACTORS, *LAST_SIZES)}
    return known | {
        "dense_size": architecture.dense_size,
        "shared_size": architecture.shared_size,
        "sigmoid_routing": architecture.routing == "sigmoid",
        "expert_groups": architecture.expert_groups,
        "groups_per_token": architecture.groups_per_token,
        "centred_norms": architecture.layer_norms,
        "parallel": architecture.parallel,
        "ungated": not architecture.gated,
        "norms_behind_rope": architecture.qk_norm_last,
    }


def _roles(architecture: Architecture, layer: int) -> dict[str, int]:
    """The name inside a layer of each matrix, and what the library calls it."""
    own = architecture.kv_source(layer) == layer
    roles = {
        name: PROJECTIONS.index(name)
        for name in ATTENTION_PROJECTIONS
        if own or name not in KEYS_VALUES
    }
    roles |= GIVEN if architecture.per_layer_size else {}
    roles |= LAUREL if architecture.streams else {}
    if architecture.attention_gate:
        roles["self_attn.out_gate"] = OUT_GATE
    if architecture.is_delta(layer):
        there = architecture.delta_shapes()
        recurs = {name: role for name, role in DELTA.items() if f"{name}.weight" in there}
        roles = recurs | (roles if architecture.attends(layer) else {})
    if architecture.is_convolution(layer):
        roles = {"conv.in_proj": CONV_IN, "conv.out_proj": CONV_OUT}
    if architecture.latent_size:
        roles["self_attn.kv_down"] = LATENT
    if architecture.query_rank:
        roles["self_attn.q_down"] = QUERY_DOWN
    if architecture.is_lone(layer):
        return roles
    if not architecture.is_mixture(layer):
        return roles | {name: PROJECTIONS.index(name) for name in architecture.mlp_projections}
    if architecture.shared_size:
        shared = {name: architecture.shared(name) for name in architecture.mlp_projections}
        roles |= {own: PROJECTIONS.index(name) for name, own in shared.items()}
    roles["mlp.gate"] = ROUTER
    for kind in architecture.mlp_projections:
        place = MLP_PROJECTIONS.index(kind)
        for expert, name in enumerate(architecture.experts(kind)):
            roles[name] = ROUTER + 1 + expert * len(MLP_PROJECTIONS) + place
    return roles


def _vectors(architecture: Architecture, layer: int) -> dict[int, str]:
    """What the library calls each vector of a layer, and its name inside the layer."""
    before = "pre_feedforward_layernorm" if architecture.post_norms else "post_attention_layernorm"
    before = "input_layernorm" if architecture.one_norm else before
    found: dict[int, str] = {}
    if architecture.pre_norms:
        found = {ATTENTION_NORM: "input_layernorm.weight", MLP_NORM: f"{before}.weight"}
    if architecture.is_lone(layer):
        del found[MLP_NORM]
    there = architecture.layer_shapes(layer)
    if architecture.post_norms:
        found |= {
            AFTER_ATTENTION: "post_attention_layernorm.weight",
            AFTER_MLP: "post_feedforward_layernorm.weight",
        }
    if architecture.norm_biases:
        found |= {ATTENTION_NORM_BIAS: "input_layernorm.bias", MLP_NORM_BIAS: f"{before}.bias"}
    rare = {
        QUERY_NORM: "self_attn.q_norm.weight",
        KEY_NORM: "self_attn.k_norm.weight",
        GIVEN_NORM: "per_layer.norm.weight",
        LAYER_SCALE: "layer_scale.weight",
        LAUREL_NORM: "laurel.norm.weight",
        ALTUP_NORM: "altup.norm.weight",
        ALTUP_SCALE: "altup.scale.weight",
        SINKS: "self_attn.sinks.weight",
        ROUTER_BIAS: "mlp.gate.bias",
        ROUTING_BIAS: "mlp.gate_correction.bias",
        SHARED_GATE: "mlp.shared_expert_gate.weight",
        QUERY_DOWN_NORM: "self_attn.q_down_norm.weight",
        LATENT_NORM: "self_attn.kv_down_norm.weight",
        CONV_KERNEL: "conv.kernel.weight",
        DELTA_KERNEL: "linear_attn.kernel.weight",
        DECAY: "linear_attn.decay.weight",
        DECAY_BIAS: "linear_attn.decay_bias.weight",
        DELTA_GAIN: "linear_attn.gain.weight",
        DELTA_KERNEL_BIAS: "linear_attn.kernel.bias",
        SKIP: "linear_attn.skip.weight",
    }
    return (
        found
        | {which: name for which, name in rare.items() if name in there}
        | {BIASES + PROJECTIONS.index(name): f"{name}.bias" for name in architecture.biases}
    )


def _mixer(architecture: Architecture, layer: int) -> int:
    """What a layer has through which its rows see earlier ones."""
    if architecture.attends(layer):
        return ATTENTION
    return CONVOLUTION if architecture.is_convolution(layer) else DELTA_NET


def _sizes(architecture: Architecture, layer: int) -> tuple[int, int, int, int]:
    """Heads of keys, numbers of a head, width of the feed-forward for all rows where no layer has
    experts, and the layer whose keys and values are read.
    """
    mixed = architecture.num_experts > 0
    return (
        architecture.key_heads(layer),
        architecture.head_size(layer),
        architecture.intermediate_size if mixed else architecture.inner_size(layer),
        architecture.kv_source(layer),
    )


def _ropes(architecture: Architecture) -> tuple[np.ndarray, list[tuple[tuple[float, ...], float]]]:
    """Which rope each layer takes (-1: none) and the different ones: radians by pair, and the
    magnitude.
    """
    tables: list[tuple[tuple[float, ...], float]] = []
    layers = []
    for layer in range(architecture.num_layers):
        radians = tuple(architecture.inv_freq(layer).tolist())
        if not radians:
            layers.append(-1)
            continue
        radians += (0.0,) * (architecture.turned // 2 - len(radians))  # of smaller heads
        table = (radians, architecture.magnitude(layer))
        if table not in tables:
            tables.append(table)
        layers.append(tables.index(table))
    return np.array(layers, np.int32), tables


def terms(precision: str, architecture: Architecture, layer: int, role: int) -> int:
    """How many vectors of int8 the activations beside a quantised matrix are the sum of.

    "balanced" is more exact where that moves the logits most for what it costs: in all layers what
    values are made of, a thirtieth of a layer, and in the last one, whose rounding no layer behind
    it evens out.
    """
    if precision == "exact":
        return 3
    if precision == "fast" or layer == HEAD:  # of the head: `HEAD_TERMS`
        return 1
    decides = role == VALUE or layer == architecture.num_layers - 1
    return 2 if decides else 1


def _cache(architecture: Architecture, blocks: int, kv_type: str) -> NDArray[np.uint16]:
    """Zeros [blocks, bytes / 2], from a page's begin on, taken page by page as used.

    A block's layers stand together, so what was never used costs nothing even where the system's
    pages are of 2 MB.
    """
    shape = (blocks, block_bytes(architecture, kv_type) // 2)
    count = math.prod(shape)
    room = np.zeros(count + mmap.PAGESIZE // 2, np.uint16)
    skip = -room.ctypes.data % mmap.PAGESIZE // 2
    return room[skip : skip + count].reshape(shape)


class CacheWindows:
    """See `backend.LayerWindows`: whole pages go back to the system, and are zeros when they are
    written to again.
    """

    def __init__(
        self, tokens: int, cache: NDArray[np.uint16], parts: abc.Sequence[tuple[int, int]]
    ) -> None:
        """`parts`: bytes of a block that layers with a window have, first and behind the last."""
        self.tokens = tokens
        self._cache = cache
        self._parts: list[tuple[int, int]] = []  # those side by side as one
        for first, last in parts:
            if self._parts and self._parts[-1][1] == first:
                first = self._parts.pop()[0]
            self._parts.append((first, last))
        self._advise = ctypes.CDLL(None).madvise
        self._advise.argtypes = (c_void_p, c_size_t, c_int)

    def release(self, blocks: abc.Sequence[int]) -> None:
        """See `backend.LayerWindows.release`."""
        for block in blocks:
            start = self._cache[block].ctypes.data
            for first, last in self._parts:
                begin = -(-(start + first) // mmap.PAGESIZE) * mmap.PAGESIZE
                end = (start + last) // mmap.PAGESIZE * mmap.PAGESIZE
                if begin < end:
                    self._advise(begin, end - begin, mmap.MADV_DONTNEED)


def windows_of(
    architecture: Architecture, cache: NDArray[np.uint16], kv_type: str
) -> CacheWindows | None:
    """The layers with a window; None where there are none, or on a system that takes no page
    back so.
    """
    parts = {
        # of a run as well: no row sees further back than it is long
        (part.first, part.first + part.heads * part.bytes): abs(architecture.window(layer))
        for layer, part in kept_parts(architecture, kv_type).items()
        if architecture.window(layer)
    }
    if not parts or sys.platform != "linux":
        return None
    return CacheWindows(max(parts.values()), cache, list(parts))


def block_bytes(architecture: Architecture, kv_type: str = "bf16") -> int:
    """Memory of one block over all layers: keys and values, then the rows of convolutions
    (`lay_out_block`, model.cpp).
    """
    rows = 2 * BLOCK_TOKENS * architecture.hidden_size
    return kv_bytes(architecture, kv_type) + sum(architecture.convolutions) * rows


def kv_bytes(architecture: Architecture, kv_type: str) -> int:
    """The same of layers that attend alone."""
    return sum(part.heads * part.bytes for part in kept_parts(architecture, kv_type).values())


@dataclass(frozen=True, slots=True)
class KeptPart:
    """What one layer keeps in each block: keys and values of its heads, one head after another."""

    first: int  # byte of the block
    heads: int
    size: int  # numbers of a head
    bytes: int  # of a head

    def of(self, blocks: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Its part of whole blocks [n, bytes / 2], [n, heads, bytes / 2]."""
        stop = self.first + self.heads * self.bytes
        return blocks[:, self.first // 2 : stop // 2].reshape(len(blocks), self.heads, -1)


def kept_parts(architecture: Architecture, kv_type: str) -> dict[int, KeptPart]:
    """What each layer that attends and reads no other's keys has of a block, in the order of
    `lay_out_block`, model.cpp.
    """
    found: dict[int, KeptPart] = {}
    first = 0
    for layer in range(architecture.num_layers):
        if architecture.attends(layer) and architecture.kv_source(layer) == layer:
            size = architecture.head_size(layer)
            part = KeptPart(first, architecture.key_heads(layer), size, head_bytes(size, kv_type))
            found[layer] = part
            first += part.heads * part.bytes
    return found


def state_bytes(architecture: Architecture) -> int:
    """What all layers remember of one sequence beside the cache."""
    return 4 * architecture.delta_state * sum(architecture.deltas)


def head_bytes(size: int, kv_type: str) -> int:
    """Keys and values of one block, layer and head of so many numbers: `Cache::one`, run.h."""
    if kv_type == "bf16":
        return 4 * BLOCK_TOKENS * size
    keys = BLOCK_TOKENS * size * KV_BITS[kv_type] // 8
    values = keys if kv_type == "q8" else -(-size // 32) * 256
    return scale_bytes(size, kv_type) + keys + values


def scale_bytes(size: int, kv_type: str) -> int:
    """What stands before the integers of one block, layer and head, in bf16: scales, and of 4 bits
    the least numbers.
    """
    groups = -(-size // KV_GROUP)
    return groups * BLOCK_TOKENS * 2 * (4 if kv_type == "q4" else 2)


def _place(module: str) -> tuple[int, int]:
    """Layer and role of "model.layers.3.self_attn.q_proj"."""
    _, _, number, name = module.split(".", 3)
    return int(number), ADAPTED.index(name)


def _floats(numbers: list[float]) -> np.ndarray:
    return np.array(numbers or [0.0], np.float32)


def _address(array: np.ndarray) -> int:
    return array.ctypes.data
