"""How much each input of a matrix weighs on a calibration text: the mean of its square, in
llama.cpp's two kinds of file.

Knows both formats, the older binary one and the GGUF one. Knows nothing of how it is measured or
used.
Always: every number that is read is finite and not negative; what is written is read back, and by
llama.cpp. A file takes its name only when it is whole.

Source: llama.cpp's `tools/imatrix/imatrix.cpp`, which writes both.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError, ModelFileError, ModelNotFoundError
from ...paths import make_folder, scratch_file, write_atomically
from ..files import gguf as gguf_file

Numbers = NDArray[np.float32]
SUMS, COUNTS = ".in_sum2", ".counts"
MAX_ENTRIES, MAX_NAME, MAX_COLUMNS = 1 << 20, 256, 1 << 28
LEGACY = ".dat"  # the ending of the older kind
ENDINGS = (LEGACY, ".gguf")
MAX_BYTES = 4 << 30  # of a file of the older kind, which is read whole
MOST_CALLS = 2**31 - 1  # that it can say


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceMatrix:
    """Of a whole model."""

    # by the file's name of a matrix ("blk.0.attn_q.weight"): mean squares of its inputs
    # [experts, columns]; one row where there are no experts
    entries: Mapping[str, Numbers] = field(repr=False)
    chunks: int  # pieces of text that it was measured on
    chunk_size: int = 0  # tokens of a piece; 0: not said
    datasets: tuple[str, ...] = ()  # names of the texts

    def write(self, path: Path) -> None:
        """As the older kind where the name ends in .dat, else as GGUF.

        Raises:
            QuietchoirError: no room or no permission; the old file, if any, is untouched.
        """
        if path.suffix == LEGACY:
            write_atomically(path, self.legacy())
        else:
            try:
                make_folder(path.parent)
                self.write_gguf(path)
            except OSError as error:
                raise ModelError(f"{path}: cannot be written ({error}); make room") from error

    def legacy(self) -> bytes:
        """The older kind: sums over the pieces, and how many those are."""
        calls = min(max(self.chunks, 1), MOST_CALLS)  # means stay; newer files count further
        parts = [struct.pack("<i", len(self.entries))]
        for name, means in self.entries.items():
            encoded, sums = name.encode(), (means * np.float32(calls)).astype("<f4")
            parts.append(struct.pack("<i", len(encoded)) + encoded)
            parts.append(struct.pack("<ii", calls, sums.size) + sums.tobytes())
        dataset = ", ".join(self.datasets).encode()
        parts.append(struct.pack("<ii", calls, len(dataset)) + dataset)
        return b"".join(parts)

    def write_gguf(self, path: Path) -> None:
        """The newer kind: sums over tokens, and how many those are."""
        from ..files.gguf_writer import GgufWriter

        tokens = max(self.chunks * (self.chunk_size or 1), 1)
        with scratch_file(path) as scratch, GgufWriter(scratch, "") as writer:
            writer.kv_data[0].pop("general.architecture", None)
            writer.add_type("imatrix")
            writer.add_array("imatrix.datasets", list(self.datasets) or ["unnamed"])
            writer.add_uint32("imatrix.chunk_count", self.chunks)
            writer.add_uint32("imatrix.chunk_size", self.chunk_size)
            for name, means in self.entries.items():
                writer.add_tensor(name + SUMS, means * np.float32(tokens))
                writer.add_tensor(name + COUNTS, np.full((len(means), 1), tokens, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()


def is_importance(path: Path) -> bool:
    """Whether a file is one of these, by its ending and what it begins with."""
    if path.suffix == LEGACY:
        return True
    if path.suffix != ".gguf" or not path.is_file():
        return False
    return gguf_file.read(path).metadata.get("general.type") == "imatrix"


def is_sound(path: Path) -> bool:
    """Whether a file is one that `read` takes."""
    try:
        read(path)
    except ModelError:
        return False
    return True


def read(path: Path) -> ImportanceMatrix:
    """One file of either kind.

    Raises:
        ModelNotFoundError: no such file. ModelFileError: it is none, or damaged.
    """
    try:
        if path.suffix == LEGACY and path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 30} GiB")
        found = read_legacy(path.read_bytes()) if path.suffix == LEGACY else read_gguf(path)
        for name, means in found.entries.items():
            if not bool(np.isfinite(means).all()) or bool((means < 0).any()):
                raise ValueError(f"{name:.80} has numbers that no mean square has")
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path}: no such file; give an importance matrix, as llama.cpp's `llama-imatrix` or "
            f"`model quantize --imatrix FILE` writes it"
        ) from None
    except (OSError, ValueError, struct.error) as error:
        raise ModelFileError(
            f"{path}: not an importance matrix ({error}); write it again"
        ) from error
    return found


def read_legacy(data: bytes) -> ImportanceMatrix:
    """Raises: ValueError, struct.error: cut short, or counts that it cannot hold."""
    place = 0

    def whole(most: int, what: str) -> int:
        nonlocal place
        (number,) = struct.unpack_from("<i", data, place)
        place += 4
        if not 0 <= number <= most:
            raise ValueError(f"it says {number} {what}")
        return int(number)

    def taken(size: int) -> bytes:
        nonlocal place
        if size > len(data) - place:
            raise ValueError("it is cut short")
        place += size
        return data[place - size : place]

    entries: dict[str, Numbers] = {}
    for _ in range(whole(MAX_ENTRIES, "matrices")):
        name = taken(whole(MAX_NAME, "letters of a name")).decode()
        calls = max(whole(MOST_CALLS, "calls"), 1)
        sums = np.frombuffer(taken(4 * whole(MAX_COLUMNS, "numbers")), "<f4")
        if not len(sums) or name in entries:
            raise ValueError(f"{name:.80} is empty, or there twice")
        entries[name] = (sums / np.float32(calls)).astype(np.float32)[None]
    chunks, datasets = 0, tuple[str, ...]()
    if place < len(data):  # older ones end here
        chunks = whole(MOST_CALLS, "pieces")
        datasets = (taken(whole(1 << 16, "letters")).decode(errors="replace"),)
    return ImportanceMatrix(entries=entries, chunks=chunks, datasets=datasets)


def read_gguf(path: Path) -> ImportanceMatrix:
    """Raises: ValueError: other tensors than sums and counts. OSError, ModelFileError: no GGUF."""
    file = gguf_file.read(path)
    if file.metadata.get("general.type") != "imatrix":
        raise ValueError("its general.type is not imatrix")
    entries: dict[str, Numbers] = {}
    for name, blocks in file.tensors.items():
        if not name.endswith(SUMS):
            continue
        counts = file.tensors.get(name.removesuffix(SUMS) + COUNTS)
        if counts is None or {blocks.quant_type, counts.quant_type} != {"F32"}:
            raise ValueError(f"{name:.80} has no counts, or is not of float32")
        sums = np.ascontiguousarray(blocks.memory).view(np.float32)
        tokens = np.ascontiguousarray(counts.memory).view(np.float32).reshape(-1, 1)
        if len(tokens) != len(sums):
            raise ValueError(f"{name:.80} has {len(sums)} rows and {len(tokens)} counts")
        # an expert that no row asked tells nothing: all its inputs weigh the same
        asked = tokens > 0
        found = np.where(asked, sums / np.where(asked, tokens, 1), 1.0).astype(np.float32)
        entries[name.removesuffix(SUMS)] = found
    if not entries:
        raise ValueError("it holds no sums")
    datasets = file.metadata.get("imatrix.datasets", [])
    return ImportanceMatrix(
        entries=entries,
        chunks=file.value("imatrix.chunk_count", int, 0),
        chunk_size=file.value("imatrix.chunk_size", int, 0),
        datasets=tuple(map(str, datasets)) if isinstance(datasets, list) else (),
    )
