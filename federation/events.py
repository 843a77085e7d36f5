"""What a run tells while it goes on: a kind of event each, with its fields.

Knows what is told, to this process's own reader alone: the terminal, the log, the page. Knows
nothing of who tells it or how it is shown. It stands below all rooms, because members, the
coordinator, transport and personalization tell events.
Always: `table` is made of JSON's types, `event` names its kind; what is None is left out.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class FederationEvent:
    """Any of them."""

    kind: ClassVar[str] = ""
    written: ClassVar[bool] = True  # into the audit log; not what is said many times a round
    at: float | None = None  # seconds of a simulation's clock

    @property
    def name(self) -> str:
        """What `event` says."""
        return self.kind

    def table(self) -> dict[str, Any]:
        """As JSON's types."""
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        given = {name: value for name, value in fields.items() if value is not None}
        return {"event": self.name} | {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
        }


OnEvent = Callable[[FederationEvent], None]


# Of a member


@dataclass(frozen=True, kw_only=True)
class LoadingEvent(FederationEvent):
    """The model is being loaded."""

    kind = "loading"
    model: str
    train: int  # examples to train on
    test: int  # examples that are held out


@dataclass(frozen=True, kw_only=True)
class ConsentedEvent(FederationEvent):
    """What a member's history lends to training has changed, or was read for the first time."""

    kind = "consented"
    train: int  # examples that are learned
    test: int  # that only judge
    withheld: int  # that its owner did not give
    digest: str  # of the bytes that train, as `data show` tells it


@dataclass(frozen=True, kw_only=True)
class WithheldEvent(FederationEvent):
    """Nothing of a member's history may train: it does not dial, and sends nothing."""

    kind = "withheld"
    federation: str
    withheld: int  # examples that its owner did not give


@dataclass(frozen=True, kw_only=True)
class JoiningEvent(FederationEvent):
    """A member is about to dial."""

    kind = "joining"
    name_here: str  # told as `name`
    federation: str
    bytes_up: int  # of a round
    bytes_down: int

    def table(self) -> dict[str, Any]:
        """As JSON's types."""
        fields = super().table()
        return {"event": fields.pop("event"), "name": fields.pop("name_here"), **fields}


@dataclass(frozen=True, kw_only=True)
class PreparingEvent(FederationEvent):
    """Examples go through the layers that are not trained."""

    kind, written = "preparing", False
    what: str
    examples: int
    layer: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class StepEvent(FederationEvent):
    """One optimizer step of this member's training."""

    kind, written = "step", False
    step: int
    steps: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class WorkEvent(FederationEvent):
    """A member begins what it was asked for; `event` is the stage."""

    stage: str
    round: int
    attempt: int
    version: int | None = None  # buffered: steps behind the adapter
    staleness: int | None = None  # buffered: of the contribution that is summed

    @property
    def name(self) -> str:
        """What `event` says."""
        return self.stage

    def table(self) -> dict[str, Any]:
        """As JSON's types."""
        return {key: value for key, value in super().table().items() if key != "stage"}


@dataclass(frozen=True, kw_only=True)
class TrainedEvent(FederationEvent):
    """A member has trained."""

    kind = "trained"
    round: int
    loss: float
    tokens: int  # answer tokens
    columns: int | None = None  # that it trained, where not all train all of them
    # of its values, 0 to 1, that moved further than the federation's range and are cut to it; None:
    # none
    clipped: float | None = None
    # with noise: to so much of its length, 0 to 1, its change was shortened; None: it was not
    shortened: float | None = None
    # examples that wait for a later round's draw: the recipe bounds a round's steps; None: none
    left: int | None = None


@dataclass(frozen=True, kw_only=True)
class SpentEvent(FederationEvent):
    """A member has no privacy left for a round."""

    kind = "spent"
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AdoptedEvent(FederationEvent):
    """A finished adapter came; no name in a rehearsal."""

    kind = "adopted"
    adapter: str


@dataclass(frozen=True, kw_only=True)
class OwnAdapterEvent(FederationEvent):
    """Where members' models differ: this member's own adapter is finished."""

    kind = "own"
    folder: str


@dataclass(frozen=True, kw_only=True)
class StaysEvent(FederationEvent):
    """A member stays for the next run."""

    kind = "stays"


@dataclass(frozen=True, kw_only=True)
class ConnectedEvent(FederationEvent):
    """The coordinator was reached."""

    kind = "connected"
    address: str


@dataclass(frozen=True, kw_only=True)
class DisconnectedEvent(FederationEvent):
    """The coordinator is out of reach."""

    kind = "disconnected"
    address: str
    reason: str
    again: bool  # for the same reason as before
    waits_for: str | None = None  # what this member stays for


@dataclass(frozen=True, kw_only=True)
class RestingEvent(FederationEvent):
    """This node may not train now, and is away until it may."""

    kind = "resting"
    reason: str


@dataclass(frozen=True, kw_only=True)
class PersonalEvent(FederationEvent):
    """What came of a personal adapter."""

    kind = "personal"
    parent: str
    adapter: str = ""
    active: bool = False
    words: str
    of: int | None = None  # held-out answers
    right: int | None = None
    shared_right: int | None = None


# Of both


@dataclass(frozen=True, kw_only=True)
class RefusedEvent(FederationEvent):
    """A message or a later federation file was refused here."""

    kind = "refused"
    reason: str


@dataclass(frozen=True, kw_only=True)
class RenewedEvent(FederationEvent):
    """A later version of the federation file is in force."""

    kind = "renewed"
    version: int
    members: tuple[str, ...]
    left: tuple[str, ...] | None = None  # who does not belong any more


# Of the coordinator


@dataclass(frozen=True, kw_only=True)
class StartingEvent(FederationEvent):
    """The coordinator begins; what it loads first takes a while."""

    kind = "starting"
    federation: str
    version: int
    loads: str  # for people


@dataclass(frozen=True, kw_only=True)
class OpenEvent(FederationEvent):
    """The coordinator can be dialled."""

    kind = "open"
    address: str


@dataclass(frozen=True, kw_only=True)
class PageEvent(FederationEvent):
    """Where the rounds are shown."""

    kind = "page"
    url: str


@dataclass(frozen=True, kw_only=True)
class WaitingEvent(FederationEvent):
    """Who is there."""

    kind, written = "waiting", False
    present: int
    minimum: int
    roster: int
    ready: int | None = None  # buffered: members whose contribution waits


@dataclass(frozen=True, kw_only=True)
class BucketsEvent(FederationEvent):
    """What sums of buckets tell that one sum would not."""

    kind = "buckets"
    price: str


@dataclass(frozen=True, kw_only=True)
class BallotsEvent(FederationEvent):
    """What open ballots tell that sums of scores would not."""

    kind = "ballots"
    price: str


@dataclass(frozen=True, kw_only=True)
class SuspectEvent(FederationEvent):
    """A member was in bad buckets more often than chance explains: by its own doing or by others'
    that want it named (`rounds.validation`).
    """

    kind = "suspect"
    member: str
    blamed: int  # rounds in which its bucket was bad
    rounds: int  # in which some bucket was
    chance: float  # at most, that any member that did nothing is blamed as often


@dataclass(frozen=True, kw_only=True)
class TuningEvent(FederationEvent):
    """What it costs that the recipe chooses its learning rate."""

    kind = "tuning"
    price: str


@dataclass(frozen=True, kw_only=True)
class AskedEvent(FederationEvent):
    """Members were asked for a stage."""

    kind = "asked"
    round: int
    attempt: int
    stage: str
    cohort: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReadyEvent(FederationEvent):
    """A member's contribution is ready."""

    kind, written = "ready", False
    round: int
    party: str


@dataclass(frozen=True, kw_only=True)
class HandedEvent(FederationEvent):
    """Buffered: members were left work."""

    kind, written = "handed", False
    round: int
    attempt: int
    version: int
    members: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OfferedEvent(FederationEvent):
    """Buffered: a member offers its contribution."""

    kind, written = "offered", False
    round: int
    party: str
    version: int


@dataclass(frozen=True, kw_only=True)
class SteppedEvent(FederationEvent):
    """Sealed: the members are at another step than was written down here."""

    kind = "stepped"
    round: int
    expected: int


@dataclass(frozen=True, kw_only=True)
class RoundEvent(FederationEvent):
    """A round ended with a sum: its line of history. Of a score `event` is "score"."""

    entry: Mapping[str, Any]
    late: bool | None = None  # noted after a kill

    @property
    def name(self) -> str:
        """What `event` says."""
        return "round" if self.entry["kind"] == "train" else "score"

    def table(self) -> dict[str, Any]:
        """As JSON's types."""
        fields = super().table()
        entry = fields.pop("entry")
        return {"event": fields.pop("event"), **entry, **fields}


@dataclass(frozen=True, kw_only=True)
class AbortedEvent(FederationEvent):
    """An attempt ended without a sum."""

    kind = "aborted"
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RefusalEvent(FederationEvent):
    """A member refused a message, and said of what kind the refusal is."""

    kind = "refusal"
    party: str
    refusal: str  # told as `kind`

    def table(self) -> dict[str, Any]:
        """As JSON's types."""
        fields = super().table()
        return {**fields, "kind": fields.pop("refusal")}


@dataclass(frozen=True, kw_only=True)
class StoppedEvent(FederationEvent):
    """The run ends before its goal."""

    kind = "stopped"
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class DeliveredEvent(FederationEvent):
    """Members have the finished adapter."""

    kind = "delivered"
    adapter: str
    members: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class UndeliveredEvent(FederationEvent):
    """Members could not be handed it now."""

    kind = "undelivered"
    members: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class StayingEvent(FederationEvent):
    """The run is over, and members that lack its adapter are waited for."""

    kind = "staying"
    missing: tuple[str, ...]
    seconds: int


@dataclass(frozen=True, kw_only=True)
class TornEvent(FederationEvent):
    """The audit log's last line had been cut short by a kill."""

    kind = "torn"
    bytes: int
