"""The apps for Flower's own engines, message by message: our protection holds where no process
lives longer than one answer.
"""

import dataclasses
import stat
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from packaging.requirements import Requirement

from quietchoir.core.errors import ConfigError, MessageError
from quietchoir.crypto.identity.keys import Identity, bind
from quietchoir.federation.engines import apps, grid, stateless_client
from quietchoir.federation.engines.apps import Settings, conduct
from quietchoir.federation.engines.stateless_client import ASIDE, AttemptSnapshot
from quietchoir.federation.membership import roster
from quietchoir.federation.spec.compatibility import CAPABILITIES
from quietchoir.federation.store import checkpoint
from quietchoir.federation.store.member import FILE, open_member
from quietchoir.federation.transport.records import payload_of, to_record
from quietchoir.federation.wire import messages
from quietchoir.simulations import scale
from quietchoir.simulations.cluster import Cluster, ClusterPlan
from quietchoir.simulations.engines import APP
from quietchoir.simulations.processes import ProcessGroup
from quietchoir.tests.fakes.grid import LocalGrid
from quietchoir.tests.fakes.store import names, query

SIZE = 300


@pytest.fixture(autouse=True)
def identity_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages want to know whose process this is."""
    for key in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, key, 1)


def cluster_of(
    folder: Path, mode: str = "masked", *, nodes: int = 3, rounds: int = 1, **recipe: Any
) -> Cluster:
    plan = ClusterPlan(
        nodes=nodes,
        mode=mode,
        size=SIZE,
        bits=16,
        rounds=rounds,
        recipe={"evaluate_every": 0, **recipe},
    )
    return Cluster(ProcessGroup(folder / "logs"), folder / "choir", plan)


def settings_of(cluster: Cluster) -> dict[str, Any]:
    return {
        "federation": str(cluster.file),
        "state": str(cluster.folder.parent / "state"),
        "rehearse": SIZE,
    }


def grid_of(cluster: Cluster, **more: Any) -> LocalGrid:
    nodes = [
        {
            "home": str(cluster.folder / name),
            "federation": str(cluster.file),
            "config": str(cluster.settings),
        }
        for name in cluster.plan.names
    ]
    return LocalGrid(apps.client_app, nodes, {**settings_of(cluster), **more})


def stage_of(message: Message) -> str:
    letter = payload_of(message)
    if letter is None or message.metadata.message_type != grid.TASK:
        return ""
    fields, _ = messages.split(letter)
    return str(fields["stage"])


COPY = "SELECT * FROM records WHERE name = ?"
PUT_BACK = "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)"


def left_aside(cluster: Cluster) -> list[Path]:
    return [path for path in cluster.folder.rglob(FILE) if ASIDE in names(path.parent)]


def run(cluster: Cluster, played: LocalGrid) -> checkpoint.RunState:
    conduct(played, Settings.read(played.run_config))
    state = checkpoint.read(Path(str(played.run_config["state"])))
    assert state is not None
    return state


def as_in_process(cluster: Cluster, state: checkpoint.RunState) -> bool:
    policy = roster.load(cluster.file)
    return bool(
        np.abs(state.server.flat - scale.in_process(cluster, policy)).max()
        <= scale.rounding(policy, cluster.plan.rounds)
    )


def test_rounds_over_a_grid_give_the_adapter_that_one_process_gives(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "plain", rounds=2)
    state = run(cluster, grid_of(cluster))
    assert as_in_process(cluster, state)
    assert state.finished
    assert [entry["kind"] for entry in state.history] == ["train", "train", "score"]
    assert all(entry["parties"] == list(cluster.plan.names) for entry in state.history)
    assert left_aside(cluster) == []  # nothing of an attempt outlives it


def test_simulated_nodes_are_the_members_of_their_numbers_and_need_no_memory_of_the_adapter(
    tmp_path: Path,
) -> None:
    cluster = cluster_of(tmp_path, rounds=2, download="change")
    nodes = [{"partition-id": number, "num-partitions": 3} for number in range(3)]
    played = LocalGrid(
        apps.client_app, nodes, {**settings_of(cluster), "homes": str(cluster.folder)}
    )
    assert as_in_process(cluster, run(cluster, played))


def test_every_letter_twice_changes_nothing(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path)
    played = grid_of(cluster)
    played.meddle = lambda grid, node, message: (
        [message, message] if stage_of(message) else [message]
    )
    state = run(cluster, played)
    assert as_in_process(cluster, state)
    assert [entry["attempt"] for entry in state.history] == [1, 1]  # none was tried again


def test_a_supernode_that_loses_its_memory_is_missed_in_that_attempt_alone(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, nodes=4)
    played = grid_of(cluster)

    def restart(grid: LocalGrid, node: int, message: Message) -> list[Message]:
        if node == 2 and stage_of(message) == "mask" and len(grid.sent) < 30:  # in the first round
            grid.kept[2] = grid.fresh(2)
        return [message]

    played.meddle = restart
    state = run(cluster, played)
    assert [len(entry["parties"]) for entry in state.history] == [3, 4]
    assert left_aside(cluster) == []


def test_an_older_copy_of_what_was_put_aside_opens_nothing(tmp_path: Path) -> None:
    """With it, a member could be made to sign two sets of survivors."""
    cluster = cluster_of(tmp_path)
    played, copies, refused = grid_of(cluster), dict[str, list[Any]](), list[str]()
    aside = roster.folder(cluster.folder / "node-01", roster.load(cluster.file)) / FILE

    def restore(grid: LocalGrid, node: int, message: Message) -> list[Message]:
        stage = stage_of(message)
        if node == 2 and stage == "consistency":
            copies["before"] = query(aside, COPY, ASIDE)
        elif node == 2 and stage == "unmask" and not refused:
            now = query(aside, COPY, ASIDE)
            query(aside, PUT_BACK, *copies["before"][0])
            again = next(
                one
                for one in grid.sent
                if one.metadata.dst_node_id == 2 and stage_of(one) == "consistency"
            )
            refused.append(str(grid.call(2, again).error.reason))
            query(aside, PUT_BACK, *now[0])
        return [message]

    played.meddle = restore
    state = run(cluster, played)
    assert refused == ["MessageError"]
    assert len(state.history[0]["parties"]) == 3


def test_what_is_put_aside_is_readable_by_nobody_and_taken_once(tmp_path: Path) -> None:
    database = open_member(tmp_path)
    snapshot = AttemptSnapshot(database, b"federation", "ann")
    key = snapshot.put(b"secret words")
    files = [path for path in tmp_path.iterdir() if path.name.startswith("member.sqlite")]
    assert len(files) == 3 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert all(b"secret" not in path.read_bytes() for path in files)
    assert AttemptSnapshot(database, b"federation", "ann").take(key) == b"secret words"
    # a crash after the first: the attempt is lost
    assert AttemptSnapshot(database, b"federation", "ann").take(key) is None
    snapshot.give_back()
    assert AttemptSnapshot(database, b"federation", "ben").take(key) is None
    snapshot.give_back()
    newer = snapshot.put(b"later words")
    assert key != newer
    assert AttemptSnapshot(database, b"federation", "ann").take(key) is None
    snapshot.wipe()
    assert database.get(ASIDE) is None


def test_a_run_goes_on_from_the_last_whole_round(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "plain", rounds=2)
    played, seen = grid_of(cluster), list[str]()

    def stop(grid: LocalGrid, node: int, message: Message) -> list[Message]:
        seen.append(stage_of(message))
        if seen.count("train") > 3:
            raise KeyboardInterrupt
        return [message]

    played.meddle = stop
    with pytest.raises(KeyboardInterrupt):
        run(cluster, played)
    before = checkpoint.read(tmp_path / "state")
    assert before is not None and before.round == 1
    state = run(cluster, grid_of(cluster))
    assert (state.run, state.round, state.history[0]) == (before.run, 2, before.history[0])
    assert as_in_process(cluster, state)


def test_a_mode_that_needs_memory_between_letters_is_refused_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_of(tmp_path)
    forgetful = dataclasses.replace(CAPABILITIES["masked"], snapshot=False)
    monkeypatch.setitem(CAPABILITIES, "masked", forgetful)
    played = grid_of(cluster)
    with pytest.raises(ConfigError, match="coordinate"):
        conduct(played, Settings.read(played.run_config))
    assert played.sent == []
    assert not (tmp_path / "state").exists()
    with pytest.raises(ConfigError, match="coordinate"):
        stateless_client.prove(
            apps.own_of(Context(1, 1, played.nodes[1], RecordDict(), played.run_config)),
            b"n" * 32,
            1,
        )


def test_a_member_below_its_owners_floor_never_says_who_it_is(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "plain")
    cluster.settings.write_text('[consent]\nmodes = ["masked"]\n', "utf-8")
    played = grid_of(cluster)
    link = grid.GridLink(played, roster.load(cluster.file))
    assert link.present() == frozenset()
    assert {node for node in played.nodes if node in link.strangers} == set(played.nodes)
    assert all(message.metadata.message_type == grid.HELLO for message in played.sent)


def hello_record(cluster: Cluster, name: str, signer: Identity, nonce: bytes, node: int) -> Message:
    policy = roster.load(cluster.file)
    asked = Message(RecordDict(), dst_node_id=node, message_type=grid.HELLO)
    asked.metadata.__dict__["_message_id"] = "1"
    proof = signer.sign(stateless_client.hello_context(policy), bind(name, nonce, node))
    return Message(
        RecordDict({grid.HELLO_RECORD: ConfigRecord({grid.NAME: name, grid.PROOF: proof})}),
        reply_to=asked,
    )


def test_only_the_members_key_proves_its_name_and_for_one_node_and_question_alone(
    tmp_path: Path,
) -> None:
    cluster = cluster_of(tmp_path)
    policy, nonce = roster.load(cluster.file), b"n" * 32
    own = Identity.load(cluster.folder / "node-00" / "identity.key")
    other = Identity.load(cluster.folder / "node-01" / "identity.key")
    assert (
        grid.proved(hello_record(cluster, "node-00", own, nonce, 7), policy, nonce, 7) == "node-00"
    )
    for name, signer, question, node in [
        ("node-00", other, nonce, 7),
        ("node-00", own, b"m" * 32, 7),
        ("node-00", own, nonce, 8),
        ("nobody", own, nonce, 7),
    ]:
        assert (
            grid.proved(hello_record(cluster, name, signer, question, node), policy, nonce, 7) == ""
        )


def test_a_stranger_gets_no_letter(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path)
    played = grid_of(cluster)
    played.nodes[5] = {}
    played.kept[5] = played.fresh(5)
    link = grid.GridLink(played, roster.load(cluster.file))
    assert link.present() == frozenset(cluster.plan.names)
    messages = dict.fromkeys([*cluster.plan.names, "somebody"], b"a message that is refused")
    assert list(link.ask(messages, 5.0)) == []
    assert {
        message.metadata.message_type
        for message in played.sent
        if message.metadata.dst_node_id == 5
    } == {grid.HELLO}


def test_a_node_with_a_home_takes_no_path_from_the_run(tmp_path: Path) -> None:
    node: dict[str, Any] = {"home": str(tmp_path / "own"), "federation": str(tmp_path / "file")}
    told: dict[str, Any] = {
        "federation": "/theirs",
        "homes": "/theirs",
        "data": "/theirs",
        "state": "/theirs",
    }
    own = apps.own_of(Context(1, 1, node, RecordDict(), told))
    assert (own.home, own.file, own.data) == (tmp_path / "own", tmp_path / "file", None)
    with pytest.raises(ConfigError, match="node-config"):
        apps.own_of(Context(1, 1, {}, RecordDict(), {}))


def test_a_refusal_tells_its_kind_and_not_its_words(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path)
    played = grid_of(cluster)
    letter = Message(to_record(b"no message at all"), dst_node_id=1, message_type=grid.TASK)
    letter.metadata.__dict__["_message_id"] = "1"
    reply = played.call(1, letter)
    assert (reply.has_error(), reply.error.reason) == (True, MessageError.__name__)
    plain = Message(RecordDict(), dst_node_id=1, message_type="train")
    plain.metadata.__dict__["_message_id"] = "2"
    assert played.call(1, plain).has_error()  # a member never trains without its federation


def test_a_run_without_its_federation_or_of_another_type_is_refused(tmp_path: Path) -> None:
    played = grid_of(cluster_of(tmp_path))
    for name in ("federation", "state"):
        with pytest.raises(ConfigError, match=f"{name} is empty"):
            conduct(played, Settings.read({**played.run_config, name: ""}))
    with pytest.raises(ConfigError, match="rounds"):
        Settings.read({"rounds": "two"})


def test_a_stock_supernode_keeps_contexts_in_memory_alone() -> None:
    """What is put aside is as secret as its key, and the key lies in a context."""
    kept = NodeStateFactory(ObjectStoreFactory()).state()
    assert type(kept) is InMemoryNodeState


def test_ray_is_the_version_that_flwr_simulates_with() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]
    ours = {Requirement(line).specifier for line in project["optional-dependencies"]["scale"]}
    asked = (Requirement(line) for line in metadata.requires("flwr") or [])
    assert ours == {one.specifier for one in asked if one.name == "ray"}


def test_the_app_that_is_sent_names_every_setting_and_brings_no_program() -> None:
    told = tomllib.loads((APP / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    assert [path.name for path in APP.iterdir()] == ["pyproject.toml"]
    assert told["config"] == {
        one.name.replace("_", "-"): one.default for one in dataclasses.fields(Settings)
    }
    assert all(
        name.startswith("quietchoir.federation.engines.apps:")
        for name in told["components"].values()
    )
