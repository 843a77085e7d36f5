"""A description of the API in OpenAPI 3.1, made from what the handlers themselves read.

Knows routes, and what is said at a handler (`described`). Knows no body of its own: its schema is
that of the reader that decodes it (`schemas.py`), so the two cannot differ.
Always: a route below /v1 or /api that nobody describes fails `tests/core/server/test_openapi.py`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from ... import __version__
from .errors import FLAT
from .schemas import JsonSchema, Record

H = TypeVar("H", bound=Callable[..., Any])
LEAD, END = "/{lead}", "{end}"  # the spellings of a route that are not described
PARAMETER = re.compile(r"\(\?P<(\w+)>((?:[^()]|\([^)]*\))*)\)")  # of a route's own pattern
JSON = "application/json"
TEXT: JsonSchema = {"type": "string"}
WHOLE: JsonSchema = {"type": "integer"}
NUMBER: JsonSchema = {"type": "number"}
FLAG: JsonSchema = {"type": "boolean"}
OBJECT: JsonSchema = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Operation:
    """What is said at a handler."""

    body: Record | None  # None: it reads none
    answer: JsonSchema
    content: str = JSON  # the content type of the answer
    streams: str = ""  # the content type of its stream, if it has one
    reads_bytes: bool = False  # the body is a file's bytes
    open: bool = False  # it needs no token


def described(answer: JsonSchema, body: Record | None = None, **more: Any) -> Callable[[H], H]:
    """Of a handler: what it reads, what it answers, and `more` of an `Operation`."""

    def mark(handler: H) -> H:
        handler.operation = Operation(body, answer, **more)  # type: ignore[attr-defined]
        return handler

    return mark


def shaped(**fields: JsonSchema) -> JsonSchema:
    """An object with these fields at least."""
    return {"type": "object", "properties": fields, "required": sorted(fields)}


def many(item: JsonSchema) -> JsonSchema:
    """A list of such."""
    return {"type": "array", "items": item}


def path_of(resource: web.AbstractResource) -> str:
    """A route as it is written, without its other spellings."""
    return resource.canonical.replace(LEAD, "/v1/").replace(END, "")


def operations(app: web.Application) -> Iterator[tuple[str, str, Mapping[str, str], Any]]:
    """Path, method, the patterns of its parameters and the handler, of every route that has one
    method.
    """
    for route in app.router.routes():
        if route.resource is None or route.method in ("*", "HEAD"):
            continue
        path = path_of(route.resource)
        pattern = route.resource.get_info().get("pattern")
        named = PARAMETER.findall(pattern.pattern if pattern else "")
        own = {name: inner for name, inner in named if name not in ("lead", "end")}
        yield path, route.method, own, route.handler


def description(app: web.Application) -> JsonSchema:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for path, method, parameters, handler in operations(app):
        if (operation := getattr(handler, "operation", None)) is not None:
            paths.setdefault(path, {})[method.lower()] = of_operation(
                path, handler, operation, parameters
            )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "quietchoir",
            "version": __version__,
            "description": "One node: OpenAI's API, Ollama's, and the node's own.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def of_operation(
    path: str, handler: Any, operation: Operation, parameters: Mapping[str, str]
) -> JsonSchema:
    """One route with its method."""
    said = " ".join((handler.__doc__ or "").split())
    contents = {operation.content: {"schema": operation.answer}}
    if operation.streams:
        contents[operation.streams] = {"schema": {}}
    failure = TEXT if FLAT.fullmatch(path) else shaped(message=TEXT, type=TEXT)
    error = {
        "description": "refused, with what was found, what was expected and what to do",
        "content": {JSON: {"schema": shaped(error=failure)}},
    }
    found: JsonSchema = {
        "operationId": re.sub(r"\W+", "_", f"{handler.__name__} {path}").strip("_"),
        "summary": said,
        "responses": {"200": {"description": said, "content": contents}, "default": error},
    }
    if operation.open:
        found["security"] = []
    if parameters:
        found["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": TEXT | {"pattern": f"^{pattern}$"},
            }
            for name, pattern in parameters.items()
        ]
    if operation.body is not None:
        content = {JSON: {"schema": operation.body.schema}}
        found["requestBody"] = {"required": True, "content": content}
    elif operation.reads_bytes:
        content = {"application/octet-stream": {"schema": TEXT}}
        found["requestBody"] = {"required": False, "content": content}  # a file may be empty
    return found


class OpenApi:
    """The handler; the document is made once, after all routes are there."""

    def __init__(self) -> None:
        self._made: JsonSchema | None = None

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [web.get("/openapi.json", self.show)]

    async def show(self, request: web.Request) -> web.Response:
        """This description."""
        self._made = self._made or description(request.app)
        return web.json_response(self._made)
