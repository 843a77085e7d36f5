"""The gguf package's writer, made to notice a disk that is full.

Knows how many bytes a file is to have. Knows nothing of what its tensors mean.
Always: a block that ends well has left every byte in the file; else it raised.
"""

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import gguf
import numpy as np


class WrittenArray(np.ndarray):
    """An array that is written through the file object. numpy's own way copies the last 4 KB at
    most into a buffer of C's and ignores the error when that is emptied.
    """

    def tofile(self, file: Any, *_: Any) -> None:
        """Raises: OSError: no room."""
        file.write(np.ascontiguousarray(self).data)


class GgufWriter(gguf.GGUFWriter):  # type: ignore[misc]
    """As its base, for a `with` block; one file, no shards."""

    size = 0  # that the file is to have, bytes; known once its tensors are described

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(OSError):  # what happened says more
                self.close()
            return
        self.close()
        if (found := Path(self.path).stat().st_size) != self.size:
            raise OSError(errno.EIO, f"{found:,} bytes lie on the disk, the file has {self.size:,}")

    def add_tensor(self, name: str, tensor: Any, *rest: Any, **named: Any) -> None:
        """As its base."""
        super().add_tensor(name, tensor.view(WrittenArray), *rest, **named)

    def write_ti_data_to_file(self) -> None:
        """As its base."""
        sizes = [one.nbytes for tensors in self.tensors for one in tensors.values()]
        super().write_ti_data_to_file()
        (file,) = self.fout
        self.size = sum(self.ggml_pad(one, self.data_alignment) for one in [file.tell(), *sizes])

    def write_tensor_data(self, tensor: Any, *rest: Any, **named: Any) -> None:
        """As its base. Raises: OSError: no room."""
        super().write_tensor_data(tensor.view(WrittenArray), *rest, **named)
