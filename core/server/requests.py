"""Bodies of OpenAI's API, decoded once and then trusted.

Knows fields, types and ranges. Knows nothing of engines, adapters or sockets.
Always: a field that would change the answer and is not supported is refused, never ignored.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..assistant.assistant import Ask
from ..assistant.context import Message
from ..engine.request import MAX_LOGPROBS
from ..toolcall import ToolCall
from . import forms
from .refusals import BadRequest, parse_json

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
DEFAULT_TOKENS = 256
MAX_STOPS = 4
SHARED = {"model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"}
SHARED |= {"presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "response_format"}
SHARED |= {"speculate"}  # ours: whether tokens are guessed ahead; if left out, the engine decides
CHAT = SHARED | {"messages", "max_completion_tokens", "tools", "tool_choice", "top_logprobs"}
COMPLETION = SHARED | {"prompt"}
# Accepted and not read: they say nothing about the answer's text.
INDIFFERENT = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
# Accepted only with the value that changes nothing.
NEUTRAL: Mapping[str, Sequence[object]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What both endpoints read."""

    ask: Ask
    model: str | None  # as the client named it
    stream: bool
    include_usage: bool
    prompt: str = ""  # /v1/completions alone


def chat(raw: bytes) -> Body:
    """Decode a body of /v1/chat/completions.

    Raises:
        BadRequest: not JSON, or a field that is unknown, ill-typed, out of range or unsupported.
    """
    body = checked(raw, CHAT)
    ask = Ask(
        messages=messages(body.get("messages")),
        caller_tools=forms.tools(take(body, "tools", list, None)),
        logprobs=chat_logprobs(body),
        **forms.tool_choice(body.get("tool_choice")),
        **sampling(body),
    )
    return Body(ask=ask, **shared(body))


def completion(raw: bytes) -> Body:
    """Decode a body of /v1/completions.

    Raises:
        BadRequest: as `chat`.
    """
    body = checked(raw, COMPLETION)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise BadRequest("prompt must be one text that is not empty", "prompt")
    logprobs = None if "logprobs" not in body else number(body, "logprobs", int, 0, 0, MAX_LOGPROBS)
    return Body(ask=Ask(messages=(), logprobs=logprobs, **sampling(body)), prompt=prompt, **shared(body))


def chat_logprobs(body: Mapping[str, Any]) -> int | None:
    """How many of the likeliest tokens to tell; None for nothing at all."""
    if take(body, "logprobs", bool, False):
        return int(number(body, "top_logprobs", int, 0, 0, MAX_LOGPROBS))
    if body.get("top_logprobs"):
        raise BadRequest("top_logprobs needs logprobs = true; set it or leave both out", "top_logprobs")
    return None


def checked(raw: bytes, known: set[str]) -> dict[str, Any]:
    """The body without nulls, every field one that this endpoint knows."""
    body = {name: value for name, value in parse_json(raw).items() if value is not None}
    for name, value in body.items():
        if name in NEUTRAL:
            if value not in NEUTRAL[name]:
                raise BadRequest(f"{name} = {value!r} is not supported, only {NEUTRAL[name][0]!r}; leave it out", name)
        elif name not in known | INDIFFERENT:
            near = difflib.get_close_matches(name, known, n=1)
            raise BadRequest(f"{name} is unknown here; " + (f"did you mean {near[0]}?" if near else "leave it out"), name)
    return body


def shared(body: Mapping[str, Any]) -> dict[str, Any]:
    """model, stream and stream_options."""
    options = take(body, "stream_options", dict, {})
    return {
        "model": take(body, "model", str, None),
        "stream": take(body, "stream", bool, False),
        "include_usage": take(options, "include_usage", bool, False),
    }


def sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that steer generation. Greedy unless asked otherwise: a tool call wants the likeliest words."""
    tokens_name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    return {
        "max_tokens": number(body, tokens_name, int, DEFAULT_TOKENS, 1, 1 << 20),
        "temperature": number(body, "temperature", float, 0.0, 0.0, 2.0),
        "top_p": number(body, "top_p", float, 1.0, 1e-6, 1.0),
        "top_k": number(body, "top_k", int, 0, 0, 1 << 20),
        "seed": None if "seed" not in body else number(body, "seed", int, 0, -(1 << 63), (1 << 63) - 1) & ((1 << 63) - 1),
        "stop": stops(body.get("stop")),
        "min_p": number(body, "min_p", float, 0.0, 0.0, 1.0),
        "presence_penalty": number(body, "presence_penalty", float, 0.0, -2.0, 2.0),
        "frequency_penalty": number(body, "frequency_penalty", float, 0.0, -2.0, 2.0),
        "repetition_penalty": number(body, "repetition_penalty", float, 1.0, 0.01, 10.0),
        "logit_bias": forms.logit_bias(take(body, "logit_bias", dict, {})),
        "constraint": forms.response_format(body.get("response_format")),
        "speculate": take(body, "speculate", bool, None),
    }


def take(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """One optional field of one JSON type."""
    if name not in body:
        return default
    if type(body[name]) is not kind:
        raise BadRequest(f"{name} is a {type(body[name]).__name__}, expected a {kind.__name__}", name)
    return body[name]


def number(body: Mapping[str, Any], name: str, kind: type, default: float, low: float, high: float) -> Any:
    """One optional number within [low, high]; a whole number is a float too, true is neither."""
    value: Any = body.get(name, default)
    if type(value) not in ((int, float) if kind is float else (int,)):
        raise BadRequest(f"{name} is {value!r}, expected {'a whole number' if kind is int else 'a number'}", name)
    if not low <= value <= high:
        raise BadRequest(f"{name} is {value!r}, expected {low:g} to {high:g}", name)
    return kind(value)


def stops(value: object) -> tuple[str, ...]:
    """Texts that end the answer."""
    found = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(found, list) or len(found) > MAX_STOPS or not all(isinstance(text, str) and text for text in found):
        raise BadRequest(f"stop must be a text or up to {MAX_STOPS} of them, none empty", "stop")
    return tuple(found)


def messages(value: object) -> tuple[Message, ...]:
    """The conversation; at least one message that asks something."""
    if not isinstance(value, list) or not value:
        raise BadRequest("messages must be a list with at least one message", "messages")
    return tuple(message(item, f"messages[{index}]") for index, item in enumerate(value))


def message(item: object, where: str) -> Message:
    """One message; a content of several text parts is joined."""
    if not isinstance(item, dict):
        raise BadRequest(f"{where} is a {type(item).__name__}, expected an object", where)
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{where}.role is {role!r}, expected one of {', '.join(ROLES)}", f"{where}.role")
    calls = tuple(tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(item.get("tool_calls") or ()))
    content = item.get("content")
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        content = "".join(text_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content is a {type(content).__name__}, expected a text", f"{where}.content")
    return Message(ROLES[role], content, calls)


def text_part(part: object, where: str) -> str:
    """One part of a content list."""
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadRequest(f"{where} is {kind!r}; this node reads text parts alone", where)


def tool_call(item: object, where: str) -> ToolCall:
    """One call out of the conversation's past."""
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"{where} must hold function.name and function.arguments", where)
    arguments = parse_json(str(function.get("arguments") or "{}").encode(), f"{where}.function.arguments")
    return ToolCall(function["name"], arguments)
