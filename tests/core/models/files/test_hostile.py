"""Files that lie: each lie by itself, then thousands of random ones. A typed error or a model that
computes, nothing else.

A tenth of the random cases by default, all of them with QUIETCHOIR_FUZZ=full.
"""

import contextlib
import json
import math
import os
import pickle
import random
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from quietchoir.core.errors import ModelError, ModelFileError, ModelNotFoundError, RequestError
from quietchoir.core.models import weights
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.families import nemotron_h
from quietchoir.core.models.files.settings import HfSettings
from quietchoir.core.models.files.tensor_map import TensorMap
from quietchoir.core.models.quant.tensor import QuantTensor
from quietchoir.core.models.transformer import Transformer
from quietchoir.tests.fakes.models import GgufWriter, make_model
from quietchoir.tests.fakes.tokenizers import save

from ..conftest import MakeLinear

FULL = os.environ.get("QUIETCHOIR_FUZZ") == "full"
# in all, a ninth each kind of file; the last ninth is templates, in test_template_sandbox.py
CASES = 10_800 if FULL else 1_080
SECONDS = 20.0  # of processor time for one case; the slowest takes well under one
GROWTH = 600 << 20  # bytes that the whole process may grow by over all cases
SMALL = {
    "num_hidden_layers": 2,
    "vocab_size": 720,
    "hidden_size": 32,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
NUMBERS = (
    0,
    1,
    2,
    7,
    31,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    -1,
    10**400,
    0.0,
    -0.5,
    1e308,
    True,
    False,
    None,
    "",
    "0",
    "\u2063",
    [],
    {},
    [None],
    [[]],
    "<s>" * 50,
)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model folder with its tokenizer; copied before anything in it is spoiled."""
    path = tmp_path_factory.mktemp("folder")
    make_model("gemma3", **SMALL).save_pretrained(path)
    save("gemma", path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The folder again, to spoil."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edited(path: Path, **changes: Any) -> None:
    """A JSON file with other values; None takes a key away."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; choose one of "),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"hidden_size": "32"}, "hidden_size is '32', expected a positive whole number"),
        ({"hidden_size": 10**300}, "hidden_size is 1000.*expected 1 to 131072"),
        (
            {"num_hidden_layers": 10**9, "layer_types": None},
            "layers is 1000000000, expected 1 to 1024",
        ),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "4 query heads do not share 3 key heads"),
        ({"head_dim": 2**40}, "heads have 1099511627776 numbers"),
        ({"head_dim": 33}, "rope cannot turn 33 of 33"),
        ({"head_dim": 16}, r"is \(1, 32\), expected \(1, 16\)"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0, expected a positive number"),
        ({"layer_types": ["full_attention"]}, "expected a list of 2"),
        ({"layer_types": ["mamba", "mamba"]}, "neither full nor windowed"),
        ({"final_logit_softcapping": 30.0}, "its logits are capped"),
        ({"hidden_activation": "relu"}, "its activation is 'relu'"),
        ({"use_bidirectional_attention": True}, "its rows see later rows"),
        ({"quantization_config": {"bits": 4}}, "it is quantised in a way of its own"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "spiral", "factor": 4.0}}},
            "rope is scaled by the rule 'spiral'",
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "mrope": [1]}
                }
            },
            "has the setting 'mrope'",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"factor": 4.0}}},
            "rope of windowed layers is scaled",
        ),
        (
            {"rope_parameters": {"full_attention": {}, "third_attention": {}}},
            "has the setting 'third_attention'",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope turns only part of a head"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta is 1000"),
        ({"rope_parameters": "none"}, "rope_parameters is 'none', expected an object"),
        ({"vocab_size": 30}, r"is \(720, 32\), expected \(30, 32\)"),
    ],
)
def test_a_config_that_this_code_would_compute_wrongly_is_refused(
    copy: Path, changes: dict[str, Any], sentence: str
) -> None:
    edited(copy / "config.json", **changes)
    with pytest.raises(ModelFileError, match=sentence):
        weights.load(copy)


def spoil_index(folder: Path, places: object) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        (lambda f: (f / "config.json").write_text("{"), ModelFileError, "not readable JSON"),
        (
            lambda f: (f / "config.json").write_text("[" * 100_000),
            ModelFileError,
            "not readable JSON",
        ),
        (
            lambda f: (f / "config.json").write_text("[]"),
            ModelFileError,
            "holds a list, expected an object",
        ),
        (lambda f: (f / "config.json").unlink(), ModelNotFoundError, "config.json: no such file"),
        (
            lambda f: (f / "tokenizer.json").unlink(),
            ModelNotFoundError,
            "tokenizer.json: no such file",
        ),
        (
            lambda f: (f / "model.safetensors").unlink(),
            ModelNotFoundError,
            "neither model.safetensors nor pytorch_model.bin",
        ),
        (
            lambda f: spoil_index(f, {"a": "../../etc/passwd"}),
            ModelFileError,
            "passwd' is not a file of this folder",
        ),
        (
            lambda f: spoil_index(f, {"a": "gone.safetensors"}),
            ModelNotFoundError,
            "gone.safetensors: no such file, but",
        ),
        (
            lambda f: spoil_index(f, {str(n): f"{n}.safetensors" for n in range(2000)}),
            ModelFileError,
            "names 2000 files",
        ),
        (lambda f: spoil_index(f, 7), ModelFileError, "names 0 files"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64),
            ModelFileError,
            "damaged or cut short",
        ),
        (
            lambda f: edited(f / "tokenizer.json", decoder={"type": "Fuse"}),
            ModelFileError,
            r"a decoder of \['Fuse'\]",
        ),
        (
            lambda f: edited(
                f / "tokenizer.json", model={"type": "WordLevel", "vocab": {}, "unk_token": "a"}
            ),
            ModelFileError,
            "BPE",
        ),
        (
            lambda f: edited(f / "config.json", eos_token_id=10**6),
            ModelFileError,
            "an end token is beyond the 720 tokens",
        ),
    ],
)
def test_a_folder_that_is_not_what_it_claims_is_refused(
    copy: Path, spoil: Callable[[Path], object], error: type[Exception], sentence: str
) -> None:
    spoil(copy)
    with pytest.raises(error, match=sentence):
        weights.load(copy)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (b"{% for %}", "chat template cannot be read"),
        (b"a" * 300_000, "letters, at most 262144 are read"),
        (b"{{ messages|no_such_filter }}", "chat template cannot be read .*no_such_filter"),
        (b"{% include 'other' %}", "refuses this conversation: no loader"),
        (b"\xff{{ bos_token", "chat template cannot be read"),
        (b"", "no chat template"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_when_a_chat_is_asked_for(
    copy: Path, template: bytes, sentence: str
) -> None:
    (copy / "chat_template.jinja").write_bytes(template)
    loaded = weights.load(copy)
    assert loaded.tokenizer.encode("hello")
    with pytest.raises(RequestError, match=sentence):
        loaded.tokenizer.encode_chat(HELLO)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "pytorch_model.bin"]
)
def test_a_git_lfs_pointer_in_a_folder_is_called_that(copy: Path, name: str) -> None:
    if name.endswith("bin"):
        (copy / "model.safetensors").unlink()
    (copy / name).write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 98362432\n"
    )
    with pytest.raises(
        ModelFileError,
        match=rf"{name}: a Git LFS pointer of 133 bytes.*git lfs "
        rf"pull",
    ):
        weights.load(copy)


def test_tensors_too_many_too_few_or_of_another_kind_are_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    whole = safetensors.torch.load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    for change, sentence in (
        (
            {"model.layers.9.extra.weight": torch.zeros(2, 2)},
            "model.layers.9.extra.weight is not part of a gemma3 model",
        ),
        ({name: torch.zeros(3, 32)}, rf"{name} is \(3, 32\), expected \(32, 32\)"),
        ({name: torch.zeros(32, 32, dtype=torch.int8)}, "is torch.int8"),
        ({name: torch.zeros(4, 8, 32)}, "expected a vector or matrix"),
        ({name: torch.zeros(0, 32)}, "expected a vector or matrix"),
        ({name: None}, f"{name} is missing"),
    ):
        tensors = {key: value for key, value in {**whole, **change}.items() if value is not None}
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(ModelFileError, match=sentence):
            weights.load(copy)


class Bomb:
    """Runs something when a careless reader opens it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_legacy_file_loads_as_plain_tensors_and_one_that_wants_more_is_refused_and_not_run(
    copy: Path,
) -> None:
    before = weights.load(copy)
    tensors = safetensors.torch.load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    legacy = copy / "pytorch_model.bin"
    for new in (True, False):
        torch.save(tensors, legacy, _use_new_zipfile_serialization=new)
        assert all(
            torch.equal(blocks.raw, before.tensors[name].raw)
            for name, blocks in weights.load(copy).tensors.items()
        )
    torch.save({**tensors, "more": Bomb(copy / "ran")}, legacy)
    with pytest.raises(
        ModelFileError, match="holds more than tensors, and opening it would run that"
    ):
        weights.load(copy)
    legacy.write_bytes(pickle.dumps(Bomb(copy / "ran")))
    with pytest.raises(ModelFileError, match="safetensors"):
        weights.load(copy)
    assert not (copy / "ran").exists()
    for spoiled in (
        [1, 2],
        {"model.norm.weight": 7},
        {"model.norm.weight": torch.zeros(1).expand(1 << 40)},
    ):
        torch.save(spoiled, legacy)
        with pytest.raises(ModelFileError):
            weights.load(copy)


def attempt(path: Path, make_linear: MakeLinear) -> bool:
    """Whether the model loads; then it computes as well. Anything but a typed error goes through
    to the test.
    """
    start = time.process_time()
    try:
        loaded = weights.load(path)
        tokens = loaded.tokenizer.encode("hello <s>\n x")[:8] or [0]
        loaded.tokenizer.decode(tokens)
        with contextlib.suppress(RequestError, ModelFileError):
            loaded.tokenizer.encode_chat(HELLO)
        network = Transformer(loaded, make_linear)
        attend = packed_attention([len(tokens)], loaded.architecture.windows)
        with torch.inference_mode():
            network.logits(
                network.layers_forward(
                    network.embed(torch.tensor(tokens)), torch.arange(len(tokens)), attend
                )
            )
    except ModelError as error:
        assert len(str(error)) < 1500
        return False
    finally:
        assert time.process_time() - start < SECONDS
    return True


def spoiled_bytes(rng: random.Random, whole: bytes, header: int) -> bytes:
    """The file with one to three things wrong, mostly in its header."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(min(header, len(data)) if rng.random() < 0.9 else len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + 8] = rng.choice(NUMBERS).to_bytes(8, "little")
        elif kind == 2:
            data[place : place + 4] = (rng.choice(NUMBERS) & 0xFFFFFFFF).to_bytes(4, "little")
        elif kind == 3:
            del data[place : place + rng.randint(1, 40)]
        elif kind == 4:
            data[place:place] = data[
                (start := rng.randrange(len(data))) : start + rng.randint(1, 60)
            ]
        else:
            del data[rng.randrange(len(data)) :]
        if not data:
            return b""
    return bytes(data)


def spoiled_json(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with one thing in it replaced, taken away or doubled."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: spoiled_json(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:place] + value[place : place + 1] * rng.choice((0, 2))
        return [*value[:place], spoiled_json(rng, value[place], depth + 1), *value[place + 1 :]]
    return rng.choice(VALUES)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.fuzz
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["llama3", "gemma3", "phi3"])
def test_spoiled_gguf_files_are_refused_or_compute(
    name: str, make_linear: MakeLinear, tmp_path: Path
) -> None:
    rng, path = random.Random(name), tmp_path / "model.gguf"
    GgufWriter(make_model(name, **{**SMALL, "vocab_size": 300}), path).write()
    whole = path.read_bytes()
    assert attempt(path, make_linear)
    header, before, loaded = whole.rindex(b"weight") + 60, peak(), 0
    for _ in range(CASES // 9):
        path.write_bytes(spoiled_bytes(rng, whole, header))
        loaded += attempt(path, make_linear)
    assert loaded < CASES // 9 * 0.8  # the spoiling is noticed
    assert peak() - before < GROWTH


@pytest.mark.fuzz
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_folders_with_spoiled_settings_are_refused_or_compute(
    name: str, make_linear: MakeLinear, copy: Path
) -> None:
    rng, values, before = random.Random(name), json.loads((copy / name).read_text()), peak()
    for _ in range(CASES // 9):
        spoiled = spoiled_json(rng, values)
        (copy / name).write_text(
            json.dumps(spoiled_json(rng, spoiled) if rng.random() < 0.3 else spoiled)
        )
        attempt(copy, make_linear)
    (copy / name).write_text(json.dumps(values))
    assert attempt(copy, make_linear)
    assert peak() - before < GROWTH


@pytest.mark.fuzz
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_folders_with_spoiled_tensors_are_refused_or_compute(
    name: str, make_linear: MakeLinear, copy: Path
) -> None:
    rng, before, loaded = random.Random(name), peak(), 0
    path = copy / "model.safetensors"
    if name.endswith("bin"):
        torch.save(safetensors.torch.load_file(path), copy / name)
        path.unlink()
        path = copy / name
    whole = path.read_bytes()
    assert attempt(copy, make_linear)
    for _ in range(CASES // 9):
        path.write_bytes(
            spoiled_bytes(
                rng,
                whole,
                len(whole) if name.endswith("bin") else 8 + int.from_bytes(whole[:8], "little"),
            )
        )
        loaded += attempt(copy, make_linear)
    assert loaded < CASES // 9
    assert peak() - before < GROWTH


@pytest.mark.parametrize(
    "said",
    [
        1,
        "12",
        {"1": 0, "2": 0},
        [True, 1, 2],
        ["1", "2"],
        "x",
        [1.0],
        ["a"] * 2,
        [0.0, {"a": 1}],
        [True, True],
        [[1], [2]],
        [math.nan, 1.0],
    ],
)
def test_a_list_of_numbers_is_that_or_refused(said: Any) -> None:
    """The instances: factors and bounds of state spaces ended in Python's own errors."""
    with pytest.raises(ModelFileError, match=r"c\.json: found factors = .*, expected 2 numbers"):
        HfSettings(Path("c.json"), {"factors": said}, {}).reals("factors", 2)
    known = HfSettings(Path("c.json"), {"factors": [0, {"__float__": "Infinity"}]}, {})
    assert known.reals("factors", 2) == [0.0, math.inf]


def test_a_layer_with_a_number_of_thousands_of_digits_is_no_layer() -> None:
    """The instance: Python refuses to read so long a number, and its own error came out."""
    rows = QuantTensor("F32", (1, 32), torch.ones(1, 32).view(torch.uint8))
    names = ("model.layers.3.norm.weight", f"model.layers.{'1' * 5000}.norm.weight")
    tensors = TensorMap(Path("model"), dict.fromkeys(names, rows), "llama")
    tensors.drop_layers("model.layers.", 2)
    assert [*tensors.left] == [names[1]]
    pattern, rules = re.compile(r"model\.layers\.(\d{1,4})\.(.+)"), nemotron_h.HF
    kept = nemotron_h.merged({names[1]: rows}, pattern, "model.layers.{}.{}", rules)
    assert [*kept] == [names[1]]
