"""Every attack of the catalogue: without the protection it succeeds, against the product it does
not.
"""

import pytest

from quietchoir.simulations.attacks.catalogue import Attack, NotHere, Result, attacks
from quietchoir.simulations.bench.attacks import report

ALL = tuple(attacks())


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_an_attack_is_withstood_and_succeeds_without_the_protection(attack: Attack) -> None:
    row = attack.run()
    if row["verdict"].startswith("not here"):
        pytest.skip(row["verdict"])
    assert row["verdict"] == "withstood", row


def test_no_two_attacks_share_a_name() -> None:
    assert len({attack.name for attack in ALL}) == len(ALL)


def an_attack(control: bool, product: bool, error: Exception | None = None) -> Attack:
    def arm(succeeded: bool) -> Result:
        if error is not None:
            raise error
        return Result(succeeded, "seen")

    return Attack(
        name="a",
        who="b",
        mode="c",
        promise="d",
        unprotected=lambda: arm(control),
        protected=lambda: arm(product),
    )


@pytest.mark.parametrize(
    ("attack", "verdict"),
    [
        (an_attack(True, False), "withstood"),
        (an_attack(True, True), "broken"),
        (an_attack(False, False), "control failed"),
        (an_attack(True, False, ValueError("x")), "error"),
        (an_attack(True, False, NotHere("no bwrap")), "not here: no bwrap"),
    ],
)
def test_an_attack_that_shows_nothing_is_not_called_withstood(attack: Attack, verdict: str) -> None:
    row = attack.run()
    assert row["verdict"] == verdict
    found = report([row])
    assert found["broken"] == (verdict == "broken")
    assert found["controls_failed"] == (verdict in ("control failed", "error"))
