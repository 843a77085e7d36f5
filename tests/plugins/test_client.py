"""The client against servers that break the protocol. They are harmless, so they run without a
sandbox.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest
import pytest_asyncio

from quietchoir.core.errors import ToolError
from quietchoir.plugins import client, manifest
from quietchoir.plugins.client import PluginConnection
from quietchoir.plugins.delegation import OtherTools
from quietchoir.plugins.sampling import ModelAccess, Written
from quietchoir.plugins.sandbox import linux
from quietchoir.plugins.sandbox.watchdog import Bounds

READ = """
import json, sys, time
def reply(request, **parts):
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **parts}), flush=True)
TEXT = {"content": [{"type": "text", "text": "right"}]}
"""
ECHO = "for line in sys.stdin:\n request = json.loads(line)\n "


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Callable[..., Any]]:
    """Starts a Python program as a plugin, and ends it after the test."""
    open_ones: list[PluginConnection] = []

    async def begin(
        program: str,
        memory_mb: int = 512,
        folders: Sequence[str] = (),
        others: OtherTools | None = None,
    ) -> PluginConnection:
        pipe = asyncio.subprocess.PIPE
        started = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            "-c",
            READ + program,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            limit=linux.MAX_LINE,
        )
        bounds = Bounds(memory_mb << 20)
        open_ones.append(PluginConnection(started, "tests/server", bounds, folders, others=others))
        return open_ones[-1]

    yield begin
    for connection in open_ones:
        await connection.close()


async def test_an_answer_finds_its_call_out_of_order(connect: Callable[..., Any]) -> None:
    program = """
first, second = (json.loads(sys.stdin.readline()) for _ in range(2))
for request in (second, first):
    reply(request, result={"content": [{"type": "text", "text": request["params"]["name"]}]})
"""
    connection = await connect(program)
    answers = await asyncio.gather(connection.call("a", {}, 30), connection.call("b", {}, 30))
    assert list(answers) == [("a", True), ("b", True)]


async def test_a_line_without_end_kills_the_plugin(connect: Callable[..., Any]) -> None:
    connection = await connect(
        ECHO + "sys.stdout.write('x' * (20 << 20)); sys.stdout.flush(); time.sleep(60)"
    )
    with pytest.raises(ToolError, match="longer than 16777216 bytes"):
        await connection.call("a", {}, 30)


async def test_an_answer_that_is_too_long_ends_its_call_alone(connect: Callable[..., Any]) -> None:
    program = ECHO + (
        "size = request['params']['arguments']['size']\n "
        "text = {'content': [{'type': 'text', 'text': 'x' * size}]}\n reply(request, result=text)"
    )
    connection = await connect(program)
    assert len((await connection.call("a", {"size": 1_000_000}, 30))[0]) == 1_000_000
    with pytest.raises(ToolError, match=r"answered with \d+ bytes; at most 1048576 are read"):
        await connection.call("a", {"size": 3 << 20}, 30)
    assert await connection.call("a", {"size": 1}, 30) == ("x", True)


async def test_some_garbage_is_passed_over(connect: Callable[..., Any]) -> None:
    program = ECHO + ('print("{not json"); print("7"); print("null"); reply(request, result=TEXT)')
    assert await (await connect(program)).call("a", {}, 30) == ("right", True)


@pytest.mark.parametrize(
    "result", ['{"structuredContent": {"a": DEEP}}', '{"content": [{"type": DEEP}]}']
)
@pytest.mark.parametrize("depth", [200, 970, 5000])
async def test_a_message_that_is_nested_too_deep_kills_the_plugin(
    connect: Callable[..., Any], result: str, depth: int
) -> None:
    """The instance: one that could just be read, and not be written again."""
    said = result.replace("DEEP", "[" * depth + "]" * depth)
    program = ECHO + f"""print('{{"id": %d, "result": {said}}}' % request["id"], flush=True)"""
    with pytest.raises(ToolError, match="a message nested deeper than 128"):
        await (await connect(program)).call("a", {}, 30)


def test_depth_is_counted_to_the_last_list() -> None:
    assert not manifest.deeper([[[1], [1]], {"a": 1}], 3)
    assert manifest.deeper([[[1], [1]], {"a": 1}], 2)
    assert manifest.deeper([[[1], {"a": [1]}]], 3)


async def test_a_list_that_could_not_be_read_again_is_asked_for_at_the_next_call(
    connect: Callable[..., Any],
) -> None:
    connection = await connect(ECHO + 'reply(request, error={"code": -1, "message": "later"})')
    connection.list_changed = True
    with pytest.raises(ToolError, match="refused tools/list: later"):
        await connection.tools(30)
    assert connection.list_changed


async def test_endless_garbage_kills_the_plugin(connect: Callable[..., Any]) -> None:
    with pytest.raises(ToolError, match="101 lines that answer nothing"):
        await (await connect("while True: print('noise', flush=True)")).call("a", {}, 30)


async def test_answers_to_other_numbers_are_not_taken(connect: Callable[..., Any]) -> None:
    program = (
        ECHO
        + """
 for wrong in (request["id"] + 1, "x" + str(request["id"]), None, True, 0.5, [1], {}):
  result = {"content": [{"type": "text", "text": "wrong"}]}
  print(json.dumps({"jsonrpc": "2.0", "id": wrong, "result": result}), flush=True)
 reply(request, result=TEXT)
"""
    )
    assert await (await connect(program)).call("a", {}, 30) == ("right", True)


async def test_silence_ends_at_the_deadline_and_the_plugin_with_it(
    connect: Callable[..., Any],
) -> None:
    connection = await connect("time.sleep(60)")
    with pytest.raises(ToolError, match=r"no answer to a within 0\.3 s"):
        await connection.call("a", {}, 0.3)
    await connection.settled()
    assert "did not answer within 1 s after a call was cancelled" in str(connection.ended)
    with pytest.raises(ToolError, match="was stopped"):
        await connection.call("b", {}, 30)


async def test_a_plugin_that_does_not_read_is_stopped_in_mid_request(
    connect: Callable[..., Any],
) -> None:
    connection = await connect("time.sleep(60)")
    with pytest.raises(ToolError, match=r"within 0\.3 s"):
        await connection.call("a", {"text": "x" * 900_000}, 0.3)


async def test_a_request_that_is_too_long_is_refused_and_harms_nobody(
    connect: Callable[..., Any],
) -> None:
    connection = await connect(ECHO + "reply(request, result=TEXT)")
    with pytest.raises(ToolError, match="at most 1048576"):
        await connection.call("a", {"text": "x" * (1 << 20)}, 30)
    assert await connection.call("a", {}, 30) == ("right", True)


async def test_endless_complaints_are_forgotten_and_then_fatal(connect: Callable[..., Any]) -> None:
    connection = await connect("while True: sys.stderr.write('x' * 65536)")
    with pytest.raises(ToolError, match="on standard error"):
        await connection.call("a", {}, 30)
    assert len(connection.complaints) <= client.KEPT_COMPLAINTS


async def test_a_crash_is_told_with_the_last_words(connect: Callable[..., Any]) -> None:
    connection = await connect("sys.stdin.readline(); sys.exit('the oven is on fire')")
    with pytest.raises(ToolError, match="ended by itself"):
        await connection.call("a", {}, 30)


@pytest.mark.parametrize(
    "answer",
    [
        "error={'code': 1, 'message': 'no'}",
        "error=7",
        "result=7",
        "result={}",
        "result={'content': 'text'}",
        "other=1",
    ],
)
async def test_answers_of_another_shape_are_errors_and_not_crashes(
    connect: Callable[..., Any], answer: str
) -> None:
    connection = await connect(ECHO + f"reply(request, {answer})")
    with pytest.raises(ToolError, match=r"refused|without a result|without content"):
        await connection.call("a", {}, 30)
    assert connection.ended is None


async def test_requests_of_a_plugin_are_refused(connect: Callable[..., Any]) -> None:
    program = """
request = json.loads(sys.stdin.readline())
asked = {"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {}}
print(json.dumps(asked), flush=True)
refusal = json.loads(sys.stdin.readline())
reply(request, result={"content": [{"type": "text", "text": str(refusal["error"]["code"])}]})
time.sleep(60)
"""
    assert await (await connect(program)).call("a", {}, 30) == ("-32601", True)


async def test_a_server_that_asks_for_its_roots_is_told_its_folders(
    connect: Callable[..., Any],
) -> None:
    program = """
request = json.loads(sys.stdin.readline())
print(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "roots/list"}), flush=True)
told = json.loads(sys.stdin.readline())
reply(request, result={"content": [{"type": "text", "text": json.dumps(told["result"])}]})
time.sleep(60)
"""
    connection = await connect(program, folders=["/data/my papers"])
    expected = {"roots": [{"uri": "file:///data/my%20papers", "name": "my papers"}]}
    assert json.loads((await connection.call("a", {}, 30))[0]) == expected


async def test_a_tool_list_without_end_is_refused(connect: Callable[..., Any]) -> None:
    program = ECHO + (
        "if 'id' in request: reply(request, result={'protocolVersion': '2025-11-25', "
        "'tools': [{'name': 'a'}], 'nextCursor': 'more'})"
    )
    with pytest.raises(ToolError, match="tools/list"):
        await (await connect(program)).handshake(30)


async def test_too_much_memory_kills_the_plugin(connect: Callable[..., Any]) -> None:
    connection = await connect(
        "held = [bytes([n % 255 + 1]) * (1 << 20) for n in range(80)]\ntime.sleep(60)", memory_mb=40
    )
    with pytest.raises(ToolError, match="more than 40 MB"):
        await connection.call("a", {}, 30)


ANSWERS = {
    "an image": ("content", [{"type": "image", "data": "eHg=", "mimeType": "image/png"}]),
    "audio": ("content", [{"type": "audio", "data": "eHg=", "mimeType": "audio/wav"}]),
    "a text resource": ("content", [{"type": "resource", "resource": {"uri": "a:b", "text": "T"}}]),
    "a file": ("content", [{"type": "resource", "resource": {"uri": "a:b", "blob": "eHg="}}]),
    "a link": ("content", [{"type": "resource_link", "uri": "a:b", "name": "notes"}]),
    "something new": ("content", [{"type": "hologram"}]),
    "values alone": ("structuredContent", {"degrees": 21}),
}
SHOWN = {
    "an image": "[image image/png: 2 bytes, not shown]",
    "audio": "[audio audio/wav: 2 bytes, not shown]",
    "a text resource": "T",
    "a file": "[file a:b: 2 bytes, not shown]",
    "a link": "[file notes: a:b]",
    "something new": "['hologram': no text, not shown]",
    "values alone": '{"degrees": 21}',
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_is_no_text_is_told_and_never_an_empty_ok(kind: str) -> None:
    name, value = ANSWERS[kind]
    assert client.text_of({name: value}) == SHOWN[kind]


def test_values_are_not_told_twice_where_the_text_says_them() -> None:
    both = {"content": [{"type": "text", "text": "21"}], "structuredContent": {"degrees": 21}}
    assert client.text_of(both) == "21"
    picture = {"content": ANSWERS["an image"][1], "structuredContent": {"degrees": 21}}
    assert client.text_of(picture) == SHOWN["an image"] + '\n{"degrees": 21}'
    assert client.text_of({"content": []}) == ""
    assert client.text_of({}) is None


async def test_what_servers_say_besides_their_answers_harms_nobody(
    connect: Callable[..., Any],
) -> None:
    program = """
for line in sys.stdin:
    request = json.loads(line)
    for _ in range(150):
        print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}))
    answer = {"jsonrpc": "2.0", "id": str(request["id"]), "result": TEXT}
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
    print(json.dumps([progress, answer]), flush=True)  # a batch, and a text as its number
"""
    connection = await connect(program)
    for _ in range(3):
        assert await connection.call("a", {}, 30) == ("right", True)


async def test_notifications_without_end_kill_the_plugin(connect: Callable[..., Any]) -> None:
    program = """
said = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
while True: print(said, flush=True)
"""
    with pytest.raises(ToolError, match="10001 messages that answer nothing"):
        await (await connect(program)).call("a", {}, 30)


@pytest.mark.parametrize("reads", [True, False])
async def test_what_is_asked_of_a_service_is_dropped_unless_it_is_done_and_answers_are_read(
    connect: Callable[..., Any], reads: bool
) -> None:
    """The same requests: a plugin that reads is told, one that does not is ended."""
    atonce, served = list[int](), asyncio.Event()

    async def carry(plugin: str, tool: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        atonce.append(len(connection._serving))
        await served.wait()
        return "done", True

    program = f"""
request = json.loads(sys.stdin.readline())
asked = {{"jsonrpc": "2.0", "method": "quietchoir/tools/call"}}
refused = 0
for number in range(5000):
    params = {{"tool": "a/b:c", "arguments": {{"x": "x" * 1000}}}}
    print(json.dumps(asked | {{"id": number, "params": params}}), flush=True)
    if {reads} and number >= {client.MAX_SERVING}:
        refused += json.loads(sys.stdin.readline())["error"]["code"] == -1
reply(request, result={{"content": [{{"type": "text", "text": str(refused)}}]}})
time.sleep(60)
"""
    connection = await connect(program, others=OtherTools(("a/b:c",), carry))
    if reads:
        assert await connection.call("a", {}, 60) == (str(5000 - client.MAX_SERVING), True)
    else:
        with pytest.raises(ToolError, match="does not read what it is answered"):
            await connection.call("a", {}, 60)
    assert max(atonce) <= client.MAX_SERVING


async def test_a_request_with_a_number_as_long_as_a_book_ends_its_plugin(
    connect: Callable[..., Any],
) -> None:
    program = """
request = json.loads(sys.stdin.readline())
print(json.dumps({"jsonrpc": "2.0", "id": "7" * 300, "method": "ping"}), flush=True)
time.sleep(60)
"""
    with pytest.raises(ToolError, match="whose number has 300 characters"):
        await (await connect(program)).call("a", {}, 60)


@pytest.mark.parametrize(("size", "fits"), [(10_000, True), (900_000, False)])
async def test_a_list_is_no_larger_than_is_kept_of_it(
    connect: Callable[..., Any], size: int, fits: bool
) -> None:
    program = f"""
for line in sys.stdin:
    request = json.loads(line)
    page = int((request.get("params") or {{}}).get("cursor") or 0)
    more = {{"nextCursor": str(page + 1)}} if page < 39 else {{}}
    tools = [{{"name": f"tool{{page}}", "x": "x" * {size}}}]
    if "id" in request:
        reply(request, result={{"protocolVersion": "2025-06-18", "tools": tools}} | more)
"""
    connection = await connect(program)
    if fits:
        assert len(await connection.handshake(60)) == 40
    else:
        with pytest.raises(ToolError, match="is not a list of tools that ends"):
            await connection.handshake(60)
        assert connection._read < client.MAX_LISTED + 2 * linux.MAX_LINE  # with its introduction


async def test_a_list_of_many_pages_is_read_to_its_end(connect: Callable[..., Any]) -> None:
    program = """
for line in sys.stdin:
    request = json.loads(line)
    page = int((request.get("params") or {}).get("cursor") or 0)
    more = {"nextCursor": str(page + 1)} if page < 39 else {}
    if "id" in request:
        reply(request, result={"protocolVersion": "2025-06-18",
                               "tools": [{"name": f"tool{page}"}]} | more)
"""
    tools = await (await connect(program)).handshake(30)
    assert [tool["name"] for tool in tools] == [f"tool{page}" for page in range(40)]


async def test_a_server_of_a_protocol_that_nobody_knows_here_is_refused(
    connect: Callable[..., Any],
) -> None:
    connection = await connect(ECHO + "reply(request, result={'protocolVersion': '2099-01-01'})")
    with pytest.raises(ToolError, match="speaks MCP of '2099-01-01'; this version speaks 2025"):
        await connection.handshake(30)
    assert connection.ended is not None


async def test_a_servers_ping_is_answered(connect: Callable[..., Any]) -> None:
    program = """
request = json.loads(sys.stdin.readline())
print(json.dumps({"jsonrpc": "2.0", "id": "p1", "method": "ping"}), flush=True)
answer = json.loads(sys.stdin.readline())
reply(request, result={"content": [{"type": "text", "text": json.dumps(answer)}]})
time.sleep(60)
"""
    text, _ = await (await connect(program)).call("a", {}, 30)
    assert json.loads(text) == {"jsonrpc": "2.0", "id": "p1", "result": {}}


async def test_a_late_call_is_cancelled_and_the_one_beside_it_answered(
    connect: Callable[..., Any],
) -> None:
    program = """
held = {}
for line in sys.stdin:
    request = json.loads(line)
    if request["method"] == "tools/call":
        held[request["params"]["name"]] = request
    elif request["method"] == "notifications/cancelled":
        gone = request["params"]["requestId"]
    else:  # the ping
        reply(request, result={})
        told = "cancelled" if held["late"]["id"] == gone else "another"
        reply(held["fine"], result={"content": [{"type": "text", "text": told}]})
"""
    connection = await connect(program)
    late = asyncio.create_task(connection.call("late", {}, 0.3))
    fine = asyncio.create_task(connection.call("fine", {}, 30))
    with pytest.raises(ToolError, match=r"no answer to late within 0\.3 s"):
        await late
    assert await fine == ("cancelled", True)
    await connection.settled()
    assert connection.ended is None


async def test_a_call_that_its_caller_gives_up_is_cancelled(connect: Callable[..., Any]) -> None:
    program = """
for line in sys.stdin:
    request = json.loads(line)
    if request["method"] == "ping":
        reply(request, result={})
    elif request["method"] == "tools/call" and request["params"]["name"] == "b":
        reply(request, result=TEXT)
"""
    connection = await connect(program)
    call = asyncio.create_task(connection.call("a", {}, 30))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await connection.settled()
    assert await connection.call("b", {}, 30) == ("right", True)


REFERENCE = """
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.types import ImageContent, SamplingMessage, TextContent
server = MCPServer("reference")
@server.tool()
async def where(ctx: Context) -> str:
    "Its folders, with a word on the way."
    await ctx.report_progress(1, 2)
    return " ".join(str(root.uri) for root in (await ctx.session.list_roots()).roots)
@server.tool()
async def think(ctx: Context) -> str:
    "What becomes of a request to the model."
    try:
        content = TextContent(type="text", text="hello")
        asked = [SamplingMessage(role="user", content=content)]
        return (await ctx.session.create_message(messages=asked, max_tokens=5)).content.text
    except Exception as error:
        return str(error)
@server.tool()
def add(left: int, right: int) -> int:
    "Add."
    return left + right
@server.tool()
def picture() -> ImageContent:
    "Show."
    return ImageContent(type="image", data="eHg=", mimeType="image/png")
server.run("stdio")
"""


async def test_a_server_of_the_reference_kit_is_understood() -> None:
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", REFERENCE),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        limit=linux.MAX_LINE,
    )

    async def write(messages: Sequence[Mapping[str, str]], answer: int, tokens: int) -> Written:
        return Written(f"{messages} {answer} {tokens}", 9, "tiny")

    model = ModelAccess("tests/server", 10, write, lambda row: None)
    bounds = Bounds(1 << 30)
    connection = PluginConnection(started, "tests/server", bounds, ["/data/papers"], model)
    try:
        tools = await connection.handshake(60)
        assert [tool["name"] for tool in tools] == ["where", "think", "add", "picture"]
        assert await connection.call("where", {}, 30) == ("file:///data/papers", True)
        told = "[{'role': 'user', 'content': 'hello'}] 5 10"
        assert await connection.call("think", {}, 30) == (told, True)
        assert connection.server["name"] == "reference"
        assert await connection.call("add", {"left": 2, "right": 3}, 30) == ("5", True)
        assert await connection.call("picture", {}, 30) == (SHOWN["an image"], True)
        assert (await connection.call("add", {"left": "x"}, 30))[1] is False
    finally:
        await connection.close()
