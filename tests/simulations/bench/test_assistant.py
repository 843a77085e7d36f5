"""The suite `assistant`: its tasks have one right answer each, and near misses are misses."""

import jsonschema  # type: ignore[import-untyped]
import pytest

from quietchoir.core.toolcall import ToolCall
from quietchoir.core.training.household import templates
from quietchoir.simulations.bench import assistant
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
