"""An epsilon becomes the noise that a file names: enough of it, told with what it means, or
refused.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from quietchoir import cli
from quietchoir.core.errors import BudgetError, ConfigError
from quietchoir.crypto.privacy.accountant import Account, Budget, PrivacyStep
from quietchoir.crypto.privacy.noise import Noise
from quietchoir.federation.membership import roster
from quietchoir.federation.rounds.privacy_accountant import PrivacyAccountant
from quietchoir.federation.spec import privacy_budget
from quietchoir.federation.spec.policy import PrivacyTable, ProtectionTable, Recipe, ScheduleTable
from quietchoir.federation.spec.privacy_budget import budgeted, rounded_up
from quietchoir.federation.wire.messages import RoundId
from quietchoir.tests.fakes.federation import DIGEST, house

INIT = ("--name", "choir", "--model-digest", DIGEST, "--model", "none-of-this-name")


def tables(
    rounds: int = 4, *, privacy: PrivacyTable | None = None, **protection: Any
) -> dict[str, Any]:
    """What a file would say otherwise."""
    protection = {"bits": 12, **protection}
    return {
        "protection": ProtectionTable(**protection),
        "recipe": Recipe(rounds=rounds),
        "privacy": privacy or PrivacyTable(),
    }


def quietchoir(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code, and all that was said."""
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
def test_all_rounds_fit_into_the_budget_and_not_one_more_with_less_noise(mechanism: str) -> None:
    privacy = PrivacyTable(mechanism=mechanism, clip=2.0, colluders=1)  # type: ignore[arg-type]
    asked = tables(privacy=privacy, min_cohort=5)
    found = budgeted(6.0, 1e-6, asked, {}, 1000)
    assert (
        found.privacy.epsilon,
        found.privacy.delta,
        found.privacy.clip,
        found.privacy.colluders,
    ) == (6.0, 1e-6, 2.0, 1)
    for share, allowed in ((1.0, 4), (0.96, 3)):
        noise = Noise(
            length=1000,
            clip=2.0,
            multiplier=share * found.privacy.noise_multiplier,
            honest=4,
            bits=12,
            mechanism=mechanism,  # type: ignore[arg-type]
        )
        account = Account(Budget(epsilon=6.0, delta=1e-6), scope="a test")
        for number in range(allowed):
            account.charge(str(number), PrivacyStep.of(noise))
        if allowed < 4:
            with pytest.raises(BudgetError):
                account.charge("3", PrivacyStep.of(noise))


def test_a_members_purse_pays_for_exactly_the_rounds_that_were_planned() -> None:
    found = budgeted(5.0, None, tables(3, bits=16), {}, 500)
    policy = house(bits=16, mode="masked", tables={"privacy": found.privacy}).policy
    accountant = PrivacyAccountant(policy, 500, "ann")
    for number in range(1, 4):
        accountant.charge(RoundId("0a" * 16, number, 1))
    with pytest.raises(BudgetError):
        accountant.charge(RoundId("0a" * 16, 4, 1))


def test_few_members_are_told_that_they_will_learn_nothing_and_many_are_not() -> None:
    few = budgeted(8.0, None, tables(), {}, 2000)
    assert few.drowned and few.per_coordinate > 0.3
    said = "\n".join(few.lines())
    for words in (
        "epsilon 7.", "at delta 1e-05 after 4 steps", "one member: its "
                                                      "whole update of a "
                                                      "round", "sampling not assumed",
        "times the clip on each of 2,000 coordinates", "warning: so much noise over 3 members",
    ):  # fmt: skip
        assert words in said
    enough = few.enough()
    many = budgeted(8.0, None, tables(min_cohort=2 * enough), {}, 2000)
    assert not many.drowned and "warning" not in "\n".join(many.lines())
    assert many.per_coordinate == pytest.approx(
        few.per_coordinate * math.sqrt(6 / (2 * enough * (2 * enough - 1))), rel=0.05
    )
    unknown = budgeted(8.0, None, tables(), {}, None)
    assert unknown.privacy.noise_multiplier > few.privacy.noise_multiplier * 0.99
    assert unknown.drowned and "1 % was added" in unknown.lines()[-1]
    assert not dataclasses.replace(unknown, per_coordinate=0.001).drowned


@pytest.mark.parametrize(
    "sentence, epsilon, delta, asked, given, values",
    [
        (r"epsilon = -1\.0 must be above 0", -1.0, None, tables(), {}, 100),
        ("epsilon = nan must be above 0", float("nan"), None, tables(), {}, 100),
        ("delta = 2.0 must lie", 1.0, 2.0, tables(), {}, 100),
        ("have no room for noise .*; --bits 11 would do", 8.0, None, tables(bits=4), {}, 10_000),
        ("have no room for noise", 1e-6, None, tables(bits=16), {}, 100),
        (
            "--epsilon sets privacy.epsilon, and --privacy-epsilon does too",
            8.0,
            None,
            tables(),
            {"epsilon": 3.0},
            100,
        ),
        (
            "--privacy-noise-multiplier does too",
            8.0,
            None,
            tables(),
            {"noise_multiplier": 3.0},
            100,
        ),
        ("asks for noise", 8.0, None, tables(), {"mechanism": "none"}, 100),
        (
            "pull the model first",
            8.0,
            None,
            tables(privacy=PrivacyTable(mechanism="skellam")),
            {},
            None,
        ),
        (
            "must be below protection.min_cohort",
            8.0,
            None,
            tables(privacy=PrivacyTable(colluders=3)),
            {},
            100,
        ),
        ("min_tokens = 0", 8.0, None, tables(min_tokens=5), {}, 100),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    sentence: str, epsilon: float, delta: float | None, asked: Any, given: Any, values: int | None
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        budgeted(epsilon, delta, asked, given, values)


def test_an_epsilon_alone_has_the_clip_follow_members_from_one_step_of_the_recipe_on() -> None:
    asked = tables(rounds=2, bits=16, min_cohort=100, threshold=60)
    found = budgeted(8.0, None, asked, {}, 400)
    assert found.privacy.clipping == "quantile" and found.privacy.clip == pytest.approx(0.2)
    assert "follows members' median length, by a bit of each" in "\n".join(found.lines())
    assert found.unsure is not None and found.unsure < 0.2
    for given, buffered in (({"clipping": "fixed"}, False), ({}, True)):
        schedule = ScheduleTable(rounds="buffered" if buffered else "synchronous")
        fixed = budgeted(8.0, None, {**asked, "schedule": schedule}, given, 400).privacy
        assert (fixed.clipping, fixed.clip) == ("fixed", 1.0)
    # who has noise already has chosen how it is clipped
    chosen = tables(rounds=2, bits=16, privacy=PrivacyTable(mechanism="discrete-gaussian"))
    assert budgeted(8.0, None, chosen, {}, 400).privacy.clipping == "fixed"


def test_noise_that_is_never_enough_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_budget, "TRIES", 1)
    with pytest.raises(ConfigError, match="no noise up to"):
        budgeted(8.0, None, tables(privacy=PrivacyTable(mechanism="skellam")), {}, 100)


def test_a_multiplier_is_written_with_four_digits_and_never_rounded_down() -> None:
    assert [rounded_up(one) for one in (1.2340, 1.23401, 0.0987601, 125599.9)] == [
        1.234,
        1.235,
        0.09877,
        125600.0,
    ]


def test_init_and_change_write_the_noise_and_say_what_it_means(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "f"
    code, said = quietchoir(
        capsys,
        "federation",
        "init",
        folder,
        *INIT,
        "--epsilon",
        "8",
        "--rounds",
        "2",
        "--bits",
        "16",
    )
    file = folder / "federation.toml"
    first = roster.load(file).privacy
    assert (
        code == 0
        and "privacy: noise multiplier" in said
        and "at delta 1e-05 after 2 steps" in said
        and "warning" in said
    )
    assert (first.mechanism, first.epsilon, first.delta) == (
        "discrete-gaussian",
        8.0,
        1e-5,
    ) and first.noise_multiplier > 0.5
    assert "epsilon at most 8 at delta 1e-05" in quietchoir(capsys, "federation", "show", file)[1]
    words = ("--epsilon", "4", "--delta", "1e-6", "--rounds", "3", "--privacy-counters", "exact")
    code, said = quietchoir(capsys, "federation", "change", file, *words)
    later = roster.load(file)
    assert (
        code == 0
        and ("after 3 steps") in said
        and "stays spent" in said
        and "started again" in said
    )
    assert (
        later.recipe.rounds == 3 and later.privacy.noise_multiplier > 1.5 * first.noise_multiplier
    )
    assert (later.privacy.epsilon, later.privacy.delta, later.privacy.counters) == (
        4.0,
        1e-6,
        "exact",
    )
    before = file.read_bytes()
    for wrong, sentence in (
        (("--delta", "1e-6"), "--delta needs --epsilon"),
        (("--epsilon", "4", "--privacy-epsilon", "4"), "does too"),
        (("--epsilon", "0"), "above 0"),
        (("--epsilon", "4", "--bits", "99"), "bits = 99"),
        (("--privacy-delta", "0.99"), "must be at most 1/3"),
        (
            ("--privacy-mechanism", "none", "--privacy-epsilon", "3"),
            "privacy.epsilon (--privacy-epsilon) does nothing",
        ),
    ):
        code, said = quietchoir(capsys, "federation", "change", file, *wrong)
        assert code == 2 and sentence in said, said
    assert file.read_bytes() == before
    code, said = quietchoir(capsys, "federation", "init", tmp_path / "g", *INIT, "--epsilon", "nan")
    assert code == 2 and not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--privacy-epsilon", "8"), "without privacy.mechanism"),
        (("--privacy-clip", "2"), "without privacy.mechanism"),
        (("--privacy-mechanism", "none", "--privacy-delta", "1e-6"), "without privacy.mechanism"),
        (("--privacy-counters", "exact"), "without privacy.mechanism"),
        (("--guard-margin", "0.1"), "without guard.rule"),
        (("--aggregation-trim", "2"), "without aggregation.rule"),
        (("--schedule-buffer", "5"), "without schedule.rounds"),
        (("--server-memory", "0.9"), "without recipe.server_optimizer"),
        (
            ("--server-optimizer", "fedavg", "--server-momentum", "0.9"),
            "without recipe.server_optimizer",
        ),
    ],
)
def test_what_would_be_written_down_and_do_nothing_is_refused(
    flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = quietchoir(capsys, "federation", "init", tmp_path / "f", *INIT, *flags)
    assert code == 2 and words in said and not (tmp_path / "f").exists(), said
    assert quietchoir(capsys, "federation", "init", tmp_path / "f", *INIT)[0] == 0
    before = (tmp_path / "f" / "federation.toml").read_bytes()
    code, said = quietchoir(
        capsys, "federation", "change", tmp_path / "f" / "federation.toml", *flags
    )
    assert code == 2 and words in said, said
    assert (tmp_path / "f" / "federation.toml").read_bytes() == before


def test_what_is_switched_on_beside_it_is_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (
        "--privacy-mechanism",
        "discrete-gaussian",
        "--privacy-epsilon",
        "8",
        "--guard-rule",
        "vote",
        "--guard-margin",
        "0.1",
    )
    code, said = quietchoir(
        capsys, "federation", "init", tmp_path / "f", *INIT, *words, "--privacy-counters", "exact"
    )
    assert code == 0, said
    policy = roster.load(tmp_path / "f" / "federation.toml")
    assert policy.privacy.on and policy.privacy.epsilon == 8.0 and policy.guard.margin == 0.1
    code, said = quietchoir(
        capsys, "federation", "change", tmp_path / "f" / "federation.toml", "--privacy-epsilon", "4"
    )
    assert code == 0 and roster.load(tmp_path / "f" / "federation.toml").privacy.epsilon == 4.0, (
        said
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--server-lr", "inf"),
        ("--alpha", "nan"),
        ("--stage-timeout-s", "inf"),
        ("--update-range", "inf"),
        ("--batch", "9" * 23),
    ],
)
def test_a_number_that_no_file_can_hold_founds_nothing(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = quietchoir(capsys, "federation", "init", tmp_path / "f", *INIT, *flags)
    assert code == 2 and flags[0] in said and not (tmp_path / "f").exists(), said
