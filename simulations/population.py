"""The parties' examples: made up, or read from folders.

Knows examples. Knows nothing of models, keys or rounds.
Always: parties in a fixed order by name; the same scenario gives the same examples.
"""

from dataclasses import dataclass

from ..core.errors import ConfigError, DataError
from ..core.training.dataset import TEST, TRAIN, list_datasets, make_homes
from ..core.training.examples import Example, read_jsonl
from .scenario import Scenario


@dataclass(frozen=True, slots=True)
class PartyData:
    """What one party has."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def populate(scenario: Scenario) -> list[PartyData]:
    """Everybody's examples.

    Raises:
        ConfigError: a folder without parties.
        DataError: unreadable examples, or a population that cannot be made up.
    """
    population = scenario.population
    if population.kind == "rehearsal":
        digits = len(str(population.households - 1))
        return [
            PartyData(f"household-{index:0{digits}}", (), ())
            for index in range(population.households)
        ]
    if population.folder is None:
        homes = make_homes(
            households=population.households,
            train=population.train,
            test=population.test,
            seed=scenario.seed,
        )
        return [
            PartyData(
                home.household.name,
                tuple(request.example() for request in home.train),
                tuple(request.example() for request in home.test),
            )
            for home in homes
        ]
    found = list_datasets(population.folder)
    if not found:
        raise ConfigError(
            f"{population.folder}: no parties here; make some with `quietchoir data build jsonl`"
        )
    empty = [info.name for info in found if not info.test]
    if empty:
        raise DataError(
            f"{population.folder}: {', '.join(empty[:8])} has no {TEST}; every party "
            f"needs held-out examples"
        )
    return [
        PartyData(
            info.name, tuple(read_jsonl(info.folder / TRAIN)), tuple(read_jsonl(info.folder / TEST))
        )
        for info in found
    ]
