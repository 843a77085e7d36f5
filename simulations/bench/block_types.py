"""The suite `block_types`: the default model in every type of file, our engine beside llama.cpp on
the same file.

Knows the names of file types. `contest` asks the engines in turn, `peers/` holds them.
Always: where llama.cpp is installed its own quantiser writes the files, which mix block types as
published ones do; without it the gguf package writes what it can. `exact` is true only if the
compiled kernels run every file that loads, and give what float32 gives over the same blocks.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from ...core.config import EngineConfig
from ...core.engine.backends.native import network
from ...core.engine.backends.select import select
from ...core.engine.backends.torch_cpu.runner import TorchRunner
from ...core.engine.block_pool import BLOCK_TOKENS
from ...core.engine.perplexity import perplexity
from ...core.errors import ModelFileError
from ...core.models import weights
from ...core.models.hub import catalog
from .contest import Order, in_turn
from .engine import LIBRARIES, MODEL, SEED, contender
from .figures import Figure, Keep, nobody
from .random_model import copy_tokenizer
from .stopwatch import put

# As llama.cpp calls whole files; IQ1, IQ2 and Q2_K_S ask it for statistics of the model.
FILE_TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    *("IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4_MOE"),
)
WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")  # by the gguf package, in blocks of 32
KEYS = ("b1", "b8", "prefill")
NEAR = 0.01  # perplexity over float32's, as a part of it: what int8 activations may cost


@dataclass(frozen=True, slots=True, kw_only=True)
class TypesScale:
    """How much is measured."""

    tokens: int = 48
    prompt: int = 32
    prefill: int = 256
    repeats: int = 3
    text: int = 1024  # tokens whose perplexity is compared

    def orders(self) -> dict[str, Order]:
        """What every engine is asked."""
        asked: dict[str, Order] = {
            f"b{count}": {
                "what": "decode",
                "batch": count,
                "tokens": self.tokens,
                "prompt": self.prompt,
            }
            for count in (1, 8)
        }
        return asked | {"prefill": {"what": "prefill", "prompt": self.prefill}}


QUICK = TypesScale(tokens=3, prompt=8, prefill=16, repeats=1, text=64)


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep = nobody) -> dict[str, Any]:
    """Run everything; `keep` gets the report after each type."""
    scale = QUICK if quick else TypesScale()
    peer = importlib.util.find_spec(LIBRARIES["llamacpp"]) is not None
    report: dict[str, Any] = {
        "what": f"tokens a second of SmolLM2-135M in each type, answers of {scale.tokens} tokens "
        f"after {scale.prompt}, prompts of {scale.prefill}; files by "
        f"{'llama.cpp' if peer else 'the gguf package: llama.cpp is not installed'}",
        "seed": SEED,
        "repeats": {"speeds": scale.repeats},
        "clock": "seconds on the wall, all cores",
        "spread": {},
        "exact": True,
        "types": {},
        "files": {"kernels": 0, "torch": 0, "refused": 0},
    }
    model = catalog.find(MODEL)
    with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as scratch:
        for name in FILE_TYPES if peer else WRITABLE:
            tell(f"{name}: written, compared with float32, then asked in turn")
            path = Path(scratch) / f"{name}.gguf"
            if peer:
                quantised_by_llamacpp(model, path, name)
            else:
                quantised(model, path, name)
            one_type(name, path, scale, report, peer=peer)
            path.unlink()
            keep(report)
    return report


def one_type(
    name: str, path: Path, scale: TypesScale, report: dict[str, Any], *, peer: bool
) -> None:
    """Everything about one file, into the report."""
    found = report["types"].setdefault(name, {"mb": path.stat().st_size / 1e6})
    try:
        loaded = weights.load(path)
    except ModelFileError as error:
        report["files"]["refused"] += 1
        found["refused"] = str(error)
        return
    reason = network.unsupported(loaded.architecture, loaded.tensors)
    report["files"]["torch" if reason else "kernels"] += 1
    found["mixture"] = sorted({blocks.quant_type for blocks in loaded.tensors.values()})
    found["worse"] = worse(loaded, scale.text)
    report["exact"] &= reason is None and abs(found["worse"]) < NEAR
    with ExitStack() as stack:
        engines = [contender("ours", path), *([contender("llamacpp", path)] if peer else [])]
        for engine in engines:
            stack.callback(engine.close)
            with engine.excused():
                engine.start()
        asked = in_turn(engines, scale.orders(), scale.repeats)
        for who, samples in asked.items():
            for key, sample in samples.items():
                put(report, f"types.{name}.{who}.{key}", sample)
                if who == "llamacpp":
                    put(report, f"types.{name}.ratio.{key}", asked["ours"][key].over(sample))
        found |= {f"{engine.name}_ended": engine.ended for engine in engines if engine.ended}


def worse(loaded: weights.Weights, count: int) -> float:
    """Perplexity of the serving path over that of float32 over the same blocks, less 1."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = loaded.tokenizer.encode(text[: 8 * count])[:count]
    blocks = 512 // BLOCK_TOKENS
    served = perplexity(select(loaded, EngineConfig()).build(blocks, 512), tokens)
    exact = perplexity(TorchRunner(loaded, blocks, compute=torch.float32), tokens)
    return served / exact - 1


def quantised_by_llamacpp(model: Path, path: Path, name: str) -> None:
    """The model as llama.cpp's own quantiser writes this type, in a process of its own.

    Raises:
        EndedError: it did not.
    """
    engine = contender("llamacpp", model)
    try:
        engine.prepare("--repack", str(path), "--type", name)
    finally:
        engine.close()


def quantised(model: Path, path: Path, name: str) -> None:
    """The model with all matrices as blocks of one type, by the gguf package."""
    reader, kind = gguf.GGUFReader(model), gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(path, "llama")
    copy_tokenizer(reader, writer)
    for key, field in reader.fields.items():
        if key.startswith("llama."):
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim == 1:
            writer.add_tensor(tensor.name, numbers.astype(np.float32))
        else:
            rows = gguf.quants.quantize(np.ascontiguousarray(numbers, np.float32), kind)
            writer.add_tensor(tensor.name, rows.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    for how, meaning in (
        ("kernels", "files that the compiled kernels run"),
        ("torch", "files that torch runs"),
        ("refused", "files that are refused"),
    ):
        yield Figure(f"files.{how}", "", meaning, at_most=None if how == "kernels" else 0)
    for name, found in report["types"].items():
        speeds = [(who, key) for key in KEYS for who in ("ours", "llamacpp") if who in found]
        for who, key in speeds:
            label = "  llama.cpp" if who == "llamacpp" else f"{name}, {key}"
            yield Figure(f"types.{name}.{who}.{key}", "tokens/s", label)
        for key in KEYS if "ratio" in found else ():
            yield Figure(f"types.{name}.ratio.{key}", "×", f"{name}, {key}: over llama.cpp")
        for key in ("worse", "refused", "llamacpp_ended"):
            if key in found:
                yield Figure(f"types.{name}.{key}", "", f"{name}: {MEANINGS[key]}")


MEANINGS = {
    "worse": "perplexity over float32's, less 1",
    "refused": "refused",
    "llamacpp_ended": "llama.cpp",
}
