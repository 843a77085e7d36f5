"""The household: what is in it, where it stands, and what state it is in.

Knows areas, floors, devices and how a request names them. Knows nothing of MCP, files or sentences.
Always: a request that names something which is not here is a `Refusal` that says what is; state is
plain JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Slots = Mapping[str, Any]
DEFAULTS: dict[str, dict[str, Any]] = {
    "climate": {"state": "on", "temperature": 20, "measured": 20, "fan_mode": "auto"},
    "cover": {"state": "closed", "position": 0},
    "lawn_mower": {"state": "docked"},
    "light": {"state": "off", "brightness": 100, "color": "white"},
    "lock": {"state": "locked"},
    "media_player": {"state": "idle", "volume": 30, "muted": False, "track": 1},
    "person": {"state": "home"},
    "sensor": {"state": "unknown"},
    "vacuum": {"state": "docked"},
    "valve": {"state": "closed", "position": 0},
    "weather": {"state": "unknown"},
}
MAX_NAMED = 8  # devices that a sentence names before it only counts them


class Refusal(Exception):
    """A request that this household cannot carry out; the text is for the one who asked."""


@dataclass(frozen=True, slots=True)
class Device:
    """One thing in the house."""

    name: str
    domain: str
    area: str = ""
    device_class: str = ""

    @property
    def key(self) -> str:
        """Its name in the stored state; two rooms may each have a lamp."""
        return f"{self.area}/{self.domain}/{self.name}"


@dataclass
class House:
    """Everything in it. `state` is what outlives the plugin."""

    devices: Sequence[Device]
    floors: Mapping[str, str]  # area → floor, "" where unknown
    lists: Sequence[str]
    state: dict[str, Any] = field(default_factory=dict)
    now: Callable[[], float] = lambda: 0.0

    def get(self, device: Device) -> dict[str, Any]:
        """The device's present state."""
        return {
            **DEFAULTS.get(device.domain, {"state": "off"}),
            **self.state.get("devices", {}).get(device.key, {}),
        }

    def put(self, device: Device, **changes: Any) -> None:
        """Change the device's state."""
        self.state.setdefault("devices", {})[device.key] = self.get(device) | changes

    def find(self, slots: Slots, domains: Sequence[str] = ()) -> list[Device]:
        """Devices that a request means, by name, area, floor, domain and class, as far as it gives
        them.

        Args:
            domains: what this kind of request can be about; empty: anything.

        Raises:
            Refusal: nothing in the house fits; the text says which part did not, and what there is.
        """
        found = [device for device in self.devices if not domains or device.domain in domains]
        if name := slots.get("name"):
            found = self._named(str(name), found, domains)
        found = self._placed(slots, found)
        if domain := slots.get("domain"):
            found = [device for device in found if device.domain == domain]
        if kind := slots.get("device_class"):
            found = [
                device
                for device in found
                if same(device.device_class, kind)
                or (not device.device_class and kind in device.name)
            ]
        if not found:
            raise Refusal(f"there is no {wanted(slots, domains)} in this house")
        return found

    def _named(
        self, name: str, candidates: Sequence[Device], domains: Sequence[str]
    ) -> list[Device]:
        found = [device for device in candidates if same(device.name, name)]
        if found:
            return found
        if elsewhere := [device for device in self.devices if same(device.name, name)]:
            raise Refusal(f"{name} is a {spoken(elsewhere[0].domain)}, not a {either(domains)}")
        known = ", ".join(sorted({device.name for device in candidates}))
        raise Refusal(
            f"there is no {name!r} in this house; there is: {known or 'nothing of the kind'}"
        )

    def _placed(self, slots: Slots, candidates: Sequence[Device]) -> list[Device]:
        found = list(candidates)
        if area := slots.get("area"):
            self.area(str(area))
            found = [device for device in found if same(device.area, area)]
        if floor := slots.get("floor"):
            if not any(same(known, floor) for known in self.floors.values()):
                known = ", ".join(sorted(set(filter(None, self.floors.values()))))
                raise Refusal(
                    f"there is no floor {floor!r} in this house; there is: {known or 'none'}"
                )
            found = [device for device in found if same(self.floors.get(device.area, ""), floor)]
        return found

    def area(self, name: str) -> str:
        """The area as the house spells it; Refusal if there is none of that name."""
        for known in self.floors:
            if same(known, name):
                return known
        raise Refusal(
            f"there is no area {name!r} in this house; there is: {', '.join(self.floors) or 'none'}"
        )


def furnish(description: Any, state: Any, now: Callable[[], float]) -> House:
    """Build the house from its home file and the stored state.

    Raises:
        Refusal: the home file is not what `data build home` writes; the text names the part.
    """
    if not isinstance(description, dict):
        raise Refusal("home.json is missing or not an object")
    try:
        floors = {
            str(area["name"]): str(area.get("floor", "")) for area in description.get("areas", [])
        }
        devices = [
            Device(
                str(one["name"]),
                str(one["domain"]),
                str(one.get("area", "")),
                str(one.get("device_class", "")),
            )
            for one in description.get("devices", [])
        ]
        lists = [
            str(one["name"] if isinstance(one, dict) else one)
            for one in description.get("lists", [])
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise Refusal(
            f"home.json: areas and devices need names, devices a domain "
            f"({type(error).__name__}: {error})"
        ) from None
    return House(devices, floors, lists, state if isinstance(state, dict) else {}, now)


def same(left: Any, right: Any) -> bool:
    """Whether two spoken names mean the same thing: case, spaces and a leading article aside."""
    return plain(left) == plain(right)


def plain(name: Any) -> str:
    """A name without what does not distinguish it."""
    words = str(name).casefold().split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("the", "my", "our") else words)


def spoken(domain: str) -> str:
    """A domain in a reader's words."""
    return domain.replace("_", " ")


def either(domains: Sequence[str]) -> str:
    """Domains in a reader's words."""
    return " or ".join(map(spoken, domains)) or "device"


def wanted(slots: Slots, domains: Sequence[str]) -> str:
    """What a request asked for, in a reader's words."""
    kind = (
        slots.get("name")
        or slots.get("device_class")
        or spoken(str(slots.get("domain") or ""))
        or either(domains)
    )
    places = [f"in the {slots['area']}"] if slots.get("area") else []
    places += [f"on the {slots['floor']}"] if slots.get("floor") else []
    return " ".join([str(kind), *places])


def names(devices: Sequence[Device]) -> str:
    """Devices in a sentence, each with its room."""
    if len(devices) > MAX_NAMED:
        return f"{len(devices)} devices"
    said = [
        f"the {device.name}" + (f" ({device.area})" if device.area else "") for device in devices
    ]
    return said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]


def sentence(text: str) -> str:
    """`text` as a sentence: a capital at its beginning, a full stop at its end, names as they
    are.
    """
    return text[:1].upper() + text[1:] + "."
