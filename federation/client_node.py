"""A node as a member: its data, its learner, its party, its connection. (The coordinator's
counterpart is `server_node`.)

Knows how the organs are put together. Knows nothing of what they do inside.
Always: the model is loaded once and stays; the federation file is accepted before anything is read
or trained.
"""

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import log, paths
from ..core.assistant.router import RouteExample, note_route, route_example
from ..core.config import Config
from ..core.errors import ConfigError, DataError, FederationError, QuietchoirError
from ..core.hardware.power import Power
from ..core.history.redactor import Redactor
from ..core.history.store import FILE as HISTORY_FILE
from ..core.history.store import HistoryStore
from ..core.history.training_set import TrainingSet, training_set
from ..core.prompt import PromptFormat
from ..core.training.household.talk import general_requests
from ..core.worker import Worker
from ..crypto.he.encrypted_ring import MemberService
from ..crypto.identity.keys import Identity
from .adapters.registry import Card, Registry, content_hash, make_card
from .aggregation.base import ClientSecrets
from .aggregation.clipping import carried_stops
from .aggregation.ranges import tensor_stops
from .costs import round_cost
from .events import (
    AdoptedEvent,
    DisconnectedEvent,
    FederationEvent,
    JoiningEvent,
    LoadingEvent,
    OnEvent,
    OwnAdapterEvent,
    PreparingEvent,
    RenewedEvent,
    StaysEvent,
    StepEvent,
    TrainedEvent,
    WithheldEvent,
)
from .membership import roster
from .membership.consent import check_consent, check_upload, why_paused
from .membership.keys import NodeKeys, member_keys
from .membership.update import UpdateReceiver
from .model_files import resident
from .personalization.settings import PersonalSettings
from .personalization.worker import PersonalizationWorker, one_at_a_time, own_adapters
from .rounds.client import Client
from .rounds.contribution_buffer import ContributionBuffer
from .rounds.model_broadcast import ClientModelCache
from .rounds.privacy_accountant import PrivacyAccountant
from .spec.policy import Policy, check_limit, digests_of
from .store.checkpoint import Vector
from .store.client_store import ClientStore
from .store.database import Database
from .store.ledger import AnsweredRounds
from .store.member import hold, open_member
from .store.sent_messages import SentMessages
from .training.consented import ConsentedExamples, ConsentedLearner
from .training.learner import Learner, TrainerLearner
from .training.synthetic_task import SyntheticLearner
from .wire.messages import Task

if TYPE_CHECKING:
    from ..core.models.weights import Weights
    from ..core.training.examples import Example
    from ..core.training.frozen_layers import Prepared
    from ..core.training.trainer import Trainer
    from .personalization.keeping import PersonalOutcome


logger = log.get("federation")
CONSENT_POLL_S = 1.0  # how soon a consent is noticed by a node that waits for one


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What the owner of a node decides when it joins."""

    file: Path
    # folder with train.jsonl and, if there is one, test.jsonl; None: what of this node's history
    # its owner consents to
    data: Path | None
    # of a node that serves: while nothing may train, wait for consent instead of refusing
    patient: bool = False
    home: Path
    once: bool = False  # leave after the first finished adapter
    rehearse: int = 0  # values of a pretended adapter; 0: train in earnest
    wait_s: float = 0.0  # give up if the coordinator is out of reach for so long; 0: never
    # name or path of the federation's model on this disk; empty: found by its digest
    model: str = ""
    # of a federation whose members' models differ: its public set; `model` is then this node's own
    public: Path | None = None
    proxy: str = ""  # URL of the one to dial through; empty: none, whatever the environment names


def join(
    options: ClientOptions,
    config: Config,
    on_event: OnEvent,
    leave: threading.Event | None = None,
    *,
    loaded: "Weights | None" = None,
    busy: Callable[[], bool] = lambda: False,
    resting: Callable[[], str] | None = None,
) -> None:
    """Take part until told to leave.

    Args:
        loaded: the model, if this process holds it already; it must be the one that the federation
        names. busy: does somebody wait for this machine? Personal training then does; the
        federation's does not ask. resting: why nothing may train now, "" if it may; by default as
        `[power]` says. Training that runs ends at its next step, and the node is away until then.

    Raises:
        RosterError, ConfigError, DataError, ModelNotFoundError, FederationError: each says what to
        do.
    """
    if options.proxy:
        from .transport import reach

        reach.proxy_of(options.proxy)
    by_power = resting or Power(config.power).why_not_train
    on_event = one_at_a_time(on_event) if config.training.personal else on_event
    leave = leave or threading.Event()
    policy = roster.accept(options.file, options.home)
    check_consent(policy, config.consent)
    keys = member_keys(options.home)
    name = roster.check_member(policy, keys.identity.public.raw)
    folder = roster.folder(options.home, policy)

    def away() -> str:
        return why_paused(folder) or by_power()

    check_limit(policy, name, config.training.max_rank)
    # Before the model is loaded: that takes a while.
    lent = None
    check_public(options, policy)
    if options.data is None and not options.rehearse:
        lent = LentHistory(options.home, policy, config.history.words)
        if not lent.wait(options.patient, leave, on_event):
            return
    if away():  # before the model is loaded and examples are prepared, which is work too
        from .transport.node import rested

        if not rested(away, leave, on_event):
            return
    examples = examples_of(options, policy, lent)
    if examples is not None:
        on_event(
            LoadingEvent(
                model=policy.model.name, train=len(examples.train), test=len(examples.test)
            )
        )
    weights = model_of(options, config, policy, loaded)
    values = options.rehearse if weights is None else vector_size(policy, weights)
    cost = round_cost(policy, policy.carried(values))
    check_upload(policy, cost.up + cost.once_up, config.consent)
    on_event(
        JoiningEvent(name_here=name, federation=policy.name, bytes_up=cost.up, bytes_down=cost.down)
    )
    learner, size = make_learner(
        options, config, policy, weights, name, ending(on_event, away), examples=examples, lent=lent
    )
    size = policy.carried(size)
    with ExitStack() as opened:
        crypto_worker = opened.enter_context(closing(Worker(MemberService)))
        opened.enter_context(closing(hold(folder)))
        database = opened.enter_context(closing(open_member(folder, policy.federation.hex())))
        node = ClientNode(
            options=options,
            config=config,
            keys=keys,
            name=name,
            weights=weights,
            learner=learner,
            size=size,
            folder=folder,
            database=database,
            ledger=AnsweredRounds(database),
            buffer=ContributionBuffer(database),
            cache=ClientModelCache(database),
            secrets=ClientSecrets(ClientStore(database, size), crypto_worker),
            leave=leave,
            on_event=on_event,
            resting=away,
            route_examples=lambda: route_examples_of(options, policy, lent),
        )
        if config.training.personal and isinstance(learner, TrainerLearner):
            owned = own_adapters(options.home, keys.identity, learner)
            node.personalization_worker = PersonalizationWorker(
                owned,
                learner,
                PersonalSettings.of(config.training),
                database,
                on_event=on_event,
                busy=lambda: busy() or bool(away()),
                begin=partial(begin_personal, options.home, learner),
            )
            opened.enter_context(closing(node.personalization_worker))
        node.take_part(policy)
        if node.personalization_worker is not None and options.once:
            node.personalization_worker.finish()


def ending(on_event: OnEvent, resting: Callable[[], str]) -> OnEvent:
    """`on_event`, which ends a training at its step when nothing may train any more.

    Raises:
        FederationError: from the training; the member's answer is a refusal, and nothing was sent.
    """

    def report(event: FederationEvent) -> None:
        on_event(event)
        if isinstance(event, StepEvent) and (reason := resting()):
            raise FederationError(f"training was given up: {reason}")

    return report


def begin_personal(home: Path, learner: "TrainerLearner") -> "Callable[[PersonalOutcome], None]":
    """What writes down from which kept examples a personal adapter comes that is begun now."""
    ids: tuple[str, ...] = ()
    if isinstance(learner, ConsentedLearner) and learner.consented.set is not None:
        ids = learner.consented.set.ids

    def note(outcome: "PersonalOutcome") -> None:
        """Raises: DataError: one was forgotten meanwhile, and the adapter is deleted."""
        if not outcome.adapter or not (ids or (home / HISTORY_FILE).exists()):
            return
        with closing(HistoryStore(home)) as store:
            store.note_trained(outcome.adapter, ids)
            if outcome.carried:
                store.note_adapter(outcome.adapter, outcome.carried)
            if outcome.adapter in store.marks():
                Registry(home).remove_personal([outcome.adapter])
                store.drop_marks(outcome.adapter)
                raise DataError("what it learned was forgotten meanwhile, so it is deleted")

    return note


def check_public(options: ClientOptions, policy: Policy) -> None:
    """Require that a public set is named where the federation has one, and examples beside it.

    Raises:
        ConfigError: it is not, or it would do nothing.
    """
    if options.rehearse or policy.distillation.on == (options.public is not None):
        if policy.distillation.on and options.data is None and not options.rehearse:
            raise ConfigError(
                f"{policy.name} compares models that differ: name this node's examples with --data"
            )
        return
    if policy.distillation.on:
        raise ConfigError(
            f"{policy.name} compares what members say of a public set: name its file with "
            f"--public, and this node's own model with --model"
        )
    raise ConfigError(f"{policy.name} trains one adapter and has no public set; leave --public out")


def model_of(
    options: ClientOptions, config: Config, policy: Policy, loaded: "Weights | None"
) -> "Weights | None":
    """The federation's model, or this node's own where members' differ; None in a rehearsal.

    Raises:
        ModelError, IntegrityError, ConfigError: as `resident`, or fewer layers than are trained.
    """
    if options.rehearse:
        return None
    if not policy.distillation.on:
        return resident(policy, loaded, config.engine.model, named=options.model)
    from ..core.models.hub import catalog
    from ..core.models.weights import load

    weights = load(catalog.find(options.model or config.engine.model))
    if policy.adapter.upper_layers > weights.architecture.num_layers:
        raise ConfigError(
            f"{policy.name} trains the upper {policy.adapter.upper_layers} layers, this model has "
            f"{weights.architecture.num_layers}; name a larger one with --model"
        )
    return weights


def vector_size(policy: Policy, weights: "Weights") -> int:
    """Values that are learned: of the adapter that is trained, or of a public set."""
    if policy.distillation.on:
        return policy.distillation.size
    from ..core.models.lora.adapter import Layout

    return Layout(policy.adapter.shape(), weights.architecture).size


@dataclass(slots=True, kw_only=True)
class ClientNode:
    """One member at work: what its party is made of, under whichever version of the federation
    file.
    """

    options: ClientOptions
    config: Config
    keys: NodeKeys
    name: str
    weights: "Weights | None"
    learner: Learner
    size: int
    folder: Path
    database: Database
    ledger: AnsweredRounds
    secrets: ClientSecrets
    buffer: ContributionBuffer
    cache: ClientModelCache
    leave: threading.Event
    on_event: OnEvent
    resting: Callable[[], str] = str  # why nothing may train now
    # what the examples that it trains on say of requests
    route_examples: Callable[[], list[RouteExample]] = list
    personalization_worker: PersonalizationWorker | None = (
        None  # makes personal adapters, if the owner wants that
    )
    ended: QuietchoirError | None = None
    trained: TrainedEvent | None = None  # the last training
    adopted: str | None = None  # the finished adapter that came last; empty in a rehearsal

    def take_part(self, policy: Policy) -> None:
        """Serve messages until told to leave.

        Raises:
            QuietchoirError: a later version of the file ended this node's part, or the coordinator
            is out of reach.
        """
        from .transport.node import FlowerNode

        def taken(newest: Policy) -> None:
            node.policy = newest  # the next time it dials
            names = tuple(one.name for one in newest.members)
            self.on_event(RenewedEvent(version=newest.version, members=names))

        receiver = UpdateReceiver(
            policy, self.folder / roster.FILE, self.enter, taken=taken, end=self.end
        )
        handle = (
            receiver.handle
            if self.personalization_worker is None
            else self.personalization_worker.attend(receiver.handle)
        )
        node = FlowerNode(
            policy,
            self.keys,
            handle,
            self.leave,
            wait_s=self.options.wait_s,
            proxy=self.options.proxy,
            on_event=self.emit,
            resting=self.resting,
        )
        node.run()
        if self.ended is not None:
            raise self.ended

    def emit(self, event: FederationEvent) -> None:
        """What becomes of the connection; while there is none, with what this node waits for."""
        if isinstance(event, DisconnectedEvent):
            event = replace(event, waits_for=self.waits_for)
        self.on_event(event)

    @property
    def waits_for(self) -> str:
        """Why a node stays that has no coordinator."""
        if self.adopted is not None:
            return (
                f"This node has the finished adapter{self.adopted and ' '}{self.adopted[:12]} "
                f"and waits for another run."
            )
        advice = "; `join --once` leaves with the adapter, `join --wait S` gives up after so long"
        return (
            "This node waits for a run to begin or go on, or, if it is over, for its adapter, "
            "which the coordinator hands out when it is started again"
            f"{'' if self.options.patient else advice}."
        )

    def enter(self, policy: Policy) -> Callable[[bytes], bytes]:
        """What answers messages under one version; raises as `party`."""
        return self.client(policy).handle

    def client(self, policy: Policy) -> Client:
        """This member's party under one version.

        Raises:
            RosterError: not a member any more. ConfigError: below its owner's floor, or asks too
            high a rank.
        """
        check_limit(
            policy,
            roster.check_member(policy, self.keys.identity.public.raw),
            self.config.training.max_rank,
        )
        return Client(
            policy,
            self.keys.identity,
            self.learner,
            size=self.size,
            stops=carried_stops(
                policy,
                tensor_stops(policy.adapter, None if policy.distillation.on else self.weights),
            ),
            consent=self.config.consent,
            ledger=self.ledger,
            adopt=partial(self.adopt, policy),
            secrets=self.secrets,
            accountant=PrivacyAccountant(policy, self.size, self.name, self.database),
            buffer=self.buffer,
            cache=self.cache,
            on_event=self.hear,
            on_answer=partial(self.note_sent, policy),
        )

    def hear(self, event: FederationEvent) -> None:
        """What the member's part in a round tells."""
        if isinstance(event, TrainedEvent):
            self.trained = event
        self.on_event(event)

    def note_sent(self, policy: Policy, task: Task, size: int) -> None:
        """Write down what leaves. Raises: QuietchoirError: the disk refuses, and nothing leaves."""
        place, told, self.trained = task.round_id, self.trained, None
        names = ("clipped", "shortened", "left")
        limits = {} if told is None else {name: getattr(told, name) or 0 for name in names}
        SentMessages(self.database).note(
            place.run, place.round, task.stage, policy.protection.mode, size,
            {name: value for name, value in limits.items() if value},
        )  # fmt: skip

    def adopt(self, policy: Policy, flat: Vector, card: str) -> str:
        """Keep a finished adapter; leave after the first one if that is wanted."""
        registry, kept = Registry(self.options.home), ""
        if policy.distillation.on and self.weights is not None:
            self.keep_own(flat)
        elif self.weights is not None:
            kept = keep_finished(policy, self.weights, registry, flat, card, self.keys.identity)
        if kept and isinstance(self.learner, ConsentedLearner):
            with closing(HistoryStore(self.options.home)) as store:
                store.note_adapter(kept, destination_of(policy))
        if kept:
            self.remember_route(kept)
        self.ledger.release()  # another run may begin at once
        if not policy.distillation.on:
            self.on_event(AdoptedEvent(adapter=kept))
        self.adopted = kept
        if self.personalization_worker is not None and kept:
            # a name, and nothing comes back: what this node adds stays here
            self.personalization_worker.adopted(kept)
        if self.options.once:
            self.leave.set()
        else:
            self.on_event(StaysEvent())
        return kept

    def keep_own(self, flat: Vector) -> None:
        """Write this node's own adapter, with what members agreed on at the end where its held-out
        examples do not find that worse.
        """
        from .training.distillation import DistillationLearner

        if isinstance(self.learner, DistillationLearner):
            adapter, learned = self.learner.finished(flat)
            if not learned:
                logger.warning(
                    "what the coordinator says was agreed on makes this node's held-out answers "
                    "worse; its adapter is kept without it"
                )
            folder = self.folder / "own-adapter"
            adapter.save(folder, mode=0o600)
            self.on_event(OwnAdapterEvent(folder=str(folder)))

    def remember_route(self, adapter: str) -> None:
        """Keep what the adapter is for, by this node's own examples; that it cannot is no failure
        of the federation's.
        """
        try:
            folder = Registry(self.options.home).path(adapter)
            note_route(folder, self.route_examples(), general_requests())
        except QuietchoirError as error:
            logger.warning(
                "adapter %s will answer everything while it is active: %s", adapter[:12], error
            )

    def end(self, reason: QuietchoirError) -> None:
        """There is no part for this node in the newest version."""
        self.ended = reason
        self.leave.set()


class LentHistory:
    """What this node's history lends to a federation, as its owner's consent stands now."""

    def __init__(self, home: Path, policy: Policy, words: Sequence[str]) -> None:
        """
        Raises:
            MissingPartError: what redacts is not installed; nothing is lent then.
        """
        self.home, self.policy = home, policy
        self.redactor = Redactor(words)
        self.stamp: tuple[int, ...] | None = None  # of the files that `latest` was read from
        self.latest: TrainingSet

    def current(self) -> TrainingSet:
        """What may train now.

        Raises:
            DataError: the history is damaged.
        """
        with closing(HistoryStore(self.home)) as store:
            stamp = store.stamp()
            if stamp != self.stamp:
                self.latest = training_set(
                    store, destination_of(self.policy), self.policy.prompt, self.redactor
                )
                self.stamp = stamp
        return self.latest

    def note_trained(self, examples: Sequence[str]) -> None:
        """These train the federation's adapter."""
        with closing(HistoryStore(self.home)) as store:
            store.note_trained(destination_of(self.policy), examples)

    def wait(self, patient: bool, leave: threading.Event, on_event: OnEvent) -> bool:
        """Whether something may train; while nothing may, nothing is sent, and a patient node
        waits until its owner consents. False: it was told to leave.

        Raises:
            DataError: nothing may train, and the node is not to wait.
        """
        reported = False
        while not (found := self.current()).train:
            withheld = found.left_out["not consented"]
            if not patient:
                raise DataError(
                    f"no examples to train on: of what was said here nothing may train "
                    f"{self.policy.name} ({withheld} examples are withheld). Consent to "
                    f"conversations (quietchoir data consent), or name a folder with --data or "
                    f"`data` under [training] in your configuration"
                )
            if not reported:
                on_event(WithheldEvent(federation=self.policy.name, withheld=withheld))
                reported = True
            if leave.wait(CONSENT_POLL_S):
                return False
        return True


def destination_of(policy: Policy) -> str:
    """A federation as consent names it: by its id, since names repeat."""
    return f"federation:{policy.federation.hex()}"


@dataclass(frozen=True, slots=True)
class Examples:
    """What a node trains on, and what it scores with."""

    train: "list[Example]"
    test: "list[Example]"  # may be empty


def examples_of(
    options: ClientOptions, policy: Policy, lent: LentHistory | None
) -> Examples | None:
    """What a node trains on, from its history or its folder; None in a rehearsal.

    Raises:
        DataError: as `examples_in`.
    """
    if options.rehearse:
        return None
    if lent is None:
        return examples_in(options.data, policy.prompt)
    found = lent.current()
    return Examples(found.train, found.test)


def route_examples_of(
    options: ClientOptions, policy: Policy, lent: LentHistory | None
) -> list[RouteExample]:
    """What the examples of a node ask, and what of it is its adapter's to answer.

    Raises:
        DataError: as `examples_of`.
    """
    found = examples_of(options, policy, lent)
    told = () if found is None else found.train
    return [route_example(example.messages, policy.prompt) for example in told]


def examples_in(folder: Path | None, prompt: PromptFormat) -> Examples:
    """Read a node's folder of examples.

    Args:
        prompt: what the federation's file says of them.

    Raises:
        DataError: no folder, none of examples, bad lines, or ones that show the model something
        else; says what is there.
    """
    from ..core.training.dataset import TEST, TRAIN
    from ..core.training.examples import check_prompts, read_jsonl

    if folder is None:
        raise DataError(
            "no examples to train on; name a folder with --data, or `data` under "
            "[training] in your configuration"
        )
    if not folder.is_dir():
        instead = "a file, expected" if folder.exists() else "no such folder; expected"
        raise DataError(
            f"{folder}: {instead} a folder with {TRAIN} in it; make one with: quietchoir data build"
        )
    if not (folder / TRAIN).exists():
        parties = sorted(path.parent.name for path in folder.glob(f"*/{TRAIN}"))
        advice = (
            f"name one of the folders in it: {', '.join(parties[:5])}"
            if parties
            else "make it with: quietchoir data build"
        )
        raise DataError(f"{folder}: no {TRAIN} in it; {advice}")
    test = folder / TEST
    found = Examples(
        read_jsonl(folder / TRAIN),
        # an empty one is what `data build` writes where there is nothing to hold out
        read_jsonl(test) if test.exists() and test.stat().st_size else [],
    )
    check_prompts([*found.train, *found.test], prompt, str(folder))
    return found


def make_learner(
    options: ClientOptions,
    config: Config,
    policy: Policy,
    weights: "Weights | None",
    name: str,
    on_event: OnEvent,
    trainer: "Trainer | None" = None,
    *,
    examples: "Examples | None" = None,
    lent: "LentHistory | None" = None,
) -> tuple[Learner, int]:
    """This node's learner, and the length of the adapter's flat vector.

    Args:
        trainer: one that several nodes of this process share; by default its own (`trainer_of`).
        examples: by default those of `joining.data`.
        lent: the node's history, if it trains on that: it is asked again before every training.

    Raises:
        DataError: no examples, or bad ones.
    """
    if weights is None:
        return SyntheticLearner(options.rehearse, name), options.rehearse
    from ..core.training.trainer import StepInfo

    examples = examples or examples_of(options, policy, lent)
    assert examples is not None  # no rehearsal
    trainer = trainer or trainer_of(config, policy, weights)

    def prepare(what: str, given: "list[Example]") -> "Prepared":
        def on_progress(done: int, layers: int) -> None:
            on_event(PreparingEvent(what=what, examples=len(given), layer=done, layers=layers))

        on_progress(0, weights.architecture.num_layers - policy.adapter.upper_layers)
        return trainer.prepare(given, on_progress=on_progress)

    def step(info: StepInfo) -> None:
        on_event(StepEvent(step=info.step, steps=info.steps, loss=info.loss))

    whole, recipe = config.training.whole_adapter, policy.recipe.trainer()
    if policy.distillation.on:
        from ..core.training.distillation.candidates import CandidateScorer
        from .training.distillation import DistillationLearner, read_public, score_limit

        assert options.public is not None  # `check_public`
        scorer = CandidateScorer(trainer, read_public(options.public, policy), score_limit(policy))
        train, held = examples.train, examples.test
        return (
            DistillationLearner(
                scorer,
                prepare("training", train),
                prepare("held-out", held) if held else None,
                recipe,
                folder=roster.folder(options.home, policy),
                on_step=step,
            ),
            policy.distillation.size,
        )
    if lent is not None:
        following = ConsentedExamples(lent, prepare, on_event)
        return ConsentedLearner(trainer, following, recipe, step, whole=whole), trainer.size
    prepared = prepare("training", examples.train)
    test = prepare("held-out", examples.test) if examples.test else None
    return TrainerLearner(trainer, prepared, test, recipe, step, whole=whole), trainer.size


def trainer_of(config: Config, policy: Policy, weights: "Weights") -> "Trainer":
    """What trains the federation's adapter on this machine."""
    from ..core.training.trainer import Trainer

    return Trainer(
        weights,
        policy.adapter.shape(),
        precision=config.training.precision,
        threads=config.training.threads,
    )


def keep_finished(
    policy: Policy,
    weights: "Weights",
    registry: Registry,
    flat: Vector,
    text: str,
    identity: Identity,
) -> str:
    """Check the coordinator's card against this federation and the content, then keep the adapter.

    In sealed mode the text is the run's evaluation, as the coordinator tells it, and the card is
    this member's own.

    Raises:
        FederationError, IntegrityError: not what it claims to be; nothing is kept.
    """
    import torch

    from ..core.models.lora.adapter import assemble

    if policy.protection.mode == "sealed":
        adapter = assemble(
            policy.adapter.shape(),
            weights.architecture,
            weights.digest,
            torch.from_numpy(flat.copy()),
        )
        return registry.put(
            adapter, make_card(policy, content_hash(adapter), read_evaluation(text), identity)
        )
    card = Card.parse(text, "the finished adapter: ")
    ours = (
        policy.coordinator.key,
        policy.federation.hex(),
        policy.name,
        policy.model.digest,
        digests_of(policy.model)[1:],
        "",
        policy.prompt,
    )
    if (
        card.signer,
        card.federation,
        card.name,
        card.model,
        card.variants,
        card.scope,
        card.prompt,
    ) != ours:
        raise FederationError(
            "the finished adapter's card is not this federation's, signed by its "
            "coordinator; not kept"
        )
    adapter = assemble(
        policy.adapter.shape(), weights.architecture, weights.digest, torch.from_numpy(flat.copy())
    )
    return registry.put(adapter, card)


def read_evaluation(text: str) -> dict[str, object]:
    """A finished run's numbers.

    Raises:
        FederationError: malformed.
    """
    try:
        evaluation = json.loads(text)
    except (ValueError, RecursionError):
        evaluation = None
    if not isinstance(evaluation, dict):
        raise FederationError(
            "the finished adapter's evaluation is malformed; not kept, wait for "
            "the coordinator's next one"
        )
    return evaluation


def default_home() -> Path:
    """The node's home."""
    return paths.private_folder(paths.home())
