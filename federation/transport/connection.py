"""One dialled-in session of a member with the coordinator's door.

Knows the fleet's routes as a client, retries and heartbeats. Knows nothing of what messages say.
Always: the only certificate accepted is the one in the signed federation file; a request that the
network broke is made again, and is one that Flower takes twice without harm; nothing that comes is
ever imported (`get-fab` is never called).

Flower's door wants each request's time signed, and turns away what is five seconds ahead of its own
clock or five minutes behind it. A household's clock may be off by years: only the times in these
proofs are shifted to the coordinator's, as the `Date` of a refusal tells it. Nothing of a round
depends on this node's clock: messages are told apart by numbers, and every time limit runs on a
clock that nobody sets.

Hazard: Flower's message identity belongs to the process: one node a process. A coordinator can have
a node sign any time: our own proof (`proof`) is worth something at this federation's door alone,
Flower's at the doors that know this transport key; neither opens a message or signs one.
"""

import datetime
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient

from ..membership.keys import NodeKeys
from ..spec.policy import Policy
from . import reach
from .proof import prove
from .records import is_inline, name_inline

HEARTBEAT_S = 4.0
HEARTBEAT_PROMISE_S = 10.0  # Flower's smallest; a node is gone after two of them without a beat
RETRY_S = (0.1, 2.0)  # pauses between tries of one request
PATIENCE_S = 20.0  # a request that fails for so long ends the session: then the node dials again

TURNED_AWAY = 401
ENOUGH_S = 2.0  # a smaller difference cannot be why the door turned us away

Answer = TypeVar("Answer")


class MessageLostError(Exception):
    """The coordinator gave up on this message while it was on its way; there will be others."""


class ClockedAuth:
    """As Flower's `NodeAuthHttpInterceptor`, on the coordinator's clock, with our own proof beside
    it.
    """

    def __init__(self, keys: NodeKeys, federation: bytes, session: str) -> None:
        self.keys, self.federation, self.session = keys, federation, session
        self.public_key = public_key_to_bytes(keys.transport.public_key())
        self.behind = datetime.timedelta()  # how far this node's clock is behind the coordinator's

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add key, time and both signatures to one request."""
        timestamp, path = (now() + self.behind).isoformat(), context.request.url.path
        signature = sign_message(self.keys.transport, timestamp.encode("ascii"))
        context.request.headers.update(
            {
                FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_key).decode("ascii"),
                TIMESTAMP_HEADER: timestamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
                **prove(self.keys.identity, self.federation, path, timestamp, self.session),
            }
        )
        return call_next(context)

    def learn(self, refusal: httpx.Response) -> bool:
        """Take over the coordinator's time from its refusal. False: the clocks agree, the reason
        is another.
        """
        if refusal.status_code != TURNED_AWAY or "date" not in refusal.headers:
            return False
        try:
            theirs = parsedate_to_datetime(refusal.headers["date"])
            behind = theirs.astimezone(datetime.UTC) - now()
        except (ValueError, TypeError, OverflowError):
            return False
        differs = abs(behind - self.behind).total_seconds() > ENOUGH_S
        if differs:
            self.behind = behind
        return differs


class PinnedClient(FleetHttpClient):
    """Flower's fleet routes over our own way to the coordinator: its certificate alone, no proxy of
    the environment.
    """

    def __init__(self, policy: Policy, auth: ClockedAuth, proxy: str) -> None:
        """Raises ConfigError: a proxy that is none."""
        # Flower's own would read the environment's proxies, and let an answer end this process.
        self._base_url, self._interceptors, self._retry_invoker = (
            f"https://{policy.coordinator.address}",
            (auth,),
            None,
        )
        self._client = reach.client(policy.coordinator.certificate, proxy)


class Connection:
    """One session; every call may raise `httpx.HTTPError`.

    Args:
        session: of this process, the same whenever it dials.
        leave: ends retries.
        proxy: URL of the one to go through, if any.

    Raises:
        ConfigError: a proxy that is none.
    """

    def __init__(
        self,
        policy: Policy,
        keys: NodeKeys,
        session: str,
        leave: threading.Event,
        *,
        proxy: str = "",
    ) -> None:
        self.auth = ClockedAuth(keys, policy.federation, session)
        self.client = PinnedClient(policy, self.auth, proxy)
        self.public_key = public_key_to_bytes(keys.transport.public_key())
        self.leave = leave
        self.node = Node()
        self.closing = threading.Event()
        self.lost = threading.Event()
        self.progress = time.monotonic()
        self.heart = threading.Thread(
            target=self.beat, name="quietchoir-node-heartbeat", daemon=True
        )

    def open(self) -> None:
        """Say that this node is there, and keep saying it."""
        request = ActivateNodeRequest(
            public_key=self.public_key, heartbeat_interval=HEARTBEAT_PROMISE_S
        )
        try:
            self.node = Node(node_id=self.client.ActivateNode(request).node_id)
        except httpx.HTTPStatusError as error:
            if not self.auth.learn(error.response):  # our clock is not the reason
                raise
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

    def insist(self, call: Callable[[], Answer]) -> Answer:
        """`call`, again while the network breaks it; it may go on where it was. Patience counts
        from the last progress.
        """
        pause, self.progress = RETRY_S[0], time.monotonic()
        while True:
            try:
                return call()
            except httpx.TransportError:
                if (
                    self.leave.is_set()
                    or self.lost.is_set()
                    or time.monotonic() - self.progress > PATIENCE_S
                ):
                    raise
            self.leave.wait(pause)
            pause = min(2 * pause, RETRY_S[1])

    def take(self) -> Message | None:
        """The next message for this node, whole; None if there was none for a while.

        Raises:
            MessageLostError: it was taken back while it was fetched.
        """
        response = self.insist(
            lambda: self.client.PullMessages(PullMessagesRequest(node=self.node))
        )
        if not response.messages_list:
            return None
        message, tree = (
            message_from_proto(response.messages_list[0]),
            response.message_object_trees[0],
        )
        run_id = message.metadata.run_id
        if not is_inline(message):
            message = self.fetch(tree, run_id)
        message.metadata.__dict__["_message_id"] = tree.object_id
        # Message(reply_to=…) raises without these.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
            run_id,
            self.node.node_id,
            0,
        )
        return message

    def fetch(self, tree: ObjectTree, run_id: int) -> Message:
        """A long message, object by object: after an interruption, those that are here are not
        fetched again.
        """
        contents: dict[str, bytes] = {}

        def rest() -> None:
            for part in iterate_object_tree(tree):
                if part.object_id in contents:
                    continue
                request = PullObjectRequest(node=self.node, run_id=run_id, object_id=part.object_id)
                answer = self.client.PullObject(request)
                if not answer.object_available:
                    raise MessageLostError("a part of it is gone")
                contents[part.object_id], self.progress = answer.object_content, time.monotonic()

        self.insist(rest)
        message = inflate_object_from_contents(tree.object_id, contents)
        if not isinstance(message, Message):
            raise MessageLostError("its parts are no message")
        return message

    def give(self, reply: Message, seconds: float) -> None:
        """Send a reply; it is one and the same reply however often the network makes us say it.

        Raises:
            MessageLostError: nobody waits for it any more.
        """
        if is_inline(reply):
            tree = name_inline(reply)
            self.insist(lambda: self.announce(reply, tree, seconds))
            return
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            bare = remove_content_from_message(reply)

            def rest() -> None:
                # says which objects are missing: after a break, the rest
                response = self.announce(bare, tree, seconds)
                for number in response.objects_to_push:
                    request = PushObjectRequest(
                        node=self.node,
                        run_id=reply.metadata.run_id,
                        session_id=response.session_id,
                        object_id=number,
                        object_content=objects[number].deflate(),
                    )
                    if not self.client.PushObject(request).stored:
                        raise MessageLostError("the answer came too late")
                    self.progress = time.monotonic()

            self.insist(rest)

    def announce(self, message: Message, tree: ObjectTree, seconds: float) -> PushMessagesResponse:
        """Tell the coordinator of an answer."""
        request = PushMessagesRequest(
            node=self.node, messages_list=[message_to_proto(message)], message_object_trees=[tree],
            clientapp_runtime_list=[seconds],
        )  # fmt: skip
        return self.client.PushMessages(request)

    def close(self) -> None:
        """Say goodbye if anybody listens."""
        self.closing.set()
        if self.heart.is_alive():
            self.heart.join(timeout=HEARTBEAT_S + 5)
        try:
            if self.node.node_id:
                self.client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))
        except (httpx.HTTPError, RuntimeError):
            pass  # the coordinator was gone before the goodbye
        finally:
            self.client.close()
