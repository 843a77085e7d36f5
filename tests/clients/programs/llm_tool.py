"""llm: its models of OpenAI-compatible servers, as `extra-openai-models.yaml` makes them."""

import json
from typing import Any

import llm
from common import BASE, CITY, QUESTION, SCHEMA, TOKEN, weather
from llm.default_plugins.openai_models import Chat

PACKAGE = "llm"


def _model(**changes: Any) -> Any:
    given = {
        "model_name": "smollm2",
        "api_base": f"{BASE}/v1",
        "supports_tools": True,
        "supports_schema": True,
    }
    model = Chat("choir", **(given | changes))
    model.key = TOKEN
    return model


def get_weather(city: str = CITY) -> str:
    """Tells the weather of a city"""
    return weather(city)


def chat() -> None:
    assert _model().prompt("hello", system="Be brief.", stream=False).text() == "Good morning."


def streaming() -> None:
    assert "".join(_model().prompt("hello", stream=True)) == "Good morning."


def tools() -> None:
    for stream in (False, True):
        said = _model().chain(QUESTION, tools=[get_weather], stream=stream).text()
        assert weather(CITY) in said, said


def json_schema() -> None:
    said = _model().prompt("hello", schema=SCHEMA, stream=False).text()
    assert json.loads(said) == {"city": CITY, "degrees": 7}


def errors() -> None:
    try:
        _model(model_name="gpt-9").prompt("hello", stream=False).text()
    except Exception as error:
        assert "gpt-9" in str(error), error
    else:
        raise AssertionError("no error")
    assert llm.__name__ == "llm"
