"""OpenAI's own client: chat completions, responses, completions, embeddings, errors."""

import json
from typing import Any

import openai
from common import BASE, CITY, PARAMETERS, QUESTION, SCHEMA, TOKEN, WEATHER, weather

PACKAGE = "openai"
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=TOKEN, max_retries=0)
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": WEATHER, "parameters": PARAMETERS},
}
FLAT_TOOL: Any = {"type": "function", "strict": True, **TOOL["function"]}


def models() -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["smollm2", "smollm2:home-1", "lengths"], names
    for name in ("default", "smollm2:home-1"):
        assert client.models.retrieve(name).id == name


def chat() -> None:
    for model in ("smollm2", "smollm2:home-1", "default"):
        answer = client.chat.completions.create(model=model, messages=HELLO)
        assert answer.choices[0].message.content == "Good morning."
        assert answer.usage is not None and answer.usage.completion_tokens > 0
        assert answer.choices[0].finish_reason == "stop"


def streaming() -> None:
    chunks = [*client.chat.completions.create(
        model="smollm2", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )]  # fmt: skip
    said = [one.choices[0].delta.content for one in chunks if one.choices]
    assert "".join(filter(None, said)) == "Good morning." and len(chunks) > 3
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens > 0


def options() -> None:
    """`n`, logprobs, seed, parts, `developer`, `max_completion_tokens`, `stop`."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        ],
        n=3, logprobs=True, top_logprobs=2, seed=7, max_completion_tokens=9, stop=["END"],
        temperature=0.5, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.1,
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.logprobs and choice.logprobs.content for choice in answer.choices)
    with client.chat.completions.create(
        model="smollm2", messages=HELLO, n=2, stream=True
    ) as chunks:
        assert {one.choices[0].index for one in chunks} == {0, 1}


def tools() -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for _ in range(3):
        answer = client.chat.completions.create(model="smollm2", messages=messages, tools=[TOOL])
        message = answer.choices[0].message
        if not message.tool_calls:
            assert weather(CITY) in str(message.content), message
            assert len(messages) == 3
            return
        assert answer.choices[0].finish_reason == "tool_calls"
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            arguments = json.loads(call.function.arguments)
            messages.append(
                {"role": "tool", "tool_call_id": call.id, "content": weather(**arguments)}
            )
    raise AssertionError("the loop does not end")


def streamed_tools() -> None:
    with client.chat.completions.stream(
        model="smollm2", messages=[{"role": "user", "content": QUESTION}], tools=[TOOL]
    ) as stream:
        found = stream.get_final_completion().choices[0]
    calls = found.message.tool_calls
    assert found.finish_reason == "tool_calls" and calls
    assert json.loads(calls[0].function.arguments) == {"city": CITY}


def json_schema() -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=HELLO,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True},
        },
    )
    assert json.loads(str(answer.choices[0].message.content)) == {"city": CITY, "degrees": 7}


def embeddings() -> None:
    for given, count in (("one text", 1), (["two", "texts"], 2)):
        found = client.embeddings.create(model="lengths", input=given)
        assert [one.index for one in found.data] == [*range(count)] and found.usage.total_tokens


def completions() -> None:
    assert client.completions.create(model="smollm2", prompt="x").choices[0].text
    chunks = client.completions.create(model="smollm2", prompt="x", stream=True)
    assert "".join(one.choices[0].text for one in chunks) == "Good morning."


def errors() -> None:
    refused(openai.AuthenticationError, client.with_options(api_key="wrong").models.list)
    refused(openai.NotFoundError, lambda: client.chat.completions.create(
        model="gpt-9", messages=HELLO))  # fmt: skip
    refused(openai.BadRequestError, lambda: client.chat.completions.create(
        model="smollm2", messages=HELLO, audio={"voice": "alloy", "format": "wav"}))  # fmt: skip
    refused(openai.BadRequestError, lambda: client.responses.create(
        model="smollm2", input="x", previous_response_id="resp_1"))  # fmt: skip
    # not asked again, although it is a 5xx
    several = client.with_options(max_retries=2)
    refused(openai.InternalServerError, lambda: several.images.generate(prompt="x"))
    refused(openai.InternalServerError, lambda: several.audio.speech.create(
        input="x", model="x", voice="x"))  # fmt: skip


def refused(kind: type[openai.APIStatusError], ask: Any) -> None:
    try:
        ask()
    except kind as error:
        assert isinstance(error.body, dict) and error.body["message"], error.body
    else:
        raise AssertionError(f"no {kind.__name__}")


def ignored() -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="smollm2", messages=HELLO, user="me", reasoning_effort="low", store=False
    )
    assert raw.headers["x-quietchoir-ignored"] == "reasoning_effort, store, user", raw.headers


def responses() -> None:
    answer = client.responses.create(model="smollm2", input="hello", instructions="Be brief.")
    assert answer.output_text == "Good morning." and answer.status == "completed"
    assert answer.usage is not None and answer.usage.output_tokens > 0


def responses_streaming() -> None:
    with client.responses.stream(model="smollm2", input="hello") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "Good morning."
    assert kinds[:2] == ["response.created", "response.in_progress"], kinds
    assert kinds[-1] == "response.completed" and "response.output_text.done" in kinds


def responses_tools() -> None:
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    answer = client.responses.create(model="smollm2", input=items, tools=[FLAT_TOOL])
    calls = [one for one in answer.output if one.type == "function_call"]
    assert len(calls) == 1
    items += [one.model_dump(exclude_none=True) for one in answer.output]
    for call in calls:
        brought = weather(**json.loads(call.arguments))
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": brought})
    answer = client.responses.create(model="smollm2", input=items, tools=[FLAT_TOOL])
    assert weather(CITY) in answer.output_text


def responses_streamed_tools() -> None:
    with client.responses.stream(model="smollm2", input=QUESTION, tools=[FLAT_TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert final.output[0].type == "function_call"


def responses_json_schema() -> None:
    answer = client.responses.create(
        model="smollm2",
        input="hello",
        text={"format": {"type": "json_schema", "name": "w", "schema": SCHEMA, "strict": True}},
    )
    assert json.loads(answer.output_text) == {"city": CITY, "degrees": 7}
