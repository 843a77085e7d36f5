"""A node under hours of mixed use: does it lose a request, and does its memory stay?

    python -m quietchoir.simulations.soak --seconds 3600 --out build/soak.json    `make soak`

Readers take whole streams; leavers go in the middle; strangers send bodies that are too large or no
JSON; adapters are switched under all of them. At the end SIGTERM comes while answers run.

Knows what each kind of client must get. Knows nothing of how a node does it.
Always: an answer that is not whole, or a refusal that is not the right one, is a lost request and
ends the run with exit code 1, as does memory that grows; every process that was started has ended.
"""

import argparse
import asyncio
import io
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from ..core import paths
from ..core.config import ServerConfig
from ..core.errors import QuietchoirError
from ..core.models import weights
from ..core.models.hub import catalog
from ..crypto.identity.keys import Identity
from ..federation.adapters.registry import Card, Registry, content_hash
from . import machine
from .bench.serve import MODEL, Crowd, ServerUnderTest, question, start_node, stream
from .processes import ProcessGroup

READERS, LEAVERS = 6, 2
TOKENS = 48  # of an answer, at most
SAMPLE_S = 2.0  # between two looks at the memory
TELL_S = 60.0  # between two lines about how it goes; a run that is cut off keeps the last one's
WARM = 0.25  # of the time; caches fill meanwhile
FLAT = 0.02  # how much memory may grow after it
STEP_S = 1.0  # between two of a stranger's requests, and two switches of adapters
CHAT = "v1/chat/completions"


@dataclass(slots=True)
class Soak:
    """One run, as it goes."""

    server: ServerUnderTest
    adapter: str
    crowd: Crowd = field(default_factory=Crowd)
    done: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    draws: random.Random = field(default_factory=lambda: random.Random(1))
    ending: bool = False

    async def run(
        self, seconds: float, end: Callable[[], None], tell: Callable[[], None] = lambda: None
    ) -> None:
        """Everybody, for so long; then `end` is called while readers read, and they finish."""
        headers = {"Authorization": f"Bearer {self.server.token}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            self.server.url, headers=headers, connector=connector
        ) as session:
            readers = [asyncio.create_task(self.again(self.read, session)) for _ in range(READERS)]
            others = [
                asyncio.create_task(self.again(one, session))
                for one in (*[self.leave] * LEAVERS, self.oversize, self.garble, self.switch)
            ]
            last = time.monotonic()
            until = last + seconds
            while time.monotonic() < until and not self.lost:
                await asyncio.sleep(min(SAMPLE_S, seconds))
                self.memory_mb.append(self.server.process.memory_info().rss / 1e6)
                if time.monotonic() - last > TELL_S:
                    last = time.monotonic()
                    tell()
            self.ending = True
            await asyncio.gather(*others)
            end()  # readers are in the middle of their answers, and begin no others
            await asyncio.gather(*readers)

    async def again(
        self, work: Callable[[aiohttp.ClientSession], Awaitable[None]], session: Any
    ) -> None:
        """One client: over and over, until the end or the first loss."""
        while not self.ending and not self.lost:
            try:
                await work(session)
                self.done[work.__name__] += 1
            except (QuietchoirError, aiohttp.ClientError, AssertionError) as error:
                self.lost.append(f"{work.__name__}: {type(error).__name__}: {error!s:.200}")

    async def read(self, session: aiohttp.ClientSession) -> None:
        """A whole answer, with its text and its usage."""
        await stream(session, self.server, question(self.draws), TOKENS, self.crowd)

    async def leave(self, session: aiohttp.ClientSession) -> None:
        """Some of an answer, then nobody is there."""
        message = {"role": "user", "content": question(self.draws)}
        body = {"messages": [message], "stream": True, "max_tokens": 400, "tool_choice": "none"}
        async with session.post(CHAT, json=body) as answer:
            expect(answer.status, 200)
            for _ in range(self.draws.randrange(1, 8)):
                await answer.content.readline()
            answer.close()

    async def oversize(self, session: aiohttp.ClientSession) -> None:
        """A body that is too large is refused as that."""
        body = io.BytesIO(b" " * (ServerConfig().max_body_bytes + 1))
        async with session.post(CHAT, data=body) as answer:
            expect(answer.status, 413)
        await asyncio.sleep(STEP_S)

    async def garble(self, session: aiohttp.ClientSession) -> None:
        """What is no JSON is refused as that."""
        async with session.post(CHAT, data=self.draws.randbytes(2000)) as answer:
            expect(answer.status, 400)
        await asyncio.sleep(STEP_S)

    async def switch(self, session: aiohttp.ClientSession) -> None:
        """Another adapter answers those who name none."""
        for name in (self.adapter, None):
            async with session.post("api/adapters/activate", json={"name": name}) as answer:
                expect(answer.status, 200)
            await asyncio.sleep(STEP_S)


def expect(found: int, wanted: int) -> None:
    """Raises QuietchoirError: another status came."""
    if found != wanted:
        raise QuietchoirError(f"status {found}, expected {wanted}")


def growth(memory_mb: Sequence[float]) -> float:
    """Of the memory after the warm-up: the median of its last tenth over that of its first."""
    after = memory_mb[int(WARM * len(memory_mb)) :]
    tenth = max(1, len(after) // 10)
    return statistics.median(after[-tenth:]) / statistics.median(after[:tenth]) - 1


def random_adapter(home: Path) -> str:
    """One of the default model's in that home, which learned nothing; its id."""
    import torch

    from ..core.models.lora.adapter import AdapterShape, Layout, assemble

    loaded, shape = weights.load(catalog.find(MODEL)), AdapterShape(rank=4, upper_layers=4)
    size = Layout(shape, loaded.architecture).size
    flat = 0.001 * torch.randn(size, generator=torch.Generator().manual_seed(1))
    made = assemble(shape, loaded.architecture, loaded.digest, flat)
    card = Card.unsigned(content_hash(made), "soak", loaded.digest).signed(Identity.generate())
    return Registry(home).put(made, card)


def soak(seconds: float, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A node of its own, used for so long; what came of it. `keep` hears it each minute."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quietchoir-soak-")))
        home = paths.private_folder(scratch / "home")
        adapter = random_adapter(home)
        group = stack.enter_context(ProcessGroup(scratch / "logs"))
        server = start_node(group, home)
        run = Soak(server, adapter)
        began = time.monotonic()

        def report() -> dict[str, Any]:
            return told(run, time.monotonic() - began)

        asyncio.run(
            run.run(
                seconds,
                lambda: server.process.send_signal(signal.SIGTERM),
                lambda: keep(report() | {"unfinished": True}),
            )
        )
        group.children[0].finish(60.0)
    return report()


def told(run: Soak, seconds: float) -> dict[str, Any]:
    """What came of a run until now."""
    grown = growth(run.memory_mb)
    return {
        "machine": machine.line(),
        "seconds": round(seconds),
        "done": dict(run.done),
        "tokens": run.crowd.tokens,
        "lost": run.lost,
        "memory_mb": {
            "first": run.memory_mb[0],
            "median": statistics.median(run.memory_mb),
            "highest": max(run.memory_mb),
            "growth_after_warm_up": grown,
        },
        "well": not run.lost and grown <= FLAT,
    }


def main() -> int:
    """Soak, tell, and exit with 1 if something was lost or grew."""
    parser = argparse.ArgumentParser(prog="python -m quietchoir.simulations.soak")
    parser.add_argument("--seconds", type=float, default=3600.0, help="default: an hour")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON too")
    chosen = parser.parse_args()

    def write(report: dict[str, Any]) -> None:
        if chosen.out is not None:
            paths.write_atomically(chosen.out, json.dumps(report, indent=2).encode() + b"\n")

    def keep(report: dict[str, Any]) -> None:
        write(report)
        asked, memory = report["done"], report["memory_mb"]["median"]
        print(f"… {report['seconds']} s: {asked}, {memory:.0f} MB", file=sys.stderr, flush=True)

    report = soak(chosen.seconds, keep)
    write(report)
    print(json.dumps(report, indent=2))
    return 0 if report["well"] else 1


if __name__ == "__main__":
    sys.exit(main())
