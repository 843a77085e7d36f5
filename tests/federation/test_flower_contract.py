"""flwr's internals, as this project leans on them: when one moves, this says which.

Everything here is read by federation/flower/; a failure means that folder must be looked at before flwr is upgraded.
"""

import dataclasses
import importlib.metadata
import inspect
from pathlib import Path

import flwr
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.grid import HttpGrid
from flwr.superlink.servicer.runtime import runtime_handlers
from flwr.supernode.fleet_http_client import FleetHttpClient

from quietchoir.federation.flower import apps, letters, link, node, superlink
from quietchoir.federation.membership.founding import TLS_KEY, Founding, found
from quietchoir.federation.membership.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.tests.fakes_federation import DIGEST

CONFIG_FIELDS = {
    "control_address", "health_server_address", "host", "port", "insecure", "certificates", "superexec_auth_secret",
    "authn_plugin", "event_log_plugin", "fleet_event_log_plugin", "enable_event_log", "artifact_provider",
    "enable_supernode_auth", "fleet_api_type", "fleet_api_address", "simulation", "ssl_ca_certfile", "ssl_certfile",
    "ssl_keyfile", "database", "isolation", "runtime_dependency_install",
}  # fmt: skip


def test_flwr_is_the_version_this_was_written_against() -> None:
    assert importlib.metadata.version("flwr").split(".")[:2] == ["1", "41"]
    assert Path(flwr.__file__).exists()


def test_the_superlink_has_exactly_the_switches_that_are_set() -> None:
    """A new switch may open a door: read what it does before adding it here."""
    assert {field.name for field in dataclasses.fields(SuperLinkLifespanConfig)} == CONFIG_FIELDS


@pytest.mark.parametrize(
    "name", ["get_nodes", "push_messages", "pull_messages", "push_object", "pull_object", "confirm_message_received"]
)
def test_the_runtime_handlers_can_be_called_in_this_process(name: str) -> None:
    assert list(inspect.signature(getattr(runtime_handlers, name)).parameters) == ["request", "state", "task"]


def test_the_link_state_has_the_methods_that_are_called() -> None:
    names = ["create_node", "create_run", "get_run_info", "get_nodes", "get_node_info", "claim_task", "activate_task"]
    for name in [*names, "acknowledge_task_heartbeat", "finish_task"]:
        assert callable(getattr(LinkState, name)), name
    assert list(inspect.signature(LinkState.create_run).parameters)[1:9] == [
        "fab_id", "fab_version", "fab_hash", "override_config", "federation_id", "federation_config", "flwr_aid",
        "primary_task_type",
    ]  # fmt: skip


def test_the_grid_and_the_client_have_the_seams_that_are_used() -> None:
    assert isinstance(inspect.getattr_static(HttpGrid, "_runtime_client"), property)
    assert {"push_messages", "pull_messages", "set_run"} <= set(dir(HttpGrid))
    calls = ["ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages", "PullObject", "PushObject"]
    assert {*calls, "ConfirmMessageReceived"} <= set(dir(FleetHttpClient))
    pull = inspect.signature(pull_and_inflate_object_from_tree).parameters
    assert {"return_type", "initial_backoff", "backoff_cap", "max_time"} <= set(pull)
    assert "object_ids_to_push" in inspect.signature(push_objects).parameters
    assert {"run_id", "node_id", "task_id"} <= set(dir(type(TaskIdentity)))


def test_the_superlink_still_serves_the_routes_and_the_door_hides_the_rest(tmp_path: Path) -> None:
    founding = Founding(
        name="choir", address="127.0.0.1:8790", model=ModelTable(digest=DIGEST), adapter=AdapterTable(),
        protection=ProtectionTable(), recipe=Recipe(),
    )  # fmt: skip
    policy = found(tmp_path, founding)
    door = superlink.SuperLink(policy, tmp_path / TLS_KEY)
    paths = set(door.door.app.openapi()["paths"])  # type: ignore[attr-defined]
    assert paths >= superlink.ROUTES
    hidden = paths - superlink.ROUTES
    assert {path for path in hidden if path.startswith(("/v1/control", "/v1/runtime"))}
    assert "/v1/fleet/get-fab" in hidden and "/v1/fleet/register-node" in hidden
    door.stop()


@pytest.mark.parametrize("size", [0, 1, letters.SHORT_BYTES, letters.SHORT_BYTES + 1, 6 << 20])
def test_a_letter_of_any_size_comes_out_as_it_went_in(size: int) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    letter = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = Message(letters.seal_letter(letter), dst_node_id=2, message_type=link.MESSAGE_TYPE)
    assert letters.open_letter(message) == letter


@pytest.mark.parametrize("content", [{}, {"letter": ConfigRecord({"bytes": 3})}, {"letter": ArrayRecord()}])
def test_a_message_without_a_letter_is_told_apart(content: dict[str, ArrayRecord | MetricRecord | ConfigRecord]) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    assert letters.open_letter(Message(RecordDict(content), dst_node_id=2, message_type="train")) is None


def test_the_objects_for_flowers_own_engines_are_there() -> None:
    assert type(apps.server_app).__name__ == "ServerApp"
    assert type(apps.client_app).__name__ == "ClientApp"
    assert node.HEARTBEAT_S * 2 < node.HEARTBEAT_PROMISE_S
