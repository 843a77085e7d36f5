"""An adapter as the file that llama.cpp loads beside a GGUF model.

Knows llama.cpp's names for LoRA tensors and the order of rows that its rope expects. Knows nothing
of registries.
Always: the product B A of a written file, applied by llama.cpp to the very model file, is the
adapter's own; a family whose GGUF files fuse projections is refused, because half a fused matrix
has no name there.

Source: llama.cpp's convert_lora_to_gguf.py (names, metadata) and llama-adapter.cpp (scale = alpha /
rank).
"""

from pathlib import Path

import torch

from ...core.errors import ModelFileError
from ...core.models.architecture import (
    LORA_A,
    LORA_B,
    MLP_PROJECTIONS,
    ROPE_PROJECTIONS,
    Architecture,
)
from ...core.models.checkpoint.from_gguf import interleave
from ...core.models.families import FAMILIES
from ...core.models.files.gguf_writer import GgufWriter
from ...core.models.lora.adapter import MODULE, Adapter
from ...core.paths import make_folder, scratch_file

QUERIES = ROPE_PROJECTIONS[0]


def write(path: Path, adapter: Adapter, architecture: Architecture, *, mode: int = 0o644) -> None:
    """Write `path` whole, or not at all; a file that is there is replaced.

    Raises:
        ModelFileError: shapes that do not fit the model, a family that fuses the adapted
        projections, or an adapter that does more than add. OSError: no space or no permission.
    """
    adapter.check(architecture)
    if not adapter.only_adds:
        raise ModelFileError(
            "llama.cpp adds B A and no more: it has no place for this adapter's magnitudes or "
            "biases (DoRA, bias, lora_bias); export a PEFT folder instead"
        )
    named = {
        theirs(name, architecture): order(name, tensor, architecture)
        for name, tensor in in_file_matrices(adapter, architecture).items()
    }
    make_folder(path.parent)
    with scratch_file(path) as scratch, GgufWriter(scratch, architecture.family) as writer:
        scratch.chmod(mode)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", adapter.shape.alpha)
        for name, tensor in named.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def in_file_matrices(adapter: Adapter, architecture: Architecture) -> dict[str, torch.Tensor]:
    """The adapter's tensors by our matrices, whose rows are a file's; queries and their gates stand
    in one matrix there, as in a folder.
    """
    own = FAMILIES[architecture.family].in_files(architecture)
    queries = {name: one for name, one in adapter.tensors.items() if f".{QUERIES}." in name}
    return adapter.trained(own) | queries


def theirs(name: str, architecture: Architecture) -> str:
    """`model.layers.22.self_attn.q_proj.lora_A.weight` → `blk.22.attn_q.weight.lora_a`. A mixer and
    the feed-forward behind it are layers of their own in files of families where some have none.

    Raises:
        ModelFileError: the family's files fuse this projection with others.
    """
    match = MODULE.match(name)
    assert match is not None  # `Adapter.check` has seen it
    family = FAMILIES[architecture.family]
    if any(match[2] in parts for parts in family.gguf_fused.values()):
        raise ModelFileError(
            f"GGUF files of {family.name} hold {match[2]} fused with others, so an adapter of it "
            f"alone has no name there; "
            "export a PEFT folder instead"
        )
    half, layer = "lora_a" if name.endswith(LORA_A) else "lora_b", int(match[1])
    if lone := architecture.lone_mixers:
        layer = 2 * layer - sum(lone[:layer]) + (match[2] in MLP_PROJECTIONS)
    return f"blk.{layer}.{family.in_gguf(match[2])}.weight.{half}"


def order(name: str, tensor: torch.Tensor, architecture: Architecture) -> torch.Tensor:
    """The tensor in the file's order of rows: A as it is, B of q and k as the model's own rows
    lie.
    """
    plain, match = tensor.detach().to("cpu", torch.float32).contiguous(), MODULE.match(name)
    if (
        match is None
        or match[2] not in ROPE_PROJECTIONS
        or not name.endswith(LORA_B)
        or not FAMILIES[architecture.family].interleaved
    ):
        return plain
    return plain[interleave(plain.shape[0], architecture.head_dim)].contiguous()
