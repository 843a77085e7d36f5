"""Parties that are awake at random times, on a clock that only waiting moves.

Knows when each party is awake, how long its work takes, and when its absence is noticed. Knows
nothing of messages' contents but their stage, or of what is done with answers.
Always: the same seed gives the same nights, whatever the schedule of the rounds; a party that
sleeps does nothing, and what it was working on goes on when it wakes; nobody is told so: like the
real link (`federation/transport`), this one gives up a message whose party has been gone for
`notice_s`, and the answer that comes later is turned away.

Not covered: bytes take no time; a party's owner does not use the machine.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..crypto.identity.keys import Identity
from ..federation.rounds.client import Client
from ..federation.rounds.scheduler import Waiting
from ..federation.rounds.server import RoundServer
from ..federation.spec.policy import Policy
from ..federation.wire import messages
from .inprocess import InProcessLink
from .scenario import Availability, Scenario

Handle = Callable[[bytes], bytes]
SCORING = 0.25  # of the time that a training takes
LOOK_S = 60.0  # between two looks at who is there, at most


class AvailabilityTrace:
    """One party's days and nights: seconds of virtual time, from 0 on."""

    def __init__(self, availability: Availability, rng: np.random.Generator) -> None:
        self.availability, self.rng = availability, rng
        self.slowness = float(rng.lognormal(0.0, availability.spread))
        awake = rng.random() < availability.awake_s / (availability.awake_s + availability.asleep_s)
        self.falls: list[float] = []  # ends of the times awake
        self.wakes: list[float] = [0.0 if awake else float(rng.exponential(availability.asleep_s))]

    def cover(self, at: float) -> None:
        """Draw further than `at`."""
        while not self.falls or self.falls[-1] <= at:
            self.falls.append(
                self.wakes[-1] + float(self.rng.exponential(self.availability.awake_s))
            )
            self.wakes.append(
                self.falls[-1] + float(self.rng.exponential(self.availability.asleep_s))
            )

    def turn(self, at: float) -> int:
        """Which time awake is going on at `at`, or comes next."""
        self.cover(at)
        return bisect.bisect_right(self.falls, at)

    def awake(self, at: float) -> bool:
        """Is it?"""
        return self.wakes[self.turn(at)] <= at

    def missed(self, at: float) -> bool:
        """Is it asleep, and has that been noticed?"""
        turn = self.turn(at)
        return self.wakes[turn] > at and (
            turn == 0 or at - self.falls[turn - 1] >= self.availability.notice_s
        )

    def work(self, at: float, effort_s: float) -> tuple[float, float]:
        """When work that begins at `at` is done; and when this party is given up because it
        falls asleep over it, or never.
        """
        given_up = math.inf
        while True:
            turn = self.turn(at)
            start = max(at, self.wakes[turn])
            if start - at >= self.availability.notice_s:
                given_up = min(given_up, at + self.availability.notice_s)
            if start + effort_s <= self.falls[turn]:
                return start + effort_s, given_up
            effort_s -= self.falls[turn] - start
            at = self.falls[turn]


@dataclass(slots=True)
class Job:
    """A message that was left with a party, or that was given up while the party works on."""

    message: bytes
    done: float
    given_up: float  # inf if it is answered in time


class AvailabilityLink(InProcessLink):
    """`LeavingLink` to parties that sleep.

    Args:
        handles: what answers each party's messages; members: the parties themselves, to see who
        need not train.
    """

    def __init__(
        self, handles: Mapping[str, Handle], members: Mapping[str, Client], scenario: Scenario
    ) -> None:
        super().__init__(handles)
        self.availability, self.members, self.time = scenario.availability, members, 0.0
        self.sleepers = {
            name: AvailabilityTrace(
                scenario.availability, np.random.default_rng([scenario.seed, number])
            )
            for number, name in enumerate(sorted(handles))
        }
        self.jobs: dict[str, Job] = {}

    def now(self) -> float:
        """Seconds of virtual time."""
        return self.time

    def present(self) -> frozenset[str]:
        """Who is awake, or fell asleep unnoticed, and works on nothing."""
        self.finish_late()
        there = {name for name, sleeper in self.sleepers.items() if not sleeper.missed(self.time)}
        return frozenset(there - self.jobs.keys())

    def owing(self) -> frozenset[str]:
        """As `LeavingLink`."""
        return frozenset(name for name, job in self.jobs.items() if self.time < job.given_up)

    def begin(self, name: str, message: bytes, timeout_s: float) -> Job:
        """A party gets a message now."""
        task = messages.decode_task(message, self.members[name].policy, name)
        done, given_up = self.sleepers[name].work(self.time, self.effort(name, task))
        late = min(given_up, self.time + timeout_s)
        return Job(message, done, late if late < done else math.inf)

    def effort(self, name: str, task: messages.Task) -> float:
        """Seconds awake that a message takes this party."""
        if task.stage == messages.SCORE:
            return SCORING * self.availability.work_s * self.sleepers[name].slowness
        if task.stage != messages.TRAIN or self.members[name].kept(task) is not None:
            return self.availability.stage_s
        return self.availability.work_s * self.sleepers[name].slowness

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """As `Link`; time goes on until the last answer, or until the last of the others is
        given up.
        """
        free, end = self.present(), self.time
        jobs = {
            name: self.begin(name, message, timeout_s)
            for name, message in messages.items()
            if name in free
        }
        for name, job in sorted(jobs.items(), key=lambda one: one[1].done):
            if math.isinf(job.given_up):
                self.time = job.done
                yield from super().ask({name: job.message}, timeout_s)
            else:
                # it works on, and nobody waits for it
                self.jobs[name], end = job, max(end, job.given_up)
        self.time = max(self.time, end)

    def leave(self, messages: Mapping[str, bytes], timeout_s: float) -> None:
        """As `LeavingLink`."""
        free = self.present()
        self.jobs |= {
            name: self.begin(name, message, timeout_s)
            for name, message in messages.items()
            if name in free
        }

    def collect(self, wait_s: float) -> Iterator[tuple[str, bytes]]:
        """As `LeavingLink`; where nothing is there, time goes on to the next thing that happens
        to anybody.
        """
        del wait_s
        if not self.done():
            self.skip()
        self.finish_late()
        for name in self.done():
            yield from super().ask({name: self.jobs.pop(name).message}, 0.0)

    def cancel(self) -> None:
        """As `LeavingLink`."""
        for job in self.jobs.values():
            job.given_up = min(job.given_up, self.time)

    def done(self) -> list[str]:
        """Whose work is finished."""
        return sorted(name for name, job in self.jobs.items() if job.done <= self.time)

    def finish_late(self) -> None:
        """Let parties end what nobody waits for any more; what came out of it stays with them."""
        for name in self.done():
            if not math.isinf(self.jobs[name].given_up):
                list(super().ask({name: self.jobs.pop(name).message}, 0.0))

    def rest(self, at_most_s: float) -> None:
        """As `rounds.scheduler.Clock`."""
        self.skip(max(1.0, min(LOOK_S, at_most_s)))

    def skip(self, at_most_s: float = LOOK_S) -> None:
        """On to the next moment at which somebody wakes or is done, if it is not further off
        than this.
        """
        moments = [job.done for job in self.jobs.values()]
        moments += [sleeper.wakes[sleeper.turn(self.time)] for sleeper in self.sleepers.values()]
        later = (moment for moment in moments if moment > self.time)
        self.time = min(self.time + at_most_s, *later, math.inf)


def conduct(
    scenario: Scenario,
    policy: Policy,
    identity: Identity,
    handles: Mapping[str, Handle],
    members: Mapping[str, Client],
    **options: Any,
) -> RoundServer:
    """The coordinator of a simulation; where parties sleep, on a clock of their own, which its
    events tell as `at`.
    """
    if not scenario.availability.on:
        at_once = Waiting(grace_s=0.0)
        return RoundServer(policy, identity, InProcessLink(handles), waiting=at_once, **options)
    link, report = (
        AvailabilityLink(handles, members, scenario),
        options.pop("on_event", None) or (lambda event: None),
    )
    options["on_event"] = lambda event: report(dataclasses.replace(event, at=link.time))
    waiting = Waiting(wait_s=math.inf, grace_s=scenario.availability.grace_s, clock=link)
    return RoundServer(policy, identity, link, waiting=waiting, **options)
