"""One made-up household: its rooms, devices, lists and habits, and the requests it makes.

Knows names and templates. Knows nothing of files, tokens or other households.
Always: everything follows from the generator that is passed, and a request only names what is in
the home, where it is.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...errors import DataError
from ...toolcall import SYSTEM_PROMPT, ToolCall, render
from ..examples import Example
from . import vocabulary
from .templates import Filling, Grammar, Template

# of the habits' Dirichlet, times popularity: low enough that homes differ, see the README
CONCENTRATION = 0.6
TRIES = 60  # draws for one request before its intent is left out

LIGHT_WORDS = {"light", "lights", "lighting", "lamp", "lamps", "spotlight"}
DETERMINERS = {"the", "my", "our", "a", "an", "this"}
BEFORE_NO_DETERMINER = DETERMINERS | {"every", "each", "any", "some", "single"}
# What templates allow and nobody says: mixed number, verbs that do not go with on and off.
UNSAID = re.compile(
    r"\b1[ -](hours|minutes|seconds)\b|\d-(hours|minutes|seconds)\b|\ban? (hours|minutes|seconds)\b"
    r"|\b(?!1\b)\d+ (hour|minute|second)\b(?! timer)"
    r"|\b(every|each|single) (lights|lamps|lighting|fans|switches)\b|\ball( of)?( (the|my|our))? "
    r"(light|lamp|fan|switch)\b"
    r"|^(change|bring) (?!.* to ).*\b(on|off|out)\b|\b(lower|shut) up\b|\b(basement|attic) "
    r"floor\b|\b(is|are) (is|are)\b"
)


@dataclass(frozen=True, slots=True)
class HomeDevice:
    """Something in the home. `device_class` says what a cover or a sensor is."""

    name: str
    domain: str
    area: str
    device_class: str = ""


@dataclass(frozen=True, slots=True)
class Household:
    """A home and its habits."""

    name: str
    floors: Mapping[str, str]  # area → floor
    devices: tuple[HomeDevice, ...]
    lists: tuple[str, ...]
    free_text: Mapping[str, tuple[str, ...]]
    habits: Mapping[str, float]  # intent → share of the requests

    def describe(self) -> dict[str, Any]:
        """What the household plugin reads."""
        devices = [
            {"name": d.name, "domain": d.domain, "area": d.area}
            | ({"device_class": d.device_class} if d.device_class else {})
            for d in self.devices
        ]
        areas = [{"name": area, "floor": floor} for area, floor in self.floors.items()]
        return {"name": self.name, "areas": areas, "devices": devices, "lists": list(self.lists)}

    def subjects(self, template: Template) -> list[HomeDevice]:
        """Devices (or lists) that `template` can be said about; empty: this home has no use for
        it.
        """
        things = [*self.devices, *(HomeDevice(name, "todo", "") for name in self.lists)]
        if not template.domains:
            return [d for d in self.devices if d.domain not in template.excluded]
        fitting = [
            d for d in things if d.domain in template.domains and d.domain not in template.excluded
        ]
        if template.classes:
            fitting = [d for d in fitting if d.device_class in template.classes]
        return (
            [d for d in fitting if d.device_class] if "cover_classes" in template.lists else fitting
        )


@dataclass(frozen=True, slots=True)
class HomeRequest:
    """One thing somebody said, the call it asks for, and the template it came from."""

    text: str
    call: ToolCall
    template: str

    def example(self, system: str = SYSTEM_PROMPT) -> Example:
        """The conversation to learn from."""
        head, user = ({"role": "system", "content": system}, {"role": "user", "content": self.text})
        return Example((head, user, {"role": "assistant", "content": render(self.call)}))


def furnish(name: str, intents: Sequence[str], rng: np.random.Generator) -> Household:
    """Make up one household. `intents` are all that templates exist for, in a fixed order."""
    floors = [vocabulary.FLOORS[0], vocabulary.FLOORS[1 + rng.integers(len(vocabulary.FLOORS) - 1)]]
    areas = pick(vocabulary.AREAS, int(rng.integers(6, 9)), rng)
    placed = {
        area: floors[0] if index < 2 else floors[rng.integers(2)]
        for index, area in enumerate(areas)
    }
    placed[areas[-1]] = floors[1]  # both floors are lived on
    devices = []
    for domain, (fewest, most) in vocabulary.COUNTS.items():
        for device, device_class in pick(
            vocabulary.DEVICES[domain], int(rng.integers(fewest, most + 1)), rng
        ):
            devices.append(
                HomeDevice(device, domain, areas[rng.integers(len(areas))], device_class)
            )
    weights = np.array([vocabulary.POPULARITY.get(intent, vocabulary.USUAL) for intent in intents])
    share = rng.dirichlet(CONCENTRATION * weights)
    return Household(
        name=name,
        floors=placed,
        devices=tuple(devices),
        lists=tuple(pick(vocabulary.LISTS, int(rng.integers(2, 5)), rng)),
        free_text={
            key: tuple(pick(values, max(3, len(values) // 2), rng))
            for key, values in vocabulary.FREE_TEXT.items()
        },
        habits=dict(zip(intents, share.tolist(), strict=True)),
    )


def pick(values: Sequence[Any], count: int, rng: np.random.Generator) -> list[Any]:
    """`count` different values, in an order of their own."""
    return [values[index] for index in rng.permutation(len(values))[:count]]


def requests(
    home: Household,
    grammar: Grammar,
    templates: Sequence[Template],
    count: int,
    rng: np.random.Generator,
    *,
    avoid: Collection[str] = (),
) -> list[HomeRequest]:
    """Draw `count` requests with different sentences, none of them in `avoid`, by the home's
    habits.

    Raises:
        DataError: the templates do not give so many sentences in this home.
    """
    by_intent = group(home, templates)
    shares = {intent: home.habits[intent] for intent in by_intent}
    drawn: dict[str, HomeRequest] = {}
    while len(drawn) < count:
        if not shares:
            raise DataError(
                f"{home.name}: only {len(drawn)} different sentences, expected {count}; "
                f"ask for fewer"
            )
        total = np.cumsum(list(shares.values()))
        intent = list(shares)[int(np.searchsorted(total, rng.random() * total[-1]))]
        for _ in range(TRIES):
            request = draw(home, grammar, by_intent[intent], rng)
            if sayable(request.text) and request.text not in drawn and request.text not in avoid:
                drawn[request.text] = request
                break
        else:
            del shares[intent]  # said in every way it can be
    return list(drawn.values())


def group(home: Household, templates: Sequence[Template]) -> dict[str, list[list[Template]]]:
    """Templates that fit the home: intent → argument combinations → wordings."""
    by_intent: dict[str, dict[str, list[Template]]] = {}
    for template in templates:
        if home.subjects(template):
            by_intent.setdefault(template.intent, {}).setdefault(template.combination, []).append(
                template
            )
    return {intent: list(combinations.values()) for intent, combinations in by_intent.items()}


def draw(
    home: Household,
    grammar: Grammar,
    combinations: Sequence[Sequence[Template]],
    rng: np.random.Generator,
) -> HomeRequest:
    """One request: a combination, a wording, a device it is about, then the words."""
    wordings = combinations[int(rng.integers(len(combinations)))]
    template = wordings[int(rng.integers(len(wordings)))]
    subjects = home.subjects(template)
    subject = subjects[rng.integers(len(subjects))]
    text, slots = grammar.say(template, lambda name: fill(home, grammar, subject, name, rng), rng)
    return HomeRequest(text, ToolCall(template.intent, slots), template.text)


def fill(
    home: Household, grammar: Grammar, subject: HomeDevice, name: str, rng: np.random.Generator
) -> Filling:
    """What this home says for list `name`, given the device that is meant."""
    if name == "name":
        return Filling(subject.name, subject.name)
    if name in ("area", "floor"):
        # these are sent to rooms, they do not stand in one
        travels = subject.domain in ("vacuum", "lawn_mower")
        area = list(home.floors)[rng.integers(len(home.floors))] if travels else subject.area
        place = area if name == "area" else home.floors[area]
        return Filling(place, place)
    if name == "cover_classes":
        return grammar.listed(name, frozenset({subject.device_class}), rng)
    if name == "timer_command":
        switched = [
            device
            for device in home.devices
            if device.domain in ("light", "switch", "fan", "media_player")
        ]
        text = (
            f"turn {('on', 'off')[rng.integers(2)]} the "
            f"{switched[rng.integers(len(switched))].name}"
        )
        return Filling(text, text)
    if name in home.free_text:
        text = home.free_text[name][rng.integers(len(home.free_text[name]))]
        return Filling(text, text)
    if name in vocabulary.NUMBERS:
        return grammar.numbered(name, vocabulary.NUMBERS[name], rng)
    return grammar.listed(name, None, rng)


def sayable(text: str) -> bool:
    """Whether somebody might say this: no stutter ("lamp light", "the my", "list list"), nothing
    of `UNSAID`.
    """
    spoken = text.split()
    for left, right in pairwise(spoken):
        if left.rstrip("s") == right.rstrip("s") or (left in LIGHT_WORDS and right in LIGHT_WORDS):
            return False
        if left in BEFORE_NO_DETERMINER and right in DETERMINERS:
            return False
    return UNSAID.search(text) is None
