"""The coordinator's `Link` over Flower.

Knows which member is there, and how long it is waited for. Knows nothing of what letters say.
Always: a member that goes away counts as missing for the letter that it owed, so that nothing waits for a dead process; one
that asks for work while it owes an answer never got its letter, and is handed it again.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.task_identity import TaskIdentity

from ...core import log
from ...core.errors import FederationError
from ..membership.policy import Policy
from .post import Post
from .superlink import SuperLink

logger = log.get("federation.flower")
Event = dict[str, object]
LOOK_S = 1.0  # between two looks at who is still there
TASK_HEARTBEAT_S = 5.0
HANDED_OUT = 5  # times, at most: then whoever asks without answering is missing
MEANING = {  # what a member's refusal says about the coordinator; its words stay with the member
    "StaleError": ": it has answered this place or a later one, so the state here is older than the run: restore the newest",
    "RivalError": ": it is in another run: a second coordinator has this identity, or this one lost its state",
}
LATE_S = 60.0  # Flower keeps a letter for so long after nobody waits for it any more


class FlowerLink:
    """`Link` for nodes that dial in under TLS with their roster keys."""

    def __init__(
        self, policy: Policy, tls_key: Path, *, listen: str = "", on_event: Callable[[Event], None] | None = None
    ) -> None:
        """Open the door.

        Args:
            listen: HOST:PORT, if it is not the address that members dial.
            on_event: hears who refused a letter, and of what kind the refusal was.

        Raises:
            ConfigError, FederationError: as `SuperLink`.
        """
        self.on_event = on_event or (lambda event: None)
        self.superlink = SuperLink(policy, tls_key, listen)
        self.superlink.start()
        self.state = self.superlink.state
        self.run_id = self.state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        self.task_id = cast(int, self.state.get_run_info(run_ids=[self.run_id])[0].primary_task_id)
        if self.state.claim_task(self.task_id) is None or not self.state.activate_task(self.task_id):
            raise FederationError("Flower did not start a run; this build is made for flwr 1.41, check its version")
        # Message() raises without these; they belong to the process, so one process holds one role only.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = self.task_id, self.run_id, SUPERLINK_NODE_ID
        self.post = Post(self.state, self.run_id)
        self.ids = {name: node_id for node_id, name in self.superlink.names.items()}
        self.silent: dict[str, float] = {}  # members that owed an answer, and since when
        self.closing = threading.Event()
        self.heart = threading.Thread(target=self.beat, name="quietchoir-task-heartbeat", daemon=True)
        self.heart.start()

    def take(self, policy: Policy) -> None:
        """Carry letters to the roster of a later version of the federation file; whoever left it is shut out at the door."""
        self.superlink.take(policy)
        self.ids = {name: node_id for node_id, name in self.superlink.names.items()}
        self.silent = {name: since for name, since in self.silent.items() if name in self.ids}

    def present(self) -> frozenset[str]:
        """Members whose heartbeats arrive, and that have asked for work since they last owed an answer."""
        owing = {name for name, since in self.silent.items() if self.superlink.caller(name).asked_at < since}
        return self.online() - owing

    def online(self) -> frozenset[str]:
        """Members whose heartbeats arrive."""
        return frozenset(self.superlink.names[node] for node in self.state.get_nodes(self.run_id))

    def ask(self, letters: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """As `Link.ask`."""
        there, waiting, began = self.online(), dict[str, str](), time.monotonic()
        for name in letters:
            number = self.post.put(self.ids[name], letters[name], timeout_s + LATE_S) if name in there else None
            if number is not None:
                waiting[number] = name
                self.superlink.ring(name)
        try:
            yield from self.collect(waiting, timeout_s, began)
        finally:
            self.post.forget()

    def collect(self, waiting: dict[str, str], timeout_s: float, began: float) -> Iterator[tuple[str, bytes]]:
        """Answers to the letters in `waiting` (number → member), left here after `began`, as they come."""
        deadline, look_at = time.monotonic() + timeout_s, time.monotonic() + LOOK_S
        again = dict.fromkeys(waiting, (HANDED_OUT, began))
        while waiting and (left := deadline - time.monotonic()) > 0:
            self.superlink.door.news.clear()  # what comes from here on wakes the next wait
            idle = {number: self.superlink.caller(name).idle_at for number, name in waiting.items()}
            for number, letter, reason in self.post.take(waiting):
                name = waiting.pop(number)
                if letter is not None:
                    yield name, letter
                else:
                    self.on_event({"event": "refusal", "party": name, "kind": reason})
                    logger.warning("%s did not answer: %s%s", name, reason, MEANING.get(reason, ""))
            self.hand_out_again(waiting, idle, again)
            if time.monotonic() >= look_at:
                look_at, online = time.monotonic() + LOOK_S, self.online()
                for number in [number for number, name in waiting.items() if name not in online]:
                    self.give_up(waiting.pop(number), "went away before it answered")
            if waiting:
                self.superlink.door.news.wait(min(left, LOOK_S))
        for name in waiting.values():
            self.give_up(name, f"did not answer within {timeout_s:.0f} s")

    def hand_out_again(self, waiting: dict[str, str], idle: Mapping[str, float], again: dict[str, tuple[int, float]]) -> None:
        """Letters whose members asked for work after they were handed out: they were lost on the way, or the node died.

        Args:
            idle: when each member had last asked in vain, noted before answers were taken.
            again: by letter, how often it may still be handed out, and when it last was.
        """
        for number, name in list(waiting.items()):
            left, last = again[number]
            handed = self.superlink.caller(name).handed_at
            if not last < handed < idle.get(number, -math.inf):
                continue
            if number in self.post.announced or not left:
                self.give_up(waiting.pop(number), "asks for work instead of answering")
                continue
            logger.info("%s asks for work while it owes an answer; its letter goes out again", name)
            again[number] = left - 1, handed
            self.post.leave_again(number)
            self.superlink.ring(name)

    def give_up(self, name: str, why: str) -> None:
        """Note that `name` owes an answer."""
        self.silent[name] = time.monotonic()
        logger.warning("%s %s", name, why)

    def beat(self) -> None:
        """Keep Flower from declaring the run dead."""
        while not self.closing.wait(TASK_HEARTBEAT_S):
            self.state.acknowledge_task_heartbeat(self.task_id)

    def traffic(self) -> tuple[int, int]:
        """Bytes of bodies that came in and went out through the door, all members together."""
        return self.superlink.door.bytes_in, self.superlink.door.bytes_out

    def close(self) -> None:
        """Close the door; members see the connection go and try again later."""
        if not self.closing.is_set():
            self.closing.set()
            self.heart.join(timeout=TASK_HEARTBEAT_S + 5)
            self.state.finish_task(self.task_id, SubStatus.COMPLETED, "")
            self.superlink.stop()

    def __enter__(self) -> "FlowerLink":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
