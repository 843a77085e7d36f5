"""Tokens: what an owner hands to people who are to have an account of their own.

A token is a private key that signs an asker's requests; its host keeps the public half alone, under
a name, and counts what is asked against it. Whoever has the token is that asker.
Knows one file of a home. Always: no token can be read out of it.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..core.errors import ConfigError, UnknownEntryError
from ..core.paths import write_atomically
from ..core.retrieval.collections import NAME
from ..crypto.identity.keys import KEY_BYTES, Identity, PublicIdentity

FILE = "tokens.json"
MARK = "qcl_"  # before the key's 64 hexadecimal digits


class TokenList:
    """The tokens that a home has handed out. Args: room: the folder of its libraries."""

    def __init__(self, room: Path) -> None:
        self._path = room / FILE

    def names(self) -> dict[str, str]:
        """Name to public key (hex).

        Raises:
            ConfigError: the file cannot be read: rather no library than a forgotten account.
        """
        try:
            found = json.loads(self._path.read_bytes()) if self._path.exists() else {}
            return {
                str(name): PublicIdentity(bytes.fromhex(key)).raw.hex()
                for name, key in found.items()
            }
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{self._path}: cannot be read ({error}); restore it, or delete it and hand out "
                f"other tokens"
            ) from error

    def add(self, name: str) -> str:
        """A new token; it is shown this once.

        Raises:
            ConfigError: no name for one, or one that is given already.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name for a token; take small letters, digits, _ and -"
            )
        token = f"{MARK}{os.urandom(KEY_BYTES).hex()}"
        with self._changed() as names:
            if name in names:
                raise ConfigError(f"{name} has a token already; remove it first")
            names[name] = identity(token).public.raw.hex()
        return token

    def remove(self, name: str) -> None:
        """Take one back. What it was told still counts, should its key come again.

        Raises:
            UnknownEntryError: none is called so.
        """
        with self._changed() as names:
            if name not in names:
                raise UnknownEntryError(
                    f"no token is called {name[:80]!r}; there are: {', '.join(names) or 'none'}"
                )
            del names[name]

    @contextmanager
    def _changed(self) -> Iterator[dict[str, str]]:
        """The names, kept from other processes, and written when the block ends well."""
        with self._path.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            names = self.names()
            yield names
            write_atomically(self._path, json.dumps(names).encode(), mode=0o600)


def identity(token: str) -> Identity:
    """Who signs with a token.

    Raises:
        ConfigError: it is none.
    """
    try:
        if not token.startswith(MARK):
            raise ValueError("another beginning")
        raw = bytes.fromhex(token.removeprefix(MARK))
        return Identity(Ed25519PrivateKey.from_private_bytes(raw))
    except ValueError as error:
        raise ConfigError(
            f"a token begins with {MARK} and has {2 * KEY_BYTES} hexadecimal digits behind it; "
            f"copy the whole line that `quietchoir library token add` printed"
        ) from error
