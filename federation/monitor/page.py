"""A page that shows how a run is doing, on the coordinator's own machine, and its numbers as
Prometheus reads them.

Knows one run's status, HTTP, a token, and metric names; prometheus_client knows their text format.
Knows nothing of rounds.
Always: it listens on loopback alone, on a port of its own, and only reads; numbers need the token
(file `token` in the run's folder), which the page takes out of its address; foreign Host and Origin
headers are refused, as at a node's own page; no label names a member.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from ...core.config import ServerConfig
from ...core.server import auth, connections, static
from ...core.server.app import claim, status_application
from .run_status import RunStatus

HOST = "127.0.0.1"
FOLDER = Path(__file__).parent / "ui"
START_S = 30.0
PREFIX = "quietchoir_"
COUNTERS = {
    "rounds": ("round", "training rounds that are done"),
    "rounds_aborted": (
        "aborted",
        "attempts that ended without a sum, since this coordinator started",
    ),
    "dropouts": ("dropped", "times that a member that was asked is not in the sum"),
    "bytes_up": ("bytes_up", "bytes of messages from members, in rounds that ended with a sum"),
    "bytes_down": ("bytes_down", "bytes of messages to members, in rounds that ended with a sum"),
}
GAUGES = {
    "rounds_planned": ("rounds", "training rounds that the run is to have"),
    "finished": ("finished", "1 once the adapter is delivered"),
    "members": ("members", "members in the roster"),
    "members_present": ("present", "members that can be asked now"),
    "members_minimum": ("min_cohort", "no sum of fewer is opened"),
    "federation_version": ("version", "number of the newest entry of the federation file's chain"),
    "epsilon_spent": ("epsilon", "differential privacy spent so far, for one member"),
    "epsilon_budget": ("budget", "differential privacy that may be spent"),
}
LAST = {
    "round_cohort": ("parties", "members in the last sum"),
    "round_seconds": ("seconds", "seconds that the last round took"),
    "round_work_seconds": ("work_seconds", "of these, seconds of training or scoring"),
    "round_loss": ("loss", "mean loss of an answer token in the last training round"),
    "accuracy": ("accuracy", "share of held-out answers that are right, as last measured"),
}


class RunStatusCollector(Collector):
    """Reads the status whenever somebody asks."""

    def __init__(self, status: RunStatus) -> None:
        self.status = status

    def collect(self) -> Iterator[Metric]:
        """Every metric that has a value."""
        seen = self.status.snapshot()
        labels = {"federation": seen["federation"], "mode": seen["mode"]}
        names, values = list(labels), list(labels.values())
        for name, (key, words) in COUNTERS.items():
            counter = CounterMetricFamily(PREFIX + name, words, labels=names)
            counter.add_metric(values, seen[key])
            yield counter
        last = {key: newest(seen["history"], key) for key, _ in LAST.values()}
        for name, (key, words) in {**GAUGES, **LAST}.items():
            value = last[key] if name in LAST else seen[key]
            if value is not None:
                gauge = GaugeMetricFamily(PREFIX + name, words, labels=names)
                gauge.add_metric(values, float(value))
                yield gauge


def newest(history: list[dict[str, Any]], key: str) -> float | None:
    """The last value that was measured."""
    return next((entry[key] for entry in reversed(history) if entry[key] is not None), None)


def metrics(status: RunStatus) -> CollectorRegistry:
    """What Prometheus is told of one run; `generate_latest` spells it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunStatusCollector(status))
    return registry


class Page:
    """A server in a thread of its own: the run never waits for whoever looks.

    Args:
        port: 0 takes a free one.
        home: where the token lies; made if there is none.

    Raises:
        ConfigError: the port is taken, or others can read the token.
    """

    def __init__(self, status: RunStatus, port: int, home: Path) -> None:
        self.run_status, self.metrics, self.token = status, metrics(status), auth.load_token(home)
        self.files = static.Pages(FOLDER)
        self.socket = claim(ServerConfig(host=HOST, port=port))
        self.port = int(self.socket.getsockname()[1])
        self.ready, self.loop = threading.Event(), asyncio.new_event_loop()
        self.ended = asyncio.Event()
        self.thread = threading.Thread(target=self.run, name="quietchoir-page", daemon=True)

    @property
    def url(self) -> str:
        """With the token, for the operator's browser."""
        return f"http://{HOST}:{self.port}/#token={self.token}"

    def application(self) -> web.Application:
        """All routes behind the guard."""
        return status_application(self.token, HOST, self.files, self.status, self.scrape)

    async def status(self, _request: web.Request) -> web.Response:
        """The run as JSON."""
        return web.json_response(self.run_status.snapshot())

    async def scrape(self, _request: web.Request) -> web.Response:
        """The run as Prometheus reads it."""
        return web.Response(
            body=generate_latest(self.metrics), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    def run(self) -> None:
        """Serve until told to end."""
        with contextlib.closing(self.loop):
            self.loop.run_until_complete(self.serve())

    async def serve(self) -> None:
        """One application on the claimed socket."""
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.5)
        try:
            listening, _ = await connections.listen(runner, ServerConfig(host=HOST), self.socket)
            self.ready.set()
            await self.ended.wait()
            listening.close()
        finally:
            await runner.cleanup()

    def __enter__(self) -> "Page":
        self.thread.start()
        self.ready.wait(START_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(START_S)
        self.socket.close()
