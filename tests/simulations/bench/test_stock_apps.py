"""The apps that stock Flower is measured with: plain averages, never of fewer than agreed."""

import pytest
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from quietchoir.core.errors import RoundAborted
from quietchoir.simulations.bench import stock_apps
from quietchoir.tests.fakes.grid import LocalGrid

TOLD: dict[str, bool | float | int | str] = {"rounds": 2, "min-nodes": 2, "rehearse": 100}


def test_a_run_averages_and_stops_below_its_minimum(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, key, 1)
    nodes = [{"partition-id": number} for number in range(2)]
    played = LocalGrid(stock_apps.client_app, nodes, TOLD)
    context = Context(1, 0, {}, RecordDict(), TOLD)
    stock_apps.main(played, context)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "quietchoir round 1: 2 nodes",
        "quietchoir round 2: 2 nodes",
    ]
    played.meddle = lambda grid, node, message: [message] if node == 1 else []
    with pytest.raises(RoundAborted, match="1 replies, need 2"):
        stock_apps.main(played, context)
