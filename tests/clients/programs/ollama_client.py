"""Ollama's own client."""

import json
from typing import Any

import ollama
from common import BASE, CITY, PARAMETERS, QUESTION, SCHEMA, TOKEN, WEATHER, weather

PACKAGE = "ollama"
client = ollama.Client(host=BASE, headers={"Authorization": f"Bearer {TOKEN}"})
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": WEATHER, "parameters": PARAMETERS},
}


def models() -> None:
    names = [model.model for model in client.list().models]
    assert names == ["smollm2", "smollm2:home-1"], names
    shown = client.show("smollm2")
    assert "tools" in (shown.capabilities or ()) and shown.details is not None
    assert [model.model for model in client.ps().models] == ["smollm2"]


def chat() -> None:
    for model in ("smollm2", "smollm2:latest", "smollm2:home-1"):
        answer = client.chat(model, HELLO, options={"num_ctx": 4096, "temperature": 0.2})
        assert answer.message.content == "Good morning." and answer.done_reason == "stop"
        assert answer.eval_count and answer.prompt_eval_count
    assert client.generate("smollm2", "hello", system="Be brief.").response == "Good morning."


def streaming() -> None:
    pieces = [*client.chat("smollm2", HELLO, stream=True)]
    assert "".join(one.message.content or "" for one in pieces) == "Good morning."
    assert pieces[-1].done and len(pieces) > 2
    said = client.generate("smollm2", "hello", stream=True)
    assert "".join(one.response or "" for one in said) == "Good morning."


def options() -> None:
    """Penalties, a seed, an end, logprobs."""
    answer = client.chat(
        "smollm2",
        HELLO,
        think=False,
        keep_alive="5m",
        logprobs=True,
        options={"seed": 7, "top_k": 9, "top_p": 0.9, "repeat_penalty": 1.1, "num_predict": 5,
                 "stop": ["END"], "num_thread": 2},
    )  # fmt: skip
    assert answer.message.content and answer.logprobs


def tools() -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first = client.chat("smollm2", messages, tools=[TOOL])
    messages.append(first.message)
    for call in first.message.tool_calls or ():
        brought = weather(**call.function.arguments)
        messages.append({"role": "tool", "content": brought, "tool_name": call.function.name})
    assert len(messages) == 3
    second = client.chat("smollm2", messages, tools=[TOOL])
    assert weather(CITY) in (second.message.content or "")


def streamed_tools() -> None:
    pieces = client.chat("smollm2", [{"role": "user", "content": QUESTION}],
                         tools=[TOOL], stream=True)  # fmt: skip
    calls = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert [dict(call.function.arguments) for call in calls] == [{"city": CITY}]


def json_schema() -> None:
    answer = client.chat("smollm2", HELLO, format=SCHEMA)
    assert json.loads(answer.message.content or "") == {"city": CITY, "degrees": 7}


def embeddings() -> None:
    assert len(client.embed("lengths", ["two", "texts"]).embeddings) == 2
    assert len(client.embed("lengths", "one").embeddings) == 1
    assert len(client.embeddings("lengths", "one").embedding) == 2


def errors() -> None:
    for ask, status in (
        (lambda: client.chat("gpt-9", HELLO), 404),
        (lambda: ollama.Client(host=BASE).list(), 401),
        (lambda: client.pull("llama3"), 501),
    ):
        try:
            ask()
        except ollama.ResponseError as error:
            assert error.status_code == status and error.error, error
            assert not error.error.startswith("{"), error
        else:
            raise AssertionError(f"no error where {status} was due")
