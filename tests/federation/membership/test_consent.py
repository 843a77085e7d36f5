"""A node's own floor, and what a round is said to cost."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quietchoir.core import config
from quietchoir.core.config import ConsentConfig
from quietchoir.core.errors import ConfigError
from quietchoir.federation import costs
from quietchoir.federation.membership.consent import check_consent, check_upload
from quietchoir.federation.spec.policy import PrivacyTable
from quietchoir.federation.training.learner import Trained
from quietchoir.tests.fakes.federation import FixedLearner, clients, coordinator, house

PRIVATE = PrivacyTable(mechanism="discrete-gaussian", epsilon=8.0)


@pytest.mark.parametrize(
    "consent, words",
    [
        ({"min_cohort": 5}, "consent.min_cohort asks for 5"),
        ({"modes": ("sealed",)}, "consent.modes allows sealed"),
        ({"max_epsilon": 4.0}, "may spend an epsilon of 8, but consent.max_epsilon allows 4"),
        ({"max_delta": 1e-6}, "at a delta of 1e-05, but consent.max_delta allows 1e-06"),
    ],
)
def test_a_federation_below_the_floor_is_refused_by_the_line_it_is_below(
    consent: dict[str, Any], words: str
) -> None:
    policy = dataclasses.replace(house(mode="masked").policy, privacy=PRIVATE)
    check_consent(policy, ConsentConfig(max_epsilon=8.0))
    with pytest.raises(ConfigError, match=words):
        check_consent(policy, ConsentConfig(**consent))


def test_without_differential_privacy_no_epsilon_is_small_enough() -> None:
    policy = house(mode="masked").policy
    check_consent(policy, ConsentConfig())
    with pytest.raises(ConfigError, match=r"no differential privacy, but consent.max_epsilon"):
        check_consent(policy, ConsentConfig(max_epsilon=100.0))


@pytest.mark.parametrize("delta", [1.0001e-5, 1e-3, 0.2])
def test_an_epsilon_at_a_large_delta_is_not_consented_to_whatever_it_is(delta: float) -> None:
    policy = dataclasses.replace(
        house(mode="masked").policy, privacy=dataclasses.replace(PRIVATE, epsilon=0.1, delta=delta)
    )
    for consent in (ConsentConfig(), ConsentConfig(max_epsilon=8.0)):
        with pytest.raises(ConfigError, match=r"but consent\.max_delta allows 1e-05"):
            check_consent(policy, consent)
    check_consent(policy, ConsentConfig(max_epsilon=8.0, max_delta=delta))
    for wrong in (0.0, 1.0, -1e-5, float("nan")):
        with pytest.raises(ValueError, match="max_delta"):
            ConsentConfig(max_delta=wrong)


@pytest.mark.parametrize("delta", [0.99, 0.251, float("nan")])
def test_a_delta_above_one_over_the_members_makes_no_federation(delta: float) -> None:
    policy = house(4, mode="masked").policy
    with pytest.raises(
        ValueError,
        match=r"privacy\.delta = .* must be at most 1/4|must lie "
        r"between",
    ):
        dataclasses.replace(policy, privacy=dataclasses.replace(PRIVATE, delta=delta))
    dataclasses.replace(policy, privacy=dataclasses.replace(PRIVATE, delta=0.25))
    off = dataclasses.replace(policy, privacy=PrivacyTable(delta=0.9))  # nothing is promised
    check_consent(off, ConsentConfig())


def test_more_upload_than_consented_to_is_refused() -> None:
    policy = house().policy
    check_upload(policy, 10**9, ConsentConfig())
    check_upload(policy, 1000, ConsentConfig(max_upload_bytes=1000))
    with pytest.raises(
        ConfigError,
        match=r"about 1001 bytes up in a round, but "
        r"consent.max_upload_bytes allows 1000",
    ):
        check_upload(policy, 1001, ConsentConfig(max_upload_bytes=1000))


def test_the_floor_is_read_from_the_owners_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[consent]\nmax_epsilon = 3\nmax_upload_bytes = 2000000\nmodes = ["sealed"]\n'
    )
    consent = config.load(tmp_path / "config.toml").consent
    assert consent == ConsentConfig(max_epsilon=3.0, max_upload_bytes=2_000_000, modes=("sealed",))
    (tmp_path / "config.toml").write_text("[consent]\nmax_epsilon = -1\n")
    with pytest.raises(ConfigError, match="max_epsilon"):
        config.load(tmp_path / "config.toml")


class Noisy(FixedLearner):
    """Moves anywhere within the range, so that nothing of a sum can be deflated."""

    def train(self, flat: np.ndarray, seed: int) -> Trained:
        moved = np.random.default_rng(seed).uniform(-0.2, 0.2, flat.size).astype(np.float32)
        return dataclasses.replace(super().train(flat, seed), flat=flat + moved)


@pytest.mark.parametrize(
    "mode, key",
    [("plain", "shared"), ("masked", "shared"), ("sealed", "shared"), ("sealed", "threshold")],
)
def test_a_round_takes_at_most_what_was_told_and_nearly_that(mode: str, key: str) -> None:
    size = 30_000
    home = house(
        4,
        mode=mode,
        key=key,
        recipe={"rounds": 2, "evaluate_every": 0, "work_timeout_s": 60, "stage_timeout_s": 60},
    )
    report = coordinator(home, clients(home, size, lambda name: Noisy()), size).run(2)
    trained = [entry for entry in report.history if entry["kind"] == "train"]
    # where adapters are followed, the first round tells of zeros, by name alone
    round_ = trained[home.policy.followed]
    cost = costs.round_cost(home.policy, size)
    up, down = max(round_["bytes_up"].values()), max(round_["bytes_down"].values())
    assert up <= cost.up + cost.once_up <= 1.2 * up + 8000
    assert down <= cost.down + cost.once_down <= 1.2 * down + 8000
    assert f"{cost.up / 1e6:.2f} MB up" in costs.cost_sentence(cost) and (cost.once_up > 0) == (
        "more" in costs.cost_sentence(cost)
    )
