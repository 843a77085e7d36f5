"""Modelled rounds sum what masked ones sum, and what waits on disk is what was put there."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.federation.aggregation.registry import AGGREGATIONS
from quietchoir.federation.spec.policy import ProtectionTable, Recipe
from quietchoir.simulations import protocol_costs
from quietchoir.simulations.aggregation import SMALL_BYTES, Spool, simulated
from quietchoir.simulations.bench.simulate import same_sums
from quietchoir.simulations.results import line_of
from quietchoir.simulations.run import simulate
from quietchoir.simulations.scenario import Dropouts, Fault, Population, Scenario

SCENARIO = Scenario(
    name="modelled",
    population=Population(kind="rehearsal", households=9, values=32),
    protection=ProtectionTable(bits=12, threshold=5, min_cohort=5),
    recipe=Recipe(rounds=3, attempts=9),
    dropouts=Dropouts(share=0.15, stages=("train", "share", "mask", "consistency", "unmask")),
)


def test_plain_masked_and_modelled_rounds_end_in_the_same_adapter_to_the_last_bit() -> None:
    assert same_sums()


def test_other_updates_end_in_another_adapter() -> None:
    assert not same_sums({"seed": 1}, {"population.values": 999})


def test_modelled_rounds_lose_and_abandon_what_masked_ones_do() -> None:
    masked = simulate(SCENARIO, None)
    modelled = simulate(dataclasses.replace(SCENARIO, protection_cost="modelled"), None)
    for one in (masked, modelled):
        assert len(one.history) == 4
    assert [entry["parties"] for entry in masked.history] == [
        entry["parties"] for entry in modelled.history
    ]
    assert [entry["attempt"] for entry in masked.history] == [
        entry["attempt"] for entry in modelled.history
    ]
    assert len(masked.aborted) == len(modelled.aborted)
    assert any(len(entry["parties"]) < 9 for entry in masked.history)  # somebody did fall silent


def drawn(**changes: Any) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Rounds without what a clock says, and the adapters that parties end with."""
    kept = list[np.ndarray]()
    recipe = Recipe(rounds=3, cohort=6, attempts=9)
    scenario = dataclasses.replace(SCENARIO, recipe=recipe, **changes)
    outcome = simulate(scenario, None, on_adopt=lambda _, flat: kept.append(flat))
    told = ("seconds", "work_seconds", "bytes_up", "bytes_down")
    return [
        {key: value for key, value in entry.items() if key not in told} for entry in outcome.history
    ], kept


@pytest.mark.parametrize("mode", ["plain", "masked"])
def test_all_of_a_run_but_masks_follows_from_its_seed(mode: str) -> None:
    protection = dataclasses.replace(SCENARIO.protection, mode=mode)  # type: ignore[arg-type]
    changes: dict[str, Any] = {
        "protection": protection,
        "dropouts": Dropouts(share=0.1, stages=("train",)),
    }
    once, again = drawn(**changes), drawn(**changes)
    assert once[0] == again[0]
    assert len(once[1]) == len(again[1]) > 0
    assert all(map(np.array_equal, once[1], again[1]))
    other = drawn(**changes, seed=SCENARIO.seed + 1)
    assert other[0] != once[0] and not np.array_equal(other[1][0], once[1][0])


def test_bytes_that_are_computed_are_those_of_the_masked_run() -> None:
    for download in ("auto", "adapter"):
        population = Population(kind="rehearsal", households=9, values=6000)
        recipe = dataclasses.replace(SCENARIO.recipe, download=download)
        scenario = dataclasses.replace(
            SCENARIO, population=population, recipe=recipe, dropouts=Dropouts()
        )
        rounds = [line_of(entry) for entry in simulate(scenario, None).history[1:3]]
        cost = protocol_costs.wire_of(scenario, 6000)
        for one in rounds:
            assert cost.up == pytest.approx(one["bytes_up"], rel=0.1)
            assert cost.down == pytest.approx(one["bytes_down"], rel=0.15), download


def test_too_few_that_agree_open_nothing_in_a_modelled_round_either() -> None:
    gone = tuple(
        Fault(party=f"household-{number}", round=1, stage="consistency") for number in range(4)
    )
    outcome = simulate(
        dataclasses.replace(SCENARIO, protection_cost="modelled", faults=gone, dropouts=Dropouts()),
        None,
    )
    assert outcome.rounds == 3
    assert "5 members answered consistency, need 7" in outcome.aborted[0]


def test_what_is_modelled_lasts_no_longer_than_the_simulation() -> None:
    before = dict(AGGREGATIONS)
    with pytest.raises(ZeroDivisionError), simulated("modelled", 1):
        assert AGGREGATIONS["masked"] is not before["masked"]
        raise ZeroDivisionError
    assert before == AGGREGATIONS


@pytest.mark.parametrize("mode", ["plain", "sealed"])
def test_only_masks_can_be_modelled(mode: str) -> None:
    with pytest.raises(ValueError, match="needs protection"):
        Scenario(name="s", protection=ProtectionTable(mode=mode), protection_cost="modelled")  # type: ignore[arg-type]


def test_a_spool_gives_back_what_waits_and_is_empty_when_nobody_waits() -> None:
    spool = Spool()
    sizes = (SMALL_BYTES - 1, 3 * SMALL_BYTES, 2 * SMALL_BYTES)
    kept = [spool.put(bytes([number]) * size) for number, size in enumerate(sizes)]
    assert [one.read() for one in kept] == [bytes([n]) * size for n, size in enumerate(sizes)]
    assert spool.end == 5 * SMALL_BYTES and spool.live == 2
    del kept
    assert spool.end == spool.live == 0
    spool.close()


def test_a_drop_out_at_a_stage_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="nobody drops out at maks"):
        simulate(
            dataclasses.replace(SCENARIO, dropouts=Dropouts(share=0.1, stages=("maks",))), None
        )
