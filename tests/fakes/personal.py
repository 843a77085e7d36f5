"""One owner's shared adapters over a tiny model, and workshops whose verdicts are known."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from quietchoir.core.models.lora.adapter import Adapter, assemble
from quietchoir.core.models.lora.layout import AdapterShape, Layout
from quietchoir.core.models.weights import Weights
from quietchoir.core.training.evaluate import Score
from quietchoir.core.training.trainer import Trainer
from quietchoir.crypto.identity.keys import Identity
from quietchoir.federation.adapters.registry import Registry, content_hash, make_card
from quietchoir.federation.personalization.change import PersonalChange
from quietchoir.federation.personalization.keeping import Owner
from quietchoir.federation.personalization.trainer import PersonalTrainer, PersonalVerdict
from quietchoir.federation.spec.policy import AdapterTable
from quietchoir.tests.fakes.federation import DIGEST, House, house
from quietchoir.tests.fakes.training import chatter, tiny_pair

TABLE = AdapterTable(rank=2, alpha=4.0, upper_layers=2)
SHAPE = TABLE.shape()


def tiny_weights() -> Weights:
    """The tiny model under the digest that fake federations name."""
    return dataclasses.replace(tiny_pair()[0], digest=DIGEST)


def shared_adapter(weights: Weights, seed: int, shape: AdapterShape = SHAPE) -> Adapter:
    """What a federation might have made."""
    draw = torch.Generator().manual_seed(seed)
    flat = 0.02 * torch.randn(Layout(shape, weights.architecture).size, generator=draw)
    return assemble(shape, weights.architecture, weights.digest, flat)


@dataclasses.dataclass
class CryptoWorker:
    """One owner at work: a registry, a key, a federation."""

    home: Path
    weights: Weights
    federation: House = dataclasses.field(default_factory=house)
    identity: Identity = dataclasses.field(default_factory=Identity.generate)

    def __post_init__(self) -> None:
        self.registry = Registry(self.home)
        self.owner = Owner(self.registry, self.identity, self.weights)

    def deliver(self, seed: int, shape: AdapterShape = SHAPE) -> str:
        """A shared adapter comes; its name."""
        made = shared_adapter(self.weights, seed, shape)
        evaluation: dict[str, object] = {
            "before": 0.25,
            "after": 0.5,
            "rounds": 3,
            "run": f"{seed:032x}",
        }
        return self.registry.put(
            made,
            make_card(
                self.federation.policy, content_hash(made), evaluation, self.federation.coordinator
            ),
        )

    def files(self) -> dict[str, bytes]:
        """Everything on this owner's disk."""
        return {
            str(path.relative_to(self.home)): path.read_bytes()
            for path in self.home.rglob("*")
            if path.is_file()
        }


def open_trainer(weights: Weights, examples: int = 6, **options: Any) -> PersonalTrainer:
    """A real one, over a few made-up conversations."""
    trainer = Trainer(weights, SHAPE, precision="float32")
    return PersonalTrainer(
        trainer, trainer.prepare(chatter(examples)), trainer.prepare(chatter(4, seed=9)), **options
    )


class Judged:
    """A trainer that adds `step` to every value, and whose verdicts are told beforehand: right
    answers of 10.
    """

    def __init__(self, *right: int, shared: int = 5, step: float = 0.5) -> None:
        self.right, self.shared, self.step = list(right), shared, step
        # of each training: the first value of the change it went on from
        self.starts: list[float] = []

    def learn(
        self, shared: torch.Tensor, change: PersonalChange, settings: Any, **_: Any
    ) -> PersonalChange:
        """As `PersonalTrainer.learn`, in no time."""
        self.starts.append(float((change.upon(shared) - shared)[0]))
        return PersonalChange(
            change.upon(shared) - shared + (self.step if settings.epochs else 0.0)
        )

    def judge(self, shared: torch.Tensor, change: PersonalChange) -> PersonalVerdict:
        """The next verdict."""
        return PersonalVerdict(Score(self.shared, 10), Score(self.right.pop(0), 10))


def as_workshop(fake: Judged) -> PersonalTrainer:
    """For the type checker."""
    return fake  # type: ignore[return-value]


class Door:
    """In Flower's place: a node without a network, whose handler the test takes."""

    def __init__(
        self,
        opened: Callable[[Callable[[bytes], bytes]], None],
        handle: Callable[[bytes], bytes],
        leave: Any,
    ) -> None:
        self.opened, self.handle, self.leave = opened, handle, leave

    def run(self) -> None:
        """Answer until told to leave."""
        self.opened(self.handle)
        self.leave.wait()


def mode_of(path: Path) -> int:
    """Permission bits."""
    return path.stat().st_mode & 0o777


def modes(paths: Sequence[Path]) -> set[int]:
    """Of several files."""
    return {mode_of(path) for path in paths}
