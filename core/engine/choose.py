"""Which runner serves a model.

Knows what each runner says of itself. Always: there is one; torch's takes whatever no other does, and who is given the
slower one finds the reason in the log.
"""

from .. import log
from ..config import EngineConfig
from ..errors import ConfigError
from ..models.weights import Weights
from .native.runner import NativeRunner, supports
from .runner import LanguageModel, Runner

logger = log.get("engine")


def runner_for(weights: Weights, blocks: int, config: EngineConfig, context: int) -> LanguageModel:
    """The runner that the owner asked for: on the GPU, or the fastest for these weights on this processor.

    Args:
        blocks: of the cache.
        context: the longest sequence, tokens.

    Raises:
        ConfigError: there is no GPU, this model cannot run on one, or `QUIETCHOIR_NATIVE` asks for what does not exist.
    """
    if config.device == "cuda":
        return cuda_runner(weights, blocks, context)
    return processor_runner(weights, blocks, config.threads)


def cuda_runner(weights: Weights, blocks: int, context: int) -> LanguageModel:
    """See `cuda.runner.CudaRunner`.

    Raises:
        ConfigError: no GPU here, or none that can run this model.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError('engine.device is "cuda", but torch finds no CUDA device here; set it to "cpu"')
    from .cuda.runner import CudaRunner

    return CudaRunner(weights, blocks, context)


def processor_runner(weights: Weights, blocks: int, threads: int = 0) -> LanguageModel:
    """The fastest runner for these weights on this processor.

    Args:
        threads: that share a step; 0: one for each core that this process may use.

    Raises:
        ConfigError: `QUIETCHOIR_NATIVE` asks for what does not exist.
    """
    if reason := supports(weights):
        logger.warning("the torch runner serves, which is slower: %s", reason)
        return Runner(weights, blocks)
    runner = NativeRunner(weights, blocks, threads)
    logger.info("the native runner serves, with %s", runner.instruction_set)
    return runner
