"""The verbs `model` and `data`: what lies on this disk, and how it came there.

Knows flags, tables and progress bars. Knows nothing of file formats; models and training do.
Always: heavy imports happen inside the function that runs a verb.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import paths, screen
from .engine.backends.export import commands as export_commands
from .training.distillation import commands as distillation_commands
from .training.quantization import commands as quantization_commands

if TYPE_CHECKING:
    from .models.hub.client import HubClient
    from .models.hub.offer import PullOffer


def register(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `model list|search|pull|remove|fit|show|convert|distill|export|quantize|gc`."""
    _register_model(verbs.add_parser("model", help="models on this disk and in the catalog"))


def _register_model(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list", help="the models on this disk, other programs' too; and what can be pulled"
    )
    listing.set_defaults(run=list_models)
    search = actions.add_parser("search", help="models by words: those known here, or a hub's")
    search.add_argument("words", nargs="+", metavar="WORD")
    search.add_argument(
        "--hub", action="store_true", help="ask the hub ([models] hub); it learns these words"
    )
    search.set_defaults(run=search_models)
    pull = actions.add_parser("pull", help="fetch a model and check its hash")
    pull.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a name that `model list` shows, or hf:OWNER/REPO[:FILE or QUANTISATION]",
    )
    pull.add_argument(
        "--accept-licence",
        default="",
        metavar="LICENCE",
        help="you read this licence, which is not open, and agree to it",
    )
    pull.set_defaults(run=pull_models)
    remove = actions.add_parser("remove", help="delete a model that quietchoir brought")
    remove.add_argument("names", nargs="*", metavar="NAME")
    remove.add_argument(
        "--unfinished", action="store_true", help="also what came of pulls that were broken off"
    )
    remove.set_defaults(run=remove_models)
    fitting = actions.add_parser(
        "fit", help="which models run on this machine, in how much memory, how fast at most"
    )
    fitting.add_argument(
        "models", nargs="*", metavar="MODEL", help="default: all that are here or known"
    )
    fitting.add_argument(
        "--context", type=int, metavar="N", help="tokens of a conversation (default: [engine])"
    )
    fitting.set_defaults(run=fit_models)
    show = actions.add_parser(
        "show", help="what a model file or folder is: family, quantisation, sizes"
    )
    show.add_argument(
        "model",
        metavar="MODEL",
        help="a .gguf file, a model folder, or a name that `model list` shows",
    )
    show.set_defaults(run=show_model)
    convert = actions.add_parser(
        "convert", help="write a model folder as one GGUF file, quantised if asked"
    )
    convert.add_argument(
        "model", metavar="FOLDER", help="config.json, safetensors and tokenizer.json, as published"
    )
    convert.add_argument(
        "--type",
        default="q4_0",
        choices=["q4_0", "q8_0", "f16", "bf16", "f32"],
        help="of the matrices",
    )
    convert.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the .gguf file to write"
    )
    convert.set_defaults(run=convert_model, needs="train")
    distillation_commands.register(actions)
    export_commands.register(actions)
    quantization_commands.register(actions)
    garbage = actions.add_parser(
        "gc", help="what of the models' folder nobody needs: shown, and with --delete given up"
    )
    garbage.add_argument("--delete", action="store_true", help="do it; without it nothing changes")
    garbage.set_defaults(run=collect_garbage)


def register_data(parser: ArgumentParser) -> "_SubParsersAction[ArgumentParser]":
    """Add `build|list` to the verb `data`; return its actions, for more of them."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="make a data set, split into parties")
    kinds = build.add_subparsers(dest="kind", required=True, metavar="KIND")
    home = kinds.add_parser(
        "home", help="households asking their assistant to act, from home-assistant-intents"
    )
    home.add_argument("--households", type=int, default=4, metavar="N")
    home.add_argument(
        "--train", type=int, default=150, metavar="N", help="training examples a household"
    )
    home.add_argument(
        "--test", type=int, default=100, metavar="N", help="held-out examples a household"
    )
    home.add_argument(
        "--seed", type=int, default=1, metavar="N", help="the same seed builds the same households"
    )
    home.add_argument(
        "--talk", type=int, metavar="N",
        help="also N requests of each household that no tool serves, with the model's own answers "
        "(default: 30 to a hundred commands)",
    )  # fmt: skip
    home.add_argument(
        "--follow-ups", type=int, metavar="N",
        help="also N second requests of each household that lean on a first: and the kitchen too "
        "(default: 12 to a hundred)",
    )  # fmt: skip
    home.add_argument(
        "--doubles", type=int, metavar="N",
        help="also N sentences of two wishes of each household (default: 8 to a hundred)",
    )  # fmt: skip
    home.add_argument("--model", metavar="NAME", help="whose own answers (default: this node's)")
    home.set_defaults(run=build_home, needs="train")
    jsonl = kinds.add_parser(
        "jsonl",
        help="your own conversations, one JSON object a line; of a row its last answer is learned",
    )
    jsonl.add_argument("file", type=Path, metavar="FILE")
    jsonl.add_argument(
        "--format",
        default="chat",
        choices=["chat", "sharegpt", "alpaca"],
        help="of the rows (default: chat, OpenAI's)",
    )
    jsonl.add_argument("--partition-by", metavar="KEY", help="one party for each value of this key")
    jsonl.add_argument(
        "--test-share",
        type=float,
        default=0.2,
        metavar="X",
        help="of each party's rows (default 0.2)",
    )
    jsonl.add_argument(
        "--seed", type=int, default=1, metavar="N", help="the same seed divides the same way"
    )
    jsonl.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="at most so many rows of each party, chosen by the seed",
    )
    jsonl.set_defaults(run=build_jsonl)
    for kind in (home, jsonl):
        kind.add_argument(
            "--out", type=Path, metavar="FOLDER", help="default: data/ in the node's home"
        )
    listing = actions.add_parser("list", help="data sets on this disk")
    listing.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER", help="default: data/ in the node's home"
    )
    listing.set_defaults(run=list_data)
    return actions


def list_models(_arguments: Namespace) -> None:
    """Print which models are on this disk, whose they are, and which can be pulled."""
    from .models.hub import catalog, known_models

    here = screen.table("name", "size", "licence", "from", ids=("name",), box=None)
    found = catalog.installed()
    for model in found:
        note = f"{model.origin}; {model.refused}" if model.refused else model.origin
        here.add_row(model.name, size_text(model.size), model.licence, note)
    if found:
        screen.show(here)
    if left := catalog.unfinished():
        print(
            f"unfinished pulls: {size_text(left)}; the same pull goes on after it, "
            f"`model remove --unfinished` deletes it"
        )
    names = {model.name for model in found}
    table = screen.table(
        *("to be pulled", "size", "licence", "tested here"), ids=("to be pulled",), box=None
    )
    for entry in catalog.entries():
        if entry.name not in names:
            table.add_row(entry.name, size_text(entry.size), entry.licence, "answers")
    for known in known_models.KNOWN_MODELS:
        if known.name not in names:
            size = f"about {size_text(known.bytes)}"
            table.add_row(known.name, size, known.licence, TESTED[known.tested])
    print()
    screen.show(table)


TESTED = {"answers": "answers", "family": "its family, not this model"}


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.0f} MB" if size < 995e6 else f"{size / 1e9:.1f} GB"


def search_models(arguments: Namespace) -> None:
    """Print what is known by these words."""
    from .models.hub import catalog

    words = " ".join(arguments.words)
    if arguments.hub:
        found = hub_of(arguments).search(words)
        table = screen.table(
            "repository", "licence", "downloads", "", ids=("repository",), box=None
        )
        for one in found:
            consent = "after consent" if one.gated else ""
            table.add_row(f"hf:{one.name}", one.licence, f"{one.downloads:,}", consent)
    else:
        known = catalog.search(words)
        table = screen.table("name", "licence", "from", ids=("name",), box=None)
        for model in known:
            source = (
                model.source
                if isinstance(model, catalog.CatalogEntry)
                else f"hf:{model.repository}:{model.quantisation}"
            )
            table.add_row(model.name, model.licence, source)
    if table.row_count:
        screen.show(table)
    elif arguments.hub:
        print(f"the hub has no GGUF files for {words!r}")
    else:
        print(f"nothing is known of {words!r} here; --hub asks the hub, which learns these words")


def hub_of(arguments: Namespace) -> "HubClient":
    """The hub that the owner's configuration names."""
    from . import config
    from .models.hub.client import HubClient

    return HubClient(config.load(arguments.config).models.hub)


def pull_models(arguments: Namespace) -> None:
    """Fetch each named model, with a progress bar.

    Raises:
        LicenceError: it is not open, and nobody agreed to it.
    """
    from .models.hub import catalog

    hub = hub_of(arguments)
    for name in arguments.names:
        if (there := catalog.find_foreign(name)) is not None:
            print(f"{name}: {there} (used where it lies; there is nothing to pull)")
            continue
        found, accepted = None, arguments.accept_licence
        if catalog.is_remote(name):
            found = catalog.offer(name, hub)
            print(f"{name}: {offer_text(found)}", flush=True)
            if found.asks and not accepted and agreed(found):
                accepted = found.licence
        with progress_bar(found.name if found else name) as advance:
            path = catalog.pull(name, progress=advance, hub=hub, accepted=accepted, chosen=found)
        print(f"{found.name if found else name}: {path}")


def offer_text(found: "PullOffer") -> str:
    """What a pull would bring, in a line."""
    took = f"{found.quantisation}, " if found.quantisation else ""
    others = f" (others: {', '.join(found.others)})" if found.others else ""
    files = found.files[0].path if len(found.files) == 1 else f"{len(found.files)} files"
    return (
        f"{files}, {took}{size_text(found.size)}, licence {found.licence}{others}; it will be "
        f"{found.name}"
    )


def agreed(found: "PullOffer") -> bool:
    """Ask the owner about a licence; False where nobody sits at a terminal."""
    import sys

    if not sys.stdin.isatty():
        return False
    print(f"The licence {found.licence} is not known to be open. It is at {found.page}")
    return screen.typed("Did you read it, and do you agree to it? [y/N] ").strip().lower() in (
        "y",
        "yes",
    )


def remove_models(arguments: Namespace) -> None:
    """Delete what quietchoir brought; other programs' models stay.

    Raises:
        ConfigError: nothing is named.
    """
    from .errors import ConfigError
    from .models.hub import catalog

    if not arguments.names and not arguments.unfinished:
        raise ConfigError("name a model that `model list` shows, or give --unfinished")
    for name in arguments.names:
        print(f"{name}: removed, {size_text(catalog.remove(name))} are free again")
    if arguments.unfinished:
        print(f"unfinished pulls: removed, {size_text(catalog.remove_unfinished())} are free again")


def fit_models(arguments: Namespace) -> None:
    """Measure this machine's memory, then print what it is for each model.

    Raises:
        ModelNotFoundError: a model that is named is neither here nor known.
        ConfigError: no context of so many tokens.
    """
    from . import config
    from .engine import fit
    from .errors import ConfigError
    from .models.hub import catalog

    engine = config.load(arguments.config).engine
    if arguments.context is not None:
        try:
            engine = replace(engine, context=arguments.context)
        except ValueError as error:
            raise ConfigError(f"--context: {error}") from error
    needs = fit.needs_of_all(arguments.models)
    disk = {model.name: model.size for model in catalog.installed()}
    machine = fit.measure_memory(engine.memory_bytes)
    table = screen.table(
        *("model", "memory", "with its cache", "disk", "download", "runs here"),
        "tokens/s at most",
        ids=("model",),
        box=None,
    )
    for name, need in needs.items():
        found = fit.fit(name, need, machine, engine)
        table.add_row(
            name,
            size_text(found.weight_bytes),
            size_text(found.bytes),
            size_text(disk[name]) if name in disk else "",
            "" if name in disk else size_text(found.weight_bytes),
            "too large" if not found.fits else "yes" if found.now else "when memory is freed",
            f"{found.tokens_per_s:.0f}" if found.fits else "",
        )
    print(
        f"memory: {size_text(machine.bytes)}, {size_text(machine.free)} free, "
        f"{size_text(machine.limit)} for models; read here and now at "
        f"{machine.read_bytes_s / 1e9:.1f} GB/s by all cores, which bounds one answer's speed"
    )
    screen.show(table)


def show_model(arguments: Namespace) -> None:
    """Print what a model is."""
    from .models import summary
    from .models.hub import catalog

    path = catalog.find(arguments.model)
    print(path)
    table = screen.table(box=None, show_header=False)
    for label, value in summary.lines_of(path):
        table.add_row(label, value)
    screen.show(table)


def convert_model(arguments: Namespace) -> None:
    """Write a model folder as a GGUF file.

    Raises:
        ConfigError: the file is there already.
    """
    from .errors import ConfigError
    from .models import to_gguf, weights
    from .models.hub import catalog

    if arguments.out.exists():
        raise ConfigError(f"{arguments.out}: is there already and is kept; choose another name")
    to_gguf.save(weights.load(catalog.find(arguments.model)), arguments.out, arguments.type.upper())
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.0f} MB")


def collect_garbage(arguments: Namespace) -> None:
    """Print what of the models' folder nobody needs; give it up if asked."""
    from .models.hub import store

    found = store.collect() if arguments.delete else store.garbage()
    for one in found:
        stays = f"; stays: {one.kept}" if one.kept else ""
        print(f"{one.path}: {size_text(one.bytes)}, {one.why}{stays}")
    freed = size_text(sum(one.bytes for one in found if not one.kept))
    if arguments.delete:
        print(f"{freed} are free again")
    else:
        print(f"{freed} could be freed; `quietchoir model gc --delete` does it")


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; call what it yields with (bytes done, bytes in all, 0 if
    unknown).
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)


def build_home(arguments: Namespace) -> None:
    """Generate households: their rooms, devices and requests."""
    from .training.dataset import Beside, build_homes

    folder = arguments.out or paths.home() / "data" / "home"
    counts = {name: getattr(arguments, name) for name in ("talk", "follow_ups", "doubles")}
    given = {name: count for name, count in counts.items() if count is not None}
    beside = Beside.usual(arguments.train, **given)
    if beside.talk:
        beside = replace(beside, answers=_answers_of(arguments))
    build_homes(
        folder,
        households=arguments.households,
        train=arguments.train,
        test=arguments.test,
        seed=arguments.seed,
        beside=beside,
    )
    _print_parties(folder)


def _answers_of(arguments: Namespace) -> Callable[[Sequence[str], int], list[str]]:
    """What a model answers by itself; it is loaded when it is asked first.

    Raises:
        ModelNotFoundError: it is not here.
    """
    from functools import cache

    from . import config
    from .errors import ModelNotFoundError
    from .models import weights
    from .models.hub import catalog
    from .training.own_answers import own_answers

    name = arguments.model or config.load(arguments.config).engine.model
    try:
        path = catalog.find(name)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{error} (its own answers to small talk are learned; --talk 0 makes commands alone)"
        ) from error
    loaded = cache(lambda: weights.load(path))
    return lambda texts, seed: own_answers(loaded(), texts, seed)


def build_jsonl(arguments: Namespace) -> None:
    """Check a file whole, then split it into parties."""
    from .training.dataset import Division, build_jsonl

    folder = arguments.out or paths.home() / "data" / arguments.file.stem
    division = Division(
        partition_by=arguments.partition_by,
        test_share=arguments.test_share,
        seed=arguments.seed,
        limit=arguments.limit,
    )
    build_jsonl(arguments.file, folder, division, arguments.format)
    _print_parties(folder)


def list_data(arguments: Namespace) -> None:
    """Print every party of every data set, with its number of examples."""
    root = arguments.folder or paths.home() / "data"
    if not _print_parties(root, sets=True):
        print(f"{root}: no examples here; build some: quietchoir data build home")


def _print_parties(root: Path, *, sets: bool = False) -> int:
    """Parties in `root`, with `sets` also those in its folders; returns how many."""
    from .training.dataset import list_datasets

    folders = [root, *sorted(folder for folder in root.glob("*") if sets and folder.is_dir())]
    table = screen.table(
        "party",
        "train",
        "test",
        "household",
        ids=("party",),
        box=None,
        title=str(root),
        title_justify="left",
        title_style="",
    )
    for party in (party for folder in folders for party in list_datasets(folder)):
        name = str(party.folder.relative_to(root))
        table.add_row(name, str(party.train), str(party.test), "yes" if party.home else "")
    if table.row_count:
        screen.show(table)
    return table.row_count
