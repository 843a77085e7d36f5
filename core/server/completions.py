"""Answers in the shapes of OpenAI's completions, of chats and of texts, whole and as server-sent
events.

Knows JSON shapes and the event stream's framing. Knows nothing of where events come from.
Always: a stream that ends well ends with `[DONE]`; one that breaks ends with an `error` event and
without it.
"""

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from ..assistant.citations import LIBRARY, Cited
from ..assistant.context import LeftOut
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
from ..assistant.thoughts import unmarked
from ..engine.sampling.logprobs import Logprob, TokenLogprobs
from ..errors import QuietchoirError
from . import errors
from .answering import Collected, PendingAnswer, merged

Endpoint = Literal["chat", "text"]


@dataclass(slots=True)
class Shapes:
    """One answer's identity, and everything that is written under it; of several answers to one
    question, each has its index and all else alike.
    """

    endpoint: Endpoint
    model: str
    tells: bool = False  # logprobs stand beside the text
    id: str = field(default_factory=lambda: f"qc-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    index: int = 0
    said: int = 0  # characters told so far, for text_offset
    calls: int = 0  # told so far, for their index

    def envelope(self, choice: Mapping[str, Any] | None, *, streamed: bool) -> dict[str, Any]:
        """What every body and chunk carries."""
        kind = "chat.completion" if self.endpoint == "chat" else "text_completion"
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if streamed and self.endpoint == "chat" else kind,
            "created": self.created,
            "model": self.model,
            "choices": [] if choice is None else [{"index": self.index, **choice}],
        }

    def chunk(self, event: Event) -> dict[str, Any]:
        """One event of a stream."""
        if self.endpoint == "text":
            text, told = (
                (event.text, self.logprobs(event.logprobs))
                if isinstance(event, Text)
                else ("", None)
            )
            ended = end_of(event) if isinstance(event, Finished) else {"finish_reason": None}
            return self.envelope({"text": text, **ended, "logprobs": told}, streamed=True)
        ended, beside = {"finish_reason": None}, {}
        match event:
            case LeftOut():
                empty = self.envelope({"delta": {}, "finish_reason": None}, streamed=True)
                return empty | {"context": left_out(event)}
            case Text():
                delta: dict[str, Any] = (
                    {"reasoning_content": unmarked(event)}
                    if event.thought
                    else {"content": event.text}
                )
                beside = {"logprobs": self.logprobs(event.logprobs)} if self.tells else {}
            case Cited():
                delta = {"citations": citations_of(event), **sources_of(event)}
            case ToolCallEvent():
                delta = {"tool_calls": [{"index": self.calls, **called(event)}]}
                self.calls += 1
            case ToolResultEvent():
                delta = {"tool_results": [answered(event)]}
            case ApprovalEvent():
                delta = {"approvals": [asked(event)]}
            case ApprovedEvent():
                delta = {"approved": [dataclasses.asdict(event)]}
            case ElicitationEvent():
                delta = {"elicitations": [elicitation(event)]}
            case ElicitedEvent():
                delta = {"elicited": [dataclasses.asdict(event)]}
            case LoopStepEvent() | ToolsListedEvent():
                name = "step" if isinstance(event, LoopStepEvent) else "tools_listed"
                delta = {name: dataclasses.asdict(event)}
            case Finished():
                delta, ended = {}, end_of(event)
        return self.envelope({"delta": delta, **ended, **beside}, streamed=True)

    def logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        """Log-probabilities in the endpoint's shape; None where nobody asked."""
        if not self.tells:
            return None
        if self.endpoint == "chat":
            return {"content": spelled_out(found)}
        starts = [self.said]
        for each in found:
            starts.append(starts[-1] + len(each.chosen.text.decode("utf-8", "ignore")))
        self.said = starts.pop()
        return {
            "tokens": [letters(each.chosen) for each in found],
            "token_logprobs": [each.chosen.logprob for each in found],
            "top_logprobs": [
                {letters(token): token.logprob for token in each.top} for each in found
            ],
            "text_offset": starts,
        }

    def first(self) -> dict[str, Any]:
        """The chunk that names the role, sent before anything is generated."""
        return self.envelope(
            {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}, streamed=True
        )

    def choice(self, found: Collected) -> dict[str, Any]:
        """A whole answer."""
        if self.endpoint == "text":
            told = self.logprobs(found.logprobs)
            choice = {"text": found.text, **end_of(found.finished), "logprobs": told}
            return {"index": self.index, **choice}
        calls = [called(event) for event in found.calls]
        thought = {"reasoning_content": found.thought} if found.thought else {}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": found.text or None if calls else found.text,
            **thought,
        }
        if calls:
            message["tool_calls"] = calls
        if found.results:
            message["tool_results"] = [answered(event) for event in found.results]
        if found.cited and found.cited.citations:
            message["citations"] = citations_of(found.cited)
        if found.cited:
            message |= sources_of(found.cited)
        if found.approvals:
            message["approvals"] = [decided(*one) for one in found.approvals.values()]
        if found.elicitations:
            message["elicitations"] = [filled_in(*one) for one in found.elicitations.values()]
        beside = {"logprobs": self.logprobs(found.logprobs)} if self.tells else {}
        return {"index": self.index, "message": message, **end_of(found.finished), **beside}


def whole(several: Sequence[Shapes], found: Sequence[Collected]) -> dict[str, Any]:
    """The body of all answers to one question."""
    choices = [shapes.choice(one) for shapes, one in zip(several, found, strict=True)]
    body = several[0].envelope(None, streamed=False) | {"choices": choices}
    body["usage"] = usage([one.finished for one in found])
    if found[0].left_out is not None:
        body["context"] = left_out(found[0].left_out)
    return body


def called(event: ToolCallEvent) -> dict[str, Any]:
    """A tool call, as OpenAI writes it."""
    arguments = json.dumps(dict(event.call.arguments), ensure_ascii=False)
    return {
        "id": event.id,
        "type": "function",
        "function": {"name": event.call.name, "arguments": arguments},
    }


def answered(event: ToolResultEvent) -> dict[str, Any]:
    """What the node's own tool answered: our addition, which OpenAI's clients skip."""
    return {"tool_call_id": event.id, "content": event.result.text, "ok": event.result.ok}


def asked(event: ApprovalEvent) -> dict[str, Any]:
    """A call that waits for the owner's word: our addition."""
    return {
        "id": event.id,
        "tool_call_id": event.tool_call_id,
        "question": event.question,
        "name": event.call.name,
        "effect": event.effect,
        "timeout_s": event.timeout_s,
    }


def decided(event: ApprovalEvent, approved: ApprovedEvent | None) -> dict[str, Any]:
    """A call, and the owner's word on it."""
    word = {} if approved is None else {"approved": approved.approved, "by": approved.by}
    return asked(event) | word


def elicitation(event: ElicitationEvent) -> dict[str, Any]:
    """A plugin's form that waits for the owner: our addition, its fields as MCP writes them."""
    return {
        "id": event.id,
        "tool_call_id": event.tool_call_id,
        "plugin": event.form.plugin,
        "message": event.form.message,
        "requested_schema": event.form.schema,
        "timeout_s": event.timeout_s,
    }


def filled_in(event: ElicitationEvent, elicited: ElicitedEvent | None) -> dict[str, Any]:
    """A form, and what became of it; not what was filled in."""
    return elicitation(event) | (
        {} if elicited is None else {"action": elicited.action, "by": elicited.by}
    )


def spelled_out(found: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """Tokens, each beside the likeliest of its place."""
    return [spelled(each.chosen) | {"top_logprobs": [*map(spelled, each.top)]} for each in found]


def end_of(event: Finished) -> dict[str, str | None]:
    """Why an answer ended. OpenAI's API has no word for a loop: its clients read that the answer is
    not whole, and `stop_reason` (ours, a field that vLLM has too) says why.
    """
    if event.reason == "repetition":
        return {"finish_reason": "length", "stop_reason": event.reason}
    return {"finish_reason": event.reason}


def left_out(event: LeftOut) -> dict[str, Any]:
    """What of the conversation the model was not shown: our addition, which OpenAI's clients skip.
    Turns are counted from one; one begins with each user's message.
    """
    return {
        "tokens": event.tokens,
        "shown_tokens": event.shown_tokens,
        "left_out_turns": list(event.turns),
        "excerpted_turns": list(event.excerpted_turns),
        "condensed_turns": list(event.condensed_turns),
    }


def citations_of(event: Cited) -> list[dict[str, Any]]:
    """The passages that an answer is given: our addition, like `tool_results`."""
    return [
        dataclasses.asdict(one.passage)
        | {
            "number": one.number,
            "collection": one.collection,
            "place": one.place,
            "url": ""  # a library's passage is whole here: nothing more of it is on this machine
            if one.collection.startswith(LIBRARY)
            else f"/api/collections/{one.collection}/passages/{one.passage.id}",
        }
        for one in event.citations
    ]


def sources_of(event: Cited) -> dict[str, Any]:
    """Where another machine was asked: who saw what of the question; ours too."""
    told = [dataclasses.asdict(one) | {"told": one.told()} for one in event.sources]
    return {"sources": told} if told else {}


def letters(token: Logprob) -> str:
    """A token as text; bytes that are no whole character become U+FFFD."""
    return token.text.decode("utf-8", "replace")


def spelled(token: Logprob) -> dict[str, Any]:
    """A token as the chat endpoint writes it."""
    return {"token": letters(token), "logprob": token.logprob, "bytes": list(token.text)}


def usage(ends: Sequence[Finished]) -> dict[str, int]:
    """Token counts, of all answers to one prompt."""
    prompt, said = ends[0].prompt_tokens, sum(end.completion_tokens for end in ends)
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def frame(data: Mapping[str, Any]) -> bytes:
    """One server-sent event; JSON holds no line break, so one `data` line is enough."""
    return (
        b"data: "
        + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        + b"\n\n"
    )


def shapes_of(endpoint: Endpoint, answer: PendingAnswer) -> Sequence[Shapes]:
    """A new identity, once for each of the answers."""
    first = Shapes(endpoint, answer.model, tells=answer.tells)
    return [dataclasses.replace(first, index=index) for index in range(len(answer.choices))]


async def stream(
    request: web.Request, endpoint: Endpoint, answer: PendingAnswer, *, include_usage: bool
) -> web.StreamResponse:
    """Send events as they come.

    Headers go out with the first event, so that a refusal before it still has its status code.
    """
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
    )
    several = shapes_of(endpoint, answer)
    ends: list[Finished] = []
    try:
        async with merged(answer.choices) as events:
            async for index, event in events:
                if not response.prepared:
                    await response.prepare(request)
                    if endpoint == "chat":
                        await response.write(b"".join(frame(one.first()) for one in several))
                await response.write(frame(several[index].chunk(event)))
                if isinstance(event, Finished):
                    ends.append(event)
        if include_usage:
            last = several[0].envelope(None, streamed=True) | {"usage": usage(ends)}
            await response.write(frame(last))
    except QuietchoirError as error:
        if not response.prepared:
            raise
        await response.write(frame(errors.event(error)))
    else:
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response
