"""This node's own floor: what a federation must offer before its owner's data is trained on, and
whether its owner lets it take part now.

Knows `[consent]` of the node's configuration, the signed file, and a mark in the federation's
folder. Knows nothing of rounds.
Always: a federation below the floor is refused with a sentence that names the line of the
configuration.
"""

from pathlib import Path

from ...core import paths
from ...core.config import ConsentConfig
from ...core.errors import ConfigError, QuietchoirError
from ..spec.policy import Policy

PAUSED = "paused"  # in the federation's folder of a node's home
ADVICE = "stay out, or change that line of your configuration"


def check_consent(policy: Policy, consent: ConsentConfig) -> None:
    """Require that the federation is not below the owner's floor.

    Raises:
        ConfigError: says which line of `[consent]` it is below.
    """
    protection, privacy = policy.protection, policy.privacy
    if protection.mode not in consent.modes:
        raise ConfigError(
            f"federation {policy.name} runs {protection.mode!r}, but consent.modes allows "
            f"{', '.join(consent.modes)}; {ADVICE}"
        )
    if protection.min_cohort < consent.min_cohort:
        raise ConfigError(
            f"federation {policy.name} opens sums of {protection.min_cohort}, but "
            f"consent.min_cohort asks for "
            f"{consent.min_cohort}; {ADVICE}"
        )
    if policy.guard.open and not consent.open_ballots:
        raise ConfigError(
            f'federation {policy.name} has guard.ballots = "open": its coordinator reads by how '
            f"much this node's own held-out score rises or falls with each new adapter. "
            f"consent.open_ballots = true allows that; {ADVICE}"
        )
    if consent.max_epsilon and not privacy.on:
        raise ConfigError(
            f"federation {policy.name} has no differential privacy, but consent.max_epsilon allows "
            f"an epsilon of at most "
            f"{consent.max_epsilon:g}; {ADVICE}"
        )
    if privacy.on and privacy.delta > consent.max_delta:
        raise ConfigError(
            f"federation {policy.name} states its epsilon at a delta of {privacy.delta:g}, but "
            f"consent.max_delta allows "
            f"{consent.max_delta:g}: with that chance the epsilon says nothing; {ADVICE}"
        )
    if consent.max_epsilon and privacy.epsilon > consent.max_epsilon:
        raise ConfigError(
            f"federation {policy.name} may spend an epsilon of {privacy.epsilon:g}, but "
            f"consent.max_epsilon allows "
            f"{consent.max_epsilon:g}; {ADVICE}"
        )


def check_upload(policy: Policy, bytes_up: int, consent: ConsentConfig) -> None:
    """Require that a round's upload is not above the owner's limit.

    Raises:
        ConfigError: names `consent.max_upload_bytes`.
    """
    if consent.max_upload_bytes and bytes_up > consent.max_upload_bytes:
        raise ConfigError(
            f"federation {policy.name} needs about {bytes_up} bytes up in a round, but "
            f"consent.max_upload_bytes allows "
            f"{consent.max_upload_bytes}; {ADVICE}"
        )


def pause(folder: Path, paused: bool) -> None:
    """Take no part in the federation of this folder from now on, also after a restart; or again.

    Raises:
        QuietchoirError: the disk refuses; it is as before.
    """
    try:
        if paused:
            paths.write_atomically(folder / PAUSED, b"", mode=0o600)
        else:
            (folder / PAUSED).unlink(missing_ok=True)
    except OSError as error:
        raise QuietchoirError(
            f"{folder / PAUSED}: not changed ({error.strerror}); free the disk"
        ) from error


def why_paused(folder: Path) -> str:
    """Why this node takes no part now; "": its owner has not paused it."""
    if not (folder / PAUSED).exists():
        return ""
    return (
        "its owner has paused it; resume it on the node's page, or with: quietchoir federation "
        "resume"
    )
