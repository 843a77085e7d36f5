"""Which number format this machine trains in.

Knows CPU features and two formats. Knows nothing of models.
Always: bfloat16 is chosen only where the processor multiplies it in hardware and a trial, forward
and backward, agrees with float32; otherwise float32.
"""

import time
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from .. import log
from ..errors import ConfigError

NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = 0.05  # relative error of a product in bfloat16; its rounding alone gives about 0.005
SLOWEST = 3.0  # a bfloat16 trial this many times slower than float32 runs in some fallback
REPEATS = 5  # the first also builds the kernel; the best of them counts


def resolve_dtype(precision: str) -> torch.dtype:
    """The format for `precision`, "auto", "float32" or "bfloat16".

    Raises:
        ConfigError: another word.
    """
    if precision == "auto":
        return torch.bfloat16 if bfloat16_works() else torch.float32
    if precision not in NAMES:
        raise ConfigError(f"precision {precision!r} is unknown; choose auto, {' or '.join(NAMES)}")
    return NAMES[precision]


def dtype_name(dtype: torch.dtype) -> str:
    """What results call it: "float32" or "bfloat16"."""
    return next(key for key, value in NAMES.items() if value == dtype)


@cache
def bfloat16_works() -> bool:
    """Hardware support, then a trial of a few milliseconds; the answer holds for the whole run."""
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    exact, seconds = trial(torch.float32)
    rounded, rounded_seconds = trial(torch.bfloat16)
    error = float((rounded - exact).norm() / exact.norm())
    works = error < TOLERANCE and rounded_seconds < SLOWEST * seconds
    if not works:
        log.get("training").info(
            "bfloat16 is not used: error %.3f, %.1f times float32's processor time",
            error,
            rounded_seconds / seconds,
        )
    return works


def trial(dtype: torch.dtype) -> tuple[Tensor, float]:
    """Output and input gradient of one small layer, flattened in float32, and the best of some
    times in seconds of this thread: the clock on the wall counts whoever else wants the processor.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(128, 256, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(512, 256, generator=draw).to(dtype) / 16
    best = float("inf")
    for _ in range(REPEATS):
        start = time.thread_time()
        out = functional.silu(functional.linear(x, weight))
        (gradient,) = torch.autograd.grad(out.float().square().sum(), x)
        best = min(best, time.thread_time() - start)
    return torch.cat([out.detach().float().flatten(), gradient.float().flatten()]), best
