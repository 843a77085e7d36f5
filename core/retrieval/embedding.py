"""The embedding model, with its identity; read when it is first needed.

Knows the model's files. Knows nothing of what is embedded.
Always: two models, or two versions of one, never have one identity.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import log
from ..errors import MissingPartError, ModelNotFoundError
from ..parts import wanted

if TYPE_CHECKING:
    from ..models.embedding.embedder import SentenceEmbedder

MANY = 8  # texts at once
logger = log.get("retrieval")


class IdentifiedEmbedder:
    """An embedding model of a folder."""

    def __init__(
        self, folder: Path, read: "Callable[[Path], SentenceEmbedder] | None" = None
    ) -> None:
        """Read it.

        Args:
            read: gives the folder's model, where it is held for others too; None: from the disk.

        Raises:
            ModelError: not usable. MissingPartError: torch is not installed.
        """
        with wanted("search by meaning"):
            import torch

            from ..models.embedding.embedder import SentenceEmbedder
        self._torch = torch
        # Where the processor multiplies them itself, half the time; a vector moves by less than
        # 1 in 10,000 (cosine), below what storing it in 16 bits costs.
        self._halved = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        self.identity = identity_of(folder)
        self._model = (read or SentenceEmbedder.load)(folder)
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, float32 [N, D]; what is beyond the model's length is not seen."""
        many = len(texts) > MANY  # of a few, turning the weights into 16 bits takes longer
        bfloat16 = self._torch.autocast("cpu", self._torch.bfloat16, enabled=self._halved and many)
        with self._lock, bfloat16:
            return self._model.embed(texts)


def identity_of(folder: Path) -> str:
    """Of a model: what decides its vectors, digested."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt") and path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            whole.update(f"{path.name}\n".encode() + digest)
    return f"{folder.name} {whole.hexdigest()}"


def at_first_use(
    find: Callable[[], Path], read: "Callable[[Path], SentenceEmbedder] | None" = None
) -> Callable[[], IdentifiedEmbedder | None]:
    """A function that reads the model once, at its first call; None where it is not on this disk,
    or torch is not: then words alone are searched, and the log says so once.
    """
    lock = threading.Lock()
    found: list[IdentifiedEmbedder | None] = []

    def embedder() -> IdentifiedEmbedder | None:
        with lock:
            if not found:
                try:
                    found.append(IdentifiedEmbedder(find(), read))
                except (ModelNotFoundError, MissingPartError) as error:
                    logger.warning("documents are searched by their words alone: %s", error)
                    found.append(None)
            return found[0]

    return embedder
