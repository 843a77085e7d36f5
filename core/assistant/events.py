"""What is asked of the assistant, and what it tells while it answers.

Knows requests and events as values. Knows nothing of who makes them or shows them.
Always: an answer's last event is `Finished`; a call, its question and its result share one id.
"""

from dataclasses import dataclass, field

from ..engine.sampling.logprobs import TokenLogprobs
from ..engine.sampling.params import SamplingParams
from ..toolcall import ToolCall
from .citations import Cited
from .context import LeftOut, Message
from .elicitation import Action, Form
from .tools import Effect, ToolInfo, ToolResult

ANY_TOOL = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One conversation that waits for an answer."""

    messages: tuple[Message, ...]
    # what the assistant's answer begins with already; it is continued, and not repeated
    begun: str = ""
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    # the same for an answer that may be any text; None: no other
    talk: SamplingParams | None = None
    adapter: str | None = None  # an adapter the engine holds
    use_tools: bool = True
    collections: tuple[str, ...] = ()  # of documents, whose passages the answer may cite
    use_memory: bool = False  # show the model the facts that its owner had it keep
    # None: the model may call; ANY_TOOL: it must; a name: it must call that tool
    tool_choice: str | None = None
    parallel_tool_calls: bool = True  # one answer may call several tools at once
    # what the caller offers; calls go back to the caller, uncalled
    caller_tools: tuple[ToolInfo, ...] | None = None
    # what its client calls the conversation that this continues; what was allowed in it, holds on
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()  # of its tokens, where the ask wants logprobs
    thought: bool = False  # a reasoning model thinks it, marks and all, before it answers
    mark: bool = False  # of a thought: one of the marks around it


@dataclass(frozen=True, slots=True)
class ToolsListedEvent:
    """More tools are on offer than the prompt has room for: the model is told of these alone."""

    names: tuple[str, ...]
    offered: int  # how many there are


@dataclass(frozen=True, slots=True)
class LoopStepEvent:
    """The model is asked again, with what its calls brought."""

    number: int  # the first generation is 1
    last: bool = False  # no further calls are taken: this one must answer in words


@dataclass(frozen=True, slots=True)
class ToolCallEvent:
    """The model called a tool."""

    id: str
    call: ToolCall
    plugin_id: str = ""
    # with which it wrote the call's tokens, where the node itself carries it out
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class ApprovalEvent:
    """A call waits for its owner's word; without one it is not carried out."""

    id: str  # under which it is answered
    tool_call_id: str
    question: str  # the call in words
    call: ToolCall
    effect: Effect
    timeout_s: float  # then it counts as refused


@dataclass(frozen=True, slots=True)
class ApprovedEvent:
    """What became of the question."""

    id: str
    approved: bool
    by: str  # "owner" or "timeout"


@dataclass(frozen=True, slots=True)
class ElicitationEvent:
    """A call waits for a form of its tool's, or of a tool that it calls, to be filled in."""

    id: str  # under which it is answered
    tool_call_id: str
    form: Form
    timeout_s: float  # then it gives nothing


@dataclass(frozen=True, slots=True)
class ElicitedEvent:
    """What became of the form; not what was filled in. A result of its call ends it too."""

    id: str
    action: Action
    by: str  # "owner" or "timeout"


@dataclass(frozen=True, slots=True)
class ToolResultEvent:
    """The tool came back, or the call was not carried out; the result says why."""

    id: str
    result: ToolResult


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every answer."""

    reason: str  # "stop", "length", "repetition", "tool_calls" or "cancelled"
    prompt_tokens: int
    completion_tokens: int


Event = (
    Cited
    | LeftOut
    | Text
    | ToolsListedEvent
    | LoopStepEvent
    | ToolCallEvent
    | ApprovalEvent
    | ApprovedEvent
    | ElicitationEvent
    | ElicitedEvent
    | ToolResultEvent
    | Finished
)
