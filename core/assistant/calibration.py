"""Which of an adapter's calls may be carried out unasked: measured on held-out examples.

Knows requests, calls, their probabilities and the right ones. Knows nothing of training or rounds.
Always: an adapter that was not measured, or of which too few calls were right, is never sure, so
its owner is asked; what was measured holds for that very adapter, asked in that very way, on that
very file of the model, and for tools that were among the right answers.

A call is sure if it is likely enough and leaves nothing of the request out, nor puts anything in:
a model that drops "across the top floor" is often as certain as one that is right. Which words say
nothing more beside a tool ("please turn on the"), and which arguments nobody says ("domain:
light"), those are that the right answers with that very tool tell: "turn it up to 35" beside the
tool that turns up by 35 is told by none.

Source: selective classification (Geifman and El-Yaniv, 2017), with Wilson's bound of a share.
Not covered: requests of another kind than the held-out ones; languages that set no blanks between
words, whose owners are asked more often.
"""

import hashlib
import json
import math
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .. import log, paths, tables
from ..config import ToolsConfig
from ..errors import ConfigError, DataError, ToolCallCutError
from ..prompt import AS_IT_COMES, PromptFormat
from ..toolcall import ToolCall, parse_all
from .approvals import Approvals
from .context import Message
from .events import ChatRequest, Event, ToolCallEvent
from .tools import ToolInfo

PRECISION = 0.95  # of the calls that are carried out unasked, at least so many are right
# What an assistant that is measured may do: nothing.
MEASURED = ToolsConfig(read="never", write="never", outside="never")
FILE = "calibration.json"  # in an adapter's folder
WORD = re.compile(r"\w+")
FEWEST = 20  # calls above a threshold, or there is none
Z = 1.28  # of the bound: nine times in ten the true share is not below it
logger = log.get("calibration")
Told = tuple[str, str, str]  # tools, a field of `Wording`, and one of what it holds


class Replying(Protocol):
    """The part of an assistant that is measured."""

    @property
    def approvals(self) -> Approvals:
        """What it remembers of conversations."""
        ...

    def reply(self, ask: ChatRequest) -> AsyncGenerator[Event, None]:
        """Answer one conversation."""
        ...


@dataclass(frozen=True, slots=True)
class WeighedCall:
    """What was called for one conversation, and how sure the model was."""

    said: tuple[str, ...]  # by its user, the request last
    calls: tuple[ToolCall, ...]
    expected: tuple[ToolCall, ...]
    probability: float  # of all calls of the answer together; 0 where nothing was called

    @property
    def right(self) -> bool:
        """Exactly what was asked for."""
        return self.calls == self.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """How right calls of one tool, or of several in one answer, go with what was said."""

    unsaid: tuple[str, ...] = ()  # words of requests that stand in no value
    arguments: tuple[str, ...] = ()  # names
    implied: tuple[str, ...] = ()  # `NAME VALUE` of arguments that nobody said


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was found out about one adapter."""

    threshold: float | None = None  # None: it is never sure
    examples: int = 0
    precision: float = 0.0  # of the calls that are sure
    coverage: float = 0.0  # the share of requests that are carried out unasked
    model: str = ""  # digest of the file that it was measured on
    prompt: PromptFormat = AS_IT_COMES  # how it was asked
    tools: tuple[str, ...] = ()  # `fingerprint` of each that is a right answer
    wordings: dict[str, Wording] = field(default_factory=dict)  # by `names_of` right calls

    def sure(
        self, probability: float, said: Sequence[str], calls: Sequence[ToolCall], tool: ToolInfo
    ) -> bool:
        """Whether one of these calls, that of `tool`, may be carried out unasked.

        Args:
            probability: of all the calls of the answer together.
            said: by the user, as far as the model was shown it; the request is the last.
        """
        known = self.wordings.get(names_of(calls))
        if self.threshold is None or known is None or not said:
            return False
        found = wording(said, calls)
        return (
            probability >= self.threshold
            and fingerprint(tool) in self.tools
            and set(found.unsaid) <= set(known.unsaid)
            and set(found.arguments) <= set(known.arguments)
            and set(found.implied) <= set(known.implied)
        )


def fingerprint(tool: ToolInfo) -> str:
    """A tool by its name, what it does and its parameters; another one of that name is another."""
    what = json.dumps([tool.name, tool.effect, tool.schema], sort_keys=True, default=str)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def names_of(calls: Iterable[ToolCall]) -> str:
    """The tools of one answer."""
    return " ".join(call.name for call in calls)


def wording(said: Sequence[str], calls: Sequence[ToolCall]) -> Wording:
    """What of the request its calls leave out, and what they hold that was not said in it, nor in
    the requests before it.
    """
    heard = {word for text in said for word in words_of(text)}
    given = [(name, words_of(value)) for call in calls for name, value in call.arguments.items()]
    values = {word for _, words in given for word in words}
    return Wording(
        unsaid=tuple(sorted(set(words_of(said[-1])) - values)),
        arguments=tuple(sorted({name for name, _ in given})),
        implied=tuple(
            sorted(
                {" ".join([name, *words]) for name, words in given if not heard.issuperset(words)}
            )
        ),
    )


def words_of(value: Any) -> list[str]:
    """The words of a text, a number or whatever else an argument may be, in small letters."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return WORD.findall(text.casefold())


async def weigh(
    assistant: Replying,
    examples: Iterable[tuple[Sequence[Message], Sequence[ToolCall]]],
    adapter: str | None,
    tool_choice: str | None = None,
) -> list[WeighedCall]:
    """Ask an assistant that may do nothing (`MEASURED`), and note what it would have called.

    Args:
        examples: conversations, each with the calls that are right; none: no call is. An answer
            before the request that is calls counts as made here, of its user's words alone, as it
            is where the adapter serves.
        tool_choice: as in `ChatRequest`; None: the model calls of itself. One call is demanded.
    """
    found = []
    for said, expected in examples:
        calls: list[ToolCallEvent] = []
        messages = tuple(map(as_called, said))
        conversation = f"measured-{secrets.token_hex(8)}"
        for message in messages:
            if message.calls:
                assistant.approvals.called(conversation, message.calls, foreign=False)
        ask = ChatRequest(
            messages=messages,
            conversation=conversation,
            adapter=adapter,
            tool_choice=tool_choice,
            parallel_tool_calls=tool_choice is None,
        )
        try:
            async with aclosing(assistant.reply(ask)) as events:
                async for event in events:
                    if isinstance(event, ToolCallEvent):
                        calls.append(event)
                    elif calls:
                        break  # what it says to a refusal is of no interest
        except ToolCallCutError:
            pass
        assistant.approvals.forget(conversation)
        asked = tuple(message.content for message in messages if message.role == "user")
        probability = min((call.probability or 0.0 for call in calls), default=0.0)
        called = tuple(call.call for call in calls)
        found.append(WeighedCall(asked, called, tuple(expected), probability))
    return found


def as_called(message: Message) -> Message:
    """A message of an example, in which calls stand as text."""
    calls = parse_all(message.content) if message.role == "assistant" else ()
    return Message("assistant", "", calls) if calls else message


def calibrate(
    weighed: Sequence[WeighedCall],
    tools: Mapping[str, ToolInfo],
    *,
    model: str = "",
    prompt: PromptFormat = AS_IT_COMES,
    precision: float = PRECISION,
) -> Calibration:
    """The lowest threshold above which calls that say all that was said are right often enough.

    Args:
        tools: those on offer, by name.
        model: digest of the model's file.
        prompt: how the adapter was asked.
    """
    evidence = Evidence(weighed)
    sure = sure_ones([one for one in weighed if one.calls and evidence.vouches(one)], precision)
    if not sure:
        return Calibration(examples=len(weighed), model=model, prompt=prompt)
    return Calibration(
        threshold=sure[-1].probability,
        examples=len(weighed),
        precision=sum(one.right for one in sure) / len(sure),
        coverage=len(sure) / len(weighed),
        model=model,
        prompt=prompt,
        tools=evidence.fingerprints(tools),
        wordings=evidence.wordings(),
    )


def sure_ones(weighed: Iterable[WeighedCall], precision: float = PRECISION) -> list[WeighedCall]:
    """As many of these as are right often enough, the likeliest first; equal ones are never told
    apart.
    """
    likeliest = sorted(weighed, key=lambda one: -one.probability)
    most = right = 0
    for count, one in enumerate(likeliest, start=1):
        right += one.right
        alike = count < len(likeliest) and likeliest[count].probability == one.probability
        if not alike and count >= FEWEST and lower_bound(right, count) >= precision:
            most = count
    return likeliest[:most]


class Evidence:
    """What the right answers to some requests tell: how often each thing is told, by tool."""

    def __init__(self, weighed: Iterable[WeighedCall]) -> None:
        self.told: Counter[Told] = Counter()
        self.names: set[str] = set()  # of the tools that are right answers
        for one in weighed:
            self.told.update(told_by(one.said, one.expected))
            self.names |= {call.name for call in one.expected}

    def vouches(self, one: WeighedCall) -> bool:
        """Whether the other answers tell all that one call needs: its own right answer does not
        count for it.
        """
        own = told_by(one.said, one.expected)
        needed = told_by(one.said, one.calls)
        return bool(needed) and all(self.told[what] > (what in own) for what in needed)

    def fingerprints(self, tools: Mapping[str, ToolInfo]) -> tuple[str, ...]:
        """Of the tools on offer that are right answers."""
        return tuple(sorted(fingerprint(tools[name]) for name in self.names if name in tools))

    def wordings(self) -> dict[str, Wording]:
        """The same, as it is kept."""
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for names, kind, what in sorted(self.told):
            kinds = found.setdefault(names, {})
            kinds[kind] = (*kinds.get(kind, ()), what)
        return {names: Wording(**kinds) for names, kinds in found.items()}


def told_by(said: Sequence[str], calls: Sequence[ToolCall]) -> set[Told]:
    """What one answer needs, or, if it is right, tells."""
    if not calls:
        return set()
    names, found = names_of(calls), asdict(wording(said, calls))
    return {(names, kind, what) for kind, several in found.items() for what in several}


def lower_bound(right: int, count: int) -> float:
    """Wilson's lower bound of a share."""
    share, spread = right / count, Z * Z / count
    middle = share + spread / 2
    return (middle - math.sqrt(spread * (share * (1 - share) + spread / 4))) / (1 + spread)


class Calibrations:
    """What is known of the adapters of one node: a file in each adapter's folder, beside its card.

    Not in the card: that is signed by whoever summed the adapter and goes round, this is what one
    node found on examples of its own, with words of theirs. So it goes when its adapter goes, and
    neither leaves with an export nor comes with an import.
    """

    def __init__(
        self,
        adapters: Path,
        model: str,
        prompt_of: Callable[[str], PromptFormat] = lambda _: AS_IT_COMES,
    ) -> None:
        """
        Args:
            adapters: the folder of adapters' folders.
            model: digest of the file that serves; what was measured on another says nothing.
            prompt_of: how an adapter is asked here; what was measured with another prompt says
                nothing.
        """
        self.adapters, self.model, self.prompt_of = adapters, model, prompt_of
        self._known: dict[str, tuple[int, Calibration | None]] = {}

    def find(self, adapter: str | None) -> Calibration | None:
        """What makes an adapter's calls sure; None: nothing does.

        Without an adapter the plain model answers, which is never sure.
        """
        if adapter is None:
            return None
        path = self.adapters / adapter / FILE
        try:
            stamp = path.stat().st_mtime_ns
            if self._known.get(adapter, (0, None))[0] != stamp:
                self._known[adapter] = stamp, self._read(path)
        except FileNotFoundError:
            self._known.pop(adapter, None)
        except (OSError, ValueError, AttributeError, RecursionError, ConfigError) as error:
            logger.error("%s: cannot be read (%s); every call is asked before", path, error)
            self._known[adapter] = stamp, None
        found = self._known.get(adapter, (0, None))[1]
        return found if found is not None and found.prompt == self.prompt_of(adapter) else None

    def put(self, adapter: str, found: Calibration) -> None:
        """Remember what was found out.

        Raises:
            DataError: the adapter was removed meanwhile. QuietchoirError: the disk refused.
        """
        if not (self.adapters / adapter).is_dir():
            raise DataError(f"adapter {adapter[:12]} is not here any more; nothing is kept of it")
        text = json.dumps(asdict(found), ensure_ascii=False, indent=1)
        paths.write_atomically(self.adapters / adapter / FILE, text.encode(), mode=0o600)

    def _read(self, path: Path) -> Calibration | None:
        given = json.loads(path.read_text("utf-8"))
        known = {name: value for name, value in given.items() if value is not None}
        found = tables.fill(Calibration, known, f"{path}: ")
        return found if found.threshold is not None and found.model == self.model else None
