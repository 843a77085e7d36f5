"""litellm, which many other programs go through; by its drivers for OpenAI and for Ollama."""

import json
from typing import Any

import litellm
from common import BASE, CITY, PARAMETERS, QUESTION, SCHEMA, TOKEN, WEATHER, weather

PACKAGE = "litellm"
OPENAI = {"model": "openai/smollm2", "api_base": f"{BASE}/v1", "api_key": TOKEN}
OLLAMA = {"model": "ollama_chat/smollm2", "api_base": BASE, "api_key": TOKEN}
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": WEATHER, "parameters": PARAMETERS},
}


def chat() -> None:
    for to in (OPENAI, OLLAMA):
        answer = litellm.completion(messages=HELLO, **to)
        assert answer.choices[0].message.content == "Good morning." and answer.usage.total_tokens


def streaming() -> None:
    for to in (OPENAI, OLLAMA):
        chunks = litellm.completion(messages=HELLO, stream=True, **to)
        said = "".join(one.choices[0].delta.content or "" for one in chunks)
        assert said == "Good morning.", said


def tools() -> None:
    for to in (OPENAI, OLLAMA):
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        message = litellm.completion(messages=messages, tools=[TOOL], **to).choices[0].message
        assert message.tool_calls, message
        messages.append(message.model_dump())
        for call in message.tool_calls:
            brought = weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id,
                             "name": call.function.name, "content": brought})  # fmt: skip
        answer = litellm.completion(messages=messages, tools=[TOOL], **to)
        assert weather(CITY) in answer.choices[0].message.content


def streamed_tools() -> None:
    chunks = [*litellm.completion(
        messages=[{"role": "user", "content": QUESTION}], tools=[TOOL], stream=True, **OPENAI
    )]  # fmt: skip
    whole = litellm.stream_chunk_builder(chunks)
    assert json.loads(whole.choices[0].message.tool_calls[0].function.arguments) == {"city": CITY}


def json_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}}
    for to in (OPENAI, OLLAMA):
        answer = litellm.completion(messages=HELLO, response_format=form, **to)
        assert json.loads(answer.choices[0].message.content) == {"city": CITY, "degrees": 7}


def embeddings() -> None:
    found = litellm.embedding(model="openai/lengths", input=["two", "texts"],
                              api_base=f"{BASE}/v1", api_key=TOKEN)  # fmt: skip
    assert len(found.data) == 2


def responses() -> None:
    answer = litellm.responses(input="hello", **OPENAI)
    assert answer.output[0].content[0].text == "Good morning."


def errors() -> None:
    for changes, kind in (
        ({"api_key": "wrong"}, litellm.AuthenticationError),
        ({"model": "openai/gpt-9"}, litellm.NotFoundError),
    ):
        try:
            litellm.completion(messages=HELLO, max_retries=0, **(OPENAI | changes))
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__}")
