"""Events in words: a line for people, a JSON line for programs.

Knows the events that a run tells. Knows nothing of how they came to be.
"""

import json
import sys
import time
from collections.abc import Callable

from ...core.screen import one_line
from ..events import (
    AdoptedEvent,
    DisconnectedEvent,
    FederationEvent,
    PreparingEvent,
    RoundEvent,
    TrainedEvent,
    WaitingEvent,
)

PROGRESS_S = 3.0  # between two lines of progress, for people


# A rehearsal ends as a run does, but leaves nothing to hand over.
REHEARSED = {
    "delivered": "the rehearsal is over, and {names} know it; it leaves no adapter",
    "staying": "the rehearsal is over; {names} do not know it yet: staying {seconds} s for them",
    "undelivered": "{names} cannot be told now that the rehearsal is over: {reason}",
}
# A node that serves ends for other reasons, and `join` has its own flags.
SERVING = {"stays": "this node stays for the next run"}


def printer(json_lines: bool, *, rehearsal: bool = False) -> Callable[[FederationEvent], None]:
    """Says what happens: JSON lines for programs, short lines for people."""

    printed_at = -PROGRESS_S

    def print_event(event: FederationEvent) -> None:
        nonlocal printed_at
        if json_lines:
            print(json.dumps(event.table(), separators=(",", ":")), flush=True)
            return
        if isinstance(event, PreparingEvent):  # one after the other, sometimes many in a second
            if event.layer not in (0, event.layers) and time.monotonic() - printed_at < PROGRESS_S:
                return
            printed_at = time.monotonic()
        if (text := sentence(event, rehearsal=rehearsal)) is not None:
            print(one_line(text), file=sys.stderr, flush=True)

    return print_event


def sentence(
    event: FederationEvent, *, rehearsal: bool = False, serving: bool = False
) -> str | None:  # fmt: skip
    """An event for people; None for those that only programs want.

    Args:
        serving: it is told by a node that serves, not by `join`.
    """
    if isinstance(event, RoundEvent) and event.name == "round":
        entry = event.entry
        loss = entry["loss"]
        words = f"round {entry['round']}: {len(entry['parties'])} members, {entry['seconds']} s"
        shown = f"{loss:.3f}" if isinstance(loss, float) else "not measured"
        rates = " and ".join(f"{one:.3g}" for one in entry.get("rates", ()))
        rate = f", {rates} times the learning rate" if rates else ""
        return f"{words}, loss {shown}{rate}, accuracy before it {percent(entry['accuracy'])}"
    sentences = {
        "waiting": "{present} of {roster} "
        "members are here, need "
        "{minimum}" + ("; waiting for them" if is_short(event) else ""),
        "delivered": "the finished adapter is with {names}",
        "staying": "the run is over; {names} did not get its adapter yet: staying {seconds} s for "
        "them",
        "undelivered": "the finished adapter cannot be handed to {names} now: {reason}",
        "aborted": "round {round} aborted, the adapter is unchanged: {reason}",
        "starting": "{federation}, version {version}; loading {loads}",
        "open": "the door is open at {address}",
        "connected": "connected to {address}",
        "loading": "{train} examples to train on, {test} held out; loading the model {model}",
        "consented": "of this node's history {train} examples train and {test} judge; {withheld} "
        "are withheld; digest {digest}",
        "withheld": "nothing that was said here may train {federation} ({withheld} examples are "
        "withheld): this node dials nobody and sends nothing until its owner consents: quietchoir "
        "data consent",
        "preparing": "preparing {examples} {what} examples, once: layer {layer} of {layers}",
        "disconnected": "the coordinator at {address} {reason}; trying again. {waits_for}",
        "resting": "this node is away until it may train: {reason}",
        "joining": "joining {federation} as {name}; a round costs about {bytes_up:,} bytes up and "
        "{bytes_down:,} down",
        "renewed": "version {version} of the federation file is in force from now on",
        "page": "the rounds are shown at {url}",
        "stopped": "stopped after round {round}: {reason}",
        "buckets": "{price}",
        "ballots": "{price}",
        "suspect": "{member} was in a bad bucket in {blamed} of the {rounds} rounds that had one; "
        "where nobody chooses whom to hurt one is so often with a chance of {chance:.1g}. Others "
        "can have brought that about, by attacking only beside it: ask what it trains on before "
        "letting it go (quietchoir federation revoke)",
        "tuning": "{price}",
        "spent": "round {round}: not trained, this node's privacy budget is used up: {reason}",
        "train": "round {round}: training",
        "trained": "round {round}: trained on {tokens} answer tokens, loss {loss:.3f}"
        + (limits(event) if isinstance(event, TrainedEvent) else ""),
        "refused": "refused: {reason}",
        "adopted": "a finished adapter came: {adapter}"
        if isinstance(event, AdoptedEvent) and event.adapter
        else "the run is over; a rehearsal leaves no adapter",
        "own": "this node's own adapter, which learned from the others: {folder} (quietchoir "
        "adapter import)",
        "stays": "this node stays for the next run; Ctrl-C ends it, and `--once` makes it leave "
        "with its first adapter",
        "personal": "{words}",
        **(REHEARSED if rehearsal else {}),
        **(SERVING if serving else {}),
    }
    if event.name not in sentences or (isinstance(event, DisconnectedEvent) and event.again):
        return None
    entry = event.table()
    named = entry.get("missing", entry.get("members"))
    names = (", ".join(map(str, named)) or "nobody") if isinstance(named, list) else ""
    return sentences[event.name].format(**{"waits_for": "", **entry, "names": names}).strip()


def limits(event: TrainedEvent) -> str:
    """What of a training did not count, as the end of a sentence; empty where all did."""
    left = f"; {event.left} examples wait for a later round (recipe.local_steps)"
    cut = f"; {percent(event.clipped)} of its values are cut to the range (recipe.update_range)"
    short = f"; its change is shortened to {percent(event.shortened)} of its length (privacy.clip)"
    return (
        (left if event.left else "")
        + (cut if event.clipped else "")
        + (short if event.shortened else "")
    )


def is_short(event: FederationEvent) -> bool:
    """Are fewer members here than a round needs?"""
    return isinstance(event, WaitingEvent) and event.present < event.minimum


def percent(share: object) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %" if isinstance(share, float) else "not measured"
