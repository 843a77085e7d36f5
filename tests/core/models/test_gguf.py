"""Files that are what they claim to be, and files that are not."""

from pathlib import Path

import gguf as library
import pytest

from quietchoir.core.errors import ModelFileError, ModelNotFoundError
from quietchoir.core.models import gguf, weights

from .conftest import WriteModel


def test_the_short_cut_reads_what_the_library_reads(write_model: WriteModel) -> None:
    lists = {
        "own.texts": ["", "é", "a" * 1000],
        "own.numbers": [-1, 2, 3],
        "own.reals": [0.5, -2.0],
        "own.flags": [True, False],
    }
    path = write_model(metadata=lists)
    ours, theirs = gguf.read(path), library.GGUFReader(path)
    assert ours.metadata == {name: field.contents() for name, field in theirs.fields.items()}
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    assert ours.metadata["own.flags"] == [True, False]
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].raw.numpy().tobytes() == tensor.data.tobytes()


def test_a_file_cut_anywhere_is_refused_with_a_sentence(tiny_path: Path, tmp_path: Path) -> None:
    whole = tiny_path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 200, 7), *range(200, len(whole) - 1, len(whole) // 40), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"cut\.gguf"):
            weights.load(cut)


def test_a_file_with_bytes_turned_over_is_refused_or_loads_but_never_crashes(tiny_path: Path, tmp_path: Path) -> None:
    whole = bytearray(tiny_path.read_bytes())
    changed = tmp_path / "changed.gguf"
    header = whole.index(b"token_embd") + 600  # metadata and the first tensor descriptions
    for place in range(4, header, 13):
        spoiled = whole.copy()
        spoiled[place] ^= 0xFF
        changed.write_bytes(spoiled)
        try:
            weights.load(changed)
        except ModelFileError as error:
            assert "changed.gguf" in str(error) or "template" in str(error) or "merges" in str(error) or "rule" in str(error)


def test_another_kind_of_file_is_named_as_such(tmp_path: Path) -> None:
    other = tmp_path / "notes.gguf"
    other.write_text("no model at all")
    with pytest.raises(ModelFileError, match=r"not a GGUF file.*b'no m'"):
        weights.load(other)
    with pytest.raises(ModelFileError, match="cannot be read"):
        weights.load(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        weights.load(tmp_path / "absent.gguf")


def test_a_block_type_that_cannot_be_read_is_named(write_model: WriteModel) -> None:
    with pytest.raises(ModelFileError, match=r"is Q5_0, which cannot be read; choose a file of F32"):
        weights.load(write_model(kind="Q5_0"))
