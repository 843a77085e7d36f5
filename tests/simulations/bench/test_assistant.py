"""The suite `assistant`: its tasks have one right answer each, and near misses are misses."""

import jsonschema  # type: ignore[import-untyped]
import pytest

from quietchoir.core.assistant.calibration import WeighedCall
from quietchoir.core.toolcall import ToolCall
from quietchoir.core.training.household import templates
from quietchoir.simulations.bench import assistant, tool_set
from quietchoir.simulations.bench.tool_set import TOOLS, ToolTask

ALL = [task for tasks in assistant.TASKS.values() for task in tasks]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.said[-1][:40])
def test_every_task_can_be_done_with_the_tools_on_offer(task: ToolTask) -> None:
    schemas = {tool.name: tool.schema for tool in TOOLS}
    for call in (*task.calls, *task.past.values()):
        jsonschema.validate(dict(call.arguments), schemas[call.name])
    assert task.messages[-1].role == "user" and len(task.said) % 2
    assert len({one.said for one in ALL}) == len(ALL)


def test_the_training_data_knows_none_of_the_tools() -> None:
    intents = {template.intent for template in templates.grammar().templates}
    assert intents and not intents & {tool.name for tool in TOOLS}


def test_a_call_is_right_only_whole() -> None:
    right = [ToolCall("set_alarm", {"hour": 6, "minute": 30})]
    assert assistant.alike([ToolCall("set_alarm", {"minute": 30.0, "hour": 6})], right)
    for wrong in (
        [],
        right * 2,
        [ToolCall("set_alarm", {"hour": 6})],
        [ToolCall("set_alarm", {"hour": 6, "minute": 31})],
        [ToolCall("play_song", {"hour": 6, "minute": 30})],
    ):
        assert not assistant.alike(wrong, right)
    assert assistant.alike(
        [ToolCall("play_song", {"title": "moon river."})],
        [ToolCall("play_song", {"title": "Moon River"})],
    )


def test_a_threshold_is_judged_on_what_it_was_not_made_of() -> None:
    sure = [WeighedCall(0.9, True, True)] * 60
    found = assistant.judged(sure, [WeighedCall(0.95, True, False), WeighedCall(0.5, True, True)])
    assert (found["threshold"], found["precision_unasked"], found["coverage"]) == (0.9, 0.0, 0.5)
    assert assistant.judged([], sure)["precision_unasked"] == "none"


def test_the_households_tools_come_with_what_they_do() -> None:
    found = {tool.name: tool.effect for tool in assistant.household_tools()}
    assert (found["HassTurnOn"], found["HassGetState"]) == ("write", "read")
    assert len(tool_set.SINGLE) >= 20
