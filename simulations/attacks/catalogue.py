"""What an attacker may try, each attack in two arms: against the product, and against the same
without its protection.

Knows how an attack is described and judged. Knows nothing of what any of them does; imports them
only to run them.
Always: an attack counts as withstood only if its unprotected arm succeeded in the same run: a
program that cannot break anything shows nothing. An arm that ends in an error of its own is told as
that, never as a refusal.

A module of `ATTACKERS` is who attacks; it offers `ATTACKS`, a sequence of `Attack`.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

ATTACKERS = (
    "coordinators",  # who runs the rounds, alone or with members that help
    "told_sums",  # a coordinator that says what it never opened
    "tags",  # the same, where members check: alone, or with members that help
    "kept_sums",  # a coordinator that names a sum that members have, where it does not belong
    "members",  # who holds a key of the roster
    "poisoners",  # the same, several of them, who know what is done against it
    "readers",  # who reads a sum, or the finished adapter
    "strangers",  # who reaches the network, and holds no key
    "hosts",  # who serves a library
    "guests",  # who wrote a plugin, a model file or a request to the node
)


@dataclass(frozen=True, slots=True)
class Result:
    """How one arm ended."""

    succeeded: bool  # did the attacker get what the promise denies?
    measure: str  # what was seen: a correlation, a count, the sentence of a refusal


class NotHere(Exception):
    """This machine lacks what the attack needs (no sandbox, no namespaces); the message says
    what.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attempt to break one promise."""

    name: str  # a few words, unique
    who: str  # the attacker, in the words of the threat model: "coordinator + 1 member"
    # plain, masked, sealed, threshold, or the part of the node: "server", "plugin", "library",
    # "file"
    mode: str
    promise: str  # what the docs say, which the protected arm must keep
    unprotected: Callable[[], Result]
    protected: Callable[[], Result]

    def run(self) -> dict[str, Any]:
        """Both arms, as a row: `unprotected` and `protected` are what was seen, `verdict` is what
        follows.

        `verdict` is "withstood", "broken", "control failed", "error", or "not here" with the
        reason.
        """
        row = {key: getattr(self, key) for key in ("name", "who", "mode", "promise")}
        try:
            control, product = self.unprotected(), self.protected()
        except NotHere as reason:
            return {**row, "unprotected": "", "protected": "", "verdict": f"not here: {reason}"}
        # the attack's own fault: it shows nothing, and must not end the others
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            return {**row, "unprotected": "", "protected": what, "verdict": "error"}
        withstood = "broken" if product.succeeded else "withstood"
        verdict = withstood if control.succeeded else "control failed"
        return {
            **row,
            "unprotected": control.measure,
            "protected": product.measure,
            "verdict": verdict,
        }


def attacks() -> Iterator[Attack]:
    """Every attack there is, attacker by attacker."""
    for name in ATTACKERS:
        yield from importlib.import_module(f".{name}", __package__).ATTACKS
