"""The suite `compress`: what fewer bits save and cost, beside llama.cpp's quantiser on the same
importance data; and what a model takes of a machine.

Knows the ways to make a model smaller, each a file that is measured as it would be served. How
students are distilled and work is placed, the two files beside this one measure.
Always: perplexity is float32's over the blocks of each file, on a text that no calibration saw;
arms that are compared have files of one size, or ours is the smaller; a part that fails is named in
the report with its reason, and the others are run.

The only trained weights that a package carries are 4-bit blocks (Q4_1). They are decoded, and each
channel between two matrices is scaled by a number of its own, which changes no logit and leaves no
block on the grid that it came from: this is the 16-bit model here, and its perplexity is the bar.
"""

import importlib.util
import json
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
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
from . import compress_distill, compress_plan, random_model
from .contest import Order, in_turn
from .engine import LIBRARIES, MODEL, SEED, contender
from .figures import Figure, Keep, has, nobody
from .stopwatch import put

# What `--only` may name, with about how long it takes on two quiet cores. A part makes the files of
# others that it needs.
PARTS = {
    "rounding": "4 bits by plain rounding, by llama.cpp, by error feedback: perplexity; 2 min",
    "speeds": "135M: size and decode of 4 bits against 16; 1 min",
    "large": "about 1B, random weights: the same; 1 min",
    "13b": "13B, random weights: disk, memory, speed; 2 min",
    "plan": "does the plan of devices choose the faster one; 2 min",
    "federated_distillation": "members whose models differ, alone and together; 2 min",
    "mixed": "types by measured sensitivity, beside llama.cpp's; 3 min",
    "qat": "4 bits, trained, and by an adapter alone: what of rounding's loss it wins back; 5 min",
    "llamacpp_reads": "llama.cpp's perplexity of our files over ours; 1 min",
    "student": "half the depth, taught: accuracy kept, speed; 6 min",
}
PEER_NEEDED = {"rounding", "mixed", "qat", "llamacpp_reads"}
SIZES = {"large": random_model.BILLION, "13b": random_model.THIRTEEN}
ARMS = {
    "fp16": "16 bits",
    "rounded": "4 bits, plain rounding (llama.cpp's, without importance data)",
    "llamacpp": "4 bits, llama.cpp with importance data",
    "calibrated": "4 bits, error feedback, no larger than llama.cpp's",
    "mixed": "types by measured sensitivity, no larger than llama.cpp's",
    "qat": "4 bits, trained, no larger than llama.cpp's",
    "qat_adapters": "4 bits beside a trained adapter (its 16 bits not counted)",
    "llamacpp_q4_k": "Q4_K_S by llama.cpp with importance data",
    "mixed_q4_k": "types by measured sensitivity, no larger than that",
}
PARAGRAPH = 400  # letters at least of what counts as prose in a package's description


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressScale:
    """How much is measured."""

    calibration: int = 4096  # tokens
    training: int = 16384  # of them, to draw batches from
    text: int = 2048  # whose perplexity is compared
    steps: int = 16  # of training all weights; half of them of an adapter alone
    tokens: int = 48  # of an answer whose speed is compared
    prompt: int = 32
    repeats: int = 3
    sizes: tuple[str, ...] = ("large", "13b")


QUICK = CompressScale(
    calibration=128, training=128, text=64, steps=2, tokens=3, prompt=8, repeats=1, sizes=()
)


def measure(
    *, quick: bool, tell: Callable[[str], None], keep: Keep = nobody, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Run everything, or the named `PARTS`; `keep` gets the report after each.

    Raises:
        ConfigError: llama.cpp, the peer, is not installed, and a part needs it.
    """
    scale, parts = QUICK if quick else CompressScale(), only or tuple(PARTS)
    peer = has_peer()
    if not (peer or quick) and PEER_NEEDED.intersection(parts):
        raise ConfigError(
            "llama.cpp is not installed; run `make bench`, which installs the peers, or "
            "pip install -e '.[peers]'"
        )
    report: dict[str, Any] = {
        "what": f"SmolLM2-135M (its 4-bit blocks decoded, channels scaled) to 4 bits; calibrated "
        f"on {scale.calibration} tokens of installed packages' descriptions, perplexity on "
        f"{scale.text} of Python's language reference",
        "seed": SEED,
        "parts": list(parts),
        "repeats": {"speeds": scale.repeats},
        "clock": "seconds on the wall, all cores",
        **{name: {} for name in ("spread", "perplexity", "mb", "seconds", "part_s", "deployment")},
        **{"size_saved": {}, "failed": {}, "exact": True},
    }
    with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as scratch:
        bench = CompressBench(Path(scratch), scale, report, tell, quick, peer)
        run: dict[str, Callable[[], None]] = {
            "rounding": bench.rounding,
            "speeds": bench.speeds,
            "large": lambda: bench.random_weights("large"),
            "13b": lambda: bench.random_weights("13b"),
            "plan": lambda: compress_plan.measure_plan(report, quick, tell),
            "federated_distillation": lambda: compress_distill.federation(report, quick, tell),
            "mixed": bench.mixed,
            "qat": bench.trained,
            "llamacpp_reads": bench.read_by_llamacpp,
            "student": lambda: compress_distill.student(report, quick, tell),
        }
        for part in PARTS:  # in their order
            if part not in parts:
                continue
            tell(f"part {part}")
            begun, before = time.perf_counter(), spent_s()
            try:
                run[part]()
            except Exception as error:  # whatever it is: the other parts are measured
                tell(traceback.format_exc())
                report["failed"][part] = f"{type(error).__name__}: {error}"
            spent = {"wall": time.perf_counter() - begun, "processor": spent_s() - before}
            report["part_s"][part] = spent
            keep(report)
    return report


def has_peer() -> bool:
    """Whether llama.cpp is installed."""
    return importlib.util.find_spec(LIBRARIES["llamacpp"]) is not None


@dataclass(frozen=True, slots=True)
class CompressBench:
    """Parts over files in one folder, figures in one report; a file is made when it is first asked
    for.
    """

    scratch: Path
    scale: CompressScale
    report: dict[str, Any]
    tell: Callable[[str], None]
    quick: bool
    peer: bool  # llama.cpp is there

    def rounding(self) -> None:
        """16 bits, and 4 by rounding alone."""
        self.judge("fp16", "rounded", *(("llamacpp",) if self.peer else ()), "calibrated")
        self.recovered("calibrated")

    def mixed(self) -> None:
        """Types by sensitivity within the size of llama.cpp's files; without it, of ours."""
        self.judge("llamacpp" if self.peer else "calibrated", "mixed")
        if self.peer:
            self.judge("llamacpp_q4_k", "mixed_q4_k")

    def trained(self) -> None:
        """The calibrated file, trained to say what the 16-bit model says; then with an adapter
        alone.
        """
        self.judge("fp16", "rounded", "calibrated", "qat")
        self.recovered("qat")
        if not self.quick:
            self.judge("qat_adapters")

    def recovered(self, arm: str) -> None:
        """Of the nats a token that plain rounding lost, the share that an arm wins back."""
        losses = {name: math.log(self.report["perplexity"][name])
                  for name in ("fp16", "rounded", arm)}  # fmt: skip
        self.report[f"{arm}_recovered"] = (losses["rounded"] - losses[arm]) / (
            losses["rounded"] - losses["fp16"]
        )

    def read_by_llamacpp(self) -> None:
        """llama.cpp's own perplexity over our files, from its logits; nothing without it."""
        tokens = self.held_out()[: min(512, self.scale.text)]
        said, out = self.scratch / "said.json", self.scratch / "logits.npy"
        said.write_text(json.dumps({"window": WINDOW, "tokens": tokens}))
        for arm in ("qat", "mixed") if self.peer else ():
            self.prepared(arm, "--logits", str(said), str(out))
            logits = torch.from_numpy(np.load(out))[:-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]))
            own = quality.text_loss(weights.load(self.file(arm)), tokens)
            # it rounds activations to 8 bits
            self.report.setdefault("llamacpp_reads", {})[arm] = float(loss.exp()) / math.exp(own)
            self.report["exact"] &= abs(float(loss) - own) < 0.05

    def speeds(self) -> None:
        """16 bits and 4 bits in turn, one answer at a time."""
        files = {"f16": self.file("fp16"), "q4": self.file("calibrated")}
        self.tell("135M: 16 bits and 4 bits in turn")
        beside("135m", files, self.scale, self.report)

    def random_weights(self, size: str) -> None:
        """A shape of random weights: size, memory and speed; 16 bits too where they fit. A quick
        run has none.
        """
        if size not in self.scale.sizes:
            return
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            random_weights(size, Path(folder), self.scale, self.report, self.tell)

    def judge(self, *arms: str) -> None:
        """Sizes and perplexities of the files of those arms that have none yet."""
        for arm in arms:
            if arm in self.report["perplexity"]:
                continue
            path, beside = self.file(arm), self.scratch / f"{arm}.adapter.safetensors"
            adapter = safetensors.torch.load_file(beside) if beside.exists() else None
            self.report["mb"][arm] = path.stat().st_size / 1e6
            loss = quality.text_loss(weights.load(path), self.held_out(), adapter)
            self.report["perplexity"][arm] = math.exp(loss)
            self.tell(
                f"  {arm}: {self.report['mb'][arm]:.1f} MB, perplexity "
                f"{self.report['perplexity'][arm]:.3f}"
            )

    def file(self, arm: str) -> Path:
        """An arm's file, made now if it is not there; its making's processor seconds, children's
        too, in the report.
        """
        path = self.scratch / f"{arm}.gguf"
        if not path.exists():
            self.need(arm)
            self.tell(f"  {arm}: its file is made")
            before = spent_s()
            self.make(arm, path)
            self.report["seconds"][arm] = spent_s() - before
        return path

    def need(self, arm: str) -> None:
        """Make what the making of an arm begins with."""
        if arm != "fp16":
            self.file("fp16")
        if arm.startswith("llamacpp"):
            self.importance()
        if arm.startswith("mixed"):
            self.file(self.rival(arm))
        if arm.startswith("qat"):
            self.file("calibrated")

    def make(self, arm: str, path: Path) -> None:
        """One arm's file."""
        if arm == "fp16":
            self.sixteen_bits(path)
        elif arm.startswith("qat"):
            self.train(arm, path)
        elif arm in ("calibrated", "mixed", "mixed_q4_k"):
            self.quantise(arm, path)
        elif self.peer:
            self.repack(arm, path)
        else:
            to_gguf.save(self.model(), path, "Q4_0")  # plain rounding of our own

    def sixteen_bits(self, path: Path) -> None:
        """The model itself."""
        loaded = weights.load(catalog.find(MODEL))
        loaded = rescaled(first_layers(loaded, 2) if self.quick else loaded)
        to_gguf.save(loaded, path, "F16")

    def repack(self, arm: str, path: Path) -> None:
        """llama.cpp's quantiser, with importance data or without."""
        weighed = () if arm == "rounded" else ("--importance", str(self.importance()))
        kind = "Q4_K_S" if arm == "llamacpp_q4_k" else "Q4_0"
        self.prepared("fp16", "--repack", str(path), "--type", kind, *weighed)

    def importance(self) -> Path:
        """Mean squares of the 16-bit matrices' inputs, as llama.cpp reads them."""
        path = self.scratch / "importance.dat"
        if not path.exists():
            texts, before = self.texts(self.scale.calibration), spent_s()
            found = quantizer.measure_importance(self.model(), texts, "package descriptions")
            found.write(path)
            self.report["seconds"]["importance"] = spent_s() - before
        return path

    def quantise(self, arm: str, path: Path) -> None:
        """Ours: one type by error feedback, or types by sensitivity within a rival's size."""
        size = 0 if arm == "calibrated" else self.file(self.rival(arm)).stat().st_size
        request = quantizer.QuantizationRequest(
            quant_type="Q4_K" if arm == "mixed_q4_k" else "Q4_0",
            size=size,
            texts=self.texts(self.scale.calibration),
        )
        original = self.model()
        journal = quantizer.QuantizationJournal(
            self.scratch / f"{arm}.journal", request.digest(original)
        )
        to_gguf.save(quantizer.quantize(original, request, journal), path)
        journal.clear()

    def rival(self, arm: str) -> str:
        """Whose size a mixture may have."""
        if not self.peer:
            return "calibrated"
        return {"mixed": "llamacpp", "mixed_q4_k": "llamacpp_q4_k"}[arm]

    def train(self, arm: str, path: Path) -> None:
        """Training from the calibrated file: all weights, or an adapter beside it."""
        mode: qat.Mode = "adapters" if arm == "qat_adapters" else "full"
        steps = max(1, self.scale.steps // (2 if mode == "adapters" else 1))
        settings = qat.QatSettings(mode=mode, steps=steps, seed=SEED)
        begun, texts = weights.load(self.file("calibrated")), self.texts(self.scale.training)
        result = qat.train(begun, self.model(), texts, settings, on_step=self.step_told)
        if result.adapter:
            beside = path.with_suffix(".adapter.safetensors")
            safetensors.torch.save_file(dict(result.adapter), beside)
        to_gguf.save(result.weights, path)
        self.report.setdefault("qat_judged", {})[arm] = dict(result.judged)

    def step_told(self, step: int, steps: int, distance: float) -> None:
        """For whoever waits."""
        self.tell(f"  step {step} of {steps}: {distance:.4f} nats")

    def prepared(self, arm: str, *arguments: str) -> None:
        """Have llama.cpp do something with an arm's file, to its end."""
        engine = contender("llamacpp", self.file(arm))
        try:
            engine.prepare(*arguments)
        finally:
            engine.close()

    def model(self) -> Weights:
        """The 16-bit model."""
        return weights.load(self.file("fp16"))

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


@cache
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
        put(report, f"speedup_b1.{size}", found["q4"].over(found["f16"]))
        report["size_saved"][size] = 1 - report[size]["q4"]["mb"] / report[size]["f16"]["mb"]
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
        name: kind for name, (kind, each) in kinds.items() if each * numbers < MOST_OF_FREE * free
    }
    report[size] = {"weights": numbers, "f16_mb": 2 * numbers / 1e6}
    if "q4" not in wanted:
        report[size]["left_out"] = (
            f"{free / 1e9:.1f} GB of memory are free, it needs "
            f"{0.6 * numbers / MOST_OF_FREE / 1e9:.1f}"
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
    report["size_saved"].setdefault(size, 1 - report[size]["q4"]["mb"] / report[size]["f16_mb"])


def figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    """Rows of the table: those that were measured."""
    return (row for row in all_figures(report) if has(report, row.key))


def all_figures(report: Mapping[str, Any]) -> Iterator[Figure]:
    """Rows of the table, measured or not."""
    for arm in ARMS:
        most = {
            "calibrated": ("llamacpp", "rounded"),
            "mixed": ("llamacpp", "rounded"),
            "mixed_q4_k": ("llamacpp_q4_k",),
        }.get(arm, ())
        bars = [report["perplexity"][one] for one in most if one in report["perplexity"]]
        yield Figure(f"perplexity.{arm}", "", ARMS[arm], at_most=min(bars, default=None))
        yield Figure(f"mb.{arm}", "MB", "  its file")
    yield Figure("qat_recovered", "", "of rounding's loss, won back by training", at_least=0.7)
    yield Figure("calibrated_recovered", "", "  by error feedback alone")
    for arm in ("qat", "mixed"):
        yield Figure(f"llamacpp_reads.{arm}", "×", f"{arm}: perplexity by llama.cpp over ours")
    for size in ("135m", *SIZES):
        yield Figure(f"{size}.left_out", "", f"{size}: left out")
        yield Figure(f"size_saved.{size}", "", f"{size}: of 16 bits' file", at_least=SAVED[size])
        yield Figure(f"speedup_b1.{size}", "×", f"{size}: decode over 16 bits", at_least=2)
        limits = LIMITS.get(size, {})
        for key, unit in (("disk_mb", "MB"), ("memory_mb", "MB"), ("tokens_per_s", "tokens/s")):
            name = f"deployment.{size}.{key}"
            yield Figure(name, unit, f"  {key.partition('_')[0]}", at_most=limits.get(key))
        yield Figure(f"deployment.{size}.watts", "W", "  watts")
    yield from compress_distill.FIGURES
    yield from compress_plan.FIGURES


MOST_OF_FREE = 0.7  # of the memory, what a file of random weights may take
# 0.75 less what scales cost: half a bit of sixteen, and an embedding of eight.
SAVED = {"135m": 0.66, "large": 0.7, "13b": 0.71}
LIMITS = {"13b": {"disk_mb": 8000.0, "memory_mb": 15000.0}}
