"""From a shared adapter to this node's personal one: carried over, trained, judged, kept, made
active.

Knows cards, the registry and the order of the work. Knows nothing of messages: what it makes goes
to this disk and nowhere else.
Always: only a personal adapter that is not worse than its shared one on the owner's held-out
examples is kept; a failure leaves the registry as it was; the shared adapter is never changed.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...core import log
from ...core.errors import QuietchoirError, RequestError
from ...core.models.lora.adapter import AdapterShape, assemble
from ...core.models.weights import Weights
from ...core.training.trainer import StepInfo
from ...crypto.identity.keys import Identity
from ..adapters.registry import PERSONAL, SHOWN, Card, Registry, content_hash
from .change import PersonalChange, shared_b
from .settings import PersonalSettings
from .trainer import PersonalTrainer, PersonalVerdict

logger = log.get("federation.personalization")


@dataclass(frozen=True, slots=True)
class PersonalOutcome:
    """What came of it."""

    parent: str  # the shared adapter
    adapter: str  # the personal one; empty: worse than the shared one, not kept
    carried: str  # the earlier personal adapter whose change it goes on from; empty: from nothing
    verdict: PersonalVerdict
    active: bool  # answers from now on

    def words(self) -> str:
        """For people."""
        right, of, shared = (
            self.verdict.personal.correct,
            self.verdict.personal.total,
            self.verdict.shared.correct,
        )
        scores = f"{right} of your {of} held-out answers right, the shared one {shared}"
        if not self.adapter:
            return (
                f"no personal adapter on top of {self.parent[:SHOWN]} was kept: {scores}; the "
                f"shared one is as it was"
            )
        state = (
            "it answers from now on"
            if self.active
            else (f"not active: quietchoir adapter activate {self.adapter[:SHOWN]}")
        )
        return (
            f"personal adapter {self.adapter[:SHOWN]} on top of {self.parent[:SHOWN]}: "
            f"{scores}; {state}"
        )


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose adapters these are."""

    registry: Registry
    identity: Identity  # signs the cards
    weights: Weights

    def own(self, parent: Card) -> list[Card]:
        """This node's personal adapters of the parent's federation, the newest first; of an
        unsigned parent: on that parent.
        """
        signer = self.identity.public.raw.hex()

        def related(card: Card) -> bool:
            same = bool(parent.federation) and card.federation == parent.federation
            return (
                card.signer == signer
                and card.model == parent.model
                and (same or card.parent == parent.adapter)
            )

        return sorted(
            filter(related, self.registry.personal()), key=lambda card: card.serial, reverse=True
        )

    def carried(self, parent: Card, shape: AdapterShape) -> tuple[str, PersonalChange] | None:
        """The newest of this node's changes that fits, with the name of its adapter; None: there is
        none.

        A rebase: what was learned over an older shared adapter is put on top of the new one.
        """
        for card in self.own(parent):
            try:
                whole, under = (
                    self.registry.load_for(name, self.weights.digest)
                    for name in (card.adapter, card.parent)
                )
                if whole.shape == shape == under.shape:
                    change = PersonalChange.between(
                        shared_b(under, self.weights), shared_b(whole, self.weights)
                    )
                    return card.adapter, change
            except QuietchoirError as error:
                logger.warning(
                    "personal adapter %s is passed over: %s", card.adapter[:SHOWN], error
                )
        return None

    def card(self, parent: Card, adapter: str, verdict: PersonalVerdict) -> Card:
        """The signed card of a personal adapter. No epsilon: nothing was added to hide the
        owner's examples.
        """
        return Card(
            adapter=adapter,
            federation=parent.federation,
            name=parent.name,
            run="",
            rounds=parent.rounds,
            model=parent.model,
            parent=parent.adapter,
            protection="",
            accuracy_before=verdict.shared.accuracy,
            accuracy_after=verdict.personal.accuracy,
            scope=PERSONAL,
            variants=parent.variants,
            prompt=parent.prompt,
            serial=1 + max((card.serial for card in self.own(parent)), default=0),
        ).signed(self.identity)


def personalize(
    owner: Owner,
    name: str,
    personal_trainer: PersonalTrainer,
    settings: PersonalSettings,
    *,
    afresh: bool = False,
    activate: Callable[[Registry, Card], bool] = lambda registry, card: True,
    on_step: Callable[[StepInfo], None] | None = None,
) -> PersonalOutcome:
    """Make this node's personal adapter on top of the shared one called `name`.

    An earlier change goes on from where it was. If with it the result is worse than the shared
    adapter, one is trained from nothing; if that is worse too, none is kept.

    Args:
        afresh: leave earlier changes alone.
        activate: may it answer from now on? Told the card of the personal adapter.

    Raises:
        RequestError: no such adapter, or none to build on. TrainingError: not finite.
        IntegrityError: another model's. In every case nothing was kept.
    """
    parent = owner.registry.card(name)
    if parent.personal:
        raise RequestError(
            f"{name} is personal already; name the shared adapter it stands on: "
            f"{parent.parent[:SHOWN]}"
        )
    adapter = owner.registry.load_for(parent.adapter, owner.weights.digest)
    shared = shared_b(adapter, owner.weights)
    earlier = None if afresh else owner.carried(parent, adapter.shape)
    if earlier is None and not settings.epochs:
        raise RequestError(
            f"there is no earlier change to put on top of {name}; train one: --epochs 2"
        )
    tried: list[tuple[str, PersonalChange, PersonalVerdict]] = []
    for carried, start in starts(earlier, len(shared), settings):
        change = personal_trainer.learn(
            shared, start, settings, seed=training_seed(parent.adapter), on_step=on_step
        )
        tried.append((carried, change, personal_trainer.judge(shared, change)))
        if tried[-1][2].accepted:
            break
    carried, change, verdict = tried[-1]
    if not verdict.accepted:
        return PersonalOutcome(parent.adapter, "", carried, verdict, active=False)
    made = assemble(
        adapter.shape, owner.weights.architecture, owner.weights.digest, change.upon(shared)
    )
    card = owner.card(parent, content_hash(made), verdict)
    active = activate(owner.registry, card)  # asked before anything is kept
    kept = owner.registry.put(made, card)
    if active:
        owner.registry.activate(kept)
    return PersonalOutcome(parent.adapter, kept, carried, verdict, active)


def starts(
    earlier: tuple[str, PersonalChange] | None, size: int, settings: PersonalSettings
) -> Iterator[tuple[str, PersonalChange]]:
    """Where training may begin, one after the other, with the adapter that is carried over."""
    if earlier is not None:
        yield earlier
    if earlier is None or settings.epochs:
        yield "", PersonalChange.nothing(size)


def training_seed(name: str) -> int:
    """The order of examples: the same whenever this shared adapter is built on."""
    return int.from_bytes(
        hashlib.sha256(f"quietchoir personal {name}".encode()).digest()[:4], "big"
    )


def unless_chosen_otherwise(registry: Registry, card: Card) -> bool:
    """Without being asked, a personal adapter takes the place of nothing, or of one of the same
    federation; not of a choice.

    The bare model, chosen, and another federation's adapter stay.
    """
    history = registry.history()
    if not history:
        return True
    if not history[-1]:
        return False
    try:
        return registry.card(history[-1]).federation == card.federation
    except QuietchoirError:  # it is gone or damaged: for its owner to see to
        return False
