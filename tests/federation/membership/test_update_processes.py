"""A member is revoked and another let in while a coordinator and nodes run, as real processes
over TLS on loopback.
"""

import json
from pathlib import Path

from quietchoir.federation.membership import ownership, roster
from quietchoir.federation.membership.founding import (
    FILE,
    OWNER_KEY,
    Founding,
    create_federation,
    enroll,
)
from quietchoir.federation.membership.keys import load_or_create
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.tests.fakes.federation import DIGEST
from quietchoir.tests.federation.transport.test_flower_rounds import Command, free_port

MEMBERS = ("ann", "ben", "cat", "dan")


def make_federation(folder: Path) -> Path:
    """Four members, and no sum of fewer: once one has left, the run waits for another."""
    protection, recipe = (
        ProtectionTable(min_cohort=4, threshold=3),
        Recipe(rounds=5, stage_timeout_s=30, work_timeout_s=30),
    )
    founding = Founding(
        name="choir",
        address=f"127.0.0.1:{free_port()}",
        model=ModelTable(digest=DIGEST),
        adapter=AdapterTable(),
        protection=protection,
        recipe=recipe,
    )
    create_federation(folder, founding)
    for name in MEMBERS:
        enroll(folder / FILE, folder / OWNER_KEY, name, load_or_create(folder / name).card)
    return folder / FILE


def test_a_revoked_node_is_shut_out_and_a_new_one_let_in_without_any_restart(
    tmp_path: Path,
) -> None:
    file = make_federation(tmp_path)
    shared = ["--rehearse", "5000", "--wait", "200"]
    state = [
        "--state",
        str(tmp_path / "state"),
        "--home",
        str(tmp_path / "home"),
        "--report",
        str(tmp_path / "report.json"),
    ]
    running = {"coordinator": Command(["coordinate", str(file), *state, *shared, "--page", "0"])}

    def join(name: str) -> Command:
        running[name] = Command(
            ["join", str(file), "--home", str(tmp_path / name), "--once", *shared]
        )
        return running[name]

    try:
        running["coordinator"].until("open")
        nodes = {name: join(name) for name in MEMBERS}
        told = nodes["ann"].until("joining")
        assert told["bytes_up"] > 5000 and told["bytes_down"] > 10_000  # before the first round
        running["coordinator"].until("round", round=1)
        ownership.revoke(file, file.parent / OWNER_KEY, "dan", "left")
        enroll(file, file.parent / OWNER_KEY, "eve", load_or_create(tmp_path / "eve").card)
        assert "dan" in running["coordinator"].until("renewed")["left"]
        nodes["ann"].until("renewed", version=roster.load(file).version)
        while ("does not know this node's keys") not in str(
            nodes["dan"].until("disconnected")["reason"]
        ):
            pass  # first it sees the connection go
        # only now, for with four members the run goes on, ends, and there is nobody to refuse dan
        nodes["eve"] = join("eve")
        codes = {name: running[name].end() for name in ("coordinator", "ann", "ben", "cat", "eve")}
        assert codes == dict.fromkeys(codes, 0)
    finally:
        for command in running.values():
            command.end(kill=True)
    history = json.loads((tmp_path / "report.json").read_text("utf-8"))["history"]
    assert history[0]["parties"] == list(MEMBERS)
    assert history[-1]["kind"] == "score" and history[-1]["parties"] == ["ann", "ben", "cat", "eve"]
    assert roster.load(tmp_path / "state" / FILE) == roster.load(file)
