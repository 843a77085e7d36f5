"""Which backend serves a model, and which computes embeddings.

Knows what each backend says of itself. Always: there is one; torch's takes whatever no other does,
and who is given the slower one finds the reason in the log.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ... import log, parts
from ...config import EngineConfig
from ...errors import ConfigError
from ...hardware.placement import Placement, place
from ...models.architecture import Architecture
from ...models.embedding.architecture import EncoderWeights
from ...models.quant.tensor import QuantTensor
from ...models.transformers_model import TRANSFORMERS_IS, ServedModel, TransformersModel
from ...models.weights import Weights
from ..block_pool import BLOCK_TOKENS
from .backend import Backend, Encoder
from .native import encoder, network
from .native.library import TORCH_IS
from .native.runner import NativeRunner, supports

logger = log.get("engine")


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend for some weights, before it takes any memory."""

    block_bytes: int  # of its cache; see `Backend`
    build: Callable[[int, int], Backend]  # blocks of the cache, longest sequence in tokens
    # what one sequence's layers remember of it beside the cache, while it runs
    sequence_bytes: int = 0
    exactness: str = ""  # of the compiled kernels, as the owner set them; "": others serve
    slower: str = ""  # by how much than the compiled kernels would be, and why; "": it is not
    # of the same: raises ConfigError for what `build` would refuse
    check: Callable[[int, int], object] = lambda blocks, context: None
    # what adapters change, where the weights themselves do not tell
    projections: Mapping[str, QuantTensor] | None = None
    weight_bytes: int = 0  # of a network that is held beside the weights' own blocks


def select(weights: ServedModel, config: EngineConfig) -> BackendChoice:
    """The backend that the owner asked for: on the GPU, or the fastest for these weights on this
    processor.

    Raises:
        ConfigError: there is no GPU, this model cannot run on one or (from `check` and `build`)
            does not fit as the owner wants it, or `QUIETCHOIR_NATIVE` asks for what does not exist.
        MissingPartError: only torch or transformers can run these weights, and is not installed.
        ModelFileError: transformers cannot.
    """
    if isinstance(weights, TransformersModel):
        return _transformers(weights, config)
    if config.device == "cuda":
        _refuse_native_settings(config, 'engine.device is "cuda"')
        return _cuda(weights, config)
    if reason := supports(weights):
        _refuse_native_settings(config, reason)
        return _torch(weights, reason)

    exactness = f"precision {config.precision}, keys and values in {config.kv_type}"

    def build(blocks: int, context: int) -> Backend:  # noqa: ARG001  # no tables of its length
        own = {"kv_type": config.kv_type, "precision": config.precision}
        runner = NativeRunner(weights, blocks, config.threads, **own)
        logger.info("the native runner serves, with %s; %s", runner.instruction_set, exactness)
        return runner if config.prefill == "own" else _planned(weights, runner, config)

    if config.prefill == "planned":
        _check_planned(weights, config)
    size = network.block_bytes(weights.architecture, config.kv_type)
    remembered = network.state_bytes(weights.architecture)
    return BackendChoice(size, build, sequence_bytes=remembered, exactness=exactness)


def _check_planned(weights: Weights, config: EngineConfig) -> None:
    """Raises ConfigError: prompts of this model cannot go elsewhere. MissingPartError: OpenVINO is
    not installed.
    """
    parts.require("openvino", 'engine.prefill = "planned"')
    with parts.wanted('engine.prefill = "planned"'):
        from .openvino.runner import unplanned
    if reason := unplanned(weights.architecture, config.kv_type):
        raise ConfigError(
            f'engine.prefill is "planned", and no other device takes this model\'s prompts: '
            f'{reason}; set it to "own"'
        )


def _planned(weights: Weights, runner: NativeRunner, config: EngineConfig) -> Backend:
    """The compiled kernels, with another device for prompts."""
    from .openvino.runner import PlannedRunner, devices_of

    devices = devices_of(weights, config.threads)
    logger.info(
        "whole prompts go to %s where that measures faster than the kernels", ", ".join(devices)
    )
    return PlannedRunner(weights, runner, devices)


def _refuse_native_settings(config: EngineConfig, reason: str) -> None:
    """Raises ConfigError: the owner wants what the compiled kernels alone do."""
    for name, plain in (("kv_type", "bf16"), ("precision", "fast"), ("prefill", "own")):
        if (wanted := getattr(config, name)) != plain:
            raise ConfigError(
                f'engine.{name} is "{wanted}", which the compiled kernels alone offer, and they do '
                f'not run this model: {reason}; set it to "{plain}"'
            )


def _torch(weights: Weights, reason: str) -> BackendChoice:
    with parts.wanted(f"this model ({reason})"):
        from .torch_cpu import kv_cache  # with torch, which the native runner does without
        from .torch_cpu.runner import TorchRunner, cache_dtype

    slower = f"torch runs this model, {TORCH_IS} than the compiled kernels would: {reason}"

    def build(blocks: int, context: int) -> Backend:  # noqa: ARG001  # no tables of its length
        logger.warning("%s", slower)
        return TorchRunner(weights, blocks)

    dtype = cache_dtype(weights, None)
    size, remembered = kv_cache.block_bytes(weights.architecture, dtype), 0
    if weights.architecture.deltas:
        remembered = network.state_bytes(weights.architecture)
    return BackendChoice(size, build, sequence_bytes=remembered, slower=slower)


def _transformers(model: TransformersModel, config: EngineConfig) -> BackendChoice:
    """The network is loaded here: only it knows what its state takes."""
    on_processor(model, config)
    _refuse_native_settings(config, model.reason)
    with parts.wanted(f"this model ({model.reason})"):
        from .transformers.runner import TransformersRunner
    told = slower_by_transformers(model)
    logger.warning("%s", told)
    runner = TransformersRunner(model, kept_bytes=config.kept_bytes, share=config.share_prefixes)
    return BackendChoice(
        runner.block_bytes,
        lambda blocks, context: runner,
        slower=told,
        projections=runner.network.projections(),
        weight_bytes=runner.network.bytes,
    )


def on_processor(model: TransformersModel, config: EngineConfig) -> None:
    """Raises ConfigError: the owner wants such a model on a GPU."""
    if config.device == "cuda":
        raise ConfigError(
            f'engine.device is "cuda", but transformers runs this {model.family} model on the '
            f'processor alone; set it to "cpu"'
        )


def slower_by_transformers(model: TransformersModel) -> str:
    """What the owner of a node is told of such a model."""
    return (
        f"transformers runs this {model.family} model, {TRANSFORMERS_IS} than the compiled kernels "
        f"would: {model.reason}"
    )


def _cuda(weights: Weights, config: EngineConfig) -> BackendChoice:
    """Layers that the device has no room for stay on the processor."""
    with parts.wanted('engine.device = "cuda"'):
        import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            'engine.device is "cuda", but torch finds no CUDA device here; set it to "cpu"'
        )
    from .cuda import cache
    from .cuda.runner import CudaRunner

    def placement_of(blocks: int, context: int) -> Placement:
        return cut(weights, blocks, config, context, torch.cuda.mem_get_info()[0])

    def build(blocks: int, context: int) -> Backend:
        placement = placement_of(blocks, context)
        logger.info("%s", placement)
        if placement.host:
            logger.warning(
                "%d layers stay on the processor, which is far slower: the GPU has no room for "
                "them",
                placement.host,
            )
        return CudaRunner(weights, blocks, context, cpu_layers=placement.host)

    return BackendChoice(cache.block_bytes(weights.architecture), build, check=placement_of)


def cut(weights: Weights, blocks: int, config: EngineConfig, context: int, free: int) -> Placement:
    """Where the model's layers go.

    Args:
        free: bytes of the device that nobody uses.

    Raises:
        ConfigError: see `placement.place`.
    """
    from .cuda.memory import needs

    answers = config.max_running * (1 + config.drafts)
    budget = min(config.gpu_bytes or free, free)
    return place(needs(weights, blocks, context, answers), budget, config.gpu_layers)


def select_encoder(weights: EncoderWeights, threads: int) -> Encoder:
    """The compiled encoder, or torch's where that one cannot run.

    Args:
        threads: that share a batch; 0: one a core.

    Raises:
        MissingPartError: then torch is not installed.
    """
    reason = encoder.unsupported(weights.architecture)
    if reason is None:
        return encoder.NativeEncoder(weights, threads)
    with parts.wanted(f"this embedding model ({reason})"):
        from ...models.embedding.torch_encoder import TorchEncoder  # with torch
    logger.warning("torch computes embeddings, in float32 and several times slower: %s", reason)
    return TorchEncoder(weights)


def cache_bytes(architecture: Architecture) -> int:
    """Keys and values of one token over all layers, as the compiled kernels keep them."""
    return network.block_bytes(architecture) // BLOCK_TOKENS


def sequence_bytes(architecture: Architecture) -> int:
    """What all layers remember of one sequence beside the cache."""
    return network.state_bytes(architecture)


def running_at_once(config: EngineConfig, state_bytes: int) -> int:
    """How many requests run together: where each has a state of so many bytes beside the cache, no
    more than half of the cache's memory holds.
    """
    if not state_bytes:
        return config.max_running
    return max(1, min(config.max_running, config.kv_bytes // 2 // state_bytes))


def kept_states(config: EngineConfig, state_bytes: int) -> int:
    """How many copies of states are kept, for whoever goes on from there: a quarter of the cache's
    memory, if it is known what they take.
    """
    if not config.share_prefixes:
        return 0
    return config.kv_bytes // 4 // state_bytes if state_bytes else config.max_running


def beside_blocks(config: EngineConfig, state_bytes: int) -> int:
    """Of the cache's memory, what states and their copies take."""
    if not state_bytes:
        return 0
    return state_bytes * (running_at_once(config, state_bytes) + kept_states(config, state_bytes))
