"""A long, lossy line between network namespaces: python -m quietchoir.simulations.faults.line
PARENT ENDS DELAY_S LOSS SEED

Knows IPv4 packets, late and lost ones. Knows nothing of who talks over it.
Always: packets go from end to end and nowhere else: there is no way out of the namespaces; which
packets are lost follows from the seed and their order; nothing is left when this process has ended.

The kernel's own `netem` would do the same, but not every kernel has it, and it needs `tc`.
"""

import heapq
import itertools
import json
import os
import random
import selectors
import signal
import socket
import sys
import time

from ...core.errors import QuietchoirError
from ..processes import Child, ProcessGroup
from . import namespaces

NET = "192.0.2."  # TEST-NET-1, RFC 5737: nobody's
PACKET = 65_535
TELL_S = 0.5
START_S = 30.0


class LossyLine:
    """Every packet between any two ends takes `delay_s` and is lost with probability `loss`."""

    def __init__(self, ends: list[int], *, delay_s: float, loss: float, seed: int) -> None:
        self.ends, self.delay_s, self.loss = ends, delay_s, loss
        self.dice, self.order = random.Random(seed), itertools.count()
        self.under_way: list[tuple[float, int, int, bytes]] = []  # due, order, to which end, what
        self.carried = self.lost = 0

    def take(self, packet: bytes, now: float) -> None:
        """One packet comes in."""
        if packet[0] >> 4 != 4 or packet[16:19] != socket.inet_aton(NET + "0")[:3]:
            return  # IPv6 looking for routers, or for nobody here
        to = packet[19] - 1
        if not 0 <= to < len(self.ends):
            return
        if self.dice.random() < self.loss:
            self.lost += 1
        else:
            self.carried += 1
            heapq.heappush(self.under_way, (now + self.delay_s, next(self.order), to, packet))

    def hand_over(self, now: float) -> None:
        """Let go of what is due."""
        while self.under_way and self.under_way[0][0] <= now:
            _, _, to, packet = heapq.heappop(self.under_way)
            try:
                os.write(self.ends[to], packet)
            except OSError:  # its queue is full, as a router's may be
                self.lost += 1

    def wait_s(self, now: float) -> float:
        """Until the next packet is due, at most until the next word."""
        return min(TELL_S, max(0.0, self.under_way[0][0] - now)) if self.under_way else TELL_S


def carry(line: LossyLine) -> None:
    """Carry packets until killed, and say how many from time to time."""
    printed = 0.0
    with selectors.DefaultSelector() as selector:
        for end in line.ends:
            selector.register(end, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(line.wait_s(time.monotonic())):
                for packet in packets(key.fd):
                    line.take(packet, time.monotonic())
            line.hand_over(now := time.monotonic())
            if now - printed >= TELL_S:
                printed = now
                print(
                    json.dumps(
                        {"event": "line", "at": now, "carried": line.carried, "lost": line.lost}
                    ),
                    flush=True,
                )


def packets(end: int) -> list[bytes]:
    """What has come in at one end."""
    found = []
    while True:
        try:
            found.append(os.read(end, PACKET))
        except BlockingIOError:
            return found


def play(parent: int, count: int, delay_s: float, loss: float, seed: int) -> None:
    """Make `count` namespaces with a card each, say where they are, carry.

    Raises:
        NoNamespacesError: they cannot be made here.
    """
    own_user, handles, ends = False, list[int](), list[int]()
    for number in range(count):
        own_user |= namespaces.leave_network(allowed_users=number == 0)
        handles.append(os.open("/proc/self/ns/net", os.O_RDONLY))
        ends.append(namespaces.tunnel(f"{NET}{number + 1}"))
    namespaces.die_with(parent)
    here = f"/proc/{os.getpid()}"
    event = {
        "user": f"{here}/ns/user" if own_user else "",
        "networks": [f"{here}/fd/{handle}" for handle in handles],
    }
    print(json.dumps({"event": "open", **event}), flush=True)
    carry(LossyLine(ends, delay_s=delay_s, loss=loss, seed=seed))


class LineProcess:
    """The process that holds the namespaces and carries their packets, from outside. Its stage ends
    it.

    Raises:
        NoNamespacesError: this machine cannot; the sentence says why.
    """

    def __init__(
        self, stage: ProcessGroup, ends: int, *, delay_s: float, loss: float, seed: int = 1
    ) -> None:
        numbers = map(str, (os.getpid(), ends, delay_s, loss, seed))
        self.child: Child = stage.start_other(
            "line", [sys.executable, "-m", f"{__package__}.line", *numbers]
        )
        try:
            opened = self.child.until("open", START_S)
        except QuietchoirError as error:
            raise namespaces.NoNamespacesError(self.child.last_words()) from error
        self.user, self.networks = str(opened["user"]), [str(path) for path in opened["networks"]]

    def at(self, end: int, command: list[str]) -> list[str]:
        """The command line that runs `command` at one end. Hazard: it dies with the thread that
        starts it.
        """
        prefix = [
            sys.executable,
            "-m",
            f"{__package__}.namespaces",
            self.user,
            self.networks[end],
            str(os.getpid()),
        ]
        return [*prefix, *command]

    def counts(self) -> tuple[int, int]:
        """Packets carried and lost until now, at least."""
        # Linux's, which all processes have in common; a word said earlier may reach us later
        asked = time.monotonic()
        self.child.forget()
        line = self.child.until("line", START_S)
        while line["at"] < asked:
            line = self.child.until("line", START_S)
        return int(line["carried"]), int(line["lost"])


def address(end: int) -> str:
    """The IPv4 address of one end."""
    return f"{NET}{end + 1}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once, and has nothing to say about it
    try:
        play(
            int(sys.argv[1]),
            int(sys.argv[2]),
            float(sys.argv[3]),
            float(sys.argv[4]),
            int(sys.argv[5]),
        )
    except QuietchoirError as reason:
        sys.exit(str(reason))
