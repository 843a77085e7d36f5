"""Bodies as clients, frameworks and people by hand send them to a node's API.

Three sorts: what must be answered, and as what conversation the model sees it; what must be
refused, with the place that is named; and one body with everything in it, spoiled at each of its
places in turn: an unknown key in every object, a value of another type at every leaf. The shapes of
history follow the public sources of openai-python, litellm, langchain-openai, pydantic-ai, Open
WebUI and Continue, and public bug reports about servers that took them otherwise.
"""

import asyncio
import copy
import json
from collections.abc import Iterator
from typing import Any

from quietchoir.core.assistant.context import Message
from quietchoir.core.server import requests
from quietchoir.core.toolcall import ToolCall
from quietchoir.tests.fakes.http import Served
from quietchoir.tests.fakes.server import engine_saying

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
USER = {"role": "user", "content": "hi"}
ASKED = Message("user", "hi")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
TOOL = {
    "type": "function",
    "function": {"name": "light", "description": "d", "parameters": SCHEMA, "strict": True},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "light", "arguments": '{"a": 1}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "on"}
LIGHT = ToolCall("light", {"a": 1})
CALLED = Message("assistant", "", (LIGHT,))
TOLD = Message("tool", "on", (), "call_1", "light")
UNNAMED = Message("tool", "on", (), "call_1")  # no call of this id comes before


def calling(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [CALL]} | changes


def function(**changes: Any) -> dict[str, Any]:
    return CALL | {"function": CALL["function"] | changes}  # type: ignore[operator]


# name → messages, and what the model is shown
HISTORY: dict[str, tuple[list[Any], tuple[Message, ...]]] = {
    "a bare question": ([USER], (ASKED,)),
    "text parts": (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}],
            }
        ],
        (ASKED,),
    ),
    "no text parts": ([{"role": "user", "content": []}], (Message("user", ""),)),
    "an empty text": ([{"role": "user", "content": ""}], (Message("user", ""),)),
    "a cache mark on a part (litellm)": (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}],
            }
        ],
        (ASKED,),
    ),
    "a cache mark on a message (litellm)": (
        [USER | {"cache_control": {"type": "ephemeral"}}],
        (ASKED,),
    ),
    "a developer": (
        [{"role": "developer", "content": "be brief"}, USER],
        (Message("system", "be brief"), ASKED),
    ),
    "a system prompt in parts": (
        [{"role": "system", "content": [{"type": "text", "text": "be brief"}]}, USER],
        (Message("system", "be brief"), ASKED),
    ),
    "one participant's name": ([USER | {"name": "ann"}], (ASKED,)),
    "one name all along": (
        [
            USER | {"name": "ann"},
            {"role": "assistant", "content": "yes", "name": "bot"},
            USER | {"name": "ann"},
        ],
        (ASKED, Message("assistant", "yes"), ASKED),
    ),
    "nulls everywhere": ([USER | {"name": None, "cache_control": None}], (ASKED,)),
    "a call and its result": ([USER, calling(), RESULT], (ASKED, CALLED, TOLD)),
    "a call without content": (
        [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT],
        (ASKED, CALLED, TOLD),
    ),
    "a call with an empty content (langchain)": (
        [USER, calling(content=""), RESULT],
        (ASKED, CALLED, TOLD),
    ),
    "a call with no parts": ([USER, calling(content=[]), RESULT], (ASKED, CALLED, TOLD)),
    "arguments as an object (ollama)": (
        [USER, calling(tool_calls=[function(arguments={"a": 1})]), RESULT],
        (ASKED, CALLED, TOLD),
    ),
    "no arguments": (
        [USER, calling(tool_calls=[function(arguments="")]), RESULT],
        (ASKED, Message("assistant", "", (ToolCall("light", {}),)), TOLD),
    ),
    "null arguments": (
        [USER, calling(tool_calls=[function(arguments=None)]), RESULT],
        (ASKED, Message("assistant", "", (ToolCall("light", {}),)), TOLD),
    ),
    "left out arguments": (
        [
            USER,
            calling(tool_calls=[{"id": "c", "type": "function", "function": {"name": "light"}}]),
            RESULT,
        ],
        (ASKED, Message("assistant", "", (ToolCall("light", {}),)), UNNAMED),
    ),
    "a call without type and id": (
        [USER, calling(tool_calls=[{"function": CALL["function"]}]), RESULT],
        (ASKED, CALLED, UNNAMED),
    ),
    "an index left from the stream": (
        [USER, calling(tool_calls=[CALL | {"index": 0}]), RESULT],
        (ASKED, CALLED, TOLD),
    ),
    "two calls": (
        [
            USER,
            calling(tool_calls=[CALL, CALL | {"id": "call_2"}]),
            RESULT,
            RESULT | {"tool_call_id": "call_2"},
        ],
        (
            ASKED,
            Message("assistant", "", (LIGHT, LIGHT)),
            TOLD,
            Message("tool", "on", (), "call_2", "light"),
        ),
    ),
    "a call that was cut off": (
        [USER, calling(tool_calls=[function(arguments='{"a": ')]), USER],
        (ASKED, Message("assistant", '{"name": "light", "arguments": {"a": '), ASKED),
    ),
    "a whole call and one that was cut off": (
        [USER, calling(tool_calls=[CALL, function(arguments='{"a')]), USER],
        (
            ASKED,
            Message(
                "assistant",
                '{"name": "light", "arguments": {"a": 1}}\n{"name": "light", "arguments": {"a',
            ),
            ASKED,
        ),
    ),
    "arguments that are no object": (
        [USER, calling(tool_calls=[function(arguments="[1]")]), USER],
        (ASKED, Message("assistant", '{"name": "light", "arguments": [1]'), ASKED),
    ),
    "a call cut off as plain content": (
        [USER, {"role": "assistant", "content": '{"name": "light", "arg'}, USER],
        (ASKED, Message("assistant", '{"name": "light", "arg'), ASKED),
    ),
    "content null without calls": (
        [USER, {"role": "assistant", "content": None}, USER],
        (ASKED, Message("assistant", ""), ASKED),
    ),
    "neither content nor calls": (
        [USER, {"role": "assistant"}, USER],
        (ASKED, Message("assistant", ""), ASKED),
    ),
    "no calls in the list": (
        [USER, {"role": "assistant", "content": "yes", "tool_calls": []}, USER],
        (ASKED, Message("assistant", "yes"), ASKED),
    ),
    "calls null": (
        [
            USER,
            {"role": "assistant", "content": "yes", "tool_calls": None, "function_call": None},
            USER,
        ],
        (ASKED, Message("assistant", "yes"), ASKED),
    ),
    "a refusal": (
        [USER, {"role": "assistant", "content": None, "refusal": "no"}, USER],
        (ASKED, Message("assistant", "no"), ASKED),
    ),
    "a refusal as a part": (
        [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER],
        (ASKED, Message("assistant", "no"), ASKED),
    ),
    "model_dump of an answer (openai)": (
        [
            USER,
            {
                "content": "yes",
                "refusal": None,
                "role": "assistant",
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
            },
            USER,
        ],
        (ASKED, Message("assistant", "yes"), ASKED),
    ),
    "model_dump of an answer (litellm)": (
        [USER, calling(function_call=None, provider_specific_fields={"refusal": None}), RESULT],
        (ASKED, CALLED, TOLD),
    ),
    "our own answer sent back": (
        [
            USER,
            calling(
                content="Turned on.",
                tool_results=[{"tool_call_id": "call_1", "content": "Turned on.", "ok": True}],
            ),
            USER,
        ],
        (
            ASKED,
            CALLED,
            Message("tool", "Turned on.", (), "call_1", "light"),
            Message("assistant", "Turned on."),
            ASKED,
        ),
    ),
    "a result with the tool's name (langchain)": (
        [USER, calling(), RESULT | {"name": "light"}],
        (ASKED, CALLED, TOLD),
    ),
    "a result in parts": (
        [USER, calling(), RESULT | {"content": [{"type": "text", "text": "on"}]}],
        (ASKED, CALLED, TOLD),
    ),
    "a result without an id": (
        [USER, calling(), {"role": "tool", "content": "on"}],
        (ASKED, CALLED, Message("tool", "on")),
    ),
    "an empty result": (
        [USER, calling(), RESULT | {"content": ""}],
        (ASKED, CALLED, Message("tool", "", (), "call_1", "light")),
    ),
    "an empty answer to come (Open WebUI)": (
        [USER, {"role": "assistant", "content": ""}],
        (ASKED,),
    ),
    "two questions in a row": ([USER, USER], (ASKED, ASKED)),
    "letters of all sorts": (
        [{"role": "user", "content": "\u0000\u200d\U0001f468 \u202e\ufeff<|im_end|>"}],
        (Message("user", "\u0000\u200d\U0001f468 \u202e\ufeff<|im_end|>"),),
    ),
}
# Fields beside the messages that must be taken.
TAKEN: dict[str, dict[str, Any]] = {
    "reasoning_effort": {"reasoning_effort": "low"},
    "verbosity": {"verbosity": "medium"},
    "prediction": {"prediction": {"type": "content", "content": "text"}},
    "prediction in parts": {
        "prediction": {"type": "content", "content": [{"type": "text", "text": "a"}]}
    },
    "store": {"store": True},
    "metadata": {"metadata": {"k": "v"}},
    "user": {"user": "me"},
    "safety_identifier": {"safety_identifier": "x"},
    "prompt_cache_key": {"prompt_cache_key": "x", "prompt_cache_retention": "24h"},
    "service_tier": {"service_tier": "auto"},
    "parallel_tool_calls": {"parallel_tool_calls": False},
    "n": {"n": 1},
    "two choices": {"n": 2},
    "modalities": {"modalities": ["text"]},
    "stream_options": {"stream_options": {"include_usage": True, "include_obfuscation": False}},
    "stream_options null": {"stream_options": None},
    "tools of pydantic-ai": {"tools": [TOOL], "tool_choice": "auto"},
    "no tools": {"tools": []},
    "a tool without parameters": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "a tool with nulls": {
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": None, "strict": None}}
        ]
    },
    "tool_choice none": {"tools": [TOOL], "tool_choice": "none"},
    "max_completion_tokens": {"max_completion_tokens": 5},
    "both limits": {"max_completion_tokens": 5, "max_tokens": 7},
    "temperature as a whole number": {"temperature": 1},
    "stop null": {"stop": None},
    "no stops": {"stop": []},
    "format text": {"response_format": {"type": "text"}},
    "logprobs false": {"logprobs": False, "top_logprobs": 0},
    "add_generation_prompt": {"add_generation_prompt": True},
}
# name → fields and the place that the refusal names
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "images in a message (ollama)": (
        {"messages": [USER | {"images": ["aGk="]}]},
        "messages[0].images",
    ),
    "a picture's address": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
            ]
        },
        "messages[0].content[0]",
    ),
    "sound": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
                    ],
                }
            ]
        },
        "messages[0].content[0]",
    ),
    "a file": (
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
        "messages[0].content[0]",
    ),
    "a part of no type": (
        {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
        "messages[0].content[0].type",
    ),
    "two schemas beside json_object": (
        {"response_format": {"type": "json_object", "schema": SCHEMA, "value": SCHEMA}},
        "response_format",
    ),
    "a schema beside json_object that is a text": (
        {"response_format": {"type": "json_object", "schema": "{}"}},
        "response_format.schema",
    ),
    "a value beside json_object that is a list": (
        {"response_format": {"type": "json_object", "value": [SCHEMA]}},
        "response_format.value",
    ),
    "json_schema beside json_object": (
        {"response_format": {"type": "json_object", "json_schema": {"schema": SCHEMA}}},
        "response_format.json_schema",
    ),
    "a schema without its wrapper": (
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        "response_format.schema",
    ),
    "prefix (deepseek)": (
        {"messages": [USER, {"role": "assistant", "content": "a", "prefix": True}]},
        "messages[1].prefix",
    ),
    "an old call in history": (
        {
            "messages": [
                USER,
                {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
                USER,
            ]
        },
        "messages[1].function_call",
    ),
    "an old result": (
        {"messages": [USER, {"role": "function", "name": "f", "content": "x"}]},
        "messages[1].role",
    ),
    "calls of a user": ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    "calls that are a number": (
        {"messages": [USER, calling(tool_calls=5), USER]},
        "messages[1].tool_calls",
    ),
    "calls that are an object": (
        {"messages": [USER, calling(tool_calls=CALL), USER]},
        "messages[1].tool_calls",
    ),
    "a call that is a number": (
        {"messages": [USER, calling(tool_calls=[5]), USER]},
        "messages[1].tool_calls[0]",
    ),
    "a call of another kind": (
        {"messages": [USER, calling(tool_calls=[{"type": "custom", "custom": {}}]), USER]},
        "messages[1].tool_calls[0].type",
    ),
    "a call without a name": (
        {"messages": [USER, calling(tool_calls=[{"function": {"arguments": "{}"}}]), USER]},
        "messages[1].tool_calls[0].function.name",
    ),
    "arguments that are a number": (
        {"messages": [USER, calling(tool_calls=[function(arguments=5)]), USER]},
        "messages[1].tool_calls[0].function.arguments",
    ),
    "two participants": (
        {
            "messages": [
                USER | {"name": "ann"},
                {"role": "assistant", "content": "a"},
                USER | {"name": "bob"},
            ]
        },
        "messages[2].name",
    ),
    "a user without content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "a user's null": ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    "no role": ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    "an answer to be continued, unsaid": (
        {"messages": [USER, {"role": "assistant", "content": "Once"}]},
        "messages",
    ),
    "calls at the end": ({"messages": [USER, calling()]}, "messages"),
    "nothing but an answer": (
        {"messages": [{"role": "assistant", "content": "Once"}], "continue_final_message": True},
        "messages",
    ),
    "nothing to continue": ({"continue_final_message": True}, "messages"),
    "continued and begun anew": (
        {
            "messages": [USER, {"role": "assistant", "content": "Once"}],
            "continue_final_message": True,
            "add_generation_prompt": True,
        },
        "add_generation_prompt",
    ),
    "no prompt to begin with": ({"add_generation_prompt": False}, "add_generation_prompt"),
    "continued in a form": (
        {
            "messages": [USER, {"role": "assistant", "content": "Once"}],
            "continue_final_message": True,
            "response_format": {"type": "json_object"},
        },
        "response_format",
    ),
    "nine choices": ({"n": 9}, "n"),
    "a choice that is true": ({"n": True}, "n"),
    "sound as an answer": ({"modalities": ["text", "audio"]}, "modalities"),
    "old functions": ({"functions": [{"name": "f"}]}, "functions"),
    "an old choice": ({"function_call": "auto"}, "function_call"),
    "web search": ({"web_search_options": {}}, "web_search_options"),
    "vLLM's guided_json": ({"guided_json": SCHEMA}, "guided_json"),
    "llama.cpp's grammar": ({"grammar": "root ::= x"}, "grammar"),
    "ollama's options": ({"options": {"num_ctx": 4096}}, "options"),
    "ollama's format": ({"format": "json"}, "format"),
    "a template's variables": (
        {"chat_template_kwargs": {"enable_thinking": False}},
        "chat_template_kwargs",
    ),
    "an unread option of streams": (
        {"stream_options": {"include_everything": True}},
        "stream_options.include_everything",
    ),
    "a tool that is no function": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "a tool without a type": ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
    "a flat tool (responses)": (
        {"tools": [{"type": "function", "name": "f", "parameters": {}}]},
        "tools[0].name",
    ),
    "one tool twice": ({"tools": [TOOL, TOOL]}, "tools"),
    "a choice among tools": (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
        "tool_choice.type",
    ),
    "a typo": ({"temprature": 1}, "temprature"),
    "a key with letters of all sorts": ({"\u202e\u0000é": 1}, "\u202e\u0000é"),
}
# One body with everything in it, to be spoiled place by place.
FULL: dict[str, Any] = {
    "model": "default",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "a"}], "name": "x"},
        {"role": "user", "content": "b", "name": "ann"},
        {
            "role": "assistant",
            "content": "c",
            "name": "bot",
            "tool_calls": [CALL],
            "tool_results": [{"tool_call_id": "call_1", "content": "on", "ok": True}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "on"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": [{"type": "text", "text": "d"}]},
    ],
    "stream": False,
    "stream_options": {"include_usage": True},
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 4,
    "min_p": 0.1,
    "seed": 7,
    "stop": ["END"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"1": 2},
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
    },
    "speculate": True,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "light"}},
    "logprobs": True,
    "top_logprobs": 2,
    "user": "me",
    "store": False,
    "service_tier": "auto",
    "reasoning_effort": "low",
    "verbosity": "low",
    "parallel_tool_calls": True,
}
# Objects whose keys are their sender's own, and the one leaf that may be anything.
OPEN = (
    "logit_bias",
    "response_format.json_schema.schema",
    "tools[0].function.parameters",
    "metadata",
)
ANY = ("messages[2].tool_results[0].ok",)
ARGUMENTS = "messages[2].tool_calls[0].function.arguments"  # an object is right here too
OTHER_BODIES: dict[str, tuple[str, Any, int, str | None]] = {
    "a completion": (COMPLETIONS, {"prompt": "a"}, 200, None),
    "a completion of one": (
        COMPLETIONS,
        {"prompt": ["a"], "echo": False, "suffix": "", "best_of": 1, "user": "x"},
        200,
        None,
    ),
    "a completion of two": (COMPLETIONS, {"prompt": ["a", "b"]}, 400, "prompt"),
    "a completion of tokens": (COMPLETIONS, {"prompt": [1, 2]}, 400, "prompt"),
    "a completion of nothing": (COMPLETIONS, {"prompt": ""}, 400, "prompt"),
    "a completion without a prompt": (COMPLETIONS, {}, 400, "prompt"),
    "a completion with its prompt": (COMPLETIONS, {"prompt": "a", "echo": True}, 400, "echo"),
    "a completion that ends somewhere": (
        COMPLETIONS,
        {"prompt": "a", "suffix": "b"},
        400,
        "suffix",
    ),
    "a completion with messages": (
        COMPLETIONS,
        {"prompt": "a", "messages": [USER]},
        400,
        "messages",
    ),
    "an unknown option of a completion's stream": (
        COMPLETIONS,
        {"prompt": "a", "stream_options": {"x": 1}},
        400,
        "stream_options.x",
    ),
    "embeddings where no model is": (EMBEDDINGS, {"input": "a", "model": "default"}, 404, "model"),
    "embeddings of tokens": (EMBEDDINGS, {"input": [1, 2]}, 400, "input[0]"),
    "embeddings of nothing": (EMBEDDINGS, {"input": []}, 400, "input"),
    "embeddings with an unknown key": (
        EMBEDDINGS,
        {"input": "a", "truncate": True},
        400,
        "truncate",
    ),
    "embeddings in an unknown format": (
        EMBEDDINGS,
        {"input": "a", "encoding_format": "int8"},
        400,
        "encoding_format",
    ),
    "an adapter that is not there": ("/api/adapters/activate", {"name": "x"}, 404, "model"),
    "an adapter and more": ("/api/adapters/activate", {"name": "x", "force": True}, 400, "force"),
    "no adapter's name": ("/api/adapters/activate", {}, 400, "name"),
    "responses": ("/v1/responses", {"input": "hi"}, 200, None),
    "a response to an earlier one": (
        "/v1/responses",
        {"input": "hi", "previous_response_id": "r"},
        400,
        "previous_response_id",
    ),
    "a response to an answer": (
        "/v1/responses",
        {"input": [{"role": "assistant", "content": "hi"}]},
        400,
        "input",
    ),
    "a response with a picture": (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        400,
        "input[0].content",
    ),
    "a response with a search": (
        "/v1/responses",
        {"input": "hi", "tools": [{"type": "web_search"}]},
        400,
        "tools[0]",
    ),
    "a body that is a list": (CHAT, [USER], 400, None),
}


def places(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every object, list and leaf of a body with its place."""
    if where not in OPEN:
        yield where, value
        inner = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        )
        for key, one in inner:
            below = (
                f"{where}[{key}]" if isinstance(key, int) else f"{where}.{key}" if where else key
            )
            yield from places(one, below)


def spoiled() -> Iterator[tuple[str, dict[str, Any], str]]:
    """FULL, spoiled at one place after the other: name, body, place."""
    for where, value in places(FULL):
        if isinstance(value, dict):
            body = put(where + ".zzz" if where else "zzz", 1)
            yield (
                (f"an unknown key in {where or 'the body'}"),
                body,
                f"{where}.zzz" if where else "zzz",
            )
        if where and where not in ANY:
            for wrong in ({"x": 1}, [[7]], 7.5, True, "wrong\u202e", -(10**30)):
                if not fits(value, wrong) and not (where == ARGUMENTS and isinstance(wrong, dict)):
                    yield f"{json.dumps(wrong)} at {where}", put(where, wrong), where


def fits(value: Any, wrong: Any) -> bool:
    """Would the wrong value be right by its type alone? Whether by its value is not this case's
    business.
    """
    text_or_list = isinstance(value, list | str) and isinstance(wrong, str)
    return (
        type(value) is type(wrong)
        or text_or_list
        or (isinstance(value, float) and isinstance(wrong, float))
    )


def put(where: str, value: Any) -> dict[str, Any]:
    """A copy of FULL with a value at one place."""
    body = copy.deepcopy(FULL)
    inner: Any = body
    *path, last = where.replace("[", ".").replace("]", "").split(".")
    for step in path:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    inner[int(last) if isinstance(inner, list) else last] = value
    return body


def check() -> Iterator[tuple[str, str]]:
    """Name of each case, and what was wrong with what the node did."""
    for name, (messages, expected) in HISTORY.items():
        yield f"history: {name}", misread(messages, expected)
    yield from asyncio.run(answered())


def misread(messages: list[Any], expected: tuple[Message, ...]) -> str:
    """What is wrong with what the model would see; empty if nothing."""
    found = requests.chat(json.dumps({"messages": messages}).encode()).ask.messages
    return "" if found == expected else f"the model sees {found}"


async def answered() -> list[tuple[str, str]]:
    """The same over HTTP: status and place of every refusal."""
    cases: list[tuple[str, str, Any, int, str | None]] = [
        ("everything", CHAT, put("tool_choice", "auto"), 200, None)
    ]
    cases += [
        (f"taken: {name}", CHAT, {"messages": [USER]} | fields, 200, None)
        for name, fields in TAKEN.items()
    ]
    cases += [
        (f"sent: {name}", CHAT, {"messages": messages}, 200, None)
        for name, (messages, _) in HISTORY.items()
    ]
    cases += [
        (f"refused: {name}", CHAT, {"messages": [USER]} | fields, 400, place)
        for name, (fields, place) in REFUSED.items()
    ]
    cases += [(f"spoiled: {name}", CHAT, body, 400, place) for name, body, place in spoiled()]
    cases += [(f"elsewhere: {name}", *case) for name, case in OTHER_BODIES.items()]
    outcome = []
    async with Served(engine_saying(['{"a": 1}'])).running() as served:
        for name, path, body, status, place in cases:
            found, answer = await served.post(path, body)
            wrong = (
                ""
                if found == status
                else (f"status {found}, expected {status}: {json.dumps(answer)[:200]}")
            )
            if not wrong and status == 400 and not near(answer["error"]["param"], place):
                wrong = (
                    f"names {answer['error']['param']!r}, expected {place!r}: "
                    f"{answer['error']['message'][:200]}"
                )
            outcome.append((name, wrong))
    return outcome


def near(named: str | None, place: str | None) -> bool:
    """The refusal names the place, or one inside it or right around it."""
    return named == place or (
        named is not None
        and place is not None
        and (named.startswith(place) or place.startswith(named))
    )
