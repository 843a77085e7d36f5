"""Members whose models differ: what is summed, what it teaches, and what the coordinator sees."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quietchoir.core.errors import ConfigError, DataError
from quietchoir.core.models.lora.adapter import Adapter, AdapterShape
from quietchoir.core.models.lora.layout import Layout
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.distillation.candidates import CandidateScorer, PublicItem, PublicSet
from quietchoir.core.training.trainer import Hyperparameters, Trainer
from quietchoir.federation.aggregation import plain, secagg
from quietchoir.federation.cli import membership
from quietchoir.federation.client_node import ClientOptions, check_public
from quietchoir.federation.rounds.server import RoundServer
from quietchoir.federation.spec.policy import DistillationTable, GuardTable, PrivacyTable, Recipe
from quietchoir.federation.training.distillation import (
    OWN_FILE,
    DistillationLearner,
    read_public,
    score_limit,
)
from quietchoir.tests.fakes.federation import clients, coordinator, house
from quietchoir.tests.fakes.training import conversation, tiny_pair

ANSWERS = ("left", "right", "up")
RECIPE = {"server_optimizer": "fedavg", "update_range": 16.0, "rounds": 2, "evaluate_every": 0}
SHAPE = AdapterShape(rank=4, alpha=8.0, upper_layers=2, seed=7)
TRAINING = Hyperparameters(lr=0.03, batch=4, epochs=12)
SYSTEM = {"role": "system", "content": "Do it."}


def public_set(requests: list[str]) -> PublicSet:
    items = tuple(
        PublicItem((SYSTEM, {"role": "user", "content": request}), ANSWERS) for request in requests
    )
    return PublicSet(items, "ab" * 32)


ASKED = ["which way?", "where now?", "and then?", "go on?"]
PUBLIC = public_set(ASKED)
TABLE = DistillationTable(public=PUBLIC.digest, items=len(ASKED), answers=len(ANSWERS))


@pytest.fixture(scope="module")
def models() -> list[Weights]:
    """Two models of different numbers."""
    return [tiny_pair(seed)[0] for seed in (0, 1)]


@pytest.fixture(scope="module")
def scorers(models: list[Weights]) -> list[CandidateScorer]:
    trainers = [Trainer(one, SHAPE, precision="float32") for one in models]
    limit = 0.48 * RECIPE["update_range"]  # type: ignore[operator]
    return [CandidateScorer(trainer, PUBLIC, limit) for trainer in trainers]


def learner(scorer: CandidateScorer, answers: dict[str, str], **given: Any) -> DistillationLearner:
    train = scorer.trainer.prepare([conversation(*one) for one in answers.items()])
    return DistillationLearner(scorer, train, None, TRAINING, learned_epochs=40, **given)


def federation(
    scorers: list[CandidateScorer],
    mode: str,
    secrets: dict[str, dict[str, str]],
    *,
    bits: int = 12,
    tables: dict[str, Any] | None = None,
) -> tuple[RoundServer, dict[str, DistillationLearner]]:
    """Members of two models by turns, each with examples of its own."""
    given = {"distillation": TABLE, **(tables or {})}
    home = house(len(secrets), mode=mode, recipe=RECIPE, tables=given, bits=bits)
    learners = {
        name: learner(scorers[number % 2], secrets[name])
        for number, name in enumerate(home.members)
    }
    members = clients(home, TABLE.size, learners.__getitem__)
    return coordinator(home, members, TABLE.size), learners


RIGHT = ("right", "up", "left", "up")
FIRST = dict(zip(ASKED[:2], RIGHT[:2], strict=True))
LAST = dict(zip(ASKED[2:], RIGHT[2:], strict=True))
KNOWN = {"ann": FIRST, "ben": LAST, "cat": FIRST, "dan": LAST}  # one model knows each


def test_what_one_model_knows_is_learned_by_another_model(scorers: list[CandidateScorer]) -> None:
    """Masked rounds of scores alone: adapters differ in meaning, and none of them travels."""
    run, learners = federation(scorers, "masked", KNOWN)
    run.insist(run.train_round)
    said = np.mean([one.scorer.scores(one.own).numpy() for one in learners.values()], axis=0)
    agreed = run.state.server.flat.reshape(len(ASKED), len(ANSWERS))
    # 12 bits of [-16, 16], rounded at random
    np.testing.assert_allclose(agreed, said, atol=32 / 2**12 * 2)

    def untaught() -> int:
        """Right answers to what a member's own examples do not say, of eight."""
        found = 0
        for name, one in learners.items():
            best = one.scorer.scores(one.own).argmax(1).tolist()
            found += sum(
                ANSWERS[place] == answer and question not in KNOWN[name]
                for place, question, answer in zip(best, ASKED, RIGHT, strict=True)
            )
        return found

    before = untaught()
    for one in learners.values():
        one.learn(run.state.server.flat, 1)
    assert untaught() >= max(6, before + 3), before


@pytest.mark.parametrize(("mode", "reads"), [("plain", True), ("masked", False)])
def test_a_coordinator_reads_a_members_scores_only_where_nothing_is_masked(
    scorers: list[CandidateScorer], monkeypatch: pytest.MonkeyPatch, mode: str, reads: bool
) -> None:
    """The unprotected arm must succeed: otherwise this test would show nothing."""
    held = list[np.ndarray]()

    def note(words: np.ndarray, kind: str, *rest: int) -> dict[str, object]:
        held.append(np.array(words, np.float64))
        return {"kind": kind}

    for place in (plain, secagg):
        monkeypatch.setattr(place, "describe", note)
    run, learners = federation(scorers, mode, KNOWN)
    run.insist(run.train_round)
    words = held[0][: TABLE.size]
    truths = [one.scorer.scores(one.own).numpy().reshape(-1) for one in learners.values()]
    alike = max(abs(float(np.corrcoef(words, truth)[0, 1])) for truth in truths)
    assert (alike > 0.99) == reads, alike


def test_a_private_federation_of_scores_pays_for_its_rounds(scorers: list[CandidateScorer]) -> None:
    privacy = PrivacyTable(
        mechanism="skellam", clip=8.0, noise_multiplier=2.0, epsilon=8.0, delta=1e-5
    )
    run, _ = federation(scorers, "masked", KNOWN, bits=16, tables={"privacy": privacy})
    run.insist(run.train_round)
    spent = run.privacy_spent()
    assert spent is not None
    assert 0 < float(str(spent["epsilon"])) <= privacy.epsilon
    assert run.report(0.0, "").accuracy["after"] is None  # no counter leaves a member


def test_scores_never_leave_their_range_and_say_nothing_of_an_answers_length(
    scorers: list[CandidateScorer],
) -> None:
    one = scorers[0]
    wild = torch.randn(one.trainer.size, generator=torch.Generator().manual_seed(1)) * 50
    for flat in (torch.zeros(one.trainer.size), wild):
        scores = one.scores(flat)
        assert bool(scores.abs().max() <= one.limit)
        assert bool(torch.isfinite(scores).all())
    assert bool(one.scores(wild).abs().max() > one.limit / 2)  # the range is used


def test_an_adapter_is_kept_before_anything_of_it_is_sent_and_taken_up_again(
    scorers: list[CandidateScorer], tmp_path: Path
) -> None:
    first = learner(scorers[0], KNOWN["ann"], folder=tmp_path)
    first.train(np.zeros(TABLE.size, np.float32), 1)
    again = learner(scorers[0], KNOWN["ann"], folder=tmp_path)
    assert torch.equal(first.own, again.own)
    again.finished(np.zeros(TABLE.size, np.float32))[0].save(tmp_path / "own")
    assert Adapter.load(tmp_path / "own").base_digest == scorers[0].trainer.weights.digest
    np.save(tmp_path / OWN_FILE, np.zeros(3, np.float32))
    with pytest.raises(DataError, match="join with the model that it was trained with"):
        learner(scorers[0], KNOWN["ann"], folder=tmp_path)
    (tmp_path / OWN_FILE).write_bytes(b"no array")
    with pytest.raises(DataError, match="damaged"):
        learner(scorers[0], KNOWN["ann"], folder=tmp_path)


def flat_of(adapter: Adapter) -> torch.Tensor:
    """All its B in one vector, as trainers have it."""
    return Layout(adapter.shape, tiny_pair(0)[0].architecture).flatten(adapter.tensors)


def scores_for(answers: dict[str, str], size: float = 7.0) -> np.ndarray:
    """Scores that are sure of these answers, flat."""
    rows = [[size if one == answers[asked] else -size / 2 for one in ANSWERS] for asked in ASKED]
    return np.array(rows, np.float32).reshape(-1)


def test_what_a_coordinator_hands_out_at_the_end_is_in_no_later_sum_and_makes_nothing_worse(
    scorers: list[CandidateScorer], tmp_path: Path
) -> None:
    right = dict(zip(ASKED, RIGHT, strict=True))
    wrong = {question: ANSWERS[ANSWERS.index(answer) - 1] for question, answer in right.items()}
    one = learner(scorers[0], FIRST, folder=tmp_path)
    one.train(np.zeros(TABLE.size, np.float32), 1)
    own, kept = one.own.clone(), (tmp_path / OWN_FILE).read_bytes()
    blind = flat_of(one.finished(scores_for(wrong, 1e6))[0])
    # nothing to check it with: the lie is learned, by the copy that is handed to the owner
    assert not torch.equal(blind, own)
    one.test = scorers[0].trainer.prepare([conversation(*pair) for pair in right.items()])
    before, after = (one.trainer.evaluate(flat, one.test).near for flat in (own, blind))
    assert after < before - 0.1
    adapter, learned = one.finished(scores_for(wrong, 1e6))
    assert not learned and torch.equal(flat_of(adapter), own)
    adapter, learned = one.finished(scores_for(right))
    assert learned and not torch.equal(flat_of(adapter), own)
    # what is contributed next is made from what was there before, in memory and on the disk
    assert torch.equal(one.own, own) and (tmp_path / OWN_FILE).read_bytes() == kept
    one.learn(scores_for(wrong), 1)
    assert not torch.equal(one.own, own)  # a round's own scores do move it


def test_a_members_training_keeps_to_the_rounds_rate_and_steps(
    scorers: list[CandidateScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = list[tuple[float, int]](), Trainer.train

    def spy(self: Trainer, start: Any, prepared: Any, recipe: Hyperparameters, **more: Any) -> Any:
        result = real(self, start, prepared, recipe, **more)
        seen.append((recipe.lr, result.steps))
        return result

    monkeypatch.setattr(Trainer, "train", spy)
    recipe = RECIPE | {"local_steps": 1, "lr_last": 1 / 3, "lr": TRAINING.lr}
    home = house(4, recipe=recipe, tables={"distillation": TABLE})
    members = clients(home, TABLE.size, lambda name: learner(scorers[0], KNOWN[name]))
    run = coordinator(home, members, TABLE.size)
    for _ in range(2):
        run.insist(run.train_round)
    assert {steps for _, steps in seen} == {1}
    assert [rate for rate, _ in seen[::4]] == pytest.approx([TRAINING.lr, TRAINING.lr / 3])


GOOD = {"messages": [{"role": "user", "content": "?"}], "answers": ["a", "b"]}


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "no json",
        json.dumps({**GOOD, "right": 0}),
        json.dumps({**GOOD, "answers": ["a"]}),
        json.dumps({**GOOD, "answers": ["a", "a"]}),
        json.dumps({**GOOD, "answers": ["a", 1]}),
        json.dumps({**GOOD, "messages": []}),
        json.dumps({**GOOD, "messages": [{"role": "tool", "content": "?"}]}),
        json.dumps({**GOOD, "messages": [{"role": "assistant", "content": "?"}]}),
    ],
)
def test_a_public_set_that_is_none_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "public.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n", "utf-8")
    with pytest.raises(DataError, match="line 2: expected"):
        PublicSet.read(path)


def test_a_federation_of_scores_is_founded_and_joined_with_its_public_set_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "public.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"answers": ["c"] * 1 + ["d"]}))
    table = membership.distillation_table(path)
    assert (table.items, table.answers, table.size) == (2, 2, 4)
    policy = house(3, recipe=RECIPE, tables={"distillation": table}).policy
    assert read_public(path, policy).digest == table.public
    assert score_limit(policy) < policy.recipe.update_range / 2
    ours = ClientOptions(file=path, data=tmp_path, home=tmp_path, public=path)
    check_public(ours, policy)
    for changed in (dataclasses.replace(ours, public=None), dataclasses.replace(ours, data=None)):
        with pytest.raises(ConfigError, match="name"):
            check_public(changed, policy)
    with pytest.raises(ConfigError, match="leave --public out"):
        check_public(ours, house(3).policy)
    for items, answers in ((3, 2), (2, 3)):
        tables = {"distillation": dataclasses.replace(table, items=items, answers=answers)}
        with pytest.raises(DataError, match="2 items of 2 answers, choir was signed for"):
            read_public(path, house(3, recipe=RECIPE, tables=tables).policy)
    with pytest.raises(ValueError, match="1048576 at most"):
        dataclasses.replace(table, items=10**7, answers=10**4)
    path.write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match="get the file from its owner"):
        read_public(path, policy)


@pytest.mark.parametrize(
    "tables",
    [
        {"recipe": Recipe(server_optimizer="fedavgm")},
        {"recipe": Recipe(server_optimizer="fedavg", agreed_steps=3)},
        {"recipe": Recipe(server_optimizer="fedavg", ranges="tensor")},
        {"guard": GuardTable(rule="vote")},
    ],
)
def test_what_makes_no_sense_for_scores_is_refused(tables: dict[str, Any]) -> None:
    policy = house(3, recipe=RECIPE, tables={"distillation": TABLE}).policy
    with pytest.raises(ValueError, match="distillation"):
        dataclasses.replace(policy, **tables)
