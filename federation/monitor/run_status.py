"""How a run is doing, in numbers that may be shown.

Knows the run's state on disk and its events. Knows nothing of pages or metrics.
Always: no number here belongs to one member: rounds, cohort sizes, drop-outs, and bytes, scores and
losses as sums. Who took part, and the bytes of each, the coordinator's operator finds in the run's
report and in the audit log; they are not shown here.
"""

import re
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import FederationError
from ..events import (
    AbortedEvent,
    AskedEvent,
    DeliveredEvent,
    FederationEvent,
    ReadyEvent,
    RenewedEvent,
    RoundEvent,
    WaitingEvent,
)
from ..membership import roster
from ..spec.policy import Policy
from ..store import checkpoint
from ..store.checkpoint import RunState

Row = dict[str, Any]  # one round, as it is shown
SHOWN = (
    "kind",
    "round",
    "attempt",
    "seconds",
    "work_seconds",
    "loss",
    "accuracy",
    "scored",
    "epsilon",
    "rates",
)


def row(entry: Mapping[str, Any]) -> Row:
    """One round, without its members."""
    guard = entry.get("guard")
    return {
        **{key: entry.get(key) for key in SHOWN},
        "asked": len(entry["asked"]),
        "parties": len(entry["parties"]),
        "dropped": len(set(entry["asked"]) - set(entry["parties"])),
        "bytes_up": sum(entry["bytes_up"].values()),
        "bytes_down": sum(entry["bytes_down"].values()),
        "kept": None if guard is None else bool(guard["kept"]),
        "voted": None if guard is None else guard["accuracy"],
    }


def curve(history: list[Row]) -> list[list[float]]:
    """[rounds behind the adapter, accuracy], oldest first: what a round measured before it
    trained, or voted after it.
    """
    points: dict[int, float] = {}
    done = 0
    for entry in history:
        if entry["accuracy"] is not None:
            points[done] = entry["accuracy"]
        done += entry["kind"] == "train"
        if entry["kept"] and entry["voted"] is not None:
            points[done] = entry["voted"]
    return [[float(at), accuracy] for at, accuracy in sorted(points.items())]


class RunStatus:
    """One run, from its events on; safe to read from another thread.

    Args:
        state: where the run is when the board is put up; None before its first round.
        rounds: how many it is to have; by default the federation's.
    """

    def __init__(
        self, policy: Policy, state: RunState | None = None, rounds: int | None = None
    ) -> None:
        self.policy, self.rounds = policy, rounds or policy.recipe.rounds
        self.lock = threading.Lock()
        self.history = [row(entry) for entry in state.history] if state is not None else []
        self.done, self.finished = (
            (state.round, state.finished) if state is not None else (0, False)
        )
        self.present: int | None = None  # as last told
        # asks the link: between two words of the run members come and go
        self.presence: Callable[[], int] | None = None
        self.aborted, self.reason = 0, ""
        self.now: Row | None = None
        self.members, self.version = len(policy.members), policy.version

    def note(self, event: FederationEvent) -> None:
        """Take one event of the run."""
        with self.lock:
            match event:
                case WaitingEvent():
                    self.present, self.members = event.present, event.roster
                case AskedEvent():
                    self.now = {
                        "round": event.round,
                        "stage": event.stage,
                        "asked": len(event.cohort),
                        "ready": 0,
                    }
                case ReadyEvent() if self.now is not None:
                    self.now["ready"] += 1
                case RoundEvent(name="round"):
                    self.history.append(row(event.entry))
                    self.done = sum(entry["kind"] == "train" for entry in self.history)
                    self.now = None
                case RoundEvent():
                    trained = [entry for entry in self.history if entry["kind"] == "train"]
                    self.history, self.now = [*trained, row(event.entry)], None
                case AbortedEvent():
                    self.aborted, self.reason = self.aborted + 1, self.unnamed(event.reason)
                    self.now = None
                case RenewedEvent():
                    self.members, self.version = len(event.members), event.version
                case DeliveredEvent():
                    self.finished = True

    def unnamed(self, text: str) -> str:
        """A reason without the names of members: why an attempt failed is shown, by whom is not."""
        return unnamed(text, [member.name for member in self.policy.members])

    def snapshot(self) -> Row:
        """Everything that is shown, as JSON's types."""
        policy, privacy = self.policy, self.policy.privacy
        here = None if self.presence is None else self.presence()
        with self.lock:
            here = self.present if here is None else here
            history = list(self.history)
            spent = [entry["epsilon"] for entry in history if entry["epsilon"] is not None]
            return {
                "federation": policy.name,
                "version": self.version,
                "mode": policy.protection.mode,
                "members": self.members,
                "min_cohort": policy.protection.min_cohort,
                "present": here,
                "round": self.done,
                "rounds": self.rounds,
                "finished": self.finished,
                "aborted": self.aborted,
                "reason": self.reason,
                "now": self.now,
                "epsilon": spent[-1] if spent else None,
                "budget": privacy.epsilon if privacy.on else None,
                "delta": privacy.delta if privacy.on else None,
                "dropped": sum(entry["dropped"] for entry in history),
                "bytes_up": sum(entry["bytes_up"] for entry in history),
                "bytes_down": sum(entry["bytes_down"] for entry in history),
                "curve": curve(history),
                "history": history,
            }


def unnamed(text: str, names: Collection[str]) -> str:
    """`text` with "a member" in the place of each of `names`."""
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return (
        re.sub(rf"(?<![\w-])(?:{'|'.join(longest_first)})(?![\w-])", "a member", text)
        if names
        else text
    )


def from_disk(folder: Path) -> RunStatus:
    """The run in a coordinator's state folder; a running coordinator is not disturbed.

    Raises:
        FederationError: no run there. RosterError, ConfigError: its federation file is damaged.
    """
    state, file = checkpoint.read(folder), folder / roster.FILE
    if state is None or not file.exists():
        raise FederationError(
            f"{folder}: no run here yet; start one: quietchoir coordinate FED --state {folder}"
        )
    return RunStatus(roster.read(file).policy, state)
