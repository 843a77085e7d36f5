"""Plain `ServerApp` and `ClientApp` objects, so that stock `flwr run` works on Flower's own engines.

Knows Flower's public API only. Knows nothing of the signed file, masks or our own door.
Always: a round below `min-nodes` ends the run; it is never averaged over fewer.

Hazard: no protection: Flower's engines carry every update in clear to the ServerApp, and start a process (and
load the model) for every message. Use them to measure and to scale experiments, not among people who do not
trust each other; `quietchoir coordinate` and `join` are for that.

Settings ([tool.flwr.app.config], or `flwr run . --run-config "…"`): rounds, min-nodes, rehearse (values of a
pretended adapter; 0 trains in earnest), model, data (a folder of household-0, household-1, …).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from ...core.errors import ConfigError, RoundAborted
from ..learning.aggregate import FedAvgM, ServerState, Vector
from ..learning.learner import Learner, TrainerLearner
from ..learning.rehearsal import RehearsalLearner
from ..membership.policy import AdapterTable, Recipe

REPLY_S = 3600.0  # training may take this long
WAIT_S = 120.0  # for nodes to come
ARRAYS, METRICS = "arrays", "metrics"


@dataclass(frozen=True, slots=True)
class Settings:
    """The run's configuration, typed."""

    rounds: int
    min_nodes: int
    rehearse: int
    model: str
    data: str

    @staticmethod
    def read(context: Context) -> "Settings":
        """Raises ConfigError for a value of another type."""
        defaults = {"rounds": 10, "min-nodes": 2, "rehearse": 0, "model": "smollm2-135m-instruct", "data": ""}
        values = {key: context.run_config.get(key, default) for key, default in defaults.items()}
        for key, default in defaults.items():
            if type(values[key]) is not type(default):
                raise ConfigError(f"run config: {key} = {values[key]!r} must be {type(default).__name__}")
        return Settings(**{key.replace("-", "_"): value for key, value in values.items()})  # type: ignore[arg-type]


server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvgM rounds, as in `quietchoir coordinate`, without its protection."""
    settings = Settings.read(context)
    recipe = Recipe(rounds=settings.rounds)
    optimizer, state = FedAvgM(recipe.server_lr, recipe.server_momentum), ServerState.zeros(vector_size(settings))
    for number in range(1, settings.rounds + 1):
        started, nodes = time.monotonic(), wait_for_nodes(grid, settings.min_nodes)
        content = RecordDict({ARRAYS: ArrayRecord([state.flat])})
        messages = [Message(content, node, MessageType.TRAIN, group_id=str(number)) for node in nodes]
        replies = [reply for reply in grid.send_and_receive(messages, timeout=REPLY_S) if not reply.has_error()]
        if len(replies) < settings.min_nodes:
            raise RoundAborted(f"round {number}: {len(replies)} replies, need {settings.min_nodes}; nothing is averaged")
        updates = [reply.content[ARRAYS].to_numpy_ndarrays()[0] for reply in replies]  # type: ignore[union-attr]
        state = optimizer.step(state, np.mean(updates, axis=0, dtype=np.float32))
        right, of = (sum(counter(reply, name) for reply in replies) for name in ("correct", "total"))
        seconds = time.monotonic() - started
        print(
            f"quietchoir round {number}: {len(replies)} nodes, accuracy before it {right / max(1, of):.3f}, {seconds:.1f} s",
            flush=True,
        )


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Score, train, return the change."""
    settings, partition = Settings.read(context), int(context.node_config.get("partition-id", 0))
    flat: Vector = message.content[ARRAYS].to_numpy_ndarrays()[0]  # type: ignore[union-attr]
    learner = learner_of(settings, partition)
    counts = learner.evaluate(flat)
    trained = learner.train(flat, seed=int(message.metadata.group_id or 0))
    metrics = MetricRecord({"correct": counts.correct, "total": counts.total, "loss": trained.loss})
    return Message(RecordDict({ARRAYS: ArrayRecord([trained.flat - flat]), METRICS: metrics}), reply_to=message)


def counter(reply: Message, name: str) -> int:
    """One whole number of a reply's metrics; 0 if it is none."""
    metrics: Mapping[str, object] = reply.content.metric_records.get(METRICS, {})
    value = metrics.get(name)
    return value if isinstance(value, int) else 0


def wait_for_nodes(grid: Grid, need: int) -> list[int]:
    """Everybody who is there, once enough are.

    Raises:
        RoundAborted: too few for too long.
    """
    deadline = time.monotonic() + WAIT_S
    while len(nodes := sorted(grid.get_node_ids())) < need:
        if time.monotonic() > deadline:
            raise RoundAborted(f"{len(nodes)} nodes came within {WAIT_S:.0f} s, need {need}; start more")
        time.sleep(0.2)
    return nodes


def vector_size(settings: Settings) -> int:
    """Length of the adapter's flat vector."""
    if settings.rehearse:
        return settings.rehearse
    from ...core.models import catalog
    from ...core.models.adapter import Layout
    from ...core.models.weights import load

    return Layout(AdapterTable().shape(), load(catalog.find(settings.model)).architecture).size


@lru_cache(maxsize=4)
def learner_of(settings: Settings, partition: int) -> Learner:
    """One partition's learner; kept for as long as Flower keeps this process.

    Raises:
        ConfigError: no data folder.
    """
    if settings.rehearse:
        return RehearsalLearner(settings.rehearse, str(partition))
    if not settings.data:
        raise ConfigError("run config: data is empty; name a folder made by `quietchoir data build home`")
    from ...core.models import catalog
    from ...core.models.weights import load
    from ...core.training.examples import read_jsonl
    from ...core.training.trainer import Trainer

    folder = Path(settings.data) / f"household-{partition}"
    trainer = Trainer(load(catalog.find(settings.model)), AdapterTable().shape())
    prepared, test = (trainer.prepare(read_jsonl(folder / name)) for name in ("train.jsonl", "test.jsonl"))
    return TrainerLearner(trainer, prepared, test, Recipe().trainer())
