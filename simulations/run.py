"""One simulated federation: the real parties and the real coordinator over an in-process link.

Knows how to put them together. Knows nothing of how they work.
Always: masks and noise are fresh in every run; all else, pretended members' keys, draws, training
and the rounding of updates, follows from the scenario and its seed, so that without noise two runs
are one another's to the last bit; what many members would each find alike is found once
(`crypto.shared`), and what one of them has ready waits on disk (`aggregation`): neither changes
what is sent, refused or summed.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..core.config import ConsentConfig
from ..core.errors import ConfigError
from ..core.worker import Worker
from ..crypto.he.encrypted_ring import AdderService, MemberService
from ..crypto.identity.keys import Identity
from ..crypto.shared import sharing
from ..federation.aggregation import encrypted, secagg, state_transfer
from ..federation.aggregation.base import ClientSecrets
from ..federation.aggregation.clipping import carried_stops
from ..federation.aggregation.experimental.threshold import OPEN
from ..federation.aggregation.plain import PLAIN_STAGE
from ..federation.aggregation.ranges import tensor_stops
from ..federation.events import FederationEvent, OnEvent, TrainedEvent
from ..federation.rounds.client import Client
from ..federation.rounds.report import RunReport
from ..federation.spec.policy import CoordinatorTable, Member, ModelTable, Policy, Recipe
from ..federation.store.checkpoint import Store, Vector
from ..federation.store.client_store import ClientStore
from ..federation.wire import messages
from .aggregation import simulated
from .availability import conduct
from .cast import Cast, Turncoat, adapter_of, make_learners
from .inprocess import SilentError
from .poisoner import lie_in_ballots
from .population import PartyData, populate
from .protocol_costs import rules_of
from .report import PartyTrainedEvent
from .scenario import Fault, Scenario, dealt

if TYPE_CHECKING:
    from ..core.models.weights import Weights

NO_ADDRESS = "127.0.0.1:1"  # nobody listens: messages go from function to function
NO_MODEL = "0" * 64  # digest of what is no model file's
NONCE_BYTES = 16


class SimulatedParty:
    """A party that goes silent where the scenario says so, or by its chances."""

    def __init__(self, client: Client, scenario: Scenario) -> None:
        self.client, self.dropouts, self.seed = client, scenario.dropouts, scenario.seed
        faults = (fault for fault in scenario.faults if fault.party == client.name)
        self.left: dict[Fault, int] = {fault: fault.attempts for fault in faults}

    def handle(self, message: bytes) -> bytes:
        """As `Client.handle`, unless it is time to vanish.

        Raises:
            SilentError: never seen by anybody but the link, which takes it for silence.
        """
        learner = self.client.learner
        if self.left or self.dropouts.share or isinstance(learner, Turncoat):
            task = messages.decode_task(message, self.client.policy, self.client.name)
            if isinstance(learner, Turncoat):
                learner.round = task.round_id.round
            self.vanish(task)
        return self.client.handle(message)

    def vanish(self, task: messages.Task) -> None:
        """Raises SilentError: now."""
        name, number = self.client.name, task.round_id.round
        for fault, left in self.left.items():
            if left and number == fault.round and task.stage == fault.stage:
                self.left[fault] -= 1
                raise SilentError(
                    f"{name} is silent at {task.stage} of round {number}, as the scenario says"
                )
        if self.dropouts.share and self.stage_of(task.round_id) == task.stage:
            raise SilentError(f"{name} is silent at {task.stage} of round {number}, by chance")

    def stage_of(self, round_id: messages.RoundId) -> str:
        """Where it goes silent in this attempt, if it does."""
        spelled = f"{self.seed} {self.client.name} {round_id.round} {round_id.attempt}"
        digest = hashlib.sha256(f"quietchoir drop-outs {spelled}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        if rng.random() >= self.dropouts.share:
            return ""
        return self.dropouts.stages[int(rng.integers(len(self.dropouts.stages)))]


def simulate(
    scenario: Scenario,
    weights: "Weights | None",
    *,
    on_event: OnEvent | None = None,
    cast: Cast | None = None,
    on_adopt: Callable[[str, Vector], None] | None = None,
    folder: Path | None = None,
) -> RunReport:
    """Run `scenario` to its end.

    Args:
        weights: the resident model; None for a rehearsal or a linear model.
        cast: learners to use instead of the scenario's own, by the same names: several runs can
            share them, and an attacker's can stand among them (see `attacks`).
        on_adopt: told a party's name and the finished adapter [n] that it was handed.
        folder: where the run lives, so that it goes on after a kill from its last whole round;
            only of a `resumable` one.

    Raises:
        ConfigError: faults that name nobody, or fewer parties than the minimum cohort.
        RoundAborted: a round failed as often as the recipe allows.
    """
    report = on_event or (lambda event: None)
    if cast is None:
        people = populate(scenario)
        check(scenario, people)
        cast = make_learners(scenario, weights, people, report)
    nonce, coordinator_key, identities = keys_of(scenario.seed, sorted(cast.learners))
    policy = describe(scenario, weights, nonce, coordinator_key, identities)
    size = policy.carried(cast.size)
    stops = carried_stops(policy, tensor_stops(policy.adapter, weights))
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
        lie_in_ballots(members[name])
        handles[name] = SimulatedParty(members[name], scenario).handle
    run = hashlib.sha256(f"quietchoir simulation {scenario.seed}".encode()).hexdigest()[:32]
    with (
        sharing(),
        simulated(scenario.protection_cost, scenario.seed),
        closing(Store(folder, run=run)) as store,
        closing(crypto_worker),
        closing(adder),
    ):
        return conduct(
            scenario,
            policy,
            coordinator_key,
            handles,
            members,
            size=size,
            stops=stops,
            on_event=on_event,
            crypto_worker=adder,
            store=store,
        ).run()


def resumable(scenario: Scenario) -> bool:
    """Can a run go on from its last whole round? Not where members hold what a new process would
    lack: the adapter or its steps, what waits, or what was spent; nor on a clock of its own.
    """
    policy = rules_of(dataclasses.replace(scenario, recipe=recipe_of(scenario)))
    told_whole = policy.can.model_held_by == "server" and not policy.followed
    alone = scenario.schedule.buffered or scenario.privacy.on or scenario.availability.on
    return told_whole and not alone


def keys_of(seed: int, names: Sequence[str]) -> tuple[str, Identity, dict[str, Identity]]:
    """The federation's number, its coordinator's key and everybody's: draws follow from them.

    Hazard: they are nobody's secrets, and protect nobody.
    """

    def follow(what: str) -> bytes:
        return hashlib.sha256(f"quietchoir simulation {what} of seed {seed}".encode()).digest()

    first, *others = (
        Identity(Ed25519PrivateKey.from_private_bytes(follow(what)))
        for what in ("coordinator", *(f"member {name}" for name in names))
    )
    return follow("nonce")[:NONCE_BYTES].hex(), first, dict(zip(names, others, strict=True))


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
    idle = [one for one in scenario.dropouts.stages if one not in known]
    if scenario.dropouts.share and idle:
        raise ConfigError(
            f"scenario {scenario.name}: nobody drops out at {', '.join(idle)}; stages under these "
            f"rules: {', '.join(known)}"
        )
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
    return ConsentConfig(
        min_cohort=1, modes=("plain", "masked", "sealed"), max_clipped=1.0, open_ballots=True
    )


def recipe_of(scenario: Scenario) -> Recipe:
    """The scenario's; without masks nobody signs the sums by which members follow an adapter, so
    they are told it whole.
    """
    if scenario.protection_cost == "modelled":
        return dataclasses.replace(scenario.recipe, download="adapter")
    return scenario.recipe


def describe(
    scenario: Scenario,
    weights: "Weights | None",
    nonce: str,
    coordinator: Identity,
    identities: Mapping[str, Identity],
) -> Policy:
    """The federation file of a simulation; nobody needs to sign it, all are one process."""
    ranks = dealt(scenario.population.ranks, list(identities))
    return Policy(
        name=scenario.name,
        nonce=nonce,
        owner=coordinator.public.raw.hex(),
        model=ModelTable(
            name=scenario.model, digest=NO_MODEL if weights is None else weights.digest
        ),
        adapter=adapter_of(scenario),
        protection=scenario.protection,
        recipe=recipe_of(scenario),
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
