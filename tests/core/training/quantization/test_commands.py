"""`model quantize` as its user sees it, on a small random model."""

from pathlib import Path

import numpy as np
import pytest

from quietchoir.cli import main
from quietchoir.core.models import weights
from quietchoir.core.models.quantization import quantizer
from quietchoir.tests.fakes.models import make_model
from quietchoir.tests.fakes.tokenizers import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model("llama3", vocab_size=720, num_hidden_layers=2).save_pretrained(path)
    save("llama3", path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = np.random.default_rng(1).choice(["light", "kitchen", "off", "the", "turn", "a"], 400)
    (tmp_path / "text.txt").write_text(" ".join(words))
    return tmp_path / "text.txt"


def test_a_model_is_quantised_trained_and_measured(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.gguf"
    asked = ["model", "quantize", str(folder), "--to", "q4_0", "--out", str(out)]
    more = ["--calibrate", str(text), "--tokens", "512", "--evaluate", str(text)]
    imatrix = str(tmp_path / "text.dat")
    training = ["--qat", "adapters", "--steps", "2", "--rank", "4", "--imatrix", imatrix]
    assert main([*asked, *more, *training]) == 0
    said = capsys.readouterr().out
    assert "before  " in said and "after   " in said and "tokens/s" in said
    assert "% smaller, perplexity" in said and "won back" in said
    assert weights.load(out).tensors["model.layers.0.mlp.up_proj.weight"].quant_type == "Q4_0"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"small.gguf", "small.adapter", "text.txt", "text.dat"}  # no journal
    assert main(asked) == 2
    assert "is there already and is kept" in capsys.readouterr().err
    again = [*asked[:-1], str(tmp_path / "again.gguf"), "--calibrate", imatrix]
    assert main([*again, "--evaluate", str(text)]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--qat", "norms"], "need --calibrate with a text"),
        (["--size", "3"], "need --calibrate with a text"),
        (["--size", "nan", "--calibrate", "TEXT"], "must be a number of megabytes"),
        (["--calibrate", "none.txt"], "no such file"),
        (["--tokens", "0"], "must be 2 at least"),
        (["--out", "model.bin"], "let its name end in .gguf"),
        (["--imatrix", "TEXT", "--calibrate", "TEXT"], "let its name end in .dat or .gguf"),
        (["--imatrix", "MODEL", "--calibrate", "TEXT"], "is another file, which is kept"),
    ],
)
def test_flags_that_mean_nothing_are_refused_before_any_work(
    flags: list[str], said: str, folder: Path, text: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked = ["model", "quantize", str(folder), "--to", "q4_0", "--out", str(tmp_path / "x.gguf")]
    (tmp_path / "model.gguf").write_bytes(b"GGUF of somebody")
    names = {"TEXT": str(text), "MODEL": str(tmp_path / "model.gguf")}
    given = [names.get(flag, flag) for flag in flags]
    assert main([*asked, *given]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.gguf").exists()
    assert not quantizer.journal_of(tmp_path / "x.gguf").exists()
