"""A member's side of Flower: dial in, take a letter, answer it, again.

Knows back-off and when to leave; `connection` knows the routes. Knows nothing of what letters say; `handle` does.
Always: only local code runs; a lost connection is dialled again.

Hazard: Flower's message identity belongs to the process: one node a process.
"""

import threading
import time
from collections.abc import Callable

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from ...core import log
from ...core.errors import FederationError, MessageError, QuietchoirError
from ..membership.policy import Policy
from .connection import Connection, LetterLostError
from .letters import answer_to, open_letter, seal_letter

logger = log.get("federation.flower")
BACKOFF_S = (0.5, 15.0)
LINGER_S = 5.0  # a node that leaves stays for late questions, unless the coordinator goes first

Handler = Callable[[bytes], bytes]


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
            connection = Connection(self.policy, self.transport, self.leave)
            try:
                connection.open()
                self.on_event({"event": "connected", "address": self.policy.coordinator.address})
                pause = BACKOFF_S[0]
                self.serve(connection)
            except (httpx.HTTPError, RuntimeError, OSError, ValueError) as error:
                if not self.leave.is_set():
                    self.explain(error, opened=connection.heart.is_alive())
            finally:
                connection.close()
            if not self.leave.wait(pause):
                pause = min(2 * pause, BACKOFF_S[1])

    def serve(self, connection: Connection) -> None:
        """Letters, one after another."""
        last = time.monotonic()
        while not connection.lost.is_set():
            if self.leave.is_set() and time.monotonic() - last > LINGER_S:
                return
            try:
                message = connection.take()
                self.reached = time.monotonic()
                if message is not None:
                    reply = self.answer(message)
                    connection.give(reply, time.monotonic() - self.reached)
                    last = time.monotonic()
            except LetterLostError as error:
                logger.info("a letter was lost: %s", error)

    def answer(self, message: Message) -> Message:
        """Let `handle` answer; a refusal goes back as its kind alone, because its words may hold private data."""
        try:
            letter = open_letter(message)
            if letter is None:
                raise MessageError("a message without a letter came; refused")
            return answer_to(message, seal_letter(self.handle(letter)))
        except QuietchoirError as error:
            logger.info("refused: %s", error)
            self.on_event({"event": "refused", "reason": str(error)})
            return answer_to(message, Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__))

    def explain(self, error: Exception, *, opened: bool) -> None:
        """Say why the connection failed; give up if it has for too long.

        Raises:
            FederationError: so that `run` ends.
        """
        if isinstance(error, httpx.HTTPStatusError) and opened:
            reason = f"answered {error.response.status_code}: it was started again since this node dialled in"
        elif isinstance(error, httpx.HTTPStatusError):
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
