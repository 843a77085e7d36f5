"""Ten thousand broken messages at every stage, of either side: typed refusal, no crash, nothing
changed.

Three hundred by default, all of them with QUIETCHOIR_FUZZ=full.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quietchoir.core.errors import AuthenticationError, ProtocolError, ThresholdError
from quietchoir.crypto.secagg.messages import HEADER_BYTES
from quietchoir.tests.fakes.secagg import Cohort, Round, frozen

CASES = 10_000 if os.environ.get("QUIETCHOIR_FUZZ") == "full" else 300  # at each stage
REFUSALS = (ProtocolError, AuthenticationError, ThresholdError)
TARGETS = [("coordinator", stage) for stage in range(5)] + [
    ("member", stage) for stage in range(1, 5)
]


@st.composite
def broken(draw: st.DrawFn, message: bytes, others: list[bytes]) -> bytes:
    """Cut, grown, flipped, repeated, re-ordered, or another message altogether; never the
    message itself.
    """
    how = draw(
        st.sampled_from(["cut", "grow", "flip", "repeat", "reorder", "splice", "other", "noise"])
    )
    at = draw(st.integers(0, len(message) - 1))
    to = draw(st.integers(at, len(message)))
    if how == "cut":
        made = message[:at]
    elif how == "grow":
        made = message[:at] + draw(st.binary(min_size=1, max_size=70)) + message[at:]
    elif how == "flip":
        bits = draw(st.sets(st.integers(0, 8 * len(message) - 1), min_size=1, max_size=6))
        made = (int.from_bytes(message, "big") ^ sum(1 << bit for bit in bits)).to_bytes(
            len(message), "big"
        )
    elif how == "repeat":
        made = message[:to] + message[at:]
    elif how == "reorder":
        middle = draw(st.integers(at, to))
        made = message[:at] + message[middle:to] + message[at:middle] + message[to:]
    elif how == "splice":
        made = message[:at] + draw(st.sampled_from(others))[at:]
    elif how == "other":
        made = draw(st.sampled_from(others))
    else:
        made = message[: draw(st.sampled_from([0, HEADER_BYTES]))] + draw(st.binary(max_size=200))
    return made if made != message else message + b"\0"


@pytest.mark.fuzz
@pytest.mark.parametrize(("side", "stage"), TARGETS)
def test_a_broken_message_is_refused_and_changes_nothing(side: str, stage: int) -> None:
    cohort = Cohort(4, length=3, min_tokens=30)
    whole = Round(cohort, attempt=7).play()
    game = Round(cohort).play(stages=stage)
    name = cohort.names[1]
    if side == "coordinator":
        target: object = game.server
        message = game.ask(name)
        others = [answers[name] for answers in whole.sent] + [
            answers[cohort.names[0]] for answers in game.sent
        ]
    else:
        target, message = game.clients[name], game.brought[stage][name]
        others = [given[name] for given in whole.brought[1:5]] + [
            given[cohort.names[0]] for given in game.brought[1:stage]
        ]
    before = frozen(target)

    @settings(
        max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(broken(message, others))
    def refuse(data: bytes) -> None:
        with pytest.raises(REFUSALS):
            if side == "coordinator":
                game.server.receive(name, data)
            else:
                game.ask(name, data)
        assert frozen(target) == before

    refuse()
    if side == "coordinator":
        game.server.receive(name, message)
        game.sent.append({name: message})
        for other in game.brought[stage]:
            if other != name:
                game.server.receive(other, game.ask(other, stage=stage))
        game.brought.append(game.server.advance())
    game.play()
    # and the true message still works
    assert np.array_equal(game.result.total, cohort.sum(cohort.names))
