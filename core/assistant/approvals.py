"""What the assistant may do unasked, and the questions and forms that wait for its owner.

Knows the owner's rules, what a tool's call does, and conversations by the names that clients give
them. Knows nothing of models, plugins or HTTP.
Always: a question that is not answered in time is a refusal, and a form gives nothing; of a form
nothing is remembered. Where foreign text stands in a conversation, nothing is changed without a yes
that was given in it, and each call that reaches outside needs a yes of its own. A conversation that
holds answers and that this process has not seen begin counts as one with foreign text.
Not covered: what the owner's yes allows; a client that answers its own questions, or that sends
text of others as the user's, the system's or the model's words.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..config import Rule, ToolsConfig
from ..errors import ApprovalError
from ..toolcall import ToolCall
from .elicitation import ANSWER_S, ElicitResult, Form
from .tools import ToolInfo

A = TypeVar("A")

REMEMBERED = 1_024  # conversations that are known
SHOWN = 200  # characters of one argument in a question; of a fact, all
# Offered where a conversation uses memory, unless `tools.never` names it; whatever else the owner's
# rules say, each fact is asked first.
REMEMBER = ToolInfo(
    "remember",
    "Remembers one lasting fact that the user told about themselves",
    {
        "type": "object",
        "properties": {"fact": {"type": "string", "description": "one sentence"}},
        "required": ["fact"],
        "additionalProperties": False,
    },
)
OWN_TOOLS = (REMEMBER,)  # the node's; nobody else's is called like one of them
STRICTER: tuple[Rule, ...] = ("allow", "confident", "ask", "never")  # the strictest last
Verdict = Rule  # of one call: "allow", "ask" or "never"


@dataclass(slots=True)
class Conversation:
    """What was allowed in one conversation, and whether text of others stands in it."""

    rules: dict[str, Rule] = field(default_factory=dict)  # tool → what its owner said here
    clean: bool = False  # seen from its beginning, and no tool or document brought text since
    # of the last answer that called, if nobody but the owner had written what it was made of
    own: tuple[ToolCall, ...] = ()


@dataclass(slots=True, kw_only=True)
class Unanswered(Generic[A]):
    """What its owner has yet to answer."""

    id: str
    conversation: str
    timeout_s: float
    until: float  # on the event loop's clock; whoever asks slowly has no more time for it
    answer: "asyncio.Future[A]"

    def is_open(self) -> bool:
        """Whether an answer is still taken."""
        return not self.answer.done() and asyncio.get_running_loop().time() <= self.until


@dataclass(slots=True, kw_only=True)
class Question(Unanswered[bool]):
    """A call that waits."""

    call: ToolCall
    tool: ToolInfo
    text: str


@dataclass(slots=True, kw_only=True)
class Elicitation(Unanswered[ElicitResult]):
    """A form that a call waits for."""

    form: Form


class Approvals:
    """The owner's rules, and the questions and forms that are open. For one event loop."""

    def __init__(self, rules: ToolsConfig | None = None) -> None:
        self.rules = rules or ToolsConfig()
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()
        self._open: dict[str, Question] = {}
        self._forms: dict[str, Elicitation] = {}

    def verdict(
        self, tool: ToolInfo, conversation: str, *, confident: bool, foreign: bool
    ) -> Verdict:
        """Whether a call may be carried out: "allow", "ask" or "never".

        Args:
            confident: calls of this probability were right, by the adapter's calibration.
            foreign: text that neither owner nor model wrote may stand before the model
                (`is_foreign`).
        """
        own = self._said(tool, conversation)
        rule = own or self.rule(tool)
        if rule in ("never", "ask"):
            return rule
        if tool.effect == "read" or (own is not None and tool.effect != "outside"):
            return "allow"
        return "allow" if not foreign and (rule == "allow" or confident) else "ask"

    def rule(self, tool: ToolInfo) -> Rule:
        """What the owner's file says of a tool."""
        named: dict[str, Rule] = {
            **dict.fromkeys(self.rules.allow, "allow"),
            **dict.fromkeys(self.rules.ask, "ask"),
            **dict.fromkeys(self.rules.never, "never"),
        }
        by_effect: dict[str, Rule] = {
            "read": self.rules.read,
            "write": self.rules.write,
            "outside": self.rules.outside,
        }
        return named.get(tool.name) or by_effect[tool.effect]

    def covers(self, asked: ToolInfo, called: ToolInfo, conversation: str = "") -> bool:
        """Whether a call of `asked` that was allowed may have `called` carried out for it: the
        owner's rule for `called` is not "never", nor was that said in this conversation; it is no
        "always ask" by its name, and no stricter than the one that `asked` was judged by. A yes
        that is remembered is for what the model calls, and loosens nothing here.
        """
        rule = self.rule(called)
        return (
            "never" not in (rule, self._said(called, conversation))
            and called.name not in self.rules.ask
            and STRICTER.index(self.rule(asked)) >= STRICTER.index(rule)
        )

    def _said(self, tool: ToolInfo, conversation: str) -> Rule | None:
        """What its owner said of a tool in this conversation; None: nothing that is remembered."""
        known = self._conversations.get(conversation)
        return None if known is None else known.rules.get(tool.name)

    def is_foreign(self, conversation: str, *, continued: bool) -> bool:
        """Whether text of others may stand in a conversation that is now answered.

        Args:
            continued: it holds an answer already. One that this process has not seen begin (it has
                no name, or was begun before a restart or very many others) may hold anything then.
        """
        if conversation and not continued and conversation not in self._conversations:
            self._conversation(conversation).clean = True
        known = self._conversations.get(conversation)
        if known is None:
            return continued
        self._conversations.move_to_end(conversation)
        return not known.clean

    def read(self, conversation: str) -> None:
        """Text that others may have written came into the conversation."""
        if conversation:
            self._conversation(conversation).clean = False

    def forget(self, conversation: str) -> None:
        """A conversation was deleted: nothing that was said in it holds for one of its name."""
        self._conversations.pop(conversation, None)

    def called(self, conversation: str, calls: Sequence[ToolCall], *, foreign: bool) -> None:
        """An answer made these calls; `foreign`: text of others stood before the model."""
        if conversation:
            self._conversation(conversation).own = () if foreign else tuple(calls)

    def is_own(self, conversation: str, calls: Sequence[ToolCall]) -> bool:
        """Whether these are the last calls made here, of the owner's words alone."""
        known = self._conversations.get(conversation)
        return known is not None and known.own == tuple(calls) != ()

    @contextmanager
    def ask(self, call: ToolCall, tool: ToolInfo, conversation: str) -> Iterator[Question]:
        """A question, open while the block runs; `wait` for its answer."""
        seconds = self.rules.approval_timeout_s
        question = Question(
            **self._waiting("ask", conversation, seconds),
            call=call,
            tool=tool,
            text=question_of(call, tool),
        )
        self._open[question.id] = question
        try:
            yield question
        finally:
            del self._open[question.id]

    @contextmanager
    def elicit(self, form: Form, conversation: str) -> Iterator[Elicitation]:
        """A form, open while the block runs; `wait` for what becomes of it."""
        seconds = min(self.rules.approval_timeout_s, ANSWER_S)
        waiting = Elicitation(**self._waiting("form", conversation, seconds), form=form)
        self._forms[waiting.id] = waiting
        try:
            yield waiting
        finally:
            del self._forms[waiting.id]

    async def wait(self, waiting: Unanswered[A]) -> A | None:
        """The owner's word; None: there was none in time."""
        try:
            async with asyncio.timeout_at(waiting.until):
                return await waiting.answer
        except TimeoutError:
            return None

    def elicitations(self) -> Sequence[Elicitation]:
        """The forms that are open, the oldest first."""
        return list(self._forms.values())

    def respond(self, id: str, result: ElicitResult) -> None:
        """Answer a form; one that is filled in wrongly stays open.

        Raises:
            ApprovalError: no such form is open. ValueError: what it asks for, and was not given.
        """
        waiting = self._forms.get(id)
        if waiting is None or not waiting.is_open():
            raise ApprovalError(
                f"no form {id[:40]!r} is open; it was answered, ran out of time, or its asker went "
                "away"
            )
        if result.action == "accept":
            waiting.form.checked(result.content)
        waiting.answer.set_result(result)

    def pending(self) -> Sequence[Question]:
        """The questions that are open, the oldest first."""
        return list(self._open.values())

    def answer(self, id: str, approved: bool, *, remember: bool = False) -> None:
        """Answer a question.

        Args:
            remember: the same holds for this tool in the rest of the conversation; except a yes to
                what reaches outside, which is for one call, as what that brings back is foreign.

        Raises:
            ApprovalError: no such question is open, or its client names no conversation in which
            the answer could be remembered.
        """
        question = self._open.get(id)
        if question is None or not question.is_open():
            raise ApprovalError(
                f"no question {id[:40]!r} is open; it was answered, ran out of time, or its asker "
                "went away"
            )
        if remember:
            if not question.conversation:
                raise ApprovalError(
                    "this conversation has no name, so an answer cannot be remembered in it; send "
                    "metadata.conversation with the request, or answer without `remember`"
                )
            if not approved or question.tool.effect != "outside":
                known = self._conversation(question.conversation)
                known.rules[question.tool.name] = "allow" if approved else "never"
        question.answer.set_result(approved)

    def _waiting(self, kind: str, conversation: str, seconds: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return {
            "id": f"{kind}_{secrets.token_hex(12)}",
            "conversation": conversation,
            "timeout_s": seconds,
            "until": loop.time() + seconds,
            "answer": loop.create_future(),
        }

    def _conversation(self, name: str) -> Conversation:
        known = self._conversations.setdefault(name, Conversation())
        self._conversations.move_to_end(name)
        while len(self._conversations) > REMEMBERED:
            self._conversations.popitem(last=False)
        return known


def misnamed(rules: ToolsConfig, on_offer: Iterable[str]) -> list[str]:
    """Names that the rules hold and no tool here has: such a rule protects nothing."""
    own = [tool.name for tool in OWN_TOOLS]
    return sorted({*rules.allow, *rules.ask, *rules.never}.difference(on_offer, own))


def question_of(call: ToolCall, tool: ToolInfo) -> str:
    """A call in words that its owner can say yes to.

    Hazard: the arguments are a model's words and the description is a plugin's; show them as text.
    """
    what = " ".join(tool.description.split()).rstrip(".") or call.name
    given = [
        f"{key} {shown(value, None if tool is REMEMBER else SHOWN)}"
        for key, value in call.arguments.items()
        if value not in (None, "")
    ]
    if given:
        return f"{what}: {', '.join(given)}. Shall I?"
    if tool.schema.get("properties"):
        return f"{what}, with nothing named, so it may mean everything. Shall I?"
    return f"{what}. Shall I?"


def shown(value: object, most: int | None) -> str:
    """One argument in a question, cut behind `most` characters."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= (most or len(text)) else text[:most] + "…")
