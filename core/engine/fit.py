"""Which models run on this machine, and how fast at most, from the speed of its memory.

Knows that each token of one answer reads every weight that it needs once, so that memory's speed,
measured here and now, bounds the tokens a second; and what a cache takes. Knows nothing of prices,
quality or terminals. Loads no model.
Always: a figure is a bound of this machine's memory, no promise; what is not known of a model is
0, never a guess.

Source: the bound is the roofline's, S. Williams, A. Waterman and D. Patterson, 2009.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import parts
from ..config import EngineConfig
from ..errors import QuietchoirError, UnsupportedModelError
from ..hardware import discovery
from ..models import transformers_model, weights
from ..models.architecture import Architecture
from ..models.checkpoint import from_gguf
from ..models.files import gguf
from ..models.hub import catalog
from ..models.hub.catalog import InstalledModel
from ..models.hub.known_models import BY_NAME, KnownModel
from .backends.select import beside_blocks, cache_bytes, running_at_once, sequence_bytes

READ_BYTES = 256 << 20  # beyond every cache
REPEATS = 3
CACHE_TYPE_BYTES = 2  # keys and values, in bfloat16
BESIDE_BYTES = 200 << 20  # the program, and the rows of a batch
# Of this machine's memory, for all models that are loaded at once, unless the owner says otherwise.
SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineMemory:
    """What bounds a model here."""

    bytes: int  # 0: unknown
    free: int  # bytes that a program could take now
    limit: int  # bytes that all loaded models may take; 0: unknown
    read_bytes_s: float  # that all cores together read, measured in this run


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One model on this machine."""

    name: str
    weight_bytes: int
    cache_bytes: int  # of a full batch of conversations of `context` tokens, as it is laid out
    context: int
    fits: bool  # within the limit for all models
    now: bool  # and within what is free at this moment
    tokens_per_s: float  # of one answer, at most; 0: not known

    @property
    def bytes(self) -> int:
        """Of memory, as the limit for all models counts them."""
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNeeds:
    """What a model asks of a machine."""

    weight_bytes: int
    read_bytes: int  # of them for one token
    cache_bytes: int  # of one token of context; 0: not known
    context: int  # tokens that it holds
    state_bytes: int = 0  # of what layers remember of one sequence beside the cache


def measure_memory(limit: int = 0, cores: int | None = None) -> MachineMemory:
    """Read memory with all cores, some tenths of a second long.

    Args:
        limit: for models, as the owner set it; 0: a share of this machine's.
    """
    total, free = discovery.memory_sizes()
    return MachineMemory(
        bytes=total,
        free=free,
        limit=limit or int(SHARE * total),
        read_bytes_s=read_speed(cores or discovery.core_count()),
    )


def read_speed(cores: int) -> float:
    """Bytes a second that so many threads read together; the best of a few passes.

    Each thread's own processor time counts, not the clock: what other programs take meanwhile is
    theirs.
    """
    memory = np.ones(READ_BYTES // 8, np.uint64)  # touched: pages that nobody wrote are all one
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(REPEATS + 1):
            best = max(best, sum(pool.map(reading, np.array_split(memory, cores))))
    return best


def reading(memory: npt.NDArray[np.uint64]) -> float:
    """Bytes a second of one thread."""
    begun = time.thread_time()
    np.bitwise_or.reduce(memory)
    return memory.nbytes / max(time.thread_time() - begun, 1e-9)


def fit(name: str, needs: ModelNeeds, machine: MachineMemory, engine: EngineConfig) -> Fit:
    """A model on a machine, with the cache that a node of these settings lays out for it."""
    context, cache = laid_out(needs, engine)
    whole = needs.weight_bytes + cache
    return Fit(
        name=name,
        weight_bytes=needs.weight_bytes,
        cache_bytes=cache,
        context=context,
        fits=not machine.limit or whole <= machine.limit,
        now=not machine.free or whole + BESIDE_BYTES <= machine.free,
        tokens_per_s=machine.read_bytes_s / needs.read_bytes if needs.read_bytes else 0.0,
    )


def laid_out(needs: ModelNeeds, engine: EngineConfig) -> tuple[int, int]:
    """Tokens of one conversation, and bytes of the cache for a full batch of them."""
    context = min(engine.context, needs.context) if needs.context else engine.context
    states = beside_blocks(engine, needs.state_bytes)
    running = running_at_once(engine, needs.state_bytes)
    return context, min(engine.kv_bytes, states + running * context * needs.cache_bytes)


def needs_of_all(names: Sequence[str] = ()) -> dict[str, ModelNeeds]:
    """What models need, by name: the named ones, or all chat models that are here or known.

    Raises:
        ModelNotFoundError: one that is neither.
    """
    here = {model.name: model for model in catalog.installed() if model.kind == "chat"}
    found = dict[str, ModelNeeds]()
    for name in names or dict.fromkeys((*here, *BY_NAME)):
        if name in here:
            found[name] = needs_of_installed(here[name])
        elif name in BY_NAME:
            found[name] = needs_of_known(BY_NAME[name])
        else:
            found[name] = needs_of_path(catalog.find(name))
    return found


def needs_of_known(model: KnownModel) -> ModelNeeds:
    """What the catalog tells of a model that is not here."""
    cache = 2 * CACHE_TYPE_BYTES * model.layers * model.kv_heads * model.head_dim
    return ModelNeeds(
        weight_bytes=model.bytes, read_bytes=model.bytes, cache_bytes=cache, context=model.context
    )


def needs_of_installed(model: InstalledModel) -> ModelNeeds:
    """What a model's own file says, from its head alone; of what cannot be read, its size."""
    return needs_of(model.path)


def needs_of(path: Path) -> ModelNeeds:
    """The same of a file or folder; of one that transformers computes, what its numbers take there,
    which is more than its file where that holds them in fewer bits.
    """
    try:
        return needs_of_path(path)
    except (OSError, QuietchoirError) as error:
        if isinstance(error, UnsupportedModelError):
            with suppress(OSError, QuietchoirError), parts.wanted("a model of this family"):
                numbers = transformers_model.numbers_of(weights.model_at(path))
                size = numbers * discovery.float_bytes(numbers)
                return ModelNeeds(weight_bytes=size, read_bytes=size, cache_bytes=0, context=0)
        files = [*path.glob("*.safetensors"), *path.glob("*.gguf")] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
        return ModelNeeds(weight_bytes=size, read_bytes=size, cache_bytes=0, context=0)


def needs_of_path(path: Path) -> ModelNeeds:
    """Of a file or folder. Raises: ModelFileError: a GGUF file that is none, or is not computed."""
    path = weights.model_at(path)
    if not path.is_dir():
        return needs_of_file(path)
    with parts.wanted("a model folder"):
        from ..models.checkpoint import from_hf  # with torch, which maps a folder's tensors

    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    architecture = from_hf.read_architecture(path)
    return ModelNeeds(
        weight_bytes=size,
        read_bytes=size,
        cache_bytes=cache_bytes(architecture),
        context=architecture.context_length,
        state_bytes=sequence_bytes(architecture),
    )


def needs_of_file(path: Path) -> ModelNeeds:
    """Of a GGUF file. Raises: ModelFileError: it is none that is computed here."""
    file = gguf.read(path)
    architecture = from_gguf.read_architecture(file)
    sizes = {name: tensor.memory.size for name, tensor in file.tensors.items()}
    return ModelNeeds(
        weight_bytes=sum(sizes.values()),
        read_bytes=sum(read_share(name, sizes, architecture) for name in sizes),
        cache_bytes=cache_bytes(architecture),
        context=architecture.context_length,
        state_bytes=sequence_bytes(architecture),
    )


def read_share(name: str, sizes: dict[str, int], architecture: Architecture) -> int:
    """Bytes of a tensor that one token reads: of experts those that are chosen, of an embedding
    that is not the head too one row.
    """
    if name == "token_embd.weight" and "output.weight" in sizes:
        return 0
    if architecture.num_experts and "_exps." in name:
        return sizes[name] * architecture.experts_per_token // architecture.num_experts
    return sizes[name]
