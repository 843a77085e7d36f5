"""Errors as a client of OpenAI's API expects them.

Knows status codes and one JSON shape. Knows nothing of what was asked.
Always: a client learns what was found, expected and what to do; never a traceback or a token.
"""

import json
import re
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from .. import log, parts
from ..engine.sampling.grammar_limits import depth_of
from ..errors import (
    ApprovalError,
    AuthenticationError,
    ConfigError,
    DataError,
    DocumentError,
    EngineError,
    LicenceError,
    ManifestError,
    MissingPartError,
    ModelError,
    ModelNotFoundError,
    OverloadedError,
    QuietchoirError,
    RegistryError,
    RequestError,
    ToolCallCutError,
    UnknownConversationError,
    UnknownEntryError,
)
from .auth import AccessDenied

RETRY_AFTER_S = 2
# Ollama's routes, whose clients read an error as a text
FLAT = re.compile(r"/api/(chat|generate|embed|embeddings|tags|ps|show|version)/*")
MAX_NESTING = 200  # values one inside the other in a body
NOWHERE = (
    "nothing is at this path; here are /v1/chat/completions, /v1/completions, "
    "/v1/embeddings, /v1/rerank "
    "and /v1/models"
)
logger = log.get("server")


class BadRequest(QuietchoirError):
    """A body that cannot be used. `parameter` is the field at fault."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


def describe(error: Exception) -> tuple[int, dict[str, str | None]]:
    """Status and the `error` object for one exception."""
    message = str(error)
    match error:
        case BadRequest():
            return 400, shape(message, "invalid_request_error", error.parameter)
        case UnknownConversationError():
            return 404, shape(message, "invalid_request_error", code="not_found")
        case DataError():
            return 400, shape(message, "invalid_request_error", code="not_usable")
        case ToolCallCutError():
            return 400, shape(message, "invalid_request_error", "max_tokens", "tool_call_cut")
        case ApprovalError():
            return 404, shape(message, "invalid_request_error", code="approval_not_open")
        case RequestError():
            return 400, shape(message, "invalid_request_error", code="request_not_possible")
        case ModelNotFoundError():
            return 404, shape(message, "invalid_request_error", "model", "model_not_found")
        case LicenceError():
            return 400, shape(message, "invalid_request_error", "accept_licence", "licence")
        case ModelError():
            return 400, shape(message, "invalid_request_error", code="model_not_usable")
        case UnknownEntryError():
            return 404, shape(message, "invalid_request_error", code="not_found")
        case DocumentError():
            return 400, shape(message, "invalid_request_error", code="not_readable")
        case MissingPartError():
            return 400, shape(message, "invalid_request_error", code="not_installed")
        case ConfigError() | AuthenticationError():  # a locked collection, a wrong passphrase
            return 409, shape(message, "invalid_request_error", code="not_open")
        case RegistryError() | ManifestError():  # a plugin that is refused; nothing was changed
            return 409, shape(message, "invalid_request_error", code="not_trusted")
        case OverloadedError():
            return 503, shape(message, "overloaded_error", code="overloaded")
        case AccessDenied(status=401):
            return 401, shape(message, "invalid_request_error", code="invalid_api_key")
        case AccessDenied():
            return error.status, shape(message, "invalid_request_error", code="refused")
        case web.HTTPNotFound() if error.reason == "Not Found":
            return 404, shape(NOWHERE, "invalid_request_error", code="not_found")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return 405, shape(
                f"{error.method[:20]!r} is not for this path; it takes {allowed}",
                "invalid_request_error",
            )
        case web.HTTPRequestEntityTooLarge():
            return 413, shape(
                "the body is larger than this node accepts; send less", "invalid_request_error"
            )
        case web.HTTPException():
            return error.status, shape(error.reason, "invalid_request_error")
        case EngineError() | QuietchoirError():
            return 500, shape(message, "server_error")
        case _ if parts.updated():
            return 500, shape(parts.UPDATED, "server_error")
        case _:
            return 500, shape("the node failed inside; its log says where", "server_error")


def shape(
    message: str, kind: str, parameter: str | None = None, code: str | None = None
) -> dict[str, str | None]:
    """OpenAI's error object."""
    return {"message": message, "type": kind, "param": parameter, "code": code}


def response(error: Exception, path: str = "") -> web.Response:
    """A whole response for an error that came before the first byte, as clients of this path read
    it.
    """
    status, body = describe(error)
    headers: dict[str, str] = {}
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = error.headers.get("Allow", "")
    said = body["message"] if FLAT.fullmatch(path) else body
    return web.json_response({"error": said}, status=status, headers=headers)


def event(error: Exception) -> Mapping[str, object]:
    """The same, inside a stream that has begun."""
    return {"error": describe(error)[1]}


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever is raised into OpenAI's shape."""
    try:
        return await handler(request)
    except (QuietchoirError, AccessDenied) as error:
        return response(error, request.path)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return response(error, request.path)
    except ConnectionError:
        raise
    except Exception as error:
        if parts.updated():
            logger.error("%s %s: %s", request.method, request.path, parts.told_updated(error))
        else:
            logger.exception("%s %s failed", request.method, request.path)
        return response(error, request.path)


def parse_json(body: bytes, where: str = "the body") -> dict[str, object]:
    """A JSON object.

    Raises:
        BadRequest: not JSON in UTF-8, not an object, nested too deep, or holding half of a
        surrogate pair, which is no text.
    """
    try:
        # strictly: the JSON reader itself lets halves of surrogate pairs pass
        text = body.decode("utf-8-sig")
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{where} is not JSON: {error!s:.200}") from None
    if not isinstance(found, dict):
        raise BadRequest(f"{where} is a JSON {type(found).__name__}, expected an object")
    if depth_of(found, found, follow=False) > MAX_NESTING:
        raise BadRequest(f"{where} nests deeper than {MAX_NESTING} values; make it flatter")
    return found
