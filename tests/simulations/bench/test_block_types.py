"""The suite `block_types` on a few tokens: its keys are there, and the kernels run what is
written.
"""

import importlib.util
from pathlib import Path

import pytest

from quietchoir.core.engine.backends.native import library
from quietchoir.simulations.bench import block_types, suites
from quietchoir.simulations.bench.figures import look_up


def test_every_type_has_its_figures_and_is_run_by_the_kernels(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_types, "WRITABLE", ("Q5_0", "MXFP4"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no llama.cpp
    # MXFP4 has few numbers: a second quantisation leaves a text whose perplexity says nothing
    monkeypatch.setattr(block_types, "NEAR", 0.1)
    report, rows = suites.run("block_types", quick=True, tell=lambda _: None)
    assert report["exact"] is (library.available() is None)
    assert report["files"] == {"kernels": 2, "torch": 0, "refused": 0}
    assert {"Q5_0", "F32"} == set(report["types"]["Q5_0"]["mixture"])
    assert all(look_up(report, row.key) is not None for row in rows)
    assert {f"types.{name}.ours.b1" for name in ("Q5_0", "MXFP4")} < {row.key for row in rows}
