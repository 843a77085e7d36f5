"""Files that are what they claim to be, and files that are not."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf as library
import pytest

from quietchoir.core.errors import ModelFileError, ModelNotFoundError
from quietchoir.core.models import weights
from quietchoir.core.models.files import gguf

from ..conftest import WriteModel


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
    for length in [
        *range(0, 200, 7),
        *range(200, len(whole) - 1, len(whole) // 40),
        len(whole) - 1,
    ]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"cut\.gguf"):
            weights.load(cut)


def test_a_file_with_bytes_turned_over_is_refused_or_loads_but_never_crashes(
    tiny_path: Path, tmp_path: Path
) -> None:
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
            assert (
                "changed.gguf" in str(error)
                or "template" in str(error)
                or "merges" in str(error)
                or "rule" in str(error)
            )


def test_another_kind_of_file_is_named_as_such(tmp_path: Path) -> None:
    other = tmp_path / "notes.gguf"
    other.write_text("no model at all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"not a GGUF file.*b'no m'"):
        weights.load(other)
    with pytest.raises(
        ModelNotFoundError,
        match=r"config\.json: no such file; give a \.gguf file "
        r"or a complete model folder",
    ):
        weights.load(tmp_path / "empty")
    with pytest.raises(ModelFileError, match="cannot be read"):
        gguf.read(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        weights.load(tmp_path / "absent.gguf")


def test_a_block_type_that_cannot_be_read_is_named(write_model: WriteModel) -> None:
    path = write_model()
    whole = bytearray(path.read_bytes())
    # behind the sizes
    kind = whole.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 2 * 8
    for number, said in ((40, "NVFP4"), (77, "of block type 77")):
        whole[kind : kind + 4] = number.to_bytes(4, "little")
        path.write_bytes(whole)
        with pytest.raises(
            ModelFileError,
            match=rf"blk.0.ffn_up.weight is {said}, which cannot be "
            rf"read; choose a file of F32",
        ):
            weights.load(path)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(
    name: bytes = b"t", sizes: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0
) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def container(
    *,
    version: int = 3,
    tensors: tuple[bytes, ...] = (),
    keys: tuple[bytes, ...] = (),
    counts: Any = None,
) -> bytes:
    """A whole file, of honest counts unless others are given."""
    claimed = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, *claimed) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + b"\0" * 256


@pytest.mark.parametrize(
    ("whole", "sentence"),
    [
        (container(version=1), "version 1, expected 2 or 3"),
        (container(version=3 << 24), "other byte order"),
        (
            container(counts=(2**63, 0)),
            "9223372036854775808 tensors and 0 keys are claimed, at most 65536",
        ),
        (container(counts=(0, 2**64 - 1)), "at most 65536"),
        (container(counts=(1000, 0)), "is promised|are promised|dimensions|may stand"),
        (
            container(keys=(key(b"a", 8, struct.pack("<Q", 2**62)),)),
            "4611686018427387904 bytes where at most",
        ),
        (
            container(keys=(text(b"n" * 300) + b"\0" * 8,)),
            "a text of 300 bytes where at most 256 may stand",
        ),
        (
            container(keys=(key(b"a", 9, struct.pack("<IQ", 4, 2**60)),)),
            "a list of 1152921504606846976 items, at most",
        ),
        (
            container(keys=(key(b"a", 9, struct.pack("<IQ", 4, 3_999_999)),)),
            "15999996 bytes are promised",
        ),
        (container(keys=(key(b"a", 9, struct.pack("<IQ", 8, 3_999_999)),)), "damaged or cut short"),
        (
            container(keys=(key(b"a", 9, struct.pack("<IQ", 9, 1)),)),
            "a value of the unknown type 9",
        ),
        (container(keys=(key(b"a", 77, b""),)), "a value of the unknown type 77"),
        (container(keys=(key(b"\xff", 0, b"\1"),)), "damaged or cut short"),
        (container(keys=(key(b"a", 0, b"\1"), key(b"a", 0, b"\2"))), "a is there twice"),
        (
            container(keys=(key(b"general.alignment", 4, struct.pack("<I", 3)),)),
            "alignment is 3, expected a power of two",
        ),
        (container(keys=(key(b"general.alignment", 8, text(b"x")),)), "alignment is 'x'"),
        (container(tensors=(tensor(), tensor(offset=32))), "t is there twice"),
        (container(tensors=(tensor(), tensor(b"u"))), "t and u share bytes"),
        (container(tensors=(tensor(sizes=(16,)), tensor(b"u", offset=32))), "t and u share bytes"),
        (container(tensors=(tensor(offset=4),)), "does not fit into"),
        (container(tensors=(tensor(offset=2**63),)), "does not fit into"),
        (container(tensors=(tensor(sizes=(2**32, 2**32)),)), "does not fit into"),
        (container(tensors=(tensor(sizes=(0, 4)),)), "does not fit into"),
        (container(tensors=(tensor(sizes=(33, 1), kind=8),)), "does not fit into"),
        (container(tensors=(tensor(sizes=(1,) * 5),)), "a tensor of 5 dimensions"),
        (container(tensors=(tensor(sizes=()),)), "a tensor of 0 dimensions"),
        (container(tensors=(tensor(kind=40, sizes=(256,)),)), "t is NVFP4, which cannot be read"),
    ],
)
def test_a_container_that_lies_is_refused_before_anything_is_made_of_its_counts(
    whole: bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(whole)
    tracemalloc.start()
    with pytest.raises(ModelFileError, match=sentence):
        gguf.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_an_honest_container_made_by_the_same_hands_is_read(tmp_path: Path) -> None:
    path = tmp_path / "honest.gguf"
    keys = (
        key(b"a", 9, struct.pack("<IQ", 7, 2) + b"\1\0"),
        key(b"b", 8, text("é".encode())),
        key(b"c", 11, b"\xff" * 8),
    )
    path.write_bytes(container(keys=keys, tensors=(tensor(sizes=(4, 2)), tensor(b"u", offset=32))))
    file = gguf.read(path)
    assert [file.metadata[name] for name in "abc"] == [[True, False], "é", -1]
    assert {name: blocks.shape for name, blocks in file.tensors.items()} == {
        "t": (2, 4),
        "u": (1, 4),
    }


def split(tiny: Path, folder: Path, *, count: int = 3, **wrong: Any) -> list[Path]:
    """The tiny model in parts, by the library, as llama.cpp's gguf-split writes them; `wrong`
    changes what the last says.
    """
    whole = library.GGUFReader(tiny)
    names = [tensor.name for tensor in whole.tensors]
    files = []
    for number in range(count):
        path = folder / f"tiny-Q8_0-{number + 1:05d}-of-{count:05d}.gguf"
        writer = library.GGUFWriter(path, "llama") if number == 0 else library.GGUFWriter(path, "")
        if number:
            writer.kv_data[0].clear()
        else:
            for key, field in whole.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    kind, item = field.types[0], field.types[-1] if len(field.types) > 1 else None
                    writer.add_key_value(key, field.contents(), kind, item)
        said = {"split.no": number, "split.count": count, "split.tensors.count": len(names)} | (
            wrong if number == count - 1 else {}
        )
        for key, value in said.items():
            writer.add_int32(key, value) if key == "split.tensors.count" else writer.add_uint16(
                key, value
            )
        for tensor in whole.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(path)
    return files


def test_a_split_model_loads_from_any_part_and_from_its_folder_as_one(
    tiny_path: Path, tmp_path: Path
) -> None:
    whole, files = weights.load(tiny_path), split(tiny_path, tmp_path)
    (tmp_path / "mmproj-F16.gguf").write_bytes(b"beside it")
    for place in (*files, tmp_path):
        loaded = weights.load(place)
        assert loaded.architecture == whole.architecture
        assert loaded.tensors.keys() == whole.tensors.keys()
        assert all(
            loaded.tensors[name].raw.equal(blocks.raw) for name, blocks in whole.tensors.items()
        )
        assert loaded.digest == weights.digest_of(files[0]) != whole.digest
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_path.read_bytes())
    with pytest.raises(
        ModelFileError,
        match=r"holds 2 models \(other.gguf, "
        r"tiny-Q8_0-00001-of-00003.gguf\); name one",
    ):
        weights.load(tmp_path)
    assert weights.load(other).digest == whole.digest


def test_parts_that_are_missing_or_do_not_belong_together_are_refused(
    tiny_path: Path, tmp_path: Path
) -> None:
    for name, wrong, sentence in (
        ("count", {"split.count": 4}, "is part 3 of 4, its name says 3 of 3"),
        ("number", {"split.no": 1}, "is part 2 of 3, its name says 3 of 3"),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(ModelFileError, match=sentence):
            weights.load(split(tiny_path, tmp_path / name, **wrong)[0])
    files = split(tiny_path, tmp_path)
    files[1].unlink()
    for place in (files[0], files[2], tmp_path):
        with pytest.raises(
            ModelNotFoundError,
            match=r"00002-of-00003.gguf: no such file; .* is "
            r"one of 3 parts, get them all",
        ):
            weights.load(place)
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(ModelFileError, match="is part 3 of 3, its name says 2 of 3"):
        weights.load(files[0])
    alone = tmp_path / "renamed.gguf"
    files[2].rename(alone)
    with pytest.raises(
        ModelFileError, match="is part 3 of 3, its name says 1 of 1; give each part the name"
    ):
        weights.load(alone)
    claims = tmp_path / "tiny-00001-of-99999.gguf"
    claims.write_bytes(tiny_path.read_bytes())
    with pytest.raises(ModelNotFoundError, match=r"00002-of-99999.gguf: no such file"):
        weights.load(claims)


@pytest.mark.parametrize(
    ("metadata", "family", "sentence"),
    [
        (
            {"general.type": "adapter", "adapter.type": "lora"},
            "llama",
            "a LoRA adapter for llama.cpp .* not a model",
        ),
        ({"adapter.type": "lora"}, "llama", "a LoRA adapter"),
        ({"general.type": "mmproj"}, "clip", "the projector that makes rows of pictures"),
        ({}, "clip", "the projector that makes rows of pictures"),
        ({"general.type": "imatrix"}, "llama", "statistics"),
        ({"general.type": "tomorrow"}, "llama", "of the type 'tomorrow', not a model"),
    ],
)
def test_a_gguf_file_that_is_no_model_says_what_it_is(
    write_model: WriteModel, metadata: dict[str, Any], family: str, sentence: str
) -> None:
    with pytest.raises(ModelFileError, match=sentence):
        weights.load(write_model(metadata=metadata, family=family))


def test_statistics_of_a_quantiser_are_named_in_either_way_of_writing_them(
    write_model: WriteModel, tmp_path: Path
) -> None:
    path = write_model(metadata={"general.type": "imatrix"})
    # llama.cpp's own name no architecture
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"imatrix.chunk_counts"))
    older, name = tmp_path / "imatrix.dat", b"blk.0.attn_q.weight"
    older.write_bytes(struct.pack("<ii", 210, len(name)) + name + struct.pack("<ii", 1, 32))
    for file in (path, older):
        with pytest.raises(ModelFileError, match="the statistics by which a model is quantised"):
            weights.load(file)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"attention.causal": False}, "it has the setting llama.attention.causal = False"),
        ({"logit_scale": 0.5}, "llama.logit_scale = 0.5"),
        ({"embedding_scale": 12.0}, "llama.embedding_scale = 12.0"),
        ({"residual_scale": 0.25}, "llama.residual_scale = 0.25"),
        ({"attention.clamp_kqv": 1.0}, "llama.attention.clamp_kqv = 1.0"),
        ({"attention.scale": 0.015625}, "its attention is scaled by 0.01562"),
        ({"use_parallel_residual": True}, "llama.use_parallel_residual = True"),
        (
            {"attention.sliding_window_pattern": [True, False]},
            "llama.attention.sliding_window_pattern",
        ),
        ({"tomorrow": 0}, "llama.tomorrow = 0"),
    ],
)
def test_a_gguf_file_with_a_setting_that_is_not_computed_is_refused(
    write_model: WriteModel, metadata: dict[str, Any], sentence: str
) -> None:
    path = write_model(metadata={f"llama.{key}": value for key, value in metadata.items()})
    with pytest.raises(ModelFileError, match=sentence):
        weights.load(path)


def test_settings_that_say_what_is_so_anyway_are_passed_over(write_model: WriteModel) -> None:
    said = {
        "attention.causal": True,
        "logit_scale": 1.0,
        "residual_scale": 0.0,
        "vocab_size": 9,
        "expert_used_count": 2,
    }
    path = write_model(metadata={f"llama.{key}": value for key, value in said.items()})
    head_dim = weights.load(path).architecture.head_dim
    scaled = write_model(
        metadata={
            f"llama.{key}": value
            for key, value in {**said, "attention.scale": head_dim**-0.5}.items()
        }
    )
    assert weights.load(scaled).architecture == weights.load(path).architecture


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 98362432\n"


def test_a_git_lfs_pointer_is_called_that_wherever_it_stands(
    tiny_path: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "tiny.gguf"
    alone.write_text(POINTER)
    with pytest.raises(
        ModelFileError,
        match=r"tiny.gguf: a Git LFS pointer of \d+ bytes.*git lfs "
        r"pull",
    ):
        weights.load(alone)
    files = split(tiny_path, tmp_path)
    files[1].write_text(POINTER)
    with pytest.raises(ModelFileError, match=r"00002-of-00003.gguf: a Git LFS pointer"):
        weights.load(files[0])
