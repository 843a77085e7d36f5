"""What a member remembers of the adapters that it was told, so that the next one can be told as a change.

Knows the states it holds and the steps between them. Knows nothing of the coordinator's side or of training.
Always: a state is used only if its name, a hash of all its bits, is the one that was asked for, so that everybody who trains
in a round trains from the very same bits; nothing is remembered before the letter was checked whole; after a restart, or where
a processor calculates otherwise, this member says that it lacks the state and gets it whole.

Two states are held: the last one, and the one it was reached from (a change may be undone, or another one judged). That is 16
bytes a value, 24 with second moments, in memory alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import MessageError
from ..learning.aggregate import ServerState
from ..learning.recipes import optimizer_of
from ..membership.policy import Policy
from . import steps
from .steps import NAME_BYTES, Stepping, name_of

HOLDS = "holds"  # the stage that asks for the names of what a member holds
LACKS = b"lacks"  # an answer instead of work: with the names of what is here


class LackingError(MessageError):
    """The way to the state that is meant starts from one that is not here, or does not end at it."""

    def __init__(self, reply: bytes) -> None:
        super().__init__("this member does not hold the adapter that the way starts from")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Told:
    """Where a way led; not remembered yet."""

    run: str
    end: str
    held: Mapping[str, ServerState]  # what is to be held from now on, the end among it


class Recall:
    """One member's memory. Args: size: values of the adapter."""

    def __init__(self, policy: Policy, size: int) -> None:
        self.policy, self.size, self.optimizer = policy, size, optimizer_of(policy.recipe)
        self.run = ""
        self.held: Mapping[str, ServerState] = {}
        self._led = Told("", "", {})
        self.origin = name_of(ServerState.zeros(size))  # where every run starts: everybody has it

    def names(self, run: str) -> bytes:
        """What is held of `run`, as an answer."""
        return LACKS + b"".join(bytes.fromhex(name) for name in self.held if run == self.run)

    def follow(self, wanted: str, way: bytes, run: str) -> ServerState:
        """Go from a state that is held to the one called `wanted`; it is remembered once `keep` names it.

        Raises:
            LackingError: the state to start from is not here, or the end is another one; say so, and be told it whole.
            MessageError: malformed, or a whole state that is not the one meant; refused.
        """
        start, taken = steps.split(way)
        stepping = Stepping(self.policy, self.size, run, self.optimizer)
        whole = bool(taken) and taken[0].kind == "whole"
        state = self._held(start, run) if not whole else ServerState.zeros(self.size)
        if state is None:
            raise LackingError(self.names(run))
        first = {} if whole else {start: state}
        for step in taken:
            state = stepping.go(state, step)
        if name_of(state) != wanted:
            if whole:
                raise MessageError("the adapter that was told is not the one that is named; refused")
            raise LackingError(LACKS)  # what is here leads nowhere: whole, please
        self._led = Told(run, wanted, {**first, wanted: state})
        return state

    def keep(self, name: str) -> None:
        """Remember where the last way led, if that is the state called `name`."""
        if self._led.end == name:
            self.run, self.held = self._led.run, self._led.held
        self._led = Told("", "", {})

    def _held(self, name: str, run: str) -> ServerState | None:
        if name == self.origin:
            return ServerState.zeros(self.size)
        return self.held.get(name) if run == self.run else None


def read_names(payload: bytes) -> tuple[str, ...] | None:
    """The names in a member's answer; None if it is no such answer."""
    rest = payload[len(LACKS) :]
    if not payload.startswith(LACKS) or len(rest) % NAME_BYTES or len(rest) > 8 * NAME_BYTES:
        return None
    return tuple(rest[at : at + NAME_BYTES].hex() for at in range(0, len(rest), NAME_BYTES))
