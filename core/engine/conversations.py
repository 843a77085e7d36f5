"""Keys and values of a conversation, on disk.

Knows one file format: safetensors with the tokens, what `Backend.read_cache` returned and behind it
what recurrent layers remember at their end, compressed without loss, and which model and adapter
all belong to. Knows nothing of blocks or of who asks.
Always: a file is written whole or not at all, and read only if every byte is as it was written.
Hazard: the file holds the conversation in clear, readable by its owner alone. Whoever can write it
decides what the model believes to have read; the digest finds damage, not malice. Restore only
files from a folder that nobody else writes to.
"""

import hashlib
import zlib
from collections import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import CacheError, QuietchoirError
from ..paths import private_folder, write_atomically

FORMAT = "quietchoir-conversation-2"
TOKEN_BYTES = 4 << 20  # of the cache at most: four times those of the largest models that are known
STATE_BYTES = 512 << 20  # of what recurrent layers remember behind it, likewise
ENDING = ".conversation"
FOLDER = "conversations"  # in the node's home: what the cache held when the node stopped


@dataclass(frozen=True, slots=True)
class SavedConversation:
    """What the cache holds for some tokens."""

    model: str  # digest of the weights
    adapter: str  # digest of the adapter; "" for none
    tokens: tuple[int, ...]
    cache: bytes  # of the blocks that hold them, with the label of their layout

    @property
    def digest(self) -> str:
        """Of everything in it, hexadecimal."""
        whole = hashlib.sha256(
            f"{FORMAT} {self.model} {self.adapter} {len(self.tokens)}\n".encode()
        )
        whole.update(np.array(self.tokens, np.int64).tobytes())
        whole.update(self.cache)
        return whole.hexdigest()


def write(path: Path, conversation: SavedConversation) -> None:
    """Write one conversation.

    Raises:
        QuietchoirError: no space or no permission; an older file of that name is untouched.
    """
    tensors: dict[str, NDArray[Any]] = {
        "tokens": np.array(conversation.tokens, np.int64),
        "cache": np.frombuffer(_pack(conversation.cache), np.uint8),
    }
    metadata = {
        "format": FORMAT,
        "model": conversation.model,
        "adapter": conversation.adapter,
        "bytes": str(len(conversation.cache)),
        "digest": conversation.digest,
    }
    try:
        private_folder(path.parent)
    except OSError as error:
        raise QuietchoirError(
            f"{path.parent}: cannot be made ({error.strerror}); choose another folder"
        ) from error
    write_atomically(path, save(tensors, metadata), mode=0o600)


def read(path: Path) -> SavedConversation:
    """Read one conversation.

    Raises:
        CacheError: no such file, not a conversation, or damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or set(file.keys()) != {"tokens", "cache"}:
                raise CacheError(
                    f"{path} is not a saved conversation of this version ({FORMAT}); delete it"
                )
            tokens, cache = file.get_tensor("tokens"), file.get_tensor("cache")
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"{path} cannot be read as a saved conversation ({error}); delete it"
        ) from error
    if tokens.dtype != np.int64 or tokens.ndim != 1 or cache.dtype != np.uint8 or cache.ndim != 1:
        raise CacheError(f"{path} holds tokens or a cache of another kind; delete it")
    said = metadata.get("bytes", "")
    size = int(said) if said.isascii() and said.isdigit() and len(said) < 16 else -1
    most = STATE_BYTES + TOKEN_BYTES * len(tokens)
    found = SavedConversation(
        metadata.get("model", ""),
        metadata.get("adapter", ""),
        tuple(tokens.tolist()),
        _unpack(cache.tobytes(), size) if 0 <= size <= most else b"",
    )
    if found.digest != metadata.get("digest"):
        raise CacheError(
            f"{path} is damaged: its content has not the digest that was written; delete it"
        )
    return found


def _pack(cache: bytes) -> bytes:
    """Compressed, every other byte first: exponents of 16-bit numbers are alike, their fractions
    are not.
    """
    return zlib.compress(cache[0::2] + cache[1::2], level=1)


def _unpack(packed: bytes, size: int) -> bytes:
    """What `_pack` was given, no more than `size` bytes of it; empty where that is another size."""
    try:
        planes = zlib.decompressobj().decompress(packed, size + 1)
    except zlib.error:
        return b""
    if len(planes) != size:
        return b""
    cache, half = bytearray(size), (size + 1) // 2
    cache[0::2], cache[1::2] = planes[:half], planes[half:]
    return bytes(cache)


def saved(folder: Path) -> list[Path]:
    """The conversations in a folder, by name."""
    return sorted(folder.glob(f"*{ENDING}"))


def replace_all(folder: Path, found: abc.Sequence[SavedConversation]) -> None:
    """Let a folder hold these conversations and no others, in this order.

    Raises:
        QuietchoirError: no space or no permission; those that were there before may still be.
    """
    names = [
        folder / f"{place:04}-{conversation.digest[:16]}{ENDING}"
        for place, conversation in enumerate(found)
    ]
    for path, conversation in zip(names, found, strict=True):
        write(path, conversation)
    for path in {*saved(folder)} - {*names}:
        path.unlink(missing_ok=True)
