"""One running node, assembled: engine, assistant, plugins, server, and a federation's member if its
owner joined one.

Knows which part stands on which. Knows nothing of what they do.
Always: what was started is stopped, in reverse order, also when a later part does not start.
"""

import asyncio
import ctypes
import dataclasses
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import library_accounts
from .core import log, parts, paths
from .core.assistant.adapters import AdapterInfo, AdapterSwitch
from .core.assistant.approvals import Approvals, misnamed
from .core.assistant.assistant import Assistant
from .core.assistant.calibration import MEASURED, Calibration, Calibrations, weigh
from .core.assistant.calibration import calibrate as fitted
from .core.assistant.condenser import Condenser
from .core.assistant.context import ContextWindow, Message
from .core.assistant.idle import IdleThread
from .core.assistant.model_pool import LoadedModel, ModelFacts, ModelPool, ModelProfile
from .core.assistant.passages import PassageRanker
from .core.assistant.router import WORDS_ALONE, Route, Router, no_embedding, read_route
from .core.assistant.tool_ranking import Embed, ToolRanking
from .core.assistant.tools import ALONE, CallContext, ToolInfo, ToolResult, Tools
from .core.config import Config, SamplingConfig
from .core.engine import fit
from .core.engine.conversations import FOLDER
from .core.engine.draft_model import MOST_ANSWERS
from .core.engine.embedder import SentenceEmbedder
from .core.engine.engine import Engine, EngineStats, StepTimes
from .core.engine.request import GenerationRequest, Timing
from .core.engine.reranker import CrossEncoder
from .core.engine.sampling.params import SamplingParams
from .core.errors import (
    EngineError,
    FederationError,
    ModelNotFoundError,
    QuietchoirError,
    RequestError,
    UnsupportedModelError,
)
from .core.hardware import discovery
from .core.hardware.discovery import core_list
from .core.hardware.power import Allowance, EnergyMeter, Power, keep_to
from .core.history.remains import forget_consent, forget_saved, forgotten_at
from .core.history.store import PERSONAL, HistoryStore
from .core.metrics import ENGINE_COUNTERS, ENGINE_GAUGES, NodeMetrics
from .core.models import transformers_model, weights
from .core.models.generation_config import UNSAID
from .core.models.hub import catalog
from .core.models.hub.catalog import model_name
from .core.models.hub.client import HubClient
from .core.models.summary import summary_of
from .core.models.transformers_model import ServedModel, TransformersModel
from .core.models.weights import Weights
from .core.server import auth
from .core.server.app import NodeServer, Parts, claim, encryption
from .core.server.documents_api import OwnersDocuments
from .core.server.embeddings import Source
from .core.server.models_api import OwnersModels
from .core.toolcall import ToolCall, parse_all
from .core.trace import Trace
from .documents import FolderWatcher, NodeDocuments
from .federation.adapters.registry import Card, Registry
from .federation.client_node import ClientOptions, destination_of, join
from .federation.events import (
    AdoptedEvent,
    ConsentedEvent,
    DisconnectedEvent,
    FederationEvent,
    PersonalEvent,
    RestingEvent,
    WithheldEvent,
)
from .federation.membership import roster
from .federation.monitor.event_printer import sentence
from .federation.monitor.member_status import MemberStatus
from .plugins import grants
from .plugins.host import PluginHost
from .plugins.market import NodeMarket
from .plugins.sampling import Written
from .private_search.known import EMBEDDER, KnownLibraries

if TYPE_CHECKING:
    from .core.models.lora.adapter import (
        Adapter,  # with torch, which a node that serves does without
    )

M = TypeVar("M")
HOUSEHOLD = "quietchoir/household"
HOME_FILE = "home.json"
SMALL = 1_000_000_000  # a model of fewer weights chooses better among few tools
JOULES = {"joules": "energy that this machine has used since the node's start"}
POWER_GAUGES = {
    "on_battery": "1 if this machine's battery runs it",
    "battery_percent": "how full it is",
    "celsius": "the processor's warmest sensor",
    "share": "of the cores and of the batch that the node uses",
}
STAGES = ("plan", "forward", "sample", "deliver")  # of a step
FOLLOW_S = 1.0  # how soon a choice made by another program is noticed
POWER_S = 10.0  # how soon a plug that was pulled, or heat, is noticed
LEAVE_S = 5.0  # how long a training step may delay the end
logger = log.get("node")


class TracedTools:
    """The same tools; each call is a span of a trace, by its tool's name alone."""

    def __init__(self, tools: Tools, trace: Trace) -> None:
        self._tools, self._trace = tools, trace

    def tools(self) -> Sequence[ToolInfo]:
        """As `Tools`."""
        return self._tools.tools()

    async def call(
        self, call: ToolCall, deadline_s: float, context: CallContext = ALONE, /
    ) -> ToolResult:
        """As `Tools`."""
        known = any(call.name == tool.name for tool in self.tools())
        with self._trace.around(f"tool {call.name}" if known else "tool that is none"):
            return await self._tools.call(call, deadline_s, context)


def traced(trace: Trace, times: StepTimes) -> None:
    """One step of the engine, part by part."""
    counts = {"rows": times.rows, "answers": times.answers}
    starts = (times.plan_s, times.forward_s, times.sample_s, times.deliver_s, times.end_s)
    for name, start_s, end_s in zip(STAGES, starts, starts[1:], strict=False):
        trace.span(name, start_s, end_s, counts)


class RegistryStore:
    """The federations' adapters on this disk, as the assistant wants them: those made for one
    model.
    """

    def __init__(self, registry: Registry, model_digest: str, *, told: bool = True) -> None:
        """`told`: an active adapter of another model is an error, not none."""
        self.registry = registry
        self.model_digest = model_digest
        self.told = told

    def list(self) -> Sequence[AdapterInfo]:
        """Adapters whose signed card names this model; a damaged card is told and left out."""
        found = []
        for name in self.registry.list():
            try:
                card = self.registry.card(name)
            except FederationError as error:
                logger.warning("an adapter is left out: %s", error)
                continue
            if self.model_digest in card.models:
                found.append(AdapterInfo(name, describe(card), card.prompt, card.name))
        return found

    def load(self, id: str) -> "Adapter":
        """Read one, checked against its name. Raises MissingPartError without torch, in which
        adapters are kept.
        """
        with parts.wanted("an adapter"):
            return self.registry.load_for(id, self.model_digest)

    def active(self) -> str | None:
        """The one that its owner chose last."""
        chosen = self.registry.active()
        if chosen is None or self.told or self.model_digest in self.registry.card(chosen).models:
            return chosen
        return None

    def activate(self, id: str | None) -> None:
        """Remember the choice."""
        self.registry.activate(id or "")

    def route(self, id: str, embedding: str) -> Route | None:
        """What an adapter is for, as far as this node's own examples tell; a personal one is for
        what its shared one is for.
        """
        card = self.registry.card(id)
        return read_route(self.registry.folder / (card.parent if card.personal else id), embedding)


def spared(allowance: Allowance) -> str:
    """What a node's owner is told of it."""
    if not allowance.why:
        return "the whole machine is used again"
    return (
        f"{allowance.why}: {100 * allowance.share:.0f} % of the cores and of the batch are used, "
        f"and work ahead of need waits ([power] in config.toml)"
    )


def describe(card: Card) -> str:
    """An adapter in a few words."""
    score = f", {100 * card.accuracy_after:.0f} % right" if card.accuracy_after is not None else ""
    if card.personal:
        return f"{card.name}, personal{score} here"
    return f"{card.name}, {card.rounds} {'round' if card.rounds == 1 else 'rounds'}{score}"


class Node:
    """The parts of one node: `start_assistant` for what answers, `start` for the server around
    it too.
    """

    def __init__(
        self,
        config: Config,
        *,
        home_file: Path | None = None,
        loaded: ServedModel | None = None,
        trace: Path | None = None,
    ) -> None:
        """Nothing starts yet.

        Args:
            home_file: the household that the built-in household plugin acts in.
            loaded: weights to share, if the caller has them; else the configured model is loaded.
            trace: a new file for where the time goes.

        Raises:
            ConfigError: the trace's file cannot be made.
        """
        self.config = config
        self.loaded = loaded
        self.home = paths.private_folder(paths.home())
        files: Mapping[str, Mapping[str, Path]] = (
            {HOUSEHOLD: {HOME_FILE: home_file}} if home_file else {}
        )
        self.approvals = Approvals(config.tools)
        self.plugins = PluginHost(
            config.plugins,
            files=files,
            reads=grants.named_in(config),
            write=self.write_text,
            approvals=self.approvals,
            elicits=True,
        )
        self.parts = AsyncExitStack()
        limit = config.engine.memory_bytes or int(fit.SHARE * discovery.memory_sizes()[0])
        self.pool = ModelPool(
            model_name(config.engine.model),
            self.load_model,
            installed=catalog.installed,
            need=self.need,
            limit=limit,
            keep_s=config.engine.keep_loaded_s,
        )
        self.models: dict[str, ModelParts] = {}  # by name, those that are loaded
        self._counted: dict[str, int] = {}  # by engines that were let go
        self.documents: NodeDocuments
        self.server: NodeServer
        self.trace = None if trace is None else Trace(trace)
        self.tools: Tools = self.plugins
        if self.trace is not None:
            self.parts.callback(self.trace.close)
            self.tools = TracedTools(self.plugins, self.trace)
        self.metrics = NodeMetrics()
        self.power, self.allowance = Power(config.power), Allowance()
        self.page = ""  # the page's address, with the token
        self.history: HistoryStore | None = None
        self.destinations = {PERSONAL: "personal adapter"}  # what conversations may train here
        self.members: dict[str, Membership] = {}  # by the federation's id
        threads = config.engine.threads
        self.embedders = SharedModel(partial(SentenceEmbedder.load, threads=threads))
        self.libraries = KnownLibraries(
            lambda: self.embedders.load(catalog.find(EMBEDDER)), library_accounts.unattended
        )
        self.rerankers = SharedModel(partial(CrossEncoder.load, threads=threads))
        self.routes_requests = config.adapters.route
        self._router: Router | None = None

    async def start_assistant(self) -> None:
        """Load the model and everything that answers.

        Raises:
            ModelError: not on this disk, or not usable. ConfigError: a setting that its owner can
            mend.
        """
        loop = asyncio.get_running_loop()
        self.documents = NodeDocuments(
            lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(),
            self.embedders.load,
            self.config.embedding.model,
        )
        self.parts.push_async_callback(asyncio.to_thread, self.documents.close)
        self.parts.push_async_callback(asyncio.to_thread, self.libraries.close)
        self.metrics.add(
            self.stats, prefix="engine_", counters=ENGINE_COUNTERS, gauges=ENGINE_GAUGES
        )
        self.parts.push_async_callback(self.plugins.stop)
        self.parts.push_async_callback(self.pool.stop)
        # first: what it says of a model that is not there is what its owner has to mend
        async with self.pool.use(None):
            await self.plugins.start()
        for name in misnamed(self.config.tools, [tool.name for tool in self.plugins.tools()]):
            logger.warning(
                "[tools] names %s, as no tool here is called: the rule does nothing", name
            )

    async def write_text(
        self, messages: Sequence[Mapping[str, str]], answer_tokens: int, tokens: int
    ) -> Written:
        """What the plain model of this node writes for a plugin.

        Args:
            answer_tokens: of the answer at most. tokens: of prompt and answer at most.

        Raises:
            RequestError: the messages alone take as many. ModelError, OverloadedError, EngineError:
            there is no answer now.
        """
        async with self.pool.use(None) as model:
            assistant = model.assistant
            prompt = tuple(assistant.tokenizer.encode_chat(messages))
            room = min(tokens, assistant.context) - len(prompt)
            if room < 1:
                raise RequestError(f"the messages have {len(prompt)} tokens; {1 - room} too many")
            params = SamplingParams(max_tokens=min(answer_tokens, room), loop_guard=True)
            request = GenerationRequest(prompt=prompt, sampling_params=params)
            with assistant.engine.submit(request) as generation:  # cancelled if nobody waits
                text = "".join([delta.text async for delta in generation])
            if generation.finish_reason not in ("stop", "length", "repetition"):
                raise generation.error or EngineError("the engine broke the answer off")
            return Written(
                text,
                generation.prompt_tokens + generation.completion_tokens,
                model.name,
                whole=generation.finish_reason == "stop",
            )

    def path_of(self, name: str) -> Path:
        """Where a model lies. Raises: ModelNotFoundError: not on this disk."""
        return catalog.find(self.config.engine.model if name == self.pool.default else name)

    def need(self, name: str) -> int:
        """Bytes of memory that a model is going to take: its weights, and the cache as it is laid
        out for a full batch.

        Raises:
            ModelNotFoundError: it is not on this disk.
        """
        engine, needs = self.config.engine, fit.needs_of(self.path_of(name))
        context, cache = fit.laid_out(needs, engine)
        if name != self.pool.default or not engine.draft_model:
            return needs.weight_bytes + cache
        draft = fit.needs_of(catalog.find(engine.draft_model))
        kept = MOST_ANSWERS * min(context, draft.context) * draft.cache_bytes
        return needs.weight_bytes + cache + draft.weight_bytes + kept

    async def load_model(self, name: str, profile: ModelProfile | None) -> LoadedModel:
        """Everything that answers for one model.

        Raises:
            ModelError: not on this disk, or not usable. ConfigError: a setting that its owner can
            mend. Nothing of it stays then.
        """
        async with AsyncExitStack() as stack:
            model = await self.assemble(name, profile, stack)
            held = stack.pop_all()
        self.models[name] = model
        engine = model.engine
        return LoadedModel(
            profile=ModelProfile(
                name=name,
                adapters=model.adapters,
                facts=profile.facts if profile else model.facts(self.path_of(name)),
                sampling=model.sampling,
                slower=engine.slower,
            ),
            assistant=model.assistant,
            bytes=model.bytes,
            stop=partial(self.unload_model, name, held),
        )

    async def assemble(
        self, name: str, profile: ModelProfile | None, stack: AsyncExitStack
    ) -> "ModelParts":
        """Load, and start what runs beside it; `stack` stops it."""
        default = name == self.pool.default
        path = self.path_of(name)
        served = self.loaded if default else None
        if served is None:
            served = await asyncio.to_thread(transformers_model.load, path)
        recommended = catalog.sampling(self.config.engine.model if default else name).over(
            served.sampling
        )
        engine = await asyncio.to_thread(self.made_engine, served, default=default)
        engine.admit(self.allowance.of(self.config.engine.max_running))
        engine.start()
        stack.push_async_callback(asyncio.to_thread, engine.stop)
        if default:
            await self.keep_conversations(engine, stack)
        registry = Registry(self.home)
        if profile is None:
            store = RegistryStore(registry, served.digest, told=default)
            adapters = AdapterSwitch(name, engine.adapters, store, self.router)
            await adapters.start()
        else:
            adapters = profile.adapters
            await adapters.attach(engine.adapters)
        stack.callback(adapters.park)
        calibrations = Calibrations(registry.folder, served.digest, adapters.prompt_of)
        window, condenser = self.window(engine, served, stack)
        assistant = Assistant(
            engine,
            served.tokenizer,
            self.tools,
            context=engine.context,
            call_timeout_s=self.config.plugins.call_timeout_s,
            prompt_of=adapters.prompt_of,
            calibration_of=calibrations.find,
            is_named=adapters.names,
            wishes_of=adapters.wishes,
            leans=adapters.leans,
            config=self.config.tools,
            window=window,
            documents=self.documents.collections,
            libraries=self.libraries,
            facts=self.documents.facts,
            ranking=ToolRanking(self.tool_embedder),
            remember=self.documents.remember,
            small=served.parameters < SMALL,
            approvals=self.approvals,
        )
        return ModelParts(
            weights=served,
            engine=engine,
            adapters=adapters,
            calibrations=calibrations,
            assistant=assistant,
            condenser=condenser,
            sampling=self.config.sampling.over(recommended).over(UNSAID),
        )

    def made_engine(self, served: ServedModel, *, default: bool) -> Engine:
        """The engine, whose requests are measured, and whose steps are traced if that is wanted;
        the default model's guesses with `engine.draft_model`.
        """
        more: dict[str, Any] = {"observe": self.observe}
        if self.trace is not None:
            more["watch"] = partial(traced, self.trace)
        if default and (smaller := self.config.engine.draft_model):
            more["draft"] = transformers_model.load(catalog.find(smaller))
        return Engine(served, self.config.engine, **more)

    async def unload_model(self, name: str, held: AsyncExitStack) -> None:
        """Stop everything of one model, and drop it: its memory goes with it."""
        counted = dataclasses.asdict(self.models.pop(name).engine.stats())
        for counter in counted.keys() - ENGINE_GAUGES.keys():
            self._counted[counter] = self._counted.get(counter, 0) + counted[counter]
        await held.aclose()
        await asyncio.to_thread(give_back_memory)

    @property
    def default(self) -> "ModelParts":
        """What answers where no model is named. Raises: EngineError: its memory was let go."""
        found = self.models.get(self.pool.default)
        if found is None:
            raise EngineError(f"{self.pool.default} is not loaded now; ask it something")
        return found

    @property
    def engine(self) -> Engine:
        """The default model's."""
        return self.default.engine

    @property
    def weights(self) -> ServedModel:
        """The default model's."""
        return self.default.weights

    @property
    def assistant(self) -> Assistant:
        """The default model's."""
        return self.default.assistant

    @property
    def adapters(self) -> AdapterSwitch:
        """The default model's; they stay when its memory is let go."""
        return self.pool.profiles[self.pool.default].adapters

    @property
    def sampling(self) -> SamplingConfig:
        """How the default model's talk is drawn where clients leave it open."""
        return self.pool.profiles[self.pool.default].sampling

    @property
    def condenser(self) -> Condenser | None:
        """The default model's."""
        return self.default.condenser

    def window(
        self, engine: Engine, served: ServedModel, stack: AsyncExitStack
    ) -> tuple[ContextWindow, Condenser | None]:
        """What fits long conversations; by their words alone where there is no embedding model."""
        config, model = self.config.engine, served.context_length
        if engine.context < min(config.context, model):
            advice = f"raise engine.kv_bytes, which holds {engine.context} tokens now"
        elif engine.context < model:
            advice = f"raise engine.context, now {config.context}; the model holds {model}"
        else:
            advice = f"take a model that holds more than {model}"
        ranker = PassageRanker(self.passage_embedder)
        works, condenser = [ranker.settle], None
        if self.config.context.condense:
            condenser = Condenser(
                engine,
                served.tokenizer,
                home=self.home,
                model=served.digest,
                store=lambda: self.history,
                is_busy=self.answering,
            )
            works.append(condenser.settle)
        quiet = IdleThread(self.has_time, works)
        quiet.start()
        stack.push_async_callback(asyncio.to_thread, quiet.stop)
        if condenser is not None:
            stack.callback(condenser.stop)
        window = ContextWindow(served.tokenizer.encode, ranker, condenser=condenser, advice=advice)
        return window, condenser

    def passage_embedder(self) -> SentenceEmbedder | None:
        """The embedding model, if conversations may be searched with it and it is there."""
        if not self.config.context.embeddings:
            return None
        try:
            return self.embedders.load(catalog.find(self.config.embedding.model))
        except QuietchoirError as error:
            if str(error) != self.embedders.told:
                logger.info("long conversations are searched by their words alone: %s", error)
            self.embedders.told = str(error)
            return None

    def tool_embedder(self) -> Embed | None:
        """What turns tools' descriptions into vectors, under the same terms."""
        found = self.passage_embedder()
        return None if found is None else found.embed

    async def calibrate(self, adapter: str, examples: Path) -> Calibration:
        """Measure which of an adapter's calls are right, and keep it beside the adapter.

        Args:
            examples: held-out, chat-format; the last message of each is the right answer.

        Raises:
            DataError: not such a file.
        """
        from .core.training.examples import read_jsonl

        asked = [
            (
                [Message(one["role"], one["content"]) for one in example.messages[:-1]],
                parse_all(example.answer),
            )
            for example in read_jsonl(examples)
        ]
        prompt = self.adapters.prompt_of(adapter)
        harmless = Assistant(
            self.engine,
            self.weights.tokenizer,
            self.plugins,
            context=self.engine.context,
            prompt_of=lambda _: prompt,
            calibration_of=lambda _: Calibration(),  # so that probabilities are told
            config=MEASURED,
        )
        on_offer = {tool.name: tool for tool in self.plugins.tools()}
        weighed = await weigh(harmless, asked, adapter)
        found = fitted(weighed, on_offer, model=self.weights.digest, prompt=prompt)
        self.default.calibrations.put(adapter, found)
        return found

    async def keep_conversations(self, engine: Engine, stack: AsyncExitStack) -> None:
        """Take up where the last run's conversations ended, and keep this run's; if none are to
        be kept, delete what is.
        """
        most, folder, kept = (
            self.config.engine.keep_conversations,
            self.home / FOLDER,
            engine.conversations,
        )
        if not most:
            await asyncio.to_thread(kept.save_latest, folder, 0)
            return
        forgotten = forgotten_at(self.home)
        await asyncio.to_thread(kept.restore_latest, folder)

        def save(most: int) -> None:
            try:
                kept.save_latest(folder, most)
            except QuietchoirError as error:
                logger.error(
                    "conversations were not kept, the next start computes them anew: %s", error
                )

        def keep() -> None:
            # what was deleted meanwhile, or while they were written, may stand in any of them
            if forgotten_at(self.home) == forgotten:
                save(most)
            if forgotten_at(self.home) != forgotten:
                save(0)

        stack.push_async_callback(asyncio.to_thread, keep)

    def router(self) -> Router | None:
        """What chooses between the active adapter and the plain model; None: the active one
        answers everything.

        Not made before a request needs it: general requests are embedded once, and kept.
        """
        if self.routes_requests and self._router is None:
            self._router = self.made_router()
        return self._router

    def made_router(self) -> Router:
        """One over this node's embedding model, or, said in the log, over words alone."""
        try:
            embedder = self.embedders.load(catalog.find(self.config.embedding.model))
        except QuietchoirError as error:
            logger.info("what is for an adapter is told by its words alone: %s", error)
            return Router(no_embedding, WORDS_ALONE)
        return Router(embedder.embed, embedder.identity)

    def open_history(self) -> None:
        """Keep conversations from now on, if their owner wants that."""
        if self.config.history.keep and self.history is None:
            self.history = HistoryStore(self.home)
            self.parts.callback(self.history.close)

    def forgotten(self, conversation: str) -> Sequence[str]:
        """Take away what else holds a forgotten conversation: computed states, memory's proposals,
        what was allowed in it, personal adapters that learned from it, its part in what adapters
        are for; returns these adapters.

        Raises:
            QuietchoirError: a file that is left; done again, what was done stays done.
        """
        forget_saved(self.home)
        adapters: Sequence[str] = ()
        if self.history is not None:
            registry = Registry(self.home)
            adapters = registry.remove_personal(self.history.marks())
            for one in adapters:
                self.history.drop_marks(one)
            registry.renew_routes(self.history)
        self.approvals.forget(conversation)
        self.documents.forget_said(conversation)
        for model in list(self.models.values()):
            if model.condenser is not None:
                model.condenser.forget(conversation)
        return adapters

    async def start(self) -> None:
        """Take the port, load everything, answer.

        Raises:
            ConfigError: the port cannot be used. ModelNotFoundError: the reranker is not there.
            ModelError: as `start_assistant`.
        """
        # first: loading takes seconds, and what is amiss before it should be told at once
        tls = encryption(self.config.server)
        claimed = claim(self.config.server)
        self.parts.callback(claimed.close)
        if scoring := self.config.embedding.reranker:
            found_reranker(scoring)
        token = auth.load_token(self.home)
        await self.start_assistant()
        self.open_history()
        chosen = self.config.embedding.model
        embedding = Source(model_name(chosen), lambda: catalog.find(chosen), self.embedders.load)
        reranker = None
        if scoring:
            name = model_name(scoring)
            reranker = Source(name, lambda: found_reranker(scoring), self.rerankers.load)
        parts = Parts(
            pool=self.pool,
            tools=self.tools,
            approvals=self.approvals,
            token=token,
            stats=self.stats,
            metrics=self.metrics,
            embedding=embedding,
            reranker=reranker,
            history=self.history,
            documents=OwnersDocuments(
                self.documents.collections,
                self.documents.memory,
                self.documents.parser,
                partial(forget_saved, self.home),
                partial(forget_consent, self.home),
            ),
            libraries=self.libraries.entries,
            models=OwnersModels(
                hub=lambda: HubClient(self.config.models.hub),
                default=self.pool.default,
                engine=self.config.engine,
                limit=self.pool.limit,
                loaded=self.pool.bytes_loaded,
                default_path=self.path_of(self.pool.default),
                remove=self.pool.remove,
            ),
            plugins=NodeMarket(self.plugins, self.config.plugins),
            destinations=lambda: self.destinations,
            forgotten=self.forgotten,
            memberships=MemberStatus(self.home, self.config, self.told_by_member),
            describe=lambda name: facts_of_file(self.path_of(name)),
        )
        self.server = NodeServer(parts, self.config.server, claimed, tls)
        self.parts.push_async_callback(self.server.stop)
        await self.server.start()
        self.page = f"{self.server.url}#token={token}"
        watcher = FolderWatcher(self.documents.collections, self.documents.parser, self.has_time)
        watcher.start()
        self.parts.push_async_callback(asyncio.to_thread, watcher.stop)
        energy = EnergyMeter()
        if energy.sources:
            self.metrics.add(lambda: {"joules": energy.joules() or 0.0}, prefix="", counters=JOULES)
        self.metrics.add(self.power_numbers, prefix="power_", gauges=POWER_GAUGES)
        for work in (self.follow(), self.spare(), self.pool.watch()):
            self.parts.callback(asyncio.create_task(work).cancel)

    async def follow(self) -> None:
        """Answer with what `quietchoir adapter activate` or `rollback` chooses while this node
        runs.
        """
        told = ""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                for profile in list(self.pool.profiles.values()):
                    await profile.adapters.refresh()
            except QuietchoirError as error:
                if str(error) != told:
                    logger.error(
                        "the adapter that was chosen cannot be used, the one before it answers: %s",
                        error,
                    )
                told = str(error)

    async def spare(self) -> None:
        """Shrink threads, batch and work ahead of need on battery and while it is hot, and let them
        grow again.
        """
        cores = core_list()
        try:
            while True:
                found = await asyncio.to_thread(self.power.allowance)
                if (found.share, found.prefetch) != (self.allowance.share, self.allowance.prefetch):
                    for model in list(self.models.values()):
                        most = found.of(self.config.engine.max_running)
                        await asyncio.to_thread(model.engine.admit, most)
                    keep_to(found.of(len(cores)), cores)
                    logger.warning("%s", spared(found))
                    self.allowance = found
                await asyncio.sleep(POWER_S)
        finally:
            if self.allowance.share < 1:
                keep_to(len(cores), cores)

    def power_numbers(self) -> Mapping[str, float]:
        """What is told of power: nothing of what this machine cannot tell."""
        state = self.power.state()
        told = {**dataclasses.asdict(state), "share": self.allowance.share}
        return {name: float(value) for name, value in told.items() if value is not None}

    def has_time(self) -> bool:
        """May work ahead of need be done now?"""
        return self.allowance.prefetch and not self.answering()

    def take_part(self, federation: Path) -> None:
        """Be a member of a federation from now on, with the folder of examples that was named, or
        else with the conversations that its owner gave, once there are some.
        """
        training = self.config.training
        policy = roster.load(federation)
        self.destinations[destination_of(policy)] = policy.name
        options = ClientOptions(
            file=federation, data=training.data, home=self.home, proxy=training.proxy, patient=True
        )
        # one set of weights serves and trains
        shared = self.weights if isinstance(self.weights, Weights) else None
        membership = Membership(options, self.config, shared, self.answering, self.why_not_train)
        membership.thread.start()
        self.members[policy.federation.hex()] = membership
        self.parts.push_async_callback(asyncio.to_thread, membership.leave)

    def told_by_member(self, federation: str) -> Mapping[str, Any] | None:
        """What this node's member of a federation told last; None: it has none in this process."""
        membership = self.members.get(federation)
        return None if membership is None else membership.latest

    def why_not_train(self) -> str:
        """Why no training may run now; "": it may."""
        if self.config.power.train_when_idle and self.answering():
            return "somebody is answered here (power.train_when_idle)"
        return self.power.why_not_train()

    def answering(self, beside: int = 0) -> bool:
        """Is somebody waiting for an answer, beside so many requests of the node's own?"""
        stats = [model.engine.stats() for model in list(self.models.values())]
        return sum(one.running + one.waiting for one in stats) > beside

    def stats(self) -> Mapping[str, Any]:
        """All engines' counters together, of those that were let go too."""
        found = dict.fromkeys((field.name for field in dataclasses.fields(EngineStats)), 0)
        each = [dataclasses.asdict(model.engine.stats()) for model in list(self.models.values())]
        for counts in (self._counted, *each):
            for name, count in counts.items():
                found[name] += count
        return found

    def observe(self, timing: Timing) -> None:
        """A request ended."""
        self.metrics.observe(**dataclasses.asdict(timing))

    async def stop(self) -> None:
        """Stop everything that was started, the newest first."""
        await self.parts.aclose()

    async def __aenter__(self) -> "Node":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """What answers for one model."""

    weights: ServedModel
    engine: Engine
    adapters: AdapterSwitch
    calibrations: Calibrations
    assistant: Assistant
    condenser: Condenser | None
    sampling: SamplingConfig

    @property
    def bytes(self) -> int:
        """Of memory: weights and cache."""
        held = self.engine.weight_bytes
        if isinstance(self.weights, Weights):
            blocks = {id(one): one.memory.size for one in self.weights.tensors.values()}
            held += sum(blocks.values())
        if self.engine.draft is not None:
            held += self.engine.draft.bytes
        return held + self.engine.scheduler.pool.total * self.engine.backend.block_bytes

    def facts(self, path: Path) -> ModelFacts:
        """What is told of it."""
        told, own = facts_of(self.weights, path), self.weights
        return dataclasses.replace(told, digest=own.digest, context=self.engine.context)


def give_back_memory() -> None:
    """To the system, what was dropped: engines and their threads refer to each other, and the
    allocator keeps what it was given where nobody tells it.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None:
        trim(0)


def facts_of_file(path: Path) -> ModelFacts:
    """What is told of a model that is not loaded: read from its file, without a hash of it.

    Raises:
        ModelError: it is none.
    """
    try:
        architecture, tensors, tokenizer, sampling = weights.read_parts(path)
    except UnsupportedModelError as error:
        return facts_of(transformers_model.read(path, error), path)
    return facts_of(Weights(architecture, tensors, tokenizer, "", sampling), path)


def facts_of(own: ServedModel, path: Path) -> ModelFacts:
    """The same of one that was read."""
    modified = weights.model_at(path).stat().st_mtime
    if isinstance(own, TransformersModel):
        return ModelFacts(
            family=own.family,
            parameters=own.parameters,
            bytes=own.bytes,
            context=own.context_length,
            hidden_size=own.hidden_size,
            template=own.tokenizer.template.source,
            modified=modified,
        )
    found = summary_of(own.architecture, own.tensors, own.tokenizer, own.sampling)
    return ModelFacts(
        family=own.architecture.family,
        parameters=found.parameters,
        quant_type=next(iter(found.quant_types), ""),
        bytes=found.bytes,
        context=own.context_length,
        hidden_size=own.architecture.hidden_size,
        template=own.tokenizer.template.source,
        modified=modified,
    )


def found_reranker(named: str) -> Path:
    """Where the reranker of the settings is; it is read at the first question.

    Raises:
        ModelNotFoundError: not on this disk, or nobody knows it.
    """
    try:
        return catalog.find(named)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"--reranker or embedding.reranker: {error}") from None


class SharedModel(Generic[M]):
    """An embedding model or a reranker, read once for all who ask, in whatever thread."""

    def __init__(self, read: Callable[[Path], M]) -> None:
        """`read`: of a folder or file."""
        self.told = ""  # why there is none, if that was said already
        self._read = read
        self._found: M | None = None
        self._reading = threading.Lock()

    def load(self, path: Path) -> M:
        """The model that lies there.

        Raises:
            ModelError: not usable. MissingPartError: only torch could run it here, and torch is
            not there.
        """
        with self._reading:
            if self._found is None:
                self._found = self._read(path)
            return self._found


class Membership:
    """This node's part in a federation, in a thread of its own; its end, good or bad, does not
    end the node.
    """

    def __init__(
        self,
        options: ClientOptions,
        config: Config,
        weights: Weights | None = None,
        busy: Callable[[], bool] = lambda: False,
        resting: Callable[[], str] = str,
    ) -> None:
        self.resting = resting
        self.options = options
        self.config = config
        self.weights = weights
        self.busy = busy
        self.left = threading.Event()
        self.latest: Mapping[str, Any] = {"at": time.time(), "words": ""}  # what was told last
        self.thread = threading.Thread(target=self.run, name="quietchoir-member", daemon=True)

    def run(self) -> None:
        """Take part until told to leave."""
        try:
            join(
                self.options,
                self.config,
                self.tell,
                self.left,
                loaded=self.weights,
                busy=self.busy,
                resting=self.resting,
            )
        except QuietchoirError as error:
            logger.error("not in the federation: %s", error)
            self.latest = {"at": time.time(), "words": str(error)}
        except Exception as error:
            if parts.updated():
                logger.error("not in the federation: %s", parts.told_updated(error))
                return
            logger.exception("the federation's member broke; the assistant goes on without it")

    def tell(self, event: FederationEvent) -> None:
        """What a reader of the log wants to know, and the last of it for the page, which has its
        own words for most kinds of events.
        """
        if words := sentence(event, serving=True):
            told = {key: value for key, value in event.table().items() if value == value}  # no NaN
            self.latest = {**told, "at": time.time(), "words": words}
        if isinstance(event, AdoptedEvent):
            logger.warning(
                "a finished adapter came: %s; choose it on the page or with: quietchoir adapter "
                "activate",
                event.adapter,
            )
        elif isinstance(event, DisconnectedEvent) and not event.again:
            logger.warning("federation: the coordinator at %s %s", event.address, event.reason)
        elif isinstance(event, PersonalEvent):
            logger.warning("%s", event.words)
        elif isinstance(event, WithheldEvent | ConsentedEvent | RestingEvent):
            logger.warning("%s", sentence(event, serving=True))
        else:
            logger.info("federation: %s", event.name)

    def leave(self) -> None:
        """Ask the thread to end; training that runs is given up, nothing of it was written."""
        self.left.set()
        self.thread.join(LEAVE_S)


async def serve(
    config: Config,
    tell: Callable[[Node], None],
    *,
    home_file: Path | None = None,
    federation: Path | None = None,
    trace: Path | None = None,
) -> None:
    """Run a node until Ctrl-C, or SIGTERM, at which answers that run get their time; whichever
    comes second ends it at once.

    Args:
        tell: called once, when the node answers.
        federation: a federation file whose member this node is.
        trace: a new file for where the time goes.

    Raises:
        ConfigError: the port or the trace's file cannot be used.
    """
    leaving, ended = asyncio.Event(), asyncio.Event()

    def leave(at_once: bool) -> None:
        if at_once or leaving.is_set():
            ended.set()
        leaving.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, leave, True)
    loop.add_signal_handler(signal.SIGTERM, leave, False)
    async with Node(config, home_file=home_file, trace=trace) as node:
        starting = asyncio.ensure_future(node.start())
        waiting = asyncio.ensure_future(leaving.wait())
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # Ctrl-C while the model loads
            starting.cancel()
            await asyncio.wait((starting,))
            return
        await starting
        if federation is not None:
            node.take_part(federation)
        tell(node)
        await waiting
        draining = asyncio.ensure_future(node.server.drain(config.server.drain_s))
        ending = asyncio.ensure_future(ended.wait())
        await asyncio.wait((draining, ending), return_when=asyncio.FIRST_COMPLETED)
        for one in (draining, ending):
            one.cancel()
