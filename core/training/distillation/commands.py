"""The verb `model distill`: a smaller model that says what a larger one says.

Knows flags and what is printed. Always: heavy imports happen inside the function that runs it.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ... import paths
from .settings import DistillationSettings

if TYPE_CHECKING:
    from ...models.weights import Weights
    from .distiller import DistillationProgress

NUMBERS = {
    "temperature": ("T", float, "of both likelihoods: higher ones tell more of unlikely tokens"),
    "top_k": ("K", int, "of the teacher's likelihoods that are kept of each token"),
    "hard": ("X", float, "share of the loss that is the right answer's, 0 to 1"),
    "hidden": ("W", float, "weight of the distance of hidden states; 0: they are not compared"),
    "lr": ("X", float, "learning rate"),
    "batch": ("N", int, "examples of one step"),
    "epochs": ("N", int, "times that every example is seen"),
    "seed": ("N", int, "of the order of examples"),
}


def register(actions: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `distill` to the verb `model`."""
    distill = actions.add_parser(
        "distill",
        help="train a smaller model to say what a larger one says; goes on where it was stopped",
    )
    distill.add_argument(
        "--teacher", required=True, metavar="MODEL", help="a file, a folder, or a name"
    )
    distill.add_argument(
        "--adapter", metavar="ADAPTER",
        help="of the teacher: a PEFT folder, or a name of `adapter list`; it is merged",
    )  # fmt: skip
    distill.add_argument(
        "--student", default="half", metavar="STUDENT",
        help='"half" of the teacher\'s layers (the default), a number of them, evenly spaced, '
        "their numbers from 0 with commas between, or a model of the same vocabulary",
    )  # fmt: skip
    distill.add_argument(
        "--data", type=Path, required=True, metavar="DATA",
        help="chat-format JSONL, or a folder with train.jsonl (and test.jsonl, to be scored on) "
        "or with such folders",
    )  # fmt: skip
    distill.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER",
        help="for the teacher's answers, the state while it runs, and student.gguf",
    )  # fmt: skip
    distill.add_argument(
        "--type", default="q8_0", choices=["q4_0", "q8_0", "f16", "bf16", "f32"],
        help="of the student's matrices (default: q8_0)",
    )  # fmt: skip
    usual = DistillationSettings()
    for name, (metavar, kind, words) in NUMBERS.items():
        said = f"{words} (default: {getattr(usual, name):g})"
        distill.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=said)
    distill.set_defaults(run=distill_model, needs="train")


def distill_model(arguments: Namespace) -> None:
    """Teach, then score both on what is held out.

    Raises:
        ConfigError, DataError, ModelError, TrainingError: each says what to do.
    """
    from ...models import weights
    from ...models.hub import catalog
    from ..examples import read_jsonl
    from ..packing import tokenize
    from ..precision import resolve_dtype
    from .distiller import Distiller
    from .targets import exact_answers

    given = {name: getattr(arguments, name) for name in NUMBERS}
    settings = DistillationSettings(
        **{name: value for name, value in given.items() if value is not None}
    )
    train, test = data_files(arguments.data)
    examples = [example for path in train for example in read_jsonl(path)]
    held_out = [example for path in test for example in read_jsonl(path)]
    teacher_path = catalog.find(arguments.teacher)
    teacher = weights.load(teacher_path)
    if arguments.adapter:
        teacher = with_adapter(teacher, arguments.adapter)
    student = student_of(teacher, arguments.student)
    print(
        f"teacher: {arguments.teacher}, {teacher.architecture.num_layers} layers, "
        f"{teacher.parameters / 1e6:.0f}M weights; student: {student.architecture.num_layers} "
        f"layers, {student.parameters / 1e6:.0f}M; {len(examples)} examples"
    )
    with progress() as tell:
        distiller = Distiller(
            teacher,
            student,
            examples,
            settings,
            arguments.out,
            quant_type=arguments.type.upper(),
            on_progress=tell,
        )
        result = distiller.run()
    went_on = f", from step {result.resumed} on" if result.resumed else ""
    print(
        f"{result.student}: {result.student.stat().st_size / 1e6:.0f} MB after {result.steps} "
        f"steps{went_on}, loss {result.loss:.3f}"
    )
    if held_out:
        dtype, longest = resolve_dtype("auto"), teacher.architecture.context_length
        tokens = tokenize(held_out, teacher.tokenizer, longest=longest)
        known = exact_answers(teacher, tokens, dtype)
        learned = exact_answers(weights.load(result.student), tokens, dtype)
        print(
            f"held-out answers that are exactly right: teacher {known} of {len(tokens)}, student "
            f"{learned} of {len(tokens)}"
        )


def data_files(place: Path) -> tuple[list[Path], list[Path]]:
    """Files to learn from, and files that are held out: of one file, one party or a data set.

    Raises:
        DataError: nothing of the kind is there.
    """
    from ...errors import DataError
    from ..dataset import TEST, TRAIN, list_datasets

    if place.is_file():
        return [place], []
    folders = [place] if (place / TRAIN).is_file() else [d.folder for d in list_datasets(place)]
    if not folders:
        raise DataError(
            f"{place}: no file, and no folder with {TRAIN}; `quietchoir data build` makes one"
        )
    held = [folder / TEST for folder in folders]
    return [folder / TRAIN for folder in folders], [path for path in held if path.is_file()]


def with_adapter(teacher: "Weights", name: str) -> "Weights":
    """The teacher with an adapter, by its folder or by its name in this node's home.

    Raises:
        ModelNotFoundError, ModelFileError: no such adapter, or it does not fit.
    """
    import hashlib

    from ...models.lora.adapter import CONFIG_FILE, TENSOR_FILE, Adapter
    from ...models.lora.merge import merged

    folder = Path(name)
    if not (folder / CONFIG_FILE).is_file():
        folder = paths.home() / "adapters" / name
    adapter = Adapter.load(folder)
    digest = hashlib.sha256((folder / TENSOR_FILE).read_bytes()).hexdigest()
    return merged(teacher, adapter, digest)


def student_of(teacher: "Weights", said: str) -> "Weights":
    """What `--student` names, as plain numbers.

    Raises:
        ModelError: no such layers. ModelNotFoundError: no such model.
    """
    from ...models import weights
    from ...models.hub import catalog
    from .student import evenly, kept

    layers = teacher.architecture.num_layers
    if said == "half":
        return kept(teacher, evenly(layers, max(2, layers // 2)))
    if said.isdecimal():
        return kept(teacher, evenly(layers, int(said)))
    numbers = said.split(",")
    if all(number.strip().isdecimal() for number in numbers):
        return kept(teacher, [int(number) for number in numbers])
    other = weights.load(catalog.find(said))
    return kept(other, range(other.architecture.num_layers))


@contextmanager
def progress() -> "Iterator[Callable[[DistillationProgress], None]]":
    """Bars on standard error, one of the teacher and one of the student."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {
            "teacher": bars.add_task("teacher, examples", total=None, loss=""),
            "student": bars.add_task("student, steps", total=None, loss=""),
        }

        def tell(one: "DistillationProgress") -> None:
            loss = "" if one.loss is None else f"loss {one.loss:.3f}"
            bars.update(tasks[one.part], completed=one.done, total=one.total, loss=loss)

        yield tell
