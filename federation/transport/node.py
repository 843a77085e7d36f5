"""A member's side of Flower: dial in, take a message, answer it, again.

Knows back-off and when to leave; `connection` knows the routes. Knows nothing of what messages say;
`handle` does.
Always: only local code runs; a lost connection is dialled again.

Hazard: Flower's message identity belongs to the process: one node a process.
"""

import secrets
import threading
import time
from collections.abc import Callable

import httpx
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from ...core import log
from ...core.errors import FederationError, MessageError, QuietchoirError
from ..events import ConnectedEvent, DisconnectedEvent, OnEvent, RefusedEvent, RestingEvent
from ..membership.keys import NodeKeys
from ..spec.policy import Policy
from . import reach
from .connection import Connection, MessageLostError
from .proof import NOT_PROVED, TAKEN, UNHEARD_S
from .records import answer_to, payload_of, to_record

logger = log.get("federation.flower")
BACKOFF_S = (0.5, 15.0)
REST_S = 2.0  # how soon a node that rests notices that it may train again
LINGER_S = 5.0  # a node that leaves stays for late questions, unless the coordinator goes first
RIVAL_S = 2 * UNHEARD_S  # a process before this one that died is long forgotten then

Handler = Callable[[bytes], bytes]


class FlowerNode:
    """Serve messages until told to stop.

    Args:
        handle: one message in, one answer out; may raise anything of `QuietchoirError`.
        leave: ends `run` once the coordinator is silent or gone; a message that is being worked on
        is answered first. wait_s: give up if the coordinator cannot be reached for so long; 0 never
        gives up. proxy: URL of the one to go through, if any. resting: why this node may not train
        now, "" if it may: it is away then, as one that is switched off, and comes back.
    """

    def __init__(
        self,
        policy: Policy,
        keys: NodeKeys,
        handle: Handler,
        leave: threading.Event,
        *,
        wait_s: float = 0.0,
        proxy: str = "",
        on_event: OnEvent | None = None,
        resting: Callable[[], str] = str,
    ) -> None:
        self.resting = resting
        self.policy, self.keys, self.handle, self.leave = policy, keys, handle, leave
        self.wait_s, self.proxy = wait_s, proxy
        self.on_event = on_event or (lambda event: None)
        self.session = secrets.token_hex(16)
        self.reached = time.monotonic()
        self.rival_since: float | None = None  # another process with these keys is at the door
        self.reason = ""  # why the last connection failed, since one stood

    def run(self) -> None:
        """Dial, serve, dial again.

        Raises:
            FederationError: the coordinator could not be reached within `wait_s`, or another
                process takes part with this node's keys.
            ConfigError: a proxy that is none.
        """
        pause, self.reached = BACKOFF_S[0], time.monotonic()
        while not self.leave.is_set():
            began = time.monotonic()
            if not rested(self.resting, self.leave, self.on_event):
                return
            self.reached += time.monotonic() - began  # nobody was dialled meanwhile
            connection = Connection(
                self.policy, self.keys, self.session, self.leave, proxy=self.proxy
            )
            try:
                connection.open()
                self.on_event(ConnectedEvent(address=self.policy.coordinator.address))
                pause, self.rival_since, self.reason = BACKOFF_S[0], None, ""
                self.serve(connection)
            except (httpx.HTTPError, RuntimeError, OSError, ValueError) as error:
                if not self.leave.is_set():
                    self.explain(error, opened=connection.heart.is_alive())
            finally:
                connection.close()
            if not self.leave.wait(pause):
                pause = min(2 * pause, BACKOFF_S[1])

    def serve(self, connection: Connection) -> None:
        """Messages, one after another, until this node has to rest."""
        last = time.monotonic()
        while not connection.lost.is_set():
            if self.leave.is_set() and time.monotonic() - last > LINGER_S:
                return
            try:
                message = connection.take()
                self.reached = time.monotonic()
                if message is not None and self.resting():
                    return  # nothing leaves any more, of a round that runs neither
                if message is not None:
                    reply = self.answer(message)
                    if self.resting() and not reply.has_error():  # a refusal says nothing
                        return
                    connection.give(reply, time.monotonic() - self.reached)
                    last = time.monotonic()
                if self.resting():
                    return
            except MessageLostError as error:
                logger.info("a message was lost: %s", error)

    def answer(self, message: Message) -> Message:
        """Let `handle` answer; a refusal goes back as its kind alone, because its words may hold
        private data.
        """
        try:
            payload = payload_of(message)
            if payload is None:
                raise MessageError("a message of Flower's without one of ours came; refused")
            return answer_to(message, to_record(self.handle(payload)))
        except QuietchoirError as error:
            logger.info("refused: %s", error)
            self.on_event(RefusedEvent(reason=str(error)))
            return answer_to(
                message, Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__)
            )

    def explain(self, error: Exception, *, opened: bool) -> None:
        """Say why the connection failed; give up if it has for too long.

        Raises:
            FederationError: so that `run` ends.
        """
        address, status = self.policy.coordinator.address, 0
        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            reason = refused(status, self.policy.version, opened=opened)
        else:
            reason = reach.reason(error, address, self.proxy)
        logger.info("the coordinator at %s %s", address, reason)
        self.on_event(
            DisconnectedEvent(address=address, reason=reason, again=reason == self.reason)
        )
        self.reason = reason
        now = time.monotonic()
        if status != TAKEN:
            self.rival_since = None
        elif self.rival_since is None:
            self.rival_since = now
        elif now - self.rival_since > RIVAL_S:
            raise FederationError(f"the coordinator at {address} {reason}")
        if self.wait_s and now - self.reached > self.wait_s:
            raise FederationError(
                f"the coordinator at {address} {reason}; tried for {self.wait_s:.0f} s"
            )


def rested(resting: Callable[[], str], leave: threading.Event, on_event: OnEvent) -> bool:
    """Wait until nothing keeps this node from training; False: it was told to leave before that."""
    reason = resting()
    if reason:
        on_event(RestingEvent(reason=reason))
    while reason:
        if leave.wait(REST_S):
            return False
        reason = resting()
    return True


def refused(status: int, version: int, *, opened: bool) -> str:
    """Why a coordinator's door answers so: the end of a sentence that begins with it."""
    if status == TAKEN:
        return (
            "has turned this process away: another one takes part with this node's keys, and goes "
            "on; "
            "a home is for one machine and one process: stop the other one, or give this one a "
            "home and keys of its own, "
            "and have them enrolled"
        )
    if opened:
        return f"answered {status}: it was started again since this node dialled in"
    if status == NOT_PROVED:
        return (
            f"does not know this node's keys (answered {status}): they are not in its version of "
            f"the federation file, here "
            f"it is version {version}; compare the two, or have the owner enroll this node"
        )
    return (
        f"answered {status}, which no coordinator of this version does; is it another program, "
        f"or another version?"
    )
