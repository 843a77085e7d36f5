"""Scenarios are checked before anything runs."""

from pathlib import Path

import pytest

from quietchoir.core.errors import ConfigError
from quietchoir.federation.spec.policy import ProtectionTable
from quietchoir.simulations import scenario
from quietchoir.simulations.population import PartyData
from quietchoir.simulations.run import check


@pytest.mark.parametrize(
    "path", sorted(scenario.SHIPPED.glob("*.toml")), ids=lambda path: path.stem
)
def test_every_shipped_scenario_loads_by_its_name(path: Path) -> None:
    assert scenario.load(path.stem).name == path.stem


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('name = "s"\n[population]\nhousehold = 3\n')
    with pytest.raises(
        ConfigError,
        match=r"population\.household = 3 is unknown; did you mean "
        r"households\?",
    ):
        scenario.load(str(path))


def test_a_fault_that_names_nobody_is_refused() -> None:
    people = [PartyData(f"household-{index}", (), ()) for index in range(4)]
    fault = scenario.Fault(party="household-9", round=1, stage="mask")
    with pytest.raises(
        ConfigError,
        match=r"faults name household-9; parties are household-0, "
        r"household-1",
    ):
        check(scenario.Scenario(name="s", faults=(fault,)), people)


def test_too_few_parties_are_refused_before_training() -> None:
    people = [PartyData("household-0", (), ())]
    with pytest.raises(ConfigError, match=r"1 parties, protection\.min_cohort = 3"):
        check(scenario.Scenario(name="s"), people)


@pytest.mark.parametrize("name", ["", "../../x", "o\\u001b[31m", "Odd", "x" * 64])
def test_a_name_that_no_federation_can_have_is_refused_when_it_is_read(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'name = "{name}"\n[population]\nkind = "rehearsal"\n')
    with pytest.raises(ConfigError, match="must be lower-case letters, digits and dashes"):
        scenario.load(str(path))


@pytest.mark.parametrize(
    "line",
    [
        "[recipe]\nserver_lr = inf",
        "[recipe]\nlr = nan",
        "[adapter]\nalpha = -inf",
        "[availability]\nasleep_s = nan",
        '[privacy]\nmechanism = "skellam"\nclip = inf',
    ],
)
def test_a_number_without_an_end_is_refused_by_its_name(tmp_path: Path, line: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'name = "s"\n{line}\n')
    with pytest.raises(ConfigError, match=r"\.\w+ = -?(inf|nan) must be a finite number"):
        scenario.load(str(path))


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ('[population]\nkind = "rehearsal"\ntrain = 9', r"train: not read with kind"),
        ("[population]\nvalues = 9", r"values: not read with kind"),
        ("[population]\nhouseholds = 3\nranks = [4, 4, 4, 2]", r"4 values for 3 households"),
        ("[population]\nhouseholds = 3\nportions = [4, 4, 4, 2]", r"4 values for 3 households"),
        ("[availability]\nawake_s = 60.0", r"awake_s: not read while asleep_s is 0"),
    ],
)
def test_a_key_that_would_not_be_looked_at_is_refused(
    tmp_path: Path, lines: str, found: str
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'name = "s"\n{lines}\n')
    with pytest.raises(ConfigError, match=found):
        scenario.load(str(path))


@pytest.mark.parametrize(
    ("mode", "round_", "stage", "reason"),
    [
        ("masked", 1, "maks", "stages under these rules: train, score, adopt, undo, advertise"),
        ("plain", 1, "mask", "stages under these rules: train, score, adopt, undo, send"),
        ("masked", 1, "apply", "would never happen"),
        ("masked", 12, "mask", "rounds are 1 to 11"),
    ],
)
def test_a_fault_that_never_happens_is_refused(
    mode: str, round_: int, stage: str, reason: str
) -> None:
    people = [PartyData(f"household-{index}", (), ()) for index in range(4)]
    fault = scenario.Fault(party="household-1", round=round_, stage=stage)
    protection = ProtectionTable(mode=mode)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=reason):
        check(scenario.Scenario(name="s", protection=protection, faults=(fault,)), people)


def test_a_scenario_that_is_nowhere_is_told_beside_those_that_are_shipped() -> None:
    with pytest.raises(
        ConfigError,
        match="no such file, nor a shipped scenario; there are drop-outs, four-households",
    ):
        scenario.load("nope")
