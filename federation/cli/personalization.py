"""The verb `adapter personalize`: a personal adapter, now and by hand.

Knows flags and words for people. Always: heavy imports happen inside the function that runs the
verb.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...core.config import TrainingConfig
    from ...core.models.lora.layout import AdapterShape
    from ...core.models.weights import Weights
    from ...core.training.examples import Example
    from ..adapters.registry import Registry
    from ..personalization.trainer import PersonalTrainer


def register(actions: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `adapter personalize`."""
    parser = actions.add_parser(
        "personalize",
        help="train this node's own change on top of a shared adapter; it stays on this machine",
    )
    parser.add_argument(
        "adapter",
        metavar="NAME",
        nargs="?",
        default="",
        help="the shared adapter (default: the active one)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="your train.jsonl, and test.jsonl to judge the result by; by default the "
        "conversations here that you consented to (quietchoir data consent)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="over your examples; 0 carries an earlier change over as it is",
    )
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument(
        "--proximal",
        type=float,
        metavar="MU",
        help="pull towards the shared adapter (Ditto); 0: none",
    )
    parser.add_argument(
        "--afresh",
        action="store_true",
        help="train from nothing, leave earlier personal changes alone",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="the model it belongs to (default: this node's)"
    )
    parser.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
    parser.set_defaults(run=run_personalize, needs="federation")


def run_personalize(arguments: Namespace) -> None:
    """Train, judge, keep; say what came of it.

    Raises:
        DataError: no examples. RequestError: no shared adapter. As `personalize`.
    """
    from ...core import config
    from ...core.history.store import PERSONAL, HistoryStore
    from ..adapters.registry import Registry
    from ..membership.keys import load_or_create
    from ..personalization.keeping import Owner, personalize
    from ..personalization.settings import PersonalSettings
    from .adapters import weights_of
    from .history import chosen

    given = config.load(arguments.config).training
    usual = PersonalSettings.of(given)
    settings = PersonalSettings(
        epochs=usual.epochs if arguments.epochs is None else arguments.epochs,
        lr=usual.lr if arguments.lr is None else arguments.lr,
        proximal=usual.proximal if arguments.proximal is None else arguments.proximal,
    )
    registry = Registry(arguments.home)
    name = arguments.adapter or shared_one(registry)
    shape = registry.load(name).shape
    folder: Path | None = arguments.data or given.data
    weights = weights_of(arguments)
    lent = None
    if folder is None:
        lent = chosen(arguments, PERSONAL, registry.card(name).prompt)
        examples = lent.train, lent.test
    else:
        examples = folder_examples(folder)
    personal_trainer = open_trainer(examples, weights, shape, given)
    owner = Owner(registry, load_or_create(registry.home).identity, weights)
    outcome = personalize(owner, name, personal_trainer, settings, afresh=arguments.afresh)
    if lent is not None and outcome.adapter:
        with closing(HistoryStore(registry.home)) as store:
            store.note_trained(outcome.adapter, lent.ids)
            if outcome.carried:
                store.note_adapter(outcome.adapter, outcome.carried)
    print(outcome.words())


def shared_one(registry: "Registry") -> str:
    """The active adapter, or what it stands on if it is personal.

    Raises:
        RequestError: the bare model is active.
    """
    from ...core.errors import RequestError

    active = registry.active()
    if active is None:
        raise RequestError(
            "no adapter is active; name the shared one to build on, `quietchoir "
            "adapter list` shows them"
        )
    card = registry.card(active)
    return card.parent if card.personal else active


def folder_examples(folder: Path) -> "tuple[list[Example], list[Example]]":
    """Those to learn and those to judge by.

    Raises:
        DataError: one of the two files is missing or bad.
    """
    from ...core.training.dataset import TEST, TRAIN
    from ...core.training.examples import read_jsonl

    return read_jsonl(folder / TRAIN), read_jsonl(folder / TEST)


def open_trainer(
    examples: "tuple[list[Example], list[Example]]",
    weights: "Weights",
    shape: "AdapterShape",
    config: "TrainingConfig",
) -> "PersonalTrainer":
    """The owner's examples, ready to be trained on.

    Raises:
        DataError: there are none to learn or none to judge by.
    """
    from ...core.errors import DataError
    from ...core.training.trainer import Trainer
    from ..personalization.trainer import PersonalTrainer

    train, test = examples
    if not train or not test:
        raise DataError(
            f"{len(train)} examples to train on and {len(test)} to judge by; consent to more "
            "conversations (quietchoir data consent), or name a folder with --data, or `data` "
            "under [training] in your configuration"
        )
    trainer = Trainer(weights, shape, precision=config.precision, threads=config.threads)
    return PersonalTrainer(trainer, trainer.prepare(train), trainer.prepare(test))
