"""The suite `simulate`: many parties in one process, beside Flower's simulation under Ray and pfl;
and what protection does to learning.

    parties_per_s       by parties and values, of the trivial work, plain
    ratio               Flower's seconds a round over ours: trivial and real work at 1,000 parties
    protected           a masked round of many, its masks run and modelled
    learning            one population, plain, masked, sealed and under noise

Knows which cells are measured and what is made of them. Knows nothing of how an arm does the work
(`simulation_arms`).
Always: every cell is a process of its own, so that its peak of memory is its own; programs take
turns; seconds are those of the wall, since peers work in several processes: run it on a machine
that does nothing else. A peer that is not installed, or cannot be, is said to be so.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import QuietchoirError
from ...federation.store.checkpoint import Vector
from ...federation.training.learner import Counts, Trained
from ..cast import Cast
from ..engines import QUIET
from ..protocol_costs import cohort_cost
from ..results import perform
from ..run import simulate
from ..scenario import arms
from . import cohort
from .figures import Figure, Keep
from .members import Setting
from .simulation_arms import COMMAND
from .stopwatch import Sample, put

SEED = 1
CELL_S = 400.0  # for one process
AIM_TRIVIAL, AIM_REAL = 20.0, 3.0
# of the accuracy without noise, with 1,000 parties
PRIVATE_AIMS = {"dp_8_over_none": 0.8}
DROPPED = 0.05  # in the cohort that holds computed costs against run ones
BITS, LEVELS, STEP = 8, 127, 2.0**-9  # of updates that are exact on the grid


@dataclass(frozen=True, slots=True)
class Cell:
    """One process: an arm at one size."""

    arm: str
    parties: int
    values: int
    rounds: int
    real: bool = False
    mode: str = "plain"

    @property
    def key(self) -> str:
        """Its place in the report."""
        work = f"real_{self.parties}" if self.real else f"{self.parties}x{self.values}"
        return f"{self.arm}.{work}"

    def run(self) -> dict[str, Any]:
        """What it printed.

        Raises:
            QuietchoirError: it failed; with its last words.
        """
        sizes = ("parties", "values", "rounds")
        command = [sys.executable, "-c", COMMAND, self.arm, "--mode", self.mode]
        command += [part for name in sizes for part in (f"--{name}", str(getattr(self, name)))]
        command += ["--real"] if self.real else []
        with tempfile.TemporaryDirectory(prefix="qc-") as scratch:
            place = {"RAY_TMPDIR": scratch, "FLWR_HOME": str(Path(scratch) / "flwr")}
            try:
                ended = subprocess.run(
                    command,
                    env={**os.environ, **QUIET, **place},
                    capture_output=True,
                    text=True,
                    timeout=CELL_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise QuietchoirError(f"{self.key}: not done after {CELL_S:.0f} s") from error
        if ended.returncode:
            words = ended.stderr.strip().splitlines()
            raise QuietchoirError(f"{self.key} failed: {words[-1] if words else 'no words'}")
        found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
        return found


def peers() -> dict[str, str]:
    """Programs that this interpreter lacks, and why."""
    lacking = {}
    if find_spec("ray") is None:
        lacking["flower"] = "Ray is not installed: pip install 'quietchoir[scale]'"
    if find_spec("pfl") is None:
        lacking["pfl"] = (
            "not installed; its pins exclude ours, so: pip install --no-deps pfl==0.6.0 "
            "prv-accountant multiprocess dill"
        )
    version = ".".join(map(str, sys.version_info[:2]))
    lacking["blazefl"] = f"wants Python 3.12 (3.0: 3.14); this is {version}, and it is not compared"
    return lacking


def cells(quick: bool, lacking: Sequence[str]) -> list[Cell]:
    """What is measured, peers beside ours."""
    if quick:
        return [Cell("ours", 10, 1000, 2)]
    grid = [(10, 1000, 6), (100, 1000, 6), (1000, 1000, 4), (10, 500_000, 4), (100, 500_000, 3)]
    found = []
    for parties, values, rounds in grid:
        found += [Cell(arm, parties, values, rounds) for arm in ("ours", "flower", "pfl")]
    found.append(Cell("ours", 1000, 500_000, 2))
    for parties, rounds in ((100, 4), (1000, 3)):
        found += [Cell(arm, parties, 0, rounds, True) for arm in ("ours", "flower", "pfl")]
    return [cell for cell in found if cell.arm not in lacking]


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep) -> dict[str, Any]:
    """Everything, in about a quarter of an hour; some seconds with `quick`."""
    lacking = peers()
    report: dict[str, Any] = {
        "what": "parties of one federation simulated on this machine, beside Flower under Ray, pfl",
        "seed": SEED,
        "clock": "seconds on the wall; unit costs and computed cohorts in processor seconds",
        "repeats": {"rounds": "the first of each cell is not counted"},
        "spread": {},
        "exact": True,
        "not_here": lacking,
    }
    for name, why in lacking.items():
        tell(f"{name}: {why}")
    for cell in cells(quick, list(lacking)):
        note(report, cell, cell.run())
        tell(f"{cell.key}: {report['round_s'][cell.arm][cell.key.partition('.')[2]]:.3g} s a round")
        keep(report)
    if not quick:
        report["ratio"] = ratios(report)
        keep(report)
        report["protected"] = protected(1000)
        keep(report)
    report["computed"] = computed(5 if quick else 100)
    keep(report)
    report["learning"] = learning(quick, tell)
    report["exact"] = report["learning"]["masked_equals_plain"]
    return report


def note(report: dict[str, Any], cell: Cell, found: dict[str, Any]) -> None:
    """One cell's figures."""
    seconds = found["rounds_s"]
    sample, key = Sample(tuple(seconds[1:] or seconds)), cell.key
    put(report, f"round_s.{key}", sample)
    for name, value in (
        ("parties_per_s", cell.parties / sample.median),
        ("start_s", found["whole_s"] - sum(seconds)),
        ("peak_mb", found["peak_mb"]),
    ):
        report.setdefault(name, {}).setdefault(cell.arm, {})[key.partition(".")[2]] = value


def ratios(report: dict[str, Any]) -> dict[str, float]:
    """Of peers' seconds over ours, where both were measured."""
    found, ours = {}, report["round_s"]["ours"]
    for peer in ("flower", "pfl"):
        for key, value in report["round_s"].get(peer, {}).items():
            found[f"{peer}_{key}"] = value / ours[key]
    named = {"trivial_1000": "flower_1000x1000", "real": "flower_real_1000"}
    return found | {name: found[key] for name, key in named.items() if key in found}


def protected(parties: int) -> dict[str, Any]:
    """A masked round of many: its masks run, and modelled."""
    found: dict[str, Any] = {"parties": parties}
    for name, mode in (("modelled", "modelled"), ("run", "masked")):
        told = Cell("ours", parties, 1000, 2 if mode == "modelled" else 1, mode=mode).run()
        found[f"{name}_round_s"] = statistics.median(told["rounds_s"][1:] or told["rounds_s"])
        found[f"{name}_peak_mb"] = told["peak_mb"]
    return found


def computed(parties: int) -> dict[str, float]:
    """Costs computed from unit costs, over those of a cohort that was played."""
    length, bits = 1000, 8
    cost, _ = cohort_cost(parties, length, bits, DROPPED)
    run = cohort.play(
        Setting(parties=parties, length=length, bits=bits, drop_percent=round(100 * DROPPED))
    )
    return {
        "parties": parties,
        "member_over_run": cost.member_s / run.client_s,
        "coordinator_over_run": cost.coordinator_s / run.server_s,
    }


def learning(quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy of one population under each protection, and under noise by its budget."""
    found: dict[str, Any] = {}
    small: dict[str, list[Any]] = {
        "recipe.rounds": [1],
        "protection.mode": ["plain", "masked"],
        "population.train": [9],
    }
    changes: dict[str, list[Any]] = small if quick else {}
    with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as scratch:
        for arm in arms("masked-vs-sealed-vs-plain", changes):
            mode = arm.scenario.protection.mode
            found[mode] = perform(arm, None, Path(scratch) / mode)["accuracy"]["after"]
            tell(f"learning, {mode}: {found[mode]:.3f}")
        if not quick:
            for arm in arms("dp-sweep"):
                privacy = arm.scenario.privacy
                name = f"dp_{privacy.epsilon:g}" if privacy.on else "dp_none"
                found[name] = perform(arm, None, Path(scratch) / name)["accuracy"]["after"]
                tell(f"learning, {name}: {found[name]:.3f}")
            noised = {name: one for name, one in found.items() if name.startswith("dp_")}
            plain = noised.pop("dp_none")
            found |= {f"{name}_over_none": one / plain for name, one in noised.items()}
    found["masked_equals_plain"] = same_sums()
    return found


class GridLearner:
    """Updates that rounding leaves as they are: multiples of `STEP`, from the party's name."""

    def __init__(self, name: str, size: int) -> None:
        self.rng, self.size = np.random.default_rng(list(name.encode())), size

    def train(self, flat: Vector, seed: int) -> Trained:
        """As `Learner`."""
        del seed
        steps = self.rng.integers(-LEVELS, LEVELS + 1, self.size).astype(np.float32)
        return Trained(flat=flat + steps * np.float32(STEP), examples=1, tokens=1, loss=0.0)

    def evaluate(self, flat: Vector) -> Counts:
        """As `Learner`."""
        return Counts(int(np.sum(flat > 0)), self.size)


def same_sums(*changes: dict[str, Any]) -> bool:
    """Do rounds of the same updates end in the same adapter, to the last bit, under each of these?

    Args:
        changes: of `smoke`, by dotted key; by default plain, masked, and masked with its masks
            modelled.
    """
    each = changes or (
        {"protection.mode": "plain"},
        {"protection.mode": "masked"},
        {"protection.mode": "masked", "protection_cost": "modelled"},
    )
    return len({end_of(one) for one in each}) == 1


def end_of(changes: dict[str, Any]) -> bytes:
    """The finished adapter of four parties whose updates are exact on the grid, and so is the mean
    of four.
    """
    exact = {
        "population.households": 4,
        "protection.bits": BITS,
        "recipe.update_range": LEVELS * STEP,
        "recipe.server_momentum": 0.0,
    }
    (arm,) = arms("smoke", {key: [value] for key, value in (exact | changes).items()})
    population, kept = arm.scenario.population, dict[str, bytes]()
    names = [f"household-{number}" for number in range(population.households)]
    simulate(
        arm.scenario,
        None,
        cast=Cast(
            {name: GridLearner(name, population.values) for name in names}, population.values
        ),
        on_adopt=lambda name, flat: kept.__setitem__("", flat.tobytes()),
    )
    return kept[""]


def figures(report: dict[str, Any]) -> list[Figure]:
    """Rows of the table."""
    rows = []
    for arm, cells_of in report["round_s"].items():
        for key in cells_of:
            rows += [
                Figure(f"round_s.{arm}.{key}", "s", f"{arm}, {key}: a round"),
                Figure(f"parties_per_s.{arm}.{key}", "1/s", f"{arm}, {key}: parties a second"),
                Figure(f"peak_mb.{arm}.{key}", "MB", f"{arm}, {key}: peak of its process"),
            ]
    aims = {"trivial_1000": AIM_TRIVIAL, "real": AIM_REAL}
    for key in report.get("ratio", {}):
        rows.append(Figure(f"ratio.{key}", "times", f"as fast as: {key}", at_least=aims.get(key)))
    rows += [Figure(f"not_here.{name}", "", f"{name}: not measured") for name in report["not_here"]]
    if "protected" in report:
        rows += [
            Figure("protected.run_round_s", "s", "a masked round of all, its masks run"),
            Figure("protected.modelled_round_s", "s", "the same, its masks modelled"),
            Figure("protected.run_peak_mb", "MB", "peak, its masks run"),
        ]
    rows += [
        Figure("computed.member_over_run", "", "a member's computed seconds over run ones"),
        Figure("computed.coordinator_over_run", "", "a coordinator's computed over run ones"),
    ]
    rows += [
        Figure(f"learning.{name}", "", f"accuracy, {name}", at_least=PRIVATE_AIMS.get(name))
        for name in report.get("learning", {})
        if name != "masked_equals_plain"
    ]
    return rows
