"""The verbs of this folder: simulate, and bench.

Knows arguments and how results are shown. Imports nothing heavy until it runs.
"""

import argparse
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

SCENARIO = "a TOML file, or the name of a shipped scenario"


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this folder's verbs."""
    simulate = verbs.add_parser("simulate", help="run federations of many parties in this process")
    ways = simulate.add_subparsers(required=True, metavar="COMMAND")
    listed = ways.add_parser("list", help="the scenarios that are shipped, and what each asks")
    listed.set_defaults(run=list_scenarios, needs="federation")
    show = ways.add_parser("show", help="every key of a scenario with the value that it has")
    show.add_argument("scenario", help=SCENARIO)
    show.set_defaults(run=show_scenario, needs="federation")
    run = ways.add_parser("run", help="run scenarios; each of a file's [sweep] is one")
    run.add_argument("scenarios", nargs="+", metavar="SCENARIO", help=SCENARIO)
    compare = ways.add_parser(
        "compare", help="results side by side; scenarios without one are run first"
    )
    compare.add_argument(
        "scenarios", nargs="+", metavar="SCENARIO", help=f"{SCENARIO}; or a result's folder"
    )
    sweep = ways.add_parser("sweep", help="one scenario under every choice of some values")
    sweep.add_argument("scenarios", nargs=1, metavar="SCENARIO", help=SCENARIO)
    for way, work in ((run, run_scenarios), (compare, compare_results), (sweep, run_scenarios)):
        way.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE[,VALUE…]",
            required=way is sweep,
            help="a key of the scenario, for example recipe.lr=0.01,0.02; several values: one run "
            "each",
        )
        way.add_argument(
            "--protection-cost",
            choices=("run", "modelled"),
            help="modelled: masked rounds without their masks; the same sums, in a fraction of the "
            "time",
        )
        way.add_argument(
            "--engine",
            choices=("here", "ray"),
            default="here",
            help="ray: under Flower's simulation, for several machines; rehearsals only",
        )
        way.add_argument(
            "--out", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs"
        )
        way.add_argument(
            "--again", action="store_true", help="also what has a result of this very scenario"
        )
        way.set_defaults(run=work, needs="federation")
    report = ways.add_parser("report", help="a page and a Markdown file of results, with pictures")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="files or folders")
    report.add_argument(
        "--out", type=Path, default=Path("report"), metavar="FOLDER", help="default: report"
    )
    report.set_defaults(run=write_report, needs="federation")
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
    bench.add_argument(
        "--only",
        metavar="PARTS",
        help="of a suite that has parts, for example: bench engine --only long,exactness (another "
        "name lists them)",
    )
    bench.set_defaults(run=run_bench, needs="federation")


def suites_told() -> str:
    """A line for each suite."""
    from .bench.suites import SUITES

    return "\n".join(f"  {name:<12} {words}" for name, words in SUITES.items())


def list_scenarios(arguments: Namespace) -> None:
    """A line for each, and its question."""
    del arguments
    from . import report, scenario

    console = report.wide_console()
    for name in scenario.shipped():
        path = scenario.find(name)
        several = scenario.count(path)
        runs = f"  ({several} runs)" if several > 1 else ""
        console.print(f"[bold]{name}[/bold]{runs}  {scenario.question(path)}")


def show_scenario(arguments: Namespace) -> None:
    """Every key of every arm, as TOML."""
    from . import scenario

    for arm in scenario.arms(arguments.scenario):
        text = scenario.as_toml(scenario.resolved(arm.scenario))
        print(f"# {arm.label}\n{text}" if arm.label else text)


def run_scenarios(arguments: Namespace) -> int:
    """Run what has no result yet; a table of all at the end. 1 if one of them failed."""
    from . import report

    console = report.wide_console()
    found = [
        result for name in arguments.scenarios for result in results_of(name, arguments, console)
    ]
    report.show_results(console, found)
    return int(any(one["failed"] for one in found))


def compare_results(arguments: Namespace) -> None:
    """Results side by side."""
    from . import report, results

    console, found = report.wide_console(), list[dict[str, Any]]()
    for name in arguments.scenarios:
        if Path(name).is_dir():
            found += results.gather([Path(name)])
        else:
            found += results_of(name, arguments, console)
    report.show_results(console, found)


def results_of(name: str, arguments: Namespace, console: "Console") -> list[dict[str, Any]]:
    """The results of all arms of a scenario, made or found."""
    from ..core.models import weights
    from ..core.models.hub import catalog
    from . import machine, report, results, scale
    from .scenario import LINEAR, arms

    console.print(f"[bold]{name}[/bold]  {machine.line()}")
    changes = dict(changed(words) for words in arguments.set)
    if arguments.protection_cost:
        changes["protection_cost"] = [arguments.protection_cost]
    found, models = list[dict[str, Any]](), dict[str, Any]()
    for arm in arms(name, changes):
        scenario, folder = arm.scenario, results.folder_of(arguments.out, arm)
        if arguments.engine == "ray":
            found.append(scale.perform(arm, folder / arguments.engine))
            continue
        if not arguments.again and (known := results.finished(folder, scenario)) is not None:
            console.print(f"  {report.title_of(known)}: found in {folder} (--again runs it anew)")
            found.append(known)
            continue
        if scenario.population.kind != "rehearsal" and scenario.model not in (LINEAR, *models):
            models[scenario.model] = weights.load(catalog.find(scenario.model))
        console.print(f"[bold]{arm.label or scenario.name}[/bold]")
        model = models.get(scenario.model)
        with report.RunProgress(
            console,
            scenario.recipe.rounds,
            scenario.population.count,
            modelled=scenario.protection_cost == "modelled",
        ) as bars:
            found.append(results.perform(arm, model, folder, bars))
        console.print(f"  {folder / results.RESULT}")
    return found


def changed(words: str) -> tuple[str, list[Any]]:
    """`KEY=VALUE[,VALUE…]` as a key and its values, each read as TOML's, or else as a text.

    Raises:
        ConfigError: no key, or no value.
    """
    import tomllib

    from ..core.errors import ConfigError

    key, _, values = words.partition("=")
    if not key.strip() or not values.strip():
        raise ConfigError(f"--set {words}: found no key or no value, expected KEY=VALUE[,VALUE…]")
    # one value that is a list itself, or some
    each = [values] if values.lstrip().startswith("[") else values.split(",")
    found: list[Any] = []
    for value in each:
        try:
            found.append(tomllib.loads(f"value = {value}")["value"])
        except tomllib.TOMLDecodeError:
            found.append(value.strip())
    return key.strip(), found


def write_report(arguments: Namespace) -> None:
    """A page and a Markdown file."""
    from rich.console import Console

    from . import results, results_page

    for path in results_page.write(results.gather(arguments.runs), arguments.out):
        Console(highlight=False).print(str(path), soft_wrap=True)


def earlier_report(path: Path | None) -> dict[str, Any]:
    """What an earlier run wrote there; nothing where there is none, or something else."""
    import json

    try:
        found = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def run_bench(arguments: Namespace) -> int:
    """Measure: one suite's report, or {suite: report} of all of them; 1 if one of several, or a
    part of one, ended early, or an attack broke a promise.

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
    only = arguments.only.split(",") if arguments.only else ()
    if only and not arguments.suite:
        raise ConfigError("--only names parts of one suite; say which: bench SUITE --only PARTS")
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
    earlier = earlier_report(arguments.out)
    failed = False
    for name in [arguments.suite] if arguments.suite else suites.here():
        try:
            report, rows = suites.run(
                name,
                quick=arguments.quick,
                tell=lambda words: errors.print(f"… {words}", markup=False),
                keep=partial(keep, name),
                only=only,
                earlier=earlier if arguments.suite else earlier.get(name),
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
        failed = failed or bool(report.get("failed") or report.get("broken"))
    if arguments.json:
        print(text())
    return int(failed)
