"""What a draft model wins, and what it costs where it guesses wrong.

Knows engines and answers. Always: both arms answer the same prompts with the same number of tokens,
in turn; their texts are compared, and one that differs ends the run.
Not covered: a trained large model beside its trained small kin. None is at hand without a hub, so
the large one is the default model with further layers that add nothing: it says what that model
says, at the cost of its size, and the small one is a coarser copy of the same. How often that copy
guesses right stands beside the figure; real pairs are right less often.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ...core.config import EngineConfig
from ...core.engine.engine import Engine
from ...core.engine.request import GenerationRequest
from ...core.engine.sampling.params import SamplingParams
from ...core.errors import QuietchoirError
from ...core.models import to_gguf, weights
from ...core.models.quant.tensor import plain
from .random_model import copy_tokenizer
from .stopwatch import Sample

ADDS = ("attn_output", "ffn_down")  # matrices by which a layer adds to the stream
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 1}


def deepened(path: Path, like: Path, layers: int) -> Path:
    """A copy of a Llama file with so many layers; those behind its own add zeros."""
    reader = gguf.GGUFReader(like)
    own = int(reader.fields["llama.block_count"].contents())
    writer = gguf.GGUFWriter(path, "llama")
    copy_tokenizer(reader, writer)
    for name, field in reader.fields.items():
        if name.startswith("llama."):
            value = layers if name == "llama.block_count" else field.contents()
            writer.add_key_value(name, value, field.types[0])
    first = [one for one in reader.tensors if one.name.startswith("blk.0.")]
    for one in reader.tensors:
        writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
    for layer in range(own, layers):
        for one in first:
            name = one.name.replace("blk.0.", f"blk.{layer}.", 1)
            adds = any(part in name for part in ADDS)
            data = np.zeros_like(one.data) if adds else one.data
            writer.add_tensor(name, data, raw_dtype=one.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def coarser(like: Path, path: Path) -> None:
    """A copy whose matrices are quantised once more, to Q4_0."""
    loaded = weights.load(like)
    wide = {id(one): plain(one.dequantize()) for one in loaded.tensors.values()}
    tensors = {name: wide[id(one)] for name, one in loaded.tensors.items()}
    to_gguf.save(dataclasses.replace(loaded, tensors=tensors), path, "Q4_0")


def measure(
    model: Path,
    scratch: Path,
    stranger: Path,
    *,
    layers: int,
    tokens: int,
    repeats: int,
    prompts: Sequence[Sequence[int]],
    tell: Callable[[str], None],
) -> dict[str, Sample | float]:
    """Figures by name: how many times as fast with a draft model as without, greedily (`b1`) and
    drawn (`sampled`), the share of guesses that were right, and the same where the large model is
    another one that agrees with no guess (`stranger`).

    Args:
        stranger: a model file of the same vocabulary and random weights.
        layers: of the large model.
        tokens: of an answer.
    """
    tell(f"a draft model beside {layers} layers, {tokens} tokens an answer")
    large, small = scratch / "deep.gguf", scratch / "draft.gguf"
    deepened(large, model, layers)
    coarser(model, small)
    found: dict[str, Sample | float] = {}
    for name, target, params in (
        ("b1", large, {}),
        ("sampled", large, SAMPLED),
        ("stranger", stranger, {}),
    ):
        ratio, right = compared(target, small, tokens, repeats, prompts, params)
        found[name] = ratio
        if name != "stranger":
            found[f"{name}_right"] = right
    large.unlink()
    return found


def compared(
    target: Path,
    draft: Path,
    tokens: int,
    repeats: int,
    prompts: Sequence[Sequence[int]],
    params: dict[str, Any],
) -> tuple[Sample, float]:
    """How many times as fast with the draft model, and the share of its guesses that were right.

    Raises:
        QuietchoirError: the two arms say different things.
    """
    loaded, small = weights.load(target), weights.load(draft)
    for one in (loaded, small):
        one.tokenizer.stop_tokens = frozenset()
    config = EngineConfig(context=512, share_prefixes=False)
    alone, guided = Engine(loaded, config), Engine(loaded, config, draft=small)
    seconds: list[tuple[float, float]] = []
    for repeat in range(repeats + 1):
        prompt = tuple(prompts[repeat % len(prompts)])
        own = [timed(engine, prompt, tokens, params) for engine in (alone, guided)]
        if own[0][1] != own[1][1]:
            raise QuietchoirError("an answer with guesses is another than without; report it")
        if repeat:
            seconds.append((own[0][0], own[1][0]))
    stats = guided.stats()
    without, with_ = (Sample(tuple(each)) for each in zip(*seconds, strict=True))
    return without.over(with_), stats.accepted / max(stats.drafted, 1)


def timed(
    engine: Engine, prompt: tuple[int, ...], tokens: int, params: dict[str, Any]
) -> tuple[float, str]:
    """Seconds of an answer from its first token on, and its text."""
    asked = SamplingParams(max_tokens=tokens, **params)
    generation = engine.submit(GenerationRequest(prompt=prompt, sampling_params=asked))
    while generation.completion_tokens == 0:
        engine.step()
    begun = time.perf_counter()
    while generation.finish_reason is None:
        engine.step()
    return time.perf_counter() - begun, generation.text()
