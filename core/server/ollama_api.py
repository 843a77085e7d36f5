"""Ollama's API: chat, generate, embed, and what it tells of models.

Knows its bodies, its shapes, and its streams of one JSON object a line. Knows nothing of engines;
an answer comes from `answering.py`.
Always: a stream ends with `"done": true` or with an `error`; a field that would change the answer
and is not supported is refused. Models are brought by their owner, not through this API.

`tool_calls` are the client's own to carry out. Calls that the node itself carries out are told
under `quietchoir`, with what each brought and the questions to the owner.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from aiohttp import web

from ..assistant.citations import Cited
from ..assistant.context import LeftOut, Message
from ..assistant.events import (
    ApprovalEvent,
    ApprovedEvent,
    ElicitationEvent,
    ElicitedEvent,
    Event,
    Finished,
    Text,
    ToolCallEvent,
    ToolResultEvent,
)
from ..assistant.model_pool import ModelFacts
from ..assistant.thoughts import CLOSING, unmarked
from ..engine.sampling.params import MAX_LOGPROBS, Constraint, SamplingParams
from ..errors import QuietchoirError
from . import errors, forms, messages, requests
from .answering import IGNORED, Answering, PendingAnswer, merged
from .completions import (
    answered,
    asked,
    called,
    citations_of,
    elicitation,
    left_out,
    sources_of,
    spelled_out,
)
from .embeddings import Embeddings
from .errors import BadRequest, parse_json
from .openapi import FLAG, NUMBER, OBJECT, TEXT, WHOLE, described, many, shaped
from .requests import MOST_TOKENS, OURS, SAMPLING, Body
from .schemas import (
    FieldGroup,
    Reader,
    Record,
    absent,
    anything,
    either,
    flag,
    listed,
    mapping,
    number,
    only,
    shown,
    tagged,
    text,
    typed,
)

# Whose shapes these are; clients compare it with what they need.
OLLAMA_VERSION = "0.12.6"
BROUGHT = "models are brought by this node's owner: quietchoir model pull NAME"
NOT_HERE = ("pull", "push", "create", "copy", "delete", "blobs/{rest:.+}")
# num_predict: no limit, and until the context is full; here both are the latter
UNLIMITED = (-1, -2)


@typed(type="array", maxItems=0)
def no_images(value: Any, where: str) -> None:
    """None. Raises: BadRequest: there are some."""
    if value != []:
        raise BadRequest(f"{where}: this node reads text alone; leave images out", where)


@typed(type="integer", minimum=-2, maximum=MOST_TOKENS)
def num_predict(value: Any, where: str) -> int | None:
    """The most tokens; None: no limit."""
    if type(value) is int and value in UNLIMITED:
        return None
    return int(number(int, 1, MOST_TOKENS)(value, where))


@typed(anyOf=[{"enum": ["", "json"]}, {"type": "object"}])
def answer_format(value: Any, where: str) -> Constraint | None:
    """The answer's form: any JSON, or what fits a schema."""
    if isinstance(value, dict):
        return forms.json_schema(value)
    return Constraint("json") if only("", "json")(value, where) else None


OPTIONS = FieldGroup(
    SamplingParams,
    {
        key: read
        for key, read in SAMPLING.fields.items()
        if key not in ("max_tokens", "response_format", "repetition_penalty")
    }
    | {"num_predict": num_predict, "repeat_penalty": SAMPLING.fields["repetition_penalty"]},
    renamed={"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"},
)
# How Ollama shall lay a model out on its machine; here that is the owner's configuration.
LAYOUT: dict[str, Reader] = {
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread"), anything),
    **dict.fromkeys(("numa", "low_vram", "f16_kv", "use_mmap", "use_mlock", "num_keep"), anything),
    "mirostat": only(0),
    "tfs_z": only(1, 1.0),
    "typical_p": only(1, 1.0),
    "penalize_newline": only(True),
}
DURATION = re.compile(r"(-?)((?:\d+(?:\.\d+)?(?:ms|h|m|s))+|0)")
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
LONGEST_S = 1e9


@typed(anyOf=[{"type": "number"}, {"type": "string"}])
def duration(value: Any, where: str) -> float:
    """Seconds, from a number of them or a text such as "5m" or "1h30m"; below 0: for ever."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise BadRequest(f"{where} is {value}, expected seconds", where)
        return max(-1.0, min(float(value), LONGEST_S))
    whole = DURATION.fullmatch(value) if isinstance(value, str) else None
    if whole is None:
        raise BadRequest(f'{where} is {shown(value)}, expected seconds or a text as "5m"', where)
    if whole[1]:
        return -1.0
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", whole[2])
    return min(sum(float(number) * UNITS[unit] for number, unit in parts), LONGEST_S)


ALIVE: dict[str, Reader] = {"keep_alive": anything}
SHARED: dict[str, Reader] = {
    "model": text,
    "keep_alive": duration,
    "stream": flag,
    "format": answer_format,
    "options": Record(OPTIONS.fields, harmless=LAYOUT),
    "logprobs": flag,
    "top_logprobs": number(int, 0, MAX_LOGPROBS),
}
HARMLESS: dict[str, Reader] = {"think": flag}  # a model thinks as it was trained to
SAID: dict[str, Reader] = {"thinking": text, "images": no_images}
PLAIN = Record({"role": text, "content": text}, harmless=SAID)
SHAPES = {
    "system": PLAIN,
    "user": PLAIN,
    "assistant": Record(
        {"role": text, "content": text, "tool_calls": listed(messages.CALL)},
        harmless=SAID | {"quietchoir": mapping},
    ),
    "tool": Record(
        {"role": text, "content": text, "tool_name": text, "name": text, "tool_call_id": text},
        harmless=SAID,
    ),
}
CHAT = Record(
    SHARED | OURS | {"messages": listed(tagged("role", SHAPES)), "tools": forms.tools},
    ["messages"],
    HARMLESS,
)
GENERATE = Record(
    SHARED | OURS | {"prompt": text, "system": text, "raw": flag},
    (),
    HARMLESS
    | {
        "images": no_images,
        "suffix": only(""),
        "template": only(""),
        "context": absent("send the conversation to /api/chat"),
    },
)
UNREAD = ("system", "collections", "memory", "metadata")  # where a prompt is `raw`
EMBED = Record(
    {
        "model": text,
        "input": either(text, listed(text, most=2048)),
        "dimensions": number(int, 1, 1 << 20),
    },
    ["input"],
    ALIVE | {"truncate": flag, "options": mapping},
)
EMBED_ONE = Record({"model": text, "prompt": text}, ["prompt"], ALIVE | {"options": mapping})
SHOW = Record({"model": text, "name": text}, (), {"verbose": flag})


@dataclass(slots=True)
class NdjsonLines:
    """The shape of one answer's lines."""

    kind: Literal["chat", "generate"]
    model: str
    tells: bool  # logprobs stand beside the text
    loading_s: float = 0.0  # that it waited for its model
    begun: int = field(default_factory=time.perf_counter_ns)
    first: int = 0  # when its first piece came

    def envelope(self, said: str, *, done: bool = False, **beside: Any) -> dict[str, Any]:
        """What every line carries; `beside` the text of a chat stands in its message."""
        head = {"model": self.model, "created_at": now(), "done": done}
        if self.kind == "generate":
            return head | {"response": said} | beside
        return head | {"message": {"role": "assistant", "content": said} | beside}

    def lines(self, event: Event, *, calls_back: bool) -> Iterator[dict[str, Any]]:
        """What one event of the answer adds."""
        if isinstance(event, Text | ToolCallEvent | Finished):
            self.first = self.first or time.perf_counter_ns()
        match event:
            case Text():
                told = {"logprobs": spelled_out(event.logprobs)} if self.tells else {}
                if event.thought:
                    yield self.envelope("", thinking=unmarked(event)) | told
                else:
                    yield self.envelope(event.text) | told
            case ToolCallEvent() if calls_back:
                call = {"name": event.call.name, "arguments": dict(event.call.arguments)}
                yield self.envelope("", tool_calls=[{"id": event.id, "function": call}])
            case Finished():
                yield self.end(event)
            case _ if own := own_words(event):
                yield self.envelope("", quietchoir=own)

    def end(self, end: Finished) -> dict[str, Any]:
        """The last line. Times are nanoseconds; the prompt's holds its wait for the engine."""
        ended = time.perf_counter_ns()
        reason = "length" if end.reason == "repetition" else end.reason
        return self.envelope("", done=True) | {
            "done_reason": "stop" if reason == "tool_calls" else reason,
            "total_duration": ended - self.begun + int(self.loading_s * 1e9),
            "load_duration": int(self.loading_s * 1e9),
            "prompt_eval_count": end.prompt_tokens,
            "prompt_eval_duration": self.first - self.begun,
            "eval_count": end.completion_tokens,
            "eval_duration": ended - self.first,
        }

    def whole(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        """One object of all lines."""
        *pieces, last = lines
        told = [one for piece in pieces for one in piece.get("logprobs", ())]
        beside: dict[str, Any] = {"logprobs": told} if self.tells else {}
        parts = pieces if self.kind == "generate" else [piece["message"] for piece in pieces]
        thought = "".join(part.get("thinking", "") for part in parts)
        thinking = {"thinking": thought} if thought else {}
        if self.kind == "generate":
            own = [piece["quietchoir"] for piece in pieces if "quietchoir" in piece]
            said = "".join(piece["response"] for piece in pieces)
            more = thinking | ({"quietchoir": joined(own)} if own else {})
            return last | {"response": said} | beside | more
        message = dict(last["message"]) | thinking
        message["content"] = "".join(part["content"] for part in parts)
        if calls := [call for part in parts for call in part.get("tool_calls", ())]:
            message["tool_calls"] = calls
        if own := [part["quietchoir"] for part in parts if "quietchoir" in part]:
            message["quietchoir"] = joined(own)
        return last | {"message": message} | beside


def own_words(event: Event) -> dict[str, Any]:
    """What Ollama has no word for, by our own names: lists, but `context`."""
    match event:
        case ToolCallEvent():
            return {"calls": [called(event)]}
        case ToolResultEvent():
            return {"results": [answered(event)]}
        case ApprovalEvent():
            return {"approvals": [asked(event)]}
        case ApprovedEvent():
            return {"approved": [asdict(event)]}
        case ElicitationEvent():
            return {"elicitations": [elicitation(event)]}
        case ElicitedEvent():
            return {"elicited": [asdict(event)]}
        case Cited():
            return {"citations": citations_of(event), **sources_of(event)}
        case LeftOut():
            return {"context": left_out(event)}
    return {}


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The same of a whole answer."""
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            found[key] = [*found.get(key, ()), *value] if isinstance(value, list) else value
    return found


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def read_chat(raw: bytes) -> Body | None:
    """Decode a body of /api/chat; None: it has no messages, which asks that the model be loaded.

    Raises:
        BadRequest: as `requests.chat`.
    """
    written = parse_json(raw)
    found = CHAT(written, "")
    said = found["messages"]
    if not said:
        return None
    names = messages.names_of(said)
    conversation = [
        message
        for one in said
        for message in messages.expanded(
            one | {"name": one.get("tool_name") or one.get("name", "")}, names
        )
    ]
    # as Ollama does: an answer that was begun is gone on with
    last = conversation[-1]
    proceed = last.role == "assistant" and bool(last.content) and not last.calls
    turns, begun = messages.split_final(conversation, proceed)
    if begun and found.get("format") is not None:
        raise requests.continued_form("format")
    return body_of(CHAT, written, found, turns, begun=begun)


def read_generate(raw: bytes) -> tuple[Body | None, bool]:
    """Decode a body of /api/generate, and whether its prompt is to be gone on with as it is.

    Raises:
        BadRequest: as `requests.chat`.
    """
    written = parse_json(raw)
    found = GENERATE(written, "")
    if not found.get("prompt"):
        return None, False
    if found.get("raw") and (unread := [key for key in UNREAD if found.get(key)]):
        raise BadRequest(f"raw = true goes on after the prompt alone; leave {unread[0]} out", "raw")
    turns = [Message("system", found["system"])] if found.get("system") else []
    turns.append(Message("user", found["prompt"]))
    return body_of(GENERATE, written, found, turns), found.get("raw", False)


def asked_for(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a body asks for; its options under the names of `requests.SAMPLING`."""
    options = dict(found.get("options", {}))
    for key, name in (("num_predict", "max_tokens"), ("repeat_penalty", "repetition_penalty")):
        if (value := options.pop(key, None)) is not None:
            options[name] = value
    return {**found, **options, "response_format": found.get("format")}


def body_of(
    schema: Record,
    written: Mapping[str, Any],
    found: Mapping[str, Any],
    turns: Sequence[Message],
    begun: str = "",
) -> Body:
    """The one value that every protocol's body becomes."""
    if found.get("top_logprobs") and not found.get("logprobs"):
        raise BadRequest("top_logprobs needs logprobs = true", "top_logprobs")
    logprobs = found.get("top_logprobs", 0) if found.get("logprobs") else None
    asked = asked_for(found)
    return Body(
        ask=requests.ask_of(asked, turns, logprobs=logprobs, begun=begun),
        talk=requests.TalkSampling(asked, logprobs),
        keep_s=found.get("keep_alive"),
        model=model_named(found.get("model")),
        stream=found.get("stream", True),
        include_usage=True,
        prompt=found.get("prompt", ""),
        source=requests.kept_names(found).get("source", "api"),
        ignored=tuple(schema.ignored(written)),
    )


def model_named(name: str | None) -> str | None:
    """A model's name without the tag that Ollama's clients put where none was said."""
    return None if name is None else name.removesuffix(":latest")


LAST_LINE = shaped(model=TEXT, created_at=TEXT, done=FLAG, done_reason=TEXT)
ENTRY = shaped(name=TEXT, model=TEXT, size=WHOLE, digest=TEXT, details=OBJECT)


class OllamaApi:
    """The handlers."""

    def __init__(
        self, answering: Answering, embeddings: Embeddings, describe: Callable[[str], ModelFacts]
    ) -> None:
        """`describe`: reads what is to be told of a model that was not loaded yet."""
        self.answering = answering
        self.embeddings = embeddings
        self.describe = describe

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.post("/api/chat{end:/*}", self.chat),
            web.post("/api/generate{end:/*}", self.generate),
            web.post("/api/embed{end:/*}", self.embed),
            web.post("/api/embeddings{end:/*}", self.embed_one),
            web.get("/api/tags{end:/*}", self.tags),
            web.get("/api/ps{end:/*}", self.running),
            web.post("/api/show{end:/*}", self.show),
            web.get("/api/version{end:/*}", self.version),
            *(web.route("*", f"/api/{path}{{end:/*}}", self.elsewhere) for path in NOT_HERE),
        ]

    @described(LAST_LINE, CHAT, streams="application/x-ndjson")
    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        raw = await request.read()
        body = read_chat(raw)
        if body is None:
            return await self.load(raw, "chat")
        async with self.answering.chat(body) as answer:
            return await send(request, body, answer, "chat")

    @described(LAST_LINE, GENERATE, streams="application/x-ndjson")
    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer one question, or go on after a text."""
        raw = await request.read()
        body, as_it_is = read_generate(raw)
        if body is None:
            return await self.load(raw, "generate")
        way = self.answering.complete if as_it_is else self.answering.chat
        async with way(body) as answer:
            return await send(request, body, answer, "generate")

    async def load(self, raw: bytes, kind: Literal["chat", "generate"]) -> web.Response:
        """Nothing is asked but that the model be loaded, or with keep_alive = 0 let go."""
        asked = parse_json(raw)
        name = model_named(str(asked.get("model") or "default")) or "default"
        keep_s = duration(asked["keep_alive"], "keep_alive") if "keep_alive" in asked else None
        await self.answering.check(name)
        if keep_s == 0:
            reason, model = "unload", await self.answering.pool.model_of(name)
            await self.answering.pool.release(model)
        else:
            async with self.answering.pool.use(name, keep_s) as loaded:
                reason, model = "load", loaded.name
        line = NdjsonLines(kind, model if name == "default" else name, tells=False)
        return web.json_response(line.envelope("", done=True) | {"done_reason": reason})

    @described(shaped(model=TEXT, embeddings=many(many(NUMBER))), EMBED)
    async def embed(self, request: web.Request) -> web.Response:
        """Vectors of texts."""
        written = parse_json(await request.read())
        found = EMBED(written, "")
        request[IGNORED] = tuple(EMBED.ignored(written))
        begun = time.perf_counter_ns()
        vectors, counts = await self.embeddings.vectors(
            found["input"], model_named(found.get("model")), found.get("dimensions")
        )
        return web.json_response(
            {
                "model": self.embeddings.name,
                "embeddings": vectors.tolist(),
                "total_duration": time.perf_counter_ns() - begun,
                "load_duration": 0,
                "prompt_eval_count": sum(counts),
            }
        )

    @described(shaped(embedding=many(NUMBER)), EMBED_ONE)
    async def embed_one(self, request: web.Request) -> web.Response:
        """The vector of one text, as older clients ask for it."""
        written = parse_json(await request.read())
        found = EMBED_ONE(written, "")
        request[IGNORED] = tuple(EMBED_ONE.ignored(written))
        vectors, _ = await self.embeddings.vectors(
            found["prompt"], model_named(found.get("model")), None
        )
        return web.json_response({"embedding": vectors[0].tolist()})

    @described(shaped(models=many(ENTRY)))
    async def tags(self, _request: web.Request) -> web.Response:
        """The model that answers where none is named, with each adapter, then all others here."""
        names = await self.answering.names()
        facts = await asyncio.to_thread(self.known_facts, names)
        return web.json_response({"models": [entry(name, facts[name]) for name in names]})

    def known_facts(self, names: Sequence[str]) -> dict[str, ModelFacts]:
        """What is known of each without reading its file: of one that was not loaded yet, its size
        and age.
        """
        pool = self.answering.pool
        installed = pool.installed()
        found = {}
        for name in names:
            if name in installed and name not in pool.profiles:
                model = installed[name]
                modified = model.path.stat().st_mtime if model.path.exists() else 0.0
                found[name] = ModelFacts(bytes=model.size, modified=modified)
            else:
                whole = pool.profiles.get(name) or pool.profiles.get(name.rpartition(":")[0])
                found[name] = whole.facts if whole else ModelFacts()
        return found

    @described(shaped(models=many(ENTRY)))
    async def running(self, _request: web.Request) -> web.Response:
        """Models that are loaded, and until when if nobody asks for them."""
        pool = self.answering.pool
        return web.json_response(
            {
                "models": [
                    entry(model.name, model.profile.facts)
                    | {
                        "size": model.bytes or model.profile.facts.bytes,
                        "size_vram": 0,
                        "context_length": model.profile.facts.context,
                        "expires_at": ends_at(pool.expires_in(model)),
                    }
                    for model in pool.loaded.values()
                ]
            }
        )

    @described(shaped(details=OBJECT, model_info=OBJECT, capabilities=many(TEXT)), SHOW)
    async def show(self, request: web.Request) -> web.Response:
        """What is known of a model."""
        found = SHOW(parse_json(await request.read()), "")
        name = model_named(found.get("model") or found.get("name"))
        if name is None:
            raise BadRequest("model is missing; it must be there", "model")
        profile = await self.answering.check(name)
        if profile is None:
            facts = await asyncio.to_thread(self.describe, name)
        else:
            facts = profile.facts
        return web.json_response(
            {
                "modelfile": "",
                "parameters": "",
                "template": facts.template,
                "modified_at": entry(name, facts)["modified_at"],
                "details": details(facts),
                "model_info": {
                    "general.architecture": facts.family,
                    "general.parameter_count": facts.parameters,
                    f"{facts.family}.context_length": facts.context,
                    f"{facts.family}.embedding_length": facts.hidden_size,
                },
                "capabilities": [
                    *("completion", "tools"),
                    *(["thinking"] if CLOSING in facts.template else []),
                ],
            }
        )

    @described(shaped(version=TEXT))
    async def version(self, _request: web.Request) -> web.Response:
        """The version of Ollama whose shapes these are."""
        return web.json_response({"version": OLLAMA_VERSION})

    async def elsewhere(self, request: web.Request) -> web.Response:
        """What changes models."""
        return web.json_response(
            {"error": f"{request.path[:80]} is not here: {BROUGHT}"}, status=501
        )


def entry(name: str, facts: ModelFacts) -> dict[str, Any]:
    """A model in a list."""
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(facts.modified, UTC).isoformat(),
        "size": facts.bytes,
        "digest": facts.digest,
        "details": details(facts),
    }


def details(facts: ModelFacts) -> dict[str, Any]:
    """Of a model and of all its adapters, which leave it as it is."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": f"{facts.parameters / 1e6:.1f}M"
        if facts.parameters < 1e9
        else f"{facts.parameters / 1e9:.1f}B",
        "quantization_level": facts.quant_type,
    }


FOREVER = "9999-12-31T23:59:59Z"


def ends_at(seconds: float | None) -> str:
    """When a model is let go, as Ollama writes it."""
    if seconds is None:
        return FOREVER
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


async def send(
    request: web.Request, body: Body, answer: PendingAnswer, kind: Literal["chat", "generate"]
) -> web.StreamResponse:
    """Send an answer the way the client wants it."""
    request[IGNORED] = body.ignored
    line = NdjsonLines(kind, answer.model, answer.tells, answer.loading_s)
    calls_back = body.ask.caller_tools is not None
    if body.stream:
        return await stream(request, line, answer, calls_back=calls_back)
    async with merged(answer.choices) as events:
        told = [
            one async for _, event in events for one in line.lines(event, calls_back=calls_back)
        ]
    return web.json_response(line.whole(told))


async def stream(
    request: web.Request, line: NdjsonLines, answer: PendingAnswer, *, calls_back: bool
) -> web.StreamResponse:
    """Send lines as they come; a refusal before the first one still has its status code."""
    sent = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    try:
        async with merged(answer.choices) as events:
            async for _, event in events:
                if not sent.prepared:
                    await sent.prepare(request)
                for one in line.lines(event, calls_back=calls_back):
                    await sent.write(as_line(one))
    except QuietchoirError as error:
        if not sent.prepared:
            raise
        await sent.write(as_line({"error": errors.describe(error)[1]["message"]}))
    await sent.write_eof()
    return sent


def as_line(data: Mapping[str, Any]) -> bytes:
    """One JSON object on its line."""
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
