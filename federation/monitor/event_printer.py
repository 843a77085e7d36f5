"""Events in words: a line for people, a JSON line for programs.

Knows the events that a run tells. Knows nothing of how they came to be.
"""

import json
import sys
import time
from collections.abc import Callable

from ...core.screen import one_line

Event = dict[str, object]
PROGRESS_S = 3.0  # between two lines of progress, for people


def teller(json_lines: bool) -> Callable[[Event], None]:
    """Says what happens: JSON lines for programs, short lines for people."""

    told_at = -PROGRESS_S

    def tell(event: Event) -> None:
        nonlocal told_at
        if json_lines:
            print(json.dumps(event, separators=(",", ":")), flush=True)
            return
        if event["event"] == "preparing":  # one after the other, sometimes many in a second
            if (
                event["layer"] not in (0, event["layers"])
                and time.monotonic() - told_at < PROGRESS_S
            ):
                return
            told_at = time.monotonic()
        if (text := sentence(event)) is not None:
            print(one_line(text), file=sys.stderr, flush=True)

    return tell


def sentence(event: Event) -> str | None:
    """An event for people; None for those that only programs want."""
    kind = event["event"]
    if kind == "round":
        loss = event["loss"]
        words = f"round {event['round']}: {len(event['parties'])} members, {event['seconds']} s"  # type: ignore[arg-type]
        shown = f"{loss:.3f}" if isinstance(loss, float) else "not measured"
        return f"{words}, loss {shown}, accuracy before it {percent(event['accuracy'])}"
    sentences = {
        "waiting": "{present} of {roster} "
        "members are here, need "
        "{minimum}" + ("; waiting for them" if is_short(event) else ""),
        "delivered": "the finished adapter is with {names}",
        "staying": "the run is over; {names} did not get its adapter yet: staying {seconds} s for "
        "them",
        "undelivered": "the finished adapter cannot be handed to {names} now: {reason}",
        "aborted": "round {round} aborted, the adapter is unchanged: {reason}",
        "open": "the door is open at {address}",
        "connected": "connected to {address}",
        "loading": "{train} examples to train on, {test} held out; loading the model {model}",
        "preparing": "preparing {examples} {what} examples, once: layer {layer} of {layers}",
        "disconnected": "the coordinator at {address} {reason}; trying again. {waits_for}",
        "joining": "joining {federation} as {name}; a round costs about {bytes_up:,} bytes up and "
        "{bytes_down:,} down",
        "renewed": "version {version} of the federation file is in force from now on",
        "page": "the rounds are shown at {url}",
        "stopped": "stopped after round {round}: {reason}",
        "buckets": "{price}",
        "spent": "round {round}: not trained, this node's privacy budget is used up: {reason}",
        "train": "round {round}: training",
        "trained": "round {round}: trained on {tokens} answer tokens, loss {loss:.3f}",
        "refused": "refused: {reason}",
        "adopted": "a finished adapter came: {adapter}"
        if event.get("adapter")
        else "the run is over; a rehearsal leaves no adapter",
        "stays": "this node stays for the next run; Ctrl-C ends it, and `--once` makes it leave "
        "with its first adapter",
        "personal": "{words}",
    }
    if kind not in sentences or event.get("again"):
        return None
    return (
        sentences[str(kind)].format(**{"waits_for": "", **event, "names": names_in(event)}).strip()
    )


def is_short(event: Event) -> bool:
    """Are fewer members here than a round needs?"""
    return int(str(event.get("present", 0))) < int(str(event.get("minimum", 0)))


def names_in(event: Event) -> str:
    """The members that an event is about."""
    named = event.get("missing", event.get("members"))
    return ", ".join(map(str, named)) or "nobody" if isinstance(named, list) else ""


def percent(share: object) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %" if isinstance(share, float) else "not measured"
