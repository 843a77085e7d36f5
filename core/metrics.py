"""What a node tells a Prometheus: how long answers take, and its counters.

Knows names, seconds and counts; prometheus_client knows their text format. Knows nothing of
engines, prompts or answers: no label holds a word that a client sent.
Always: labels are of a closed set, so the number of series does not grow with requests.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "quietchoir_"
FIRST_TOKEN_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
ANSWER_S = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
# The engine's counts by the names that it gives them; a test holds both against each other.
ENGINE_COUNTERS = {
    "steps": "steps of the engine",
    "prompt_tokens": "prompt tokens that went through the model",
    "reused_tokens": "prompt tokens that the cache held already",
    "completion_tokens": "tokens of answers",
    "finished": "requests that ended well",
    "failed": "requests that failed",
    "cancelled": "requests whose client went away",
    "preemptions": "answers that made room for others and went on later",
    "drafted": "guessed tokens that were checked",
    "accepted": "and were right",
}
ENGINE_GAUGES = {
    "running": "requests that are answered now",
    "waiting": "requests in the queue",
    "blocks_total": "blocks of the cache",
    "blocks_free": "of them free",
    "blocks_cached": "of these, blocks that still hold something known",
}
Numbers = Callable[[], Mapping[str, float]]


class NodeMetrics:
    """One node's series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # processor seconds, memory, files
        self.queue = self._histogram(
            "queue", "from a request's arrival to its first step", ANSWER_S
        )
        self.first_token = self._histogram(
            "first_token", "from a request's arrival to the first token", FIRST_TOKEN_S
        )
        self.token = self._histogram("output_token", "of a token after the first", TOKEN_S)
        self.answer = self._histogram(
            "generation", "from a request's arrival to its last token", ANSWER_S
        )
        self.responses = Counter(
            f"{PREFIX}http_responses",
            "by route, as the node mounts it, and status",
            ("method", "route", "status"),
            registry=self.registry,
        )

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}{name}_seconds", words, buckets=buckets, registry=self.registry)

    def observe(
        self, *, queue_s: float, first_token_s: float | None, total_s: float, tokens: int
    ) -> None:
        """One request ended.

        Args:
            first_token_s: None: it had none.
            tokens: of its answer.
        """
        self.queue.observe(queue_s)
        if first_token_s is None:
            return
        self.first_token.observe(first_token_s)
        self.answer.observe(total_s)
        if tokens > 1:
            self.token.observe((total_s - first_token_s) / (tokens - 1))

    def add(
        self,
        numbers: Numbers,
        *,
        prefix: str,
        counters: Mapping[str, str] | None = None,
        gauges: Mapping[str, str] | None = None,
    ) -> None:
        """Series that are read when somebody asks for them.

        Args:
            numbers: called for each answer; what it leaves out has no value then.
            prefix: before each of its names.
            counters: of them, what only ever grows, each with its words. gauges: the others.
        """
        self.registry.register(Read(numbers, PREFIX + prefix, counters or {}, gauges or {}))

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class Read(Collector):
    """Numbers that somebody else counts."""

    def __init__(
        self, numbers: Numbers, prefix: str, counters: Mapping[str, str], gauges: Mapping[str, str]
    ) -> None:
        self._numbers, self._prefix = numbers, prefix
        self._families = (
            *((name, words, CounterMetricFamily) for name, words in counters.items()),
            *((name, words, GaugeMetricFamily) for name, words in gauges.items()),
        )

    def describe(self) -> Iterator[Metric]:
        """Nothing: it is asked for no value before there is one."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The values now."""
        found = self._numbers()
        for name, words, family in self._families:
            if name in found:
                yield family(f"{self._prefix}{name}", words, value=found[name])
