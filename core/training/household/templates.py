"""Sentence templates of a voice assistant, and how one sentence is drawn from one of them.

Knows the English templates of `home-assistant-intents` (Apache-2.0) and hassil's parsed
expressions. Knows no household: what a list such as {area} or {name} holds is asked of the caller.
Always: the slots that come back are exactly the lists that were spoken, so that a call's arguments
need no parsing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    Sentence,
    TextChunk,
)
from hassil.intents import IntentData, Intents, RangeSlotList, TextSlotList
from home_assistant_intents import get_intents

OPTIONAL_SHARE = 0.4  # how often an optional part is spoken
TOLD_BY_ROOM = "area"  # a context that the listening device supplies: the speaker does not say it

# Intents whose templates name a room or nothing at all, though only one kind of device can obey.
IMPLIED_DOMAIN = {
    "HassClimate": "climate",
    "HassFan": "fan",
    "HassLawnMower": "lawn_mower",
    "HassMedia": "media_player",
    "HassSetVolume": "media_player",
    "HassVacuum": "vacuum",
}
# Words for a state tell what kind of sensor is meant.
STATED_CLASSES = {
    "bs_open_states": frozenset({"door", "window", "opening", "garage_door"}),
    "bs_occupancy_states": frozenset({"occupancy", "motion", "presence"}),
}


@dataclass(frozen=True, slots=True)
class Template:
    """One way to ask for one intent. `text` is its identity: equal texts are one template."""

    intent: str
    combination: str  # which arguments it gives, in the package's words
    text: str
    sentence: Sentence
    slots: Mapping[str, Any]  # arguments that the wording implies
    domains: frozenset[str]  # the device meant must be of one of these; empty: any
    classes: frozenset[str]  # the same for its device class
    excluded: frozenset[str]  # domains it must not be of
    lists: frozenset[str]  # every list it may mention


@dataclass(frozen=True, slots=True)
class Filling:
    """What is said for a list, and what the call then holds."""

    words: str
    value: Any


Fill = Callable[[str], Filling]  # list name → words and value


class Grammar:
    """All templates with the rules and lists they refer to."""

    def __init__(self, intents: Intents) -> None:
        self.rules: Mapping[str, Sentence] = intents.expansion_rules
        self.lists = intents.slot_lists
        self.templates: tuple[Template, ...] = tuple(
            template
            for name in sorted(intents.intents)
            for block in intents.intents[name].data
            for template in self.block_templates(name, block)
        )

    def block_templates(self, intent: str, block: IntentData) -> list[Template]:
        """Templates of one block; none if it asks for a context that no household here can
        supply.
        """
        required, excluded = (
            context_values(block.requires_context),
            context_values(block.excludes_context),
        )
        if set(required) - {"domain", "device_class", TOLD_BY_ROOM} or set(excluded) - {"domain"}:
            return []
        domains = required.get("domain", frozenset())
        if not domains and "domain" in block.slots:
            domains = as_set(block.slots["domain"])
        if not domains:
            domains = frozenset(
                domain for prefix, domain in IMPLIED_DOMAIN.items() if intent.startswith(prefix)
            )
        found = []
        for sentence in block.sentences:
            lists = frozenset(sentence.list_names(self.rules))
            classes = required.get("device_class", frozenset())
            for stated in lists & STATED_CLASSES.keys():
                classes |= STATED_CLASSES[stated]
            found.append(
                Template(
                    intent=intent,
                    combination=str((block.metadata or {}).get("slot_combination", "")),
                    text=str(sentence.text),
                    sentence=sentence,
                    slots=dict(block.slots),
                    domains=domains,
                    classes=classes,
                    excluded=excluded.get("domain", frozenset()),
                    lists=lists,
                )
            )
        return found

    def say(
        self, template: Template, fill: Fill, rng: np.random.Generator
    ) -> tuple[str, dict[str, Any]]:
        """Draw one sentence and its arguments.

        Args:
            fill: answers for the lists that are spoken; asked once for each.
        """
        slots = dict(template.slots)
        words = self.walk(template.sentence.expression, fill, rng, slots)
        return re.sub(r"\s+", " ", words).strip(), slots

    def walk(
        self, expression: Expression, fill: Fill, rng: np.random.Generator, slots: dict[str, Any]
    ) -> str:
        """Choose at every fork of `expression`, note the slots, return the words."""
        if isinstance(expression, TextChunk):
            return str(expression.original_text)
        if isinstance(expression, RuleReference):
            return self.walk(self.rules[expression.rule_name].expression, fill, rng, slots)
        if isinstance(expression, ListReference):
            filling = fill(expression.list_name)
            slots[expression.slot_name] = filling.value
            return filling.words
        if isinstance(expression, Alternative):
            return self.walk(choose_branch(expression, rng), fill, rng, slots)
        if isinstance(expression, Permutation):
            order = rng.permutation(len(expression.items))
            return "".join(self.walk(expression.items[index], fill, rng, slots) for index in order)
        if isinstance(expression, Group):
            return "".join(self.walk(item, fill, rng, slots) for item in expression.items)
        raise TypeError(f"hassil gave a {type(expression).__name__}, which this walk does not know")

    def listed(
        self, name: str, allowed: frozenset[Any] | None, rng: np.random.Generator
    ) -> Filling:
        """Draw from one of the package's own word lists, of the `allowed` values only if given."""
        texts = self.lists[name]
        if not isinstance(texts, TextSlotList):
            raise TypeError(f"list {name} holds no words")
        values = [value for value in texts.values if allowed is None or value.value_out in allowed]
        value = values[rng.integers(len(values))]
        return Filling(self.walk(value.text_in, fill=refuse, rng=rng, slots={}), value.value_out)

    def numbered(self, name: str, sensible: Sequence[float], rng: np.random.Generator) -> Filling:
        """Draw a number of one of the package's ranges, from the `sensible` ones inside it."""
        numbers = self.lists[name]
        if not isinstance(numbers, RangeSlotList):
            raise TypeError(f"list {name} holds no numbers")
        inside = [number for number in sensible if numbers.start <= number <= numbers.stop]
        number = inside[rng.integers(len(inside))]
        value = number * (numbers.multiplier or 1)
        return Filling(f"{number:g}", int(value) if value == int(value) else value)


def refuse(name: str) -> Filling:
    """A word list never refers to another list."""
    raise TypeError(f"a word list refers to the list {name}")


def choose_branch(fork: Alternative, rng: np.random.Generator) -> Expression:
    """One branch: authors write the usual wording first, so branch i is drawn with weight 1 / (i
    + 1).
    """
    items: list[Expression] = list(fork.items)
    if fork.is_optional:  # the empty branch is the last
        if rng.random() >= OPTIONAL_SHARE:
            return items[-1]
        items = items[:-1]
    weights = 1 / np.arange(1, len(items) + 1)
    return items[int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum()))]


def context_values(context: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """`{"domain": ["light"], "area": {"slot": true}}` as sets of the values that are allowed."""
    found = {}
    for key, value in context.items():
        value = value.get("value", ()) if isinstance(value, Mapping) else value
        found[key] = as_set(value)
    return found


def as_set(value: Any) -> frozenset[str]:
    """One text or several, as a set."""
    return frozenset([value] if isinstance(value, str) else value)


@cache
def grammar() -> Grammar:
    """The English templates, parsed once a run (about a quarter of a second)."""
    return Grammar(Intents.from_dict(get_intents("en")))


def split(
    templates: Sequence[Template], share: float, rng: np.random.Generator
) -> tuple[list[Template], list[Template]]:
    """Divide into templates to learn from and templates held out for tests.

    Within every (intent, arguments) that can be worded in two or more ways, `share` of the
    wordings, at least one and never all, are held out: a test asks for calls that were learned, in
    words that were not.
    """
    wordings: dict[tuple[str, str], list[str]] = {}
    for template in templates:
        group = wordings.setdefault((template.intent, template.combination), [])
        if template.text not in group:
            group.append(template.text)
    held: set[str] = set()
    kept: set[str] = set()
    for texts in wordings.values():
        count = max(1, round(share * len(texts))) if len(texts) > 1 else 0
        chosen = set(rng.permutation(len(texts))[:count].tolist())
        held.update(text for index, text in enumerate(texts) if index in chosen)
        kept.update(text for index, text in enumerate(texts) if index not in chosen)
    # the same text may stand under two intents; it is unseen only if it is unseen under both
    held -= kept
    return [t for t in templates if t.text not in held], [t for t in templates if t.text in held]
