"""Names that look like another's.

Knows letters. Knows nothing of registries.
Rule: of two names one resembles the other if their skeletons are equal or, from five letters on, if
one edit makes one of the other (a letter more, less or another, or two neighbours swapped). A
publisher is compared with all other publishers, a plugin's own name with those of all other
publishers' plugins; quietchoir is taken.

Not covered: names that mean the same, and long ones that differ in two places.
Source: Unicode Technical Standard 39, confusables.txt. An id holds a-z, 0-9 and hyphens alone, so
that of its table only 0, 1 and m are left; vv, cl and hyphens are ours.
"""

import functools
from collections.abc import Iterable

RESERVED = "quietchoir"
EDITED = 5  # letters; shorter names differ in one letter by nature
ALIKE = (("-", ""), ("0", "o"), ("1", "l"), ("i", "l"), ("m", "rn"), ("w", "vv"), ("d", "cl"))


@functools.cache
def skeleton(name: str) -> str:
    """What a hurried eye sees; two names with one skeleton are one name to it."""
    for letter, seen in ALIKE:
        name = name.replace(letter, seen)
    return name


def one_edit(one: str, other: str) -> bool:
    """Whether one letter more, less or another, or two neighbours swapped, makes `other` of
    `one`.
    """
    start = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    a, b = one[start:], other[start:]
    swapped = a[:2] == b[1::-1] and a[2:] == b[2:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or swapped


def alike(one: str, other: str) -> bool:
    """Whether one name resembles the other, or is the other."""
    near = min(len(one), len(other)) >= EDITED and one_edit(one, other)
    return near or skeleton(one) == skeleton(other)


def resembled(plugin_id: str, known: Iterable[str]) -> str:
    """The first id, or publisher, that a new one resembles; empty if none."""
    publisher, _, name = plugin_id.partition("/")
    if publisher != RESERVED and alike(publisher, RESERVED):
        return RESERVED
    for other in known:
        their, _, called = other.partition("/")
        if their != publisher and (alike(publisher, their) or (called and alike(name, called))):
            return other
    return ""
