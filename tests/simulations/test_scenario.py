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
    found = scenario.arms(path.stem)
    assert {arm.scenario.name for arm in found} == {path.stem}
    assert len({arm.label for arm in found}) == len(found) == scenario.count(path)
    assert scenario.question(path).count("?") >= 1 or len(found) == 1


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
        ("[population]\nhouseholds = 3\nranks = [4, 4, 4, 2]", r"4 values for 3 parties"),
        ("[population]\nhouseholds = 3\nportions = [4, 4, 4, 2]", r"4 values for 3 parties"),
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
        match="no such file, nor a shipped scenario; there are dp-sweep, drop-outs, four-house",
    ):
        scenario.load("nope")


def test_a_sweep_is_one_scenario_for_each_choice(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'name = "s"\n[population]\nkind = "rehearsal"\n[sweep]\n"recipe.lr" = [0.1, 0.2]\n'
        'attack = [[], [{kind = "flip", count = 1}]]\n'
        'how = [{called = "few", recipe = {rounds = 2}, protection = {mode = "plain"}}]\n'
    )
    found = scenario.arms(str(path), {"seed": [7], "recipe.lr": [0.3, 0.4]})
    assert [arm.label for arm in found] == [
        "lr=0.3 attack=none seed=7",
        "lr=0.3 attack=flip/1 seed=7",
        "lr=0.4 attack=none seed=7",
        "lr=0.4 attack=flip/1 seed=7",
    ]
    assert {(arm.scenario.seed, arm.scenario.recipe.rounds) for arm in found} == {(7, 2)}
    assert len({scenario.digest(arm.scenario) for arm in found}) == 4
    with pytest.raises(ConfigError, match=r"\[sweep\] makes 4 scenarios of it; one is expected"):
        scenario.load(str(path))


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (
            '[[attack]]\nkind = "flip"\nfrom_round = 99',
            "from_round = 99 of .* rounds: it would never",
        ),
        ('[sweep]\n"recipe.lr" = 0.1', r"\[sweep\] lists values by dotted key"),
        ('[sweep]\n"recipe.epoch" = [1]', r"recipe\.epoch = 1 is unknown; did you mean epochs\?"),
        ('[sweep]\n"name.x" = [1]', r"name\.x leads through name, which is no table"),
        ("[dropouts]\nstages = ['mask']", r"\[dropouts\] stages: not read while share is 0"),
        ("[scale]\ncohort = 10", r"\[scale\] cohort: not read while parties is 0"),
        ("[population]\nalpha = 0.5", r"alpha: not read with kind = 'home' and partition = 'own'"),
        ('[population]\npartition = "key"', r'key belongs to partition = "key", and only there'),
        ('[population]\nkind = "file"', r'file belongs to kind = "file", and only there'),
        ('[[attack]]\nkind = "filp"', r"attack\[0\]\.kind = 'filp' must be one of"),
        ('[privacy]\nmechanism = "skellam"', "noise_multiplier is missing"),
    ],
)
def test_what_makes_no_scenario_is_refused_with_what_was_meant(
    tmp_path: Path, lines: str, found: str
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'name = "s"\n{lines}\n')
    with pytest.raises(ConfigError, match=found):
        scenario.arms(str(path))


def test_noise_that_a_file_does_not_name_follows_from_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    text = (
        'name = "s"\n[population]\nkind = "rehearsal"\nhouseholds = 50\n[protection]\n'
        'min_cohort = 40\n[recipe]\nrounds = 5\n[privacy]\nmechanism = "discrete-gaussian"\n'
        'counters = "exact"\n[sweep]\n"privacy.epsilon" = [1.0, 8.0]\n'
    )
    path.write_text(text)
    strict, loose = (arm.scenario.privacy.noise_multiplier for arm in scenario.arms(str(path)))
    assert strict > 3 * loose > 1


def test_an_epsilon_is_all_that_noise_needs(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    lines = (
        'name = "s"\n[population]\nkind = "rehearsal"\nhouseholds = 50\n[protection]\n'
        "min_cohort = 40\n"
    )
    path.write_text(f"{lines}[privacy]\nepsilon = 6.0\n")
    privacy = scenario.load(str(path)).privacy
    assert (privacy.mechanism, privacy.clipping) == ("discrete-gaussian", "quantile")
    assert privacy.noise_multiplier > 1 and not privacy.counts
    buffered = '[privacy]\nepsilon = 6.0\n[schedule]\nrounds = "buffered"\n'
    path.write_text(lines + buffered)
    assert scenario.load(str(path)).privacy.clipping == "fixed"


def test_what_is_shown_of_a_scenario_is_a_scenario(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    shown = scenario.load("personal")
    path.write_text(scenario.as_toml({"name": "personal", "recipe": {"rounds": 12}}))
    assert scenario.load(str(path)).recipe.rounds == shown.recipe.rounds
