"""Stock `flwr run` on Flower's own deployment engine, with what pyproject.toml names, started as the benchmark does."""

from pathlib import Path

from quietchoir.simulations.bench import federation_stock


def test_flwr_run_trains_a_round_on_two_nodes(tmp_path: Path) -> None:
    with federation_stock.engine(tmp_path, nodes=2, rounds=1, size=100) as run:
        assert len(list(federation_stock.rounds_of(run, rounds=1, nodes=2))) == 1
