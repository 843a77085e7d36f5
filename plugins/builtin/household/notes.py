"""What a household writes down: lists, timers, announcements; and what the clock says.

Knows list items and timers. Knows nothing of devices or MCP.
Always: a list that the home file does not name is refused, but for the shopping list, which every
home has.

Not covered: nothing rings. A timer is over when its time has come, and `HassTimerStatus` says so
when asked.
"""

import time
from collections.abc import Callable
from typing import Any

from .house import House, Refusal, Slots, same, sentence

SHOPPING = "shopping list"
MAX_ENTRIES = 500  # of one list, and timers, and announcements kept
HELLO = "Hello. Ask me to switch, set or find something in this house."


def chosen_list(house: House, slots: Slots) -> tuple[str, list[dict[str, Any]]]:
    """The list that a request names, and its entries in the stored state."""
    asked = str(slots.get("name", SHOPPING))
    known = (
        list(house.lists)
        + [device.name for device in house.devices if device.domain == "todo"]
        + [SHOPPING]
    )
    for name in known:
        if same(name, asked) or same(f"{name} list", asked):
            entries: list[dict[str, Any]] = house.state.setdefault("lists", {}).setdefault(name, [])
            return name, entries
    raise Refusal(f"there is no list {asked!r} in this house; there is: {', '.join(known)}")


def add(house: House, slots: Slots) -> str:
    """HassListAddItem and HassShoppingListAddItem."""
    name, entries = chosen_list(house, slots)
    if len(entries) >= MAX_ENTRIES:
        raise Refusal(f"{name} holds {len(entries)} items; remove some first")
    entries.append({"item": str(slots["item"]), "done": False})
    return f"Added {slots['item']} to {name}."


def complete(house: House, slots: Slots) -> str:
    """HassListCompleteItem and HassShoppingListCompleteItem."""
    name, entry, _ = chosen_entry(house, slots)
    entry["done"] = True
    return f"Checked off {entry['item']} on {name}."


def remove(house: House, slots: Slots) -> str:
    """HassListRemoveItem."""
    name, entry, entries = chosen_entry(house, slots)
    entries.remove(entry)
    return f"Removed {entry['item']} from {name}."


def chosen_entry(house: House, slots: Slots) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The first entry of that text that is not done yet."""
    name, entries = chosen_list(house, slots)
    for entry in entries:
        if same(entry["item"], slots["item"]) and not entry["done"]:
            return name, entry, entries
    raise Refusal(f"{slots['item']} is not on {name}")


def seconds(slots: Slots, prefix: str = "") -> float:
    """A length of time from its hours, minutes and seconds."""
    units = {"hours": 3600, "minutes": 60, "seconds": 1}
    return sum(float(slots.get(prefix + unit, 0)) * size for unit, size in units.items())


def spoken_time(length: float) -> str:
    """A length of time in words."""
    whole = max(0, round(length))
    parts = [(whole // 3600, "hour"), (whole // 60 % 60, "minute"), (whole % 60, "second")]
    said = [f"{count} {unit}{'s' if count != 1 else ''}" for count, unit in parts if count]
    return " ".join(said) or "0 seconds"


def timers(house: House) -> list[dict[str, Any]]:
    """Timers in the stored state: length, end (or what is left while paused), and perhaps a
    name.
    """
    found: list[dict[str, Any]] = house.state.setdefault("timers", [])
    return found


def left(house: House, timer: dict[str, Any]) -> float:
    """Seconds until it is over."""
    return float(timer["left"] if timer["paused"] else timer["end"] - house.now())


def title(timer: dict[str, Any]) -> str:
    """A timer in words."""
    return (
        (f"the {timer['name']} timer")
        if timer["name"]
        else f"the {spoken_time(timer['length'])} timer"
    )


def start(house: House, slots: Slots) -> str:
    """HassStartTimer."""
    length = seconds(slots)
    if length <= 0:
        raise Refusal("a timer needs hours, minutes or seconds")
    if len(timers(house)) >= MAX_ENTRIES:
        raise Refusal("too many timers are running; cancel some first")
    command = slots.get("conversation_command")
    timer = {
        "name": str(slots.get("name", "")),
        "length": length,
        "end": house.now() + length,
        "paused": False,
        "left": length,
    }
    timers(house).append(timer | ({"command": str(command)} if command else {}))
    return (f"Started a timer for {spoken_time(length)}") + (
        f", then: {command}." if command else "."
    )


def chosen_timers(house: House, slots: Slots) -> list[dict[str, Any]]:
    """Timers that a request means: by name, by the length they were started with, else all, the
    next to end first.

    Raises:
        Refusal: none fits.
    """
    found = timers(house)
    if "name" in slots:
        found = [timer for timer in found if same(timer["name"], slots["name"])]
    if length := seconds(slots, "start_"):
        found = [timer for timer in found if timer["length"] == length]
    if not found:
        raise Refusal("there is no such timer" if timers(house) else "no timer is running")
    return sorted(found, key=lambda timer: left(house, timer))


def cancel(house: House, slots: Slots) -> str:
    """HassCancelTimer."""
    timer = chosen_timers(house, slots)[0]
    timers(house).remove(timer)
    return f"Cancelled {title(timer)}."


def cancel_all(house: House, _: Slots) -> str:
    """HassCancelAllTimers; timers here stand in no room, so an area means all of them too."""
    count = len(timers(house))
    timers(house).clear()
    return f"Cancelled {count} timer{'s' if count != 1 else ''}."


def lengthen(sign: int, said: str) -> Callable[[House, Slots], str]:
    """HassIncreaseTimer and HassDecreaseTimer."""

    def act(house: House, slots: Slots) -> str:
        by = seconds(slots)
        if by <= 0:
            raise Refusal("say by how many hours, minutes or seconds")
        timer = chosen_timers(house, slots)[0]
        timer["end"] += sign * by
        timer["left"] += sign * by
        return (
            f"{said} {title(timer)} by {spoken_time(by)}; {spoken_time(left(house, timer))} left."
        )

    return act


def pause(house: House, slots: Slots) -> str:
    """HassPauseTimer."""
    timer = chosen_timers(house, slots)[0]
    timer["left"], timer["paused"] = left(house, timer), True
    return f"Paused {title(timer)}, {spoken_time(timer['left'])} left."


def resume(house: House, slots: Slots) -> str:
    """HassUnpauseTimer."""
    waiting = [timer for timer in chosen_timers(house, slots) if timer["paused"]]
    if not waiting:
        raise Refusal("no timer is paused")
    waiting[0]["end"], waiting[0]["paused"] = house.now() + waiting[0]["left"], False
    return f"Resumed {title(waiting[0])}, {spoken_time(waiting[0]['left'])} left."


def status(house: House, slots: Slots) -> str:
    """HassTimerStatus."""
    said = []
    for timer in chosen_timers(house, slots):
        rest = left(house, timer)
        said.append(
            f"{title(timer)} is over"
            if rest <= 0
            else f"{title(timer)} has {spoken_time(rest)} left"
        )
    return sentence("; ".join(said))


def announce(house: House, slots: Slots) -> str:
    """HassBroadcast: noted, because nothing in here can speak."""
    said = house.state.setdefault("announcements", [])
    said.append(str(slots["message"]))
    del said[:-MAX_ENTRIES]
    return f"Announced: {slots['message']}"


def clock(form: str) -> Callable[[House, Slots], str]:
    """HassGetCurrentTime and HassGetCurrentDate, in the machine's time zone."""
    return lambda house, slots: time.strftime(form, time.localtime(house.now()))


ACTS: dict[str, Callable[[House, Slots], str]] = {
    "HassListAddItem": add,
    "HassListCompleteItem": complete,
    "HassListRemoveItem": remove,
    "HassShoppingListAddItem": add,
    "HassShoppingListCompleteItem": complete,
    "HassStartTimer": start,
    "HassCancelTimer": cancel,
    "HassCancelAllTimers": cancel_all,
    "HassIncreaseTimer": lengthen(1, "Lengthened"),
    "HassDecreaseTimer": lengthen(-1, "Shortened"),
    "HassPauseTimer": pause,
    "HassUnpauseTimer": resume,
    "HassTimerStatus": status,
    "HassBroadcast": announce,
    "HassGetCurrentTime": clock("It is %H:%M."),
    "HassGetCurrentDate": clock("It is %A, %d %B %Y."),
    "HassNevermind": lambda house, slots: "Never mind, nothing was done.",
    "HassRespond": lambda house, slots: HELLO,
}
