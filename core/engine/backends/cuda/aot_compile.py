"""The kernels compiled for GPUs that are not here.

Knows which shapes a model's steps have, and how Triton is told of a device. Knows nothing of how
fast anything runs.
Always: what is compiled is what a launch of `TritonOps` on such a device would compile, its
specialisations included; nothing is launched. It wants a process of its own: `python -m
quietchoir.core.engine.backends.cuda.aot_compile` prints what the README quotes, and ends with 1 if
a kernel would not start.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from ....models.architecture import Architecture
from .cache import Cache
from .decoder import slab_rows
from .ops import DeviceStep, Heads, Norm
from .packed import CHUNK, Packed
from .triton_ops import TritonOps

META = torch.device("meta")
# What one program may take of a processor's shared memory, bytes. Source: CUDA C++ Programming
# Guide, compute capabilities.
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}
REGISTERS = 1 << 16  # of one processor, of each of these
LLAMA = Architecture(
    family="llama",
    num_layers=1,
    hidden_size=5120,
    intermediate_size=13824,
    num_heads=40,
    num_kv_heads=40,
    head_dim=128,
    vocab_size=32_000,
    rope_theta=1e4,
    norm_eps=1e-5,
    context_length=2048,
)  # 13B
GEMMA = Architecture(
    family="gemma3",
    num_layers=1,
    hidden_size=2560,
    intermediate_size=10240,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    vocab_size=262_144,
    rope_theta=1e4,
    norm_eps=1e-6,
    context_length=2048,
    qk_norm=True,
    activation="gelu_tanh",
    windows=(1024,),
    post_norms=True,
)  # 4B
ODD = Architecture(
    family="gemma3",
    num_layers=1,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=6,
    num_kv_heads=2,
    head_dim=24,
    vocab_size=257,
    rope_theta=1e4,
    norm_eps=1e-6,
    context_length=256,
    qk_norm=True,
    biases=("self_attn.q_proj",),
    activation="gelu_tanh",
    windows=(9,),
    post_norms=True,
)  # nothing a power of two, and everything that a family does beyond Llama
# rows at the end
SHAPES = {"13b 1": (LLAMA, 1), "13b 16": (LLAMA, 16), "gemma 1": (GEMMA, 1), "odd 3": (ODD, 3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the assembler says of one kernel."""

    name: str
    capability: int
    dtype: str
    shape: str  # what it was compiled for
    warps: int
    registers: int  # of a thread
    spilled: int  # bytes of a thread's registers that went to memory
    shared: int  # bytes of one program

    def unsupported(self) -> str:
        """Why it would not start; empty if it would."""
        if self.shared > SHARED[self.capability]:
            return (
                f"{self.name} takes {self.shared} bytes of shared memory, sm_{self.capability} "
                f"has {SHARED[self.capability]}"
            )
        threads = 32 * self.warps
        if self.registers * threads > REGISTERS:
            return (
                f"{self.name} takes {self.registers} registers in {threads} threads, a "
                f"processor has {REGISTERS}"
            )
        return ""


class AbsentDevice:
    """A CUDA device as far as Triton's compiler asks about one."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Triton keeps what it has compiled by this number."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Nothing is ever launched on it."""
        return 0 * device


@contextmanager
def stood_in(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Within the block, kernels are compiled for such a device and not launched: their names,
    and what came out.
    """
    made: list[tuple[str, Any]] = []
    launch = triton.runtime.JITFunction.run

    def compiled(kernel: Any, *arguments: Any, **options: Any) -> Any:
        found = launch(kernel, *arguments, **{**options, "warmup": True})
        made.append((kernel.fn.__name__, found))
        return found

    triton.runtime.driver.set_active(AbsentDevice(capability))
    triton.runtime.JITFunction.run = compiled
    try:
        yield made
    finally:
        triton.runtime.JITFunction.run = launch


def compile_for(capability: int, shape: str, dtype: torch.dtype = torch.bfloat16) -> list[Compiled]:
    """Every kernel of one step, each with the resources it takes.

    Args:
        capability: 80 for compute capability 8.0, and so on.
        shape: a key of SHAPES.
    """
    with stood_in(capability) as made:
        one_layer(TritonOps(dtype), *SHAPES[shape])
    found = []
    for name, kernel in made:
        registers, spilled = resources(kernel.asm["cubin"])
        found.append(
            Compiled(
                name=name,
                capability=capability,
                dtype=str(dtype).removeprefix("torch."),
                shape=shape,
                warps=kernel.metadata.num_warps,
                registers=registers,
                spilled=spilled,
                shared=kernel.metadata.shared,
            )
        )
    return list(dict.fromkeys(found))


def one_layer(ops: TritonOps, architecture: Architecture, rows: int) -> None:
    """Every operation of a layer, in each of its forms, on tensors without memory."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=META)

    width, size = architecture.hidden_size, architecture.head_dim
    x, residual, norm = empty(rows, width, dtype=ops.dtype), empty(rows, width), empty(width)
    queries = (architecture.num_heads + 2 * architecture.num_kv_heads) * size
    for packed in (
        matrix(4, queries, width),
        matrix(4, queries, width, zeros=True),
        matrix(8, architecture.vocab_size, width),
    ):
        ops.product(packed, x)
        ops.unpack(packed, 0, slab_rows(packed.rows, packed.columns))
    partial = ops.product(matrix(4, queries, width), x)
    rope = (
        empty(architecture.context_length, size // 2),
        empty(architecture.context_length, size // 2),
    )
    heads = Heads(
        heads=architecture.num_heads,
        num_kv_heads=architecture.num_kv_heads,
        size=size,
        scale=architecture.scale(),
        window=architecture.window(0),
        rope=rope,
        bias=empty(queries) if architecture.biases else None,
        norms=(empty(size), empty(size)) if architecture.qk_norm else None,
        eps=architecture.norm_eps,
    )
    cache = Cache(architecture, architecture.context_length // 16, META)
    width_of_tables = architecture.context_length // 16
    step = DeviceStep(
        empty(rows, dtype=torch.long), empty(rows, dtype=torch.long),
        empty(rows, width_of_tables, dtype=torch.int32), empty(rows, dtype=torch.int32),
    )  # fmt: skip
    q = ops.rope_and_store(partial, heads, step, cache, 0)
    mixed = ops.attend(q, heads, step, cache, 0)
    own = Norm(norm, architecture.norm_eps)
    ops.add_norm(residual, None, own)
    added = ops.product(matrix(4, width, mixed.shape[1]), mixed)
    ops.add_norm(residual, added, own, own if architecture.post_norms else None)
    gates = ops.product(matrix(4, 2 * architecture.intermediate_size, width), x)
    ops.gate(gates, architecture.activation)


def matrix(bits: int, rows: int, columns: int, *, zeros: bool = False) -> Packed:
    """A matrix without numbers."""
    chunks = -(-columns // CHUNK)
    words = (chunks, rows, 16) if bits == 4 else (chunks, rows, CHUNK)
    groups = (4 * chunks, rows)
    return Packed(
        bits, rows, columns,
        torch.empty(words, dtype=torch.int32 if bits == 4 else torch.int8, device=META),
        torch.empty(groups, dtype=torch.float16, device=META),
        torch.empty(groups, device=META) if zeros else None,
    )  # fmt: skip


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of them that are spilled, as `cuobjdump` beside Triton
    says.
    """
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    words = dict(word.split(":", 1) for word in said.split() if word.count(":") == 1)
    return int(words["REG"]), int(words["STACK"]) + int(words["LOCAL"])


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, and say what would not start."""
    parser = argparse.ArgumentParser(
        description="compile the CUDA kernels for GPUs that need not be here"
    )
    parser.add_argument(
        "--capability",
        type=int,
        action="append",
        choices=sorted(SHARED),
        help="80 for 8.0; default: all",
    )
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="default: all")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON a kernel instead of the table"
    )
    chosen = parser.parse_args(arguments)
    complaints = []
    for capability in chosen.capability or SHARED:
        for shape in chosen.shape or SHAPES:
            for kernel in compile_for(capability, shape, getattr(torch, chosen.dtype)):
                where = f"sm_{kernel.capability} {kernel.dtype} {kernel.shape:8}"
                takes = (
                    f"{kernel.registers} registers, {kernel.spilled} spilled, {kernel.shared} "
                    f"shared, {kernel.warps} warps"
                )
                print(
                    json.dumps(asdict(kernel))
                    if chosen.json
                    else f"{where} {kernel.name:13} {takes}"
                )
                complaints += [kernel.unsupported()] if kernel.unsupported() else []
    print(*complaints, sep="\n", end="\n" if complaints else "", file=sys.stderr)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
