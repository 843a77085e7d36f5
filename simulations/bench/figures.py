"""What a suite found, with what it aimed at: rows of a table, keys of a JSON file.

Knows names, units and aims. Knows nothing of how anything was measured.
Always: a missed aim is said, with by how much.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command's help needs no package
    from rich.console import Console

UNFOLDED = 200  # columns of a table that no terminal's width folds


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: where its number stands in the report, and what it should be."""

    key: str  # dotted, for example "end_to_end.20.client_s"
    unit: str
    meaning: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def aim(self) -> str:
        """For people."""
        return (
            f"≤ {self.at_most:g}"
            if self.at_most is not None
            else f"≥ {self.at_least:g}"
            if self.at_least is not None
            else ""
        )

    def missed(self, value: float) -> str:
        """By how much, or nothing."""
        if self.at_most is not None and value > self.at_most:
            over = f"{100 * (value / self.at_most - 1):.0f} %" if self.at_most else f"{value:g}"
            return f"missed by {over}"
        if self.at_least is not None and value < self.at_least:
            return f"missed by {100 * (1 - value / self.at_least):.0f} %"
        return ""


def look_up(report: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key. Raises KeyError if the report has none."""
    value: Any = report
    for part in key.split("."):
        value = value[part]
    return value


NINETEEN_IN_TWENTY = 1.96  # standard deviations


def put_share(report: dict[str, Any], key: str, hits: Sequence[bool]) -> None:
    """A share at a dotted key of a report, and under `spread` between what the share of all such
    cases lies, nineteen times in twenty: few cases are told as what they are.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    *outer, inner = key.split(".")
    place, count = report, len(hits)
    for part in outer:
        place = place.setdefault(part, {})
    share = place[inner] = sum(hits) / count
    spread = NINETEEN_IN_TWENTY**2 / count
    middle = (share + spread / 2) / (1 + spread)
    off = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    report["spread"][key] = [min(share, max(0.0, middle - off)), max(share, min(1.0, middle + off))]


Keep = Callable[[dict[str, Any]], None]  # hears a report after each part that was measured


def nobody(report: dict[str, Any]) -> None:
    """Keeps nothing: for whoever only wants the whole report."""


Figures = Callable[[dict[str, Any]], Iterable[Figure]]  # of a report, a suite's rows


def so_far(report: dict[str, Any], figures: Figures) -> list[Figure]:
    """Those of a suite's figures that an unfinished report has already."""
    found = []
    try:
        for figure in figures(report):  # it may look into the report to know which there are
            if has(report, figure.key):
                found.append(figure)
    except KeyError:
        pass  # what this row and those after it need has not been measured yet
    return found


def has(report: Mapping[str, Any], key: str) -> bool:
    """Does a report have this figure?"""
    try:
        return look_up(report, key) is not None
    except KeyError:
        return False


def misses(report: Mapping[str, Any], figures: Sequence[Figure]) -> dict[str, str]:
    """Keys whose aim was missed, and by how much."""
    found = {figure.key: figure.missed(look_up(report, figure.key)) for figure in figures}
    return {key: words for key, words in found.items() if words}


def show(console: "Console", report: Mapping[str, Any], figures: Sequence[Figure]) -> None:
    """The table, under the line of the machine. A quick run is not judged."""
    from rich.table import Table

    table = Table("figure", "median", "spread", "unit", "aim", "", box=None)
    for figure in figures:
        low_high, value = report["spread"].get(figure.key), look_up(report, figure.key)
        spread = f"{number(low_high[0])} … {number(low_high[1])}" if low_high else ""
        missed = report["aims_missed"].get(figure.key)
        words = (
            f"[red]{missed}[/red]"
            if missed
            else "met"
            if figure.aim and not report["quick"]
            else ""
        )
        table.add_row(figure.meaning, number(value), spread, figure.unit, figure.aim, words)
    console.print(f"[bold]{report['suite']}[/bold]  {report['machine']}", soft_wrap=True)
    repeats = ", ".join(f"{name} {times}" for name, times in report["repeats"].items())
    how = f"seed {report['seed']}; {report['clock']}; interleaved repeats: {repeats}"
    console.print(f"{report['what']}; {how}", soft_wrap=True)
    if report["quick"]:
        console.print("[bold]a quick run: these figures mean nothing[/bold]")
    if not console.is_terminal:
        console.width = UNFOLDED  # in a file a row is a line
    console.print(table, soft_wrap=True)
    for part, why in report.get("failed", {}).items():
        console.print(f"part {part} failed: {why}", soft_wrap=True, markup=False)
    console.print(f"exact everywhere: {'yes' if report['exact'] else '[red]NO[/red]'}")


def number(value: float | str) -> str:
    """Three digits that matter; words as they are, where an engine has no figure."""
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def rounded(value: Any, digits: int = 5) -> Any:
    """The same report with every float cut to `digits` digits that matter: the clock knows no
    more.
    """
    if isinstance(value, Mapping):
        return {key: rounded(part, digits) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part, digits) for part in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
