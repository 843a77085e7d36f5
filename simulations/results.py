"""What a simulated run leaves: one JSON file, with the whole configuration that it came from.

    FOLDER/NAME[/ARM]/result.json

Knows runs, their measures and files. Knows nothing of how results are shown (`report`,
`results_page`).
Always: a result is whole or not there; one whose configuration, data and version are the same is
not made again; a run that was killed goes on from its last whole round, where that is possible
(`run.resumable`), and from its beginning elsewhere.
"""

import hashlib
import json
import platform
import re
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..core import paths
from ..core.errors import ConfigError, RoundAborted
from ..federation.events import AbortedEvent, FederationEvent, OnEvent, RoundEvent
from ..federation.rounds.report import RunReport, summary
from ..federation.store.checkpoint import Vector
from . import machine, protocol_costs, schedule_comparison
from .cast import Cast, accuracies, make_learners, pooled, start
from .population import data_digest, populate
from .run import check, resumable, simulate
from .scenario import Scenario, ScenarioArm, digest, resolved

if TYPE_CHECKING:
    from ..core.models.weights import Weights

RESULT, STATE = "result.json", "state"
FORMAT = 1
LIBRARIES = ("numpy", "torch", "flwr", "cryptography", "tenseal")
PERSONAL_SEED = 1


def folder_of(out: Path, arm: ScenarioArm) -> Path:
    """Where an arm's result lies."""
    label = re.sub(r"[^\w.=+-]+", "_", arm.label)
    return out / arm.scenario.name / label if label else out / arm.scenario.name


def load(path: Path) -> dict[str, Any]:
    """A result: its file, or its folder.

    Raises:
        ConfigError: none is there, or it cannot be read.
    """
    file = path / RESULT if path.is_dir() else path
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{file}: no result ({error.strerror}); make one with `quietchoir simulate run`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: no result of a simulation: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigError(f"{file}: no result of a simulation of this version")
    return found


def gather(places: Sequence[Path]) -> list[dict[str, Any]]:
    """All results of these files and folders, and of the folders in them.

    Raises:
        ConfigError: as `load`.
    """
    found = list[dict[str, Any]]()
    for place in places:
        inner = sorted(place.rglob(RESULT)) if place.is_dir() else [place]
        found += [load(file) for file in inner or [place]]
    return found


def finished(folder: Path, scenario: Scenario) -> dict[str, Any] | None:
    """The result that is there already, if it is of this very scenario, data and version, and made
    by the engine of one process.
    """
    if not (folder / RESULT).exists():
        return None
    found = load(folder)
    same = (digest(scenario), data_digest(scenario.population), __version__)
    of = (found["digest"], found["data"], found["versions"]["quietchoir"])
    return found if of == same and "engine" not in found else None


def perform(
    arm: ScenarioArm, weights: "Weights | None", folder: Path, on_event: OnEvent | None = None
) -> dict[str, Any]:
    """Run one arm to its end, and keep its result.

    Raises:
        ConfigError: as `run.simulate`.
    """
    scenario, report = arm.scenario, on_event or (lambda event: None)
    people = populate(scenario)
    check(scenario, people)
    cast = make_learners(scenario, weights, people, report)
    told, last = Told(), dict[str, Vector]()

    def hear(event: FederationEvent) -> None:
        told.note(event)
        report(event)

    state = state_of(folder, arm) if resumable(scenario) else None
    resumed = state is not None and state.exists()
    wall, processor = time.monotonic(), time.process_time()
    laps: list[schedule_comparison.Lap] = []
    failed, outcome = "", None
    try:
        if scenario.availability.on:
            outcome, laps = schedule_comparison.compare(scenario, weights, hear)
        else:
            outcome = simulate(
                scenario,
                weights,
                cast=cast,
                on_event=hear,
                on_adopt=lambda name, flat: last.__setitem__("", flat),
                folder=state,
            )
    except RoundAborted as reason:
        failed = str(reason)
    seconds, processor_s = time.monotonic() - wall, time.process_time() - processor
    result = {
        **head_of(arm),
        "parties": len(cast.learners),
        "values": cast.size,
        # of the last leg, if a run that was ended went on
        "seconds": round(seconds, 3),
        "processor_s": round(processor_s, 3),
        "resumed": resumed,
        "peak_mb": round(peak_mb(), 1),
        "failed": failed,
        **told.measures(scenario, outcome, cast.size),
        **judged(scenario, cast, last.get("")),
    }
    # attackers give full marks, which rounds' own figures hold; and private rounds have none
    if (scenario.attack or not scenario.privacy.counts) and "" in last:
        result["accuracy"]["after"] = pooled(cast.honest(), last[""])
    if laps:
        result["schedules"] = [asdict(lap) for lap in laps]
    if scenario.scale.parties:
        result["computed"] = protocol_costs.compute(scenario, cast.size)
    keep(folder, result)
    for left in folder.glob(f"{STATE}-*"):  # of other settings too
        shutil.rmtree(left, ignore_errors=True)
    return result


def state_of(folder: Path, arm: ScenarioArm) -> Path:
    """Where a run that is ended goes on: of this very scenario over these very bytes."""
    asked = digest(arm.scenario) + data_digest(arm.scenario.population) + __version__
    return folder / f"{STATE}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"


def head_of(arm: ScenarioArm) -> dict[str, Any]:
    """What was run, with what, on what."""
    return {
        "format": FORMAT,
        "name": arm.scenario.name,
        "arm": arm.label,
        "digest": digest(arm.scenario),
        "data": data_digest(arm.scenario.population),
        "scenario": resolved(arm.scenario),
        "versions": versions(),
        "machine": machine.line(),
    }


def keep(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a result, whole."""
    paths.write_atomically(folder / RESULT, json.dumps(result, indent=1).encode() + b"\n")


class Told:
    """What a run told while it went on."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.aborted: list[str] = []

    def note(self, event: FederationEvent) -> None:
        """Take one event."""
        match event:
            case RoundEvent(entry=entry):
                self.entries.append(dict(entry))
            case AbortedEvent():
                self.aborted.append(f"round {event.round}: {event.reason}")

    def measures(self, scenario: Scenario, outcome: RunReport | None, size: int) -> dict[str, Any]:
        """Of the rounds; of a run that failed, of those until then."""
        entries = self.entries if outcome is None else outcome.history
        accuracy, _ = summary(entries)
        rounds = [line_of(entry) for entry in entries if entry["kind"] == "train"]
        computed = scenario.protection_cost == "modelled"
        if computed:
            cost = protocol_costs.wire_of(scenario, size)
            for line in rounds:
                line |= {"bytes_up": cost.up, "bytes_down": cost.down}
        return {
            "accuracy": accuracy,
            "curve": curve_of(entries),
            "rounds": rounds,
            "bytes_computed": computed,
            "aborted": self.aborted,
            "stopped": "" if outcome is None else outcome.stopped,
            "privacy": None if outcome is None else outcome.privacy,
            "held": {} if outcome is None else outcome.held,
            "suspects": [] if outcome is None else outcome.suspects,
        }


def line_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A round without names: what it cost and gave. Bytes are a party's, in the mean."""
    guard = entry.get("guard") or {"kept": True}
    return {
        "round": entry["round"],
        "attempt": entry["attempt"],
        "asked": len(entry["asked"]),
        "parties": len(entry["parties"]),
        "seconds": entry["seconds"],
        "work_seconds": entry["work_seconds"],
        "bytes_up": mean_of(entry["bytes_up"]),
        "bytes_down": mean_of(entry["bytes_down"]),
        "loss": entry["loss"],
        "accuracy": entry["accuracy"],
        "clipped_share": entry["clipped_share"],
        "clip": entry.get("clip"),
        "update_norm": entry["update_norm"],
        "epsilon": entry["epsilon"],
        "kept": guard["kept"],
        # of a party, both ways, over all votes of the round
        "vote_bytes": round(guard.get("bytes", 0) / max(1, len(entry["asked"])), 1),
    }


def mean_of(sizes: Mapping[str, int]) -> float:
    """Bytes a party."""
    return round(sum(sizes.values()) / len(sizes), 1) if sizes else 0.0


def curve_of(entries: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Rounds done, and the accuracy that the adapter then had."""
    found, done = list[list[float]](), 0
    for entry in entries:
        training = entry["kind"] == "train"
        at = entry["round"] - 1 if training else done
        done = entry["round"] if training else done
        if entry["accuracy"] is not None:
            found.append([at, entry["accuracy"]])
    return found


def judged(scenario: Scenario, cast: Cast, flat: Vector | None) -> dict[str, Any]:
    """What the finished adapter [n] is worth to each party, and to attackers; and what a party
    makes of it by itself.
    """
    if flat is None:
        return {"spread": None, "attack_success": None, "personal": None}
    honest = cast.honest()
    own, success = accuracies(honest, flat), None
    if cast.spy is not None and (counts := cast.spy.evaluate(flat)).total:
        success = round(counts.correct / counts.total, 4)
    return {
        "spread": spread_of(list(own.values())),
        "attack_success": success,
        "personal": personal_of(scenario, cast, flat, own) if scenario.personal.rounds else None,
    }


def personal_of(
    scenario: Scenario, cast: Cast, flat: Vector, shared: Mapping[str, float]
) -> dict[str, Any]:
    """Shared, personal on top of it, and alone from the start over as many rounds; each party on
    its own held-out examples.
    """
    personal, alone = dict[str, float](), dict[str, float]()
    for name in shared:
        learner, own, lone = cast.learners[name], flat, start(cast.size)
        for seed in range(scenario.personal.rounds):
            own = learner.train(own, PERSONAL_SEED + seed).flat
        for seed in range(scenario.recipe.rounds):
            lone = learner.train(lone, PERSONAL_SEED + seed).flat
        personal |= accuracies({name: learner}, own)
        alone |= accuracies({name: learner}, lone)
    arms = {"shared": shared, "personal": personal, "alone": alone}
    worse = sum(personal[name] < shared[name] for name in shared)
    return {
        **{arm: spread_of(list(found.values())) for arm, found in arms.items()},
        "worse_than_shared": worse,
    }


def spread_of(values: Sequence[float]) -> dict[str, float] | None:
    """Of parties' accuracies; None of none."""
    if not values:
        return None
    low, first, middle, third, high = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
    return {
        "parties": len(values),
        "mean": round(statistics.fmean(values), 4),
        "least": round(low, 4),
        "first_quarter": round(first, 4),
        "median": round(middle, 4),
        "third_quarter": round(third, 4),
        "most": round(high, 4),
    }


def versions() -> dict[str, str]:
    """Of this program, Python and the libraries that results can depend on."""
    found = {"quietchoir": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_mb() -> float:
    """Peak resident memory of this process, in megabytes of 2^20."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
