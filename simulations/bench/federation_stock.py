"""The peer: Flower's own deployment engine with plain averaging (`stock_apps`), started as
federation/README.md tells.

Knows Flower's commands and the line that the `ServerApp` prints for a round. Installs nothing and
reaches nothing outside.
Always: every process is ended; no TLS and no node keys, which is in Flower's favour.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import QuietchoirError
from ..engines import START_S, FlowerEngine
from ..processes import Child
from .stopwatch import Sample

ROUND_S = 120.0
PROJECT = """\
[project]
name = "quietchoir-stock"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "quietchoir"

[tool.flwr.app.components]
serverapp = "quietchoir.simulations.bench.stock_apps:server_app"
clientapp = "quietchoir.simulations.bench.stock_apps:client_app"

[tool.flwr.app.config]
rounds = 0
min-nodes = 0
rehearse = 0
"""
LINE = re.compile(r"quietchoir round (\d+): (\d+) nodes, accuracy before it ([0-9.]+), ([0-9.]+) s")


@contextmanager
def engine(folder: Path, *, nodes: int, rounds: int, size: int) -> Iterator[Child]:
    """A SuperLink, its SuperNodes and a running `flwr run --stream`; ended on leaving.

    Raises:
        QuietchoirError: the SuperLink did not start.
    """
    project = folder / "app"
    project.mkdir(parents=True)
    (project / "pyproject.toml").write_text(PROJECT, "utf-8")
    with FlowerEngine(folder / "logs", project=project) as stock:
        for number in range(nodes):
            stock.node(f"supernode-{number}", {"partition-id": number})
        yield stock.run({"rounds": rounds, "min-nodes": nodes, "rehearse": size})


def rounds_of(run: Child, rounds: int, nodes: int) -> Iterator[float]:
    """Seconds of each round as it ends.

    Raises:
        QuietchoirError: the run ended early, or a round went without a node.
    """
    for _ in range(rounds):
        found = LINE.search(run.wait_for(lambda text: bool(LINE.search(text)), START_S + ROUND_S))
        assert found is not None  # it is what was waited for
        if int(found[2]) != nodes:
            raise QuietchoirError(
                f"Flower's round {found[1]} went with {found[2]} nodes of {nodes}"
            )
        yield float(found[4])


def measure(folder: Path, *, nodes: int, rounds: int, size: int) -> Sample:
    """Seconds of every round after the first, which starts the apps.

    Raises:
        QuietchoirError: as `engine` and `rounds_of`.
    """
    with engine(folder, nodes=nodes, rounds=rounds, size=size) as run:
        return Sample(tuple(rounds_of(run, rounds, nodes))[1:])
