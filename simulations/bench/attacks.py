"""The suite `attacks`: every attack of the catalogue, with and without the protection that it
tries.

Knows the catalogue and how rows become figures. Knows nothing of any single attack.
Always: a row is written as soon as its attack has ended; `broken` counts promises that did not
hold, `controls_failed` attacks that show nothing because the unprotected arm failed, or because the
program itself did.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ..attacks.catalogue import attacks
from .figures import Figure, Keep

WHAT = (
    "attacks by a coordinator, members, strangers, hosts and guests; each beside the same "
    "without protection"
)


def measure(*, quick: bool, tell: Callable[[str], None], keep: Keep) -> dict[str, Any]:
    """Run them all, or with `quick` the first of each attacker."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for attack in attacks():
        if quick and attack.who in seen:
            continue
        seen.add(attack.who)
        rows.append(attack.run())
        tell(f"{rows[-1]['verdict']}: {attack.name} ({attack.who}, {attack.mode})")
        keep(report(rows))
    return report(rows)


def report(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows, and how many ended how."""
    verdicts = [row["verdict"] for row in rows]
    return {
        "what": WHAT,
        "seed": "none: keys and masks are fresh in every run",
        "clock": "not timed",
        "repeats": {"attacks": 1},
        "spread": {},
        "exact": "error" not in verdicts,
        "attacks": list(rows),
        "tried": sum(not verdict.startswith("not here") for verdict in verdicts),
        "not_here": sum(verdict.startswith("not here") for verdict in verdicts),
        "broken": verdicts.count("broken"),
        "controls_failed": verdicts.count("control failed") + verdicts.count("error"),
    }


def figures(report: dict[str, Any]) -> list[Figure]:  # noqa: ARG001
    """Rows of the table."""
    return [
        Figure("tried", "", "attacks tried", at_least=30),
        Figure("broken", "", "promises broken", at_most=0),
        Figure("controls_failed", "", "attacks that show nothing", at_most=0),
        Figure("not_here", "", "attacks that this machine cannot run"),
    ]
