"""What a plugin may have the model write: what was granted, while it is asked for something."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quietchoir.core.errors import EngineError, RequestError, ToolError
from quietchoir.core.toolcall import ToolCall
from quietchoir.plugins.audit import Sampled
from quietchoir.plugins.sampling import MAX_REQUESTS, ModelAccess, SamplingRefused, Written
from quietchoir.plugins.sandbox.probe import SandboxReport

from .conftest import hostile, write_bundle

Messages = Sequence[Mapping[str, str]]


def asked(text: str = "hello", **more: Any) -> dict[str, Any]:
    """Params of a request."""
    content = {"type": "text", "text": text}
    return {"messages": [{"role": "user", "content": content}], "maxTokens": 20, **more}


async def echo(messages: Messages, answer: int, tokens: int) -> Written:
    """A model that says what it was told."""
    return Written(json.dumps([*messages, answer, tokens]), 30, "tiny")


async def test_tokens_are_counted_by_the_hour_and_each_text_is_logged() -> None:
    log, now = list[Sampled](), [0.0]
    access = ModelAccess("a/b", 70, echo, log.append, lambda: now[0])
    first = await access.create(asked(systemPrompt="be brief"))
    system, user = {"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}
    assert json.loads(first["content"]["text"]) == [system, user, 20, 70]
    assert (first["role"], first["model"], first["stopReason"]) == ("assistant", "tiny", "endTurn")
    assert json.loads((await access.create(asked()))["content"]["text"])[-1] == 40
    await access.create(asked())
    with pytest.raises(SamplingRefused, match="all 70 tokens of this hour are spent"):
        await access.create(asked())
    now[0] = 3600.0
    await access.create(asked())
    assert [(row.tokens, row.outcome) for row in log] == [
        *[(30, "ok")] * 3,
        (0, "refused"),
        (30, "ok"),
    ]
    assert "hello" not in repr(log)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"messages": [], "maxTokens": 1},
        asked(maxTokens=0),
        asked(maxTokens=True),
        {"messages": [{"role": "tool", "content": {"type": "text", "text": "x"}}], "maxTokens": 1},
        {"messages": [{"role": "user", "content": {"type": "image", "data": ""}}], "maxTokens": 1},
        {"messages": ["x"], "maxTokens": 1},
    ],
)
async def test_what_is_no_texts_for_the_model_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(SamplingRefused) as refused:
        await ModelAccess("a/b", 70, echo, lambda row: None).create(params)
    assert refused.value.code == -32602


async def test_an_answer_given_up_is_paid_for_with_its_prompt_and_a_broken_one_is_not() -> None:
    async def never(messages: Messages, answer: int, tokens: int) -> Written:
        await asyncio.Event().wait()
        raise AssertionError

    async def broken(messages: Messages, answer: int, tokens: int) -> Written:
        raise EngineError("no room")

    async def long(messages: Messages, answer: int, tokens: int) -> Written:
        raise RequestError("the messages have 9000 tokens")

    slow = ModelAccess("a/b", 7000, never, lambda row: None)
    task = asyncio.create_task(slow.create(asked("word " * 1000, maxTokens=1)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert slow.left() == 7000 - 5000 - 1 - 16  # of a prompt no token is less than a byte
    too_long = ModelAccess("a/b", 2000, long, lambda row: None)
    for size, left in ((64 << 10, 975), (62 << 10, 0)):  # cut into tokens each time: not for ever
        with pytest.raises(SamplingRefused, match="9000 tokens"):
            await too_long.create(asked("x" * size))
        assert too_long.left() == left
    with pytest.raises(SamplingRefused, match="are spent"):
        await too_long.create(asked())
    with pytest.raises(SamplingRefused, match="at most 65536"):  # nobody cuts that into tokens
        await ModelAccess("a/b", 70, echo, lambda row: None).create(asked("x" * 65_537))
    failing = ModelAccess("a/b", 70, broken, lambda row: None)
    with pytest.raises(SamplingRefused, match="no room"):
        await failing.create(asked())
    assert failing.left() == 70


async def test_requests_without_end_are_few_rows_of_the_log() -> None:
    """Of those that are done, refused and broken alike: each costs a row, some no token."""

    async def broken(messages: Messages, answer: int, tokens: int) -> Written:
        raise EngineError("no room")

    now = [0.0]
    for tokens, write, outcome in (
        (10**6, echo, "ok"),
        (1, echo, "refused"),
        (9, broken, "failed"),
    ):
        log, now[0] = list[Sampled](), 0.0
        access = ModelAccess("a/b", tokens, write, log.append, lambda: now[0])
        said = list[str]()
        for _ in range(1000):
            try:
                said.append(str(await access.create(asked())))
            except SamplingRefused as error:
                said.append(str(error))
        assert len(log) == MAX_REQUESTS + 1
        assert (log[-2].outcome, log[-1].outcome) == (outcome, "refused")
        assert sum("more than 120 requests" in one for one in said) == 1000 - MAX_REQUESTS
        now[0] = 60.0
        with contextlib.suppress(SamplingRefused):
            await access.create(asked())
        assert len(log) == MAX_REQUESTS + 2 and log[-1].outcome == outcome


BODY = """
from quietchoir_sdk import ToolFailure, ask_model
try:
    return ask_model("what I was told", system="s", max_tokens=7)
except ToolFailure as failure:
    return f"no: {failure}"
"""


async def test_a_plugin_asks_the_model_while_it_is_asked_and_no_other_does(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    granted = write_bundle(tmp_path / "granted", hostile(BODY), permissions={"model_tokens": 50})
    host = await hosts(granted, write=echo)
    told = json.loads((await host.call(ToolCall("attack"))).text)
    assert told[1:] == [{"role": "user", "content": "what I was told"}, 7, 50]
    assert (await host.call(ToolCall("attack"))).text.startswith("[")
    assert "are spent" in (await host.call(ToolCall("attack"))).text
    log = (tmp_path / "plugins/audit.jsonl").read_text()
    assert log.count('"tokens": 30') == 2 and "what I was told" not in log
    host = await hosts(write_bundle(tmp_path / "plain", hostile(BODY)), write=echo)
    assert "answers no such request" in (await host.call(ToolCall("attack"))).text


async def test_a_call_that_is_late_does_not_leave_its_plugin_waiting_for_the_model(
    sandbox: SandboxReport, hosts: Callable[..., Any], tmp_path: Path
) -> None:
    async def slow(messages: Messages, answer: int, tokens: int) -> Written:
        await asyncio.sleep(60)
        raise AssertionError

    bundle = write_bundle(tmp_path / "plugin", hostile(BODY), permissions={"model_tokens": 5000})
    host = await hosts(bundle, write=slow)
    await host.plugins["tests/hostile"].warm(30)
    for _ in range(2):
        with pytest.raises(ToolError, match="no answer to attack"):
            await host.call(ToolCall("attack"), 0.5)
        running = host.plugins["tests/hostile"].connection
        await running.settled()
        assert running.ended is None  # it heard that nobody waits, and answered the ping
