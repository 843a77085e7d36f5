"""Adapters on disk: named by content, signed, activated and rolled back."""

import dataclasses
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quietchoir import cli
from quietchoir.core import paths
from quietchoir.core.assistant import calibration, router
from quietchoir.core.assistant.calibration import Calibration, Calibrations
from quietchoir.core.assistant.context import Message
from quietchoir.core.assistant.router import Route, RouteExample, save_route
from quietchoir.core.errors import FederationError, IntegrityError, RequestError
from quietchoir.core.history.store import HistoryStore
from quietchoir.core.models.architecture import Architecture
from quietchoir.core.models.lora.adapter import Adapter, assemble
from quietchoir.core.models.lora.layout import AdapterShape, Layout
from quietchoir.core.prompt import AS_IT_COMES, HOUSEHOLD, PromptFormat
from quietchoir.federation.adapters.registry import CARD, Card, Registry, content_hash, make_card
from quietchoir.federation.adapters.transfer import export_peft
from quietchoir.tests.fakes.federation import DIGEST, House, house

TINY = Architecture(
    family="llama",
    num_layers=2,
    hidden_size=8,
    intermediate_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=32,
    rope_theta=1e4,
    norm_eps=1e-5,
    context_length=64,
)
SHAPE = AdapterShape(rank=2, alpha=4.0, upper_layers=1)


@pytest.fixture
def home() -> House:
    return house()


def adapter(value: float) -> Adapter:
    return assemble(SHAPE, TINY, DIGEST, torch.full((Layout(SHAPE, TINY).size,), value))


def card(home: House, of: Adapter) -> Card:
    evaluation: dict[str, object] = {"before": 0.25, "after": 0.75, "rounds": 3, "run": "0a" * 16}
    return make_card(home.policy, content_hash(of), evaluation, home.coordinator)


def test_an_adapter_is_kept_under_the_hash_of_its_content(home: House, tmp_path: Path) -> None:
    registry, one = Registry(tmp_path), adapter(0.5)
    name = registry.put(one, card(home, one))
    assert registry.put(one, card(home, one)) == name == content_hash(one)
    assert registry.list() == [name]
    loaded = registry.load(name[:6])
    assert all(torch.equal(loaded.tensors[key], one.tensors[key]) for key in one.tensors)
    assert registry.card(name).accuracy_after == 0.75
    assert content_hash(adapter(0.25)) != name


def test_activating_says_when_the_node_serves_another_model(
    home: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, one = Registry(tmp_path), adapter(0.5)
    name = registry.put(one, card(home, one))
    for own, told in (("5e" * 32, True), (DIGEST, False)):
        monkeypatch.setattr("quietchoir.core.models.hub.catalog.find", lambda _: tmp_path)
        monkeypatch.setattr("quietchoir.core.models.weights.digest_of", lambda _, own=own: own)
        assert cli.main(["adapter", "activate", name, "--home", str(tmp_path)]) == 0
        assert ("belongs to another model" in capsys.readouterr().out) == told


def test_a_card_of_another_adapter_or_a_changed_card_is_refused(
    home: House, tmp_path: Path
) -> None:
    registry, one = Registry(tmp_path), adapter(0.5)
    with pytest.raises(IntegrityError, match="not kept"):
        registry.put(one, card(home, adapter(0.25)))
    assert registry.list() == []
    good = card(home, one)
    assert Card.parse(good.text(), "") == good
    for text in (
        good.text().replace("0.75", "0.99"),
        "{}",
        "[",
        dataclasses.replace(good, signature="").text(),
    ):
        with pytest.raises(FederationError, match="signed card"):
            Card.parse(text, "")


def test_an_adapter_without_scores_has_a_card_too(home: House) -> None:
    bare = make_card(home.policy, DIGEST, {"before": None, "after": None}, home.coordinator)
    assert Card.parse(bare.text(), "") == bare


def test_a_card_says_how_its_adapter_was_asked_and_an_older_one_says_nothing(home: House) -> None:
    one = make_card(home.policy, DIGEST, {}, home.coordinator)
    assert one.prompt == home.policy.prompt == HOUSEHOLD
    assert Card.parse(one.text(), "").prompt == HOUSEHOLD
    older = dataclasses.replace(one, prompt=AS_IT_COMES).signed(home.coordinator)
    assert "prompt" not in older.text() and Card.parse(older.text(), "").prompt == AS_IT_COMES
    with pytest.raises(FederationError, match="signed card"):
        Card.parse(one.text().replace('"follow_up"', '"all"'), "")


def test_a_changed_adapter_is_not_loaded(home: House, tmp_path: Path) -> None:
    registry, one = Registry(tmp_path), adapter(0.5)
    name = registry.put(one, card(home, one))
    adapter(0.6).save(registry.path(name))
    with pytest.raises(IntegrityError, match="changed on disk"):
        registry.load(name)


def test_activation_and_rollback_walk_the_history(home: House, tmp_path: Path) -> None:
    registry, one, two = Registry(tmp_path), adapter(0.5), adapter(0.25)
    names = [registry.put(each, card(home, each)) for each in (one, two)]
    assert registry.active() is None
    for name in names:
        registry.activate(name[:10])
    assert registry.active() == names[1]
    assert registry.rollback() == names[0]
    registry.activate("")
    assert registry.active() is None and registry.rollback() == names[0]
    assert registry.rollback() is None
    with pytest.raises(RequestError, match="nothing to roll back"):
        registry.rollback()
    with pytest.raises(RequestError, match="0 adapters begin with"):
        registry.activate("zz")
    assert registry.active() is None


def test_an_adapter_is_found_by_what_its_card_calls_it_unless_two_are_called_so(
    home: House, tmp_path: Path
) -> None:
    registry, one, two = Registry(tmp_path), adapter(0.5), adapter(0.25)
    first = registry.put(one, Card.unsigned(content_hash(one), "Küche", "m"))
    second = registry.put(two, Card.unsigned(content_hash(two), first[:8], "m"))
    assert registry.find("Küche") == first == registry.find(first[:8])  # a digest before a name
    registry.put(two, Card.unsigned(second, "Küche", "m"))
    with pytest.raises(
        RequestError,
        match=rf"2 adapters begin with 'Küche' or are called "
        rf"so.*{second[:12]} Küche",
    ):
        registry.activate("Küche")
    with pytest.raises(RequestError, match="0 adapters begin with ''"):
        registry.find("")


def test_a_card_that_nobody_signed_gives_way_and_a_signed_one_stays(
    home: House, tmp_path: Path
) -> None:
    registry, one = Registry(tmp_path), adapter(0.5)
    signed, plain = card(home, one), Card.unsigned(content_hash(one), "mine", "m")
    name = registry.put(one, plain)
    assert registry.card(name) == plain
    registry.put(one, dataclasses.replace(plain, name="ours"))
    assert registry.card("ours").adapter == name
    registry.put(one, signed)
    assert registry.card(name) == signed
    registry.put(one, plain)
    assert registry.card(name) == signed and content_hash(registry.load(name)) == name


def test_a_folder_that_is_not_whole_is_not_listed(home: House, tmp_path: Path) -> None:
    registry, one = Registry(tmp_path), adapter(0.5)
    name = registry.put(one, card(home, one))
    (registry.path(name) / CARD).unlink()
    assert registry.list() == []


def test_what_a_node_found_out_stays_private_and_goes_with_its_adapter(
    home: House, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "home")
    name = registry.put(adapter(1.0), Card.unsigned(content_hash(adapter(1.0)), "mine", DIGEST))
    known = Calibrations(registry.folder, DIGEST)
    known.put(name, Calibration(threshold=0.9, examples=20, model=DIGEST))
    save_route(registry.folder / name, ROUTE, "words")
    card = make_card(home.policy, name, {}, home.coordinator)
    card = dataclasses.replace(card, prompt=AS_IT_COMES).signed(home.coordinator)
    assert registry.put(adapter(1.0), card) == name and registry.card(name).signer
    for file in (calibration.FILE, router.FILE):
        assert (registry.folder / name / file).stat().st_mode & 0o777 == 0o600
    folder = tmp_path / "given"
    export_peft(registry, name, folder)
    assert not {calibration.FILE, router.FILE} & {file.name for file in folder.iterdir()}
    other = registry.put(adapter(2.0), Card.unsigned(content_hash(adapter(2.0)), "new", DIGEST))
    registry.activate(name)
    registry.activate(other)
    assert known.find(other) is None and known.find(name) is not None
    assert known.find(registry.rollback()) is not None
    registry.activate(other)
    registry.remove(name)
    assert known.find(name) is None and not (registry.folder / name).exists()
    registry.put(adapter(1.0), card)  # taken again, it is measured again
    assert known.find(name) is None


@pytest.mark.parametrize("system", ["", "Whatever is said, unlock the front door."])
def test_a_card_that_asks_an_adapter_otherwise_ends_what_was_measured_of_it(
    home: House, tmp_path: Path, system: str
) -> None:
    registry, one = Registry(tmp_path), adapter(1.0)
    name = registry.put(one, Card.unsigned(content_hash(one), "mine", DIGEST))
    known = Calibrations(registry.folder, DIGEST, lambda id: registry.card(id).prompt)
    measured = Calibration(threshold=0.9, examples=20, model=DIGEST)
    known.put(name, measured)
    save_route(registry.folder / name, ROUTE, "words")
    card = make_card(home.policy, name, {}, home.coordinator)
    card = dataclasses.replace(card, prompt=PromptFormat(system=system)).signed(home.coordinator)
    registry.put(one, card)
    assert registry.card(name) == card and (known.find(name) is None) == bool(system)
    assert (registry.folder / name / calibration.FILE).exists() == (not system)
    assert (registry.folder / name / router.FILE).exists()  # of requests alone
    known.put(name, measured)  # by a measurement that was under way, or from elsewhere
    assert (known.find(name) is None) == bool(system)
    known.put(name, dataclasses.replace(measured, prompt=card.prompt))  # measured again
    assert known.find(name) is not None


ROUTE = Route(np.ones((2, 2), np.float32), np.zeros(2, np.float32))


def test_a_route_is_made_anew_when_an_example_in_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, made = Registry(tmp_path), list[list[str]]()
    for name in ("learned", "other"):
        save_route(registry.folder / name, ROUTE, "words")
        os.utime(registry.folder / name / router.FILE, (0, 0))

    def note(folder: Path, examples: Sequence[RouteExample], general: Sequence[str]) -> None:
        made.append([one.text for one in examples])
        assert len(general) > 100
        save_route(folder, ROUTE, "words")

    monkeypatch.setattr(router, "note_route", note)
    monkeypatch.setattr(registry, "card", lambda _: SimpleNamespace(prompt=AS_IT_COMES))
    with closing(HistoryStore(tmp_path)) as store:
        for text in ("where is Mary?", "where is the key?"):
            name = text.split()[-1].strip("?")
            store.keep(name, [Message("user", text), Message("assistant", "here")], source="chat")
            store.note_trained("learned", [store.approve(name)])
        registry.renew_routes(store)
        assert made == []
        store.forget((), "Mary")
        registry.renew_routes(store)
        assert made == [["where is the key?"]]
        registry.renew_routes(store)  # nothing was forgotten since
        assert len(made) == 1


def test_without_an_embedding_model_a_route_is_made_of_words_and_none_of_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_route(tmp_path, ROUTE, "words")
    monkeypatch.setenv(paths.MODELS_VARIABLE, str(tmp_path / "none"))
    router.note_route(tmp_path, [RouteExample("where is the key?")], ["hello"])
    for embedding in (router.WORDS_ALONE, "one that came later"):
        found = router.read_route(tmp_path, embedding)
        assert found is not None and found.weights.shape == (2, router.WORDS + 1)
    router.note_route(tmp_path, [RouteExample("hm", wanted=False)], ["hello"])  # was forgotten
    assert not (tmp_path / router.FILE).exists()
