"""A conversation in, an answer out: model, then at most one tool.

Knows the engine, the context and the tools' seam. Knows nothing of HTTP, plugins or files.
Always: leaving `reply` early cancels its generation; a tool's output is never read as a call, nor
shown to the model.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..engine.request import Generation, GenerationRequest
from ..engine.sampling.logprobs import TokenLogprobs
from ..engine.sampling.params import SamplingParams
from ..errors import EngineError, ModelFileError, PluginError, RequestError
from ..prompt import AS_IT_COMES, PromptFormat
from ..toolcall import ToolCall, parse
from .context import ChatEncoder, Message, fit
from .tools import ToolInfo, ToolResult, Tools, tool_call_schema

RESULT_CHARACTERS = 16_384  # longer tool output is cut; no sentence needs more
ANY_TOOL = "*"
GRACE_S = 1.0  # the tools' own deadline comes first; this one is for tools that ignore it


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One conversation that waits for an answer."""

    messages: tuple[Message, ...]
    # what the assistant's answer begins with already; it is continued, and not repeated
    begun: str = ""
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    adapter: str | None = None  # an adapter the engine holds
    use_tools: bool = True
    # None: the model may call; ANY_TOOL: it must; a name: it must call that tool
    tool_choice: str | None = None
    # what the caller offers; calls go back to the caller, uncalled
    caller_tools: tuple[ToolInfo, ...] | None = None
    # what its client calls the conversation that this continues; what was allowed in it, holds on
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()  # of its tokens, where the ask wants logprobs


@dataclass(frozen=True, slots=True)
class ToolCallEvent:
    """The model called a tool."""

    id: str
    call: ToolCall
    plugin_id: str = ""


@dataclass(frozen=True, slots=True)
class ToolResultEvent:
    """The tool came back."""

    id: str
    result: ToolResult


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every answer."""

    reason: str  # "stop", "length", "tool_calls" or "cancelled"
    prompt_tokens: int
    completion_tokens: int


Event = Text | ToolCallEvent | ToolResultEvent | Finished


class LanguageEngine(Protocol):
    """The part of the engine that this file needs."""

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request; raises RequestError (never possible) or OverloadedError (later)."""
        ...


class PromptEncoder(ChatEncoder, Protocol):
    """A tokenizer, for chats and for plain text."""

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, special tokens not recognised."""
        ...


class ToolCallBuffer:
    """Text on its way out, held back while it could still become a tool call."""

    def __init__(self, closed: bool) -> None:
        self.closed = closed
        self.held = Text("")

    def push(self, piece: Text) -> Text | None:
        """What may go out now."""
        if not self.closed:
            return piece
        self.held = Text(self.held.text + piece.text, self.held.logprobs + piece.logprobs)
        if self.held.text.lstrip()[:1] in ("", "{"):
            return None
        self.closed = False
        out, self.held = self.held, Text("")
        return out


class Assistant:
    """Answers conversations, many at a time."""

    def __init__(
        self,
        engine: LanguageEngine,
        tokenizer: PromptEncoder,
        tools: Tools,
        *,
        context: int,
        call_timeout_s: float = 10.0,
        prompt_of: Callable[[str], PromptFormat] = lambda _: AS_IT_COMES,
    ) -> None:
        """
        Args:
            context: tokens, prompt and answer together.
            prompt_of: how an adapter that the engine holds was trained to be asked.
        """
        self.engine = engine
        self.tokenizer = tokenizer
        self.tools = tools
        self.context = context  # tokens, prompt and answer together
        self.call_timeout_s = call_timeout_s
        self.prompt_of = prompt_of

    async def reply(self, ask: ChatRequest) -> AsyncGenerator[Event, None]:
        """Answer one conversation.

        Yields:
            Text pieces, or one `ToolCallEvent` (with `ToolResultEvent` and its sentence as Text);
            `Finished` last.

        Raises:
            RequestError: it can never run as it is. OverloadedError: it could later. EngineError:
            it broke half-way.
        """
        known = self._known_tools(ask)
        ask = self._constrained(ask, known)
        messages = self._as_trained(ask, known)
        # a greedy max_tokens must not push the question out
        reserve = min(ask.sampling_params.max_tokens, self.context // 2)
        prompt = await asyncio.to_thread(self._prompt, messages, ask.begun, self.context - reserve)
        gate = ToolCallBuffer(closed=bool(known))
        async with aclosing(self._generate(ask, prompt)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    end = event
                elif out := gate.push(event):
                    yield out
        call = parse(gate.held.text) if end.reason == "stop" else None
        if call is not None and call.name in known:
            async for answer in self._call(ask, call, known[call.name], end):
                yield answer
            return
        if gate.held.text or gate.held.logprobs:
            yield gate.held
        yield end

    async def complete(self, text: str, ask: ChatRequest) -> AsyncGenerator[Text | Finished, None]:
        """Go on after `text`, without a chat template and without tools; `ask.messages` is not
        read.

        Raises:
            RequestError, OverloadedError, EngineError: as `reply`.
        """
        prompt = await asyncio.to_thread(self.tokenizer.encode, text)
        async with aclosing(self._generate(ask, tuple(prompt))) as events:
            async for event in events:
                yield event

    def _prompt(self, messages: Sequence[Message], begun: str, budget: int) -> tuple[int, ...]:
        """Raises: RequestError: it does not fit, or this model has no way to read a
        conversation.
        """
        start = tuple(self.tokenizer.encode(begun)) if begun else ()
        if len(start) >= budget:
            raise RequestError(
                f"the answer that was begun takes {len(start)} tokens, fewer than "
                f"{budget} fit; begin a new one"
            )
        try:
            return fit(messages, self.tokenizer, budget - len(start)) + start
        # the file is right as it is, for whoever asks it for something else
        except ModelFileError as error:
            raise RequestError(str(error)) from error

    async def _generate(
        self, ask: ChatRequest, prompt: tuple[int, ...]
    ) -> AsyncGenerator[Text | Finished, None]:
        room = max(1, self.context - len(prompt))
        params = ask.sampling_params
        request = GenerationRequest(
            prompt=prompt,
            sampling_params=replace(params, max_tokens=min(params.max_tokens, room)),
            adapter=ask.adapter,
        )
        generation = await self._submit(request)
        reason = None
        try:
            async for delta in generation:
                if delta.text or delta.logprobs:
                    yield Text(delta.text, (delta.logprobs,) if delta.logprobs else ())
                reason = delta.finish_reason or reason
        finally:
            if reason is None:
                generation.cancel()  # the reader went away: free its cache
        if reason is None or reason == "error":
            raise generation.error or EngineError(
                "the engine broke this answer off; see the node's log, then ask again"
            )
        yield Finished(reason, generation.prompt_tokens, generation.completion_tokens)

    async def _submit(self, request: GenerationRequest) -> Generation:
        if request.sampling_params.constraint is None:
            return self.engine.submit(request)
        # A grammar takes milliseconds to seconds to compile; other answers go on meanwhile.
        compiling = asyncio.get_running_loop().run_in_executor(None, self.engine.submit, request)
        try:
            return await asyncio.shield(compiling)
        except asyncio.CancelledError:
            compiling.add_done_callback(_let_go)
            raise

    def _prompt_format(self, ask: ChatRequest) -> PromptFormat:
        return AS_IT_COMES if ask.adapter is None else self.prompt_of(ask.adapter)

    def _known_tools(self, ask: ChatRequest) -> Mapping[str, ToolInfo]:
        if self._prompt_format(ask).answers == "text" and ask.tool_choice is None:
            return {}
        if (
            not ask.use_tools
            or ask.begun
            or (ask.sampling_params.constraint is not None and ask.tool_choice is None)
        ):
            # an answer in a form, or one that was begun as text, is that answer, even where it
            # looks like a call
            return {}
        return {
            info.name: info
            for info in (self.tools.tools() if ask.caller_tools is None else ask.caller_tools)
        }

    def _constrained(self, ask: ChatRequest, known: Mapping[str, ToolInfo]) -> ChatRequest:
        """The ask whose answer must be a call, where its tool choice says so.

        Raises:
            RequestError: no such tool, or a form of its own beside.
        """
        if ask.tool_choice is None:
            return ask
        if ask.sampling_params.constraint is not None:
            raise RequestError(
                "an answer cannot be a tool call and in another form at once; leave one of them out"
            )
        chosen = [tool for name, tool in known.items() if ask.tool_choice in (ANY_TOOL, name)]
        if not chosen:
            raise RequestError(
                f"tool_choice asks for a call, but on offer are "
                f"{', '.join(known) or 'no tools'}; offer it"
            )
        params = replace(ask.sampling_params, constraint=tool_call_schema(chosen))
        return replace(ask, sampling_params=params)

    def _as_trained(self, ask: ChatRequest, known: Mapping[str, ToolInfo]) -> Sequence[Message]:
        """What the model is shown: with an adapter, what its card says that its training showed it.

        A caller that brings a system message of its own is shown as it is; so is one without tools,
        where the adapter learned to call them.
        """
        prompt = self._prompt_format(ask)
        idle = prompt.answers == "tool_call" and not known
        if idle or any(message.role == "system" for message in ask.messages):
            return ask.messages
        alone = prompt.turns == "last" and ask.messages[-1].role == "user"
        head = (Message("system", prompt.system),) if prompt.system else ()
        return (*head, *(ask.messages[-1:] if alone else ask.messages))

    async def _call(
        self, ask: ChatRequest, call: ToolCall, tool: ToolInfo, end: Finished
    ) -> AsyncGenerator[Event, None]:
        called = ToolCallEvent(f"call_{secrets.token_hex(12)}", call, tool.plugin_id)
        yield called
        if ask.caller_tools is not None:
            yield replace(end, reason="tool_calls")
            return
        result = await self._carry_out(call)
        yield ToolResultEvent(called.id, result)
        yield Text(result.text)
        yield end

    async def _carry_out(self, call: ToolCall) -> ToolResult:
        try:
            async with asyncio.timeout(self.call_timeout_s + GRACE_S):
                result = await self.tools.call(call, self.call_timeout_s)
        except PluginError as error:
            return ToolResult(str(error), ok=False)
        except TimeoutError:  # the tools' own deadline should have come first
            return ToolResult(
                f"{call.name} gave no answer within {self.call_timeout_s:g} s", ok=False
            )
        return replace(result, text=result.text[:RESULT_CHARACTERS])


def _let_go(submitted: "asyncio.Future[Generation]") -> None:
    """The asker left while the grammar was compiled."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()
