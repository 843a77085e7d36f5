"""Machines as their owners show them: what a report may hold, and the table of all of them."""

import getpass
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from quietchoir import doctor
from quietchoir.core.errors import ConfigError
from quietchoir.core.hardware.report import read_report, speakable, table_of

REPORTS = Path(__file__).parents[3] / "docs" / "hardware"
GOOD: dict[str, Any] = {
    "format": 1, "quietchoir": "0.1.0", "python": "3.12", "month": "2026-11", "system": "linux",
    "machine": "x86_64", "processor": "A CPU(R) @ 2.80GHz", "cores": 8, "memory_gb": 32,
    "features": ["avx2"], "kernels": "avx2", "energy": ["rapl"],
    "accelerators": [{"kind": "xpu", "name": "Arc", "memory_gb": 8, "used": True}],
}  # fmt: skip


def test_the_page_is_made_of_the_reports_beside_it() -> None:
    assert REPORTS.with_suffix(".md").read_text("utf-8") == table_of(REPORTS)
    assert list(REPORTS.glob("*.json"))


def test_a_report_becomes_a_row(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(GOOD))
    assert table_of(tmp_path).splitlines()[-1] == (
        "| A CPU(R) @ 2.80GHz | 8, 32 GB | linux x86_64 | avx2 | Arc | no | rapl | 2026-11 |"
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"host": "anns-laptop"}, "host"),
        ({"format": 2}, "this version reads 1"),
        ({"month": "2026-11-30"}, "2026-11"),
        ({"cores": 0}, "at least 1"),
        ({"processor": "/home/ann/cpu"}, "looks like a path"),
        ({"processor": "of ann@example.org"}, "looks like a path"),
        ({"kernels": "<b>avx</b>"}, "is no name"),
        ({"processor": "CPU | x | y"}, "is no name"),
        ({"machine": "x" * 121}, "is no name"),
        ({"features": ["avx2"] * 65}, "a list of 65"),
        ({"accelerators": [{"kind": "gpu", "name": "x", "serial": "1"}]}, "serial"),
    ],
)
def test_what_no_machine_is_or_might_name_somebody_is_refused_by_its_file(
    tmp_path: Path, changed: dict[str, Any], why: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    (tmp_path / "b.json").write_text(json.dumps(GOOD | changed))
    with pytest.raises(ConfigError, match=why) as refused:
        table_of(tmp_path)
    assert "b.json" in str(refused.value)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", '"x"'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ConfigError, match=r"a\.json"):
            read_report(tmp_path / "a.json")


def test_a_makers_name_is_cut_to_what_a_report_may_hold() -> None:
    assert speakable("CPU <b>|x\n") == "CPU bx" and speakable("/usr/bin") == ""


def test_this_machines_report_is_one_and_names_neither_its_user_nor_its_host_nor_a_path(
    tmp_path: Path,
) -> None:
    text = doctor.report("2026-11").text()
    (tmp_path / "own.json").write_text(text)
    assert read_report(tmp_path / "own.json").cores >= 1
    own = {getpass.getuser(), socket.gethostname(), str(Path.home()), str(Path.cwd())}
    assert not [name for name in own if name in text]
