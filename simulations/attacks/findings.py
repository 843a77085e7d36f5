"""What a long series has found so far, on disk after every arm.

Knows tables and a file. Knows nothing of attacks.
Always: the file is whole and holds every arm that has ended; arms of other settings are never mixed
in.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from ...core.paths import write_atomically


class Findings:
    """The arms of one series.

    Args:
        path: where they are written; None: nowhere.
        settings: what all arms have in common; `machine` may change between two halves of a series,
        and the last one is told. resume: go on with what is there already.
    """

    def __init__(
        self, path: Path | None, settings: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        """Read what is there.

        Raises:
            ConfigError: nothing to resume, other settings, or a report that would be written over.
        """
        self.path, self.settings, self.arms = path, dict(settings), list[dict[str, Any]]()
        there = path is not None and path.exists()
        if resume and path is None:
            raise ConfigError("--resume needs to know the report; name it with --out")
        if there and not resume:
            raise ConfigError(
                f"{path} is there already; go on with it (--resume), or name another file"
            )
        if there and path is not None:
            self.arms = self.read(path)

    def read(self, path: Path) -> list[dict[str, Any]]:
        """The arms of a report with these settings.

        Raises:
            ConfigError: other settings, or no report.
        """
        try:
            found = dict(json.loads(path.read_text("utf-8")))
            arms = [dict(arm) for arm in found.pop("arms")]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is no report of this kind ({error}); name another file"
            ) from error
        wanted = {key: value for key, value in self.settings.items() if key != "machine"}
        found.pop("machine", None)
        if found != wanted:
            raise ConfigError(
                f"{path} was found with {found}, this series has {wanted}; name another file"
            )
        return arms

    def has(self, **what: object) -> bool:
        """Is there an arm with all these values?"""
        return any(what.items() <= arm.items() for arm in self.arms)

    def add(self, arm: Mapping[str, Any]) -> None:
        """Note one more arm, and write the report."""
        self.arms.append(dict(arm))
        if self.path is not None:
            write_atomically(self.path, self.text().encode("utf-8") + b"\n")

    def beside(self, name: str) -> Path | None:
        """A file next to the report."""
        return None if self.path is None else self.path.with_suffix(f".{name}")

    def text(self) -> str:
        """The report, as JSON."""
        return json.dumps({**self.settings, "arms": self.arms}, indent=1)
