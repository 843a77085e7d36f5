"""The verb `model export`: a model as a graph for other runtimes, compared with the engine.

Knows flags and what is printed. Always: heavy imports happen inside the function that runs it.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path


def register(actions: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `export` to the verb `model`."""
    export = actions.add_parser(
        "export", help="write a model as a graph for OpenVINO, and compare it with the engine"
    )
    export.add_argument("model", metavar="MODEL", help="a file, a folder, or a name")
    export.add_argument(
        "--openvino", type=Path, required=True, metavar="FOLDER",
        help="for openvino_model.xml and .bin, in float16",
    )  # fmt: skip
    export.set_defaults(run=export_model, needs="openvino")


def export_model(arguments: Namespace) -> None:
    """Write the graph, read it back, ask both.

    Raises:
        ConfigError: a graph is there already. ModelError: a model that is not exported, or a graph
            that does not say what the engine says.
    """
    from ....errors import ConfigError
    from ....models import weights
    from ....models.hub import catalog
    from .graph import save
    from .verification import verify

    path = arguments.openvino / "openvino_model.xml"
    if path.exists():
        raise ConfigError(f"{path}: is there already and is kept; choose another folder")
    model = weights.load(catalog.find(arguments.model))
    save(model, arguments.openvino)
    found = verify(model, path)
    size = path.with_suffix(".bin").stat().st_size
    print(
        f"{path}: {size / 1e6:.0f} MB; of {found.rows} rows the likeliest token is the engine's in "
        f"{found.alike}, logits differ by {found.error:.2%} of their spread"
    )
