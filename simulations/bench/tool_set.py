"""Requests to an assistant with tools that no training of this project saw.

Knows requests and the right calls. Knows nothing of models.
Always: tools, names and values are of this file alone; the household's training data has none of
them. A request has one right answer, or says so little that none can be given.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...core.assistant.context import Message
from ...core.assistant.tools import Effect, ToolInfo
from ...core.toolcall import ToolCall


def tool(name: str, description: str, effect: Effect, **properties: Mapping[str, Any]) -> ToolInfo:
    """One tool; all of its parameters are needed."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ToolInfo(name, description, schema | {"additionalProperties": False}, "", effect)


TEXT = {"type": "string"}
NUMBER = {"type": "number"}
WHOLE = {"type": "integer"}
TOOLS = (
    tool("convert_currency", "Convert an amount of money from one currency into another", "read",
         amount=NUMBER, source={"enum": ["EUR", "USD", "GBP", "JPY"]},
         target={"enum": ["EUR", "USD", "GBP", "JPY"]}),
    tool("translate", "Translate a word or a sentence into another language", "read",
         text=TEXT, language={"enum": ["French", "German", "Spanish", "Italian"]}),
    tool("book_table", "Book a table in a restaurant", "outside", restaurant=TEXT, guests=WHOLE),
    tool("play_song", "Play a song by its title", "write", title=TEXT),
    tool("set_alarm", "Set an alarm clock to an hour and a minute of the day", "write",
         hour=WHOLE, minute=WHOLE),
    tool("send_message", "Send a short message to a person", "outside", person=TEXT, text=TEXT),
    tool("track_parcel", "Tell where a parcel is, by its number", "read", number=TEXT),
    tool("water_plants", "Water the plants of the garden for some minutes", "write",
         minutes=WHOLE),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ToolTask:
    """One conversation, and what is to be called."""

    said: tuple[str, ...]  # by turns, the user's first; the last is the request
    calls: tuple[ToolCall, ...] = ()
    # of a conversation: the calls that the assistant's turns stand for, by place
    past: Mapping[int, ToolCall] = field(default_factory=dict)

    @property
    def messages(self) -> tuple[Message, ...]:
        """As the assistant is asked."""
        found: list[Message] = []
        for place, text in enumerate(self.said):
            if (call := self.past.get(place)) is not None:
                named = ToolCall(call.name, call.arguments, f"past{place:05}")
                found.append(Message("assistant", "", (named,)))
                found.append(Message("tool", "done", (), named.id, named.name))
            found.append(Message("assistant" if place % 2 else "user", text))
        return tuple(found)


def money(amount: float, source: str, target: str) -> ToolCall:
    return ToolCall("convert_currency", {"amount": amount, "source": source, "target": target})


def word(text: str, language: str) -> ToolCall:
    return ToolCall("translate", {"text": text, "language": language})


def table(restaurant: str, guests: int) -> ToolCall:
    return ToolCall("book_table", {"restaurant": restaurant, "guests": guests})


def song(title: str) -> ToolCall:
    return ToolCall("play_song", {"title": title})


def alarm(hour: int, minute: int) -> ToolCall:
    return ToolCall("set_alarm", {"hour": hour, "minute": minute})


def note(person: str, text: str) -> ToolCall:
    return ToolCall("send_message", {"person": person, "text": text})


def parcel(number: str) -> ToolCall:
    return ToolCall("track_parcel", {"number": number})


def water(minutes: int) -> ToolCall:
    return ToolCall("water_plants", {"minutes": minutes})


def asked(text: str, *calls: ToolCall) -> ToolTask:
    return ToolTask((text,), calls)


SINGLE = (
    asked("Convert 20 EUR into USD.", money(20, "EUR", "USD")),
    asked("How much are 150 USD in JPY?", money(150, "USD", "JPY")),
    asked("What do I get for 75 GBP in EUR?", money(75, "GBP", "EUR")),
    asked("Translate 'bread' into French.", word("bread", "French")),
    asked("How do you say 'good night' in Spanish?", word("good night", "Spanish")),
    asked("Translate 'the train is late' into German.", word("the train is late", "German")),
    asked("Book a table at Lupo for 4 guests.", table("Lupo", 4)),
    asked("Reserve a table for 2 at Akropolis.", table("Akropolis", 2)),
    asked("Get us a table at Mirabelle, 6 people.", table("Mirabelle", 6)),
    asked("Play the song Yesterday.", song("Yesterday")),
    asked("Put on Moon River.", song("Moon River")),
    asked("I want to hear Hallelujah.", song("Hallelujah")),
    asked("Set an alarm to 6:30.", alarm(6, 30)),
    asked("Wake me at 7:15.", alarm(7, 15)),
    asked("Alarm at 21:45, please.", alarm(21, 45)),
    asked("Send Anna the message 'I am late'.", note("Anna", "I am late")),
    asked("Tell Bob by message: dinner is ready", note("Bob", "dinner is ready")),
    asked("Message Carla 'see you at noon'.", note("Carla", "see you at noon")),
    asked("Where is parcel AB123?", parcel("AB123")),
    asked("Track the parcel 99-7741.", parcel("99-7741")),
    asked("Has my parcel QX55 arrived?", parcel("QX55")),
    asked("Water the plants for 10 minutes.", water(10)),
    asked("Give the garden 25 minutes of water.", water(25)),
    asked("Let the sprinklers run for 5 minutes.", water(5)),
)
MULTI_TURN = (
    ToolTask(("Convert 20 EUR into USD.", "Done.", "And into JPY?"), (money(20, "EUR", "JPY"),),
             {1: money(20, "EUR", "USD")}),
    ToolTask(("Translate 'bread' into French.", "Done.", "And into Italian?"),
             (word("bread", "Italian"),), {1: word("bread", "French")}),
    ToolTask(("Set an alarm to 6:30.", "Done.", "Another one at 6:45."), (alarm(6, 45),),
             {1: alarm(6, 30)}),
    ToolTask(("Play the song Yesterday.", "Done.", "Now Moon River."), (song("Moon River"),),
             {1: song("Yesterday")}),
    ToolTask(("Where is parcel AB123?", "Done.", "And AB124?"), (parcel("AB124"),),
             {1: parcel("AB123")}),
    ToolTask(("Send Anna the message 'I am late'.", "Done.", "Tell Bob the same."),
             (note("Bob", "I am late"),), {1: note("Anna", "I am late")}),
    ToolTask(("Water the plants for 10 minutes.", "Done.", "5 minutes more."), (water(5),),
             {1: water(10)}),
    ToolTask(("Book a table at Lupo for 4 guests.", "Done.", "The same at Akropolis."),
             (table("Akropolis", 4),), {1: table("Lupo", 4)}),
    ToolTask(("Hello!", "Hello, how can I help?", "Wake me at 7:15."), (alarm(7, 15),)),
    ToolTask(("What is a sonnet?", "A poem of fourteen lines.", "Translate 'poem' into German."),
             (word("poem", "German"),)),
    ToolTask(("I am hungry.", "Shall I book a table?", "Yes, at Lupo for 2."), (table("Lupo", 2),)),
    ToolTask(("How are you?", "Well, thank you.", "Track the parcel QX55."), (parcel("QX55"),)),
)  # fmt: skip
PARALLEL = (
    asked("Convert 10 EUR into USD and 20 EUR into GBP.", money(10, "EUR", "USD"),
          money(20, "EUR", "GBP")),
    asked("Translate 'cat' into French and 'dog' into German.", word("cat", "French"),
          word("dog", "German")),
    asked("Set alarms to 6:30 and 7:15.", alarm(6, 30), alarm(7, 15)),
    asked("Where are the parcels AB123 and QX55?", parcel("AB123"), parcel("QX55")),
    asked("Send Anna and Bob the message 'I am late'.", note("Anna", "I am late"),
          note("Bob", "I am late")),
    asked("Water the plants for 10 minutes and play Moon River.", water(10), song("Moon River")),
    asked("Book Lupo for 4 guests and wake me at 7:15.", table("Lupo", 4), alarm(7, 15)),
    asked("Play Yesterday and track parcel AB123.", song("Yesterday"), parcel("AB123")),
    asked("Tell Carla 'yes' and Bob 'no'.", note("Carla", "yes"), note("Bob", "no")),
    asked("How much are 5 GBP in EUR, and in JPY?", money(5, "GBP", "EUR"),
          money(5, "GBP", "JPY")),
)  # fmt: skip
NO_CALL = tuple(
    asked(text)
    for text in (
        "Hello!",
        "How are you today?",
        "Thank you, that was kind.",
        "Good night.",
        "What is the capital of France?",
        "Why is the sky blue?",
        "Write a short poem about autumn.",
        "Who wrote Hamlet?",
        "What is 7 times 8?",
        "Explain photosynthesis in one sentence.",
        "Tell me a joke.",
        "Give me three names for a cat.",
        "What is the difference between a lake and a sea?",
        "Is a tomato a fruit?",
        "How many days has a leap year?",
        "What does 'ubiquitous' mean?",
        "Give me a tip for better sleep.",
        "Which planet is the largest?",
        "Name a famous painter.",
        "What should I read on a rainy day?",
    )
)
# Said to the assistant of a home, and no command: what `core/training/household/talk.py` teaches is
# other sentences of other words. The last twenty speak of homes.
TALK = (
    "Morning!",
    "Hey, it's me again.",
    "I'm back from the dentist.",
    "Sorry, I was talking to someone else.",
    "Never mind.",
    "That's exactly what I wanted.",
    "You made me laugh.",
    "Do you ever sleep?",
    "Are you a robot?",
    "Can you keep a secret?",
    "I had a terrible day at work.",
    "My daughter passed her exam!",
    "I can't stop thinking about my holiday.",
    "It's my birthday on Friday.",
    "Say something nice to me.",
    "Let's play twenty questions.",
    "Sing me a lullaby.",
    "Which river runs through Vienna?",
    "How tall is Mount Kilimanjaro?",
    "Who painted the Night Watch?",
    "When did the Titanic sink?",
    "How many legs does a lobster have?",
    "What's the difference between weather and climate?",
    "Why do leaves turn red?",
    "How does a submarine dive?",
    "What is the square root of 144?",
    "Convert five miles to kilometres.",
    "Spell 'rhythm'.",
    "Give me a word that rhymes with orange.",
    "What's a good name for a sailing boat?",
    "Summarise the plot of Romeo and Juliet.",
    "Write a limerick about a baker.",
    "Draft a toast for a wedding.",
    "How do I get red wine out of a carpet?",
    "How long should I boil an egg?",
    "Is it safe to eat raw cauliflower?",
    "What can I do against hiccups?",
    "Should I learn the violin or the flute?",
    "How do I say no politely?",
    "Help me prepare for a job interview.",
    "I wonder why the ceiling lamp flickers so often.",
    "My grandfather built this house in 1951.",
    "The living room used to be a stable.",
    "Do plants grow better under LED lights?",
    "Is it cheaper to heat one room or all of them?",
    "Why is my basement always damp?",
    "Which curtains go with a green sofa?",
    "What's a healthy temperature for sleeping?",
    "How does a dimmer switch work?",
    "How much does a robot vacuum cost?",
    "The blinds in my old flat never closed properly.",
    "Somebody left the front door open last night.",
    "I like how the kitchen looks now.",
    "Are smart locks secure?",
    "Why do fans make a room feel cooler?",
    "Do I need a permit to put up a garage?",
    "My neighbours play their music far too loud.",
    "Who invented the light bulb?",
    "Is it bad to leave the television on all day?",
    "What does the symbol on my washing machine mean?",
)
# Something is wanted, and no tool of a home does it.
BEYOND = (
    "Get me a taxi to the airport.",
    "Order sushi for the two of us.",
    "Book the cheapest train to Hamburg for Monday.",
    "Reserve two seats at the opera.",
    "Wire my landlord the rent.",
    "What's the balance of my savings account?",
    "Buy more printer paper.",
    "Cancel my newspaper subscription.",
    "Ring the doctor and say I'm ill.",
    "Mail the contract to Mr. Olsen.",
    "Reply to Eva that I accept.",
    "Delete the spam from my mailbox.",
    "Share my location with Jonas.",
    "Post this picture on Instagram.",
    "Update my CV.",
    "Apply for the job in the advert.",
    "Fill in my tax return.",
    "Hand in my essay.",
    "Shovel the snow off the pavement.",
    "Mop the floor of the corridor.",
    "Clean the windows before the party.",
    "Peel the carrots.",
    "Bake a cake for Sunday.",
    "Empty the dishwasher.",
    "Hang out the washing.",
    "Make the bed.",
    "Change the baby's nappy.",
    "Take the cat to the vet.",
    "Mow my brother's meadow with a scythe.",
    "Tune the piano.",
    "Sew a button on my coat.",
    "Polish my boots.",
    "Wallpaper the nursery.",
    "Unblock the drain in the shower.",
    "Replace the broken tile in the hall.",
    "Carry the boxes up to the loft.",
    "Find my keys.",
    "Drive to the supermarket and fetch milk.",
    "Check my blood pressure.",
    "Renew my passport.",
)

TRIES = 20  # draws for one request
# By tool: how it may be asked for, and the call that is meant. Values are drawn from `VALUES`.
WAYS: Mapping[Callable[..., ToolCall], tuple[str, ...]] = {
    money: (
        "Convert {amount} {source} into {target}.",
        "How much are {amount} {source} in {target}?",
        "What do I get for {amount} {source} in {target}?",
        "{amount} {source} to {target}, please",
        "Change {amount} {source} to {target}.",
    ),
    word: (
        "Translate '{text}' into {language}.",
        "How do you say '{text}' in {language}?",
        "'{text}' in {language}, please",
        "What is '{text}' in {language}?",
        "Put '{text}' into {language}.",
    ),
    table: (
        "Book a table at {restaurant} for {guests} guests.",
        "Reserve a table for {guests} at {restaurant}.",
        "Get us a table at {restaurant}, {guests} people.",
        "We are {guests}, book {restaurant}.",
        "A table for {guests} at {restaurant}, please",
    ),
    song: (
        "Play the song {title}.",
        "Put on {title}.",
        "I want to hear {title}.",
        "Play {title}, please",
        "Let me listen to {title}.",
    ),
    alarm: (
        "Set an alarm to {hour}:{minute}.",
        "Wake me at {hour}:{minute}.",
        "Alarm at {hour}:{minute}, please",
        "I must get up at {hour}:{minute}.",
        "Ring at {hour}:{minute}.",
    ),
    note: (
        "Send {person} the message '{text}'.",
        "Tell {person} by message: {text}",
        "Message {person} '{text}'.",
        "Write to {person}: {text}",
        "Text {person} '{text}'.",
    ),
    parcel: (
        "Where is parcel {number}?",
        "Track the parcel {number}.",
        "Has my parcel {number} arrived?",
        "Tell me where {number} is.",
        "Parcel {number}, please",
    ),
    water: (
        "Water the plants for {minutes} minutes.",
        "Give the garden {minutes} minutes of water.",
        "Let the sprinklers run for {minutes} minutes.",
        "{minutes} minutes of water, please",
        "The plants need {minutes} minutes.",
    ),
}
VALUES: Mapping[str, tuple[Any, ...]] = {
    "amount": (5, 12, 20, 35, 48, 60, 75, 90, 110, 150, 240, 300),
    "source": ("EUR", "USD", "GBP", "JPY"),
    "target": ("EUR", "USD", "GBP", "JPY"),
    "text": ("bread", "good night", "the train is late", "I am late", "dinner is ready",
             "see you at noon", "thank you", "the key is under the mat", "cat", "call me back",
             "happy birthday", "water"),
    "language": ("French", "German", "Spanish", "Italian"),
    "restaurant": ("Lupo", "Akropolis", "Mirabelle", "Golden Dragon", "La Perla", "Old Mill",
                   "Sakura"),
    "guests": (2, 3, 4, 5, 6, 7, 8, 9),
    "title": ("Yesterday", "Moon River", "Hallelujah", "Blue Train", "Summertime",
              "Clair de Lune", "Take Five", "Imagine", "Fever"),
    "hour": (5, 6, 7, 8, 9, 10, 11, 15, 19, 21, 22),
    "minute": (10, 15, 20, 25, 30, 40, 45, 50, 55),
    "person": ("Anna", "Bob", "Carla", "Dmitri", "Eve", "Farid", "Grace"),
    "number": ("AB123", "99-7741", "QX55", "ZK-20-881", "7H4401", "RR900", "B12-44", "M3310"),
    "minutes": (3, 5, 8, 10, 12, 15, 20, 25, 30, 45),
}  # fmt: skip


def drawn(count: int, seed: int, *, held_out: bool | None = None) -> list[ToolTask]:
    """At most `count` different single requests, all tools about as often; the same for the same
    seed.

    Args:
        held_out: of each tool's last way to ask alone, or of all others; None: of all ways.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, ToolTask] = {}
    chosen = {None: slice(None), True: slice(-1, None), False: slice(-1)}[held_out]
    makers = {maker: ways[chosen] for maker, ways in WAYS.items()}
    for place in range(TRIES * count):
        maker, ways = list(makers.items())[place % len(makers)]
        way = ways[rng.integers(len(ways))]
        given = {
            name: values[rng.integers(len(values))]
            for name, values in VALUES.items()
            if f"{{{name}}}" in way
        }
        if given.get("source", "") != given.get("target"):
            text = way.format(**given)
            found.setdefault(text, asked(text, maker(**given)))
        if len(found) == count:
            break
    return list(found.values())
