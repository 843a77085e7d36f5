"""The real learner's seam to the trainer: vectors in, vectors out, nothing shared."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core.training.trainer import Trainer, order
from quietchoir.federation.cli.monitor import limits
from quietchoir.federation.client_node import ClientNode
from quietchoir.federation.events import FederationEvent, TrainedEvent
from quietchoir.federation.monitor.event_printer import sentence
from quietchoir.federation.spec.policy import AdapterTable, Recipe
from quietchoir.federation.store import member
from quietchoir.federation.store.database import Database
from quietchoir.federation.store.sent_messages import SentMessages
from quietchoir.federation.training.learner import Counts, Trained, TrainerLearner
from quietchoir.tests.fakes.buffered import buffered as buffered_house
from quietchoir.tests.fakes.buffered import run_of
from quietchoir.tests.fakes.federation import FixedLearner, clients, coordinator, house
from quietchoir.tests.fakes.training import chatter, tiny_pair


class HalfwayTrainer:
    """Trains halfway to one, in place of a model; scores what is above a half."""

    def train(
        self, flat_b: torch.Tensor, prepared: object, recipe: object, *, seed: int, on_step: object
    ) -> Any:
        flat_b += (1 - flat_b) / 2
        return SimpleNamespace(flat_b=flat_b, examples=3, tokens=30, loss=1.5, steps=1, left=0)

    def evaluate(self, flat_b: torch.Tensor, prepared: object) -> Any:
        return SimpleNamespace(correct=int((flat_b > 0.4).sum()), total=len(flat_b), near=0.5)


def test_training_leaves_the_federations_vector_alone() -> None:
    learner = TrainerLearner(HalfwayTrainer(), None, "tests", None)  # type: ignore[arg-type]
    flat = np.zeros(4, np.float32)
    trained = learner.train(flat, seed=1)
    assert flat.tolist() == [0.0] * 4
    assert trained.flat.tolist() == [0.5] * 4 and trained.flat.dtype == np.float32
    assert (trained.examples, trained.tokens, trained.loss) == (3, 30, 1.5)
    assert learner.evaluate(trained.flat) == Counts(4, 4, 0.5)


def test_a_party_without_held_out_examples_counts_none() -> None:
    learner = TrainerLearner(HalfwayTrainer(), None, None, None)  # type: ignore[arg-type]
    assert learner.evaluate(np.ones(4, np.float32)) == Counts(0, 0)


def test_a_proximal_pull_keeps_a_member_near_the_rounds_adapter() -> None:
    weights = tiny_pair()[0]
    table = AdapterTable(rank=2, alpha=4.0, upper_layers=2)
    trainer, moved = Trainer(weights, table.shape()), {}
    prepared = trainer.prepare(chatter(8))
    start = np.full(trainer.size, 0.02, np.float32)
    for proximal in (0.0, 1.0, 100.0):
        recipe = Recipe(lr=1e-2, batch=2, epochs=3, proximal=proximal)
        trained = TrainerLearner(trainer, prepared, None, recipe.trainer()).train(start, seed=1)
        moved[proximal] = float(np.linalg.norm(trained.flat - start))
        assert (trained.steps, trained.examples) == (12, 24)
    assert moved[100.0] < 0.7 * moved[0.0] and moved[1.0] < moved[0.0]
    with pytest.raises(ValueError, match="proximal"):
        Recipe(proximal=-1.0)


def test_who_has_much_data_trains_on_others_of_it_each_round() -> None:
    trainer = Trainer(tiny_pair()[0], AdapterTable(rank=2, alpha=4.0, upper_layers=2).shape())
    prepared, start = trainer.prepare(chatter(20)), np.zeros(trainer.size, np.float32)
    recipe = Recipe(batch=2).trainer()
    whole = TrainerLearner(trainer, prepared, None, recipe)
    trained = whole.tuned(1.0, 3, 0).train(start, seed=1)
    assert (trained.steps, trained.examples, trained.left) == (3, 6, 14)
    rounds = [order(20, replace(recipe, max_steps=3), seed) for seed in range(40)]
    assert {index for batches in rounds for batch in batches for index in batch} == set(range(20))
    assert rounds[0] != rounds[1]
    unbounded = whole.tuned(1.0, 0, 0).train(start, seed=1)
    assert (unbounded.steps, unbounded.left) == (10, 0)
    sixteen = TrainerLearner(trainer, prepared, None, replace(recipe, batch=16))
    batches = [sixteen.tuned(1.0, 0, least).recipe.batch for least in (0, 2, 3, 100)]
    assert batches == [16, 8, 4, 4]
    with pytest.raises(ValueError, match="local_steps"):
        Recipe(local_steps=-1)


def test_a_member_is_told_what_of_its_training_does_not_count(tmp_path: Path) -> None:
    class Wide(FixedLearner):
        def train(self, flat: Any, seed: int) -> Trained:
            change = np.where(np.arange(50) < 2, 0.5, 0.1).astype(np.float32)
            return Trained(flat=flat + change, examples=5, tokens=100, loss=2.0, left=7)

    home, told = house(mode="masked"), list[FederationEvent]()
    members = clients(home, 50, lambda name: Wide() if name == "ann" else FixedLearner())
    database = Database(tmp_path / member.FILE, member.TABLES, member.VERSION)
    node = object.__new__(ClientNode)
    node.database, node.trained, node.on_event = database, None, told.append
    for name in ("ann", "ben"):
        members[name].on_event = node.hear if name == "ann" else told.append
    members["ann"].on_answer = partial(node.note_sent, home.policy)
    coordinator(home, members, 50).run(rounds=1)
    events = [event for event in told if isinstance(event, TrainedEvent)]
    assert [(one.clipped, one.left) for one in events] == [(0.04, 7), (None, None)]
    words = str(sentence(events[0]))
    assert "7 examples wait" in words and "4.0 % of its values are cut" in words
    assert "cut" not in str(sentence(events[1]))
    rows = SentMessages(database).rounds()
    assert limits(rows) == (
        "; in its last training 4.0 % of its values were cut to the federation's range, 7 of its "
        "examples waited for a later round"
    )
    assert sum(row["bytes"] for row in rows) > 0 and not limits([])
    database.close()


def test_a_learning_rate_falls_in_a_line_to_the_last_rounds_share() -> None:
    recipe = Recipe(rounds=5, lr_last=0.2)
    shares = [recipe.lr_share(number) for number in (0, 1, 3, 5, 9)]
    assert shares == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2])
    assert [Recipe(rounds=1, lr_last=0.2).lr_share(1), Recipe().lr_share(7)] == [1.0, 1.0]
    for wrong in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"lr_last = {wrong}"):
            Recipe(lr_last=wrong)


@pytest.mark.parametrize("buffered", [False, True])
def test_each_round_trains_at_its_own_share_of_the_learning_rate(buffered: bool) -> None:
    class Slow(FixedLearner):
        def __init__(self, rates: list[float], rate: float = 1.0) -> None:
            super().__init__()
            self.rates, self.rate = rates, rate

        def tuned(self, share: float, max_steps: int, least_steps: int) -> "Slow":
            return Slow(self.rates, self.rate * share)

        def train(self, flat: Any, seed: int) -> Trained:
            self.rates.append(self.rate)
            return super().train(flat, seed)

    rates: list[float] = []
    home = (buffered_house if buffered else house)(
        mode="masked", recipe={"rounds": 3, "lr_last": 0.5}
    )
    members = clients(home, 50, lambda name: Slow(rates))
    run = (run_of if buffered else partial(coordinator, size=50))(home, members)
    run.logbook.skip()  # a number that came to nothing is no round
    run.run()
    assert set(rates) == {1.0, 0.75, 0.5}
