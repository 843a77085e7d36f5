"""Members of a federation as askers of a library, and who this node is among them.

Knows the federation's signed file and this node's key: here private search and federations, which
know nothing of each other, meet. A request to a library is signed by whoever asks, for this library
and this purpose alone, so a member's key proves there what it proves to its coordinator.
Always: names and keys come from a chain that its owner signed and whose time is not over, the
newest one that this node has accepted.
Not covered: a member that leaves asks on until the library is served anew.
"""

import os
from pathlib import Path

from .core import paths
from .core.errors import ConfigError
from .crypto.identity import keyfile
from .crypto.identity.keys import Identity
from .federation.membership import keys, roster, unlock


def members(path: Path) -> dict[str, str]:
    """Names of a federation's members, by what they sign with (public key, hex).

    Raises:
        RosterError, ConfigError: changed after it was signed, on another branch than what this node
        has accepted, or its time is over.
    """
    chain, where = roster.read(path), f"{path}: "
    kept = roster.kept_for(paths.home(), chain.policy.federation.hex())
    if kept is not None:
        older, chain = sorted((chain, kept), key=lambda one: one.policy.version)
        chain.covers(older, where)
    roster.check_time(chain.policy, where)
    named = {
        member.key: chain.policy.name_of(bytes.fromhex(member.key))
        for member in chain.policy.members
    }
    return {key: name for key, name in named.items() if name is not None}


def identity(asked: keyfile.Passphrase | str | None = None) -> Identity:
    """What this node signs with in federations.

    Args:
        asked: for the passphrase of a locked key; by default the environment or a person.

    Raises:
        ConfigError: there is none, it cannot be opened, or it came out of a backup.
        AuthenticationError: a wrong passphrase.
    """
    home = paths.home()
    if why := keys.why_restored(home):
        raise ConfigError(why)
    path = home / keys.IDENTITY_FILE
    if not path.exists():
        raise ConfigError(
            f"{home} has no key of a federation's member; join one (quietchoir federation "
            f"identity), or ask without --member"
        )
    return Identity.load(path, asked or unlock.Asked())


def unattended() -> Identity:
    """The same where nobody is asked: a locked key is opened by the environment alone.

    Raises:
        ConfigError, AuthenticationError: as `identity`.
    """
    return identity(os.environ.get("QUIETCHOIR_PASSPHRASE") or _nobody)


def _nobody(path: Path) -> str:
    raise ConfigError(
        f"{path}: locked, and nobody is asked for its passphrase here; set QUIETCHOIR_PASSPHRASE "
        f"or have the library's owner hand out a token"
    )
