"""The suite `confidence`: what is judged calibrated nothing; drawn requests can be answered."""

import jsonschema  # type: ignore[import-untyped]
import pytest

from quietchoir.core.assistant.calibration import WeighedCall
from quietchoir.core.toolcall import ToolCall
from quietchoir.simulations.bench import confidence, tool_set
from quietchoir.simulations.bench.tool_set import TOOLS, song


def weighed(title: str, right: bool, probability: float, text: str = "Play {}.") -> WeighedCall:
    call = song(title)
    made = call if right else ToolCall(call.name, {"title": "Fever"})
    return WeighedCall((text.format(title),), (made,), (call,), probability)


def test_one_half_calibrates_and_the_other_is_judged() -> None:
    sure = [weighed(f"Song {number}", True, 0.9) for number in range(40)]
    others = [
        weighed("Blue Train", True, 0.95),
        weighed("Blue Train", True, 0.8),  # below the threshold
        weighed("Blue Train", False, 0.95),  # sung by nobody: it is asked
        weighed("Fever", True, 0.95, "Play {} tomorrow."),  # a word that is left out
    ] * 10
    halves = [one for pair in zip(sure, others, strict=True) for one in pair]
    found = confidence.judged(halves, TOOLS)
    assert (found["threshold"], found["calibrated_on"], found["judged"]) == (0.9, 40, 40)
    assert (found["precision_unasked"], found["coverage"]) == (1.0, 0.25)
    alone = found["by_probability_alone"]
    assert (alone["precision_unasked"], alone["coverage"]) == (pytest.approx(2 / 3), 0.75)


def test_without_a_threshold_nothing_is_carried_out_unasked() -> None:
    found = confidence.judged([weighed("Fever", True, 0.9)] * 10, TOOLS)
    assert (found["threshold"], found["precision_unasked"], found["coverage"]) == (
        "none",
        "none",
        0,
    )


def test_drawn_requests_differ_and_their_calls_fit_the_tools() -> None:
    drawn = tool_set.drawn(confidence.OTHER, seed=1)
    assert len({task.said for task in drawn}) == confidence.OTHER
    assert drawn == tool_set.drawn(confidence.OTHER, seed=1) != tool_set.drawn(240, seed=2)
    schemas = {tool.name: tool.schema for tool in TOOLS}
    assert {task.calls[0].name for task in drawn} == set(schemas)
    for task in drawn:
        jsonschema.validate(dict(task.calls[0].arguments), schemas[task.calls[0].name])


def test_the_households_tools_come_with_what_they_do() -> None:
    found = {tool.name: tool.effect for tool in confidence.household_tools()}
    assert (found["HassTurnOn"], found["HassGetState"]) == ("write", "read")
    assert len(tool_set.SINGLE) >= 20
