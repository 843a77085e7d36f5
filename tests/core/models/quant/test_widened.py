"""Blocks of one and two bits: taken as 8-bit ones, and said so."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from quietchoir import doctor
from quietchoir.core.config import Config, EngineConfig
from quietchoir.core.engine.backends.native import library, network
from quietchoir.core.errors import ModelFileError
from quietchoir.core.models import to_gguf, weights
from quietchoir.core.models.files import gguf as files
from quietchoir.core.models.quant.types import QUANT_TYPES, WIDENED
from quietchoir.simulations.bench.families import SmallFamily, write_model, write_tokenizer
from quietchoir.simulations.bench.random_model import copy_tokenizer

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
SCALE = np.array([0.01], dtype=np.float16).view(np.uint8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in float32, its rows long enough for such blocks."""
    folder = tmp_path_factory.mktemp("llama")
    write_tokenizer(folder)
    with torch.inference_mode():
        write_model(SmallFamily("Llama", "llama", WIDE), folder)
    to_gguf.save(weights.load(folder), folder / "plain.gguf", "F32")
    return folder / "plain.gguf"


def blocks(kind: str, rows: int, columns: int) -> np.ndarray:
    """Random bits under a small scale, uint8 [rows, bytes]."""
    size = QUANT_TYPES[kind].size
    made = np.random.default_rng(3).integers(0, 256, (rows, columns // 256, size), dtype=np.uint8)
    if kind == "IQ1_M":  # its scale lies in the upper halves of four of its last bytes' words
        words = made[..., -8:].view(np.uint16)
        half = int(SCALE.view(np.uint16)[0])
        for place in range(4):
            nibble = (half >> (4 * place)) & 15
            words[..., place] = (words[..., place] & 0x0FFF) | (nibble << 12)
    else:
        made[..., :2] = SCALE
    return made.reshape(rows, -1)


def with_blocks(plain: Path, path: Path, kind: str) -> Path:
    """The same model, the matrices of its layers as such blocks."""
    reader, form = gguf.GGUFReader(plain), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    copy_tokenizer(reader, writer)
    for key, field in reader.fields.items():
        if key.startswith("llama."):
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.data.ndim == 2 and tensor.name.startswith("blk."):
            writer.add_tensor(tensor.name, blocks(kind, *tensor.data.shape), raw_dtype=form)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", WIDENED)
def test_such_a_file_loads_for_the_kernels_as_8_bit_blocks_near_its_own_numbers(
    plain: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = with_blocks(plain, tmp_path / f"{kind}.gguf", kind)
    loaded = weights.load(path)
    assert {one.quant_type for one in loaded.tensors.values()} == {"F32", "Q8_0"}
    name = "model.layers.1.mlp.down_proj.weight"
    own = files.read(path).tensors["blk.1.ffn_down.weight"]
    assert own.quant_type == kind
    numbers, found = own.dequantize(), loaded.tensors[name].dequantize()
    # within half a step of each group of 32, whose largest number is on step 127
    largest = numbers.view(-1, 32).abs().amax(1, keepdim=True)
    assert float(largest.max()) > 0
    assert bool(((found - numbers).view(-1, 32).abs() <= largest / 127 * 0.51 + 1e-7).all())
    if library.available() is None:
        assert network.unsupported(loaded.architecture, loaded.tensors) is None
    finding = doctor.model(Config(engine=EngineConfig(model=str(path))))
    for said in (caplog.text, finding.text):
        assert f"its {kind} blocks are taken as Q8_0" in said


def test_a_damaged_scale_in_such_blocks_is_said_when_it_is_loaded(
    plain: Path, tmp_path: Path
) -> None:
    path = with_blocks(plain, tmp_path / "bad.gguf", "IQ2_S")
    raw = bytearray(path.read_bytes())
    good = blocks("IQ2_S", 1, 256).tobytes()
    place = bytes(raw).index(good)
    raw[place : place + 2] = np.array([np.inf], dtype=np.float16).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match="not finite"):
        weights.load(path)
