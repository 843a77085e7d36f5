"""langchain-openai: chat completions and responses."""

import json
from typing import Any

import openai
from common import BASE, CITY, QUESTION, SCHEMA, TOKEN, weather
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

PACKAGE = "langchain-openai"
KEPT: Any = {"base_url": f"{BASE}/v1", "api_key": TOKEN, "max_retries": 0}


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city"""
    return weather(city)


def _models(**changes: Any) -> list[Any]:
    given = {"model": "smollm2"} | KEPT | changes
    return [ChatOpenAI(**given), ChatOpenAI(**given, use_responses_api=True)]


def chat() -> None:
    for model in _models():
        assert model.invoke("hello").text == "Good morning."


def streaming() -> None:
    for model in _models():
        assert "".join(piece.text for piece in model.stream("hello")) == "Good morning."


def tools() -> None:
    for model in _models():
        able = model.bind_tools([get_weather])
        asked = [HumanMessage(QUESTION)]
        first = able.invoke(asked)
        assert len(first.tool_calls) == 1, first
        results = [
            ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
            for call in first.tool_calls
        ]
        assert weather(CITY) in able.invoke([*asked, first, *results]).text


def streamed_tools() -> None:
    for model in _models():
        first, *rest = model.bind_tools([get_weather]).stream(QUESTION)
        for piece in rest:
            first = first + piece
        assert first.tool_calls[0]["args"] == {"city": CITY}, first


def json_schema() -> None:
    for model in _models():
        form = SCHEMA | {"title": "Weather"}
        found = model.with_structured_output(form, method="json_schema").invoke("hello")
        assert found == {"city": CITY, "degrees": 7}, json.dumps(found)


def embeddings() -> None:
    # it counts tokens itself unless it is told not to, and sends their numbers
    found = OpenAIEmbeddings(model="lengths", check_embedding_ctx_length=False, **KEPT)
    assert len(found.embed_documents(["two", "texts"])) == 2


def errors() -> None:
    for changes, kind in (
        ({"api_key": "wrong"}, openai.AuthenticationError),
        ({"model": "gpt-9"}, openai.NotFoundError),
    ):
        for model in _models(**changes):
            try:
                model.invoke("hello")
            except kind:
                continue
            raise AssertionError(f"no {kind.__name__}")
