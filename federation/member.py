"""A node as a member: its data, its learner, its party, its connection; and the coordinator's counterpart.

Knows how the organs are put together. Knows nothing of what they do inside.
Always: the model is loaded once and stays; the federation file is accepted before anything is read or trained.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import paths
from ..core.config import Config
from ..core.errors import ConfigError, DataError, FederationError, IntegrityError
from ..crypto.keys import Identity
from ..crypto.sealed import AdderService, MemberService
from ..crypto.worker import Worker
from .exchange.ledger import Ledger
from .learning.aggregate import Vector
from .learning.learner import Learner, TrainerLearner
from .learning.rehearsal import RehearsalLearner
from .membership import identity, roster
from .membership.founding import COORDINATOR_KEY, TLS_KEY
from .membership.policy import Policy
from .membership.unlock import Asked
from .protection.seam import Safe
from .registry.registry import Card, Registry, content_hash, make_card
from .rounds.party import Party
from .rounds.report import RunReport
from .sealed.vault import Vault

if TYPE_CHECKING:
    from ..core.models.weights import Weights

Event = dict[str, object]
OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """What the owner of a node decides when it joins."""

    file: Path
    data: Path | None  # folder with train.jsonl and, if there is one, test.jsonl
    home: Path
    once: bool = False  # leave after the first finished adapter
    rehearse: int = 0  # values of a pretended adapter; 0: train in earnest
    wait_s: float = 0.0  # give up if the coordinator is out of reach for so long; 0: never


def join(
    joining: Joining,
    config: Config,
    on_event: OnEvent,
    leave: threading.Event | None = None,
    *,
    loaded: "Weights | None" = None,
) -> None:
    """Take part until told to leave.

    Args:
        loaded: the model, if this process holds it already; it must be the one that the federation names.

    Raises:
        RosterError, ConfigError, DataError, ModelNotFoundError, FederationError: each says what to do.
    """
    policy = roster.accept(joining.file, joining.home)
    keys = identity.load_or_create(joining.home)
    leave = leave or threading.Event()
    name = policy.name_of(keys.identity.public.raw) or ""
    weights = None if joining.rehearse else resident(policy, loaded)
    learner, size = make_learner(joining, config, policy, weights, name, on_event)

    def adopt(flat: Vector, card: str) -> str:
        kept = "" if weights is None else keep_finished(policy, weights, Registry(joining.home), flat, card, keys.identity)
        on_event({"event": "adopted", "adapter": kept})
        if joining.once:
            leave.set()
        return kept

    folder, desk = roster.folder(joining.home, policy), Worker(MemberService)
    party = Party(
        policy, keys.identity, learner, size=size, consent=config.consent, ledger=Ledger(folder / "answered.json"),
        adopt=adopt, safe=Safe(Vault(folder, size), desk), on_event=on_event,
    )  # fmt: skip
    on_event({"event": "joining", "name": party.name, "federation": policy.name})
    from .flower.node import FlowerNode

    try:
        FlowerNode(policy, keys.transport, party.handle, leave, wait_s=joining.wait_s, on_event=on_event).run()
    finally:
        desk.close()


def make_learner(
    joining: Joining, config: Config, policy: Policy, weights: "Weights | None", name: str, on_event: OnEvent
) -> tuple[Learner, int]:
    """This node's learner, and the length of the adapter's flat vector.

    Raises:
        DataError: no examples, or bad ones.
    """
    if weights is None:
        return RehearsalLearner(joining.rehearse, name), joining.rehearse
    from ..core.training.examples import read_jsonl
    from ..core.training.trainer import StepInfo, Trainer

    if joining.data is None:
        raise DataError("no examples to train on; name a folder with --data, or `data` under [training] in your configuration")
    examples = read_jsonl(joining.data / "train.jsonl")
    held_out = joining.data / "test.jsonl"
    tests = read_jsonl(held_out) if held_out.exists() else []
    trainer = Trainer(weights, policy.adapter.shape(), precision=config.training.precision, threads=config.training.threads)

    def progress(what: str) -> Callable[..., None]:
        def tell(*numbers: object) -> None:
            on_event({"event": "preparing", "what": what, "progress": [str(number) for number in numbers]})

        return tell

    def step(info: StepInfo) -> None:
        on_event({"event": "step", "step": info.step, "steps": info.steps, "loss": info.loss})

    prepared = trainer.prepare(examples, on_progress=progress("train"))
    test = trainer.prepare(tests, on_progress=progress("test")) if tests else None
    return TrainerLearner(trainer, prepared, test, policy.recipe.trainer(), step), trainer.size


def resident(policy: Policy, loaded: "Weights | None" = None) -> "Weights":
    """The federation's frozen model: the one this process holds, if it is that one, or from this node's disk.

    Raises:
        ModelNotFoundError: says how to pull it.
        IntegrityError: another file than the federation agreed on.
    """
    from ..core.models import catalog
    from ..core.models.weights import load

    held = loaded is not None and loaded.digest == policy.model.digest
    weights = loaded if loaded is not None and held else load(catalog.find(policy.model.name))
    if weights.digest != policy.model.digest:
        raise IntegrityError(
            f"model {policy.model.name} here has sha256 {weights.digest[:16]}…, the federation agreed on "
            f"{policy.model.digest[:16]}…; run: quietchoir model pull {policy.model.name}"
        )
    if policy.adapter.upper_layers > weights.architecture.layers:
        raise ConfigError(
            f"the federation trains the upper {policy.adapter.upper_layers} layers, {policy.model.name} has "
            f"{weights.architecture.layers}; its owner must found it again with fewer --upper-layers"
        )
    return weights


def keep_finished(policy: Policy, weights: "Weights", registry: Registry, flat: Vector, text: str, identity: Identity) -> str:
    """Check the coordinator's card against this federation and the content, then keep the adapter.

    In sealed mode the text is the run's evaluation, as the coordinator tells it, and the card is this member's own.

    Raises:
        FederationError, IntegrityError: not what it claims to be; nothing is kept.
    """
    import torch

    from ..core.models.adapter import assemble

    if policy.protection.mode == "sealed":
        adapter = assemble(policy.adapter.shape(), weights.architecture, weights.digest, torch.from_numpy(flat.copy()))
        return registry.put(adapter, make_card(policy, content_hash(adapter), read_evaluation(text), identity))
    card = Card.parse(text, "the finished adapter: ")
    if (card.signer, card.federation) != (policy.coordinator.key, policy.federation.hex()):
        raise FederationError("the finished adapter's card is not signed by this federation's coordinator; not kept")
    adapter = assemble(policy.adapter.shape(), weights.architecture, weights.digest, torch.from_numpy(flat.copy()))
    return registry.put(adapter, card)


def read_evaluation(text: str) -> dict[str, object]:
    """A finished run's numbers.

    Raises:
        FederationError: malformed.
    """
    try:
        evaluation = json.loads(text)
    except ValueError:
        evaluation = None
    if not isinstance(evaluation, dict):
        raise FederationError("the finished adapter's evaluation is malformed; not kept, wait for the coordinator's next one")
    return evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinating:
    """What the coordinator's operator decides."""

    file: Path
    state: Path
    keys: Path  # folder with coordinator.key and tls.key
    home: Path
    rounds: int | None = None
    rehearse: int = 0
    wait_s: float = 600.0
    grace_s: float = 30.0


def coordinate(coordinating: Coordinating, on_event: OnEvent) -> RunReport:
    """Run the federation's rounds.

    Raises:
        RosterError, ConfigError, FederationError, RoundAborted: each says what to do.
    """
    from .rounds.checkpoint import Store
    from .rounds.coordinator import Coordinator

    policy = roster.load(coordinating.file)
    signer = Identity.load(coordinating.keys / COORDINATOR_KEY, Asked())
    if len(policy.members) < policy.protection.min_cohort:
        raise ConfigError(
            f"{coordinating.file}: {len(policy.members)} members, min_cohort {policy.protection.min_cohort}; "
            "enroll more: quietchoir federation enroll"
        )
    weights = None if coordinating.rehearse else resident(policy)
    keep, size = None, coordinating.rehearse
    if weights is not None:  # in sealed mode for the size alone: such a coordinator never has an adapter to keep
        keep, size = keeper(policy, weights, signer, Registry(coordinating.home))
    store, desk = Store(coordinating.state), Worker(AdderService)
    from .flower.link import FlowerLink

    try:
        with FlowerLink(policy, coordinating.keys / TLS_KEY) as link:
            on_event({"event": "open", "address": policy.coordinator.address})
            run = Coordinator(
                policy, signer, link, size=size, store=store, keep=keep, on_event=on_event,
                wait_s=coordinating.wait_s, grace_s=coordinating.grace_s, desk=desk,
            )  # fmt: skip
            return run.run(coordinating.rounds)
    finally:
        desk.close()
        store.close()


def keeper(
    policy: Policy, weights: "Weights", signer: Identity, registry: Registry
) -> tuple[Callable[[Vector, dict[str, object]], tuple[str, str]], int]:
    """What keeps a finished adapter at the coordinator, and the length of the flat vector."""
    import torch

    from ..core.models.adapter import Layout, assemble

    shape = policy.adapter.shape()

    def keep(flat: Vector, evaluation: dict[str, object]) -> tuple[str, str]:
        adapter = assemble(shape, weights.architecture, weights.digest, torch.from_numpy(flat.copy()))
        card = make_card(policy, content_hash(adapter), evaluation, signer)
        return registry.put(adapter, card), card.text()

    return keep, Layout(shape, weights.architecture).size


def default_home() -> Path:
    """The node's home."""
    return paths.private_folder(paths.home())


def line(event: Event) -> str:
    """One JSON line."""
    return json.dumps(event, separators=(",", ":"))
