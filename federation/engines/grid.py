"""The coordinator's `LeavingLink` over Flower's public `Grid`: a stock SuperLink's, or that of a
simulation.

Knows which of Flower's nodes is which member, and how long it is waited for. Knows nothing of what
messages say.
Always: a node is a member once it has proved it, with the member's key, for this run and this very
node; nothing else is sent to a stranger than the question who it is.

Hazard: whoever may start runs on that SuperLink can have its nodes run any code, and read their
keys with it. See the README.
"""

import secrets
import time
from collections.abc import Iterator, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ...core import log
from ...core.errors import AuthenticationError
from ...crypto.identity.keys import PublicIdentity, bind
from ..spec.policy import Policy
from ..transport.records import payload_of, to_record
from ..transport.refusals import Refusals
from .stateless_client import hello_context

logger = log.get("federation.flower")
# Flower's message types: who of the ClientApp's functions answers
TASK, HELLO = "train.letter", "query.hello"
HELLO_RECORD, NONCE, NAME, PROOF = "greeting", "nonce", "name", "proof"
POLL_S = 0.1  # between two looks for answers; Flower's own calls wait for 3 s
LOOK_S = 0.5  # between two looks at who is there
HELLO_S = 120.0  # a node has so long to say who it is; then it is asked again
LATE_S = 60.0  # Flower keeps a message for so long after nobody waits for it any more


class GridLink:
    """`LeavingLink` for nodes of Flower's own engines."""

    def __init__(self, grid: Grid, policy: Policy) -> None:
        self.grid, self.policy = grid, policy
        self.names: dict[int, str] = {}  # Flower's node → member, proved
        # hellos under way: message → node, nonce, when
        self.asked: dict[str, tuple[int, bytes, float]] = {}
        # nodes that did not prove who they are: when they may be asked again
        self.strangers: dict[int, float] = {}
        self.online: frozenset[int] = frozenset()
        # messages that were left: Flower's number → member, and until when it is waited for
        self.left: dict[str, tuple[str, float]] = {}
        self.looked, self.refusals = -LOOK_S, Refusals()
        self.greeted = dict[str, float]()  # when each member proved itself on a new node

    def present(self) -> frozenset[str]:
        """Members whose nodes Flower holds for alive, as soon as they have said who they are."""
        if time.monotonic() - self.looked >= LOOK_S:
            self.online = frozenset(self.grid.get_node_ids())
            self.ask_who()
            self.welcome()
            self.looked = time.monotonic()
        here = frozenset(name for node, name in self.names.items() if node in self.online)
        return here - self.owing() - self.refusals.away(lambda name: self.greeted.get(name, 0.0))

    def ask_who(self) -> None:
        """Ask new nodes who they are; those that did not say so in time again, strangers after a
        while.
        """
        now = time.monotonic()
        self.asked = {number: one for number, one in self.asked.items() if now - one[2] < HELLO_S}
        under_way = {node for node, _, _ in self.asked.values()} | {
            node for node, at in self.strangers.items() if now < at
        }
        nonces = {
            node: secrets.token_bytes(32)
            for node in sorted(self.online - set(self.names) - under_way)
        }
        contents = {
            node: RecordDict({HELLO_RECORD: ConfigRecord({NONCE: nonce})})
            for node, nonce in nonces.items()
        }
        self.asked |= {
            number: (node, nonces[node], now)
            for number, node in self.push(contents, HELLO, HELLO_S).items()
        }

    def welcome(self) -> None:
        """Take the answers of those that have said who they are."""
        for reply in self.pull(self.asked):
            node, nonce, _ = self.asked.pop(reply.metadata.reply_to_message_id)
            if name := "" if reply.has_error() else proved(reply, self.policy, nonce, node):
                self.names = {
                    other: known for other, known in self.names.items() if known != name
                } | {node: name}
                self.greeted[name] = time.monotonic()
            else:
                logger.warning(
                    "Flower's node %d is no member of %s: %s",
                    node,
                    self.policy.name,
                    reason_of(reply),
                )
                self.strangers[node] = time.monotonic() + HELLO_S

    def ask(self, messages: Mapping[str, bytes], timeout_s: float) -> Iterator[tuple[str, bytes]]:
        """As `Link.ask`."""
        waiting = self.deliver(messages, timeout_s)
        deadline = time.monotonic() + timeout_s
        while waiting:
            for reply in self.pull(waiting):
                yield from self.read(waiting.pop(reply.metadata.reply_to_message_id), reply)
            if waiting and (left := deadline - time.monotonic()) <= 0:
                break
            if waiting:
                time.sleep(min(POLL_S, left))
        self.refusals.settle()
        for name in waiting.values():
            logger.warning("%s did not answer within %.0f s", name, timeout_s)

    def deliver(self, messages: Mapping[str, bytes], timeout_s: float) -> dict[str, str]:
        """Push each member's message; Flower's number → member, of those that it took."""
        nodes = {name: node for node, name in self.names.items()}
        contents = {
            nodes[name]: to_record(payload) for name, payload in messages.items() if name in nodes
        }
        pushed = self.push(contents, TASK, timeout_s + LATE_S)
        return {number: self.names[node] for number, node in pushed.items()}

    def leave(self, messages: Mapping[str, bytes], timeout_s: float) -> None:
        """As `LeavingLink.leave`."""
        deadline = time.monotonic() + timeout_s
        for number, name in self.deliver(messages, timeout_s).items():
            self.left[number] = name, deadline

    def collect(self, wait_s: float) -> Iterator[tuple[str, bytes]]:
        """As `LeavingLink.collect`."""
        until = time.monotonic() + wait_s
        while self.left:
            replies = self.pull(self.left)
            for reply in replies:
                name, _ = self.left.pop(reply.metadata.reply_to_message_id)
                yield from self.read(name, reply)
            self.refusals.settle()
            now = time.monotonic()
            self.left = {number: one for number, one in self.left.items() if now < one[1]}
            if replies or now >= until:
                return
            time.sleep(min(POLL_S, until - now))
        if wait_s:
            time.sleep(max(0.0, until - time.monotonic()))

    def owing(self) -> frozenset[str]:
        """As `LeavingLink.owing`."""
        return frozenset(name for name, _ in self.left.values())

    def cancel(self) -> None:
        """As `LeavingLink.cancel`; who works on such a message still answers it, to nobody."""
        self.left = {}

    def read(self, name: str, reply: Message) -> Iterator[tuple[str, bytes]]:
        """A member's answer, if that is what came."""
        payload = None if reply.has_error() else payload_of(reply)
        if payload is not None:
            yield name, payload
        else:
            self.refusals.note(name, reason_of(reply), self.policy.version)

    def push(
        self, contents: Mapping[int, RecordDict], kind: str, lifetime_s: float
    ) -> dict[str, int]:
        """Leave one message for each node; message → node, of those that Flower took."""
        messages = [
            Message(content, dst_node_id=node, message_type=kind, ttl=lifetime_s)
            for node, content in contents.items()
        ]
        numbers = self.grid.push_messages(messages) if messages else []
        return {number: node for number, node in zip(numbers, contents, strict=False) if number}

    def pull(self, waiting: Mapping[str, object]) -> list[Message]:
        """Answers that are here, to messages that are waited for."""
        found = self.grid.pull_messages(list(waiting)) if waiting else []
        return [reply for reply in found if reply.metadata.reply_to_message_id in waiting]


def proved(reply: Message, policy: Policy, nonce: bytes, node: int) -> str:
    """The member's name in an answer to a hello; empty if it does not prove it."""
    record = reply.content.get(HELLO_RECORD)
    name, proof = (
        (record.get(NAME), record.get(PROOF)) if isinstance(record, ConfigRecord) else (None, None)
    )
    member = policy.member(name) if isinstance(name, str) else None
    if member is None or not isinstance(proof, bytes):
        return ""
    try:
        PublicIdentity(bytes.fromhex(member.key)).verify(
            hello_context(policy), bind(member.name, nonce, node), proof
        )
    except AuthenticationError:
        return ""
    return member.name


def reason_of(reply: Message) -> str:
    """Why there is no answer in a reply."""
    return (
        reply.error.reason or "no reason told"
        if reply.has_error()
        else ("what it sent is not what was asked for")
    )
