"""A node that starts with its owner's session: a unit of systemd, or an agent of launchd.

Knows both files' forms and the commands that load them. Knows nothing of nodes; `serve` is run as
its owner would run it.
Always: of the user, never of the system, so no rights are needed and none are given; a file that
somebody else wrote, or changed, is not overwritten; what could not be loaded leaves no file.
"""

import os
import plistlib
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from .core import paths
from .core.config import Config
from .core.errors import ConfigError, QuietchoirError

NAME = "quietchoir"
AGAIN_S = 5  # before a node that broke down is started again
STOP_S = 15  # beside `server.drain_s`
MADE_BY = "Made by: quietchoir service install"
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def run_command(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run one.

    Raises:
        QuietchoirError: there is no such program here.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise QuietchoirError(
            f"{command[0]} is not here; without it nobody starts services for this user"
        ) from None


class Service:
    """This node as a service of this user."""

    def __init__(
        self,
        config: Config,
        *,
        config_file: Path | None = None,
        federation: Path | None = None,
        system: str = sys.platform,
        user_home: Path | None = None,
        run: Run = run_command,
    ) -> None:
        """
        Args:
            config_file, federation: as `quietchoir --config` and `serve --federation` take them.
            user_home: where the service's file goes below.

        Raises:
            ConfigError: neither systemd nor launchd is of this system.
        """
        if system not in ("linux", "darwin"):
            raise ConfigError(
                f"services are made for Linux and macOS, this is {system}; run `quietchoir serve`"
            )
        self.config, self.system, self.run = config, system, run
        self.home = paths.home()
        self.command = [sys.executable, "-m", "quietchoir.cli"]
        if config_file is not None:
            self.command += ["--config", str(config_file.resolve())]
        self.command.append("serve")
        if federation is not None:
            self.command += ["--federation", str(federation.resolve())]
        below = user_home or Path.home()
        if system == "darwin":
            self.file = below / "Library" / "LaunchAgents" / f"{NAME}.plist"
        else:
            configured = os.environ.get("XDG_CONFIG_HOME") if user_home is None else None
            base = Path(configured) if configured else below / ".config"
            self.file = base / "systemd" / "user" / f"{NAME}.service"

    def text(self) -> bytes:
        """The file. Raises: ConfigError: a path with a control character in it."""
        environment = {paths.HOME_VARIABLE: str(self.home)}
        if paths.models() != self.home / "models":
            environment[paths.MODELS_VARIABLE] = str(paths.models())
        for word in (*self.command, *environment.values(), str(self.home)):
            check_plain(word)
        stop_s = round(self.config.server.drain_s) + STOP_S
        if self.system == "darwin":
            return plistlib.dumps(
                {
                    "Label": NAME,
                    "ProgramArguments": self.command,
                    "EnvironmentVariables": environment,
                    "RunAtLoad": True,
                    "KeepAlive": {"SuccessfulExit": False},
                    "ThrottleInterval": AGAIN_S,
                    "ExitTimeOut": stop_s,
                    "StandardErrorPath": str(self.home / "service.log"),
                }
            )
        lines = [
            f"# {MADE_BY}",
            "[Unit]",
            "Description=quietchoir, a private assistant",
            "",
            "[Service]",
            f"ExecStart={' '.join(quoted(one, expanded=True) for one in self.command)}",
            *(f"Environment={quoted(f'{name}={value}')}" for name, value in environment.items()),
            "Restart=on-failure",
            f"RestartSec={AGAIN_S}",
            f"TimeoutStopSec={stop_s}",
            "UMask=0077",
            # it prints the page's address with the token, which the journal would keep
            "StandardOutput=null",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
        return "\n".join(lines).encode()

    def install(self) -> None:
        """Write the file and start the node, now and with each session.

        Raises:
            ConfigError: another file is there; or as `text`. QuietchoirError: it could not be
            loaded; says what the system said, and nothing is left.
        """
        text = self.text()
        if self.file.exists():
            if self.file.read_bytes() == text:
                raise ConfigError(f"{self.file}: is there already, and says the same")
            raise ConfigError(
                f"{self.file}: is there already and says something else; `quietchoir service "
                f"remove` takes it away"
            )
        paths.private_folder(self.home)
        paths.write_atomically(self.file, text)
        try:
            for command in self.loading():
                self.done(command)
        except QuietchoirError:
            self.file.unlink()
            raise

    def remove(self) -> None:
        """Stop the node and take the file away; the node's home stays.

        Raises:
            ConfigError: there is no such file, or it was not made here.
        """
        if not self.file.exists():
            raise ConfigError(f"{self.file}: not there; nothing is installed")
        if not self.is_ours():
            raise ConfigError(f"{self.file}: was not made by `service install`; it stays")
        for command in self.unloading():
            self.run(command)  # it may not run now, which is what is wanted
        self.file.unlink()

    def is_ours(self) -> bool:
        """Is the file that is there one of these?"""
        content = self.file.read_bytes()
        if self.system == "linux":
            return content.startswith(f"# {MADE_BY}".encode())
        try:
            return bool(plistlib.loads(content).get("Label") == NAME)
        except (plistlib.InvalidFileException, ValueError):
            return False

    def status(self) -> tuple[bool, str]:
        """Does it run, and a sentence."""
        if not self.file.exists():
            return False, f"not installed ({self.file} is not there)"
        if self.system == "darwin":
            found = self.run(["launchctl", "print", f"{domain()}/{NAME}"])
            runs = "state = running" in found.stdout
            said = "running" if runs else "not running"
        else:
            found = self.run(["systemctl", "--user", "is-active", f"{NAME}.service"])
            runs, said = found.returncode == 0, found.stdout.strip() or found.stderr.strip()
        return runs, f"{said} ({self.file})"

    def loading(self) -> list[list[str]]:
        """What starts it."""
        if self.system == "darwin":
            return [["launchctl", "bootstrap", domain(), str(self.file)]]
        systemctl = ["systemctl", "--user"]
        return [[*systemctl, "daemon-reload"], [*systemctl, "enable", "--now", f"{NAME}.service"]]

    def unloading(self) -> list[list[str]]:
        """What stops it."""
        if self.system == "darwin":
            return [["launchctl", "bootout", f"{domain()}/{NAME}"]]
        return [["systemctl", "--user", "disable", "--now", f"{NAME}.service"]]

    def done(self, command: Sequence[str]) -> None:
        """Run it. Raises: QuietchoirError: it failed."""
        found = self.run(command)
        if found.returncode:
            said = (found.stderr.strip() or found.stdout.strip()).splitlines()[-1:]
            raise QuietchoirError(
                f"{' '.join(command)}: {said[0] if said else found.returncode}; nothing was "
                f"installed"
            )


def domain() -> str:
    """Where launchd keeps this user's agents."""
    return f"gui/{os.getuid()}"


def check_plain(word: str) -> None:
    """Require a word that is of one line in a unit, and that a property list can hold.

    Raises:
        ConfigError: it has a control character (a line end would begin a line of its own), or one
        that is no text.
    """
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in word):
        raise ConfigError(
            f"{word!r} holds a character that no service's file can hold; give that file or "
            f"folder another name"
        )


def quoted(word: str, *, expanded: bool = False) -> str:
    """One word of a unit's line; `expanded`: where systemd puts variables in, as in commands.

    Source: systemd.service(5), "Command lines"; systemd.syntax(7), "Quoting"; systemd.unit(5),
    "Specifiers".
    """
    for letter, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        word = word.replace(letter, escaped)
    return f'"{word.replace("$", "$$") if expanded else word}"'
