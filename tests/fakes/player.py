"""The compiled engine without Python: its sources built with another compiler or with sanitizers,
and tapes to play to it.

`check.cpp` beside the kernels' tests is the player. Knows a tape's bytes and how to call a
compiler.
"""

import ctypes
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from quietchoir.core.engine.backends.native import encoder, sources
from quietchoir.core.engine.backends.native.encoder import EncoderShape
from quietchoir.core.engine.backends.native.library import KINDS
from quietchoir.core.engine.backends.native.network import KV_TYPES
from quietchoir.core.models.embedding.architecture import (
    HEAD_NORMS,
    NORMS,
    EncoderArchitecture,
    EncoderWeights,
    plain,
)
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.tests.fakes.blocks import random_rows

PLAYER = (
    Path(__file__).resolve().parents[1] / "core" / "engine" / "backends" / "native" / "check.cpp"
)
MULTIPLY, DECODE, MODEL, MATRIX, EMBEDDING, VECTOR, ADAPTER, FACTORS, STEP = range(9)
ENCODER, ENCODER_MATRIX, ENCODER_EMBEDDING, ENCODER_VECTOR, ENCODE = range(9, 14)
ROLES = ("query", "key", "value", "output", "gate", "up", "down")
ATTENTION_NORM, MLP_NORM, QUERY_NORM, KEY_NORM, AFTER_ATTENTION, AFTER_MLP, FINAL_NORM, BIASES = (
    range(8)
)


@dataclass
class Tape:
    """Calls in order; each returns how many floats it adds to the output."""

    records: list[bytes] = field(default_factory=list)

    def add(self, op: int, numbers: tuple[int, ...] = (), *arrays: np.ndarray) -> None:
        """One record."""
        parts = [struct.pack(f"<3i{len(numbers)}i", op, len(numbers), len(arrays), *numbers)]
        for array in arrays:
            data = np.ascontiguousarray(array).tobytes()
            parts += [struct.pack("<q", len(data)), data]
        self.records.append(b"".join(parts))

    def multiply(
        self, kind: str, shape: tuple[int, int], raw: np.ndarray, x: np.ndarray, terms: int = 1
    ) -> int:
        """A product, [len(x), rows]."""
        self.add(MULTIPLY, (KINDS.index(kind), *shape, len(x), terms), raw, x.astype(np.float32))
        return len(x) * shape[0]

    def decode(self, kind: str, columns: int, raw: np.ndarray) -> int:
        """One row as numbers."""
        self.add(DECODE, (KINDS.index(kind), columns), raw)
        return columns


@dataclass(frozen=True)
class Tiny:
    """A small model: every matrix random, its kind by role and layer."""

    kinds: tuple[tuple[str, ...], ...]  # [layers][roles]
    head: str = "Q6_K"
    hidden_size: int = 256
    ffn: int = 256
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    vocab_size: int = 50
    blocks: int = 8
    window: int = 0  # of the last layer
    activation: int = 0
    normed: bool = False  # norms of queries and keys, and behind attention and feed-forward
    biased: bool = False
    threads: int = 2
    rope_dim: int = 0
    experts: int = 0
    wide_norms: bool = False
    kv_type: str = "bf16"

    def rows_columns(self, role: str) -> tuple[int, int]:
        """Of one matrix."""
        mixed, kept = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "query": (mixed, self.hidden_size),
            "key": (kept, self.hidden_size),
            "value": (kept, self.hidden_size),
            "output": (self.hidden_size, mixed),
            "gate": (self.ffn, self.hidden_size),
            "up": (self.ffn, self.hidden_size),
            "down": (self.hidden_size, self.ffn),
            "router": (self.experts, self.hidden_size),
        }[role]

    def roles(self, kinds: tuple[str, ...]) -> list[tuple[int, str, str]]:
        """Number, name and kind of each matrix of a layer; a mixture's experts are of kinds by
        role, too.
        """
        named = list(zip(range(len(ROLES)), ROLES, kinds, strict=True))
        if not self.experts:
            return named
        router = len(ROLES)
        ours = [
            (router + 1 + 3 * expert + place, name, kind)
            for expert in range(self.experts)
            for place, (_, name, kind) in enumerate(named[4:])
        ]
        return [*named[:4], (router, "router", "F32"), *ours]

    def record(self, tape: Tape, rng: np.random.Generator) -> None:
        """Put the whole model on a tape."""
        layers = len(self.kinds)
        numbers = (
            layers,
            self.hidden_size,
            self.ffn,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.vocab_size,
            self.blocks,
        )
        half = (self.rope_dim or self.head_dim) // 2
        frequencies = (10000.0 ** -(np.arange(half) / half)).astype(np.float32)
        windows = np.array([0] * (layers - 1) + [self.window], dtype=np.int32)
        scales = np.array([1e-5, 1.0, self.head_dim**-0.5, 0.5, 2.0], dtype=np.float32)
        ropes = np.zeros(layers, dtype=np.int32)
        tape.add(
            MODEL,
            (
                *(self.threads, *numbers, 1, self.activation, self.rope_dim or self.head_dim),
                *(self.experts, min(self.experts, 2), 1, self.wide_norms),
                KV_TYPES.index(self.kv_type),
            ),
            scales,
            frequencies,
            np.ones(1, np.float32),
            windows,
            ropes,
        )
        for layer, kinds in enumerate(self.kinds):
            for role, name, kind in self.roles(kinds):
                rows, columns = self.rows_columns(name)
                tape.add(
                    MATRIX,
                    (layer, role, KINDS.index(kind), rows, columns),
                    random_rows(kind, rows, columns, rng),
                )
                if self.biased:
                    tape.add(
                        VECTOR, (layer, BIASES + role), rng.standard_normal(rows).astype(np.float32)
                    )
            for which, size in self.norms():
                tape.add(
                    VECTOR, (layer, which), (1 + rng.standard_normal(size) / 10).astype(np.float32)
                )
        vocabulary = (self.vocab_size, self.hidden_size)
        tape.add(
            MATRIX,
            (-1, 0, KINDS.index(self.head), *vocabulary),
            random_rows(self.head, *vocabulary, rng),
        )
        tape.add(
            EMBEDDING,
            (KINDS.index(self.head), self.vocab_size),
            random_rows(self.head, *vocabulary, rng),
        )
        tape.add(VECTOR, (0, FINAL_NORM), np.ones(self.hidden_size, dtype=np.float32))

    def norms(self) -> list[tuple[int, int]]:
        """Which vectors a layer has, and their sizes."""
        plain = [(ATTENTION_NORM, self.hidden_size), (MLP_NORM, self.hidden_size)]
        further = [
            (QUERY_NORM, self.head_dim * (self.num_heads if self.wide_norms else 1)),
            (KEY_NORM, self.head_dim * (self.num_kv_heads if self.wide_norms else 1)),
            (AFTER_ATTENTION, self.hidden_size),
            (AFTER_MLP, self.hidden_size),
        ]
        return plain + (further if self.normed else [])

    def adapter(
        self, tape: Tape, rank: int, roles: tuple[str, ...], rng: np.random.Generator
    ) -> None:
        """A low-rank addition to these roles of every layer."""
        tape.add(ADAPTER)
        for layer in range(len(self.kinds)):
            for role in roles:
                rows, columns = self.rows_columns(role)
                down, up = (
                    rng.standard_normal((rank, columns)) / 8,
                    rng.standard_normal((rows, rank)) / 8,
                )
                tape.add(
                    FACTORS,
                    (layer, ROLES.index(role), rank, columns, rows),
                    down.astype(np.float32),
                    up.astype(np.float32),
                )

    def step(
        self,
        tape: Tape,
        spans: list[tuple[int, int, int, list[int], int]],
        rng: np.random.Generator,
    ) -> int:
        """One step.

        Args:
            spans: (rows, first position, wanted rows, block numbers, adapter or -1) each.
        """
        said: list[tuple[int, ...]] = []
        tables: list[int] = []
        for rows, position, wanted, table, _ in spans:
            said.append((rows, position, wanted, len(tables), len(table)))
            tables += table
        tokens = rng.integers(0, self.vocab_size, sum(span[0] for span in spans))
        wanted = sum(span[2] for span in spans)
        arrays = (said, tokens, tables, [span[4] for span in spans])
        tape.add(
            STEP,
            (wanted, 0, self.vocab_size),
            *(np.array(array, dtype=np.int32) for array in arrays),
        )
        return wanted * self.vocab_size


@dataclass
class RecordedEncoder:
    """The library's functions for encoders, put on a tape instead of called: what `NativeEncoder`
    says is what the player plays.
    """

    tape: Tape

    def quietchoir_encoder_new(  # as all of these
        self, _set: bytes, shape: Any, threads: int, frequencies: int, reaches: int, ropes: int
    ) -> int:
        own: EncoderShape = shape._obj
        self.vocab_size = own.vocab_size
        self.tape.add(
            ENCODER,
            (threads,),
            np.frombuffer(bytes(own), np.uint8),
            taken(frequencies, 4 * max(1, own.ropes * own.head_dim // 2)),
            taken(reaches, 4 * own.num_layers),
            taken(ropes, 4 * own.num_layers),
        )
        return 1

    def quietchoir_encoder_matrix(
        self, _: int, layer: int, role: int, kind: int, rows: int, columns: int, raw: int, size: int
    ) -> bool:
        self.tape.add(ENCODER_MATRIX, (layer, role, kind, rows, columns), taken(raw, rows * size))
        return True

    def quietchoir_encoder_embedding(self, _: int, kind: int, raw: int, size: int) -> bool:
        self.tape.add(ENCODER_EMBEDDING, (kind, size), taken(raw, self.vocab_size * size))
        return True

    def quietchoir_encoder_vector(
        self, _: int, layer: int, which: int, values: int, count: int
    ) -> bool:
        self.tape.add(ENCODER_VECTOR, (layer, which), taken(values, 4 * count))
        return True

    def quietchoir_encoder_complete(self, _: int) -> bool:
        return True

    def quietchoir_encode(
        self, _: int, texts: int, lengths: int, seconds: int, tokens: int, _out: int
    ) -> bool:
        said = taken(lengths, 4 * texts)
        held = taken(tokens, 4 * int(said.view(np.int32).sum()))
        self.tape.add(ENCODE, (), said, taken(seconds, 4 * texts), held)
        return True

    def quietchoir_encoder_free(self, _: int) -> None:
        return


def taken(address: int, size: int) -> np.ndarray:
    """A copy of memory that somebody else holds."""
    return np.frombuffer(ctypes.string_at(address, size), np.uint8)


def record_encoder(tape: Tape, weights: EncoderWeights, texts: list[list[int]]) -> int:
    """An encoder, its plain matrices as they are, and one batch; how many floats come out."""
    recorded = RecordedEncoder(tape)
    with mock.patch.object(encoder, "bind", lambda _: recorded):
        made = encoder.NativeEncoder(weights, 2, exact=True)
        made.encode(texts)
        made.close()
    return len(texts) * weights.architecture.hidden_size


def random_encoder(rng: np.random.Generator, **traits: Any) -> EncoderWeights:
    """A small encoder of these traits, every tensor that it may have random."""
    sizes: dict[str, Any] = {
        "model_type": "tiny",
        "num_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 40,
        "max_positions": 50,
        "norm_eps": 1e-5,
        "attention_scale": 0.25,
    }
    own = EncoderArchitecture(**sizes | traits)
    width = own.hidden_size

    def some(*shape: int, about: float = 0.0, spread: float = 0.3) -> QuantTensor:
        return plain((about + spread * rng.standard_normal(shape)).astype(np.float32))

    tensors = {
        "embedding.weight": some(own.vocab_size, width),
        "positions.weight": some(own.max_positions, width),
    }
    names = ["embedding_norm", "final_norm"]
    for layer in range(own.num_layers):
        begin = f"layers.{layer}."
        for name, shape in own.matrices():
            tensors[f"{begin}{name}.weight"] = some(*shape)
            tensors[f"{begin}{name}.bias"] = some(1, shape[0])
        names += [begin + name for name in NORMS]
        if own.rms_norms:
            for name in HEAD_NORMS:
                tensors[f"{begin}{name}.weight"] = some(1, own.head_dim, about=1)
    for name in names:
        tensors[f"{name}.weight"] = some(1, width, about=1)
        if not own.rms_norms:
            tensors[f"{name}.bias"] = some(1, width)
    return EncoderWeights(own, tensors)


def build(
    folder: Path, compiler: str, *flags: str, also: tuple[Path, ...] = (), timeout_s: float = 280.0
) -> Path:
    """The player with the library's sources, by this compiler; objects stay in `folder`.

    Raises:
        AssertionError: no such compiler, or it found a fault; the message says what to do.
    """
    assert shutil.which(compiler), (
        f"{compiler} is not installed; `.ci/run` names the packages that the tests need"
    )
    places = {path: folder / f"{path.stem}.o" for path in (*sources.units(), PLAYER, *also)}
    include = f"-I{sources.FOLDER / 'src'}"
    define = f'-D{sources.DIGEST_MACRO}="{sources.digest()}"'

    def compile_one(path: Path) -> str:
        command = [
            compiler,
            *sources.FLAGS,
            define,
            include,
            *flags,
            "-c",
            str(path),
            "-o",
            str(places[path]),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_s
        ).stderr

    with ThreadPoolExecutor(2) as pool:
        faults = [text for text in pool.map(compile_one, places) if "error" in text]
    assert not faults, faults[0]
    player = folder / "check"
    command = [compiler, *flags, *map(str, places.values()), *sources.LINK_FLAGS, "-o", str(player)]
    linked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert linked.returncode == 0, linked.stderr
    return player


def play(command: list[str], tape: Tape, folder: Path) -> dict[str, np.ndarray]:
    """Run a player, maybe under an emulator; floats by instruction set.

    Raises:
        AssertionError: it failed, or a sanitizer found something; the message is its own.
    """
    place, out = folder / "tape", folder / "out"
    place.write_bytes(b"".join(tape.records))
    done = subprocess.run(
        [*command, str(place), str(out)], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    data, at, found = out.read_bytes(), 0, {}
    while at < len(data):
        name, count = (
            data[at : at + 16].rstrip(b"\0").decode("ascii"),
            struct.unpack_from("<q", data, at + 16)[0],
        )
        found[name] = np.frombuffer(data, np.float32, count, at + 24)
        at += 24 + 4 * count
    return found
