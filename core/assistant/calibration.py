"""Which of an adapter's calls may be carried out unasked: measured on held-out examples.

Knows requests, calls, their probabilities and the right ones. Knows nothing of training or rounds.
Always: an adapter that was not measured, or of which too few calls were right, is never sure, so
its owner is asked; what was measured holds for that very adapter, on that very file of the model,
and for tools that were among the right answers.

A call is sure if it is likely enough and leaves nothing of the request out, nor puts anything in:
a model that drops "across the top floor" is often as certain as one that is right. Which words say
nothing ("please turn on the"), and which arguments nobody says ("domain: light"), are those of the
right answers.

Source: the threshold is that of selection with conformal p-values (Jin and Candès 2023, JMLR 24,
244): of the calls that it lets pass, the share of wrong ones is at most 1 - `PRECISION` in the mean
over held-out examples and requests that are drawn alike.
Not covered: requests of another kind than the held-out ones; languages that set no blanks between
words, whose owners are asked more often.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from .. import log, paths, tables
from ..config import ToolsConfig
from ..errors import ConfigError, DataError, ToolCallCutError
from ..toolcall import ToolCall
from .context import Message
from .events import ChatRequest, Event, ToolCallEvent
from .tools import ToolInfo

PRECISION = 0.95  # of the calls that are carried out unasked, at least so many are right
# What an assistant that is measured may do: nothing.
MEASURED = ToolsConfig(read="never", write="never", outside="never")
FILE = "calibration.json"  # in an adapter's folder
WORD = re.compile(r"\w+")
logger = log.get("calibration")
Implied = tuple[str, str]  # an argument's name, and its value, whose words nobody said


class Replying(Protocol):
    """The part of an assistant that is measured."""

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
class Calibration:
    """What was found out about one adapter."""

    threshold: float | None = None  # None: it is never sure
    examples: int = 0
    precision: float = 0.0  # of the calls that are sure
    coverage: float = 0.0  # the share of requests that are carried out unasked
    model: str = ""  # digest of the file that it was measured on
    tools: tuple[str, ...] = ()  # `fingerprint` of each that is a right answer
    unsaid: tuple[str, ...] = ()  # words of requests that stand in no right call
    implied: tuple[Implied, ...] = ()  # arguments of right calls that no request said

    def sure(
        self, probability: float, said: Sequence[str], calls: Sequence[ToolCall], tool: ToolInfo
    ) -> bool:
        """Whether one of these calls, that of `tool`, may be carried out unasked.

        Args:
            probability: of all the calls of the answer together.
            said: by the user, as far as the model was shown it; the request is the last.
        """
        if self.threshold is None or not said:
            return False
        return (
            probability >= self.threshold
            and fingerprint(tool) in self.tools
            and left_out(said[-1], calls) <= set(self.unsaid)
            and put_in(said, calls) <= set(self.implied)
        )


def fingerprint(tool: ToolInfo) -> str:
    """A tool by its name, what it does and its parameters; another one of that name is another."""
    what = json.dumps([tool.name, tool.effect, tool.schema], sort_keys=True, default=str)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def left_out(request: str, calls: Iterable[ToolCall]) -> set[str]:
    """The words of a request that stand in no value of its calls."""
    values = {
        word for call in calls for value in call.arguments.values() for word in words_of(value)
    }
    return set(words_of(request)) - values


def put_in(said: Iterable[str], calls: Iterable[ToolCall]) -> set[Implied]:
    """The arguments of calls that hold a word that nobody said."""
    heard = {word for text in said for word in words_of(text)}
    return {
        (name, " ".join(words_of(value)))
        for call in calls
        for name, value in call.arguments.items()
        if not heard.issuperset(words_of(value))
    }


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
        examples: conversations, each with the calls that are right; none: no call is.
        tool_choice: as in `ChatRequest`; None: the model calls of itself.
    """
    found = []
    for messages, expected in examples:
        calls: list[ToolCallEvent] = []
        ask = ChatRequest(messages=tuple(messages), adapter=adapter, tool_choice=tool_choice)
        try:
            async with aclosing(assistant.reply(ask)) as events:
                async for event in events:
                    if isinstance(event, ToolCallEvent):
                        calls.append(event)
                    elif calls:
                        break  # what it says to a refusal is of no interest
        except ToolCallCutError:
            pass
        said = tuple(message.content for message in messages if message.role == "user")
        probability = min((call.probability or 0.0 for call in calls), default=0.0)
        called = tuple(call.call for call in calls)
        found.append(WeighedCall(said, called, tuple(expected), probability))
    return found


def calibrate(
    weighed: Sequence[WeighedCall],
    tools: Mapping[str, ToolInfo],
    *,
    model: str = "",
    precision: float = PRECISION,
) -> Calibration:
    """The lowest threshold above which calls that say all that was said are right often enough.

    Args:
        tools: those on offer, by name.
        model: digest of the model's file.
    """
    unsaid: Counter[str] = Counter()
    implied: Counter[Implied] = Counter()
    for one in weighed:
        if one.expected:
            unsaid.update(left_out(one.said[-1], one.expected))
            implied.update(put_in(one.said, one.expected))

    def whole(one: WeighedCall) -> bool:
        """By what the other examples tell: its own right answer does not count for it."""
        own = left_out(one.said[-1], one.expected) if one.expected else set()
        own_put = put_in(one.said, one.expected) if one.expected else set()
        return all(unsaid[word] > (word in own) for word in left_out(one.said[-1], one.calls)) and (
            all(implied[put] > (put in own_put) for put in put_in(one.said, one.calls))
        )

    likeliest = sorted(
        (one for one in weighed if one.calls and whole(one)), key=lambda one: -one.probability
    )
    best = Calibration(threshold=None, examples=len(weighed), model=model)
    wrong = 0
    for count, one in enumerate(likeliest, start=1):
        wrong += not one.right
        alike = count < len(likeliest) and likeliest[count].probability == one.probability
        if not alike and (1 + wrong) / (1 + count) <= 1 - precision:
            best = Calibration(
                threshold=one.probability,
                examples=len(weighed),
                precision=1 - wrong / count,
                coverage=count / len(weighed),
                model=model,
                tools=tuple(
                    sorted(
                        fingerprint(tools[name])
                        for name in {call.name for one in weighed for call in one.expected}
                        if name in tools
                    )
                ),
                unsaid=tuple(sorted(unsaid)),
                implied=tuple(sorted(implied)),
            )
    return best


class Calibrations:
    """What is known of the adapters of one node: a file in each adapter's folder, beside its card.

    Not in the card: that is signed by whoever summed the adapter and goes round, this is what one
    node found on examples of its own, with words of theirs. So it goes when its adapter goes, and
    neither leaves with an export nor comes with an import.
    """

    def __init__(self, adapters: Path, model: str) -> None:
        """
        Args:
            adapters: the folder of adapters' folders.
            model: digest of the file that serves; what was measured on another says nothing.
        """
        self.adapters, self.model = adapters, model
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
        return self._known.get(adapter, (0, None))[1]

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
