"""Floors of parts: a sum opens only if enough of the members that fill each part of the vector
are in it.
"""

from typing import Any

import numpy as np
import pytest

from quietchoir.core.errors import ConfigError, ProtocolError, ThresholdError
from quietchoir.crypto.secagg import Floor, Stage
from quietchoir.crypto.secagg.messages import SurvivorList, Upload
from quietchoir.tests.fakes.secagg import Cohort, Round

PART = slice(10, 16)  # the values that only some members fill


def with_floor(members: int = 4, least: int = 3) -> tuple[Cohort, Floor]:
    """Seven members, threshold five; the first `members` fill the last part of the vector."""
    cohort = Cohort(7, threshold=5)
    floor = Floor(frozenset(cohort.names[:members]), least)
    for name in cohort.names[members:]:
        cohort.values[name][PART] = 0
    return cohort, floor


def test_a_sum_with_enough_of_each_part_is_exact() -> None:
    cohort, floor = with_floor()
    gone = [cohort.names[0], cohort.names[6]]
    result = Round(cohort, floors=(floor,)).play({2: gone}).result
    assert np.array_equal(
        result.total, cohort.sum(name for name in cohort.names if name not in gone)
    )


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_honest_coordinator_gives_up_below_a_floor(stage: int) -> None:
    cohort, floor = with_floor()
    with pytest.raises(ThresholdError, match="2 of the 4 members that fill one part of the vector"):
        Round(cohort, floors=(floor,)).play({stage: cohort.names[:2]})


def survivors_without(game: Round, gone: set[str]) -> bytes:
    """The list of survivors that a coordinator writes which drops some members after it has
    everybody's upload.
    """
    numbers, view = game.session.numbers, game.server._view
    uploads = {
        numbers[name]: Upload.decode(message, game.session, view)
        for name, message in game.sent[2].items()
    }
    kept = {
        at: upload.receipt
        for at, upload in sorted(uploads.items())
        if game.session.names[at] not in gone
    }
    return SurvivorList(kept).encode(game.session)


@pytest.mark.parametrize("floored", [False, True])
def test_a_coordinator_that_drops_all_but_one_of_a_part_reads_that_one_unless_members_keep_a_floor(
    floored: bool,
) -> None:
    """With threshold five of seven it may declare two dead: then one of three is left alone with
    its part.
    """
    cohort, floor = with_floor(members=3)
    game = Round(cohort, floors=(floor,) if floored else ())
    game.play(stages=2)
    game.gather()
    victims = {cohort.names[0], cohort.names[1]}
    shown = survivors_without(game, victims)
    witness = game.clients[cohort.names[6]]
    if floored:
        with pytest.raises(ThresholdError, match="1 of the 3 members that fill one part"):
            witness.consistency(shown)
        assert witness.stage is Stage.CONSISTENCY  # nothing was signed
        return
    played = Round(cohort).play({2: victims}).result
    # one member's own values, in clear
    assert np.array_equal(played.total[PART], cohort.values[cohort.names[2]][PART])


def test_members_with_other_floors_do_not_meet() -> None:
    cohort, floor = with_floor()
    plain, floored = Round(cohort), Round(cohort, floors=(floor,))
    assert (
        plain.session.id
        != floored.session.id
        != Round(cohort, floors=(Floor(floor.members, 2),)).session.id
    )
    card = plain.clients[cohort.names[1]].advertise()
    with pytest.raises(ProtocolError):
        floored.server.receive(cohort.names[1], card)


@pytest.mark.parametrize(
    "members, least",
    [((), 1), (("node-000",), 2), (("node-000", "stranger"), 1), (("node-000",), 0)],
)
def test_a_floor_that_cannot_be_kept_is_refused(members: Any, least: int) -> None:
    with pytest.raises(ConfigError, match="a floor of"):
        Cohort(5).config(floors=(Floor(frozenset(members), least),))
