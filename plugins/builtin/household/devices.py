"""What can be asked of things in the house: a state changes, and a sentence says so.

Knows which intent is about which kind of device. Knows nothing of lists, timers or MCP.
Always: a request either changes all the devices it means, or is refused and changes none.
"""

from collections.abc import Callable
from typing import Any

from .house import Device, House, Refusal, Slots, names, sentence

PLAYER, COVER = ("media_player",), ("cover", "valve")
MOMENTARY = {"scene": "Activated", "script": "Ran", "button": "Pressed", "input_button": "Pressed"}
READ_ONLY = ("sensor", "binary_sensor", "person", "weather", "todo")


def change(house: House, devices: list[Device], said: str, **changes: Any) -> str:
    """Change all `devices` alike; the sentence is `said` with their names."""
    for device in devices:
        house.put(device, **changes)
    return sentence(said.format(names(devices)))


def switch(on: bool) -> Callable[[House, Slots], str]:
    """HassTurnOn and HassTurnOff, which also open and close, lock and unlock, run and press."""

    def act(house: House, slots: Slots) -> str:
        found = [device for device in house.find(slots) if device.domain not in READ_ONLY]
        if not slots.get("name") and not slots.get("domain"):
            found = [
                device
                for device in found
                if device.domain in ("light", "switch", "fan", "media_player", "input_boolean")
            ]
        if not found:
            raise Refusal("nothing there can be switched " + ("on" if on else "off"))
        if not on and (stuck := [device for device in found if device.domain in MOMENTARY]):
            raise Refusal(f"{names(stuck)} cannot be switched off")
        verbs: dict[str, list[Device]] = {}
        for device in found:
            verb, changes = turned(device.domain, on)
            house.put(device, **changes)
            verbs.setdefault(verb, []).append(device)
        return " ".join(f"{verb} {names(devices)}." for verb, devices in verbs.items())

    return act


def turned(domain: str, on: bool) -> tuple[str, dict[str, Any]]:
    """Verb and new state of one switched device."""
    if domain in MOMENTARY:
        return MOMENTARY[domain], {"state": "on"}
    if domain in COVER:
        return (
            ("Opened", {"state": "open", "position": 100})
            if on
            else ("Closed", {"state": "closed", "position": 0})
        )
    if domain == "lock":
        return ("Locked", {"state": "locked"}) if on else ("Unlocked", {"state": "unlocked"})
    if domain in ("vacuum", "lawn_mower"):
        return ("Started", {"state": "running"}) if on else ("Sent back", {"state": "docked"})
    return ("Turned on", {"state": "on"}) if on else ("Turned off", {"state": "off"})


def light(house: House, slots: Slots) -> str:
    """HassLightSet: brightness, color, color temperature, or several of them."""
    changes = {key: slots[key] for key in ("brightness", "color", "temperature") if key in slots}
    if not changes:
        raise Refusal("say a brightness, a color or a color temperature")
    if "brightness" in changes:
        percent(changes["brightness"], "brightness")
    units = {"brightness": "{}% brightness", "color": "{}", "temperature": "{} K"}
    wish = " and ".join(units[key].format(value) for key, value in changes.items())
    return change(
        house, house.find(slots, ("light",)), f"Set {{}} to {wish}", state="on", **changes
    )


def measured(house: House, slots: Slots) -> str:
    """HassClimateGetTemperature."""
    return " ".join(
        sentence(f"{names([one])} measures {house.get(one)['measured']}°")
        for one in house.find(slots, ("climate",))
    )


def warm(house: House, slots: Slots) -> str:
    """HassClimateSetTemperature."""
    found = house.find(slots, ("climate",))
    return change(
        house,
        found,
        f"Set {{}} to {slots['temperature']}°",
        state="on",
        temperature=slots["temperature"],
    )


def blow(house: House, slots: Slots) -> str:
    """HassClimateSetFanMode."""
    return change(
        house,
        house.find(slots, ("climate",)),
        f"Set the fan of {{}} to {slots['fan_mode']}",
        fan_mode=slots["fan_mode"],
    )


def speed(house: House, slots: Slots) -> str:
    """HassFanSetSpeed."""
    wish = percent(slots["percentage"], "speed")
    state = "on" if wish else "off"
    return change(
        house, house.find(slots, ("fan",)), f"Set {{}} to {wish}%", state=state, percentage=wish
    )


def position(house: House, slots: Slots) -> str:
    """HassSetPosition."""
    wish = percent(slots["position"], "position")
    state = "open" if wish else "closed"
    return change(
        house, house.find(slots, COVER), f"Moved {{}} to {wish}%", state=state, position=wish
    )


def player(said: str, **changes: Any) -> Callable[[House, Slots], str]:
    """A media intent that always does the same to a player."""
    return lambda house, slots: change(house, house.find(slots, PLAYER), said, **changes)


def skip(by: int, said: str) -> Callable[[House, Slots], str]:
    """HassMediaNext and HassMediaPrevious."""

    def act(house: House, slots: Slots) -> str:
        found = house.find(slots, PLAYER)
        for device in found:
            house.put(device, state="playing", track=max(1, house.get(device)["track"] + by))
        return sentence(said.format(names(found)))

    return act


def volume(house: House, slots: Slots) -> str:
    """HassSetVolume."""
    wish = percent(slots["volume_level"], "volume")
    return change(
        house, house.find(slots, PLAYER), f"Set the volume of {{}} to {wish}%", volume=wish
    )


def louder(house: House, slots: Slots) -> str:
    """HassSetVolumeRelative: "up", "down" or a number of percent."""
    step = {"up": 10, "down": -10}.get(str(slots["volume_step"]), slots["volume_step"])
    if not isinstance(step, int | float):
        raise Refusal(f"volume step {step!r} is neither up, down nor a number")
    found = house.find(slots, PLAYER)
    for device in found:
        house.put(device, volume=min(100, max(0, house.get(device)["volume"] + step)))
    return f"Turned {names(found)} {'up' if step > 0 else 'down'} by {abs(step)}%."


def play(house: House, slots: Slots) -> str:
    """HassMediaSearchAndPlay: on the players that are meant, else on the first one."""
    found = house.find(slots, PLAYER)
    chosen = found if slots.get("name") or slots.get("area") else found[:1]
    return change(
        house,
        chosen,
        f"Playing {slots['search_query']} on {{}}",
        state="playing",
        media=slots["search_query"],
    )


def state(house: House, slots: Slots) -> str:
    """HassGetState: one device's state, whether it is as asked, or which devices are."""
    found = house.find(slots)
    asked = slots.get("state")
    if asked is None:
        return " ".join(sentence(f"{names([one])} is {condition(house, one)}") for one in found)
    fitting = [
        one for one in found if str(house.get(one)["state"]).casefold() == str(asked).casefold()
    ]
    if slots.get("name") and len(found) == 1:
        return f"{'Yes' if fitting else 'No'}, {names(found)} is {condition(house, found[0])}."
    listed = f": {names(fitting)}" if fitting else ""
    return f"{len(fitting)} of {len(found)} are {asked}{listed}."


def condition(house: House, device: Device) -> str:
    """A device's state in words, with what else is worth saying."""
    known = house.get(device)
    extra = {
        "light": "brightness",
        "cover": "position",
        "valve": "position",
        "climate": "temperature",
        "media_player": "volume",
    }
    key = extra.get(device.domain)
    if key is None or known["state"] in ("off", "closed", "idle"):
        return str(known["state"])
    return f"{known['state']}, {key} {known[key]}"


def weather(house: House, slots: Slots) -> str:
    """HassGetWeather: only what a weather station of the house says; there is no network in
    here.
    """
    found = house.find(slots, ("weather",))
    return sentence(f"{names(found[:1])} says: {house.get(found[0])['state']}")


def clean(house: House, slots: Slots) -> str:
    """HassVacuumCleanArea."""
    area = house.area(str(slots["area"])) if slots.get("area") else ""
    chosen = house.find({"name": slots["name"]} if slots.get("name") else {}, ("vacuum",))[:1]
    return change(
        house,
        chosen,
        f"{{}} is cleaning {('the ' + area) if area else 'here'}",
        state="cleaning",
        cleaning=area,
    )


def sent(domain: str, said: str, new: str) -> Callable[[House, Slots], str]:
    """Intents that start a vacuum or a mower, or send it home: by name, else all; these travel,
    so places do not choose.
    """
    return lambda house, slots: change(
        house, house.find({"name": slots.get("name")}, (domain,)), said, state=new
    )


def percent(value: Any, what: str) -> int | float:
    """`value` if it is 0 to 100; Refusal otherwise."""
    if not isinstance(value, int | float) or not 0 <= value <= 100:
        raise Refusal(f"{what} is {value!r}; it must be 0 to 100")
    return value


ACTS: dict[str, Callable[[House, Slots], str]] = {
    "HassTurnOn": switch(True),
    "HassTurnOff": switch(False),
    "HassLightSet": light,
    "HassGetState": state,
    "HassGetWeather": weather,
    "HassClimateGetTemperature": measured,
    "HassClimateSetTemperature": warm,
    "HassClimateSetFanMode": blow,
    "HassFanSetSpeed": speed,
    "HassSetPosition": position,
    "HassMediaPause": player("Paused {}", state="paused"),
    "HassMediaUnpause": player("Resumed {}", state="playing"),
    "HassMediaNext": skip(1, "Skipped ahead on {}"),
    "HassMediaPrevious": skip(-1, "Went back on {}"),
    "HassMediaPlayerMute": player("Muted {}", muted=True),
    "HassMediaPlayerUnmute": player("Unmuted {}", muted=False),
    "HassMediaSearchAndPlay": play,
    "HassSetVolume": volume,
    "HassSetVolumeRelative": louder,
    "HassVacuumStart": sent("vacuum", "Started {}", "cleaning"),
    "HassVacuumReturnToBase": sent("vacuum", "Sent {} back to its base", "docked"),
    "HassVacuumCleanArea": clean,
    "HassLawnMowerStartMowing": sent("lawn_mower", "Started {}", "mowing"),
    "HassLawnMowerDock": sent("lawn_mower", "Sent {} back to its dock", "docked"),
}
