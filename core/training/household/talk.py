"""What people say to an assistant that no tool of the home can answer: small talk, questions, and
requests beyond the house.

Knows sentence templates and words. Knows nothing of models, tools or files. Names here are made up.
Always: everything follows from the generator that is passed. What talk is tested with is other
sentences of other words (`simulations/bench/tool_set.py`), which nothing here is chosen by.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...errors import DataError
from ...toolcall import render
from ..examples import Example

if TYPE_CHECKING:  # its templates need hassil, and a node that routes requests does not
    from .home import HomeRequest

Kind = Literal["talk", "unserved"]
TRIES = 40  # draws for one sentence that was not said before
GENERAL = 480  # sentences that stand for what is no adapter's: each template about twice
SLOT = re.compile(r"\{(\w+)\}")

# Nothing is wanted but an answer: greetings, questions, things to write, statements and asides; at
# the end what speaks of homes, which is the hard part.
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
    "hm",
    "okay",
    "wait a moment",
    "oh no",
    "that is strange",
    "no, that is not what I meant",
    "forget it, it was a mistake",
    "I did not say anything",
    "very well then",
    "you are right",
    "you are wrong about {concept}",
    "I do not understand you",
    "what did you just say?",
    "say that again more slowly",
    "are you still there?",
    "how old are you?",
    "what can you do?",
    "do you remember my {relation}?",
    "have you ever been to {country}?",
    "what is your favourite {food_kind}?",
    "is it true that {creature} can swim?",
    "I am home",
    "I am going to bed now",
    "we are off to {country} {when}",
    "my {relation} called {when_past}",
    "my {relation} has three {creature}",
    "my {relation} was born in {country}",
    "my {relation} wants to {skill}",
    "{when_past} I saw {creature} by the river",
    "{when_past} I read a book about {topic}",
    "I have not slept well because of the {creature}",
    "I finished my homework about {concept}",
    "I lost my umbrella {when_past}",
    "I hate mondays",
    "I miss my {relation}",
    "it has been raining since {when_past}",
    "there was a film about {topic} on television {when_past}",
    "the meeting was moved, I am {feeling} about it",
    "they say that {food} is good for the heart",
    "in {country} people eat {food} for breakfast",
    "{concept} was hard for me at school",
    "once upon a time there were {number} {creature}",
    "how far is it to the moon?",
    "how many {creature} live in {country}?",
    "how heavy is a whale?",
    "when was {country} founded?",
    "when did people first speak {language}?",
    "where does the word {word} come from?",
    "which animals sleep in winter?",
    "who was the first queen of {country}?",
    "why do we yawn?",
    "should I tell my {relation} the truth?",
    "shall I wear a coat {when}?",
    "help me choose between {food} and {food}",
    "make a list of words that begin with the letter b",
    "correct this sentence: I has {number} {creature}",
    "put these words in order: {word}, tree, apple",
    "tell me more about {topic}",
    "continue the story about the {creature}",
    "describe {topic} in three words",
    "compare {creature} with {creature}",
    "give me a riddle about {topic}",
    "quiz me on {concept}",
    "pretend you are a pirate from {country}",
    "count from one to {number} in {language}",
    "write a birthday card for my {relation}",
    "write a speech about {topic}",
    "sum up what you know about {country}",
    "give me arguments for and against {concept}",
    "we built a {room} out of snow once",
    "my {relation} fell asleep in the {room} {when_past}",
    "the {room} of my {relation} is larger than ours",
    "we painted the {room} ourselves {when_past}",
    "it smells of {food} in the {room}",
    "there were {creature} in our {room} {when_past}",
    "our first {device} came from {country}",
    "the {device} was a present from my {relation}",
    "my {relation} thinks that the {device} is too loud",
    "I bought a {device} {when_past} and I am {feeling}",
    "the {device} broke {when_past}",
    "somebody forgot the {device} in the rain",
    "in my dream the {device} could talk",
    "when I was a child we had no {device}",
    "why are doors in {country} so low?",
    "how do people heat their homes in {country}?",
    "how warm should a {room} be for {creature}?",
    "how often should one air a {room}?",
    "how long does a {device} last?",
    "how loud may a {device} be at night?",
    "what does a new {device} cost?",
    "what is the best place for a {device}?",
    "what is the difference between a {device} and a {device}?",
    "where were lamps invented?",
    "which plants like a dark {room}?",
    "which is warmer, wool or cotton?",
    "is a lock better than a chain?",
    "is it normal that a {device} hums?",
    "can {creature} open doors?",
    "can one repair a {device} oneself?",
    "does a {device} need much electricity?",
    "do curtains keep a {room} warm?",
    "tell me the history of the {device}",
    "write a poem about a lamp in the {room}",
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
    "call my {relation} on the phone",
    "text my {relation} that I am {feeling}",
    "read my new messages to me",
    "what is in my inbox?",
    "invite my {relation} for dinner {when}",
    "reserve a seat on the train to {country}",
    "renew my library card",
    "cancel my gym membership",
    "rent a bicycle for {when}",
    "book me a haircut {when}",
    "buy a present for my {relation}",
    "find a plumber who comes {when}",
    "send flowers to my {relation} {when}",
    "make me a sandwich with {food}",
    "cook {food} for {number} people",
    "set the table for {number}",
    "iron my shirts",
    "change the bed sheets in the {room}",
    "take out the rubbish {when}",
    "feed the {creature}",
    "pick up my {relation} from school",
    "charge the car {when}",
    "fill the bathtub",
    "hang a picture in the {room}",
    "build a shelf for the {room}",
    "move the sofa to the {room}",
    "fix the {device} that is broken",
    "bring the {device} to the repair shop",
    "translate this letter into {language}",
    "print {number} copies of the report",
    "scan this receipt",
    "upload my photos of {country}",
    "write my homework about {concept}",
    "look up the price of a {device} on the internet",
    "invest {number} hundred euros for me",
    "file my taxes",
    "vote for me {when}",
    "water the flowers at my {relation}'s house",
    "teach my {relation} to {skill}",
)
UNSERVED_SHARE = 1 / 3  # of what is said

WORDS: Mapping[str, tuple[str, ...]] = {
    "daytime": ("morning", "afternoon", "evening", "night"),
    "praise": ("great", "very kind", "helpful", "clever", "a big help", "wonderful", "funny"),
    "feeling": ("tired", "happy", "a bit sad", "bored", "nervous", "proud", "lonely", "excited",
                "hungry", "calm"),
    "when": ("tonight", "tomorrow", "on sunday", "in spring", "next week", "at noon", "this summer",
             "in two hours"),
    "when_past": ("yesterday", "last night", "last week", "on my birthday", "two years ago",
                  "this morning", "in the holidays", "as a child"),
    "food_kind": ("soup", "fruit", "cake", "colour", "season", "song", "animal", "game"),
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
CANNOT = "I cannot do that from here."


@dataclass(frozen=True, slots=True)
class TalkRequest:
    """One thing somebody said that is no command to the home."""

    text: str
    kind: Kind
    template: str

    def example(self, system: str, answer: str, before: "HomeRequest | None" = None) -> Example:
        """The conversation to learn from; it may be said right after a command."""
        head = [("user", before.text), ("assistant", render(before.call))] if before else []
        messages = (("system", system), *head, ("user", self.text), ("assistant", answer))
        return Example(tuple({"role": role, "content": content} for role, content in messages))


def talk_requests(count: int, rng: np.random.Generator) -> list[TalkRequest]:
    """Draw `count` different sentences, a third of them beyond the home; of a kind every template
    as often as any.

    Raises:
        DataError: the templates do not give so many.
    """
    drawn: dict[str, TalkRequest] = {}
    beyond = round(UNSERVED_SHARE * count)
    kinds: tuple[tuple[Kind, Sequence[str], int], ...] = (
        ("talk", TALK, count - beyond),
        ("unserved", UNSERVED, count),
    )
    for kind, templates, most in kinds:
        turns: list[str] = []  # of the templates, each before any comes again
        exhausted = 0
        while len(drawn) < most:
            if not turns:
                turns = [templates[place] for place in rng.permutation(len(templates))]
                exhausted = 0
            template = turns.pop()
            for _ in range(TRIES):
                text = SLOT.sub(
                    lambda slot: WORDS[slot[1]][rng.integers(len(WORDS[slot[1]]))], template
                )
                if text not in drawn:
                    drawn[text] = TalkRequest(text, kind, template)
                    break
            else:
                exhausted += 1  # said in every way it can be
                if exhausted == len(templates):
                    raise DataError(
                        f"only {len(drawn)} different sentences of talk, expected {count}; ask for "
                        f"fewer"
                    )
    return list(drawn.values())


def general_requests(count: int = GENERAL) -> list[str]:
    """`count` sentences of all templates, always the same ones.

    Raises:
        DataError: as `talk_requests`.
    """
    return [request.text for request in talk_requests(count, np.random.default_rng([0]))]
