"""One running node, assembled: engine, assistant, plugins, server, and a federation's member if its
owner joined one.

Knows which part stands on which. Knows nothing of what they do.
Always: what was started is stopped, in reverse order, also when a later part does not start.
"""

import asyncio
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import log, parts, paths
from .core.assistant.adapters import AdapterInfo, AdapterSwitch
from .core.assistant.approvals import misnamed
from .core.assistant.assistant import Assistant
from .core.assistant.calibration import MEASURED, Calibration, Calibrations, weigh
from .core.assistant.calibration import calibrate as fitted
from .core.assistant.condenser import Condenser
from .core.assistant.context import ContextWindow, Message
from .core.assistant.idle import IdleThread
from .core.assistant.passages import PassageRanker
from .core.assistant.router import GENERAL, Router, Vectors, read_route, save_route
from .core.assistant.tool_ranking import Embed, ToolRanking
from .core.assistant.tools import ToolInfo, ToolResult, Tools
from .core.config import Config, SamplingConfig
from .core.engine.conversations import FOLDER
from .core.engine.embedder import SentenceEmbedder
from .core.engine.engine import Engine, StepTimes
from .core.engine.request import Timing
from .core.errors import FederationError, QuietchoirError
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
from .core.server.ollama_api import ModelFacts
from .core.toolcall import ToolCall, parse
from .core.trace import Trace
from .core.training.household.talk import general_requests
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
from .plugins.host import PluginHost

if TYPE_CHECKING:
    from .core.models.lora.adapter import (
        Adapter,  # with torch, which a node that serves does without
    )

HOUSEHOLD = "quietchoir/household"
HOME_FILE = "home.json"
SMALL = 1_000_000_000  # a model of fewer weights chooses better among few tools
GENERAL_REQUESTS = 192  # that stand for what is no adapter's
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

    async def call(self, call: ToolCall, deadline_s: float, /) -> ToolResult:
        """As `Tools`."""
        known = any(call.name == tool.name for tool in self.tools())
        with self._trace.around(f"tool {call.name}" if known else "tool that is none"):
            return await self._tools.call(call, deadline_s)


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

    def __init__(self, registry: Registry, model_digest: str) -> None:
        self.registry = registry
        self.model_digest = model_digest

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
        return self.registry.active()

    def activate(self, id: str | None) -> None:
        """Remember the choice."""
        self.registry.activate(id or "")

    def route(self, id: str, width: int) -> "Vectors | None":
        """What an adapter is for, as far as this node's own examples tell; a personal one is for
        what its shared one is for.
        """
        card = self.registry.card(id)
        return read_route(self.registry.folder / (card.parent if card.personal else id), width)


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
        self.plugins = PluginHost(config.plugins, files=files)
        self.parts = AsyncExitStack()
        self.weights: ServedModel
        self.engine: Engine
        self.adapters: AdapterSwitch
        self.assistant: Assistant
        self.calibrations: Calibrations
        self.documents: NodeDocuments
        self.server: NodeServer
        self.trace = None if trace is None else Trace(trace)
        if self.trace is not None:
            self.parts.callback(self.trace.close)
        self.metrics = NodeMetrics()
        self.power, self.allowance = Power(config.power), Allowance()
        self.page = ""  # the page's address, with the token
        self.history: HistoryStore | None = None
        self.condenser: Condenser | None = None
        self.destinations = {PERSONAL: "personal adapter"}  # what conversations may train here
        self.members: dict[str, Membership] = {}  # by the federation's id
        self.embedders = SharedEmbedder(config.engine.threads)
        self.routes_requests = config.adapters.route
        self._router: Router | None = None
        self.sampling: SamplingConfig  # how talk is drawn where clients leave it open

    async def start_assistant(self) -> None:
        """Load the model and everything that answers.

        Raises:
            ModelError: not on this disk, or not usable. ConfigError: a setting that its owner can
            mend.
        """
        if self.loaded is None:
            self.loaded = await asyncio.to_thread(
                transformers_model.load, catalog.find(self.config.engine.model)
            )
        self.weights = self.loaded
        recommended = catalog.sampling(self.config.engine.model).over(self.weights.sampling)
        self.sampling = self.config.sampling.over(recommended).over(UNSAID)
        loop = asyncio.get_running_loop()
        self.documents = NodeDocuments(
            lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(),
            self.embedders.load,
            self.config.embedding.model,
        )
        self.parts.push_async_callback(asyncio.to_thread, self.documents.close)
        self.engine = await asyncio.to_thread(self.made_engine)
        self.metrics.add(
            self.stats, prefix="engine_", counters=ENGINE_COUNTERS, gauges=ENGINE_GAUGES
        )
        self.engine.start()
        self.parts.push_async_callback(asyncio.to_thread, self.engine.stop)
        await self.keep_conversations()
        self.parts.push_async_callback(self.plugins.stop)
        await self.plugins.start()
        for name in misnamed(self.config.tools, [tool.name for tool in self.plugins.tools()]):
            logger.warning(
                "[tools] names %s, as no tool here is called: the rule does nothing", name
            )
        registry = Registry(self.home)
        store = RegistryStore(registry, self.weights.digest)
        self.adapters = AdapterSwitch(
            model_name(self.config.engine.model), self.engine.adapters, store, self.router
        )
        self.calibrations = Calibrations(
            registry.folder, self.weights.digest, self.adapters.prompt_of
        )
        await self.adapters.start()
        self.assistant = Assistant(
            self.engine,
            self.weights.tokenizer,
            self.plugins if self.trace is None else TracedTools(self.plugins, self.trace),
            context=self.engine.context,
            call_timeout_s=self.config.plugins.call_timeout_s,
            prompt_of=self.adapters.prompt_of,
            calibration_of=self.calibrations.find,
            config=self.config.tools,
            window=self.window(),
            documents=self.documents.collections,
            facts=self.documents.facts,
            ranking=ToolRanking(self.tool_embedder),
            remember=self.documents.remember,
            small=self.weights.parameters < SMALL,
        )

    def made_engine(self) -> Engine:
        """The engine, whose requests are measured, and whose steps are traced if that is wanted."""
        if self.trace is None:
            return Engine(self.weights, self.config.engine, observe=self.observe)
        watch = partial(traced, self.trace)
        return Engine(self.weights, self.config.engine, observe=self.observe, watch=watch)

    def window(self) -> ContextWindow:
        """What fits long conversations; by their words alone where there is no embedding model."""
        engine, model = self.config.engine, self.weights.context_length
        if self.engine.context < min(engine.context, model):
            advice = f"raise engine.kv_bytes, which holds {self.engine.context} tokens now"
        elif self.engine.context < model:
            advice = f"raise engine.context, now {engine.context}; the model holds {model}"
        else:
            advice = f"take a model that holds more than {model}"
        ranker = PassageRanker(self.passage_embedder)
        works = [ranker.settle]
        if self.config.context.condense:
            self.condenser = Condenser(
                self.engine,
                self.weights.tokenizer,
                home=self.home,
                model=self.weights.digest,
                store=lambda: self.history,
                is_busy=self.answering,
            )
            works.append(self.condenser.settle)
        quiet = IdleThread(self.has_time, works)
        quiet.start()
        self.parts.push_async_callback(asyncio.to_thread, quiet.stop)
        if self.condenser is not None:
            self.parts.callback(self.condenser.stop)
        return ContextWindow(
            self.weights.tokenizer.encode, ranker, condenser=self.condenser, advice=advice
        )

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
                [call] if (call := parse(example.answer)) is not None else [],
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
        self.calibrations.put(adapter, found)
        return found

    async def keep_conversations(self) -> None:
        """Take up where the last run's conversations ended, and keep this run's; if none are to
        be kept, delete what is.
        """
        most, folder, kept = (
            self.config.engine.keep_conversations,
            self.home / FOLDER,
            self.engine.conversations,
        )
        if not most:
            await asyncio.to_thread(kept.save_latest, folder, 0)
            return
        await asyncio.to_thread(kept.restore_latest, folder)
        forgotten = forgotten_at(self.home)

        def keep() -> None:
            # what was deleted meanwhile may stand in any of them
            rest = most if forgotten_at(self.home) == forgotten else 0
            try:
                kept.save_latest(folder, rest)
            except QuietchoirError as error:
                logger.error(
                    "conversations were not kept, the next start computes them anew: %s", error
                )

        self.parts.push_async_callback(asyncio.to_thread, keep)

    def router(self) -> Router | None:
        """What chooses between the active adapter and the plain model; None: the active one
        answers everything.

        Not made before a request needs it: general requests are embedded once, and kept.
        """
        if self.routes_requests and self._router is None:
            self._router = self.made_router()
            self.routes_requests = self._router is not None
        return self._router

    def made_router(self) -> Router | None:
        """One over this node's embedding model; None, said in the log: there is none."""
        try:
            embedder = self.embedders.load(catalog.find(self.config.embedding.model))
            folder = paths.private_folder(self.home / GENERAL)
            general = read_route(folder, embedder.width)
            if general is None:
                save_route(folder, general_requests(GENERAL_REQUESTS), embedder.embed)
                general = read_route(folder, embedder.width)
        except QuietchoirError as error:
            logger.info("the active adapter answers everything: %s", error)
            return None
        return None if general is None else Router(embedder.embed, general)

    def open_history(self) -> None:
        """Keep conversations from now on, if their owner wants that."""
        if self.config.history.keep and self.history is None:
            self.history = HistoryStore(self.home)
            self.parts.callback(self.history.close)

    def forgotten(self, conversation: str) -> Sequence[str]:
        """Take away what else holds a forgotten conversation: computed states, memory's proposals,
        personal adapters that learned from it, its part in what adapters are for; returns these
        adapters.

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
        self.documents.forget_said(conversation)
        if self.condenser is not None:
            self.condenser.forget(conversation)
        return adapters

    async def start(self) -> None:
        """Take the port, load everything, answer.

        Raises:
            ConfigError: the port cannot be used. ModelError: as `start_assistant`.
        """
        # first: loading takes seconds, and a taken port should be told at once
        tls = encryption(self.config.server)
        claimed = claim(self.config.server)
        self.parts.callback(claimed.close)
        token = auth.load_token(self.home)
        await self.start_assistant()
        self.open_history()
        chosen = self.config.embedding.model
        embedding = Source(model_name(chosen), lambda: catalog.find(chosen), self.embedders.load)
        parts = Parts(
            assistant=self.assistant,
            adapters=self.adapters,
            token=token,
            stats=self.stats,
            metrics=self.metrics,
            embedding=embedding,
            history=self.history,
            documents=OwnersDocuments(
                self.documents.collections,
                self.documents.memory,
                self.documents.parser,
                partial(forget_saved, self.home),
                partial(forget_consent, self.home),
            ),
            models=OwnersModels(
                hub=lambda: HubClient(self.config.models.hub),
                default=self.adapters.model,
                context=self.engine.context,
                limit=self.config.engine.memory_bytes,
                loaded=lambda: {self.adapters.model: self.facts().bytes},
            ),
            destinations=lambda: self.destinations,
            forgotten=self.forgotten,
            sampling=self.sampling,
            memberships=MemberStatus(self.home, self.config, self.told_by_member),
            facts=self.facts(),
            slower=self.engine.slower,
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
        for work in (self.follow(), self.spare()):
            self.parts.callback(asyncio.create_task(work).cancel)

    async def follow(self) -> None:
        """Answer with what `quietchoir adapter activate` or `rollback` chooses while this node
        runs.
        """
        told = ""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                await self.adapters.refresh()
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
                    await asyncio.to_thread(
                        self.engine.admit, found.of(self.config.engine.max_running)
                    )
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
        stats = self.engine.stats()
        return stats.running + stats.waiting > beside

    def facts(self) -> ModelFacts:
        """What is told of the model that is served."""
        own, path = self.weights, weights.model_at(catalog.find(self.config.engine.model))
        if isinstance(own, TransformersModel):
            return ModelFacts(
                family=own.family,
                parameters=own.parameters,
                bytes=own.bytes,
                digest=own.digest,
                context=self.engine.context,
                hidden_size=own.hidden_size,
                template=own.tokenizer.template.source,
                modified=path.stat().st_mtime,
            )
        found = summary_of(own.architecture, own.tensors, own.tokenizer, own.sampling)
        return ModelFacts(
            family=own.architecture.family,
            parameters=found.parameters,
            quant_type=next(iter(found.quant_types), ""),
            bytes=found.bytes,
            digest=own.digest,
            context=self.engine.context,
            hidden_size=own.architecture.hidden_size,
            template=own.tokenizer.template.source,
            modified=path.stat().st_mtime,
        )

    def stats(self) -> Mapping[str, Any]:
        """The engine's counters."""
        return dataclasses.asdict(self.engine.stats())

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


class SharedEmbedder:
    """The embedding model, read once for all who ask, in whatever thread."""

    def __init__(self, threads: int) -> None:
        """`threads`: that share a batch of texts; 0: one a core."""
        self.threads = threads
        self.told = ""  # why there is none, if that was said already
        self._found: SentenceEmbedder | None = None
        self._reading = threading.Lock()

    def load(self, folder: Path) -> SentenceEmbedder:
        """The embedding model of a folder.

        Raises:
            ModelError: not usable. MissingPartError: only torch could run it here, and torch is
            not there.
        """
        with self._reading:
            if self._found is None:
                self._found = SentenceEmbedder.load(folder, self.threads)
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
        """What a reader of the log wants to know, and the last of it for the page."""
        if words := sentence(event):
            self.latest = {"at": time.time(), "words": words}
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
            logger.warning("%s", sentence(event))
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
