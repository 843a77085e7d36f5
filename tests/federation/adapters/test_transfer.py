"""Adapters in and out of the registry, against the real libraries that must understand them."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from quietchoir import cli
from quietchoir.core.errors import ConfigError, FederationError, IntegrityError, ModelFileError
from quietchoir.core.models import weights
from quietchoir.core.models.checkpoint import from_gguf
from quietchoir.core.models.checkpoint.from_gguf import half_split_order
from quietchoir.core.models.files import gguf as gguf_files
from quietchoir.core.models.lora.adapter import CONFIG_FILE, Adapter, assemble
from quietchoir.core.models.lora.layout import AdapterShape, Layout
from quietchoir.core.models.weights import Weights
from quietchoir.federation.adapters import gguf_adapter, transfer
from quietchoir.federation.adapters.registry import CARD, Card, Registry, content_hash, make_card
from quietchoir.federation.membership import roster
from quietchoir.federation.membership.log import Chain, create_chain
from quietchoir.federation.server_node import keeper, keeping
from quietchoir.federation.spec.policy import AdapterTable
from quietchoir.federation.store.checkpoint import ServerState
from quietchoir.tests.fakes import models
from quietchoir.tests.fakes.disk import files_of
from quietchoir.tests.fakes.engine import float_blocks
from quietchoir.tests.fakes.federation import House, house
from quietchoir.tests.fakes.models import GgufWriter, make_model, their_logits

SHAPE = AdapterShape(rank=4, alpha=8.0, upper_layers=2, seed=3)
TOKENS = torch.arange(3, 40)


@pytest.fixture(scope="module", autouse=True)
def _a_merge() -> Iterator[None]:
    """A vocabulary with one merge: a file without any is none that a loader takes."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "byte_level", functools.partial(words_of, models.byte_level))
        yield


def words_of(
    made: Callable[[int], tuple[list[str], list[int]]], size: int
) -> tuple[list[str], list[int]]:
    tokens, kinds = made(size)
    return [*tokens[:-1], "ab"], [*kinds[:-1], 1]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("smollm2")


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    GgufWriter(model, path).write()
    return path


@pytest.fixture(scope="module")
def tiny(file: Path) -> Weights:
    return weights.load(file)


@pytest.fixture(scope="module")
def adapter(tiny: Weights) -> Adapter:
    size = Layout(SHAPE, tiny.architecture).size
    return assemble(
        SHAPE, tiny.architecture, tiny.digest, torch.sin(torch.arange(size) * 1.7) * 0.2
    )


@pytest.fixture
def home() -> House:
    return house()


@pytest.fixture
def chain(home: House) -> Chain:
    return create_chain(home.policy, home.owner)


@pytest.fixture
def registry(adapter: Adapter, home: House, tmp_path: Path) -> Registry:
    """A registry with one signed adapter in it."""
    made = Registry(tmp_path / "home")
    evaluation: dict[str, object] = {
        "before": 0.25,
        "after": 0.5,
        "rounds": 3,
        "run": "0a" * 16,
        "epsilon": 2.5,
        "delta": 1e-5,
    }
    made.put(adapter, make_card(home.policy, content_hash(adapter), evaluation, home.coordinator))
    return made


def changes(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What the adapter adds to each matrix: scale * B A."""
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in adapter.tensors})
    halves = {
        name: [adapter.tensors[f"{name}.lora_{half}.weight"] for half in "BA"] for name in modules
    }
    return {name: adapter.shape.scale * (b @ a) for name, (b, a) in halves.items()}


@pytest.fixture(scope="module")
def merged(model: Any, adapter: Adapter) -> torch.Tensor:
    """Logits of transformers' model with the changes added to its matrices."""
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, change in changes(adapter).items():
            model.get_submodule(name).weight.add_(change)
    logits = their_logits(model, TOKENS)
    model.load_state_dict(plain)
    return logits


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # PEFT asks transformers for it
def test_an_exported_folder_loads_in_plain_peft_and_computes_the_same(
    registry: Registry, model: Any, merged: torch.Tensor, tmp_path: Path
) -> None:
    import peft

    name = transfer.export_peft(
        registry, registry.list()[0][:8], tmp_path / "out", base="tiny/llama"
    )
    assert (
        json.loads((tmp_path / "out" / CONFIG_FILE).read_text())["base_model_name_or_path"]
        == "tiny/llama"
    )
    assert Card.parse((tmp_path / "out" / CARD).read_text(), "").epsilon == 2.5
    before = their_logits(model, TOKENS)
    loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "out"))
    torch.testing.assert_close(their_logits(loaded, TOKENS), merged, atol=1e-4, rtol=0)
    loaded.unload()
    torch.testing.assert_close(their_logits(model, TOKENS), before)
    assert (merged - before).abs().max() > 0.1
    with pytest.raises(ConfigError, match="is not empty"):
        transfer.export_peft(registry, name, tmp_path / "out")


def test_a_gguf_adapter_has_llama_cpps_names_and_the_rows_of_the_models_own_file(
    registry: Registry, tiny: Weights, adapter: Adapter, tmp_path: Path
) -> None:
    target = tmp_path / "adapter.gguf"
    transfer.export_gguf(registry, registry.list()[0], target, tiny)
    reader = gguf.GGUFReader(target)
    said = {
        key: reader.fields[key].contents()
        for key in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")
    }
    assert list(said.values()) == ["adapter", "llama", "lora", 8.0]
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    assert len(tensors) == 2 * 2 * 7 and {tensor.dtype for tensor in tensors.values()} == {
        torch.float32
    }
    usual = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    usual |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    for module, change in changes(adapter).items():
        _, _, layer, _, projection = module.split(".")
        name = f"blk.{layer}.{usual[projection]}.weight"
        product = adapter.shape.scale * (tensors[name + ".lora_b"] @ tensors[name + ".lora_a"])
        # as the loader brings the model's own rows into our order
        if projection in ("q_proj", "k_proj"):
            assert not torch.equal(product, change)
            product = product[half_split_order(product.shape[0], tiny.architecture.head_dim)]
        torch.testing.assert_close(product, change)
    with pytest.raises(ConfigError, match="is kept"):
        transfer.export_gguf(registry, registry.list()[0], target, tiny)


def test_a_gguf_adapter_whose_last_bytes_find_no_room_takes_no_name(
    registry: Registry, tiny: Weights, tmp_path: Path
) -> None:
    whole, full = tmp_path / "whole.gguf", tmp_path / "out" / "full.gguf"
    transfer.export_gguf(registry, registry.list()[0], whole, tiny)
    for lacking in (1, 700, 4095):
        with files_of(whole.stat().st_size - lacking), pytest.raises(ConfigError, match="room"):
            transfer.export_gguf(registry, registry.list()[0], full, tiny)
        assert [*full.parent.iterdir()] == [], lacking


def test_llama_cpp_computes_the_same_with_the_exported_adapter(
    registry: Registry, model: Any, file: Path, tiny: Weights, merged: torch.Tensor, tmp_path: Path
) -> None:
    """Where llama-cpp-python is installed (extra `peers`); elsewhere the test before this one
    stands for it.
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    transfer.export_gguf(registry, registry.list()[0], tmp_path / "adapter.gguf", tiny)
    settings = {"n_ctx": 64, "logits_all": True, "verbose": False, "n_threads": 1}
    found = []
    for more in ({}, {"lora_path": str(tmp_path / "adapter.gguf")}):
        with_adapter = llama_cpp.Llama(str(file), **settings, **more)
        with_adapter.eval(TOKENS.tolist())
        found.append(torch.from_numpy(np.array(with_adapter.scores[: len(TOKENS)])))
        with_adapter.close()
    # of llama.cpp's own half-precision cache
    rounding = (found[0] - their_logits(model, TOKENS)).abs().max()
    assert (found[1] - merged).abs().max() < 4 * rounding < 0.1 * (found[1] - found[0]).abs().max()


def test_files_that_fuse_the_projections_have_no_name_for_an_adapter(tmp_path: Path) -> None:
    GgufWriter(make_model("phi3"), tmp_path / "phi.gguf").write()
    phi = weights.load(tmp_path / "phi.gguf")
    size = Layout(SHAPE, phi.architecture).size
    made = assemble(SHAPE, phi.architecture, phi.digest, torch.ones(size))
    with pytest.raises(ModelFileError, match="fused with others"):
        gguf_adapter.write(tmp_path / "adapter.gguf", made, phi.architecture)
    assert [path.name for path in tmp_path.iterdir()] == ["phi.gguf"]


def test_a_foreign_folder_comes_in_unsigned_and_an_exported_one_with_its_card(
    registry: Registry, chain: Chain, adapter: Adapter, tiny: Weights, tmp_path: Path
) -> None:
    foreign = dataclasses.replace(adapter, base_digest="")
    foreign.save(tmp_path / "theirs")
    other = Registry(tmp_path / "other")
    name, card = transfer.bring_in(other, tmp_path / "theirs", tiny)
    assert (card.name, card.signer, card.federation, card.model) == ("theirs", "", "", tiny.digest)
    assert other.card(name) == card and other.load(name).base_digest == tiny.digest
    transfer.export_peft(registry, registry.list()[0], tmp_path / "signed")
    third = Registry(tmp_path / "third")
    with pytest.raises(FederationError, match="whose file is not here"):
        transfer.bring_in(third, tmp_path / "signed", tiny)
    with pytest.raises(FederationError, match="not of choir; refused"):
        stranger = house()
        transfer.bring_in(
            third, tmp_path / "signed", tiny, chain=create_chain(stranger.policy, stranger.owner)
        )
    assert third.list() == []
    kept = roster.folder(third.home, chain.policy) / roster.FILE
    kept.parent.mkdir(parents=True)
    roster.write(kept, chain)  # as `join` does
    name, card = transfer.bring_in(third, tmp_path / "signed", tiny)
    assert card.signer and third.card(name).accuracy_after == 0.5


def test_what_does_not_fit_is_not_kept(
    registry: Registry, adapter: Adapter, tiny: Weights, tmp_path: Path
) -> None:
    transfer.export_peft(registry, registry.list()[0], tmp_path / "folder")
    other, card = Registry(tmp_path / "other"), tmp_path / "folder" / CARD
    good = card.read_text()
    strange = dataclasses.replace(tiny, digest="cd" * 32)
    for of, said, error, words in (
        (strange, good, IntegrityError, "made for model"),
        (tiny, good.replace("0.5", "0.9"), FederationError, "signed card"),
        (
            tiny,
            Card.unsigned("ab" * 32, "x", tiny.digest).text(),
            IntegrityError,
            "the card is of adapter",
        ),
        (
            tiny,
            dataclasses.replace(
                Card.unsigned(content_hash(adapter), "x", tiny.digest), rounds=9
            ).text(),
            FederationError,
            "card",
        ),
    ):
        card.write_text(said)
        with pytest.raises(error, match=words):
            transfer.bring_in(other, tmp_path / "folder", of)
    with pytest.raises(IntegrityError, match="belongs to model"):
        transfer.export_gguf(registry, registry.list()[0], tmp_path / "x.gguf", strange)
    wide = assemble(SHAPE, tiny.architecture, "", torch.ones(Layout(SHAPE, tiny.architecture).size))
    wrong = {
        name: torch.cat([one, one]) if name.endswith("B.weight") else one
        for name, one in wide.tensors.items()
    }
    dataclasses.replace(wide, tensors=wrong).save(tmp_path / "wide")
    with pytest.raises(ModelFileError, match="does not fit the base model"):
        transfer.bring_in(other, tmp_path / "wide", tiny)
    assert other.list() == [] and not (tmp_path / "x.gguf").exists()


def test_the_verbs_export_import_and_say_who_vouches(
    registry: Registry, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, other = registry.list()[0], tmp_path / "other"

    def adapter_verb(*words: object, home: Path = registry.home) -> tuple[int, str]:
        code = cli.main(["adapter", *map(str, words), "--home", str(home)])
        said = capsys.readouterr()
        return code, said.out + said.err

    assert "epsilon 2.50" in adapter_verb("list")[1]
    code, said = adapter_verb(
        "export", name[:9], tmp_path / "out", "--gguf", tmp_path / "out.gguf", "--model", file
    )
    assert code == 0 and "PEFT checkpoint" in said and "not here" not in said
    assert (tmp_path / "out.gguf").stat().st_size > 1000
    assert adapter_verb("export", name[:9])[0] == 2
    (tmp_path / "out" / CARD).unlink()
    code, said = adapter_verb(
        "import", tmp_path / "out", "--model", file, "--name", "theirs", home=other
    )
    assert code == 0 and "theirs" in said and "unsigned" in said
    assert "unsigned" in adapter_verb("list", home=other)[1]
    assert '"signed": false' in adapter_verb("show", name[:9], home=other)[1]
    assert "nobody vouches" in adapter_verb("activate", name[:9], home=other)[1]
    assert "the bare model" in adapter_verb("rollback", home=other)[1]
    assert f"active: {name}" in adapter_verb("activate", "theirs", home=other)[1]
    assert (
        "mine"
        in adapter_verb("import", tmp_path / "out", "--model", file, "--name", "mine", home=other)[
            1
        ]
    )
    assert "mine" in adapter_verb("list", home=other)[1]


def test_adapters_that_are_kept_on_the_way_name_their_parents(
    registry: Registry, tiny: Weights
) -> None:
    home = house()
    policy = dataclasses.replace(
        home.policy, adapter=AdapterTable(rank=4, alpha=8.0, upper_layers=2, seed=3)
    )
    keep, size = keeper(policy, tiny, home.coordinator, registry)
    server = ServerState.zeros(size)
    run: Any = SimpleNamespace(state=SimpleNamespace(round=0, run="0c" * 16, server=server))
    between = keeping(run, keep, 2, 5)
    for number in range(6):
        run.state.round = number
        run.state.server = dataclasses.replace(server, flat=server.flat + np.float32(number))
        between()
        between()
    last, _ = keep(run.state.server.flat, {"rounds": 5, "run": "0c" * 16, "after": 0.75})
    chain = [registry.card(last)]
    while chain[-1].parent:
        chain.append(registry.card(chain[-1].parent))
    assert [(card.rounds, card.accuracy_after) for card in chain] == [
        (5, 0.75),
        (4, None),
        (2, None),
    ]


def test_the_newest_adapter_of_a_run_is_the_parent_of_the_next(
    registry: Registry, adapter: Adapter
) -> None:
    assert registry.newest("0a" * 16) == registry.list()[0]
    assert registry.newest("0b" * 16) == registry.newest("") == ""


@pytest.mark.parametrize(
    ("targets", "right"), [(("q_proj", "v_proj"), False), (("k_proj",), False), (("v_proj",), True)]
)
def test_what_peft_would_compute_in_another_order_of_rows_is_not_exported_to_it(
    targets: tuple[str, ...], right: bool, home: House, file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    GgufWriter(make_model("cohere"), tmp_path / "paired.gguf").write()
    loaded = weights.load(tmp_path / "paired.gguf")
    shape = dataclasses.replace(SHAPE, targets=targets)
    size = Layout(shape, loaded.architecture).size
    made = assemble(shape, loaded.architecture, loaded.digest, torch.full((size,), 0.1))
    kept = Registry(tmp_path / "home")
    kept.put(made, make_card(home.policy, content_hash(made), {"rounds": 1}, home.coordinator))

    def export(model: Path, folder: Path) -> tuple[int, str]:
        code = cli.main(
            ["adapter", "export", kept.list()[0], str(folder), "--model", str(model),
             "--home", str(kept.home)]
        )  # fmt: skip
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = export(tmp_path / "paired.gguf", tmp_path / "out")
    assert (code == 0) == right == (tmp_path / "out").exists()
    assert ("another order" in said) != right
    code, said = export(file, tmp_path / "unknown")  # of another model
    assert code == 0 and "its model is not here" in said


@pytest.mark.parametrize("name", ["qwen35", "falcon_h1", "granitehybrid-dense", "nemotron_h"])
def test_a_file_beside_whose_matrices_recurrences_stand_changes_by_what_the_adapter_says(
    name: str, tmp_path: Path
) -> None:
    """The exported B A, added to the very file's matrices and read back, are the adapter's own."""
    GgufWriter(make_model(name), tmp_path / "it.gguf").write()
    file = gguf_files.read(tmp_path / "it.gguf")
    architecture = from_gguf.read_architecture(file)
    targets = tuple(one.split(".")[1] for one in architecture.projections)
    shape = dataclasses.replace(SHAPE, upper_layers=3, targets=targets)
    size = Layout(shape, architecture).size
    made = assemble(shape, architecture, "ab" * 32, torch.sin(torch.arange(size) * 1.7) * 0.2)
    gguf_adapter.write(tmp_path / "adapter.gguf", made, architecture)
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    halves = {one.name: torch.from_numpy(np.array(one.data)) for one in reader.tensors}
    tensors = dict(file.tensors)
    for base in {half.rsplit(".lora_", 1)[0] for half in halves}:
        change = shape.scale * (halves[f"{base}.lora_b"] @ halves[f"{base}.lora_a"])
        tensors[base] = float_blocks(tensors[base].dequantize() + change)
    plain = from_gguf.name_tensors(file, architecture)
    changed = from_gguf.name_tensors(dataclasses.replace(file, tensors=tensors), architecture)
    made.check(architecture)
    factors, _ = made.in_our_rows(architecture).products(plain)
    layers = {module.split(".")[2] for module in factors}
    lone = name == "nemotron_h"  # one of its three has a scan alone
    assert len(layers) == 3 - lone and any("self_attn.o_proj" in module for module in factors)
    for ours, blocks in plain.items():
        wanted = blocks.dequantize()
        if pair := factors.get(ours.removesuffix(".weight")):
            assert float((pair[0] @ pair[1]).abs().max()) > 0.05 or "out_gate" in ours
            wanted = wanted + (pair[0] @ pair[1]).T
        torch.testing.assert_close(changed[ours].dequantize(), wanted, atol=1e-5, rtol=1e-5)


def test_what_a_folder_of_scans_holds_otherwise_is_not_exported_to_peft(
    home: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GgufWriter(make_model("falcon_h1"), tmp_path / "scans.gguf").write()
    loaded = weights.load(tmp_path / "scans.gguf")
    shape = dataclasses.replace(SHAPE, targets=("v_proj",))
    size = Layout(shape, loaded.architecture).size
    made = assemble(shape, loaded.architecture, loaded.digest, torch.full((size,), 0.1))
    kept = Registry(tmp_path / "home")
    kept.put(made, make_card(home.policy, content_hash(made), {"rounds": 1}, home.coordinator))
    words = ["adapter", "export", kept.list()[0], str(tmp_path / "out"), "--home", str(kept.home)]
    assert cli.main([*words, "--model", str(tmp_path / "scans.gguf")]) != 0
    said = capsys.readouterr()
    assert "falcon-h1's folders hold their matrices multiplied" in said.out + said.err
    assert not (tmp_path / "out").exists()
    foreign = dataclasses.replace(made, base_digest="")
    with pytest.raises(ModelFileError, match="is of another's adapter, and falcon-h1's folders"):
        foreign.check(loaded.architecture)
