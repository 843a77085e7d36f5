"""Calendar files as entries: what happens when, repetitions included.

Knows iCalendar, through `icalendar` and `recurring-ical-events`. Knows nothing of who asks.
Always: a file that is damaged, and an entry that repeats too often to be told, are named and
leave the others as they are; a look takes no longer than `LOOK_S`.
"""

import datetime as dt
import os
import signal
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import icalendar
import recurring_ical_events

MAX_FILES, MAX_FILE, MAX_BYTES = 5000, 4 << 20, 16 << 20
MAX_STEPS = 200_000  # of one rule, from its first day to the last that is asked for
# of one entry's repetitions, of reading what changed, and of a whole look, less than a call has
SERIES_S, READ_S, LOOK_S = 1.0, 5.0, 8.0
PER_DAY = {"SECONDLY": 86_400, "MINUTELY": 1440, "HOURLY": 24}
DAY = dt.timedelta(days=1)


class Unreadable(Exception):
    """A file that is no calendar; the sentence is for its owner."""


class TooLong(BaseException):
    """Time is up. No `Exception`, which a library could catch on its way."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """Something that happens once."""

    start: dt.datetime  # local time; of a whole day its midnight
    end: dt.datetime
    title: str
    whole_days: bool = False
    place: str = ""
    calendar: str = ""  # the file's name
    busy: bool = True
    about: str = ""


@dataclass(slots=True)
class Found:
    """Entries of a time, and what could not be told."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


Series = tuple[str, Sequence[Any]]  # calendar's name; an entry and what was changed of it


def local(moment: dt.date) -> dt.datetime:
    """A moment in this machine's time; a time without a zone is that already."""
    if not isinstance(moment, dt.datetime):
        moment = dt.datetime.combine(moment, dt.time())
    return moment.astimezone()


def files(folders: Sequence[Path]) -> Iterator[Path]:
    """Calendar files below granted folders; links are not followed."""
    for folder in folders:
        for here, below, names in os.walk(folder, followlinks=False):
            below.sort()
            yield from (Path(here, name) for name in sorted(names) if name.lower().endswith(".ics"))


class Calendars:
    """The calendars of some folders, each file read anew when it changed."""

    def __init__(self) -> None:
        self._read = dict[tuple[str, int, int], list[list[Any]]]()
        self._too_long = set[tuple[str, int, int]]()

    def series(
        self, folders: Sequence[Path], own: str, seconds: float
    ) -> tuple[list[Series], list[str]]:
        """All entries with their changes, and what was left out. A file that alone takes too long
        is left out until it changes; one that there was no time left for is read the next time.

        Args:
            own: a calendar as text, beside those of the folders.
            seconds: for reading what changed.
        """
        ends = time.monotonic() + seconds
        found, left_out = list[Series](), list[str]()
        kept, size = dict[tuple[str, int, int], list[list[Any]]](), 0
        try:
            found += [("own", one) for one in parse(own, "own", seconds)] if own else []
        except (Unreadable, TooLong) as error:
            left_out.append(str(error) or "own: takes too long to read")
        for number, path in enumerate(files(folders)):
            try:
                about = path.lstat()
                size += about.st_size
                if number >= MAX_FILES or size > MAX_BYTES:
                    left_out.append(f"files after {path.name}: too many")
                    break
                if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE:
                    raise Unreadable(f"{path.name}: a link, no plain file, or larger than 4 MB")
                key = (str(path), about.st_mtime_ns, about.st_size)
                if key in self._too_long:
                    raise Unreadable(f"{path.name}: takes too long to read; split it")
                if key not in self._read:
                    text = path.read_bytes().decode("utf-8-sig", "replace")
                    left = ends - time.monotonic()
                    try:
                        self._read[key] = parse(text, path.name, left)
                    except TooLong:
                        if left < 0.9 * seconds:  # another had its time
                            raise Unreadable(f"{path.name}: not read yet; ask again") from None
                        self._too_long.add(key)
                        raise Unreadable(f"{path.name}: takes too long to read; split it") from None
                kept[key] = self._read[key]
                found += [(path.stem, one) for one in kept[key]]
            except (OSError, Unreadable) as error:
                left_out.append(str(error)[:200])
        self._read = kept
        return found, left_out


def parse(text: str, name: str, seconds: float) -> list[list[Any]]:
    """The entries of a file, those of one UID together.

    Raises:
        Unreadable: no calendar.
        TooLong: it takes longer than `seconds`.
    """
    try:
        with limited(seconds):
            calendars = icalendar.Calendar.from_ical(text, multiple=True)
            events = [event for one in calendars for event in one.walk("VEVENT")]
    except Exception as error:
        # the library raises what it stumbles over
        raise Unreadable(f"{name}: no calendar, or damaged ({type(error).__name__})") from None
    grouped: dict[str, list[Any]] = {}
    for number, event in enumerate(events):
        if event.get("DTSTART") is not None:
            grouped.setdefault(str(event.get("UID") or number), []).append(event)
    return list(grouped.values())


def between(series: Sequence[Series], start: dt.datetime, end: dt.datetime, ends: float) -> Found:
    """What happens from `start` until before `end`, in order; looked at until `ends` on the
    monotonic clock.
    """
    found = Found()
    for calendar, events in series:
        title = str(events[0].get("SUMMARY", "without a title"))[:80]
        try:
            if any(steps(event, end) > MAX_STEPS for event in events):
                raise TooLong
            if len(events) == 1 and not repeats(events[0]):
                happening = [events[0]]
            else:
                with limited(min(SERIES_S, ends - time.monotonic())):
                    whole = icalendar.Calendar()
                    whole.subcomponents.extend(events)
                    happening = recurring_ical_events.of(whole).between(start, end)
            entries = [entry_of(event, calendar) for event in happening]
        except TooLong:
            found.left_out.append(f"{calendar}: {title!r} repeats too often to be told")
        except Exception as error:
            found.left_out.append(f"{calendar}: {title!r} is damaged ({type(error).__name__})")
        else:
            found.entries += [
                one
                for one in entries
                if one.start < end and (one.end > start or one.start == one.end >= start)
            ]
    found.entries.sort()
    return found


def repeats(event: Any) -> bool:
    """Does it happen more than once?"""
    return any(name in event for name in ("RRULE", "RDATE"))


def rules(event: Any) -> list[Mapping[str, Any]]:
    """Its rules; one, mostly."""
    held = event.get("RRULE")
    return held if isinstance(held, list) else [held] if held else []


def steps(event: Any, end: dt.datetime) -> int:
    """How far a rule must be followed, from an entry's first day; an upper bound."""
    first = local(event["DTSTART"].dt)
    days, most = max(1, (end - first) // DAY + 1), 0
    for rule in rules(event):
        times = PER_DAY.get(str((rule.get("FREQ") or [""])[0]).upper(), 1)
        for name in ("BYHOUR", "BYMINUTE", "BYSECOND"):
            times *= max(1, len(rule.get(name) or []))
        interval = int((rule.get("INTERVAL") or [1])[0])
        most = max(most, days * times // max(1, interval))
    held = event.get("RDATE")
    dates = sum(
        len(one.dts) for one in (held if isinstance(held, list) else [held] if held else [])
    )
    return most + dates


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises: TooLong: what is inside takes longer."""
    if seconds <= 0:
        raise TooLong

    def over(_signal: int, _frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def entry_of(event: Any, calendar: str) -> Entry:
    """One occurrence."""
    begins = event["DTSTART"].dt
    whole_days = not isinstance(begins, dt.datetime)
    if "DTEND" in event:
        ends = event["DTEND"].dt
    elif "DURATION" in event:
        ends = begins + event["DURATION"].dt
    else:
        ends = begins + DAY if whole_days else begins
    start = local(begins)
    return Entry(
        start,
        max(start, local(ends)),
        " ".join(str(event.get("SUMMARY", "without a title")).split())[:200],
        whole_days,
        " ".join(str(event.get("LOCATION", "")).split())[:200],
        calendar,
        str(event.get("TRANSP", "")).upper() != "TRANSPARENT",
        str(event.get("DESCRIPTION", ""))[:2000],
    )


def free(
    entries: Sequence[Entry], start: dt.datetime, end: dt.datetime, length: dt.timedelta
) -> list[tuple[dt.datetime, dt.datetime]]:
    """Times from `start` to `end` of at least `length` in which nothing happens; whole days do not
    count.
    """
    found, since = [], start
    for entry in sorted(one for one in entries if one.busy and not one.whole_days):
        if entry.start - since >= length:
            found.append((since, min(entry.start, end)))
        since = max(since, entry.end)
    if end - since >= length:
        found.append((since, end))
    return found
