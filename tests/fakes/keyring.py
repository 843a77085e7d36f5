"""A keyring in memory, as a back-end of the `keyring` library would be."""

from typing import Any


class MemoryKeyring:
    """Keeps texts; `priority` as an encrypting back-end has it."""

    priority = 5

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.entries[service, username] = password


class ForgetfulKeyring(MemoryKeyring):
    """Says yes and keeps nothing, as the library's null back-end does."""

    def set_password(self, service: str, username: str, password: str) -> None:
        pass


class BrokenKeyring(MemoryKeyring):
    """Fails, and quotes what it was given."""

    def get_password(self, service: str, username: str) -> str | None:
        raise RuntimeError(f"{service} {username} {self.entries}")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise RuntimeError(f"cannot keep {password}")


class KeyringLibrary:
    """Stands in for the module `keyring` with one back-end."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.get_password, self.set_password = backend.get_password, backend.set_password

    def get_keyring(self) -> Any:
        return self.backend
