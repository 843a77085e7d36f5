"""The coordinator's `Link` over Flower.

Knows how a letter becomes a Flower message and back. Knows nothing of what letters say.
Always: a letter travels as one byte array (Flower cuts large ones into chunks); a member that goes away or comes back
in the middle of a letter counts as missing for it, so that nothing waits for a dead process.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from flwr.app import Message
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.superlink.servicer.runtime import runtime_handlers

from ...core import log
from ...core.errors import FederationError
from ..membership.policy import Policy
from .letters import open_letter, seal_letter
from .superlink import SuperLink

logger = log.get("federation.flower")
MESSAGE_TYPE = "train.letter"
POLL_S = (0.03, 0.3)  # soon after a letter went out, and later: training takes a while
TASK_HEARTBEAT_S = 5.0


class DirectRuntime:
    """What `HttpGrid` asks over the network, asked in this process instead: there is no private port to guard."""

    def __init__(self, state: LinkState, run_id: int) -> None:
        self.state, self.task = state, SimpleNamespace(run_id=run_id)

    def __getattr__(self, name: str) -> Any:
        """`PushMessages` and its siblings → the handlers of the same names in snake case."""
        snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
        handler = getattr(runtime_handlers, snake)
        return lambda request: handler(request, self.state, self.task)


class DirectGrid(HttpGrid):
    """Flower's grid on `DirectRuntime`; pulls without waiting for anybody's upload."""

    def __init__(self, state: LinkState, run_id: int) -> None:
        super().__init__(token="unused: nothing goes over the network")
        self.direct = DirectRuntime(state, run_id)
        self.set_run(state.get_run_info(run_ids=[run_id])[0])
        self.uploading: dict[str, tuple[str, ObjectTree]] = {}  # by what they answer: announced, but not all here yet

    @property
    def _runtime_client(self) -> Any:
        return self.direct

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that are here whole. The stock method waits up to two hours for the rest of one."""
        asked = [number for number in message_ids if number not in self.uploading]
        if asked:  # Flower hands a reply's head out once, then denies that it existed
            response = self.direct.PullMessages(PullAppMessagesRequest(message_ids=asked))
            for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                self.uploading[proto.metadata.reply_to_message_id] = proto.metadata.message_id, tree
        whole = {number: self.inflate(head, tree) for number, (head, tree) in self.uploading.items()}
        self.uploading = {number: announced for number, announced in self.uploading.items() if whole[number] is None}
        return [message for message in whole.values() if message is not None]

    def inflate(self, head: str, tree: ObjectTree) -> Message | None:
        """One message from its objects; None while some are missing."""
        contents: dict[str, bytes] = {}
        for part in iterate_object_tree(tree):
            answer = self.direct.PullObject(PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=part.object_id))
            if not answer.object_found or not answer.object_available:
                return None
            contents[part.object_id] = answer.object_content
        self.direct.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=self.run.run_id, message_object_id=head)
        )
        message = cast(Message, inflate_object_from_contents(head, contents))
        message.metadata.__dict__["_message_id"] = head
        return message


class FlowerLink:
    """`Link` for nodes that dial in under TLS with their roster keys."""

    def __init__(self, policy: Policy, tls_key: Path) -> None:
        """Open the door.

        Raises:
            ConfigError, FederationError: as `SuperLink`.
        """
        self.superlink = SuperLink(policy, tls_key)
        self.superlink.start()
        self.state = self.superlink.state
        self.run_id = self.state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        self.task_id = cast(int, self.state.get_run_info(run_ids=[self.run_id])[0].primary_task_id)
        if self.state.claim_task(self.task_id) is None or not self.state.activate_task(self.task_id):
            raise FederationError("Flower did not start a run; this build is made for flwr 1.41, check its version")
        # Message() raises without these; they belong to the process, so one process holds one role only.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = self.task_id, self.run_id, SUPERLINK_NODE_ID
        self.grid = DirectGrid(self.state, self.run_id)
        self.ids = {name: node_id for node_id, name in self.superlink.names.items()}
        self.silent: dict[str, float] = {}  # members that owed an answer, and since when
        self.closing = threading.Event()
        self.heart = threading.Thread(target=self.beat, name="quietchoir-task-heartbeat", daemon=True)
        self.heart.start()

    def present(self) -> frozenset[str]:
        """Members whose heartbeats arrive, and that have asked for work since they last owed an answer."""
        owing = {name for name, since in self.silent.items() if self.superlink.asked_at(name) < since}
        return frozenset(self.activations()) - owing

    def activations(self) -> dict[str, str]:
        """Members that are there, and when each of them dialled in."""
        online = self.state.get_nodes(self.run_id)
        infos = self.state.get_node_info(node_ids=list(online)) if online else []
        return {
            self.superlink.names[info.node_id]: info.last_activated_at for info in infos if info.node_id in self.superlink.names
        }

    def ask(self, letters: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """As `Link.ask`."""
        there = self.activations()
        asked = [name for name in letters if name in there]
        if not asked:
            return
        self.grid.uploading = {}  # what belongs to earlier letters is too late
        messages = [self.message(self.ids[name], letters[name], timeout_s) for name in asked]
        numbers = list(self.grid.push_messages(messages))
        waiting = {number: name for number, name in zip(numbers, asked, strict=True) if number}
        pause = POLL_S[0]
        deadline, look_at = time.monotonic() + timeout_s, time.monotonic() + 1.0
        while waiting and time.monotonic() < deadline:
            for reply in self.grid.pull_messages(list(waiting)):
                name = waiting.pop(reply.metadata.reply_to_message_id, None)
                letter = None if reply.has_error() else open_letter(reply)
                if name is not None and letter is not None:
                    yield name, letter
                elif name is not None:
                    reason = reply.error.reason if reply.has_error() else "no letter in its message"
                    logger.warning("%s did not answer: %s", name, reason)
            if time.monotonic() >= look_at:  # whoever left, or dialled in anew, will not answer this letter
                look_at, now = time.monotonic() + 1.0, self.activations()
                gone = [number for number, name in waiting.items() if now.get(name) != there[name]]
                for number in gone:
                    self.silent[waiting[number]] = time.monotonic()
                    logger.warning("%s went away before it answered", waiting.pop(number))
            time.sleep(pause)
            pause = min(1.1 * pause, POLL_S[1])
        for name in waiting.values():
            self.silent[name] = time.monotonic()
            logger.warning("%s did not answer within %.0f s", name, timeout_s)

    def message(self, node_id: int, letter: bytes, timeout_s: float) -> Message:
        """A letter as Flower's message; it lives as long as it is waited for."""
        return Message(seal_letter(letter), dst_node_id=node_id, message_type=MESSAGE_TYPE, ttl=timeout_s + 60)

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
