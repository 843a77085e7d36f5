"""Models come when they are asked for and go when nobody asks: one load for many first requests,
the least used makes room, and whoever answers stays.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from quietchoir.core.assistant.adapters import AdapterSwitch
from quietchoir.core.assistant.model_pool import LoadedModel, ModelPool, ModelProfile
from quietchoir.core.errors import ModelError, ModelNotFoundError, OverloadedError
from quietchoir.core.models.hub.catalog import InstalledModel
from quietchoir.tests.fakes.server import FakeShelf, FakeStore

NAMES = ("a", "b", "c", "ollama:x", "ollama:x:1b", "large", "broken")


class Shelf:
    """Models that take 10 bytes each, loaded when the test lets them be."""

    def __init__(self, **limits: Any) -> None:
        self.now = 0.0
        self.loads: list[str] = []
        self.gone: list[str] = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.pool = ModelPool(
            "a",
            self.load,
            installed=lambda: [
                InstalledModel(name=name, path=Path(name), size=10, origin="here") for name in NAMES
            ],
            need=lambda name: 100 if name == "large" else 10,
            clock=lambda: self.now,
            **limits,
        )

    async def load(self, name: str, profile: ModelProfile | None) -> LoadedModel:
        self.loads.append(name)
        await self.may_load.wait()
        if name == "broken":
            raise ModelError("broken: it is damaged; pull it again")
        if profile is None:
            profile = ModelProfile(
                name=name, adapters=AdapterSwitch(name, FakeShelf(), FakeStore())
            )

        async def stop() -> None:
            self.gone.append(name)

        return LoadedModel(profile=profile, assistant=cast(Any, None), bytes=10, stop=stop)

    async def ask(self, name: str | None, keep_s: float | None = None) -> str:
        self.now += 1
        async with self.pool.use(name, keep_s) as model:
            return model.name


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0)


async def test_a_name_means_the_longest_model_that_it_begins_with_and_else_the_default() -> None:
    shelf = Shelf()
    asked = {
        None: "a",
        "default": "a",
        "base": "a",
        "a:home-1": "a",
        "home-1": "a",  # an adapter of the default model
        "b": "b",
        "b:home-1": "b",
        "ollama:x": "ollama:x",
        "ollama:x:1b": "ollama:x:1b",
        "ollama:x:1b:home-1": "ollama:x:1b",
    }
    assert {name: await shelf.ask(name) for name in asked} == asked
    with pytest.raises(ModelNotFoundError, match=r"gpt-5 is neither .* other models here: b, c"):
        await shelf.ask("gpt-5")
    # the same once all of them are known
    assert {name: await shelf.ask(name) for name in asked} == asked


async def test_many_first_requests_load_once_and_one_that_goes_away_ends_nobodys_loading() -> None:
    shelf = Shelf()
    shelf.may_load.clear()
    asking = [asyncio.create_task(shelf.ask("b")) for _ in range(4)]
    await until(lambda: shelf.loads)
    asking[0].cancel()
    shelf.may_load.set()
    assert await asyncio.gather(*asking[1:]) == ["b"] * 3
    assert shelf.loads == ["b"]


async def test_the_least_recently_used_makes_room_and_one_that_answers_never_does() -> None:
    shelf = Shelf(limit=20)
    await shelf.ask("a")
    await shelf.ask("b")
    await shelf.ask("a")
    await shelf.ask("c")
    assert shelf.gone == ["b"] and set(shelf.pool.loaded) == {"a", "c"}
    async with AsyncExitStack() as users:
        for name in ("a", "c"):
            await users.enter_async_context(shelf.pool.use(name))
        with pytest.raises(OverloadedError, match=r"no room for b .* while a, c answer"):
            await shelf.ask("b")
        with pytest.raises(OverloadedError, match=r"^a is answering"):
            await shelf.pool.release("a")
    assert await shelf.ask("b") == "b"
    with pytest.raises(ModelError, match=r"raise engine\.memory_bytes"):
        await shelf.ask("large")
    assert len(shelf.pool.loaded) == 2  # nobody was let go for what never fits


async def test_a_deleted_model_is_known_no_more_and_one_that_answers_is_not_deleted() -> None:
    shelf = Shelf()
    for name in ("a", "b"):
        await shelf.ask(name)
    deleted: list[str] = []

    def delete() -> int:
        deleted.append("b")
        return 10

    async with shelf.pool.use("b"):
        with pytest.raises(OverloadedError, match="is answering"):
            await shelf.pool.remove("b", delete)
    assert deleted == [] and "b" in shelf.pool.profiles
    assert await shelf.pool.remove("b", delete) == 10
    assert deleted == ["b"] and list(shelf.pool.profiles) == list(shelf.pool.loaded) == ["a"]


async def test_a_model_that_cannot_be_loaded_is_told_to_all_and_others_go_on() -> None:
    shelf = Shelf(limit=20)
    found = await asyncio.gather(
        *(shelf.ask(name) for name in ("broken", "b", "broken")), return_exceptions=True
    )
    assert [type(one) for one in found] == [ModelError, str, ModelError]
    with pytest.raises(ModelError, match="pull it again"):
        await shelf.ask("broken")  # tried anew: its owner may have mended it


async def test_an_idle_model_is_let_go_and_keeps_its_profile_and_its_owner_may_say_otherwise() -> (
    None
):
    shelf = Shelf(keep_s=60.0)
    for name, keep_s in (("a", None), ("b", -1.0), ("c", 0.0), ("ollama:x", 5.0)):
        await shelf.ask(name, keep_s)
    await shelf.pool.let_idle_go()
    assert shelf.gone == ["c"]
    shelf.now += 10
    await shelf.pool.let_idle_go()
    assert shelf.gone == ["c", "ollama:x"]
    shelf.now += 60
    async with shelf.pool.use("a"):
        await shelf.pool.let_idle_go()  # it answers
    await shelf.pool.let_idle_go()  # it just answered
    assert set(shelf.pool.loaded) == {"a", "b"}
    shelf.now += 60
    await shelf.pool.let_idle_go()
    assert set(shelf.pool.loaded) == {"b"}
    profile = shelf.pool.profiles["a"]
    await shelf.ask("a")
    assert shelf.pool.profiles["a"].adapters is profile.adapters
    await shelf.pool.stop()
    assert not shelf.pool.loaded
