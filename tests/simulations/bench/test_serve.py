"""What `bench serve` asks and how it counts, of a server over a fake engine. No figure is
judged.
"""

from typing import Any

import psutil
import pytest

from quietchoir.core.errors import QuietchoirError
from quietchoir.simulations.bench import serve
from quietchoir.simulations.bench.figures import look_up, misses
from quietchoir.simulations.processes import ProcessGroup
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.server import FakeTools, engine_saying


async def asked(*said: str, token: str = TOKEN) -> serve.Crowd:
    """Three clients with two questions each, to a node that always says the same."""
    async with Served(engine_saying(list(said)), FakeTools(names=())).running() as running:
        under_test = serve.ServerUnderTest(
            "ours", running.server.url, token, {"loop_guard": False}, psutil.Process()
        )
        return await serve.ask(under_test, [["one", "two"]] * 3, 9)


async def test_every_client_is_answered_and_every_token_counted() -> None:
    crowd = await asked("Good ", "morning.")
    assert crowd.tokens == 3 * 2 * 2 and len(crowd.first_s) == 6
    assert 0 < min(crowd.first_s) <= max(crowd.first_s) < crowd.seconds


@pytest.mark.parametrize(
    ("said", "token", "why"),
    [(("Good ",), "another-token", "ours: 401"), (("",), TOKEN, "an answer without text")],
)
async def test_an_answer_that_is_none_ends_the_run(said, token, why) -> None:
    with pytest.raises(QuietchoirError, match=why):
        await asked(*said, token=token)


def report_of(*names: str, joules: float | None = None) -> dict[str, Any]:
    """Two repeats, in which every server is as fast as its name is long."""
    report: dict[str, Any] = {"spread": {}}
    found = {
        (count, name): [
            serve.Crowd(2.0, 1.0, 0.5, joules, 10 * len(name) * count, [0.5, 0.25]) for _ in "ab"
        ]
        for count in serve.CLIENTS
        for name in names
    }
    serve.tabulate(found, report)
    return report | {
        "engine_ms_per_token": 0.1,
        "prompt_text_ms_per_token": 0.01,
        "answer_text_ms_per_token": 0.01,
        "overhead": 0.2,
        "idle": {"cpu_percent": 0.1, "rss_mb": 200.0},
        "llamacpp": {"build": "llama-server of this machine"},
        **({} if joules else {"joules_per_token": {"missing": serve.NOT_MEASURABLE}}),
    }


def test_speeds_first_tokens_and_ratios_are_told_and_a_missed_aim_is_said() -> None:
    report = report_of("ours", "llamacpp")
    assert look_up(report, "tokens_per_s.8.ours") == 160 and look_up(report, "ratio.32") == 0.5
    assert look_up(report, "ttft_ms.1.llamacpp.p50") == 375
    assert set(misses(report, list(serve.figures(report)))) == {"ratio.8", "ratio.32", "overhead"}


def test_a_node_that_is_held_to_the_peers_instructions_has_ratios_of_its_own() -> None:
    report = report_of("ours", serve.HELD, "llamacpp")
    assert look_up(report, "ratio_avx2.8") == 9 / 8 and look_up(report, "ratio.8") == 0.5
    assert {"ratio_avx2.1", "tokens_per_s.32.ours_avx2"} <= {
        row.key for row in serve.figures(report)
    }


def test_a_peer_that_cannot_be_had_is_a_row_that_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(serve, "PEER", "llama-server-that-nobody-has")
    monkeypatch.setattr(serve, "PACKAGE", "package_that_nobody_has")
    with ProcessGroup(tmp_path) as group:
        peer, told = serve.start_peer(group, tmp_path / "model.gguf")
    assert peer is None
    report = report_of("ours") | {"llamacpp": told}
    rows = list(serve.figures(report))
    assert look_up(report, rows[-1].key) == serve.NO_PEER
    assert not any("llamacpp" in row.key or "ratio" in row.key for row in rows[:-1])


def test_joules_a_token_are_told_or_that_nothing_here_tells_them() -> None:
    report = report_of("ours", "llamacpp", joules=80.0)
    rows = {row.key: look_up(report, row.key) for row in serve.figures(report)}
    assert rows["joules_per_token.8.ours"] == 0.25
    report = report_of("ours")
    assert look_up(report, "joules_per_token.missing").startswith("not measurable here")
    assert "joules_per_token.missing" in [row.key for row in serve.figures(report)]
