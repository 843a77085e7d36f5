"""The verb `model export`: a model as a graph for other runtimes, compared with the engine.

Knows flags and what is printed. Always: heavy imports happen inside the function that runs it; a
graph takes its name only once it says what the engine says.
"""

import tempfile
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path


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
        ConfigError: a graph is there already. MissingPartError: that runtime is not installed.
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
    for name in FILES[kind]:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name}: is there already and is kept; choose another folder"
            )
    model = weights.load(catalog.find(arguments.model))
    try:
        make_folder(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            found = verify(model, SAVED[kind](model, Path(scratch)))
            for name in FILES[kind]:  # the graph is last
                (Path(scratch) / name).replace(folder / name)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written ({error}); make room") from error
    size = sum((folder / name).stat().st_size for name in FILES[kind])
    print(
        f"{folder / FILES[kind][-1]}: {size / 1e6:.0f} MB; of {found.rows} rows the likeliest "
        f"token is the engine's in {found.alike}, logits differ by {found.error:.2%} of their "
        f"spread"
    )
