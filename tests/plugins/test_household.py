"""The household acts: every request that the training data can hold, on the devices it means."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins import manifest
from quietchoir.plugins.builtin.household import devices, notes
from quietchoir.plugins.builtin.household.house import House, Refusal, furnish
from quietchoir.plugins.host import BUILTIN, PluginHost
from quietchoir.plugins.sandbox.probe import SandboxReport
from quietchoir.plugins.sdk import quietchoir_sdk

from .conftest import HOME

ACTS = devices.ACTS | notes.ACTS


@pytest.fixture
def house() -> House:
    """The small home, at noon of some day."""
    return furnish(HOME, None, lambda: 1000.0)


def state_of(house: House, name: str) -> dict[str, Any]:
    """State of the device called `name`."""
    return next(house.get(device) for device in house.devices if device.name == name)


@pytest.mark.parametrize(
    ("intent", "slots", "text", "device", "state"),
    [
        (
            "HassTurnOn",
            {"name": "ceiling lamp"},
            "Turned on the ceiling lamp (kitchen).",
            "ceiling lamp",
            {"state": "on"},
        ),
        (
            "HassTurnOn",
            {"name": "The Ceiling  Lamp"},
            "Turned on the ceiling lamp (kitchen).",
            "ceiling lamp",
            {"state": "on"},
        ),
        (
            "HassTurnOn",
            {"area": "kitchen", "domain": "light"},
            "Turned on the ceiling lamp (kitchen) and the spotlight (kitchen).",
            "spotlight",
            {"state": "on"},
        ),
        (
            "HassTurnOn",
            {"floor": "first floor", "domain": "light"},
            "Turned on the reading lamp (bedroom).",
            "reading lamp",
            {"state": "on"},
        ),
        (
            "HassTurnOn",
            {"domain": "cover", "device_class": "blind"},
            "Opened the roller blind (bedroom).",
            "roller blind",
            {"position": 100},
        ),
        (
            "HassTurnOff",
            {"name": "front door"},
            "Unlocked the front door (kitchen).",
            "front door",
            {"state": "unlocked"},
        ),
        (
            "HassTurnOn",
            {"name": "movie night"},
            "Activated the movie night (bedroom).",
            "movie night",
            {"state": "on"},
        ),
        (
            "HassLightSet",
            {"name": "spotlight", "brightness": 40, "color": "red"},
            "Set the spotlight (kitchen) to 40% brightness and red.",
            "spotlight",
            {"state": "on", "brightness": 40, "color": "red"},
        ),
        (
            "HassClimateSetTemperature",
            {"temperature": 21.5},
            "Set the thermostat (kitchen) to 21.5°.",
            "thermostat",
            {"temperature": 21.5},
        ),
        (
            "HassSetPosition",
            {"name": "roller blind", "position": 30},
            "Moved the roller blind (bedroom) to 30%.",
            "roller blind",
            {"position": 30},
        ),
        (
            "HassSetVolumeRelative",
            {"volume_step": "up"},
            "Turned the stereo (bedroom) up by 10%.",
            "stereo",
            {"volume": 40},
        ),
        (
            "HassSetVolumeRelative",
            {"volume_step": -50},
            "Turned the stereo (bedroom) down by 50%.",
            "stereo",
            {"volume": 0},
        ),
        (
            "HassMediaSearchAndPlay",
            {"search_query": "blue"},
            "Playing blue on the stereo (bedroom).",
            "stereo",
            {"state": "playing", "media": "blue"},
        ),
        (
            "HassVacuumCleanArea",
            {"area": "bedroom"},
            "The robbie (kitchen) is cleaning the bedroom.",
            "robbie",
            {"cleaning": "bedroom"},
        ),
        (
            "HassVacuumReturnToBase",
            {"name": "robbie"},
            "Sent the robbie (kitchen) back to its base.",
            "robbie",
            {"state": "docked"},
        ),
    ],
)
def test_a_request_changes_the_device_it_means_and_says_so(
    house: House, intent: str, slots: dict[str, Any], text: str, device: str, state: dict[str, Any]
) -> None:
    assert ACTS[intent](house, slots) == text
    assert state_of(house, device).items() >= state.items()


@pytest.mark.parametrize(
    ("intent", "slots", "message"),
    [
        (
            "HassTurnOn",
            {"name": "toaster"},
            "there is no 'toaster' in this house; there is: ceiling lamp,",
        ),
        (
            "HassTurnOn",
            {"name": "spotlight", "area": "bedroom"},
            "there is no spotlight in the bedroom",
        ),
        (
            "HassTurnOn",
            {"area": "cellar", "domain": "light"},
            "there is no area 'cellar' in this house; there is: kitchen, bedroom",
        ),
        (
            "HassTurnOn",
            {"floor": "attic"},
            "there is no floor 'attic' in this house; there is: first floor, ground floor",
        ),
        ("HassTurnOn", {"domain": "fan"}, "there is no fan in this house"),
        ("HassTurnOff", {"name": "movie night"}, "cannot be switched off"),
        (
            "HassLightSet",
            {"name": "stereo", "brightness": 10},
            "stereo is a media player, not a light",
        ),
        (
            "HassLightSet",
            {"name": "spotlight", "brightness": 400},
            "brightness is 400; it must be 0 to 100",
        ),
        ("HassLightSet", {"name": "spotlight"}, "say a brightness"),
        ("HassSetVolumeRelative", {"volume_step": "sideways"}, "neither up, down nor a number"),
        (
            "HassListAddItem",
            {"name": "taxes", "item": "forms"},
            "there is no list 'taxes' in this house; there is: groceries, shopping list",
        ),
        ("HassListRemoveItem", {"name": "groceries", "item": "milk"}, "milk is not on groceries"),
        ("HassCancelTimer", {}, "no timer is running"),
        ("HassStartTimer", {}, "needs hours, minutes or seconds"),
        ("HassGetWeather", {}, "there is no weather in this house"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(
    house: House, intent: str, slots: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refusal, match=message):
        ACTS[intent](house, slots)
    assert house.state.get("devices", {}) == {}


def test_questions_are_answered_from_the_state(house: House) -> None:
    ACTS["HassLightSet"](house, {"name": "spotlight", "brightness": 40})
    assert ACTS["HassGetState"](house, {"name": "spotlight"}) == (
        "The spotlight (kitchen) is on, brightness 40."
    )
    assert ACTS["HassGetState"](house, {"name": "front door", "state": "locked"}) == (
        "Yes, the front door (kitchen) is locked."
    )
    assert ACTS["HassGetState"](house, {"domain": "light", "state": "on"}) == (
        "1 of 3 are on: the spotlight (kitchen)."
    )
    assert ACTS["HassClimateGetTemperature"](house, {}) == "The thermostat (kitchen) measures 20°."


def test_lists_keep_what_was_added_until_it_is_done_or_removed(house: House) -> None:
    assert ACTS["HassListAddItem"](house, {"name": "groceries", "item": "milk"}) == (
        "Added milk to groceries."
    )
    assert (
        ACTS["HassListCompleteItem"](house, {"name": "groceries list", "item": "Milk"})
        == "Checked off milk on groceries."
    )
    ACTS["HassShoppingListAddItem"](house, {"item": "eggs"})
    assert house.state["lists"] == {
        "groceries": [{"item": "milk", "done": True}],
        "shopping list": [{"item": "eggs", "done": False}],
    }


def test_a_timer_runs_pauses_and_ends(house: House) -> None:
    clock = [1000.0]
    house.now = lambda: clock[0]
    assert ACTS["HassStartTimer"](house, {"minutes": 5, "name": "pizza"}) == (
        "Started a timer for 5 minutes."
    )
    clock[0] += 60
    assert ACTS["HassPauseTimer"](house, {"name": "pizza"}) == (
        "Paused the pizza timer, 4 minutes left."
    )
    clock[0] += 600
    assert ACTS["HassUnpauseTimer"](house, {}) == "Resumed the pizza timer, 4 minutes left."
    assert (
        ACTS["HassIncreaseTimer"](house, {"start_minutes": 5, "seconds": 30})
        == "Lengthened the pizza timer by 30 seconds; 4 minutes 30 seconds left."
    )
    clock[0] += 271
    assert ACTS["HassTimerStatus"](house, {}) == "The pizza timer is over."
    assert ACTS["HassCancelAllTimers"](house, {"area": "kitchen"}) == "Cancelled 1 timer."


def test_every_tool_of_the_manifest_has_an_act_and_every_act_a_tool() -> None:
    terms = manifest.read(BUILTIN / "household")
    assert {tool.name for tool in terms.tools} == set(ACTS)


def test_every_call_of_the_training_data_fits_the_tools_and_can_be_carried_out() -> None:
    from quietchoir.core.training.dataset import make_homes

    tools = {tool.name: tool for tool in manifest.read(BUILTIN / "household").tools}
    for data in make_homes(households=3, train=200, test=100, seed=5):
        for request in data.train + data.test:
            call = request.call
            tool = quietchoir_sdk.Tool(lambda: "", call.name, "", tools[call.name].schema, False)
            house = furnish(
                json.loads(json.dumps(data.household.describe())), prepared(call), lambda: 1000.0
            )
            if call.name == "HassGetWeather":  # asked in homes without a weather station too
                with pytest.raises(Refusal, match="no weather"):
                    ACTS[call.name](house, tool.check(call.arguments))
            else:
                assert ACTS[call.name](house, tool.check(call.arguments)), request.text


def prepared(call: ToolCall) -> dict[str, Any]:
    """A state in which there is what the call speaks of: a paused timer of that name and length,
    an item on that list.
    """
    length = notes.seconds(call.arguments, "start_") or 3600.0
    timer = {
        "name": call.arguments.get("name", ""),
        "length": length,
        "end": 1000.0 + length,
        "paused": True,
        "left": length,
    }
    item = [{"item": call.arguments.get("item"), "done": False}]
    return {"timers": [timer], "lists": {call.arguments.get("name", notes.SHOPPING): item}}


@pytest.mark.parametrize(
    "description", [None, [], {"devices": [{"name": "x"}]}, {"areas": ["kitchen"]}, {"devices": 7}]
)
def test_a_home_file_of_another_shape_is_refused(description: Any) -> None:
    with pytest.raises(Refusal, match=r"home\.json"):
        furnish(description, None, lambda: 0.0)


async def test_in_its_sandbox_it_acts_and_remembers_after_a_restart(
    sandbox: SandboxReport, hosts: Callable[..., Any], home_file: Path
) -> None:
    files = {"quietchoir/household": {"home.json": home_file}}

    async def said(host: PluginHost, intent: str, /, **slots: Any) -> tuple[str, bool]:
        result = await host.call(ToolCall(intent, slots))
        return result.text, result.ok

    host = await hosts(enabled=("quietchoir/household",), files=files)
    assert await said(host, "HassTurnOn", name="ceiling lamp") == (
        "Turned on the ceiling lamp (kitchen).",
        True,
    )
    assert (await said(host, "HassTurnOn", name="toaster"))[1] is False
    assert await said(host, "HassLightSet", name="spotlight", brightness="55") == (
        "Set the spotlight (kitchen) to 55% brightness.",
        True,
    )
    text, ok = await said(host, "HassTurnOn", colour="red")
    assert not ok and "takes no argument 'colour'" in text
    await host.stop()
    again = await hosts(enabled=("quietchoir/household",), files=files)
    assert await said(again, "HassGetState", domain="light", state="on") == (
        "2 of 3 are on: the ceiling lamp (kitchen) and the spotlight (kitchen).",
        True,
    )
    home_file.write_text(json.dumps(HOME | {"devices": []}))
    await again.stop()
    # the owner's file is read anew at each start
    assert (await said(again, "HassTurnOn", name="ceiling lamp"))[1] is False
