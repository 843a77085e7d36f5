"""Which runner serves a model.

Knows what each runner says of itself. Always: there is one; torch's takes whatever no other does,
and who is given the slower one finds the reason in the log.
"""

from ... import log, parts
from ...config import EngineConfig
from ...errors import ConfigError
from ...hardware.placement import Placement, place
from ...models.weights import Weights
from ..languagemodel import LanguageModel, block_bytes, exact
from .native.runner import NativeRunner, supports

logger = log.get("engine")


def runner_for(weights: Weights, blocks: int, config: EngineConfig, context: int) -> LanguageModel:
    """The runner that the owner asked for: on the GPU, or the fastest for these weights on this
    processor.

    Args:
        blocks: of the cache.
        context: the longest sequence, tokens.

    Raises:
        ConfigError: there is no GPU, this model cannot run on one or does not fit as the owner
            wants it, or `QUIETCHOIR_NATIVE` asks for what does not exist.
    """
    if config.device == "cuda":
        return cuda_runner(weights, blocks, config, context)
    return processor_runner(weights, blocks, config.threads)


def cuda_runner(weights: Weights, blocks: int, config: EngineConfig, context: int) -> LanguageModel:
    """See `cuda.runner.CudaRunner`; layers that the device has no room for stay on the processor.

    Raises:
        ConfigError: no GPU here, none that can run this model, or too little memory there for what
        is asked.
    """
    with parts.wanted('engine.device = "cuda"'):
        import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            'engine.device is "cuda", but torch finds no CUDA device here; set it to "cpu"'
        )
    from .cuda.runner import CudaRunner

    placement = cut(weights, blocks, config, context, torch.cuda.mem_get_info()[0])
    logger.info("%s", placement)
    if placement.host:
        logger.warning(
            "%d layers stay on the processor, which is far slower: the GPU has no room for them",
            placement.host,
        )
    return CudaRunner(weights, blocks, context, host_layers=placement.host)


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


def cache_block_bytes(weights: Weights, config: EngineConfig) -> int:
    """What one block of keys and values takes in the runner that the owner asked for."""
    if config.device == "cuda":
        from .cuda import cache

        return cache.block_bytes(weights.architecture)
    whole = exact(weights) and supports(weights) is not None  # the native cache is bfloat16 always
    return block_bytes(weights.architecture, 4 if whole else 2)


def processor_runner(weights: Weights, blocks: int, threads: int = 0) -> LanguageModel:
    """The fastest runner for these weights on this processor.

    Args:
        threads: that share a step; 0: one for each core that this process may use.

    Raises:
        ConfigError: `QUIETCHOIR_NATIVE` asks for what does not exist. MissingPartError: only
            torch's runner can take these weights, and torch is not installed.
    """
    if reason := supports(weights):
        with parts.wanted(f"this model ({reason})"):
            from .torch_cpu.runner import Runner  # with torch, which the native runner does without

        logger.warning("the torch runner serves, which is slower: %s", reason)
        return Runner(weights, blocks)
    runner = NativeRunner(weights, blocks, threads)
    logger.info("the native runner serves, with %s", runner.instruction_set)
    return runner
