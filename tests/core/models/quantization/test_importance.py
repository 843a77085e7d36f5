"""Importance matrices in llama.cpp's two formats: read as they were written, by the gguf package
too; damaged ones are sentences.
"""

import dataclasses
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from quietchoir.core.errors import ModelFileError, ModelNotFoundError, QuietchoirError
from quietchoir.core.models.quantization import importance
from quietchoir.core.models.quantization.importance import ImportanceMatrix
from quietchoir.tests.fakes.disk import files_of

EXPERTS = np.arange(12, dtype=np.float32).reshape(3, 4)
MATRIX = ImportanceMatrix(
    entries={
        "blk.0.attn_q.weight": np.linspace(0, 3, 8, dtype=np.float32)[None],
        "blk.0.ffn_up_exps.weight": EXPERTS,
    },
    chunks=16,
    chunk_size=512,
    datasets=("kitchen.txt",),
)


@pytest.mark.parametrize("name", ["found.dat", "found.gguf"])
def test_both_formats_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    MATRIX.write(tmp_path / name)
    assert importance.is_importance(tmp_path / name)
    found = importance.read(tmp_path / name)
    assert (found.chunks, found.datasets) == (16, ("kitchen.txt",))
    for theirs, means in MATRIX.entries.items():
        assert np.allclose(found.entries[theirs].reshape(means.shape), means, rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["found.dat", "found.gguf"])
def test_a_matrix_whose_last_bytes_find_no_room_takes_no_name(name: str, tmp_path: Path) -> None:
    MATRIX.write(tmp_path / "whole" / name)
    size = (tmp_path / "whole" / name).stat().st_size
    for lacking in (1, 40):
        with files_of(size - lacking), pytest.raises(QuietchoirError, match="written"):
            MATRIX.write(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_the_newer_format_has_the_keys_and_shapes_that_llama_cpp_reads(tmp_path: Path) -> None:
    MATRIX.write(tmp_path / "found.gguf")
    reader = gguf.GGUFReader(tmp_path / "found.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 16
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    assert reader.fields["imatrix.datasets"].contents() == ["kitchen.txt"]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert np.allclose(tensors["blk.0.ffn_up_exps.weight.in_sum2"], EXPERTS * 16 * 512)
    assert tensors["blk.0.ffn_up_exps.weight.counts"].shape == (3, 1)
    assert len(tensors) == 4


def test_a_matrix_of_llama_cpp_without_its_trailer_is_read(tmp_path: Path) -> None:
    name, sums = b"blk.0.attn_q.weight", np.array([2, 4], "<f4")
    head = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 2, 2)
    (tmp_path / "old.dat").write_bytes(head + sums.tobytes())
    assert importance.read(tmp_path / "old.dat").entries[name.decode()].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (struct.pack("<i", -1), "says -1 matrices"),
        (struct.pack("<iii", 1, 300, 0), "says 300 letters"),
        (MATRIX.legacy()[:60], "cut short|requires a buffer"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<iif", 1, 1, -4.0), "no mean square"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<iif", 1, 1, np.nan), "no mean square"),
        (struct.pack("<ii", 1, 1) + b"\xff" + struct.pack("<iif", 1, 1, 1.0), "decode"),
    ],
)
def test_a_damaged_matrix_is_a_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "found.dat").write_bytes(content)
    with pytest.raises(ModelFileError, match=said):
        importance.read(tmp_path / "found.dat")


def test_a_model_is_no_matrix_and_a_missing_file_says_so(tmp_path: Path, model_path: Path) -> None:
    assert not importance.is_importance(model_path)
    with pytest.raises(ModelFileError, match=r"general\.type is not imatrix"):
        importance.read(model_path)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        importance.read(tmp_path / "none.dat")


def test_more_pieces_than_the_older_kind_can_say_are_no_error(tmp_path: Path) -> None:
    """The instance: a legal count in a GGUF file ended `model quantize` in a struct.error."""
    many = dataclasses.replace(MATRIX, chunks=2**31)
    many.write(tmp_path / "m.dat")
    found = importance.read(tmp_path / "m.dat")
    assert found.chunks == 2**31 - 1 and [*found.entries] == [*MATRIX.entries]
