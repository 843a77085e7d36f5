"""Events of a run as JSON's types, and back."""

from collections.abc import Callable, Mapping
from typing import Any

from quietchoir.federation import events
from quietchoir.federation.events import FederationEvent, RoundEvent

KINDS: dict[str, Any] = {
    kind.kind: kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, FederationEvent) and kind.kind
}


def tables(take: Callable[[dict[str, Any]], object]) -> Callable[[FederationEvent], None]:
    """A reader that takes events as JSON's types."""
    return lambda event: (take(event.table()), None)[1]


def event_of(table: Mapping[str, Any]) -> FederationEvent:
    """The event that `table` tells."""
    told = dict(table)
    name = told.pop("event")
    if name in ("round", "score"):
        return RoundEvent(late=told.pop("late", None), entry=told)
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in told.items()
    }
    event: FederationEvent = KINDS[name](**fields)
    return event
