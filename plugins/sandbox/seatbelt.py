"""What macOS's sandbox-exec is to hold a plugin to: one profile, a text made of what was granted.

Knows a manifest's terms, and places. Starts nothing: this program runs no plugin on macOS.
Always: all is denied that is not listed; what a profile cannot hold is refused, by `refuses`, and
never granted openly. No Mac has run any of it: what is tested is the text.

Not covered, which makes it less than the other two: memory, processes, processors' time, disk
space, storage, and calls of the kernel, of which there is no filter; names, sizes and times of
files; who outlives whoever started it. Apple documents neither the language nor how long it lasts.
Source: sandbox-exec(1) of macOS; Chromium, sandbox/mac/seatbelt_sandbox_design.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import ConfigError
from ..manifest import Head, Permissions

# the linker, libraries, time zones; no program but Python begins
SYSTEM = ("/usr/lib", "/usr/share", "/System/Library", "/private/var/db/timezone")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
HELD_IN_VAIN = "; memory, processes, processors' time and disk space are not held here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What a plugin is shown, as absolute paths without links."""

    python: Path  # the prefix of the interpreter that runs it
    program: Sequence[Path]  # its bundle and the kit
    scratch: Path  # an empty folder of its own
    folders: Mapping[str, Path] = field(default_factory=dict)  # of its owner's, by their names


def refuses(asked: Permissions) -> str:
    """What of these permissions a profile cannot hold, in words; empty if it can hold all."""
    wanted = [
        *(["the network, which a profile opens whole or not"] if asked.network else []),
        *(["hosts, of which a profile tells none apart"] if asked.hosts else []),
        *(["storage, which is sealed memory of Linux's"] if asked.storage_bytes else []),
        *(["the model"] if asked.model_tokens else []),
        *(["tools of other plugins"] if asked.tools else []),
    ]
    return f"it asks for {'; and for '.join(wanted)}" if wanted else ""


def profile(head: Head, places: Places) -> str:
    """The text that `sandbox-exec -f` reads.

    Raises:
        ConfigError: it asks for what cannot be held, or a folder of its owner's is missing.
    """
    asked = head.permissions.filled(places.folders)
    if head.command:
        raise ConfigError(f"{head.id} wraps another program; a profile is made for Python alone")
    if why := refuses(asked):
        raise ConfigError(f"{head.id}: {why}; run it on Linux, where that is held")
    if missing := {*asked.folders, *asked.write_folders} - places.folders.keys():
        raise ConfigError(f"{head.id} asks for {min(missing)}; fill it in: plugin grant {head.id}")
    shown = [*map(Path, SYSTEM), places.python, *places.program]
    shown += [places.folders[name] for name in asked.folders]
    written = [places.scratch, *(places.folders[name] for name in asked.write_folders)]
    lines = [
        f";; {head.id} {head.version}{HELD_IN_VAIN}",
        "(version 1)",
        "(deny default)",
        rule("process-exec", [places.python]),
        *(["(allow process-fork)"] if head.limits.processes > 1 else []),
        "(allow signal (target same-sandbox))",
        "(allow sysctl-read)",
        "(allow file-read-metadata)",
        rule("file-read*", shown),
        rule("file-read*", map(Path, DEVICES), "literal"),
        rule("file-write-data", [Path("/dev/null")], "literal"),
        rule("file-read* file-write*", written),
        "(deny file-write-setugid)",  # whoever comes by would run it as its owner
        "(deny network*)",
    ]
    return "\n".join(lines) + "\n"


def rule(what: str, paths: Iterable[Path], kind: str = "subpath") -> str:
    """One rule that allows something in some places."""
    return f"(allow {what} {' '.join(f'({kind} {quoted(path)})' for path in paths)})"


def quoted(path: Path) -> str:
    """A path as a string of the language.

    Raises:
        ConfigError: a character that could end it, or that nobody sees.
    """
    text = str(path)
    if not path.is_absolute() or not text.isprintable() or '"' in text or "\\" in text:
        raise ConfigError(f"{text!r}: expected an absolute path without quotes or backslashes")
    return f'"{text}"'
