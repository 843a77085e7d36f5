"""Earlier turns as notes: what the model itself wrote down of them, each once.

Knows a model that answers prompts, and where a conversation's notes are kept. Knows nothing of
budgets, turns or HTTP.
Always: notes are taken only by a model that was seen to take good ones (`Skill`), and of earlier
turns only while nobody waits for an answer; a note is found by its own conversation alone; a line
that no one sentence of its text says (its numbers, its names, most of its words), or with what
could begin a call or close a mark, is dropped; a text whose notes would not be much shorter has
none.

Not covered: a line that turns the words of one sentence around. `Skill` measures that before a
model is let.
"""

import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from .. import log, paths
from ..engine.request import Generation, GenerationRequest
from ..engine.sampling.params import SamplingParams
from ..errors import EngineError, QuietchoirError
from .passages import evenly, sentences

FILE = "condensing.json"  # in the node's home: how well its models take notes
FORM = "1"  # of the prompts and rules below; what was written in another is not found
SYSTEM = "You take notes. Write down the facts, short and exactly, one a line. Add nothing."
REQUEST = "Take notes of this part of a conversation:\n\n{text}\n\nThe facts in it:"
EXAMPLE = (
    "user: It is so hot today. By the way, Tom's flat has the number 14. I like to sit in the "
    "garden.\nassistant: Enjoy the sun!\nuser: The bus to Kent leaves at 7:20.\nassistant: I see.",
    "- Tom's flat has the number 14\n- The bus to Kent leaves at 7:20",
)
READING = (
    "{question}\n\nThis is part {number} of {count} of the text; the others are read by themselves."
    "\n\n{text}\n\nAnswer for this part alone, in one or two sentences."
)
NOTE_TOKENS = 96
LEAST_CHARACTERS = 160  # of a text; a shorter one is its own note
MOST_SHARE = 0.6  # of a text's letters that its note may take
OTHER_WORDS = 0.3  # of a line's words that need not be in the sentence
WORD_LETTERS = 4  # of a word that must agree, so that its endings may change
PENDING = 256  # texts that wait to be condensed; further ones wait for the next request
MOST_NOTES = 1024  # of conversations that nobody keeps, in memory
AT_ONCE = 2  # that are written together: more would wait long for their turn on a slow machine
READING_S = 120.0  # for the pieces of one text; then what was read of it, spread evenly, answers
LEAST_FACTS = 0.5  # of those in a text, that a model's notes must tell, or it takes none
GAIN = 1.5  # and times as many as an excerpt of the same length would hold
WORD = re.compile(r"[\w'’-]+")
DIGITS = re.compile(r"\d[\d.,:/-]*")
KEPT = "kept:"  # before the name that a client gives its conversation
MARKS = re.compile(r"[<>{}\[\]`]")
# What is tried before a model is let: talk with facts in it, each of whom and what.
TRIALS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "user: What a long winter. Somebody sang in the yard all evening.\n"
        "assistant: That sounds cosy. Was it somebody you know?\n"
        "user: No idea. By the way, our plumber Weber comes on Thursday at ten.\n"
        "assistant: Good to know.\n"
        "user: I made soup again and watched the snow. The landlord wants 640 euros from May on.\n"
        "assistant: I hope that it is still affordable.",
        (("Weber", "Thursday"), ("landlord", "640")),
    ),
    (
        "user: I could not sleep, so I read for a while.\n"
        "assistant: A warm drink may help.\n"
        "user: Just so that you know, the alarm of the workshop is turned off with 7731.\n"
        "assistant: I see.\n"
        "user: Do you like tea? Lena, my niece, is allergic to walnuts.\n"
        "assistant: I cannot drink, but many people like it.\n"
        "user: The neighbours have a new car, a very loud one.\n"
        "assistant: That must be tiring.",
        (("workshop", "7731"), ("Lena", "walnuts")),
    ),
    (
        "user: Nothing much happened today.\n"
        "assistant: Quiet days are good days.\n"
        "user: We will meet the lawyer in room 212. I bought bread and looked at shoes.\n"
        "assistant: Did you find a pair?\n"
        "user: None that I need. The train to Basel was moved to platform 9.\n"
        "assistant: Thank you for telling me.",
        (("lawyer", "212"), ("Basel", "platform 9")),
    ),
    (
        "user: By now the garden is green, and the cat is out all night.\n"
        "assistant: Spring is lovely. Cats think so too.\n"
        "user: If it is ill, we go to Dr. Amsel, who has treated the cat for years.\n"
        "assistant: Understood.\n"
        "user: It rained a little. Jonas borrowed the ladder in spring and still has it.\n"
        "assistant: You could ask him for it.",
        (("cat", "Amsel"), ("Jonas", "ladder")),
    ),
    (
        "user: You ask how the day was: long, but good.\n"
        "assistant: Tell me more if you like.\n"
        "user: If the line is down, the router stands behind the piano.\n"
        "assistant: I will keep that in mind.\n"
        "user: I walked home by the river, slowly. For the choir we need 35 chairs on Sunday.\n"
        "assistant: That is a large choir!\n"
        "user: Then I fell asleep in front of the television.\n"
        "assistant: That happens to many people.",
        (("router", "piano"), ("chairs", "35")),
    ),
    (
        "user: I never understood opera. Still, it was a nice evening.\n"
        "assistant: Not everybody has to like it.\n"
        "user: The number of the insurance ends with 4409, I looked it up.\n"
        "assistant: Noted.\n"
        "user: Everybody talked about the weather. And Mira moved to Porto last month!\n"
        "assistant: How nice! How does she like it there?",
        (("insurance", "4409"), ("Mira", "Porto")),
    ),
)
Texts = Sequence[str]
logger = log.get("condenser")


class NoteEngine(Protocol):
    """The part of the engine that this file needs."""

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request."""
        ...


class NoteEncoder(Protocol):
    """The part of a tokenizer that this file needs."""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation, ready for the assistant to go on."""
        ...


class NoteStore(Protocol):
    """Where conversations are kept, and their notes with them: they go when it goes."""

    def notes(self, conversation: str) -> Mapping[str, str]:
        """Notes of one conversation, by the names they were kept under."""
        ...

    def keep_note(self, conversation: str, name: str, note: str) -> None:
        """Keep one; nothing, if the conversation is not kept (any more)."""
        ...


@dataclass(frozen=True, slots=True)
class Skill:
    """How well a model takes notes, as `TRIALS` showed it."""

    form: str  # `FORM` at that time
    facts: float  # of the facts, the share that its notes tell
    wrong: float  # as a share of the facts, those told of somebody or something else
    length: float  # of its notes, as a share of the texts'

    @property
    def is_enough(self) -> bool:
        """Do its notes tell more than the text's own words, cut to their length, would?"""
        right = self.facts - self.wrong
        return right >= LEAST_FACTS and right >= GAIN * self.length


class Condenser:
    """Takes notes; every method may be called from any thread."""

    def __init__(
        self,
        engine: NoteEngine,
        encoder: NoteEncoder,
        *,
        home: Path,
        model: str,
        store: Callable[[], NoteStore | None] = lambda: None,
        is_busy: Callable[[int], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            home: of the node; keeps how well the model takes notes.
            model: the digest of the weights; another model's notes are not found.
            store: where named conversations are kept, if they are.
            is_busy: does somebody wait for an answer, beside so many requests of this file's own?
        """
        self._engine, self._encoder, self._is_busy = engine, encoder, is_busy
        self._path, self._model, self._store = home / FILE, model, store
        self._skill = self._measured()
        self._lock = threading.Lock()
        self._pending: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._writing: tuple[str, str] | None = None  # the pending one that is being condensed
        self._unkept: OrderedDict[tuple[str, str], str] = OrderedDict()  # notes in memory
        self._forgotten = 0  # how often something was; what was asked before is not remembered
        self._is_wanted = False  # somebody would have had a text read, and nobody knew the skill
        self._clock = clock
        self._stopped = threading.Event()

    @property
    def may(self) -> bool:
        """May this model take notes, as far as is known? Nobody tried it before it was needed."""
        return self._skill is None or self._skill.is_enough

    def stop(self) -> None:
        """What runs is given up; what was not condensed is asked for again by the next request
        that needs it.
        """
        self._stopped.set()

    def notes(self, conversation: str, texts: Texts) -> list[str]:
        """What is known of each text, empty where there is nothing; those that were never
        condensed are, once nobody waits for an answer.

        Args:
            conversation: what finds these notes again, and nothing else does; "kept:NAME" for one
                that its client names.
        """
        if not self.may:
            return [""] * len(texts)
        names, began = [self._name(text) for text in texts], self._forgotten
        kept = self._kept(conversation)
        found: list[str] = []
        with self._lock:
            for text, name in zip(texts, names, strict=True):
                note = kept.get(name, self._unkept.get((conversation, name)))
                waits = note is None and len(text) >= LEAST_CHARACTERS
                if waits and len(self._pending) < PENDING and self._forgotten == began:
                    self._pending.setdefault((conversation, text))
                found.append(note or "")
        return found

    def settle(self) -> bool:
        """Condense one text that waits, or try whether the model can; False: nothing was done."""
        with self._lock:
            self._writing = pending = next(iter(self._pending), None)
        if self._skill is None and (pending is not None or self._is_wanted):
            return self._try(self._is_busy)
        if pending is None or self._skill is None:
            return False
        if not self._skill.is_enough:
            with self._lock:
                self._pending.clear()
            return False
        conversation, text = pending
        try:
            written = self._written([asked(text)], NOTE_TOKENS, self._gives_way)
        except QuietchoirError as error:  # it waits for the next request that needs it
            logger.warning("earlier turns were not condensed: %s", error)
            written = []
        if written is None:
            return False
        with self._lock:
            if self._writing == pending:  # it was not forgotten meanwhile
                self._pending.pop(pending, None)
                for answer in written:
                    self._keep(conversation, self._name(text), worth(answer, text))
        return True

    def read(
        self,
        conversation: str,
        question: str,
        pieces: Texts,
        tokens: int,
        is_left: Callable[[], bool],
    ) -> list[str]:
        """What each piece of a long text says to a question, asked now; nothing, where the model
        is not up to it, or nobody knows yet.

        Args:
            tokens: that all answers together may take.
            is_left: does nobody wait for it any more?
        """
        if self._skill is None:  # it is tried when nobody waits, not now
            self._is_wanted = True
            return []
        if not self._skill.is_enough:
            return []
        try:
            return self._read(conversation, question, pieces, tokens, is_left)
        except QuietchoirError as error:  # the text's own words answer then
            logger.warning("a long text is shown in excerpts: %s", error)
            return []

    def _read(
        self,
        conversation: str,
        question: str,
        pieces: Texts,
        tokens: int,
        is_left: Callable[[], bool],
    ) -> list[str]:
        names = [self._name(f"{question}\0{piece}") for piece in pieces]
        with self._lock:
            began = self._forgotten
            known = {name: self._unkept.get((conversation, name)) for name in names}
        prompts = [
            [{"role": "user", "content": READING.format(
                question=question, number=number, count=len(pieces), text=piece
            )}]
            for number, piece in enumerate(pieces, 1)
        ]  # fmt: skip
        missing = [place for place, name in enumerate(names) if known[name] is None]
        most = max(NOTE_TOKENS // 4, min(NOTE_TOKENS, tokens // max(1, len(pieces))))
        missing, ends_s = evenly(missing), self._clock() + READING_S
        for start in range(0, len(missing), AT_ONCE):
            if self._clock() > ends_s:
                logger.info("of a long text %d of %d pieces were read", start, len(missing))
                break
            places = missing[start : start + AT_ONCE]
            asking = [prompts[place] for place in places]
            answers = self._written(asking, most, lambda _: is_left())
            if answers is None:
                return []
            with self._lock:  # never written to the disk: it answers one question
                for place, answer in zip(places, answers, strict=True):
                    known[names[place]] = note = worth(answer, pieces[place], joined=" ")
                    if self._forgotten == began:
                        self._remember(conversation, names[place], note)
        return [known[name] or "" for name in names]

    def forget(self, conversation: str) -> None:
        """Drop what is known of a conversation that its client names, also what is being
        written.
        """
        with self._lock:
            self._forgotten += 1
            gone = (conversation, f"{KEPT}{conversation}")
            for kept in (self._unkept, self._pending):
                for key in [key for key in kept if key[0] in gone]:
                    del kept[key]
            if self._writing is not None and self._writing[0] in gone:
                self._writing = None

    def _gives_way(self, own: int) -> bool:
        """Does somebody else wait, or is what was to be condensed forgotten?"""
        return self._writing is None or self._is_busy(own)

    def try_out(self, is_left: Callable[[int], bool] = lambda _: False) -> Skill:
        """See how well the model takes notes, now; what is found is kept.

        Raises:
            EngineError: the engine cannot be asked, or nobody waits any more.
        """
        texts = [text for text, _ in TRIALS]
        written = self._written([asked(text) for text in texts], NOTE_TOKENS, is_left)
        if written is None:
            raise EngineError("nobody waits any more for what this model's notes are like")
        self._skill = skill = judged(written)
        logger.info(
            "this model's notes tell %.0f %% of the facts in %.0f %% of the length, %.0f %% wrongly"
            ": earlier turns are %s",
            100 * skill.facts,
            100 * skill.length,
            100 * skill.wrong,
            "condensed" if skill.is_enough else "shown in excerpts, not condensed",
        )
        try:
            told = json.dumps({self._model: asdict(skill)})
            paths.write_atomically(self._path, told.encode(), mode=0o600)
        except QuietchoirError as error:
            logger.warning("tried again at the next start: %s", error)
        return skill

    def _try(self, is_left: Callable[[int], bool]) -> bool:
        """The same; False: it was broken off. A model that cannot be asked takes no notes."""
        try:
            self.try_out(is_left)
        except QuietchoirError as error:
            if is_left(0) or self._stopped.is_set():
                return False
            logger.warning("whether this model can take notes could not be tried: %s", error)
            self._skill = Skill(FORM, 0.0, 0.0, 1.0)
        return True

    def _measured(self) -> Skill | None:
        """What was found at an earlier start; a file that cannot be read is as none."""
        try:
            found = Skill(**json.loads(self._path.read_text())[self._model])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return found if found.form == FORM else None

    def _written(
        self,
        prompts: Sequence[Sequence[Mapping[str, str]]],
        tokens: int,
        is_left: Callable[[int], bool],
    ) -> list[str] | None:
        """The model's answers; None: it was broken off.

        Args:
            is_left: is it to be? Gets how many of these requests are with the engine.
        """
        found: list[str] = []
        for start in range(0, len(prompts), AT_ONCE):
            some = self._written_together(prompts[start : start + AT_ONCE], tokens, is_left)
            if some is None:
                return None
            found += some
        return found

    def _written_together(
        self,
        prompts: Sequence[Sequence[Mapping[str, str]]],
        tokens: int,
        is_left: Callable[[int], bool],
    ) -> list[str] | None:
        params = SamplingParams(max_tokens=tokens, loop_guard=True)
        running: list[Generation] = []
        found: list[str] = []
        try:
            for prompt in prompts:
                encoded = tuple(self._encoder.encode_chat(prompt))
                request = GenerationRequest(prompt=encoded, sampling_params=params)
                running.append(self._engine.submit(request))
            for generation in running:
                text = ""
                for delta in generation:
                    own = sum(one.finish_reason is None for one in running)
                    if self._stopped.is_set() or is_left(own):
                        return None
                    text += delta.text
                if generation.finish_reason not in ("stop", "length", "repetition"):
                    raise generation.error or EngineError("a note was broken off")
                found.append(text)
        finally:
            for generation in running:
                generation.cancel()
        return found

    def _kept(self, conversation: str) -> Mapping[str, str]:
        store = self._store_of(conversation)
        try:
            return {} if store is None else store.notes(conversation.removeprefix(KEPT))
        except QuietchoirError as error:  # an answer does not depend on it
            logger.warning("notes of earlier turns are not there: %s", error)
            return {}

    def _store_of(self, conversation: str) -> NoteStore | None:
        return self._store() if conversation.startswith(KEPT) else None

    def _keep(self, conversation: str, name: str, note: str) -> None:
        if (store := self._store_of(conversation)) is None:
            self._remember(conversation, name, note)
        else:
            store.keep_note(conversation.removeprefix(KEPT), name, note)

    def _remember(self, conversation: str, name: str, note: str) -> None:
        self._unkept[(conversation, name)] = note
        while len(self._unkept) > MOST_NOTES:
            self._unkept.popitem(last=False)

    def _name(self, text: str) -> str:
        """What a note of this model on a text is kept under."""
        return hashlib.sha256(f"{FORM} {self._model} {text}".encode("utf-8", "replace")).hexdigest()


def asked(text: str) -> list[dict[str, str]]:
    """The conversation that is to end with notes of a text."""
    example, notes = EXAMPLE
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": REQUEST.format(text=example)},
        {"role": "assistant", "content": notes},
        {"role": "user", "content": REQUEST.format(text=text)},
    ]


def judged(written: Texts) -> Skill:
    """How well notes of `TRIALS` tell their facts."""
    told = wrong = before = after = count = 0
    for answer, (text, facts) in zip(written, TRIALS, strict=True):
        note = worth(answer, text)
        lines = note.split("; ")
        before, after, count = before + len(text), after + len(note), count + len(facts)
        for subject, value in facts:
            others = [other for other, _ in facts if other != subject]
            told += any(subject in line and value in line for line in lines)
            wrong += any(
                value in line and subject not in line and any(one in line for one in others)
                for line in lines
            )
    return Skill(FORM, told / count, wrong / count, after / before)


def worth(note: str, text: str, joined: str = "; ") -> str:
    """The lines of a note that say what its text says; nothing, if they are not much shorter."""
    lines = [line.strip(" -*•\t") for line in note.splitlines()]
    kept = [line for line in dict.fromkeys(lines) if line and is_faithful(line, text)]
    found = joined.join(kept)
    return found if len(found) <= MOST_SHARE * len(text) else ""


def is_faithful(line: str, text: str) -> bool:
    """Does one sentence of the text say it: with all its numbers and names, and most words?"""
    if MARKS.search(line):
        return False
    words = WORD.findall(line)
    names = [word.casefold() for word in words[1:] if word[:1].isupper()]
    numbers = [number.strip(".,:/-") for number in DIGITS.findall(line)]
    long = {word[:WORD_LETTERS].casefold() for word in words if len(word) >= WORD_LETTERS}
    return bool(long) and any(
        all(word in sentence for word in (*names, *numbers))
        and sum(word not in sentence for word in long) <= OTHER_WORDS * len(long)
        for sentence in map(str.casefold, sentences(text))
    )
