"""How a model's makers recommend to draw its answers.

Knows the keys of a GGUF file and of a folder's generation_config.json. Knows nothing of samplers.
Always: what stands there and is no such number, or out of range, is told and left out; a model is
not refused for it.
Source: llama.cpp's `general.sampling.*` (gguf-py's constants); transformers' `GenerationConfig`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import log
from ..config import SAMPLING_RANGES, SamplingConfig
from .files.gguf import GgufFile

GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
# For a model whose makers say nothing: llama.cpp's defaults, and the penalty under which none of 20
# everyday questions ended in a loop (`quietchoir bench context`).
UNSAID = SamplingConfig(
    temperature=0.8, top_p=0.95, top_k=40, min_p=0.05, repetition_penalty=1.1
)  # fmt: skip
DIGITS = 6  # float32 holds no more
logger = log.get("models")


def from_gguf(file: GgufFile) -> SamplingConfig:
    """What a GGUF file says; empty where it says nothing."""
    return usable(file.metadata, file.path, GGUF_KEYS)


def from_hf(path: Path, found: Mapping[str, Any]) -> SamplingConfig:
    """What a generation_config.json says; empty where it says nothing."""
    if found.get("do_sample") is False:
        return SamplingConfig(temperature=0.0)
    return usable(found, path, {name: name for name in GGUF_KEYS})


def usable(found: Mapping[str, Any], path: Path, keys: Mapping[str, str]) -> SamplingConfig:
    """The numbers among `found`, by our names for them."""
    said: dict[str, float | int] = {}
    for name, key in keys.items():
        value = found.get(key)
        if value is None:
            continue
        low, high = SAMPLING_RANGES[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = name == "top_k"
        if name == "top_k" and number and value < 0:
            value = 0  # all tokens, as llama.cpp and vLLM write it
        if not number or not math.isfinite(value) or not low <= value <= high:
            logger.warning(
                "%s: %s is %.40r, expected a number from %g to %g; it is left out",
                path,
                key,
                value,
                low,
                high,
            )
            continue
        said[name] = int(value) if whole else round(float(value), DIGITS)
    return SamplingConfig(**said)  # type: ignore[arg-type]  # fields by their names


def to_gguf(sampling: SamplingConfig) -> dict[str, float | int]:
    """The keys that a GGUF file says it by."""
    said = sampling.given()
    return {key: said[name] for name, key in GGUF_KEYS.items() if name in said}
