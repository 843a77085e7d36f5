"""The coordinator's `Link` over Flower.

Knows which member is there, and how long it is waited for. Knows nothing of what messages say.
Always: a member that goes away counts as missing for the message that it owed, so that nothing
waits for a dead process; one that refuses for a reason of its own counts as away for a while
(`refusals`); one that asks for work while it owes an answer never got its message, and is handed it
again.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.task_identity import TaskIdentity

from ...core import log
from ...core.errors import FederationError
from ..events import OnEvent, RefusalEvent
from ..spec.policy import Policy
from .messenger import LinkStateMessenger
from .pending_deliveries import PendingDeliveries
from .refusals import Refusals
from .superlink import SuperLink

logger = log.get("federation.flower")
LOOK_S = 1.0  # between two looks at who is still there
TASK_HEARTBEAT_S = 5.0


class FlowerLink:
    """`Link` for nodes that dial in under TLS with their roster keys."""

    def __init__(
        self, policy: Policy, tls_key: Path, *, listen: str = "", on_event: OnEvent | None = None
    ) -> None:
        """Open the door.

        Args:
            listen: HOST:PORT, if it is not the address that members dial.
            on_event: hears who refused a message, and of what kind the refusal was.

        Raises:
            ConfigError, FederationError: as `SuperLink`.
        """
        self.on_event, self.refusals = on_event or (lambda event: None), Refusals()
        self.superlink = SuperLink(policy, tls_key, listen)
        self.superlink.start()
        self.state = self.superlink.state
        self.run_id = self.state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        self.task_id = cast(int, self.state.get_run_info(run_ids=[self.run_id])[0].primary_task_id)
        if self.state.claim_task(self.task_id) is None or not self.state.activate_task(
            self.task_id
        ):
            raise FederationError(
                "Flower did not start a run; this build is made for flwr 1.41, check its version"
            )
        # Message() raises without these; they belong to the process, so one process holds one role
        # only.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = (
            self.task_id,
            self.run_id,
            SUPERLINK_NODE_ID,
        )
        self.messenger = LinkStateMessenger(self.state, self.run_id)
        self.ids = {name: node_id for node_id, name in self.superlink.names.items()}
        self.silent: dict[str, float] = {}  # members that owed an answer, and since when
        self.left = self.deliveries()  # messages whose answers are collected later
        self.closing = threading.Event()
        self.heart = threading.Thread(
            target=self.beat, name="quietchoir-task-heartbeat", daemon=True
        )
        self.heart.start()

    def take(self, policy: Policy) -> None:
        """Carry messages to the roster of a later version of the federation file; whoever left it
        is shut out at the door.
        """
        # they name the version before; and whoever left the roster answers nothing more
        self.cancel()
        self.refusals.forget()
        self.superlink.take(policy)
        self.ids = {name: node_id for node_id, name in self.superlink.names.items()}
        self.silent = {name: since for name, since in self.silent.items() if name in self.ids}

    def present(self) -> frozenset[str]:
        """Members whose heartbeats arrive, that owe nothing, that have asked for work since they
        last did, and that are not away for a refusal of their own.
        """
        owing = {
            name
            for name, since in self.silent.items()
            if self.superlink.caller(name).asked_at < since
        }
        away = self.refusals.away(lambda name: self.superlink.caller(name).dialled_at)
        return self.online() - owing - self.left.names - away

    def online(self) -> frozenset[str]:
        """Members whose heartbeats arrive."""
        return frozenset(self.superlink.names[node] for node in self.state.get_nodes(self.run_id))

    def deliveries(self) -> PendingDeliveries:
        """No messages yet."""
        return PendingDeliveries(self.superlink, self.messenger, self.give_up, self.refused)

    def reachable(self) -> dict[str, int]:
        """Flower's number of each member that is online."""
        return {name: self.ids[name] for name in self.online() if name in self.ids}

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """As `Link.ask`."""
        pending = self.deliveries()
        try:
            pending.put(self.reachable(), messages, timeout_s)
            yield from self.answers(pending)
        finally:
            pending.forget(everything=True)
            self.refusals.settle()

    def answers(self, pending: PendingDeliveries) -> Iterator[tuple[str, bytes]]:
        """Answers as they come, until none is owed."""
        look_at = time.monotonic() + LOOK_S
        while pending.pending:
            self.superlink.endpoint.news.clear()  # what comes from here on wakes the next wait
            yield from pending.take()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_S
                pending.lose(self.online())
            if pending.pending:
                self.superlink.endpoint.news.wait(max(0.0, min(pending.left_s(), LOOK_S)))

    def leave(self, messages: Mapping[str, bytes], timeout_s: float) -> None:
        """As `LeavingLink.leave`."""
        self.left.put(self.reachable(), messages, timeout_s)

    def collect(self, wait_s: float) -> Iterator[tuple[str, bytes]]:
        """As `LeavingLink.collect`."""
        until, found = time.monotonic() + wait_s, 0
        while True:
            self.superlink.endpoint.news.clear()
            for answer in self.left.take():
                yield answer
                found += 1
            self.refusals.settle()
            self.left.lose(self.online())
            self.left.forget()
            if found or (left := until - time.monotonic()) <= 0:
                return
            self.superlink.endpoint.news.wait(min(left, LOOK_S))

    def owing(self) -> frozenset[str]:
        """As `LeavingLink.owing`."""
        return self.left.names

    def cancel(self) -> None:
        """As `LeavingLink.cancel`; who may still be working on such a message is not there until
        it asks for work.
        """
        self.silent |= dict.fromkeys(self.left.names, time.monotonic())
        self.left.forget(everything=True)

    def refused(self, name: str, kind: str) -> None:
        """Note that `name` answered without a message."""
        self.on_event(RefusalEvent(party=name, refusal=kind))
        self.refusals.note(name, kind, self.superlink.policy.version)

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
        return self.superlink.endpoint.bytes_in, self.superlink.endpoint.bytes_out

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
