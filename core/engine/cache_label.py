"""Saved keys and values, under the name of their layout.

Knows a name and a length. Knows nothing of what the bytes mean. Always: bytes of one layout are
never read as another's.
"""

from ..errors import CacheError


def label(layout: str, payload: bytes) -> bytes:
    """`payload` under the name of its layout: one line of text, then the bytes."""
    return layout.encode() + b"\n" + payload


def unlabel(layout: str, data: bytes, size: int) -> memoryview:
    """The payload of `label`.

    Raises:
        CacheError: the label is not `layout`, or the payload has not `size` bytes.
    """
    head = layout.encode() + b"\n"
    if not data.startswith(head):
        found = data[:80].split(b"\n")[0].decode("ascii", "replace")
        raise CacheError(
            f"saved keys and values are laid out as {found!r}, this engine needs "
            f"{layout!r}; let it compute anew"
        )
    if len(data) - len(head) != size:
        raise CacheError(
            f"saved keys and values have {len(data) - len(head)} bytes, expected "
            f"{size}; the file is damaged"
        )
    return memoryview(data)[len(head) :]
