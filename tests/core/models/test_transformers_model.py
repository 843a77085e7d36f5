"""Models that only transformers computes: what of them is taken, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

from quietchoir import doctor
from quietchoir.core.config import Config, EngineConfig
from quietchoir.core.engine.backends.transformers.runner import TransformersRunner
from quietchoir.core.engine.engine import Engine
from quietchoir.core.errors import ModelFileError, UnsupportedModelError
from quietchoir.core.models import summary, transformers_model, weights
from quietchoir.core.models.transformers_model import TransformersModel
from quietchoir.simulations.bench.families import (
    FAMILIES,
    SmallFamily,
    step_by_step,
    write_model,
    write_tokenizer,
)

BY_TYPE = {one.model_type: one for one in FAMILIES}
# Settings that core/models refuses of families that it knows.
REFUSED: dict[str, dict[str, Any]] = {
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_neo": {"activation_function": "gelu"},
}


def made(folder: Path, model_type: str, **sizes: Any) -> Any:
    """A small model of this family in a folder, which only transformers computes if any does."""
    known = BY_TYPE[model_type]
    write_tokenizer(folder)
    whole = {**known.sizes, **REFUSED.get(model_type, {}), **sizes}
    with torch.inference_mode():
        return write_model(SmallFamily(known.title, model_type, whole), folder)


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_family_that_core_models_knows_stays_with_it(tmp_path: Path) -> None:
    made(tmp_path, "llama")
    assert isinstance(transformers_model.load(tmp_path), weights.Weights)


def test_a_setting_that_core_models_refuses_goes_to_transformers_with_the_reason(
    tmp_path: Path,
) -> None:
    made(tmp_path, "llama", mlp_bias=True)
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    assert found.family == "llama" and "biases" in found.reason


def test_doctor_and_show_say_who_computes_it_and_that_it_is_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "gpt2")
    finding = doctor.model(Config(engine=EngineConfig(model=str(tmp_path))))
    assert not finding.well and not finding.essential
    assert "transformers runs this gpt2 model" in finding.text
    assert transformers_model.TRANSFORMERS_IS in finding.text
    lines = dict(summary.lines_of(tmp_path))
    assert lines["family"] == "gpt2" and "transformers" in lines["computed by"]
    found = transformers_model.load(tmp_path)
    assert finding.text.endswith(Engine(found, EngineConfig(context=64)).slower)


def test_code_of_a_folder_is_never_run(tmp_path: Path) -> None:
    made(tmp_path, "gpt2")
    trap = tmp_path / "trap.py"
    trap.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
    )
    names = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    edited(tmp_path, auto_map=names)
    found = transformers_model.load(tmp_path)  # the library's own class of that family
    assert isinstance(found, TransformersModel)
    TransformersRunner(found)
    edited(tmp_path, model_type="baichuan")
    with pytest.raises(UnsupportedModelError, match=r"'baichuan'.*Python code.*never run"):
        transformers_model.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_is_not_handed_on(tmp_path: Path) -> None:
    made(tmp_path, "gpt2")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match="handed no pickles"):
        transformers_model.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "t5"}, "'t5' is computed neither"),
        ({"model_type": "nobody's"}, "nobody's"),
        ({"model_type": 7}, "'7' is computed neither"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "expected a GPT2LMHeadModel"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised in a way of its own"),
        ({"n_layer": 1 << 20}, "n_layer is 1048576"),
        ({"text_config": {"layers": 1 << 40}}, "layers is 1099511627776"),
        ({"attention_types": [[["global"], 1 << 40]]}, "attention_types is 1099511627776"),
        ({"x": {"__float__": "abc"}}, "could not convert string to float"),
        ({"transformers_weights": "other.safetensors"}, "names 'other.safetensors'"),
        ({"n_layer": "two"}, "num_hidden_layers is 'two'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"n_positions": -1}, "max_position_embeddings is -1"),
    ],
)
def test_what_nobody_computes_is_refused_by_its_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    made(tmp_path, "gpt2")
    edited(tmp_path, **changes)
    with pytest.raises(ModelFileError) as refused:
        transformers_model.load(tmp_path)
    assert said in str(refused.value)
    assert refused.value.args[0].count("; ") or ", expected" in str(refused.value)


def test_an_adapter_beside_the_model_is_not_put_into_it(tmp_path: Path) -> None:
    made(tmp_path, "gpt2")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    with pytest.raises(UnsupportedModelError, match="adapter beside the model"):
        transformers_model.load(tmp_path)


def lacking(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["transformer.h.1.mlp.c_fc.weight"]


def beyond(tensors: dict[str, torch.Tensor]) -> None:
    tensors["transformer.h.1.mlp.extra.weight"] = torch.zeros(3, 3)


def misshapen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(96, 65)


@pytest.mark.parametrize("change", [lacking, beyond, misshapen])
def test_tensors_that_do_not_belong_together_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    made(tmp_path, "gpt2")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    with pytest.raises(ModelFileError, match=r"get (it|the model) again"):
        TransformersRunner(found)


def test_numbers_come_from_the_files_that_the_digest_covers_and_from_no_other(
    tmp_path: Path,
) -> None:
    made(tmp_path, "gpt2")
    digest = transformers_model.load(tmp_path).digest
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    # transformers' own name for parts of a distributed save, which its loader puts first
    shard = tmp_path / "shard-00000-model-00001-of-00001.safetensors"
    for beside in ({key: one + 3 for key, one in tensors.items()}, {"x": torch.zeros(1)}):
        safetensors.torch.save_file(beside, shard)
        found = transformers_model.load(tmp_path)
        assert isinstance(found, TransformersModel) and found.digest == digest
        held = TransformersRunner(found).network.model.state_dict()
        assert all(torch.equal(held[key], one) for key, one in tensors.items())
    decoy = {"decoy": torch.zeros(found.parameters)}
    safetensors.torch.save_file(decoy, tmp_path / "model.safetensors")
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    with pytest.raises(ModelFileError, match="this gpt2 model lacks"):
        TransformersRunner(found)


def test_tensors_in_several_files_load_and_none_may_be_there_twice(tmp_path: Path) -> None:
    made(tmp_path, "gpt2")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in halves.items():
        safetensors.torch.save_file({key: tensors[key] for key in held}, tmp_path / file)
    places = {key: file for file, held in halves.items() for key in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    loaded = TransformersRunner(found).network.model.state_dict()
    assert all(torch.equal(loaded[key], one) for key, one in tensors.items())
    safetensors.torch.save_file(tensors, tmp_path / "b.safetensors")
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    with pytest.raises(ModelFileError, match="is in two files"):
        TransformersRunner(found)


def test_names_of_classes_are_not_made(tmp_path: Path) -> None:
    made(tmp_path, "gpt2")
    edited(tmp_path, num_labels=3_000_000)
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel) and found.config.num_labels == 2


def test_tables_out_of_proportion_to_the_file_take_no_memory(tmp_path: Path) -> None:
    made(tmp_path, "gpt_neo")  # a table of who sees whom in each layer
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    TransformersRunner(found)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    tensors["transformer.wpe.weight"] = torch.zeros(40_000, 64)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    edited(tmp_path, max_position_embeddings=40_000)
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    with pytest.raises(ModelFileError, match=r"describe tables of 3,200,000,0\d\d bytes"):
        TransformersRunner(found)


def test_sizes_beyond_the_file_take_no_memory(tmp_path: Path) -> None:
    made(tmp_path, "gpt2")
    edited(tmp_path, n_embd=1 << 16)
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    with pytest.raises(ModelFileError, match=r"describe [\d,]+ numbers, its tensors hold"):
        TransformersRunner(found)


def test_a_crowd_of_experts_that_no_file_holds_is_not_made(tmp_path: Path) -> None:
    made(tmp_path, "jamba")
    edited(tmp_path, num_experts=1 << 30)
    with pytest.raises(ModelFileError, match=r"layers and experts are [\d,]+, its tensors hold"):
        transformers_model.load(tmp_path)


def test_an_implementation_that_a_config_asks_for_is_passed_over(tmp_path: Path) -> None:
    made(tmp_path, "gpt2")
    edited(tmp_path, attn_implementation="somebody/kernels", _attn_implementation="paged|x/y")
    found = transformers_model.load(tmp_path)
    assert isinstance(found, TransformersModel)
    network = TransformersRunner(found).network
    assert network.config._attn_implementation in ("sdpa", "eager")


def through_transformers(path: Path) -> TransformersModel:
    """As if core/models had no such family."""
    return transformers_model.read(path, UnsupportedModelError("told so"))


def write_gguf(model: Any, path: Path, **settings: Any) -> None:
    """A StarCoder2 model as llama.cpp's converter would write it."""
    config, arch = model.config, gguf.MODEL_ARCH.STARCODER2
    writer = gguf.GGUFWriter(path, "starcoder2")
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer.add_block_count(settings.pop("layers", config.num_hidden_layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_eps(settings.pop("eps", config.norm_epsilon))
    writer.add_rope_freq_base(settings.pop("theta", 10000.0))
    writer.add_name("small")
    for key, value in settings.items():
        writer.add_float32(f"starcoder2.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    described = json.loads((path.parent / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"] | {
        one["content"]: one["id"] for one in described["added_tokens"]
    }
    tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda pair: pair[1])]
    tokens += [f"[unused {place}]" for place in range(len(tokens), config.vocab_size)]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    for name, tensor in model.state_dict().items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is not None and not (name == "lm_head.weight" and config.tie_word_embeddings):
            writer.add_tensor(found, tensor.float().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_of_a_family_that_only_transformers_knows_gives_its_logits(
    tmp_path: Path,
) -> None:
    model = made(tmp_path, "starcoder2", sliding_window=None)
    write_gguf(model, tmp_path / "small.gguf")
    found = through_transformers(tmp_path / "small.gguf")
    text = torch.randint(256, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([text])).logits[0, 31:]
    assert (step_by_step(TransformersRunner(found), text) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"theta": 500000.0}, "rope.freq_base"), ({"attention.invented": 1.0}, "attention.invented")],
)
def test_a_setting_of_a_gguf_file_that_transformers_would_pass_over_refuses_it(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    model = made(tmp_path, "starcoder2", sliding_window=None)
    write_gguf(model, tmp_path / "heeded.gguf", eps=1e-3)
    heeded = through_transformers(tmp_path / "heeded.gguf")
    assert heeded.config.norm_epsilon == pytest.approx(1e-3)
    write_gguf(model, tmp_path / "small.gguf", **settings)
    with pytest.raises(UnsupportedModelError, match=f"pass over {said}"):
        through_transformers(tmp_path / "small.gguf")


def test_sizes_beyond_a_gguf_file_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    model = made(tmp_path, "starcoder2", sliding_window=None)
    config = model.config
    write_gguf(model, path)
    TransformersRunner(through_transformers(path))
    honest, config.intermediate_size = config.intermediate_size, 1 << 20
    write_gguf(model, path)
    with pytest.raises(ModelFileError, match=r"describe [\d,]+ numbers, its tensors hold"):
        TransformersRunner(through_transformers(path))
    config.intermediate_size = honest
    for layers in (1 << 20, 1 << 31):
        write_gguf(model, path, layers=layers)
        with pytest.raises(ModelFileError, match=f"block_count is {layers}, expected at most"):
            through_transformers(path)


def test_an_adapter_beside_a_gguf_file_is_not_put_into_it(tmp_path: Path) -> None:
    model = made(tmp_path, "starcoder2", sliding_window=None)
    write_gguf(model, tmp_path / "small.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    with pytest.raises(UnsupportedModelError, match="adapter beside the model"):
        through_transformers(tmp_path / "small.gguf")
