"""The ServerApp with a federation file: our coordinator, its checkpoint, optimizer, masks and
report, over Flower's `Grid`.

Knows where a run's settings say that things lie. Knows nothing of rounds.
Always: as `quietchoir coordinate`; started again with the same `state` it goes on from the last
whole round, under Flower's next run. A later federation file is taken with that next run, not
within one.
"""

from contextlib import nullcontext
from pathlib import Path

from flwr.serverapp import Grid

from ...core.errors import ConfigError
from ..aggregation.snapshot import check_freezable
from ..client_node import default_home
from ..events import FederationEvent
from ..membership import roster
from ..monitor.event_printer import sentence
from ..server_node import CoordinatorOptions, coordinate
from .grid import GridLink
from .settings import Settings

GRACE_S = 30.0  # once the minimum is there, how long the rest of the roster is waited for


def conduct(grid: Grid, settings: Settings) -> None:
    """Run the federation's rounds.

    Raises:
        ConfigError: no folder for the run's state, or a mode that Flower's engines cannot keep.
        RosterError, FederationError, RoundAborted: as `coordinate`.
    """
    if not settings.state:
        raise ConfigError(
            "run config: state is empty; name a folder where the run lives, so that "
            "it can go on after a kill"
        )
    file, state = Path(settings.federation), Path(settings.state)
    check_freezable(roster.load(file))
    coordinating = CoordinatorOptions(
        file=file,
        state=state,
        keys=Path(settings.keys) if settings.keys else file.parent,
        home=default_home(),
        rounds=settings.rounds or None,
        rehearse=settings.rehearse,
        grace_s=GRACE_S,
    )
    report = coordinate(coordinating, tell, lambda policy: nullcontext(GridLink(grid, policy)))
    report.write(Path(settings.report) if settings.report else state / "report.json")


def tell(event: FederationEvent) -> None:
    """A line for people; `flwr run --stream` shows what a ServerApp prints."""
    if (text := sentence(event)) is not None:
        print(f"quietchoir {text}", flush=True)
