"""Scenarios are checked before anything runs."""

from pathlib import Path

import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.simulations import scenario
from quietchoir.simulations.population import PartyData
from quietchoir.simulations.run import check


@pytest.mark.parametrize("path", sorted(scenario.SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_scenario_loads_by_its_name(path: Path) -> None:
    assert scenario.load(path.stem).name == path.stem


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('name = "s"\n[population]\nhousehold = 3\n')
    with pytest.raises(ConfigError, match=r"population\.household = 3 is unknown; did you mean households\?"):
        scenario.load(str(path))


def test_a_fault_that_names_nobody_is_refused() -> None:
    people = [PartyData(f"household-{index}", (), ()) for index in range(4)]
    fault = scenario.Fault(party="household-9", round=1, stage="mask")
    with pytest.raises(ConfigError, match=r"faults name household-9; parties are household-0, household-1"):
        check(scenario.Scenario(name="s", faults=(fault,)), people)


def test_too_few_parties_are_refused_before_training() -> None:
    people = [PartyData("household-0", (), ())]
    with pytest.raises(ConfigError, match=r"1 parties, protection\.min_cohort = 3"):
        check(scenario.Scenario(name="s"), people)
