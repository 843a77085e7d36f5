"""Beside a member: after each finished shared adapter, this node's personal one, while nobody waits
for the machine.

Knows when to work and when to rest. Knows nothing of what a message says: it only counts those that
are being answered.
Always: one thread, with a trainer of its own, so that the federation's training is what it would be
without; a failure is told and ends nothing; a newer shared adapter takes the place of the one that
is being worked on; a kill is survived: the work is begun again, three times at most.

Hazard: how soon a member answers depends on what its machine does besides; whoever times it may
learn that it personalises.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import log
from ...core.errors import FederationError, QuietchoirError
from ..adapters.registry import SHOWN, Registry
from ..events import FederationEvent, OnEvent, PersonalEvent
from ..store.database import Database
from .settings import PersonalSettings

if TYPE_CHECKING:
    from ...crypto.identity.keys import Identity
    from ..training.learner import TrainerLearner
    from .keeping import Owner, PersonalOutcome

Handler = Callable[[bytes], bytes]
Note = Callable[["PersonalOutcome"], None]
NAME = "personal adapter"  # record
TRIES = 3  # of one adapter, over restarts: work that kills the node does not do so for ever
POLL_S = 0.25  # how soon work goes on after the machine became free
END_S = 5.0  # how long one step may delay the end
logger = log.get("federation.personalization")


class AbandonedError(Exception):
    """This work is not wanted any more: a newer adapter came, or the node leaves."""


class Pending:
    """On disk: the adapter that is being worked on, and how often it was begun."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def read(self) -> tuple[str, int]:
        """Name and tries; an empty name: nothing is left to do, or nobody can read what."""
        try:
            if (record := self.database.get(NAME)) is None:
                return "", 0
            return str(record.fields["adapter"]), int(record.fields["tries"])
        except (FederationError, LookupError, TypeError, ValueError):
            return "", 0

    def write(self, name: str, tries: int) -> None:
        """Remember. Raises: QuietchoirError: the disk refused."""
        self.database.put(NAME, {"adapter": name, "tries": tries})

    def clear(self) -> None:
        """Nothing is left to do; what cannot be taken away is at worst worked on once more."""
        with contextlib.suppress(QuietchoirError):
            self.database.drop(NAME)


def one_at_a_time(on_event: OnEvent) -> OnEvent:
    """The same printer, for two threads: no line is written into another."""
    writing = threading.Lock()

    def emit(event: FederationEvent) -> None:
        with writing:
            on_event(event)

    return emit


def own_adapters(home: Path, identity: "Identity", learner: "TrainerLearner") -> "Owner":
    """This node's personal adapters, over the model that its learner trains on."""
    from .keeping import Owner

    return Owner(Registry(home), identity, learner.trainer.weights)


class PersonalizationWorker:
    """Personal adapters in the background.

    Args:
        learner: the federation's; its examples are used, and its model, nothing else of it.
        database: this node's, of this federation.
        busy: does somebody else want the machine, for example a request to the assistant?
        begin: called before a training, on its thread; what it returns is called with the outcome.
    """

    def __init__(
        self,
        owner: "Owner",
        learner: "TrainerLearner",
        settings: PersonalSettings,
        database: Database,
        *,
        on_event: OnEvent,
        busy: Callable[[], bool] = lambda: False,
        begin: Callable[[], Note] = lambda: lambda _: None,
    ) -> None:
        self.owner, self.learner, self.settings, self.on_event, self.busy = (
            owner,
            learner,
            settings,
            on_event,
            busy,
        )
        self.begin = begin
        self.pending = Pending(database)
        self.changed = threading.Condition()  # guards the four below
        self.wanted, self.tries = self.pending.read()
        self.answering = 0  # being answered now
        self.leaving = False  # give up what runs
        self.last = False  # end when nothing is left to do
        self.thread = threading.Thread(target=self.run, name="quietchoir-personal", daemon=True)
        self.thread.start()

    def attend(self, handle: Handler) -> Handler:
        """The same handler; while it answers a message, this worker rests."""

        def first(message: bytes) -> bytes:
            with self.changed:
                self.answering += 1
            try:
                return handle(message)
            finally:
                with self.changed:
                    self.answering -= 1
                    self.changed.notify_all()

        return first

    def adopted(self, name: str) -> None:
        """A shared adapter came. Returns at once and never raises."""
        with self.changed:
            self.wanted, self.tries = name, 0
            self.changed.notify_all()

    def finish(self) -> None:
        """Wait until nothing is left to do."""
        with self.changed:
            self.last = True
            self.changed.notify_all()
        self.thread.join()

    def close(self) -> None:
        """Give up what runs, within a step; it is begun again when the node is started again."""
        with self.changed:
            self.leaving = True
            self.changed.notify_all()
        self.thread.join(END_S)

    def run(self) -> None:
        """One adapter after another; what is left at the end is remembered."""
        while (name := self.next()) is not None:
            try:
                self.attempt(name)
            except Exception:  # whatever it is: the member goes on
                logger.exception("the personal adapter's training broke; the federation goes on")
        if self.wanted:
            with contextlib.suppress(QuietchoirError):
                self.pending.write(self.wanted, self.tries)

    def next(self) -> str | None:
        """The adapter to work on; None: leave."""
        with self.changed:
            while not self.wanted and not (self.leaving or self.last):
                self.changed.wait()
            if self.leaving or not self.wanted:
                return None
            name, self.wanted = self.wanted, ""
            self.tries += 1
            return name

    def attempt(self, name: str) -> None:
        """Work on one adapter, and tell what came of it."""
        outcome: PersonalOutcome | None = None
        try:
            if self.tries > TRIES:
                raise QuietchoirError(
                    f"it was begun {TRIES} times and never ended; try: "
                    f"quietchoir adapter personalize"
                )
            self.pending.write(name, self.tries)
            outcome = self.work(name)
            words = outcome.words()
        except AbandonedError:
            with self.changed:
                if not self.wanted:  # this node leaves: no failure, so it does not count
                    self.wanted, self.tries = name, self.tries - 1
            return
        except QuietchoirError as error:
            words = f"no personal adapter on top of {name[:SHOWN]}: {error}"
        finally:
            self.pending.clear()
        self.emit(name, words, outcome)

    def work(self, name: str) -> "PersonalOutcome":
        """Train on a trainer of this thread's own; memory for it is taken now and given back
        afterwards.
        """
        from ...core.training.trainer import Trainer
        from .keeping import personalize, unless_chosen_otherwise
        from .trainer import PersonalTrainer

        self.rest()
        learner, shape = self.learner, self.owner.registry.load(name).shape
        if learner.test is None:
            raise QuietchoirError(
                "there is no test.jsonl to judge it by; put held-out examples beside train.jsonl"
            )
        # its examples are prepared for other layers
        if shape.upper_layers != learner.trainer.shape.upper_layers:
            raise QuietchoirError(
                f"it changes {shape.upper_layers} layers, the federation now trains "
                f"{learner.trainer.shape.upper_layers}; "
                "try: quietchoir adapter personalize"
            )
        trainer = Trainer(self.owner.weights, shape, precision=learner.trainer.precision)
        note = self.begin()
        personal_trainer = PersonalTrainer(trainer, learner.prepared, learner.test, self.rest)
        outcome = personalize(
            self.owner, name, personal_trainer, self.settings, activate=unless_chosen_otherwise
        )
        note(outcome)
        return outcome

    def rest(self) -> None:
        """Wait while a message is being answered, or somebody else wants the machine.

        Raises:
            AbandonedError: this work is not wanted any more.
        """
        while True:
            with self.changed:
                if self.leaving or self.wanted:
                    raise AbandonedError
                free = not self.answering
            # asked without the lock: a message never waits for the answer
            if free and not self.busy():
                return
            with self.changed:
                if not (self.leaving or self.wanted):
                    self.changed.wait(POLL_S)

    def emit(self, name: str, words: str, outcome: "PersonalOutcome | None" = None) -> None:
        """To this node's own reader; events leave the process on its own standard output alone."""
        event = PersonalEvent(parent=name, words=words)
        if outcome is not None:
            verdict = outcome.verdict
            event = dataclasses.replace(
                event,
                adapter=outcome.adapter,
                active=outcome.active,
                of=verdict.personal.total,
                right=verdict.personal.correct,
                shared_right=verdict.shared.correct,
            )
        self.on_event(event)
