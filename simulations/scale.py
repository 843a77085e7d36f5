"""Beyond one machine: the same federation under Ray, on stock Flower processes, and in this
process, compared.

    python -m quietchoir.simulations.scale [--nodes 20] [--rounds 2] [--out FILE]

Knows how a rehearsed federation is handed to Flower's engines, and how far two runs of it may
differ. Knows nothing of how either carries messages.
Always: the three runs have the same members, keys, seeds and federation file; what an engine made
is compared with what this process makes of the same, and a difference beyond rounding is an error.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config import ConsentConfig
from ..core.errors import ConfigError, QuietchoirError
from ..core.hardware.discovery import core_count
from ..core.paths import write_atomically
from ..crypto.identity.keys import Identity
from ..federation.membership import founding, roster
from ..federation.membership.keys import load_or_create
from ..federation.rounds.client import Client
from ..federation.rounds.scheduler import FOR_NOBODY
from ..federation.rounds.server import RoundServer
from ..federation.spec.policy import Policy
from ..federation.store import checkpoint
from ..federation.store.checkpoint import RunState, Vector
from ..federation.store.client_store import ClientStore
from ..federation.store.member import open_member
from ..federation.training.synthetic_task import STEP, StatelessSyntheticLearner
from . import machine, report, results
from .cast import Cast
from .cluster import Cluster, ClusterPlan
from .engines import FlowerEngine
from .inprocess import InProcessLink
from .processes import Child
from .scenario import Scenario, ScenarioArm

OnEngine = Callable[[FlowerEngine], None]
ROUND = "quietchoir round "  # what the ServerApp prints after each
EVENT_S = 300.0  # for one line of a machine that may be busy
FLOAT_NOISE = 1e-6  # of sums of float32 near 0.1, in another order


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutcome:
    """One engine's run of one federation."""

    engine: str
    mode: str
    nodes: int
    rounds: int
    start_s: float  # until every node had said who it is
    round_s: float  # median
    bytes_down: int  # a node and round
    bytes_up: int
    memory_mb: float  # peak resident, all processes; what they share is counted more than once
    difference: float  # largest, of any value of the adapter, from the run in this process
    bound: float  # what rounding explains


def simulated(
    folder: Path, plan: ClusterPlan, *, cpus: int = 2, on_engine: OnEngine = lambda engine: None
) -> EngineOutcome:
    """Under Ray.

    Args:
        on_engine: is shown the engine once it is open.

    Raises:
        ConfigError: Ray is not installed.
        QuietchoirError: the run failed, or its adapter is not the one that this process makes.
    """
    if find_spec("ray") is None:
        raise ConfigError(
            "Flower simulates nodes with Ray, which is not installed; run: pip "
            "install 'quietchoir[scale]'"
        )
    with FlowerEngine(folder / "logs", nodes=plan.nodes, cpus=cpus) as engine:
        on_engine(engine)
        cluster = Cluster(engine.stage, folder / "cluster", plan)
        started = time.monotonic()
        child = engine.run({**settings(folder, cluster), "homes": str(cluster.folder)})
        return followed("ray", engine, cluster, child, started, folder)


def deployed(
    folder: Path, plan: ClusterPlan, *, on_engine: OnEngine = lambda engine: None
) -> EngineOutcome:
    """On a stock SuperLink with stock SuperNodes.

    Raises:
        QuietchoirError: the run failed, or its adapter is not the one that this process makes.
    """
    with FlowerEngine(folder / "logs") as engine:
        on_engine(engine)
        cluster = Cluster(engine.stage, folder / "cluster", plan)
        started = time.monotonic()
        for name in plan.names:
            own = {
                "home": cluster.folder / name,
                "federation": cluster.file,
                "config": cluster.settings,
            }
            engine.node(name, {key: str(path) for key, path in own.items()})
        child = engine.run(settings(folder, cluster))
        return followed("supernodes", engine, cluster, child, started, folder)


def settings(folder: Path, cluster: Cluster) -> dict[str, str | int]:
    """What both engines are told of a run."""
    return {
        "federation": str(cluster.file),
        "state": str(folder / "state"),
        "rehearse": cluster.plan.size,
    }


def followed(
    name: str, engine: FlowerEngine, cluster: Cluster, child: Child, started: float, folder: Path
) -> EngineOutcome:
    """Wait for the rounds of a run, then compare. The run's last steps, scoring and delivering,
    are not waited for.
    """
    plan = cluster.plan
    child.wait_for(lambda text: f"{plan.nodes} of {plan.nodes} members" in text, EVENT_S)
    start_s = time.monotonic() - started
    for number in range(1, plan.rounds + 1):
        child.wait_for(
            lambda text, wanted=f"{ROUND}{number}:": wanted in text,  # type: ignore[misc]
            EVENT_S * plan.nodes,
        )
    memory_mb = engine.memory_mb()
    state = checkpoint.read(folder / "state")
    if state is None:
        raise QuietchoirError(
            f"{name}: the rounds ended and nothing is written in {folder / 'state'}"
        )
    entries = state.history[: plan.rounds]
    if any(len(entry["parties"]) != plan.nodes for entry in entries):
        raise QuietchoirError(
            f"{name}: a round went without a member, so there is nothing to "
            f"compare; see {child.log}"
        )
    policy = roster.load(cluster.file)
    reference = in_process(cluster, policy)
    difference = max(
        float(np.abs(flat - reference).max()) for flat in adapters(cluster, policy, state)
    )
    bound = rounding(policy, plan.rounds)
    if difference > bound:
        raise QuietchoirError(
            f"{name}: a value differs by {difference:.3g} from the run in this "
            f"process, at most {bound:.3g}"
        )
    return EngineOutcome(
        engine=name,
        mode=plan.mode,
        nodes=plan.nodes,
        rounds=plan.rounds,
        start_s=round(start_s, 1),
        round_s=round(statistics.median(entry["seconds"] for entry in entries), 2),
        memory_mb=round(memory_mb),
        bytes_down=mean_of(entries, "bytes_down", plan.nodes),
        bytes_up=mean_of(entries, "bytes_up", plan.nodes),
        difference=difference,
        bound=bound,
    )


def mean_of(entries: Sequence[Mapping[str, Any]], key: str, nodes: int) -> int:
    """Bytes a node and round."""
    return sum(sum(entry[key].values()) for entry in entries) // (len(entries) * nodes)


def adapters(cluster: Cluster, policy: Policy, state: RunState) -> list[Vector]:
    """The run's adapter; where members hold it, each one's own."""
    if policy.can.model_held_by == "server":
        return [state.server.flat]
    found = list[Vector]()
    for name in cluster.plan.names:
        with closing(open_member(roster.folder(cluster.folder / name, policy))) as database:
            store = ClientStore(database, cluster.plan.size)
            found.append(store.progress(state.run).server.flat)
    return found


def in_process(cluster: Cluster, policy: Policy) -> Vector:
    """The adapter that the same members make in this process; where they would encrypt, in clear:
    all modes sum the same integers.
    """
    if policy.can.model_held_by == "members":
        clear = dataclasses.replace(policy.protection, mode="plain", key="shared")
        policy = dataclasses.replace(policy, protection=clear)
    anything = ConsentConfig(min_cohort=1, modes=("plain", "masked", "sealed"))
    size, clients = cluster.plan.size, dict[str, Client]()
    for name in cluster.plan.names:
        identity = load_or_create(cluster.folder / name).identity
        clients[name] = Client(
            policy, identity, StatelessSyntheticLearner(size, name), size=size, consent=anything
        )
    link = InProcessLink({name: client.handle for name, client in clients.items()})
    signer = Identity.load(cluster.folder / founding.COORDINATOR_KEY)
    run = RoundServer(policy, signer, link, size=size, waiting=FOR_NOBODY)
    run.run()
    return run.state.server.flat


def rounding(policy: Policy, rounds: int) -> float:
    """How far a value of two equal runs can lie apart: both round each update up or down at random,
    and go on from there.

    A member's update pulls towards the target by `STEP` of the distance, so a difference from
    earlier rounds comes back with it; the server's momentum keeps what came before.
    """
    recipe, levels = policy.recipe, (1 << policy.protection.bits) - 1
    step = 2 * recipe.update_range / levels  # two neighbours on the grid
    flat = velocity = 0.0
    for _ in range(rounds):
        velocity = recipe.server_momentum * velocity + step + STEP * flat + FLOAT_NOISE
        flat += recipe.server_lr * velocity
    return flat


def perform(arm: ScenarioArm, folder: Path) -> dict[str, Any]:
    """Run a scenario under Ray, on as many processors as Ray finds, and keep its result.

    Raises:
        ConfigError: what Flower's engine cannot play. QuietchoirError: as `simulated`.
    """
    check_engine(arm.scenario)
    quiet = dataclasses.replace(arm.scenario.recipe, evaluate_every=0)
    arm = dataclasses.replace(arm, scenario=dataclasses.replace(arm.scenario, recipe=quiet))
    scenario = arm.scenario
    population = scenario.population
    usual = Scenario(name=scenario.name, population=population)
    plan = ClusterPlan(
        nodes=population.households,
        mode=scenario.protection.mode,
        key=scenario.protection.key,
        size=population.values,
        bits=scenario.protection.bits,
        rounds=scenario.recipe.rounds,
        min_cohort=scenario.protection.min_cohort,
        threshold=scenario.protection.threshold,
        ranks=population.ranks,
        rank=scenario.adapter.rank,
        recipe=differing(scenario.recipe, usual.recipe),
        tables={name: getattr(scenario, name) for name in ("privacy", "guard", "aggregation")},
    )
    wall = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quietchoir-ray-") as scratch:
        outcome = simulated(Path(scratch), plan, cpus=core_count())
        state = checkpoint.read(Path(scratch) / "state")
        told = results.Told()
        told.entries = [] if state is None else list(state.history)
    found = {
        **results.head_of(arm),
        "parties": plan.nodes,
        "values": plan.size,
        "seconds": round(time.monotonic() - wall, 3),
        "processor_s": None,  # other processes'
        "resumed": False,
        "peak_mb": outcome.memory_mb,
        "failed": "",
        **told.measures(scenario, None, plan.size),
        **results.judged(scenario, Cast({}, plan.size), None),
        "engine": asdict(outcome),
    }
    results.keep(folder, found)
    return found


def check_engine(scenario: Scenario) -> None:
    """Raises ConfigError: a scenario that Flower's engine does not play."""
    strange = {
        "population.kind": scenario.population.kind != "rehearsal",
        "population.portions": bool(scenario.population.portions),
        "availability": scenario.availability.on,
        "schedule.rounds": scenario.schedule.buffered,
        "dropouts": scenario.dropouts.share > 0,
        "faults": bool(scenario.faults),
        "attack": bool(scenario.attack),
        "personal": scenario.personal.rounds > 0,
        "protection_cost": scenario.protection_cost != "run",
    }
    if found := [name for name, there in strange.items() if there]:
        raise ConfigError(
            f"scenario {scenario.name}: --engine ray plays rehearsals whose parties are all there; "
            f"it cannot play {', '.join(found)}"
        )


def differing(table: Any, usual: Any) -> dict[str, Any]:
    """Fields of a table that are not as usual."""
    fields = ((one.name, getattr(table, one.name)) for one in dataclasses.fields(table))
    return {name: value for name, value in fields if value != getattr(usual, name)}


def measured(nodes: int, rounds: int, folder: Path) -> Iterator[EngineOutcome]:
    """The table's rows, as they come."""
    recipe = {"evaluate_every": 0, "stage_timeout_s": 300.0}
    for mode in ("plain", "masked"):
        plan = ClusterPlan(
            nodes=nodes, mode=mode, size=20_000, bits=16, rounds=rounds, recipe=recipe
        )
        yield simulated(folder / f"ray-{mode}", plan)
    for mode in ("plain", "masked"):
        plan = ClusterPlan(nodes=3, mode=mode, size=20_000, bits=16, rounds=1, recipe=recipe)
        yield deployed(folder / f"supernodes-{mode}", plan)


def main() -> None:
    """Run, and print one table."""
    from rich.table import Table

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--nodes", type=int, default=20, help="simulated under Ray; the deployment has three"
    )
    parser.add_argument("--rounds", type=int, default=2, help="under Ray; the deployment runs one")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the rows as JSON beside the table"
    )
    arguments = parser.parse_args()
    console = report.wide_console()
    console.print(machine.line())
    table = Table(
        "engine",
        "mode",
        "nodes",
        "start s",
        "round s",
        "bytes down",
        "bytes up",
        "MB",
        "differs by",
        "at most",
    )
    outcomes: list[EngineOutcome] = []
    with tempfile.TemporaryDirectory(prefix="quietchoir-scale-") as folder:
        for one in measured(arguments.nodes, arguments.rounds, Path(folder)):
            outcomes.append(one)
            console.print(
                f"{one.engine}, {one.mode}: a round takes {one.round_s:.1f} s", style="dim"
            )
            table.add_row(
                one.engine,
                one.mode,
                str(one.nodes),
                f"{one.start_s:.1f}",
                f"{one.round_s:.2f}",
                f"{one.bytes_down:,}",
                f"{one.bytes_up:,}",
                f"{one.memory_mb:.0f}",
                f"{one.difference:.1e}",
                f"{one.bound:.1e}",
            )
    console.print(table)
    if arguments.out is not None:
        rows = {"machine": machine.line(), "outcomes": [asdict(one) for one in outcomes]}
        write_atomically(arguments.out, json.dumps(rows, indent=2).encode() + b"\n")


if __name__ == "__main__":
    try:
        main()
    except QuietchoirError as error:
        sys.exit(f"error: {error}")
