"""A member's side of Flower: dial in, take a letter, answer it, again.

Knows the fleet's routes as a client, back-off and heartbeats. Knows nothing of what letters say; `handle` does.
Always: only local code runs, nothing that the coordinator sends is imported (`get-fab` is never called); the
only certificate accepted is the one in the signed federation file; a lost connection is dialled again.

Hazard: Flower's message identity belongs to the process: one node a process.
"""

import threading
import time
from collections.abc import Callable

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from ...core import log
from ...core.errors import FederationError, MessageError, QuietchoirError
from ..membership.policy import Policy
from .letters import open_letter, seal_letter

logger = log.get("federation.flower")
HEARTBEAT_S = 4.0
HEARTBEAT_PROMISE_S = 10.0  # Flower's smallest; a node is gone after two of them without a beat
POLL_S = (0.05, 0.5)  # while letters come, and after a quiet while
BACKOFF_S = (0.5, 15.0)
UPLOAD_S = 120.0  # a letter that is announced must be here whole after this
LINGER_S = 5.0  # a node that leaves stays for late questions, unless the coordinator goes first

Handler = Callable[[bytes], bytes]


class Connection:
    """One dialled-in session; every call may raise `httpx.HTTPError`."""

    def __init__(self, policy: Policy, transport: ec.EllipticCurvePrivateKey) -> None:
        self.client = FleetHttpClient.from_server_address(
            policy.coordinator.address,
            False,
            policy.coordinator.certificate.encode("ascii"),
            [
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(transport, transport.public_key()),
            ],
        )
        self.public_key = public_key_to_bytes(transport.public_key())
        self.node = Node()
        self.closing = threading.Event()
        self.lost = threading.Event()
        self.heart = threading.Thread(target=self.beat, name="quietchoir-node-heartbeat", daemon=True)

    def open(self) -> None:
        """Say that this node is there, and keep saying it."""
        request = ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=HEARTBEAT_PROMISE_S)
        self.node = Node(node_id=self.client.ActivateNode(request).node_id)
        self.heart.start()

    def beat(self) -> None:
        """Heartbeats from a thread of their own: slow training is not death."""
        request = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_PROMISE_S)
        while not self.closing.wait(HEARTBEAT_S):
            try:
                known = self.client.SendNodeHeartbeat(request).success
            except httpx.TransportError:
                continue  # a gap; the main loop notices a dead coordinator by itself
            except (httpx.HTTPError, RuntimeError):
                known = False
            if not known:
                self.lost.set()
                return

    def take(self) -> Message | None:
        """The next message for this node, whole."""
        response = self.client.PullMessages(PullMessagesRequest(node=self.node))
        if not response.messages_list:
            return None
        head, tree = message_from_proto(response.messages_list[0]), response.message_object_trees[0]
        run_id = head.metadata.run_id
        pull = make_pull_object_fn_protobuf(self.client.PullObject, self.node, run_id)
        confirm = make_confirm_message_received_fn_protobuf(self.client.ConfirmMessageReceived, self.node, run_id)
        message: Message = pull_and_inflate_object_from_tree(
            tree, pull, confirm, return_type=Message, initial_backoff=POLL_S[0], backoff_cap=POLL_S[1], max_time=UPLOAD_S
        )
        message.metadata.__dict__["_message_id"] = tree.object_id
        # Message(reply_to=…) raises without these.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, self.node.node_id, 0
        return message

    def give(self, reply: Message, seconds: float) -> None:
        """Send a reply, its objects after it."""
        run_id = reply.metadata.run_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree: ObjectTree = get_object_tree(reply)
            objects = get_all_nested_objects(reply)
            bare = remove_content_from_message(reply) if reply.has_content() else reply
            response = self.client.PushMessages(
                PushMessagesRequest(
                    node=self.node,
                    messages_list=[message_to_proto(bare)],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[seconds],
                )
            )
            push = make_push_object_fn_protobuf(self.client.PushObject, self.node, run_id, response.session_id)
            push_objects(objects, push, object_ids_to_push=set(response.objects_to_push))

    def close(self) -> None:
        """Say goodbye if anybody listens."""
        self.closing.set()
        if self.heart.is_alive():
            self.heart.join(timeout=HEARTBEAT_S + 5)
        try:
            if self.node.node_id:
                self.client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))
        except (httpx.HTTPError, RuntimeError):
            logger.debug("the coordinator was gone before the goodbye")
        finally:
            self.client.close()


class FlowerNode:
    """Serve letters until told to stop.

    Args:
        handle: one letter in, one answer out; may raise anything of `QuietchoirError`.
        leave: ends `run` once the coordinator is silent or gone; a letter that is being worked on is answered first.
        wait_s: give up if the coordinator cannot be reached for so long; 0 never gives up.
    """

    def __init__(
        self,
        policy: Policy,
        transport: ec.EllipticCurvePrivateKey,
        handle: Handler,
        leave: threading.Event,
        *,
        wait_s: float = 0.0,
        on_event: Callable[[dict[str, object]], None] | None = None,
    ) -> None:
        self.policy, self.transport, self.handle, self.leave = policy, transport, handle, leave
        self.wait_s = wait_s
        self.on_event = on_event or (lambda event: None)
        self.reached = time.monotonic()

    def run(self) -> None:
        """Dial, serve, dial again.

        Raises:
            FederationError: the coordinator could not be reached within `wait_s`.
        """
        pause, self.reached = BACKOFF_S[0], time.monotonic()
        while not self.leave.is_set():
            connection = Connection(self.policy, self.transport)
            try:
                connection.open()
                self.on_event({"event": "connected", "address": self.policy.coordinator.address})
                pause = BACKOFF_S[0]
                self.serve(connection)
            except (httpx.HTTPError, ObjectPullError, RuntimeError, OSError, ValueError) as error:
                if not self.leave.is_set():
                    self.explain(error)
            finally:
                connection.close()
            if not self.leave.wait(pause):
                pause = min(2 * pause, BACKOFF_S[1])

    def serve(self, connection: Connection) -> None:
        """Letters, one after another."""
        pause, last = POLL_S[0], time.monotonic()
        while not connection.lost.is_set():
            if self.leave.is_set() and time.monotonic() - last > LINGER_S:
                return
            message = connection.take()
            self.reached = time.monotonic()
            if message is None:
                time.sleep(pause)
                pause = min(1.2 * pause, POLL_S[1])
                continue
            pause, started = POLL_S[0], time.monotonic()
            connection.give(self.answer(message), time.monotonic() - started)
            last = time.monotonic()

    def answer(self, message: Message) -> Message:
        """Let `handle` answer; a refusal goes back as its kind alone, because its words may hold private data."""
        try:
            letter = open_letter(message)
            if letter is None:
                raise MessageError("a message without a letter came; refused")
            return Message(seal_letter(self.handle(letter)), reply_to=message)
        except QuietchoirError as error:
            logger.info("refused: %s", error)
            self.on_event({"event": "refused", "reason": str(error)})
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)

    def explain(self, error: Exception) -> None:
        """Say why the connection failed; give up if it has for too long.

        Raises:
            FederationError: so that `run` ends.
        """
        if isinstance(error, httpx.HTTPStatusError):
            reason = (
                f"answered {error.response.status_code}; it may not know this node's key (compare versions of the "
                f"federation file, here {self.policy.version}), or still hold this node's last connection for some seconds"
            )
        else:
            reason = f"cannot be reached ({type(error).__name__})"
        logger.info("the coordinator at %s %s", self.policy.coordinator.address, reason)
        self.on_event({"event": "disconnected", "reason": reason})
        if self.wait_s and time.monotonic() - self.reached > self.wait_s:
            raise FederationError(
                f"the coordinator at {self.policy.coordinator.address} {reason}; tried for {self.wait_s:.0f} s"
            )
