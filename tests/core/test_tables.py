"""Strict TOML: every refusal names file, key, value and what to do."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from quietchoir.core import config, tables
from quietchoir.core.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    ratio: float = 0.5
    mode: Literal["a", "b"] = "a"
    place: Path | None = None
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise ValueError(f"ratio = {self.ratio} must not be negative")


def test_a_full_table_becomes_the_dataclass() -> None:
    table = {
        "name": "x",
        "ratio": 2,
        "mode": "b",
        "place": "/p",
        "inner": {"size": 3},
        "many": [{"size": 4}],
    }
    assert tables.fill(Outer, table, "f: ") == Outer(
        "x", 2.0, "b", Path("/p"), Inner(3), (Inner(4),)
    )


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({}, r"f: name is missing; it must be a text"),
        ({"name": "x", "raito": 1}, r"f: raito = 1 is unknown; did you mean ratio\?"),
        ({"name": "x", "zzz": 1}, r"f: zzz = 1 is unknown; known keys: inner, many"),
        ({"name": 3}, r"f: name = 3 must be a text"),
        ({"name": "x", "ratio": True}, r"f: ratio = True must be a number"),
        ({"name": "x", "mode": "c"}, r"f: mode = 'c' must be one of 'a', 'b'"),
        ({"name": "x", "inner": {"sise": 1}}, r"f: inner.sise = 1 is unknown; did you mean size\?"),
        ({"name": "x", "many": [{"size": "1"}]}, r"f: many\[0\].size = '1' must be a whole number"),
        ({"name": "x", "ratio": -1.0}, r"f: ratio = -1.0 must not be negative"),
    ],
)
def test_a_wrong_table_is_refused_with_a_sentence(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tables.fill(Outer, table, "f: ")


def test_a_file_that_is_not_toml_says_where(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("a = \n")
    with pytest.raises(ConfigError, match=r"c\.toml: not TOML: .*line 1"):
        tables.read_toml(path)


def test_a_config_without_a_file_is_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path))
    assert config.load() == config.Config()


def test_a_config_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.load(tmp_path / "absent.toml")


def test_a_misspelt_config_key_is_named_with_its_nearest(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[engine]\nmax_runing = 3\n")
    with pytest.raises(
        ConfigError,
        match=r"config\.toml: engine\.max_runing = 3 is unknown; did "
        r"you mean max_running\?",
    ):
        config.load(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a = " + b"[" * 5000, "nested deeper"),
        (b"a = " + b"{a=" * 5000, "nested deeper"),
        (b"a = " + b"1" * 5000, "4300 digits"),
        (b"a = [[0x" + b"f" * 5000 + b"]]", "20000 bits"),
    ],
)
def test_toml_that_python_cannot_hold_is_a_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        tables.read_toml(path)


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(ConfigError, match="too large"):
        tables.fill(Outer, {"name": "x", "ratio": 10**400}, "f: ")


@pytest.mark.parametrize(
    "table, sentence",
    [
        ("[engine]\ncontext = -5", "engine: context = -5 must be at least 16"),
        ("[engine]\nmax_running = 0", "engine: max_running = 0 must be at least 1"),
        ("[engine]\ngpu_layers = -2", "engine: gpu_layers = -2 must be at least -1"),
        ("[training]\nthreads = -1", "training: threads = -1 must be at least 0"),
    ],
)
def test_a_size_that_cannot_be_is_refused_where_it_was_written(
    tmp_path: Path, table: str, sentence: str
) -> None:
    (tmp_path / "config.toml").write_text(table)
    with pytest.raises(ConfigError, match=sentence):
        config.load(tmp_path / "config.toml")


def test_a_written_configuration_holds_every_key_explained_and_changes_nothing() -> None:
    text = tables.template(config.Config)
    said = tables.fill(config.Config, tables.parse_toml(text.encode()), "")
    live = re.sub(r"^# (\w+ = .+)$", r"\1", text, flags=re.MULTILINE)
    taken = tables.fill(config.Config, tables.parse_toml(live.encode()), "")
    assert said == taken == config.Config()
    for table in dataclasses.fields(config.Config):
        explained = tables.comments(type(getattr(taken, table.name)))
        assert all(explained.values()), [name for name, words in explained.items() if not words]
        assert all(f"# {name} =" in text for name in explained)
