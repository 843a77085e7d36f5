"""The plugin kit: functions become tools, storage survives a kill, and the reference MCP client
understands it.
"""

import io
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal

import pytest

from quietchoir.plugins.running import SDK
from quietchoir.plugins.sdk import quietchoir_sdk

ADDER = textwrap.dedent(
    '''
    from typing import Literal
    from quietchoir_sdk import ToolFailure, serve, tool

    @tool(read_only=True)
    def add(left: int, right: float = 1, mode: Literal["plain", "loud"] = "plain") -> str:
        """Add two numbers."""
        print("a stray line on standard output")
        return f"{left + right:g}" + "!" * (mode == "loud")

    @tool
    def fail(kind: str) -> str:
        """Fail in one of two ways."""
        if kind == "told":
            raise ToolFailure("the cupboard is bare")
        raise KeyError("private detail")

    serve("tests/adder", "1.2.3")
    '''
)


def ask(server: quietchoir_sdk.Server, *messages: Any) -> list[dict[str, Any]]:
    """Send lines to a server, read its answers."""
    out = io.StringIO()
    lines = io.StringIO(
        "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in messages)
    )
    server.serve("tests/adder", "1.2.3", lines, out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def request(method: str, number: int = 1, **params: Any) -> dict[str, Any]:
    """One JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def add(
    left: int, right: float = 1, tags: list[str] | None = None, mode: Literal["a", "b"] = "a"
) -> str:
    """Add."""
    return f"{left + right:g} {tags} {mode}"


@pytest.fixture
def server() -> quietchoir_sdk.Server:
    """A server with one tool."""
    made = quietchoir_sdk.Server()
    made.add(add, name="add", description="Add.", schema=quietchoir_sdk.schema_of(add))
    return made


def test_type_hints_become_a_schema() -> None:
    assert quietchoir_sdk.schema_of(add) == {
        "type": "object",
        "properties": {
            "left": {"type": "integer"},
            "right": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "mode": {"type": "string", "enum": ["a", "b"]},
        },
        "required": ["left"],
        "additionalProperties": False,
    }


def test_an_argument_without_a_json_type_is_refused_when_the_plugin_is_written() -> None:
    def untyped(what) -> str:
        return str(what)

    def binary(what: bytes) -> str:
        return str(what)

    with pytest.raises(TypeError, match="has no type hint"):
        quietchoir_sdk.schema_of(untyped)
    with pytest.raises(TypeError, match="has no JSON type"):
        quietchoir_sdk.schema_of(binary)


@pytest.mark.parametrize(
    ("arguments", "text", "failed"),
    [
        ({"left": 2, "right": 0.5}, "2.5 None a", False),
        ({"left": "2"}, "3 None a", False),
        ({"left": 2.0}, "3 None a", False),
        ({"left": "two"}, "add: left = 'two' is not a number", True),
        ({"left": True}, "add: left is boolean, expected integer", True),
        ({"left": 1, "right": [1]}, "add: right is array, expected number", True),
        ({}, "add needs the argument 'left'", True),
        ({"left": 1, "mode": "c"}, "add: mode = 'c'; expected one of ['a', 'b']", True),
        ({"left": 1, "tags": ["x", 1]}, "add: tags[1] is integer, expected string", True),
        ({"left": 1, "tags": None, "right": None}, "2 None a", False),
        ({"left": None}, "add: left is null, expected integer", True),
        ({"left": "2.5"}, "add: left is string, expected integer", True),
        ({"left": 1e400}, "add: left is number, expected integer", True),
        (
            {"left": 1, "rihgt": 2},
            "add takes no argument 'rihgt'; it knows: left, right, tags, mode",
            True,
        ),
    ],
)
def test_arguments_are_checked_before_the_function_runs(
    server: quietchoir_sdk.Server, arguments: Any, text: str, failed: bool
) -> None:
    (answer,) = ask(server, request("tools/call", name="add", arguments=arguments))
    assert answer["result"]["content"] == [{"type": "text", "text": text}]
    assert answer["result"]["isError"] is failed


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", -32700),
        ("7", -32600),
        ({"jsonrpc": "2.0", "id": 1}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}, -32602),
        (request("tools/call", name="nobody"), -32602),
        (request("tools/call", name=["add"]), -32602),
        (request("tools/call", name="add", arguments=[1]), -32602),
        (request("resources/list"), -32601),
    ],
)
def test_a_broken_request_is_answered_with_an_error_and_the_server_lives_on(
    server: quietchoir_sdk.Server, message: Any, code: int
) -> None:
    refused, fine = ask(server, message, request("ping", 2))
    assert refused["error"]["code"] == code
    assert fine == {"jsonrpc": "2.0", "id": 2, "result": {}}


@pytest.mark.parametrize(
    ("returned", "text"),
    [("plain", "plain"), (5, "5"), (None, "null"), ([1, "ä"], '[1, "ä"]'), ({"a": 1}, '{"a": 1}')],
)
@pytest.mark.parametrize("waits", [False, True])
def test_whatever_a_tool_returns_is_its_answer(returned: Any, text: str, waits: bool) -> None:
    def at_once() -> Any:
        return returned

    async def later() -> Any:
        import asyncio

        await asyncio.sleep(0)
        return returned

    made = quietchoir_sdk.Server()
    for name in ("one", "two"):
        made.add(later if waits else at_once, name=name, description="", schema={"type": "object"})
    calls = (request("tools/call", name=name) for name in ("one", "two"))
    for answer in ask(made, *calls):
        assert answer["result"]["content"] == [{"type": "text", "text": text}]
        assert answer["result"]["isError"] is False
        kept = answer["result"].get("structuredContent")
        assert kept == (returned if isinstance(returned, dict) else None)


@pytest.mark.parametrize("returned", [b"bytes", {1, 2}, float])
def test_what_has_no_json_is_an_error_and_the_server_lives_on(returned: Any) -> None:
    made = quietchoir_sdk.Server()
    made.add(lambda: returned, name="odd", description="", schema={"type": "object"})
    failed, fine = ask(made, request("tools/call", name="odd"), request("ping", 2))
    assert failed["result"]["isError"] is True
    assert fine["result"] == {}


def test_half_a_character_is_answered(server: quietchoir_sdk.Server) -> None:
    made = quietchoir_sdk.Server()
    made.add(lambda: "half \ud83d", name="odd", description="", schema={"type": "object"})
    (answer,) = ask(made, request("tools/call", name="odd"))
    assert answer["result"]["content"][0]["text"] == "half \ud83d"


def test_notifications_are_not_answered(server: quietchoir_sdk.Server) -> None:
    assert ask(server, {"jsonrpc": "2.0", "method": "notifications/initialized"}) == []


def test_storage_finds_its_last_value_again(tmp_path: Path) -> None:
    with (tmp_path / "storage").open("w+b") as file:
        place = f"{file.fileno()}:4096"
        assert quietchoir_sdk.Storage(place).value is None
        for number in range(5):
            quietchoir_sdk.Storage(place).save({"count": number})
        assert quietchoir_sdk.Storage(place).value == {"count": 4}


def test_a_write_cut_anywhere_leaves_the_value_before_it(tmp_path: Path) -> None:
    with (tmp_path / "storage").open("w+b") as file:
        place = f"{file.fileno()}:256"
        quietchoir_sdk.Storage(place).save("first value")
        quietchoir_sdk.Storage(place).save("second value")
        before = os.pread(file.fileno(), 256, 0).ljust(256, b"\0")
        quietchoir_sdk.Storage(place).save("third value")
        after = os.pread(file.fileno(), 256, 0).ljust(256, b"\0")
        changed = [index for index in range(256) if before[index] != after[index]]
        for cut in range(changed[0], changed[-1] + 1):
            os.pwrite(file.fileno(), after[:cut] + before[cut:], 0)
            assert quietchoir_sdk.Storage(place).value == "second value"


def test_a_value_larger_than_the_grant_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    with (tmp_path / "storage").open("w+b") as file:
        place = f"{file.fileno()}:256"
        quietchoir_sdk.Storage(place).save("small")
        with pytest.raises(quietchoir_sdk.ToolFailure, match="may keep 128 bytes"):
            quietchoir_sdk.Storage(place).save("x" * 256)
        assert quietchoir_sdk.Storage(place).value == "small"


@pytest.mark.parametrize(
    ("mode", "version"),
    [("legacy", "2025-11-25"), ("auto", "2026-07-28"), ("2026-07-28", "2026-07-28")],
)
async def test_the_reference_client_understands_the_kit(
    tmp_path: Path, mode: str, version: str
) -> None:
    from mcp import Client, MCPError, StdioServerParameters, stdio_client

    program = tmp_path / "adder.py"
    program.write_text(ADDER)
    started = StdioServerParameters(
        command=sys.executable, args=[str(program)], env={"PYTHONPATH": str(SDK.parent)}
    )
    with (tmp_path / "complaints").open("w") as complaints:
        async with Client(stdio_client(started, errlog=complaints), mode=mode) as client:
            assert client.protocol_version == version
            listed = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert listed["add"].input_schema["required"] == ["left"]
            assert (
                listed["add"].annotations is not None
                and listed["add"].annotations.read_only_hint is True
            )
            result = await client.call_tool("add", {"left": 2, "mode": "loud"})
            assert (result.content[0].text, result.is_error) == ("3!", False)
            told = await client.call_tool("fail", {"kind": "told"})
            assert (told.content[0].text, told.is_error) == ("the cupboard is bare", True)
            broken = await client.call_tool("fail", {"kind": "other"})
            assert (broken.content[0].text, broken.is_error) == ("fail broke: KeyError", True)
            with pytest.raises(MCPError, match="no tool is called"):
                await client.call_tool("nobody", {})
