"""The description of the API is that of the handlers and of their readers."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from quietchoir.core.server import openapi, requests, responses_api
from quietchoir.tests.compat import api_bodies
from quietchoir.tests.fakes.http import Served

CHAT = Draft202012Validator(requests.CHAT.schema)
PAGES = ("/", "/favicon.ico", "/ui/{name}", "/openapi.json")


async def test_every_route_is_described(served: Served) -> None:
    app = served.server.runner.app
    assert app is not None
    missing = [
        (method, path)
        for path, method, _, handler in openapi.operations(app)
        if path not in PAGES and not hasattr(handler, "operation")
    ]
    assert missing == []


async def test_the_description_needs_the_token_and_is_whole(served: Served) -> None:
    status, found = await served.get("/openapi.json")
    assert status == 200 and found["openapi"] == "3.1.0"
    assert {"/v1/chat/completions", "/v1/responses", "/api/chat", "/v1/models/{model}"} <= {
        *found["paths"]
    }
    told = found["paths"]["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]
    assert told["schema"] == responses_api.BODY.schema
    status, _ = await served.get("/openapi.json", headers={"Authorization": "Bearer wrong"})
    assert status == 401


def body(fields: Any) -> Any:
    return {"messages": [api_bodies.USER]} | fields


@pytest.mark.parametrize("name", api_bodies.TAKEN)
def test_what_the_reader_takes_fits_its_schema(name: str) -> None:
    CHAT.validate(body(api_bodies.TAKEN[name]))


@pytest.mark.parametrize("name", api_bodies.HISTORY)
def test_histories_that_the_reader_takes_fit_its_schema(name: str) -> None:
    CHAT.validate({"messages": api_bodies.HISTORY[name][0]})


def test_what_its_schema_forbids_the_reader_refuses_and_the_other_way_round() -> None:
    """One body, spoiled at each of its places; an unknown key and a wrong type above all."""
    spoiled = [(where, body) for _, body, where in api_bodies.spoiled()]
    missed = [where for where, body in spoiled if CHAT.is_valid(body)]
    assert len(spoiled) > 100
    assert missed == []
