"""The verb of this folder that owners use: simulate.

Knows arguments and how results are shown. Imports nothing heavy until it runs.
"""

import argparse
import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this folder's verbs."""
    simulate = verbs.add_parser("simulate", help="run a federation of many parties in this process")
    simulate.add_argument("scenario", help="a TOML file, or the name of a shipped scenario")
    simulate.add_argument("--report", type=Path, metavar="FILE", help="write the whole report as JSON")
    simulate.set_defaults(run=run_simulation)


def run_simulation(arguments: Namespace) -> None:
    """Run one scenario, a line for each round."""
    from ..core.models import catalog, weights
    from . import machine, report
    from .run import simulate
    from .scenario import load

    console = report.wide_console()
    scenario = load(arguments.scenario)
    model = weights.load(catalog.find(scenario.model))
    console.print(f"[bold]{scenario.name}[/bold]  {machine.line()}")

    def tell(event: Mapping[str, Any]) -> None:
        if (text := report.line(event, scenario.recipe.rounds)) is not None:
            console.print(text)

    outcome = simulate(scenario, model, on_event=tell)
    report.show_run(console, dataclasses.asdict(outcome))
    if arguments.report is not None:
        outcome.write(arguments.report)
