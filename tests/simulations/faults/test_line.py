"""A long, lossy line between network namespaces: what it does to packets, and what is left of it
after a kill.
"""

import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quietchoir.simulations.faults import namespaces
from quietchoir.simulations.faults.coordinators import alive
from quietchoir.simulations.faults.line import LineProcess, LossyLine, address
from quietchoir.simulations.processes import ProcessGroup

PATIENCE_S = 60.0
OUTSIDE = "198.51.100.1"  # TEST-NET-2
TRY = (
    "import socket\n"
    "try: socket.create_connection(('{host}', {port}), timeout=20)\n"
    "except OSError as error: print(error.strerror or 'late', flush=True)\n"
)
# Holds a line and somebody at its far end, and is killed. `sleep` hears of no end of a pipe, and
# asks for nobody's death.
HOLDER = """
import time
from pathlib import Path
from quietchoir.simulations.faults.line import LineProcess
from quietchoir.simulations.processes import ProcessGroup
stage = ProcessGroup(Path({folder!r}))
line = LineProcess(stage, 2, delay_s=0.0, loss=0.0)
far = stage.start_other("far", line.at(1, ["sh", "-c", "echo here; exec sleep 1000"]))
far.next_line(60)
print(line.child.process.pid, far.process.pid, flush=True)
time.sleep(1000)
"""


def packet(to: int, number: int = 0) -> bytes:
    """The part of an IPv4 packet that the line reads, and a number."""
    return (
        b"\x45"
        + bytes(11)
        + socket.inet_aton(address(0))
        + socket.inet_aton(address(to))
        + number.to_bytes(2, "big")
    )


@pytest.fixture
def line() -> Iterator[tuple[LossyLine, list[socket.socket]]]:
    """A line with two ends, and where what it hands over arrives."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    yield (
        LossyLine([one.fileno() for one, _ in pairs], delay_s=0.1, loss=0.5, seed=1),
        [other for _, other in pairs],
    )
    for pair in pairs:
        for one in pair:
            one.close()


def test_packets_arrive_late_in_order_at_the_end_they_are_for(
    line: tuple[LossyLine, list[socket.socket]],
) -> None:
    road, (near, far) = line
    road.loss = 0.0
    road.take(packet(1, 7), now=0.0)
    road.take(packet(1, 8), now=0.05)
    road.hand_over(now=0.09)
    assert not select.select([near, far], [], [], 0)[0]
    assert road.wait_s(now=0.09) == pytest.approx(0.01)
    road.hand_over(now=0.2)
    assert [far.recv(100)[-1], far.recv(100)[-1]] == [7, 8]
    assert not select.select([near, far], [], [], 0)[0] and (road.carried, road.lost) == (2, 0)


def test_which_packets_are_lost_follows_from_the_seed(
    line: tuple[LossyLine, list[socket.socket]],
) -> None:
    road, (_, far) = line
    for number in range(20):
        road.take(packet(1, number), now=0.0)
    road.hand_over(now=1.0)
    dice = random.Random(1)
    kept = [number for number in range(20) if dice.random() >= 0.5]
    assert [far.recv(100)[-1] for _ in kept] == kept and road.lost == 20 - len(kept)


@pytest.mark.parametrize(
    "stray",
    [b"\x60" + bytes(40), packet(1)[:16] + socket.inet_aton(OUTSIDE), packet(5)],
    ids=["IPv6", "outside", "no end"],
)
def test_a_packet_for_nobody_on_the_line_goes_nowhere(
    stray: bytes, line: tuple[LossyLine, list[socket.socket]]
) -> None:
    road, _ = line
    road.take(stray, now=0.0)
    assert (road.carried, road.lost, road.under_way) == (0, 0, [])


def test_where_no_namespace_may_be_made_it_says_why_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[object, ...]] = []

    def refuse(*what: object) -> int:
        asked.append(what)
        return -1

    monkeypatch.setattr(namespaces, "call", refuse)
    with pytest.raises(
        namespaces.NoNamespacesError,
        match="run this as root, or allow unprivileged user namespaces",
    ):
        namespaces.leave_network()
    assert asked == [
        ("unshare", namespaces.NEW_NET),
        ("unshare", namespaces.NEW_NET | namespaces.NEW_USER),
    ]


def test_from_an_end_there_is_no_way_out(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as stage:
        road = laid(stage)
        for host in (OUTSIDE, address(0)):
            child = stage.start_other(
                host, road.at(1, [sys.executable, "-c", TRY.format(host=host, port=9)])
            )
            # the neighbour, over the line
            expected = "Network is unreachable" if host == OUTSIDE else "Connection refused"
            assert child.next_line(PATIENCE_S) == expected
        carried, lost = road.counts()
        assert carried >= 2 and lost == 0


def test_a_kill_leaves_no_process_and_no_namespace(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as stage:
        laid(stage)  # skips this test where there can be none
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(folder=str(tmp_path))],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        pids = [int(pid) for pid in holder.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        far = network_of(pids[1])
        assert far not in (None, network_of(os.getpid()))
    finally:
        holder.kill()
        holder.communicate()
    deadline = time.monotonic() + PATIENCE_S
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "somebody outlived the one who started it"
        time.sleep(0.02)
    assert far not in {
        network_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    }


def laid(stage: ProcessGroup) -> LineProcess:
    """A line without delay or loss, where there can be one."""
    try:
        return LineProcess(stage, 2, delay_s=0.0, loss=0.0)
    except namespaces.NoNamespacesError as reason:
        pytest.skip(str(reason))


def network_of(pid: int) -> int | None:
    """The network namespace that a process is in, by number."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None
