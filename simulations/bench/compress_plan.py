"""Part of the suite `compress`: does the plan of this machine's devices choose the faster one?

The plan measures each device a few times, as `doctor --plan` does; the judge measures the same
prompts and others between them, longer and afterwards.

Knows plans and prompts. Always: the judge's devices take turns; of each the best time counts, on
the wall, since that is what a plan is about.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...core.config import EngineConfig
from ...core.engine.backends.openvino.plan import REPEATS, ROWS, prompt, prompt_devices
from ...core.engine.backends.openvino.runner import OWN, PREFILL, PlannedRunner
from ...core.hardware.plan import Planner
from ...core.models import weights
from ...core.models.weights import Weights
from .compress_distill import model_file
from .figures import Figure

BETWEEN = (70, 100, 300)  # tokens that the judge asks besides those that were planned for
JUDGED = 7  # repeats


FIGURES = (
    Figure("plan.right", "share", "lengths of prompts whose device in the plan was the fastest"),
    Figure("plan.regret", "of the time", "lost where it was not, over all lengths"),
    Figure("plan.cases", "", "lengths with more than one device"),
    Figure("plan.own_prefill", "tokens/s", "prompt of 512, our kernels"),
    Figure("plan.openvino_prefill", "tokens/s", "the same, OpenVINO's processor"),
)


def measure_plan(report: dict[str, Any], quick: bool, tell: Callable[[str], None]) -> None:
    """Measure, into `report`."""
    with tempfile.TemporaryDirectory() as folder:
        model = weights.load(model_file(Path(folder), quick))
        with prompt_devices(model, EngineConfig(), max(ROWS), tell) as runner:
            tell("the plan of this machine's devices")
            for rows in ROWS:
                ways = runner.ways(prompt(model, rows))
                runner.planner.measure(PREFILL, rows, ways, 1 if quick else REPEATS)
            tell("what each device really takes")
            report["plan"] = judged(runner, model, 1 if quick else JUDGED)


def judged(runner: PlannedRunner, model: Weights, repeats: int) -> dict[str, Any]:
    """How often the plan was right, and what it lost."""
    right, cases, lost, table = 0, 0, 0.0, []
    speeds: dict[str, float] = {}
    planner = runner.planner
    for rows in sorted({*ROWS, *BETWEEN}):
        ways = runner.ways(prompt(model, rows))
        judge = Planner([*planner.devices.values()])
        judge.measure(PREFILL, rows, ways, repeats)
        (one,) = judge.plan()
        times = {one.device: one.seconds, **one.others}
        if rows == max(ROWS):
            speeds = {name: rows / seconds for name, seconds in times.items()}
        if len(times) < 2:
            continue
        chosen = planner.choose(PREFILL, rows, tuple(ways))
        best = min(times.values())
        cases += 1
        right += times[chosen] == best
        lost += (times[chosen] - best) / best
        table.append({"rows": rows, "chosen": chosen, "ms": milliseconds(times)})
    return {
        "right": right / cases if cases else math.nan,
        "regret": lost / cases if cases else math.nan,
        "cases": cases,
        "own_prefill": speeds.get(OWN),
        "openvino_prefill": speeds.get("OpenVINO CPU"),
        "table": table,
    }


def milliseconds(times: Mapping[str, float]) -> dict[str, float]:
    """For the report."""
    return {name: round(1000 * seconds, 3) for name, seconds in times.items()}
