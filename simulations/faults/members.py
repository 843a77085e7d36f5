"""Members that die, freeze, turn hostile, run out of disk or live in another time.

Always: a fault ends with a round that has every member in its sum again.
"""

import threading
from collections.abc import Callable

from ..cluster import PATIENCE_S
from .proxy import PASS, Act, ProxiedBody
from .scene import CLOCKS, HOSTILE, FaultScene, is_answer, require

Fault = Callable[[FaultScene], None]
STAGES = ("train", "advertise", "share", "mask", "consistency", "unmask")


def killed(stage: str) -> Fault:
    """kill -9 of a member whose answer in `stage` is on its way."""
    victim = f"node-{STAGES.index(stage) % 2:02}"

    def fault(scene: FaultScene) -> None:
        trap = scene.trap(stage, lambda name: scene.nodes[name].kill(), node=victim)
        trap.wait()
        scene.start_node(victim)
        scene.round(among=frozenset(scene.plan.names) - {victim})  # the others went on
        scene.whole()

    return fault


def third_vanishes(scene: FaultScene) -> None:
    """Three of ten die after they have shared their keys: the seven others open their own sum,
    in that very round.
    """
    gone, at, all_gone = frozenset(scene.plan.names[:3]), list[str](), threading.Event()

    def rule(passage: ProxiedBody) -> Act:
        if not is_answer(passage, "mask") or passage.node not in gone:
            return PASS
        scene.nodes[passage.node].kill()
        at.append(passage.node)
        if set(at) == gone:
            all_gone.set()
        return Act(cut=True)

    scene.proxy.rule = rule
    require(all_gone.wait(PATIENCE_S), f"of {sorted(gone)}, only {at} came to the stage after")
    scene.proxy.rule = None
    for name in sorted(gone):
        scene.start_node(name)
    event = scene.round(without=gone)
    require(
        set(event["asked"]) == set(scene.plan.names),
        f"round {event['round']} did not ask everybody",
    )
    require(
        set(event["parties"]) == set(scene.plan.names) - gone, f"the sum has {event['parties']}"
    )
    scene.whole()


def too_few_are_left(scene: FaultScene) -> None:
    """Four of ten freeze after they have shared: six survivors, seven needed; the round aborts,
    and waits for one of them.
    """
    frozen = scene.plan.names[:4]

    def rule(passage: ProxiedBody) -> Act:
        if is_answer(passage, "share") and passage.node in frozen:
            scene.nodes[passage.node].freeze()  # after its answer has left
        return PASS

    scene.proxy.rule = rule
    reason = scene.coordinator.until("aborted", PATIENCE_S)["reason"]
    scene.proxy.rule = None
    require("need 7" in reason, f"the round aborted, but said: {reason}")
    scene.nodes[frozen[0]].thaw()
    # a new round with those that are there, seven of ten
    event = scene.round(without=frozenset(frozen[1:]))
    require(len(event["parties"]) == 7, f"the sum has {event['parties']}")
    for name in frozen[1:]:
        scene.nodes[name].thaw()
    scene.whole()


def wrong_clock(scene: FaultScene) -> None:
    """Two members' clocks are an hour ahead and two days behind: they are in every sum, and are
    refused nothing.
    """
    parties = scene.whole()["parties"]
    require(set(CLOCKS) <= set(parties), f"the sum has {parties}")


def hostile(kind: str) -> Fault:
    """A member that answers `kind`: the round ends without it."""

    def fault(scene: FaultScene) -> None:
        scene.turns.write_text(kind, "ascii")
        event = scene.round(without=frozenset({HOSTILE}))
        require(
            set(event["parties"]) == set(scene.plan.names) - {HOSTILE},
            f"the sum has {event['parties']}",
        )
        scene.turns.write_text("", "ascii")
        scene.whole()

    return fault


def disk_full(scene: FaultScene) -> None:
    """A member's disk is full: it refuses to work, says so, and takes part again once there is
    room.
    """
    victim = "node-01"
    scene.limit_files(scene.nodes[victim], 1)
    scene.refuses(victim, "disk is full")
    scene.round(without=frozenset({victim}), among=frozenset(scene.plan.names) - {victim})
    scene.limit_files(scene.nodes[victim], None)
    scene.whole()


FAULTS: dict[str, Fault] = {
    "members' clocks are an hour ahead and two days behind": wrong_clock,
    **{f"a member is killed in stage {stage}": killed(stage) for stage in STAGES},
    "a member answers noise": hostile("noise"),
    "a member answers more than the door lets in": hostile("huge"),
    "a member's update is too short": hostile("short"),
    "a member's update is too long": hostile("long"),
    "a member answers in another's name": hostile("name"),
    "a member's training ends in NaN": hostile("nan"),
    "a member's disk is full": disk_full,
}
OF_MANY: dict[str, Fault] = {
    "three of ten vanish after the share stage": third_vanishes,
    "a cohort falls below its threshold": too_few_are_left,
}
