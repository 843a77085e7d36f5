"""From which probability on an adapter's calls are right: measured on held-out examples.

Knows probabilities of calls and whether they were the right ones. Knows nothing of training or
rounds.
Always: an adapter that was not measured, or of which too few calls were right, is never sure, so
its owner is asked; a threshold holds for the very adapter that was measured, by its id.

Source: selective classification (Geifman and El-Yaniv, 2017), with Wilson's bound of a share.
"""

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import log, paths
from ..config import ToolsConfig
from ..errors import ToolCallCutError
from ..toolcall import ToolCall
from .assistant import Assistant
from .context import Message
from .events import ChatRequest, ToolCallEvent

PRECISION = 0.95  # of the calls that are carried out unasked, at least so many are right
FEWEST = 20  # calls above a threshold, or there is none
Z = 0.84  # of the bound: four times in five the true share is not below it
# What an assistant that is measured may do: nothing.
MEASURED = ToolsConfig(read="never", write="never", outside="never")
FILE = "calibrations.json"  # in the node's home
logger = log.get("calibration")


@dataclass(frozen=True, slots=True)
class WeighedCall:
    """What was called for one request, and how sure the model was."""

    probability: float  # of all calls of the answer together; 0 where nothing was called
    called: bool
    right: bool  # exactly what was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was found out about one adapter."""

    threshold: float | None  # None: it is never sure
    examples: int
    precision: float = 0.0  # of the calls at the threshold or above
    coverage: float = 0.0  # the share of requests that are carried out unasked


async def weigh(
    assistant: Assistant,
    examples: Iterable[tuple[Sequence[Message], Sequence[ToolCall]]],
    adapter: str | None,
    tool_choice: str | None = None,
) -> list[WeighedCall]:
    """Ask an assistant that may do nothing (`MEASURED`), and compare what it would have called.

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
        probability = min((call.probability or 0.0 for call in calls), default=0.0)
        right = [call.call for call in calls] == list(expected)
        found.append(WeighedCall(probability, bool(calls), right))
    return found


def calibrate(weighed: Sequence[WeighedCall], precision: float = PRECISION) -> Calibration:
    """The lowest threshold above which calls are right often enough."""
    called = sorted((one for one in weighed if one.called), key=lambda one: -one.probability)
    best, right = Calibration(threshold=None, examples=len(weighed)), 0
    for count, one in enumerate(called, start=1):
        right += one.right
        last = count == len(called) or called[count].probability < one.probability
        if last and count >= FEWEST and lower_bound(right, count) >= precision:
            best = Calibration(
                threshold=one.probability,
                examples=len(weighed),
                precision=right / count,
                coverage=count / len(weighed),
            )
    return best


def lower_bound(right: int, count: int) -> float:
    """Wilson's lower bound of a share."""
    share, spread = right / count, Z * Z / count
    middle = share + spread / 2
    return (middle - math.sqrt(spread * (share * (1 - share) + spread / 4))) / (1 + spread)


class Calibrations:
    """What is known of the adapters of one node, in one file."""

    def __init__(self, home: Path) -> None:
        self.path = home / FILE
        self._stamp: int | None = None
        self._known: dict[str, Calibration] = {}

    def threshold(self, adapter: str | None) -> float | None:
        """From which probability on its calls are carried out unasked; None: never.

        Without an adapter the plain model answers, which is never sure.
        """
        known = None if adapter is None else self._read().get(adapter)
        return None if known is None else known.threshold

    def put(self, adapter: str, found: Calibration) -> None:
        """Remember what was found out. Raises QuietchoirError: the disk refused."""
        known = {**self._read(), adapter: found}
        text = json.dumps({name: asdict(one) for name, one in known.items()}, indent=1)
        paths.write_atomically(self.path, text.encode())

    def _read(self) -> dict[str, Calibration]:
        """The file as it is now; one that cannot be read makes nobody sure."""
        try:
            stamp = self.path.stat().st_mtime_ns
            if stamp != self._stamp:
                rows = json.loads(self.path.read_text("utf-8"))
                self._known = {name: Calibration(**row) for name, row in rows.items()}
                self._stamp = stamp
        except FileNotFoundError:
            self._known = {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            logger.error("%s: cannot be read (%s); every call is asked before", self.path, error)
            self._known = {}
        return self._known
