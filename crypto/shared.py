"""What many members of one process would each work out alike, worked out once: for simulations.

    with sharing():     from here on the first finding is everybody's
        once(scope, key, find)      found for this scope and key before, or `find()` now
        signed(…), known(…)         a signature that this process itself made, or has checked

Knows a table of findings. Knows nothing of what they are.
Always: off unless a simulation turned it on, and then for its own context alone: a node checks
everything itself. A key holds all that its finding follows from, so each member would have found
the same; a refusal is never kept, whoever is next looks for itself. The table is bounded.

Hazard: two members' common secret may be among the findings. In one process that pretends to be
all of them it is nobody else's; for members that trust each other with nothing, never.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
SCOPES = 40  # that are kept: a round's, and some for each of its buckets
MOST = 400_000  # findings in them: of the pairs of 1,000 members there are some 130,000
SIGNATURES = 1 << 15


@dataclass(slots=True)
class SharedFindings:
    """Of one simulation."""

    scopes: OrderedDict[Hashable, dict[Hashable, Any]] = field(default_factory=OrderedDict)
    count: int = 0  # of all scopes
    signatures: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


_findings: ContextVar[SharedFindings | None] = ContextVar(
    "quietchoir shared findings", default=None
)


@contextmanager
def sharing() -> Iterator[None]:
    """Members that run in here find alike things once."""
    before = _findings.set(SharedFindings())
    try:
        yield
    finally:
        _findings.reset(before)


def once(scope: Hashable, key: Hashable, find: Callable[[], T]) -> T:
    """`find()`, or what it found before for the same scope and key while findings are shared.

    Args:
        scope: whose end makes its findings worthless: a session, an attempt.
        key: everything else that `find` depends on.
    """
    if (findings := _findings.get()) is None:
        return find()
    found = findings.scopes.setdefault(scope, {})
    if key not in found:
        found[key] = find()
        findings.count += 1
        while len(findings.scopes) > SCOPES or (findings.count > MOST and len(findings.scopes) > 1):
            findings.count -= len(findings.scopes.popitem(last=False)[1])
    answer: T = found[key]
    return answer


def signed(key: bytes, message: bytes, signature: bytes) -> None:
    """Note a signature that `key` made, or that was found to be its own."""
    if (findings := _findings.get()) is not None:
        findings.signatures[_name(key, message, signature)] = None
        while len(findings.signatures) > SIGNATURES:
            findings.signatures.popitem(last=False)


def known(key: bytes, message: bytes, signature: bytes) -> bool:
    """Was this very signature noted?"""
    findings = _findings.get()
    return findings is not None and _name(key, message, signature) in findings.signatures


def _name(key: bytes, message: bytes, signature: bytes) -> bytes:
    return hashlib.sha256(key + signature + hashlib.sha256(message).digest()).digest()
