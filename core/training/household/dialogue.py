"""Requests that go together: a second one that leans on the first ("and the kitchen too"), and two
in one sentence ("the lantern and then the orb").

Knows a household, requests it made and wordings. Knows nothing of models, tokens or files.
Always: the calls that are meant follow from the requests' own calls and the words alone; what is
named is in the home; everything follows from the generator that is passed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ...toolcall import ToolCall, render, render_all
from ..examples import Example
from .home import HomeRequest, Household, pick

# By the argument that is said anew; everything else is as it was.
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "area": (
        "and the {value} too",
        "the {value} as well",
        "and in the {value}",
        "same in the {value} please",
        "now the {value}",
        "also in the {value}",
        "do that in the {value} too",
        "what about the {value}",
    ),
    "name": (
        "and the {value} too",
        "the {value} as well",
        "same for the {value}",
        "now the {value}",
        "do that with the {value} too",
        "and also the {value} please",
        "what about the {value}",
    ),
    "brightness": ("make it {value} percent", "{value} percent please", "no, {value}"),
    "position": ("make it {value} percent", "{value} percent please", "no, {value}"),
    "volume_level": ("make it {value} percent", "{value} percent please", "no, {value}"),
    "temperature": ("make it {value} degrees", "{value} degrees please", "no, {value}"),
    "back": ("and back again", "undo that", "no, the other way round", "changed my mind, undo it"),
    # of one sentence: two whole requests, or another name in the place of one
    "both": (
        "{first} and {second}",
        "{first}, then {second}",
        "{first} and then {second}",
        "{first}, and {second} please",
        "first {first}, then {second}",
        "{first} and after that {second}",
        "{first} and also {second}",
        "please {first} and {second}",
    ),
    "each": (
        "{value} and the {other}",
        "{value} and then the {other}",
        "{value} and also the {other}",
        "{value} and {other}",
        "{value}, then the {other}",
        "{value} as well as the {other}",
    ),
}
OPPOSITE = {"HassTurnOn": "HassTurnOff", "HassTurnOff": "HassTurnOn"}
NUMBERS: Mapping[str, tuple[int, ...]] = {
    "brightness": (10, 25, 40, 60, 75, 90),
    "position": (10, 25, 40, 60, 75, 90),
    "volume_level": (10, 25, 40, 60, 75, 90),
    "temperature": (17, 18, 19, 20, 21, 22, 23),
}
TRIES = 40  # draws for one dialogue that was not made before


@dataclass(frozen=True, slots=True)
class HomeDialogue:
    """Two requests of one household; the second means something only after the first."""

    first: HomeRequest
    text: str
    call: ToolCall
    wording: str

    def example(self, system: str) -> Example:
        """The conversation to learn from: its last answer."""
        messages = (
            ("system", system),
            ("user", self.first.text),
            ("assistant", render(self.first.call)),
            ("user", self.text),
            ("assistant", render(self.call)),
        )
        return Example(tuple({"role": role, "content": content} for role, content in messages))


@dataclass(frozen=True, slots=True)
class DoubleRequest:
    """Two wishes in one sentence, in the order of their calls."""

    text: str
    calls: tuple[ToolCall, ToolCall]

    def example(self, system: str) -> Example:
        """The conversation to learn from."""
        messages = (("system", system), ("user", self.text), ("assistant", render_all(self.calls)))
        return Example(tuple({"role": role, "content": content} for role, content in messages))


def split_wordings(
    share: float, rng: np.random.Generator
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Wordings to learn from, and of each argument `share` of them, at least one, held out."""
    kept: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    for argument, wordings in WORDINGS.items():
        mixed = pick(wordings, len(wordings), rng)
        count = max(1, round(share * len(mixed)))
        held[argument], kept[argument] = mixed[:count], mixed[count:]
    return kept, held


def dialogues(
    home: Household,
    requests: Sequence[HomeRequest],
    wordings: Mapping[str, Sequence[str]],
    count: int,
    rng: np.random.Generator,
) -> list[HomeDialogue]:
    """`count` different dialogues that begin with some of `requests`.

    Raises:
        DataError: the requests and wordings do not give so many.
    """
    made: dict[tuple[str, str], HomeDialogue] = {}
    misses = 0
    while len(made) < count:
        first = requests[int(rng.integers(len(requests)))]
        options = list(changes(home, first.call))
        if options:
            argument, value, call = options[int(rng.integers(len(options)))]
            wording = wordings[argument][int(rng.integers(len(wordings[argument])))]
            text = wording.format(value=value)
            if (first.text, text) not in made:
                made[first.text, text] = HomeDialogue(first, text, call, wording)
                continue
        misses += 1
        if misses > TRIES * count:
            raise DataError(
                f"{home.name}: only {len(made)} different dialogues, expected {count}; "
                f"ask for fewer"
            )
    return list(made.values())


def doubles(
    home: Household,
    requests: Sequence[HomeRequest],
    wordings: Mapping[str, Sequence[str]],
    count: int,
    rng: np.random.Generator,
) -> list[DoubleRequest]:
    """`count` different sentences of two wishes: half of them of two of `requests`, half of one
    with a second name in it.

    Raises:
        DataError: the requests and wordings do not give so many.
    """
    made: dict[str, DoubleRequest] = {}
    for misses in range(TRIES * (count + 1)):
        if len(made) == count:
            return list(made.values())
        first, second = (requests[int(rng.integers(len(requests)))] for _ in range(2))
        if misses % 2:
            wording = wordings["both"][int(rng.integers(len(wordings["both"])))]
            text = wording.format(first=first.text, second=second.text)
            found = DoubleRequest(text, (first.call, second.call))
        else:
            options = [
                (str(first.call.arguments[argument]), str(other), call)
                for argument, other, call in changes(home, first.call)
                if argument in ("name", "area")
                and first.text.count(str(first.call.arguments[argument])) == 1
            ]
            if not options:
                continue
            value, other, call = options[int(rng.integers(len(options)))]
            wording = wordings["each"][int(rng.integers(len(wordings["each"])))]
            text = first.text.replace(value, wording.format(value=value, other=other))
            found = DoubleRequest(text, (first.call, call))
        if found.calls[0] != found.calls[1]:
            made.setdefault(found.text, found)
    raise DataError(
        f"{home.name}: only {len(made)} different sentences of two wishes, expected {count}; ask "
        f"for fewer"
    )


def changes(home: Household, call: ToolCall) -> Iterator[tuple[str, Any, ToolCall]]:
    """What may be said anew of a call: the argument, its new value, and the call that is meant."""
    given = call.arguments
    if isinstance(given.get("area"), str) and "name" not in given:
        for area in home.floors:
            if area != given["area"]:
                yield "area", area, ToolCall(call.name, {**given, "area": area})
    named = next((device for device in home.devices if device.name == given.get("name")), None)
    if named is not None and "area" not in given:
        for device in home.devices:
            alike = (device.domain, device.device_class) == (named.domain, named.device_class)
            if alike and device.name != named.name:
                yield "name", device.name, ToolCall(call.name, {**given, "name": device.name})
    for argument, numbers in NUMBERS.items():
        for number in numbers:
            if argument in given and number != given[argument]:
                yield argument, number, ToolCall(call.name, {**given, argument: number})
    if call.name in OPPOSITE:
        yield "back", "", ToolCall(OPPOSITE[call.name], given)
