"""Which adapter answers.

Knows names: those in the store, those the engine holds, the active one. Knows nothing of LoRA or
federations.
Always: the active adapter is one that the engine holds, or none; a failed switch leaves the old one
active.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .. import log
from ..errors import DataError, ModelNotFoundError, QuietchoirError
from ..prompt import AS_IT_COMES, PromptFormat
from ..toolcall import ToolCall
from .router import WORDS, Route, Router

if TYPE_CHECKING:
    from ..models.lora.adapter import Adapter  # with torch, which a node that serves does without

SHOWN = 12  # characters of an id in a sentence
ROUTES_S = 10.0  # how long routes are not read again
PREFIX = 6  # characters of an id that may stand for it
# Model names that mean: whatever is active. The second is what Hugging Face's `InferenceClient`
# sends when it is given an address and no model.
DEFAULTS = ("default", "dummy")
logger = log.get("adapters")


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter on this disk, in its owner's words."""

    id: str
    description: str = ""  # a few words for its owner
    prompt: PromptFormat = AS_IT_COMES  # how it was trained to be asked
    name: str = ""  # what it is called here; several may be called alike


class AdapterStore(Protocol):
    """Where adapters lie."""

    def list(self) -> Sequence[AdapterInfo]:
        """All adapters for this node's model."""
        ...

    def load(self, id: str) -> "Adapter":
        """Read one. Raises a QuietchoirError if it is unknown, changed, or made for another
        model.
        """
        ...

    def active(self) -> str | None:
        """The one to begin with."""
        ...

    def activate(self, id: str | None) -> None:
        """Remember the choice for the next start."""
        ...

    def route(self, id: str, embedding: str) -> Route | None:
        """What an adapter is for; None: nobody knows.

        Args:
            embedding: the identity of the model that requests are looked at with.

        Raises:
            DataError: what was kept is damaged, or of another embedding model.
        """
        ...


class NoAdapters:
    """A node that has none."""

    def list(self) -> Sequence[AdapterInfo]:
        """None."""
        return ()

    def load(self, id: str) -> "Adapter":
        """Never finds one."""
        raise ModelNotFoundError(f"adapter {id} is not on this node; it has none")

    def active(self) -> str | None:
        """None."""
        return None

    def activate(self, id: str | None) -> None:
        """Nothing to remember."""

    def route(self, id: str, embedding: str) -> None:
        """Nobody knows."""


class AdapterPool(Protocol):
    """The engine's side: adapters held ready, changed while it runs."""

    def load(self, name: str, adapter: "Adapter") -> None:
        """Hold `adapter` ready under `name`."""
        ...

    def names(self) -> Sequence[str]:
        """Those held now."""
        ...


class ParkedAdapters:
    """The engine's side while there is none: the model's memory was let go."""

    def load(self, name: str, adapter: "Adapter") -> None:
        """It was read, so it can be; the next engine takes it when it is asked for."""

    def names(self) -> Sequence[str]:
        """None."""
        return ()


class AdapterSwitch:
    """Resolves model names and switches the active adapter, without a restart."""

    def __init__(
        self,
        model: str,
        shelf: AdapterPool,
        store: AdapterStore,
        router: Callable[[], Router | None] = lambda: None,
    ) -> None:
        """
        Args:
            router: chooses by the request, where one is to be had; asked when first needed.
        """
        self.model = model  # the model's own name, without adapter
        self.shelf = shelf
        self.store = store
        self._router = router
        self._routes: tuple[float, str, Mapping[str, Route]] = (0.0, "", {})
        self.active: str | None = None
        self._chosen: str | None = None  # in the store, when this switch last looked
        self._prompts: dict[str, PromptFormat] = {}  # of those that were ever held
        self._loading = asyncio.Lock()

    async def start(self) -> None:
        """Load the adapter that its owner last chose; one that cannot be used is told, and the
        plain model answers.
        """
        try:
            if (chosen := await asyncio.to_thread(self.store.active)) is not None:
                self._chosen = chosen
                self.active = await self.hold(chosen)
        except QuietchoirError as error:
            logger.error("the active adapter is left out, the plain model answers: %s", error)

    async def attach(self, shelf: AdapterPool) -> None:
        """The model was loaded anew: its engine holds the active adapter again."""
        self.shelf, self.active = shelf, None
        await self.start()

    def park(self) -> None:
        """The model's memory is let go: what is active is remembered, and nothing is held."""
        self.shelf = ParkedAdapters()

    async def infos(self) -> Sequence[AdapterInfo]:
        """All adapters that can be named now."""
        return await asyncio.to_thread(self.store.list)

    async def activate(self, id: str | None) -> None:
        """Make `id` (None: the plain model) answer from the next request on; running answers keep
        theirs.

        Raises:
            ModelNotFoundError: no such adapter.
        """
        held = None if id is None else await self.hold(id)
        await asyncio.to_thread(self.store.activate, held)
        self.active = self._chosen = held

    async def refresh(self) -> None:
        """Take over a choice that the owner made elsewhere, with another program; running answers
        keep their adapter.

        Raises:
            QuietchoirError: it cannot be used; the old one stays active, and that choice is not
            tried again.
        """
        chosen = await asyncio.to_thread(self.store.active)
        if chosen != self._chosen:
            self._chosen = chosen
            self.active = None if chosen is None else await self.hold(chosen)

    async def resolve(self, name: str | None) -> str | None:
        """The adapter that a request's `model` field means; None is the plain model.

        Raises:
            ModelNotFoundError: neither the model, "model:adapter", nor an adapter.
        """
        if name is None or name in DEFAULTS:
            return self.active
        adapter = self.adapter_in(name)
        return None if adapter is None else await self.hold(adapter)

    async def choose(self, name: str | None, requests: Sequence[str]) -> str | None:
        """The adapter for a conversation: what its `model` names; where that leaves the choice,
        the active adapter or one of another federation if the last request is for it, or none.

        With the plain model active, without a router, or while nobody knows what the active adapter
        is for, that choice is the active one.

        Args:
            requests: what was asked in the conversation, in order.

        Raises:
            ModelNotFoundError: as `resolve`.
        """
        active = await self.resolve(name)
        left_open = name is None or name in DEFAULTS
        if active is None or not requests or not left_open:
            return active
        chosen = await asyncio.to_thread(self._route, active, requests)
        return chosen if chosen in (None, active) else await self.hold(chosen)

    def _route(self, active: str, requests: Sequence[str]) -> str | None:
        router = self._router()
        routes = {} if router is None else self._routes_of(active, router)
        if router is None or active not in routes:
            return active
        choice = router.choose(requests, routes)
        logger.debug("adapter %s, by %.2f in log-odds", choice.adapter or "none", choice.lead)
        return choice.adapter

    def names(self, adapter: str | None, said: Sequence[str], calls: Sequence[ToolCall]) -> bool:
        """Whether what was said names what an adapter would call for it, as far as its examples
        tell; of an adapter that no request was routed to, nothing is known.
        """
        route = None if adapter is None else self._routes[2].get(adapter)
        return route is None or route.names(said, calls)

    def wishes(self, adapter: str | None, text: str) -> Sequence[str]:
        """What of one sentence an adapter is asked one after the other, under the same terms."""
        route = None if adapter is None else self._routes[2].get(adapter)
        router = None if route is None else self._router()
        return (text,) if route is None or router is None else route.wishes(text, router.features)

    def leans(self, adapter: str | None, text: str) -> bool:
        """Whether an adapter's request means something only after the one before it, under the same
        terms.
        """
        route = None if adapter is None else self._routes[2].get(adapter)
        router = None if route is None else self._router()
        return route is None or router is None or route.leans(router.features([text])[0])

    def _routes_of(self, active: str, router: Router) -> Mapping[str, Route]:
        """Routes of the active adapter, and of the last one of every other federation."""
        at, of, routes = self._routes
        if of == active and time.monotonic() - at < ROUTES_S:
            return routes
        named = {info.id: info.name for info in self.store.list()}
        last = {name: id for id, name in named.items() if name != named.get(active)}
        routes = {}
        for id in (active, *last.values()):
            try:
                route = self.store.route(id, router.identity)
                if route is not None and route.weights.shape[1] not in (router.width, WORDS + 1):
                    raise DataError(f"{id}: of vectors of another width; delete its route")
                if route is not None:
                    routes[id] = route
            except QuietchoirError as error:
                logger.warning("an adapter's route is left out: %s", error)
        self._routes = (time.monotonic(), active, routes)
        return routes

    async def check(self, name: str) -> None:
        """As `resolve`, loading nothing. Raises ModelNotFoundError: nothing answers to `name`."""
        adapter = None if name in DEFAULTS else self.adapter_in(name)
        if adapter is not None and adapter not in self.shelf.names():
            await self.find(adapter)

    def adapter_in(self, name: str) -> str | None:
        """The adapter's part of a model name; None: the plain model."""
        if name in ("base", self.model):
            return None
        for prefix in ("base:", f"{self.model}:"):
            name = name.removeprefix(prefix)
        return name

    async def hold(self, name: str) -> str:
        """See that the engine holds the adapter that `name` means: an id, the only one that begins
        so, or that is called so.

        Returns:
            its id.

        Raises:
            ModelNotFoundError: none, or several.
        """
        async with self._loading:  # two requests for one new adapter load it once
            held = self.shelf.names()
            if name in held:
                return name
            info = await self.find(name)
            if info.id not in held:
                await asyncio.to_thread(
                    self.shelf.load, info.id, await asyncio.to_thread(self.store.load, info.id)
                )
            self._prompts[info.id] = info.prompt
            return info.id

    async def find(self, name: str) -> AdapterInfo:
        """The adapter that `name` means, loaded or not: as `hold`, from the store alone.

        Raises:
            ModelNotFoundError: none, or several.
        """
        infos = await self.infos()
        meant = [info for info in infos if info.id == name]
        meant = meant or [
            info for info in infos if len(name) >= PREFIX and info.id.startswith(name)
        ]
        meant = meant or [info for info in infos if name and info.name == name]
        if len(meant) == 1:
            return meant[0]
        offered = ", ".join(
            [self.model, *(f"{info.name or info.id} ({info.id[:SHOWN]})" for info in infos)]
        )
        found = (
            f"means {len(meant)} adapters here"
            if meant
            else "is neither this node's model nor one of its adapters"
        )
        raise ModelNotFoundError(f"{name} {found}; it has: {offered}")

    def prompt_of(self, id: str) -> PromptFormat:
        """How an adapter that the engine holds was trained to be asked."""
        return self._prompts.get(id, AS_IT_COMES)
