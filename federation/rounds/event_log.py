"""Where a run is, in memory and on disk: which numbers are used up, which adapter is the one to go
on from.

Knows the run's state and its store. Knows nothing of letters, sums or members.
Always: on disk first, then in memory; if the disk refuses, nothing has changed. The number of an
attempt is written down before anybody is asked, and a number under which a sum was opened is never
used again.
"""

import dataclasses
from typing import Any

from ..aggregation.server_optimizer import ServerState
from ..spec.policy import Policy
from ..store.checkpoint import RunState, Store, Walked
from ..wire.message import Place


class Logbook:
    """One run. Args: size: values of the adapter that are held here; 0 in sealed mode."""

    def __init__(self, store: Store, policy: Policy, size: int) -> None:
        """Take up the run where its store left it.

        Raises:
            FederationError: the store belongs to something else.
        """
        self.store = store
        self.state: RunState = store.load(policy, size)
        self.skip_opened()

    def keep(self, **changes: Any) -> None:
        """Change the state, on disk first."""
        state = dataclasses.replace(self.state, **changes)
        self.store.save(state)
        self.state = state

    def begin(self) -> Place:
        """Take the next attempt's number."""
        self.keep(attempt=self.state.attempt + 1)
        return Place(self.state.run, self.state.round + 1 + self.state.skipped, self.state.attempt)

    def skip_opened(self) -> None:
        """If contributions had left in the last attempt when it ended, give its number up: members
        mask nothing twice.

        Attempts go on being counted: with them, fewer columns are asked for
        (`..aggregation.rank_masks`).
        """
        if self.state.opening:
            self.keep(opening=False, skipped=self.state.skipped + 1)

    def skip(self) -> None:
        """The number is used up, and the adapter stays as it is."""
        self.keep(opening=False, skipped=self.state.skipped + 1, attempt=0)

    def commit(self, server: ServerState, entry: dict[str, Any], steps: tuple[Walked, ...]) -> None:
        """A whole round is done; `steps` lead to its state."""
        self.keep(
            server=server,
            round=self.state.round + 1,
            attempt=0,
            opening=False,
            finished=False,
            adapter="",
            card="",
            delivered=(),
            history=(*self.state.history, entry),
            steps=steps,
        )

    def catch_up(self, steps: int) -> bool:
        """Sealed mode: go on from the members' number of steps. True if another one was written
        here.

        They differ if one side was killed between the members' last step and our noting it; no
        number of a round comes twice.
        """
        known = self.state.round
        if steps != known:
            self.keep(round=steps, skipped=self.state.skipped + max(0, known - steps))
        return steps != known
