"""The suite `federation`: what a round costs over the network without training, beside Flower's own
deployment engine.

Knows which figures are promised and what they aim at; `federation_rounds` and `federation_stock`
measure, `..faults` breaks.
Always: real processes on loopback, TLS with a pinned certificate and node keys on our side, neither
on Flower's; `exact` is true only if every sum held every member and every fault was survived.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import QuietchoirError
from ..cluster import ClusterPlan
from ..faults import table
from . import federation_rounds, federation_stock
from .figures import Figure, Keep, nobody
from .stopwatch import Sample

MODES = ("plain", "masked", "sealed")
AIMS_S = {"plain": 0.7, "masked": 2.0, "sealed": 3.0}
WORDS = {3: "", 20: "twenty"}  # where a size's figures stand in the report


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationScale:
    """How much is measured."""

    values: int = 500_000
    rounds: int = 7  # the first is not counted
    nodes: tuple[int, ...] = (3, 20)
    told: bool = True  # also with adapters told as changes
    stock_rounds: int = 4
    faults: bool = True


QUICK = FederationScale(
    values=2_000, rounds=2, nodes=(3,), told=False, stock_rounds=0, faults=False
)


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep = nobody) -> dict[str, Any]:
    """Run everything.

    Args:
        quick: tiny sizes, no peer and no faults, to see that it runs; the figures mean nothing
        then. tell: hears what is being measured.
        keep: gets the report after every federation, after the peer and after every fault.

    Returns: the report: figures at their keys, `spread` (fastest and slowest round) beside them.
    """
    size = QUICK if quick else FederationScale()
    report: dict[str, Any] = {
        "what": f"{size.values:,} values of {federation_rounds.BITS} bits, no training, TLS on "
        f"loopback",
        "seed": 0,
        "repeats": {"rounds": size.rounds - 1, "stock": max(0, size.stock_rounds - 1)},
        "clock": "wall seconds of a round, as the coordinator notes them",
        "spread": {},
        "exact": True,
    }
    for nodes in size.nodes:
        place = report.setdefault(WORDS[nodes], {}) if WORDS[nodes] else report
        for mode in MODES:
            tell(f"{nodes} nodes, {mode}")
            plan = ClusterPlan(
                nodes=nodes,
                mode=mode,
                size=size.values,
                rounds=size.rounds,
                recipe={"stage_timeout_s": 120.0},
            )
            note(report, place, WORDS[nodes], mode, federation_rounds.measure(plan))
            keep(report)
    if size.told:
        tell("3 nodes, masked, told as changes")
        plan = ClusterPlan(
            nodes=3,
            mode="masked",
            size=size.values,
            rounds=size.rounds,
            recipe={"download": "change"},
        )
        note_told(report, federation_rounds.measure(plan))
        keep(report)
    if size.stock_rounds:
        tell("3 nodes, Flower's own deployment engine: about 15 seconds a round")
        compare(report, size)
        keep(report)
    if size.faults:
        tell("faults")
        report |= table.score(tell, lambda found: keep({**report, **found}))
        report["exact"] = report["faults_missed"] == 0
    return report


def figures(report: dict[str, Any]) -> Iterator[Figure]:
    """Rows of the table."""
    for mode in MODES:
        yield Figure(f"round_s.{mode}", "s", f"a round, 3 nodes, {mode}", at_most=AIMS_S[mode])
    if "ended" in report.get("stock", {}):
        yield Figure("stock.ended", "", "  Flower's own engine")
    if "ratio" in report:
        yield Figure("stock.round_s", "s", "  Flower's own engine, unprotected, no TLS")
        yield Figure("ratio.flower", "×", "  faster than it, plain", at_least=5)
        yield Figure("ratio.flower_masked", "×", "  masked")
        yield Figure("ratio.flower_sealed", "×", "  sealed")
    if "twenty" in report:
        for mode in MODES:
            yield Figure(f"twenty.round_s.{mode}", "s", f"a round, 20 nodes, {mode}")
    for mode in MODES:
        yield Figure(f"bytes_per_node.{mode}.up", "B", f"a node sends in a round, {mode}")
        yield Figure(
            f"bytes_per_node.{mode}.over_bound", "×", "  over what its contribution alone needs"
        )
        yield Figure(f"bytes_per_node.{mode}.down", "B", "  and gets")
    if "told" in report:
        yield Figure("told.down", "B", "masked, adapters told as changes: a node gets in a round")
        yield Figure("told.round_s", "s", "  a round of that")
    for who in ("coordinator", "node"):
        for mode in MODES:
            yield Figure(
                f"rss_mb.{who}.{mode}", "MB", f"peak memory of the {who} without the model, {mode}"
            )
    if "faults_tried" in report:
        yield Figure("faults_tried", "", "faults tried")
        yield Figure("faults_missed", "", "  missed", at_most=0)


def note(
    report: dict[str, Any],
    place: dict[str, Any],
    word: str,
    mode: str,
    cost: federation_rounds.RoundCost,
) -> None:
    """One mode's figures at their keys."""
    dot = f"{word}." if word else ""
    place.setdefault("round_s", {})[mode] = cost.seconds.median
    report["spread"][f"{dot}round_s.{mode}"] = list(cost.seconds.spread)
    place.setdefault("bytes_per_node", {})[mode] = {
        "up": cost.up,
        "down": cost.down,
        "up_bound": cost.up_bound,
        "over_bound": cost.up / cost.up_bound,
    }
    memory = place.setdefault("rss_mb", {"coordinator": {}, "node": {}})
    memory["coordinator"][mode], memory["node"][mode] = cost.coordinator_mb, cost.node_mb


def note_told(report: dict[str, Any], cost: federation_rounds.RoundCost) -> None:
    """What members get where adapters are told as changes; everything else is as in masked mode."""
    report["told"] = {"down": cost.down, "round_s": cost.seconds.median, "node_mb": cost.node_mb}
    report["spread"]["told.round_s"] = list(cost.seconds.spread)


def compare(report: dict[str, Any], size: FederationScale) -> None:
    """The peer on the same work."""
    with tempfile.TemporaryDirectory(prefix="quietchoir-bench-") as folder:
        try:
            stock: Sample = federation_stock.measure(
                Path(folder), nodes=3, rounds=size.stock_rounds, size=size.values
            )
        except QuietchoirError as error:  # the peer's end is its row, and not ours
            report["stock"] = {"ended": str(error)}
            return
    report["stock"] = {"round_s": stock.median}
    report["spread"]["stock.round_s"] = list(stock.spread)
    ours = report["round_s"]
    report["ratio"] = {
        "flower": stock.median / ours["plain"],
        "flower_masked": stock.median / ours["masked"],
        "flower_sealed": stock.median / ours["sealed"],
    }
