"""The suite `confidence`: what is judged calibrated nothing; drawn requests can be answered."""

import jsonschema  # type: ignore[import-untyped]

from quietchoir.core.assistant.calibration import WeighedCall
from quietchoir.core.toolcall import ToolCall
from quietchoir.simulations.bench import confidence, tool_set
from quietchoir.simulations.bench.tool_set import TOOLS, song


def weighed(title: str, right: bool, probability: float, text: str = "Play {}.") -> WeighedCall:
    call = song(title)
    made = call if right else ToolCall(call.name, {"title": "Fever"})
    return WeighedCall((text.format(title),), (made,), (call,), probability)


def test_one_half_calibrates_and_the_other_is_judged() -> None:
    """Sure are the right ones; a title that nobody said is not, likely as it is."""
    right = [weighed(f"Song {number}", True, 0.9) for number in range(80)]
    wrong = [weighed("Blue Train", False, 0.95), weighed("Imagine", False, 0.95)]
    found = confidence.judged([*right, *wrong * 10], TOOLS)
    assert (found["calibrated_on"], found["judged"]) == (50, 50)
    assert found["precision_unasked"] == found["precision_worst"] == 1.0
    assert 0 < found["coverage"] <= 1 and found["accuracy"] == 0.8
    assert found["by_probability_alone"]["precision_unasked"] == "none"


def test_without_a_threshold_nothing_is_carried_out_unasked() -> None:
    found = confidence.judged([weighed("Fever", True, 0.9)] * 10, TOOLS)
    assert (found["precision_unasked"], found["coverage"], found["always_asked"]) == ("none", 0, 1)


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
