"""What a run on Flower's own engines is told: `app/pyproject.toml`, or `flwr run
federation/transport/app --run-config "…"`.

Knows names, types and defaults. Knows nothing of what is done with them.
Always: a value of another type is refused; a key that is missing has the value below.

    federation   the signed file; empty: an unprotected rehearsal      rounds     0: the file's, or
                                                                       10 without one
    state, keys, report   the coordinator's folders and its report     min-nodes  without a file:
                                                                       fewer end the run
    homes        simulation: a folder with one node's home a member    rehearse   values of a
                                                                       pretended adapter; 0: earnest
    data         simulation: a folder with one of examples a member    model      without a file:
                                                                       what is trained
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ...core.errors import ConfigError

UNPROTECTED_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run's."""

    federation: str = ""
    state: str = ""
    keys: str = ""
    report: str = ""
    homes: str = ""
    data: str = ""
    model: str = "smollm2-135m-instruct"
    rounds: int = 0
    min_nodes: int = 2
    rehearse: int = 0

    @staticmethod
    def read(run_config: Mapping[str, object]) -> "Settings":
        """Raises ConfigError for a value of another type."""
        given: dict[str, object] = {}
        for one in fields(Settings):
            key = one.name.replace("_", "-")
            value = run_config.get(key, one.default)
            if type(value) is not type(one.default):
                raise ConfigError(
                    f"run config: {key} = {value!r} must be {type(one.default).__name__}"
                )
            given[one.name] = value
        return Settings(**given)  # type: ignore[arg-type]
