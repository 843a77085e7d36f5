"""Bodies of OpenAI's chat completions and completions, decoded once and then trusted.

Knows which fields each body has, at every depth, and the one value that every protocol's body
becomes (`Body`; the others are read in `responses_api.py` and `ollama_api.py`). Knows nothing of
engines, adapters or sockets.
Always: a field that would change the answer and is not supported is refused, never ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..assistant.context import Message
from ..assistant.events import ChatRequest
from ..config import SAMPLING_RANGES, SamplingConfig
from ..engine.sampling.params import MAX_LOGPROBS, SamplingParams
from ..history.store import NAME
from . import forms, messages
from .errors import BadRequest, parse_json
from .schemas import (
    FieldGroup,
    Reader,
    Record,
    anything,
    either,
    flag,
    listed,
    mapping,
    named,
    number,
    only,
    shown,
    text,
    typed,
)

MAX_STOPS = 4
MOST_COLLECTIONS = 8
MOST_TOKENS = 1 << 20
MOST_CHOICES = 8  # answers to one question
# Of `metadata`: a conversation that is named is kept on this node, under the name of its client.
KEPT = ("conversation", "source")
STREAM_OPTIONS = Record({"include_usage": flag}, harmless={"include_obfuscation": flag})


@typed(type="integer", minimum=-(1 << 63), maximum=(1 << 63) - 1)
def seed(value: Any, where: str) -> int:
    """Any whole number of 64 bits; below zero as its two's complement without the sign."""
    return int(number(int, -(1 << 63), (1 << 63) - 1)(value, where)) & ((1 << 63) - 1)


@typed(**named.schema)
def one_text(value: Any, where: str) -> tuple[str]:
    """A text that stands for a list of one."""
    return (named(value, where),)


# A further parameter is one line: under its name as a field of `SamplingParams`.
SAMPLING = FieldGroup(
    SamplingParams,
    {
        "max_tokens": number(int, 1, MOST_TOKENS),
        "temperature": number(float, *SAMPLING_RANGES["temperature"]),
        "top_p": number(float, *SAMPLING_RANGES["top_p"]),
        "top_k": number(int, *SAMPLING_RANGES["top_k"]),
        "min_p": number(float, *SAMPLING_RANGES["min_p"]),
        "seed": seed,
        "stop": either(one_text, listed(named, most=MAX_STOPS)),
        "presence_penalty": number(float, -2.0, 2.0),
        "frequency_penalty": number(float, -2.0, 2.0),
        "repetition_penalty": number(float, *SAMPLING_RANGES["repetition_penalty"]),
        "logit_bias": forms.logit_bias,
        "response_format": forms.response_format,
        # ours: whether tokens are guessed ahead; if left out, the engine decides
        "speculate": flag,
        # ours: whether an answer that only repeats itself is ended
        "loop_guard": flag,
    },
    renamed={"response_format": "constraint", "max_completion_tokens": "max_tokens"},
)
SHARED: dict[str, Reader] = {
    "model": text,
    "stream": flag,
    "stream_options": STREAM_OPTIONS,
    "n": number(int, 1, MOST_CHOICES),
}
# Read and dropped: they say nothing about the answer's text, or only what a model of another kind
# would make of it.
INDIFFERENT: dict[str, Reader] = {
    "user": text,
    "store": flag,
    "service_tier": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "prompt_cache_options": mapping,
    "prompt_cache_retention": text,
    "reasoning_effort": text,
    "verbosity": text,
    "prediction": Record({"type": only("content"), "content": anything}),
}
# Accepted only with the value that changes nothing.
NEUTRAL: dict[str, Reader] = {
    "best_of": only(1),
    "echo": only(False),
    "suffix": only(""),
    "modalities": only(["text"]),
}
OURS: dict[str, Reader] = {
    # documents whose passages the answer may cite
    "collections": listed(named, most=MOST_COLLECTIONS),
    # whether the model is shown the facts that its owner had it keep
    "memory": flag,
    # `conversation` in it: by which this node keeps it, and knows what was allowed in it
    "metadata": mapping,
}
CHAT = Record(
    SHARED
    | SAMPLING.fields
    | {
        "messages": messages.conversation,
        "continue_final_message": flag,
        "add_generation_prompt": flag,
        "max_completion_tokens": number(int, 1, MOST_TOKENS),
        "tools": forms.tools,
        "tool_choice": forms.tool_choice,
        "logprobs": flag,
        "top_logprobs": number(int, 0, MAX_LOGPROBS),
        "parallel_tool_calls": flag,
    }
    | OURS,
    ["messages"],
    INDIFFERENT | NEUTRAL,
)


def kept_name(value: Any, where: str) -> str:
    """What a client calls its conversation, or itself."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise BadRequest(
            f"{where} is {shown(value)}, expected 1 to 64 of the letters A-Z a-z 0-9 _ . : -", where
        )
    return value


ONE_PROMPT = either(named, listed(named, least=1, most=1))


@typed(**ONE_PROMPT.schema)
def prompts(value: Any, where: str) -> Any:
    """One text, alone or in a list; OpenAI's other two forms, token ids and several of either,
    are not read.
    """
    if isinstance(value, list) and value and not isinstance(value[0], str):
        raise BadRequest(
            f"{where} holds {shown(value[0])}, expected a text; token ids are not read here", where
        )
    return ONE_PROMPT(value, where)


COMPLETION = Record(
    SHARED | SAMPLING.fields | {"prompt": prompts, "logprobs": number(int, 0, MAX_LOGPROBS)},
    ["prompt"],
    INDIFFERENT | NEUTRAL | {"metadata": mapping},
)


@dataclass(frozen=True, slots=True)
class TalkSampling:
    """How free text is to be drawn, as far as a body says it."""

    said: Mapping[str, Any]  # its fields, under the names of `SAMPLING`
    logprobs: int | None

    def over(self, defaults: SamplingConfig) -> SamplingParams:
        """The client's word, else what the model that answers recommends. Who asks for the
        likeliest tokens gets just those, without penalties of ours.
        """
        recommended = {} if self.said.get("temperature") == 0 else defaults.given()
        return SAMPLING.of({**recommended, **self.said}, logprobs=self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What is asked, whatever protocol it came by."""

    ask: ChatRequest
    talk: TalkSampling
    model: str | None  # as the client named it
    stream: bool
    include_usage: bool
    prompt: str = ""  # /v1/completions alone
    source: str = ""  # who keeps its conversation here
    n: int = 1  # answers to it
    ignored: tuple[str, ...] = ()  # fields that change nothing here
    keep_s: float | None = None  # how long the model stays loaded behind it; None: the owner's


def chat(raw: bytes) -> Body:
    """Decode a body of /v1/chat/completions.

    Raises:
        BadRequest: not JSON, or a field that is unknown, ill-typed, out of range or unsupported, at
        any depth.
    """
    written = parse_json(raw)
    body = CHAT(written, "")
    proceed = body.get("continue_final_message", False)
    if body.get("add_generation_prompt", not proceed) == proceed:
        raise BadRequest(
            "add_generation_prompt must be the contrary of continue_final_message; leave it out",
            "add_generation_prompt",
        )
    kept = kept_names(body)
    if body.get("n", 1) > 1 and "conversation" in kept:
        raise BadRequest(
            f"n = {body['n']} gives drafts, and a conversation that is kept has one answer; leave "
            "metadata.conversation out, or n",
            "n",
        )
    conversation, begun = messages.split_final(body["messages"], proceed)
    if begun and body.get("response_format") is not None:
        raise continued_form("response_format")
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise BadRequest(
            "top_logprobs needs logprobs = true; set it or leave both out", "top_logprobs"
        )
    logprobs = body.get("top_logprobs", 0) if body.get("logprobs") else None
    return Body(
        ask=ask_of(body, conversation, logprobs=logprobs, begun=begun),
        talk=TalkSampling(body, logprobs),
        source=kept.get("source", "api"),
        ignored=tuple(CHAT.ignored(written)),
        **shared(body),
    )


def continued_form(field: str) -> BadRequest:
    """The refusal of a form, which `field` asks for, beside an answer that was begun."""
    return BadRequest(f"an answer that is continued cannot have a form; leave {field} out", field)


def ask_of(
    body: Mapping[str, Any],
    messages: Sequence[Message],
    *,
    logprobs: int | None = None,
    begun: str = "",
) -> ChatRequest:
    """What a body of any protocol asks for, once its keys are those of `CHAT`."""
    return ChatRequest(
        messages=tuple(messages),
        begun=begun,
        caller_tools=body.get("tools"),
        collections=body.get("collections", ()),
        use_memory=body.get("memory", False),
        parallel_tool_calls=body.get("parallel_tool_calls", True),
        sampling_params=SAMPLING.of(body, logprobs=logprobs),
        conversation=kept_names(body).get("conversation", ""),
        **body.get("tool_choice", {}),
    )


def kept_names(body: Mapping[str, Any]) -> dict[str, str]:
    """What `metadata` says of a conversation that is to be kept. Raises: BadRequest: no name."""
    given = body.get("metadata", {})
    return {key: kept_name(given[key], f"metadata.{key}") for key in KEPT if key in given}


def completion(raw: bytes) -> Body:
    """Decode a body of /v1/completions.

    Raises:
        BadRequest: as `chat`.
    """
    written = parse_json(raw)
    body = COMPLETION(written, "")
    prompt = body["prompt"]
    logprobs = body.get("logprobs")
    ask = ChatRequest(messages=(), sampling_params=SAMPLING.of(body, logprobs=logprobs))
    return Body(
        ask=ask,
        talk=TalkSampling(body, logprobs),
        prompt=prompt if isinstance(prompt, str) else prompt[0],
        ignored=tuple(COMPLETION.ignored(written)),
        **shared(body),
    )


def shared(body: Mapping[str, Any]) -> dict[str, Any]:
    """model, n, stream and stream_options."""
    return {
        "model": body.get("model"),
        "stream": body.get("stream", False),
        "include_usage": body.get("stream_options", {}).get("include_usage", False),
        "n": body.get("n", 1),
    }
