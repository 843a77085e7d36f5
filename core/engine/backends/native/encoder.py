"""An encoder that the library has packed: texts' tokens in, one vector a text out.

Knows the library's `quietchoir_encoder_*` functions and an encoder's named tensors. Knows nothing
of text, files or who asks. Imports no torch.
Always: matrices of plain numbers are packed at 8 bits in blocks of 32, others as they are; a text's
vector is the same to the last bit in every batch and on any number of threads.
"""

import ctypes
from collections.abc import Sequence
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

import numpy as np
from numpy.typing import NDArray

from ....errors import EngineError
from ....hardware.discovery import core_count
from ....models.embedding.architecture import (
    ACTIVATIONS,
    HEAD_NORMS,
    NORMS,
    PROJECTIONS,
    EncoderArchitecture,
    EncoderWeights,
    numbers,
)
from ....models.quant.tensor import PLAIN, QuantTensor
from . import library

SIZES = (
    *("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads"),
    *("head_dim", "vocab_size"),
)
POOLINGS = ("mean", "first", "last")  # as encoder_run.h counts them
# the vectors outside layers, as encoder.cpp counts them
ENDS = (
    *("embedding_norm.weight", "embedding_norm.bias", "final_norm.weight", "final_norm.bias"),
    *("positions.weight", "shift.weight", "second_shift.weight"),
)
OUTSIDE = -1  # instead of a layer
GROUP = 32  # columns of a block of 8 bits
BATCH_TOKENS = (
    512  # of one call: what it works on stays in the processor's caches (2048: 9 % slower)
)


class EncoderShape(Structure):
    """`EncoderShape` of encoder_run.h."""

    _fields_ = (
        *((name, c_int32) for name in SIZES),
        *((name, c_int32) for name in ("positions", "ropes", "activation", "gated", "rms")),
        *((name, c_int32) for name in ("norm_sums", "causal", "pooling")),
        *((name, c_float) for name in ("norm_eps", "embedding_scale", "attention_scale")),
    )


class NativeEncoder(library.LibraryObject):
    """An encoder in the library; its batches run one after another, whoever asks."""

    what = "encoder"

    def __init__(self, weights: EncoderWeights, threads: int = 0, *, exact: bool = False) -> None:
        """Pack the weights.

        Args:
            threads: that share a batch; 0: one for each core that this process may use.
            exact: plain matrices stay as they are and are multiplied in float32: several times
                slower.

        Raises:
            EngineError: the library refuses them; `unsupported` says beforehand whether it will.
        """
        own = self.architecture = weights.architecture
        self._library = bind(library.library())
        ropes: list[tuple[float, ...]] = []
        of_layer = []
        for layer in range(own.num_layers):
            radians = tuple(own.inv_freq(layer).tolist())
            if radians and radians not in ropes:
                ropes.append(radians)
            of_layer.append(ropes.index(radians) if radians else -1)
        shape = EncoderShape(
            *(getattr(own, name) for name in SIZES),
            positions=own.max_positions if own.learned_positions else 0,
            ropes=len(ropes),
            activation=ACTIVATIONS.index(own.activation),
            gated=own.gated,
            rms=own.rms_norms,
            norm_sums=own.norm_sums,
            causal=own.causal,
            pooling=POOLINGS.index(own.pooling),
            norm_eps=own.norm_eps,
            embedding_scale=own.embedding_scale,
            attention_scale=own.attention_scale,
        )
        frequencies = np.array([*sum(ropes, ())] or [0.0], np.float32)
        reaches = np.array([own.reach(layer) for layer in range(own.num_layers)], np.int32)
        self._handle: int | None = self._library.quietchoir_encoder_new(
            library.instruction_set().encode(),
            byref(shape),
            threads or core_count(),
            *(each.ctypes.data for each in (frequencies, reaches, np.array(of_layer, np.int32))),
        )
        if not self._handle:
            raise EngineError(f"the native engine refuses this encoder: {self._problem()}")
        try:
            self._pack(weights, exact)
        except BaseException:
            self.close()
            raise

    def encode(
        self, texts: Sequence[Sequence[int]], seconds: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """See `backend.Encoder.encode`.

        Raises:
            EngineError: a token that does not exist, a text that is too long or empty, or a closed
            encoder.
        """
        if self._handle is None:
            raise EngineError("the encoder was closed; make a new one")
        out = np.empty((len(texts), self.architecture.hidden_size), np.float32)
        begins = np.array(
            [len(tokens) for tokens in texts] if seconds is None else seconds, np.int32
        )
        start = 0
        while start < len(texts):
            stop, held = start + 1, len(texts[start])
            while stop < len(texts) and held + len(texts[stop]) <= BATCH_TOKENS:
                held += len(texts[stop])
                stop += 1
            lengths = np.array([len(tokens) for tokens in texts[start:stop]], np.int32)
            tokens = np.array([id for tokens in texts[start:stop] for id in tokens], np.int32)
            if not self._library.quietchoir_encode(
                self._handle,
                len(lengths),
                lengths.ctypes.data,
                begins[start:stop].ctypes.data,
                tokens.ctypes.data,
                out[start:stop].ctypes.data,
            ):
                raise EngineError(f"the native engine refuses these texts: {self._problem()}")
            start = stop
        return out

    def close(self) -> None:
        """Give the memory and the threads back; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle:
            self._library.quietchoir_encoder_free(handle)

    def _pack(self, weights: EncoderWeights, exact: bool) -> None:
        tensors, own = weights.tensors, weights.architecture
        embedding = tensors["embedding.weight"]
        # the library is told no number of rows: it reads one for each token of the shape
        if embedding.shape != (expected := (own.vocab_size, own.hidden_size)):
            raise EngineError(f"the embedding is {embedding.shape}, expected {expected}")
        self._raw = np.ascontiguousarray(embedding.memory)  # its rows are read in every batch
        self._check(
            self._library.quietchoir_encoder_embedding(
                self._handle,
                library.KINDS.index(embedding.quant_type),
                self._raw.ctypes.data,
                self._raw.strides[0],
            )
        )
        for which, name in enumerate(ENDS):
            if name in tensors and (name != "positions.weight" or own.learned_positions):
                self._vector(OUTSIDE, which, tensors[name])
        for layer in range(own.num_layers):
            for role, name in enumerate(PROJECTIONS):
                stem = f"layers.{layer}.{name}"
                if f"{stem}.weight" in tensors:
                    blocks = tensors[f"{stem}.weight"]
                    rounded = blocks.quant_type in PLAIN and not exact
                    self._matrix(layer, role, eight_bits(blocks) if rounded else blocks)
                if f"{stem}.bias" in tensors:
                    norms = len(NORMS) + len(HEAD_NORMS)
                    self._vector(layer, 2 * norms + role, tensors[f"{stem}.bias"])
            for which, name in enumerate((*NORMS, *HEAD_NORMS)):
                for place, ending in enumerate(("weight", "bias")):
                    vector = tensors.get(f"layers.{layer}.{name}.{ending}")
                    if vector is not None:
                        self._vector(layer, 2 * which + place, vector)
        self._check(self._library.quietchoir_encoder_complete(self._handle))

    def _matrix(self, layer: int, role: int, blocks: QuantTensor) -> None:
        raw = np.ascontiguousarray(blocks.memory)
        self._check(
            self._library.quietchoir_encoder_matrix(
                self._handle,
                layer,
                role,
                library.KINDS.index(blocks.quant_type),
                *blocks.shape,
                raw.ctypes.data,
                raw.strides[0],
            )
        )

    def _vector(self, layer: int, which: int, blocks: QuantTensor) -> None:
        values = np.ascontiguousarray(numbers(blocks)).reshape(-1)
        self._check(
            self._library.quietchoir_encoder_vector(
                self._handle, layer, which, values.ctypes.data, values.size
            )
        )


def unsupported(architecture: EncoderArchitecture) -> str | None:
    """Why the library cannot run an encoder of these sizes; None if it can."""
    if reason := library.available():
        return reason
    own = architecture
    if own.head_dim % 16 or own.head_dim > 256:
        return f"heads of {own.head_dim} are no multiple of 16 up to 256"
    for width in (own.hidden_size, own.intermediate_size, own.num_heads * own.head_dim):
        if width % GROUP:
            return f"a width of {width} is no multiple of {GROUP}"
    return None


def eight_bits(matrix: QuantTensor) -> QuantTensor:
    """A plain matrix as Q8_0: blocks of 32 numbers, the largest of each on 127."""
    rows, columns = matrix.shape
    values = numbers(matrix).reshape(rows, columns // GROUP, GROUP)
    scale = np.abs(values).max(-1, keepdims=True) / np.float32(127)
    steps = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    raw = np.empty((rows, columns // GROUP, 2 + GROUP), np.uint8)
    raw[..., :2] = scale.astype("<f2").view(np.uint8)
    raw[..., 2:] = np.rint(steps).astype(np.int8).view(np.uint8)
    return QuantTensor("Q8_0", matrix.shape, raw.reshape(rows, -1))


def bind(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Say what each function takes and returns."""
    kinds: library.Functions = {
        "encoder_new": (c_void_p, (c_char_p, POINTER(EncoderShape), c_int, *[c_void_p] * 3)),
        "encoder_free": (None, (c_void_p,)),
        "encoder_matrix": (c_bool, (c_void_p, *[c_int] * 5, c_void_p, c_size_t)),
        "encoder_embedding": (c_bool, (c_void_p, c_int, c_void_p, c_size_t)),
        "encoder_vector": (c_bool, (c_void_p, c_int, c_int, c_void_p, c_int)),
        "encoder_complete": (c_bool, (c_void_p,)),
        "encode": (c_bool, (c_void_p, c_int, *[c_void_p] * 4)),
    }
    return library.declare(loaded, kinds)
