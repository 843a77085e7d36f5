"""One simulated federation by one program, in a process of its own: what `simulate` compares.

    COMMAND ARM --parties N --values V --rounds R [--real] [--mode plain|masked|modelled]
                            prints one line of JSON

    ours     `simulations.run`, all parties in this process
    flower   Flower's simulation engine under Ray, through its public API alone
    pfl      Apple's pfl-research, numpy as its framework

Knows one piece of work and how each program is asked to do it. Judges nothing.
Always: every arm has the same parties, does the same work a party and round, scores the adapter and
then trains from it, and averages all of them with the same server step; a round with fewer parties
is an error. Rounds are timed from inside, so that starting is apart from them.

Hazard: peers protect nothing. Ray's own processes are ended by Ray.
"""

# ruff: noqa: ARG001, ARG002  (others say which arguments their programs are called with)
import argparse
import functools
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ...core.errors import QuietchoirError
from ...federation.aggregation.server_optimizer import FedAvgM
from ...federation.events import FederationEvent, RoundEvent
from ...federation.spec.policy import ProtectionTable, Recipe
from ...federation.store.checkpoint import ServerState
from ...federation.training.learner import Learner
from ...federation.training.synthetic_task import SyntheticLearner
from ..cast import Cast, make_learners
from ..population import populate
from ..run import simulate
from ..scenario import LINEAR, Population, Scenario

# not as `-m`: what Ray's workers are handed names this module, and there `__main__` is another
COMMAND = f"from {__name__} import main; main()"
EXAMPLES = 20  # a party's, of the real work
REAL = Recipe(lr=2e-2, batch=4, epochs=3)
SEED = 1


def scenario_of(parties: int, values: int, rounds: int, *, real: bool, mode: str) -> Scenario:
    """The federation, as ours is told it."""
    population = (
        Population(
            households=max(2, parties * EXAMPLES // 150),
            train=150,
            test=50,
            partition="iid",
            parties=parties,
        )
        if real
        else Population(kind="rehearsal", households=parties, values=values)
    )
    masked = mode != "plain"
    need = 2 * parties // 3 + 1
    return Scenario(
        name="bench",
        seed=SEED,
        model=LINEAR if real else Scenario(name="any").model,
        protection_cost="modelled" if mode == "modelled" else "run",
        population=population,
        protection=ProtectionTable(
            mode="masked" if masked else "plain", threshold=need if masked else 2, min_cohort=need
        ),
        recipe=Recipe(
            rounds=rounds, lr=REAL.lr, batch=REAL.batch, epochs=REAL.epochs, download="adapter"
        ),
    )


@functools.lru_cache(maxsize=1)
def cast_of(parties: int, values: int, real: bool) -> Cast:
    """Everybody's learner; once a process."""
    scenario = scenario_of(parties, values, 1, real=real, mode="plain")
    return make_learners(scenario, None, populate(scenario), lambda event: None)


@functools.lru_cache(maxsize=1 << 12)
def learner_of(number: int, parties: int, values: int, real: bool) -> Learner:
    """One party's, by its number."""
    if not real:  # nobody else's is needed
        return SyntheticLearner(values, str(number))
    learners = cast_of(parties, values, real).learners
    return learners[sorted(learners)[number]]


def ours(parties: int, values: int, rounds: int, real: bool, mode: str) -> list[float]:
    """Seconds of each round."""
    found, began = list[float](), [time.monotonic()]

    def note(event: FederationEvent) -> None:
        if isinstance(event, RoundEvent) and event.name == "round":
            if len(event.entry["parties"]) != parties:
                raise QuietchoirError(f"a round of {len(event.entry['parties'])} of {parties}")
            found.append(time.monotonic() - began[0])
            began[0] = time.monotonic()

    scenario = scenario_of(parties, values, rounds, real=real, mode=mode)
    cast = cast_of(parties, values, real)
    began[0] = time.monotonic()
    simulate(scenario, None, cast=cast, on_event=note)
    return found


def flower(parties: int, values: int, rounds: int, real: bool, mode: str) -> list[float]:
    """Seconds of each round. Args: mode: plain; there is no other here."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    server_app, client_app, found = ServerApp(), ClientApp(), list[float]()
    size = cast_of(parties, values, True).size if real else values

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        flat = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
        learner = learner_of(number, parties, values, real)
        counts, trained = learner.evaluate(flat), learner.train(flat, seed=SEED)
        metrics = MetricRecord(
            {"correct": counts.correct, "total": counts.total, "loss": trained.loss}
        )
        arrays = ArrayRecord([trained.flat - flat])
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        optimizer, state = FedAvgM(1.0, 0.7), ServerState.zeros(size)
        nodes = list(grid.get_node_ids())
        for number in range(rounds):
            began = time.monotonic()
            content = RecordDict({"arrays": ArrayRecord([state.flat])})
            sent = [Message(content, node, "train", group_id=str(number)) for node in nodes]
            total, came = np.zeros(size, np.float32), 0
            for reply in grid.send_and_receive(sent):
                if not reply.has_error():
                    total += reply.content.array_records["arrays"].to_numpy_ndarrays()[0]
                    came += 1
            if came != parties:
                raise QuietchoirError(f"a round of {came} of {parties}")
            state = optimizer.step(state, total / np.float32(parties))
            found.append(time.monotonic() - began)

    run_simulation(
        server_app, client_app, parties, backend_config={"client_resources": {"num_cpus": 1}}
    )
    if len(found) != rounds:
        raise QuietchoirError(f"{len(found)} rounds of {rounds}")
    return found


def pfl(parties: int, values: int, rounds: int, real: bool, mode: str) -> list[float]:
    """Seconds of each round."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import ModelHyperParams
    from pfl.metrics import Metrics
    from pfl.model.base import StatefulModel
    from pfl.stats import MappedVectorStatistics

    size = cast_of(parties, values, True).size if real else values
    learners = [learner_of(number, parties, values, real) for number in range(parties)]
    found, began = list[float](), [time.monotonic()]

    class Vector(StatefulModel):  # type: ignore[misc]
        def __init__(self) -> None:
            self.state, self.flat = ServerState.zeros(size), np.zeros(size, np.float32)
            self.optimizer = FedAvgM(1.0, 0.7)

        def get_parameters(self, placeholders: Any = None) -> Any:
            return MappedVectorStatistics({"w": self.flat}, weight=1)

        def set_parameters(self, w: Any) -> None:
            self.flat = w["w"]

        def get_model_difference(self, other_parameters: Any, clone: bool = False) -> Any:
            return MappedVectorStatistics({"w": self.flat - other_parameters["w"]}, weight=1)

        def apply_model_update(self, statistics: Any) -> Any:
            self.state = self.optimizer.step(self.state, statistics["w"].astype(np.float32))
            self.flat = self.state.flat
            return self, Metrics()

        def evaluate(self, dataset: Any, name_formatting_fn: Any, eval_params: Any = None) -> Any:
            return Metrics()

        def save(self, dir_path: str) -> None: ...

        def load(self, dir_path: str) -> None: ...

    class Averaging(FederatedAveraging):  # type: ignore[misc]
        def train_one_user(
            self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any
        ) -> Any:
            learner, flat = learners[int(user_dataset.raw_data[0][0])], model.flat
            learner.evaluate(flat)
            model.flat = learner.train(flat, seed=SEED).flat
            return model.get_model_difference(initial_model_state), Metrics()

    class Watch(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> Any:
            found.append(time.monotonic() - began[0])
            began[0] = time.monotonic()
            return False, Metrics()

    users = [str(number) for number in range(parties)]
    sampler = get_user_sampler("minimize_reuse", users)
    people = FederatedDataset(lambda name: Dataset([np.array([int(name)])], user_id=name), sampler)
    settings = NNAlgorithmParams(
        central_num_iterations=rounds,
        evaluation_frequency=10**9,
        train_cohort_size=parties,
        val_cohort_size=0,
    )
    began[0] = time.monotonic()
    backend = SimulatedBackend(training_data=people, val_data=people)
    Averaging().run(
        settings,
        backend,
        Vector(),
        ModelHyperParams(),
        callbacks=[Watch()],
        send_metrics_to_platform=False,
    )
    return found


ARMS: dict[str, Callable[[int, int, int, bool, str], list[float]]] = {
    "ours": ours,
    "flower": flower,
    "pfl": pfl,
}


def main() -> None:
    """Run one arm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("arm", choices=ARMS)
    for name in ("parties", "values", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--mode", choices=("plain", "masked", "modelled"), default="plain")
    chosen = parser.parse_args()
    began = time.monotonic()
    rounds = ARMS[chosen.arm](
        chosen.parties, chosen.values, chosen.rounds, chosen.real, chosen.mode
    )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "rounds_s": rounds,
        "whole_s": time.monotonic() - began,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
    }
    print(json.dumps(found))
