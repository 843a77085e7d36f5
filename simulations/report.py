"""A run on a terminal: one line an event, one table at the end.

Knows how events and reports look. Knows nothing of how they came to be.
Always: an accuracy that stands beside round N is that of the adapter which round N started from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Table

from ..federation.events import (
    AbortedEvent,
    BallotsEvent,
    BucketsEvent,
    FederationEvent,
    RoundEvent,
    StoppedEvent,
    SuspectEvent,
    WaitingEvent,
)
from ..federation.rounds.report import privacy_sentence

KILO = 1000
SHOWN = 10  # values of a sample
FEW = 8  # parties of whom each is told
REASON = 60  # letters of why a run ended, in a table
ABREAST = 4  # results that stand beside each other; more of them below each other
FILE_WIDTH = 150  # characters
TOLD: tuple[type[FederationEvent], ...] = (  # of the coordinator's, beside rounds
    WaitingEvent,
    AbortedEvent,
    BallotsEvent,
    BucketsEvent,
    StoppedEvent,
    SuspectEvent,
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


def line(event: FederationEvent, rounds: int, *, modelled: bool = False) -> str | None:
    """One event as a line of text, or None if it is not worth one.

    Args:
        modelled: what was sent is without what protects it.
    """
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
            spent += "" if entry.get("clip") is None else f"   clip {entry['clip']:.3g}"
            loss = "–" if entry["loss"] is None else f"{entry['loss']:.3f}"
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
                f"loss {loss}   {len(entry['parties'])} nodes   "
                f"{size(sum(sent) / len(sent))} sent by each{', bare' if modelled else ''}   "
                f"{entry['seconds']:.1f} s, {entry['seconds'] - entry['work_seconds']:.2f} s of it "
                f"protection"
                f"{spent}{columns}{undone}"
            )
        case RoundEvent(entry=entry):
            return (
                f"  all rounds done   accuracy {percent(entry['accuracy'])} ({entry['scored']} "
                f"members)"
            )
        case BucketsEvent() | BallotsEvent():
            return f"  {event.price}"
        case SuspectEvent():
            return (
                f"  {event.member} was in a bad bucket in {event.blamed} of {event.rounds} rounds "
                f"(by chance: {event.chance:.1g})"
            )
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


class RunProgress:
    """A run while it goes on: a bar on a terminal, else a line a round."""

    def __init__(
        self, console: Console, rounds: int, parties: int, *, modelled: bool = False
    ) -> None:
        self.console, self.rounds, self.parties = console, rounds, parties
        self.modelled = modelled
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.whole = self.bars.add_task("rounds", total=rounds)
        self.part = self.bars.add_task("trained", total=parties or None)

    def __enter__(self) -> "RunProgress":
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def __call__(self, event: FederationEvent) -> None:
        """Take one event."""
        match event:
            case PartyPreparedEvent() if self.parties > FEW:
                return
            case PartyTrainedEvent():
                self.bars.advance(self.part)
                return
            case RoundEvent(name="round", entry=entry):
                self.bars.update(self.whole, completed=entry["round"])
                self.bars.reset(self.part, total=self.parties or None)
        if (text := line(event, self.rounds, modelled=self.modelled)) is not None:
            self.console.print(text)


# Rows of `show_results`: what each is called, and how it is read out of a result.
ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "parties": lambda one: str(one["parties"]),
    "values": lambda one: f"{one['values']:,}",
    "protection": lambda one: protection_words(one["scenario"]),
    "rounds": lambda one: f"{len(one['rounds'])} of {one['scenario']['recipe']['rounds']}",
    "accuracy before": lambda one: percent(one["accuracy"]["before"]),
    "accuracy after": lambda one: percent(one["accuracy"]["after"]),
    "parties' own, least": lambda one: of_spread(one, "least"),
    "parties' own, median": lambda one: of_spread(one, "median"),
    "parties' own, most": lambda one: of_spread(one, "most"),
    "personal, mean": lambda one: of_personal(one, "personal"),
    "alone, mean": lambda one: of_personal(one, "alone"),
    "triggered": lambda one: percent(one["attack_success"]),
    "epsilon": lambda one: "–" if one["privacy"] is None else f"{one['privacy']['epsilon']:.3g}",
    "in a sum, mean": lambda one: mean_words(one, "parties", "{:.1f}"),
    "sent by a party, a round": lambda one: bytes_words(one, "bytes_up"),
    "sent to a party, a round": lambda one: bytes_words(one, "bytes_down"),
    "votes of a party, a round": lambda one: bytes_words(one, "vote_bytes"),
    "a round, s": lambda one: mean_words(one, "seconds", "{:.3g}"),
    "whole run, s": lambda one: whole(one, "seconds"),
    "whole run, processor s": lambda one: whole(one, "processor_s"),
    "suspected": lambda one: ", ".join(who["member"] for who in one.get("suspects", ())) or "–",
    "attempts without a sum": lambda one: str(len(one["aborted"])),
    "ended early": lambda one: shortened(one["failed"] or one["stopped"]),
}


# Those that are shown of many.
BRIEF = (
    "parties",
    "protection",
    "accuracy after",
    "parties' own, least",
    "personal, mean",
    "triggered",
    "epsilon",
    "in a sum, mean",
    "sent by a party, a round",
    "a round, s",
    "ended early",
)


def protection_words(scenario: Mapping[str, Any]) -> str:
    """The mode, and whether it was run."""
    mode: str = scenario["protection"]["mode"]
    return f"{mode}, modelled" if scenario["protection_cost"] == "modelled" else mode


def shortened(words: str) -> str:
    """The beginning of a reason; the file has all of it."""
    return words if 0 < len(words) <= REASON else f"{words[:REASON]}…" if words else "–"


def of_spread(one: Mapping[str, Any], which: str) -> str:
    """One number of the parties' own accuracies."""
    return percent(one["spread"] and one["spread"][which])


def of_personal(one: Mapping[str, Any], arm: str) -> str:
    """The mean of one arm of the personal ones."""
    return percent(one["personal"] and one["personal"][arm]["mean"])


def mean_words(one: Mapping[str, Any], key: str, words: str) -> str:
    """The mean of a round's number."""
    values = [entry[key] for entry in one["rounds"]]
    return words.format(sum(values) / len(values)) if values else "–"


def whole(one: Mapping[str, Any], key: str) -> str:
    """Seconds of a whole run, where they were taken: not of other processes, nor of a run that was
    ended and went on.
    """
    return "–" if one[key] is None or one.get("resumed") else f"{one[key]:.3g}"


def bytes_words(one: Mapping[str, Any], key: str) -> str:
    """Bytes of a round; what was computed and not sent is marked."""
    values = [entry.get(key, 0.0) for entry in one["rounds"]]
    marked = " computed" if one["bytes_computed"] else ""
    return size(sum(values) / len(values)) + marked if values else "–"


def title_of(one: Mapping[str, Any]) -> str:
    """Scenario and arm."""
    return f"{one['name']} {one['arm']}".strip()


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """What results say side by side: rows that one of them has something for."""
    rows = [(name, [cell(one) for one in results]) for name, cell in ROWS.items()]
    return [(name, cells) for name, cells in rows if any(cell != "–" for cell in cells)]


def show_results(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    """A column a result; of many a row each, of what tells them apart."""
    table, rows, titles = Table(box=None), rows_of(results), [title_of(one) for one in results]
    table.add_column("", no_wrap=True)
    if len(results) <= ABREAST:
        for title in titles:
            table.add_column(title, justify="right")
        for name, cells in rows:
            table.add_row(name, *cells)
    else:
        telling = [(name, cells) for name, cells in rows if name in BRIEF and len(set(cells)) > 1]
        for name, _ in telling:
            table.add_column(name, justify="right")
        for number, title in enumerate(titles):
            table.add_row(title, *(cells[number] for _, cells in telling))
    console.print(table)
    for one in results:
        if one.get("computed"):
            console.print(
                f"[bold]{title_of(one)}[/bold]: computed from measured unit costs, not run"
            )
            for words, value in computed_words(one["computed"]):
                console.print(f"  {words}: {value}")
        if len(results) == 1:
            show_held(console, one["held"])


def computed_words(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A computed federation in words."""
    cost, risk = found["round"], found["too_few_stay_log10"]
    return [
        ("parties, of them drawn for a round", f"{found['parties']:,}, {found['cohort']:,}"),
        ("rounds; a party is in", f"{found['rounds']}; {found['drawn_in_the_mean']:.3g}"),
        ("parties that are never drawn", percent(found["never_drawn_share"])),
        ("neighbours of a member, of whom so many rebuild its secrets",
         f"{cost['neighbours']}, {cost['share_threshold']}"),
        ("chance that too few stay", "none" if risk is None else f"10^{risk:.0f}"),
        ("a member's round", f"at least {cost['member_s']:.3g} processor s, "
         f"{size(cost['member_up_bytes'])} sent, {size(cost['member_down_bytes'])} received"),
        ("the coordinator's round", f"at least {cost['coordinator_s']:.3g} processor s"),
        ("a member's whole run", f"at least {found['member_whole_s']:.3g} processor s, "
         f"{size(found['member_whole_bytes'])}"),
        ("the coordinator's whole run", f"at least {found['coordinator_whole_s']:.3g} processor s, "
         f"{size(found['coordinator_whole_bytes'])}"),
    ]  # fmt: skip
