"""A conversation in, an answer out: prompt, generation, calls, their results, and again.

Knows the engine, the context, call formats and the tools' seam. Knows nothing of HTTP, plugins or
files.
Always: leaving `reply` early cancels its generation and closes its question; what a tool returned
is data for the model and is never read as a call, nor is a call that somebody only quoted.
"""

import asyncio
import math
import secrets
import threading
from collections.abc import (
    AsyncGenerator,
    Callable,
    Container,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from .. import log
from ..config import ToolsConfig
from ..engine.request import Generation, GenerationRequest
from ..engine.sampling.params import Constraint, SamplingParams
from ..errors import (
    EngineError,
    ModelFileError,
    OverloadedError,
    PluginError,
    QuietchoirError,
    RequestError,
    ToolCallCutError,
)
from ..models.tokenizer.chat_template import ChatTemplate, TemplateTraits
from ..prompt import AS_IT_COMES, PromptFormat
from ..toolcall import ToolCall, render
from .approvals import REMEMBER, Approvals
from .calibration import Calibration
from .call_formats import BARE, MARKS, CallFormat, ToolCallBuffer, format_of, is_quoted
from .citations import (
    MOST_PASSAGES,
    Citation,
    Cited,
    NoDocuments,
    PassageFinder,
    SourceReport,
    cited,
    question_of,
    with_facts,
    with_passages,
)
from .context import ContextWindow, LeftOut, Message, Prompt, as_trained
from .elicitation import ElicitResult, Form
from .events import (
    ANY_TOOL,
    ApprovalEvent,
    ApprovedEvent,
    ChatRequest,
    ElicitationEvent,
    ElicitedEvent,
    Event,
    Finished,
    LoopStepEvent,
    Text,
    ToolCallEvent,
    ToolResultEvent,
    ToolsListedEvent,
)
from .sources import LibraryAsker, NoLibraries, Sources
from .thoughts import CLOSING, OPENING, ThoughtReader, without_thoughts
from .tool_prompt import TemplateEncoder, ToolPrompt
from .tool_ranking import ToolRanking
from .tools import CallContext, ToolInfo, ToolResult, Tools

ANSWER_SHARE = 4  # of the context, one part is kept for an answer of no stated length
RESULT_CHARACTERS = 16_384  # longer tool output is cut; no sentence needs more
GRACE_S = 1.0  # the tools' own deadline comes first; this one is for tools that ignore it
MOST_CALLS = 8  # of one generation
FEW_TOOLS = 3  # that a small model is told of
Remember = Callable[
    [str, str, int, str], object
]  # a fact, its conversation, its turn, what was said
PASSAGES_SHARE = 2  # of the context, one part at most is passages of documents
Found = tuple[tuple[Citation, ...], tuple[SourceReport, ...]]
logger = log.get("assistant")


class Passages:
    """What is found for one question, looked for once whoever waits for it, and no longer than
    somebody does.
    """

    def __init__(self, find: Callable[[], Coroutine[None, None, Found]]) -> None:
        self._find = find
        self._task: asyncio.Task[Found] | None = None
        self._waiting = 0

    async def found(self) -> Found:
        """The passages, and who saw what. Raises: what `find` raises."""
        if self._task is None:
            self._task = asyncio.create_task(self._find())
        self._waiting += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._task.cancel()  # nothing, where it ended


class LanguageEngine(Protocol):
    """The part of the engine that this file needs."""

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request; raises RequestError (never possible) or OverloadedError (later)."""
        ...


class PromptEncoder(TemplateEncoder, Protocol):
    """A tokenizer, for chats and for plain text."""

    @property
    def template(self) -> ChatTemplate:
        """How its model writes a conversation down."""
        ...

    @property
    def control_names(self) -> Container[str]:
        """The names of control tokens, which no text becomes."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, special tokens not recognised."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """The same behind the tokens with which every text of this model starts."""
        ...

    def spell(self, token: int) -> bytes:
        """The bytes of a token; a control token's name."""
        ...


@dataclass(slots=True, kw_only=True)
class Turn:
    """One answer on its way: what the model is shown, and what came of it so far."""

    ask: ChatRequest
    messages: list[Message]
    known: Mapping[str, ToolInfo]  # the tools that a call may name
    listed: Sequence[ToolInfo]  # those of them that the prompt tells of
    form: CallFormat  # in which this model writes calls
    constraint: Constraint | None  # what holds for the next generation
    foreign: bool  # text that neither owner nor model wrote stands in the conversation
    reads_foreign: bool  # it stands before the model now: calls of one answer are written together
    citations: tuple[Citation, ...] = ()  # passages of documents that it is shown
    sources: tuple[SourceReport, ...] = ()  # who saw what of the question, where any other did
    question: str = ""  # the newest one, as its user wrote it
    calls: list[ToolCall] = field(default_factory=list)  # of the last generation
    made: list[ToolCall] = field(default_factory=list)  # of all of them
    repeats: bool = False  # they are those of the generation before
    said: str = ""  # beside them
    told: bool = False  # what of the conversation the model is not shown
    probability: float | None = None  # of these calls together
    wishes: Sequence[str] = ()  # of the same sentence, that wait for the first one's call
    # wishes that name nothing of what the adapter would have called for them
    unnamed: list[str] = field(default_factory=list)
    reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def finished(self) -> Finished:
        """The answer's last event."""
        return Finished(self.reason, self.prompt_tokens, self.completion_tokens)


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
        calibration_of: Callable[[str | None], Calibration | None] = lambda _: None,
        is_named: Callable[[str | None, Sequence[str], Sequence[ToolCall]], bool] = lambda *_: True,
        wishes_of: Callable[[str | None, str], Sequence[str]] = lambda _, text: (text,),
        leans: Callable[[str | None, str], bool] = lambda *_: True,
        config: ToolsConfig | None = None,
        ranking: ToolRanking | None = None,
        window: ContextWindow | None = None,
        documents: PassageFinder | None = None,
        libraries: LibraryAsker | None = None,
        facts: Callable[[], Sequence[str]] = tuple,
        remember: Remember | None = None,
        small: bool = False,
        approvals: Approvals | None = None,
    ) -> None:
        """
        Args:
            context: tokens, prompt and answer together.
            prompt_of: how an adapter that the engine holds was trained to be asked.
            calibration_of: which calls of an adapter are right, as measured on held-out examples;
                None: not measured, so it is never sure.
            is_named: whether what was said, the request last, names what an adapter of tool calls
                would call; where not, it is talk, and the plain model's to answer.
            wishes_of: what of one sentence an adapter of single calls is asked one after the other.
            leans: whether a request to such an adapter means something only after the one before
                it; else it is shown alone.
            window: fits conversations; None: by their words alone.
            documents: searches collections; None: there are none.
            libraries: asks those on other machines; None: none is known.
            facts: what the owner had the assistant keep.
            remember: keeps a fact that its owner said yes to; None: it is offered to no model.
            small: the model chooses better among few tools (`ToolsConfig.listed`).
            approvals: questions to the owner, where several models share them.
        """
        self.engine = engine
        self.tokenizer = tokenizer
        self.tools = tools
        self.context = context
        self.call_timeout_s = call_timeout_s
        self.prompt_of = prompt_of
        self.calibration_of = calibration_of
        self.is_named = is_named
        self.wishes_of = wishes_of
        self.leans = leans
        self.config = config or ToolsConfig()
        self.approvals = approvals or Approvals(self.config)
        self.ranking = ranking or ToolRanking()
        self.window = window or ContextWindow(tokenizer.encode)
        self.sources = Sources(documents or NoDocuments(), libraries or NoLibraries())
        self.facts = facts
        self.remember = remember
        self.most_listed = self.config.listed or (FEW_TOOLS if small else None)

    async def reply(
        self, ask: ChatRequest, passages: "Passages | None" = None
    ) -> AsyncGenerator[Event, None]:
        """Answer one conversation.

        Args:
            passages: for it, where several answers share them.

        Yields:
            `Cited`, where collections are asked; `LeftOut`, where the conversation did not fit;
            text pieces; for each call a `ToolCallEvent`, where the owner is asked an
            `ApprovalEvent` and an `ApprovedEvent`, for each form of the tool's an
            `ElicitationEvent` and an `ElicitedEvent`, and a `ToolResultEvent`; before each further
            generation a `LoopStepEvent`; `Finished` last. Calls of the caller's own tools have no
            result: it brings one in its next request.

        Raises:
            RequestError: it can never run as it is. OverloadedError: it could later.
            ToolCallCutError: the token limit cut a call. EngineError: it broke half-way.
        """
        if CLOSING in self.tokenizer.template.source:
            ask = replace(ask, messages=tuple(map(without_thoughts, ask.messages)))
        wishes = await self._wishes(ask)
        first = replace(ask.messages[-1], content=wishes[0])
        turn = await self._begin(replace(ask, messages=(*ask.messages[:-1], first)), passages)
        if wishes[1:]:  # what was given is the whole sentence: a cut may go through a quotation
            turn.ask, turn.wishes = ask, wishes[1:]
        if ask.collections:
            yield Cited(turn.citations, turn.sources)
        left_open = ask.tool_choice in (None, ANY_TOOL)  # else its asker named the one
        if left_open and len(turn.listed) < len(turn.known) and turn.listed:
            yield ToolsListedEvent(tuple(tool.name for tool in turn.listed), len(turn.known))
        for number in range(1, self.config.steps + 1):
            if number > 1:
                last = number == self.config.steps or turn.repeats
                parted = "\n\n" if turn.said.strip() else ""
                if turn.wishes:  # which stand on a line each
                    parted = "\n" if parted or turn.made else ""
                await self._go_on(turn, last=last)
                yield LoopStepEvent(number, last)
                if parted:
                    yield Text(parted)
            async with aclosing(self._generate(turn)) as pieces:
                async for piece in pieces:
                    yield piece
            for call in turn.calls:
                async with aclosing(self._act(turn, call)) as events:
                    async for event in events:
                        yield event
            if self._ended(turn):
                break
        if turn.unnamed:
            if turn.calls or turn.said.strip():  # of the wish after it
                yield Text("\n")
            turn = await self._as_talk(ask, turn)
            yield LoopStepEvent(number + 1, last=True)
            async with aclosing(self._generate(turn)) as pieces:
                async for piece in pieces:
                    yield piece
        yield turn.finished

    async def complete(self, text: str, ask: ChatRequest) -> AsyncGenerator[Text | Finished, None]:
        """Go on after `text`, without a chat template and without tools; `ask.messages` is not
        read.

        Raises:
            RequestError, OverloadedError, EngineError: as `reply`.
        """
        prompt = await asyncio.to_thread(self.tokenizer.encode_prompt, text)
        params = ask.talk or ask.sampling_params
        async with aclosing(self._stream(ask, params, tuple(prompt))) as events:
            async for event in events:
                yield event

    def passages(self, ask: ChatRequest) -> "Passages":
        """What is found for several answers to it, once they are begun."""
        return Passages(partial(self._cite, ask))

    async def _begin(
        self, ask: ChatRequest, passages: "Passages | None" = None, before: Turn | None = None
    ) -> Turn:
        """What the model is shown, what it may call, and in which form.

        Args:
            before: of the same answer; its passages are taken, and nobody is asked again.

        Raises:
            RequestError: a tool is demanded that is not on offer, or a form of the answer beside.
        """
        citations: tuple[Citation, ...] = ()
        sources: tuple[SourceReport, ...] = ()
        continued = any(message.role == "assistant" for message in ask.messages)
        tainted = self.approvals.is_foreign(ask.conversation, continued=continued)
        question = next((m.content for m in reversed(ask.messages) if m.role == "user"), "")
        if ask.collections:
            citations, sources = (
                await (passages or self.passages(ask)).found()
                if before is None
                else (before.citations, before.sources)
            )
            ask = replace(ask, messages=with_passages(ask.messages, citations))
        if ask.collections or any(m.foreign or m.role == "tool" for m in ask.messages):
            # for all turns after it too: the model's own words may repeat what stood there
            self.approvals.read(ask.conversation)
        known = self._known_tools(ask)
        self._check_choice(ask, known)
        form = self._call_format(ask)
        messages = self._as_trained(ask, known, leans=await self._leans(ask))
        if ask.use_memory and not self._prompt_format(ask).ends_with_call:
            messages = with_facts(messages, await asyncio.to_thread(self.facts))
        listed = await self._listed(ask, known, form)
        foreign = (
            bool(citations)
            or (tainted and not self._is_shown_own(ask))
            or any(message.foreign or message.role == "tool" for message in messages)
        )
        return Turn(
            ask=ask,
            messages=list(messages),
            known=known,
            listed=listed,
            form=form,
            constraint=self._constraint(ask, known, form, listed),
            foreign=foreign,
            reads_foreign=foreign,
            citations=citations,
            sources=sources,
            question=question,
        )

    async def _cite(self, ask: ChatRequest) -> Found:
        """Passages for the newest question, and who saw what of it. Raises: RetrievalError: no such
        collection or library, or it does not open.
        """
        found = await self.sources.find(ask.collections, question_of(ask.messages), MOST_PASSAGES)
        room = self.context // PASSAGES_SHARE
        kept = await asyncio.to_thread(
            cited, found.passages, lambda text: len(self.tokenizer.encode(text)), room
        )
        return kept, found.reports

    async def _go_on(self, turn: Turn, *, last: bool) -> None:
        """Prepare the next generation; the last one cannot call."""
        if turn.wishes:
            await self._next_wish(turn)
            return
        turn.reads_foreign = turn.foreign
        turn.constraint = None if last else self._constraint(turn.ask, turn.known, turn.form)
        if last:
            turn.known, turn.listed = {}, ()
        elif turn.ask.tool_choice is not None:
            turn.ask = replace(turn.ask, tool_choice=None)  # it was called; now it may answer
            turn.constraint = self._constraint(turn.ask, turn.known, turn.form)

    async def _wishes(self, ask: ChatRequest) -> Sequence[str]:
        """The newest request, cut into what its adapter is asked one after the other: one that
        learned to answer a request behind the call before it.
        """
        prompt, text = self._prompt_format(ask), ask.messages[-1].content
        follows = prompt.ends_with_call and prompt.turns == "follow_up" and self.config.steps > 1
        free = ask.tool_choice is None and ask.caller_tools is None and ask.parallel_tool_calls
        if not follows or not free or ask.messages[-1].role != "user" or ask.collections:
            return (text,)
        return await asyncio.to_thread(self.wishes_of, ask.adapter, text)

    async def _next_wish(self, turn: Turn) -> None:
        """Ask for the next one behind the calls of the one before, as second requests were learned,
        or alone, where there were none or it does not lean on them; it is shown nothing that a tool
        said.
        """
        head = [message for message in turn.messages if message.role == "system"]
        before = next(one for one in reversed(turn.messages) if one.role == "user")
        turn.question, *rest = turn.wishes
        adapter, called = turn.ask.adapter, list[Message]()
        if bool(turn.calls) and await asyncio.to_thread(self.leans, adapter, turn.question):
            called = [before, Message("assistant", "", tuple(turn.calls))]
        turn.messages = [*head, *called, Message("user", turn.question)]
        turn.wishes = rest

    def _ended(self, turn: Turn) -> bool:
        """Whether the answer is whole: nothing was called, or the results are the caller's or the
        user's to read, or the tokens are used up.
        """
        if not turn.calls and not turn.wishes:
            return True
        if turn.ask.caller_tools is not None:
            turn.reason = "tool_calls"
            return True
        most = turn.ask.sampling_params.max_tokens
        if most is not None and turn.completion_tokens >= most:
            turn.reason = "length"
            return True
        # an adapter of calls has learned nothing else to say: the tool's sentence answers
        return self._prompt_format(turn.ask).ends_with_call and not turn.wishes

    async def _generate(self, turn: Turn) -> AsyncGenerator[LeftOut | Text, None]:
        """One generation: its text as it comes; its calls, text and counts into the turn.

        Raises:
            ToolCallCutError: the token limit cut a call.
        """
        ask, params = turn.ask, self._sampling(turn)
        most = params.max_tokens
        params = replace(
            params,
            max_tokens=None if most is None else most - turn.completion_tokens,
            constraint=turn.constraint or params.constraint,
            # a call's probability is needed where it decides whether the owner is asked
            logprobs=0 if params.logprobs is None and self._is_weighed(turn) else params.logprobs,
        )
        # a greedy max_tokens must not push the question out
        reserve = min(params.max_tokens or self.context // ANSWER_SHARE, self.context // 2)
        left = threading.Event()  # a long text may be read in pieces meanwhile
        try:
            prompt = await asyncio.to_thread(
                self._prompt, turn, self.context - reserve, left.is_set
            )
        finally:
            left.set()
        if prompt.left_out is not None and not turn.told:
            turn.told = True
            yield prompt.left_out
        buffer = ToolCallBuffer(turn.known, partial(self._is_meant, turn))
        turn.said = ""
        thoughts = self._thoughts(prompt.tokens)
        if thoughts is not None and thoughts.thinks:
            # which the prompt has, and readers look for
            yield Text(f"{OPENING}\n", thought=True, mark=True)
        async with aclosing(self._stream(ask, params, prompt.tokens)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    end = event
                    break
                for piece in (event,) if thoughts is None else thoughts.push(event):
                    if (out := self._told(turn, buffer, piece)) is not None:
                        yield out
        for piece in () if thoughts is None else thoughts.finish():
            if (out := self._told(turn, buffer, piece)) is not None:
                yield out
        self._check_whole(turn, buffer, end)
        if (out := self._shown(turn, buffer.finish())) is not None:
            yield out
        most = MOST_CALLS if ask.parallel_tool_calls else 1
        calls = [replace(call, id=new_id()) for call in buffer.calls[:most]]
        turn.calls, turn.repeats = calls, bool(calls) and calls == turn.calls
        if turn.calls and not self._is_named(turn):
            turn.calls = []
            turn.unnamed.append(turn.question)
        if turn.repeats and turn.made and self._prompt_format(ask).ends_with_call:
            turn.calls = []  # its second wish was the first one
        turn.probability = math.exp(buffer.call_logprob) if self._is_weighed(turn) else None
        turn.reason, turn.prompt_tokens = end.reason, end.prompt_tokens
        turn.completion_tokens += end.completion_tokens
        if turn.calls:
            turn.messages.append(Message("assistant", turn.said, tuple(turn.calls)))
            turn.made += turn.calls
            self.approvals.called(ask.conversation, turn.made, foreign=turn.reads_foreign)

    def _is_named(self, turn: Turn) -> bool:
        """Whether what was said names what an adapter of tool calls would have the node call."""
        ask = turn.ask
        if ask.tool_choice or ask.caller_tools is not None:
            return True
        if ask.adapter is None or not self._prompt_format(ask).ends_with_call:
            return True
        said = [
            "\n".join([message.content, *map(render, message.calls)])
            for message in turn.messages
            if message.role in ("user", "assistant")
        ]
        return self.is_named(ask.adapter, [*said[:-1], turn.question], turn.calls)

    async def _as_talk(self, ask: ChatRequest, turn: Turn) -> Turn:
        """The same answer by the plain model, which calls nothing for it: to the whole sentence, or
        to the one wish of it, where the other one was answered.
        """
        if turn.made or turn.said.strip():
            left = replace(ask.messages[-1], content="\n".join(turn.unnamed))
            ask = replace(ask, messages=(*ask.messages[:-1], left))
        found = await self._begin(replace(ask, adapter=None, use_tools=False), before=turn)
        found.completion_tokens = turn.completion_tokens
        return found

    async def _act(self, turn: Turn, call: ToolCall) -> AsyncGenerator[Event, None]:
        """One call: told, allowed or not, carried out, and its result put before the model."""
        tool = turn.known[call.name]
        yield ToolCallEvent(call.id, call, tool.plugin_id, turn.probability)
        if turn.ask.caller_tools is not None:
            return
        verdict = self.approvals.verdict(
            tool,
            turn.ask.conversation,
            confident=self._is_sure(turn, tool),
            foreign=turn.reads_foreign,
        )
        if tool is REMEMBER and verdict == "allow":
            verdict = "ask"
        refusal = f"{call.name} is never to be called here, by its owner's rule."
        if verdict == "ask":
            with self.approvals.ask(call, tool, turn.ask.conversation) as question:
                yield ApprovalEvent(
                    question.id, call.id, question.text, call, tool.effect, question.timeout_s
                )
                said = await self.approvals.wait(question)
            yield ApprovedEvent(question.id, bool(said), "timeout" if said is None else "owner")
            verdict = "allow" if said else "never"
            refusal = "Not done: " + (
                "nobody said yes in time." if said is None else "the owner said no."
            )
        if verdict == "allow":
            if tool is REMEMBER:
                result = await self._remember(turn, call)
            else:
                async with aclosing(self._carry_out(call, turn.ask.conversation)) as events:
                    async for event in events:
                        if isinstance(event, ToolResult):
                            result = event
                        else:
                            yield event
                turn.foreign = True  # whatever a tool does, others wrote what it brings
                self.approvals.read(turn.ask.conversation)
        else:
            result = ToolResult(refusal, ok=False)
        yield ToolResultEvent(call.id, result)
        turn.messages.append(Message("tool", result.text, (), call.id, call.name))
        if self._prompt_format(turn.ask).ends_with_call:
            yield Text(result.text + ("\n" if call is not turn.calls[-1] else ""))

    def _sampling(self, turn: Turn) -> SamplingParams:
        """The numbers for talk, unless the answer has a form or is by training a call: those want
        the likeliest words, as a call within talk does.
        """
        ask = turn.ask
        forced = ask.sampling_params.constraint or (turn.constraint and not turn.constraint.trigger)
        calls = turn.known and self._prompt_format(ask).ends_with_call
        return ask.sampling_params if ask.talk is None or forced or calls else ask.talk

    def _prompt(self, turn: Turn, budget: int, is_left: Callable[[], bool]) -> Prompt:
        """Raises: RequestError: it does not fit, or this model has no way to read a
        conversation.
        """
        begun = turn.ask.begun
        start = tuple(self.tokenizer.encode(begun)) if begun else ()
        if len(start) >= budget:
            raise RequestError(
                f"the answer that was begun takes {len(start)} tokens, fewer than "
                f"{budget} fit; begin a new one"
            )
        try:
            encoder = ToolPrompt(self.tokenizer, self._traits(), turn.form, turn.listed)
            prompt = self.window.fit(
                turn.messages,
                encoder,
                budget - len(start),
                conversation=turn.ask.conversation,
                is_left=is_left,
            )
            return replace(prompt, tokens=prompt.tokens + start)
        # the file is right as it is, for whoever asks it for something else
        except ModelFileError as error:
            raise RequestError(str(error)) from error

    async def _stream(
        self, ask: ChatRequest, params: SamplingParams, prompt: tuple[int, ...]
    ) -> AsyncGenerator[Text | Finished, None]:
        room = max(1, self.context - len(prompt))
        request = GenerationRequest(
            prompt=prompt,
            sampling_params=replace(params, max_tokens=min(params.max_tokens or room, room)),
            adapter=ask.adapter,
        )
        generation = await self._submit(request)
        reason = None
        try:
            async for delta in generation:
                text = delta.text or self._mark(delta.token)
                if text or delta.logprobs:
                    yield Text(text, (delta.logprobs,) if delta.logprobs else ())
                reason = delta.finish_reason or reason
        finally:
            if reason is None:
                generation.cancel()  # the reader went away: free its cache
        if reason is None or reason == "error":
            raise generation.error or EngineError(
                "the engine broke this answer off; see the node's log, then ask again"
            )
        yield Finished(reason, generation.prompt_tokens, generation.completion_tokens)

    def _mark(self, token: int | None) -> str:
        """A control token that begins or ends a call, which as text would be nothing."""
        name = "" if token is None else self.tokenizer.spell(token).decode("utf-8", "replace")
        return name if name in MARKS else ""

    async def _submit(self, request: GenerationRequest) -> Generation:
        constraint = request.sampling_params.constraint
        if constraint is None:
            return self.engine.submit(request)
        try:
            return await self._submit_form(request)
        except (RequestError, OverloadedError) as error:
            if not constraint.trigger:
                raise
            # A call that the model makes of itself need not be held to a form, where none can be
            # made of the schemas, or none is ready; a wrong one comes back as the tool's complaint.
            logger.warning("calls are not held to their tools' schemas: %s", error)
            free = replace(request.sampling_params, constraint=None)
            return self.engine.submit(replace(request, sampling_params=free))

    async def _submit_form(self, request: GenerationRequest) -> Generation:
        # A grammar takes milliseconds to seconds to compile; other answers go on meanwhile.
        compiling = asyncio.get_running_loop().run_in_executor(None, self.engine.submit, request)
        try:
            return await asyncio.shield(compiling)
        except asyncio.CancelledError:
            compiling.add_done_callback(_let_go)
            raise

    def _prompt_format(self, ask: ChatRequest) -> PromptFormat:
        return AS_IT_COMES if ask.adapter is None else self.prompt_of(ask.adapter)

    def _call_format(self, ask: ChatRequest) -> CallFormat:
        """What the model learned to write: adapters the format of our training data."""
        return BARE if ask.adapter is not None else format_of(self.tokenizer.template.source)

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
        offered = self.tools.tools() if ask.caller_tools is None else ask.caller_tools
        known = {info.name: info for info in offered}
        memory = (
            ask.use_memory
            and ask.caller_tools is None
            and self.remember is not None
            and self.approvals.rule(REMEMBER) != "never"
        )
        if memory and not self._prompt_format(ask).ends_with_call:
            known[REMEMBER.name] = REMEMBER  # whoever else offers one of that name
        return known

    def _check_choice(self, ask: ChatRequest, known: Mapping[str, ToolInfo]) -> None:
        """Raises: RequestError: a demanded tool is not on offer, or a form of its own beside."""
        if ask.tool_choice is None:
            return
        if ask.sampling_params.constraint is not None:
            raise RequestError(
                "an answer cannot be a tool call and in another form at once; leave one of them out"
            )
        if not known or ask.tool_choice not in (ANY_TOOL, *known):
            raise RequestError(
                f"tool_choice asks for a call, but on offer are "
                f"{', '.join(known) or 'no tools'}; offer it"
            )

    def _constraint(
        self,
        ask: ChatRequest,
        known: Mapping[str, ToolInfo],
        form: CallFormat,
        listed: Sequence[ToolInfo] = (),
    ) -> Constraint | None:
        """What an answer with these tools is held to: calls alone where one is demanded, of the
        `listed` ones where the prompt tells of any, else a call's own form from its beginning on.
        """
        if ask.tool_choice is not None:
            told = listed or list(known.values())
            chosen = [tool for tool in told if ask.tool_choice in (ANY_TOOL, tool.name)]
            spoken = form.opener not in self.tokenizer.control_names
            held = form if form.key and spoken else BARE
            several = ask.parallel_tool_calls and ask.tool_choice == ANY_TOOL
            return Constraint("lark", held.demanded(chosen, MOST_CALLS if several else 1))
        if not known or not form.key:
            return None
        return Constraint(
            "lark", form.rest(list(known.values())), trigger=form.trigger, at_start=form.bare
        )

    async def _listed(
        self, ask: ChatRequest, known: Mapping[str, ToolInfo], form: CallFormat
    ) -> Sequence[ToolInfo]:
        """The tools that the prompt tells of: all, or the likeliest that it has room for.

        An adapter is asked as it was trained, which is without a list of the node's own tools.
        """
        taught = ask.adapter is not None and ask.caller_tools is None
        if not known or taught or self._prompt_format(ask).ends_with_call:
            return ()
        traits = self._traits()

        def size(tools: Sequence[ToolInfo]) -> int:
            prompt = ToolPrompt(self.tokenizer, traits, form, tools)
            return len(prompt.encode_chat([{"role": "user", "content": ""}]))

        room = int(self.context * self.config.prompt_share)
        choice = [tool for name, tool in known.items() if name == ask.tool_choice]
        candidates = choice or list(known.values())
        return await asyncio.to_thread(
            self.ranking.chosen, candidates, ask.messages, size, room, self.most_listed
        )

    def _traits(self) -> TemplateTraits:
        """Raises: RequestError: this model has no way to read a conversation."""
        try:
            return self.tokenizer.template.traits
        except ModelFileError as error:
            raise RequestError(str(error)) from error

    async def _leans(self, ask: ChatRequest) -> bool:
        """Whether the newest request is to be shown behind the one before it."""
        called = any(message.calls for message in ask.messages)
        if not called or self._prompt_format(ask).turns != "follow_up":
            return True
        return await asyncio.to_thread(self.leans, ask.adapter, ask.messages[-1].content)

    def _as_trained(
        self, ask: ChatRequest, known: Mapping[str, ToolInfo], *, leans: bool
    ) -> Sequence[Message]:
        """What the model is shown: with an adapter, what its card says that its training showed it.

        A caller that brings a system message of its own is shown as it is; so is one without tools,
        where the adapter learned to call them.
        """
        prompt = self._prompt_format(ask)
        idle = prompt.ends_with_call and not known
        if idle or any(message.role == "system" for message in ask.messages):
            return ask.messages
        head = (Message("system", prompt.system),) if prompt.system else ()
        if not self._is_shown_own(ask):
            return (*head, *ask.messages)
        if not leans:
            return (*head, ask.messages[-1])
        is_own = partial(self.approvals.is_own, ask.conversation)
        return (*head, *as_trained(ask.messages, prompt, is_own))

    def _is_shown_own(self, ask: ChatRequest) -> bool:
        """Whether of what came before the newest question nothing stands before the model that
        others may have written.
        """
        system = any(message.role == "system" for message in ask.messages)
        alone = self._prompt_format(ask).turns != "all"
        return alone and not system and ask.messages[-1].role == "user"

    def _is_meant(self, turn: Turn, call: ToolCall, written: str) -> bool:
        """Whether a call is the model's own; one that stands in what it was given is quoted,
        whatever its format and its escapes, and whether it ends there or not.
        """
        asked = turn.ask.messages
        read = [m for m in (*turn.messages, *asked) if m.role in ("user", "tool")]
        # what the node itself puts at the head: facts, which somebody may have slipped in
        head = [m.content for m in turn.messages if m.role == "system" and m not in asked]
        given = [*(m.content for m in read), *head, *(m.name for m in read if m.name)]
        return not is_quoted(call, written, list(dict.fromkeys(given)))

    def _thoughts(self, prompt: Sequence[int]) -> ThoughtReader | None:
        """What tells thoughts from the answer; None: this model has no mark for them."""
        if CLOSING not in self.tokenizer.template.source:
            return None
        end = b"".join(map(self.tokenizer.spell, prompt[-len(OPENING) :]))
        return ThoughtReader(begun=end.decode("utf-8", "replace").rstrip().endswith(OPENING))

    def _told(self, turn: Turn, buffer: ToolCallBuffer, piece: Text) -> Text | None:
        """What of a piece is told; of what is no thought, calls are read."""
        if not piece.thought:
            return self._shown(turn, buffer.push(piece))
        return (
            piece if turn.ask.sampling_params.logprobs is not None else replace(piece, logprobs=())
        )

    @staticmethod
    def _shown(turn: Turn, out: Text) -> Text | None:
        """What of a piece is said: where a call is demanded, nothing of what stands between calls
        or of one that was cut at its opening mark.
        """
        text = out.text if turn.ask.tool_choice is None else ""
        turn.said += text
        logprobs = out.logprobs if turn.ask.sampling_params.logprobs is not None else ()
        return Text(text, logprobs) if text or logprobs else None

    def _check_whole(self, turn: Turn, buffer: ToolCallBuffer, end: Finished) -> None:
        """Raises: ToolCallCutError: see `_generate`."""
        demanded = turn.ask.tool_choice is not None and not buffer.calls
        if end.reason == "length" and (buffer.begun or demanded):
            raise ToolCallCutError(
                f"the answer's limit of {turn.completion_tokens + end.completion_tokens} tokens "
                "cut a tool call, so nothing was called; raise max_tokens, or shorten the "
                "conversation or the tool's arguments"
            )

    def _is_weighed(self, turn: Turn) -> bool:
        """Whether a call's probability decides something."""
        own = turn.known and turn.ask.caller_tools is None
        return bool(own) and self.calibration_of(turn.ask.adapter) is not None

    def _is_sure(self, turn: Turn, tool: ToolInfo) -> bool:
        known = self.calibration_of(turn.ask.adapter)
        if known is None or turn.probability is None:
            return False
        shown = [message.content for message in turn.messages if message.role == "user"]
        return known.sure(turn.probability, [*shown[:-1], turn.question], turn.calls, tool)

    async def _remember(self, turn: Turn, call: ToolCall) -> ToolResult:
        """Keep a fact that its owner has just said yes to."""
        assert self.remember is not None  # else it was not offered
        fact = str(call.arguments.get("fact", ""))
        number = sum(message.role == "user" for message in turn.ask.messages)
        try:
            await asyncio.to_thread(
                self.remember, fact, turn.ask.conversation, number, turn.question
            )
        except QuietchoirError as error:
            return ToolResult(f"Not kept: {error}", ok=False)
        return ToolResult("Kept.")

    async def _carry_out(
        self, call: ToolCall, conversation: str
    ) -> AsyncGenerator[ElicitationEvent | ElicitedEvent | ToolResult, None]:
        """One call, and the forms that its owner is shown meanwhile; its result comes last."""
        ready: asyncio.Queue[ElicitationEvent | ElicitedEvent | ToolResult | None] = asyncio.Queue()

        async def elicit(form: Form) -> ElicitResult:
            with self.approvals.elicit(form, conversation) as waiting, standing_still(limit):
                ready.put_nowait(ElicitationEvent(waiting.id, call.id, form, waiting.timeout_s))
                result = await self.approvals.wait(waiting)
            if result is None:
                ready.put_nowait(ElicitedEvent(waiting.id, "cancel", "timeout"))
                raise TimeoutError
            ready.put_nowait(ElicitedEvent(waiting.id, result.action, "owner"))
            return result

        async def carried_out() -> None:
            try:
                async with limit:
                    context = CallContext(conversation, elicit)
                    result = await self.tools.call(call, self.call_timeout_s, context)
                ready.put_nowait(replace(result, text=result.text[:RESULT_CHARACTERS]))
            except PluginError as error:
                ready.put_nowait(ToolResult(str(error), ok=False))
            except TimeoutError:  # the tools' own deadline should have come first
                late = f"{call.name} gave no answer within {self.call_timeout_s:g} s"
                ready.put_nowait(ToolResult(late, ok=False))
            finally:
                ready.put_nowait(None)

        limit = asyncio.timeout(self.call_timeout_s + GRACE_S)
        task = asyncio.create_task(carried_out())
        try:
            while (event := await ready.get()) is not None:
                yield event
            await task  # a bug of ours is raised here
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextmanager
def standing_still(limit: asyncio.Timeout) -> Iterator[None]:
    """A call's time does not run: its owner reads."""
    loop, until = asyncio.get_running_loop(), limit.when()
    if until is None:  # he reads another form of it
        yield
        return
    left = until - loop.time()
    limit.reschedule(None)
    try:
        yield
    finally:
        with suppress(RuntimeError):  # the call ended meanwhile
            limit.reschedule(loop.time() + left)


def new_id() -> str:
    """A call's id."""
    return f"call_{secrets.token_hex(12)}"


def _let_go(submitted: "asyncio.Future[Generation]") -> None:
    """The asker left while the grammar was compiled."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()
