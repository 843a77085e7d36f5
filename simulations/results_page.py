"""Results of simulations for people: one page that needs nothing else, and the same as Markdown.

    FOLDER/report.html      pictures and all in one file
    FOLDER/report.md        with the pictures beside it, as SVG

Knows results and how to draw them. Measures nothing.
Always: what is drawn is in the files that were named; what was computed and not run says so; the
page fetches nothing from anywhere.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import paths
from ..core.errors import ConfigError
from .report import computed_words, rows_of, title_of
from .scenario import as_toml

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = Mapping[str, Any]
COLOURS = ("#2f6fdb", "#d9792b", "#2c8a57", "#a23b72", "#5b6675", "#b8860b", "#3aa6b9", "#7a5cc0")
WIDTH, HEIGHT, BAR, ABOVE = 7.2, 3.4, 0.42, 0.9  # inches
STYLES = ("-", "--", ":")  # of lines, one after the other when colours are used up
PER_CENT = 100.0
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d232b; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e3e6ea;
         vertical-align: top }
th:first-child, td:first-child { text-align: left }
figure { margin: 2rem 0 } figure svg { max-width: 100%; height: auto }
figcaption, .aside { color: #5b6675 } pre { overflow-x: auto; background: #f5f6f8; padding: 1rem }
"""


def write(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write both; return what was written.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to show.
        QuietchoirError: the disk refused; no half of a file stays.
    """
    if not results:
        raise ConfigError("no results; make some with `quietchoir simulate run`")
    if find_spec("matplotlib") is None:
        raise ConfigError("pictures need matplotlib; run: pip install 'quietchoir[bench]'")
    pictures = {
        name: (caption, draw_svg(draw, results))
        for name, (caption, wanted, draw) in PICTURES.items()
        if any(wanted(one) for one in results)
    }
    files = {
        folder / "report.html": page(results, pictures).encode(),
        folder / "report.md": markdown(results, pictures).encode(),
        **{folder / f"{name}.svg": svg.encode() for name, (_, svg) in pictures.items()},
    }
    paths.write_together(files)
    return list(files)


def draw_svg(draw: "Callable[[Axes, Sequence[Result]], None]", results: Sequence[Result]) -> str:
    """One picture as SVG without a head, its ids its own."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": draw.__name__}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        draw(axes, results)
        axes.spines[["top", "right"]].set_visible(False)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    svg = target.getvalue()
    return svg[svg.index("<svg") :]


def accuracy_picture(axes: "Axes", results: Sequence[Result]) -> None:
    """Over rounds."""
    for look, one in looks(results):
        rounds = [at for at, _ in one["curve"]]
        shares = [PER_CENT * share for _, share in one["curve"]]
        axes.plot(rounds, shares, marker="o", markersize=3, label=title_of(one), **look)
    axes.set_xlabel("rounds done")
    axes.set_ylabel("accuracy on held-out examples, %")
    axes.set_ylim(bottom=0)
    legend(axes, results)


def epsilon_picture(axes: "Axes", results: Sequence[Result]) -> None:
    """Privacy spent, over rounds."""
    for look, one in looks(results):
        points = [(line["round"], line["epsilon"]) for line in one["rounds"]]
        known = [(at, spent) for at, spent in points if spent is not None]
        if known:
            axes.plot(*zip(*known, strict=True), label=title_of(one), **look)
    axes.set_xlabel("rounds done")
    axes.set_ylabel("epsilon spent")
    axes.set_ylim(bottom=0)
    legend(axes, results)


def spread_picture(axes: "Axes", results: Sequence[Result]) -> None:
    """Each party's accuracy on its own held-out examples."""
    shown = [one for one in results if one["spread"]]
    keys = {
        "whislo": "least",
        "q1": "first_quarter",
        "med": "median",
        "q3": "third_quarter",
        "whishi": "most",
    }
    boxes = [
        {to: PER_CENT * one["spread"][of] for to, of in keys.items()} | {"label": title_of(one)}
        for one in shown
    ]
    as_tall_as(axes, len(shown))
    axes.bxp(boxes, showfliers=False, orientation="horizontal", widths=BAR)
    axes.invert_yaxis()
    axes.set_xlabel("a party's accuracy on its own held-out examples, %")


def bars(
    axes: "Axes", results: Sequence[Result], parts: Mapping[str, Callable[[Result], float | None]]
) -> None:
    """A row a result, in it a bar a part."""
    height = 0.8 / len(parts)
    as_tall_as(axes, len(results))
    for number, (words, read) in enumerate(parts.items()):
        values = [read(one) for one in results]
        places = [row + (number - (len(parts) - 1) / 2) * height for row in range(len(results))]
        lengths = [value or 0.0 for value in values]
        drawn = axes.barh(places, lengths, height * 0.9, color=COLOURS[number], label=words)
        told = ["" if value is None else f"{value:.3g}" for value in values]
        axes.bar_label(drawn, told, padding=3, fontsize="small")
    axes.set_yticks(range(len(results)), [title_of(one) for one in results])
    axes.margins(x=0.12)
    axes.invert_yaxis()
    if len(parts) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def as_tall_as(axes: "Axes", rows: int) -> None:
    """As tall as so many rows need."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(WIDTH, ABOVE + BAR * max(2, rows))


def bytes_picture(axes: "Axes", results: Sequence[Result]) -> None:
    """Of a party in a round."""
    bars(
        axes,
        [one for one in results if one["rounds"]],
        {
            "sent": lambda one: mean(one, "bytes_up") / 1000,
            "received": lambda one: mean(one, "bytes_down") / 1000,
        },
    )
    axes.set_xlabel("kB a party and round")


def seconds_picture(axes: "Axes", results: Sequence[Result]) -> None:
    """Of a round, all parties in one process."""
    bars(
        axes,
        [one for one in results if one["rounds"]],
        {
            "learning": lambda one: mean(one, "work_seconds"),
            "the rest": lambda one: mean(one, "seconds") - mean(one, "work_seconds"),
        },
    )
    axes.set_xlabel("seconds a round, all parties in this process")


def attack_picture(axes: "Axes", results: Sequence[Result]) -> None:
    """What attackers got, beside the same scenarios without them."""
    attacked = {one["name"] for one in results if one["scenario"]["attack"]}
    bars(
        axes,
        [one for one in results if one["name"] in attacked],
        {
            "accuracy": lambda one: PER_CENT * (one["accuracy"]["after"] or 0.0),
            "triggered": triggered,
        },
    )
    axes.set_xlabel("%: right answers, and triggered requests answered as attackers want")


def personal_picture(axes: "Axes", results: Sequence[Result]) -> None:
    """What a party makes of it by itself."""
    shown = [one for one in results if one["personal"]]
    bars(axes, shown, {arm: partial(personal_mean, arm) for arm in ("alone", "shared", "personal")})
    axes.set_xlabel("mean accuracy on a party's own held-out examples, %")


def triggered(one: Result) -> float | None:
    """Triggered requests that are answered as attackers want, in per cent; None: nobody attacks."""
    success = one["attack_success"]
    return None if success is None else PER_CENT * float(success)


def personal_mean(arm: str, one: Result) -> float:
    """Of one arm of the personal ones, in per cent."""
    return PER_CENT * float(one["personal"][arm]["mean"])


# Each picture: its caption, for which results there is one, and how it is drawn.
PICTURES: dict[
    str, tuple[str, Callable[[Result], bool], "Callable[[Axes, Sequence[Result]], None]"]
] = {
    "accuracy": (
        "Accuracy of the shared adapter on everybody's held-out examples.",
        lambda one: len(one["curve"]) > 1,
        accuracy_picture,
    ),
    "spread": (
        "How unlike the parties are served by it.",
        lambda one: bool(one["spread"]),
        spread_picture,
    ),
    "attack": (
        "Under attack: what honest parties are left with, and what attackers get.",
        lambda one: bool(one["scenario"]["attack"]),
        attack_picture,
    ),
    "epsilon": (
        "Privacy spent, by a member of every round.",
        lambda one: one["privacy"] is not None,
        epsilon_picture,
    ),
    "personal": (
        "Alone, shared, and personal on top of what is shared.",
        lambda one: bool(one["personal"]),
        personal_picture,
    ),
    "bytes": ("Bytes on the wire.", lambda one: bool(one["rounds"]), bytes_picture),
    "seconds": ("Seconds.", lambda one: bool(one["rounds"]), seconds_picture),
}


def looks(results: Sequence[Result]) -> list[tuple[dict[str, Any], Result]]:
    """Each with its colour and its kind of line."""
    return [
        (
            {
                "color": COLOURS[at % len(COLOURS)],
                "linestyle": STYLES[at // len(COLOURS) % len(STYLES)],
            },
            one,
        )
        for at, one in enumerate(results)
    ]


def legend(axes: "Axes", results: Sequence[Result]) -> None:
    """Beside the picture."""
    if len(results) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def mean(one: Result, key: str) -> float:
    """Of a round's number."""
    values = [line[key] for line in one["rounds"]]
    return float(sum(values) / len(values)) if values else 0.0


def page(results: Sequence[Result], pictures: Mapping[str, tuple[str, str]]) -> str:
    """All of it as HTML."""
    text = html.escape
    head = "".join(f"<th>{text(title_of(one))}</th>" for one in results)
    rows = "".join(
        f"<tr><td>{text(name)}</td>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows_of(results)
    )
    figures = "".join(
        f"<figure>{own_ids(svg, name)}<figcaption>{text(caption)}</figcaption></figure>"
        for name, (caption, svg) in pictures.items()
    )
    computed = "".join(
        f"<h2>{text(title_of(one))}: computed, not run</h2><table>"
        + "".join(
            f"<tr><td>{text(words)}</td><td>{text(value)}</td></tr>"
            for words, value in computed_words(one["computed"])
        )
        + "</table>"
        for one in results
        if one.get("computed")
    )
    sources = "".join(
        f"<details><summary>{text(title_of(one))}</summary><pre>{text(source(one))}</pre></details>"
        for one in results
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{text(heading(results))}</title><style>{STYLE}</style>"
        f'<h1>{text(heading(results))}</h1><p class="aside">{text(made_on(results))}</p>'
        f"<table><tr><th></th>{head}</tr>{rows}</table>{figures}{computed}"
        f"<h2>Configurations, resolved</h2>{sources}</html>\n"
    )


def own_ids(svg: str, name: str) -> str:
    """The same picture with ids that no other picture of the page has."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)


def markdown(results: Sequence[Result], pictures: Mapping[str, tuple[str, str]]) -> str:
    """All of it as Markdown, the pictures beside it."""
    head = " | ".join(["", *(title_of(one) for one in results)])
    lines = [f"# {heading(results)}", "", made_on(results), ""]
    lines += [f"|{head} |", "|" + " --- |" * (len(results) + 1)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows_of(results)]
    for name, (caption, _) in pictures.items():
        lines += ["", f"![{caption}]({name}.svg)", "", caption]
    for one in results:
        if one.get("computed"):
            lines += ["", f"## {title_of(one)}: computed, not run", "", "| | |", "| --- | --- |"]
            lines += [f"| {words} | {value} |" for words, value in computed_words(one["computed"])]
    for one in results:
        lines += ["", f"## {title_of(one)}, resolved", "", "```toml", source(one).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def heading(results: Sequence[Result]) -> str:
    """Which scenarios these are."""
    return ", ".join(dict.fromkeys(one["name"] for one in results))


def made_on(results: Sequence[Result]) -> str:
    """Machines and versions."""
    machines = "; ".join(dict.fromkeys(one["machine"] for one in results))
    versions = ", ".join(dict.fromkeys(one["versions"]["quietchoir"] for one in results))
    return f"{machines}; quietchoir {versions}"


def source(one: Result) -> str:
    """A result's configuration as TOML, with what it depends on."""
    seen = {"digest": one["digest"], "data": one["data"], "versions": one["versions"]}
    return as_toml({**one["scenario"], "seen": seen})
