"""Switching adapters: whole or not at all."""

import asyncio

import pytest

from quietchoir.core.assistant.adapters import AdapterSwitch, NoAdapters
from quietchoir.core.errors import ModelNotFoundError
from quietchoir.tests.fakes.server import FakeShelf, FakeStore


def switch(store: FakeStore | None = None) -> AdapterSwitch:
    return AdapterSwitch("smollm2", FakeShelf(), store or FakeStore(("a", "b")))


async def test_a_node_begins_with_the_adapter_it_ended_with() -> None:
    held = switch(FakeStore(("a", "b"), chosen="b"))
    await held.start()
    assert held.active == "b" and held.shelf.names() == ["b"]


@pytest.mark.parametrize("chosen", ["gone", "broken"])
async def test_an_active_adapter_that_cannot_be_used_leaves_the_plain_model(chosen: str) -> None:
    held = switch(FakeStore(("a", "broken"), chosen=chosen, broken=frozenset({"broken"})))
    await held.start()
    assert held.active is None and held.shelf.names() == []


async def test_the_beginning_of_an_id_is_enough_if_it_is_the_only_one() -> None:
    held = switch(FakeStore(("f00dcafe11", "f00dcafe22", "f00dbeef")))
    assert await held.resolve("smollm2:f00dbe") == "f00dbeef"
    for name in ("f00dcafe", "f00d", "f00dbeef00"):
        with pytest.raises(ModelNotFoundError):
            await held.resolve(name)


@pytest.mark.parametrize(
    "name, expected",
    [
        (None, "a"),
        ("default", "a"),
        ("dummy", "a"),
        ("base", None),
        ("smollm2", None),
        ("b", "b"),
        ("smollm2:b", "b"),
        ("base:b", "b"),
    ],
)
async def test_a_model_name_means_one_adapter(name: str | None, expected: str | None) -> None:
    held = switch()
    await held.activate("a")
    assert await held.resolve(name) == expected


@pytest.mark.parametrize("name", ["gpt-5", "smollm2:c", "", "b:smollm2"])
async def test_an_unknown_name_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"smollm2, a \(a\), b \(b\)"):
        await switch().resolve(name)


async def test_an_adapter_answers_to_what_it_is_called_unless_two_are() -> None:
    store = FakeStore(
        ("f00dcafe11", "f00dcafe22", "f00dbeef33"),
        called={"f00dcafe11": "kitchen", "f00dbeef33": "f00dcafe22"},
    )
    held = switch(store)
    for name in ("kitchen", "smollm2:kitchen", "base:kitchen"):
        assert await held.resolve(name) == "f00dcafe11"
    assert await held.resolve("f00dcafe22") == "f00dcafe22"  # an id before a name
    store.called["f00dbeef33"] = "kitchen"
    with pytest.raises(
        ModelNotFoundError,
        match=r"kitchen means 2 adapters here; .* kitchen "
        r"\(f00dcafe11\)",
    ):
        await held.resolve("kitchen")


async def test_a_switch_that_fails_leaves_the_old_adapter_active() -> None:
    store = FakeStore(("a", "b"), broken=frozenset({"b"}))
    held = switch(store)
    await held.activate("a")
    with pytest.raises(ModelNotFoundError):
        await held.activate("b")
    assert (held.active, store.chosen, held.shelf.names()) == ("a", "a", ["a"])


async def test_the_choice_is_remembered_and_can_be_undone() -> None:
    store = FakeStore(("a",))
    held = switch(store)
    seen = []
    for choice in ("a", None):
        await held.activate(choice)
        seen.append((store.chosen, held.active))
    assert seen == [("a", "a"), (None, None)]


async def test_a_choice_made_by_another_program_is_taken_over_and_a_bad_one_is_tried_once() -> None:
    store = FakeStore(("a", "b", "broken"), broken=frozenset({"broken"}))
    held = switch(store)
    await held.activate("a")
    for chosen in ("b", None, "a"):
        store.chosen = chosen
        await held.refresh()
        assert held.active == chosen
    store.chosen = "broken"
    with pytest.raises(ModelNotFoundError):
        await held.refresh()
    await held.refresh()
    assert held.active == "a" and store.loads.count("broken") == 1


async def test_two_requests_for_one_new_adapter_load_it_once() -> None:
    store = FakeStore(("a",))
    held = switch(store)
    assert set(await asyncio.gather(held.resolve("a"), held.resolve("a"))) == {"a"}
    assert store.loads == ["a"]


async def test_a_node_without_adapters_answers_with_its_model() -> None:
    held = AdapterSwitch("smollm2", FakeShelf(), NoAdapters())
    await held.start()
    assert await held.resolve(None) is None
    with pytest.raises(ModelNotFoundError):
        await held.resolve("a")
