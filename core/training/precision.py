"""Which number format this machine trains in.

Knows CPU features and two formats. Knows nothing of models.
Always: bfloat16 is chosen only where the processor multiplies it in hardware and a trial, forward
and backward, agrees with float32; otherwise float32.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .. import log
from ..errors import ConfigError

NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = 0.05  # relative error of a product in bfloat16; its rounding alone gives about 0.005
SLOWEST = 3.0  # a bfloat16 trial this many times slower than float32 runs in some fallback
# Trials of each format, in turns; the first also builds the kernel, and the best counts. While
# bfloat16 seems slow there are more: whatever else runs here can only make a trial slower.
REPEATS, MOST_REPEATS = 5, 25
AGAIN_S = 600.0  # a machine that was too slow is asked again after this, for the next trainer


def resolve_dtype(precision: str) -> torch.dtype:
    """The format for `precision`, "auto", "float32" or "bfloat16".

    Raises:
        ConfigError: another word.
    """
    if precision == "auto":
        return torch.bfloat16 if PROBE.answer() else torch.float32
    if precision not in NAMES:
        raise ConfigError(f"precision {precision!r} is unknown; choose auto, {' or '.join(NAMES)}")
    return NAMES[precision]


def dtype_name(dtype: torch.dtype) -> str:
    """What results call it: "float32" or "bfloat16"."""
    return next(key for key, value in NAMES.items() if value == dtype)


class Probe:
    """Whether bfloat16 is worth it here, as far as it is known. Args: clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.works, self.until = clock, False, 0.0

    def answer(self) -> bool:
        """Hardware support, then trials of a few milliseconds. A yes, and a no for what it
        computes, hold for the whole run; a no for its speed for `AGAIN_S`.
        """
        if self.clock() >= self.until:
            self.works, again = self.found()
            self.until = self.clock() + AGAIN_S if again else math.inf
        return self.works

    def found(self) -> tuple[bool, bool]:
        """Does it work, and is that worth asking again?"""
        if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            return False, False
        error, ratio = compared()
        works = error < TOLERANCE and ratio < SLOWEST
        if not works:
            log.get("training").info(
                "bfloat16 is not used: error %.3f, %.1f times float32's processor time",
                error,
                ratio,
            )
        return works, error < TOLERANCE and not works


PROBE = Probe()


def compared() -> tuple[float, float]:
    """Relative error of bfloat16's trial, and its processor time over float32's, best of each.

    One thread: the time that others of this process take, or wait in, is not on its clock.
    """
    threads, best = torch.get_num_threads(), {torch.float32: math.inf, torch.bfloat16: math.inf}
    values = {}
    torch.set_num_threads(1)
    try:
        for number in range(MOST_REPEATS):
            for dtype in best:
                values[dtype], seconds = trial(dtype)
                best[dtype] = min(best[dtype], seconds)
            ratio = best[torch.bfloat16] / best[torch.float32]
            if number + 1 >= REPEATS and ratio < SLOWEST:
                break
    finally:
        torch.set_num_threads(threads)
    exact = values[torch.float32]
    return float((values[torch.bfloat16] - exact).norm() / exact.norm()), ratio


def trial(dtype: torch.dtype) -> tuple[Tensor, float]:
    """Output and input gradient of one small layer, flattened in float32, and the time in seconds
    of this thread: the clock on the wall counts whoever else wants the processor.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(128, 256, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(512, 256, generator=draw).to(dtype) / 16
    start = time.thread_time()
    out = functional.silu(functional.linear(x, weight))
    (gradient,) = torch.autograd.grad(out.float().square().sum(), x)
    seconds = time.thread_time() - start
    return torch.cat([out.detach().float().flatten(), gradient.float().flatten()]), seconds
