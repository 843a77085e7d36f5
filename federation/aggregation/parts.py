"""Several named byte strings as one payload.

Knows names and lengths. Knows nothing of what the parts mean.
Always: one list of parts has one spelling; `split` gives back exactly what was joined, or refuses
the whole.
"""

import json
from collections.abc import Mapping

from ...core.errors import MessageError
from ..spec.policy import canonical

MAX_HEADER_BYTES = 1 << 20


def join(parts: Mapping[str, bytes]) -> bytes:
    """Header length, header JSON (name to size), then the parts in the order of their names."""
    header = canonical({name: len(parts[name]) for name in sorted(parts)})
    return len(header).to_bytes(4, "big") + header + b"".join(parts[name] for name in sorted(parts))


def split(payload: bytes) -> dict[str, bytes]:
    """Read what `join` wrote.

    Raises:
        MessageError: malformed.
    """
    length = int.from_bytes(payload[:4], "big")
    at, sizes = 4 + length, read_sizes(payload[4 : 4 + length])
    if at + sum(sizes.values()) != len(payload):
        raise MessageError(f"parts of {sum(sizes.values())} bytes in {len(payload) - at}; refused")
    parts = {}
    for name in sorted(sizes):
        parts[name] = payload[at : at + sizes[name]]
        at += sizes[name]
    return parts


def read_sizes(header: bytes) -> dict[str, int]:
    """Sizes by name. Raises MessageError unless it is what `join` writes."""
    try:
        sizes = json.loads(header) if len(header) <= MAX_HEADER_BYTES else None
        good = isinstance(sizes, dict) and canonical(sizes) == header
    except (ValueError, RecursionError):
        sizes, good = None, False
    if (
        not good
        or not isinstance(sizes, dict)
        or not all(type(size) is int and size >= 0 for size in sizes.values())
    ):
        raise MessageError("the header of a payload's parts is malformed; refused")
    return sizes
