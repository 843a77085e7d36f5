"""The suite `compress`: what fewer bits save and cost, beside llama.cpp's quantiser on the same
importance data; and what a model takes of a machine.

Knows the ways to make a model smaller, each a file that is measured as it would be served. Knows
nothing of how students are distilled or work is placed: files beside this one do that, where they
are there.
Always: perplexity is float32's over the blocks of each file, on a text that no calibration saw;
arms that are compared have files of one size, or ours is the smaller.

The only trained weights that a package carries are 4-bit blocks (Q4_1). They are decoded, and each
channel between two matrices is scaled by a number of its own, which changes no logit and leaves no
block on the grid that it came from: this is the 16-bit model here, and its perplexity is the bar.
"""

import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...core.hardware import discovery
from ...core.hardware.power import EnergyMeter
from ...core.models import to_gguf, weights
from ...core.models.hub import catalog
from ...core.models.quant.tensor import plain
from ...core.models.quantization import quantizer
from ...core.models.quantization.calibration import WINDOW, pieces
from ...core.models.weights import Weights
from ...core.training.quantization import qat, quality
from . import random_model
from .contest import Order, in_turn
from .engine import LIBRARIES, MODEL, SEED, contender
from .figures import Figure, Keep, nobody
from .stopwatch import put

# Suites of their own that add to this one: a function `rows(report, quick)` in each.
BESIDE = ("compress_distill", "compress_plan")
SIZES = {"large": random_model.BILLION, "13b": random_model.THIRTEEN}
ARMS = {
    "fp16": "16 bits",
    "rounded": "4 bits, plain rounding (llama.cpp's, without importance data)",
    "llamacpp": "4 bits, llama.cpp with importance data",
    "calibrated": "4 bits, error feedback, no larger than llama.cpp's",
    "mixed": "types by measured sensitivity, no larger than llama.cpp's",
    "qat": "4 bits, trained, no larger than llama.cpp's",
    "llamacpp_q4_k": "Q4_K_S by llama.cpp with importance data",
    "mixed_q4_k": "types by measured sensitivity, no larger than that",
}
PARAGRAPH = 400  # letters at least of what counts as prose in a package's description


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressScale:
    """How much is measured."""

    calibration: int = 8192  # tokens
    training: int = 65536  # of them, to draw batches from
    text: int = 2048  # whose perplexity is compared
    steps: int = 40
    tokens: int = 48  # of an answer whose speed is compared
    prompt: int = 32
    repeats: int = 3
    sizes: tuple[str, ...] = ("large", "13b")


QUICK = CompressScale(
    calibration=128, training=128, text=64, steps=2, tokens=3, prompt=8, repeats=1, sizes=()
)


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep = nobody) -> dict[str, Any]:
    """Run everything; `keep` gets the report after each part.

    Raises:
        ConfigError: llama.cpp, the peer, is not installed.
    """
    scale = QUICK if quick else CompressScale()
    if not (peer := importlib.util.find_spec(LIBRARIES["llamacpp"]) is not None) and not quick:
        raise ConfigError(
            "llama.cpp is not installed; run `make bench`, which installs the peers, or "
            "pip install -e '.[peers]'"
        )
    report: dict[str, Any] = {
        "what": f"SmolLM2-135M (its 4-bit blocks decoded, channels scaled) to 4 bits; calibrated "
        f"on {scale.calibration} tokens of installed packages' descriptions, perplexity on "
        f"{scale.text} of Python's language reference",
        "seed": SEED,
        "repeats": {"speeds": scale.repeats},
        "clock": "seconds on the wall, all cores",
        **{"spread": {}, "perplexity": {}, "mb": {}, "seconds": {}, "deployment": {}, "rows": []},
        "exact": True,
    }
    with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as scratch:
        bench = CompressBench(Path(scratch), scale, report, tell, quick)
        bench.sixteen_bits()
        keep(report)
        bench.rounded(peer=peer)
        keep(report)
        bench.calibrated()
        keep(report)
        bench.trained()
        keep(report)
        if peer:
            bench.read_by_llamacpp()
        bench.speeds()
        keep(report)
    for size in scale.sizes:
        with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as scratch:
            random_weights(size, Path(scratch), scale, report, tell)
        keep(report)
    for name in BESIDE:
        if importlib.util.find_spec(f".{name}", __package__):
            tell(f"{name}: its own part")
            found = import_module(f".{name}", __package__).rows(report, quick)
            report["rows"] += [asdict(row) for row in found or ()]
            keep(report)
    return report


@dataclass(frozen=True, slots=True)
class CompressBench:
    """The real model's part: files in one folder, figures in one report."""

    scratch: Path
    scale: CompressScale
    report: dict[str, Any]
    tell: Callable[[str], None]
    quick: bool

    def path(self, name: str) -> Path:
        """Of an arm's file."""
        return self.scratch / f"{name}.gguf"

    def sixteen_bits(self) -> None:
        """The model, and the importance of its matrices' inputs."""
        self.tell("the 16-bit model, and its importance matrix")
        loaded = weights.load(catalog.find(MODEL))
        loaded = rescaled(first_layers(loaded, 2) if self.quick else loaded)
        to_gguf.save(loaded, self.path("fp16"), "F16")
        self.judge("fp16")
        self.timed(
            "importance",
            lambda: quantizer.measure_importance(
                self.model(), self.texts(self.scale.calibration), "package descriptions"
            ).write(self.scratch / "importance.dat"),
        )

    def rounded(self, *, peer: bool) -> None:
        """llama.cpp's quantiser without and with importance data; without llama.cpp plain rounding
        of our own.
        """
        if not peer:
            to_gguf.save(self.model(), self.path("rounded"), "Q4_0")
            self.judge("rounded")
            return
        weighed = ("--importance", str(self.scratch / "importance.dat"))
        for name, kind, more in (
            ("rounded", "Q4_0", ()),
            ("llamacpp", "Q4_0", weighed),
            ("llamacpp_q4_k", "Q4_K_S", weighed),
        ):
            engine = contender("llamacpp", self.path("fp16"))
            try:
                self.timed(
                    name,
                    lambda engine=engine, name=name, kind=kind, more=more: engine.prepare(  # type: ignore[misc]
                        "--repack", str(self.path(name)), "--type", kind, *more
                    ),
                )
            finally:
                engine.close()
            self.judge(name)

    def calibrated(self) -> None:
        """Ours: one type by error feedback, and types by sensitivity within the size of
        llama.cpp's file.
        """
        self.quantised("calibrated", "Q4_0", 0)
        for name, kind, like in (
            ("mixed", "Q4_0", "llamacpp"),
            ("mixed_q4_k", "Q4_K", "llamacpp_q4_k"),
        ):
            rival = self.path(like) if self.path(like).exists() else self.path("calibrated")
            if like != "llamacpp" and rival == self.path("calibrated"):
                continue  # nothing to be compared with
            self.quantised(name, kind, rival.stat().st_size)

    def quantised(self, name: str, kind: str, size: int) -> None:
        """One file of ours."""
        request = quantizer.QuantizationRequest(
            quant_type=kind, size=size, texts=self.texts(self.scale.calibration)
        )
        original = self.model()
        journal = quantizer.QuantizationJournal(
            self.scratch / f"{name}.journal", request.digest(original)
        )
        self.tell(f"{name}: layer by layer")
        made = self.timed(name, lambda: quantizer.quantize(original, request, journal))
        to_gguf.save(made, self.path(name))
        self.judge(name)

    def trained(self) -> None:
        """The calibrated file, trained to say what the 16-bit model says; then with an adapter
        alone.
        """
        modes: tuple[qat.Mode, ...] = ("full",) if self.quick else ("full", "adapters")
        for mode in modes:
            name = "qat" if mode == "full" else f"qat_{mode}"
            steps = self.scale.steps if mode == "full" else self.scale.steps // 3
            self.tell(f"{name}: {steps} steps")
            settings = qat.QatSettings(mode=mode, steps=max(1, steps), seed=SEED)
            begun = weights.load(self.path("calibrated"))
            original, texts = self.model(), self.texts(self.scale.training)
            result = self.timed(
                name,
                lambda begun=begun, original=original, texts=texts, settings=settings: qat.train(  # type: ignore[misc]
                    begun, original, texts, settings
                ),
            )
            to_gguf.save(result.weights, self.path(name))
            self.judge(name, result.adapter)
        losses = {arm: math.log(self.report["perplexity"][arm]) for arm in ("fp16", "rounded")}
        lost = losses["rounded"] - losses["fp16"]
        for key, arm in {"qat_recovered": "qat", "calibrated_recovered": "calibrated"}.items():
            now = math.log(self.report["perplexity"][arm])
            self.report[key] = (losses["rounded"] - now) / lost

    def read_by_llamacpp(self) -> None:
        """llama.cpp's own perplexity over our trained file, from its logits."""
        import json

        tokens = self.held_out()[: min(512, self.scale.text)]
        said, out = self.scratch / "said.json", self.scratch / "logits.npy"
        said.write_text(json.dumps({"window": WINDOW, "tokens": tokens}))
        for arm in ("qat", "mixed"):
            engine = contender("llamacpp", self.path(arm))
            try:
                engine.prepare("--logits", str(said), str(out))
            finally:
                engine.close()
            logits = torch.from_numpy(np.load(out))[:-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]))
            own = quality.text_loss(weights.load(self.path(arm)), tokens)
            # it rounds activations to 8 bits
            self.report.setdefault("llamacpp_reads", {})[arm] = float(loss.exp()) / math.exp(own)
            self.report["exact"] &= abs(float(loss) - own) < 0.05

    def speeds(self) -> None:
        """16 bits and 4 bits in turn, one answer at a time."""
        self.tell("135M: 16 bits and 4 bits in turn")
        beside("135m", {"f16": self.path("fp16"), "q4": self.path("qat")}, self.scale, self.report)

    def judge(self, name: str, adapter: Mapping[str, Tensor] | None = None) -> None:
        """Size and perplexity of an arm's file."""
        path = self.path(name)
        self.report["mb"][name] = path.stat().st_size / 1e6
        loss = quality.text_loss(weights.load(path), self.held_out(), adapter)
        self.report["perplexity"][name] = math.exp(loss)
        self.tell(
            f"  {name}: {self.report['mb'][name]:.1f} MB, perplexity "
            f"{self.report['perplexity'][name]:.3f}"
        )

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; its processor seconds, children's too, in the report."""
        before = spent_s()
        found = work()
        self.report["seconds"][name] = spent_s() - before
        return found

    def model(self) -> Weights:
        """The 16-bit model."""
        return weights.load(self.path("fp16"))

    def texts(self, count: int) -> list[list[int]]:
        """So many tokens of what packages say of themselves, in windows spread evenly."""
        cut = pieces(self.model().tokenizer.encode(descriptions()[: 40 * count]), WINDOW)
        window = len(cut[0])
        wanted = max(1, count // window)
        return [cut[place * len(cut) // wanted] for place in range(min(wanted, len(cut)))]

    def held_out(self) -> list[int]:
        """The text that no calibration saw."""
        text = quality.held_out_text()[: 8 * self.scale.text]
        return self.model().tokenizer.encode(text)[: self.scale.text]


def spent_s() -> float:
    """Processor seconds of this process and of its children that have ended."""
    import resource

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def descriptions() -> str:
    """The prose of installed packages' descriptions, in the order of their names."""
    found = {}
    for one in metadata.distributions():
        name = one.metadata["Name"] or ""
        if name.lower() != "quietchoir":
            found[name.lower()] = str(one.metadata.json.get("description") or "")
    parts = [
        part.strip()
        for name in sorted(found)
        for part in found[name].split("\n\n")
        if len(part) > PARAGRAPH // 4 and part.count(" ") > len(part) // 10
    ]
    return "\n\n".join(parts)


def rescaled(model: Weights) -> Weights:
    """The same function with each channel between two matrices scaled by a number of its own: the
    columns that read it are multiplied, the norm or rows that write it divided. In float16.
    """
    draws, own, tensors = np.random.default_rng(SEED), model.architecture, dict(model.tensors)

    def scales(count: int) -> Tensor:
        return torch.from_numpy(np.exp(draws.uniform(-0.4, 0.4, count)).astype(np.float32))

    for layer in range(own.num_layers):
        prefix = f"model.layers.{layer}."
        held = {
            name.removeprefix(prefix).removesuffix(".weight"): blocks.dequantize()
            for name, blocks in model.tensors.items()
            if name.startswith(prefix)
        }
        readers = {
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        }
        for norm, matrices in readers.items():
            by = scales(own.hidden_size)
            held[norm] /= by
            for name in matrices:
                held[name] *= by
        by = scales(own.intermediate_size)
        held["mlp.up_proj"] /= by[:, None]
        held["mlp.down_proj"] *= by
        by = scales(own.num_kv_heads * own.head_dim)
        held["self_attn.v_proj"] /= by[:, None]
        shared = by.view(own.num_kv_heads, 1, own.head_dim)
        group = own.num_heads // own.num_kv_heads
        held["self_attn.o_proj"] *= shared.expand(-1, group, -1).reshape(-1)
        tensors |= {
            f"{prefix}{name}.weight": plain(rows if len(rows) == 1 else rows.half())
            for name, rows in held.items()
        }
    embedding = plain(model.tensors["model.embed_tokens.weight"].dequantize(torch.float16))
    tensors |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), embedding)
    return replace(model, tensors=tensors)


def first_layers(model: Weights, count: int) -> Weights:
    """The lowest layers alone, for a quick run."""
    kept = {
        name: blocks
        for name, blocks in model.tensors.items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < count
    }
    return replace(model, architecture=replace(model.architecture, num_layers=count), tensors=kept)


def beside(
    size: str, files: Mapping[str, Path], scale: CompressScale, report: dict[str, Any]
) -> None:
    """Decode of one answer from each file in turn, peak memory and, where the machine can tell,
    watts.
    """
    order: Order = {"what": "decode", "batch": 1, "tokens": scale.tokens, "prompt": scale.prompt}
    meter = EnergyMeter()
    with ExitStack() as stack:
        engines = {}
        for name, path in files.items():
            engines[name] = contender("ours", path)
            stack.callback(engines[name].close)
            engines[name].start()
        found = {}
        for name, samples in turns(engines, order, scale.repeats).items():
            found[name] = samples
            put(report, f"{size}.{name}.b1", samples)
            report[size][name]["mb"] = files[name].stat().st_size / 1e6
            report[size][name]["peak_mb"] = engines[name].ask({"what": "peak_mb"})
        if meter.sources:
            before, begun = meter.joules() or 0.0, time.perf_counter()
            engines["q4"].ask(order)
            spent = (meter.joules() or 0.0) - before
            report[size]["q4"]["watts"] = spent / (time.perf_counter() - begun)
    if "f16" in found:
        put(report, f"{size}.speedup_b1", found["q4"].over(found["f16"]))
        report[size]["size_saved"] = 1 - report[size]["q4"]["mb"] / report[size]["f16"]["mb"]
    report["deployment"][size] = {
        "disk_mb": report[size]["q4"]["mb"],
        "memory_mb": report[size]["q4"]["peak_mb"],
        "tokens_per_s": report[size]["q4"]["b1"],
        "watts": report[size]["q4"].get("watts", "no counter here"),
    }


def turns(engines: Mapping[str, Any], order: Order, repeats: int) -> dict[str, Any]:
    """Each engine's samples of one order, asked in turn; engines of one name are told apart."""
    for name, engine in engines.items():
        engine.name = name
    found = in_turn([*engines.values()], {"b1": order}, repeats)
    return {name: samples["b1"] for name, samples in found.items()}


def random_weights(
    size: str,
    scratch: Path,
    scale: CompressScale,
    report: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """A shape of random weights: size, memory and speed; 16 bits too where they fit."""
    shape, like = SIZES[size], catalog.find(MODEL)
    vocabulary = weights.load(like).vocab_size
    numbers = sum(math.prod(own) for _, own in random_model.tensors_of(shape, vocabulary))
    free = discovery.memory_sizes()[1]
    kinds = {"q4": ("Q4_0", 0.6), "f16": ("F16", 2.1)}
    wanted = {
        name: kind for name, (kind, bytes_each) in kinds.items() if bytes_each * numbers < free / 2
    }
    report[size] = {"weights": numbers, "f16_mb": 2 * numbers / 1e6}
    if "q4" not in wanted:
        report[size]["left_out"] = (
            f"{free / 1e9:.1f} GB of memory are free, it needs twice its file"
        )
        tell(f"{size}: left out, {report[size]['left_out']}")
        return
    tell(f"{size}: {numbers / 1e9:.1f}e9 random weights as {', '.join(wanted.values())}")
    files = {
        name: random_model.write(scratch / f"{name}.gguf", like, shape, seed=SEED, kind=kind)
        for name, kind in wanted.items()
    }
    small = replace(scale, tokens=12, prompt=8, repeats=min(2, scale.repeats))
    beside(size, files, small, report)
    report[size].setdefault("size_saved", 1 - report[size]["q4"]["mb"] / report[size]["f16_mb"])


def figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    for arm in report["perplexity"]:
        words = ARMS.get(arm, f"the same, {arm.removeprefix('qat_')} alone")
        most = {
            "calibrated": ("llamacpp", "rounded"),
            "mixed": ("llamacpp", "rounded"),
            "mixed_q4_k": ("llamacpp_q4_k",),
        }.get(arm, ())
        bars = [report["perplexity"][one] for one in most if one in report["perplexity"]]
        yield Figure(f"perplexity.{arm}", "", words, at_most=min(bars, default=None))
        yield Figure(f"mb.{arm}", "MB", "  its file")
    yield Figure("qat_recovered", "", "of rounding's loss, won back by training", at_least=0.7)
    yield Figure("calibrated_recovered", "", "  by error feedback alone")
    for arm in report.get("llamacpp_reads", ()):
        yield Figure(f"llamacpp_reads.{arm}", "×", f"{arm}: perplexity by llama.cpp over ours")
    for size in ("135m", *(size for size in SIZES if size in report)):
        if "left_out" in report.get(size, {}):
            yield Figure(f"{size}.left_out", "", f"{size}: left out")
            continue
        yield Figure(f"{size}.size_saved", "", f"{size}: of 16 bits' file", at_least=SAVED[size])
        if size == "135m" or "f16" in report[size]:
            yield Figure(f"{size}.speedup_b1", "×", f"{size}: decode over 16 bits", at_least=2)
        limits = LIMITS.get(size, {})
        for key, unit in (("disk_mb", "MB"), ("memory_mb", "MB"), ("tokens_per_s", "tokens/s")):
            name = f"deployment.{size}.{key}"
            yield Figure(name, unit, f"  {key.partition('_')[0]}", at_most=limits.get(key))
        yield Figure(f"deployment.{size}.watts", "W", "  watts")
    for row in report["rows"]:
        yield Figure(**row)


# 0.75 less what scales cost: half a bit of sixteen, and an embedding of eight.
SAVED = {"135m": 0.66, "large": 0.7, "13b": 0.71}
LIMITS = {"13b": {"disk_mb": 8000.0, "memory_mb": 15000.0}}
