"""Nodes that hold different quantisations of one model: one federation, one adapter, which fits
all of them.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from quietchoir import cli
from quietchoir.core.engine.adapters import AdapterRegistry
from quietchoir.core.errors import (
    ConfigError,
    FederationError,
    IntegrityError,
    ModelFileError,
    ModelNotFoundError,
    RequestError,
)
from quietchoir.core.models import kinship, to_gguf, weights
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.trainer import Trainer
from quietchoir.federation.adapters import transfer
from quietchoir.federation.adapters.registry import Card, Registry
from quietchoir.federation.client_node import keep_finished
from quietchoir.federation.membership import roster
from quietchoir.federation.membership.log import create_chain
from quietchoir.federation.model_files import PLACES_FILE, remember, resident, variant_given
from quietchoir.federation.server_node import keeper
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, Variant, names_of
from quietchoir.federation.training.learner import TrainerLearner
from quietchoir.node import RegistryStore
from quietchoir.tests.fakes.federation import House, clients, coordinator, house
from quietchoir.tests.fakes.models import make_model
from quietchoir.tests.fakes.tokenizers import save
from quietchoir.tests.fakes.training import chatter

KINDS = ("F32", "Q8_0", "Q4_0")
TABLE = AdapterTable(rank=2, alpha=4.0, upper_layers=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One random model in three formats, and another one."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name, family, kinds in (("one", "smollm2", KINDS), ("other", "llama3", ("Q8_0",))):
        make_model(family, vocab_size=720).save_pretrained(folder / name)
        save("smollm", folder / name)
        loaded = weights.load(folder / name)
        for kind in kinds:
            found[kind if name == "one" else name] = folder / f"{name}-{kind}.gguf"
            to_gguf.save(loaded, folder / f"{name}-{kind}.gguf", kind)
    return found


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def home(files: dict[str, Path]) -> House:
    """Four members of a federation that names F32, and the others as variants."""
    digests = {kind: weights.digest_of(files[kind]) for kind in KINDS}
    others = tuple(Variant(name=f"one-{kind}", digest=digests[kind]) for kind in KINDS[1:])
    model = ModelTable(name="one", digest=digests["F32"], variants=others)
    made = house(
        4,
        mode="masked",
        recipe={"rounds": 2, "lr": 5e-3, "evaluate_every": 0},
        tables={"adapter": TABLE},
    )
    return dataclasses.replace(made, policy=dataclasses.replace(made.policy, model=model))


def held(home: House, files: dict[str, Path], kind: str) -> Weights:
    """What a node finds whose engine serves this file."""
    return resident(home.policy, served=str(files[kind]))


def test_a_round_over_three_formats_ends_in_one_adapter_that_each_of_them_serves(
    home: House, files: dict[str, Path], tmp_path: Path
) -> None:
    formats = dict(zip(home.members, ("F32", "Q8_0", "Q8_0", "Q4_0"), strict=True))
    own = {kind: held(home, files, kind) for kind in KINDS}
    trainers = {kind: Trainer(own[kind], TABLE.shape(), precision="float32") for kind in KINDS}
    assert (
        len(
            {
                bytes(own[kind].tensors["model.layers.3.mlp.down_proj.weight"].raw.numpy()[0])
                for kind in KINDS
            }
        )
        == 3
    )

    def learner(name: str) -> TrainerLearner:
        trainer = trainers[formats[name]]
        return TrainerLearner(
            trainer,
            trainer.prepare(chatter(6)),
            trainer.prepare(chatter(3, seed=1)),
            home.policy.recipe.trainer(),
        )

    keep, size = keeper(
        home.policy, own["F32"], home.coordinator, Registry(tmp_path / "coordinator")
    )
    names: dict[str, str] = {}
    members = clients(home, size, learner)
    for name, client in members.items():
        client.adopt = adopting(home, own[formats[name]], tmp_path / name, names, name)
    run = coordinator(home, members, size, keep=keep)
    report = run.run()
    assert report.history[0]["parties"] == list(home.members) and run.state.server.flat.any()
    assert set(names.values()) == {report.adapter} and len(names) == 4
    for name, kind in formats.items():
        # as the node's engine has it: under the file's own digest
        loaded = weights.load(files[kind])
        store = RegistryStore(Registry(tmp_path / name), loaded.digest)
        assert [info.id for info in store.list()] == [report.adapter]
        AdapterRegistry(loaded).load("shared", store.load(report.adapter))
    foreign = weights.load(files["other"])
    store = RegistryStore(Registry(tmp_path / "ann"), foreign.digest)
    assert store.list() == []
    with pytest.raises(RequestError, match="trained on base"):
        AdapterRegistry(foreign).load("shared", store.load(report.adapter))


def adopting(
    home: House, own: Weights, folder: Path, names: dict[str, str], name: str
) -> Callable[[np.ndarray, str], str]:
    """A member's own way to keep what it is handed."""

    def adopt(flat: np.ndarray, card: str) -> str:
        names[name] = keep_finished(
            home.policy, own, Registry(folder), flat, card, home.members[name]
        )
        return names[name]

    return adopt


def test_the_card_names_the_variants_under_its_signature_and_goes_with_the_adapter(
    home: House, files: dict[str, Path], tmp_path: Path
) -> None:
    own = held(home, files, "Q8_0")
    keep, size = keeper(home.policy, own, home.coordinator, Registry(tmp_path / "a"))
    name, text = keep(np.full(size, 0.01, np.float32), {"rounds": 1, "run": "0a" * 16})
    card = Card.parse(text, "")
    q8, q4 = (weights.load(files[kind]) for kind in ("Q8_0", "Q4_0"))
    assert card.model == home.policy.model.digest and set(card.models) == {
        card.model,
        q8.digest,
        q4.digest,
    }
    with pytest.raises(FederationError, match="signed card"):
        Card.parse(text.replace(q4.digest, weights.digest_of(files["other"])), "")
    transfer.export_peft(Registry(tmp_path / "a"), name, tmp_path / "out")
    chain = create_chain(home.policy, home.owner)
    assert transfer.bring_in(Registry(tmp_path / "b"), tmp_path / "out", q4, chain=chain)[0] == name
    transfer.export_gguf(Registry(tmp_path / "b"), name, tmp_path / "adapter.gguf", q8)
    (tmp_path / "out" / "card.json").unlink()
    # without the card nobody says that Q4_0 is the same model
    with pytest.raises(IntegrityError, match="made for model"):
        transfer.bring_in(Registry(tmp_path / "c"), tmp_path / "out", q4)


def test_a_node_takes_the_file_it_holds(
    home: House, files: dict[str, Path], tmp_path: Path
) -> None:
    policy = home.policy
    loaded = weights.load(files["Q4_0"])
    taken = resident(policy, loaded)
    assert taken.digest == policy.model.digest and taken.tensors is loaded.tensors
    with pytest.raises(
        ModelNotFoundError,
        match=r"model one, sha256 .*or one of one-Q8_0.*--model "
        r"PATH",
    ):
        resident(policy)
    remember(files["Q8_0"], weights.digest_of(files["Q8_0"]))
    small = resident(policy)
    assert torch.equal(
        small.tensors["lm_head.weight"].raw, held(home, files, "Q8_0").tensors["lm_head.weight"].raw
    )
    unlisted = dataclasses.replace(policy.model, digest="cd" * 32, variants=())
    with pytest.raises(ModelNotFoundError, match="sha256 cdcdcd"):
        resident(dataclasses.replace(policy, model=unlisted))


def test_a_model_of_ones_own_is_found_by_its_digest_wherever_it_lies(
    home: House, files: dict[str, Path], tmp_path: Path
) -> None:
    """Founder and members have the same file under other names; the federation's file holds no
    path.
    """
    one = dataclasses.replace(
        home.policy, model=dataclasses.replace(home.policy.model, variants=())
    )
    mine, other = tmp_path / "disk" / "whatever v1.2.bin", tmp_path / "disk" / "one.gguf"
    mine.parent.mkdir()
    shutil.copy(files["F32"], mine)
    shutil.copy(files["other"], other)
    assert resident(one, served=str(mine)).digest == one.model.digest
    with pytest.raises(IntegrityError, match="the federation agreed on"):
        resident(one, named=str(other))
    with pytest.raises(ModelNotFoundError, match="neither a file here"):
        resident(one, named=str(tmp_path / "nowhere.gguf"))
    assert not (tmp_path / "home" / PLACES_FILE).exists()
    assert resident(one, named=str(mine)).digest == one.model.digest
    assert resident(one, served=str(other)).digest == one.model.digest  # named once is enough
    mine.write_bytes(b"GGUF, but cut short")
    with pytest.raises(ModelNotFoundError):
        resident(one)
    (tmp_path / "home" / PLACES_FILE).write_text("[")
    models = tmp_path / "home" / "models"
    (models / "sub").mkdir(parents=True)
    shutil.copy(files["F32"], models / "sub" / "x.gguf")
    assert resident(one).digest == one.model.digest
    # a name in somebody else's file is no path here
    foreign = dataclasses.replace(
        one, model=ModelTable(name=str(other), digest=weights.digest_of(other))
    )
    with pytest.raises(ModelNotFoundError):
        resident(foreign)


def test_a_federation_that_is_founded_on_a_path_tells_nobody_the_path(
    files: dict[str, Path], tmp_path: Path
) -> None:
    words = (
        "federation",
        "init",
        tmp_path / "f",
        "--name",
        "choir",
        "--model",
        files["F32"],
        "--variant",
        files["Q8_0"],
    )
    assert cli.main([str(word) for word in words]) == 0
    text = (tmp_path / "f" / "federation.toml").read_text("utf-8")
    policy = roster.load(tmp_path / "f" / "federation.toml")
    assert str(files["F32"].parent) not in text and names_of(policy.model) == (
        "one-F32",
        "one-Q8_0",
    )
    # on the founder's own disk
    assert resident(dataclasses.replace(policy, adapter=TABLE)).digest == policy.model.digest
    with pytest.raises(ValueError, match="a name stands twice"):
        ModelTable(name="one", digest="ab" * 32, variants=(Variant(name="one", digest="cd" * 32),))


def test_another_model_is_no_variant(home: House, files: dict[str, Path]) -> None:
    remember(files["F32"], home.policy.model.digest)  # the model itself is at hand to compare with
    one = {kind: weights.load(files[kind]) for kind in KINDS}
    assert (
        kinship.distance(one["F32"], one["Q8_0"])
        < 0.02
        < kinship.distance(one["F32"], one["Q4_0"])
        < 0.15
    )
    with pytest.raises((ConfigError, ModelFileError), match="another"):
        variant_given(home.policy.model, str(files["other"]))
    assert variant_given(home.policy.model, str(files["Q8_0"])).digest == one["Q8_0"].digest
    shuffled = {
        name: one["F32"].tensors[name.replace("layers.0", "layers.1")]
        for name in one["F32"].tensors
    }
    assert (
        kinship.distance(one["F32"], dataclasses.replace(one["F32"], tensors=shuffled))
        > kinship.FAR
    )
