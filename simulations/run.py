"""One simulated federation: the real parties and the real coordinator over an in-process link.

Knows how to put them together. Knows nothing of how they work.
Always: one resident base model for all parties; keys and masks are fresh in every run, data and training follow from
the scenario's seed.
"""

import dataclasses
import secrets
from collections.abc import Callable, Mapping

from ..core.config import ConsentConfig
from ..core.errors import ConfigError, FederationError
from ..core.models.weights import Weights
from ..core.training.trainer import Trainer
from ..crypto.keys import Identity
from ..crypto.sealed import AdderService, MemberService
from ..crypto.worker import Worker
from ..federation.exchange import messages
from ..federation.exchange.link import InProcessLink
from ..federation.learning.learner import TrainerLearner
from ..federation.membership.policy import CoordinatorTable, Member, ModelTable, Policy
from ..federation.protection.seam import Safe
from ..federation.rounds.coordinator import Coordinator, Event
from ..federation.rounds.party import Party
from ..federation.rounds.report import RunReport
from ..federation.sealed.vault import Vault
from .population import PartyData, populate
from .scenario import Fault, Scenario

NO_ADDRESS = "127.0.0.1:1"  # nobody listens: letters go from function to function
OnEvent = Callable[[Event], None]


class FaultyParty:
    """A party that goes silent where the scenario says so."""

    def __init__(self, party: Party, faults: tuple[Fault, ...]) -> None:
        self.party, self.left = party, {fault: fault.attempts for fault in faults if fault.party == party.name}

    def handle(self, letter: bytes) -> bytes:
        """As `Party.handle`, unless it is time to vanish.

        Raises:
            FederationError: never seen by anybody but the link, which takes it for silence.
        """
        task = messages.decode_task(letter, self.party.policy, self.party.name)
        for fault, left in self.left.items():
            if left and task.place.round == fault.round and task.stage == fault.stage:
                self.left[fault] -= 1
                raise FederationError(f"{fault.party} is silent at {fault.stage} of round {fault.round}, as the scenario says")
        return self.party.handle(letter)


def simulate(scenario: Scenario, weights: Weights, *, on_event: OnEvent | None = None) -> RunReport:
    """Run `scenario` to its end.

    Raises:
        ConfigError: faults that name nobody, or fewer parties than the minimum cohort.
        RoundAborted: a round failed as often as the recipe allows.
    """
    say = on_event or (lambda event: None)
    people = populate(scenario)
    check(scenario, people)
    coordinator_key = Identity.generate()
    identities = {person.name: Identity.generate() for person in people}
    policy = describe(scenario, weights, coordinator_key, identities)
    trainer = Trainer(weights, policy.adapter.shape())
    parties: dict[str, Callable[[bytes], bytes]] = {}
    desk, adder = Worker(MemberService), Worker(AdderService)  # for ciphertexts: started only if the mode is sealed
    for person in people:
        say({"event": "preparing", "party": person.name, "train": len(person.train), "test": len(person.test)})
        learner = TrainerLearner(trainer, trainer.prepare(person.train), trainer.prepare(person.test), policy.recipe.trainer())
        party = Party(
            policy, identities[person.name], learner, size=trainer.size, consent=no_floor(),
            safe=Safe(Vault(None, trainer.size), desk),
        )  # fmt: skip
        parties[person.name] = FaultyParty(party, scenario.faults).handle
    coordinator = Coordinator(
        policy, coordinator_key, InProcessLink(parties), size=trainer.size, on_event=on_event, grace_s=0.0, desk=adder
    )
    try:
        return coordinator.run()
    finally:
        desk.close()
        adder.close()


def check(scenario: Scenario, people: list[PartyData]) -> None:
    """Require that the scenario can be run by these people.

    Raises:
        ConfigError: it cannot.
    """
    names = {person.name for person in people}
    strangers = sorted({fault.party for fault in scenario.faults} - names)
    if strangers:
        raise ConfigError(
            f"scenario {scenario.name}: faults name {', '.join(strangers)}; parties are {', '.join(sorted(names))}"
        )
    if len(people) < scenario.protection.min_cohort:
        raise ConfigError(
            f"scenario {scenario.name}: {len(people)} parties, protection.min_cohort = {scenario.protection.min_cohort}; "
            "add parties or lower it"
        )


def no_floor() -> ConsentConfig:
    """Simulated parties accept whatever the scenario says."""
    return ConsentConfig(min_cohort=1, modes=("plain", "masked", "sealed"))


def describe(scenario: Scenario, weights: Weights, coordinator: Identity, identities: Mapping[str, Identity]) -> Policy:
    """The federation file of a simulation; nobody needs to sign it, all are one process."""
    return Policy(
        name=scenario.name,
        nonce=secrets.token_hex(16),
        owner=coordinator.public.raw.hex(),
        model=ModelTable(name=scenario.model, digest=weights.digest),
        adapter=dataclasses.replace(scenario.adapter, seed=scenario.adapter.seed or scenario.seed),
        protection=scenario.protection,
        recipe=scenario.recipe,
        coordinator=CoordinatorTable(address=NO_ADDRESS, key=coordinator.public.raw.hex()),
        members=tuple(Member(name=name, key=identity.public.raw.hex()) for name, identity in identities.items()),
    )
