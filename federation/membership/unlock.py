"""Where the passphrase of a locked key file comes from: the environment, or a person at a terminal.

Knows one variable and one prompt. Knows nothing of files or ciphers.
Always: a passphrase is asked for only when a file is locked with one, once a run, and again where
it was wrong; it appears in no message and no repr.
"""

import getpass
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import ConfigError
from ...crypto.identity.keyfile import Keyring, SystemKeyring

VARIABLE = "QUIETCHOIR_PASSPHRASE"
LOCK_KINDS = ("passphrase", "keyring", "none")


@dataclass(frozen=True, slots=True)
class Lock:
    """How a key file is closed; not at all by default."""

    passphrase: str | None = field(default=None, repr=False)
    keyring: Keyring | None = field(default=None, repr=False)


OPEN = Lock()


class Asked:
    """Asks for a passphrase when called with the path of a locked file; one answer serves every
    file of the run.

    Hazard: `QUIETCHOIR_PASSPHRASE` is for nodes that start without a person. Other programs of the
    same user and every child of this one can read it, and service managers show it; there it
    protects the disk and its backups, no more. Where a person starts the node, leave it unset and
    answer the prompt, or use the keyring.
    """

    def __init__(self) -> None:
        self._answer: str | None = None

    def __call__(self, path: Path) -> str:
        """The passphrase.

        Raises:
            ConfigError: neither the variable nor a terminal is there.
        """
        if self._answer is None:
            self._answer = _from_environment() or _prompt(f"passphrase of {path}: ", path)
        return self._answer

    def refused(self, path: Path) -> None:  # noqa: ARG002  # whatever it did not open
        """It was wrong: whoever needs one next is asked again."""
        self._answer = None

    def __repr__(self) -> str:
        return "Asked()"


def choose(kind: str, path: Path) -> Lock:
    """What the owner wants from now on.

    Args:
        way: one of `LOCK_KINDS`.
        path: what is to be locked, for the prompt.

    Raises:
        ConfigError: two different passphrases, an empty one, nobody to ask, or no keyring on this
        system.
    """
    if kind == "none":
        return OPEN
    if kind == "keyring":
        return Lock(keyring=SystemKeyring())
    given = _from_environment()
    if given is None:
        given = _prompt(f"new passphrase for {path}: ", path)
        if given != _prompt("the same again: ", path):
            raise ConfigError("the two passphrases differ; nothing was changed, try again")
    if not given:
        raise ConfigError("an empty passphrase protects nothing; nothing was changed, try again")
    return Lock(passphrase=given)


def _from_environment() -> str | None:
    return os.environ.get(VARIABLE) or None


def _prompt(words: str, path: Path) -> str:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{path}: a passphrase is needed; start at a terminal, or set {VARIABLE} (docs say "
            f"what that exposes)"
        )
    return getpass.getpass(words)
