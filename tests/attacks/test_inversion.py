"""A plain update gives its message away, compressed or not; a sum, a masked and a sealed one
give nothing.
"""

import pytest

from quietchoir.core.models.weights import Weights
from quietchoir.simulations.attacks.inversion import SENTENCES, InversionOutcome, mean, run

Arms = dict[str, list[InversionOutcome]]


@pytest.fixture(scope="module")
def arms(smollm2: Weights) -> Arms:
    """Every arm attacked by the same code, on the real model."""
    return run(smollm2)


def test_a_plain_update_gives_its_message_away(arms: Arms) -> None:
    """The arm that must succeed, or the others mean nothing."""
    recall, exact = mean(arms["plain"])
    assert recall >= 0.95
    assert exact >= 0.5
    assert any(
        one.exact and SENTENCES[at].startswith(one.text) for at, one in enumerate(arms["plain"])
    )


@pytest.mark.parametrize(("arm", "least"), [("bf16", 0.9), ("int8", 0.8)])
def test_compression_is_no_protection(arms: Arms, arm: str, least: float) -> None:
    recall, exact = mean(arms[arm])
    assert recall >= least
    assert exact > 0.1


@pytest.mark.parametrize("arm", ["sum", "masked", "sealed", "noised", "chance"])
def test_what_is_protected_gives_nothing(arms: Arms, arm: str) -> None:
    recall, exact = mean(arms[arm])
    assert recall <= 0.1
    assert exact == 0.0
