"""A folder converted to GGUF: our reader, the gguf package and transformers find the same model
in it.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
import torch

from quietchoir.core import commands, paths
from quietchoir.core.errors import ConfigError, ModelError, ModelFileError
from quietchoir.core.models import to_gguf, weights
from quietchoir.core.models.attention import packed_attention
from quietchoir.core.models.files.gguf_writer import GgufWriter
from quietchoir.core.models.quant.quantize import quantize
from quietchoir.core.models.quant.tensor import plain
from quietchoir.core.models.transformer import Transformer
from quietchoir.core.models.weights import Weights
from quietchoir.tests.fakes.disk import files_of
from quietchoir.tests.fakes.models import make_model
from quietchoir.tests.fakes.tokenizers import KINDS, save

from ..conftest import MakeLinear
from ..tokenizer.test_tokenizer import TRICKY

WORDS = {
    "llama2": "llama2",
    "llama3": "llama3",
    "llama-linear": "smollm",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
}
WORDS |= {
    "gemma3": "gemma",
    "smollm3": "llama3",
    "phi3": "phi3",
    "phi3-long": "phi3",
    "mistral": "tekken",
}
TOKENS = torch.arange(40) * 17 % 700


def folder(name: str, path: Path, **changes: Any) -> Weights:
    """A family's random model with a tokenizer of its kind, saved and loaded."""
    make_model(name, vocab_size=720, **changes).save_pretrained(path)
    save(WORDS.get(name, "smollm"), path)
    return weights.load(path)


@torch.inference_mode()
def logits(loaded: Weights, make_linear: MakeLinear) -> torch.Tensor:
    network = Transformer(loaded, make_linear)
    attend = packed_attention([len(TOKENS)], loaded.architecture.windows)
    return network.logits(
        network.layers_forward(network.embed(TOKENS), torch.arange(len(TOKENS)), attend)
    )


@pytest.mark.parametrize("name", WORDS)
def test_a_converted_model_computes_and_reads_text_as_before(
    name: str, make_linear: MakeLinear, tmp_path: Path
) -> None:
    before = folder(name, tmp_path / "folder")
    to_gguf.save(before, tmp_path / "model.gguf", "F32")
    after = weights.load(tmp_path / "model.gguf")
    assert (logits(after, make_linear) - logits(before, make_linear)).abs().max() < 1e-4
    for text in TRICKY:
        assert after.tokenizer.encode(text) == before.tokenizer.encode(text), text
    chat = [{"role": "user", "content": "hello"}]
    assert after.tokenizer.encode_chat(chat) == before.tokenizer.encode_chat(chat)
    assert after.tokenizer.stop_tokens == before.tokenizer.stop_tokens
    assert KINDS[WORDS[name]].template == after.tokenizer.vocabulary.template


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16", "BF16"])
@pytest.mark.parametrize("name", ["llama2", "phi3"])
def test_a_quantised_file_holds_the_blocks_of_the_type_and_stays_near(
    name: str, kind: str, make_linear: MakeLinear, tmp_path: Path
) -> None:
    before = folder(name, tmp_path / "folder")
    to_gguf.save(before, tmp_path / "model.gguf", kind)
    after = weights.load(tmp_path / "model.gguf")
    assert after.tensors["model.layers.0.mlp.up_proj.weight"].quant_type == kind
    assert after.tensors["lm_head.weight"].quant_type == ("Q8_0" if kind == "Q4_0" else kind)
    assert after.tensors["model.norm.weight"].quant_type == "F32"
    for ours, blocks in after.tensors.items():
        error = (blocks.dequantize() - before.tensors[ours].dequantize()).norm() / before.tensors[
            ours
        ].dequantize().norm()
        assert error < {"Q4_0": 0.09, "Q8_0": 0.006, "F16": 4e-4, "BF16": 3e-3}[kind], ours


def test_the_gguf_package_and_transformers_read_a_converted_file(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder(
        "llama3",
        tmp_path / "folder",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    loaded = weights.load(tmp_path / "folder")
    to_gguf.save(loaded, tmp_path / "model.gguf", "Q8_0")
    reader = library.GGUFReader(tmp_path / "model.gguf")
    assert reader.get_field("general.architecture").contents() == "llama"
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"Q8_0", "F32"}
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).state_dict()
    after = weights.load(tmp_path / "model.gguf")
    for name, blocks in after.tensors.items():
        assert torch.equal(blocks.dequantize().view(theirs[name].shape), theirs[name]), name


def test_what_gguf_cannot_hold_is_refused_and_nothing_is_written(
    tmp_path: Path, smollm2: Weights
) -> None:
    windowed = folder("qwen2-windowed", tmp_path / "folder")
    with pytest.raises(ModelFileError, match="layers of this qwen2 model see only a window"):
        to_gguf.save(windowed, tmp_path / "model.gguf", "F32")
    with pytest.raises(ModelFileError, match=r"is Q\w+ already, and quantising twice ruins it"):
        to_gguf.save(smollm2, tmp_path / "model.gguf", "Q8_0")
    with pytest.raises(ModelFileError, match="type Q9_Z cannot be written; choose one of F32"):
        to_gguf.save(windowed, tmp_path / "model.gguf", "Q9_Z")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_conversion_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    """A child is killed between two tensors; whatever the file system, one that ends itself leaves
    nothing either.
    """
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from quietchoir.core import paths\n"
        "with paths.scratch_file(Path(sys.argv[1]) / 'm.gguf') as scratch:\n"
        "    scratch.write_bytes(b'half a model')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [*tmp_path.iterdir()] == [] or not hasattr(os, "O_TMPFILE")
    with paths.scratch_file(tmp_path / "m.gguf") as scratch:
        scratch.write_bytes(b"whole")
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"whole"
    with pytest.raises(RuntimeError), paths.scratch_file(tmp_path / "n.gguf") as scratch:
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_a_file_whose_last_bytes_find_no_room_takes_no_name(tmp_path: Path) -> None:
    model = folder("llama3", tmp_path / "folder", num_hidden_layers=1)
    whole, full = tmp_path / "whole.gguf", tmp_path / "full.gguf"
    to_gguf.save(model, whole, "Q8_0")
    size = whole.stat().st_size
    for lacking in (1, 31, 32, 33, 700, 4095, 4096, 4097, size // 2):
        with files_of(size - lacking), pytest.raises(ModelError, match="cannot be written"):
            to_gguf.save(model, full, "Q8_0")
        assert {one.name for one in tmp_path.iterdir()} == {"folder", "whole.gguf"}, lacking
    with files_of(size):
        to_gguf.save(model, full, "Q8_0")
    assert full.read_bytes() == whole.read_bytes()


def test_a_hole_in_a_file_is_an_error_though_there_is_room_again(tmp_path: Path) -> None:
    """Room comes back between two tensors, so that the file ends where it should."""
    tensor = np.ones(1000, np.float32)
    writer = GgufWriter(tmp_path / "it.gguf", "llama")
    with pytest.raises(OSError, match="too large"), writer:
        for name in ("first", "second"):
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with files_of(2000):
            writer.write_tensor_data(tensor)
            writer.flush()
        writer.write_tensor_data(tensor)
    missing = GgufWriter(tmp_path / "less.gguf", "llama")
    with pytest.raises(OSError, match="bytes lie on the disk"), missing:
        missing.add_tensor_info("it", tensor.shape, tensor.dtype, tensor.nbytes)
        missing.write_header_to_file()
        missing.write_kv_data_to_file()
        missing.write_ti_data_to_file()


def test_eight_bits_are_the_references_own_and_four_bits_lose_less_than_the_references() -> None:
    values = np.random.default_rng(3).standard_normal((256, 512), dtype=np.float32)
    values[3] = 0
    blocks = plain(torch.from_numpy(values))
    eight = library.quants.quantize(values, library.GGMLQuantizationType.Q8_0)
    assert np.array_equal(quantize(blocks, "Q8_0").raw.numpy(), eight)
    four = library.quants.quantize(values, library.GGMLQuantizationType.Q4_0)
    reference = np.square(
        library.quants.dequantize(four, library.GGMLQuantizationType.Q4_0) - values
    ).mean()
    ours = float((quantize(blocks, "Q4_0").dequantize() - blocks.dequantize()).square().mean())
    assert ours < 0.9 * reference
    assert not quantize(blocks, "Q4_0").dequantize()[3].any()


def test_numbers_that_are_not_finite_and_blocks_are_not_quantised() -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize(plain(torch.tensor([[torch.inf] * 32])), "Q4_0")
    with pytest.raises(ValueError, match="30 columns do not fit blocks of 32"):
        quantize(plain(torch.zeros(2, 30)), "Q8_0")
    with pytest.raises(ValueError, match="Q8_0 blocks are not quantised a second time"):
        quantize(quantize(plain(torch.zeros(2, 32)), "Q8_0"), "Q4_0")


def test_a_folder_quantised_while_it_loads_is_the_file_that_convert_would_write(
    tmp_path: Path,
) -> None:
    plainly = folder("llama3", tmp_path / "folder")
    to_gguf.save(plainly, tmp_path / "model.gguf", "Q4_0")
    loaded, written = (
        weights.load(tmp_path / "folder", quant_type="Q4_0"),
        weights.load(tmp_path / "model.gguf"),
    )
    for name, blocks in loaded.tensors.items():
        assert (blocks.quant_type, blocks.raw.tolist()) == (
            written.tensors[name].quant_type,
            written.tensors[name].raw.tolist(),
        ), name
    assert loaded.tensors["lm_head.weight"] is loaded.tensors["model.embed_tokens.weight"]
    assert len({plainly.digest, loaded.digest, written.digest}) == 3
    with pytest.raises(ModelFileError, match="not quantised a second time"):
        weights.load(tmp_path / "model.gguf", quant_type="Q8_0")


def test_the_commands_convert_a_folder_and_show_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder("gemma3", tmp_path / "folder")
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    for line in (
        f"model convert {tmp_path}/folder --out {tmp_path}/model.gguf",
        f"model show {tmp_path}/model.gguf",
    ):
        arguments = parser.parse_args(line.split())
        arguments.run(arguments)
    written = (tmp_path / "model.gguf").read_bytes()
    again = parser.parse_args(
        f"model convert {tmp_path}/folder --out {tmp_path}/model.gguf --type f32".split()
    )
    with pytest.raises(ConfigError, match="is there already and is kept"):
        again.run(again)
    assert (tmp_path / "model.gguf").read_bytes() == written
    printed = " ".join(capsys.readouterr().out.split())
    for said in (
        "family gemma3",
        "Q4_0 ",
        "Q8_0 ",
        "layers 8 of width 64",
        "in windows of 9",
        "chat template yes",
    ):
        assert said in printed
