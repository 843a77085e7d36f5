"""The verbs of this folder: simulate, and bench.

Knows arguments and how results are shown. Imports nothing heavy until it runs.
"""

import argparse
import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..federation.events import FederationEvent


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this folder's verbs."""
    simulate = verbs.add_parser("simulate", help="run a federation of many parties in this process")
    simulate.add_argument("scenario", help="a TOML file, or the name of a shipped scenario")
    simulate.add_argument(
        "--report", type=Path, metavar="FILE", help="write the whole report as JSON"
    )
    simulate.set_defaults(run=run_simulation, needs="federation")
    bench = verbs.add_parser(
        "bench",
        help="measure, with peers in the same run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"suites:\n{suites_told()}",
    )
    bench.add_argument(
        "suite",
        nargs="?",
        metavar="SUITE",
        help="one of those below; default: all that this machine can run",
    )
    bench.add_argument(
        "--json",
        action="store_true",
        help="the report on standard output; the table goes to standard error",
    )
    bench.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the report as JSON too, after every part that is measured",
    )
    bench.add_argument(
        "--quick", action="store_true", help="tiny sizes: does it run? its figures mean nothing"
    )
    bench.set_defaults(run=run_bench, needs="federation")


def suites_told() -> str:
    """A line for each suite."""
    from .bench.suites import SUITES

    return "\n".join(f"  {name:<12} {words}" for name, words in SUITES.items())


def run_simulation(arguments: Namespace) -> None:
    """Run one scenario, a line for each round."""
    from ..core.models import weights
    from ..core.models.hub import catalog
    from . import machine, report, schedule_comparison
    from .run import simulate
    from .scenario import load

    console = report.wide_console()
    scenario = load(arguments.scenario)
    rehearsal = scenario.population.kind == "rehearsal"
    model = None if rehearsal else weights.load(catalog.find(scenario.model))
    console.print(f"[bold]{scenario.name}[/bold]  {machine.line()}")

    def show(event: "FederationEvent") -> None:
        if (text := report.line(event, scenario.recipe.rounds)) is not None:
            console.print(text)

    if scenario.availability.on:
        outcome, laps = schedule_comparison.compare(scenario, model, show)
        schedule_comparison.show(console, laps)
    else:
        outcome = simulate(scenario, model, on_event=show)
    report.show_run(console, dataclasses.asdict(outcome))
    if arguments.report is not None:
        outcome.write(arguments.report)


def run_bench(arguments: Namespace) -> int:
    """Measure: one suite's report, or {suite: report} of all of them; 1 if one of several ended
    early.

    Raises:
        ConfigError: no such suite. QuietchoirError: the only suite that was asked for ended early.
    """
    import faulthandler
    import json
    import signal
    import sys
    from functools import partial

    from rich.console import Console

    from ..core.errors import ConfigError, QuietchoirError
    from ..core.paths import write_atomically
    from .bench import figures, suites

    if arguments.suite not in (None, *suites.SUITES):
        raise ConfigError(f"no suite {arguments.suite!r}; there are: {', '.join(suites.SUITES)}")
    console = Console(highlight=False, stderr=arguments.json)
    errors = Console(highlight=False, stderr=True, style="dim")
    reports: dict[str, Any] = {}

    def text() -> str:
        return json.dumps(reports[arguments.suite] if arguments.suite else reports, indent=2)

    def keep(name: str, report: dict[str, Any]) -> None:
        reports[name] = report
        # after each part: a run that is cut off keeps what it measured
        if arguments.out is not None:
            write_atomically(arguments.out, text().encode() + b"\n")

    if sys.__stderr__ is not None:  # a run that ends by a crash or by somebody's signal says where
        faulthandler.enable(sys.__stderr__)
        for end in (signal.SIGTERM, signal.SIGHUP):
            faulthandler.register(end, sys.__stderr__, chain=True)
    failed = False
    for name in [arguments.suite] if arguments.suite else suites.here():
        try:
            report, rows = suites.run(
                name,
                quick=arguments.quick,
                tell=lambda words: errors.print(f"… {words}"),
                keep=partial(keep, name),
            )
        # what it measured is kept, and the suites after it are run
        except QuietchoirError as error:
            if arguments.suite:
                raise
            keep(name, {**reports.get(name, {}), "unfinished": True, "ended": str(error)})
            console.print(f"[bold]{name}[/bold]  ended: {error}", soft_wrap=True)
            failed = True
            continue
        keep(name, report)
        figures.show(console, report, rows)
    if arguments.json:
        print(text())
    return int(failed)
