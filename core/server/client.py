"""A running node from afar: its answers as the same events that the assistant itself yields.

Knows the stream's framing and the chunk's shape. Knows nothing of terminals.
"""

import json
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import aiohttp

from ..assistant.citations import Citation, Cited, SourceReport
from ..assistant.context import LeftOut, Message
from ..assistant.elicitation import ElicitResult, Form
from ..assistant.events import (
    ApprovalEvent,
    ApprovedEvent,
    ElicitationEvent,
    ElicitedEvent,
    Event,
    Finished,
    LoopStepEvent,
    Text,
    ToolCallEvent,
    ToolResultEvent,
    ToolsListedEvent,
)
from ..assistant.thoughts import CLOSING, OPENING
from ..assistant.tools import ToolResult
from ..errors import ConfigError, EngineError
from ..history.recorder import kept_words
from ..retrieval.store import RetrievedPassage
from ..toolcall import ToolCall

CONNECT_S = 10.0
LINE_BYTES = 1 << 20
SOURCE = "chat"  # as which a node keeps these conversations


class RemoteAssistant:
    """One running node."""

    def __init__(self, url: str, token: str, collections: Sequence[str] = ()) -> None:
        """`collections`: of the node's documents, whose passages answers may cite."""
        self.collections = collections
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"}
        self.renew()

    def renew(self) -> None:
        """Another conversation begins; the node keeps it under this name."""
        self.conversation = f"{SOURCE}-{secrets.token_hex(8)}"

    async def judge(self, verdict: str, correction: str) -> str:
        """A verdict on the last answer.

        Raises:
            ConfigError, EngineError: as `reply`.
        """
        body = {"conversation": self.conversation, "verdict": verdict}
        if verdict == "corrected":
            body["answer"] = correction
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(CONNECT_S)) as session,
                session.post(
                    f"{self.url}/api/feedback", json=body, headers=self.headers
                ) as response,
            ):
                await check(response)
                told = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(f"{self.url} took no verdict ({error}); try again") from error
        if told["example"] is None:
            return "no example is made of it"
        return kept_words(told["conversation"]["consent"], self.conversation)

    async def answer(self, id: str, approved: bool, remember: bool) -> None:
        """Answer a question of the node's.

        Raises:
            EngineError: it is not open any more, or the node went away.
        """
        await self._post(f"approvals/{id}", {"approved": approved, "remember": remember})

    async def respond(self, id: str, result: ElicitResult) -> None:
        """Answer a form of a tool's.

        Raises:
            EngineError: as `answer`, or it is filled in wrongly.
        """
        filled_in = {"content": dict(result.content)} if result.action == "accept" else {}
        await self._post(f"elicitations/{id}", {"action": result.action, **filled_in})

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        timeout = aiohttp.ClientTimeout(total=CONNECT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(f"{self.url}/api/{path}", json=body, headers=self.headers) as response,
            ):
                await check(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(f"{self.url} could not be told ({error}); ask again") from error

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[Event, None]:
        """Ask the node, which answers with its active adapter and tools.

        Raises:
            ConfigError: nobody listens there, or the token is wrong.
            EngineError: the node refused, or the answer broke off.
        """
        body = {
            "messages": [to_json(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "collections": list(self.collections),
            "memory": True,
            "metadata": {"conversation": self.conversation, "source": SOURCE},
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, read_bufsize=LINE_BYTES) as session,
                session.post(
                    f"{self.url}/v1/chat/completions", json=body, headers=self.headers
                ) as response,
            ):
                await check(response)
                async for event in events(response):
                    yield event
        except aiohttp.ClientConnectorError as error:
            raise ConfigError(
                f"nobody answers at {self.url}; start a node: quietchoir serve"
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(
                f"the answer from {self.url} broke off ({error}); ask again"
            ) from error


async def check(response: aiohttp.ClientResponse) -> None:
    """Turn a refusal into an error."""
    if response.status == 200:
        return
    try:
        message = str((await response.json())["error"]["message"])
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        message = f"status {response.status}"
    raise (ConfigError if response.status in (401, 403) else EngineError)(
        f"the node refused: {message}"
    )


async def events(response: aiohttp.ClientResponse) -> AsyncGenerator[Event, None]:
    """Read an event stream to its end."""
    reason, usage = "stop", {"prompt_tokens": 0, "completion_tokens": 0}
    calls: dict[str, ToolCall] = {}  # by their ids
    thinks = False
    async for line in response.content:
        data = line.strip().removeprefix(b"data: ")
        if data == b"[DONE]":
            yield Finished(reason, usage["prompt_tokens"], usage["completion_tokens"])
            return
        if not data:
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise EngineError(str(chunk["error"]["message"]))
        usage = chunk.get("usage") or usage
        if "context" in chunk:
            yield from_context(chunk["context"])
        for choice in chunk["choices"]:
            reason = choice.get("stop_reason") or choice["finish_reason"] or reason
            for event in from_delta(choice["delta"], calls):
                thought = isinstance(event, Text) and event.thought
                if thought != thinks:  # the marks, which readers of an answer look for
                    thinks = thought
                    mark = f"{OPENING}\n" if thinks else f"\n{CLOSING}"
                    yield Text(mark, thought=True, mark=True)
                yield event
    raise EngineError("the answer broke off; is the node still running?")


def from_context(found: dict[str, Any]) -> LeftOut:
    """What the model was not shown."""
    return LeftOut(
        found["tokens"],
        found["shown_tokens"],
        tuple(found["left_out_turns"]),
        tuple(found["excerpted_turns"]),
        tuple(found["condensed_turns"]),
    )


def from_delta(delta: dict[str, Any], calls: dict[str, ToolCall]) -> list[Event]:
    """What one chunk adds; its calls are noted in `calls`."""
    found: list[Event] = [Text(delta["content"])] if delta.get("content") else []
    if thought := delta.get("reasoning_content"):
        found.append(Text(thought, thought=True))
    if (cited := delta.get("citations")) is not None:
        sources = tuple(map(source, delta.get("sources", ())))
        found.append(Cited(tuple(map(citation, cited)), sources))
    for one in delta.get("tool_calls", ()):
        call = ToolCall(
            one["function"]["name"], json.loads(one["function"]["arguments"]), one["id"]
        )
        calls[call.id] = call
        found.append(ToolCallEvent(call.id, call))
    for one in delta.get("approvals", ()):
        call = calls.get(one["tool_call_id"]) or ToolCall(one["name"])
        found.append(
            ApprovalEvent(
                one["id"],
                one["tool_call_id"],
                one["question"],
                call,
                one["effect"],
                one["timeout_s"],
            )
        )
    for one in delta.get("approved", ()):
        found.append(ApprovedEvent(one["id"], one["approved"], one["by"]))
    for one in delta.get("elicitations", ()):
        form = Form.of(one["plugin"], one["message"], one["requested_schema"])
        found.append(ElicitationEvent(one["id"], one["tool_call_id"], form, one["timeout_s"]))
    for one in delta.get("elicited", ()):
        found.append(ElicitedEvent(one["id"], one["action"], one["by"]))
    for one in delta.get("tool_results", ()):
        found.append(ToolResultEvent(one["tool_call_id"], ToolResult(one["content"], one["ok"])))
    if step := delta.get("step"):
        found.append(LoopStepEvent(step["number"], step["last"]))
    if listed := delta.get("tools_listed"):
        found.append(ToolsListedEvent(tuple(listed["names"]), listed["offered"]))
    return found


def citation(told: dict[str, Any]) -> Citation:
    """A passage, as the API tells it."""
    names = [field.name for field in fields(RetrievedPassage)]
    passage = RetrievedPassage(**{name: told[name] for name in names})
    return Citation(told["number"], told["collection"], passage)


def source(told: dict[str, Any]) -> SourceReport:
    """Who saw what, as the API tells it."""
    return SourceReport(**{field.name: told[field.name] for field in fields(SourceReport)})


def to_json(message: Message) -> dict[str, Any]:
    """As the API wants it."""
    calls = [
        {
            "id": call.id or f"call_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
        }
        for index, call in enumerate(message.calls)
    ]
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "tool":
        found |= {"tool_call_id": message.tool_call_id, "name": message.name}
    return found | ({"tool_calls": calls} if calls else {})
