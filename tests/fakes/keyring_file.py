"""A back-end of the real `keyring` library that needs no desktop: entries in one file, named by a
variable.

The library finds it by `PYTHON_KEYRING_BACKEND`, in a process of its own.
"""

import json
import os
from pathlib import Path

from keyring.backend import KeyringBackend

VARIABLE = "QUIETCHOIR_TEST_KEYRING"
NAME = f"{__name__}.FileKeyring"


class FileKeyring(KeyringBackend):
    """Keeps texts in the file that `QUIETCHOIR_TEST_KEYRING` names. It says of itself that it
    encrypts; it does not.
    """

    priority: float = 5  # a class property in the library

    @property
    def entries(self) -> dict[str, str]:
        path = Path(os.environ[VARIABLE])
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.entries.get(f"{service} {username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        Path(os.environ[VARIABLE]).write_text(
            json.dumps({**self.entries, f"{service} {username}": password})
        )

    def delete_password(self, service: str, username: str) -> None:
        kept = self.entries
        del kept[f"{service} {username}"]
        Path(os.environ[VARIABLE]).write_text(json.dumps(kept))
