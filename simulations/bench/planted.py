"""Long conversations with one fact that is asked for at the end, in other words.

Knows three sets of facts, names, small talk and texts, which share nothing: `TUNED`, on which the
product's choices were made, `HELD_OUT`, on which none was, and `GERMAN`, on which none was either,
in a language that neither the embedding model nor the stemmer learned. Knows nothing of prompts or
models.
Always: the same seed makes the same conversation (of one version of Python and of the packages that
`HELD_OUT` reads from); the value that is asked for stands in it once, in the statement that was
planted; around it stand the same statement about others, with other values, and talk of the matter
that does not answer.
"""

import importlib.metadata
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ...core.assistant.context import Message

DISTRACTORS = 4  # the same said of others, for each fact
PARAGRAPH = 600  # characters of a text's paragraph at most
Kind = Literal["dialogue", "document"]
OVERVIEWS: Mapping[Kind, tuple[str, ...]] = {
    "dialogue": (
        "What have we talked about so far?",
        "Please summarise our conversation.",
        "Fasse unser Gespräch bitte zusammen.",
    ),
    "document": ("Summarise this text.", "What are the key points?", "Worum geht es in dem Text?"),
}


@dataclass(frozen=True, slots=True)
class Relation:
    """One sort of fact."""

    subjects: tuple[str, ...]  # "ann|bea": who or what it is about
    values: tuple[str, ...]
    said: tuple[str, ...]  # with {subject} and {value}
    asked: tuple[str, ...]  # with {subject}
    decoy: str  # about the matter, without a value


@dataclass(frozen=True, slots=True)
class PlantedSet:
    """What conversations are made of."""

    name: str
    relations: tuple[Relation, ...]
    openings: tuple[str, ...]  # of small talk, with {thing}, {place} and {time}
    answers: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]
    times: tuple[str, ...]
    requests: tuple[str, ...]  # for a text, which the assistant then tells
    leads: tuple[str, ...]  # before a fact
    paragraphs: Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True)
class PlantedConversation:
    """One conversation, the question last."""

    messages: tuple[Message, ...]
    statement: str
    value: str  # what must be known to answer


def conversation(
    material: PlantedSet, kind: Kind, depth: int, number: int, count: Callable[[str], int]
) -> PlantedConversation:
    """Build one.

    Args:
        depth: tokens between the fact and the question, about.
        number: which one; it picks the relation and seeds everything else.
        count: tokens of a text.
    """
    rng = random.Random(f"{material.name} {kind} {depth} {number}")
    relation = material.relations[number % len(material.relations)]
    subject, *others = rng.sample(relation.subjects, min(DISTRACTORS + 1, len(relation.subjects)))
    value, *wrong = rng.sample(relation.values, len(others) + 1)
    statement = rng.choice(relation.said).format(subject=subject, value=value)
    strays = [
        rng.choice(relation.said).format(subject=other, value=stray)
        for other, stray in zip(others, wrong, strict=True)
    ] + [relation.decoy.format(subject=subject)]
    question = rng.choice(relation.asked).format(subject=subject)
    weave = dialogue if kind == "dialogue" else document
    messages = weave(material, rng, PlantedPlan(statement, strays, value, question, depth, count))
    return PlantedConversation(tuple(messages), statement, value)


@dataclass(frozen=True, slots=True)
class PlantedPlan:
    """What is to be woven into talk."""

    statement: str
    strays: Sequence[str]
    value: str
    question: str
    depth: int
    count: Callable[[str], int]

    def tokens(self, messages: Sequence[Message]) -> int:
        """Of messages, about."""
        return sum(self.count(message.content) + 6 for message in messages)


def dialogue(material: PlantedSet, rng: random.Random, plan: PlantedPlan) -> list[Message]:
    """Turns of talk, one of which tells the fact."""
    after = talk(material, rng, plan, plan.depth)
    before = talk(material, rng, plan, max(plan.depth // 7, 100))
    turns = [*before, told(material, rng, plan.statement), *after]
    place = len(before)
    for stray in plan.strays:
        at = rng.randrange(len(turns))
        turns.insert(at, told(material, rng, stray))
        place += at <= place
    return [message for turn in turns for message in turn] + [Message("user", plan.question)]


def document(material: PlantedSet, rng: random.Random, plan: PlantedPlan) -> list[Message]:
    """A pasted text, one sentence of which is the fact; asked with it, or some turns later."""
    later = rng.random() < 0.5
    close = talk(material, rng, plan, min(plan.depth // 3, 500)) if later else []
    near = sum(plan.tokens(turn) for turn in close)
    paragraphs = list(text(material, rng, plan, plan.depth - near))
    before = list(text(material, rng, plan, max(plan.depth // 7, 100)))
    paragraphs = [*before, planted(rng, paragraphs.pop(), plan.statement), *reversed(paragraphs)]
    for stray in plan.strays:
        at = rng.randrange(len(paragraphs))
        if plan.statement not in paragraphs[at]:
            paragraphs[at] = planted(rng, paragraphs[at], stray)
        else:
            paragraphs.insert(at, stray)
    pasted = "\n\n".join(paragraphs)
    if not later:
        return [Message("user", f"{pasted}\n\n{plan.question}")]
    turns = [
        (Message("user", f"Keep this at hand:\n\n{pasted}"), Message("assistant", "I have it.")),
        *close,
    ]
    return [message for turn in turns for message in turn] + [Message("user", plan.question)]


@dataclass(frozen=True, slots=True)
class PlantedSurvey:
    """One conversation with many facts, which is asked for as a whole."""

    messages: tuple[Message, ...]
    values: tuple[str, ...]


def survey(
    material: PlantedSet, kind: Kind, size: int, number: int, count: Callable[[str], int]
) -> PlantedSurvey:
    """Talk, or a pasted text, of about `size` tokens, with a fact of each relation in it."""
    rng = random.Random(f"{material.name} survey {kind} {size} {number}")
    facts = []
    for relation in material.relations:
        subject, value = rng.choice(relation.subjects), rng.choice(relation.values)
        facts.append((rng.choice(relation.said).format(subject=subject, value=value), value))
    plan = PlantedPlan("", (), "\0", OVERVIEWS[kind][number % len(OVERVIEWS[kind])], size, count)
    if kind == "dialogue":
        turns = talk(material, rng, plan, size)
        for statement, _ in facts:
            turns.insert(rng.randrange(len(turns) + 1), told(material, rng, statement))
        said = [message for turn in turns for message in turn] + [Message("user", plan.question)]
    else:
        paragraphs = list(text(material, rng, plan, size))
        for statement, _ in facts:
            at = rng.randrange(len(paragraphs))
            paragraphs[at] = planted(rng, paragraphs[at], statement)
        pasted = "\n\n".join(paragraphs)
        said = [Message("user", f"{pasted}\n\n{plan.question}")]
    return PlantedSurvey(tuple(said), tuple(value for _, value in facts))


def talk(
    material: PlantedSet, rng: random.Random, plan: PlantedPlan, tokens: int
) -> list[tuple[Message, ...]]:
    """Turns about other things, of so many tokens."""
    found: list[tuple[Message, ...]] = []
    while tokens > 0:
        if rng.random() < 0.5:
            turn = (
                Message("user", small_talk(material, rng)),
                Message("assistant", rng.choice(material.answers)),
            )
        else:
            turn = (
                Message("user", rng.choice(material.requests)),
                Message("assistant", paragraph(material, rng, plan)),
            )
        found.append(turn)
        tokens -= plan.tokens(turn)
    return found


def text(material: PlantedSet, rng: random.Random, plan: PlantedPlan, tokens: int) -> Iterator[str]:
    """Paragraphs of so many tokens, one at least."""
    yield (last := paragraph(material, rng, plan))
    while (tokens := tokens - plan.count(last)) > 0:
        yield (last := paragraph(material, rng, plan))


def told(material: PlantedSet, rng: random.Random, statement: str) -> tuple[Message, ...]:
    """A turn in which something is told, alone or among other things."""
    said = rng.choice(material.leads) + statement
    if rng.random() < 0.4:
        said = f"{small_talk(material, rng)} {said} {small_talk(material, rng)}"
    return (Message("user", said), Message("assistant", rng.choice(material.answers)))


def planted(rng: random.Random, paragraph: str, statement: str) -> str:
    """A sentence among those of a paragraph."""
    sentences = re.split(r"(?<=[.!?]) ", paragraph)
    sentences.insert(rng.randint(0, len(sentences)), statement)
    return " ".join(sentences)


def small_talk(material: PlantedSet, rng: random.Random) -> str:
    """A sentence about nothing."""
    return rng.choice(material.openings).format(
        thing=rng.choice(material.things),
        place=rng.choice(material.places),
        time=rng.choice(material.times),
    )


def paragraph(material: PlantedSet, rng: random.Random, plan: PlantedPlan) -> str:
    """One that does not give the value away."""
    while plan.value in (found := rng.choice(material.paragraphs())):
        pass
    return found


def cut(texts: Sequence[str]) -> list[str]:
    """Paragraphs of prose, each in one line."""
    found = [" ".join(part.split()) for text in texts for part in text.split("\n\n")]
    return [part[:PARAGRAPH] for part in found if len(part) > 80 and part.count(" ") > 12]


@cache
def topics() -> Sequence[str]:
    """Python's own help."""
    from pydoc_data import topics as helped

    return cut([helped.topics[name] for name in sorted(helped.topics)])


@cache
def descriptions() -> Sequence[str]:
    """What packages that the product needs say of themselves."""
    names = words(
        "aiohttp|cryptography|flwr|gguf|httpx|huggingface_hub|jinja2|numpy|peft|rich|scipy|tenseal"
        "|torch|transformers|uvicorn"
    )
    return cut([str(importlib.metadata.metadata(name).json["description"]) for name in names])


@cache
def chronicle() -> Sequence[str]:
    """Made-up paragraphs about a German village."""
    rng = random.Random(4)

    def sentence() -> str:
        return rng.choice(CHRONICLE).format(
            season=rng.choice(SEASONS), span=rng.choice(SPANS), crop=rng.choice(CROPS),
            spot=rng.choice(SPOTS),
        )  # fmt: skip

    return [" ".join(sentence() for _ in range(5)) for _ in range(400)]


def numbers(rng: random.Random, form: str, count: int = 200) -> tuple[str, ...]:
    """Made-up codes: each # of the form a digit."""
    made = {re.sub("#", lambda _: str(rng.randint(1, 9)), form) for _ in range(count)}
    return tuple(sorted(made))


def words(text: str) -> tuple[str, ...]:
    """Entries of a list, divided by bars."""
    return tuple(part.strip() for part in text.split("|"))


_RNG = random.Random(5)
PEOPLE = words(
    "Ada|Bruno|Celia|Dmitri|Elif|Farid|Greta|Hugo|Ines|Jonas|Katya|Lorenzo|Mira|Nils|Olga|Pavel"
)
PLACES = words("cabin|garage|boat shed|workshop|office in town|allotment|caravan|wine cellar")
TUNED = PlantedSet(
    name="tuned",
    relations=(
        Relation(
            PLACES,
            words("stone frog|blue flowerpot|third paving slab|rusty milk can|bird bath|old anvil"),
            (
                "the spare key to the {subject} lies under the {value}.",
                "we hide a second key for the {subject} beneath the {value}.",
            ),
            (
                "I locked myself out of the {subject}. Where can I get in from now?",
                "How do I open the {subject} if I have left mine at home?",
            ),
            "the lock of the {subject} was oiled last week.",
        ),
        Relation(
            PEOPLE,
            words("walnuts|celery|sesame|shellfish|mustard|lupins|peaches|soya"),
            (
                "{subject} gets a rash and cannot breathe after eating {value}.",
                "{subject} is badly allergic to {value}.",
            ),
            (
                "I am cooking for {subject} tonight. What must not be in the food?",
                "Which ingredient would be dangerous for {subject}?",
            ),
            "{subject} liked the soup so much that there was none left.",
        ),
        Relation(
            PLACES,
            numbers(_RNG, "heron-##-violet-##"),
            (
                "the Wi-Fi in the {subject} wants the passphrase {value}.",
                "to get online in the {subject} one types {value}.",
            ),
            (
                "A guest in the {subject} needs the internet. What shall he enter?",
                "What are the network credentials for the {subject}?",
            ),
            "the router in the {subject} blinks all night.",
        ),
        Relation(
            PEOPLE,
            numbers(_RNG, "1#:#5"),
            (
                "{subject}'s train gets in at {value} on Friday.",
                "{subject} will be at the station on Friday at {value}.",
            ),
            (
                "When do I have to be on the platform to pick up {subject}?",
                "At what time does {subject} arrive?",
            ),
            "{subject} always complains about the railway.",
        ),
        Relation(
            words("parrot|horse|tortoise|rabbit|greyhound|goat"),
            words("Dr. Okafor|Dr. Lindqvist|Dr. Baptiste|Dr. Yamada|Dr. Novak|Dr. Haddad|Dr. Weir"),
            (
                "{value} has treated our {subject} ever since the operation.",
                "for the {subject} we go to {value}, two villages away.",
            ),
            (
                "Our {subject} is ill. Which vet knows the animal?",
                "Whom do I call if something is wrong with the {subject}?",
            ),
            "the {subject} slept through the whole thunderstorm.",
        ),
        Relation(
            words("roof|dishwasher|accordion|lawn mower|garden fence|chimney"),
            numbers(_RNG, "### euros"),
            (
                "I paid {value} to have the {subject} repaired.",
                "the bill for mending the {subject} came to {value}.",
            ),
            (
                "How much money did it cost to fix the {subject}?",
                "What did I spend on getting the {subject} to work again?",
            ),
            "the {subject} was a present from my parents.",
        ),
        Relation(
            words("hallway|nursery|study|kitchen|attic room|bathroom"),
            words("Dove Dusk|Saffron Hill|Marsh Fog|Plum Letter|Old Copper|Birch Bark|Salt Lamp"),
            (
                "we painted the {subject} in a shade that is called {value}.",
                "the tin that we used for the {subject} says {value}.",
            ),
            (
                "I need more paint for the walls of the {subject}. Which colour was it?",
                "What is the tone on the walls of the {subject} called?",
            ),
            "the {subject} has the best light in the morning.",
        ),
        Relation(
            PEOPLE,
            words("beekeeper|glazier|notary|harbour pilot|piano tuner|stonemason|forester|cooper"),
            (
                "{subject} earns a living as a {value}.",
                "{subject} has been a {value} for ten years.",
            ),
            ("What is {subject}'s profession?", "What job does {subject} do?"),
            "{subject} came home late from work again.",
        ),
        Relation(
            words("choir|parents' council|chess club|book circle|rowing crew|garden society"),
            words(
                "Tuesday the 9th|Sunday the 14th|Monday the 22nd|Thursday the 3rd|Friday the 30th"
            ),
            (
                "the {subject} meets on {value} because the hall was taken.",
                "they moved the evening of the {subject} to {value}.",
            ),
            ("When do I see the {subject} next?", "Which date did the {subject} agree on?"),
            "the {subject} has two new members.",
        ),
        Relation(
            PEOPLE,
            words(
                "sewing machine|tile cutter|telescope|chainsaw|pasta maker|tent|cello|fondue set"
            ),
            (
                "{subject} borrowed my {value} in spring and still has it.",
                "I lent my {value} to {subject}.",
            ),
            (
                "What of mine has {subject} not given back yet?",
                "Which of my belongings is at {subject}'s house?",
            ),
            "{subject} rang to say thank you.",
        ),
        Relation(
            words("goulash|apple strudel|lentil soup|fish pie|onion tart|plum jam"),
            words("a pinch of mace|two cloves|smoked salt|grated quince|juniper|a spoon of cocoa"),
            (
                "the secret of my grandmother's {subject} was {value}.",
                "into the {subject} my grandmother always put {value}.",
            ),
            (
                "What did granny add to the {subject} that nobody knew of?",
                "Which unusual thing belongs into the family's {subject}?",
            ),
            "we ate {subject} three times last month.",
        ),
        Relation(
            words("washing machine|heat pump|printer|coffee machine|drill press|freezer"),
            numbers(_RNG, "E-##"),
            (
                "the {subject} shows {value} whenever its filter is clogged.",
                "if the {subject} must be cleaned, {value} stands on its display.",
            ),
            (
                "What does the {subject} say when dirt has blocked it?",
                "Which code of the {subject} means that I have to rinse the sieve?",
            ),
            "the {subject} is still under guarantee.",
        ),
    ),
    openings=words(
        "Yesterday I carried {thing} to {place}.|It rained {time}, so we stayed at {place}."
        "|I saw {thing} near {place} {time}.|Do you think {thing} would look good at {place}?"
        "|My neighbours talked about {thing} {time}.|{time} I want to go to {place} with {thing}."
        "|I could not sleep {time} and thought of {thing}.|There was a long queue at {place}."
    ),
    answers=words(
        "That sounds lovely.|I see.|Thank you for telling me.|I will keep that in mind."
        "|How nice! What happened then?|That must have been tiring.|Good idea."
        "|Let me know how it goes.|It often helps to take a short break and begin again."
    ),
    things=words(
        "a basket of pears|an umbrella|my red bicycle|the big ladder|two lanterns|a box of records"
        "|the kite|some fresh bread|an old map|the picnic blanket|the wooden sledge"
    ),
    places=words(
        "the lake|the market|the old bridge|the library|the hill|the bakery|the harbour|the park"
    ),
    times=words("last night|this morning|on the weekend|in the evening|all day|next month"),
    requests=words(
        "Can you explain this part to me?|Tell me more about that, please."
        "|What does the manual say?|I want to learn it. Go on.|And the next paragraph?"
    ),
    leads=("By the way, ", "I should tell you: ", "Just so that you know, ", "Oh, and "),
    paragraphs=topics,
)
CREW = words(
    "Amara|Benedikt|Chiara|Daoud|Edda|Fabrice|Gunnar|Hedwig|Ilya|Joséphine|Kenji|Ludmila|Mateus"
    "|Noor|Oisín|Petra"
)
HELD_OUT = PlantedSet(
    name="held out",
    relations=(
        Relation(
            words("Agathe|Birgit|Carlota|Dorothea|Evelyn|Florence|Gisela|Henriette"),
            words("thimbles|meteorites|puppets|barometers|beetles|matchboxes|sundials"),
            (
                "when aunt {subject} died, the museum got all her {value}.",
                "aunt {subject} left a room full of {value} to the museum.",
            ),
            (
                "What had aunt {subject} collected all her life?",
                "Which hobby of aunt {subject} can be seen in an exhibition now?",
            ),
            "aunt {subject} was buried in the village where she was born.",
        ),
        Relation(
            words("mill|school|town hall|gatehouse|brewery|orangery"),
            words("seven months|fourteen months|thirty weeks|five years|nine weeks|twenty months"),
            (
                "a technician has to look at the boiler of the {subject} every {value}.",
                "for the {subject} the service interval of the boiler is {value}.",
            ),
            (
                "How often must the heating of the {subject} be inspected?",
                "What is the maintenance rhythm of the furnace in the {subject}?",
            ),
            "it was far too warm in the {subject} in January.",
        ),
        Relation(
            words("swimming pool|theatre|airport|gym|ferry terminal|climbing hall"),
            numbers(_RNG, "#-##-#"),
            (
                "my locker at the {subject} opens with {value}.",
                "turn the wheels to {value} for the locker at the {subject}.",
            ),
            (
                "I am at the {subject} and want my bag back. Which combination was it?",
                "What do I dial to get at my things in the {subject}?",
            ),
            "the {subject} closes early on public holidays.",
        ),
        Relation(
            CREW,
            words("Pippin|Major|Tilly|Bear|Captain|Sparrow|Lou|Duke"),
            (
                "since the wedding everybody calls {subject} {value}.",
                "{subject} does not like the long name and goes by {value}.",
            ),
            ("How does {subject} want to be addressed?", "Which nickname does {subject} have?"),
            "{subject} wore green at the wedding.",
        ),
        Relation(
            words("fencers|acrobats|volleyball team|judo group|cheerleaders|trampoline squad"),
            words("Ostrander gym|Bellweather barn|Kestrel hall|Pinkwater dome|Tallis annex"),
            (
                "on Mondays the {subject} train in the {value}.",
                "the {value} is booked for the {subject} at the start of each week.",
            ),
            ("Where do the {subject} practise?", "In which building can I watch the {subject}?"),
            "the {subject} lost by a hair last season.",
        ),
        Relation(
            CREW,
            words("February|March|April|August|September|November"),
            (
                "the dentist wants to see {subject} again in {value}.",
                "{subject} has to have the crown replaced in {value}.",
            ),
            (
                "In which month are {subject}'s teeth looked at again?",
                "When is the follow-up of {subject}'s treatment?",
            ),
            "{subject} is afraid of needles.",
        ),
        Relation(
            words("Tallinn|Palermo|Bergen|Izmir|Porto|Gdansk|Cork"),
            numbers(_RNG, "gate B##"),
            (
                "people who fly to {subject} leave through {value}.",
                "boarding for {subject} is at {value}.",
            ),
            (
                "Where in the terminal must I go for the plane to {subject}?",
                "I travel to {subject}. Which exit do I look for?",
            ),
            "in {subject} it is an hour later than here.",
        ),
        Relation(
            CREW,
            words("lichens|medieval toll roads|ant acoustics|glacier dust|Etruscan dice|sea fog"),
            (
                "{subject} wrote a dissertation about {value}.",
                "for four years {subject} did research on {value}.",
            ),
            (
                "What was the subject of {subject}'s doctorate?",
                "In which field is {subject} an academic expert?",
            ),
            "{subject} moved into a flat next to the university.",
        ),
        Relation(
            words("roofer|caterer|photographer|plumber|solicitor|carpenter"),
            words("eleven|five|eighteen|seven|twenty-two|thirteen|nine"),
            (
                "we may pay the {subject} in {value} instalments.",
                "the {subject} agreed to split the invoice into {value} parts.",
            ),
            (
                "Over how many payments do we settle what we owe the {subject}?",
                "Into how many rates is the {subject}'s bill divided?",
            ),
            "the {subject} came an hour late and apologised.",
        ),
        Relation(
            words("hamster|donkey|canary|beagle|iguana|ferret"),
            words("bread bin|glove compartment|hat box|second drawer|tea caddy|umbrella stand"),
            (
                "the {subject}'s tablets are in the {value}.",
                "I put the pills of the {subject} into the {value}.",
            ),
            (
                "Where is the medicine for the {subject}?",
                "I have to give the {subject} its dose. Where do I look?",
            ),
            "the {subject} weighs more than it should.",
        ),
        Relation(
            words("flat in Graz|studio|penthouse|basement|houseboat|room above the shop"),
            numbers(_RNG, "1,##0 francs"),
            (
                "the landlord raised the rent of the {subject} to {value}.",
                "from May on the {subject} costs {value} a month.",
            ),
            (
                "What do we transfer monthly for living in the {subject}?",
                "How expensive has the {subject} become?",
            ),
            "the {subject} has a view of the river.",
        ),
        Relation(
            CREW,
            words("milk float|sidecar motorcycle|camper van|hearse|three-wheeler|pickup|tuk-tuk"),
            (
                "{subject} drives a {value} since the old car broke down.",
                "{subject} has bought a second-hand {value}.",
            ),
            (
                "Which vehicle does {subject} get around in now?",
                "What will be parked outside if {subject} visits?",
            ),
            "{subject} got a ticket for speeding.",
        ),
    ),
    openings=words(
        "We tried {thing} {time} and laughed a lot.|Somebody at {place} asked me about {thing}."
        "|{time} the power went out at {place}.|I wonder whether {thing} is worth its price."
        "|The children drew {thing} {time}.|Who takes {thing} to {place}?"
        "|They sell {thing} at {place} now.|I was at {place} {time}, it was quite empty."
    ),
    answers=words(
        "Interesting!|Understood.|I made a note of it.|Glad to hear that.|Tell me more if you like."
        "|That happens to many people.|Sounds like a plan.|You could ask somebody else."
    ),
    things=words(
        "a hammock|salted liquorice|the new board game|a telescope mount|mint tea|roller skates"
        "|a recorder|the fog machine|dried mango|a sewing kit|the puzzle|paper lamps"
    ),
    places=words(
        "the station|the ice rink|the fairground|the town museum|the pier|the greenhouse|the cinema"
    ),
    times=words("on Thursday|during the break|late at night|two days ago|after lunch|in autumn"),
    requests=words(
        "What does the description say?|Please read out the next section."
        "|Give me a passage from the documentation.|And what else do they write?"
    ),
    leads=("Something else: ", "Before I forget, ", "For your information, ", "You know what? "),
    paragraphs=descriptions,
)
CHRONICLE = words(
    "Im {season} wurde die Brücke über den Fluss erneuert, was {span} gedauert hat."
    "|Die Bauern der Gegend bauen seit {span} vor allem {crop} an."
    "|Wer den Turm besteigt, sieht bei klarem Wetter bis zum {spot}."
    "|Das Heimatmuseum zeigt Werkzeuge, mit denen früher {crop} verarbeitet wurde."
    "|Der Verein hat beschlossen, im {season} keinen Ausflug zu machen."
    "|Zwischen der alten Mühle und dem {spot} verläuft ein Weg, der oft überschwemmt ist."
    "|Man sagt, dass der Wirt am {spot} die besten Knödel kocht."
    "|Die Zeitung berichtete ausführlich über den Streit um {crop}."
    "|Nach {span} kehrte der Schreiner zurück und eröffnete eine Werkstatt."
    "|Die Bibliothek schließt im {season} früher als sonst."
    "|Viele Gäste reisen mit der Bahn an, die am {spot} hält."
    "|Der Preis für {crop} ist seit {span} kaum gestiegen."
    "|Im Keller des Rathauses lagern Akten, die seit {span} niemand gelesen hat."
    "|Am {spot} wachsen Orchideen, die unter Schutz stehen."
    "|Wenn es im {season} regnet, füllt sich der Stausee schnell."
    "|Die Feuerwehr übt jeden Monat am {spot}."
    "|Der Lehrer erklärte den Kindern, wie man früher {crop} lagerte."
    "|Ohne Genehmigung darf am {spot} niemand angeln."
)
SEASONS = words("Januar|Frühling|Sommer|Herbst|Winter|Advent")
SPANS = words("zwei Wochen|vielen Jahren|einem Jahrzehnt|Generationen|einigen Tagen")
CROPS = words("Hopfen|Flachs|Rüben|Leinen|Honig|Schiefer|Torf|Käse")
SPOTS = words("Waldrand|Marktplatz|Bahnhof|Hafen|See|Kirchplatz|Steinbruch|Nordtor")
FOLK = words(
    "Anneliese|Bertram|Cosima|Detlef|Elfriede|Friedhelm|Gerlinde|Hartmut|Irmgard|Jochen|Kunigunde"
    "|Lothar"
)
GERMAN = PlantedSet(
    name="German",
    relations=(
        Relation(
            words("Ferienhaus|Bootshaus|Atelier|Gartenhaus|Lagerhaus|Nebengebäude"),
            words("Regentonne|Sonnenuhr|Futterkrippe|Schubkarre|Vogeltränke|Holzbank"),
            (
                "der Zweitschlüssel für das {subject} liegt unter der {value}.",
                "ins {subject} kommt man mit dem Schlüssel unter der {value}.",
            ),
            (
                "Ich stehe vor dem {subject} und habe mich ausgesperrt. Wo finde ich einen Ersatz?",
                "Wie öffne ich das {subject}, wenn ich meinen zu Hause vergessen habe?",
            ),
            "am {subject} muss das Dach geflickt werden.",
        ),
        Relation(
            FOLK,
            words("Haselnüsse|Sellerie|Krabben|Senf|Pfirsiche|Erdbeeren|Soja"),
            (
                "{subject} bekommt keine Luft mehr, wenn in der Mahlzeit {value} sind.",
                "{subject} verträgt überhaupt keine {value}.",
            ),
            (
                "Ich koche heute für {subject}. Was darf nicht ins Essen?",
                "Wogegen ist {subject} allergisch?",
            ),
            "{subject} hat sich für die Suppe bedankt.",
        ),
        Relation(
            FOLK,
            numbers(_RNG, "1#:#5 Uhr"),
            (
                "der Zug von {subject} kommt am Freitag um {value} an.",
                "{subject} steht am Freitag um {value} auf dem Bahnsteig.",
            ),
            ("Wann muss ich {subject} abholen?", "Um welche Zeit trifft {subject} ein?"),
            "{subject} schimpft immer über die Bahn.",
        ),
        Relation(
            words("Spülmaschine|Heizung|Kaffeemaschine|Bohrmaschine|Gefriertruhe|Waschmaschine"),
            numbers(_RNG, "F-##"),
            (
                "wenn das Sieb verstopft ist, zeigt die {subject} {value}.",
                "die {subject} meldet {value}, sobald sie gereinigt werden muss.",
            ),
            (
                "Welcher Fehler der {subject} heißt, dass sie schmutzig ist?",
                "Was steht auf der Anzeige der {subject}, wenn ich sie säubern soll?",
            ),
            "die {subject} hat noch Garantie.",
        ),
        Relation(
            FOLK,
            words("Imkerei|Glaserei|Notariat|Lotsenamt|Orgelbau|Steinmetzbetrieb|Försterei"),
            (
                "{subject} verdient das Geld im Bereich {value}.",
                "seit zehn Jahren arbeitet {subject} im Bereich {value}.",
            ),
            ("Was macht {subject} beruflich?", "Welchen Beruf hat {subject}?"),
            "{subject} kam wieder spät nach Hause.",
        ),
        Relation(
            words("Kinderzimmer|Arbeitszimmer|Bad|Treppenhaus|Esszimmer|Gästezimmer"),
            words("Nebelgrau|Safran|Pflaume|Altkupfer|Birkenrinde|Moorlicht"),
            (
                "die Wandfarbe im {subject} heißt {value}.",
                "fürs {subject} haben wir den Ton {value} genommen.",
            ),
            (
                "Ich muss im {subject} nachstreichen. Was soll ich kaufen?",
                "In welchem Ton wurde das {subject} gestrichen?",
            ),
            "im {subject} ist das Licht am Morgen am schönsten.",
        ),
        Relation(
            FOLK,
            words("Nähmaschine|Kettensäge|Gitarre|Heckenschere|Luftpumpe|Schreibmaschine"),
            (
                "{subject} hat sich im Frühjahr meine {value} geliehen.",
                "meine {value} ist seit Ostern bei {subject}.",
            ),
            (
                "Was von mir hat {subject} noch nicht zurückgegeben?",
                "Welches meiner Geräte steht bei {subject}?",
            ),
            "{subject} hat angerufen, um sich zu bedanken.",
        ),
        Relation(
            words("Kanarienvogel|Esel|Dackel|Hamster|Leguan|Kater"),
            words("Brotkasten|Schirmständer|Nähkorb|Schuhschrank|Werkzeugkoffer"),
            (
                "die Tabletten für den {subject} sind im {value}.",
                "die Arznei vom {subject} habe ich im {value} verstaut.",
            ),
            (
                "Wo ist die Medizin für den {subject}?",
                "Der {subject} braucht seine Dosis. Wo suche ich?",
            ),
            "der {subject} ist zu dick.",
        ),
    ),
    openings=words(
        "Gestern trug ich {thing} zum {place}.|Es regnete {time}, also blieben wir am {place}."
        "|Ich sah {thing} {time} am {place}.|Meine Nachbarn redeten {time} über {thing}."
        "|Am {place} war eine lange Schlange.|Ich konnte {time} nicht schlafen."
    ),
    answers=words(
        "Das klingt schön.|Ich verstehe.|Danke, dass du es mir sagst.|Das merke ich mir."
        "|Wie nett! Was geschah dann?|Das war sicher anstrengend.|Gute Idee."
    ),
    things=words(
        "einen Korb Birnen|mein rotes Fahrrad|zwei Laternen|den Drachen|eine alte Landkarte"
        "|den Schlitten"
    ),
    places=words("Teich|Wochenmarkt|Hügel|Anleger|Park|Brunnen|Bäcker"),
    times=words("gestern Abend|heute früh|am Wochenende|den ganzen Tag|letzten Monat"),
    requests=words(
        "Kannst du mir das erklären?|Erzähl mir mehr davon.|Was steht in der Chronik?"
        "|Und der nächste Abschnitt?"
    ),
    leads=("Übrigens, ", "Damit du es weißt: ", "Ach ja, ", "Was ich noch sagen wollte: "),
    paragraphs=chronicle,
)
