"""The examples are programs: each is run as a reader would run it, and none outgrows a page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quietchoir.simulations.cluster import Cluster, ClusterPlan
from quietchoir.simulations.processes import ProcessGroup
from quietchoir.tests.house import ROOT

EXAMPLES = ROOT / "examples"
MOST_LINES = 40
PATIENCE_S = 120


def run(name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def told(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, error
    return out


def test_an_example_fits_on_a_page() -> None:
    found = sorted(EXAMPLES.glob("*.py"))
    assert len(found) == 3
    for path in found:
        assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES, path.name


def test_a_chat_is_answered_from_python(model_path: Path) -> None:
    answer = told(run("answer_a_chat.py", "Why is the sky blue?"))
    assert "scatter" in answer and len(answer.split()) > 20


def test_members_join_from_python(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "logs") as stage:
        cluster = Cluster(stage, tmp_path, ClusterPlan(nodes=3, size=200, rounds=2))
        coordinator = cluster.coordinate()
        members = {
            name: run(
                "join_a_federation.py",
                *(str(cluster.file), "--home", str(tmp_path / name), "--rehearse", "200"),
                QUIETCHOIR_HOME=str(tmp_path / name),
            )
            for name in cluster.plan.names
        }
        for name, member in members.items():
            out = told(member)
            assert f"joining name={name} federation=rehearsal" in out
            assert "trained" in out
        coordinator.finish(PATIENCE_S)
        assert cluster.read_report()["rounds"] == 2


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_the_benchmark_prints_a_median_and_its_spread(mode: str, benchmark: str) -> None:
    row = next(line.split() for line in benchmark.splitlines() if line.split()[:1] == [mode])
    median, fastest, slowest = (float(row[place].strip("()")) for place in (1, 3, 5))
    assert 0 < fastest <= median <= slowest


@pytest.fixture(scope="module")
def benchmark() -> str:
    return told(run("benchmark_masks.py", "3", "500", "2"))
