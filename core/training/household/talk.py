"""What people say to an assistant that no tool of the home can answer: small talk, questions, and
requests beyond the house.

Knows sentence templates and words. Knows nothing of models, tools or files. Names here are made up.
Always: everything follows from the generator that is passed; a template is in the part to learn
from or in the part that is held out, never in both.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...errors import DataError
from ..examples import Example

Kind = Literal["talk", "unserved"]
TRIES = 40  # draws for one sentence that was not said before
SLOT = re.compile(r"\{(\w+)\}")

# Nothing is wanted but an answer. The last lines speak of homes: they are the hard ones.
TALK = (
    "hello",
    "hi there",
    "good {daytime}",
    "good {daytime}, how are you?",
    "thank you",
    "thanks, that was {praise}",
    "you are {praise}",
    "what is your name?",
    "who are you?",
    "how was your day?",
    "I feel {feeling} today",
    "I am {feeling}, talk to me",
    "my {relation} is visiting and I am {feeling}",
    "goodbye",
    "see you {when}",
    "tell me a joke about {creature}",
    "do you like {creature}?",
    "why are {creature} afraid of {creature}?",
    "what do {creature} eat?",
    "write a short poem about {topic}",
    "write two lines about {topic}",
    "tell me a story about {topic}",
    "what do you think about {topic}?",
    "explain {concept} in one sentence",
    "what is {concept}?",
    "how does {concept} work?",
    "why is {concept} important?",
    "what is the capital of {country}?",
    "what language do they speak in {country}?",
    "is {country} worth a visit {when}?",
    "what should I cook with {food}?",
    "is {food} healthy?",
    "how long does {food} keep?",
    "how do I {skill}?",
    "give me three tips to {skill}",
    "is it hard to {skill}?",
    "what is {number} times {number}?",
    "what is {number} plus {number}?",
    "how do you say {word} in {language}?",
    "what does {word} mean?",
    "which is better, {food} or {food}?",
    "give me an idea for a gift for my {relation}",
    "what should I say to my {relation}?",
    "who wrote the first book about {topic}?",
    "what happened in {country} a hundred years ago?",
    "recommend me a film about {topic}",
    "can you help me understand {concept}?",
    "I would like to learn to {skill}",
    "how does a {device} work?",
    "why does a {device} need so much power?",
    "who invented the {device}?",
    "what colour suits a {room}?",
    "how big is a usual {room}?",
    "I love sitting in the {room} when it rains",
    "my {relation} never turns the {device} off, what can I do?",
    "is a {device} better than none at all?",
)

# Something is wanted that no tool of a home does.
UNSERVED = (
    "order {food} for {when}",
    "have {food} delivered",
    "book a table for {number} {when}",
    "book a flight to {country}",
    "find me a hotel in {country}",
    "buy two tickets to {country}",
    "send an email to my {relation}",
    "write a letter to my {relation} and post it",
    "transfer {number} euros to my {relation}",
    "how much money is in my account?",
    "pay my electricity bill",
    "start the car",
    "drive my {relation} to the station",
    "fold the laundry",
    "wash the dishes",
    "walk the dog {when}",
    "water the neighbour's garden",
    "take a picture of the {room}",
    "paint the {room} green",
    "repair the {device}",
    "sell the {device} online",
    "order a new {device}",
    "post on my page that I am {feeling}",
    "sign me up for a course to {skill}",
    "make an appointment with the dentist {when}",
    "unsubscribe me from all newsletters",
)

WORDS: Mapping[str, tuple[str, ...]] = {
    "daytime": ("morning", "afternoon", "evening", "night"),
    "praise": ("great", "very kind", "helpful", "clever", "a big help", "wonderful", "funny"),
    "feeling": ("tired", "happy", "a bit sad", "bored", "nervous", "proud", "lonely", "excited",
                "hungry", "calm"),
    "when": ("tonight", "tomorrow", "on sunday", "in spring", "next week", "at noon", "this summer",
             "in two hours"),
    "creature": ("cats", "penguins", "owls", "elephants", "bees", "dogs", "whales", "spiders",
                 "horses", "foxes", "turtles", "mice"),
    "topic": ("autumn", "the sea", "friendship", "trains", "the moon", "old bridges", "chess",
              "rain", "mountains", "music", "time", "bread", "the desert", "kindness"),
    "concept": ("gravity", "photosynthesis", "inflation", "a rainbow", "democracy", "evolution",
                "electricity", "the water cycle", "a vaccine", "irony", "compound interest",
                "a black hole", "encryption", "an eclipse"),
    "country": ("france", "japan", "brazil", "kenya", "norway", "india", "canada", "egypt", "peru",
                "greece", "vietnam", "iceland"),
    "food": ("lentils", "two eggs", "a pizza", "rice", "mushrooms", "oat milk", "apples", "pasta",
             "spinach", "a salad", "soup", "potatoes"),
    "skill": ("whistle", "swim", "bake bread", "sleep better", "draw a horse", "play chess",
              "speak in public", "ride a bicycle", "grow tomatoes", "tie a tie", "juggle",
              "save money"),
    "number": ("two", "three", "seven", "nine", "twelve", "fifteen", "twenty", "thirty"),
    "word": ("tree", "serendipity", "window", "friend", "ocean", "to wander", "bread", "ephemeral"),
    "language": ("spanish", "german", "italian", "japanese", "swahili", "polish", "french"),
    "relation": ("sister", "neighbour", "boss", "grandmother", "friend", "teacher", "cousin",
                 "son"),
    "device": ("thermostat", "vacuum", "lamp", "radio", "dishwasher", "projector", "kettle", "fan",
               "doorbell", "telescope"),
    "room": ("kitchen", "bedroom", "library", "garden", "office", "hallway", "bathroom", "attic"),
}  # fmt: skip

# What is said where nothing can be done; the model's own answer would pretend.
CANNOT = (
    "I cannot do that from here.",
    "That is beyond what I can do in this home.",
    "I have no tool for that, sorry.",
    "Sorry, that is not something I can do.",
)


@dataclass(frozen=True, slots=True)
class TalkRequest:
    """One thing somebody said that is no command to the home."""

    text: str
    kind: Kind
    template: str

    def example(self, system: str, answer: str) -> Example:
        """The conversation to learn from."""
        said = (("system", system), ("user", self.text), ("assistant", answer))
        return Example(tuple({"role": role, "content": content} for role, content in said))


def split_talk(
    share: float, rng: np.random.Generator
) -> tuple[list[tuple[Kind, str]], list[tuple[Kind, str]]]:
    """Templates to learn from, and `share` of each kind that are held out."""
    kept: list[tuple[Kind, str]] = []
    held: list[tuple[Kind, str]] = []
    kinds: tuple[tuple[Kind, Sequence[str]], ...] = (("talk", TALK), ("unserved", UNSERVED))
    for kind, templates in kinds:
        chosen = set(rng.permutation(len(templates))[: round(share * len(templates))].tolist())
        for index, template in enumerate(templates):
            (held if index in chosen else kept).append((kind, template))
    return kept, held


def talk_requests(
    templates: Sequence[tuple[Kind, str]],
    count: int,
    rng: np.random.Generator,
    *,
    avoid: Collection[str] = (),
) -> list[TalkRequest]:
    """Draw `count` different sentences, none of them in `avoid`, every template as often as any.

    Raises:
        DataError: the templates do not give so many.
    """
    said: dict[str, TalkRequest] = {}
    open_templates = list(templates)
    while len(said) < count:
        if not open_templates:
            raise DataError(
                f"only {len(said)} different sentences of talk, expected {count}; ask for fewer"
            )
        place = int(rng.integers(len(open_templates)))
        kind, template = open_templates[place]
        for _ in range(TRIES):
            text = SLOT.sub(
                lambda slot: WORDS[slot[1]][rng.integers(len(WORDS[slot[1]]))], template
            )
            if text not in said and text not in avoid:
                said[text] = TalkRequest(text, kind, template)
                break
        else:
            del open_templates[place]  # said in every way it can be
    return list(said.values())


def general_requests(count: int) -> list[str]:
    """`count` sentences of all templates, always the same ones.

    Raises:
        DataError: as `talk_requests`.
    """
    rng = np.random.default_rng([0])
    kept, _ = split_talk(0.0, rng)
    return [request.text for request in talk_requests(kept, count, rng)]
