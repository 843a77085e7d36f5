"""The HTTP API over a fake engine: shapes, refusals, streams, and clients that go away."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from quietchoir.core.config import ServerConfig
from quietchoir.core.errors import ConfigError, OverloadedError, RequestError
from quietchoir.core.server.app import claim
from quietchoir.core.toolcall import ToolCall, render
from quietchoir.tests.fakes.http import HELLO, TOKEN, Served, until
from quietchoir.tests.fakes.server import FakeStore, FakeTools, engine_saying

CHAT = "/v1/chat/completions"
CALL = render(ToolCall("HassTurnOn", {"area": "kitchen"}))


async def stream(served: Served, path: str = CHAT, **fields: Any) -> list[Any]:
    """All data of an event stream; the last is "[DONE]" if it ended well."""
    async with served.session.post(path, json=HELLO | {"stream": True} | fields) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        blocks = (await response.text()).removesuffix("\n\n").split("\n\n")
    data = [block.removeprefix("data: ") for block in blocks]
    return [json.loads(item) if item != "[DONE]" else item for item in data]


async def test_a_whole_answer_has_openais_shape(served: Served) -> None:
    status, body = await served.post(CHAT, HELLO)
    assert status == 200
    assert (body["object"], body["model"]) == ("chat.completion", "smollm2")
    message = {"role": "assistant", "content": "Good morning."}
    assert body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


async def test_a_stream_says_the_same_as_the_whole_answer(served: Served) -> None:
    *chunks, done = await stream(served, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
        == "Good morning."
    )
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [
        None,
        None,
        None,
        "stop",
    ]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 5
    assert {(chunk["id"], chunk["object"]) for chunk in chunks} == {
        (chunks[0]["id"], "chat.completion.chunk")
    }


async def test_completions_go_on_after_a_text(served: Served) -> None:
    status, body = await served.post("/v1/completions", {"prompt": "once upon a time"})
    assert (status, body["object"], body["choices"][0]["text"]) == (
        200,
        "text_completion",
        "Good morning.",
    )
    async with served.session.post(
        "/v1/completions", json={"prompt": "once", "stream": True}
    ) as response:
        lines = [line async for line in response.content if line.strip()]
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]]
    assert ("".join(texts), lines[-1]) == ("Good morning.", b"data: [DONE]\n")


async def test_a_tool_call_comes_with_its_result_whole_and_streamed() -> None:
    script = [[CALL], ["It is on."]] * 2
    async with Served(
        engine_saying(*script), store=FakeStore(("home",), chosen="home")
    ).running() as served:
        _, body = await served.post(CHAT, HELLO)
        message = body["choices"][0]["message"]
        assert body["model"] == "smollm2:home"
        assert message["content"] == "It is on."
        [call] = message["tool_calls"]
        assert call["function"] == {"name": "HassTurnOn", "arguments": '{"area": "kitchen"}'}
        assert message["tool_results"] == [
            {"tool_call_id": call["id"], "content": "Turned on the kitchen light.", "ok": True}
        ]
        *chunks, _ = await stream(served)
        deltas = [key for chunk in chunks for key in chunk["choices"][0]["delta"]]
        assert deltas == ["role", "content", "tool_calls", "tool_results", "step", "content"]


async def test_a_client_that_sends_an_answer_back_shows_the_model_what_its_calls_brought() -> None:
    async with Served(engine_saying([CALL], ["It is on."], ["Yes."])).running() as served:
        _, body = await served.post(CHAT, HELLO)
        said = body["choices"][0]["message"]
        more = [*HELLO["messages"], said, {"role": "user", "content": "sure?"}]
        assert (await served.post(CHAT, {"messages": more}))[0] == 200
        tokenizer: Any = served.assistant.tokenizer
        assert [message["role"] for message in tokenizer.last_messages] == [
            *("system", "user", "assistant", "user", "assistant", "user")
        ]
        assert "Turned on the kitchen light." in tokenizer.last_messages[3]["content"]


@pytest.mark.parametrize(("approved", "calls"), [(True, 1), (False, 0)])
async def test_a_call_waits_for_the_owners_word_at_its_own_address(
    approved: bool, calls: int
) -> None:
    tools = FakeTools(effect="write")
    async with Served(engine_saying([CALL], ["So be it."]), tools).running() as served:
        answer = asyncio.create_task(served.post(CHAT, HELLO))
        await until(served.assistant.approvals.pending)
        _, listed = await served.get("/api/approvals")
        [question] = listed["approvals"]
        assert question["question"] == "acts in the house: area 'kitchen'. Shall I?"
        assert tools.calls == []
        path = f"/api/approvals/{question['id']}"
        assert (await served.post(path, {"approved": "yes"}))[0] == 400
        status, told = await served.post(path, {"approved": approved, "remember": True})
        assert status == 404 and "conversation has no name" in told["error"]["message"]
        assert (await served.post(path, {"approved": approved}))[0] == 200
        _, body = await answer
        [asked] = body["choices"][0]["message"]["approvals"]
        assert (asked["approved"], asked["by"]) == (approved, "owner")
        assert len(tools.calls) == calls
        assert (await served.post(path, {"approved": True}))[0] == 404


async def test_a_client_that_goes_away_takes_its_question_with_it() -> None:
    async with Served(engine_saying([CALL]), FakeTools(effect="write")).running() as served:
        answer = asyncio.create_task(served.post(CHAT, HELLO))
        await until(served.assistant.approvals.pending)
        answer.cancel()
        await until(lambda: not served.assistant.approvals.pending())
        assert served.tools.calls == []


async def test_a_cut_call_has_an_error_of_its_own() -> None:
    tools = [{"type": "function", "function": {"name": "HassTurnOn", "parameters": {}}}]
    async with Served(engine_saying([CALL[:-3]], finished="length")).running() as served:
        status, body = await served.post(CHAT, HELLO | {"tools": tools, "tool_choice": "required"})
        assert (status, body["error"]["code"]) == (400, "tool_call_cut")


async def test_a_call_to_the_clients_own_tool_goes_back_to_the_client() -> None:
    async with Served(engine_saying([CALL]), FakeTools()).running() as served:
        tools = [{"type": "function", "function": {"name": "HassTurnOn", "parameters": {}}}]
        _, body = await served.post(CHAT, HELLO | {"tools": tools})
        choice = body["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
        assert served.tools.calls == []


@pytest.mark.parametrize(
    "body, status, parameter",
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"messages": []}', 400, "messages"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 9}', 400, "n"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "gpt"}', 404, "model"),
        (b'{"messages": [{"role": "user", "content": "' + b"x" * 3000 + b'"}]}', 413, None),
    ],
)
async def test_a_bad_body_is_refused_with_openais_error_and_never_reaches_the_engine(
    body: bytes, status: int, parameter: str | None
) -> None:
    async with Served(engine_saying(["x"])).running(max_body_bytes=2000) as served:
        answered, found = await served.post(CHAT, data=body)
        assert (answered, found["error"]["param"]) == (status, parameter)
        assert (
            set(found["error"]) == {"message", "type", "param", "code"}
            and found["error"]["message"]
        )
        assert served.engine.requests == []


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "refusal, status", [(OverloadedError("full"), 503), (RequestError("too long"), 400)]
)
async def test_a_refusal_of_the_engine_has_its_status_also_for_streams(
    streamed: bool, refusal: Exception, status: int
) -> None:
    async with Served(engine_saying(["x"])).running() as served:
        served.engine.refuse = refusal
        async with served.session.post(CHAT, json=HELLO | {"stream": streamed}) as response:
            assert response.status == status
            assert (int(response.headers.get("Retry-After", 0)) > 0) == (status == 503)
            assert (await response.json())["error"]["message"] == str(refusal)


async def test_an_engine_that_breaks_is_told_inside_the_stream_or_by_status() -> None:
    async with Served(engine_saying(["one", "two"], finished="error")).running() as served:
        *_, last = await stream(served)
        assert "a kernel broke" in last["error"]["message"]
        status, body = await served.post(CHAT, HELLO)
        assert (status, body["error"]["type"]) == (500, "server_error")


async def test_a_bug_inside_is_told_without_its_traceback() -> None:
    async with Served(engine_saying(["x"])).running() as served:
        served.engine.refuse = KeyError("private detail")
        status, body = await served.post(CHAT, HELLO)
        assert status == 500 and "private" not in json.dumps(body)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_goes_away_cancels_its_own_request_alone(streamed: bool) -> None:
    async with Served(engine_saying(["one ", "two"], held=True)).running() as served:
        staying = asyncio.create_task(served.post(CHAT, HELLO))
        await until(lambda: len(served.engine.generations) == 1)
        leaving = asyncio.create_task(served.session.post(CHAT, json=HELLO | {"stream": streamed}))
        await until(lambda: len(served.engine.generations) == 2)
        if streamed:
            (await leaving).close()
        leaving.cancel()
        await until(lambda: served.engine.generations[1].finish_reason == "cancelled")
        assert served.engine.generations[0].finish_reason is None
        served.engine.release(0)
        status, body = await staying
        assert (status, body["choices"][0]["message"]["content"]) == (200, "one two")


async def test_many_at_once_each_get_their_own_answer() -> None:
    engine = engine_saying(*[[f"answer {number}"] for number in range(20)])
    async with Served(engine).running() as served:
        found = await asyncio.gather(*(served.post(CHAT, HELLO) for _ in range(20)))
        texts = sorted(body["choices"][0]["message"]["content"] for _, body in found)
        assert texts == sorted(f"answer {number}" for number in range(20))


@pytest.mark.parametrize(
    "method, path",
    [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/api/adapters"), ("POST", "/nowhere")],
)
async def test_without_the_token_nothing_is_told(served: Served, method: str, path: str) -> None:
    async with (
        aiohttp.ClientSession(served.server.url) as stranger,
        stranger.request(method, path, json=HELLO) as response,
    ):
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert served.engine.requests == []


async def test_health_needs_no_token_and_tells_nothing(served: Served) -> None:
    async with (
        aiohttp.ClientSession(served.server.url) as stranger,
        stranger.get("/health") as response,
    ):
        assert (response.status, await response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "127.0.0.1.evil.example"},
    ],
)
async def test_a_foreign_page_is_refused_even_with_the_token(
    served: Served, headers: dict[str, str]
) -> None:
    for path in ("/health", "/v1/models", "/"):
        status, _ = await served.get(path, headers=headers)
        assert status == 403


async def test_no_answer_lets_another_origin_read_it(served: Served) -> None:
    for method in ("GET", "OPTIONS"):
        async with served.session.request(
            method, "/v1/models", headers={"Origin": served.server.url.rstrip("/")}
        ) as response:
            assert not [
                name for name in response.headers if name.lower().startswith("access-control")
            ]


async def test_models_are_the_plain_one_and_it_with_each_adapter(served: Served) -> None:
    status, body = await served.get("/v1/models")
    assert status == 200
    assert [model["id"] for model in body["data"]] == ["smollm2", "smollm2:home-1"]
    assert (await served.get("/v1/models/smollm2:home-1"))[1]["object"] == "model"
    for answers in ("base", "default", "home-1", "base:home-1"):
        status, one = await served.get(f"/v1/models/{answers}")
        assert status == 200 and one["id"] == answers
    assert (await served.get("/v1/models/other"))[0] == 404


@pytest.mark.parametrize(
    "model, adapter",
    [("base", None), ("smollm2:home-1", "home-1"), ("home-1", "home-1"), ("default", None)],
)
async def test_the_model_field_chooses_the_adapter(
    served: Served, model: str, adapter: str | None
) -> None:
    await served.post(CHAT, HELLO | {"model": model})
    assert served.engine.requests[0].adapter == adapter


async def test_an_adapter_is_switched_without_a_restart(served: Served) -> None:
    await served.post(CHAT, HELLO)
    assert await served.post("/api/adapters/activate", {"name": "home-1"}) == (
        200,
        {"active": "home-1"},
    )
    await served.post(CHAT, HELLO)
    assert [request.adapter for request in served.engine.requests] == [None, "home-1"]
    _, body = await served.get("/api/adapters")
    adapters = [{"id": "home-1", "description": "trained together"}]
    assert body == {"model": "smollm2", "active": "home-1", "adapters": adapters}


@pytest.mark.parametrize(
    "body, status",
    [({"name": "nobody"}, 404), ({"name": 3}, 400), ({}, 400), ({"name": "home-1", "x": 1}, 400)],
)
async def test_a_bad_switch_changes_nothing(served: Served, body: Any, status: int) -> None:
    assert (await served.post("/api/adapters/activate", body))[0] == status
    assert (await served.get("/api/adapters"))[1]["active"] is None
    assert served.store.chosen is None


async def test_tools_are_listed_with_what_they_do_and_when_the_owner_is_asked() -> None:
    async with Served(engine_saying(["ok"]), FakeTools(effect="outside")).running() as served:
        _, body = await served.get("/api/tools")
        [tool] = body["tools"]
        assert (tool["name"], tool["plugin"]) == ("HassTurnOn", "quietchoir/household")
        assert (tool["effect"], tool["rule"]) == ("outside", "ask")


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/nowhere", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405)],
)
async def test_paths_that_are_not_there_are_refused_in_json(
    served: Served, method: str, path: str, status: int
) -> None:
    async with served.session.request(method, path) as response:
        assert response.status == status and (await response.json())["error"]["message"]


def test_a_port_in_use_is_one_sentence_that_names_the_flag() -> None:
    with claim(ServerConfig(port=0)) as taken, pytest.raises(ConfigError, match="--port"):
        claim(ServerConfig(port=taken.getsockname()[1]))


@pytest.mark.parametrize(
    "host, port", [("203.0.113.1", 0), ("127.0.0.1", 70000), ("127.0.0.1", -1)]
)
def test_an_address_that_is_not_ours_is_one_sentence(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        claim(ServerConfig(host=host, port=port, plain_http=True))


async def test_stopping_ends_answers_that_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quietchoir.core.server.app.SHUTDOWN_S", 0.05)
    async with Served(engine_saying(["one ", "two"], held=True)).running() as served:
        leaving = asyncio.create_task(served.session.post(CHAT, json=HELLO))
        await until(lambda: len(served.engine.generations) == 1)
        await served.server.stop()
        assert served.engine.generations[0].finish_reason == "cancelled"
        with pytest.raises(aiohttp.ClientError):
            await leaving


def test_the_tests_token_is_long_enough() -> None:
    assert len(TOKEN) >= 32


async def test_a_node_that_ends_finishes_what_it_answers_and_begins_nothing_new() -> None:
    async with Served(engine_saying(["one ", "two"], held=True)).running() as served:
        # two connections, of which one stays open and idle
        await asyncio.gather(*(served.session.get("/health") for _ in "ab"))
        async with served.session.post(CHAT, json=HELLO | {"stream": True}) as response:
            await response.content.readuntil(b"one ")
            draining = asyncio.create_task(served.server.drain(30.0))
            await until(lambda: served.server.crowd.draining)
            status, body = await served.post(CHAT, HELLO)
            assert status == 503 and "about to end" in body["error"]["message"]
            with pytest.raises(aiohttp.ClientConnectorError):  # nobody listens any more
                await served.post(CHAT, HELLO)
            assert not draining.done()
            served.engine.release()
            assert (await response.text()).endswith("data: [DONE]\n\n")
        await draining


async def test_an_answer_that_outlasts_its_time_does_not_keep_a_node_from_ending() -> None:
    async with (
        Served(engine_saying(["one ", "two"], held=True)).running() as served,
        served.session.post(CHAT, json=HELLO | {"stream": True}) as response,
    ):
        await response.content.readuntil(b"one ")
        await served.server.drain(0.01)
        assert any(one.answering for one in served.server.crowd.open)
