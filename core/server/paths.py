"""Paths of OpenAI's API as clients spell them.

Knows that a base address is typed by hand: without `/v1`, with it although the client adds it, with
strokes too many.
"""


def spelled(path: str) -> str:
    """A route's pattern for `path` below `/v1`, in all those spellings."""
    return "/{lead:/*(?:v1/+)*}" + path + "{end:/*}"
