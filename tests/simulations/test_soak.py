"""What `make soak` counts as lost, of a server over a fake engine; no memory is judged here."""

import psutil
import pytest

from quietchoir.simulations import soak
from quietchoir.simulations.bench.serve import ServerUnderTest
from quietchoir.simulations.soak import Soak, growth
from quietchoir.tests.fakes.http import TOKEN, Served
from quietchoir.tests.fakes.server import FakeStore, FakeTools, engine_saying


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "STEP_S", 0.0)


async def soaked(served: Served, adapter: str = "home-1") -> tuple[Soak, list[str]]:
    ended: list[str] = []
    async with served.running():
        server = ServerUnderTest("ours", served.server.url, TOKEN, {}, psutil.Process())
        run = Soak(server, adapter)
        await run.run(0.3, lambda: ended.append("asked"))
    return run, ended


def served(*said: str) -> Served:
    return Served(engine_saying(list(said)), FakeTools(names=()), FakeStore())


async def test_every_kind_of_client_gets_what_it_must_and_nothing_is_lost() -> None:
    run, ended = await soaked(served("Good ", "morning."))
    assert run.lost == [] and ended == ["asked"] and run.memory_mb
    assert set(run.done) == {"read", "leave", "oversize", "garble", "switch"}
    assert run.crowd.tokens == 2 * run.done["read"]


async def test_an_answer_that_is_not_whole_is_a_lost_request() -> None:
    broken = served("Good ")
    broken.engine.finished = "error"
    run, _ = await soaked(broken)
    assert any(words.startswith("read: ") for words in run.lost)


async def test_a_status_that_is_not_the_right_one_is_a_lost_request() -> None:
    run, _ = await soaked(served("Good."), adapter="none")
    assert "switch: QuietchoirError: status 404, expected 200" in run.lost


def test_memory_is_judged_after_the_warm_up_alone() -> None:
    assert growth([100, 200, *[300] * 6]) == 0
    assert growth([*[100] * 10, *[100] * 15, *[110] * 15]) == pytest.approx(0.1)
