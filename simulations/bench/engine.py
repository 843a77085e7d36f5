"""The suite `engine`: our engine beside llama.cpp, OpenVINO GenAI and transformers, on the same
weights.

Knows which figures are promised and what they aim at; `contest` asks the engines in turn, `peers/`
holds them.
Always: a peer runs at its best: llama.cpp reads a Q4_0 copy, whose kernels are its fastest; every
engine answers fresh prompts, greedily, with the same number of tokens. A peer that dies gets a row
that says how, and no figures at that size.
"""

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...core.config import EngineConfig
from ...core.engine.backends.select import select
from ...core.engine.backends.torch_cpu.runner import TorchRunner
from ...core.engine.block_pool import BLOCK_TOKENS
from ...core.engine.perplexity import perplexity
from ...core.errors import ConfigError
from ...core.models import weights
from ...core.models.hub import catalog
from . import random_model, speculation
from .contest import Contender, EndedError, Found, Order, in_turn
from .exactness import WINDOW, distances
from .figures import Figure, Keep, nobody
from .peers.ours import ADAPTERS
from .peers.reference import unpacked
from .stopwatch import Sample, put

SEED = 1
MODEL = "smollm2-135m-instruct"
PEERS = ("llamacpp", "openvino", "transformers")
KEYS = ("b1", "b8", "b16", "b32", "prefill")
SIZES = {"": "135M", "large": "about 1B, random weights"}
# What `ratio.best` aims at: the better of llama.cpp and OpenVINO.
BEST = {"": (1.4, 2.2, 2.0, 2.0, 1.1), "large": (1.0, 1.8, 1.5, None, 1.0)}
# Ours alone, over a long context: what keys and values are kept as, and the key's prefix.
LONG = {"long": "long.", "long_q8": "long.8bit.", "long_q4": "long.4bit."}
# What `--only` may name, with about how long it takes on two quiet cores.
PARTS = {
    "speeds": "135M beside its peers, and first tokens from cold processes; 7 min",
    "adapters": "what one costs, and eight; 1 min",
    "balanced": "what that precision costs; 1 min",
    "long": "a prompt of 8,000 tokens and an answer after it, each type of cache; 2 min",
    "exactness": "logits of each precision, of each type of cache (kv) and of llama.cpp; 2 min",
    "large": "about 1B beside the peers, and the memory's own speed; 6 min",
    "speculation": "a draft model beside about 1B; 3 min",
    "perplexity": "the serving path's, beside float32; 1 min",
}
LIBRARIES = {"llamacpp": "llama_cpp", "openvino": "openvino_genai", "transformers": "transformers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineScale:
    """How much is measured."""

    tokens: int = 64  # of an answer, at 135M
    prompt: int = 64  # before an answer
    prefill: int = 512  # of a long prompt
    long: int = 8000  # of a very long one
    exact: int = 1024  # whose logits are compared with float32
    large_tokens: int = 16  # at 1B, where prompts take most of the time, all three are smaller
    large_prompt: int = 16
    large_prefill: int = 256
    deep: int = 280  # layers of the default model's that make 1B
    guided: int = 96  # tokens of an answer with a draft model
    repeats: int = 5
    large_repeats: int = 3
    cold_repeats: int = 3
    long_repeats: int = 2
    large: random_model.Sizes = random_model.BILLION
    read_bytes: int = 1 << 30


QUICK = EngineScale(
    tokens=4,
    long=600,
    exact=64,
    large_tokens=3,
    deep=32,
    guided=8,
    repeats=1,
    large_repeats=1,
    cold_repeats=1,
    large=random_model.TINY,
    read_bytes=1 << 24,
)


def measure(
    *, quick: bool, tell: Callable[[str], None], keep: Keep = nobody, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Run everything, or the named `PARTS`.

    Args:
        quick: few tokens and a tiny second model, to see that it runs; a peer that is not installed
        is left out then. tell: hears what is being measured.
        keep: gets the report after each part, and after each repeat of the long ones.

    Raises:
        ConfigError: a peer is not installed.
    """
    parts = only or tuple(PARTS)
    scale, missing = (
        (QUICK if quick else EngineScale()),
        [name for name in PEERS if not importlib.util.find_spec(LIBRARIES[name])],
    )
    if missing and not quick:
        raise ConfigError(
            f"not installed: {', '.join(missing)}; run `make bench`, which installs the peers, or "
            f"pip install -e '.[peers]'"
        )
    report: dict[str, Any] = {
        "what": f"tokens a second of the whole engine, answers of {scale.tokens} tokens after "
                f"{scale.prompt}, prompts of "
        f"{scale.prefill}; at 1B {scale.large_tokens}, {scale.large_prompt} and "
        f"{scale.large_prefill}",
        "seed": SEED,
        "parts": list(parts),
        "repeats": {"speeds": scale.repeats, "large": scale.large_repeats,
                    "cold": scale.cold_repeats, "long": scale.long_repeats},
        "clock": "seconds on the wall, all cores",
        "memory": "VmHWM of each engine's process: its own and the mapped files' pages that it "
                  "touched, alike for all",
        "spread": {}, "ratio": {}, "large": {"ratio": {}}, "missing_peers": missing,
    }  # fmt: skip
    peers = [name for name in PEERS if name not in missing]
    with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as folder:
        model, scratch = catalog.find(MODEL), Path(folder)

        def large() -> Path:
            return random_model.write(scratch / "large.gguf", model, scale.large, seed=SEED)

        run: dict[str, Callable[[], None]] = {
            "speeds": lambda: compare(
                "", files(model, scratch, peers, report), scale, report, tell, keep
            ),
            "adapters": lambda: adapters(model, scale, report, tell),
            "balanced": lambda: balanced(model, scale, report, tell),
            "long": lambda: long_contexts(model, scale, report, tell),
            "exactness": lambda: exact_logits(model, scratch, scale, peers, report, tell),
            "large": lambda: billion(large(), scratch, peers, scale, report, tell, keep),
            "speculation": lambda: guided(model, large(), scratch, scale, report, tell),
            "perplexity": lambda: perplexities(model, quick, report, tell),
        }
        for part in PARTS:  # in their order
            if part in parts:
                run[part]()
                keep(report)
    # every engine wrote as many tokens as it was asked for, or the run would have ended
    report["exact"] = True
    return report


def files(model: Path, scratch: Path, peers: list[str], place: dict[str, Any]) -> dict[str, Path]:
    """What each engine reads; in `place`, who could not make his and why."""
    found = {"ours": model, "no_compiler": model}
    if "llamacpp" in peers:
        engine, target = contender("llamacpp", model), scratch / f"{model.stem}.Q4_0.gguf"
        try:
            engine.prepare("--repack", str(target))
            found["llamacpp"] = target
        except EndedError as error:
            place["llamacpp"] = {"ended": str(error)}
        finally:
            engine.close()
    if "openvino" in peers:
        found["openvino"] = model
    if "transformers" in peers:
        found["transformers"] = unpacked(weights.load(model), scratch / model.stem)
    return found


def billion(
    large: Path,
    scratch: Path,
    peers: list[str],
    scale: EngineScale,
    report: dict[str, Any],
    tell: Callable[[str], None],
    keep: Keep,
) -> None:
    """The larger model. Without a compiler a round of questions takes minutes at this size."""
    read = files(large, scratch, peers, report["large"])
    del read["no_compiler"]
    compare("large", read, scale, report, tell, keep)
    bandwidth(large, scale, report)


def compare(
    size: str,
    read: Mapping[str, Path],
    scale: EngineScale,
    report: dict[str, Any],
    tell: Callable[[str], None],
    keep: Keep,
) -> None:
    """One model: every engine's speeds in turn, its peak memory, its cold start, and the ratios."""
    place, prefix = (report[size], f"{size}.") if size else (report, "")
    orders = asked(size, scale)

    def after(found: Found) -> None:
        for name, samples in found.items():
            for key, sample in samples.items():
                put(report, f"{prefix}{name}.{key}", sample)
        ratios(prefix, found, report)
        keep(report)

    with ExitStack() as stack:
        engines = [contender(name, path) for name, path in read.items()]
        for engine in engines:
            stack.callback(engine.close)
        for name in ("cold_ttft_s",) if not size else ():
            tell(f"{SIZES[size]}: first token from a cold process")
            seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
            for _ in range(scale.cold_repeats):
                for engine in running(engines):
                    with engine.excused():
                        seconds[engine.name].append(engine.cold_start_s())
            for engine in running(engines):
                put(report, f"{prefix}{engine.name}.{name}", Sample(tuple(seconds[engine.name])))
            keep(report)
        for engine in running(engines):
            tell(f"{SIZES[size]}: loading {engine.name}")
            with engine.excused():
                engine.start()
        tell(f"{SIZES[size]}: {', '.join(orders)} in turn")
        in_turn(engines, orders, scale.large_repeats if size else scale.repeats, after)
        for engine in running(engines):
            with engine.excused():
                place[engine.name]["peak_mb"] = engine.ask({"what": "peak_mb"})
    for engine in engines:
        if engine.ended:
            tell(f"{SIZES[size]}: {engine.ended}")
            left_out(engine, prefix, place, report)
    keep(report)


def running(engines: Sequence[Contender]) -> list[Contender]:
    """Those that have not ended."""
    return [engine for engine in engines if not engine.ended]


def left_out(engine: Contender, prefix: str, place: dict[str, Any], report: dict[str, Any]) -> None:
    """One that died says so in the place of its figures: what it did before would be of another
    number of repeats.
    """
    place[engine.name] = {"ended": engine.ended}
    lost = [engine.name]
    if all("ended" in place.get(name, {"ended": ""}) for name in ("llamacpp", "openvino")):
        lost.append("best")
    if engine.name == "transformers":
        lost.append("no_compiler")
    for name in lost:
        place["ratio"].pop(name, None)
    gone = (f"{prefix}{engine.name}.", *(f"{prefix}ratio.{name}." for name in lost))
    report["spread"] = {
        key: spread for key, spread in report["spread"].items() if not key.startswith(gone)
    }


def asked(size: str, scale: EngineScale) -> dict[str, Order]:
    """What every engine is asked at this size, in this order."""
    tokens, prompt = (
        (scale.large_tokens, scale.large_prompt) if size else (scale.tokens, scale.prompt)
    )
    orders: dict[str, Order] = {
        f"b{count}": {"what": "decode", "batch": count, "tokens": tokens, "prompt": prompt}
        for count in (1, 8, 16, 32)
    }
    return {
        **orders,
        "prefill": {"what": "prefill", "prompt": scale.large_prefill if size else scale.prefill},
    }


def contender(name: str, model: Path) -> Contender:
    """An engine on all the cores that this process may use."""
    threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    environment = {"QUIETCHOIR_NATIVE": "off"} if name == "no_compiler" else None
    return Contender(name, model, threads, environment, peer=name in PEERS)


def ratios(prefix: str, found: Mapping[str, Mapping[str, Sample]], report: dict[str, Any]) -> None:
    """Ours over each peer, repeat by repeat; `best` is the better of llama.cpp and OpenVINO at
    that figure.
    """
    for key in KEYS:
        strong = [found[name][key] for name in ("llamacpp", "openvino") if name in found]
        best = (
            Sample(
                tuple(max(values) for values in zip(*(one.seconds for one in strong), strict=True))
            )
            if strong
            else None
        )
        rivals = {"best": best, **{name: found[name][key] for name in PEERS if name in found}}
        for name, rival in rivals.items():
            if rival is not None:
                put(report, f"{prefix}ratio.{name}.{key}", found["ours"][key].over(rival))
    if "transformers" in found and "no_compiler" in found:
        put(
            report,
            f"{prefix}ratio.no_compiler.b1",
            found["no_compiler"]["b1"].over(found["transformers"]["b1"]),
        )


def adapters(
    model: Path, scale: EngineScale, report: dict[str, Any], tell: Callable[[str], None]
) -> None:
    """What one adapter costs at batch 1, and eight different ones at batch 8, as the fraction
    lost.
    """
    tell("adapters: none, one, eight different ones")
    engine = contender("ours", model)
    orders: dict[str, Order] = {
        f"{batch}.{count}": {
            "what": "decode",
            "batch": batch,
            "tokens": scale.tokens,
            "adapters": count,
        }
        for batch, count in ((1, 0), (1, 1), (8, 0), (8, ADAPTERS))
    }
    try:
        engine.start()
        found = in_turn([engine], orders, 2 * scale.repeats)["ours"]
    finally:
        engine.close()
    for key, with_, without in (("one", "1.1", "1.0"), ("eight", f"8.{ADAPTERS}", "8.0")):
        lost = tuple(1 - share for share in found[with_].over(found[without]).seconds)
        put(report, f"adapters.{key}", Sample(lost))


def balanced(
    model: Path, scale: EngineScale, report: dict[str, Any], tell: Callable[[str], None]
) -> None:
    """What precision "balanced" costs at batch 8, as the fraction of speed lost."""
    tell("precision balanced beside fast")
    order: Order = {
        **{"what": "decode", "batch": 8},
        **{"tokens": scale.tokens, "prompt": scale.prompt},
    }
    engines = [contender(name, model) for name in ("ours", "balanced")]
    with ExitStack() as stack:
        for engine in engines:
            stack.callback(engine.close)
            engine.start()
        found = in_turn(engines, {"b8": order}, 2 * scale.repeats)
    share = found["balanced"]["b8"].over(found["ours"]["b8"])
    put(report, "balanced.b8", Sample(tuple(1 - one for one in share.seconds)))


def guided(
    model: Path,
    large: Path,
    scratch: Path,
    scale: EngineScale,
    report: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """What a draft model wins at batch 1 on prose."""
    prose = documentation(weights.load(model))
    prompts = [prose[at : at + scale.prompt] for at in range(0, 40 * scale.prompt, scale.prompt)]
    found = speculation.measure(
        model,
        scratch,
        large,
        layers=scale.deep,
        tokens=scale.guided,
        repeats=scale.repeats,
        prompts=prompts,
        tell=tell,
    )
    for name, figure in found.items():
        if isinstance(figure, Sample):
            put(report, f"speculation.{name}", figure)
        else:
            report["speculation"][name] = figure


def long_contexts(
    model: Path, scale: EngineScale, report: dict[str, Any], tell: Callable[[str], None]
) -> None:
    """A very long prompt and answers after it, ours by each type of cache; the prompt's speed as a
    share of that of a prompt of `scale.prefill`, in the same repeats.
    """
    tell(f"a prompt of {scale.long} tokens and an answer after it, each type of cache")
    orders: dict[str, Order] = {
        "prefill": {"what": "prefill", "prompt": scale.prefill},
        "prefill_8k": {"what": "prefill", "prompt": scale.long},
        # after the prompt that was read a moment ago, which stands in the cache
        "decode_8k": {"what": "answer", "tokens": scale.tokens, "prompt": scale.long},
    }
    with ExitStack() as stack:
        engines = [contender(name, model) for name in LONG]
        for engine in engines:
            stack.callback(engine.close)
            engine.start()
        found = in_turn(engines, orders, scale.long_repeats)
    for name, prefix in LONG.items():
        own = found[name]
        for key in ("prefill_8k", "decode_8k"):
            put(report, f"{prefix}{key}", own[key])
        put(report, f"{prefix}share", own["prefill_8k"].over(own["prefill"]))


def exact_logits(
    model: Path,
    scratch: Path,
    scale: EngineScale,
    peers: list[str],
    report: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """`exactness` and `kv`, over Python's own documentation; llama.cpp reads the same file."""
    tell("logits of each precision, of each type of cache and of llama.cpp beside float32")
    loaded = weights.load(model)
    tokens = documentation(loaded)[: scale.exact]
    beside = None
    if "llamacpp" in peers:
        said, beside = scratch / "tokens.json", scratch / "logits.npy"
        said.write_text(json.dumps({"window": WINDOW, "tokens": tokens}))
        engine = contender("llamacpp", model)
        try:
            engine.prepare("--logits", str(said), str(beside))
        except EndedError:
            beside = None
        finally:
            engine.close()
    report |= distances(loaded, tokens, beside)


def documentation(loaded: weights.Weights) -> list[int]:
    """Tokens of a text that every machine with Python has."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    return loaded.tokenizer.encode(text[:200_000])


def bandwidth(large: Path, scale: EngineScale, report: dict[str, Any]) -> None:
    """How near batch 1 at 1B comes to reading every weight once a token at the memory's speed,
    which is measured here.
    """
    memory = torch.ones(scale.read_bytes // 4)
    speeds = []
    for _ in range(scale.repeats + 1):
        before = time.perf_counter()
        memory.sum()
        speeds.append(scale.read_bytes / (time.perf_counter() - before))
    report["memory_read_gb_s"] = max(speeds) / 1e9
    read = sum(
        blocks.raw.numel()
        for name, blocks in weights.load(large).tensors.items()
        if name != "model.embed_tokens.weight"
    )
    report["large"]["of_bandwidth_b1"] = report["large"]["ours"]["b1"] * read / max(speeds)


def perplexities(
    model: Path, quick: bool, report: dict[str, Any], tell: Callable[[str], None]
) -> None:
    """Perplexity on Python's own documentation: the serving path, float32 over the same blocks,
    and percent between them.
    """
    tell("perplexity of the fast path and of float32 over the same blocks")
    loaded = weights.load(model)
    tokens = documentation(loaded)[: 256 if quick else 4608]
    blocks = 512 // BLOCK_TOKENS
    fast = perplexity(select(loaded, EngineConfig()).build(blocks, 512), tokens)
    exact = perplexity(TorchRunner(loaded, blocks, compute=torch.float32), tokens)
    report["perplexity"] = {
        **{"serving": fast, "float32": exact},
        "worse_percent": 100 * (fast / exact - 1),
    }


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    for size, label in SIZES.items():
        prefix = f"{size}." if size else ""
        placed = report[size] if size else report
        order = ("ours", "llamacpp", "openvino", "transformers", "no_compiler")
        here = [name for name in order if name in placed and "ended" not in placed[name]]
        for key in KEYS:
            for index, name in enumerate(here):
                yield Figure(
                    f"{prefix}{name}.{key}",
                    "tokens/s",
                    f"{label}, {key}: {name}" if not index else f"  {name}",
                )
        for name in order:
            if "ended" in placed.get(name, {}):
                yield Figure(f"{prefix}{name}.ended", "", f"{label}: {name}")
        for name in here:
            if not size:
                yield Figure(
                    f"{name}.cold_ttft_s",
                    "s",
                    f"cold first token: {name}",
                    at_most=3 if name == "ours" else None,
                )
            rival = report.get("llamacpp", {}).get("peak_mb")
            peak = rival if not size and name == "ours" else None
            yield Figure(
                f"{prefix}{name}.peak_mb", "MB", f"{label}, peak memory: {name}", at_most=peak
            )
        for rival, aims in (
            ("best", BEST[size]),
            ("llamacpp", (None,) * len(KEYS)),
            ("openvino", (None,) * len(KEYS)),
            ("transformers", (6, 6, 6, 6, None)),
        ):
            if rival in placed["ratio"]:
                for key, aim in zip(KEYS, aims, strict=True):
                    yield Figure(
                        f"{prefix}ratio.{rival}.{key}",
                        "×",
                        f"{label}, ours over {rival}, {key}",
                        at_least=aim,
                    )
    if "no_compiler" in report["ratio"]:
        yield Figure(
            "ratio.no_compiler.b1", "×", "without a compiler over transformers, b1", at_least=3
        )
    if "memory_read_gb_s" in report:
        yield Figure(
            "large.of_bandwidth_b1",
            "",
            "about 1B, b1: share of what the memory's speed allows",
            at_least=0.7,
        )
        yield Figure("memory_read_gb_s", "GB/s", "  memory read here")
    yield from long_figures(report)
    yield from exact_figures(report)
    if "adapters" in report:
        yield Figure("adapters.one", "", "one adapter at b1: share of speed lost", at_most=0.05)
        yield Figure("adapters.eight", "", f"{ADAPTERS} different adapters at b8", at_most=0.15)
    if "balanced" in report:
        yield Figure("balanced.b8", "", "precision balanced at b8: speed lost", at_most=0.03)
    if "speculation" in report:
        yield from speculation_figures()
    if "perplexity" in report:
        yield Figure(
            "perplexity.worse_percent", "%", "perplexity over that of float32", at_most=0.5
        )


def long_figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table about very long prompts."""
    for name, prefix in LONG.items():
        if "prefill_8k" not in walked(report, prefix):
            continue
        own = f"8k, cache of {name.partition('_')[2] or 'bf16'}"
        yield Figure(f"{prefix}prefill_8k", "tokens/s", f"{own}: prompt")
        yield Figure(f"{prefix}decode_8k", "tokens/s", "  answer after it")
        aim = 0.7 if name == "long" else None
        yield Figure(f"{prefix}share", "×", "  prompt, of its speed at 512", at_least=aim)


def speculation_figures() -> Iterator[Figure]:
    """Rows of the table about a draft model."""
    told = "about 1B that says what the default model says"
    yield Figure("speculation.b1", "×", f"{told}: with a draft model, greedily", at_least=1.5)
    yield Figure("speculation.b1_right", "", "  share of guesses that were right")
    yield Figure("speculation.sampled", "×", "  drawn at temperature 0.8")
    yield Figure("speculation.sampled_right", "", "  share of guesses that were right")
    yield Figure("speculation.stranger", "×", "  with random weights, which agree with no guess")


def exact_figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table about logits."""
    aims: dict[str, tuple[float | None, float | None]] = {"balanced": (0.001, 98.5)}
    for part, own in (("exactness", "precision"), ("kv", "cache, all else exact")):
        for name in report.get(part, {}):
            kl, top1 = aims.get(name, (None, None))
            place = f"{part}.{name}"
            yield Figure(f"{place}.kl", "nats", f"{own} {name}: KL from float32", at_most=kl)
            yield Figure(f"{place}.top1", "%", "  same likeliest token", at_least=top1)
            yield Figure(f"{place}.ppl", "", "  perplexity")


def walked(report: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The part of a report that a prefix of dotted names stands for; empty where it is not."""
    for name in prefix.split(".")[:-1]:
        report = report.get(name, {})
    return report
