"""Text whose letters know whether the template wrote them.

Knows Python's text operations. Knows nothing of templates, roles or tokens.
Always: the value of every operation is Python's own; a letter counts as the template's only where
an operation here says which letter of its operands it is, and that one was. An operation that is
not here, in Python or in a library, gives plain text, of which no letter is the template's.

So what is forgotten here loses a mark and never makes one: a letter that a person wrote cannot
become the template's. (The other way round, with contents tracked, every forgotten operation would
be a hole.)
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, SupportsIndex

from markupsafe import Markup

FORMAT = re.compile(
    r"%(?:\([^()]*\))?[-#0 "
    r"+]*\d*(?:\.\d*)?[hlL]?([diouxXeEfFgGcrsa%])"
)  # `*` for a width is not read


class TemplateText(str):
    """A text of which some letters are the template's; it compares, hashes and prints as that
    text.
    """

    # bytes, one a letter: 1 = the template's; the underscore keeps it from templates
    __slots__ = ("_own",)
    _own: bytes

    def __new__(cls, text: str, own: bytes | None = None) -> Self:
        """`text`, all of it the template's unless `own` says otherwise."""
        self = str.__new__(cls, text)
        self._own = b"\x01" * len(text) if own is None else own
        if len(self._own) != len(text):
            raise RuntimeError(f"{len(text)} letters, {len(self._own)} marks")
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        # which escapes what it is added to
        ours = isinstance(other, str) and not isinstance(other, Markup)
        return traced(str.__add__(self, other), self._own + own(other)) if ours else NotImplemented

    def __radd__(self, other: str) -> str:
        return (
            traced(str.__add__(other, self), own(other) + self._own)
            if isinstance(other, str)
            else NotImplemented
        )

    def __mul__(self, times: SupportsIndex) -> str:
        return traced(str.__mul__(self, times), self._own * times)

    def __rmul__(self, times: SupportsIndex) -> str:
        return self * times

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        part = self._own[key]
        return traced(
            str.__getitem__(self, key), part if isinstance(part, bytes) else bytes([part])
        )

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def strip(self, chars: str | None = None, /) -> str:
        return self[len(self) - len(str.lstrip(self, chars)) :].rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> str:
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return list(self._found(str.split(self, sep, maxsplit), len(sep or "")))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return list(self._found(str.rsplit(self, sep, maxsplit), len(sep or "")))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return list(self._found(str.splitlines(self, keepends), 0))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        first, middle, last = self._found(str.partition(self, sep), 0)
        return first, middle, last

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        first, middle, last = self._found(str.rpartition(self, sep), 0)
        return first, middle, last

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        return traced(
            str.replace(self, old, new, count), b"".join(self._replaced(old, own(new), int(count)))
        )

    def join(self, items: Iterable[str], /) -> str:
        parts = list(items)
        return traced(str.join(self, parts), self._own.join(map(own, parts)))

    def lower(self) -> str:
        return self._cased(str.lower(self), str.lower)

    def upper(self) -> str:
        return self._cased(str.upper(self), str.upper)

    def swapcase(self) -> str:
        return self._cased(str.swapcase(self), str.swapcase)

    def casefold(self) -> str:
        return self._cased(str.casefold(self), str.casefold)

    def capitalize(self) -> str:
        return traced(str.capitalize(self), self._own)

    def title(self) -> str:
        return traced(str.title(self), self._own)

    def _cased(self, text: str, change: Callable[[str], str]) -> str:
        """A change of case, which each letter undergoes alone; some become two or three (ß, İ),
        none vanishes.
        """
        if len(text) == len(self):
            return traced(text, self._own)
        letters = str.__iter__(self)
        return traced(
            text,
            b"".join(
                bytes([mark]) * len(change(one))
                for one, mark in zip(letters, self._own, strict=True)
            ),
        )

    def _found(self, parts: Iterable[str], between: int) -> Iterator[str]:
        """Parts that stand in this order in the text, `between` letters apart; 0 = with anything
        between.
        """
        place = 0
        for part in parts:
            place = place if between else max(str.find(self, part, place), place)
            yield self[place : place + len(part)] if self.startswith(part, place) else part
            place += len(part) + between

    def _replaced(self, old: str, new: bytes, count: int) -> Iterator[bytes]:
        """Whose each letter is after a replacement: what takes the place of a person's letters
        is the template's no more.
        """
        place, times = 0, count if count >= 0 else len(self) + 1
        while times and 0 <= (at := str.find(self, old, place)) <= len(self):
            stop = at + (len(old) or 1)  # nothing stands before every letter, and at the end
            ours = bool(old) and 0 not in self._own[at:stop]
            yield (
                self._own[place:at]
                + (new if ours else bytes(len(new)))
                + (b"" if old else self._own[at:stop])
            )
            place, times = stop, times - 1
        yield self._own[place:]


def own(text: str) -> bytes:
    """One byte a letter: 1 = the template's."""
    return text._own if isinstance(text, TemplateText) else bytes(len(text))


def traced(text: str, marks: bytes) -> str:
    """`text` with its marks; plain text where it has none, or where they do not fit it."""
    fits = len(marks) == len(text) and b"\x01" in marks
    return TemplateText(text, marks) if fits else str.__str__(text)


def tracing(text: str) -> TemplateText:
    """The same text, so that its operations are those above: what they take from their arguments
    keeps its marks.
    """
    return text if isinstance(text, TemplateText) else TemplateText(text, bytes(len(text)))


def concat(parts: Iterable[str]) -> str:
    """The parts, one behind the other."""
    return tracing("").join(parts)


def same_places(before: Any, after: Any) -> Any:
    """`after` with the marks of `before`, for an operation that turns each letter into one letter.

    Hazard: the caller knows that of the operation; equal lengths alone do not prove it.
    """
    both = isinstance(before, TemplateText) and isinstance(after, str)
    return traced(after, before._own) if both else after


def percent(form: str, values: Any) -> str:
    """`form % values`."""
    whole = str.__mod__(form, values)
    left = iter(values if isinstance(values, tuple) else (values,))
    parts: list[str] = []
    place, text = 0, tracing(form)
    for found in FORMAT.finditer(form):
        parts.append(text[place : found.start()])
        place, spec = found.end(), found[0]
        value: Any = (
            values if isinstance(values, Mapping) else "" if found[1] == "%" else next(left, "")
        )
        plain = isinstance(value, TemplateText) and spec == "%s"
        parts.append(
            "%" if found[1] == "%" else value if plain else str.__mod__(spec, as_argument(value))
        )
    return traced(whole, own(made)) if (made := concat([*parts, text[place:]])) == whole else whole


def as_argument(value: Any) -> Any:
    """What stands right of a `%` for this one value."""
    return value if isinstance(value, Mapping) else (value,)
