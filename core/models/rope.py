"""How a model's rope is stretched beyond the context it was first trained for.

Knows the rules that files name. Knows nothing of files or layers.
Always: a rule that is not here is refused; one that changes with the length of the text (Phi-3's,
the dynamic one) is kept as it is for short texts, and the context is cut to where it would change.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from .architecture import LIMITS

# The settings that a table may have, under every rule and under each; the length is read by rules
# that need it. What `from_hf.py` reads of the table itself (the base, and whether whole heads
# turn) is among them.
ANY_RULE = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (LONG := ("factor", "attention_factor", "short_factor", "long_factor")),
    "su": LONG,
    "dynamic": ("factor",),
    "yarn": (
        *("factor", "attention_factor", "beta_fast", "beta_slow", "truncate"),
        *("mscale", "mscale_all_dim"),
    ),
}
BETA_FAST, BETA_SLOW = 32.0, 1.0  # turns within the first context, where a file does not say


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """What a rule does to frequencies; the fields of `Architecture` of these names."""

    rope_factors: tuple[float, ...] = ()
    rope_magnitude: float = 1.0
    context: int = 0  # the longest text it holds for; 0 = as long as the file says


def rope_scaling(rule: Mapping[str, Any], head_dim: int, theta: float, context: int) -> RopeScaling:
    """What `rule` (Hugging Face's `rope_parameters`) means.

    Raises:
        ValueError: a rule we do not know, or one whose numbers make no sense.
    """
    if not 0 < head_dim <= LIMITS["head_dim"]:  # before anything is made of that size
        raise ValueError(f"heads have {head_dim} numbers")
    kind = (
        rule.get("rope_type")
        or rule.get("type")
        or ("linear" if rule.get("factor") is not None else "default")
    )
    if not isinstance(kind, str) or kind not in KEYS:
        raise ValueError(f"rope is scaled by the rule {kind!r:.20}")
    unknown = sorted(
        key
        for key, value in rule.items()
        if value is not None and key not in (*ANY_RULE, *KEYS[kind])
    )
    if unknown:
        raise ValueError(f"rope's rule {kind!r} has the setting {unknown[0]!r:.60}")
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling((number(rule, "factor"),) * (head_dim // 2))
    if kind == "llama3":
        return RopeScaling(llama3_factors(rule, head_dim, theta))
    if kind == "dynamic":  # for texts that are no longer than the first context, plain
        number(rule, "factor")
        return RopeScaling(context=context)
    if kind == "yarn":
        return yarn(rule, head_dim, theta)
    return longrope(rule, head_dim, context)


def llama3_factors(rule: Mapping[str, Any], head_dim: int, theta: float) -> tuple[float, ...]:
    """Divisors by pair: 1 for fast pairs, `factor` for slow ones, and a blend between.

    Source: Llama 3.1's published inference code, as `transformers` computes it, in float32.
    """
    factor, low, high = (
        number(rule, "factor"),
        number(rule, "low_freq_factor"),
        number(rule, "high_freq_factor"),
    )
    original = number(rule, "original_max_position_embeddings")
    if high <= low:
        raise ValueError(f"rope's high_freq_factor {high} is not above low_freq_factor {low}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.power(theta, exponents, dtype=np.float64).astype(np.float32)
    waves = np.float32(2 * math.pi) / frequencies
    blend = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
    scaled = np.where(waves > original / low, frequencies / np.float32(factor), frequencies)
    between = ~(waves < original / high) & ~(waves > original / low)
    scaled = np.where(
        between, (1 - blend) * frequencies / np.float32(factor) + blend * frequencies, scaled
    )
    return tuple((frequencies / scaled).tolist())


def yarn(rule: Mapping[str, Any], head_dim: int, theta: float) -> RopeScaling:
    """Divisors by pair: 1 for pairs that turn often within the first context, `factor` for those
    that turn hardly, a straight line between; and larger cosines.

    Source: Peng et al. 2023 (YaRN), section 3, as `transformers` computes it.
    """
    factor, original = number(rule, "factor"), number(rule, "original_max_position_embeddings")
    turns = [
        number({"beta_fast": BETA_FAST, "beta_slow": BETA_SLOW} | said(rule), key)
        for key in ("beta_fast", "beta_slow")
    ]
    if theta <= 1:
        raise ValueError(f"rope turns with base {theta}")
    first, last = (
        head_dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta))
        for beta in turns
    )
    if rule.get("truncate") is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    pairs = np.arange(head_dim // 2, dtype=np.float64)
    slow = np.clip((pairs - first) / (last - first or 0.001), 0, 1)
    factors = 1 / (slow / factor + 1 - slow)
    return RopeScaling(tuple(factors.tolist()), yarn_magnitude(rule, factor))


def yarn_magnitude(rule: Mapping[str, Any], factor: float) -> float:
    """What cosines and sines are multiplied by."""
    if rule.get("attention_factor") is not None:
        return number(rule, "attention_factor")

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if rule.get("mscale") and rule.get("mscale_all_dim"):
        return grown(number(rule, "mscale")) / grown(number(rule, "mscale_all_dim"))
    return grown(1.0)


def said(rule: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule says: null and 0 say nothing."""
    return {key: value for key, value in rule.items() if value}


def longrope(rule: Mapping[str, Any], head_dim: int, context: int) -> RopeScaling:
    """Phi-3's rule, its short half: one divisor a pair, and larger cosines.

    Source: Ding et al. 2024 (LongRoPE), as `transformers` computes it.
    """
    original, short = number(rule, "original_max_position_embeddings"), rule.get("short_factor")
    if (
        not isinstance(short, list)
        or len(short) != head_dim // 2
        or not all(is_factor(one) for one in short)
    ):
        raise ValueError(f"rope's short_factor is not a list of {head_dim // 2} numbers")
    factor = number(rule, "factor") if rule.get("factor") is not None else context / original
    magnitude = (
        number(rule, "attention_factor")
        if rule.get("attention_factor") is not None
        else longrope_magnitude(factor, original)
    )
    return RopeScaling(tuple(map(float, short)), magnitude, int(original))


def longrope_magnitude(factor: float, original: float) -> float:
    """What cosines and sines are multiplied by where the file does not say."""
    return (
        math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    )


def number(rule: Mapping[str, Any], key: str) -> float:
    """A positive finite number of a rule."""
    found = rule.get(key)
    if not is_factor(found):
        raise ValueError(f"rope's {key} is {found!r:.20}, expected a positive number")
    return float(found)


def is_factor(found: object) -> TypeGuard[float]:
    """Whether this is a positive finite number; whole ones of any length may come from JSON."""
    return isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < 1e300
