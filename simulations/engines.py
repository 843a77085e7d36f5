"""Flower's own engines as their commands start them: a SuperLink with SuperNodes, or one that
simulates them under Ray.

Knows Flower's commands and Ray's environment. Knows nothing of federations or of what is measured.
Always: leaving `FlowerEngine` ends every process that came from it, by its number, those of Ray
included; nothing is installed at run time, nothing is reported to anybody, and what Flower or Ray
write lies in folders that are gone afterwards.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ..core.errors import QuietchoirError
from ..federation.transport import stock
from .cluster import HOST, free_port
from .processes import Child, ProcessGroup, family

APP = Path(__file__).resolve().parents[1] / "federation" / "transport" / "app"
BIN = Path(sys.executable).parent
START_S = 120.0
GONE_S = 20.0  # for what was asked to end
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONUNBUFFERED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class FlowerEngine:
    """One SuperLink and whatever it is to run.

    Args:
        nodes: of a simulation; 0 waits for SuperNodes (`node`).
        project: the folder whose pyproject.toml names the apps; by default ours.
    """

    def __init__(self, logs: Path, *, nodes: int = 0, cpus: int = 2, project: Path = APP) -> None:
        self.nodes, self.cpus, self.project = nodes, cpus, project
        self.address = f"{HOST}:{free_port()}"
        # short: Ray's sockets lie below it, and their names are limited
        self.scratch = Path(tempfile.mkdtemp(prefix="qc-"))
        environment = {
            **QUIET,
            "HOME": str(self.scratch),
            "FLWR_HOME": str(self.scratch / "flwr"),
            "RAY_TMPDIR": str(self.scratch),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        self.stage = ProcessGroup(logs, environment)
        # every process that came from here: number → when it began
        self.started: dict[int, str] = {}

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def open(self) -> None:
        """Start the SuperLink, and wait until it answers.

        Raises:
            QuietchoirError: it did not start.
        """
        home = self.scratch / "flwr"
        home.mkdir(parents=True)
        where = (
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = '
            f'"{self.address}"\ninsecure = true\n'
        )
        (home / "config.toml").write_text(where, "utf-8")
        host, _, port = self.address.rpartition(":")
        command = [str(BIN / "flower-superlink"), "--insecure", "--host", host, "--port", port]
        simulating = ["--simulation", "--isolation", "subprocess"] if self.nodes else []
        self.superlink = self.stage.start_other(
            "superlink", [*command, *simulating, "--disable-runtime-dependency-installation"]
        )
        wait_until_open(int(port), self.superlink)

    def node(self, name: str, settings: Mapping[str, str | int]) -> Child:
        """Start a SuperNode."""
        command = [sys.executable, "-m", stock.__name__, str(BIN / "flower-supernode")]
        command += ["--insecure", "--superlink", self.address]  # each gets a port of its own
        return self.stage.start_other(name, [*command, "--node-config", spelled(settings)])

    def run(self, settings: Mapping[str, str | int]) -> Child:
        """Start a run; the child shows what the ServerApp prints, and ends when it does."""
        command = [
            str(BIN / "flwr"),
            "run",
            str(self.project),
            "here",
            "--stream",
            "--run-config",
            spelled(settings),
        ]
        if self.nodes:
            many = {
                "num-supernodes": self.nodes,
                "client-resources-num-cpus": 1,
                "init-args-num-cpus": self.cpus,
            }
            command += ["--federation-config", spelled(many)]
        return self.stage.start_other("run", command)

    def memory_mb(self) -> float:
        """Peak resident memory of all its processes, now; what they share is counted more than
        once.
        """
        return sum(child.memory_mb() for child in self.stage.children)

    def close(self) -> None:
        """End everything."""
        for child in self.stage.children:
            self.started |= {pid: beginning(pid) for pid in family(child.process.pid)}
        self.stage.__exit__(None, None, None)
        end_all(self.started)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def spelled(settings: Mapping[str, str | int]) -> str:
    """As Flower's command line takes them."""
    return " ".join(
        f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}"
        for key, value in settings.items()
    )


def wait_until_open(port: int, superlink: Child) -> None:
    """Until somebody listens.

    Raises:
        QuietchoirError: nobody does in time.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and superlink.process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise QuietchoirError(f"Flower's SuperLink did not start: {superlink.last_words()}")


def beginning(pid: int) -> str:
    """When a process began, in the kernel's ticks: with its number, a name that no other process
    has. Empty if it is gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def end_all(started: Mapping[int, str]) -> None:
    """Ask those that are still there to end, then insist."""
    for how, patience_s in ((signal.SIGTERM, GONE_S), (signal.SIGKILL, GONE_S)):
        left = [pid for pid, began in started.items() if began and beginning(pid) == began]
        for pid in left:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience_s
        while any(beginning(pid) == started[pid] for pid in left) and time.monotonic() < deadline:
            time.sleep(0.05)
