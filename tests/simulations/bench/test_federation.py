"""What `quietchoir bench federation` writes, on sizes that take seconds. No figure is judged
here.
"""

import json
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

from quietchoir.core.errors import QuietchoirError
from quietchoir.simulations.bench import federation, federation_rounds
from quietchoir.simulations.bench.figures import look_up
from quietchoir.simulations.cluster import ClusterPlan
from quietchoir.simulations.faults import table
from quietchoir.simulations.faults.namespaces import NoNamespacesError


def test_a_quick_run_has_every_figure_of_three_nodes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quietchoir.cli", "bench", "federation", "--quick", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    rows = list(federation.figures(report))
    assert {row.key for row in rows} >= {f"round_s.{mode}" for mode in federation.MODES}
    assert all(look_up(report, row.key) > 0 for row in rows)
    for mode in federation.MODES:
        sent = report["bytes_per_node"][mode]
        assert sent["up"] > sent["up_bound"]  # nobody sends less than its contribution
    assert report["exact"] is True and "TLS" in report["what"] and report["aims_missed"] == {}


def test_a_whole_report_has_rows_for_the_peer_the_twenty_and_the_faults() -> None:
    keys = {row.key for row in federation.figures({"ratio": {}, "twenty": {}, "faults_tried": 1})}
    assert keys >= {
        "ratio.flower",
        "stock.round_s",
        "twenty.round_s.sealed",
        "faults_tried",
        "faults_missed",
        "round_s.masked",
    }


def test_the_lower_bound_is_what_the_values_alone_need() -> None:
    assert federation_rounds.width(ClusterPlan(nodes=3, mode="plain")) == 8
    assert (
        federation_rounds.width(ClusterPlan(nodes=3, mode="masked")) == 10
    )  # 3 · 255 needs ten bits
    assert federation_rounds.width(ClusterPlan(nodes=20, mode="masked")) == 13


def test_a_fault_that_cannot_be_tried_here_is_neither_tried_nor_missed() -> None:
    outcomes = {
        name: Future[None]() for name in ("survived", "missed", "left out", "still going on")
    }
    outcomes["survived"].set_result(None)
    outcomes["missed"].set_exception(QuietchoirError("it broke"))
    outcomes["left out"].set_exception(NoNamespacesError("not here"))
    assert table.count(outcomes) == {
        "faults_tried": 2,
        "faults_missed": 1,
        "faults": {
            "names": ["survived", "missed"],
            "missed": {"missed": "it broke"},
            "left_out": {"left out": "not here"},
        },
    }


def test_the_score_counts_what_the_table_holds() -> None:
    assert len(table.NAMES) >= 29
    kills = [name for name in table.NAMES if "killed in stage" in name]
    assert len(kills) == 12  # a member and the coordinator, at each of the six stages
