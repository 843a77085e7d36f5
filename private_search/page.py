"""A page that shows a library's owner what its host can and cannot see, on its own machine, and its
counts as Prometheus reads them.

Knows a service's counts, HTTP and a token. Knows nothing of questions: there is nothing to know.
Always: it listens on loopback alone, on a port of its own, and only reads; numbers need the token
(of the node's home), which the page takes out of its address; foreign Host and Origin headers are
refused, as at a node's own page; no label of a metric names an asker.
"""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from ..core.config import ServerConfig
from ..core.metrics import CONTENT_TYPE, PREFIX, Read
from ..core.server import auth, connections, static
from ..core.server.app import claim, status_application
from .host import LibraryService
from .messages import RequestKind

HOST = "127.0.0.1"
FOLDER = Path(__file__).parent / "ui"
SEES = (
    "that somebody asked, or fetched the map of clusters, when, and from which network address",
    "which account asked: a key made for this host alone, or the name of a token",
    "how many passages were read, and how many texts were classified",
    "sizes, which are the same whatever is asked",
)
HIDDEN = (
    "the question, or the text that was classified",
    "the scores, and which passages fit",
    "which passages were read",
    "whether the answer was of any use",
)
COUNTERS = {
    "answered": "requests that were answered, since this host started",
    "refused": "requests that were refused",
    "questions": "questions that were answered, ever, all accounts together",
    "choices": "passages that were read, ever, all accounts together",
    "classified": "texts that were classified, ever, all accounts together",
    "maps": "maps of clusters that were fetched, ever, all accounts together",
    "restarts": "workers that crashed and were started again",
    "bytes_up": "bytes of requests",
    "bytes_down": "bytes of replies",
    "seconds": "seconds that answering took, waiting for a worker included",
}
GAUGES = {
    "passages": "passages in the library",
    "keys": "askers whose keys are held",
    "accounts": "accounts that asked",
    "used_up": "accounts that have no question left",
}


def status(service: LibraryService) -> dict[str, Any]:
    """All that there is to show, as JSON's types."""
    manifest, budget = service.manifest, service.budget
    spent = budget.spent()
    return {
        "title": manifest.title,
        "passages": manifest.passages,
        "edition": manifest.edition,
        "limit": budget.limit,
        "question_bytes": sum(manifest.shape.question_parts),
        "answer_bytes": sum(manifest.shape.answer_parts),
        "sees": SEES,
        "hidden": HIDDEN,
        "accounts": [
            {
                "account": account,
                "name": service.names.get(account, ""),
                "questions": counts.get(RequestKind.QUESTION.name, 0),
                "choices": counts.get(RequestKind.CHOICE.name, 0),
                "classified": counts.get(RequestKind.CLASSIFY.name, 0),
                "maps": counts.get(RequestKind.CLUSTERS.name, 0),
                "last": service.last_seen.get(account, 0.0),
            }
            for account, counts in sorted(spent.items())
        ],
        "since": service.since,
        **service.counts(),
    }


def numbers(service: LibraryService) -> Mapping[str, float]:
    """The same, all accounts together."""
    seen = status(service)
    told = {name: seen[name] for name in ("passages", *service.counts())}
    for name in ("questions", "choices", "classified", "maps"):
        told[name] = sum(one[name] for one in seen["accounts"])
    used_up = sum(one["questions"] >= seen["limit"] for one in seen["accounts"])
    return told | {"accounts": len(seen["accounts"]), "used_up": used_up}


class LibraryPage:
    """The page of one service, in the loop that serves it.

    Args:
        port: 0 takes a free one.
        home: where the token lies; made if there is none.

    Raises:
        ConfigError: the port is taken, or others can read the token.
    """

    def __init__(self, service: LibraryService, port: int, home: Path) -> None:
        self.service, self.token = service, auth.load_token(home)
        self.metrics = CollectorRegistry()
        counted = Read(lambda: numbers(service), f"{PREFIX}library_", COUNTERS, GAUGES)
        self.metrics.register(counted)
        self.files = static.Pages(FOLDER)
        self.socket: socket.socket = claim(ServerConfig(host=HOST, port=port))
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.5)
        self._listening: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """With the token, for the owner's browser."""
        return f"http://{HOST}:{self.socket.getsockname()[1]}/#token={self.token}"

    def application(self) -> web.Application:
        """All routes behind the guard."""
        return status_application(self.token, HOST, self.files, self.told, self.scrape)

    async def told(self, _request: web.Request) -> web.Response:
        """Everything as JSON."""
        return web.json_response(status(self.service))

    async def scrape(self, _request: web.Request) -> web.Response:
        """The counts as Prometheus reads them."""
        return web.Response(
            body=generate_latest(self.metrics), headers={"Content-Type": CONTENT_TYPE}
        )

    async def __aenter__(self) -> "LibraryPage":
        config = ServerConfig(host=HOST)
        self._listening, _ = await connections.listen(self._runner, config, self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()
        self.socket.close()
