"""OpenAI's /v1/responses: its body, its items, its events.

Knows the protocol, whole and as a stream. Knows nothing of engines; an answer comes from
`answering.py`.
Always: nothing is kept here, so what refers to an earlier response is refused; a stream ends with
`response.completed`, `response.incomplete` or `response.failed`, whose response is the body that
the same request without `stream` has.

Calls of the client's own tools are `function_call` items. Those that the node itself carries out
are `mcp_call` items with what they brought, as OpenAI tells of tools that its side calls; a
question to the owner is an `mcp_approval_request`.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from ..assistant.citations import Cited
from ..assistant.context import LeftOut, Message
from ..assistant.events import (
    ApprovalEvent,
    ApprovedEvent,
    ElicitationEvent,
    ElicitedEvent,
    Event,
    Finished,
    Text,
    ToolCallEvent,
    ToolResultEvent,
)
from ..assistant.thoughts import unmarked
from ..assistant.tools import ToolInfo
from ..engine.sampling.params import MAX_LOGPROBS, Constraint
from ..errors import QuietchoirError
from . import errors, forms, messages, requests
from .answering import IGNORED, Answering, PendingAnswer, merged
from .completions import citations_of, elicitation, frame, left_out, sources_of, spelled_out
from .errors import BadRequest, parse_json
from .openapi import OBJECT, TEXT, WHOLE, described, many, shaped
from .paths import spelled
from .requests import INDIFFERENT, MOST_TOKENS, OURS, SAMPLING, Body
from .schemas import (
    Reader,
    Record,
    absent,
    anything,
    either,
    flag,
    listed,
    mapping,
    named,
    number,
    only,
    tagged,
    text,
    typed,
)

NOTHING_KEPT = "this node keeps no responses; send the whole conversation as input"
LOGPROBS = "message.output_text.logprobs"
PARTS = messages.parts(
    {
        "input_text": Record(
            {"type": text, "text": text}, ["text"], {"prompt_cache_breakpoint": anything}
        ),
        "output_text": Record(
            {"type": text, "text": text},
            ["text"],
            {"annotations": listed(anything), "logprobs": listed(anything)},
        ),
        "refusal": Record({"type": text, "refusal": text}, ["refusal"]),
    }
)
SENT: dict[str, Reader] = {"id": text, "status": text}  # what items of answers carry besides
ITEM = tagged(
    "type",
    {
        "message": Record(
            {
                "type": text,
                "role": only("user", "assistant", "system", "developer"),
                "content": PARTS,
            },
            ["role", "content"],
            SENT | {"phase": text},
        ),
        "function_call": Record(
            {"type": text, "call_id": named, "name": named, "arguments": text},
            ["call_id", "name"],
            SENT | {"caller": mapping, "namespace": text, "async": flag},
        ),
        "function_call_output": Record(
            {"type": text, "call_id": named, "output": PARTS, "name": text},
            ["call_id", "output"],
            SENT | {"caller": mapping, "namespace": text},
        ),
        "mcp_call": Record(
            {
                "type": text,
                "id": named,
                "name": named,
                "arguments": text,
                "output": text,
                "error": anything,
            },
            ["id", "name"],
            {"status": text, "server_label": text, "approval_request_id": text},
        ),
        # what was thought before is not shown to a model again
        "reasoning": Record(
            {"type": text},
            (),
            SENT
            | {"summary": listed(anything), "content": listed(anything)}
            | {"encrypted_content": anything},
        ),
        "mcp_approval_request": Record(
            {"type": text},
            (),
            dict.fromkeys(("id", "name", "arguments", "server_label", "question", "effect"), text)
            | {"timeout_s": anything, "approved": flag, "by": text},
        ),
    },
)


def typed_item(value: Any) -> Any:
    """An item that says what it is, as a message need not."""
    untyped = isinstance(value, dict) and "type" not in value
    return {"type": "message"} | value if untyped else value


@typed(
    lambda value, where: ITEM.ignored(typed_item(value), where),
    anyOf=[ITEM.schema, {"type": "object", "required": ["role", "content"]}],
)
def item(value: Any, where: str) -> Any:
    """One of the input."""
    return ITEM(typed_item(value), where)


FORMAT = tagged(
    "type",
    {
        "text": Record({"type": text}),
        "json_object": Record({"type": text}),
        "json_schema": Record(
            {"type": text, "schema": mapping},
            ["schema"],
            {"name": text, "description": text, "strict": flag},
        ),
        "regex": Record({"type": text, "regex": named}, ["regex"]),
        "lark": Record({"type": text, "lark": named}, ["lark"]),
    },
)
TOOL = Record(
    {"type": only("function"), "name": named, "description": text, "parameters": mapping},
    ["type", "name"],
    {"strict": flag, "async": only(False), "defer_loading": only(False), "output_schema": mapping},
)
TOOLS = listed(TOOL)
CHOICE = either(
    only("auto", "none", "required"),
    Record({"type": only("function"), "name": named}, ["type", "name"]),
)
BODY = Record(
    {
        key: read
        for key, read in SAMPLING.fields.items()
        if key not in ("max_tokens", "response_format")
    }
    | OURS
    | {
        "model": text,
        "stream": flag,
        "stream_options": Record({}, harmless={"include_obfuscation": flag}),
        "input": either(text, listed(item, least=1)),
        "instructions": text,
        "max_output_tokens": number(int, 1, MOST_TOKENS),
        "tools": TOOLS,
        "tool_choice": CHOICE,
        "parallel_tool_calls": flag,
        "text": Record({"format": FORMAT}, harmless={"verbosity": text}),
        "top_logprobs": number(int, 0, MAX_LOGPROBS),
        "include": listed(text),
    },
    ["input"],
    {key: INDIFFERENT[key] for key in INDIFFERENT if key not in ("reasoning_effort", "verbosity")}
    | {
        "reasoning": mapping,
        "max_tool_calls": number(int, 1, 1 << 20),  # of tools of OpenAI's own
        "background": only(False),
        "truncation": only("auto"),  # a long conversation is fitted in any case
        "previous_response_id": absent(NOTHING_KEPT),
        "conversation": absent(NOTHING_KEPT),
        "prompt": absent("this node has no stored prompts; send instructions and input"),
    },
)


def read(raw: bytes) -> tuple[Body, Mapping[str, Any]]:
    """Decode a body; beside what is asked, what the response tells of it.

    Raises:
        BadRequest: as `requests.chat`.
    """
    written = parse_json(raw)
    found = BODY(written, "")
    wanted = "top_logprobs" in found or LOGPROBS in found.get("include", ())
    asked = dict(found) | {
        "response_format": constraint_of(found.get("text", {}).get("format", {"type": "text"})),
        "tool_choice": choice_of(found.get("tool_choice", "auto")),
    }
    if "max_output_tokens" in found:
        asked["max_tokens"] = found["max_output_tokens"]
    if "tools" in found:
        asked["tools"] = forms.distinct([tool_of(one) for one in found["tools"]], "tools")
    logprobs = found.get("top_logprobs", 0) if wanted else None
    turns = conversation(found["input"], found.get("instructions", ""))
    body = Body(
        ask=requests.ask_of(asked, turns, logprobs=logprobs),
        talk=requests.TalkSampling(asked, logprobs),
        model=found.get("model"),
        stream=found.get("stream", False),
        include_usage=True,
        source=requests.kept_names(found).get("source", "api"),
        ignored=tuple(BODY.ignored(written)),
    )
    return body, told_of(found, written)


def told_of(found: Mapping[str, Any], written: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a response says of its request."""
    return {
        "instructions": found.get("instructions"),
        "max_output_tokens": found.get("max_output_tokens"),
        "metadata": found.get("metadata", {}),
        "parallel_tool_calls": found.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "store": False,
        "temperature": found.get("temperature"),
        "text": written.get("text") or {"format": {"type": "text"}},
        "tool_choice": found.get("tool_choice", "auto"),
        "tools": [*found.get("tools", ())],
        "top_p": found.get("top_p"),
        "truncation": "auto",
    }


def constraint_of(form: Mapping[str, Any]) -> Constraint | None:
    """`text.format`: as `response_format` of a chat, with the schema one level higher."""
    if form["type"] == "json_schema":
        return forms.json_schema(form["schema"])
    return forms.response_format(dict(form), "text.format")


def tool_of(one: Mapping[str, Any]) -> ToolInfo:
    """A tool of the client's own."""
    return ToolInfo(one["name"], one.get("description", ""), one.get("parameters", {}))


def choice_of(found: Any) -> dict[str, Any]:
    """The fields of an ask that a tool choice decides."""
    return forms.chosen(found["name"] if isinstance(found, dict) else None, found)


def conversation(given: str | Sequence[Mapping[str, Any]], instructions: str) -> list[Message]:
    """The items as messages, oldest first; calls stand in the message of the assistant that they
    follow.

    Raises:
        BadRequest: the last one is an answer or a call, which leaves nothing to answer.
    """
    items = (
        [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
    )
    head = [{"role": "system", "content": instructions}] if instructions else []
    said: list[dict[str, Any]] = list(head)
    for one in items:
        if one["type"] == "message":
            said.append({"role": one["role"], "content": one["content"]})
        elif one["type"] == "function_call_output":
            said.append(
                {
                    "role": "tool",
                    "content": one["output"],
                    "tool_call_id": one["call_id"],
                    "name": one.get("name", ""),
                }
            )
        elif one["type"] not in ("mcp_approval_request", "reasoning"):
            add_call(said, one)
    last = said[-1]["role"] if said else ""
    if last not in ("user", "tool", "system", "developer"):
        raise BadRequest(
            "input ends with the assistant's own words or call; end it with a user's message or "
            "the call's output",
            "input",
        )
    names = messages.names_of(said)
    return [message for one in said for message in messages.expanded(one, names)]


def add_call(said: list[dict[str, Any]], one: Mapping[str, Any]) -> None:
    """A past call, of either side; with what it brought, where the node carried it out."""
    own = one["type"] == "mcp_call"
    id = one["id"] if own else one["call_id"]
    call = {"id": id, "function": {"name": one["name"], "arguments": one.get("arguments", "")}}
    last = said[-1] if said else {}
    if last.get("role") != "assistant" or "tool_results" in last or own:
        last = {"role": "assistant", "content": ""}
        said.append(last)
    last["tool_calls"] = [*last.get("tool_calls", ()), call]
    if own:
        last["tool_results"] = [{"tool_call_id": id, "content": brought_by(one)}]


def brought_by(one: Mapping[str, Any]) -> str:
    """What a past call of the node's own brought: its output, and why there is no other."""
    return "\n".join(filter(None, (one.get("output"), complaint(one.get("error")))))


def complaint(error: Any) -> str:
    """An error's words; of one that says more than words, all of it."""
    match error:
        case None:
            return ""
        case str():
            return error
        case {"content": [*parts], **more} if more.keys() <= {"type"} and all(map(is_text, parts)):
            return "".join(part["text"] for part in parts)
    return json.dumps(error, ensure_ascii=False)


def is_text(part: Any) -> bool:
    """Whether a part of an error is words and nothing else."""
    match part:
        case {"text": str(), **more}:
            return more.keys() <= {"type"}
    return False


@dataclass(slots=True)
class Response:
    """One response on its way: its items so far, and the events that told of them."""

    model: str
    told: Mapping[str, Any]  # of its request
    tells: bool  # logprobs stand beside the text
    calls_back: bool  # calls are the client's to carry out
    id: str = field(default_factory=lambda: new_id("resp"))
    created_at: int = field(default_factory=lambda: int(time.time()))
    status: str = "in_progress"
    output: list[dict[str, Any]] = field(default_factory=list)
    beside: dict[str, Any] = field(default_factory=dict)  # how it ended, and our additions
    sequence: int = 0
    text: str = ""  # of the message or thought that is open
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # the same
    open: Literal["", "message", "reasoning"] = ""  # what the last item is, where it goes on

    @property
    def body(self) -> dict[str, Any]:
        """The response object."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": self.status,
            "model": self.model,
            "output": self.output,
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **self.told,
            **self.beside,
        }

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """One event of the stream."""
        self.sequence += 1
        return {"type": kind, "sequence_number": self.sequence - 1, **fields}

    def begin(self) -> Iterator[dict[str, Any]]:
        """Before anything is generated."""
        yield self.event("response.created", response=self.body)
        yield self.event("response.in_progress", response=self.body)

    def tell(self, event: Event) -> Iterator[dict[str, Any]]:
        """What one event of the answer adds."""
        if not isinstance(event, Text):
            yield from self.close()
        match event:
            case Text():
                yield from self.think(event) if event.thought else self.say(event)
            case ToolCallEvent():
                yield from self.call(event)
            case ToolResultEvent():
                yield from self.result(event)
            case ApprovalEvent():
                yield from self.whole_item(
                    {
                        "type": "mcp_approval_request",
                        "id": event.id,
                        "name": event.call.name,
                        "arguments": arguments_of(event),
                        "server_label": "quietchoir",
                        "question": event.question,  # this and the rest are ours
                        "effect": event.effect,
                        "timeout_s": event.timeout_s,
                    }
                )
            case ApprovedEvent():
                asked = next(one for one in self.output if one["id"] == event.id)
                asked |= {"approved": event.approved, "by": event.by}
            case ElicitationEvent():  # OpenAI's protocol has no item for a form
                self.beside.setdefault("elicitations", []).append(elicitation(event))
            case ElicitedEvent():
                form = next(one for one in self.beside["elicitations"] if one["id"] == event.id)
                form |= {"action": event.action, "by": event.by}
            case Cited():
                self.beside |= {"citations": citations_of(event), **sources_of(event)}
            case LeftOut():
                self.beside["context"] = left_out(event)
            case Finished():
                yield self.finish(event)

    def say(self, event: Text) -> Iterator[dict[str, Any]]:
        """A piece of a message, which it may begin; blanks between two of a chat are none."""
        if self.open != "message":
            if self.output and not event.text.strip():
                return
            yield from self.close()
            self.open, self.text, self.logprobs = "message", "", []
            opened = {"type": "message", "id": new_id("msg"), "role": "assistant"}
            self.output.append(opened | {"status": "in_progress", "content": []})
            yield self.event("response.output_item.added", **self.last)
            yield self.event("response.content_part.added", part=self.part(), **self.place)
        told = spelled_out(event.logprobs) if self.tells else []
        self.text += event.text
        self.logprobs += told
        yield self.event(
            "response.output_text.delta", delta=event.text, logprobs=told, **self.place
        )

    def think(self, event: Text) -> Iterator[dict[str, Any]]:
        """A piece of what is thought, which it may begin."""
        if self.open != "reasoning":
            yield from self.close()
            self.open, self.text = "reasoning", ""
            opened = {"type": "reasoning", "id": new_id("rs"), "summary": [], "content": []}
            self.output.append(opened | {"status": "in_progress"})
            yield self.event("response.output_item.added", **self.last)
        thought = unmarked(event)
        self.text += thought
        yield self.event("response.reasoning_text.delta", delta=thought, **self.place)

    def close(self) -> Iterator[dict[str, Any]]:
        """The message or thought that is open, if there is one, is whole."""
        kind, self.open = self.open, ""
        if not kind:
            return
        if kind == "reasoning":
            part = {"type": "reasoning_text", "text": self.text}
            yield self.event("response.reasoning_text.done", text=self.text, **self.place)
            self.output[-1] |= {"status": "completed", "content": [part]}
            yield self.event("response.output_item.done", **self.last)
            return
        part = self.part()
        told = {"text": self.text, "logprobs": self.logprobs}
        yield self.event("response.output_text.done", **told, **self.place)
        yield self.event("response.content_part.done", part=part, **self.place)
        self.output[-1] |= {"status": "completed", "content": [part]}
        yield self.event("response.output_item.done", **self.last)

    def call(self, event: ToolCallEvent) -> Iterator[dict[str, Any]]:
        """A call: the client's to carry out, or the node's."""
        kind = "function_call" if self.calls_back else "mcp_call"
        mine = {"call_id": event.id} if self.calls_back else {"server_label": event.plugin_id}
        id = new_id("fc") if self.calls_back else event.id
        written = arguments_of(event)
        named_ = {"type": kind, "id": id, "name": event.call.name, **mine}
        self.output.append(named_ | {"arguments": "", "status": "in_progress"})
        yield self.event("response.output_item.added", **self.last)
        if not self.calls_back:
            yield self.event("response.mcp_call.in_progress", **self.item_place)
        begun = f"response.{kind}_arguments"
        self.output[-1] = self.output[-1] | {"arguments": written}
        yield self.event(f"{begun}.delta", delta=written, **self.item_place)
        told = {"name": event.call.name} if self.calls_back else {}
        yield self.event(f"{begun}.done", arguments=written, **told, **self.item_place)
        if self.calls_back:
            self.output[-1] = self.output[-1] | {"status": "completed"}
            yield self.event("response.output_item.done", **self.last)

    def result(self, event: ToolResultEvent) -> Iterator[dict[str, Any]]:
        """What a call of the node's own brought."""
        index = next(at for at, one in enumerate(self.output) if one["id"] == event.id)
        said, kind = event.result, "completed" if event.result.ok else "failed"
        brought: dict[str, Any] = {"output": said.text, "error": None}
        if not said.ok:
            failure = {
                "type": "tool_execution_error",
                "content": [{"type": "text", "text": said.text}],
            }
            brought = {"output": None, "error": failure}
        self.output[index] = self.output[index] | {"status": kind, **brought}
        place = {"output_index": index, "item_id": event.id}
        yield self.event(f"response.mcp_call.{kind}", **place)
        yield self.event("response.output_item.done", output_index=index, item=self.output[index])

    def whole_item(self, one: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """An item that comes at once."""
        self.output.append(one)
        yield self.event("response.output_item.added", **self.last)
        yield self.event("response.output_item.done", **self.last)

    def finish(self, end: Finished) -> dict[str, Any]:
        """The last event of an answer that ended by itself."""
        whole = end.reason in ("stop", "tool_calls")
        self.status = "completed" if whole else "incomplete"
        self.beside["usage"] = {
            "input_tokens": end.prompt_tokens,
            # both are of a bill that this node does not write
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": end.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": end.prompt_tokens + end.completion_tokens,
        }
        if not whole:
            self.beside["incomplete_details"] = {"reason": "max_output_tokens"}
            if self.output and self.output[-1]["type"] == "message":
                self.output[-1]["status"] = "incomplete"
        if end.reason == "repetition":
            self.beside["stop_reason"] = end.reason  # ours, as in a chat
        return self.event(f"response.{self.status}", response=self.body)

    def fail(self, error: Exception) -> dict[str, Any]:
        """The last event of one that broke."""
        said = errors.describe(error)[1]
        self.status = "failed"
        self.beside["error"] = {"code": said["code"] or said["type"], "message": said["message"]}
        return self.event("response.failed", response=self.body)

    def part(self) -> dict[str, Any]:
        """The text of the message that is open."""
        told = {"logprobs": self.logprobs} if self.tells else {}
        return {"type": "output_text", "text": self.text, "annotations": [], **told}

    @property
    def item_place(self) -> dict[str, Any]:
        """Where the last item stands."""
        return {"output_index": len(self.output) - 1, "item_id": self.output[-1]["id"]}

    @property
    def place(self) -> dict[str, Any]:
        """Where its text stands."""
        return self.item_place | {"content_index": 0}

    @property
    def last(self) -> dict[str, Any]:
        """The last item, as it is now."""
        return {"output_index": len(self.output) - 1, "item": dict(self.output[-1])}


RESPONSE = shaped(
    id=TEXT, object=TEXT, created_at=WHOLE, status=TEXT, model=TEXT, output=many(OBJECT)
)


class ResponsesApi:
    """The handlers."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.post(spelled("responses"), self.create),
            web.route("*", spelled("responses/{rest:.+}"), self.elsewhere),
        ]

    @described(RESPONSE, BODY, streams="text/event-stream")
    async def create(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        body, told = read(await request.read())
        request[IGNORED] = body.ignored
        async with self.answering.chat(body) as answer:
            return await self.send(request, body, told, answer)

    async def send(
        self, request: web.Request, body: Body, told: Mapping[str, Any], answer: PendingAnswer
    ) -> web.StreamResponse:
        """Send an answer the way the client wants it."""
        response = Response(
            answer.model, told, answer.tells, calls_back=body.ask.caller_tools is not None
        )
        if body.stream:
            return await stream(request, response, answer)
        async with merged(answer.choices) as events:
            async for _, event in events:
                for _ in response.tell(event):
                    pass
        return web.json_response(response.body)

    async def elsewhere(self, _request: web.Request) -> web.Response:
        """An earlier response."""
        error = errors.shape(NOTHING_KEPT, "invalid_request_error", code="not_here")
        return web.json_response({"error": error}, status=404)


async def stream(
    request: web.Request, response: Response, answer: PendingAnswer
) -> web.StreamResponse:
    """Send events as they come; a refusal before the first one still has its status code."""
    sent = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
    )
    try:
        async with merged(answer.choices) as events:
            async for _, event in events:
                if not sent.prepared:
                    await sent.prepare(request)
                    await write(sent, response.begin())
                await write(sent, response.tell(event))
    except QuietchoirError as error:
        if not sent.prepared:
            raise
        await write(sent, iter([response.fail(error)]))
    await sent.write_eof()
    return sent


async def write(sent: web.StreamResponse, events: Iterator[dict[str, Any]]) -> None:
    """Events as they stand in this protocol's streams: each by its name."""
    framed = b"".join(b"event: " + one["type"].encode() + b"\n" + frame(one) for one in events)
    if framed:
        await sent.write(framed)


def arguments_of(event: ToolCallEvent | ApprovalEvent) -> str:
    """A call's arguments as JSON."""
    return json.dumps(dict(event.call.arguments), ensure_ascii=False)


def new_id(kind: str) -> str:
    """As this protocol names its things."""
    return f"{kind}_{secrets.token_hex(16)}"
