"""The door holds a request for work until there is some; long messages survive a broken
connection object by object.
"""

import asyncio
import base64
import dataclasses
import datetime
import threading
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.membership.keys import NodeKeys
from quietchoir.federation.store.ledger import StaleError
from quietchoir.federation.transport import connection, fleet_endpoint
from quietchoir.federation.transport.connection import ClockedAuth, Connection, MessageLostError
from quietchoir.federation.transport.fleet_endpoint import Caller, FleetEndpoint
from quietchoir.federation.transport.node import FlowerNode
from quietchoir.federation.transport.proof import NOT_DIALLED_IN, TAKEN, UNHEARD_S, prove
from quietchoir.federation.transport.records import INLINE_BYTES, answer_to, payload_of, to_record
from quietchoir.tests.fakes.events import tables

KEY, FEDERATION, SESSION = b"a transport key", bytes(32), "ab" * 16
MEMBER = Identity.generate()


def proved(path: str, session: str = SESSION) -> list[tuple[bytes, bytes]]:
    """The head of a member's request."""
    timestamp = datetime.datetime.now(datetime.UTC).isoformat()
    headers = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(KEY).decode("ascii"),
        TIMESTAMP_HEADER: timestamp,
    }
    headers |= prove(MEMBER, FEDERATION, path, timestamp, session)
    return [
        (name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers.items()
    ]


class FakeFlower:
    """Flower's app: answers each request with the next of `answers`, then with nothing to do."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers, self.requests = list(answers), list[tuple[str, bytes]]()

    async def __call__(
        self,
        scope: fleet_endpoint.Scope,
        receive: fleet_endpoint.Receive,
        send: fleet_endpoint.Send,
    ) -> None:
        self.requests.append((scope["path"], (await receive())["body"]))
        status, body = self.answers.pop(0) if self.answers else (200, b"")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


async def request(
    endpoint: FleetEndpoint,
    path: str,
    body: bytes = b"ask",
    *,
    hang_up: asyncio.Event | None = None,
    session: str = SESSION,
    line: tuple[str, int] = ("a member", 1),
) -> tuple[int, bytes]:
    """One request to the door."""
    sent, waiting = (
        list[fleet_endpoint.Event](),
        [{"type": "http.request", "body": body, "more_body": False}],
    )

    async def receive() -> fleet_endpoint.Event:
        if waiting:
            return waiting.pop()
        await (hang_up or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(event: fleet_endpoint.Event) -> None:
        sent.append(event)

    endpoint.loop = asyncio.get_running_loop()
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": proved(path, session),
        "client": line,
        "state": {},
    }
    await endpoint(scope, receive, send)
    return (
        (sent[0]["status"], b"".join(event.get("body", b"") for event in sent[1:]))
        if sent
        else (0, b"")
    )


def opened(flower: FakeFlower) -> FleetEndpoint:
    """A door before `flower` that knows one key, and whose member has dialled in."""
    endpoint = FleetEndpoint(flower, FEDERATION)
    endpoint.callers[KEY] = Caller(MEMBER.public, session=SESSION)
    return endpoint


async def test_work_that_is_there_is_handed_out_at_once() -> None:
    endpoint = opened(FakeFlower((200, b"work")))
    assert await request(endpoint, fleet_endpoint.ASKS_FOR_WORK) == (200, b"work")
    assert endpoint.callers[KEY].handed_at > endpoint.callers[KEY].idle_at


async def test_a_request_for_work_waits_until_the_bell_rings() -> None:
    flower = FakeFlower((200, b""), (200, b"work"))
    endpoint = opened(flower)
    asked = asyncio.ensure_future(request(endpoint, fleet_endpoint.ASKS_FOR_WORK))
    while not endpoint.news.is_set():  # it is held, and the link was told that this node is idle
        await asyncio.sleep(0)
    assert not asked.done() and len(flower.requests) == 1
    endpoint.ring(KEY)
    assert await asked == (200, b"work")
    assert endpoint.callers[KEY].bells == set()


async def test_a_request_for_work_ends_empty_after_a_while_and_at_once_when_the_door_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_endpoint, "HOLD_S", 0.05)
    endpoint = opened(FakeFlower())
    assert await request(endpoint, fleet_endpoint.ASKS_FOR_WORK) == (200, b"")
    monkeypatch.setattr(fleet_endpoint, "HOLD_S", 1000.0)
    asked = asyncio.ensure_future(request(endpoint, fleet_endpoint.ASKS_FOR_WORK))
    endpoint.news.clear()
    while not endpoint.news.is_set():
        await asyncio.sleep(0)
    endpoint.close()
    assert await asked == (200, b"")


async def test_a_caller_that_hangs_up_is_not_handed_work() -> None:
    flower, gone = FakeFlower((200, b""), (200, b"work")), asyncio.Event()
    endpoint = opened(flower)
    asked = asyncio.ensure_future(request(endpoint, fleet_endpoint.ASKS_FOR_WORK, hang_up=gone))
    while not endpoint.news.is_set():
        await asyncio.sleep(0)
    gone.set()
    await asked
    assert (
        flower.answers == [(200, b"work")]
        and endpoint.callers[KEY].handed_at < endpoint.callers[KEY].idle_at
    )


async def test_nobody_is_held_whom_flower_refuses_and_its_words_do_not_leave_the_house() -> None:
    for status, told in ((401, 401), (500, 400), (302, 400)):
        endpoint = opened(FakeFlower((status, b"words")))
        assert await request(endpoint, fleet_endpoint.ASKS_FOR_WORK) == (told, b"")
        assert (
            endpoint.callers[KEY].idle_at == endpoint.callers[KEY].handed_at
            and not endpoint.news.is_set()
        )


async def test_a_stranger_is_not_read_and_not_counted() -> None:
    flower = FakeFlower()
    endpoint, before = FleetEndpoint(flower, FEDERATION), None
    for known in (False, True):
        if known:
            endpoint.callers[KEY] = Caller(Identity.generate().public, session=SESSION)
            before = dataclasses.replace(endpoint.callers[KEY])
        for path in sorted(fleet_endpoint.ROUTES):
            assert await request(endpoint, path) == (401, b"")
    assert endpoint.callers[KEY] == before and not flower.requests
    assert (endpoint.bytes_in, endpoint.bytes_out, endpoint.news.is_set(), endpoint.owners) == (
        0,
        0,
        False,
        {},
    )


async def test_a_node_that_dials_anew_replaces_its_dead_self_but_not_one_that_is_here() -> None:
    flower, other = FakeFlower(), "cd" * 16
    endpoint, dropped = opened(flower), list[bytes]()
    endpoint.drop = dropped.append
    assert (await request(endpoint, "/v1/fleet/send-node-heartbeat"))[
        0
    ] == 200  # the first one is here
    for path in sorted(fleet_endpoint.ROUTES):
        assert (await request(endpoint, path, session=other, line=("another", 2)))[0] == TAKEN
    assert (
        not dropped
        and len(flower.requests) == 1
        and endpoint.callers[KEY].lines == {("a member", 1): None}
    )
    # the first one again: its line had broken
    assert (await request(endpoint, fleet_endpoint.DIALS_IN))[0] == 200 and dropped == [KEY]
    endpoint.line_gone(("a member", 1))
    endpoint.callers[KEY].hung_up_at -= fleet_endpoint.HUNG_UP_S  # a moment later
    assert (await request(endpoint, fleet_endpoint.ASKS_FOR_WORK, session=other))[
        0
    ] == NOT_DIALLED_IN
    assert (await request(endpoint, fleet_endpoint.DIALS_IN, session=other, line=("another", 2)))[
        0
    ] == 200 and dropped == [KEY, KEY]
    # and now the first one is the second
    assert (await request(endpoint, fleet_endpoint.ASKS_FOR_WORK))[0] == TAKEN


async def test_a_process_that_hangs_on_the_line_without_a_word_is_gone_after_a_while() -> None:
    endpoint, other = opened(FakeFlower()), "cd" * 16
    await request(endpoint, "/v1/fleet/send-node-heartbeat")
    endpoint.callers[KEY].heard_at -= UNHEARD_S
    assert (await request(endpoint, fleet_endpoint.DIALS_IN, session=other))[0] == 200


async def test_a_process_that_says_goodbye_is_gone_at_once() -> None:
    endpoint = opened(FakeFlower())
    await request(endpoint, fleet_endpoint.LEAVES)
    assert (await request(endpoint, fleet_endpoint.DIALS_IN, session="cd" * 16))[0] == 200


async def test_one_member_has_few_connections() -> None:
    endpoint, ended = opened(FakeFlower()), list[tuple[str, int]]()
    endpoint.end = ended.append
    for port in range(fleet_endpoint.LINES + 3):
        await request(endpoint, "/v1/fleet/send-node-heartbeat", line=("a member", port))
    assert ended == [("a member", 0), ("a member", 1), ("a member", 2)]
    for port in range(fleet_endpoint.LINES + 3):
        endpoint.line_gone(("a member", port))
    assert not endpoint.callers[KEY].lines and not endpoint.owners


async def test_a_request_past_the_limit_is_turned_away_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_endpoint, "LONG_BYTES", 10)
    flower = FakeFlower()
    assert (await request(opened(flower), "/v1/fleet/push-object", b"12345678901"))[0] == 413
    assert (
        await request(
            opened(flower), fleet_endpoint.ASKS_FOR_WORK, bytes(fleet_endpoint.SHORT_BYTES + 1)
        )
    )[0] == 413
    assert flower.requests == []


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_endpoint, "SILENCE_S", 0.01)
    flower = FakeFlower()
    endpoint, sent = opened(flower), list[fleet_endpoint.Event]()

    async def receive() -> fleet_endpoint.Event:
        return await asyncio.get_running_loop().create_future()  # never comes

    async def send(event: fleet_endpoint.Event) -> None:
        sent.append(event)

    path = "/v1/fleet/push-object"
    await endpoint(
        {"type": "http", "method": "POST", "path": path, "headers": proved(path), "state": {}},
        receive,
        send,
    )
    assert sent[0]["status"] == 408 and flower.requests == []


class FakeCoordinator:
    """Flower's fleet routes for one node, on a line that breaks at every object number in
    `breaks`.
    """

    def __init__(self, breaks: set[int]) -> None:
        self.breaks, self.calls, self.moved = breaks, 0, list[str]()
        self.stored: dict[str, bytes] = {}

    def line(self) -> None:
        self.calls += 1
        if self.calls in self.breaks:
            raise httpx.ReadError("broken")

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802  Flower's name
        self.line()
        self.moved.append(request.object_id)
        content = self.stored.get(request.object_id, b"")
        return PullObjectResponse(
            object_found=bool(content), object_available=bool(content), object_content=content
        )

    def PushMessages(self, request: PushMessagesRequest) -> PushMessagesResponse:  # noqa: N802
        self.line()
        tree, ids = request.message_object_trees[0], list[str]()
        pending = [tree]
        while pending:
            node = pending.pop()
            ids.append(node.object_id)
            pending += node.children
        return PushMessagesResponse(
            objects_to_push=[one for one in ids if one not in self.stored], session_id="s"
        )

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        self.line()
        self.moved.append(request.object_id)
        self.stored[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)


LONG = bytes(range(256)) * (4 * INLINE_BYTES // 256)  # 16 MiB: four chunks


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A member's session whose client is a `FakeCoordinator`."""
    monkeypatch.setattr(connection, "RETRY_S", (0.0, 0.0))

    def make(breaks: set[int]) -> tuple[Connection, FakeCoordinator]:
        session = Connection.__new__(Connection)
        session.leave, session.lost = threading.Event(), threading.Event()
        session.node = Node(node_id=7)
        session.client = fake = FakeCoordinator(breaks)  # type: ignore[assignment]
        return session, fake

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 7, 0
    return make


def message(letter: bytes) -> Message:
    made = Message(to_record(letter), dst_node_id=7, message_type="train.letter")
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def test_a_long_letter_that_is_interrupted_goes_on_where_it_was(line: Any) -> None:
    session, coordinator = line({3, 5})
    letter = message(LONG)
    coordinator.stored = {
        number: part.deflate() for number, part in get_all_nested_objects(letter).items()
    }
    got = session.fetch(get_object_tree(letter), 1)
    assert payload_of(got) == LONG
    # nothing came twice
    assert len(coordinator.moved) == len(set(coordinator.moved)) == len(coordinator.stored)
    assert len(coordinator.stored) > 4


def test_a_long_answer_that_is_interrupted_goes_on_where_it_was(line: Any) -> None:
    session, coordinator = line({1, 4, 6})
    session.give(answer_to(message(b"letter"), to_record(LONG)), 0.0)
    assert len(coordinator.moved) == len(set(coordinator.moved)) == len(coordinator.stored) > 4


def test_a_letter_that_was_taken_back_is_not_waited_for(line: Any) -> None:
    session, _ = line(set())
    with pytest.raises(MessageLostError):
        session.fetch(get_object_tree(message(LONG)), 1)


def test_patience_with_a_dead_line_ends(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = line(set(range(1, 10_000)))
    monkeypatch.setattr(connection, "PATIENCE_S", 0.05)
    with pytest.raises(httpx.ReadError):
        session.give(answer_to(message(b"letter"), to_record(b"answer")), 0.0)


def test_an_answer_lives_as_long_as_its_letter_whatever_this_nodes_clock_says() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 7, 0
    letter = message(b"letter")
    letter.metadata.created_at -= 86400  # the coordinator's clock is a day behind ours
    reply = message_to_proto(answer_to(letter, to_record(b"answer"))).metadata
    assert (reply.created_at, reply.ttl) == (
        letter.metadata.created_at,
        letter.metadata.ttl,
    ) and reply.ttl > 0


def test_a_wrong_clock_is_learned_from_a_refusal_once() -> None:
    auth = ClockedAuth(
        NodeKeys(MEMBER, ec.generate_private_key(ec.SECP384R1())), FEDERATION, SESSION
    )
    refusal = httpx.Response(401, headers={"date": "Wed, 21 Oct 2015 07:28:00 GMT"})
    assert not auth.learn(httpx.Response(403, headers=refusal.headers)) and not auth.learn(
        httpx.Response(401)
    )
    assert not auth.learn(httpx.Response(401, headers={"date": "yesterday"}))
    assert auth.learn(refusal)
    assert not auth.learn(refusal)  # the clocks agree now: the reason must be another


def test_what_a_node_refuses_reaches_the_coordinator_as_its_kind_alone() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 7, 0

    def handle(letter: bytes) -> bytes:
        raise StaleError("private words")

    heard = list[dict[str, object]]()
    node = FlowerNode.__new__(FlowerNode)
    node.handle, node.on_event = handle, tables(heard.append)
    answer = node.answer(message(b"letter"))
    assert answer.error.reason == "StaleError" and heard == [
        {"event": "refused", "reason": "private words"}
    ]


@pytest.mark.parametrize("reason", ["", "its owner has paused it"])
def test_an_answer_that_was_being_made_when_its_owner_paused_does_not_leave(reason: str) -> None:
    """A refusal does: it says nothing, and the coordinator goes on at once."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 7, 0
    now, given = [""], list[Message]()

    def handle(letter: bytes) -> bytes:
        now[0] = reason  # while it is masked, say
        if letter == b"refuse":
            raise StaleError("private words")
        return b"update"

    def served(letter: bytes) -> list[bool]:
        """For each message that left, whether it was a refusal."""
        node, link = FlowerNode.__new__(FlowerNode), Connection.__new__(Connection)
        node.handle, node.on_event = handle, lambda event: None
        node.resting, node.leave = lambda: now[0], threading.Event()
        link.lost = threading.Event()
        link.take = lambda: message(letter)  # type: ignore[method-assign]

        def give(reply: Message, _seconds: float) -> None:
            given.append(reply)
            link.lost.set()

        link.give = give  # type: ignore[method-assign,assignment]
        now[0] = ""
        given.clear()
        node.serve(link)
        return [one.has_error() for one in given]

    assert served(b"letter") == ([] if reason else [False])
    assert served(b"refuse") == [True]
