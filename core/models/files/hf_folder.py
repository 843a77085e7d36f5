"""A model folder as Hugging Face's tools write it: config.json, and tensors in one file or several.

Knows files, JSON and tensor containers. Knows nothing of what a setting or a tensor name means.
Always: tensors are mapped, not copied; a pickle is only opened as plain tensors (`weights_only`),
so opening a folder never runs what is in it; a shard stays inside the folder.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import torch
from torch import Tensor

from ...errors import ModelFileError, ModelNotFoundError
from ..quant.tensor import QuantTensor, plain
from .lfs_pointer import refuse_pointer

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
SINGLE = ("model.safetensors", "pytorch_model.bin")  # the first that is there counts
INDEX = ".index.json"  # behind either name: which shard holds which tensor
MAX_JSON = 128 << 20  # bytes; the largest known tokenizer.json takes 34 MB
MAX_SHARDS = 1024
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ModelNotFoundError: no such file.
        ModelFileError: not a JSON object, or larger than any such file is.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelFileError(
                f"{path}: larger than {MAX_JSON >> 20} MB, which no such file is; "
                f"get the model again"
            )
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(
            f"{path}: no such file; give a .gguf file or a complete model folder"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise ModelFileError(
            f"{path}: not readable JSON ({error!s:.200}); get the model again"
        ) from error
    if not isinstance(found, dict):
        raise ModelFileError(
            f"{path}: holds a {type(found).__name__}, expected an object; get the model again"
        )
    return found


def optional_json(path: Path) -> dict[str, Any]:
    """One JSON object, or an empty one where there is no such file."""
    return read_json(path) if path.exists() else {}


def tensor_files(folder: Path) -> list[Path]:
    """The files that hold the folder's tensors, in order.

    Raises:
        ModelNotFoundError: none there, or a shard is missing.
        ModelFileError: an index that is no index.
    """
    for name in SINGLE:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / (name + INDEX)).is_file():
            return shards(folder, folder / (name + INDEX))
    raise ModelNotFoundError(
        f"{folder}: neither {' nor '.join(SINGLE)} is there; give a complete model folder"
    )


def shards(folder: Path, index: Path) -> list[Path]:
    """The files that an index names."""
    places = read_json(index).get("weight_map")
    names = (
        set(places.values())
        if isinstance(places, dict) and all(isinstance(v, str) for v in places.values())
        else set()
    )
    if not 0 < len(names) <= MAX_SHARDS:
        raise ModelFileError(
            f"{index}: names {len(names)} files, expected 1 to {MAX_SHARDS}; get the model again"
        )
    for name in sorted(names):
        if PurePosixPath(name).name != name or "\\" in name:
            raise ModelFileError(
                f"{index}: {name!r:.80} is not a file of this folder; get the model again"
            )
        if not (folder / name).is_file():
            raise ModelNotFoundError(
                f"{folder / name}: no such file, but {index.name} names it; get the model again"
            )
    return [folder / name for name in sorted(names)]


def read_tensors(
    folder: Path, skipped: tuple[str, ...], *, stacked: bool = False
) -> dict[str, QuantTensor]:
    """Every tensor of a folder as blocks; vectors become one row.

    Args:
        skipped: names that begin or end with one of these are not read.
        stacked: matrices may stand one above the other in a third dimension.

    Raises:
        ModelNotFoundError, ModelFileError: missing, damaged, more than plain tensors, or not plain
        floating-point matrices.
    """
    found: dict[str, QuantTensor] = {}
    for path in tensor_files(folder):
        for name, tensor in named_tensors(path):
            if name.startswith(skipped) or name.endswith(skipped):
                continue
            if name in found:
                raise ModelFileError(f"{path}: {name:.120} is in two files; get the model again")
            found[name] = as_blocks(path, name, tensor, stacked=stacked)
    return found


def named_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of one file, views on the mapped file where its kind allows it."""
    if path.suffix != ".bin":
        try:
            with safetensors.safe_open(path, "pt") as file:
                yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  # no mapping
        except (
            OSError,
            ValueError,
            TypeError,
            RuntimeError,
            MemoryError,
            safetensors.SafetensorError,
        ) as error:
            refuse_pointer(path)
            raise ModelFileError(
                f"{path}: damaged or cut short ({error!s:.200}); get the model again"
            ) from error
        return
    loaded = unpickle(path)
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise ModelFileError(
            f"{path}: holds a {type(loaded).__name__}, expected named tensors; "
            f"get it as safetensors"
        )
    yield from loaded.items()


def unpickle(path: Path) -> Any:
    """A legacy file's content, of which only plain tensors are accepted.

    Raises:
        ModelFileError: damaged, or it wants to run something.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refuse_pointer(path)
        raise ModelFileError(
            f"{path}: holds more than tensors, and opening it would run that; get the model as "
            f"safetensors"
        ) from error
    except Exception as error:  # what damaged bytes raise in torch's reader is open-ended
        refuse_pointer(path)
        raise ModelFileError(
            f"{path}: damaged or cut short ({error!s:.200}); get the model as safetensors"
        ) from error


def as_blocks(path: Path, name: str, tensor: object, *, stacked: bool = False) -> QuantTensor:
    """One tensor as rows of blocks."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.dtype not in DTYPES
        or not 1 <= tensor.dim() <= 2 + stacked
        or not tensor.numel()
    ):
        said = (
            (f"{tensor.dtype} {tuple(tensor.shape)}")
            if isinstance(tensor, Tensor)
            else type(tensor).__name__
        )
        raise ModelFileError(
            f"{path}: {name:.120} is {said}, expected a vector or matrix of float32, float16 or "
            f"bfloat16; "
            "choose a checkpoint that is not quantised, or a GGUF file"
        )
    # a view may claim any size over a few bytes, so it is not unfolded
    if not tensor.is_contiguous():
        raise ModelFileError(
            f"{path}: {name:.120} does not lie in one piece; save the model again as safetensors"
        )
    matrix = tensor.detach().reshape(-1, tensor.shape[-1])
    if matrix.data_ptr() % matrix.element_size():
        matrix = matrix.clone()
    return plain(matrix)
