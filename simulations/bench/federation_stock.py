"""The peer: Flower's own deployment engine with this project's plain apps, as federation/README.md tells to start it.

Knows Flower's commands and the line that our `ServerApp` prints for a round. Installs nothing and reaches nothing outside.
Always: every process is ended; no TLS and no node keys, which is in Flower's favour.
"""

import os
import re
import socket
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import QuietchoirError
from ..choir import HOST, free_port
from ..processes import Child, Stage
from .stopwatch import Sample

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_S = 120.0
ROUND_S = 120.0
LINE = re.compile(r"quietchoir round (\d+): (\d+) nodes, accuracy before it ([0-9.]+), ([0-9.]+) s")


@contextmanager
def engine(folder: Path, *, nodes: int, rounds: int, size: int) -> Iterator[Child]:
    """A SuperLink, its SuperNodes and a running `flwr run --stream`; ended on leaving.

    Raises:
        QuietchoirError: the SuperLink did not start.
    """
    home, project, port = folder / "flwr", folder / "project", free_port()
    address = f"{HOST}:{port}"
    write(home, project, address, nodes=nodes, rounds=rounds, size=size)
    environment = {
        "FLWR_HOME": str(home), "HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with Stage(folder / "logs", environment) as stage:
        link = [str(BIN / "flower-superlink"), "--insecure", "--host", HOST, "--port", str(port)]
        superlink = stage.start_other("superlink", [*link, "--disable-runtime-dependency-installation"])
        wait_until_open(port, superlink)
        for number in range(nodes):
            command = [str(BIN / "flower-supernode"), "--insecure", "--superlink", address, "--port", str(free_port())]
            stage.start_other(f"supernode-{number}", [*command, "--node-config", f"partition-id={number}"])
        yield stage.start_other("run", [str(BIN / "flwr"), "run", str(project), "here", "--stream"])


def write(home: Path, project: Path, address: str, *, nodes: int, rounds: int, size: int) -> None:
    """Flower's settings, and a project that names our apps and is small enough to ship."""
    home.mkdir(parents=True)
    project.mkdir(parents=True)
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n', "utf-8"
    )
    (project / "pyproject.toml").write_text(
        '[project]\nname = "stock"\nversion = "1.0.0"\ndescription = ""\nlicense = "Apache-2.0"\ndependencies = []\n'
        f'[tool.flwr.app]\npublisher = "{ours["publisher"]}"\n'
        f'[tool.flwr.app.components]\nserverapp = "{ours["components"]["serverapp"]}"\n'
        f'clientapp = "{ours["components"]["clientapp"]}"\n'
        f"[tool.flwr.app.config]\nrounds = {rounds}\nmin-nodes = {nodes}\nrehearse = {size}\n",
        "utf-8",
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


def rounds_of(run: Child, rounds: int, nodes: int) -> Iterator[float]:
    """Seconds of each round as it ends.

    Raises:
        QuietchoirError: the run ended early, or a round went without a node.
    """
    for _ in range(rounds):
        found = LINE.search(run.wait_for(lambda text: bool(LINE.search(text)), START_S + ROUND_S))
        assert found is not None  # it is what was waited for
        if int(found[2]) != nodes:
            raise QuietchoirError(f"Flower's round {found[1]} went with {found[2]} nodes of {nodes}")
        yield float(found[4])


def measure(folder: Path, *, nodes: int, rounds: int, size: int) -> Sample:
    """Seconds of every round after the first, which starts the apps.

    Raises:
        QuietchoirError: as `engine` and `rounds_of`.
    """
    with engine(folder, nodes=nodes, rounds=rounds, size=size) as run:
        return Sample(tuple(rounds_of(run, rounds, nodes))[1:])
