"""The verb `adapter`: what this node can answer with.

Knows flags and words for people. Always: heavy imports happen inside the function that runs a verb.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.screen import one_line
from ..monitor.event_printer import percent

if TYPE_CHECKING:
    from ...core.models.weights import Weights
    from ..adapters.registry import Card


def register(verbs: "_SubParsersAction[ArgumentParser]") -> "_SubParsersAction[ArgumentParser]":
    """Add `adapter list | show | activate | rollback | remove | export | import`; return its
    actions, for more of them.
    """
    parser = verbs.add_parser("adapter", help="adapters on this disk")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="adapters on this disk")
    show = actions.add_parser("show", help="one adapter's card")
    activate = actions.add_parser(
        "activate", help="answer with this adapter from now on; `none` for the bare model"
    )
    rollback = actions.add_parser("rollback", help="go back to the adapter that was active before")
    removing = actions.add_parser("remove", help="delete an adapter from this disk")
    export = actions.add_parser(
        "export",
        help="write an adapter for other tools: a PEFT folder, or a GGUF file for llama.cpp",
    )
    bringing = actions.add_parser(
        "import", help="keep somebody else's PEFT folder; it is marked as unsigned"
    )
    for action in (show, activate, removing, export):
        action.add_argument(
            "adapter",
            metavar="NAME",
            help="what `list` calls it, or the first characters of its digest",
        )
    export.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="a new folder for a PEFT checkpoint"
    )
    export.add_argument(
        "--gguf", type=Path, metavar="FILE", help="a new file for llama.cpp (--lora FILE)"
    )
    export.add_argument(
        "--base",
        default="",
        metavar="TEXT",
        help="what the checkpoint calls its model, for tools that load by name",
    )
    export.add_argument(
        "--personal",
        action="store_true",
        help="yes, a personal adapter: it holds what your own examples taught it",
    )
    bringing.add_argument("folder", type=Path, metavar="FOLDER")
    bringing.add_argument("--name", default="", help="what it is called here (default: its folder)")
    bringing.add_argument(
        "--federation",
        type=Path,
        metavar="FED",
        help="the file of the federation that its card names (default: what was joined)",
    )
    for action in (export, bringing):
        action.add_argument(
            "--model", metavar="NAME", help="the model it belongs to (default: this node's)"
        )
    for action, run in (
        (listing, list_adapters),
        (show, show_adapter),
        (activate, activate_adapter),
        (rollback, rollback_adapter),
        (removing, remove_adapter),
        (export, export_adapter),
        (bringing, import_adapter),
    ):
        action.add_argument("--home", type=Path, metavar="DIR", help="default: the node's home")
        action.set_defaults(run=run)
    return actions


def list_adapters(arguments: Namespace) -> None:
    """A table."""
    from ...core.history.store import marks_in
    from ..adapters.registry import SHOWN, Registry

    registry = Registry(arguments.home)
    active, marks = registry.active(), marks_in(registry.home)
    for name in registry.list():
        card = registry.card(name)
        print(
            one_line(
                f"{'*' if name == active else ' '} {name[:SHOWN]}  {card.name:<20} "
                f"{described(card)}"
                + (f"  trained on {marks[name]} that were forgotten" if name in marks else "")
            )
        )
    if not registry.list():
        print("no adapters here yet; join a federation: quietchoir join FED --data FOLDER")


def described(card: "Card") -> str:
    """A card in a few words."""
    if not card.signer:
        return "unsigned: nobody vouches for it"
    if card.personal:
        scores = (
            f"{percent(card.accuracy_before)} → {percent(card.accuracy_after)} of your "
            f"held-out examples"
        )
        return f"personal, on top of {card.parent[:12]}  {scores}"
    spent = f"  epsilon {card.epsilon:.2f}" if card.epsilon is not None else ""
    scores = f"{percent(card.accuracy_before)} → {percent(card.accuracy_after)}"
    return f"{card.rounds:>3} rounds  {card.protection:<7} {scores}{spent}"


def show_adapter(arguments: Namespace) -> None:
    """The card, checked, as JSON."""
    import dataclasses
    import json

    from ..adapters.registry import Registry

    registry = Registry(arguments.home)
    card = registry.card(arguments.adapter)
    more = {"path": str(registry.path(arguments.adapter)), "signed": bool(card.signer)}
    print(json.dumps({**dataclasses.asdict(card), **more}, indent=2))


def activate_adapter(arguments: Namespace) -> None:
    """Move the pointer."""
    from ..adapters.registry import Registry

    registry = Registry(arguments.home)
    name = registry.activate("" if arguments.adapter == "none" else arguments.adapter)
    if name and not registry.card(name).signer:
        print("this adapter is unsigned: nobody vouches for what it was trained on")
    if name and (model := other_model(registry.card(name).models, arguments.config)):
        print(
            f"it belongs to another model than {model}, which this node is set up to serve: a node "
            "that serves that one goes on with what it has"
        )
    print(
        f"active: {name or 'the bare model'}; a running node takes it over within a second or two"
    )


def other_model(digests: tuple[str, ...], settings: "Path | None") -> str:
    """Name of the model that this node's settings serve, if it is here and none of `digests`."""
    from ...core import config
    from ...core.errors import ModelError
    from ...core.models.hub import catalog
    from ...core.models.weights import digest_of

    name = config.load(settings).engine.model
    try:
        return "" if digest_of(catalog.find(name)) in digests else name
    except ModelError:
        return ""


def rollback_adapter(arguments: Namespace) -> None:
    """Move the pointer back."""
    from ..adapters.registry import Registry

    print(f"active: {Registry(arguments.home).rollback() or 'the bare model'}")


def remove_adapter(arguments: Namespace) -> None:
    """Delete a folder."""
    from ..adapters.registry import Registry

    print(f"removed: {Registry(arguments.home).remove(arguments.adapter)}")


def export_adapter(arguments: Namespace) -> None:
    """Write a folder, a file, or both."""
    from ...core.errors import ConfigError
    from ..adapters import transfer
    from ..adapters.registry import Registry

    if arguments.folder is None and arguments.gguf is None:
        raise ConfigError("name a FOLDER for a PEFT checkpoint, or --gguf FILE, or both")
    registry = Registry(arguments.home)
    if arguments.folder is not None:
        known = transfer.check_rows(registry, arguments.adapter, lambda: weights_of(arguments))
        name = transfer.export_peft(
            registry,
            arguments.adapter,
            arguments.folder,
            arguments.base,
            personal=arguments.personal,
        )
        print(f"{name[:12]}: PEFT checkpoint in {arguments.folder}")
        if not known:
            print(
                "its model is not here (--model names it): if that is a GLM, Command R, ERNIE, "
                "Helium, GPT-J or CodeGen, PEFT computes q_proj and k_proj of it wrongly; if a "
                "Falcon-H1, Granite 4 hybrid or Nemotron-H, all of it"
            )
    if arguments.gguf is not None:
        name = transfer.export_gguf(
            registry,
            arguments.adapter,
            arguments.gguf,
            weights_of(arguments),
            personal=arguments.personal,
        )
        print(f"{name[:12]}: {arguments.gguf}, for llama.cpp's --lora")


def import_adapter(arguments: Namespace) -> None:
    """Keep a folder."""
    from ..adapters import transfer
    from ..adapters.registry import Registry
    from ..membership import roster

    chain = None if arguments.federation is None else roster.read(arguments.federation)
    name, card = transfer.bring_in(
        Registry(arguments.home), arguments.folder, weights_of(arguments), arguments.name, chain
    )
    print(one_line(f"{name[:12]}  {card.name}  {described(card)}"))


def weights_of(arguments: Namespace) -> "Weights":
    """The model that was named, or this node's."""
    from ...core import config
    from ...core.models.hub import catalog
    from ...core.models.weights import load

    return load(catalog.find(arguments.model or config.load(arguments.config).engine.model))
