"""Any MCP server as a plugin: what of it has to be seen inside, and how it is called there.

Knows how Python and node find a program, and the files in which other hosts list their servers.
Starts nothing.
Always: what runs is a copy of one folder, under its digest; nothing is fetched; a command that
would fetch its program is refused, or answered from a folder where it is installed already.
"""

import importlib.metadata
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import paths
from ..core.errors import ConfigError
from .sandbox.policy import DATA, FILES, PYTHON

PYTHONS = re.compile(r"python(3(\.\d+)?)?")
FETCHERS = {"npx": "npm install --prefix DIR PACKAGE", "uvx": "python -m venv DIR; pip install"}
SKIPPED = ("-y", "--yes", "-q", "--quiet")
# never shown whole, not even to be read
TOO_BROAD = (
    "/",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/tmp",
)
# nothing in them is shown as the owner's own, but where a home or a disk lies
SYSTEM = ("/usr", "/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/var")
OWNERS = ("/run/media", "/var/tmp")


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A command as it is called inside."""

    command: tuple[str, ...]  # PYTHON as the first word: the sandbox's own
    folder: Path | None  # what is copied, and seen as FILES; None: the system's programs suffice
    python: str = ""  # "3.11": compiled parts are for this one


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """One server of an `mcpServers` file."""

    name: str
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def read_servers(path: Path) -> dict[str, ServerEntry]:
    """The servers that another host's file lists (`mcpServers`, or `servers`).

    Raises:
        ConfigError: not such a file, or a server that is reached over the network.
    """
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    rows = None
    if isinstance(table, dict):
        rows = table.get("mcpServers", table.get("servers"))
    if not isinstance(rows, dict):
        raise ConfigError(f'{path}: expected {{"mcpServers": {{NAME: {{"command": …}}}}}}')
    return {name: listed(name, row, path) for name, row in rows.items()}


def listed(name: str, row: Any, path: Path) -> ServerEntry:
    """One row of such a file. Raises: ConfigError: as `read_servers`."""
    row = row if isinstance(row, dict) else {}
    command, words, environment = row.get("command"), row.get("args", []), row.get("env", {})
    if isinstance(words, list) and isinstance(environment, dict):
        texts = (command, *words, *environment.values())
        if all(isinstance(one, str) and "\0" not in one for one in texts):
            return ServerEntry(name, (str(command), *words), environment)
    raise ConfigError(
        f"{path}: {name} has no command with args and env; servers that are reached over the "
        f"network are not wrapped"
    )


def resolve(words: Sequence[str], folder: Path | None) -> Wrapped:
    """What to copy and how to call it, for the command `words`.

    Args:
        folder: where its program and all that it stands on are installed; None: found from the
            command itself.

    Raises:
        ConfigError: no such program, one that would be fetched first, or one in a folder of other
        things too, which it would see.
    """
    found = program_of(words, folder)
    if found.folder is not None:
        narrow(found.folder, f"{words[0]} runs from", SYSTEM[1:])  # programs lie in /usr
    return found


def program_of(words: Sequence[str], folder: Path | None) -> Wrapped:
    """As `resolve`, wherever it lies."""
    name, rest = Path(words[0]).name, list(words[1:])
    if name in FETCHERS:
        while rest and rest[0] in SKIPPED:
            rest.pop(0)
        package = re.sub(r"(?<=.)[@=].*", "", rest[0]) if rest else ""
        if folder is None or not package or package.startswith("-"):
            raise ConfigError(
                f"{' '.join(words)}: {name} fetches its program when it starts, and plugins have "
                f"no network; install it first ({FETCHERS[name]}), then name the folder: --folder "
                f"DIR"
            )
        if name == "npx":
            return node(npm_program(folder, package), rest[1:], folder)
        return entry_point(site_packages(folder), package, rest[1:])
    found = shutil.which(words[0])
    if found is None:
        raise ConfigError(f"{words[0]}: no such program; install it, or write its whole path")
    program = Path(found).absolute()
    venv = program.parent.parent if (program.parent.parent / "pyvenv.cfg").exists() else None
    if PYTHONS.fullmatch(name):
        return python(rest, folder, venv)
    if name == "node":
        if not rest or not Path(rest[0]).is_file():
            raise ConfigError(f"{' '.join(words)}: expected node FILE")
        return node(Path(rest[0]), rest[1:], folder)
    with program.open("rb") as file:
        first = file.readline(256)
    if first.startswith(b"#!") and b"node" in first:
        return node(program.resolve(), rest, folder)
    if first.startswith(b"#!") and b"python" in first and (folder or venv):
        return entry_point(site_packages(folder or venv or program), name, rest)
    if program.is_relative_to("/usr") and folder is None:
        return Wrapped((str(program), *rest), None)
    folder = folder or program.parent
    return Wrapped(inside((str(program), *rest), folder, FILES), folder)


def python(rest: Sequence[str], folder: Path | None, venv: Path | None) -> Wrapped:
    """`python -m MODULE …` with the packages of its environment, or `python FILE …` with what lies
    beside the file.
    """
    script = Path(rest[0]).absolute() if rest and not rest[0].startswith("-") else None
    if script is not None and folder is None:
        if not script.is_file():
            raise ConfigError(f"{rest[0]}: no such file")
        return Wrapped((PYTHON, f"{FILES}/{script.name}", *rest[1:]), script.parent)
    if folder is None and venv is None:
        return Wrapped((PYTHON, *rest), None)
    site = site_packages(folder or venv or Path())
    return Wrapped((PYTHON, *inside(rest, site, FILES)), site, version_of(site))


def entry_point(site: Path, name: str, rest: Sequence[str]) -> Wrapped:
    """A program that a Python package installs under `name`."""
    for package in importlib.metadata.distributions(path=[str(site)]):
        for point in package.entry_points:
            if point.group == "console_scripts" and point.name == name:
                start = (
                    f"import sys; from {point.module} import {point.attr.split('.')[0]}; "
                    f"sys.argv[0] = {name!r}; sys.exit({point.attr}())"
                )
                return Wrapped((PYTHON, "-c", start, *rest), site, version_of(site))
    raise ConfigError(f"{site}: no package in there installs a program called {name}")


def site_packages(folder: Path) -> Path:
    """Where a virtual environment keeps its packages; a folder of packages is its own."""
    return next(iter(sorted(folder.glob("lib/python3*/site-packages"))), folder).absolute()


def version_of(site: Path | None) -> str:
    """The Python that a virtual environment is of, empty if its folder does not say."""
    found = re.search(r"python(3\.\d+)", str(site.parent.name)) if site else None
    return found[1] if found else ""


def npm_program(folder: Path, package: str) -> Path:
    """The file that `npx PACKAGE` would run. Raises: ConfigError: it is not installed there."""
    home = folder / "node_modules" / package
    try:
        said = json.loads((home / "package.json").read_bytes())["bin"]
        program = home / (said if isinstance(said, str) else next(iter(said.values())))
        if program.resolve().is_relative_to(folder.resolve()):
            return program
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration),
        RecursionError,
    ):
        pass  # it is whatever its author wrote
    raise ConfigError(
        f"{home}: no such package with a program; run: npm install --prefix {folder} {package}"
    )


def node(script: Path, rest: Sequence[str], folder: Path | None) -> Wrapped:
    """A JavaScript file, with the packages beside it."""
    found = shutil.which("node", path="/usr/bin:/usr/local/bin")
    if found is None or not Path(found).resolve().is_relative_to("/usr"):
        raise ConfigError("node is not installed in /usr, which is what plugins see; install it")
    script = script.absolute().resolve()
    homes = [one for one in script.parents if one.parent.name != "node_modules"]
    packages = [one for one in homes if (one / "node_modules").is_dir()]
    folder = (folder or (packages or [script.parent])[-1]).resolve()
    return Wrapped((found, *inside((str(script), *rest), folder, FILES)), folder)


def inside(words: Sequence[str], folder: Path, seen_as: str) -> tuple[str, ...]:
    """`words` with each path in `folder` as it is seen inside."""
    whole = folder.absolute()

    def seen(word: str) -> str:
        path = Path(word).expanduser()
        for one in (path, path.resolve()) if path.is_absolute() else ():
            for place in (whole, whole.resolve()):
                if one.is_relative_to(place):
                    return str(Path(seen_as) / one.relative_to(place))
        return word

    return tuple(map(seen, words))


def granted(folders: Sequence[Path], option: str = "--read") -> dict[str, Path]:
    """Folders that the owner shows to a plugin, by the name under DATA.

    Raises:
        ConfigError: one that is too broad, not there, or shares its name with another.
    """
    found = dict[str, Path]()
    for given in folders:
        folder = shown(given, option)
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.name).lstrip(".-") or "folder"
        if name in found:
            raise ConfigError(f"{option} {given}: another folder is called {name} too; rename one")
        found[name] = folder
    return found


def shown(given: Path, option: str) -> Path:
    """A folder that its owner shows to a plugin. Raises: ConfigError: as `narrow`."""
    folder = narrow(given.expanduser(), option, SYSTEM)
    home = Path.home().resolve()
    below = folder.relative_to(home).parts if folder.is_relative_to(home) else folder.parts
    if hidden := next((part for part in below if part.startswith(".")), None):
        raise ConfigError(
            f"{option} {given}: {hidden} is where programs keep what is theirs, keys too; name "
            f"another folder"
        )
    return folder


def narrow(given: Path, what: str, system: Sequence[str]) -> Path:
    """`given`, if a plugin may see all that lies in it.

    Args:
        what: how the message begins.
        system: folders in which nothing is the owner's own.

    Raises:
        ConfigError: no folder, one that holds a home, this node's files or the system's, or in
        which programs keep what is theirs.
    """
    folder, own = given.resolve(), paths.home().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{what} {given}: no such folder")
    home = Path.home().resolve()
    holds = [Path(broad) for broad in TOO_BROAD] + [home, own]
    if any(broad.is_relative_to(folder) for broad in holds) or folder.is_relative_to(own):
        raise ConfigError(
            f"{what} {given}: too broad: it holds files of its owner, of this node or of the "
            f"system; name, or make, a folder of its own"
        )
    owners = folder.is_relative_to(home) and home != Path("/")
    owners = owners or any(map(folder.is_relative_to, OWNERS))
    if not owners and (place := next(filter(folder.is_relative_to, system), None)):
        raise ConfigError(
            f"{what} {given}: {place} is the system's; copy what the plugin is to see into a "
            f"folder of its own"
        )
    if folder.name.startswith(".") and not is_environment(folder):
        raise ConfigError(
            f"{what} {given}: {folder.name} is where programs keep what is theirs, keys too; name "
            f"another folder"
        )
    return folder


def is_environment(folder: Path) -> bool:
    """A virtual environment, or a folder of npm's."""
    return any((folder / name).exists() for name in ("pyvenv.cfg", "node_modules"))


def seen_words(words: Sequence[str], folders: Mapping[str, Path]) -> tuple[str, ...]:
    """A command's words with the granted folders as they are seen inside."""
    for name, folder in folders.items():
        words = inside(words, folder, f"{DATA}/{name}")
    return tuple(words)


def name_of(words: Sequence[str]) -> str:
    """What to call a server, from its command."""
    known = [
        word
        for word in words
        if not word.startswith("-")
        and Path(word).name not in (*FETCHERS, "node")
        and not PYTHONS.fullmatch(Path(word).name)
    ]
    return re.sub(r"^@[^/]*/|[@=].*", "", known[0]).rpartition("/")[2] if known else "server"
