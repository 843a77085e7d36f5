"""What names somebody is taken out of an example before it trains.

Knows texts, and kept libraries that find things in them: `phonenumbers`, `python-stdnum` (cards,
accounts), `pyap2` (addresses), `detect-secrets` (keys), the names of `Faker`; mail addresses by a
pattern, and the words that the owner wrote down.
Always: what is found once is replaced wherever it stands in the example, in any case and any
spelling of Unicode, by the same placeholder, in calls before they become JSON; the same texts and
words give the same result; nothing leaves this process.

Not covered: names in small letters that the owner's list lacks, names that are also common words
and stand alone, addresses outside the United States, Canada and the United Kingdom but for a house
number beside a street's name, letters of another script that look alike, what only the context
gives away. Therefore the preview: the bytes that it shows are the bytes that train.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from .. import parts
from ..errors import DataError
from ..toolcall import ToolCall, parse, render

Find = Callable[[str], Iterable[str]]
# RFC 5322's atoms on both sides, as people write them
MAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@[\w-]+(?:\.[\w-]+)+")
# A card's or an account's number: groups that a check digit then has to confirm.
DIGITS = re.compile(r"(?<![\w.])\d(?:[ -]?\d){11,18}(?![\w.])")
ACCOUNT = re.compile(r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{2,4}){3,8}\b")
STREETS = (
    r"street|st|road|rd|avenue|ave|lane|ln|drive|dr|boulevard|blvd|court|ct|square|place|terrace|"
    r"crescent|close|way"
)
# What `pyap2` passes over: a number and a street, without a town.
STREET = re.compile(
    rf"\b\d{{1,5}}[a-zA-Z]?,? (?:[A-Z][\w'.-]+ ){{1,3}}(?:{STREETS})\b\.?"
    r"|\b[A-ZÄÖÜ][\wäöüß-]*(?:straße|strasse|weg|platz|gasse|allee) \d{1,4}[a-z]?\b",
    re.IGNORECASE,
)
WORD = re.compile(r"[^\W\d_][\w'’-]*")
POSSESSIVE = re.compile("['’]s$")
TITLES = {"mr", "mrs", "ms", "miss", "dr", "prof", "sir", "herr", "frau", "monsieur", "madame"}
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "AU", "IN")  # whose local numbers are known
TOKEN = re.compile(r"[A-Za-z0-9+/=_-]{20,}")  # a key of no known maker
# Of a letter or digit; `_` ends a word, and so does what JSON escapes, which looks like a letter.
BEFORE = "(?<![\ue000\u0300-\u036f])(?:(?<![^\\W_])|(?<=\\\\[bfnrt]))"
AFTER = "(?![^\\W_]|[\u0300-\u036f])"
UNIT = re.compile(r"\\u[0-9a-fA-F]{4}|.", re.DOTALL)  # a character, perhaps as JSON writes it
PLACEHOLDER = re.compile(r"\[[A-Z]+_\d+\]")
MARK = re.compile("\ue000\\d+\ue001")  # letters of no script, that no keyboard has
# What somebody calls a secret, unlike in source code without quotes.
SECRET = re.compile(
    r"\b(?:password|passwort|passcode|passphrase|pin|secret|token|api key)\b(?: is|:| =|=) *"
    r"([^\s\"']{4,})",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.!?:]\s*$|^\s*$|[\n\"“]\s*$")


@dataclass(frozen=True, slots=True)
class RedactedTexts:
    """Texts without what was found, and how often each kind was."""

    texts: tuple[str, ...]
    found: Mapping[str, int]


class Redactor:
    """Takes out what its finders find. Making one reads lists of names: about 0.5 s.

    Args:
        words: the owner's own: never trained, in any case.

    Raises:
        MissingPartError: a library is not installed.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        with parts.wanted("redaction"):
            self.finders: dict[str, Find] = {
                "WORD": own_words(words),
                "KEY": keys(),
                "MAIL": MAIL.findall,
                "CARD": cards(),
                "ACCOUNT": accounts(),
                "PHONE": phones(),
                "ADDRESS": addresses(),
                "NAME": names(),
            }

    def redact(self, texts: Sequence[str]) -> RedactedTexts:
        """Replace in all texts what is found in any of them."""
        marks: dict[str, str] = {}  # value, as it is compared → what stands for it meanwhile
        kinds: dict[str, str] = {}
        left = [text.replace("\ue000", "") for text in texts]
        for kind, find in self.finders.items():
            seen = {form for text in left for form in (text, visible(text))}
            values = {value.strip() for text in seen for value in find(text)}
            # the longest first, so that no part of one is left behind
            for value in sorted(values, key=lambda value: (-len(value), value)):
                if not (key := compared(value)):
                    continue
                named = {mark for full, mark in marks.items() if kinds[mark] == kind == "NAME"
                         and set(key.split()) < set(full.split())}  # fmt: skip
                # a part of one full name is the same person; of several, nobody knows whose
                fresh = named.pop() if len(named) == 1 else f"\ue000{len(kinds)}\ue001"
                mark = marks.setdefault(key, fresh)
                kinds.setdefault(mark, kind)
                left = [replaced(text, value, mark) for text in left]
        found: dict[str, int] = {}
        names: dict[str, str] = {}
        for mark in MARK.findall("".join(left)):  # numbered as they are read
            if mark not in names:
                found[kinds[mark]] = found.get(kinds[mark], 0) + 1
                names[mark] = f"[{kinds[mark]}_{found[kinds[mark]]}]"
        done = tuple(MARK.sub(lambda mark: names[mark[0]], text) for text in left)
        return RedactedTexts(done, found)

    def example(self, messages: Sequence[str], answer: str) -> RedactedTexts:
        """The same for an example; what is a call in it stays one.

        Raises:
            DataError: what was found stands in a call as a number: it cannot be taken out.
        """
        whole = [segments(text) for text in (*messages, answer)]
        done = self.redact(
            [
                text
                for parts_of in whole
                for written, call in parts_of
                for text in ([written] if call is None else strings(call.arguments))
            ]
        )
        left = iter(done.texts)
        texts = tuple(
            "\n".join(
                next(left) if call is None else self._call(written, call, left)
                for written, call in parts_of
            )
            for parts_of in whole
        )
        return RedactedTexts(texts, done.found)

    def _call(self, written: str, call: ToolCall, replacements: Iterator[str]) -> str:
        made = ToolCall(call.name, with_strings(call.arguments, replacements))
        text = written if made.arguments == call.arguments else render(made)
        if self.redact([PLACEHOLDER.sub(" ", text)]).found:  # a number, or an argument's name
            raise DataError("something that names somebody stands in the call as no text")
        return text


def segments(text: str) -> list[tuple[str, ToolCall | None]]:
    """A text as its calls, each a line or all of it, and what stands between them."""
    if (call := parse(text)) is not None:
        return [(text, call)]
    found: list[tuple[str, ToolCall | None]] = []
    for line in text.split("\n"):
        call = parse(line) if line.lstrip().startswith("{") else None
        if call is None and found and found[-1][1] is None:
            found[-1] = (f"{found[-1][0]}\n{line}", None)
        else:
            found.append((line, call))
    return found


@lru_cache(maxsize=512)
def folded(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """As texts are compared: without case, marks apart from their letters (NFKD), without what is
    not seen; and of each character where the one that it comes from begins and ends in `text`.
    """
    if text.isascii() and "\\u" not in text:
        return text.casefold(), range(len(text)), range(1, len(text) + 1)
    letters: list[str] = []
    begins: list[int] = []
    ends: list[int] = []
    for unit in UNIT.finditer(text):
        one = chr(int(unit[0][2:], 16)) if len(unit[0]) > 1 else unit[0]
        plain = visible(
            unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", one).casefold())
        )
        letters.append(plain)
        begins += [unit.start()] * len(plain)
        ends += [unit.end()] * len(plain)
    return "".join(letters), begins, ends


def visible(text: str) -> str:
    """Without characters of no width: joiners, soft hyphens, marks of direction, variants."""
    if text.isascii():
        return text
    return "".join(
        one
        for one in text
        if unicodedata.category(one) != "Cf"
        and not ("\ufe00" <= one <= "\ufe0f" or one == "\u034f")
    )


def compared(value: str) -> str:
    """What is the same for all spellings of a value."""
    return " ".join(folded(value)[0].split())


def occurrences(text: str, value: str) -> Iterator[tuple[int, int]]:
    """Where `value` stands in `text`, in any spelling and not inside a longer word."""
    key = compared(value)
    before = BEFORE if key[:1].isalnum() else ""
    after = AFTER if key[-1:].isalnum() or unicodedata.combining(key[-1:] or " ") else ""
    words = r"\s+".join(map(re.escape, key.split()))
    whole, begins, ends = folded(text)
    for found in re.finditer(before + words + after, whole) if words else ():
        yield begins[found.start()], ends[found.end() - 1]


def replaced(text: str, value: str, placeholder: str) -> str:
    """`text` with `placeholder` for every occurrence of `value`."""
    done, place = [], 0
    for begin, end in occurrences(text, value):
        done += [text[place:begin], placeholder]
        place = end
    return "".join([*done, text[place:]])


def strings(value: Any) -> Iterator[str]:
    """Every text in a call's arguments, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for _, inner in sorted(value.items()):
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)


def with_strings(value: Any, replacements: Iterator[str]) -> Any:
    """The same arguments with other texts, in the order of `strings`."""
    if isinstance(value, str):
        return next(replacements)
    if isinstance(value, Mapping):
        return {key: with_strings(inner, replacements) for key, inner in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [with_strings(inner, replacements) for inner in value]
    return value


def own_words(words: Sequence[str]) -> Find:
    """The owner's, in any case and spelling."""
    return lambda text: [
        text[begin:end] for word in words for begin, end in occurrences(text, word)
    ]


def keys() -> Find:
    """Keys and passwords: what `detect-secrets` knows by its shape or by how random it is, and what
    somebody calls so. Nothing is looked up anywhere: verification is not called.
    """
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString

    entropy = Base64HighEntropyString()
    plugins: list[Any] = list(get_mapping_from_secret_type_to_class().values())
    shapes = [
        pattern
        for plugin in plugins
        if issubclass(plugin, RegexBasedDetector)
        for pattern in plugin().denylist
    ]

    def find(text: str) -> Iterator[str]:
        for pattern in shapes:
            yield from (found[0] for found in pattern.finditer(text))
        yield from SECRET.findall(text)
        for token in TOKEN.findall(text):
            mixed = re.search(r"\d", token) and re.search("[A-Za-z]", token)
            if mixed and entropy.calculate_shannon_entropy(token) > 3.5:
                yield token

    return find


def cards() -> Find:
    """Numbers of payment cards, by their check digit (Luhn)."""
    from stdnum import luhn

    return lambda text: [
        found for found in DIGITS.findall(text) if luhn.is_valid(re.sub("[ -]", "", found))
    ]


def accounts() -> Find:
    """International bank account numbers, by their check digits."""
    from stdnum import iban

    return lambda text: [found for found in ACCOUNT.findall(text) if iban.is_valid(found)]


def phones() -> Find:
    """Telephone numbers: international ones, and local ones of `REGIONS`."""
    import phonenumbers

    def find(text: str) -> Iterator[str]:
        if sum(letter.isdigit() for letter in text) < 7:  # most texts: nothing to look for
            return
        for region in REGIONS:
            for found in phonenumbers.PhoneNumberMatcher(text, region):
                yield found.raw_string

    return find


def addresses() -> Find:
    """Postal addresses."""
    import pyap

    def find(text: str) -> Iterator[str]:
        if not re.search(r"\d", text):
            return
        for country in ("US", "CA", "GB"):
            for found in pyap.parse(text, country=country):
                yield text[found.match_start : found.match_end]
        yield from (found[0] for found in STREET.finditer(text))

    return find


def names() -> Find:
    """Names of people: a first name of any language that `Faker` knows, or a title, with the
    capitalised words that follow it.
    """
    first, last, common = name_lists()

    def find(text: str) -> Iterator[str]:
        words = list(WORD.finditer(text))
        place = 0
        while place < len(words):
            end = name_end(text, words, place, first, last, common)
            if end > place:
                begin = place + (words[place][0].casefold() in TITLES)
                named = text[words[begin].start() : words[end - 1].end()]
                yield POSSESSIVE.sub("", named)
            place = max(end, place + 1)

    return find


def name_end(
    text: str,
    words: Sequence[re.Match[str]],
    place: int,
    first: frozenset[str],
    last: frozenset[str],
    common: frozenset[str],
) -> int:
    """Behind the last word of the name that begins at `place`; `place`: no name does."""
    word = POSSESSIVE.sub("", words[place][0])
    end = place + 1
    while (
        end < len(words) and words[end][0][:1].isupper() and joined(text, words[end - 1 : end + 1])
    ):
        end += 1
    titled = word.casefold() in TITLES and end > place + 1
    usual = word.casefold() in common
    begins = SENTENCE_END.search(text[: words[place].start()]) is not None
    capital = word[:1].isupper()
    known = (
        capital and word in first and (not usual or (end > place + 1 and words[end - 1][0] in last))
    )
    family = capital and word in last and not usual and not begins
    return end if titled or known or family else place


def joined(text: str, pair: Sequence[re.Match[str]]) -> bool:
    """Do two words stand beside each other with a space, or the dot of a title or an initial,
    between them? Any other dot ends a sentence.
    """
    gap, word = text[pair[0].end() : pair[1].start()], pair[0][0]
    return gap in (" ", "-") or (gap == ". " and (word.casefold() in TITLES or len(word) == 1))


@cache
def name_lists() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """First names, family names, and common words, which are no names by themselves."""
    import importlib
    import pkgutil

    import faker.providers.lorem as texts
    import faker.providers.person as people

    first: set[str] = set()
    last: set[str] = set()
    common: set[str] = set()
    for locale in pkgutil.iter_modules(texts.__path__):
        words = importlib.import_module(f"{texts.__name__}.{locale.name}").Provider.word_list
        common |= {word.casefold() for word in words}
    # "German" is a first name in one language, and a language in most sentences
    for language in people.Provider.language_names:
        common |= {word.casefold() for word in WORD.findall(language)}
    for locale in pkgutil.iter_modules(people.__path__):
        provider = importlib.import_module(f"{people.__name__}.{locale.name}").Provider
        for key in dir(provider):
            target = first if key.startswith("first_names") else last
            if key.startswith(("first_names", "last_names")):
                listed = getattr(provider, key)
                if isinstance(listed, Iterable) and not isinstance(listed, str):
                    target |= {one for one in listed if isinstance(one, str) and len(one) > 1}
    return frozenset(first), frozenset(last), frozenset(common)
