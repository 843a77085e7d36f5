"""Messages that are repeated, late, in the wrong order, old, cut short, or travel over a bad line.

Always: a fault ends with a round that has every member in its sum again.
"""

import random
import threading

from .members import Fault
from .proxy import PASS, Act, ProxiedBody, Rule
from .scene import STAGE_S, FaultScene, is_answer, is_letter

ROUND_TRIP_S, LOSS = 0.1, 0.01
LATE_S = STAGE_S + 2


def under(rule: Rule, rounds: int = 2) -> Fault:
    """Rounds that end, with everybody in their sums, while `rule` rules."""

    def fault(scene: FaultScene) -> None:
        scene.proxy.rule = rule
        for _ in range(rounds):
            scene.whole()
        scene.proxy.rule = None
        scene.whole()

    return fault


def repeated(passage: ProxiedBody) -> Act:
    """Every request is made twice; of two answers the first is thrown away, work and all."""
    return Act(twice=passage.up)


def mixed_up(passage: ProxiedBody) -> Act:
    """Answers arrive in another order than they were given, each time another one."""
    return Act(
        wait_s=random.Random(hash((passage.node, passage.stage, len(passage.body)))).random() * 0.5
    )


def bad_line() -> Rule:
    """100 ms there and back; one of a hundred passages ends the connection instead."""
    dice, lock = random.Random(1), threading.Lock()

    def rule(passage: ProxiedBody) -> Act:
        with lock:
            return Act(wait_s=ROUND_TRIP_S / 2, cut=bool(passage.path) and dice.random() < LOSS)

    return rule


class Few:
    """A rule that does something to the first few passages that it is meant for."""

    def __init__(self, act: Act, *, up: bool, count: int) -> None:
        self.act, self.up, self.left, self.lock = act, up, count, threading.Lock()

    def __call__(self, passage: ProxiedBody) -> Act:
        """The rule."""
        if not (is_answer(passage) if self.up else is_letter(passage)):
            return PASS
        with self.lock:
            self.left -= 1
            return self.act if self.left >= 0 else PASS


def cut_short(*, up: bool) -> Fault:
    """Half of it arrives, several times in a row."""

    def fault(scene: FaultScene) -> None:
        under(Few(Act(half=True), up=up, count=6))(scene)

    return fault


def late(scene: FaultScene) -> None:
    """One answer comes after its time is over: it is not averaged, and its sender is in a later
    sum.
    """
    victim = "node-01"
    scene.proxy.rule = lambda passage: (
        Act(wait_s=LATE_S) if is_answer(passage, "share") and passage.node == victim else PASS
    )
    scene.round(without=frozenset({victim}), among=frozenset(scene.plan.names) - {victim})
    scene.proxy.rule = None
    scene.whole()


def old(*, up: bool) -> Fault:
    """What passed in an earlier round passes again in place of what is new."""
    victim = "node-00"

    def fault(scene: FaultScene) -> None:
        kept, used = list[bytes](), threading.Event()

        def rule(passage: ProxiedBody) -> Act:
            mine = (is_answer if up else is_letter)(passage, "train") and passage.node == victim
            if not mine or used.is_set():
                return PASS
            if not kept:
                kept.append(passage.body)
                return PASS
            used.set()
            return Act(instead=kept[0])

        scene.nodes[victim].forget()
        scene.proxy.rule = rule
        if up:  # its true answer is lost, and it does not answer twice
            scene.round(without=frozenset({victim}), among=frozenset(scene.plan.names) - {victim})
        else:  # it refuses the old message, and is handed the true one again
            scene.refuses(victim, "already answered")
        scene.proxy.rule = None
        scene.whole()

    return fault


FAULTS: dict[str, Fault] = {
    "every request is made twice": under(repeated),
    "answers arrive in another order": under(mixed_up),
    "an answer comes too late": late,
    "an old answer comes again": old(up=True),
    "an old message comes again": old(up=False),
    "answers are cut short": cut_short(up=True),
    "messages are cut short": cut_short(up=False),
    "100 ms and 1 % loss between all": under(bad_line()),
}
