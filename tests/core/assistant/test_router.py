"""A request is answered by the adapter whose examples lie nearest, or by none."""

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from quietchoir.core.assistant.adapters import AdapterSwitch
from quietchoir.core.assistant.router import (
    FILE,
    HYSTERESIS,
    Router,
    Vectors,
    centroids,
    read_route,
    save_route,
)
from quietchoir.core.errors import DataError
from quietchoir.tests.fakes.server import FakeShelf, FakeStore

WIDTH = 256
HOME = ["turn on the lamp", "turn off the fan", "open the blind", "set the lamp to 40 percent"]
BANK = ["what is the balance of my account", "transfer money to my account", "close the account"]
TALK = ["why is the sky blue", "tell me a story", "hello, how are you", "what is a rainbow"]


def embed(texts: Sequence[str]) -> Vectors:
    """Words, hashed: texts are near if they share some."""
    rows = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.replace(",", "").split():
            row[zlib.crc32(word.encode()) % WIDTH] += 1
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def router() -> Router:
    return Router(embed, centroids(embed(TALK)))


ROUTES = {"home": centroids(embed(HOME)), "bank": centroids(embed(BANK))}


@pytest.mark.parametrize(
    ("request_text", "adapter"),
    [
        ("turn on the fan", "home"),
        ("transfer money", "bank"),
        ("why is the sea blue", None),
        ("tell me a story about the lamp", None),
    ],
)
def test_a_request_is_for_whom_it_is_nearest_to(
    router: Router, request_text: str, adapter: str | None
) -> None:
    choice = router.choose([request_text], ROUTES)
    assert choice.adapter == adapter and choice.lead > 0


def test_a_request_that_says_little_is_for_whom_the_one_before_was(router: Router) -> None:
    little = "what lamp"
    near = router.nearness(embed([little]), ROUTES)
    gap = abs(float(near["home"][0] - near[""][0]))
    assert gap < HYSTERESIS  # else this would say nothing
    assert router.choose(["turn on the fan", little], ROUTES).adapter == "home"
    assert router.choose(["why is the sky blue", little], ROUTES).adapter is None


def test_talk_after_a_command_is_still_talk(router: Router) -> None:
    assert router.choose(["turn on the fan", "tell me a story"], ROUTES).adapter is None


def test_centroids_are_few_of_length_one_and_the_same_again() -> None:
    vectors = embed([f"{one} {two}" for one in HOME for two in (*BANK, *TALK)])
    found = centroids(vectors, 5)
    assert found.shape == (5, WIDTH) and np.array_equal(found, centroids(vectors, 5))
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert len(centroids(vectors[:3], 5)) == 3


def test_a_route_lies_in_its_folder_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert read_route(tmp_path, WIDTH) is None
    save_route(tmp_path, HOME, embed)
    found = read_route(tmp_path, WIDTH)
    assert found is not None and np.allclose(found, centroids(embed(HOME)))
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    with pytest.raises(DataError, match="of another embedding model"):
        read_route(tmp_path, 12)
    (tmp_path / FILE).write_bytes(b"{}")
    with pytest.raises(DataError, match="damaged"):
        read_route(tmp_path, WIDTH)


async def switch(router: Router | None, **routes: Vectors) -> AdapterSwitch:
    """With two adapters of two federations, the first active."""
    store = FakeStore(
        ("home", "bank"), chosen="home", called={"home": "homes", "bank": "banks"}, routes=routes
    )
    made = AdapterSwitch("smollm2", FakeShelf(), store, lambda: router)
    await made.start()
    return made


async def test_the_active_adapter_answers_what_it_is_for_and_another_its_own(
    router: Router,
) -> None:
    adapters = await switch(router, **ROUTES)
    assert await adapters.choose(None, ["turn on the fan"]) == "home"
    assert await adapters.choose("default", ["transfer money"]) == "bank"
    assert await adapters.choose(None, ["why is the sky blue"]) is None
    assert adapters.active == "home"  # a choice changes nothing of what is active


async def test_a_request_that_names_its_model_is_answered_by_that_one(router: Router) -> None:
    adapters = await switch(router, **ROUTES)
    assert await adapters.choose("smollm2:home", ["why is the sky blue"]) == "home"
    assert await adapters.choose("smollm2", ["turn on the fan"]) is None


async def test_without_knowledge_the_active_adapter_answers_everything(router: Router) -> None:
    for made in (await switch(None, **ROUTES), await switch(router, bank=ROUTES["bank"])):
        assert await made.choose(None, ["why is the sky blue"]) == "home"
    plain = await switch(router, **ROUTES)
    await plain.activate(None)
    assert await plain.choose(None, ["turn on the fan"]) is None


async def test_a_damaged_route_is_told_and_its_adapter_answers(
    router: Router, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = await switch(router)

    def damaged(id: str, width: int) -> None:
        raise DataError(f"{id} is damaged; delete it")

    monkeypatch.setattr(adapters.store, "route", damaged)
    with caplog.at_level(logging.WARNING):
        assert await adapters.choose(None, ["why is the sky blue"]) == "home"
    assert "home is damaged; delete it" in caplog.text
