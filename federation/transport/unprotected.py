"""Plain averaging with Flower's public API alone: one message a node and round, nothing of ours in
between.

Knows Flower's messages and the learners. Knows nothing of the signed file, masks or our own door.
Always: a round below `min-nodes` ends the run; it is never averaged over fewer.

Hazard: no protection: every update travels and is read in clear. It is what stock Flower is
measured with (`bench federation`), and a first try of an engine; nothing for people who do not
trust each other.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from ...core.errors import ConfigError, RoundAborted
from ..aggregation.server_optimizer import FedAvgM
from ..spec.policy import AdapterTable, Recipe
from ..store.checkpoint import ServerState, Vector
from ..training.learner import Learner, TrainerLearner
from ..training.synthetic_task import RehearsalLearner
from .settings import UNPROTECTED_ROUNDS, Settings

REPLY_S = 3600.0  # training may take this long
WAIT_S = 120.0  # for nodes to come
ARRAYS, METRICS = "arrays", "metrics"


def average(grid: Grid, settings: Settings) -> None:
    """FedAvgM rounds, as in `quietchoir coordinate`, without its protection.

    Raises:
        RoundAborted: too few nodes or replies; nothing is averaged.
    """
    recipe = Recipe(rounds=settings.rounds or UNPROTECTED_ROUNDS)
    optimizer, state = (
        FedAvgM(recipe.server_lr, recipe.server_momentum),
        ServerState.zeros(vector_size(settings)),
    )
    for number in range(1, recipe.rounds + 1):
        started, nodes = time.monotonic(), wait_for_nodes(grid, settings.min_nodes)
        content = RecordDict({ARRAYS: ArrayRecord([state.flat])})
        messages = [
            Message(content, node, MessageType.TRAIN, group_id=str(number)) for node in nodes
        ]
        replies = [
            reply
            for reply in grid.send_and_receive(messages, timeout=REPLY_S)
            if not reply.has_error()
        ]
        if len(replies) < settings.min_nodes:
            raise RoundAborted(
                f"round {number}: {len(replies)} replies, need "
                f"{settings.min_nodes}; nothing is averaged"
            )
        updates = [reply.content[ARRAYS].to_numpy_ndarrays()[0] for reply in replies]  # type: ignore[union-attr]
        state = optimizer.step(state, np.mean(updates, axis=0, dtype=np.float32))
        right, of = (
            sum(counter(reply, name) for reply in replies) for name in ("correct", "total")
        )
        seconds = time.monotonic() - started
        print(
            f"quietchoir round {number}: {len(replies)} nodes, accuracy before it "
            f"{right / max(1, of):.3f}, {seconds:.1f} s",
            flush=True,
        )


def train(message: Message, settings: Settings, partition: int) -> Message:
    """Score, train, return the change."""
    flat: Vector = message.content[ARRAYS].to_numpy_ndarrays()[0]  # type: ignore[union-attr]
    learner = learner_of(settings, partition)
    counts = learner.evaluate(flat)
    trained = learner.train(flat, seed=int(message.metadata.group_id or 0))
    metrics = MetricRecord({"correct": counts.correct, "total": counts.total, "loss": trained.loss})
    return Message(
        RecordDict({ARRAYS: ArrayRecord([trained.flat - flat]), METRICS: metrics}), reply_to=message
    )


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
            raise RoundAborted(
                f"{len(nodes)} nodes came within {WAIT_S:.0f} s, need {need}; start more"
            )
        time.sleep(0.2)
    return nodes


def vector_size(settings: Settings) -> int:
    """Length of the adapter's flat vector."""
    if settings.rehearse:
        return settings.rehearse
    from ...core.models.hub import catalog
    from ...core.models.lora.adapter import Layout
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
        raise ConfigError(
            "run config: data is empty; name a folder made by `quietchoir data build home`"
        )
    from ...core.models.hub import catalog
    from ...core.models.weights import load
    from ...core.training.examples import read_jsonl
    from ...core.training.trainer import Trainer

    folder = Path(settings.data) / f"household-{partition}"
    trainer = Trainer(load(catalog.find(settings.model)), AdapterTable().shape())
    prepared, test = (
        trainer.prepare(read_jsonl(folder / name)) for name in ("train.jsonl", "test.jsonl")
    )
    return TrainerLearner(trainer, prepared, test, Recipe().trainer())
