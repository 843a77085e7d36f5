"""The calendar plugin: what happens when, what is free, and new entries.

Runs inside a sandbox, on the kit and on two libraries. It reads the .ics files of the folders that
its owner granted. What it adds lies in a file of its own, in the folder `added` if its owner grants
that for writing, else in its storage.
Always: no other file is changed; a refused request changes nothing.
"""

import datetime as dt
import os
import stat
import time
import uuid
from collections.abc import Sequence
from typing import Any

import icalendar
from quietchoir_sdk import DATA, Storage, ToolFailure, paged, serve, tool, write_whole  # type: ignore[import-not-found]

from .entries import (
    LOOK_S,
    MAX_FILE,
    READ_S,
    Calendars,
    Entry,
    Found,
    TooLong,
    between,
    free,
    limited,
    local,
)

MAX_DAYS, MAX_OWN, MAX_TOLD = 400, 2000, 10
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
ADDED = DATA / "added" / "quietchoir.ics"
storage = Storage()
calendars = Calendars()


def moment(text: str, what: str) -> tuple[dt.datetime, bool]:
    """A time as people and models write it, and whether it is a whole day.

    Raises:
        ToolFailure: it is none; says what is expected.
    """
    words, today = text.strip().lower(), dt.date.today()
    named = {"": 0, "today": 0, "now": 0, "tomorrow": 1, "yesterday": -1}
    if words in named:
        return local(today + dt.timedelta(days=named[words])), True
    if words in WEEKDAYS:
        ahead = (WEEKDAYS.index(words) - today.weekday()) % 7
        return local(today + dt.timedelta(days=ahead)), True
    try:
        if len(words) <= 10:
            return local(dt.date.fromisoformat(words)), True
        return local(dt.datetime.fromisoformat(text.strip())), False
    except (ValueError, OverflowError):
        raise ToolFailure(
            f"{what} {text[:40]!r} is no time; expected 2026-12-24, 2026-12-24 18:00, today, "
            f"tomorrow or a weekday"
        ) from None


def own() -> str:
    """The plugin's own calendar, as text. ToolFailure: its file cannot be read, or is none."""
    if not ADDED.parent.is_dir():
        return str((storage.value or {}).get("ics", ""))
    if not os.path.lexists(ADDED):
        return ""
    about = ADDED.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE:
        raise ToolFailure(f"{ADDED.name} is a link, no plain file, or larger than 4 MB")
    try:
        return str(ADDED.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ToolFailure(f"{ADDED.name} cannot be read ({type(error).__name__})") from None


def own_calendar() -> Any:
    """The plugin's own calendar. ToolFailure: its file is damaged."""
    if text := own():
        try:
            with limited(READ_S):
                return icalendar.Calendar.from_ical(text)
        except TooLong:
            raise ToolFailure(
                f"{ADDED.name} takes too long to read; its owner must split it"
            ) from None
        except ValueError:
            raise ToolFailure(f"{ADDED.name} is damaged; its owner must mend or move it") from None
    fresh: Any = icalendar.Calendar()
    fresh.add("PRODID", "-//quietchoir//calendar//")
    fresh.add("VERSION", "2.0")
    return fresh


def keep(calendar: Any) -> None:
    """Write it, whole or not at all. ToolFailure: there is no room, or no right to."""
    content = calendar.to_ical()
    if not ADDED.parent.is_dir():
        storage.save({"ics": content.decode()})
        return
    try:
        write_whole(ADDED, content)
    except OSError as error:
        raise ToolFailure(f"{ADDED.name} was not written ({error.strerror})") from None


def look(start: dt.datetime, days: int) -> Found:
    """What happens from `start` on."""
    if not 1 <= days <= MAX_DAYS:
        raise ToolFailure(f"days is {days}; expected 1 to {MAX_DAYS}")
    folders = sorted(DATA.iterdir()) if DATA.is_dir() else []
    theirs = [folder for folder in folders if folder != ADDED.parent]
    ends = time.monotonic() + LOOK_S
    series, left_out = calendars.series(theirs, own(), READ_S)
    try:
        found = between(series, start, start + dt.timedelta(days=days), ends)
    except OverflowError:
        raise ToolFailure(f"{start:%Y-%m-%d} is too far away") from None
    found.left_out += left_out
    if not series and not left_out and not folders:
        found.left_out.append(
            "no calendar is granted to this plugin; its owner can: quietchoir plugin grant "
            "quietchoir/calendar --read calendars=FOLDER"
        )
    return found


def told(entry: Entry) -> str:
    """One entry on one line."""
    if entry.whole_days:
        last = entry.end - dt.timedelta(days=1)
        when = f"{entry.start:%a %Y-%m-%d}"
        when += f" to {last:%Y-%m-%d}" if last.date() > entry.start.date() else " all day"
    else:
        until = "%H:%M" if entry.end.date() == entry.start.date() else "%Y-%m-%d %H:%M"
        when = f"{entry.start:%a %Y-%m-%d %H:%M} to {entry.end:{until}}"
    at = f", {entry.place}" if entry.place else ""
    return f"{when}: {entry.title}{at} ({entry.calendar})"


def answer(lines: Sequence[str], found: Found, page: int, nothing: str) -> str:
    """Lines, and what was left out."""
    left_out = [f"(left out: {reason})" for reason in found.left_out[:MAX_TOLD]]
    if len(found.left_out) > MAX_TOLD:
        left_out.append(f"(and {len(found.left_out) - MAX_TOLD} more left out)")
    return str(paged([*(lines or [nothing]), *left_out], page))


@tool(read_only=True)  # type: ignore[untyped-decorator]
def calendar_list(start: str = "today", days: int = 7, page: int = 1) -> str:
    """What is in the calendar, from a day on; start is for example today, friday or 2026-12-24."""
    begin, _ = moment(start, "start")
    found = look(begin, days)
    return answer(
        [told(one) for one in found.entries], found, page, f"Nothing in {days} days from {start}."
    )


@tool(read_only=True)  # type: ignore[untyped-decorator]
def calendar_search(text: str, start: str = "today", days: int = 365, page: int = 1) -> str:
    """Find entries by a word in their title, place or description."""
    wanted = text.strip().casefold()
    if not wanted:
        raise ToolFailure("say what to look for")
    begin, _ = moment(start, "start")
    found = look(begin, days)
    hits = [
        told(one)
        for one in found.entries
        if wanted in f"{one.title}\n{one.place}\n{one.about}".casefold()
    ]
    return answer(hits, found, page, f"Nothing with {text[:60]!r} in {days} days from {start}.")


@tool(read_only=True)  # type: ignore[untyped-decorator]
def calendar_free(
    start: str = "today",
    days: int = 1,
    minutes: int = 60,
    from_hour: int = 8,
    to_hour: int = 18,
    page: int = 1,
) -> str:
    """Times in which nothing is planned, of at least so many minutes, between two hours of each
    day.
    """
    if not 0 <= from_hour < to_hour <= 24 or not 1 <= minutes <= 1440:
        raise ToolFailure("expected hours from 0 to 24, the first one less, and 1 to 1440 minutes")
    begin, _ = moment(start, "start")
    day = begin.date()
    found = look(local(day), min(days, 31))
    lines = []
    for one in (day + dt.timedelta(days=number) for number in range(min(days, 31))):
        opens, closes = (
            (dt.datetime.combine(one, dt.time()) + dt.timedelta(hours=hour)).astimezone()
            for hour in (from_hour, to_hour)
        )
        for since, until in free(found.entries, opens, closes, dt.timedelta(minutes=minutes)):
            lines.append(f"{since:%a %Y-%m-%d %H:%M} to {until:%H:%M}")
    return answer(lines, found, page, f"No {minutes} minutes are free then.")


@tool  # type: ignore[untyped-decorator]
def calendar_add(title: str, start: str, end: str = "", place: str = "") -> str:
    """Add an entry to the assistant's own calendar, for example title Dentist, start 2026-12-24
    15:00, end 2026-12-24 16:00. A start without an hour is a whole day.
    """
    words = " ".join(title.split())
    if not 1 <= len(words) <= 200:
        raise ToolFailure("a title has 1 to 200 characters")
    begins, whole = moment(start, "start")
    event: Any = icalendar.Event()
    event.add("UID", str(uuid.uuid4()))
    event.add("DTSTAMP", dt.datetime.now(dt.UTC))
    event.add("SUMMARY", words)
    if place.strip():
        event.add("LOCATION", " ".join(place.split())[:200])
    ends = begins + dt.timedelta(days=1 if whole else 0, hours=0 if whole else 1)
    if end.strip():
        ends, ends_whole = moment(end, "end")
        if whole != ends_whole:
            raise ToolFailure("start and end: both with an hour, or both without")
        if ends < begins or (ends == begins and not whole):
            raise ToolFailure(f"it would end ({end}) before it begins ({start})")
        ends += dt.timedelta(days=1 if whole else 0)  # the last day is in it
    for name, value in (("DTSTART", begins), ("DTEND", ends)):
        event.add(name, value.date() if whole else value.astimezone(dt.UTC))
    held = own_calendar()
    if len(held.subcomponents) >= MAX_OWN:
        raise ToolFailure(f"{MAX_OWN} entries are kept already")
    held.add_component(event)
    keep(held)
    return f"Added {told(Entry(begins, ends, words, whole, place.strip(), 'own'))}."


@tool  # type: ignore[untyped-decorator]
def calendar_remove(title: str, start: str) -> str:
    """Remove an entry that the assistant added, by its title and the day or time it starts."""
    begins, whole = moment(start, "start")
    held = own_calendar()
    wanted = " ".join(title.split()).casefold()
    for event in list(held.subcomponents):
        when = local(event["DTSTART"].dt)
        same = when.date() == begins.date() if whole else when == begins
        if same and str(event.get("SUMMARY", "")).casefold() == wanted:
            held.subcomponents.remove(event)
            keep(held)
            return f"Removed {title} of {when:%Y-%m-%d}."
    raise ToolFailure(
        f"no entry {title[:60]!r} of that day is among those that the assistant added; others are "
        f"their owner's to remove"
    )


if __name__ == "__main__":
    serve("quietchoir/calendar", "0.1.0")
