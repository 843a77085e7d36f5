"""`make figures`: the pictures of the documentation, drawn from the results of stated runs that
lie in docs/results, and from what the demonstration and the comparison wrote, where they did.

Knows JSON reports and how to draw them. Measures nothing.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, QuietchoirError
from ..core.paths import write_atomically
from . import life_pictures, results, results_page, round_picture

RESULTS = "results"  # below docs/: of `quietchoir simulate run NAME`, a folder each
SIMULATED = {"non-iid": "accuracy", "poisoning": "attack"}
ARMS = (
    ("central", "central training on everybody's requests", "#5b6675"),
    ("alone_union", "each household alone", "#d9792b"),
)


def read(path: Path, command: str) -> dict[str, Any]:
    """One report.

    Raises:
        ConfigError: it is not there; the message names the command that makes it.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); run: {command}") from error
    return found


def curve(history: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Rounds done and the accuracy that the adapter then had."""
    points = {
        (entry["round"] - 1 if entry["kind"] == "train" else len(history) - 1): entry["accuracy"]
        for entry in history
        if entry["accuracy"] is not None
    }
    return list(points), list(points.values())


def learning(history: list[dict[str, Any]], yardsticks: dict[str, float], target: Path) -> None:
    """Accuracy over rounds, beside the yardsticks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    rounds, accuracy = curve(history)
    axes.plot(
        rounds,
        [100 * share for share in accuracy],
        color="#2f6fdb",
        marker="o",
        label="together, masked",
    )
    for arm, words, colour in ARMS:
        axes.axhline(
            100 * yardsticks[arm], color=colour, linestyle="--", linewidth=1.2, label=words
        )
    axes.set_xlabel("rounds done")
    axes.set_ylabel("exact match on held-out requests, %")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(target, metadata={"Date": None})


def main() -> int:
    """Draw everything."""
    parser = argparse.ArgumentParser(description="the pictures of the documentation")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument(
        "--demo",
        type=Path,
        default=Path("demo"),
        help="where `make demo` and `make demo-compare` wrote",
    )
    chosen = parser.parse_args()
    print(round_picture.write(chosen.out))
    print(*life_pictures.write(chosen.out), sep="\n")
    for name, picture in SIMULATED.items():
        found = results.gather([chosen.out / RESULTS / name])
        _, _, draw = results_page.PICTURES[picture]
        target = chosen.out / f"{name}.svg"
        write_atomically(target, results_page.draw_svg(draw, found).encode())
        print(target)
    if not chosen.demo.is_dir():
        print(f"{chosen.demo}: not here, learning.svg stays as it is; run: make demo demo-compare")
        return 0
    history = read(chosen.demo / "coordinator.json", "make demo")["history"]
    yardsticks = read(chosen.demo / "compare.json", "make demo-compare")["accuracy"]
    target = chosen.out / "learning.svg"
    learning(history, yardsticks, target)
    print(target)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuietchoirError as error:
        print(f"figures: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
