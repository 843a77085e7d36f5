"""Flower's SuperLink inside the coordinator's process, behind one door.

Knows TLS, the fleet's routes and who may use them. Knows nothing of letters or rounds.
Always: the network reaches eight fleet routes and nothing else: no Control, no Runtime, no code push, no
self-registration, no documentation pages. There is no second, private door: the coordinator speaks to the link
state directly (see link).

Covered: strangers on the network and other users of this machine; a request larger than a chunk may be.
Not covered: floods. Whoever can reach the port can keep it busy.
"""

import base64
import logging
import math
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from flwr.common.constant import NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app

from ...core import log
from ...core.errors import ConfigError, FederationError
from ..membership.identity import transport_point
from ..membership.policy import Policy

logger = log.get("federation.flower")
logging.getLogger("flwr").setLevel(logging.ERROR)  # a line for every message otherwise
ROUTES = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "push-object",
        "pull-object", "confirm-message-received",
    )
)  # fmt: skip
ASKS_FOR_WORK = "/v1/fleet/pull-messages"
MAX_REQUEST_BYTES = 32 << 20  # Flower cuts objects into chunks of 5 MiB
START_S = 30.0

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class FleetDoor:
    """The SuperLink's app, as the network sees it; counts what passes."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.asked_at: dict[bytes, float] = {}  # transport key → when its node last asked for work
        self.bytes_in = 0  # request bodies
        self.bytes_out = 0  # response bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """404 to everything that is not one of the fleet's routes."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in ROUTES:
            await self.serve(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, within the limit."""
        seen = 0
        key = caller(scope) if scope["path"] == ASKS_FOR_WORK else None

        async def counted_receive() -> MutableMapping[str, Any]:
            nonlocal seen
            event = await receive()
            size = len(event.get("body", b""))
            seen += size
            self.bytes_in += size
            return {"type": "http.disconnect"} if seen > MAX_REQUEST_BYTES else event

        async def counted_send(event: MutableMapping[str, Any]) -> None:
            self.bytes_out += len(event.get("body", b""))
            if key is not None and event.get("status") == 200:  # Flower has checked that the caller holds the key
                self.asked_at[key] = time.monotonic()
            await send(event)

        await self.app(scope, counted_receive, counted_send)


def caller(scope: Scope) -> bytes | None:
    """The transport key that a request claims, before anybody has checked it."""
    wanted = FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode("ascii")
    values = [value for name, value in scope["headers"] if name == wanted]
    try:
        return base64.b64decode(values[0], validate=True) if len(values) == 1 else None
    except ValueError:
        return None


class SuperLink:
    """The server thread and the link state behind it."""

    def __init__(self, policy: Policy, tls_key: Path) -> None:
        """Prepare; nothing listens yet.

        Raises:
            ConfigError: no certificate in the federation file, no TLS key, or a member without a transport key.
        """
        if not policy.coordinator.certificate:
            raise ConfigError(
                f"federation {policy.name} names no certificate for its coordinator; make it with `federation init`"
            )
        if not tls_key.exists():
            raise ConfigError(f"{tls_key}: no TLS key; run this on the machine where `federation init` ran, or name --keys")
        self.policy, self.tls_key = policy, tls_key
        self.names: dict[int, str] = {}  # Flower's node id → member
        self.keys: dict[str, bytes] = {}  # member → transport key
        self.scratch = tempfile.TemporaryDirectory(prefix="quietchoir-")
        certificate = Path(self.scratch.name) / "certificate.pem"
        certificate.write_text(policy.coordinator.certificate, "ascii")
        app = create_app(self.configure(certificate), SuperLinkLifespan)
        self.state: LinkState = app.state.linkstate_factory.state()
        self.door = FleetDoor(app)
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.door, log_level="error", access_log=False, lifespan="on", ws="none", ssl_certfile=str(certificate),
                ssl_keyfile=str(tls_key), timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        self.thread: threading.Thread | None = None
        self.socket: socket.socket | None = None
        self.enroll()

    def configure(self, certificate: Path) -> SuperLinkLifespanConfig:
        """All of Flower's switches; what could start a process or reach out is off."""
        files = (certificate.read_bytes(), certificate.read_bytes(), self.tls_key.read_bytes())
        return SuperLinkLifespanConfig(
            control_address="127.0.0.1:0", health_server_address=None, host=self.policy.coordinator.host,
            port=self.policy.coordinator.port, insecure=False, certificates=files, superexec_auth_secret=None,
            authn_plugin=load_control_authn_plugin(), event_log_plugin=None, fleet_event_log_plugin=None,
            enable_event_log=False, artifact_provider=None, enable_supernode_auth=True, fleet_api_type="grpc-rere",
            fleet_api_address=None, simulation=False, ssl_ca_certfile=str(certificate), ssl_certfile=str(certificate),
            ssl_keyfile=str(self.tls_key), database=FLWR_IN_MEMORY_DB_NAME, isolation="process",
            runtime_dependency_install=False,
        )  # fmt: skip

    def enroll(self) -> None:
        """Let in exactly the roster's transport keys.

        Raises:
            ConfigError: a member has none.
        """
        for member in self.policy.members:
            if not member.transport:
                raise ConfigError(f"member {member.name} has no transport key; enroll it again with its whole public card")
            key = public_key_to_bytes(transport_point(member.transport))
            node_id = self.state.create_node(owner_aid=NOOP_FLWR_AID, owner_name="none", public_key=key, heartbeat_interval=0)
            self.names[node_id], self.keys[member.name] = member.name, key

    def asked_at(self, name: str) -> float:
        """When a member last asked for work (`time.monotonic`); minus infinity if never."""
        return self.door.asked_at.get(self.keys[name], -math.inf)

    def start(self) -> None:
        """Listen.

        Raises:
            FederationError: the port is in use or the address is not this machine's.
        """
        host, port = self.policy.coordinator.host, self.policy.coordinator.port
        self.socket = listen(host, port)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.socket]}, name="quietchoir-superlink", daemon=True
        )
        self.thread.start()
        deadline = time.monotonic() + START_S
        while not self.server.started:
            if not self.thread.is_alive() or time.monotonic() > deadline:
                raise FederationError(f"{host}:{port}: the coordinator's door did not open; look at the log above")
            time.sleep(0.02)
        logger.info("the fleet's door is open at %s:%d", host, port)

    def stop(self) -> None:
        """Close the door and forget the scratch folder."""
        self.server.should_exit = True
        if self.thread is not None:
            self.thread.join(timeout=10)
        if self.socket is not None:
            self.socket.close()
        self.scratch.cleanup()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        FederationError: says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise FederationError(
            f"{host}:{port}: cannot listen ({error.strerror}); stop what uses the port, or found with another --address"
        ) from error
    return bound
