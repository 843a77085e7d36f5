"""The libraries on other machines that this node may ask, for its page: where they are, and what
they were sent.

Knows JSON. Knows no library: what there is comes from whoever put the node together, since
private search's floor stands on this one.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aiohttp import web

from ..assistant.citations import LIBRARY
from .openapi import OBJECT, described, many, shaped


class KnownEntry(Protocol):
    """One library, and what it was sent so far; never a question's text."""

    @property
    def name(self) -> str:
        """As its owner calls it."""
        ...

    @property
    def url(self) -> str:
        """Where it is."""
        ...

    @property
    def questions(self) -> int:
        """So many were asked."""
        ...

    @property
    def bytes_up(self) -> int:
        """Ciphertext that it was sent."""
        ...

    @property
    def bytes_down(self) -> int:
        """What came back."""
        ...

    @property
    def last(self) -> float:
        """Seconds since 1970 of the last question; 0: none."""
        ...


class LibrariesApi:
    """The handler. Args: known: all of them, by name; raises ConfigError."""

    def __init__(self, known: Callable[[], Sequence[KnownEntry]]) -> None:
        self.known = known

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [web.get("/api/libraries{end:/*}", self.list)]

    @described(shaped(libraries=many(OBJECT)))
    async def list(self, _request: web.Request) -> web.Response:
        """Each, with the name by which a request's `collections` lets it be asked."""
        known = await asyncio.to_thread(self.known)
        return web.json_response({"libraries": [told(one) for one in known]})


def told(one: KnownEntry) -> dict[str, Any]:
    """One of them, as JSON."""
    return {
        "name": one.name,
        "collection": LIBRARY + one.name,
        "url": one.url,
        "questions": one.questions,
        "bytes_up": one.bytes_up,
        "bytes_down": one.bytes_down,
        "last": one.last,
    }
