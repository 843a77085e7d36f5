"""Models over HTTP, for the node's page and its owner's scripts: what is here, what would run, what
could be had, pulls under way.

Knows bodies and shapes. Knows nothing of hubs, files or engines; the catalog and `engine/fit` do.
Always: a hub is asked only where a request says so; a pull that is stopped or fails leaves no model
half there; what other programs brought is never deleted.
"""

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from .. import log
from ..config import EngineConfig
from ..engine import fit
from ..engine.fit import Fit, MachineMemory, ModelNeeds
from ..errors import ModelError, PullStoppedError, QuietchoirError, UnknownEntryError
from ..models.hub import catalog
from ..models.hub.catalog import CatalogEntry, InstalledModel
from ..models.hub.client import HubClient
from ..models.hub.known_models import BY_NAME, KnownModel, is_open
from ..models.hub.offer import PullOffer
from .errors import BadRequest, parse_json
from .openapi import OBJECT, TEXT, WHOLE, described, many, shaped
from .schemas import Record, flag, named, text

logger = log.get("server")
MOST_PULLS = 2  # at once
END_S = 1.0  # for a pull to notice that the node ends
KEPT_PULLS = 20  # that ended and are still told of
SEARCH = Record({"words": named, "hub": flag}, ["words"])
OFFER = Record({"name": named}, ["name"])
PULL = Record({"name": named, "accept_licence": text}, ["name"])
State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnersModels:
    """What this file stands on."""

    hub: Callable[[], HubClient]
    default: str  # the model that answers where a request names none
    engine: EngineConfig  # how long conversations are, and how many at once
    limit: int  # bytes for all models that are loaded; 0: a share of this machine's
    loaded: Callable[[], Mapping[str, int]] = dict  # names of those in memory, and their bytes
    default_path: Path | None = None  # its file or folder; it may be one of ours under another name
    # deletes a model of this name by a function, once its memory is let go; raises OverloadedError
    # while it answers
    remove: Callable[[str, Callable[[], int]], Awaitable[int]] | None = None


@dataclass(slots=True)
class Pull:
    """One model on its way."""

    id: str
    name: str  # as it was asked for
    model: str = ""  # under which it will be known
    done: int = 0  # bytes
    total: int = 0
    state: State = "running"
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def told(self) -> dict[str, Any]:
        """For the page."""
        return {
            "id": self.id,
            "name": self.name,
            "model": self.model,
            "bytes": self.done,
            "total": self.total,
            "state": self.state,
            "error": self.error,
        }


class ModelsApi:
    """The handlers under /api/models."""

    def __init__(self, own: OwnersModels) -> None:
        self.own = own
        self._pulls: dict[str, Pull] = {}
        self._beginning = asyncio.Lock()  # of a pull: those under way are counted, the hub asked
        self._machine: MachineMemory | None = None
        self._needs: dict[tuple[str, int], ModelNeeds] = {}  # of files, by name and size

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [
            web.get("/api/models{end:/*}", self.list_models),
            web.post("/api/models/search{end:/*}", self.search),
            web.post("/api/models/offer{end:/*}", self.offer),
            web.get("/api/models/pulls{end:/*}", self.list_pulls),
            web.post("/api/models/pulls{end:/*}", self.pull),
            web.delete("/api/models/pulls/{id:[0-9a-f]{1,32}}{end:/*}", self.stop_pull),
            # of no model's name, so that Allow tells what is taken there
            web.delete("/api/models/{name:(?!search/*$|offer/*$|pulls/*$).+}", self.remove),
        ]

    async def stop(self, _app: web.Application) -> None:
        """End all pulls; what came of them stays for the next ones."""
        for pull in self._pulls.values():
            pull.stop.set()
        for pull in self._pulls.values():
            if pull.thread is not None:
                await asyncio.to_thread(pull.thread.join, END_S)

    @described(
        shaped(
            default=TEXT,
            memory=OBJECT,
            installed=many(OBJECT),
            known=many(OBJECT),
            unfinished_bytes=WHOLE,
        )
    )
    async def list_models(self, _request: web.Request) -> web.Response:
        """Models on this disk, whosever they are, those that are loaded, and those that are known
        and could be pulled; of each whether it runs on this machine. The first such request
        measures the machine's memory, some tenths of a second long.
        """
        return web.json_response(await asyncio.to_thread(self._listed))

    def _listed(self) -> dict[str, Any]:
        loaded, machine = self.own.loaded(), self._measured()
        found = catalog.installed()
        here = {model.name for model in found}
        entries = [entry for entry in catalog.entries() if entry.name not in here]
        known = [model for name, model in BY_NAME.items() if name not in here]
        return {
            "default": self.own.default,
            "memory": {
                "bytes": machine.bytes,
                "free": machine.free,
                "limit": machine.limit,
                "loaded": sum(loaded.values()),
                "read_bytes_per_s": int(machine.read_bytes_s),
            },
            "installed": [self._installed(model, loaded) for model in found],
            "known": [
                *(known_entry(entry) for entry in entries),
                *(self._known(model) for model in known),
            ],
            "unfinished_bytes": catalog.unfinished(),
        }

    def _installed(self, model: InstalledModel, loaded: Mapping[str, int]) -> dict[str, Any]:
        chats = model.kind == "chat" and not model.refused
        return {
            "name": model.name,
            "kind": model.kind,
            "bytes": model.size,
            "origin": model.origin,
            "licence": model.licence,
            "loaded": model.name in loaded,
            "removable": model.removable and not self._answers(model),
            "refused": model.refused,
            "fit": self._fit(model.name, self._needs_of(model)) if chats else None,
        }

    def _answers(self, model: InstalledModel) -> bool:
        """Whether it is what answers where a request names none, by that name or as its path."""
        if model.name == self.own.default or self.own.default_path is None:
            return model.name == self.own.default
        one, other = model.path.resolve(), self.own.default_path.resolve()
        return one.is_relative_to(other) or other.is_relative_to(one)  # a folder and its file

    def _needs_of(self, model: InstalledModel) -> ModelNeeds:
        key = model.name, model.size
        if key not in self._needs:
            self._needs[key] = fit.needs_of_installed(model)
        return self._needs[key]

    def _known(self, model: KnownModel) -> dict[str, Any]:
        return {
            "name": model.name,
            "kind": "chat",
            "bytes": model.bytes,
            "origin": f"hf:{model.repository}:{model.quantisation}",
            "licence": model.licence,
            "open_licence": is_open(model.licence),
            "parameters": int(model.parameters * 1e9),
            "context": model.context,
            "tested": model.tested,
            "fit": self._fit(model.name, fit.needs_of_known(model)),
        }

    def _fit(self, name: str, needs: ModelNeeds) -> dict[str, Any]:
        return fit_told(fit.fit(name, needs, self._measured(), self.own.engine))

    def _measured(self) -> MachineMemory:
        if self._machine is None:
            self._machine = fit.measure_memory(self.own.limit)
        return self._machine

    @described(shaped(models=many(OBJECT)), SEARCH)
    async def search(self, request: web.Request) -> web.Response:
        """Models by words: those that this node knows, or with "hub" those of the hub, which then
        learns the words.
        """
        body = SEARCH(parse_json(await request.read()), "")
        if not body.get("hub"):
            found = await asyncio.to_thread(catalog.search, body["words"])
            models = [
                known_entry(model) if isinstance(model, CatalogEntry) else self._known(model)
                for model in found
            ]
            return web.json_response({"models": models})
        rows = await asyncio.to_thread(self.own.hub().search, body["words"])
        told = [
            {
                "name": f"hf:{row.name}",
                "licence": row.licence,
                "open_licence": is_open(row.licence),
                "downloads": row.downloads,
                "gated": row.gated,
            }
            for row in rows
        ]
        return web.json_response({"models": told})

    @described(shaped(name=TEXT, licence=TEXT, bytes=WHOLE), OFFER)
    async def offer(self, request: web.Request) -> web.Response:
        """What a pull of this name would bring: file, size and licence; the hub is asked if it is
        one of a hub's.
        """
        body = OFFER(parse_json(await request.read()), "")
        found = await asyncio.to_thread(catalog.offer, body["name"], self.own.hub())
        return web.json_response(offer_told(found))

    @described(shaped(pulls=many(OBJECT)))
    async def list_pulls(self, _request: web.Request) -> web.Response:
        """Pulls under way, and how the last ones ended."""
        return web.json_response({"pulls": [pull.told() for pull in self._pulls.values()]})

    @described(shaped(id=TEXT, name=TEXT, state=TEXT), PULL)
    async def pull(self, request: web.Request) -> web.Response:
        """Begin to bring a model. A licence that is not open must be agreed to, by its name as
        /api/models/offer tells it.
        """
        body = PULL(parse_json(await request.read()), "")
        async with self._beginning:
            return web.json_response((await self._begun(body)).told())

    async def _begun(self, body: Mapping[str, Any]) -> Pull:
        running = [pull for pull in self._pulls.values() if pull.state == "running"]
        if again := next((pull for pull in running if pull.name == body["name"]), None):
            return again
        if len(running) >= MOST_PULLS:
            raise BadRequest(f"{MOST_PULLS} pulls are under way; wait for one, or stop one", "name")
        hub = self.own.hub()
        chosen = None
        if await asyncio.to_thread(catalog.find_installed, body["name"]) is None:
            # so that a wrong name or a licence is told here, not later by the job
            chosen = await asyncio.to_thread(catalog.offer, body["name"], hub)
            catalog.require_agreed(chosen, body.get("accept_licence", ""))
        pull = Pull(secrets.token_hex(8), body["name"], chosen.name if chosen else body["name"])
        pull.total = chosen.size if chosen else 0
        self._keep(pull)
        accepted = body.get("accept_licence", "")
        # a daemon: a hub that says nothing more must not keep the node from ending
        bringing = partial(self._bring, pull, hub, chosen, accepted)
        pull.thread = threading.Thread(target=bringing, name="quietchoir-pull", daemon=True)
        pull.thread.start()
        return pull

    def _keep(self, pull: Pull) -> None:
        """Remember a pull, and forget those that ended long ago."""
        self._pulls[pull.id] = pull
        ended = [one.id for one in self._pulls.values() if one.state != "running"]
        for id in ended[: max(0, len(ended) - KEPT_PULLS)]:
            del self._pulls[id]

    def _bring(self, pull: Pull, hub: HubClient, chosen: PullOffer | None, accepted: str) -> None:
        def progress(done: int, total: int) -> None:
            pull.done, pull.total = done, total

        try:
            catalog.pull(
                pull.name,
                progress=progress,
                hub=hub,
                accepted=accepted,
                stop=pull.stop,
                chosen=chosen,
            )
            pull.state, pull.done = "done", pull.total
        except PullStoppedError as error:
            pull.state, pull.error = "stopped", str(error)
        except QuietchoirError as error:
            pull.state, pull.error = "failed", str(error)
        except Exception:
            logger.exception("a pull broke")
            pull.state, pull.error = "failed", "the node failed inside; its log says where"

    @described(shaped(id=TEXT, state=TEXT))
    async def stop_pull(self, request: web.Request) -> web.Response:
        """Stop a pull, or forget one that ended."""
        pull = self._pulls.get(request.match_info["id"])
        if pull is None:
            raise UnknownEntryError(f"there is no pull {request.match_info['id'][:40]}")
        if pull.state != "running":
            del self._pulls[pull.id]
        pull.stop.set()
        return web.json_response(pull.told())

    @described(shaped(removed=TEXT, bytes=WHOLE))
    async def remove(self, request: web.Request) -> web.Response:
        """Delete a model that this node's program brought; other programs' are not touched."""
        name = request.match_info["name"].rstrip("/")
        found = await asyncio.to_thread(catalog.find_installed, name)
        if name == self.own.default or (found is not None and self._answers(found)):
            raise ModelError(
                f"{name} is what this node answers with; start it with another --model first"
            )
        delete = partial(catalog.remove, name)
        if self.own.remove is not None:
            freed = await self.own.remove(name, delete)
        else:
            freed = await asyncio.to_thread(delete)
        return web.json_response({"removed": name, "bytes": freed})


def known_entry(entry: CatalogEntry) -> dict[str, Any]:
    """A model that is known to the last byte and not here."""
    return {
        "name": entry.name,
        "kind": entry.kind,
        "bytes": entry.size,
        "origin": entry.source,
        "licence": entry.licence,
        "open_licence": is_open(entry.licence),
        "tested": "answers",
        "fit": None,
    }


def offer_told(found: PullOffer) -> dict[str, Any]:
    """What a pull would bring."""
    return {
        "name": found.name,
        "source": found.source,
        "files": [file.path for file in found.files],
        "bytes": found.size,
        "licence": found.licence,
        "asks": found.asks,
        "page": found.page,
        "quantisation": found.quantisation,
        "others": list(found.others),
    }


def fit_told(found: Fit) -> dict[str, Any]:
    """Whether a model runs here."""
    return {
        "fits": found.fits,
        "now": found.now,
        "bytes": found.bytes,
        "context": found.context,
        "tokens_per_s": round(found.tokens_per_s, 1),
    }
