"""A personal adapter: the shared one plus what an owner's own examples taught it, judged, kept,
private.
"""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from quietchoir import cli
from quietchoir.core.config import TrainingConfig
from quietchoir.core.engine.adapters import AdapterRegistry
from quietchoir.core.errors import (
    ConfigError,
    DataError,
    FederationError,
    IntegrityError,
    RequestError,
)
from quietchoir.core.models.lora.adapter import Adapter
from quietchoir.core.models.lora.layout import AdapterShape, a_name, b_name
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.examples import write_jsonl
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.adapters import transfer
from quietchoir.federation.adapters.registry import Card, Registry, content_hash
from quietchoir.federation.cli import adapters
from quietchoir.federation.membership.log import ENROLL, create_chain
from quietchoir.federation.personalization.change import PersonalChange, shared_b
from quietchoir.federation.personalization.keeping import (
    Owner,
    personalize,
    unless_chosen_otherwise,
)
from quietchoir.federation.personalization.settings import PersonalSettings
from quietchoir.federation.personalization.trainer import PersonalTrainer, pieces
from quietchoir.tests.fakes.federation import DIGEST
from quietchoir.tests.fakes.personal import (
    SHAPE,
    CryptoWorker,
    Judged,
    as_workshop,
    mode_of,
    modes,
    open_trainer,
    shared_adapter,
    tiny_weights,
)  # fmt: skip
from quietchoir.tests.fakes.training import chatter

CARRY = PersonalSettings(epochs=0)
TRAIN = PersonalSettings(epochs=1)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


@pytest.fixture(scope="module")
def personal_trainer(weights: Weights) -> PersonalTrainer:
    return open_trainer(weights)


@pytest.fixture
def crypto_worker(weights: Weights, tmp_path: Path) -> CryptoWorker:
    return CryptoWorker(tmp_path / "home", weights)


def test_the_shared_and_the_personal_part_are_one_adapter_of_one_adapters_size(
    weights: Weights, crypto_worker: CryptoWorker
) -> None:
    shared, x = shared_adapter(weights, 1), torch.randn(32)
    flat = shared_b(shared, weights)
    kept = personalize(
        crypto_worker.owner, crypto_worker.deliver(1), as_workshop(Judged(6)), TRAIN
    ).adapter
    whole = crypto_worker.registry.load(kept)
    assert torch.equal(
        shared_b(whole, weights), PersonalChange(torch.full((len(flat),), 0.5)).upon(flat)
    )
    module = "model.layers.3.self_attn.q_proj"
    inner = shared.tensors[a_name(module)] @ x  # A x, of both
    alone, together = (one.tensors[b_name(module)] @ inner for one in (shared, whole))
    # B_p A x, where every value of B_p is a half
    assert torch.allclose(together - alone, 0.5 * inner.sum(), atol=1e-5)
    key_shares = AdapterRegistry(weights)
    for name, adapter in (("shared", shared), ("personal", whole)):
        key_shares.load(name, adapter)
    one, other = key_shares.find("shared"), key_shares.find("personal")
    assert one is not None and other is not None
    sizes = [
        {key: [factor.shape for factor in pair] for key, pair in found.factors.items()}
        for found in (one, other)
    ]
    assert sizes[0] == sizes[1]


def test_a_change_is_not_shown_not_pickled_and_no_array() -> None:
    change = PersonalChange(torch.full((4,), 0.625))
    assert repr(change) == str(change) == "Change(4 values)" and len(change) == 4
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(change)
    with pytest.raises((TypeError, ValueError)):
        np.asarray(change, np.float32)
    with pytest.raises((TypeError, ValueError)):
        torch.from_numpy(change)
    with pytest.raises(ValueError, match="does not fit"):
        change.upon(torch.zeros(5))


def test_training_moves_the_personal_part_alone_and_proximal_pulls_it_to_the_shared_one(
    weights: Weights, personal_trainer: PersonalTrainer
) -> None:
    shared = shared_b(shared_adapter(weights, 1), weights)
    before, far = shared.clone(), PersonalChange(torch.full_like(shared, 0.3))
    lengths = {
        proximal: float(
            (personal_trainer.learn(shared, far, settings, seed=1).upon(shared) - shared).norm()
        )
        for proximal in (0.0, 100.0)
        if (settings := PersonalSettings(epochs=3, lr=1e-2, proximal=proximal))
    }
    assert torch.equal(shared, before)
    # towards the shared one, not to where training began
    assert lengths[100.0] < 0.97 * lengths[0.0]
    again = [personal_trainer.learn(shared, far, TRAIN, seed=1).upon(shared) for _ in range(2)]
    assert torch.equal(*again)


def test_an_owners_own_words_are_learned_on_top_and_judged_on_what_was_held_out(
    weights: Weights,
) -> None:
    trainer = open_trainer(weights).trainer
    examples = trainer.prepare(chatter(3))
    seen = PersonalTrainer(trainer, examples, examples)
    shared = shared_b(shared_adapter(weights, 1), weights)
    change = seen.learn(
        shared,
        PersonalChange.nothing(len(shared)),
        PersonalSettings(epochs=80, lr=5e-2, batch=3),
        seed=1,
    )
    verdict = seen.judge(shared, change)
    assert (
        verdict.personal.correct > verdict.shared.correct
        and verdict.accepted
        and verdict.personal.total == 3
    )


def test_scoring_in_pieces_gives_what_scoring_at_once_gives(
    weights: Weights, personal_trainer: PersonalTrainer
) -> None:
    parts = list(pieces(personal_trainer.test, 3))
    assert [len(part) for part in parts] == [3, 1]
    assert sum((part.examples for part in parts), ()) == personal_trainer.test.examples
    rested: list[int] = []
    watched = PersonalTrainer(
        personal_trainer.trainer,
        personal_trainer.train,
        personal_trainer.test,
        lambda: rested.append(1),
    )
    flat = shared_b(shared_adapter(weights, 1), weights)
    assert (
        watched.score(flat) == personal_trainer.trainer.evaluate(flat, personal_trainer.test)
        and len(rested) == 1
    )
    watched.learn(
        flat, PersonalChange.nothing(len(flat)), PersonalSettings(epochs=2, batch=2), seed=1
    )
    assert len(rested) == 1 + 1 + 6  # before, and after each step


def test_a_personal_adapter_is_signed_private_active_and_names_its_parent(
    crypto_worker: CryptoWorker,
) -> None:
    parent = crypto_worker.deliver(1)
    outcome = personalize(crypto_worker.owner, parent[:8], as_workshop(Judged(7)), TRAIN)
    card = crypto_worker.registry.card(outcome.adapter)
    assert (card.scope, card.parent, card.serial, card.run, card.epsilon) == (
        "personal",
        parent,
        1,
        "",
        None,
    )
    assert (card.accuracy_before, card.accuracy_after) == (0.5, 0.7)
    assert (
        card.signer == crypto_worker.identity.public.raw.hex()
        and card.federation == crypto_worker.federation.policy.federation.hex()
    )
    assert outcome.active and crypto_worker.registry.active() == outcome.adapter
    folder = crypto_worker.registry.path(outcome.adapter)
    assert mode_of(folder) == 0o700 and modes(list(folder.iterdir())) == {0o600}
    assert "7 of your 10 held-out answers right, the shared one 5" in outcome.words()
    assert (
        crypto_worker.registry.newest("") == ""
        and crypto_worker.registry.newest(crypto_worker.registry.card(parent).run) == parent
    )


def test_one_that_is_worse_than_the_shared_one_is_not_kept(crypto_worker: CryptoWorker) -> None:
    parent = crypto_worker.deliver(1)
    crypto_worker.registry.activate(parent)
    before = crypto_worker.files()
    outcome = personalize(crypto_worker.owner, parent, as_workshop(Judged(4)), TRAIN)
    assert (outcome.adapter, outcome.active, crypto_worker.files()) == ("", False, before)
    assert "no personal adapter" in outcome.words() and "4 of your 10" in outcome.words()
    # not worse is enough
    assert personalize(crypto_worker.owner, parent, as_workshop(Judged(5)), TRAIN).active


def test_a_new_shared_adapter_gets_the_earlier_change_on_top(crypto_worker: CryptoWorker) -> None:
    first = personalize(
        crypto_worker.owner, crypto_worker.deliver(1), as_workshop(Judged(6)), TRAIN
    )
    newer = crypto_worker.deliver(2)
    outcome = personalize(crypto_worker.owner, newer, as_workshop(Judged(6)), CARRY)
    whole, under = (
        shared_b(crypto_worker.registry.load(name), crypto_worker.weights)
        for name in (outcome.adapter, newer)
    )
    assert torch.allclose(whole - under, torch.full_like(whole, 0.5), atol=1e-6)
    card = crypto_worker.registry.card(outcome.adapter)
    assert (outcome.carried, card.parent, card.serial) == (first.adapter, newer, 2)
    third = Judged(6)
    assert (
        personalize(crypto_worker.owner, newer, as_workshop(third), TRAIN).carried
        == outcome.adapter
    )
    assert third.starts == pytest.approx([0.5], abs=1e-6)  # and trained further from there
    alone = Judged(6)
    assert (
        personalize(crypto_worker.owner, newer, as_workshop(alone), TRAIN, afresh=True).carried
        == ""
    )
    assert alone.starts == [0.0]


def test_an_earlier_change_that_has_become_a_burden_is_dropped_for_one_from_nothing(
    crypto_worker: CryptoWorker,
) -> None:
    first = personalize(
        crypto_worker.owner, crypto_worker.deliver(1), as_workshop(Judged(6)), TRAIN
    )
    newer, both = crypto_worker.deliver(2), Judged(4, 6)
    outcome = personalize(crypto_worker.owner, newer, as_workshop(both), TRAIN)
    assert (
        outcome.carried == ""
        and outcome.active
        and both.starts == pytest.approx([0.5, 0.0], abs=1e-6)
    )
    before = crypto_worker.files()
    for right, settings in ((Judged(4, 3), TRAIN), (Judged(4), CARRY)):
        assert (
            personalize(
                crypto_worker.owner, crypto_worker.deliver(2), as_workshop(right), settings
            ).adapter
            == ""
        )
    assert crypto_worker.files() == before and first.adapter in crypto_worker.registry.list()


def test_what_cannot_be_built_on_is_refused_and_nothing_is_kept(
    crypto_worker: CryptoWorker,
) -> None:
    parent = crypto_worker.deliver(1)
    personal = personalize(crypto_worker.owner, parent, as_workshop(Judged(6)), TRAIN).adapter
    odd = shared_adapter(crypto_worker.weights, 3)
    odd.tensors[a_name("model.layers.3.mlp.up_proj")][0, 0] += 1.0
    foreign = crypto_worker.registry.put(odd, Card.unsigned(content_hash(odd), "odd", DIGEST))
    before = crypto_worker.files()
    for name, sentence in (
        (personal, "personal already"),
        (foreign, "not the public one"),
        ("77", "0 adapters begin with"),
    ):
        with pytest.raises(RequestError, match=sentence):
            personalize(crypto_worker.owner, name, as_workshop(Judged(6)), TRAIN)
    elsewhere = Owner(
        crypto_worker.registry,
        crypto_worker.identity,
        dataclasses.replace(crypto_worker.weights, digest="cd" * 32),
    )
    with pytest.raises(IntegrityError, match="made for model"):
        personalize(elsewhere, parent, as_workshop(Judged(6)), TRAIN)
    with pytest.raises(RequestError, match="no earlier change"):
        personalize(crypto_worker.owner, parent, as_workshop(Judged(6)), CARRY, afresh=True)
    assert crypto_worker.files() == before
    for wrong in (
        {"epochs": -1},
        {"lr": 0.0},
        {"lr": float("inf")},
        {"proximal": -1.0},
        {"batch": 0},
    ):
        with pytest.raises(ConfigError, match="expected epochs"):
            PersonalSettings(**wrong)


def test_only_this_nodes_own_changes_of_this_federation_and_shape_are_carried_on(
    crypto_worker: CryptoWorker,
) -> None:
    first = crypto_worker.deliver(1)
    somebody = Owner(crypto_worker.registry, Identity.generate(), crypto_worker.weights)
    personalize(somebody, first, as_workshop(Judged(6)), TRAIN)
    assert personalize(crypto_worker.owner, first, as_workshop(Judged(6)), TRAIN).carried == ""
    wider = AdapterShape(rank=4, alpha=4.0, upper_layers=2)
    assert (
        personalize(
            crypto_worker.owner, crypto_worker.deliver(2, wider), as_workshop(Judged(6)), TRAIN
        ).carried
        == ""
    )
    other = CryptoWorker(
        crypto_worker.home, crypto_worker.weights, identity=crypto_worker.identity
    )  # of another federation
    assert (
        personalize(crypto_worker.owner, other.deliver(4), as_workshop(Judged(6)), TRAIN).carried
        == ""
    )
    damaged = crypto_worker.registry.personal()[0].adapter
    (crypto_worker.registry.path(damaged) / "card.json").write_text("{}")
    assert damaged not in {card.adapter for card in crypto_worker.registry.personal()}


def test_unasked_a_personal_adapter_takes_no_chosen_ones_place(crypto_worker: CryptoWorker) -> None:
    parent = crypto_worker.deliver(1)

    def unasked() -> bool:
        return personalize(
            crypto_worker.owner,
            parent,
            as_workshop(Judged(6)),
            TRAIN,
            activate=unless_chosen_otherwise,
        ).active

    assert unasked() and unasked()  # in nothing's place, and in that of an older one
    crypto_worker.registry.activate(parent)
    assert unasked()
    crypto_worker.registry.activate("")
    assert not unasked() and crypto_worker.registry.active() is None
    stranger = shared_adapter(crypto_worker.weights, 5)
    name = crypto_worker.registry.put(stranger, Card.unsigned(content_hash(stranger), "x", DIGEST))
    crypto_worker.registry.activate(name)
    assert not unasked() and crypto_worker.registry.active() == name
    (crypto_worker.registry.path(name) / "card.json").write_text("{}")
    assert not unasked() and crypto_worker.registry.active() == name


def test_a_personal_adapter_leaves_the_registry_only_if_its_owner_says_so(
    crypto_worker: CryptoWorker, tmp_path: Path
) -> None:
    parent = crypto_worker.deliver(1)
    kept = personalize(crypto_worker.owner, parent, as_workshop(Judged(6)), TRAIN).adapter
    folder, file = tmp_path / "out", tmp_path / "out.gguf"
    folder.mkdir(mode=0o755)
    for write in (
        lambda: transfer.export_peft(crypto_worker.registry, kept, folder),
        lambda: transfer.export_gguf(crypto_worker.registry, kept, file, crypto_worker.weights),
    ):
        with pytest.raises(ConfigError, match=f"--personal.*{parent[:12]}"):
            write()
    assert not file.exists() and list(folder.iterdir()) == []
    transfer.export_peft(crypto_worker.registry, kept, folder, "hf/name", personal=True)
    transfer.export_gguf(crypto_worker.registry, kept, file, crypto_worker.weights, personal=True)
    assert mode_of(folder) == 0o700 and modes([*folder.iterdir(), file]) == {0o600}
    assert content_hash(Adapter.load(folder)) == kept
    transfer.export_peft(crypto_worker.registry, parent, tmp_path / "shared")
    assert modes(list((tmp_path / "shared").iterdir())) == {0o644}
    elsewhere = Registry(tmp_path / "elsewhere")
    again = tmp_path / "again"
    transfer.export_peft(crypto_worker.registry, kept, again, personal=True)
    chain = create_chain(crypto_worker.federation.policy, crypto_worker.federation.owner)
    with pytest.raises(FederationError, match="has no part in choir"):
        transfer.bring_in(elsewhere, again, crypto_worker.weights, chain=chain)
    mine = {"name": "zoe", "key": crypto_worker.identity.public.raw.hex()}
    chain = chain.extended(ENROLL, {"member": mine}, crypto_worker.federation.owner, 1)
    name, card = transfer.bring_in(elsewhere, again, crypto_worker.weights, chain=chain)
    assert card.personal and name == kept and modes(list(elsewhere.path(name).iterdir())) == {0o600}


def test_an_adapter_is_removed_unless_it_is_needed(crypto_worker: CryptoWorker) -> None:
    parent = crypto_worker.deliver(1)
    first, second = (
        personalize(crypto_worker.owner, parent, as_workshop(Judged(6)), TRAIN, afresh=one).adapter
        for one in (True, False)
    )
    for name, sentence in ((second, "is active"), (parent, "stands on it")):
        with pytest.raises(RequestError, match=sentence):
            crypto_worker.registry.remove(name)
    left = crypto_worker.registry.folder / ".old-killed"
    left.mkdir()
    assert crypto_worker.registry.remove(first[:10]) == first
    assert (
        crypto_worker.registry.list() == sorted([parent, second])
        and first not in crypto_worker.registry.history()
    )
    assert [
        entry.name
        for entry in crypto_worker.registry.folder.iterdir()
        if entry.name.startswith(".")
    ] == []
    crypto_worker.registry.activate("")
    crypto_worker.registry.remove(second)
    crypto_worker.registry.remove(parent)
    assert crypto_worker.registry.list() == [] and crypto_worker.registry.rollback() is None


def test_shared_cards_are_spelled_as_before_and_a_scope_cannot_be_taken_off(
    crypto_worker: CryptoWorker,
) -> None:
    parent = crypto_worker.deliver(1)
    told = json.loads(crypto_worker.registry.card(parent).text())
    assert not {"scope", "serial"} & told.keys()
    card = crypto_worker.registry.card(
        personalize(crypto_worker.owner, parent, as_workshop(Judged(6)), TRAIN).adapter
    )
    assert Card.parse(card.text(), "") == card
    with pytest.raises(FederationError, match="signed card"):
        Card.parse(dataclasses.replace(card, scope="").text(), "")


def test_the_verb_trains_tells_and_lists(
    crypto_worker: CryptoWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(adapters, "weights_of", lambda arguments: crypto_worker.weights)
    data = tmp_path / "data"
    data.mkdir()

    def adapter(*words: object) -> tuple[int, str]:
        code = cli.main(["adapter", *map(str, words), "--home", str(crypto_worker.home)])
        said = capsys.readouterr()
        return code, said.out + said.err

    parent = crypto_worker.deliver(1)
    write_jsonl(data / "train.jsonl", chatter(4))
    assert "name the shared one" in adapter("personalize", "--data", data)[1]
    code, said = adapter("personalize", parent[:8], "--data", data)
    assert code == 1 and "test.jsonl" in said  # nothing to judge it by
    write_jsonl(data / "test.jsonl", chatter(2, seed=9))
    code, said = adapter(
        "personalize", parent[:8], "--data", data, "--epochs", 1, "--lr", 1e-3, "--proximal", 0.1
    )
    assert code == 0 and "it answers from now on" in said
    first = crypto_worker.registry.active()
    code, said = adapter("personalize", "--data", data)  # by default what the active one stands on
    assert (
        code == 0 and crypto_worker.registry.card(str(crypto_worker.registry.active())).serial == 2
    )
    listed = adapter("list")[1].splitlines()
    assert (
        sum(f"personal, on top of {parent[:12]}" in line for line in listed) == 2
        and len(listed) == 3
    )
    assert adapter("export", first, tmp_path / "out")[0] == 2 and not (tmp_path / "out").exists()
    assert adapter("export", first, tmp_path / "out", "--personal")[0] == 0
    assert "removed" in adapter("remove", first)[1]
    assert adapter("personalize", "--data", data, "--epochs", -1)[0] == 2


def test_the_configuration_is_what_the_settings_say() -> None:
    assert (
        PersonalSettings.of(TrainingConfig()) == PersonalSettings()
        and not TrainingConfig().personal
    )
    with pytest.raises(ConfigError, match="lr = 0"):
        PersonalSettings.of(TrainingConfig(personal_lr=0.0))
    with pytest.raises(DataError, match="--data"):
        from quietchoir.federation.cli.personalization import open_trainer

        open_trainer(([], []), tiny_weights(), SHAPE, TrainingConfig())
