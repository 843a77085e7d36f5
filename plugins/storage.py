"""One plugin's storage: a file of this node between calls, sealed memory of the granted size while
the plugin runs.

Knows bytes and their number. Knows nothing of what they mean: the kit's slots are the plugin's own.
Always: a plugin holds no path and no file of the disk, only memory that the kernel lets nobody grow
or shrink; what lies on the disk is never larger than what was granted, is written whole or not at
all, and no link is followed.
"""

import fcntl
import os
from hashlib import sha256
from pathlib import Path

from ..core import paths
from ..core.errors import PluginError, QuietchoirError

SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class PluginStorage:
    """What one plugin keeps.

    Args:
        path: the file on this node.
        size: bytes granted; the plugin sees exactly so many, zeros where it never wrote.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._memory: int | None = None
        self._kept = b""  # digest of what lies on the disk

    def open(self) -> int:
        """A descriptor of the sealed memory, filled from the disk the first time.

        Raises:
            PluginError: the file cannot be read, is a link, or holds more than was granted; it
            stays as it is.
        """
        if self._memory is None:
            content = self._read()
            memory = os.memfd_create("quietchoir-storage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(memory, self.size)
                os.pwrite(memory, content, 0)
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
            except OSError as error:
                os.close(memory)
                raise PluginError(
                    f"{self.path}: no memory for {self.size} bytes ({error.strerror}); free some"
                ) from error
            self._memory, self._kept = memory, sha256(content.rstrip(b"\0")).digest()
        return self._memory

    def keep(self) -> None:
        """Write to the disk what the memory holds, if it changed.

        Raises:
            PluginError: no space or no permission; the disk holds what it held.
        """
        if self._memory is None:
            return
        content = os.pread(self._memory, self.size, 0).rstrip(b"\0")
        if (digest := sha256(content).digest()) == self._kept:
            return
        try:
            paths.private_folder(self.path.parent)
            paths.write_atomically(self.path, content, mode=0o600)
        except (OSError, QuietchoirError) as error:
            raise PluginError(f"what the plugin keeps was not written: {error}") from error
        self._kept = digest

    def close(self) -> None:
        """Let the memory go. What was not kept is lost."""
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None

    def _read(self) -> bytes:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise PluginError(
                f"{self.path}: cannot be opened ({error.strerror}); move it away"
            ) from error
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(self.size + 1)
        if len(content) > self.size:
            raise PluginError(
                f"{self.path}: holds more than the {self.size} bytes that this plugin is granted; "
                "move it away, or grant more in its manifest"
            )
        return content
