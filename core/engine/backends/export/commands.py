"""The verb `model export`: a model as a graph for other runtimes, compared with the engine.

Knows flags and what is printed. Always: heavy imports happen inside the function that runs it; a
graph takes its name only once it says what the engine says; a run that was killed leaves two
folders at most, `.quietchoir-export` and `.quietchoir-checked`, which the next one clears.
"""

import os
import shutil
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH = ".quietchoir-export"  # of a graph that was not checked
CHECKED = ".quietchoir-checked"  # its files are taking their names


def register(actions: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `export` to the verb `model`."""
    export = actions.add_parser(
        "export",
        help="write a model as a graph for OpenVINO or ONNX Runtime, and compare it with the "
        "engine",
    )
    export.add_argument("model", metavar="MODEL", help="a file, a folder, or a name")
    kinds = export.add_mutually_exclusive_group(required=True)
    kinds.add_argument(
        "--openvino", type=Path, metavar="FOLDER",
        help="for openvino_model.xml and .bin, in float16",
    )  # fmt: skip
    kinds.add_argument(
        "--onnx", type=Path, metavar="FOLDER",
        help="for model.onnx and its weights, model.onnx.data, in float32",
    )  # fmt: skip
    export.set_defaults(run=export_model, needs="train")


def export_model(arguments: Namespace) -> None:
    """Write the graph, read it back, ask both.

    Raises:
        ConfigError: a graph is there already, or another run writes one. MissingPartError: that
            runtime is not installed.
        ModelError: a model that is not exported, a graph that does not say what the engine says,
            or the disk refuses.
    """
    from .... import parts
    from ....errors import ConfigError, ModelError
    from ....models import weights
    from ....models.hub import catalog
    from ....paths import make_folder

    kind = "onnx" if arguments.onnx is not None else "openvino"
    parts.require(kind, f"quietchoir model export --{kind}")
    from .verification import FILES, SAVED, verify

    folder: Path = getattr(arguments, kind)
    model = weights.load(catalog.find(arguments.model))
    try:
        make_folder(folder)
        with alone(folder):
            for name in FILES[kind]:
                if (folder / name).exists():
                    raise ConfigError(
                        f"{folder / name}: is there already and is kept; choose another folder"
                    )
            scratch = folder / SCRATCH
            scratch.mkdir()
            found = verify(model, SAVED[kind](model, scratch))
            scratch.rename(folder / CHECKED)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written ({error}); make room") from error
    size = sum((folder / name).stat().st_size for name in FILES[kind])
    print(
        f"{folder / FILES[kind][-1]}: {size / 1e6:.0f} MB; of {found.rows} rows the likeliest "
        f"token is the engine's in {found.alike}, logits differ by {found.error:.2%} of their "
        f"spread"
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One export into `folder` at a time. Before the block and after it, what was checked takes
    its names, and what was not is gone.

    Raises:
        ConfigError: another run is at it.
    """
    from ....errors import ConfigError

    handle = os.open(folder, os.O_RDONLY) if os.name == "posix" else -1
    try:
        if handle >= 0:
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{folder}: another export writes there; wait for it, or name another folder"
                ) from None
        settle(folder)
        try:
            yield
        finally:
            settle(folder)
    finally:
        if handle >= 0:
            os.close(handle)


def settle(folder: Path) -> None:
    """Give checked files their names, the graph last; take away what was not checked."""
    from .verification import FILES

    checked = folder / CHECKED
    for name in (name for names in FILES.values() for name in names):
        if (checked / name).exists() and not (folder / name).exists():
            (checked / name).rename(folder / name)
    for own in (checked, folder / SCRATCH):
        if own.exists():
            shutil.rmtree(own)
