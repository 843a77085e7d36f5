"""One federation as real processes over TLS on loopback: a killed coordinator, a killed node, a
closed door.
"""

import json
import queue
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from quietchoir.core.errors import FederationError
from quietchoir.federation.membership import roster
from quietchoir.federation.membership.founding import (
    FILE,
    OWNER_KEY,
    Founding,
    create_federation,
    enroll,
)
from quietchoir.federation.membership.keys import load_or_create
from quietchoir.federation.spec.policy import AdapterTable, ModelTable, ProtectionTable, Recipe
from quietchoir.federation.transport.superlink import listen
from quietchoir.tests.fakes.federation import DIGEST

MEMBERS = ("ann", "ben", "cat", "dan")
SIZE = "70000"  # messages above and below the chunking limit
ROUNDS = 12  # so many that the run is still going when its node is killed
PATIENCE_S = 90.0  # of the test; nothing is measured


@dataclass
class Command:
    """A `quietchoir` process whose events can be waited for."""

    arguments: list[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quietchoir.cli", *self.arguments, "--json-lines"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        self.errors: list[str] = []
        self.readers = [
            threading.Thread(target=self.read),
            threading.Thread(target=self.read_errors),
        ]
        for reader in self.readers:
            reader.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors += self.process.stderr

    def until(self, kind: str, **values: object) -> dict[str, Any]:
        """Wait for an event with these values; the test fails if the process ends first."""
        while True:
            line = self.lines.get(timeout=PATIENCE_S)
            assert line, f"{self.arguments[0]} ended before {kind}: {''.join(self.errors)}"
            event: dict[str, Any] = json.loads(line)
            self.events.append(event)
            if event["event"] == kind and values.items() <= event.items():
                return event

    def end(self, *, kill: bool = False) -> int:
        """Wait for the end, or bring it about."""
        if kill and self.process.poll() is None:
            self.process.kill()
        code = self.process.wait(timeout=PATIENCE_S)
        for reader in self.readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


@dataclass
class Story:
    """What the processes left behind."""

    report: dict[str, Any]
    codes: dict[str, int]
    closed: dict[str, int]  # status of routes that must not exist
    stranger: int  # status for a key that is not in the roster
    trusted: bool  # a client without the pinned certificate was turned away
    occupied: tuple[int, str]  # code and words of a second coordinator on the same port
    nodes: dict[str, list[dict[str, Any]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_federation(folder: Path, port: int) -> Path:
    create_federation(
        folder,
        Founding(
            name="choir",
            address=f"127.0.0.1:{port}",
            model=ModelTable(digest=DIGEST),
            adapter=AdapterTable(),
            protection=ProtectionTable(bits=8, min_cohort=3, threshold=3),
            recipe=Recipe(rounds=ROUNDS, stage_timeout_s=15, work_timeout_s=5),
        ),
    )
    for name in MEMBERS:
        enroll(folder / FILE, folder / OWNER_KEY, name, load_or_create(folder / name).card)
    return folder / FILE


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("federation")
    port = free_port()
    file = make_federation(folder, port)
    coordinate = [
        "coordinate",
        str(file),
        "--state",
        str(folder / "state"),
        "--home",
        str(folder / "home"),
    ]
    coordinate += ["--report", str(folder / "report.json"), "--rehearse", SIZE, "--wait", "60"]
    running: list[Command] = []

    def start(*arguments: str) -> Command:
        running.append(Command(list(arguments)))
        return running[-1]

    try:
        first = start(*coordinate)
        nodes = {
            name: start(
                "join",
                str(file),
                "--home",
                str(folder / name),
                "--rehearse",
                SIZE,
                "--once",
                "--wait",
                "60",
            )
            for name in MEMBERS
        }
        first.until("open")
        closed, stranger, trusted = knock(file, port)
        first.until("round", round=1)
        first.end(kill=True)
        second = start(*coordinate)
        second.until("open")
        second.until("round", round=2)
        nodes["dan"].end(kill=True)
        rival = start(*coordinate[:3], str(folder / "other"), *coordinate[4:])
        occupied = rival.end(), "".join(rival.errors)
        codes = {"coordinator": second.end()}
        codes |= {name: nodes[name].end() for name in MEMBERS if name != "dan"}
        report = json.loads((folder / "report.json").read_text("utf-8"))
        yield Story(
            report,
            codes,
            closed,
            stranger,
            trusted,
            occupied,
            {name: node.events for name, node in nodes.items()},
        )
    finally:
        for command in running:
            command.end(kill=True)


def knock(file: Path, port: int) -> tuple[dict[str, int], int, bool]:
    """Try the door as a stranger."""
    context = ssl.create_default_context(cadata=roster.load(file).coordinator.certificate)
    paths = [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/push-messages",
        "/v1/fleet/get-fab",
    ]
    paths += [
        "/v1/fleet/register-node",
        "/v1/fleet/../control/start-run",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ]
    with httpx.Client(verify=context, base_url=f"https://127.0.0.1:{port}") as client:
        closed = {path: client.post(path).status_code for path in paths}
        stranger = client.post(
            "/v1/fleet/pull-messages", headers={"content-type": "application/protobuf"}
        ).status_code
    try:
        httpx.get(f"https://127.0.0.1:{port}/")
        trusted = True
    except httpx.ConnectError:
        trusted = False
    return closed, stranger, trusted


def test_the_run_ends_with_all_its_rounds_though_the_coordinator_was_killed(story: Story) -> None:
    assert story.codes == dict.fromkeys(story.codes, 0)
    train = [entry for entry in story.report["history"] if entry["kind"] == "train"]
    assert [entry["parties"] for entry in train[:2]] == [list(MEMBERS)] * 2
    assert story.report["rounds"] == len(train) == ROUNDS
    assert story.report["accuracy"]["after"] > story.report["accuracy"]["before"]


def test_a_killed_node_is_left_out_and_the_survivors_sum_is_whole(story: Story) -> None:
    last = story.report["history"][-1]
    assert last["kind"] == "score"
    assert "dan" not in last["parties"] and len(last["parties"]) == 3
    assert last["scored"] == 3
    assert story.report["delivered"] == ["ann", "ben", "cat"]


def test_the_network_sees_the_fleets_routes_and_nothing_else(story: Story) -> None:
    assert story.closed == dict.fromkeys(story.closed, 404)
    assert story.stranger in (400, 401, 415, 422)
    assert not story.trusted


def test_updates_cross_the_wire_masked_and_packed(story: Story) -> None:
    assert story.report["protection"] == "masked"
    assert story.report["held"]["kind"] == "masked"
    assert story.report["held"]["chi_square_per_degree"] < 1.6
    sent = story.report["history"][0]["bytes_up"]["ann"]
    # ten bits a value for four members of eight
    assert int(SIZE) * 10 / 8 < sent < int(SIZE) * 10 / 8 + 8000


def test_a_second_coordinator_on_the_port_is_told_in_a_sentence(story: Story) -> None:
    code, words = story.occupied
    assert code == 1
    assert "cannot listen" in words and "Traceback" not in words


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FederationError, match="cannot listen"):
            listen("127.0.0.1", int(taken.getsockname()[1]))
