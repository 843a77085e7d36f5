"""What stock Flower is measured with: plain FedAvgM through its public API alone, one message a
node and round, nothing of ours in between.

Knows Flower's messages and a synthetic task. Runs in Flower's own processes (`federation_stock`).
Always: a round below `min-nodes` ends the run; it is never averaged over fewer.

Hazard: no protection: every update travels and is read in clear. For benchmarks alone.
"""

import time
from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from ...core.errors import RoundAborted
from ...federation.aggregation.server_optimizer import FedAvgM
from ...federation.spec.policy import Recipe
from ...federation.store.checkpoint import ServerState
from ...federation.training.synthetic_task import SyntheticLearner

REPLY_S = 3600.0  # training may take this long
WAIT_S = 120.0  # for nodes to come
ARRAYS, METRICS = "arrays", "metrics"

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """`rounds` rounds over an adapter of `rehearse` values.

    Raises:
        RoundAborted: too few nodes or replies; nothing is averaged.
    """
    rounds, need, size = (
        int(context.run_config[name]) for name in ("rounds", "min-nodes", "rehearse")
    )
    recipe, state = Recipe(rounds=rounds), ServerState.zeros(size)
    optimizer = FedAvgM(recipe.server_lr, recipe.server_momentum)
    for number in range(1, rounds + 1):
        started, nodes = time.monotonic(), wait_for_nodes(grid, need)
        content = RecordDict({ARRAYS: ArrayRecord([state.flat])})
        messages = [
            Message(content, node, MessageType.TRAIN, group_id=str(number)) for node in nodes
        ]
        replies = [
            reply
            for reply in grid.send_and_receive(messages, timeout=REPLY_S)
            if not reply.has_error()
        ]
        if len(replies) < need:
            raise RoundAborted(
                f"round {number}: {len(replies)} replies, need {need}; nothing is averaged"
            )
        updates = [values_of(reply) for reply in replies]
        state = optimizer.step(state, np.mean(updates, axis=0, dtype=np.float32))
        right, of = (
            sum(counter(reply, name) for reply in replies) for name in ("correct", "total")
        )
        print(
            f"quietchoir round {number}: {len(replies)} nodes, accuracy before it "
            f"{right / max(1, of):.3f}, {time.monotonic() - started:.1f} s",
            flush=True,
        )


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Score, train, return the change."""
    flat = values_of(message)
    learner = SyntheticLearner(len(flat), str(context.node_config.get("partition-id", 0)))
    counts = learner.evaluate(flat)
    trained = learner.train(flat, seed=int(message.metadata.group_id or 0))
    metrics = MetricRecord({"correct": counts.correct, "total": counts.total, "loss": trained.loss})
    return Message(
        RecordDict({ARRAYS: ArrayRecord([trained.flat - flat]), METRICS: metrics}), reply_to=message
    )


def values_of(message: Message) -> np.ndarray:
    """The one vector [n] of a message."""
    arrays: np.ndarray = message.content.array_records[ARRAYS].to_numpy_ndarrays()[0]
    return arrays


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
