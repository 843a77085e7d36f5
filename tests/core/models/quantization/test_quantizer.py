"""A model to fewer bits, on a small random one: nearer than plain rounding, within its size, the
same after it was killed; and llama.cpp reads it.
"""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from quietchoir.core.errors import ConfigError, ModelError, ModelFileError
from quietchoir.core.models import to_gguf, weights
from quietchoir.core.models.quant.quantize import encoded
from quietchoir.core.models.quant.tensor import plain
from quietchoir.core.models.quantization import quantizer, sensitivity
from quietchoir.core.models.quantization.importance import ImportanceMatrix
from quietchoir.core.models.quantization.quantizer import QuantizationJournal, QuantizationRequest
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.quantization.quality import text_loss
from quietchoir.tests.fakes.models import make_model
from quietchoir.tests.fakes.tokenizers import save


def folder(name: str, path: Path, **changes: Any) -> Weights:
    shape = {"vocab_size": 720, "num_hidden_layers": 3} | changes
    make_model(name, **shape).save_pretrained(path)
    save("llama3", path)
    return weights.load(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return folder("llama3", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def mixture_model(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return folder("qwen3moe", tmp_path_factory.mktemp("mixture"))


def texts(seed: int = 0, count: int = 12) -> list[list[int]]:
    """Texts of few words, so that inputs go together."""
    draws = np.random.default_rng(seed)
    words = np.random.default_rng(9).integers(10, 700, 24)
    return draws.choice(words, (count, 40)).tolist()


def made(model: Weights, folder: Path, **asked: Any) -> Weights:
    request = QuantizationRequest(**{"quant_type": "Q4_0", "texts": texts(), **asked})
    return quantizer.quantize(
        model, request, QuantizationJournal(folder / "journal", request.digest(model))
    )


def far(model: Weights, found: Weights) -> float:
    """Of the logits of a text that was not calibrated on, relative."""
    from quietchoir.core.models.attention import packed_attention
    from quietchoir.core.models.transformer import Transformer
    from quietchoir.core.training.frozen_layers import dense_linear

    tokens = torch.tensor([token for text in texts(seed=1) for token in text])
    logits = []
    for one in (model, found):
        network = Transformer(one, dense_linear(torch.float32))
        positions = torch.arange(40).repeat(12)
        attend = packed_attention([40] * 12, one.architecture.windows)
        with torch.no_grad():
            x = network.layers_forward(network.embed(tokens), positions, attend)
            logits.append(network.logits(x))
    return float((logits[1] - logits[0]).norm() / logits[0].norm())


def test_a_calibrated_model_is_nearer_than_a_plainly_rounded_one(
    model: Weights, tmp_path: Path
) -> None:
    found = made(model, tmp_path)
    kinds = {name: blocks.quant_type for name, blocks in found.tensors.items()}
    assert kinds["model.layers.1.mlp.up_proj.weight"] == "Q4_0"
    assert kinds["lm_head.weight"] == "Q8_0"  # narrower than a block of Q6_K
    assert kinds["model.layers.1.input_layernorm.weight"] == "F32"
    plainly = quantizer.plainly(model, found)
    assert {name: one.quant_type for name, one in plainly.tensors.items()} == kinds
    assert far(model, found) < 0.85 * far(model, plainly)


def test_an_importance_matrix_alone_weighs_errors(model: Weights, tmp_path: Path) -> None:
    matrix = quantizer.measure_importance(model, texts(), "few words")
    assert {"blk.0.attn_q.weight", "blk.2.ffn_down.weight"} < matrix.entries.keys()
    found = made(model, tmp_path, texts=(), importance=matrix)
    assert far(model, found) < far(model, quantizer.plainly(model, found))
    for hostile in (0.0, 3e38):
        entries = {name: np.full_like(one, hostile) for name, one in matrix.entries.items()}
        wrong = replace(matrix, entries=entries)
        found = made(model, tmp_path / str(hostile), texts=(), importance=wrong)
        assert far(model, found) < 1.3 * far(model, quantizer.plainly(model, found))
    other = ImportanceMatrix(entries={"blk.0.attn_q.weight": np.ones((1, 5), np.float32)}, chunks=1)
    with pytest.raises(ModelFileError, match="5 numbers in the importance matrix and"):
        made(model, tmp_path / "other", texts=(), importance=other)
    with pytest.raises(ModelFileError, match="names no matrix of this model"):
        made(model, tmp_path / "none", texts=(), importance=replace(other, entries={}))


def test_experts_are_rounded_by_what_each_is_given(mixture_model: Weights, tmp_path: Path) -> None:
    found = made(mixture_model, tmp_path)
    assert found.tensors["model.layers.1.mlp.experts.2.up_proj.weight"].quant_type == "Q4_0"
    assert found.tensors["model.layers.1.mlp.gate.weight"].quant_type == "F32"
    assert far(mixture_model, found) < far(mixture_model, quantizer.plainly(mixture_model, found))
    to_gguf.save(found, tmp_path / "mixture.gguf")
    read = weights.load(tmp_path / "mixture.gguf")
    for name, blocks in found.tensors.items():
        assert torch.equal(read.tensors[name].dequantize(), blocks.dequantize()), name


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    model: Weights, tmp_path: Path
) -> None:
    request = QuantizationRequest(quant_type="Q4_0", texts=texts())
    told: list[str] = []

    def killed(words: str) -> None:
        told.append(words)
        if len(told) == 3:
            raise KeyboardInterrupt

    where, digest = tmp_path / "journal", request.digest(model)
    with pytest.raises(KeyboardInterrupt):
        quantizer.quantize(model, request, QuantizationJournal(where, digest), killed)
    done = {path.name: path.stat().st_mtime_ns for path in where.glob("*.bin")}
    assert len(done) == 14  # of two layers of three
    found = quantizer.quantize(model, request, QuantizationJournal(where, digest), told.append)
    assert told[3] == told[2]  # the layer that was not done, and none before it
    assert all((where / name).stat().st_mtime_ns == when for name, when in done.items())
    whole = made(model, tmp_path / "whole")
    for name, blocks in whole.tensors.items():
        assert np.array_equal(blocks.memory, found.tensors[name].memory), name


def test_a_journal_of_other_settings_is_begun_anew_and_a_folder_of_others_is_left_alone(
    model: Weights, tmp_path: Path
) -> None:
    made(model, tmp_path)
    other = QuantizationRequest(quant_type="Q5_K", texts=texts()).digest(model)
    assert QuantizationJournal(tmp_path / "journal", other).types is None
    assert [*(tmp_path / "journal").glob("*.bin")] == []
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    with pytest.raises(ModelError, match="did not leave there"):
        QuantizationJournal(tmp_path / "photos", other)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"


def test_parts_of_a_journal_that_changed_are_made_again_and_no_others(
    model: Weights, tmp_path: Path
) -> None:
    whole = made(model, tmp_path)
    expected = {name: blocks.memory.tobytes() for name, blocks in whole.tensors.items()}
    parts = {
        f"{layer}.{name}": tmp_path / "journal" / f"model.layers.{layer}.{name}.weight.bin"
        for layer in range(3)
        for name in ("mlp.up_proj", "mlp.gate_proj", "self_attn.o_proj")
    }
    flipped, swapped = parts["0.mlp.up_proj"], parts["1.mlp.up_proj"]
    held = bytearray(flipped.read_bytes())
    held[-1] ^= 1
    flipped.write_bytes(held)
    other = parts["2.mlp.up_proj"].read_bytes()  # of the same size and type
    parts["2.mlp.up_proj"].write_bytes(swapped.read_bytes())
    swapped.write_bytes(other)
    held = bytearray(parts["1.self_attn.o_proj"].read_bytes())
    held[quantizer.DIGEST_BYTES : quantizer.DIGEST_BYTES + 2] = b"\x00\x7e"  # a step that is NaN
    parts["1.self_attn.o_proj"].write_bytes(held)
    parts["2.mlp.gate_proj"].write_bytes(b"")
    changed = {flipped, swapped, parts["2.mlp.up_proj"], parts["1.self_attn.o_proj"]}
    changed.add(parts["2.mlp.gate_proj"])
    before = {path: path.stat().st_ino for path in (tmp_path / "journal").glob("*.bin")}
    found = made(model, tmp_path)
    assert {path for path, inode in before.items() if path.stat().st_ino != inode} == changed
    for name, blocks in found.tensors.items():
        assert blocks.memory.tobytes() == expected[name], name
    plan = tmp_path / "journal" / "plan.json"
    plan.write_text(plan.read_text().replace("Q4_0", "Q4_1", 1))
    found = made(model, tmp_path)
    assert {name: blocks.memory.tobytes() for name, blocks in found.tensors.items()} == expected


# Ends by SIGKILL, or by a disk that takes no more, at one step to the disk after the other.
INTERRUPTED = """
import json, os, resource, signal, sys
from pathlib import Path
import torch
from quietchoir.core.errors import QuietchoirError
from quietchoir.core.models import to_gguf, weights
from quietchoir.core.models.quantization import quantizer

torch.set_num_threads(1)
model, undisturbed, out = weights.load(Path(sys.argv[1])), *map(Path, sys.argv[2:4])
request = quantizer.QuantizationRequest(quant_type="Q4_0", texts=json.loads(sys.argv[4]))
digest = request.digest(model)

def work(out=out, killed_at=0, most_bytes=0):
    steps = [0]
    def counted(call):
        def one(*given, **named):
            for wanted in (0, 1):
                steps[0] += 1
                if steps[0] == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                if not wanted:
                    found = call(*given, **named)
            return found
        return one
    for name in ("fsync", "replace", "link", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    with quantizer.alone(out):
        journal = quantizer.QuantizationJournal(quantizer.journal_of(out), digest)
        to_gguf.save(quantizer.quantize(model, request, journal), out)
        journal.clear()

def run(**how):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        work(**how)
        code = 0
    except QuietchoirError:
        code = 2
    finally:
        os._exit(code)

assert run(out=undisturbed) == 0
full = out.with_name("full.gguf")
size = undisturbed.stat().st_size
for most in (100, 3000, 30000, size - 4095, size - 700, size - 1):  # the plan, a part, the file
    assert run(out=full, most_bytes=most) == 2, most
    assert not full.exists()
    assert quantizer.journal_of(full).exists() or most == 100
assert run(out=full) == 0
assert full.read_bytes() == undisturbed.read_bytes()
kills, code = 0, -9
while code == -9:
    kills += 1
    code = run(killed_at=7 * kills)
    assert code in (0, -9), code
    if code == -9 and out.exists():  # all but clearing up was done
        break
print(kills)
"""


def test_whoever_is_killed_or_has_no_room_leaves_nothing_or_the_whole_file(tmp_path: Path) -> None:
    folder("llama3", tmp_path / "model", num_hidden_layers=2)
    whole, out = tmp_path / "whole.gguf", tmp_path / "small.gguf"
    given = (tmp_path / "model", whole, out, json.dumps(texts(count=2)))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, given)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 4
    assert out.read_bytes() == whole.read_bytes()


def test_a_second_quantisation_of_one_file_waits_for_its_turn(tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    with quantizer.alone(out):
        with pytest.raises(ModelError, match="is being made already"), quantizer.alone(out):
            pass
        with quantizer.alone(tmp_path / "other.gguf"):
            pass
    with quantizer.alone(out):
        pass
    assert [*tmp_path.iterdir()] == []


def test_a_mixture_keeps_its_size_and_loses_less(model: Weights, tmp_path: Path) -> None:
    least = made(model, tmp_path / "least")
    to_gguf.save(least, tmp_path / "least.gguf")
    size = int(1.12 * (tmp_path / "least.gguf").stat().st_size)
    found = made(model, tmp_path, size=size)
    to_gguf.save(found, tmp_path / "mixed.gguf")
    assert 0.9 * size < (tmp_path / "mixed.gguf").stat().st_size <= size
    kinds = {blocks.quant_type for blocks in found.tensors.values()}
    assert len(kinds & {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}) > 1
    assert far(model, found) < far(model, least)
    with pytest.raises(ConfigError, match=r"MB at least, and .* give a larger --size"):
        made(model, tmp_path / "small", size=size // 3)
    with pytest.raises(ConfigError, match="--size needs --calibrate"):
        made(model, tmp_path / "blind", size=size, texts=())


def test_sensitivity_predicts_what_rounding_a_matrix_costs(model: Weights) -> None:
    """The five matrices that cost most by the estimate move logits further than the five that cost
    least.
    """
    fisher = sensitivity.measure(model, texts(count=4))
    names = [name for name in fisher if name != "lm_head.weight"]
    ranked = sorted(names, key=lambda name: fisher[name].cost(model.tensors[name], "Q4_0"))

    def moved(changed: list[str]) -> float:
        rounded = {
            name: plain(encoded(model.tensors[name], "Q4_0").dequantize()) for name in changed
        }
        return far(model, replace(model, tensors={**model.tensors, **rounded}))

    assert moved(ranked[-5:]) > 1.5 * moved(ranked[:5])


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_what_fits_no_block_of_256_takes_the_next_of_32(
    kind: str, model: Weights, tmp_path: Path
) -> None:
    found = made(model, tmp_path, quant_type=kind)
    held = found.tensors["model.layers.0.mlp.up_proj.weight"]
    wide = held.shape[1] % 256 == 0
    assert held.quant_type == (kind if wide else quantizer.NARROW[kind])
    to_gguf.save(found, tmp_path / "k.gguf")
    assert len(gguf.GGUFReader(tmp_path / "k.gguf").tensors) > 25


def test_a_model_of_so_few_bits_is_refused_and_one_of_more_is_taken(
    model: Weights, tmp_path: Path
) -> None:
    eight = made(model, tmp_path / "eight", quant_type="Q8_0")
    four = made(eight, tmp_path / "four")
    assert four.tensors["model.layers.0.mlp.up_proj.weight"].quant_type == "Q4_0"
    assert four.tensors["lm_head.weight"] is eight.tensors["lm_head.weight"]  # 8 bits already
    for kind in ("Q4_0", "Q5_K"):
        with pytest.raises(ModelFileError, match=f"Q4_0 already, and {kind} is not fewer"):
            made(four, tmp_path / kind, quant_type=kind)


def test_weights_that_are_not_finite_are_refused_by_their_name(
    model: Weights, tmp_path: Path
) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    broken = model.tensors[name].dequantize()
    for wrong in (torch.inf, 1e20):
        broken[3, 3] = wrong
        hurt = replace(model, tensors={**model.tensors, name: plain(broken)})
        with pytest.raises(ModelFileError, match=rf"{name}: .*not finite, or beyond 65504"):
            made(hurt, tmp_path, texts=())


needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is a peer of the benchmarks"
)


@needs_llamacpp
def test_llama_cpp_computes_the_same_from_a_mixed_file(model: Weights, tmp_path: Path) -> None:
    least = made(model, tmp_path / "least")
    to_gguf.save(least, tmp_path / "least.gguf")
    found = made(model, tmp_path, size=int(1.12 * (tmp_path / "least.gguf").stat().st_size))
    to_gguf.save(found, tmp_path / "mixed.gguf")
    tokens = texts(seed=1, count=1)[0]
    (tmp_path / "said.json").write_text(json.dumps({"window": 40, "tokens": tokens}))
    peer = (sys.executable, "-m", "quietchoir.simulations.bench.peers", "llamacpp")
    asked = ("--threads", "1", "--logits", tmp_path / "said.json", tmp_path / "logits.npy")
    subprocess.run([*peer, tmp_path / "mixed.gguf", *asked], check=True, capture_output=True)
    theirs = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    loss = torch.nn.functional.cross_entropy(theirs[:-1], torch.tensor(tokens[1:]))
    assert abs(float(loss) - text_loss(found, tokens)) < 0.05  # it rounds activations to 8 bits
