"""Write a plugin: functions become tools, resources and prompts of an MCP server on standard input
and output.

One file, standard library alone: a plugin starts in some 25 milliseconds, and this page is all
there is to read. Knows JSON-RPC lines, what MCP says of tools, resources and prompts (handshake
revisions and 2026-07-28), one slot of storage, and how to ask a host over HTTP.
Knows nothing of sandboxes: it runs the same in any other MCP host.
Always: one request, one answer; a tool that raises answers with `isError`, and the server lives on.
What a tool returns is its answer: a text as it is, all else as JSON. `async def` works too.

    from quietchoir_sdk import ToolFailure, serve, tool

    @tool(read_only=True)
    def add(left: int, right: int = 1) -> str:
        "Add two numbers."
        return str(left + right)

    serve("example/adder", "1.0.0")

Source: modelcontextprotocol.io, specification 2025-11-25 and 2026-07-28.
"""

import errno
import hashlib
import inspect
import json
import os
import stat
import struct
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

HANDSHAKE_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
STATELESS_VERSION = "2026-07-28"
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR = -32603
SCHEMA_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}
CONFIG_VARIABLE = "QUIETCHOIR_CONFIG"  # folder of the files that the owner handed to this plugin
PAGE_CHARACTERS = 3000  # some 750 tokens of English: a third of the smallest context
STORAGE_VARIABLE = "QUIETCHOIR_STORAGE"  # "DESCRIPTOR:BYTES" of the storage that the host opened
HOSTS_VARIABLE = "QUIETCHOIR_HOSTS"  # JSON: what the owner filled in for `permissions.hosts`
FOLDERS_VARIABLE = "QUIETCHOIR_FOLDERS"  # where the owner's folders are seen
DATA = Path(os.environ.get(FOLDERS_VARIABLE, "/data"))
SHARED = (
    "this machine's sandbox has no namespaces: plugins write files in tempfile.gettempdir() alone, "
    "and begin programs only where Landlock has version 6 (quietchoir doctor says what helps)"
)
MAX_BODY = 8 << 20  # bytes of one answer of `fetch`


class ToolFailure(Exception):
    """A tool could not do what was asked; the text is for the user."""


class Refused(Exception):
    """A request that breaks the protocol."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Tool:
    """One function on offer, with the JSON Schema of its arguments."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        description: str,
        schema: Mapping[str, Any],
        read_only: bool,
    ):
        self.function, self.name, self.description, self.schema, self.read_only = (
            function,
            name,
            description,
            schema,
            read_only,
        )

    def listing(self) -> dict[str, Any]:
        """As `tools/list` shows it."""
        return {
            "name": self.name,
            "description": self.description,
            "inputSchema": self.schema,
            "annotations": {"readOnlyHint": self.read_only},
        }

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that fit the schema's names and types; a number written as text becomes a
        number.

        Raises:
            ToolFailure: unknown, missing or ill-typed argument, named.
        """
        known = self.schema.get("properties", {})
        for name in arguments:
            if name not in known:
                raise ToolFailure(
                    f"{self.name} takes no argument {name!r}; it knows: "
                    f"{', '.join(known) or 'none'}"
                )
        for name in self.schema.get("required", ()):
            if name not in arguments:
                raise ToolFailure(f"{self.name} needs the argument {name!r}")
        return {
            name: fit(value, known[name], f"{self.name}: {name}")
            for name, value in arguments.items()
            # null for what may be left out is left out
            if value is not None
            or name in self.schema.get("required", ())
            or "null" in types_of(known[name])
        }


def types_of(schema: Mapping[str, Any]) -> list[str]:
    """The JSON types that a schema allows; none: any."""
    wanted = schema.get("type") or ()
    return [wanted] if isinstance(wanted, str) else list(wanted)


def fit(value: Any, schema: Mapping[str, Any], where: str) -> Any:
    """`value` if it fits the schema's types, values and items, or the number that a text spells;
    ToolFailure otherwise.
    """
    value = fit_type(value, types_of(schema), where)
    if "enum" in schema and not any(
        value == one and type(value) is type(one) for one in schema["enum"]
    ):
        raise ToolFailure(f"{where} = {value!r}; expected one of {schema['enum']}")
    if isinstance(value, list) and "items" in schema:
        return [fit(one, schema["items"], f"{where}[{at}]") for at, one in enumerate(value)]
    return value


def fit_type(value: Any, allowed: Sequence[str], where: str) -> Any:
    """`value` if its JSON type is allowed, or the number that a text spells."""
    found = "boolean" if isinstance(value, bool) else SCHEMA_TYPES.get(type(value), "null")
    if not allowed or found in allowed or (found == "integer" and "number" in allowed):
        return value
    if found == "number" and "integer" in allowed and value.is_integer():
        return int(value)
    if found == "string" and {"integer", "number"} & set(allowed):
        try:
            number = float(value)
        except ValueError:
            raise ToolFailure(f"{where} = {value!r} is not a number") from None
        if number.is_integer():
            return int(number)
        if "number" in allowed:
            return number
    raise ToolFailure(f"{where} is {found}, expected {' or '.join(allowed)}")


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """JSON Schema of a function's arguments, from its type hints.

    Raises:
        TypeError: an argument without a hint, or with one that JSON has no type for.
    """
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in hints:
            raise TypeError(
                f"{function.__name__}: argument {name} has no type hint; tools need one for each"
            )
        properties[name] = schema_of_hint(hints[name], f"{function.__name__}: {name}")
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD and (
            parameter.kind is not parameter.KEYWORD_ONLY
        ):
            raise TypeError(
                f"{function.__name__}: argument {name} cannot be given by name; tools need that"
            )
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def schema_of_hint(hint: Any, where: str) -> dict[str, Any]:
    """JSON Schema of one type hint: plain types, `X | None`, unions, Literal and list[X]."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"type": SCHEMA_TYPES[type(arguments[0])], "enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        known = [schema_of_hint(one, where) for one in arguments if one is not type(None)]
        if len(known) == 1:  # X | None: with a default it may be null or left out
            return known[0]
        return {"type": [kind for one in known for kind in types_of(one)]}
    if origin is list and arguments:
        return {"type": "array", "items": schema_of_hint(arguments[0], where)}
    if (origin or hint) in SCHEMA_TYPES:
        return {"type": SCHEMA_TYPES[origin or hint]}
    raise TypeError(
        f"{where}: {hint!r} has no JSON type; use str, int, float, bool, list, dict or "
        f"a union of these"
    )


class Resource:
    """A text that a host may read."""

    def __init__(
        self, function: Callable[..., Any], uri: str, name: str, description: str, mime_type: str
    ) -> None:
        self.function, self.uri, self.name = function, uri, name
        self.description, self.mime_type = description, mime_type

    def listing(self) -> dict[str, Any]:
        """Its row of `resources/list`."""
        row = {"uri": self.uri, "name": self.name, "mimeType": self.mime_type}
        return {**row, **({"description": self.description} if self.description else {})}


def prompt_listing(prompt: "Tool") -> dict[str, Any]:
    """A prompt's row of `prompts/list`."""
    schema = prompt.schema
    required = schema.get("required", [])
    takes = [{"name": name, "required": name in required} for name in schema["properties"]]
    return {"name": prompt.name, "description": prompt.description, "arguments": takes}


class Server:
    """Tools of one plugin, and the loop that answers for them."""

    def __init__(self) -> None:
        self.tools: dict[str, Tool] = {}
        self.resources: dict[str, Resource] = {}  # by address
        self.prompts: dict[str, Tool] = {}
        self.lines: Iterator[str] = iter(())
        self.out: TextIO = sys.stdout
        self.later: list[str] = []  # what came while a tool waited for the host
        self.asked = 0
        self.name = "PUBLISHER/NAME"  # once it serves
        self.loop: Any = None  # an asyncio.Runner, once a tool needs one

    def add(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        description: str,
        schema: Mapping[str, Any],
        read_only: bool = False,
    ) -> None:
        """Offer `function` under an explicit schema."""
        self.tools[name] = Tool(function, name, description, schema, read_only)

    def serve(
        self, name: str, version: str, lines: TextIO | None = None, out: TextIO | None = None
    ) -> None:
        """Answer requests until the input ends. What the plugin prints goes to standard error."""
        self.lines, self.out = iter(lines or sys.stdin), out or sys.stdout
        self.name, identity = name, {"name": name, "version": version}
        kept, sys.stdout = sys.stdout, sys.stderr  # a stray print() must not break the protocol
        try:
            for line in self.coming():
                reply = self.answer(line, identity)
                if reply is not None:
                    self.say(reply)
        finally:
            sys.stdout = kept
            if self.loop is not None:
                self.loop.close()

    def coming(self) -> Iterator[str]:
        """Lines to answer, first those that came while a tool waited for the host."""
        while True:
            if self.later:
                yield self.later.pop(0)
                continue
            line = next(self.lines, None)
            if line is None:
                return
            yield line

    def say(self, message: Mapping[str, Any]) -> None:
        """One line to the host."""
        # escaped: half a character, which a tool may return, has no bytes
        self.out.write(json.dumps(message) + "\n")
        self.out.flush()

    def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the host while a tool runs; ToolFailure if it refuses."""
        self.asked += 1
        number = f"asked-{self.asked}"
        self.say({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        for line in self.lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict) or "method" in message:
                reply = None
                if isinstance(message, dict) and message["method"] == "ping":
                    reply = self.answer(line, {})
                if reply is None:
                    self.later.append(line)
                else:
                    self.say(reply)
            elif message.get("id") == number:
                if "result" in message:
                    return dict(message["result"])
                raise ToolFailure(str((message.get("error") or {}).get("message", "refused")))
        raise ToolFailure("the host is gone")

    def answer(self, line: str, identity: Mapping[str, str]) -> dict[str, Any] | None:
        """The reply to one line, None for a notification."""
        number = None
        try:
            message = parse(line)
            number = message.get("id")
            result = self.result(message["method"], message.get("params") or {}, identity)
        except Refused as error:
            return {
                "jsonrpc": "2.0",
                "id": number,
                "error": {"code": error.code, "message": str(error)},
            }
        if number is None:
            return None
        return {"jsonrpc": "2.0", "id": number, "result": result}

    def result(
        self, method: str, params: Mapping[str, Any], identity: Mapping[str, str]
    ) -> dict[str, Any]:
        """What `method` gives back. The stateless revision's extra fields do not disturb older
        clients.
        """
        extra = {
            "resultType": "complete",
            "_meta": {"io.modelcontextprotocol/serverInfo": dict(identity)},
        }
        cache = {"ttlMs": 0, "cacheScope": "private"}
        if method == "initialize":
            asked = params.get("protocolVersion")
            chosen = asked if asked in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[0]
            return {
                "protocolVersion": chosen,
                "capabilities": self.capabilities(),
                "serverInfo": dict(identity),
            }
        if method == "server/discover":
            return {
                "supportedVersions": [STATELESS_VERSION],
                "capabilities": self.capabilities(),
                **extra,
                **cache,
            }
        if method == "ping" or method.startswith("notifications/"):
            return {}
        if method == "tools/list":
            return {"tools": [tool.listing() for tool in self.tools.values()], **extra, **cache}
        if method == "tools/call":
            return {**self.call(params), **extra}
        if method == "resources/list" and self.resources:
            listed = [one.listing() for one in self.resources.values()]
            return {"resources": listed, **extra, **cache}
        if method == "resources/read" and self.resources:
            return {**self.read(params.get("uri")), **extra, **cache}
        if method == "prompts/list" and self.prompts:
            prompts = [prompt_listing(one) for one in self.prompts.values()]
            return {"prompts": prompts, **extra, **cache}
        if method == "prompts/get" and self.prompts:
            return {**self.prompt(params), **extra}
        raise Refused(METHOD_NOT_FOUND, f"no method {method!r} here")

    def capabilities(self) -> dict[str, Any]:
        """What this server offers."""
        more = {"resources": self.resources, "prompts": self.prompts}
        return {"tools": {}, **{name: {} for name, held in more.items() if held}}

    def read(self, uri: Any) -> dict[str, Any]:
        """One resource's text."""
        found = self.resources.get(uri) if isinstance(uri, str) else None
        if found is None:
            raise Refused(INVALID_PARAMS, f"no resource is called {uri!r}")
        text = self.told(found.function, {}, found.uri)
        return {"contents": [{"uri": found.uri, "mimeType": found.mime_type, "text": text}]}

    def prompt(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """One prompt's text, as a message of the user's."""
        name, arguments = params.get("name"), params.get("arguments") or {}
        found = self.prompts.get(name) if isinstance(name, str) else None
        if found is None or not isinstance(arguments, dict):
            raise Refused(INVALID_PARAMS, f"no prompt is called {name!r}, or no arguments")
        try:
            given = found.check(arguments)
        except ToolFailure as failure:
            raise Refused(INVALID_PARAMS, str(failure)) from None
        text = self.told(found.function, given, found.name)
        message = {"role": "user", "content": {"type": "text", "text": text}}
        return {"description": found.description, "messages": [message]}

    def told(self, function: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> str:
        """What a function returns, as a text; Refused if it fails."""
        try:
            answer = self.run(function, arguments)
        except ToolFailure as failure:
            raise Refused(INTERNAL_ERROR, str(failure)) from None
        except Exception as error:
            traceback.print_exc()
            raise Refused(INTERNAL_ERROR, f"{name} broke: {type(error).__name__}") from None
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)

    def call(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Run one tool; a failure is an answer too."""
        name, arguments = params.get("name"), params.get("arguments") or {}
        chosen = self.tools.get(name) if isinstance(name, str) else None
        if chosen is None:
            raise Refused(INVALID_PARAMS, f"no tool is called {name!r}")
        if not isinstance(arguments, dict):
            raise Refused(INVALID_PARAMS, "arguments must be an object")
        try:
            answer, failed = self.run(chosen.function, chosen.check(arguments)), False
            text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        except ToolFailure as failure:
            answer, text, failed = None, str(failure), True
        except PermissionError as error:
            traceback.print_exc()
            why = f"; {SHARED}" if FOLDERS_VARIABLE in os.environ else ""
            answer, text, failed = None, f"{chosen.name} was refused something ({error}){why}", True
        except Exception as error:
            traceback.print_exc()
            answer, text, failed = None, f"{chosen.name} broke: {type(error).__name__}", True
        values = {"structuredContent": answer} if isinstance(answer, dict) else {}
        return {"content": [{"type": "text", "text": text}], "isError": failed, **values}

    def run(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """What the function returns; an `async def` runs to its end in the server's own loop."""
        answer = function(**arguments)
        if not inspect.iscoroutine(answer):
            return answer
        import asyncio  # some 30 ms, which a plugin without `async def` does not wait for

        if self.loop is None:
            self.loop = asyncio.Runner()
        return self.loop.run(answer)


def parse(line: str) -> dict[str, Any]:
    """One JSON-RPC request or notification; Refused otherwise."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused(PARSE_ERROR, "not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        raise Refused(INVALID_REQUEST, "not a request: no method")
    if not isinstance(message.get("params") or {}, dict):
        raise Refused(INVALID_PARAMS, "params must be an object")
    return message


SERVER = Server()  # a plugin is one program: its tools gather here


def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str = "",
    description: str = "",
    read_only: bool = False,
) -> Callable[..., Any]:
    """Offer a function as a tool: name, docstring and type hints become its listing."""

    def offer(chosen: Callable[..., Any]) -> Callable[..., Any]:
        text = description or inspect.getdoc(chosen) or ""
        SERVER.add(
            chosen,
            name=name or chosen.__name__,
            description=text,
            schema=schema_of(chosen),
            read_only=read_only,
        )
        return chosen

    return offer if function is None else offer(function)


def resource(uri: str, *, name: str = "", mime_type: str = "text/plain") -> Callable[..., Any]:
    """Offer what a function without arguments returns as a text that a host may read at `uri`; its
    docstring describes it.
    """

    def offer(chosen: Callable[..., Any]) -> Callable[..., Any]:
        text = inspect.getdoc(chosen) or ""
        SERVER.resources[uri] = Resource(chosen, uri, name or chosen.__name__, text, mime_type)
        return chosen

    return offer


def prompt(function: Callable[..., Any]) -> Callable[..., Any]:
    """Offer what a function returns as a prompt; it takes texts. Name and docstring describe it."""
    name, text = function.__name__, inspect.getdoc(function) or ""
    SERVER.prompts[name] = Tool(function, name, text, schema_of(function), True)
    return function


def serve(name: str, version: str) -> None:
    """Answer for all tools of this program until standard input ends."""
    SERVER.serve(name, version)


def config(name: str) -> Any:
    """JSON file `name` that the owner handed to this plugin; None if there is none."""
    path = Path(os.environ.get(CONFIG_VARIABLE, ".")) / name
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def folder(name: str) -> Path:
    """Where the owner's folder `name` is seen: one of `permissions.folders` or `write_folders`."""
    return DATA / name


def hosts(name: str) -> list[str]:
    """The hosts, as HOST:PORT, that the owner filled in for `name` of `permissions.hosts`."""
    return list(json.loads(os.environ.get(HOSTS_VARIABLE, "{}")).get(name, ()))


def ask_model(prompt: str, *, system: str = "", max_tokens: int = 256) -> str:
    """What the host's model writes to a prompt; for a tool that is running. ToolFailure if this
    plugin was not granted that (`permissions.model_tokens`), or its tokens are spent.
    """
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    params: dict[str, Any] = {"messages": [message], "maxTokens": max_tokens}
    if system:
        params["systemPrompt"] = system
    content = SERVER.request("sampling/createMessage", params).get("content") or {}
    return str(content.get("text", ""))


def call_tool(wanted: str, /, **arguments: Any) -> str:
    """What a tool of another plugin answers; for a tool that is running.

    Args:
        wanted: PUBLISHER/NAME:TOOL, as this plugin's `permissions.tools` names it.

    Raises:
        ToolFailure: it was not granted, is not there, or says that it failed.
    """
    said = SERVER.request("quietchoir/tools/call", {"tool": wanted, "arguments": arguments})
    text = "\n".join(str(part.get("text", "")) for part in said.get("content") or ())
    if said.get("isError"):
        raise ToolFailure(f"{wanted}: {text}")
    return text


def ask_owner(
    message: str, properties: Mapping[str, Any], required: Sequence[str] = ()
) -> dict[str, Any] | None:
    """What the owner fills in, of a small form; for a tool that is running.

    Args:
        properties: name → JSON Schema of one plain value, at most 8 of them.

    Returns:
        The values; None: a no, or no answer in time.

    Raises:
        ToolFailure: this host shows no forms, or nobody can be asked during this call.
    """
    schema = {"type": "object", "properties": dict(properties), "required": list(required)}
    asked = {"message": message, "requestedSchema": schema}
    answer = SERVER.request("elicitation/create", asked)
    return dict(answer.get("content") or {}) if answer.get("action") == "accept" else None


class HostResponse:
    """What a host answered: any status is an answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def text(self) -> str:
        """The body as a text, in the character set that the host names, or UTF-8."""
        charset = self.headers.get_content_charset() or "utf-8"  # type: ignore[attr-defined]
        try:
            return self.body.decode(charset, "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON; ToolFailure if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise ToolFailure("the answer is not JSON") from None


def fetch(
    url: str,
    *,
    method: str = "",
    headers: Mapping[str, str] | None = None,
    data: bytes | None = None,
    timeout_s: float = 30.0,
    most_bytes: int = MAX_BODY,
) -> HostResponse:
    """Ask a host that this plugin was granted; ToolFailure if it was not, or does not answer.

    Args:
        method: GET, or POST where `data` is given, unless it says otherwise.

    A redirect is followed at the same host; to another one it is an answer like others, so that
    no header meant for the first is told to the second.
    """
    import http.client
    import urllib.error
    import urllib.parse
    import urllib.request  # some 40 ms, which a plugin without a network does not wait for

    def origin(address: str) -> tuple[str, str | None, int | None]:
        parts = urllib.parse.urlsplit(address)
        return parts.scheme, parts.hostname, parts.port

    class SameHost(urllib.request.HTTPRedirectHandler):
        """Redirects, at the same host only."""

        def redirect_request(self, req: Any, *more: Any) -> Any:
            """The next request; None: the redirect itself is the answer."""
            if origin(more[-1]) != origin(req.full_url):
                return None
            return super().redirect_request(req, *more)

    try:
        asked = urllib.request.Request(url, data, dict(headers or {}), method=method or None)
        if asked.type not in ("http", "https"):
            raise ToolFailure(f"{url!r} must begin with http:// or https://")
        try:
            answer = urllib.request.build_opener(SameHost).open(asked, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            body = answer.read(most_bytes + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ToolFailure(f"{url}: {getattr(error, 'reason', None) or error}") from None
    if answer.headers.get("Proxy-Status", "").startswith("quietchoir;"):
        raise ToolFailure(body.decode("utf-8", "replace").strip())
    if len(body) > most_bytes:
        raise ToolFailure(f"{url}: an answer of more than {most_bytes} bytes")
    return HostResponse(answer.status, answer.headers, body)


def paged(lines: Sequence[str], page: int = 1, characters: int = PAGE_CHARACTERS) -> str:
    """One page of a long answer, so that it fits a small model's context; lines that are longer
    than a page are cut into several. The last line says how many pages there are.

    Raises:
        ToolFailure: there is no such page.
    """
    pages: list[list[str]] = [[]]
    room = characters
    for line in lines:
        for start in range(0, max(1, len(line)), characters):
            part = line[start : start + characters]
            if len(part) + 1 > room and pages[-1]:
                pages.append([])
                room = characters
            pages[-1].append(part)
            room -= len(part) + 1
    if not 1 <= page <= len(pages):
        raise ToolFailure(f"there is no page {page}; there are {len(pages)}")
    text = "\n".join(pages[page - 1])
    if len(pages) == 1:
        return text
    more = f"; ask for page {page + 1}" if page < len(pages) else ""
    return f"{text}\n(page {page} of {len(pages)}{more})"


def granted_folders() -> dict[str, Path]:
    """The folders that the owner shows to this plugin, by name. ToolFailure: there is none."""
    found = {path.name: path for path in sorted(DATA.iterdir())} if DATA.is_dir() else {}
    if not found:
        raise ToolFailure(
            f"no folder is granted to this plugin; its owner can: quietchoir plugin grant "
            f"{SERVER.name} --read NAME=FOLDER"
        )
    return found


def granted_path(path: str) -> Path:
    """Where a path of a granted folder lies, links in it followed; it begins with the folder's
    name, which may be left out where there is only one.

    Raises:
        ToolFailure: nothing is there, or it leads out of what was granted.
    """
    known = granted_folders()
    words = path.strip().strip("/")
    if words.split("/")[0] not in known:
        if len(known) > 1:
            raise ToolFailure(f"{path[:100]!r}: a path begins with one of: {', '.join(known)}")
        words = f"{next(iter(known))}/{words}"
    try:
        found = (DATA / words).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # also a NUL in it, and links in a circle
        raise ToolFailure(f"{path[:200]!r}: there is no such file") from None
    for folder in known.values():  # without namespaces each is a link itself
        if found.is_relative_to(real := folder.resolve()):
            return folder / found.relative_to(real)
    raise ToolFailure(f"{path[:200]!r} leads out of the folders that are granted")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of a granted folder, whole or not at all, over a plain file of its name if there
    is one; its mode stays. On the way it has a name of its own in the same folder, that no file of
    the owner's has and no link leads away from.

    Raises:
        OSError: no room, no right to, or a link or no plain file stands in its place.
    """
    mode = None
    if os.path.lexists(path):
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode):
            raise FileExistsError(errno.EEXIST, "a link, or no plain file, stands in its place")
        mode = about.st_mode & 0o777
    fresh = path.with_name(f".quietchoir-{os.urandom(8).hex()}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(fresh, flags, 0o600 if mode is not None else 0o666), "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
        fresh.replace(path)
    except FileExistsError:
        raise  # another's: it stays
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


class Storage:
    """One JSON value that outlives the plugin: two slots in one file, written in turn.

    Always: a plugin killed in the middle of a write finds the value before it, never half of a
    value. Without a host that opened a file it lasts as long as the process.
    """

    header = struct.Struct("<QI32s")  # sequence, length, SHA-256 of both and the value

    def __init__(self, place: str | None = None) -> None:
        descriptor, _, size = (
            place if place is not None else os.environ.get(STORAGE_VARIABLE, "")
        ).partition(":")
        self.descriptor = int(descriptor) if descriptor else -1
        self.slot_bytes = int(size or 0) // 2
        self.sequence, self.value = max(
            (self._read(slot) for slot in (0, 1)), key=lambda found: found[0]
        )

    def _read(self, slot: int) -> tuple[int, Any]:
        if self.descriptor < 0:
            return 0, None
        head = os.pread(self.descriptor, self.header.size, slot * self.slot_bytes)
        if len(head) < self.header.size:
            return 0, None
        sequence, length, digest = self.header.unpack(head)
        if length > self.slot_bytes:
            return 0, None
        content = os.pread(self.descriptor, length, slot * self.slot_bytes + self.header.size)
        return (
            (sequence, json.loads(content))
            if self._seal(sequence, content) == digest
            else (0, None)
        )

    @staticmethod
    def _seal(sequence: int, content: bytes) -> bytes:
        # The sequence is sealed too: cut after it, a write would make the older value look like the
        # newest.
        return hashlib.sha256(struct.pack("<QI", sequence, len(content)) + content).digest()

    def save(self, value: Any) -> None:
        """Keep `value`; ToolFailure if it is larger than half of the storage granted."""
        content = json.dumps(value, ensure_ascii=False).encode()
        if self.descriptor >= 0:
            if len(content) + self.header.size > self.slot_bytes:
                raise ToolFailure(
                    f"this plugin may keep {self.slot_bytes} bytes, and its state "
                    f"would be {len(content)}"
                )
            head = self.header.pack(
                self.sequence + 1, len(content), self._seal(self.sequence + 1, content)
            )
            os.pwrite(self.descriptor, head + content, (self.sequence + 1) % 2 * self.slot_bytes)
        self.sequence, self.value = self.sequence + 1, value
