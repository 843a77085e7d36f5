"""OpenAI's and Ollama's clients against a node with a real model: the three protocols say the same,
and numbers are what they claim to be.
"""

import json
from typing import Any

import ollama
import openai
from common import BASE, PARAMETERS, SCHEMA, TOKEN, WEATHER

client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=TOKEN, max_retries=0, timeout=300)
other = ollama.Client(host=BASE, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300)
ASKED: list[Any] = [{"role": "user", "content": "Name three colours."}]
MODEL = "default"
FREE: Any = {"tool_choice": "none"}
# a hot answer may fill a string without a limit until its tokens end
LIMITED: Any = SCHEMA | {
    "properties": {"city": {"type": "string", "maxLength": 40}, "degrees": {"type": "integer"}}
}


def _chat(**more: Any) -> Any:
    given = {"temperature": 0, "max_tokens": 12} | FREE | more
    return client.chat.completions.create(model=MODEL, messages=ASKED, **given)


def the_three_protocols_say_the_same() -> None:
    said = _chat().choices[0].message.content
    response = client.responses.create(
        model=MODEL, input=ASKED, temperature=0, max_output_tokens=12, tool_choice="none"
    )
    assert response.output_text == said, (response.output_text, said)
    assert response.status == "incomplete", response
    line = other.chat(MODEL, ASKED, options={"temperature": 0, "num_predict": 12}, tools=[])
    assert line.message.content == said and line.done_reason == "length", line
    pieces = _chat(stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in pieces) == said


def a_seed_says_the_same_again_and_each_draft_another() -> None:
    drawn = {"temperature": 1.2, "top_p": 1.0, "seed": 11}
    first = _chat(n=3, **drawn)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) > 1, texts
    again = [choice.message.content for choice in _chat(n=3, **drawn).choices]
    assert again == texts, (again, texts)
    alone = _chat(**drawn).choices[0].message.content
    assert alone == texts[0], (alone, texts)


def logprobs_are_of_the_tokens_that_were_said() -> None:
    choice = _chat(logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert "".join(one.token for one in tokens) == choice.message.content
    for one in tokens:
        ranked = [top.logprob for top in one.top_logprobs]
        assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True)
        assert one.logprob == ranked[0] <= 0, "greedy takes the likeliest"


def usage_counts_what_was_said() -> None:
    several = _chat(n=2)
    assert several.usage.completion_tokens == 24 and several.choices[0].finish_reason == "length"
    one = _chat(logprobs=True)
    assert one.usage.completion_tokens == len(one.choices[0].logprobs.content)
    assert several.usage.prompt_tokens == one.usage.prompt_tokens


def an_answer_stops_before_its_stop_text() -> None:
    whole = _chat().choices[0].message.content
    stop = whole.split()[2]
    cut = _chat(stop=stop).choices[0]
    assert stop not in cut.message.content and whole.startswith(cut.message.content)
    assert cut.finish_reason == "stop"


def a_schema_holds_whatever_the_model_would_say() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": LIMITED, "strict": True}}
    for more in ({"temperature": 0}, {"temperature": 1.5, "seed": 3}):
        found = json.loads(_chat(response_format=form, max_tokens=200, **more)
                           .choices[0].message.content)  # fmt: skip
        assert found.keys() == {"city", "degrees"} and isinstance(found["degrees"], int)
    line = other.chat(MODEL, ASKED, format=LIMITED)
    assert json.loads(line.message.content).keys() == {"city", "degrees"}


def a_demanded_call_fits_its_tool_and_its_result_is_answered() -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "get_weather", "description": WEATHER, "parameters": PARAMETERS},
    }
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Bern?"}]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[tool], tool_choice="required"
    )
    (call, *_) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city"}
    messages.append(answer.choices[0].message.model_dump(exclude_none=True))
    for one in answer.choices[0].message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": one.id, "content": "7 degrees, rain"})
    said = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[tool], tool_choice="none", max_tokens=30
    )
    assert said.choices[0].message.content


def a_continued_answer_is_the_rest_alone() -> None:
    begun = {"role": "assistant", "content": "Red, green and"}
    line = other.chat(MODEL, [*ASKED, begun], options={"temperature": 0, "num_predict": 5})
    assert line.message.content and not line.message.content.startswith("Red"), line
