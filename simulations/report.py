"""A run on a terminal: one line an event, one table at the end.

Knows how events and reports look. Knows nothing of how they came to be.
Always: an accuracy that stands beside round N is that of the adapter which round N started from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ..federation.events import (
    AbortedEvent,
    BucketsEvent,
    FederationEvent,
    RoundEvent,
    StoppedEvent,
    WaitingEvent,
)
from ..federation.rounds.report import privacy_sentence

KILO = 1000
SHOWN = 10  # values of a sample
FILE_WIDTH = 150  # characters
TOLD: tuple[type[FederationEvent], ...] = (  # of the coordinator's, beside rounds
    WaitingEvent,
    AbortedEvent,
    BucketsEvent,
    StoppedEvent,
)


@dataclass(frozen=True, kw_only=True)
class PartyPreparedEvent(FederationEvent):
    """A party of a simulation has its examples."""

    kind, written = "preparing", False
    party: str
    train: int
    test: int


@dataclass(frozen=True, kw_only=True)
class PartyTrainedEvent(FederationEvent):
    """A party of a simulation has trained."""

    kind = "trained"
    party: str
    round: int


def percent(share: float | None) -> str:
    """A share as readers expect it; a dash if it was not measured."""
    return "–" if share is None else f"{100 * share:.1f} %"


def size(count: float) -> str:
    """Bytes in kilo- or megabytes of 1000."""
    return f"{count / KILO**2:.2f} MB" if count >= KILO**2 else f"{count / KILO:.0f} kB"


def line(event: FederationEvent, rounds: int) -> str | None:
    """One event as a line of text, or None if it is not worth one."""
    match event:
        case PartyPreparedEvent():
            return f"  {event.party}: {event.train} requests to learn from, {event.test} held out"
        case WaitingEvent():
            return f"  {event.present} of {event.roster} nodes are there"
        case AbortedEvent():
            return f"  round {event.round} abandoned: {event.reason}"
        case RoundEvent(name="round", entry=entry):
            sent = list(entry["bytes_up"].values())
            spent = "" if entry.get("epsilon") is None else f"   epsilon {entry['epsilon']:.2f}"
            behind = entry.get("columns") or {}
            columns = (
                (f"   ranks {'/'.join(behind)} by {'/'.join(map(str, behind.values()))}")
                if behind
                else ""
            )
            guard = entry.get("guard") or {"kept": True}
            undone = "" if guard["kept"] else f"   {guard['reason']}"
            return (
                f"  round {entry['round']:>2}/{rounds}   accuracy so far "
                f"{percent(entry['accuracy']):>7}   "
                f"loss {entry['loss'] or 0:.3f}   {len(entry['parties'])} nodes   "
                f"{size(sum(sent) / len(sent))} sent by each   "
                f"{entry['seconds']:.1f} s, {entry['seconds'] - entry['work_seconds']:.2f} s of it "
                f"protection"
                f"{spent}{columns}{undone}"
            )
        case RoundEvent(entry=entry):
            return (
                f"  all rounds done   accuracy {percent(entry['accuracy'])} ({entry['scored']} "
                f"members)"
            )
        case BucketsEvent():
            return f"  {event.price}"
        case StoppedEvent():
            return f"  stopped after round {event.round}: {event.reason}"
    return None


def line_of(table: Mapping[str, Any], rounds: int) -> str | None:
    """The same of an event as another process told it, in JSON's types."""
    fields = dict(table)
    name = fields.pop("event")
    if name in ("round", "score"):
        return line(RoundEvent(late=fields.pop("late", None), entry=fields), rounds)
    kind = next((kind for kind in TOLD if kind.kind == name), None)
    return None if kind is None else line(kind(**fields), rounds)


def show_run(console: Console, report: Mapping[str, Any]) -> None:
    """The table at the end of a run.

    Args:
        report: a `RunReport` as a table of JSON's types.
    """
    accuracy = report["accuracy"]
    table = Table(
        title=f"{report['name']}: what came out", box=None, title_justify="left", show_header=False
    )
    table.add_row("exact match on held-out requests, before", percent(accuracy["before"]))
    table.add_row("exact match on held-out requests, after", percent(accuracy["after"]))
    table.add_row("rounds", str(report["rounds"]))
    table.add_row("nodes", str(report["nodes"]))
    table.add_row("sent by a node in a round", size(report["bytes_per_node_round"]))
    table.add_row("protection", f"{report['protection']}, {report['bits']} bits a value")
    if report["privacy"] is not None:
        table.add_row("privacy", privacy_sentence(report["privacy"]))
    undone = sum(not entry["guard"]["kept"] for entry in report["history"] if entry.get("guard"))
    if undone:
        table.add_row("rounds that members undid", str(undone))
    table.add_row("seconds", f"{report['seconds']:.1f}")
    if report["stopped"]:
        table.add_row("stopped", report["stopped"])
    for reason in report["aborted"]:
        table.add_row("abandoned", reason)
    console.print(table)
    show_held(console, report["held"])


def show_held(console: Console, held: Mapping[str, Any]) -> None:
    """What the coordinator held of one node, beside the sum."""
    if not held:
        return
    table = Table(
        title="what the coordinator held in the last round", box=None, title_justify="left"
    )
    for column in ("", "first values", "entropy, bits", "chi² per degree (noise: about 1)"):
        table.add_column(column)
    entropy = f"{held['entropy_bits']:.3f} of {held['entropy_bits_of_uniform']:.0f}"
    table.add_row(
        f"one node's update, {held['kind']}",
        numbers(held["words"]),
        entropy,
        f"{held['chi_square_per_degree']:.2f}",
    )
    table.add_row("the sum of all", numbers(held["sum_words"]), "", "")
    console.print(table)


def numbers(words: Sequence[int]) -> str:
    """The first few, in columns."""
    return " ".join(f"{word:>4}" for word in words[:SHOWN])


def wide_console() -> Console:
    """A terminal as it is; a file or a pipe wide enough that no line is broken."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=FILE_WIDTH)
