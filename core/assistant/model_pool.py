"""The models of one node: loaded when a request names them, let go when nobody asks for them.

Knows names, who answers now, and how much memory each takes. Knows nothing of files or engines: it
is given what loads one.
Always: a model that answers is never let go; several first requests for one load it once, and go on
if one of them goes away; a model that cannot be loaded takes no other with it; what is loaded fits
into the limit, the least recently used making room.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .. import log
from ..config import SamplingConfig
from ..errors import ModelError, ModelNotFoundError, OverloadedError
from ..models.hub.catalog import InstalledModel
from .adapters import DEFAULTS, AdapterSwitch
from .assistant import Assistant

MB = 1_000_000
LOOK_S = 1.0  # how often is looked whether one is idle for too long
BASE = "base"  # the default model without an adapter
logger = log.get("models")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is told of a model."""

    family: str = ""
    parameters: int = 0  # weights
    quant_type: str = ""  # of most of them
    bytes: int = 0
    digest: str = ""  # sha256, hexadecimal
    context: int = 0  # tokens of one conversation on this node
    hidden_size: int = 0
    template: str = ""  # for conversations
    modified: float = 0.0  # Unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What stays of a model that was loaded once, when its memory is let go."""

    name: str
    adapters: AdapterSwitch
    facts: ModelFacts = field(default_factory=ModelFacts)
    # how talk is drawn where clients leave it open
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    slower: str = ""  # than the compiled kernels, and why; "": they serve


async def nothing() -> None:
    """Where there is nothing to stop."""


@dataclass(slots=True, kw_only=True)
class LoadedModel:
    """One model that answers now."""

    profile: ModelProfile
    assistant: Assistant
    bytes: int = 0  # of memory, its cache included
    stop: Callable[[], Awaitable[None]] = nothing
    users: int = 0  # requests that it answers
    used_at: float = 0.0  # when the last of them ended
    keep_s: float = 0.0  # let go when nobody asked for so long; 0: never for that
    expired: bool = False  # its last user wanted it let go at once

    @property
    def name(self) -> str:
        """As requests name it."""
        return self.profile.name


Load = Callable[[str, ModelProfile | None], Awaitable[LoadedModel]]


class ModelPool:
    """Loads, lends and lets go."""

    def __init__(
        self,
        default: str,
        load: Load,
        *,
        installed: Callable[[], Sequence[InstalledModel]] = tuple,
        need: Callable[[str], int] = lambda _: 0,
        limit: int = 0,
        keep_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            default: the model that answers where a request names none.
            load: loads a model; given its profile, if it was loaded before. Raises ModelError.
            installed: the models on this disk; those that chat may be named.
            need: bytes of memory that a model is going to take. Raises ModelError.
            limit: bytes for all that are loaded at once; 0: none.
            keep_s: a model that nobody asked for so long is let go; 0: never.
        """
        self.default = default
        self.limit = limit
        self.keep_s = keep_s
        self.profiles: dict[str, ModelProfile] = {}  # of those that were ever loaded
        self.loaded: dict[str, LoadedModel] = {}
        self._load, self._installed, self._need, self._clock = load, installed, need, clock
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()  # one model comes or goes at a time

    @classmethod
    def of_one(cls, model: LoadedModel) -> "ModelPool":
        """A pool whose only model is loaded already."""

        async def load(name: str, _: ModelProfile | None) -> LoadedModel:
            raise ModelNotFoundError(f"{name} is not on this node")

        pool = cls(model.name, load)
        pool.profiles[model.name] = model.profile
        pool.loaded[model.name] = model
        return pool

    def installed(self) -> dict[str, InstalledModel]:
        """Chat models on this disk, by name; for code that may wait for the disk."""
        return {
            model.name: model
            for model in self._installed()
            if model.kind == "chat" and not model.refused
        }

    async def model_of(self, name: str | None) -> str:
        """The model that a request's `model` means, with or without an adapter behind it.

        Raises:
            ModelNotFoundError: no model, and no adapter of the default one.
        """
        if name is None or name in (*DEFAULTS, BASE, self.default):
            return self.default
        if name in self.loaded or name in self.profiles:
            return name
        known = [*await asyncio.to_thread(self.installed), *self.profiles, self.default]
        meant = [one for one in known if name == one or name.startswith(f"{one}:")]
        if not meant and (profile := self.profiles.get(self.default)) is not None:
            try:
                await profile.adapters.check(name)  # one of its adapters, without its model's name
            except ModelNotFoundError as error:
                others = ", ".join(one for one in dict.fromkeys(known) if one != self.default)
                raise ModelNotFoundError(
                    f"{error}; other models here: {others[:400]}" if others else str(error)
                ) from None
        return max(meant, key=len, default=self.default)

    @asynccontextmanager
    async def use(
        self, name: str | None, keep_s: float | None = None
    ) -> AsyncIterator[LoadedModel]:
        """The model that `name` means, loaded, and not let go while the block runs.

        Args:
            keep_s: from now on, instead of the owner's; below 0: for ever; 0: until nobody uses it.

        Raises:
            ModelNotFoundError, ModelError: it cannot be loaded.
            OverloadedError: there is no room for it now.
        """
        model = await self._taken(await self.model_of(name))
        try:
            yield model
        finally:
            model.users -= 1
            model.used_at = self._clock()
            if keep_s is not None:
                model.expired = keep_s == 0
                model.keep_s = max(keep_s, 0.0)

    async def _taken(self, name: str) -> LoadedModel:
        while (model := self.loaded.get(name)) is None:
            task = self._loading.get(name) or self._begin(name)
            await asyncio.shield(task)  # who goes away ends no other's loading
        model.users += 1
        model.expired = False
        return model

    def _begin(self, name: str) -> "asyncio.Task[None]":
        def ended(task: "asyncio.Task[None]") -> None:
            self._loading.pop(name, None)
            if not task.cancelled():
                task.exception()  # told to whoever still waits

        task = asyncio.create_task(self._bring(name))
        self._loading[name] = task
        task.add_done_callback(ended)
        return task

    async def _bring(self, name: str) -> None:
        async with self._changing:
            if name in self.loaded:
                return
            await self._make_room(name, await asyncio.to_thread(self._need, name))
            begun = self._clock()
            model = await self._load(name, self.profiles.get(name))
            model.keep_s, model.used_at = self.keep_s, self._clock()
            self.profiles[name] = model.profile
            self.loaded[name] = model
            logger.info(
                "%s is loaded: %d MB, %.1f s", name, model.bytes / MB, model.used_at - begun
            )

    async def _make_room(self, name: str, need: int) -> None:
        """Raises: ModelError: it never fits. OverloadedError: not beside those that answer now."""
        if not self.limit:
            return
        if need > self.limit:
            raise ModelError(
                f"{name} takes {need / MB:.0f} MB, and models may take {self.limit / MB:.0f} MB "
                f"together; raise engine.memory_bytes, lower engine.kv_bytes, or take a smaller one"
            )
        while sum(model.bytes for model in self.loaded.values()) + need > self.limit:
            idle = [
                (model.used_at, model.name) for model in self.loaded.values() if not model.users
            ]
            if not idle:
                busy = ", ".join(self.loaded)
                raise OverloadedError(
                    f"there is no room for {name} ({need / MB:.0f} MB of {self.limit / MB:.0f}) "
                    f"while {busy} answer; try again later, or raise engine.memory_bytes"
                )
            await self._let_go(min(idle)[1], f"room for {name}")

    async def _let_go(self, name: str, why: str) -> None:
        # by its name: whoever held it in a variable would keep its memory
        stop = self.loaded.pop(name).stop
        await stop()
        logger.info("%s is let go: %s", name, why)

    async def release(self, name: str) -> None:
        """Let a model's memory go now, if it is loaded. Raises: OverloadedError: it answers."""
        async with self._changing:
            await self._release(name)

    async def _release(self, name: str) -> None:
        if name not in self.loaded:
            return
        if self.loaded[name].users:
            raise OverloadedError(f"{name} is answering; try again when it is done")
        await self._let_go(name, "its owner wants it")

    async def remove(self, name: str, delete: Callable[[], int]) -> int:
        """Let a model go, delete it from the disk, and forget that it was ever loaded; nobody
        loads it meanwhile. Returns what `delete` does.

        Raises:
            OverloadedError: it answers. QuietchoirError: as `delete`.
        """
        async with self._changing:
            await self._release(name)
            freed = await asyncio.to_thread(delete)
            self.profiles.pop(name, None)
            return freed

    async def let_idle_go(self) -> None:
        """Let go whatever nobody asked for long enough."""
        async with self._changing:
            for name in [one.name for one in self.loaded.values() if self._is_over(one)]:
                await self._let_go(name, "nobody asked for it")

    def _is_over(self, model: LoadedModel) -> bool:
        late = model.keep_s > 0 and self._clock() - model.used_at >= model.keep_s
        return not model.users and (late or model.expired)

    async def watch(self) -> None:
        """Look after idle models until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.let_idle_go()
            except Exception:
                logger.exception("an idle model was not let go")

    def expires_in(self, model: LoadedModel) -> float | None:
        """Seconds until an idle model is let go; None: never for that."""
        if not model.keep_s:
            return None
        return max(0.0, model.keep_s - (0.0 if model.users else self._clock() - model.used_at))

    def bytes_loaded(self) -> Mapping[str, int]:
        """Memory of each that is loaded."""
        return {name: model.bytes for name, model in self.loaded.items()}

    async def stop(self) -> None:
        """Let everything go, whoever uses it."""
        for task in list(self._loading.values()):
            await asyncio.wait((task,))
        async with self._changing:
            for name in list(self.loaded):
                await self._let_go(name, "the node ends")
