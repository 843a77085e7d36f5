"""One simulated federation: the real parties and the real coordinator over an in-process link.

Knows how to put them together. Knows nothing of how they work.
Always: one resident base model for all parties; keys and masks are fresh in every run, data and
training follow from the scenario's seed.
"""

import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Mapping
from functools import partial

from ..core.config import ConsentConfig
from ..core.errors import ConfigError, FederationError
from ..core.models.weights import Weights
from ..core.training.trainer import Trainer
from ..core.worker import Worker
from ..crypto.he.encrypted_ring import AdderService, MemberService
from ..crypto.identity.keys import Identity
from ..federation.aggregation import encrypted, secagg, state_transfer
from ..federation.aggregation.base import ClientSecrets
from ..federation.aggregation.experimental.threshold import OPEN
from ..federation.aggregation.plain import PLAIN_STAGE
from ..federation.aggregation.ranges import tensor_stops
from ..federation.events import FederationEvent, OnEvent, TrainedEvent
from ..federation.rounds.client import Client
from ..federation.rounds.report import RunReport
from ..federation.spec.policy import AdapterTable, CoordinatorTable, Member, ModelTable, Policy
from ..federation.store.checkpoint import Store, Vector
from ..federation.store.client_store import ClientStore
from ..federation.training.learner import Learner, TrainerLearner
from ..federation.training.synthetic_task import PacedSyntheticLearner, SyntheticLearner
from ..federation.wire import messages
from .availability import conduct
from .population import PartyData, populate
from .report import PartyPreparedEvent, PartyTrainedEvent
from .scenario import Fault, Scenario, dealt

NO_ADDRESS = "127.0.0.1:1"  # nobody listens: messages go from function to function
NO_MODEL = "0" * 64  # digest of a rehearsal's


class FaultyParty:
    """A party that goes silent where the scenario says so."""

    def __init__(self, client: Client, faults: tuple[Fault, ...]) -> None:
        self.client, self.left = (
            client,
            {fault: fault.attempts for fault in faults if fault.party == client.name},
        )

    def handle(self, message: bytes) -> bytes:
        """As `Client.handle`, unless it is time to vanish.

        Raises:
            FederationError: never seen by anybody but the link, which takes it for silence.
        """
        task = messages.decode_task(message, self.client.policy, self.client.name)
        for fault, left in self.left.items():
            if left and task.round_id.round == fault.round and task.stage == fault.stage:
                self.left[fault] -= 1
                raise FederationError(
                    f"{fault.party} is silent at {fault.stage} of round "
                    f"{fault.round}, as the scenario says"
                )
        return self.client.handle(message)


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """Everybody's learner, on one resident model."""

    learners: Mapping[str, Learner]
    size: int  # values of the adapter


def simulate(
    scenario: Scenario,
    weights: Weights | None,
    *,
    on_event: OnEvent | None = None,
    cast: Cast | None = None,
    on_adopt: Callable[[str, Vector], None] | None = None,
) -> RunReport:
    """Run `scenario` to its end.

    Args:
        weights: the resident model; None for a rehearsal.
        cast: learners to use instead of the scenario's own, by the same names: several runs can
            share them, and an attacker's can stand among them (see `attacks`).
        on_adopt: told a party's name and the finished adapter [n] that it was handed.

    Raises:
        ConfigError: faults that name nobody, or fewer parties than the minimum cohort.
        RoundAborted: a round failed as often as the recipe allows.
    """
    report = on_event or (lambda event: None)
    people = populate(scenario)
    check(scenario, people)
    coordinator_key = Identity.generate()
    identities = {person.name: Identity.generate() for person in people}
    policy = describe(scenario, weights, coordinator_key, identities)
    cast = cast or make_learners(scenario, weights, people, report)
    size = cast.size
    stops = tensor_stops(policy.adapter, weights)
    handles, members = dict[str, Callable[[bytes], bytes]](), dict[str, Client]()
    # for ciphertexts: started only if the mode is sealed
    crypto_worker, adder = Worker(MemberService), Worker(AdderService)
    for name, learner in cast.learners.items():
        members[name] = Client(
            policy,
            identities[name],
            learner,
            size=size,
            stops=stops,
            consent=no_floor(),
            secrets=ClientSecrets(ClientStore(None, size), crypto_worker),
            on_event=partial(trained_by, report, name),
            adopt=partial(adopted, on_adopt, name),
        )
        handles[name] = FaultyParty(members[name], scenario.faults).handle
    coordinator = conduct(
        scenario,
        policy,
        coordinator_key,
        handles,
        members,
        size=size,
        stops=stops,
        on_event=on_event,
        crypto_worker=adder,
        store=Store(
            None,
            run=hashlib.sha256(f"quietchoir simulation {scenario.seed}".encode()).hexdigest()[:32],
        ),
    )
    try:
        return coordinator.run()
    finally:
        crypto_worker.close()
        adder.close()


def adopted(
    on_adopt: Callable[[str, Vector], None] | None, name: str, flat: Vector, card: str
) -> str:
    """Tell that a party keeps the finished adapter; nothing is on a disk here, so it has no
    name.
    """
    del card
    if on_adopt is not None:
        on_adopt(name, flat)
    return ""


def trained_by(report: OnEvent, name: str, event: FederationEvent) -> None:
    """Tell that a party has trained; what else it says is its own."""
    if isinstance(event, TrainedEvent):
        report(PartyTrainedEvent(party=name, round=event.round))


def make_learners(
    scenario: Scenario, weights: Weights | None, people: list[PartyData], report: OnEvent
) -> Cast:
    """Everybody's learner, on one resident model.

    Raises:
        ConfigError: a population that learns in earnest, and no model.
    """
    if scenario.population.kind == "rehearsal":
        return rehearsal(scenario, people)
    if weights is None:
        raise ConfigError(
            f"scenario {scenario.name}: a population of kind "
            f"{scenario.population.kind!r} needs a model"
        )
    trainer, learners = Trainer(weights, adapter_of(scenario).shape()), dict[str, Learner]()
    portions = dealt(scenario.population.portions, [person.name for person in people])
    for person in people:
        examples = person.train[: portions[person.name] or None]
        report(PartyPreparedEvent(party=person.name, train=len(examples), test=len(person.test)))
        train, test = trainer.prepare(examples), trainer.prepare(person.test)
        learners[person.name] = TrainerLearner(trainer, train, test, scenario.recipe.trainer())
    return Cast(learners, trainer.size)


def rehearsal(scenario: Scenario, people: list[PartyData]) -> Cast:
    """Learners without a model; those that have a portion are as fast as it lets them be."""
    size, batch = scenario.population.values, scenario.recipe.batch
    portions = dealt(scenario.population.portions, [person.name for person in people])
    learners: dict[str, Learner] = {
        name: PacedSyntheticLearner(size, name, examples, batch)
        if examples
        else SyntheticLearner(size, name)
        for name, examples in portions.items()
    }
    return Cast(learners, size)


def adapter_of(scenario: Scenario) -> AdapterTable:
    """The adapter's shape, with the scenario's seed if it names none of its own."""
    return dataclasses.replace(scenario.adapter, seed=scenario.adapter.seed or scenario.seed)


def check(scenario: Scenario, people: list[PartyData]) -> None:
    """Require that the scenario can be run by these people.

    Raises:
        ConfigError: it cannot.
    """
    names = {person.name for person in people}
    strangers = sorted({fault.party for fault in scenario.faults} - names)
    if strangers:
        raise ConfigError(
            f"scenario {scenario.name}: faults name {', '.join(strangers)}; parties are "
            f"{', '.join(sorted(names))}"
        )
    known = stages(scenario)
    for fault in scenario.faults:
        if fault.stage not in known:
            raise ConfigError(
                f"scenario {scenario.name}: a fault at stage {fault.stage!r} would never happen; "
                f"stages under these rules: {', '.join(known)}"
            )
        last = scenario.recipe.rounds + 1  # its adapter is scored
        if fault.round > last and not scenario.schedule.buffered:
            raise ConfigError(
                f"scenario {scenario.name}: a fault in round {fault.round} would never happen; "
                f"rounds are 1 to {last}, the last of them scores the adapter"
            )
    if len(people) < scenario.protection.min_cohort:
        raise ConfigError(
            f"scenario {scenario.name}: {len(people)} parties, protection.min_cohort = "
            f"{scenario.protection.min_cohort}; "
            "add parties or lower it"
        )


def stages(scenario: Scenario) -> tuple[str, ...]:
    """Of a round under the scenario's rules: where a party can fall silent."""
    mode = scenario.protection.mode
    buffered = (messages.TRAIN, messages.GROUP)
    begun = buffered if scenario.schedule.buffered else messages.STAGES
    if mode == "plain":
        return (*begun, PLAIN_STAGE)
    if mode == "masked":
        return (*begun, *secagg.STAGES)
    opened = (OPEN,) if scenario.protection.key == "threshold" else ()
    return tuple(dict.fromkeys((*begun, *state_transfer.STAGES, *encrypted.STAGES, *opened)))


def no_floor() -> ConsentConfig:
    """Simulated parties accept whatever the scenario says."""
    return ConsentConfig(min_cohort=1, modes=("plain", "masked", "sealed"), max_clipped=1.0)


def describe(
    scenario: Scenario,
    weights: Weights | None,
    coordinator: Identity,
    identities: Mapping[str, Identity],
) -> Policy:
    """The federation file of a simulation; nobody needs to sign it, all are one process."""
    ranks = dealt(scenario.population.ranks, list(identities))
    return Policy(
        name=scenario.name,
        nonce=secrets.token_hex(16),
        owner=coordinator.public.raw.hex(),
        model=ModelTable(
            name=scenario.model, digest=NO_MODEL if weights is None else weights.digest
        ),
        adapter=adapter_of(scenario),
        protection=scenario.protection,
        recipe=scenario.recipe,
        privacy=scenario.privacy,
        guard=scenario.guard,
        aggregation=scenario.aggregation,
        schedule=scenario.schedule,
        coordinator=CoordinatorTable(address=NO_ADDRESS, key=coordinator.public.raw.hex()),
        members=tuple(
            Member(name=name, key=identity.public.raw.hex(), rank=ranks[name])
            for name, identity in identities.items()
        ),
    )
