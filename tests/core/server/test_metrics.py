"""What a Prometheus is told."""

import dataclasses

from prometheus_client.parser import text_string_to_metric_families

from quietchoir.core.engine.engine import EngineStats
from quietchoir.core.metrics import ENGINE_COUNTERS, ENGINE_GAUGES, NodeMetrics
from quietchoir.tests.fakes.http import HELLO, Served

SECRET = "zebra-in-the-attic"


def values(text: str) -> dict[tuple[str, ...], float]:
    """Every sample: its name and its labels' values to its value."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_count_of_the_engine_is_told() -> None:
    assert {*ENGINE_COUNTERS, *ENGINE_GAUGES} == {
        field.name for field in dataclasses.fields(EngineStats)
    }


def test_latencies_are_told_as_seconds_and_a_request_without_a_token_has_none() -> None:
    metrics = NodeMetrics()
    metrics.observe(queue_s=0.5, first_token_s=1.0, total_s=3.0, tokens=5)
    metrics.observe(queue_s=2.0, first_token_s=None, total_s=2.0, tokens=0)
    found = values(metrics.exposition().decode())
    assert found["quietchoir_queue_seconds_count",] == 2
    assert found["quietchoir_first_token_seconds_sum",] == 1.0
    assert found["quietchoir_output_token_seconds_sum",] == 0.5
    assert found["quietchoir_generation_seconds_count",] == 1


async def test_metrics_take_the_token_and_hold_no_word_that_a_client_sent(served: Served) -> None:
    message = {"role": "user", "content": SECRET}
    assert (await served.post("/v1/chat/completions", HELLO | {"messages": [message]}))[0] == 200
    assert (await served.post(f"/{SECRET}", {}))[0] == 404
    async with served.session.get("/metrics", headers={"Authorization": ""}) as response:
        assert response.status == 401
    async with served.session.get("/metrics") as response:
        assert response.status == 200 and response.content_type == "text/plain"
        text = await response.text()
    assert SECRET not in text
    found = values(text)
    answered = [key for key in found if key[0] == "quietchoir_http_responses_total"]
    assert sorted(key[1:] for key in answered) == [
        ("GET", "/metrics", "401"),
        ("POST", "/v1/chat/completions", "200"),
        ("POST", "none", "404"),
    ]
