"""Sealed federations as real processes over TLS on loopback: one whose members have the key, one
whose members share it out.

In the second one the coordinator's keys are locked with a passphrase.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quietchoir.federation.membership import roster
from quietchoir.federation.membership.founding import (
    FILE,
    OWNER_KEY,
    Founding,
    create_federation,
    enroll,
)
from quietchoir.federation.membership.keys import load_or_create
from quietchoir.federation.membership.locking import protect
from quietchoir.federation.membership.unlock import VARIABLE, Lock
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.federation.store import member
from quietchoir.federation.store.client_store import GROUP_KEY, SHARE, ClientStore
from quietchoir.tests.fakes.federation import DIGEST
from quietchoir.tests.fakes.store import names
from quietchoir.tests.federation.transport.test_flower_rounds import Command, free_port

MEMBERS = ("ann", "ben", "cat")
SIZE = 20_000


@dataclass
class Story:
    """What the processes left behind."""

    folder: Path
    report: dict[str, Any]
    codes: list[int]


@pytest.fixture(scope="module", params=["shared", "threshold"])
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("sealed")
    founding = Founding(
        name="choir",
        address=f"127.0.0.1:{free_port()}",
        model=ModelTable(digest=DIGEST),
        adapter=AdapterTable(),
        protection=ProtectionTable(
            mode="sealed", key=request.param, bits=8, min_cohort=3, threshold=2
        ),
        recipe=Recipe(rounds=1, stage_timeout_s=60, work_timeout_s=60, evaluate_every=0),
    )
    create_federation(folder, founding)
    for name in MEMBERS:
        enroll(folder / FILE, folder / OWNER_KEY, name, load_or_create(folder / name).card)
    patch = pytest.MonkeyPatch()
    if request.param == "threshold":
        protect(folder, Lock(passphrase="many voices"))
        patch.setenv(VARIABLE, "many voices")
    file, running = str(folder / FILE), list[Command]()

    def start(*arguments: str) -> Command:
        running.append(Command([*arguments, "--rehearse", str(SIZE), "--wait", "60"]))
        return running[-1]

    try:
        state = [
            "--state",
            str(folder / "state"),
            "--home",
            str(folder / "home"),
            "--report",
            str(folder / "report.json"),
        ]
        coordinator = start("coordinate", file, *state)
        nodes = [start("join", file, "--home", str(folder / name), "--once") for name in MEMBERS]
        for event in ("open", "ready", "round", "score", "delivered"):
            coordinator.until(event)
        codes = [coordinator.end(), *(node.end() for node in nodes)]
        yield Story(folder, json.loads((folder / "report.json").read_text("utf-8")), codes)
    finally:
        for command in running:
            command.end(kill=True)
        patch.undo()


def test_a_sealed_run_ends_with_all_its_rounds_over_the_network(story: Story) -> None:
    assert story.codes == [0, 0, 0, 0]
    assert (story.report["protection"], story.report["rounds"]) == ("sealed", 1)
    assert story.report["delivered"] == list(MEMBERS)
    assert story.report["accuracy"]["after"] > story.report["accuracy"]["before"]
    assert (
        story.report["held"]["kind"] == "sealed"
        and story.report["held"]["chi_square_per_degree"] < 1.6
    )


def test_the_members_hold_their_key_or_shares_of_it_and_one_adapter_and_the_coordinator_neither(
    story: Story,
) -> None:
    policy = roster.load(story.folder / FILE)
    folders = [next(story.folder.glob(f"{name}/**/{member.FILE}")).parent for name in MEMBERS]
    kept = SHARE if policy.protection.key == "threshold" else GROUP_KEY
    assert all(kept in names(folder) for folder in folders)
    (run,) = (
        name.removeprefix("model of ") for name in names(folders[0]) if name.startswith("model of ")
    )
    vaults = [ClientStore(member.open_member(folder), SIZE) for folder in folders]
    seeds = {client_store.seed(policy.digest) for client_store in vaults}
    assert len(seeds) == 1
    assert (
        len({client_store.progress(run).encode() for client_store in vaults}) == 1
        and vaults[0].progress(run).steps == 1
    )
    seed, adapter = seeds.pop(), vaults[0].progress(run).server.flat
    assert seed is not None
    for path in (
        path
        for part in ("state", "home")
        for path in (story.folder / part).glob("**/*")
        if path.is_file()
    ):
        content = path.read_bytes()
        assert path.name != member.FILE
        assert (
            seed not in content
            and seed.hex().encode() not in content
            and adapter[:4].tobytes() not in content
        )
