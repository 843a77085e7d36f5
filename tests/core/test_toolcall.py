"""A tool call survives being written and read; nothing else is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from quietchoir.core.toolcall import ToolCall, parse, render

values = some.one_of(some.text(), some.integers(), some.booleans())


@given(some.text(min_size=1), some.dictionaries(some.text(), values))
def test_a_rendered_call_reads_back_as_itself(name: str, arguments: dict[str, object]) -> None:
    assert parse(render(ToolCall(name, arguments))) == ToolCall(name, arguments)


def test_equal_calls_render_alike() -> None:
    assert (
        render(ToolCall("t", {"b": 1, "a": 2}))
        == render(ToolCall("t", {"a": 2, "b": 1}))
        == '{"name": "t", "arguments": {"a": 2, "b": 1}}'
    )


@pytest.mark.parametrize(
    "text",
    ["", "hello", "[]", '{"name": "t"}', '{"name": 1, '
                                         '"arguments": {}}', '{"name": "t", "arguments": []}',
     '{"name": "t", "arguments": {}, "more": 1}', 'Sure: {"name": "t", "arguments": {}}'],
)  # fmt: skip
def test_anything_else_is_not_a_call(text: str) -> None:
    assert parse(text) is None
