"""Rows of other people's files as conversations: OpenAI's chat format, ShareGPT, Alpaca.

Knows their keys. Knows nothing of files, tokens or training.
Always: what a row says is trained on, in the form that the assistant uses when it serves, or the
row is refused with the key that cannot be; nothing of a message is left out in silence, and keys
beside the conversation are told (`beside`).

A call is the text that the model writes for it (`toolcall.render`), several are one a line. The
tools on offer are not: the assistant does not show them to the model either, so `tools` only decide
which calls a row may hold.
Source: OpenAI's fine-tuning guide (`tool_calls`, `tools`, `weight`); FastChat's ShareGPT rows;
Stanford Alpaca's.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..toolcall import ToolCall, render, render_all

Messages = tuple[Mapping[str, str], ...]
ROLES = ("system", "user", "assistant", "tool")
# Of a message. Null or empty elsewhere says nothing: OpenAI's client writes `annotations` so.
READ = {"role", "content", "tool_calls", "tool_call_id", "weight", "name"}
HALF = re.compile("[\ud800-\udfff]")
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# Beside the conversation. What is read, by format; and what would change what a row teaches, but is
# not read.
ROW_KEYS = {
    "chat": {"messages", "tools", "functions", "parallel_tool_calls"},
    "sharegpt": {"conversations", "conversation", "system", "tools"},
    # Stanford's `text` repeats the row
    "alpaca": {"instruction", "input", "output", "system", "history", "text"},
}
# a row of its format has one of them
CARRIERS = {"messages", "conversations", "conversation", "instruction"}
CHANGING = {
    **dict.fromkeys(
        ("system", "system_prompt", "system_message"),
        "write it as the first message, of role system",
    ),
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios"), "only texts are read"
    ),
    **dict.fromkeys(
        ("chosen", "rejected", "preferred_output", "non_preferred_output"),
        "preferences are not trained on",
    ),
    **dict.fromkeys(("function_call", "functions", "tools"), "a row of this format has none"),
    "reference_answer": "an answer stands in the conversation",
}
FOUND_KEYS = 8  # named in a sentence
VERDICTS = ("kto_tag", "label")  # false: the row's answer is a bad one


def read_row(record: Any, kind: str = "chat") -> list[Messages]:
    """The conversations of one row, each ending with an answer to learn.

    Without `weight` that is one: the row's last answer is learned. With it, every answer of weight
    1 (or none) is, at the end of a conversation of its own.

    Raises:
        ValueError: what is wrong with the row, or cannot be trained on.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {_kind(record)}")
    for key in beside(record, kind) if CARRIERS & ROW_KEYS[kind] & set(record) else ():
        if key in CHANGING:
            raise ValueError(f"the row has {key!r} beside the conversation: {CHANGING[key]}")
        if key in VERDICTS and record[key] is False:
            raise ValueError(
                f"{key!r} is false, so the answer is not to be learned; leave the row out"
            )
    return chat(FORMATS[kind](record))


def beside(record: Mapping[str, Any], kind: str = "chat") -> list[str]:
    """Keys of a row that say something and are not trained on; it may be divided by them."""
    return [
        key
        for key, value in record.items()
        if key not in ROW_KEYS[kind] and value not in (None, "", [], {})
    ]


def chat(record: Mapping[str, Any]) -> list[Messages]:
    """Conversations of a row in OpenAI's chat format.

    Raises:
        ValueError: as `read_row`.
    """
    given = record.get("messages")
    if not isinstance(given, list) or len(given) < 2:
        others = " (a ShareGPT row: --format sharegpt)" if "conversations" in record else ""
        others = " (an Alpaca row: --format alpaca)" if "instruction" in record else others
        raise ValueError(
            f'expected an object with "messages", a list of two or '
            f"more{others}{_found(record, 'messages')}"
        )
    if record.get("functions") is not None:
        raise ValueError('"functions" is the old form; write "tools" and "tool_calls"')
    offered = _offered(record.get("tools"))
    messages: list[Mapping[str, str]] = []
    weights: list[int | None] = []
    for index, message in enumerate(given, 1):
        text = _message(message, offered, f"message {index}")
        messages.append(
            {
                "role": "system" if message["role"] == "developer" else message["role"],
                "content": text,
            }
        )
        weights.append(message.get("weight"))
    if messages[-1]["role"] != "assistant":
        raise ValueError(
            f"the last message is the {messages[-1]['role']}'s, expected the assistant's answer"
        )
    weighted = any(weight is not None for weight in weights)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [index for index in answers if weights[index] != 0] if weighted else answers[-1:]
    if not learned:
        raise ValueError("every answer has weight 0: there is nothing to learn")
    for index in learned:
        if not index:
            raise ValueError(
                "message 1 is an answer to nothing; give it weight 0, or put a request before it"
            )
        if not messages[index]["content"].strip():
            raise ValueError("the assistant's answer is empty")
    return [tuple(messages[: index + 1]) for index in learned]


def sharegpt(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A ShareGPT row in chat format.

    Raises:
        ValueError: no turns, or one by somebody unknown.
    """
    turns = "conversations" if "conversations" in record else "conversation"
    given = record.get(turns)
    if not isinstance(given, list):
        raise ValueError(
            f'expected "conversations", a list of {{"from": …, "value": '
            f"…}}{_found(record, 'conversations')}"
        )
    messages: list[dict[str, Any]] = []
    if record.get("system"):
        messages.append({"role": "system", "content": record["system"]})
    for index, turn in enumerate(given, 1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {index} is {_kind(turn)}, expected an object")
        left = {key: value for key, value in turn.items() if key not in ("from", "value")}
        if "from" not in turn and "role" in turn:
            raise ValueError(
                f"turn {index} has a role: this is the chat format, under {turns!r}; "
                f"call the key messages"
            )
        if turn.get("from") not in SPEAKERS:
            raise ValueError(
                f"turn {index} is from {turn.get('from')!r}, expected one of {', '.join(SPEAKERS)}"
            )
        message = {"role": SPEAKERS[turn["from"]], "content": turn.get("value"), **left}
        if turn["from"] == "function_call":
            call = _json(turn.get("value"), f"turn {index}")
            message |= {"content": None, "tool_calls": [{"type": "function", "function": call}]}
        messages.append(message)
    tools = record.get("tools")
    tools = _json(tools, "tools") if isinstance(tools, str) and tools.strip() else tools or None
    if isinstance(tools, list):  # LLaMA-Factory writes the functions themselves
        tools = [
            tool
            if isinstance(tool, dict) and "function" in tool
            else {"type": "function", "function": tool}
            for tool in tools
        ]
    return {"messages": messages, "tools": tools}


def alpaca(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """An Alpaca row in chat format: the input stands below the instruction.

    Raises:
        ValueError: no instruction or no output, or one that is no text.
    """
    for key in ("instruction", "output"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise ValueError(f'expected a text under "{key}"{_found(record, key)}')
    more, system, history = (
        record.get("input") or "",
        record.get("system") or "",
        record.get("history") or [],
    )
    pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    )
    if not isinstance(more, str) or not isinstance(system, str) or not pairs:
        raise ValueError(
            '"input" and "system" must be texts, "history" a list of [request, answer]'
        )
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for request, answer in history:
        messages += [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    request = f"{record['instruction']}\n\n{more}" if more.strip() else record["instruction"]
    return {
        "messages": [
            *messages,
            {"role": "user", "content": request},
            {"role": "assistant", "content": record["output"]},
        ]
    }


FORMATS: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "chat": lambda record: record, "sharegpt": sharegpt, "alpaca": alpaca,
}  # fmt: skip


def _message(message: Any, offered: Sequence[str] | None, where: str) -> str:
    """Text of one message as the model reads or writes it."""
    if not isinstance(message, dict):
        raise ValueError(f"{where} is {_kind(message)}, expected an object")
    role = message.get("role")
    if role not in (*ROLES, "developer"):
        raise ValueError(f"{where} has role {role!r}, expected one of {', '.join(ROLES)}")
    unread = sorted(
        key for key, value in message.items() if key not in READ and value not in (None, [], {})
    )
    unread += ["name"] if role != "tool" and message.get("name") is not None else []
    if unread:
        raise ValueError(
            f"{where} has {', '.join(map(repr, unread))}, which the model would not "
            f"be shown; take it out"
        )
    weight = message.get("weight")
    if weight is not None and (
        role != "assistant" or weight not in (0, 1) or isinstance(weight, bool)
    ):
        raise ValueError(
            f"{where} has weight {weight!r}; an answer's may be 0 or 1, others have none"
        )
    calls = message.get("tool_calls")
    if calls is not None and role != "assistant":
        raise ValueError(f"{where} is the {role}'s and makes calls; only the assistant does")
    if calls is not None and (not isinstance(calls, list) or not calls):
        raise ValueError(f"{where}: tool_calls must be a list of calls, or left out")
    text = _text(message.get("content"), where, absent=bool(calls))
    if calls is None:
        return text
    if text.strip():
        raise ValueError(f"{where} has a text and calls; the assistant answers with one of them")
    read = [_call(call, offered, where) for call in calls]
    return render_all(read)


def _text(content: Any, where: str, *, absent: bool) -> str:
    """A message's content: a text, parts that are texts, or nothing beside calls."""
    if content is None and absent:
        return ""
    if isinstance(content, list):
        odd = [part.get("type") if isinstance(part, dict) else part for part in content]
        odd = [
            kind
            for kind, part in zip(odd, content, strict=True)
            if kind != "text" or set(part) - {"type", "text"}
        ]
        if odd or not all(isinstance(part.get("text"), str) for part in content):
            raise ValueError(
                f"{where} has parts of type {odd[0] if odd else 'text'!r}; only texts are read"
            )
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{where} must have a text as content")
    _whole(content, where)
    return content


def _call(call: Any, offered: Sequence[str] | None, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if (
        not isinstance(function, dict)
        or set(call) - {"id", "type", "function", "index"}
        or call.get("type", "function") != "function"
    ):
        raise ValueError(
            f'{where}: a call must be {{"type": "function", "function": {{"name": …, '
            f'"arguments": …}}}}'
        )
    name, arguments = function.get("name"), function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", f"{where}: arguments of {name}")
    if (
        not isinstance(name, str)
        or not name
        or not isinstance(arguments, dict)
        or set(function) - {"name", "arguments"}
    ):
        raise ValueError(f"{where}: a call needs a name, and arguments that are an object")
    if offered is not None and name not in offered:
        raise ValueError(
            f"{where} calls {name!r}, which is not among the row's tools: "
            f"{', '.join(offered) or 'none'}"
        )
    made = ToolCall(name, arguments)
    _whole(render(made), where)
    return made


def _offered(tools: Any) -> list[str] | None:
    """Names of the tools of a row; None where it lists none."""
    if tools is None:
        return None
    names = []
    for tool in tools if isinstance(tools, list) else [None]:
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(
                '"tools" must be a list of {"type": "function", "function": {"name": …}}'
            )
        names.append(name)
    return names


def _json(text: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{where}: {str(text)[:40]!a} is not JSON") from None


def _whole(text: str, where: str) -> None:
    if found := HALF.search(text):
        raise ValueError(
            f"{where} holds half a character ({found[0]!a}) at place {found.start() + 1}; it was "
            f"cut in the middle"
        )


def _found(record: Mapping[str, Any], key: str) -> str:
    """The end of a sentence about a key that is not as it should be."""
    if isinstance(record.get(key), list):
        return f", found {len(record[key])}"
    if key in record:
        return f", found {'an empty text' if isinstance(record[key], str) else _kind(record[key])}"
    return (
        f", found the keys "
        f"{', '.join(sorted(map(str, record))[:FOUND_KEYS]) or 'of an empty object'}"
    )


def _kind(value: Any) -> str:
    names = {
        list: "a list",
        str: "a text",
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "an object")
