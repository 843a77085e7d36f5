"""Flower's SuperLink inside the coordinator's process, behind one door.

Knows TLS, Flower's switches and who may come in. Knows nothing of messages or rounds.
Always: the network reaches what `door` lets through and nothing else: no Control, no Runtime, no
code push, no self-registration, no documentation pages. There is no second, private door: the
coordinator speaks to the link state directly (see `post`).

Covered: strangers on the network and other users of this machine. Not covered: floods (see `door`).
"""

import logging
import socket
import tempfile
import threading
import time
from pathlib import Path

import uvicorn
from flwr.common.constant import NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app

from ...core import log
from ...core.errors import ConfigError, FederationError
from ...crypto.identity.keys import PublicIdentity
from ..membership.keys import transport_point
from ..membership.locking import server_key
from ..spec.address import Address
from ..spec.policy import Policy
from .fleet_endpoint import Caller, FleetEndpoint
from .listener import IDLE_S, Listener

logger = log.get("federation.flower")
# a line for every message otherwise, and for every late one an error
logging.getLogger("flwr").setLevel(logging.CRITICAL)
START_S = 30.0


class SuperLink:
    """The server thread and the link state behind it."""

    def __init__(self, policy: Policy, tls_key: Path, listen: str = "") -> None:
        """Prepare; nothing listens yet.

        Args:
            listen: HOST:PORT, if it is not the address that members dial.

        Raises:
            ConfigError: no certificate in the federation file, no TLS key or nothing that opens it,
                or a member without a transport key.
            AuthenticationError: a wrong passphrase of the TLS key.
        """
        if not policy.coordinator.certificate:
            raise ConfigError(
                f"federation {policy.name} names no certificate for its coordinator; make it with "
                f"`federation init`"
            )
        if not tls_key.exists():
            raise ConfigError(
                f"{tls_key}: no TLS key; run this on the machine where `federation "
                f"init` ran, or name --keys"
            )
        self.policy = policy
        self.address = (
            parse(listen) if listen else (policy.coordinator.host, policy.coordinator.port)
        )
        self.names: dict[int, str] = {}  # Flower's node id → member
        self.keys: dict[str, bytes] = {}  # member → transport key
        self.scratch = tempfile.TemporaryDirectory(prefix="quietchoir-")
        self.tls_key, password = server_key(tls_key, Path(self.scratch.name))
        certificate = Path(self.scratch.name) / "certificate.pem"
        certificate.write_text(policy.coordinator.certificate, "ascii")
        app = create_app(self.configure(certificate), SuperLinkLifespan)
        self.state: LinkState = app.state.linkstate_factory.state()
        self.endpoint = FleetEndpoint(app, policy.federation)
        self.endpoint.drop = self.drop
        self.serving = uvicorn.Config(
            self.endpoint,
            log_level="error",
            access_log=False,
            lifespan="on",
            ws="none",
            ssl_certfile=str(certificate),
            ssl_keyfile=str(self.tls_key),
            ssl_keyfile_password=password,
            timeout_graceful_shutdown=1,
            timeout_keep_alive=int(IDLE_S),
            proxy_headers=False,
            server_header=False,
        )
        self.thread: threading.Thread | None = None
        self.server: Listener | None = None
        self.enroll()

    def configure(self, certificate: Path) -> SuperLinkLifespanConfig:
        """All of Flower's switches; what could start a process or reach out is off."""
        files = (certificate.read_bytes(), certificate.read_bytes(), self.tls_key.read_bytes())
        return SuperLinkLifespanConfig(
            control_address="127.0.0.1:0",
            health_server_address=None,
            host=self.policy.coordinator.host,
            port=self.policy.coordinator.port,
            insecure=False,
            certificates=files,
            superexec_auth_secret=None,
            authn_plugin=load_control_authn_plugin(),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_event_log=False,
            artifact_provider=None,
            enable_supernode_auth=True,
            fleet_api_type="grpc-rere",
            fleet_api_address=None,
            simulation=False,
            ssl_ca_certfile=str(certificate),
            ssl_certfile=str(certificate),
            ssl_keyfile=str(self.tls_key),
            database=FLWR_IN_MEMORY_DB_NAME,
            isolation="process",
            runtime_dependency_install=False,
        )

    def enroll(self) -> None:
        """Let in exactly the roster's transport keys: those that left since the last call are shut
        out, new ones let in.

        Raises:
            ConfigError: a member has none.
        """
        wanted: dict[str, tuple[bytes, PublicIdentity]] = {}
        for member in self.policy.members:
            if not member.transport:
                raise ConfigError(
                    f"member {member.name} has no transport key; enroll it again "
                    f"with its whole public card"
                )
            if self.policy.member(member.name) is not None:  # its time is not over
                identity = PublicIdentity(bytes.fromhex(member.key))
                wanted[member.name] = (
                    public_key_to_bytes(transport_point(member.transport)),
                    identity,
                )
        for node_id, name in list(self.names.items()):
            if wanted.get(name) != (self.keys[name], self.endpoint.identity(self.keys[name])):
                self.state.delete_node(NOOP_FLWR_AID, node_id)
                del self.names[node_id], self.endpoint.callers[self.keys.pop(name)]
        for name, (key, identity) in wanted.items():
            if name not in self.keys:
                node_id = self.state.create_node(
                    NOOP_FLWR_AID, "none", public_key=key, heartbeat_interval=0
                )
                self.names[node_id], self.keys[name], self.endpoint.callers[key] = (
                    name,
                    key,
                    Caller(identity),
                )

    def take(self, policy: Policy) -> None:
        """Let in the roster of a later version of the federation file, at the same address under
        the same certificate.
        """
        self.policy = policy
        self.enroll()

    def drop(self, key: bytes) -> None:
        """Forget a node's session: it has dialled in anew."""
        node_id = self.state.get_node_id_by_public_key(key)
        if node_id is not None:
            self.state.deactivate_node(node_id)

    def caller(self, name: str) -> Caller:
        """What a member did at the door so far."""
        return self.endpoint.callers[self.keys[name]]

    def ring(self, name: str) -> None:
        """There is a message for `name`: answer its request for work, if one is held."""
        self.endpoint.ring(self.keys[name])

    def start(self) -> None:
        """Listen.

        Raises:
            FederationError: the port is in use or the address is not this machine's.
        """
        host, port = self.address
        self.server = Listener(self.serving, listen(host, port), gone=self.endpoint.line_gone)
        self.endpoint.proved, self.endpoint.end = self.server.proved, self.server.end
        self.thread = threading.Thread(
            target=self.server.run, name="quietchoir-superlink", daemon=True
        )
        self.thread.start()
        deadline = time.monotonic() + START_S
        while not self.server.started:
            if not self.thread.is_alive() or time.monotonic() > deadline:
                raise FederationError(
                    f"{host}:{port}: the coordinator's door did not open; look at the log above"
                )
            time.sleep(0.02)
        logger.info("the fleet's door is open at %s:%d", host, port)

    def stop(self) -> None:
        """Close the door and forget the scratch folder."""
        self.endpoint.close()
        if self.server is not None:
            self.server.should_exit = True
        if self.thread is not None:
            self.thread.join(timeout=10)
        if self.server is not None:
            self.server.listening.close()  # if its thread never came to it
        self.scratch.cleanup()


def parse(address: str) -> tuple[str, int]:
    """HOST:PORT in two.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = Address.parse(address, listening=True)
    except ValueError as error:
        raise ConfigError(f"--listen {error}") from None
    return found.host, found.port


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
            f"{host}:{port}: cannot listen ({error.strerror}); stop what uses the port, or found "
            f"with another --address"
        ) from error
    return bound
