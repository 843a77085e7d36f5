"""pydantic-ai: agents over chat completions and over responses."""

import asyncio
from typing import Any

from common import BASE, CITY, QUESTION, TOKEN, WEATHER
from common import weather as brings
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

PACKAGE = "pydantic-ai-slim"


class Weather(BaseModel):
    city: str
    degrees: int


def _models(name: str = "smollm2", token: str = TOKEN) -> list[Any]:
    provider = OpenAIProvider(base_url=f"{BASE}/v1", api_key=token)
    return [OpenAIChatModel(name, provider=provider), OpenAIResponsesModel(name, provider=provider)]


def _agent(model: Any, **more: Any) -> Any:
    agent = Agent(model, **more)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        return brings(city)

    get_weather.__doc__ = WEATHER
    return agent


def chat() -> None:
    for model in _models():
        assert Agent(model).run_sync("hello").output == "Good morning."


def streaming() -> None:
    async def _say(model: Any) -> str:
        async with Agent(model).run_stream("hello") as answer:
            return "".join([piece async for piece in answer.stream_text(delta=True)])

    for model in _models():
        assert asyncio.run(_say(model)) == "Good morning."


def tools() -> None:
    for model in _models():
        said = _agent(model).run_sync(QUESTION)
        assert brings(CITY) in said.output and said.usage.requests == 2


def streamed_tools() -> None:
    async def _say(model: Any) -> str:
        async with _agent(model).run_stream(QUESTION) as answer:
            return str(await answer.get_output())

    for model in _models():
        assert brings(CITY) in asyncio.run(_say(model))


def json_schema() -> None:
    for model in _models():
        for form in (NativeOutput(Weather), ToolOutput(Weather)):
            agent = Agent(model, output_type=form)
            assert agent.run_sync("hello").output == Weather(city=CITY, degrees=7)


def errors() -> None:
    for models, status in ((_models(token="wrong"), 401), (_models("gpt-9"), 404)):
        for model in models:
            try:
                Agent(model).run_sync("hello")
            except ModelHTTPError as error:
                assert error.status_code == status
            else:
                raise AssertionError(f"no error where {status} was due")
