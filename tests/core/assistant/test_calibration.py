"""An adapter is sure only as far as it was right on held-out examples."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietchoir.core.assistant.assistant import Assistant
from quietchoir.core.assistant.calibration import (
    FEWEST,
    FILE,
    MEASURED,
    Calibration,
    Calibrations,
    WeighedCall,
    calibrate,
    lower_bound,
    weigh,
)
from quietchoir.core.assistant.context import Message
from quietchoir.core.prompt import HOUSEHOLD
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.tests.fakes.server import FakeTools, WordTokenizer, engine_saying

LIGHT = ToolCall("HassTurnOn", {"name": "lamp"})
ASKED = [Message("user", "lamp on")]


def rows(*groups: tuple[float, int, int]) -> list[WeighedCall]:
    """Groups of (probability, right ones, wrong ones)."""
    return [
        WeighedCall(probability, True, right)
        for probability, good, bad in groups
        for right in [True] * good + [False] * bad
    ]


def test_the_lowest_threshold_above_which_calls_are_right_is_found() -> None:
    found = calibrate(rows((0.99, 60, 0), (0.9, 40, 1), (0.5, 20, 30)))
    assert found.threshold == 0.9 and found.examples == 151
    assert found.precision == pytest.approx(100 / 101)
    assert found.coverage == pytest.approx(101 / 151)


def test_too_few_or_too_many_wrong_calls_make_nobody_sure() -> None:
    assert calibrate([]).threshold is None
    assert calibrate(rows((0.9, FEWEST - 1, 0))).threshold is None
    assert calibrate(rows((0.9, 50, 50))).threshold is None
    assert calibrate([WeighedCall(0.0, False, True)] * 100).threshold is None


def test_equal_probabilities_are_never_told_apart() -> None:
    assert calibrate(rows((0.9, 100, 0), (0.9, 0, 100))).threshold is None


@given(
    st.lists(st.builds(WeighedCall, st.sampled_from([0.1, 0.5, 0.9]), st.just(True), st.booleans()))
)
def test_what_is_promised_holds_on_the_examples_themselves(weighed: list[WeighedCall]) -> None:
    found = calibrate(weighed)
    if found.threshold is not None:
        sure = [one for one in weighed if one.probability >= found.threshold]
        assert len(sure) >= FEWEST and sum(one.right for one in sure) / len(sure) >= 0.95


def test_the_bound_of_a_share_is_wilsons() -> None:
    assert lower_bound(95, 100) == pytest.approx(0.9278, abs=2e-3)
    assert lower_bound(20, 20) == pytest.approx(20 / (20 + 0.84**2))


async def test_calls_are_weighed_and_not_carried_out() -> None:
    tools = FakeTools(effect="write")
    engine = engine_saying([render(LIGHT)], ["no call"], [render(ToolCall("HassTurnOn"))])
    engine.logprob = math.log(0.5)
    assistant = Assistant(
        engine,
        WordTokenizer(),
        tools,
        context=1000,
        prompt_of=lambda _: HOUSEHOLD,
        threshold_of=lambda _: 0.0,
        config=MEASURED,
    )
    found = await weigh(assistant, [(ASKED, [LIGHT])] * 3, "home")
    assert [(one.called, one.right) for one in found] == [
        (True, True),
        (False, False),
        (True, False),
    ]
    assert found[0].probability == pytest.approx(0.5) and found[1].probability == 0
    assert tools.calls == []


def test_a_calibration_is_found_again_by_its_adapter_and_a_damaged_file_makes_nobody_sure(
    tmp_path: Path,
) -> None:
    known = Calibrations(tmp_path)
    assert known.threshold("a") is None and known.threshold(None) is None
    known.put("a", Calibration(threshold=0.8, examples=50, precision=0.96, coverage=0.5))
    known.put("b", Calibration(threshold=None, examples=50))
    again = Calibrations(tmp_path)
    assert (again.threshold("a"), again.threshold("b"), again.threshold("c")) == (0.8, None, None)
    assert again.threshold(None) is None
    for damaged in (b"{", b"[1]", b'{"a": {"threshold": 0.1}}', b'{"a": 1}', b"\xff"):
        (tmp_path / FILE).write_bytes(damaged)
        assert Calibrations(tmp_path).threshold("a") is None
