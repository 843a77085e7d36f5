"""Facts about made-up households and what they say."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hassil.intents import Intents, SlotList, TextSlotList
from hassil.recognize import recognize_all
from home_assistant_intents import get_intents

from quietchoir.core import toolcall
from quietchoir.core.errors import DataError
from quietchoir.core.training.dataset import HomeData, build_homes, list_datasets, make_homes
from quietchoir.core.training.examples import read_jsonl
from quietchoir.core.training.household.home import HomeRequest, requests, sayable
from quietchoir.core.training.household.templates import grammar, split


@pytest.fixture(scope="module")
def homes() -> list[HomeData]:
    return make_homes(households=4, train=150, test=100, seed=1)


def everything(home: HomeData) -> list[HomeRequest]:
    return [*home.train, *home.test]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        build_homes(tmp_path / name, households=2, train=20, test=10, seed=seed)
    files = {name: sorted((tmp_path / name).rglob("*.json*")) for name in "abc"}
    assert len(files["a"]) == 6
    contents = {name: [file.read_bytes() for file in files[name]] for name in "abc"}
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]


def test_one_more_household_changes_no_other_one() -> None:
    few, many = (make_homes(households=n, train=20, test=1, seed=3) for n in (2, 3))
    assert [home.household for home in few] == [home.household for home in many[:2]]
    assert [home.train for home in few] == [home.train for home in many[:2]]


def test_no_household_is_tested_on_a_template_that_any_household_learned(
    homes: list[HomeData],
) -> None:
    learned = {request.template for home in homes for request in home.train}
    asked = {request.template for home in homes for request in home.test}
    assert len(learned) > 100
    assert len(asked) > 40
    assert not learned & asked


def test_no_test_sentence_was_learned_anywhere_and_a_home_says_nothing_twice(
    homes: list[HomeData],
) -> None:
    learned = {request.text for home in homes for request in home.train}
    for home in homes:
        assert len(home.train) == 150
        assert len(home.test) == 100
        assert not learned & {request.text for request in home.test}
        assert len({request.text for request in everything(home)}) == 250


def test_a_held_out_wording_asks_for_a_call_that_other_wordings_teach() -> None:
    seen, unseen = split(grammar().templates, 0.25, np.random.default_rng(0))
    taught = {(template.intent, template.combination) for template in seen}
    assert {(template.intent, template.combination) for template in unseen} <= taught
    assert 0.15 < len(unseen) / (len(seen) + len(unseen)) < 0.4


def test_a_request_names_only_what_is_in_the_home_and_where_it_is(homes: list[HomeData]) -> None:
    located = 0
    for home in homes:
        household = home.household
        devices = {device.name: device for device in household.devices}
        for request in everything(home):
            slots, name = request.call.arguments, request.call.name
            assert slots.get("area", None) in {None, *household.floors}
            assert slots.get("floor", None) in {None, *household.floors.values()}
            if "Timer" in name or "name" not in slots:
                continue
            if slots["name"] in household.lists:
                assert name.startswith("HassList")
                continue
            device = devices[slots["name"]]
            if device.domain not in ("vacuum", "lawn_mower"):
                located += "area" in slots
                assert slots.get("area", device.area) == device.area
                assert (
                    slots.get("floor", household.floors[device.area])
                    == household.floors[device.area]
                )
    assert located > 10


def test_a_call_fits_the_kind_of_device_that_its_template_requires(homes: list[HomeData]) -> None:
    required: dict[str, set[str]] = {template.text: set() for template in grammar().templates}
    for template in grammar().templates:
        required[template.text] |= template.domains
    checked = 0
    for home in homes:
        devices = {device.name: device for device in home.household.devices}
        for request in everything(home):
            device = devices.get(request.call.arguments.get("name", ""))
            if device is not None and required[request.template]:
                checked += 1
                assert device.domain in required[request.template], request
    assert checked > 200


def test_a_speaker_never_mows_and_a_class_of_cover_is_one_the_home_has(
    homes: list[HomeData],
) -> None:
    for home in homes:
        covers = {
            device.device_class for device in home.household.devices if device.domain == "cover"
        }
        domains = {device.domain for device in home.household.devices}
        for request in everything(home):
            if "device_class" in request.call.arguments:
                assert request.call.arguments["device_class"] in covers
            if request.call.name.startswith("HassLawnMower"):
                assert "lawn_mower" in domains
            if "domain" in request.call.arguments:
                assert request.call.arguments["domain"] in domains


def test_homes_differ_in_rooms_devices_and_habits(homes: list[HomeData]) -> None:
    for one, other in pairwise(homes):
        assert one.household.floors != other.household.floors
        assert one.household.devices != other.household.devices
        shares = [np.array(list(home.household.habits.values())) for home in (one, other)]
        assert np.abs(shares[0] - shares[1]).sum() > 0.5  # of at most 2


def test_the_package_s_own_parser_reads_the_same_call_out_of_a_sentence(
    homes: list[HomeData],
) -> None:
    intents = Intents.from_dict(get_intents("en"))
    home = homes[0]
    lists = own_lists(home)
    context = {"area": "somewhere"}  # what the listening device would add
    for request in home.train[:40]:
        found = []
        for result in recognize_all(
            request.text, intents, slot_lists=lists, intent_context=context
        ):
            slots = {key: entity.value for key, entity in result.entities.items()}
            if slots.get("area") == "somewhere" and "area" not in request.call.arguments:
                slots.pop("area")
            found.append((result.intent.name, slots))
        assert (request.call.name, dict(request.call.arguments)) in found, request


def own_lists(home: HomeData) -> dict[str, SlotList]:
    """The home's names for the parser, each with its domain as context."""
    household = home.household
    names = [(device.name, device.name, {"domain": device.domain}) for device in household.devices]
    names += [(name, name, {"domain": "todo"}) for name in household.lists]
    return {
        "name": TextSlotList.from_tuples(names, name="name"),
        "area": TextSlotList.from_strings(list(household.floors), name="area"),
        "floor": TextSlotList.from_strings(sorted(set(household.floors.values())), name="floor"),
    }


def test_the_answer_reads_back_as_the_call(homes: list[HomeData]) -> None:
    for home in homes:
        for request in everything(home):
            example = request.example()
            assert toolcall.parse(example.answer) == request.call
            assert example.messages[0] == {"role": "system", "content": toolcall.SYSTEM_PROMPT}
            assert example.request == request.text


@pytest.mark.parametrize(
    "text",
    ["turn off the the light", "turn on reading lamp light", "put milk "
                                                             "on the "
                                                             "groceries "
                                                             "list list", "set a 1 minutes timer",
     "turn off "
     "every my "
     "lights", "add 5-hours to timer", "change off the fan", "lights on the basement floor"],
)  # fmt: skip
def test_what_nobody_says_is_left_out(text: str) -> None:
    assert not sayable(text)


@pytest.mark.parametrize(
    "text",
    [
        "turn off all the lights",
        "change color of the lamp to red",
        "set a 20 minute timer",
        "fan on",
    ],
)
def test_what_people_say_stays(text: str) -> None:
    assert sayable(text)


def test_the_files_hold_the_requests_and_describe_the_home(tmp_path: Path) -> None:
    built = build_homes(tmp_path, households=2, train=12, test=6, seed=2)
    assert [(info.name, info.train, info.test, info.home) for info in built] == [
        ("household-0", 12, 6, True),
        ("household-1", 12, 6, True),
    ]
    for info in built:
        assert len(read_jsonl(info.folder / "train.jsonl")) == 12
        assert len(read_jsonl(info.folder / "test.jsonl")) == 6
        home = json.loads((info.folder / "home.json").read_text())
        assert set(home) == {"name", "areas", "devices", "lists"}
        areas = {area["name"] for area in home["areas"]}
        assert len(home["devices"]) == info.devices
        assert len({device["name"] for device in home["devices"]}) == info.devices
        assert all(device["area"] in areas and device["domain"] for device in home["devices"])
    found = list_datasets(tmp_path)
    assert [(info.name, info.train, info.test, info.home) for info in found] == [
        ("household-0", 12, 6, True),
        ("household-1", 12, 6, True),
    ]
    assert list_datasets(tmp_path / "nowhere") == []


@pytest.mark.parametrize("counts", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_count_below_one_writes_nothing(tmp_path: Path, counts: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="at least 1"):
        build_homes(tmp_path, households=counts[0], train=counts[1], test=counts[2])
    assert list(tmp_path.iterdir()) == []


def test_more_than_a_home_can_say_is_refused(homes: list[HomeData]) -> None:
    few = [template for template in grammar().templates if template.intent == "HassNevermind"]
    with pytest.raises(DataError, match="only 2 different sentences, expected 5"):
        requests(homes[0].household, grammar(), few, 5, np.random.default_rng(0))
