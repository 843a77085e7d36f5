"""Both of Flower's own engines, as federation/README.md starts them: our protection inside, the
adapter of one process outside.

The two are told to start at once: either waits more than it works.
"""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quietchoir.simulations import scale
from quietchoir.simulations.cluster import ClusterPlan
from quietchoir.simulations.engines import FlowerEngine, beginning

Plan = tuple[str, int, dict[str, Any]]
BUFFERED = {"rounds": "buffered", "buffer": 3}
RECIPE = {"evaluate_every": 0, "stage_timeout_s": 250.0, "work_timeout_s": 250.0}


class Parallel(threading.Thread):
    """One engine's run, beside another's."""

    def __init__(self, run: Callable[[], scale.EngineOutcome]) -> None:
        super().__init__(daemon=True)
        self.work, self.outcome, self.error = (
            run,
            list[scale.EngineOutcome](),
            list[BaseException](),
        )

    def run(self) -> None:
        try:
            self.outcome.append(self.work())
        except BaseException as error:
            self.error.append(error)

    def result(self) -> scale.EngineOutcome:
        self.join()
        if self.error:
            raise self.error[0]
        return self.outcome[0]


# mode, rounds, further tables: of the run under Ray, and of that on stock SuperNodes. Sealed rounds
# are masked ones too; plain ones are played on a grid in test_apps.py.
PLANS: dict[str, tuple[Plan, Plan]] = {
    "buffered, sealed": (("masked", 1, {"schedule": BUFFERED}), ("sealed", 1, {}))
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ray_plan", "stock_plan"), PLANS.values(), ids=PLANS)
def test_stock_supernodes_and_ray_run_the_same_apps_to_the_adapter_of_one_process(
    tmp_path: Path, ray_plan: Plan, stock_plan: Plan
) -> None:
    engines: list[FlowerEngine] = []
    under_ray, on_supernodes = (
        ClusterPlan(nodes=3, mode=mode, size=200, bits=16, rounds=rounds, recipe=RECIPE, **tables)
        for mode, rounds, tables in (ray_plan, stock_plan)
    )
    stock = Parallel(
        lambda: scale.deployed(tmp_path / "stock", on_supernodes, on_engine=engines.append)
    )
    stock.start()
    try:
        ray = scale.simulated(tmp_path / "ray", under_ray, on_engine=engines.append)
    finally:
        stock.join()
    outcomes = [ray, stock.result()]
    assert [(one.engine, one.mode, one.nodes, one.rounds) for one in outcomes] == [
        ("ray", ray_plan[0], 3, ray_plan[1]),
        ("supernodes", stock_plan[0], 3, stock_plan[1]),
    ]
    # of values up to 0.1, moved by 0.03 a round
    assert all(one.difference <= one.bound < 1e-4 for one in outcomes)
    for engine in engines:
        assert len(engine.started) > 3  # the SuperLink and what it started
        assert [pid for pid, began in engine.started.items() if beginning(pid) == began != ""] == []
        assert not engine.scratch.exists()
        host, _, port = engine.address.rpartition(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0  # nobody listens there any more
