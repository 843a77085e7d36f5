"""The verbs `data conversations | consent | show | forget`: what this node keeps, and what of it
trains.

Knows flags and words for people. Always: heavy imports happen inside the function that runs a verb.
"""

import re
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import screen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...core.config import Config
    from ...core.history.store import HistoryStore, KeptExample
    from ...core.history.training_set import TrainingSet
    from ...core.prompt import PromptFormat
    from ..adapters.registry import Card, Registry

SHOWN = 60  # characters of a request or an answer in a table
DRAWN = re.compile(".*?[0-9a-f]{16}")  # an id of this node's making
SHOWN_ID = 8  # of the digits of a federation's id
UNSAID = "unsaid"


def register(actions: "_SubParsersAction[ArgumentParser]") -> None:
    """Add them to `data`."""
    listing = actions.add_parser("conversations", help="what was said here and is kept")
    consent = actions.add_parser(
        "consent", help="say what a conversation, a collection or a source may train"
    )
    consent.add_argument("kind", choices=["conversation", "collection", "source"])
    consent.add_argument("name", metavar="NAME", help="as `data conversations` shows it")
    consent.add_argument(
        "destination",
        metavar="WHAT",
        help="never, personal, a federation's file (it and the personal adapter), or unsaid",
    )
    show = actions.add_parser(
        "show", help="examples that were made of conversations; with --for, the bytes that train"
    )
    show.add_argument(
        "--for",
        dest="destination",
        default="",
        metavar="WHAT",
        help="personal, or a federation's file: print exactly what trains it, redacted",
    )
    forget = actions.add_parser(
        "forget", help="delete examples; mark adapters that learned them, retrain the personal one"
    )
    forget.add_argument("examples", nargs="*", metavar="EXAMPLE", help="as `data show` lists them")
    forget.add_argument("--conversation", default="", metavar="NAME", help="whole, with its turns")
    forget.add_argument(
        "--matching", default="", metavar="TEXT", help="every example with this text in it"
    )
    runs = (
        (listing, list_conversations), (consent, give_consent),
        (show, show_data), (forget, forget_data),
    )  # fmt: skip
    for action, verb in runs:
        action.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
        action.set_defaults(run=verb)


def history_of(arguments: Namespace) -> "HistoryStore":
    """This node's history."""
    from ...core import paths
    from ...core.history.store import HistoryStore

    return HistoryStore(arguments.home or paths.home())


def list_conversations(arguments: Namespace) -> None:
    """A line for each conversation."""
    with closing(history_of(arguments)) as store:
        kept, consents = store.conversations(), store.consents()
    names = ("conversation", "from", "turns", "examples", "may train", "")
    table = screen.table(*names, ids=names[:2], box=None)
    for info in kept:
        table.add_row(
            info.id, info.source, str(info.turns), str(info.examples), short(info.consent),
            info.title,
        )  # fmt: skip
    screen.show(table)
    for kind, name, destination in consents:
        if kind != "conversation":
            print(f"{kind} {name}: {short(destination)}")


def short(destination: str) -> str:
    """A destination in a table: of a federation's id, so much as tells it from others."""
    kind, colon, id = destination.partition(":")
    return f"{kind}{colon}{id[:SHOWN_ID]}"


def give_consent(arguments: Namespace) -> None:
    """Say what something may train."""
    from ...core.history.store import NEVER, PERSONAL

    given = arguments.destination
    destination = given if given in (NEVER, PERSONAL) else None
    if destination is None and given != UNSAID:
        destination = policy_destination(Path(given))[0]
    with closing(history_of(arguments)) as store:
        name = arguments.name
        if arguments.kind == "conversation":
            name = meant(name, [info.id for info in store.conversations()], arguments.kind)
        store.consent(arguments.kind, name, destination)
    print(f"{arguments.kind} {name}: {destination or 'nothing is said of it'}")


def meant(given: str, ids: "Iterable[str]", kind: str) -> str:
    """The one id that begins with what was given; `given` itself where none does. Of a name that
    this node did not draw, `talk-1` is no beginning of `talk-10`; `talk-1…` is.

    Raises:
        DataError: several do.
    """
    from ...core.errors import DataError

    known = set(ids)
    begun = given.removesuffix("…")
    found = [
        id
        for id in sorted(known)
        if begun and id.startswith(begun) and (begun != given or DRAWN.fullmatch(id))
    ]
    if given in known or not found:
        return given
    if len(found) > 1:
        raise DataError(f"{len(found)} {kind}s begin with {begun}, expected one; give more of it")
    return found[0]


def policy_destination(file: Path) -> "tuple[str, PromptFormat]":
    """A federation as consent names it, and how its adapter is asked.

    Raises:
        ConfigError: there is no such file. RosterError: it is no federation's.
    """
    from ...core.errors import ConfigError
    from ..client_node import destination_of
    from ..membership import roster

    if not file.is_file():
        raise ConfigError(
            f"{file}: expected never, personal, or the file of a federation, which is not there"
        )
    policy = roster.load(file)
    return destination_of(policy), policy.prompt


def show_data(arguments: Namespace) -> None:
    """All examples; or what trains one destination, byte for byte."""
    if arguments.destination:
        show_bytes(arguments)
        return
    with closing(history_of(arguments)) as store:
        kept = store.examples()
    names = ("example", "conversation", "from a", "may train", "request", "answer")
    table = screen.table(*names, ids=names[:2], box=None)
    for one in kept:
        table.add_row(
            one.id, one.conversation, one.origin, short(one.consent),
            one.messages[-1].content[:SHOWN], one.answer[:SHOWN],
        )  # fmt: skip
    screen.show(table)


def show_bytes(arguments: Namespace) -> None:
    """On standard output the bytes that train, on standard error what they are."""
    from ...core.history.store import PERSONAL
    from ..adapters.registry import Registry

    if arguments.destination == PERSONAL:
        destination, prompt = PERSONAL, prompt_of_shared(Registry(arguments.home))
    else:
        destination, prompt = policy_destination(Path(arguments.destination))
    found = chosen(arguments, destination, prompt)
    print(found.encoded.decode("utf-8"), end="")
    print(training_set_sentence(found), file=sys.stderr)


def chosen(arguments: Namespace, destination: str, prompt: "PromptFormat") -> "TrainingSet":
    """What may train a destination."""
    from ...core import config
    from ...core.history.redactor import Redactor
    from ...core.history.training_set import training_set

    redactor = Redactor(config.load(arguments.config).history.words)
    with closing(history_of(arguments)) as store:
        return training_set(store, destination, prompt, redactor)


def training_set_sentence(found: "TrainingSet") -> str:
    """A training set in words."""
    out = ", ".join(f"{count} {why}" for why, count in found.left_out.items() if count)
    taken = ", ".join(f"{count} {kind}" for kind, count in sorted(found.redacted.items()))
    return (
        f"{found.destination}: {len(found.train)} examples train, {len(found.test)} judge; left "
        f"out: {out or 'none'}; taken out of them: {taken or 'nothing'}; digest {found.digest}"
    )


def prompt_of_shared(registry: "Registry") -> "PromptFormat":
    """How the active adapter is asked; as it comes, if none is active."""
    from ...core.prompt import AS_IT_COMES

    active = registry.active()
    return AS_IT_COMES if active is None else registry.card(active).prompt


def forget_data(arguments: Namespace) -> None:
    """Delete, tell which adapters learned it, and make the personal ones anew.

    Raises:
        DataError: nothing of what was named is here.
    """
    from ...core.errors import ConfigError, DataError
    from ...core.history.remains import forget_said, forget_saved
    from ..adapters.registry import Registry
    from ..membership.unlock import Asked

    if not (arguments.examples or arguments.conversation or arguments.matching):
        raise ConfigError("name examples, or --conversation NAME, or --matching TEXT")
    with closing(history_of(arguments)) as store, ExitStack() as rest:
        kept = store.examples()
        known = [one.id for one in kept]
        named = {meant(given, known, "example") for given in arguments.examples}
        conversation = arguments.conversation and meant(
            arguments.conversation, [info.id for info in store.conversations()], "conversation"
        )
        ids = wanted(kept, named, arguments.matching.casefold())
        if not ids and not conversation:
            store.forget(())  # what an earlier time could not write over
            raise DataError("no such example is here; `quietchoir data show` lists them")
        registry = Registry(arguments.home)
        # the last one first, each of them also after one that could not
        if conversation:
            for branch in store.branches(conversation):
                rest.callback(forget_said, registry.home, branch, Asked())
        rest.callback(unlearn, arguments, registry, store)
        rest.callback(registry.renew_routes, store)
        rest.callback(forget_saved, registry.home)
        count = store.forget(sorted(ids), conversation)
        examples = screen.counted(count, "example")
        print(f"{examples} forgotten; no training that begins from now on has them")


def unlearn(arguments: Namespace, registry: "Registry", store: "HistoryStore") -> None:
    """Tell which adapters learned what was forgotten, and make the personal ones anew."""
    marks = store.marks()
    for card in cards(registry):
        if card.adapter in marks and not card.personal:
            print(
                f"adapter {card.adapter[:12]} ({card.name}) was trained on "
                f"{marks[card.adapter]} of what was forgotten; it stays as it is, and the "
                f"federation's next rounds do without"
            )
    for card in registry.personal():
        if card.adapter in marks:
            print(made_anew(arguments, registry, store, card))


def wanted(examples: "list[KeptExample]", named: set[str], matching: str) -> set[str]:
    """Ids of the examples that are meant, and of those that say the same."""
    found = [one for one in examples if one.id in named or (matching and matching in words_of(one))]
    same = {(one.messages[-1].content, one.answer) for one in found}
    return {one.id for one in examples if (one.messages[-1].content, one.answer) in same}


def words_of(example: "KeptExample") -> str:
    """All its texts, without case."""
    return "\n".join([*(one.content for one in example.messages), example.answer]).casefold()


def cards(registry: "Registry") -> "list[Card]":
    """Cards of the adapters here; damaged ones are passed over."""
    from ...core.errors import FederationError

    found = []
    for name in registry.list():
        try:
            found.append(registry.card(name))
        except FederationError:
            continue
    return found


def made_anew(
    arguments: Namespace, registry: "Registry", store: "HistoryStore", card: "Card"
) -> str:
    """Train a personal adapter again, without what was forgotten; the old one is deleted."""
    from ...core import config
    from ...core.history.redactor import Redactor
    from ...core.history.store import PERSONAL
    from ...core.history.training_set import training_set
    from ...core.models.hub import catalog
    from ...core.models.weights import load
    from ...core.training.trainer import Trainer
    from ..membership.keys import load_or_create
    from ..personalization.keeping import Owner, personalize
    from ..personalization.settings import PersonalSettings
    from ..personalization.trainer import PersonalTrainer

    settings: Config = config.load(arguments.config)
    active = registry.active() == card.adapter
    found = training_set(store, PERSONAL, card.prompt, Redactor(settings.history.words))
    words = "too little is left to train it anew"
    if active:
        registry.activate(card.parent)
    if found.train and found.test:
        weights = load(catalog.find(settings.engine.model))
        shape = registry.load(card.parent).shape
        trainer = Trainer(
            weights, shape, precision=settings.training.precision, threads=settings.training.threads
        )
        personal_trainer = PersonalTrainer(
            trainer, trainer.prepare(found.train), trainer.prepare(found.test)
        )
        outcome = personalize(
            Owner(registry, load_or_create(registry.home).identity, weights),
            card.parent,
            personal_trainer,
            PersonalSettings.of(settings.training),
            afresh=True,
            activate=lambda _registry, _card: active,
        )
        words = outcome.words()
        if outcome.adapter:
            store.note_trained(outcome.adapter, found.ids)
        if outcome.adapter == card.adapter:
            return words
    registry.remove(card.adapter)
    store.drop_marks(card.adapter)
    return f"personal adapter {card.adapter[:12]} is deleted, it had learned it; {words}"
