"""The suite `gpu`: a model of 13 billion weights in 4 bits on one GPU, beside transformers in
bfloat16 on the same GPU.

Knows the shape and what is promised of it. Knows nothing of kernels.
Always: the weights are random, because only their number decides speed and memory; the limit that a
figure is held against is measured in the same run, and memory is what the device says is in use,
the context of CUDA included. What is predicted is named so: arithmetic over the same shape, which
needs no device and proves nothing about one.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...core.config import EngineConfig
from ...core.engine.backends.cuda.memory import needs
from ...core.engine.backends.cuda.runner import CudaRunner
from ...core.engine.block_pool import BLOCK_TOKENS
from ...core.engine.engine import Engine
from ...core.engine.request import GenerationRequest
from ...core.engine.sampling.params import SamplingParams
from ...core.errors import ConfigError
from ...core.hardware.placement import place
from ...core.models.architecture import PROJECTIONS, Architecture
from ...core.models.quant.tensor import QuantTensor
from ...core.models.tokenizer.tokenizer import Tokenizer
from ...core.models.tokenizer.vocabulary import Vocabulary
from ...core.models.weights import Weights
from .figures import Figure, Keep, nobody
from .peers.workload import PREFILL, PROMPT, Peer, Prompts, decode_speed, prefill_speed, seconds
from .stopwatch import Sample, put

SEED = 1
GIB = 1 << 30
Q4_0_BYTES = 18  # of a block of 32 weights
AIM = 8 * GIB  # of a device's memory, all in
# What CUDA itself takes before anything of ours is there: 274 MiB to 426 MiB by report, the device
# decides. Source: pytorch/pytorch pull request 86509 (lazy loading), unslothai/unsloth-zoo pull
# request 1053 (RTX 6000 Ada).
CONTEXT = 426 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuScale:
    """How much is measured. The defaults are Llama's 13B."""

    num_layers: int = 40
    hidden_size: int = 5120
    intermediate_size: int = 13824
    num_heads: int = 40
    vocab_size: int = 32_000
    context: int = 2048
    tokens: int = 128
    repeats: int = 5
    copy_bytes: int = 4 << 30

    def architecture(self) -> Architecture:
        """The decoder of these sizes."""
        return Architecture(
            family="llama",
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.hidden_size // self.num_heads,
            vocab_size=self.vocab_size,
            rope_theta=10_000.0,
            norm_eps=1e-5,
            context_length=self.context,
        )


QUICK = GpuScale(
    num_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    vocab_size=512,
    tokens=3,
    repeats=1,
    copy_bytes=1 << 20,
)


class DevicePeer:
    """Our engine on a device; see `peers.workload.Peer`."""

    def __init__(
        self, weights: Weights, context: int, device: torch.device, cpu_layers: int = 0
    ) -> None:
        blocks = 16 * (192 // BLOCK_TOKENS) if device.type == "cpu" else context // BLOCK_TOKENS
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        runner = CudaRunner(
            weights, blocks, context, cpu_layers=cpu_layers, device=device, dtype=dtype
        )
        self.engine = Engine(
            weights, EngineConfig(context=context, drafts=0, share_prefixes=False), backend=runner
        )
        self.engine.start()

    def generate(self, prompts: Any, tokens: int) -> None:
        """See `Peer`."""
        running = [
            self.engine.submit(
                GenerationRequest(
                    prompt=tuple(prompt), sampling_params=SamplingParams(max_tokens=tokens)
                )
            )
            for prompt in prompts
        ]
        for one in running:
            one.text()

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.stop()


class Reference:
    """transformers' `generate` in bfloat16, random weights of the same shape."""

    def __init__(self, scale: GpuScale, device: torch.device) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=scale.hidden_size,
            intermediate_size=scale.intermediate_size,
            num_hidden_layers=scale.num_layers,
            vocab_size=scale.vocab_size,
            num_attention_heads=scale.num_heads,
            num_key_value_heads=scale.num_heads,
            max_position_embeddings=scale.context,
            eos_token_id=None,
            dtype=torch.bfloat16,
        )
        with torch.device(device):
            self.model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
        self.device = device

    @torch.inference_mode()
    def generate(self, prompts: Any, tokens: int) -> None:
        """See `Peer`."""
        ids = torch.tensor(prompts, device=self.device)
        mask = torch.ones_like(ids)
        self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        """See `Peer`."""
        del self.model


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep = nobody) -> dict[str, Any]:
    """Run everything.

    Args:
        quick: tiny sizes, on the CPU where there is no GPU, to see that it runs.
        keep: gets the report after each part.

    Raises:
        ConfigError: no GPU.
    """
    predicted = prediction(GpuScale())
    if not torch.cuda.is_available() and not quick:
        raise ConfigError(
            "torch finds no CUDA device here, so there is nothing to measure; run `quietchoir "
            "bench gpu` on a machine that has "
            "one and a build of torch for it, or add --quick to try the code at tiny sizes on the "
            "CPU. Predicted for 13B by "
            f"arithmetic, not measured: {predicted['all_in_gib']:.2f} GiB all in"
        )
    device, scale = (
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        QUICK if quick else GpuScale(),
    )
    report: dict[str, Any] = {
        "what": what(scale, quick=quick, device=device),
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else "none: a quick run on the CPU",
        "seed": SEED,
        "repeats": {"speeds": scale.repeats},
        "clock": "seconds on the wall",
        "spread": {},
        "exact": True,
        "predicted": predicted,
    }
    tell("memory bandwidth")
    report["memory_gb_s"] = bandwidth(scale, device)
    context = in_use(device)
    tell("random weights")
    weights = random_weights(scale)
    run_whole(weights, scale, device, report, tell)
    keep(report)
    fitting = place(
        needs(weights, scale.context // BLOCK_TOKENS, scale.context, answers=16),
        int(AIM - context * GIB),
    ).device
    run_fitted(weights, scale, device, 1 if quick else fitting, report, tell)
    keep(report)
    tell("transformers, bfloat16")
    speeds(Reference(scale, device), scale, "transformers", report, tell)
    read = sum(
        blocks.raw.numel()
        for name, blocks in weights.tensors.items()
        if name != "model.embed_tokens.weight"
    )
    report["of_bandwidth_b1"] = report["ours"]["b1"] * read / (report["memory_gb_s"] * 1e9)
    report["ratio"] = {
        key: report["ours"][key] / report["transformers"][key] for key in ("b1", "b16", "prefill")
    }
    return report


def run_whole(
    weights: Weights,
    scale: GpuScale,
    device: torch.device,
    report: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """All layers on the device, whatever that takes."""
    ours = DevicePeer(weights, scale.context, device)
    try:
        speeds(ours, scale, "ours", report, tell)
        report["peak_gib"] = in_use(device)
    finally:
        ours.close()


def run_fitted(
    weights: Weights,
    scale: GpuScale,
    device: torch.device,
    layers: int,
    report: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """As many layers on the device as AIM holds, the others on the processor: what that costs."""
    gc.collect()  # an engine and its thread know each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tell(f"{layers} of {scale.num_layers} layers on the device")
    ours, prompts = (
        DevicePeer(weights, scale.context, device, scale.num_layers - layers),
        Prompts(SEED, highest=scale.vocab_size),
    )
    try:
        for length in (PROMPT, PREFILL):  # for warmth, and for the memory of a long step
            seconds(ours, prompts.take(1, length), 2)
        put(
            report,
            "fitted.b1",
            Sample(
                tuple(decode_speed(ours, prompts, 1, scale.tokens) for _ in range(scale.repeats))
            ),
        )
        report["fitted"] |= {"layers": layers, "peak_gib": in_use(device)}
    finally:
        ours.close()
    del ours
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def what(scale: GpuScale, *, quick: bool, device: torch.device) -> str:
    """What was measured, for people; a quick run says that its figures mean nothing."""
    told = (
        f"{scale.num_layers} layers of width {scale.hidden_size}, random Q4_0, "
        f"context {scale.context}, {scale.tokens} tokens"
    )
    where = (
        ("in plain torch on the CPU, without a kernel of ours")
        if device.type == "cpu"
        else "on the GPU"
    )
    return f"only tried, {where}: these speeds mean nothing. {told}" if quick else told


def prediction(scale: GpuScale) -> dict[str, float]:
    """Memory by the arithmetic that places layers, GiB, and how many layers would fit into AIM."""
    blocks, architecture = scale.context // BLOCK_TOKENS, scale.architecture()
    needed = needs(shape_of(scale), blocks, scale.context, answers=16)
    ours = needed.total(scale.num_layers)
    return {
        "weights_gib": (sum(needed.layers) + needed.always["its head"]) / GIB,
        "cache_gib": architecture.num_layers * needed.cache / GIB,
        "ours_gib": ours / GIB,
        "context_gib": CONTEXT / GIB,
        "all_in_gib": (ours + CONTEXT) / GIB,
        "layers_in_8_gib": place(needed, AIM - CONTEXT).device,
    }


def shape_of(scale: GpuScale) -> Weights:
    """The weights of `random_weights` without a number in them, nor memory."""

    def empty(rows: int, columns: int) -> QuantTensor:
        kind, width = ("F32", 4 * columns) if rows == 1 else ("Q4_0", columns // 32 * Q4_0_BYTES)
        return QuantTensor(
            kind, (rows, columns), torch.empty(rows, width, dtype=torch.uint8, device="meta")
        )

    architecture = scale.architecture()
    tensors = {name: empty(*shape) for name, shape in architecture.shapes().items()}
    return Weights(architecture, tensors, tokenizer(1), digest="0" * 64)


def speeds(
    peer: Peer, scale: GpuScale, name: str, report: dict[str, Any], tell: Callable[[str], None]
) -> None:
    """Batch 1, batch 16 and a long prompt, one after another; the first of each is for warmth.

    Sixteen answers end where the context's cache is full: beyond that our engine would make some of
    them wait.
    """
    prompts = Prompts(SEED, highest=scale.vocab_size)
    works: dict[str, Callable[[], float]] = {
        "b1": lambda: decode_speed(peer, prompts, 1, scale.tokens),
        "b16": lambda: decode_speed(
            peer, prompts, 16, min(scale.tokens, scale.context // 16 - PROMPT)
        ),
        "prefill": lambda: prefill_speed(peer, prompts),
    }
    for key, work in works.items():
        tell(f"{name}: {key}")
        work()
        put(report, f"{name}.{key}", Sample(tuple(work() for _ in range(scale.repeats))))


def bandwidth(scale: GpuScale, device: torch.device) -> float:
    """GB a second that this device reads and writes when it copies."""
    source = torch.zeros(scale.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(scale.repeats + 1):
        wait(device)
        before = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = max(best, 2 * scale.copy_bytes / (time.perf_counter() - before) / 1e9)
    return best


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def in_use(device: torch.device) -> float:
    """GiB of the device that are in use, by everybody."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


def random_weights(scale: GpuScale) -> Weights:
    """Weights of the shape: one matrix of each form stands for all layers, so the host needs
    little memory.
    """
    architecture, generator = scale.architecture(), torch.Generator().manual_seed(SEED)

    def matrix(rows: int, columns: int) -> QuantTensor:
        raw = torch.randint(
            0, 256, (rows, columns // 32, Q4_0_BYTES), dtype=torch.uint8, generator=generator
        )
        # a layer's output is as large as its input
        step = torch.tensor([1 / (4.6 * columns**0.5)], dtype=torch.float16)
        raw[:, :, :2] = step.view(torch.uint8)
        return QuantTensor("Q4_0", (rows, columns), raw.flatten(1))

    ones = torch.ones(1, scale.hidden_size)
    norm = QuantTensor("F32", (1, scale.hidden_size), ones.view(torch.uint8))
    named = {name: matrix(*architecture.projection(name)) for name in PROJECTIONS}
    tensors = {
        "model.embed_tokens.weight": matrix(scale.vocab_size, scale.hidden_size),
        "model.norm.weight": norm,
    }
    tensors["lm_head.weight"] = matrix(scale.vocab_size, scale.hidden_size)
    for layer in range(scale.num_layers):
        tensors |= {f"model.layers.{layer}.{name}.weight": blocks for name, blocks in named.items()}
        tensors |= {f"model.layers.{layer}.{name}.weight": norm for name in architecture.norms()}
    return Weights(architecture, tensors, tokenizer(scale.vocab_size), digest="0" * 64)


def tokenizer(vocabulary: int) -> Tokenizer:
    """Texts that nobody reads: token n is the word n, and none of them ends an answer."""
    words = tuple(f"w{number}" for number in range(vocabulary))
    return Tokenizer(
        Vocabulary(
            tokens=words,
            token_types=(1,) * vocabulary,
            merges=(),
            splitting="gpt-2",
            start=(),
            stop=frozenset(),
            template="",
        )
    )


def figures(_: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    yield Figure(
        "peak_gib", "GiB", "13B in 4 bits, context 2048: device memory, all in", at_most=8.0
    )
    yield Figure("predicted.ours_gib", "GiB", "  predicted, not measured: without CUDA's context")
    yield Figure(
        "predicted.all_in_gib", "GiB", "  predicted, not measured: with 426 MiB of context"
    )
    yield Figure(
        "predicted.layers_in_8_gib",
        "",
        "  predicted, not measured: of 40 layers, on a GPU of 8 GiB",
    )
    yield Figure(
        "fitted.peak_gib", "GiB", "  measured with as many layers there as 8 GiB hold", at_most=8.0
    )
    yield Figure("fitted.layers", "", "  so many of 40")
    yield Figure("fitted.b1", "tokens/s", "  b1 with the others on the processor")
    for key in ("b1", "b16", "prefill"):
        for name in ("ours", "transformers"):
            yield Figure(f"{name}.{key}", "tokens/s", f"{key}: {name}")
    yield Figure("of_bandwidth_b1", "", "b1: share of what the memory's speed allows", at_least=0.6)
    yield Figure("memory_gb_s", "GB/s", "  copy on this device")
    yield Figure("ratio.b1", "×", "ours over transformers bfloat16, b1", at_least=10)
    yield Figure("ratio.b16", "×", "  b16", at_least=1)
    yield Figure("ratio.prefill", "×", "  prefill 512")
