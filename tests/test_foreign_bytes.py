"""docs/foreign-bytes.md says what is: its tests exist, and no compiled dependency is left out."""

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietchoir.core.models.tokenizer.hf_json import read_tokenizer
from quietchoir.core.models.tokenizer.tokenizer import Tokenizer
from quietchoir.tests.fakes.tokenizers import KINDS, save

ROOT = Path(__file__).resolve().parent.parent
TABLE = (ROOT / "docs/foreign-bytes.md").read_text("utf-8")
SHOWN = re.findall(r"`(tests/[\w/.]+)::(\w+)`", TABLE)
ROWS = 720
# extras of whoever works on the project; strangers' bytes reach none
TOOLS = ("bench", "dev", "keyring", "peers", "scale")
LONG = [letter * 100_000 for letter in "a \n0\u0301\u200d\U0001f468<\u3000\ufffd"] + [
    "<s>" * 30_000,
    "\u1112\u1161" * 50_000,
]


def test_the_table_has_rows_and_each_names_its_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    assert [row for row in rows if "::" not in row and "nobody's" not in row] == []


@pytest.mark.parametrize("path, name", SHOWN)
def test_a_test_that_the_table_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    assert name in {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_dependency_with_compiled_code_has_a_row() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    parts = [
        listed for name, listed in project["optional-dependencies"].items() if name not in TOOLS
    ]
    names = {re.split(r"[^\w.-]", entry)[0] for entry in sum(parts, project["dependencies"])}
    compiled = []
    for name in sorted(names):
        try:
            files = importlib.metadata.files(name) or []
        # an optional part that is not installed here
        except importlib.metadata.PackageNotFoundError:
            continue
        if any(file.suffix in (".so", ".pyd", ".dylib") for file in files):
            compiled.append(name)
    assert {"llguidance", "tokenizers", "tenseal"} <= set(compiled)
    first_cells = [line.split("|")[1] for line in TABLE.splitlines() if line.startswith("| ")]
    assert [name for name in compiled if not any(name in cell for cell in first_cells)] == []


@pytest.fixture(scope="module")
def cutters(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    found = []
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        save(kind, folder)
        found.append(read_tokenizer(folder, ROWS))
    return found


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(), max_size=60)
    | st.text("\ud800\udfff\u0000\u202e<|im_end|>", max_size=20)
)
def test_any_text_is_cut_into_tokens(cutters: list[Tokenizer], text: str) -> None:
    for cutter in cutters:
        assert all(0 <= token < ROWS for token in cutter.encode(text))


@pytest.mark.parametrize("place", range(len(LONG)))
def test_long_texts_of_one_letter_end(cutters: list[Tokenizer], place: int) -> None:
    for cutter in cutters:
        assert cutter.encode(LONG[place])
