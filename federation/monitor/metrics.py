"""A run's numbers as Prometheus reads them.

Knows metric names. The only file that imports prometheus_client, which knows the text format.
Always: no label names a member.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from .run_status import RunStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
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
    """Reads the board whenever somebody asks."""

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


class Metrics:
    """The text for one board."""

    def __init__(self, status: RunStatus) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(RunStatusCollector(status))

    def text(self) -> bytes:
        """As `/metrics` answers it."""
        return bytes(generate_latest(self.registry))
