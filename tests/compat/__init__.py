"""What other people's machines, files and habits bring: cases by kind, each with its right outcome.

A kind is a module here, named after it (`addresses.py`), with one function:

    def check() -> Iterator[tuple[str, str]]:
        \"\"\"(name of the case, "" if it is right, else what was wrong), one after another.\"\"\"

Knows how kinds are found and counted. Knows nothing of what they try.
Always: a kind that stops halfway, or tries nothing, is wrong; a name comes once in its kind.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

Check = Callable[[], Iterable[tuple[str, str]]]


@dataclass(slots=True)
class Tally:
    """What one kind came to."""

    tried: int = 0
    wrong: dict[str, str] = field(default_factory=dict)  # name of the case → what was wrong


def kinds() -> list[str]:
    """Names of the modules here that are kinds."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith(("_", "test_", "conftest")))


def load(kind: str) -> Check:
    """Its `check`.

    Raises:
        LookupError: no such kind; the message names those that are there.
    """
    if kind not in kinds():
        raise LookupError(f"{kind!r} is no kind of tests/compat; there are: {', '.join(kinds())}")
    check: Check = importlib.import_module(f"{__name__}.{kind}").check
    return check


def tally(check: Check) -> Tally:
    """Try every case; never raises what the kind itself raises."""
    result = Tally()
    names: set[str] = set()
    cases: Iterator[tuple[str, str]] = iter(())
    try:
        cases = iter(check())
        for name, wrong in cases:
            result.tried += 1
            if name in names:
                result.wrong[name] = "this name comes twice in its kind"
            elif wrong:
                result.wrong[name] = wrong
            names.add(name)
    # a kind that breaks is a finding, and the other kinds are still tried
    except Exception as error:
        result.tried += 1
        result.wrong["(the kind itself)"] = (
            f"stopped after {len(names)} cases: {type(error).__name__}: {error}"
        )
    if not result.tried:
        result.wrong["(the kind itself)"] = "tried nothing"
    return result
