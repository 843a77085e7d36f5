"""A conversation as clients send it.

Knows OpenAI's message shapes, and how its clients and their frameworks write history. Knows nothing
of templates.
Always: what a message says reaches the model or is refused; a call of the past reaches it as it was
written, also where it was cut off.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..assistant.context import Message
from ..toolcall import ToolCall, render
from .errors import BadRequest, parse_json
from .schemas import (
    Reader,
    Record,
    anything,
    either,
    listed,
    mapping,
    named,
    number,
    only,
    tagged,
    text,
    typed,
)

CACHE: dict[str, Reader] = {"cache_control": mapping}  # where a hosted model may cut its cache
PARTS = {
    "text": Record(
        {"type": text, "text": text}, ["text"], CACHE | {"annotations": listed(anything)}
    )
}
SAID_PARTS = PARTS | {"refusal": Record({"type": text, "refusal": text}, ["refusal"])}
# What answers carry besides, ours and other servers', and clients send back with them.
LEFTOVERS: dict[str, Reader] = {
    "annotations": listed(anything),
    "approvals": listed(anything),
    "elicitations": listed(anything),
    "audio": only(None),  # null alone, which is no value
    "function_call": only(None),
    "id": text,
    "provider_specific_fields": mapping,
    "reasoning_content": text,  # past thoughts are not shown to a model again
}
CALL = Record(
    {
        "type": only("function"),
        "function": Record({"name": named, "arguments": either(text, mapping)}, ["name"]),
        "id": text,
    },
    ["function"],
    {"index": number(int, 0, 1 << 20), "provider_specific_fields": mapping},
)
RESULT = Record({"tool_call_id": text, "content": text, "ok": anything}, ["tool_call_id"])


def parts(kinds: Mapping[str, Record]) -> Reader:
    """A text, or a list of parts that are joined."""
    part = tagged("type", kinds)
    several = listed(part)

    @typed(either(text, several).ignored, anyOf=[{"type": "string"}, several.schema])
    def read(value: Any, where: str) -> str:
        if isinstance(value, list):
            for index, one in enumerate(value):
                if (
                    isinstance(one, dict)
                    and isinstance(one.get("type"), str)
                    and one["type"] not in kinds
                ):
                    place = f"{where}[{index}]"
                    raise BadRequest(
                        f"{place} is {one['type'][:40]!r}; this node reads text parts alone", place
                    )
            return "".join(
                str(one.get("text", one.get("refusal"))) for one in several(value, where)
            )
        return text(value, where)

    return read


ASKED = parts(PARTS)
SHAPES = {
    "system": Record({"role": text, "content": ASKED, "name": text}, ["content"], CACHE),
    "developer": Record({"role": text, "content": ASKED, "name": text}, ["content"], CACHE),
    "user": Record({"role": text, "content": ASKED, "name": text}, ["content"], CACHE),
    "assistant": Record(
        {
            "role": text,
            "content": parts(SAID_PARTS),
            "refusal": text,
            "name": text,
            "tool_calls": listed(CALL),
            "tool_results": listed(RESULT),
        },
        harmless=LEFTOVERS | CACHE,
    ),
    "tool": Record(
        {"role": text, "content": ASKED, "tool_call_id": text, "name": text}, ["content"], CACHE
    ),
}
NAMED = ("system", "user", "assistant")  # roles whose `name` is a participant's


MESSAGES = listed(tagged("role", SHAPES), least=1)


@typed(MESSAGES.ignored, **MESSAGES.schema)
def conversation(value: Any, where: str) -> tuple[Message, ...]:
    """All messages, oldest first.

    Raises:
        BadRequest: one that cannot be used, or participants that this model could not tell apart.
    """
    read = MESSAGES(value, where)
    participants: dict[str, str] = {}
    for index, one in enumerate(read):
        if (
            one["role"] in NAMED
            and (name := one.get("name"))
            and participants.setdefault(one["role"], name) != name
        ):
            place = f"{where}[{index}].name"
            raise BadRequest(
                f"{place} is another than before; this model sees roles alone: put "
                f"names into contents",
                place,
            )
    names = names_of(read)
    return tuple(message for one in read for message in expanded(one, names))


def names_of(read: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names of the tools of all calls, by the calls' ids."""
    return {
        call["id"]: call["function"]["name"]
        for one in read
        for call in one.get("tool_calls", ())
        if "id" in call
    }


def expanded(one: Mapping[str, Any], names: Mapping[str, str]) -> list[Message]:
    """What was read of one message: one, or, of an answer of this node that called its own tools,
    the calls, what each brought, and the words after them.

    Args:
        names: of the tools of all calls, by the calls' ids.
    """
    role = "system" if one["role"] == "developer" else one["role"]
    content = "\n".join(filter(None, (one.get("content"), one.get("refusal"))))
    if role == "tool":
        id = one.get("tool_call_id", "")
        return [Message(role, content, (), id, one.get("name") or names.get(id, ""))]
    calls = one.get("tool_calls", ())
    read = [past_call(call) for call in calls]
    whole = tuple(call for call in read if call is not None)
    brought = [
        Message("tool", result.get("content", ""), (), id, names.get(id, ""))
        for result in one.get("tool_results", ())
        for id in [result["tool_call_id"]]
    ]
    if len(whole) < len(read):
        # A call that was cut off, or is none, is shown as it was written: nobody but the model
        # wrote it. What came of such calls did come from somebody else.
        written = [
            as_written(call["function"], known) for call, known in zip(calls, read, strict=True)
        ]
        if not brought:
            return [Message(role, "\n".join([*filter(None, [content]), *written]))]
        called = Message(role, "\n".join(written))
    elif not brought:
        return [Message(role, content, whole)]
    else:
        called = Message(role, "", whole)
    return [called, *brought, *([Message(role, content)] if content else [])]


def past_call(call: Mapping[str, Any]) -> ToolCall | None:
    """A call with its arguments; None where they are not an object."""
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments.encode())
        except BadRequest:
            return None
    return ToolCall(function["name"], arguments, call.get("id", ""))


def as_written(function: Mapping[str, Any], call: ToolCall | None) -> str:
    """The text that became this call."""
    if call is not None:
        return render(call)
    return (
        f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '
        f"{function['arguments']}"
    )


def split_final(found: Sequence[Message], proceed: bool) -> tuple[tuple[Message, ...], str]:
    """The conversation, and the beginning of an answer that is to be continued.

    Raises:
        BadRequest: the last message is the assistant's and nobody said to continue it, or there is
        none to continue.
    """
    last = found[-1]
    if last.role != "assistant":
        if proceed:
            raise BadRequest(
                "continue_final_message needs an assistant's message at the end of messages",
                "messages",
            )
        return tuple(found), ""
    if last.calls:
        raise BadRequest(
            "messages ends with tool calls; add their results, or a user's message", "messages"
        )
    if last.content and not proceed:
        raise BadRequest(
            "messages ends with an assistant's message; set continue_final_message = true to have "
            "it continued, "
            "or end with a user's message",
            "messages",
        )
    if len(found) == 1:
        raise BadRequest(
            "messages holds nothing but an assistant's message; begin with a user's", "messages"
        )
    return tuple(found[:-1]), last.content
