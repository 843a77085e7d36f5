"""A running federation, and somebody at its door who holds no key: nothing happens to anybody."""

import base64
import concurrent.futures
import contextlib
import datetime
import itertools
import json
import secrets
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.membership import roster
from quietchoir.federation.membership.keys import load_or_create, transport_point
from quietchoir.federation.transport.fleet_endpoint import ROUTES
from quietchoir.federation.transport.listener import HEAD_S, UNPROVEN
from quietchoir.federation.transport.proof import PROOF_HEADER, SESSION_HEADER, prove
from quietchoir.simulations.cluster import HOST, PATIENCE_S, Cluster, ClusterPlan
from quietchoir.simulations.processes import Child, ProcessGroup

PLAN = ClusterPlan(
    nodes=4,
    rounds=1_000_000,
    size=2_000,
    recipe={"attempts": 1, "stage_timeout_s": 60.0, "work_timeout_s": 60.0},
)
KNOCKS = 25
METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST")
# what nobody may hear of while strangers knock
CALM = frozenset({"aborted", "disconnected", "refusal", "refused"})


class Scene:
    """Four rehearsing members in rounds without end; `attempts = 1`: one that is lost ends the
    run.
    """

    def __init__(self, stage: ProcessGroup, folder: Path) -> None:
        self.cluster = Cluster(stage, folder, PLAN)
        self.coordinator = self.cluster.coordinate("coordinator", "--grace", "30")
        self.coordinator.until("open", PATIENCE_S)
        self.nodes = self.cluster.join_all()
        self.coordinator.until("round", PATIENCE_S)
        self.policy = roster.load(self.cluster.file)
        self.victim = public_key_to_bytes(transport_point(self.policy.members[0].transport))

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.cluster.port}"

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.policy.coordinator.certificate)

    def goes_on(self) -> None:
        """Two more rounds, with everybody, and nobody heard of anything."""
        for child in (self.coordinator, *self.nodes.values()):
            drain(child)
        for _ in range(2):
            assert set(self.coordinator.until("round", PATIENCE_S)["parties"]) == set(PLAN.names)
        for child in (self.coordinator, *self.nodes.values()):
            heard = [event for event in child.events if event["event"] in CALM]
            assert heard == [] and child.process.poll() is None, (child.name, heard)


def drain(child: Child) -> None:
    """Note what it has said until now."""
    while not child.lines.empty():
        line = child.lines.get()
        assert line is not None, f"{child.name} ended: {child.last_words()}"
        child.events.append(json.loads(line))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("strangers")
    # members go past them
    nowhere = dict.fromkeys(("HTTPS_PROXY", "ALL_PROXY", "https_proxy"), "socks5://127.0.0.1:9")
    with ProcessGroup(folder / "logs", nowhere) as stage:
        yield Scene(stage, folder)


def named(key: bytes) -> dict[str, str]:
    """The header that names a transport key, which everybody who has the federation file knows."""
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(key).decode("ascii"),
        "content-type": "application/protobuf",
    }


def signed(scene: Scene, route: str, **wrong: Any) -> dict[str, str]:
    """All headers of a request of `node-00`, whose keys are lent to the test, but for what is
    `wrong`.
    """
    keys = load_or_create(scene.cluster.folder / PLAN.names[0])
    timestamp = (
        datetime.datetime.now(datetime.UTC) + wrong.get("by", datetime.timedelta())
    ).isoformat()
    signature = sign_message(wrong.get("transport", keys.transport), timestamp.encode("ascii"))
    federation, session = wrong.get("federation", scene.policy.federation), secrets.token_hex(16)
    identity = wrong.get("identity", keys.identity)
    headers = {
        **named(scene.victim), TIMESTAMP_HEADER: timestamp,
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
        **prove(identity, federation, wrong.get("path", route), timestamp, session),
    }  # fmt: skip
    return {
        name: value for name, value in headers.items() if name != wrong.get("without")
    } | wrong.get("with_", {})


@pytest.mark.parametrize("methods", [("GET",), METHODS])
def test_a_request_in_a_members_name_has_no_effect_on_that_member(
    methods: tuple[str, ...], scene: Scene
) -> None:
    """The instance: 25 GETs with a member's public transport key in a few seconds stopped every
    round.
    """
    with httpx.Client(verify=scene.context(), base_url=scene.url) as client:
        for method in methods:
            for number in range(KNOCKS):
                answer = client.request(
                    method, sorted(ROUTES)[number % len(ROUTES)], headers=named(scene.victim)
                )
                assert (
                    answer.status_code == (401 if method == "POST" else 405) and not answer.content
                )
    scene.goes_on()


HOUR = datetime.timedelta(hours=1)
WRONG: dict[str, dict[str, Any]] = {
    "nothing but Flower's own signature": {"without": PROOF_HEADER},
    "no time": {"without": TIMESTAMP_HEADER},
    "a time of an hour ago, as one overheard would be": {"by": -HOUR},
    "a time to come": {"by": HOUR},
    "no session": {"without": SESSION_HEADER},
    "another session than was signed": {"with_": {SESSION_HEADER: "ab" * 16}},
    "what was signed for another federation's door": {"federation": bytes(32)},
    "what was signed for another route": {"path": "/v1/fleet/pull-messages"},
    "a stranger's signature": {"identity": Identity.generate()},
    "a signature that is none": {"with_": {PROOF_HEADER: "AAAA"}},
    "no base64": {"with_": {PROOF_HEADER: "\u00e9"}},
    "a key that is none": {"with_": {FLEET_HTTP_PUBLIC_KEY_HEADER: "!"}},
}


def test_what_does_not_prove_who_asks_has_no_effect(scene: Scene) -> None:
    """Dialling in and leaving are what would cost the member its session."""
    bodies: dict[str, Any] = {
        "/v1/fleet/activate-node": ActivateNodeRequest(
            public_key=scene.victim, heartbeat_interval=10.0
        ),
        "/v1/fleet/deactivate-node": DeactivateNodeRequest(node_id=1),
    }
    with httpx.Client(verify=scene.context(), base_url=scene.url) as client:
        for (what, wrong), (path, body) in itertools.product(WRONG.items(), bodies.items()):
            sent = [
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in signed(scene, path, **wrong).items()
            ]
            assert (
                client.post(path, headers=sent, content=body.SerializeToString()).status_code == 401
            ), what
        for path, body in bodies.items():
            right = list(signed(scene, path).items())
            for name, value in right:
                if name.startswith("quietchoir"):  # said twice, it is not said
                    headers = [*right, (name, value)]
                    assert (
                        client.post(
                            path, headers=headers, content=body.SerializeToString()
                        ).status_code
                        == 401
                    )
    scene.goes_on()


def test_whoever_holds_the_transport_key_alone_is_a_stranger(scene: Scene) -> None:
    """Flower's signature fits, ours does not: of the two keys of a card, both are wanted."""
    headers = signed(scene, "/v1/fleet/pull-messages", identity=Identity.generate())
    body = PullMessagesRequest().SerializeToString()
    with httpx.Client(verify=scene.context(), base_url=scene.url) as client:
        assert (
            client.post("/v1/fleet/pull-messages", headers=headers, content=body).status_code == 401
        )
    scene.goes_on()


def test_a_second_process_with_a_members_keys_is_turned_away(scene: Scene) -> None:
    """A copied home: whatever it asks, the first one's session stays."""
    with httpx.Client(verify=scene.context(), base_url=scene.url) as client:
        for path in sorted(ROUTES):
            body = ActivateNodeRequest(
                public_key=scene.victim, heartbeat_interval=10.0
            ).SerializeToString()
            assert client.post(path, headers=signed(scene, path), content=body).status_code == 409
    scene.goes_on()


def test_a_copied_home_is_refused_in_a_sentence_and_the_first_ones_run_goes_on(
    scene: Scene,
) -> None:
    name = PLAN.names[0]
    copy = scene.cluster.folder / "copied" / name
    shutil.copytree(scene.cluster.folder / name, copy)
    second = scene.cluster.stage.start(
        "second",
        "--config",
        str(scene.cluster.settings),
        "join",
        str(scene.cluster.file),
        "--home",
        str(copy),
        *scene.cluster.rehearsed,
    )
    told = second.until("disconnected", PATIENCE_S)
    assert "another one takes part with this node's keys" in told["reason"] and not told["again"]
    scene.goes_on()
    # it tries for a while: a process that died is forgotten meanwhile
    assert second.process.wait(PATIENCE_S) == 1
    assert "a home is for one machine" in second.last_words()
    assert "Traceback" not in second.log.read_text("utf-8")
    scene.goes_on()


def raw(scene: Scene) -> socket.socket:
    return socket.create_connection((HOST, scene.cluster.port), timeout=30)


def spoken(scene: Scene) -> ssl.SSLSocket:
    return scene.context().wrap_socket(raw(scene), server_hostname=HOST)


LONG_HEAD = b"POST /v1/fleet/push-messages HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 100_000
SLOW = {
    "connect and say nothing": lambda scene: raw(scene),
    "speak TLS and say nothing": lambda scene: spoken(scene),
    "begin TLS and stop": lambda scene: told(raw(scene), b"\x16\x03\x01\x02\x00"),
    "plain HTTP": lambda scene: told(raw(scene), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
    "begin a head and stop": lambda scene: told(
        spoken(scene), b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x"
    ),
    "a head without end": lambda scene: told(spoken(scene), LONG_HEAD),
    "a body that is announced and never comes": lambda scene: told(
        spoken(scene),
        b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 33554432\r\n\r\n",
    ),
    "a body in chunks without end": lambda scene: told(
        spoken(scene),
        b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: "
        b"x\r\ntransfer-encoding: chunked\r\n\r\n" + b"10000\r\n" + b"a" * 65536,
    ),
    "an upgrade": lambda scene: told(
        spoken(scene),
        b"GET /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: "
        b"websocket\r\n\r\n",
    ),
    "a thousand requests at once": lambda scene: told(
        spoken(scene), b"GET /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n\r\n" * 1000
    ),
}


def told(line: Any, words: bytes) -> Any:
    with contextlib.suppress(OSError):
        line.sendall(words)
    return line


def test_connections_of_strangers_are_few_and_short(scene: Scene) -> None:
    """More of them than the door has room for, held open: rounds go on, and every one of them is
    ended.
    """
    with ExitStack() as held:
        lines = [
            held.enter_context(contextlib.closing(how(scene)))
            for _ in range(UNPROVEN // 5)
            for how in SLOW.values()
        ]
        scene.goes_on()
        for line in lines:
            line.settimeout(HEAD_S + 20.0)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                # what it was answered, if anything, and then the end; a time-out fails the test
                while line.recv(1 << 16):
                    pass
    scene.goes_on()


def test_bodies_of_strangers_are_not_held(scene: Scene) -> None:
    """The instance: twelve callers with bodies of 32 MB made the coordinator hold 384 MB."""
    before, block = scene.coordinator.memory_mb(), b"a" * (1 << 20)

    def pour(number: int) -> None:
        def body() -> Iterator[bytes]:
            for _ in range(31):
                yield block

        with (
            httpx.Client(verify=scene.context(), base_url=scene.url) as client,
            contextlib.suppress(httpx.HTTPError),
        ):
            client.post("/v1/fleet/push-object", headers=named(scene.victim), content=body())

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(pour, range(12)))
    scene.goes_on()
    assert scene.coordinator.memory_mb() - before < 64  # peaks, of which 372 would be theirs


def test_a_member_that_comes_while_strangers_crowd_the_door_gets_in(scene: Scene) -> None:
    """A killed member dials in again through a crowd that comes anew all the time."""
    ended = threading.Event()

    def crowd() -> None:
        lines = list[socket.socket]()
        while not ended.is_set():
            with contextlib.suppress(OSError):
                lines.append(raw(scene))
            if len(lines) > 4 * UNPROVEN:
                lines.pop(0).close()
            ended.wait(0.01)
        for line in lines:
            line.close()

    thread = threading.Thread(target=crowd)
    thread.start()
    try:
        name = PLAN.names[-1]
        scene.nodes[name].kill()
        scene.nodes[name] = scene.cluster.join(name)
        while set(scene.coordinator.until("round", PATIENCE_S)["parties"]) != set(PLAN.names):
            pass
    finally:
        ended.set()
        thread.join()
    assert scene.coordinator.process.poll() is None
