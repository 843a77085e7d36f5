"""Part of the suite `compress`: does the plan of this machine's devices choose the faster one?

The plan measures each device a few times, as `doctor --plan` does; the judge measures the same jobs
at other sizes too, longer and afterwards.

Knows plans and jobs. Always: the judge's devices take turns; of each the best time counts, on the
wall, since that is what a plan is about.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ...core.config import Config
from ...core.engine.backends.jobs import DECODE, PREFILL, Jobs, add_decoders, add_encoders
from ...core.hardware.plan import Planner
from ...core.models import weights
from ...core.models.embedding import model as embedding_model
from ...core.models.hub import catalog
from ...core.training.plan import REPEATS, add_training, measure
from .compress_distill import model_file
from .figures import Figure

EMBEDDING_MODEL = "minilm-l6-v2"
# Sizes that the judge asks besides those that were planned for.
BETWEEN: Mapping[str, Sequence[int]] = {PREFILL: (24, 100, 300), DECODE: (6,)}
JUDGED = 7  # repeats


FIGURES = (
    Figure("plan.right", "share", "jobs and sizes where the plan's device was the fastest"),
    Figure("plan.regret", "of the time", "lost where it was not, over all jobs"),
    Figure("plan.cases", "", "jobs and sizes with more than one device"),
    Figure("plan.own_prefill", "tokens/s", "prompt of 512, our kernels"),
    Figure("plan.openvino_prefill", "tokens/s", "the same, OpenVINO's processor"),
)


def measure_plan(report: dict[str, Any], quick: bool, tell: Callable[[str], None]) -> None:
    """Measure, into `report`."""
    config = Config()
    with tempfile.TemporaryDirectory() as folder, closing(Jobs()) as jobs:
        model = weights.load(model_file(Path(folder), quick))
        add_decoders(jobs, model, config.engine, longest=512)
        if not quick:
            encoder = embedding_model.read(catalog.find(EMBEDDING_MODEL))
            add_encoders(jobs, encoder.weights, 0)
            add_training(jobs, model, tell)
        tell("the plan of this machine's devices")
        planner = measure(jobs, tell, 1 if quick else REPEATS)
        tell("what each device really takes")
        report["plan"] = judged(planner, jobs, 1 if quick else JUDGED)


def judged(planner: Planner, jobs: Jobs, repeats: int) -> dict[str, Any]:
    """How often the plan was right, and what it lost."""
    right, cases, lost = 0, 0, 0.0
    table = []
    prefill: dict[str, float] = {}
    for job, size in asked(planner):
        work = jobs.of(job, size)
        judge = Planner(jobs.devices)
        judge.measure(job, size, work, repeats)
        (one,) = judge.plan()
        times = {one.device: one.seconds, **one.others}
        if (job, size) == (PREFILL, 512):
            prefill = {name: size / seconds for name, seconds in times.items()}
        if len(times) < 2:
            continue
        chosen = planner.choose(job, size, tuple(work))
        best = min(times.values())
        cases += 1
        right += times[chosen] == best
        lost += (times[chosen] - best) / best
        table.append({"job": job, "size": size, "chosen": chosen, "ms": milliseconds(times)})
    return {
        "right": right / cases if cases else math.nan,
        "regret": lost / cases if cases else math.nan,
        "cases": cases,
        "own_prefill": prefill.get("processor, compiled"),
        "openvino_prefill": prefill.get("OpenVINO CPU"),
        "table": table,
    }


def asked(planner: Planner) -> list[tuple[str, int]]:
    """Jobs and sizes: those of the plan, and some between them."""
    planned = [(one.job, one.size) for one in planner.plan()]
    jobs = dict.fromkeys(job for job, _ in planned)
    return [*planned, *((job, size) for job in jobs for size in BETWEEN.get(job, ()))]


def milliseconds(times: Mapping[str, float]) -> dict[str, float]:
    """For the report."""
    return {name: round(1000 * seconds, 3) for name, seconds in times.items()}
