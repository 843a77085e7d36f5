"""Adapters: one order of numbers, the same frozen half everywhere, PEFT's files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from quietchoir.core.errors import ModelError, ModelFileError, ModelNotFoundError
from quietchoir.core.models import weights
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.lora.adapter import Adapter, AdapterShape, Layout, assemble, frozen_a
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights

from ..conftest import MakeLinear

SHAPE = AdapterShape(rank=4, alpha=8, upper_layers=1, seed=3)


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Weights:
    return weights.load(tiny_path)


@pytest.fixture
def adapter(tiny: Weights) -> Adapter:
    size = Layout(SHAPE, tiny.architecture).size
    return assemble(
        SHAPE, tiny.architecture, tiny.digest, torch.sin(torch.arange(size) * 1.0) * 0.1
    )


def test_the_default_layout_is_the_order_that_federations_sum_in(smollm2: Weights) -> None:
    layout = Layout(AdapterShape(), smollm2.architecture)
    ranges = layout.ranges()
    assert layout.size == 16 * 8 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576)
    assert ranges[0] == ("model.layers.22.self_attn.q_proj.lora_B.weight", 0, 576 * 16)
    assert ranges[-1] == (
        "model.layers.29.mlp.down_proj.lora_B.weight",
        layout.size - 576 * 16,
        layout.size,
    )
    assert [stop for _, _, stop in ranges[:-1]] == [start for _, start, _ in ranges[1:]]


def test_the_order_of_targets_does_not_change_the_layout(tiny: Weights) -> None:
    one = Layout(replace(SHAPE, targets=("down_proj", "q_proj")), tiny.architecture)
    other = Layout(replace(SHAPE, targets=("q_proj", "down_proj")), tiny.architecture)
    assert one.ranges() == other.ranges()
    assert one.ranges()[0][0].startswith("model.layers.1.self_attn.q_proj")


def test_flattening_and_unflattening_are_inverse(tiny: Weights) -> None:
    layout = Layout(SHAPE, tiny.architecture)
    flat = torch.arange(layout.size, dtype=torch.float32)
    named = layout.unflatten(flat)
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == layout.shapes
    assert torch.equal(layout.flatten(named), flat)
    with pytest.raises(ValueError, match="expected"):
        layout.unflatten(flat[1:])
    with pytest.raises(ValueError, match="is missing"):
        layout.flatten({})


def test_frozen_a_is_the_same_on_every_machine_and_of_every_version(smollm2: Weights) -> None:
    drawn = frozen_a(AdapterShape(seed=7), smollm2.architecture)
    digest = hashlib.sha256(
        b"".join(tensor.numpy().tobytes() for tensor in drawn.values())
    ).hexdigest()
    # Changing this number breaks every federation that runs: a new scheme needs a new name in the
    # stream instead.
    assert digest == "ca2de093438e2d60957c4ddfdfcc5a19a27a64753a04f1ab51dbe299dfc5e43a"


def test_frozen_a_is_uniform_as_peft_starts_it(smollm2: Weights) -> None:
    for name, tensor in frozen_a(AdapterShape(upper_layers=1), smollm2.architecture).items():
        bound = tensor.shape[1] ** -0.5
        assert tensor.abs().max() <= bound, name
        assert abs(tensor.std() / bound - 3**-0.5) < 0.02, name
        assert abs(tensor.mean()) < 0.02 * bound, name


def test_a_smaller_rank_shares_the_first_rows_of_a(tiny: Weights) -> None:
    wide, narrow = (
        frozen_a(SHAPE, tiny.architecture),
        frozen_a(replace(SHAPE, rank=2), tiny.architecture),
    )
    assert all(torch.equal(narrow[name], wide[name][:2]) for name in wide)
    other = frozen_a(replace(SHAPE, seed=4), tiny.architecture)
    assert not any(torch.equal(other[name], wide[name]) for name in wide)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"alpha": float("nan")},
        {"upper_layers": 0},
        {"targets": ("lm_head",)},
        {"targets": ()},
        {"seed": -1},
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|positive"):
        AdapterShape(**change)


def test_a_shape_for_a_deeper_model_is_refused(tiny: Weights) -> None:
    with pytest.raises(ValueError, match="the model has 2 layers"):
        Layout(AdapterShape(upper_layers=3), tiny.architecture)


def test_saving_and_loading_gives_the_same_adapter_and_the_same_bytes(
    adapter: Adapter, tiny: Weights, tmp_path: Path
) -> None:
    adapter.save(tmp_path / "one")
    loaded = Adapter.load(tmp_path / "one")
    assert (loaded.shape, loaded.base_digest) == (SHAPE, tiny.digest)
    assert loaded.tensors.keys() == adapter.tensors.keys()
    assert all(
        torch.equal(loaded.tensors[name], tensor) for name, tensor in adapter.tensors.items()
    )
    loaded.check(tiny.architecture)
    loaded.save(tmp_path / "two")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_flat_vector_that_is_not_finite_never_becomes_an_adapter(tiny: Weights) -> None:
    flat = torch.zeros(Layout(SHAPE, tiny.architecture).size)
    flat[5] = float("inf")
    with pytest.raises(ModelFileError, match="not finite"):
        assemble(SHAPE, tiny.architecture, tiny.digest, flat)


def test_an_adapter_of_another_base_is_found_out(adapter: Adapter, smollm2: Weights) -> None:
    with pytest.raises(ModelFileError, match="does not fit the base model"):
        adapter.check(smollm2.architecture)


def test_anothers_adapter_whose_rows_stand_in_another_order_is_refused(
    tiny: Weights, adapter: Adapter
) -> None:
    """GLM's folders hold what rope turns in pairs; what was trained here stands in our order."""
    glm = replace(tiny.architecture, family="glm4")
    replace(adapter, base_digest="").check(tiny.architecture)
    adapter.check(glm)
    with pytest.raises(ModelFileError, match="rows stand in the order of glm4's folders"):
        replace(adapter, base_digest="").check(glm)


def rewrite(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    tensors: dict[str, Tensor | None] | None = None,
) -> None:
    """Change a saved checkpoint: config keys, or tensors (None removes)."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    file = folder / "adapter_model.safetensors"
    held = safetensors.torch.load_file(file) | (tensors or {})
    safetensors.torch.save_file(
        {name: tensor for name, tensor in held.items() if tensor is not None}, file
    )


A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
M = "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"config": {"peft_type": "IA3"}}, "not the configuration of a LoRA adapter"),
        ({"config": {"use_dora": True}}, "lora_magnitude_vector is missing or unknown"),
        ({"tensors": {M: torch.ones(64)}}, "lora_magnitude_vector is missing or unknown"),
        (
            {"config": {"use_dora": True}, "tensors": {M: torch.full((64,), torch.inf)}},
            "lora_magnitude_vector is not a list of finite numbers",
        ),
        (
            {"config": {"rank_pattern": {"q_proj": 2}}},
            "configuration says rank 2, matrices of model.layers.1.self_attn.q_proj have 4",
        ),
        ({"config": {"r": 8}}, "configuration says rank 8, matrices of .* have 4"),
        ({"config": {"lora_alpha": "many"}}, "could not convert"),
        ({"config": {"lora_alpha": 10**400}}, "too large"),
        ({"config": {"lora_alpha": True, "r": "4"}}, "configuration says rank '4'"),
        (
            {"config": {"alpha_pattern": {"(.*)+q": 1}}},
            "expected a module's name or a plain pattern",
        ),
        ({"config": {"alpha_pattern": {"((((": 1}}}, "get the adapter again"),
        ({"config": {"alpha_pattern": [1]}}, "get the adapter again"),
        ({"config": {"fields_of_tomorrow": 3}}, "fields_of_tomorrow = 3 is not supported"),
        (
            {"config": {"init_lora_weights": "pissa_niter_4"}},
            "init_lora_weights = 'pissa_niter_4' is not supported",
        ),
        ({"config": {"init_lora_weights": 1}}, "init_lora_weights = 1 is not supported"),
        (
            {"tensors": {A: torch.ones(4, 64, dtype=torch.int8)}},
            "is torch.int8, expected floating-point numbers",
        ),
        (
            {"tensors": {A: torch.full((4, 64), 1e300, dtype=torch.float64)}},
            "not a matrix of finite numbers",
        ),
        (
            {
                "config": {"bias": "all"},
                "tensors": {"base_model.model.lm_head.bias": torch.ones(64)},
            },
            "bias = 'all' has trained lm_head.bias",
        ),
        (
            {"tensors": {B.replace("lora_B.weight", "bias"): torch.ones(64)}},
            "q_proj.bias is missing or unknown",
        ),
        ({"tensors": {B: None}}, "lora_B.weight is missing or unknown"),
        (
            {"tensors": {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)}},
            "lm_head.lora_A.weight is missing or unknown",
        ),
        ({"tensors": {A: torch.full((4, 64), float("nan"))}}, "not a matrix of finite numbers"),
        ({"tensors": {A: torch.ones(4)}}, "not a matrix of finite numbers"),
        ({"tensors": {A: torch.ones(3, 64)}}, r"A \(3, 64\) and B \(64, 4\)"),
    ],
)
def test_a_checkpoint_that_is_not_lora_as_we_compute_it_is_refused(
    adapter: Adapter, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    adapter.save(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(ModelFileError, match=sentence):
        Adapter.load(tmp_path)


def test_fields_that_ask_for_nothing_are_taken_known_or_not(
    adapter: Adapter, tmp_path: Path
) -> None:
    adapter.save(tmp_path)
    rewrite(
        tmp_path,
        config={
            "fields_of_tomorrow": None,
            "another": False,
            "third": {},
            "use_dora": False,
            "bias": "all",
        },
    )
    assert Adapter.load(tmp_path).shape == replace(SHAPE, seed=0)


def test_an_adapter_with_one_huge_rank_takes_no_huge_memory(
    adapter: Adapter, tmp_path: Path
) -> None:
    adapter.save(tmp_path)
    huge = 2_000_000
    rewrite(
        tmp_path,
        config={"rank_pattern": {"q_proj": huge}},
        tensors={
            A: torch.ones(huge, 1, dtype=torch.float16),
            B: torch.ones(1, huge, dtype=torch.float16),
        },
    )
    with pytest.raises(ModelFileError, match="its ranks differ too much"):
        Adapter.load(tmp_path)


def test_missing_and_damaged_files_are_told_apart(adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        Adapter.load(tmp_path)
    adapter.save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ModelFileError, match="damaged"):
        Adapter.load(tmp_path)
    file.unlink()
    with pytest.raises(ModelNotFoundError, match="incomplete"):
        Adapter.load(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(
        ModelFileError,
        match=r"adapter_model.bin: pickled.*save it again, as "
        r"safetensors",
    ):
        Adapter.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ModelFileError, match="not a readable JSON"):
        Adapter.load(tmp_path)


def test_a_foreign_peft_checkpoint_loads(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path)
    rewrite(tmp_path)  # drops our header, as PEFT's own writer would
    loaded = Adapter.load(tmp_path)
    assert (loaded.base_digest, loaded.shape.seed) == ("", 0)
    assert all(
        torch.equal(loaded.tensors[name], tensor) for name, tensor in adapter.tensors.items()
    )


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # PEFT asks transformers for it
def test_plain_peft_loads_our_files_and_computes_the_same(
    adapter: Adapter, tiny: Weights, tmp_path: Path, make_linear: MakeLinear
) -> None:
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = tiny.architecture
    config = LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        rms_norm_eps=sizes.norm_eps,
        rope_theta=sizes.rope_theta,
        tie_word_embeddings=False,
    )
    theirs = LlamaForCausalLM(config).eval()
    dense = {name: blocks.dequantize() for name, blocks in tiny.tensors.items()}
    theirs.load_state_dict(
        {name: tensor[0] if "norm" in name else tensor for name, tensor in dense.items()}
    )
    adapter.save(tmp_path)
    ours = Transformer(tiny, make_linear)
    tokens = torch.arange(12)

    def compute() -> torch.Tensor:
        rows = ours.layers_forward(ours.embed(tokens), tokens, packed_attention([12]))
        return ours.logits(rows)

    with torch.inference_mode():
        plain = compute()
        torch.testing.assert_close(plain, theirs(tokens[None]).logits[0], atol=1e-4, rtol=0)
        adapted = peft.PeftModel.from_pretrained(theirs, str(tmp_path))(tokens[None]).logits[0]
    ours_config = peft.LoraConfig.from_pretrained(str(tmp_path))
    peft.inject_adapter_in_model(ours_config, ours)
    state = {
        name.replace(".weight", ".default.weight"): tensor
        for name, tensor in adapter.tensors.items()
    }
    assert not ours.load_state_dict(state, strict=False).unexpected_keys
    with torch.inference_mode():
        torch.testing.assert_close(compute(), adapted, atol=1e-4, rtol=0)
    assert (adapted - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "targets", "words"),
    [
        (
            {"family": "gemma4", "kv_sources": (0, 0)},
            ("q_proj",),
            "this gemma4 model has layers that",
        ),
        ({"family": "nemotron_h", "gated": False}, ("gate_proj",), "name q_proj, .*, up_proj"),
        (
            {"num_experts": 4, "experts_per_token": 2},
            ("up_proj",),
            "name q_proj, k_proj, v_proj or",
        ),
    ],
)
def test_what_no_adapter_changes_is_said_by_the_familys_name_with_what_to_do(
    tiny: Weights, changes: dict[str, Any], targets: tuple[str, ...], words: str
) -> None:
    """Before a round begins: as whoever founds or joins a federation over such a model reads it."""
    other = replace(tiny.architecture, **changes)
    with pytest.raises(ModelError, match=words):
        Layout(replace(SHAPE, targets=targets), other)
