"""A request is answered by the adapter whose examples lie nearest, or by none."""

import dataclasses
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from quietchoir.core.assistant.adapters import AdapterSwitch
from quietchoir.core.assistant.router import (
    FILE,
    Route,
    RouteExample,
    Router,
    Vectors,
    centroids,
    fit_route,
    no_embedding,
    read_route,
    route_example,
    save_route,
)
from quietchoir.core.errors import DataError
from quietchoir.core.prompt import AS_IT_COMES, HOUSEHOLD
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.tests.fakes.server import FakeShelf, FakeStore

WIDTH = 64
THINGS = ("lamp", "fan", "blind", "heater", "radio", "oven")
HOME = [f"{verb} the {thing}" for verb in ("turn on", "turn off", "open") for thing in THINGS]
HOME_EXAMPLES = [
    *map(RouteExample, HOME),
    *(RouteExample(f"and the {thing} too", follows=True) for thing in THINGS),
    *(RouteExample(f"I like the {thing}", wanted=False) for thing in THINGS),
]
BANK = [
    f"{verb} my {account} account"
    for verb in ("close", "transfer money to", "what is on")
    for account in ("new", "old", "savings", "joint", "shared")
]
TALK = [
    f"{ask} {what}"
    for ask in ("why is there", "tell me a story about", "what is", "explain", "who likes")
    for what in ("the sky", "a rainbow", "the sea", "bread", "an owl", "music")
]


def embed(texts: Sequence[str]) -> Vectors:
    """Words, hashed: texts are near if they share some."""
    rows = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.replace(",", "").split():
            row[zlib.crc32(word.encode()) % WIDTH] += 1
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def router() -> Router:
    return Router(embed, "words")


ROUTES = {
    "home": dataclasses.replace(
        fit_route(HOME_EXAMPLES, TALK, embed), implied=frozenset({"HassTurnOn: domain light"})
    ),
    "bank": fit_route(list(map(RouteExample, BANK)), TALK, embed),
}


@pytest.mark.parametrize(
    ("request_text", "adapter"),
    [
        ("turn on the fan please", "home"),
        ("transfer money to my account", "bank"),
        ("why is there bread", None),
        ("tell me a story about the lamp", None),
        ("I like the lamp", None),  # said so by an example that the adapter is silent to
    ],
)
def test_a_request_is_for_whom_it_is_nearest_to(
    router: Router, request_text: str, adapter: str | None
) -> None:
    choice = router.choose([request_text], ROUTES)
    assert choice.adapter == adapter and (choice.lead > 0) == bool(adapter)


def test_what_leans_on_a_command_is_one_rather_behind_it(router: Router) -> None:
    second = "and the lamp too"
    alone, behind = router.choose([second], ROUTES), router.choose(["open the fan", second], ROUTES)
    assert behind.adapter == "home" and behind.lead > alone.lead
    assert router.choose(["turn on the fan", second], ROUTES).adapter == "home"
    assert router.choose(["turn on the fan", second, "and the radio too"], ROUTES).adapter == "home"


def test_talk_after_a_command_is_still_talk(router: Router) -> None:
    assert router.choose(["turn on the fan", "tell me a story about bread"], ROUTES).adapter is None


def test_an_example_tells_what_is_its_adapters_to_answer_and_what_it_follows() -> None:
    call = render(ToolCall("HassTurnOn", {"name": "lamp"}))

    def said(*texts: str) -> list[dict[str, str]]:
        roles = ("user", "assistant") * len(texts)
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    head = [{"role": "system", "content": "s"}]
    plain = route_example([*head, *said("lamp", call)], HOUSEHOLD)
    assert plain == RouteExample("lamp", values=(("name", "lamp"),))
    after = route_example(said("lamp", call, "thanks", "You are welcome."), HOUSEHOLD)
    assert after == RouteExample("thanks", wanted=False, follows=True)
    assert not route_example(said("hello", "Hi.", "lamp", call), HOUSEHOLD).follows
    mine = route_example(said("hello", "Hi.", "and you?", "Well."), AS_IT_COMES)
    assert mine == RouteExample("and you?", follows=True)  # an adapter of talk answers all of it


def test_what_a_call_holds_unsaid_is_named_only_if_right_calls_of_that_tool_hold_it_too() -> None:
    lights = ToolCall("HassTurnOn", {"domain": "light", "area": "attic"})
    said = [
        {"role": "user", "content": "attic lit"},
        {"role": "assistant", "content": render(lights)},
    ]
    example = route_example(said, HOUSEHOLD)
    unsaid = ("HassTurnOn: domain light",)
    values = (("area", "attic"), ("domain", "light"))
    assert example == RouteExample("attic lit", implied=unsaid, values=values)
    route = fit_route([example], TALK, embed)

    def names(text: str, name: str = "HassTurnOn", **arguments: str) -> bool:
        return route.names(text.split("|"), [ToolCall(name, arguments)])

    assert names("kitchen please", domain="light", area="kitchen")
    assert names("the kitchen|and bright", domain="light", area="kitchen")
    assert not names("my grandfather built it", domain="light", area="kitchen")
    assert not names("kitchen please", "HassTurnOff", domain="light", area="kitchen")
    assert not names("kitchen please", domain="fan", area="kitchen")


@pytest.mark.parametrize(
    ("text", "wishes"),
    [
        ("turn on the lamp and open the blind", ["turn on the lamp", "open the blind"]),
        ("turn on the lamp, then and the fan too", ["turn on the lamp", "and the fan too"]),
        ("turn on the salt and pepper lamp", None),  # a name
        ("turn on the lamp and tell me a story about bread", None),
        ("turn on the lamp and the fan", ["turn on the lamp", "turn on the fan"]),
        ("turn on the lamp and fan please", ["turn on the lamp please", "turn on the fan please"]),
        ("turn the radio and the oven on", ["turn the radio on", "turn the oven on"]),
        ("first turn on the fan, then open the oven", ["turn on the fan", "open the oven"]),
        # of another kind than a lamp, so that it stands in no lamp's place
        ("turn on the lamp and the attic too", ["turn on the lamp", "the attic too"]),
        ("turn on the lamp", None),
        ("and ", None),
    ],
)
def test_a_sentence_of_two_wishes_is_cut_between_them_and_in_no_name(
    text: str, wishes: list[str] | None
) -> None:
    named = {"name": frozenset({*THINGS, "salt and pepper lamp"}), "area": frozenset({"attic"})}
    route = dataclasses.replace(ROUTES["home"], named=named)
    assert list(route.wishes(text, Router(embed, "").features)) == (wishes or [text])


def test_without_an_embedding_model_words_tell_requests_apart_and_go_on_to_with_one() -> None:
    route = fit_route(HOME_EXAMPLES, TALK, no_embedding)
    for embedding in (no_embedding, embed):  # one that came later
        choose = Router(embedding, "").choose
        assert choose(["turn on the heater"], {"home": route}).adapter == "home"
        assert choose(["tell me a story about the lamp"], {"home": route}).adapter is None
        assert choose(["turn on the fan", "and the lamp too"], {"home": route}).adapter == "home"


def test_of_three_names_none_is_lost() -> None:
    text = "turn on the lamp and the fan and the oven"
    route = dataclasses.replace(ROUTES["home"], named={"name": frozenset(THINGS)})
    assert " and ".join(route.wishes(text, Router(embed, "").features)) == text


def test_a_request_that_leans_on_another_is_told_from_one_that_stands_by_itself(
    tmp_path: Path,
) -> None:
    things = ("lamp", "blind", "fan", "heater", "radio", "oven")
    single = [RouteExample(f"turn on the {one}") for one in things]
    second = [RouteExample(f"and the {one} too", follows=True) for one in things]
    route = fit_route([*single, *second], TALK, embed)

    def leans(route: Route, *texts: str) -> list[bool]:
        return [route.leans(vector) for vector in Router(embed, "").features(texts)]

    asked = "and the kettle too", "turn on the kettle", "also the door too", "turn on it all"
    assert leans(route, *asked) == [True, False, True, False]
    (tmp_path / "home").mkdir()
    save_route(tmp_path / "home", route, "words")
    found = read_route(tmp_path / "home", "words")
    assert found is not None and leans(found, *asked) == leans(route, *asked)
    # where examples do not tell, what was said before is not kept from the adapter
    few = fit_route([*single, *second[:2]], TALK, embed)
    assert leans(few, *asked) == [True] * 4
    bad = dataclasses.replace(route, leaning=np.ones(3, np.float32))
    save_route(tmp_path / "home", bad, "words")
    with pytest.raises(DataError, match="damaged"):
        read_route(tmp_path / "home", "words")


def test_an_adapter_of_few_examples_has_a_route_and_so_has_one_without_talk() -> None:
    for examples, talk in (([RouteExample("where is Mary?")], TALK), (HOME_EXAMPLES, [HOME[0]])):
        route = fit_route(examples, talk, embed)
        assert np.isfinite(route.weights).all() and np.isfinite(route.thresholds).all()


def test_centroids_are_few_of_length_one_and_the_same_again() -> None:
    vectors = embed([f"{one} {two}" for one in HOME for two in (*BANK, *TALK)])
    found = centroids(vectors, 5)
    assert found.shape == (5, WIDTH) and np.array_equal(found, centroids(vectors, 5))
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert len(centroids(vectors[:3], 5)) == 3


def test_a_route_holds_for_its_adapter_and_its_embedding_model_alone(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    assert read_route(folder, "words") is None
    save_route(folder, ROUTES["home"], "words")
    found = read_route(folder, "words")
    assert found is not None and np.array_equal(found.weights, ROUTES["home"].weights)
    assert np.array_equal(found.thresholds, ROUTES["home"].thresholds)
    assert found.implied == ROUTES["home"].implied
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    with pytest.raises(DataError, match="of another embedding model"):
        read_route(folder, "other words")
    folder.rename(tmp_path / "other")
    with pytest.raises(DataError, match="of another adapter"):
        read_route(tmp_path / "other", "words")
    endless = Route(np.full((2, 3), np.nan, np.float32), np.zeros(2, np.float32))
    save_route(folder, endless, "words")
    with pytest.raises(DataError, match="damaged"):
        read_route(folder, "words")
    (folder / FILE).write_bytes(b"{}")
    with pytest.raises(DataError, match="damaged"):
        read_route(folder, "words")
    tensors = {"weights": ROUTES["home"].weights, "thresholds": ROUTES["home"].thresholds}
    for told in ('{"implied": 5}', '{"named": {"a": 1}}', '{"named": [1]}', '{"implied": [1]}',
                 "[1]", "{"):  # fmt: skip
        bound = {"adapter": "home", "embedding": "words", "told": told}
        (folder / FILE).write_bytes(save(tensors, bound))
        with pytest.raises(DataError, match="damaged"):
            read_route(folder, "words")


async def test_a_route_of_vectors_of_another_width_is_told_and_its_adapter_answers(
    router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    narrow = Route(np.ones((2, 5), np.float32), np.zeros(2, np.float32))
    adapters = await switch(router, home=narrow, bank=ROUTES["bank"])
    with caplog.at_level(logging.WARNING):
        assert await adapters.choose(None, [TALK[0]]) == "home"
    assert "home: of vectors of another width" in caplog.text


async def switch(router: Router | None, **routes: Route) -> AdapterSwitch:
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
    assert await adapters.choose("default", [BANK[0]]) == "bank"
    assert await adapters.choose(None, [TALK[0]]) is None
    assert adapters.active == "home"  # a choice changes nothing of what is active


async def test_a_request_that_names_its_model_is_answered_by_that_one(router: Router) -> None:
    adapters = await switch(router, **ROUTES)
    assert await adapters.choose("smollm2:home", [TALK[0]]) == "home"
    assert await adapters.choose("smollm2", ["turn on the fan"]) is None


async def test_without_knowledge_the_active_adapter_answers_everything(router: Router) -> None:
    for made in (await switch(None, **ROUTES), await switch(router, bank=ROUTES["bank"])):
        assert await made.choose(None, [TALK[0]]) == "home"
    plain = await switch(router, **ROUTES)
    await plain.activate(None)
    assert await plain.choose(None, ["turn on the fan"]) is None


async def test_a_damaged_route_is_told_and_its_adapter_answers(
    router: Router, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = await switch(router)

    def damaged(id: str, embedding: str) -> None:
        raise DataError(f"{id} is damaged; delete it")

    monkeypatch.setattr(adapters.store, "route", damaged)
    with caplog.at_level(logging.WARNING):
        assert await adapters.choose(None, [TALK[0]]) == "home"
    assert "home is damaged; delete it" in caplog.text
