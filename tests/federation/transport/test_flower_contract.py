"""flwr's internals, as this project leans on them: when one moves, this says which.

Everything here is read by federation/transport/; a failure means that folder must be looked at
before flwr is upgraded.
"""

import asyncio
import dataclasses
import importlib.metadata
import inspect
from base64 import b64decode
from pathlib import Path
from typing import Any

import flwr
import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.primitives.asymmetric import verify_signature
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.engines import apps
from quietchoir.federation.membership.founding import TLS_KEY, Founding, create_federation
from quietchoir.federation.membership.keys import NodeKeys
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.federation.transport import (
    connection,
    fleet_endpoint,
    messenger,
    proof,
    records,
    superlink,
)
from quietchoir.federation.transport.connection import ClockedAuth
from quietchoir.tests.fakes.federation import DIGEST

CONFIG_FIELDS = {
    "control_address",
    "health_server_address",
    "host",
    "port",
    "insecure",
    "certificates",
    "superexec_auth_secret",
    "authn_plugin",
    "event_log_plugin",
    "fleet_event_log_plugin",
    "enable_event_log",
    "artifact_provider",
    "enable_supernode_auth",
    "fleet_api_type",
    "fleet_api_address",
    "simulation",
    "ssl_ca_certfile",
    "ssl_certfile",
    "ssl_keyfile",
    "database",
    "isolation",
    "runtime_dependency_install",
}


def test_flwr_is_the_version_this_was_written_against() -> None:
    assert importlib.metadata.version("flwr").split(".")[:2] == ["1", "41"]
    assert Path(flwr.__file__).exists()


def test_the_superlink_has_exactly_the_switches_that_are_set() -> None:
    """A new switch may open a door: read what it does before adding it here."""
    assert {field.name for field in dataclasses.fields(SuperLinkLifespanConfig)} == CONFIG_FIELDS


def test_the_link_state_has_the_methods_that_are_called() -> None:
    names = [
        "create_node",
        "create_run",
        "get_run_info",
        "get_nodes",
        "claim_task",
        "activate_task",
        "start_session",
    ]
    names += [
        "store_message_ins",
        "store_message_and_object_tree",
        "store_object",
        "get_message_res",
        "delete_messages",
    ]
    for name in [*names, "delete_sessions_in_run", "acknowledge_task_heartbeat", "finish_task"]:
        assert callable(getattr(LinkState, name)), name
    assert list(inspect.signature(LinkState.create_run).parameters)[1:9] == [
        "fab_id",
        "fab_version",
        "fab_hash",
        "override_config",
        "federation_id",
        "federation_config",
        "flwr_aid",
        "primary_task_type",
    ]
    for name in ("preregister", "get_object_tree", "get", "delete_objects_in_run"):
        assert callable(getattr(ObjectStore, name)), name


def test_the_client_has_the_seams_that_are_used() -> None:
    calls = {
        "ActivateNode",
        "DeactivateNode",
        "SendNodeHeartbeat",
        "PullMessages",
        "PushMessages",
        "PullObject",
        "PushObject",
    }
    assert calls <= set(dir(FleetHttpClient))
    assert list(inspect.signature(NodeAuthHttpInterceptor.intercept).parameters) == [
        "self",
        "context",
        "call_next",
    ]
    assert {"run_id", "node_id", "task_id"} <= set(dir(type(TaskIdentity)))
    with FleetHttpClient.from_server_address("127.0.0.1:1", True, None, []) as client:
        # all that ours must set
        assert set(vars(client)) == {"_base_url", "_interceptors", "_retry_invoker", "_client"}


async def test_uvicorn_has_the_seams_that_are_used() -> None:
    assert list(inspect.signature(HttpToolsProtocol.__init__).parameters)[1:4] == [
        "config",
        "server_state",
        "app_state",
    ]
    nobody: Any = None
    config = uvicorn.Config(fleet_endpoint.FleetEndpoint(nobody, b""), ws="none")
    made = vars(HttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop()))
    assert {"cycle", "client", "transport"} <= set(made)
    assert {"response_complete"} <= set(vars(RequestResponseCycle(*[nobody] * 11)))
    assert {"startup", "shutdown", "run"} <= set(dir(uvicorn.Server))


def test_our_proof_of_identity_is_flowers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same headers over the same bytes, and ours; ECDSA signs differently each time, so the
    signature is verified.
    """
    key, sent = ec.generate_private_key(ec.SECP384R1()), list[httpx.Request]()
    keys = NodeKeys(Identity.generate(), key)

    def call(context: ProtobufRequestContext) -> httpx.Response:
        sent.append(context.request)
        return httpx.Response(200)

    for auth in (
        ClockedAuth(keys, bytes(32), "ab" * 16),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ):
        request = httpx.Request("POST", "https://127.0.0.1/")
        auth.intercept(
            ProtobufRequestContext(rpc_method="", message=PullMessagesRequest(), request=request),
            call,
        )
    ours, theirs = sent
    assert set(ours.headers) == set(theirs.headers) | {proof.PROOF_HEADER, proof.SESSION_HEADER}
    assert (
        ours.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] == theirs.headers[FLEET_HTTP_PUBLIC_KEY_HEADER]
    )
    signature = b64decode(ours.headers[FLEET_HTTP_SIGNATURE_HEADER])
    assert verify_signature(
        key.public_key(), ours.headers[TIMESTAMP_HEADER].encode("ascii"), signature
    )


def test_the_superlink_still_serves_the_routes_and_the_door_hides_the_rest(tmp_path: Path) -> None:
    founding = Founding(
        name="choir",
        address="127.0.0.1:8790",
        model=ModelTable(digest=DIGEST),
        adapter=AdapterTable(),
        protection=ProtectionTable(),
        recipe=Recipe(),
    )
    policy = create_federation(tmp_path, founding)
    link = superlink.SuperLink(policy, tmp_path / TLS_KEY)
    paths = set(link.endpoint.app.openapi()["paths"])  # type: ignore[attr-defined]
    assert paths >= fleet_endpoint.ROUTES
    hidden = paths - fleet_endpoint.ROUTES
    assert {path for path in hidden if path.startswith(("/v1/control", "/v1/runtime"))}
    assert "/v1/fleet/get-fab" in hidden and "/v1/fleet/register-node" in hidden
    link.stop()


@pytest.mark.parametrize("size", [0, 1, records.INLINE_BYTES, records.INLINE_BYTES + 1, 6 << 20])
def test_a_letter_of_any_size_comes_out_as_it_went_in(size: int) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    letter = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = Message(records.to_record(letter), dst_node_id=2, message_type=messenger.MESSAGE_TYPE)
    assert records.payload_of(message) == letter


@pytest.mark.parametrize(
    "content", [{}, {"letter": ConfigRecord({"bytes": 3})}, {"letter": ArrayRecord()}]
)
def test_a_message_without_a_letter_is_told_apart(
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord],
) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    assert (
        records.payload_of(Message(RecordDict(content), dst_node_id=2, message_type="train"))
        is None
    )


def test_the_objects_for_flowers_own_engines_are_there() -> None:
    assert type(apps.server_app).__name__ == "ServerApp"
    assert type(apps.client_app).__name__ == "ClientApp"
    assert connection.HEARTBEAT_S * 2 < connection.HEARTBEAT_PROMISE_S
