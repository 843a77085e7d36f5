"""Every family against `transformers`, from both kinds of files, on texts that are longer than any
window.

Stated bound: logits within 1e-4 of transformers' in float32 (they range over about 10).
"""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from quietchoir.core.errors import ModelFileError
from quietchoir.core.models import families, to_gguf, weights
from quietchoir.core.models.architecture import Architecture
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.checkpoint import from_gguf, from_hf
from quietchoir.core.models.files import gguf
from quietchoir.core.models.lora.adapter import AdapterShape, Layout, assemble
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.engine import byte_tokenizer
from quietchoir.tests.fakes.models import FAMILIES, GgufWriter, make_model, their_logits
from quietchoir.tests.fakes.tokenizers import save

from ..conftest import MakeLinear

BOUND = 1e-4
TOKENS = torch.arange(60) * 37 % 259
# what GGUF has no place for
ONLY_FOLDERS = (
    "qwen2-windowed",
    "llama-dynamic",
    "qwen3moe-shares",
    "starcoder2-windowed",
    "ministral",
    *("gptj", "codegen", "gpt_neo", "helium", "opt", "llama4", "nemotron3-dense"),
)


@pytest.fixture(scope="session")
def family_model() -> Callable[[str], Any]:
    """Function that makes a family's model, once."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            made[name] = make_model(name)
        return made[name]

    return make


def bound(logits: Tensor) -> float:
    """What is near enough: as stated, and as much more as logits are larger."""
    return BOUND * max(1.0, float(logits.abs().max()) / 10)


def weights_of(architecture: Architecture, tensors: dict[str, QuantTensor]) -> Weights:
    return Weights(architecture, tensors, byte_tokenizer(), digest="")


@torch.inference_mode()
def our_logits(loaded: Weights, make_linear: MakeLinear, tokens: Tensor = TOKENS) -> Tensor:
    network = Transformer(loaded, make_linear)
    attend = packed_attention([len(tokens)], loaded.architecture.windows)
    return network.logits(
        network.layers_forward(network.embed(tokens), torch.arange(len(tokens)), attend)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_every_family_computes_what_transformers_computes(
    name: str, family_model: Callable[[str], Any], make_linear: MakeLinear, tmp_path: Path
) -> None:
    model = family_model(name)
    model.save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    ours = our_logits(
        weights_of(architecture, from_hf.name_tensors(tmp_path, architecture)), make_linear
    )
    theirs = their_logits(model, TOKENS)
    assert theirs.abs().max() > 1
    assert (ours - theirs).abs().max() < bound(theirs)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ONLY_FOLDERS])
def test_a_gguf_file_of_every_family_computes_what_transformers_computes(
    name: str, family_model: Callable[[str], Any], make_linear: MakeLinear, tmp_path: Path
) -> None:
    model = family_model(name)
    GgufWriter(model, tmp_path / "tiny.gguf").write()
    file = gguf.read(tmp_path / "tiny.gguf")
    architecture = from_gguf.read_architecture(file)
    ours = our_logits(
        weights_of(architecture, from_gguf.name_tensors(file, architecture)), make_linear
    )
    theirs = their_logits(model, TOKENS)
    assert (ours - theirs).abs().max() < bound(theirs)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gemma4", "blk.0.attn_v.weight"),  # a layer with a window
        ("gemma4", "blk.0.layer_output_scale.weight"),
        ("gemma3n", "blk.0.attn_v.weight"),
    ],
)
def test_a_tensor_that_one_layer_lacks_is_refused_where_a_whole_file_may_lack_it(
    name: str, tensor: str, family_model: Callable[[str], Any], tmp_path: Path
) -> None:
    GgufWriter(family_model(name), tmp_path / "tiny.gguf").write()
    file = gguf.read(tmp_path / "tiny.gguf")
    architecture = from_gguf.read_architecture(file)
    assert from_gguf.name_tensors(file, architecture)
    rest = {name: one for name, one in file.tensors.items() if name != tensor}
    with pytest.raises(ModelFileError, match=re.escape(tensor.rsplit(".", 2)[0])):
        from_gguf.name_tensors(dataclasses.replace(file, tensors=rest), architecture)


@pytest.mark.parametrize("name", ["qwen35moe", "glm4moe"])
def test_gates_and_ups_of_all_experts_may_stand_in_one_tensor_of_a_gguf_file(
    name: str, family_model: Callable[[str], Any], tmp_path: Path
) -> None:
    """As newer converters write them; the same matrices come of both kinds of files."""
    found = []
    for place, gate_up in ((tmp_path / "apart", False), (tmp_path / "fused", True)):
        GgufWriter(family_model(name), place, gate_up=gate_up).write()
        file = gguf.read(place)
        assert any("_gate_up_exps" in theirs for theirs in file.tensors) == gate_up
        found.append(from_gguf.name_tensors(file, from_gguf.read_architecture(file)))
    apart, fused = found
    assert apart.keys() == fused.keys()
    assert all(torch.equal(apart[name].dequantize(), fused[name].dequantize()) for name in apart)


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        *((name, "llama2") for name in ("mixtral", "qwen3moe", "granite", "olmo2", "exaone4")),
        *(
            (name, "llama2")
            for name in ("glm", "glm4", "olmo3", "seed_oss", "ernie4_5", "ministral3")
        ),
        *((name, "llama2") for name in ("olmoe", "qwen2moe", "glm4moe", "gpt_oss")),
        *((name, "llama2") for name in ("cohere", "cohere2", "starcoder2", "phi2", "stablelm")),
        *((name, "llama2") for name in ("stablelm-parallel", "arcee", "nemotron", "hunyuan")),
        *((name, "llama2") for name in ("gptneox", "gptneox-serial", "gpt2", "starcoder")),
        *((name, "llama2") for name in ("ernie4_5-moe", "minimax_m2", "dots1", "hunyuan-moe")),
        *((name, "llama2") for name in ("bloom", "mpt")),
        *((name, "llama2") for name in ("granite4", "granite4-nope", "granitemoeshared")),
        ("gemma2", "gemma"),
        ("phi4-mini", "phi3"),
        ("qwen2-yarn", "llama2"),
    ],
)
def test_a_converted_folder_computes_what_the_folder_does(
    name: str, tokenizer: str, make_linear: MakeLinear, tmp_path: Path
) -> None:
    (folder := tmp_path / "folder").mkdir()
    make_model(name, vocab_size=720).save_pretrained(folder)
    save(tokenizer, folder)
    loaded = weights.load(folder)
    to_gguf.save(loaded, tmp_path / "tiny.gguf", "F32")
    again = weights.load(tmp_path / "tiny.gguf")
    apart = our_logits(again, make_linear) - our_logits(loaded, make_linear)
    assert apart.abs().max() < BOUND


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma3", {"windows": ()}),
        ("gemma3", {"attention_scale": 0.0}),
        ("gemma3", {"embedding_scale": 1.0}),
        ("gemma3", {"activation": "silu"}),
        ("gemma3", {"rope_factors": ()}),
        ("gemma3", {"rope_bases": ()}),
        ("gemma3n", {"gate_cutoffs": ()}),
        ("gemma3n", {"windows": ()}),
        ("gemma4", {"value_norm": False}),
        ("gemma4", {"layer_scales": False}),
        ("gemma4", {"per_layer_size": 0}),
        ("gemma4", {"rope_factors": ()}),
        ("gemma4", {"logit_softcap": 0.0}),
        ("gemma4-large", {"windows": ()}),
        ("mistral", {"windows": ()}),
        ("mistral", {"windows": (8,) * 8}),
        ("phi3", {"windows": ()}),
        ("phi3-long", {"rope_magnitude": 1.0}),
        ("llama3", {"rope_factors": ()}),
        ("llama-linear", {"rope_factors": ()}),
        ("smollm3", {"rope_bases": ()}),
        ("qwen3", {"qk_norm": False}),
        ("qwen2", {"biases": ()}),
        ("llama-biased", {"biases": ()}),
        ("phi4-mini", {"rope_dim": 0, "rope_factors": ()}),
        ("qwen2-yarn", {"rope_factors": ()}),
        ("qwen2-yarn", {"rope_magnitude": 1.0}),
        ("mixtral", {"experts_per_token": 1}),
        ("mixtral", {"expert_norm": False}),
        ("qwen3moe", {"experts_per_token": 2}),
        ("qwen3moe-shares", {"expert_norm": True}),
        ("granite", {"residual_scale": 1.0}),
        ("granite", {"logit_scale": 1.0}),
        ("granite", {"embedding_scale": 1.0}),
        ("granite", {"attention_scale": 0.0}),
        ("olmo2", {"qk_norm": False, "wide_qk_norm": False}),
        ("exaone4", {"rope_bases": ()}),
        ("exaone4", {"windows": ()}),
        ("exaone4-small", {"qk_norm": False}),
        ("gemma2-caps", {"attention_softcap": 0.0}),
        ("gemma2-caps", {"logit_softcap": 0.0}),
        ("gemma2", {"windows": ()}),
        ("olmo3", {"rope_stretched": ()}),
        ("olmo3", {"windows": ()}),
        ("glm4", {"rope_dim": 0}),
        ("ministral3", {"rope_factors": ()}),
        ("qwen2moe", {"expert_norm": True}),
        ("qwen2moe", {"shared_gate": False}),
        ("qwen2moe", {"shared_size": 0, "shared_gate": False}),
        ("glm4moe", {"routing": "softmax"}),
        ("glm4moe", {"routing_bias": False}),
        ("glm4moe", {"expert_groups": 0}),
        ("glm4moe", {"expert_scale": 1.0}),
        ("glm4moe", {"shared_size": 0}),
        ("granite4", {"rope_bases": (0.0,) * 8}),
        ("granite4-nope", {"rope_bases": ()}),
        ("granitemoeshared", {"shared_size": 0}),
        ("cohere", {"layer_norms": False}),
        ("cohere", {"parallel": False}),
        ("cohere2", {"rope_bases": ()}),
        ("starcoder2", {"norm_biases": False}),
        ("starcoder2-windowed", {"windows": ()}),
        ("phi2", {"head_bias": False}),
        ("phi2", {"parallel": False}),
        ("stablelm", {"rope_dim": 0}),
        ("nemotron", {"activation": "gelu_tanh"}),
        ("hunyuan", {"qk_norm_last": False}),
        ("ernie4_5-moe", {"routing_bias": False}),
        ("minimax_m2", {"routing": "softmax"}),
        ("dots1", {"expert_scale": 1.0}),
        ("gptneox", {"parallel": False}),
        ("gptneox", {"activation": "silu"}),
        ("hunyuan-moe", {"shared_size": 0}),
        ("deepseek_v3", {"attention_scale": 0.0}),
        ("deepseek_v3", {"routing_bias": False}),
        ("deepseek_v2", {"expert_scale": 1.0}),
        ("minicpm3", {"rope_factors": (2.0,) * 4}),
        ("gpt2", {"positions": 0}),
        ("gpt_neo", {"attention_scale": 0.0}),
        ("falcon", {"one_norm": True}),
        ("gptj", {"rope_dim": 0}),
        ("olmo", {"layer_norms": False}),
        ("opt", {"positions": 0}),
        ("opt", {"activation": "gelu"}),
        ("bloom", {"alibi": 0.0}),
        ("bloom", {"embedding_norm": False}),
        ("mpt", {"alibi": 4.0}),
        ("llama4", {"windows": ()}),
        ("llama4", {"windows": (9,) * 8}),
        ("llama4", {"temperature": 0.0}),
        ("llama4", {"expert_inputs": False}),
        ("llama4", {"qk_norm": False}),
        ("qwen3next", {"attention_gate": False}),
        ("qwen3next", {"delta_tiled": True}),
        ("qwen35", {"rope_dim": 0}),
        ("qwen35moe", {"shared_gate": False}),
        ("granitehybrid", {"scan_norm": False}),
        ("granitehybrid", {"shared_size": 0}),
        ("granitehybrid-dense", {"rope_bases": (0.0,) * 8}),
        ("falcon_h1", {"scan_norm": False}),
        ("nemotron_h", {"scan_norm": False}),
        ("nemotron_h", {"rope_bases": ()}),
        ("nemotron3", {"routing_bias": False}),
        ("nemotron3", {"expert_groups": 0}),
        ("nemotron3-dense", {"expert_norm": True}),
        ("falcon_h1", {"logit_scale": 1.0}),
        ("lfm2moe", {"routing_bias": False}),
        ("lfm2moe", {"expert_scale": 1.0}),
        ("gpt_oss", {"sinks": False}),
        ("gpt_oss", {"activation": "silu"}),
        ("gpt_oss", {"windows": ()}),
    ],
)
def test_the_comparison_would_notice_if_a_trait_were_missing(
    name: str,
    change: dict[str, Any],
    family_model: Callable[[str], Any],
    make_linear: MakeLinear,
    tmp_path: Path,
) -> None:
    model = family_model(name)
    model.save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    changed = weights_of(
        replace(architecture, **change), from_hf.name_tensors(tmp_path, architecture)
    )
    assert (
        our_logits(changed, make_linear) - their_logits(model, TOKENS)
    ).abs().max() > 100 * BOUND


def test_an_attention_without_windows_is_refused_by_a_model_that_has_them(
    family_model: Callable[[str], Any], make_linear: MakeLinear, tmp_path: Path
) -> None:
    family_model("mistral").save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    network = Transformer(
        weights_of(architecture, from_hf.name_tensors(tmp_path, architecture)), make_linear
    )
    with pytest.raises(
        ValueError, match="see windows of rows, and the attention it was given does not keep them"
    ):
        network.layers_forward(network.embed(TOKENS), torch.arange(60), packed_attention([60]))


@pytest.mark.parametrize("name", ["gemma3", "qwen2", "phi3", "smollm3"])
def test_an_adapter_of_every_family_has_the_shapes_of_its_projections_and_changes_what_it_says(
    name: str, family_model: Callable[[str], Any], make_linear: MakeLinear, tmp_path: Path
) -> None:
    """PEFT's own layers around our projections, as the trainer puts them there."""
    from peft import LoraConfig, inject_adapter_in_model

    family_model(name).save_pretrained(tmp_path)
    architecture = from_hf.read_architecture(tmp_path)
    loaded = weights_of(architecture, from_hf.name_tensors(tmp_path, architecture))
    shape = AdapterShape(rank=4, alpha=8.0, upper_layers=2)
    adapter = assemble(
        shape, architecture, "", torch.full((Layout(shape, architecture).size,), 0.05)
    )
    adapter.check(architecture)
    before, network = our_logits(loaded, make_linear), Transformer(loaded, make_linear)
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=8, target_modules=list(shape.targets)), network, "default"
    )
    found = {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}
    with torch.no_grad():
        for module in shape.modules(architecture):
            found[module].lora_A["default"].weight.copy_(adapter.tensors[f"{module}.lora_A.weight"])
            found[module].lora_B["default"].weight.copy_(adapter.tensors[f"{module}.lora_B.weight"])
    attend = packed_attention([len(TOKENS)], architecture.windows)
    after = network.logits(
        network.layers_forward(network.embed(TOKENS), torch.arange(len(TOKENS)), attend)
    )
    assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_sixteen_bit_folders_stay_sixteen_bits_on_the_mapped_file(
    kind: str, make_linear: MakeLinear, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model("llama2").to(getattr(torch, kind))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    architecture = from_hf.read_architecture(tmp_path)
    tensors = from_hf.name_tensors(tmp_path, architecture)
    assert {blocks.quant_type for blocks in tensors.values()} == {
        "BF16" if kind == "bfloat16" else "F16"
    }
    ours = our_logits(weights_of(architecture, tensors), make_linear)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert (ours - their_logits(again, TOKENS)).abs().max() < BOUND


def test_the_language_model_inside_gemma_with_pictures_is_found(
    family_model: Callable[[str], Any], tmp_path: Path
) -> None:
    """Its config nests, its names have a prefix (two are in use), and what sees pictures is left
    out.
    """
    model = family_model("gemma3")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    alone = from_hf.name_tensors(tmp_path, from_hf.read_architecture(tmp_path))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": config})
    )
    for prefix in ("language_model.model.", "model.language_model."):
        state = {
            name: tensor for name, tensor in model.state_dict().items() if "lm_head" not in name
        }
        named = {
            prefix + name.removeprefix("model."): tensor.contiguous()
            for name, tensor in state.items()
        }
        named["vision_tower.embeddings.weight"] = torch.zeros(3, 4)
        safetensors.torch.save_file(named, tmp_path / "model.safetensors")
        found = from_hf.name_tensors(tmp_path, from_hf.read_architecture(tmp_path))
        assert found.keys() == alone.keys()
        assert all(
            torch.equal(found[name].dequantize(), alone[name].dequantize()) for name in found
        )


def test_a_folder_loads_whole_with_its_tokenizer_and_a_digest_of_what_was_read(
    tmp_path: Path,
) -> None:
    make_model("llama2", vocab_size=720).save_pretrained(tmp_path)
    save("llama2", tmp_path)
    loaded = weights.load(tmp_path)
    assert loaded.tokenizer.size == loaded.architecture.vocab_size == 720
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("hello fellow")) == "hello fellow"
    (tmp_path / "README.md").write_text("not read")
    assert weights.digest_of(tmp_path) == loaded.digest
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole + b" ")
        assert weights.digest_of(tmp_path) != loaded.digest
        (tmp_path / name).write_bytes(whole)
    assert weights.digest_of(tmp_path) == loaded.digest


def test_a_family_is_a_file_of_its_folder_and_no_reader_knows_it_by_name() -> None:
    """What a further family changes is its own file; `test_family_*.py` are such files' tests."""
    room = Path(families.__file__).parent
    files = sorted(path.stem for path in room.glob("*.py") if path.stem != "__init__")
    assert files == sorted(name.replace("-", "_") for name in families.FAMILIES)
    outside = [path for path in room.parent.rglob("*.py") if path.parent != room]
    assert len(outside) > 20
    for path in outside:
        assert not re.search(
            r"families\.\w+ import|families import (?!FAM|MODEL_T)", path.read_text()
        )


def test_the_readmes_table_names_every_family_by_what_its_files_call_it() -> None:
    """And nothing else: a row for each file of the folder."""
    room = Path(families.__file__).parent.parent
    table = (room / "README.md").read_text("utf-8").partition("## What loads")[2]
    rows = re.findall(r"^\| [^|`]+ \| ([^|]*) \| `([\w-]+)` \|", table, re.MULTILINE)
    stated = {name: set(re.findall(r"`(\w+)`", types)) for types, name in rows}
    assert len(stated) == len(rows)
    assert stated == {
        name: {*family.hf_defaults, *family.hf_nested} for name, family in families.FAMILIES.items()
    }


def test_a_setting_of_another_type_is_refused_in_words(tmp_path: Path) -> None:
    make_model("lfm2").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "layer_types": [[]] * config["num_hidden_layers"]}))
    with pytest.raises(ModelFileError, match="a setting has another type than lfm2's has"):
        from_hf.read_architecture(tmp_path)
