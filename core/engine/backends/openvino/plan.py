"""Which device computes prompts of which length fastest here.

Knows the lengths that are looked at, and prompts without meaning. The devices, the planner and what
each does are `PlannedRunner`'s own: what is measured is what a node with `engine.prefill =
"planned"` follows.
Always: every device does the same prompt, in turns; one that is not here is left out of the plan
and not of its words; memory is given back at the end.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np

from .... import parts
from ....config import EngineConfig
from ....errors import ConfigError
from ....hardware.plan import Planner
from ....models.weights import Weights
from ...block_pool import BLOCK_TOKENS
from ...request import GenerationRequest
from ...scheduler import Span
from ...sequence import Sequence as TokenSequence
from ..native import library
from ..native.runner import NativeRunner, supports
from .runner import PREFILL, PlannedRunner, devices_of, unplanned

ROWS: Sequence[int] = (32, 128, 512)  # tokens of a prompt
REPEATS = 3
Tell = Callable[[str], None]


def measured(weights: Weights, config: EngineConfig, tell: Tell, repeats: int = REPEATS) -> Planner:
    """Have every device do every prompt, and plan.

    Args:
        tell: hears what is measured, and what is left out and why.

    Raises:
        ConfigError: the compiled kernels do not run this model, and no other device is asked then.
    """
    with prompt_devices(weights, config, max(ROWS), tell) as runner:
        for rows in ROWS:
            tell(f"prompts of {rows} tokens")
            runner.planner.measure(PREFILL, rows, runner.ways(prompt(weights, rows)), repeats)
        return runner.planner


@contextmanager
def prompt_devices(
    weights: Weights, config: EngineConfig, longest: int, tell: Tell
) -> Iterator[PlannedRunner]:
    """All of them, for prompts of at most `longest` tokens. Raises: ConfigError: as `measured`."""
    if reason := supports(weights) or library.available():
        raise ConfigError(f"there is nothing to plan: torch alone runs this model here ({reason})")
    reason = unplanned(weights.architecture, config.kv_type)
    if parts.missing("openvino"):
        reason = "quietchoir[openvino] is not installed"
    if reason:
        tell(f"nothing of OpenVINO's devices: {reason}")
    others = {} if reason else devices_of(weights, config.threads)
    own = {"kv_type": config.kv_type, "precision": config.precision}
    runner = NativeRunner(weights, -(-longest // BLOCK_TOKENS), config.threads, **own)
    with closing(PlannedRunner(weights, runner, others)) as planned:
        yield planned


def prompt(weights: Weights, rows: int) -> Span:
    """A whole prompt that means nothing, the same each time; what a cache holds of it is of no
    matter.
    """
    tokens = np.random.default_rng(1).integers(0, weights.vocab_size, rows).tolist()
    sequence = TokenSequence(GenerationRequest(prompt=tuple(tokens)))
    sequence.block_table = list(range(-(-rows // BLOCK_TOKENS)))
    return Span(sequence, 0, rows, 1)
